//! Parquet: the sort order and the encodings. Fresh files are written fast; packed ones small, each column by what a
//! sample of it takes in the encodings that may suit it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, Decimal64Array, RecordBatch},
    compute::{cast, interleave_record_batch},
    datatypes::{DataType, Field, Float64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType},
};
use dunlin_model::Timestamp;
use dunlin_tsdb::StoreError;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder},
    schema::types::ColumnPath,
};

use crate::{
    columns::{DEVICE, TIME},
    files::{FileEntry, Partition, make_dirs, sync_dir},
};

/// Rows of a row group: what a late row's look-up reads.
pub(crate) const GROUP_ROWS: usize = 131_072;
/// Rows of a page: what a query of one device reads.
const PAGE_ROWS: usize = 16_384;
/// Rows that are encoded for trial.
const SAMPLE_ROWS: usize = 65_536;
/// Digits after the point up to which floats are kept as decimals.
const DECIMALS_MAX: u8 = 6;
const DICTIONARY_BYTES_MAX: usize = 1 << 20;

/// What a file is besides its rows.
#[derive(Debug, Clone)]
pub(crate) struct Label {
    pub(crate) id: u64,
    /// The table's directory, below the store's.
    pub(crate) table_dir: String,
    pub(crate) partition: Partition,
    pub(crate) run: u64,
    pub(crate) level: u8,
    pub(crate) written_at: Timestamp,
}

/// Writes rows that come sorted by device and time to a file of their own, durably.
pub(crate) fn write_file(
    dir: &Path,
    label: Label,
    plan: &Plan,
    rows: impl IntoIterator<Item = Result<RecordBatch, StoreError>>,
) -> Result<FileEntry, StoreError> {
    let relative = format!("{}/{}", label.table_dir, label.partition.dir_name());
    let path = format!("{relative}/{}.parquet", label.id);
    let failed = |source| StoreError::Write { path: dir.join(&path), source };
    make_dirs(dir, Path::new(&relative)).map_err(failed)?;
    let unfinished = Unfinished(dir.join(&path));
    let mut span = None;
    let bytes = write_rows(&unfinished.0, plan, rows, &mut span)?;
    let Some(span) = span else {
        return Err(StoreError::Engine { reason: format!("{path} would be empty") });
    };
    sync_dir(&dir.join(&relative)).map_err(failed)?;
    unfinished.finish();
    Ok(FileEntry {
        id: label.id,
        path,
        partition: label.partition,
        run: label.run,
        level: label.level,
        rows: span.rows,
        bytes,
        time_min: span.time_min,
        time_max: span.time_max,
        device_min: span.device_min,
        device_max: span.device_max,
        written_at: label.written_at,
    })
}

/// A file that goes when it was not written to its end: a full disk must not stay full of halves.
struct Unfinished(PathBuf);

impl Unfinished {
    fn finish(mut self) {
        self.0.clear();
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            // It may not have been made; what cannot be deleted goes with the next start.
            let _ = fs::remove_file(&self.0);
        }
    }
}

/// Deletes files that no manifest names; what cannot be deleted goes with the next start.
pub(crate) fn remove_files(dir: &Path, files: &[FileEntry]) {
    for file in files {
        let _ = fs::remove_file(dir.join(&file.path));
    }
}

fn write_rows(
    path: &Path,
    plan: &Plan,
    rows: impl IntoIterator<Item = Result<RecordBatch, StoreError>>,
    span: &mut Option<Span>,
) -> Result<u64, StoreError> {
    let io = |source| StoreError::Write { path: path.into(), source };
    let engine = |error: parquet::errors::ParquetError| match error {
        parquet::errors::ParquetError::External(e) if e.is::<std::io::Error>() => match e.downcast() {
            Ok(source) => io(*source),
            Err(e) => StoreError::Engine { reason: e.to_string() },
        },
        other => io(std::io::Error::other(other)),
    };
    let file = fs::File::create(path).map_err(io)?;
    let mut writer =
        ArrowWriter::try_new(file, plan.schema.clone(), Some(plan.properties())).map_err(engine)?;
    for batch in rows {
        let batch = batch?;
        if batch.num_rows() > 0 {
            Span::grow(span, &batch);
        }
        writer.write(&plan.apply(&batch)?).map_err(engine)?;
    }
    writer.finish().map_err(engine)?;
    let file = writer.inner();
    file.sync_all().map_err(io)?;
    Ok(file.metadata().map_err(io)?.len())
}

/// The bounds of sorted rows.
struct Span {
    rows: u64,
    time_min: Timestamp,
    time_max: Timestamp,
    device_min: String,
    device_max: String,
}

impl Span {
    /// Takes in the rows that follow; there are some.
    fn grow(span: &mut Option<Self>, batch: &RecordBatch) {
        let times = batch.column(1).as_primitive::<TimestampMicrosecondType>().values();
        let bound = |time: Option<&i64>| Timestamp::from_micros(time.copied().unwrap_or_default());
        let (time_min, time_max) = (bound(times.iter().min()), bound(times.iter().max()));
        let devices = batch.column(0).as_string_view();
        let last = devices.value(devices.len() - 1);
        let span = span.get_or_insert_with(|| Self {
            rows: 0,
            time_min,
            time_max,
            device_min: devices.value(0).to_owned(),
            device_max: String::new(),
        });
        span.rows += batch.num_rows() as u64;
        span.time_min = span.time_min.min(time_min);
        span.time_max = span.time_max.max(time_max);
        span.device_max = last.to_owned();
    }
}

/// How the columns of one file are stored.
pub(crate) struct Plan {
    schema: SchemaRef,
    storage: Vec<Storage>,
    level: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Storage {
    shape: Shape,
    /// `None`: a dictionary.
    encoding: Option<Encoding>,
}

/// The type a column is stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    AsIs,
    Milliseconds,
    /// Floats that are decimals with so many digits after the point, of at most so many digits.
    Decimal {
        scale: u8,
        precision: u8,
    },
}

impl Plan {
    /// Written quickly.
    pub(crate) fn fast(schema: SchemaRef) -> Self {
        let storage = schema.fields().iter().map(|field| Storage {
            shape: Shape::AsIs,
            encoding: match field.data_type() {
                DataType::Timestamp(..) => Some(Encoding::DELTA_BINARY_PACKED),
                _ => None,
            },
        });
        Self { storage: storage.collect(), schema, level: 1 }
    }

    /// Takes little room, judged by these rows; only they may be written.
    pub(crate) fn small(schema: &SchemaRef, rows: &[RecordBatch]) -> Result<Self, StoreError> {
        let level = 3;
        let mut storage = Vec::with_capacity(schema.fields().len());
        let mut fields = Vec::with_capacity(schema.fields().len());
        for (number, field) in schema.fields().iter().enumerate() {
            let columns: Vec<&ArrayRef> = rows.iter().map(|batch| batch.column(number)).collect();
            let chosen = smallest(field, &columns, level)?;
            fields.push(Field::new(
                field.name(),
                chosen.shape.data_type(field.data_type()),
                field.is_nullable(),
            ));
            storage.push(chosen);
        }
        Ok(Self { schema: Arc::new(Schema::new(fields)), storage, level })
    }

    fn apply(&self, batch: &RecordBatch) -> Result<RecordBatch, StoreError> {
        let columns =
            batch.columns().iter().zip(&self.storage).map(|(column, storage)| storage.shape.apply(column));
        RecordBatch::try_new(self.schema.clone(), columns.collect::<Result<_, _>>()?).map_err(engine_error)
    }

    fn properties(&self) -> WriterProperties {
        let mut properties = base_properties(self.level)
            .set_max_row_group_row_count(Some(GROUP_ROWS))
            .set_data_page_row_count_limit(PAGE_ROWS);
        for (field, storage) in self.schema.fields().iter().zip(&self.storage) {
            properties = storage.set(properties, field.name());
            // Only what is sorted or narrows a search is worth an index entry per page.
            if ![DEVICE, TIME].contains(&field.name().as_str()) {
                properties =
                    properties.set_column_statistics_enabled(path_of(field.name()), EnabledStatistics::Chunk);
            }
        }
        properties.build()
    }
}

fn base_properties(level: i32) -> WriterPropertiesBuilder {
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(level).unwrap_or_default()))
        .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX)
        .set_created_by("dunlin".into())
}

/// A column's name is one part of a path, dots included.
fn path_of(column: &str) -> ColumnPath {
    ColumnPath::new(vec![column.into()])
}

impl Storage {
    fn set(self, properties: WriterPropertiesBuilder, column: &str) -> WriterPropertiesBuilder {
        match self.encoding {
            None => properties.set_column_dictionary_enabled(path_of(column), true),
            Some(encoding) => properties
                .set_column_dictionary_enabled(path_of(column), false)
                .set_column_encoding(path_of(column), encoding),
        }
    }
}

impl Shape {
    fn data_type(self, of: &DataType) -> DataType {
        match self {
            Self::AsIs => of.clone(),
            Self::Milliseconds => DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())),
            Self::Decimal { scale, precision } => DataType::Decimal64(precision, scale as i8),
        }
    }

    fn apply(self, column: &ArrayRef) -> Result<ArrayRef, StoreError> {
        match self {
            Self::AsIs => Ok(column.clone()),
            Self::Milliseconds => cast(column, &self.data_type(column.data_type())).map_err(engine_error),
            Self::Decimal { scale, precision } => {
                let scaled: Decimal64Array = column
                    .as_primitive::<Float64Type>()
                    .unary(|v| (v * 10_f64.powi(i32::from(scale))).round() as i64);
                let scaled = scaled.with_precision_and_scale(precision, scale as i8).map_err(engine_error)?;
                Ok(Arc::new(scaled))
            }
        }
    }
}

/// The storage in which a sample of the column takes the fewest bytes.
fn smallest(field: &Field, columns: &[&ArrayRef], level: i32) -> Result<Storage, StoreError> {
    let integers = [Some(Encoding::DELTA_BINARY_PACKED), None, Some(Encoding::BYTE_STREAM_SPLIT)];
    let candidates: Vec<Storage> = match field.data_type() {
        DataType::Timestamp(..) => {
            let shape = if whole_milliseconds(columns) { Shape::Milliseconds } else { Shape::AsIs };
            integers.iter().map(|encoding| Storage { shape, encoding: *encoding }).collect()
        }
        DataType::Int64 => {
            integers.iter().map(|encoding| Storage { shape: Shape::AsIs, encoding: *encoding }).collect()
        }
        DataType::Float64 => {
            let split = Some(Encoding::BYTE_STREAM_SPLIT);
            let floats = [None, split].map(|encoding| Storage { shape: Shape::AsIs, encoding });
            let decimal = decimals(columns).map(|shape| integers.map(|encoding| Storage { shape, encoding }));
            floats.into_iter().chain(decimal.into_iter().flatten()).collect()
        }
        _ => vec![Storage { shape: Shape::AsIs, encoding: None }],
    };
    let [only] = candidates[..] else {
        let sample = sample(columns)?;
        let mut sized = Vec::with_capacity(candidates.len());
        for storage in candidates {
            sized.push((trial(field, &sample, storage, level)?, storage));
        }
        let smallest = sized.into_iter().min_by_key(|(bytes, _)| *bytes);
        return Ok(smallest.map_or(Storage { shape: Shape::AsIs, encoding: None }, |(_, storage)| storage));
    };
    Ok(only)
}

fn sample(columns: &[&ArrayRef]) -> Result<ArrayRef, StoreError> {
    let mut rows = 0;
    let parts: Vec<&dyn Array> = columns
        .iter()
        .take_while(|column| {
            let first = rows;
            rows += column.len();
            first < SAMPLE_ROWS
        })
        .map(|column| &***column)
        .collect();
    let sample = arrow::compute::concat(&parts).map_err(engine_error)?;
    Ok(sample.slice(0, sample.len().min(SAMPLE_ROWS)))
}

fn trial(field: &Field, sample: &ArrayRef, storage: Storage, level: i32) -> Result<usize, StoreError> {
    let engine = |e: parquet::errors::ParquetError| StoreError::Engine { reason: e.to_string() };
    let array = storage.shape.apply(sample)?;
    let schema = Arc::new(Schema::new(vec![Field::new("c", array.data_type().clone(), field.is_nullable())]));
    let batch = RecordBatch::try_new(schema.clone(), vec![array]).map_err(engine_error)?;
    let properties = storage.set(base_properties(level).set_data_page_row_count_limit(PAGE_ROWS), "c");
    let mut writer = ArrowWriter::try_new(Vec::new(), schema, Some(properties.build())).map_err(engine)?;
    writer.write(&batch).map_err(engine)?;
    Ok(writer.into_inner().map_err(engine)?.len())
}

fn whole_milliseconds(columns: &[&ArrayRef]) -> bool {
    columns.iter().all(|column| {
        let times = column.as_primitive::<TimestampMicrosecondType>();
        times.iter().flatten().all(|time| time % 1_000 == 0)
    })
}

/// The decimals that give every float of the column back to the bit, if there are any.
fn decimals(columns: &[&ArrayRef]) -> Option<Shape> {
    let mut scale = 0;
    let mut largest = 0_i64;
    for column in columns {
        for value in column.as_primitive::<Float64Type>().iter().flatten() {
            while !is_decimal(value, scale) {
                scale += 1;
                if scale > DECIMALS_MAX {
                    return None;
                }
            }
        }
    }
    // A number that is exact with few digits need not be with more.
    for column in columns {
        for value in column.as_primitive::<Float64Type>().iter().flatten() {
            if !is_decimal(value, scale) {
                return None;
            }
            largest = largest.max(((value * 10_f64.powi(i32::from(scale))).round() as i64).abs());
        }
    }
    Some(Shape::Decimal { scale, precision: if largest < 1_000_000_000 { 9 } else { 18 } })
}

fn is_decimal(value: f64, scale: u8) -> bool {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let power = 10_f64.powi(i32::from(scale));
    let scaled = (value * power).round();
    scaled.abs() < EXACT && (scaled as i64 as f64 / power).to_bits() == value.to_bits()
}

/// Rows of several batches in the given order.
pub(crate) fn in_order(batches: &[RecordBatch], order: &[(usize, usize)]) -> Result<RecordBatch, StoreError> {
    let batches: Vec<&RecordBatch> = batches.iter().collect();
    interleave_record_batch(&batches, order).map_err(engine_error)
}

/// Rows whose columns take about this many bytes, from `least` to `most`; a table of few columns has more of them.
pub(crate) fn rows_of(bytes: usize, schema: &Schema, least: usize, most: usize) -> usize {
    (bytes / row_bytes(schema)).clamp(least, most)
}

/// What a row takes in memory, but for long texts.
fn row_bytes(schema: &Schema) -> usize {
    let width = |field: &Arc<Field>| match field.data_type() {
        DataType::Boolean => 1,
        DataType::Utf8View => 16,
        _ => 8,
    };
    schema.fields().iter().map(width).sum::<usize>().max(1)
}

/// What a batch takes in memory. Texts that several batches share count for each.
pub(crate) fn batch_bytes(batch: &RecordBatch) -> usize {
    let texts = batch.columns().iter().filter_map(|column| column.as_string_view_opt());
    batch.num_rows() * row_bytes(batch.schema_ref())
        + texts.map(|texts| texts.total_buffer_bytes_used()).sum::<usize>()
}

/// The batch with the columns that `schema` asks for.
pub(crate) fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, StoreError> {
    let columns = schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
        Some(column) if column.data_type() == field.data_type() => Ok(column.clone()),
        Some(column) => cast(column, field.data_type()).map_err(engine_error),
        None => Ok(arrow::array::new_null_array(field.data_type(), batch.num_rows())),
    });
    RecordBatch::try_new(schema.clone(), columns.collect::<Result<_, _>>()?).map_err(engine_error)
}

pub(crate) fn engine_error(error: arrow::error::ArrowError) -> StoreError {
    StoreError::Engine { reason: error.to_string() }
}

#[cfg(test)]
mod tests;
