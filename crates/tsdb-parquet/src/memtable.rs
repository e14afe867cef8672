//! Rows that are not in files yet: columns that grow, sealed every few thousand rows so that a query copies little.

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, StringViewArray, StringViewBuilder,
        TimestampMicrosecondArray, UInt32Array, new_null_array,
    },
    compute::{cast, take},
    datatypes::{DataType, Float64Type},
    error::ArrowError,
};
use dunlin_model::{Timestamp, ValueRef};
use hashbrown::HashSet;

use crate::{
    columns::{Column, KEYS, Kind},
    identity,
};

/// Rows of a sealed chunk.
const CHUNK_ROWS: usize = 8_192;
/// What a row takes beside its readings: device, time, receive time, fingerprint.
const ROW_BYTES: usize = 28;
/// What a column of a chunk takes beside its values.
const COLUMN_BYTES: usize = 256;
/// A chunk whose columns are mostly padding is sealed once it takes this much: rows of few of many columns, so that a
/// column is padded only to the few rows around its values.
const SPARSE_BYTES_MAX: usize = 128 << 10;
/// Bytes of a chunk for one of a value: more are mostly padding.
const PADDING_MAX: usize = 4;

#[derive(Debug, Default)]
pub(crate) struct Memtable {
    sealed: Vec<Arc<Chunk>>,
    open: Open,
    prints: Prints,
    rows: usize,
}

/// Rows by column. Devices are numbers of the table's list of names.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) rows: usize,
    pub(crate) devices: UInt32Array,
    pub(crate) times: TimestampMicrosecondArray,
    received: TimestampMicrosecondArray,
    columns: Vec<Option<ArrayRef>>,
    other: Option<ArrayRef>,
    pub(crate) time_min: Timestamp,
    pub(crate) time_max: Timestamp,
}

/// A row without its readings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowKey {
    pub(crate) device: u32,
    pub(crate) time: Timestamp,
    /// `None` if that is `time`.
    pub(crate) received_at: Option<Timestamp>,
    /// `identity::NEVER` if no other row is a copy of it.
    pub(crate) print: u64,
}

#[derive(Debug, Default)]
struct Open {
    devices: Vec<u32>,
    times: Vec<i64>,
    received: Int64Builder,
    columns: Vec<Option<Growing>>,
    other: Option<StringViewBuilder>,
    /// What one row takes in all columns that are here.
    row_bytes: usize,
    /// What all rows take, padding included, but for long texts.
    padded_bytes: usize,
    /// What the values alone take.
    value_bytes: usize,
}

#[derive(Debug)]
enum Growing {
    F64(Float64Builder),
    I64(Int64Builder),
    Bool(BooleanBuilder),
    Text(StringViewBuilder),
}

/// Fingerprints of rows, indexed only once somebody asks: rows that come in order never do.
#[derive(Debug, Default)]
pub(crate) struct Prints {
    rows: Vec<u64>,
    index: HashSet<u64, foldhash::fast::FixedState>,
    indexed: usize,
}

impl Memtable {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn holds(&mut self, print: u64) -> bool {
        self.prints.contains(print)
    }

    /// Puts a value of the row that the next `push` completes into its column; what that allocates beside the row.
    pub(crate) fn set(&mut self, column: u16, kind: Kind, value: ValueRef<'_>) -> usize {
        let (rows, at) = (self.open.times.len(), usize::from(column));
        if self.open.columns.len() <= at {
            self.open.columns.resize_with(at + 1, || None);
        }
        let mut added = 0;
        if self.open.columns[at].is_none() {
            added += self.open.grow(width_of(kind));
        }
        let growing = self.open.columns[at].get_or_insert_with(|| Growing::of(kind));
        growing.pad_to(rows);
        self.open.value_bytes += width_of(kind);
        added + growing.append(value)
    }

    pub(crate) fn set_other(&mut self, json: &str) -> usize {
        let rows = self.open.times.len();
        let mut added = json.len();
        if self.open.other.is_none() {
            added += self.open.grow(width_of(Kind::Text));
        }
        let other = self.open.other.get_or_insert_with(StringViewBuilder::new);
        pad_text(other, rows);
        other.append_value(json);
        self.open.value_bytes += width_of(Kind::Text);
        added
    }

    /// The column was one of integers.
    pub(crate) fn promote(&mut self, column: u16) {
        if let Some(Some(growing)) = self.open.columns.get_mut(usize::from(column))
            && let Growing::I64(integers) = growing
        {
            let integers = integers.finish();
            let mut floats = Float64Builder::with_capacity(integers.len());
            floats.append_array(&integers.unary::<_, Float64Type>(|v| v as f64));
            *growing = Growing::F64(floats);
        }
    }

    /// Completes the row; its bytes, with its place in every column of the chunk.
    pub(crate) fn push(&mut self, key: RowKey) -> usize {
        let open = &mut self.open;
        open.devices.push(key.device);
        open.times.push(key.time.as_micros());
        open.received.append_option(key.received_at.map(Timestamp::as_micros));
        self.prints.rows.push(key.print);
        self.rows += 1;
        let bytes = ROW_BYTES + open.row_bytes;
        open.padded_bytes += open.row_bytes;
        if open.times.len() >= CHUNK_ROWS || open.is_mostly_padding() {
            self.seal();
        }
        bytes
    }

    fn seal(&mut self) {
        if !self.open.times.is_empty() {
            self.sealed.push(Arc::new(self.open.finish()));
        }
    }

    /// All rows, and the fingerprints to find them by; nothing is left.
    pub(crate) fn take(&mut self) -> (Vec<Arc<Chunk>>, Prints) {
        self.seal();
        let taken = std::mem::take(self);
        (taken.sealed, taken.prints)
    }

    /// All rows as they are now.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Chunk>> {
        let mut chunks = self.sealed.clone();
        if !self.open.times.is_empty() {
            chunks.push(Arc::new(self.open.copy()));
        }
        chunks
    }
}

impl Open {
    /// A new column of this width; what it allocates for the rows before.
    fn grow(&mut self, width: usize) -> usize {
        let bytes = COLUMN_BYTES + self.times.len() * width;
        self.row_bytes += width;
        self.padded_bytes += bytes;
        bytes
    }

    fn is_mostly_padding(&self) -> bool {
        self.padded_bytes > SPARSE_BYTES_MAX && self.padded_bytes > PADDING_MAX * self.value_bytes
    }

    fn finish(&mut self) -> Chunk {
        let rows = self.times.len();
        let columns = self.columns.iter_mut().map(|column| {
            column.take().map(|mut growing| {
                growing.pad_to(rows);
                let mut array = growing.finish();
                array.shrink_to_fit();
                array
            })
        });
        let columns = columns.collect();
        let other = self.other.take().map(|mut other| {
            pad_text(&mut other, rows);
            Arc::new(other.finish()) as ArrayRef
        });
        let received = self.received.finish();
        (self.row_bytes, self.padded_bytes, self.value_bytes) = (0, 0, 0);
        Chunk::new(
            std::mem::take(&mut self.devices),
            std::mem::take(&mut self.times),
            received,
            columns,
            other,
        )
    }

    fn copy(&self) -> Chunk {
        let rows = self.times.len();
        let columns = self.columns.iter().map(|column| column.as_ref().map(|growing| growing.copy(rows)));
        let other = self.other.as_ref().map(|other| padded(Arc::new(other.finish_cloned()), rows));
        Chunk::new(
            self.devices.clone(),
            self.times.clone(),
            self.received.finish_cloned(),
            columns.collect(),
            other,
        )
    }
}

impl Chunk {
    fn new(
        devices: Vec<u32>,
        times: Vec<i64>,
        received: arrow::array::Int64Array,
        columns: Vec<Option<ArrayRef>>,
        other: Option<ArrayRef>,
    ) -> Self {
        let bound = |bound: Option<&i64>| Timestamp::from_micros(bound.copied().unwrap_or_default());
        Self {
            rows: times.len(),
            time_min: bound(times.iter().min()),
            time_max: bound(times.iter().max()),
            devices: devices.into(),
            times: TimestampMicrosecondArray::from(times).with_timezone("UTC"),
            received: received.reinterpret_cast().with_timezone("UTC"),
            columns,
            other,
        }
    }

    /// The names of the rows' devices.
    pub(crate) fn device_names(&self, names: &StringViewArray) -> Result<ArrayRef, ArrowError> {
        take(names, &self.devices, None)
    }

    /// Whether any row has a value in this column of the table, whose metrics have so many columns.
    pub(crate) fn has(&self, number: usize, columns: usize) -> bool {
        match number.checked_sub(KEYS) {
            None => true,
            Some(metric) if metric < columns => self.columns.get(metric).is_some_and(Option::is_some),
            Some(_) => self.other.is_some(),
        }
    }

    /// A column of the table that is not the device's name, by number and in its type of now; `None` if no row has it.
    pub(crate) fn column(
        &self,
        number: usize,
        columns: &[Column],
        wanted: &DataType,
    ) -> Result<Option<ArrayRef>, ArrowError> {
        let array = match number {
            1 => Some(Arc::new(self.times.clone()) as ArrayRef),
            2 => Some(Arc::new(self.received.clone()) as ArrayRef),
            metric if metric - KEYS < columns.len() => self.columns.get(metric - KEYS).cloned().flatten(),
            _ => self.other.clone(),
        };
        match array {
            Some(array) if array.data_type() != wanted => cast(&array, wanted).map(Some),
            array => Ok(array),
        }
    }
}

/// What a value of a column takes, but for a long text.
fn width_of(kind: Kind) -> usize {
    match kind {
        Kind::F64 | Kind::I64 => 8,
        Kind::Bool => 1,
        Kind::Text => 16,
    }
}

impl Growing {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::F64 => Self::F64(Float64Builder::new()),
            Kind::I64 => Self::I64(Int64Builder::new()),
            Kind::Bool => Self::Bool(BooleanBuilder::new()),
            Kind::Text => Self::Text(StringViewBuilder::new()),
        }
    }

    /// Bytes beyond the width.
    fn append(&mut self, value: ValueRef<'_>) -> usize {
        match (self, value) {
            (Self::F64(column), ValueRef::F64(v)) => column.append_value(v),
            (Self::F64(column), ValueRef::I64(v)) => column.append_value(v as f64),
            (Self::I64(column), ValueRef::I64(v)) => column.append_value(v),
            (Self::Bool(column), ValueRef::Bool(v)) => column.append_value(v),
            (Self::Text(column), ValueRef::Text(v)) => {
                column.append_value(v);
                return v.len();
            }
            (column, value) => unreachable!("{value:?} was given a place in {column:?}"),
        }
        0
    }

    fn pad_to(&mut self, rows: usize) {
        match self {
            Self::F64(column) => pad(column, rows),
            Self::I64(column) => pad(column, rows),
            Self::Bool(column) => {
                let missing = rows.saturating_sub(arrow::array::ArrayBuilder::len(column));
                if missing > 0 {
                    column.append_nulls(missing);
                }
            }
            Self::Text(column) => pad_text(column, rows),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::F64(column) => Arc::new(column.finish()),
            Self::I64(column) => Arc::new(column.finish()),
            Self::Bool(column) => Arc::new(column.finish()),
            Self::Text(column) => Arc::new(column.finish()),
        }
    }

    fn copy(&self, rows: usize) -> ArrayRef {
        let array: ArrayRef = match self {
            Self::F64(column) => Arc::new(column.finish_cloned()),
            Self::I64(column) => Arc::new(column.finish_cloned()),
            Self::Bool(column) => Arc::new(column.finish_cloned()),
            Self::Text(column) => Arc::new(column.finish_cloned()),
        };
        padded(array, rows)
    }
}

fn pad<T: arrow::datatypes::ArrowPrimitiveType>(column: &mut arrow::array::PrimitiveBuilder<T>, rows: usize) {
    let missing = rows.saturating_sub(arrow::array::ArrayBuilder::len(column));
    if missing > 0 {
        column.append_nulls(missing);
    }
}

fn pad_text(column: &mut StringViewBuilder, rows: usize) {
    for _ in arrow::array::ArrayBuilder::len(column)..rows {
        column.append_null();
    }
}

/// The array with nulls at its end.
fn padded(array: ArrayRef, rows: usize) -> ArrayRef {
    if array.len() == rows {
        return array;
    }
    let nulls = new_null_array(array.data_type(), rows - array.len());
    arrow::compute::concat(&[&array, &nulls]).unwrap_or(array)
}

impl Prints {
    pub(crate) fn contains(&mut self, print: u64) -> bool {
        self.index.extend(self.rows[self.indexed..].iter().filter(|print| **print != identity::NEVER));
        self.indexed = self.rows.len();
        self.index.contains(&print)
    }
}

#[cfg(test)]
mod tests;
