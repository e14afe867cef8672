//! Rows that are not in files yet: columns that grow, sealed every few thousand rows so that a query copies little.

use std::sync::Arc;

use arrow::{
    array::{
        ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, RecordBatch, RecordBatchOptions,
        StringViewArray, StringViewBuilder, TimestampMicrosecondArray, UInt32Array, new_null_array,
    },
    compute::{cast, take},
    datatypes::{Float64Type, SchemaRef},
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
const READING_BYTES: usize = 8;

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

    /// Puts a value of the row that the next `push` completes into its column; its bytes.
    pub(crate) fn set(&mut self, column: u16, kind: Kind, value: ValueRef<'_>) -> usize {
        let (rows, at) = (self.open.times.len(), usize::from(column));
        if self.open.columns.len() <= at {
            self.open.columns.resize_with(at + 1, || None);
        }
        let growing = self.open.columns[at].get_or_insert_with(|| Growing::of(kind));
        growing.pad_to(rows);
        READING_BYTES + growing.append(value)
    }

    pub(crate) fn set_other(&mut self, json: &str) -> usize {
        let rows = self.open.times.len();
        let other = self.open.other.get_or_insert_with(StringViewBuilder::new);
        pad_text(other, rows);
        other.append_value(json);
        json.len() + READING_BYTES
    }

    /// The column was one of integers.
    pub(crate) fn promote(&mut self, column: u16) {
        if let Some(Some(growing)) = self.open.columns.get_mut(usize::from(column))
            && let Growing::I64(integers) = growing
        {
            let integers = integers.finish();
            let mut floats = Float64Builder::with_capacity(CHUNK_ROWS);
            floats.append_array(&integers.unary::<_, Float64Type>(|v| v as f64));
            *growing = Growing::F64(floats);
        }
    }

    /// Completes the row; its bytes.
    pub(crate) fn push(&mut self, key: RowKey) -> usize {
        let open = &mut self.open;
        open.devices.push(key.device);
        open.times.push(key.time.as_micros());
        open.received.append_option(key.received_at.map(Timestamp::as_micros));
        self.prints.rows.push(key.print);
        self.rows += 1;
        if self.open.times.len() >= CHUNK_ROWS {
            self.seal();
        }
        ROW_BYTES
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
    fn finish(&mut self) -> Chunk {
        let rows = self.times.len();
        let columns = self.columns.iter_mut().map(|column| {
            column.take().map(|mut growing| {
                growing.pad_to(rows);
                growing.finish()
            })
        });
        let columns = columns.collect();
        let other = self.other.take().map(|mut other| {
            pad_text(&mut other, rows);
            Arc::new(other.finish()) as ArrayRef
        });
        let received = self.received.finish();
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

    /// The rows as the table's columns are now.
    pub(crate) fn batch(
        &self,
        schema: &SchemaRef,
        columns: &[Column],
        names: &StringViewArray,
    ) -> Result<RecordBatch, ArrowError> {
        let all: Vec<usize> = (0..schema.fields().len()).collect();
        self.project(schema, columns, names, &all)
    }

    /// Some of the table's columns, by number.
    pub(crate) fn project(
        &self,
        schema: &SchemaRef,
        columns: &[Column],
        names: &StringViewArray,
        wanted: &[usize],
    ) -> Result<RecordBatch, ArrowError> {
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(wanted.len());
        for number in wanted {
            let wanted_type = schema.field(*number).data_type();
            let array = match *number {
                0 => Some(take(names, &self.devices, None)?),
                1 => Some(Arc::new(self.times.clone()) as ArrayRef),
                2 => Some(Arc::new(self.received.clone()) as ArrayRef),
                metric if metric - KEYS < columns.len() => self.columns.get(metric - KEYS).cloned().flatten(),
                _ => self.other.clone(),
            };
            arrays.push(match array {
                Some(array) if array.data_type() == wanted_type => array,
                Some(array) => cast(&array, wanted_type)?,
                None => new_null_array(wanted_type, self.rows),
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        RecordBatch::try_new_with_options(Arc::new(schema.project(wanted)?), arrays, &options)
    }
}

impl Growing {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::F64 => Self::F64(Float64Builder::with_capacity(CHUNK_ROWS)),
            Kind::I64 => Self::I64(Int64Builder::with_capacity(CHUNK_ROWS)),
            Kind::Bool => Self::Bool(BooleanBuilder::with_capacity(CHUNK_ROWS)),
            Kind::Text => Self::Text(StringViewBuilder::new()),
        }
    }

    /// Bytes beyond the fixed width.
    fn append(&mut self, value: ValueRef<'_>) -> usize {
        match (self, value) {
            (Self::F64(column), ValueRef::F64(v)) => column.append_value(v),
            (Self::F64(column), ValueRef::I64(v)) => column.append_value(v as f64),
            (Self::I64(column), ValueRef::I64(v)) => column.append_value(v),
            (Self::Bool(column), ValueRef::Bool(v)) => column.append_value(v),
            (Self::Text(column), ValueRef::Text(v)) => {
                column.append_value(v);
                return v.len() + READING_BYTES;
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
