//! Fresh rows into files. A flush freezes the rows of all tables with the positions and counts that go with them,
//! writes the files beside everybody's work, and commits all of it with one manifest. A flush that failed is tried
//! again with the same rows; what was frozen stays visible to queries and known to the search for duplicates.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, StringViewArray, new_null_array},
    compute::interleave,
    datatypes::SchemaRef,
    error::ArrowError,
};
use dunlin_journal::{Offset, Partition as JournalPartition};
use dunlin_model::{TenantId, Timestamp, chain};
use dunlin_tsdb::{Counts, StoreError};

use crate::{
    columns::{Column, schema_of},
    encode::{self, Label, Plan},
    files::{DataFile, FileEntry, Partition, safe_name},
    manifest::TableKey,
    memtable::Chunk,
    state::State,
    store::{Inner, contained, lock},
};

/// Pause before a failed flush is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// No clock counts further; a flush that finds nothing does nothing.
const PAUSE_MAX: Duration = Duration::from_secs(86_400);
/// Rows that are put in order at once.
const BATCH_BYTES: usize = 32 << 20;
const BATCH_ROWS_MIN: usize = 1_024;
/// Rows of an old day that are too few for a file of their own; they share one with the days around.
const THIN_ROWS: usize = 4_096;
/// A day is old when it ended so long ago.
pub(crate) const OLD_AFTER: Duration = Duration::from_secs(2 * 86_400);

/// All that one commit makes durable.
struct Flush {
    tables: Vec<TableFlush>,
    columns: Vec<(TableKey, Vec<Column>, bool)>,
    positions: BTreeMap<JournalPartition, Offset>,
    counts: BTreeMap<TenantId, Counts>,
}

struct TableFlush {
    table: usize,
    key: TableKey,
    columns: Vec<Column>,
    other: bool,
    names: Arc<StringViewArray>,
    chunks: Arc<Vec<Arc<Chunk>>>,
    /// Kept over a commit that failed: the manifest on disk may name them.
    written: Option<Vec<FileEntry>>,
}

pub(crate) fn run(inner: &Inner) {
    let mut unfinished: Option<Flush> = None;
    let mut began = Instant::now();
    loop {
        let pause = if unfinished.is_some() {
            RETRY_PAUSE
        } else {
            Duration::from_secs(inner.config.flush_after_seconds).saturating_sub(began.elapsed())
        };
        let Some(mut waiting) = wait(inner, pause) else { return };
        began = Instant::now();
        let mut outcome = Ok(());
        // A flush left over holds older rows than those who ask now want to see durable.
        let rounds = if unfinished.is_some() { 2 } else { 1 };
        for _ in 0..rounds {
            let mut flush = unfinished.take().unwrap_or_else(|| freeze(inner));
            outcome = finish(inner, &mut flush);
            if outcome.is_err() {
                unfinished = Some(flush);
                break;
            }
        }
        report(inner, &outcome);
        inner.metrics.flush_seconds.observe(began.elapsed().as_secs_f64());
        for reply in waiting.drain(..) {
            // Who asked may have left.
            let _ = reply.send(outcome.as_ref().map(|_| ()).map_err(copy));
        }
    }
}

/// Those who asked for a flush, once there is a reason for one; `None` when the store closes.
fn wait(inner: &Inner, pause: Duration) -> Option<Vec<tokio::sync::oneshot::Sender<Result<(), StoreError>>>> {
    let until = Instant::now() + pause.min(PAUSE_MAX);
    let mut asked = lock(&inner.control.asked);
    loop {
        if !asked.flushes.is_empty() || (asked.full && !asked.stop) {
            asked.full = false;
            return Some(std::mem::take(&mut asked.flushes));
        }
        if asked.stop {
            return None;
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Some(Vec::new());
        }
        let waited = inner.control.changed.wait_timeout(asked, left);
        asked = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn report(inner: &Inner, outcome: &Result<(), StoreError>) {
    let mut state = lock(&inner.state);
    state.flush_error = outcome.as_ref().err().map(|error| chain(error));
    drop(state);
    inner.room.notify_all();
    if let Err(error) = outcome {
        inner.metrics.flush_failures.inc();
        tracing::error!(error = chain(error), "flush failed; its rows stay in memory and it is tried again");
    }
}

fn freeze(inner: &Inner) -> Flush {
    let mut state = lock(&inner.state);
    let state = &mut *state;
    let mut flush = Flush {
        tables: Vec::new(),
        columns: Vec::with_capacity(state.tables.len()),
        positions: state.positions.clone(),
        counts: state.counts(),
    };
    for (number, table) in state.tables.iter_mut().enumerate() {
        let key = (table.tenant.clone(), table.device_type.clone());
        let (columns, other) = (table.columns.list().to_vec(), table.columns.has_other());
        flush.columns.push((key.clone(), columns.clone(), other));
        if table.fresh.rows() == 0 {
            continue;
        }
        table.freeze();
        let Some(frozen) = &table.frozen else { continue };
        flush.tables.push(TableFlush {
            table: number,
            key,
            columns,
            other,
            chunks: frozen.chunks.clone(),
            names: table.devices.names(),
            written: None,
        });
    }
    state.freezes += 1;
    state.bytes = 0;
    inner.metrics.memtable_bytes.set(0);
    inner.room.notify_all();
    flush
}

fn finish(inner: &Inner, flush: &mut Flush) -> Result<(), StoreError> {
    for table in &mut flush.tables {
        if table.written.is_none() {
            table.written = Some(write_table(inner, table)?);
        }
    }
    let flush = &*flush;
    inner.commit(
        |manifest| {
            manifest.positions = flush.positions.clone();
            manifest.counts = flush.counts.clone();
            for (key, columns, other) in &flush.columns {
                let entry = manifest.tables.entry(key.clone()).or_default();
                entry.columns = columns.clone();
                entry.other = *other;
            }
            for table in &flush.tables {
                let entry = manifest.tables.entry(table.key.clone()).or_default();
                entry.files.extend(table.written.iter().flatten().cloned());
            }
        },
        |state: &mut State| {
            for table in &flush.tables {
                let of = &mut state.tables[table.table];
                of.thaw();
                for file in table.written.iter().flatten() {
                    of.add_file(Arc::new(DataFile::new(&inner.config.dir, file.clone())));
                }
            }
        },
    )
}

/// Writes the rows of one table, all or nothing.
fn write_table(inner: &Inner, table: &TableFlush) -> Result<Vec<FileEntry>, StoreError> {
    let mut files = Vec::new();
    let written = contained(|| write_partitions(inner, table, &mut files));
    if written.is_err() {
        encode::remove_files(&inner.config.dir, &files);
    }
    written.map(|()| files)
}

/// A file per day, and for old days with few rows a file per 32 days.
fn write_partitions(inner: &Inner, table: &TableFlush, files: &mut Vec<FileEntry>) -> Result<(), StoreError> {
    let schema = schema_of(&table.columns, table.other);
    let source = Source::new(&schema, table).map_err(encode::engine_error)?;
    let rows_max = encode::rows_of(BATCH_BYTES, &schema, BATCH_ROWS_MIN, encode::GROUP_ROWS);
    let plan = Plan::fast(schema);
    let now = inner.clock.now();
    for (partition, order) in sort(&table.chunks, &table.names, now) {
        let id = inner.new_file_id();
        let label = Label {
            id,
            table_dir: format!("{}/{}", safe_name(&table.key.0), safe_name(&table.key.1)),
            partition,
            run: id,
            level: 0,
            written_at: now,
        };
        let rows = order.chunks(rows_max).map(|rows| source.rows(rows).map_err(encode::engine_error));
        files.push(encode::write_file(&inner.config.dir, label, &plan, rows)?);
    }
    Ok(())
}

/// The columns of all chunks, without padding for those that a chunk does not have.
struct Source {
    schema: SchemaRef,
    columns: Vec<ColumnSource>,
}

struct ColumnSource {
    /// First a null, then what the chunks have.
    arrays: Vec<ArrayRef>,
    /// By chunk, its array; 0 if it has none.
    places: Vec<usize>,
}

impl Source {
    fn new(schema: &SchemaRef, table: &TableFlush) -> Result<Self, ArrowError> {
        let mut columns = Vec::with_capacity(schema.fields().len());
        for (number, field) in schema.fields().iter().enumerate() {
            let mut arrays = vec![new_null_array(field.data_type(), 1)];
            let mut places = Vec::with_capacity(table.chunks.len());
            for chunk in &*table.chunks {
                let array = match number {
                    0 => Some(chunk.device_names(&table.names)?),
                    _ => chunk.column(number, &table.columns, field.data_type())?,
                };
                places.push(if array.is_some() { arrays.len() } else { 0 });
                arrays.extend(array);
            }
            columns.push(ColumnSource { arrays, places });
        }
        Ok(Self { schema: schema.clone(), columns })
    }

    /// Rows by chunk and row of it.
    fn rows(&self, order: &[(usize, usize)]) -> Result<RecordBatch, ArrowError> {
        let mut places = Vec::with_capacity(order.len());
        let columns = self.columns.iter().map(|column| {
            let arrays: Vec<&dyn Array> = column.arrays.iter().map(|array| &**array).collect();
            places.clear();
            places.extend(order.iter().map(|(chunk, row)| match column.places[*chunk] {
                0 => (0, 0),
                place => (place, *row),
            }));
            interleave(&arrays, &places)
        });
        RecordBatch::try_new(self.schema.clone(), columns.collect::<Result<_, _>>()?)
    }
}

/// The rows (chunk, row) of each partition by device name and time.
fn sort(
    chunks: &[Arc<Chunk>],
    names: &StringViewArray,
    now: Timestamp,
) -> Vec<(Partition, Vec<(usize, usize)>)> {
    let ranks = ranks(chunks, names);
    let mut parts: HashMap<Partition, Vec<(u32, i64, u32, u32)>> = HashMap::new();
    for (number, chunk) in chunks.iter().enumerate() {
        let (first, last) = (Partition::day_of(chunk.time_min), Partition::day_of(chunk.time_max));
        let rows = chunk.devices.values().iter().zip(chunk.times.values()).enumerate();
        let rows =
            rows.map(|(row, (device, time))| (ranks[*device as usize], *time, number as u32, row as u32));
        if first == last {
            parts.entry(first).or_default().extend(rows);
            continue;
        }
        for key in rows {
            parts.entry(Partition::day_of(Timestamp::from_micros(key.1))).or_default().push(key);
        }
    }
    let mut merged: BTreeMap<Partition, Vec<(u32, i64, u32, u32)>> = BTreeMap::new();
    for (day, rows) in parts {
        let is_thin = rows.len() < THIN_ROWS && day.end() + OLD_AFTER < now;
        merged.entry(if is_thin { day.widened() } else { day }).or_default().extend(rows);
    }
    merged
        .into_iter()
        .map(|(partition, mut rows)| {
            rows.sort_unstable();
            let order = rows.into_iter().map(|(_, _, chunk, row)| (chunk as usize, row as usize));
            (partition, order.collect())
        })
        .collect()
}

/// Each device's place in the order of names, by number.
fn ranks(chunks: &[Arc<Chunk>], names: &StringViewArray) -> Vec<u32> {
    let mut ranks = vec![u32::MAX; names.len()];
    let mut present = Vec::new();
    for device in chunks.iter().flat_map(|chunk| chunk.devices.values()) {
        if std::mem::replace(&mut ranks[*device as usize], 0) == u32::MAX {
            present.push(*device);
        }
    }
    present.sort_unstable_by(|a, b| names.value(*a as usize).cmp(names.value(*b as usize)));
    for (rank, device) in present.iter().enumerate() {
        ranks[*device as usize] = rank as u32;
    }
    ranks
}

/// The same error for another who waits.
fn copy(error: &StoreError) -> StoreError {
    let io = |source: &io::Error| io::Error::new(source.kind(), source.to_string());
    match error {
        StoreError::Write { path, source } => StoreError::Write { path: path.clone(), source: io(source) },
        StoreError::Read { path, source } => StoreError::Read { path: path.clone(), source: io(source) },
        StoreError::Corrupt { path, reason } => {
            StoreError::Corrupt { path: path.clone(), reason: reason.clone() }
        }
        StoreError::Engine { reason } => StoreError::Engine { reason: reason.clone() },
    }
}
