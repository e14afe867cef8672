//! Many files into few. What is to be merged is decided from the manifest alone (`plan`); merging reads sorted runs
//! side by side and writes them packed.
//!
//! The rules, for each table:
//! - Fresh runs of a day are merged when there are `FAN_OUT` of them, their results likewise, and so on.
//! - A day that is over and quiet is packed: all of it becomes one run. Once packed it is left alone until a tenth
//!   of its rows came late.
//! - Old days with few rows share the files of 32 days, so that data from years ago does not make a file per day.
//! - Files whose rows all have expired go.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use arrow::{
    array::{AsArray, RecordBatch},
    datatypes::{SchemaRef, TimestampMicrosecondType},
};
use dunlin_model::{Timestamp, chain};
use dunlin_tsdb::StoreError;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use crate::{
    Config,
    columns::schema_of,
    encode::{self, Label, Plan},
    files::{DataFile, FileEntry, PACKED, Partition, safe_name},
    flush::OLD_AFTER,
    manifest::{Manifest, TableEntry, TableKey},
    store::{Inner, contained, lock},
};

/// Runs of one level that are merged into one of the next.
const FAN_OUT: usize = 8;
/// Rows of one file and what they take in memory: a merge holds them.
const FILE_ROWS: usize = 1 << 20;
const FILE_BYTES: usize = 256 << 20;
/// Rows up to which the old days of a wide partition share its files.
const WIDE_ROWS_MAX: u64 = 1 << 20;
/// Rows that are taken out of a merge at once.
const MERGE_ROWS: usize = 65_536;
const MERGE_BYTES: usize = 32 << 20;
/// Rows that are read of a run at once.
const RUN_ROWS: usize = 8_192;
const RUN_BYTES: usize = 4 << 20;
/// However wide a row is.
const ROWS_MIN: usize = 256;

const EVERY_SECONDS_MAX: u64 = 365 * 86_400;

/// What a compaction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compacted {
    pub merges: u64,
    /// Merges that wait for free space.
    pub merges_without_room: u64,
    pub files_before: u64,
    pub files_after: u64,
    pub files_expired: u64,
}

/// Files of one table that become one run.
#[derive(Debug, Clone, PartialEq)]
struct Merge {
    table: TableKey,
    inputs: Vec<FileEntry>,
    partition: Partition,
    level: u8,
}

pub(crate) fn run(inner: &Inner) {
    let every = Duration::from_secs(inner.config.compact_every_seconds.clamp(1, EVERY_SECONDS_MAX));
    let mut next = Instant::now() + every;
    loop {
        let mut asked = lock(&inner.control.asked);
        while !asked.stop && Instant::now() < next {
            let left = next.saturating_duration_since(Instant::now());
            let waited = inner.control.changed.wait_timeout(asked, left);
            asked = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if asked.stop {
            return;
        }
        drop(asked);
        if let Err(error) = contained(|| compact_once(inner)) {
            tracing::error!(error = chain(&error), "compaction failed; the files stay as they are");
        }
        next = Instant::now() + every;
    }
}

pub(crate) fn compact_once(inner: &Inner) -> Result<Compacted, StoreError> {
    let _one_at_a_time = lock(&inner.compacting);
    let now = inner.clock.now();
    let mut done = Compacted { files_expired: expire(inner, now)?, ..Compacted::default() };
    let merges = plan(&lock(&inner.manifest), now, &inner.config);
    for merge in merges {
        // Between merges the store may close; what is left is planned again.
        if inner.is_stopping() {
            break;
        }
        attempt(inner, merge, &mut done)?;
    }
    Ok(done)
}

pub(crate) fn compact_all(inner: &Inner) -> Result<Compacted, StoreError> {
    let _one_at_a_time = lock(&inner.compacting);
    let mut done = Compacted::default();
    let merges = plan_all(&lock(&inner.manifest), inner.clock.now());
    for merge in merges {
        attempt(inner, merge, &mut done)?;
    }
    Ok(done)
}

/// Merges if the disk has room for the result beside its inputs: what is needed to go on receiving is not spent on
/// tidying up.
fn attempt(inner: &Inner, merge: Merge, done: &mut Compacted) -> Result<(), StoreError> {
    let needed = merge.inputs.iter().map(|file| file.bytes).sum::<u64>();
    let free = free_bytes(&inner.config.dir)?;
    if needed > free.saturating_sub(inner.config.disk_reserve_bytes) {
        done.merges_without_room += 1;
        inner.metrics.compactions_without_room.inc();
        tracing::warn!(
            tenant = &*merge.table.0,
            device_type = &*merge.table.1,
            partition = merge.partition.dir_name(),
            needed,
            free,
            "not compacted: the disk has no room for it"
        );
        return Ok(());
    }
    execute(inner, merge, done)
}

/// Bytes that the file system has left for us.
fn free_bytes(dir: &Path) -> Result<u64, StoreError> {
    let stat = rustix::fs::statvfs(dir)
        .map_err(|source| StoreError::Read { path: dir.into(), source: source.into() })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Drops the files whose rows have all expired. A clock that ran ahead of the data expires nothing.
fn expire(inner: &Inner, now: Timestamp) -> Result<u64, StoreError> {
    let mut gone: BTreeMap<TableKey, Vec<FileEntry>> = BTreeMap::new();
    for (key, table) in &lock(&inner.manifest).tables {
        let newest = table.files.iter().map(|file| file.time_max).max();
        let Some(oldest) = inner.oldest(newest.map_or(now, |newest| newest.min(now))) else { return Ok(0) };
        let expired: Vec<_> = table.files.iter().filter(|file| file.time_max < oldest).cloned().collect();
        if !expired.is_empty() {
            gone.insert(key.clone(), expired);
        }
    }
    for (key, files) in &gone {
        replace(inner, key, files, &[])?;
    }
    Ok(gone.values().map(|files| files.len() as u64).sum())
}

fn plan(manifest: &Manifest, now: Timestamp, config: &Config) -> Vec<Merge> {
    let quiet = Duration::from_secs(config.compact_quiet_seconds);
    let is_quiet = |files: &[FileEntry]| files.iter().all(|file| file.written_at + quiet <= now);
    let mut merges = Vec::new();
    for (key, table) in &manifest.tables {
        let merge = |inputs, partition, level| Merge { table: key.clone(), inputs, partition, level };
        for (partition, files) in parts(table, now) {
            let is_over = partition.end() <= now;
            if is_over && is_quiet(&files) {
                if is_worth_packing(&files, partition) {
                    merges.push(merge(files, partition, PACKED));
                }
                continue;
            }
            let mut levels: BTreeMap<u8, Vec<FileEntry>> = BTreeMap::new();
            for file in files.into_iter().filter(|file| file.level < PACKED && file.partition == partition) {
                levels.entry(file.level).or_default().push(file);
            }
            for (level, files) in levels {
                if runs(&files) >= FAN_OUT {
                    merges.push(merge(files, partition, (level + 1).min(PACKED - 1)));
                }
            }
        }
    }
    merges
}

fn plan_all(manifest: &Manifest, now: Timestamp) -> Vec<Merge> {
    let mut merges = Vec::new();
    for (key, table) in &manifest.tables {
        for (partition, files) in parts(table, now) {
            if !is_packed(&files, partition) {
                merges.push(Merge { table: key.clone(), inputs: files, partition, level: PACKED });
            }
        }
    }
    merges
}

/// The files of a table by the partition they belong to: thin old days to the wide one around them.
fn parts(table: &TableEntry, now: Timestamp) -> BTreeMap<Partition, Vec<FileEntry>> {
    let is_old = |partition: Partition| partition.is_wide() || partition.end() + OLD_AFTER <= now;
    let mut wide_rows: BTreeMap<Partition, u64> = BTreeMap::new();
    for file in table.files.iter().filter(|file| is_old(file.partition)) {
        *wide_rows.entry(file.partition.widened()).or_default() += file.rows;
    }
    let mut parts: BTreeMap<Partition, Vec<FileEntry>> = BTreeMap::new();
    for file in &table.files {
        let wide = file.partition.widened();
        let shares =
            is_old(file.partition) && wide_rows.get(&wide).is_some_and(|rows| *rows <= WIDE_ROWS_MAX);
        parts.entry(if shares { wide } else { file.partition }).or_default().push(file.clone());
    }
    parts
}

fn runs(files: &[FileEntry]) -> usize {
    files.iter().map(|file| file.run).collect::<std::collections::BTreeSet<_>>().len()
}

fn is_packed(files: &[FileEntry], partition: Partition) -> bool {
    runs(files) == 1 && files.iter().all(|file| file.level == PACKED && file.partition == partition)
}

fn is_worth_packing(files: &[FileEntry], partition: Partition) -> bool {
    let is_done = |file: &&FileEntry| file.level == PACKED && file.partition == partition;
    let packed: u64 = files.iter().filter(is_done).map(|file| file.rows).sum();
    let late: u64 = files.iter().map(|file| file.rows).sum::<u64>() - packed;
    !is_packed(files, partition) && late * 10 >= packed
}

fn execute(inner: &Inner, merge: Merge, done: &mut Compacted) -> Result<(), StoreError> {
    let began = Instant::now();
    let mut written = Vec::new();
    if let Err(error) = contained(|| write_merged(inner, &merge, &mut written)) {
        encode::remove_files(&inner.config.dir, &written);
        return Err(error);
    }
    if let Err(error) = replace(inner, &merge.table, &merge.inputs, &written) {
        remove_unnamed(&inner.config.dir, &written);
        return Err(error);
    }
    done.merges += 1;
    done.files_before += merge.inputs.len() as u64;
    done.files_after += written.len() as u64;
    inner.metrics.compactions.inc();
    inner.metrics.compaction_seconds.inc_by(began.elapsed().as_secs_f64());
    tracing::debug!(
        tenant = &*merge.table.0,
        device_type = &*merge.table.1,
        partition = merge.partition.dir_name(),
        files_before = merge.inputs.len(),
        files_after = written.len(),
        "compacted"
    );
    Ok(())
}

/// Deletes the files of a commit that failed, unless the manifest on disk names them all the same.
fn remove_unnamed(dir: &Path, written: &[FileEntry]) {
    let Ok(manifest) = Manifest::read(dir) else { return };
    let is_named = |file: &FileEntry| manifest.files().any(|named| named.id == file.id);
    if !written.iter().any(is_named) {
        encode::remove_files(dir, written);
    }
}

/// Commits that `new` stand for `old`.
fn replace(inner: &Inner, table: &TableKey, old: &[FileEntry], new: &[FileEntry]) -> Result<(), StoreError> {
    let is_old = |file: &FileEntry| old.iter().any(|old| old.id == file.id);
    let mut removed = Vec::new();
    inner.commit(
        |manifest| {
            let entry = manifest.tables.entry(table.clone()).or_default();
            entry.files.retain(|file| !is_old(file));
            entry.files.extend_from_slice(new);
        },
        |state| {
            let Some(number) = state.table_number(&table.0, &table.1) else { return };
            removed = state.tables[number].remove_files(old);
            for file in new {
                state.tables[number].add_file(Arc::new(DataFile::new(&inner.config.dir, file.clone())));
            }
        },
    )
}

fn write_merged(inner: &Inner, merge: &Merge, written: &mut Vec<FileEntry>) -> Result<(), StoreError> {
    let schema = {
        let manifest = lock(&inner.manifest);
        let table = manifest.tables.get(&merge.table);
        table.map_or_else(|| schema_of(&[], false), |table| schema_of(&table.columns, table.other))
    };
    let mut rows = Merged::open(inner, merge, &schema)?;
    let mut run = None;
    loop {
        let mut file = Vec::new();
        let (mut count, mut bytes) = (0, 0);
        while count < FILE_ROWS
            && bytes < FILE_BYTES
            && let Some(batch) = rows.next_batch()?
        {
            count += batch.num_rows();
            bytes += encode::batch_bytes(&batch);
            file.push(batch);
        }
        if file.is_empty() {
            return Ok(());
        }
        let id = inner.new_file_id();
        let label = Label {
            id,
            table_dir: format!("{}/{}", safe_name(&merge.table.0), safe_name(&merge.table.1)),
            partition: merge.partition,
            run: *run.get_or_insert(id),
            level: merge.level,
            written_at: inner.clock.now(),
        };
        let plan = Plan::small(&schema, &file)?;
        written.push(encode::write_file(&inner.config.dir, label, &plan, file.into_iter().map(Ok))?);
    }
}

/// Sorted runs, read side by side.
struct Merged {
    cursors: Vec<Cursor>,
    rows_max: usize,
}

/// Where one run has been read to.
struct Cursor {
    files: VecDeque<PathBuf>,
    reader: Option<(PathBuf, ParquetRecordBatchReader)>,
    schema: SchemaRef,
    batch: Option<RecordBatch>,
    row: usize,
}

impl Merged {
    fn open(inner: &Inner, merge: &Merge, schema: &SchemaRef) -> Result<Self, StoreError> {
        let mut runs: BTreeMap<u64, Vec<&FileEntry>> = BTreeMap::new();
        for file in &merge.inputs {
            runs.entry(file.run).or_default().push(file);
        }
        let mut cursors = Vec::with_capacity(runs.len());
        for mut files in runs.into_values() {
            // Files of one run follow each other; a device may go on from one into the next.
            files.sort_by_key(|file| file.id);
            let mut cursor = Cursor {
                files: files.iter().map(|file| inner.config.dir.join(&file.path)).collect(),
                reader: None,
                schema: schema.clone(),
                batch: None,
                row: 0,
            };
            cursor.load()?;
            cursors.push(cursor);
        }
        Ok(Self { cursors, rows_max: encode::rows_of(MERGE_BYTES, schema, ROWS_MIN, MERGE_ROWS) })
    }

    /// The next rows by device and time.
    fn next_batch(&mut self) -> Result<Option<RecordBatch>, StoreError> {
        let mut batches: Vec<RecordBatch> = Vec::new();
        let mut place: Vec<Option<usize>> = vec![None; self.cursors.len()];
        let mut order = Vec::with_capacity(self.rows_max);
        while order.len() < self.rows_max {
            let Some(least) = self.least(None) else { break };
            let bound = self.least(Some(least)).map(|other| self.cursors[other].key());
            let bound = bound.map(|(device, time)| (device.to_owned(), time));
            let cursor = &mut self.cursors[least];
            let Some(batch) = &cursor.batch else { break };
            let batch_place = *place[least].get_or_insert_with(|| {
                batches.push(batch.clone());
                batches.len() - 1
            });
            // As far as this run is the first, or its batch goes.
            let rows = batch.num_rows();
            loop {
                order.push((batch_place, cursor.row));
                cursor.row += 1;
                if cursor.row == rows || order.len() == self.rows_max {
                    break;
                }
                if let Some((device, time)) = &bound
                    && cursor.key() > (device.as_str(), *time)
                {
                    break;
                }
            }
            if cursor.row == rows {
                cursor.load()?;
                place[least] = None;
            }
        }
        if order.is_empty() {
            return Ok(None);
        }
        encode::in_order(&batches, &order).map(Some)
    }

    /// The run whose next row is the first, but for one run.
    fn least(&self, but: Option<usize>) -> Option<usize> {
        (0..self.cursors.len())
            .filter(|n| Some(*n) != but && self.cursors[*n].batch.is_some())
            .min_by_key(|n| self.cursors[*n].key())
    }
}

impl Cursor {
    /// Of the row that comes next; there must be one.
    fn key(&self) -> (&str, i64) {
        match &self.batch {
            Some(batch) => {
                let time = batch.column(1).as_primitive::<TimestampMicrosecondType>().value(self.row);
                (batch.column(0).as_string_view().value(self.row), time)
            }
            None => ("", i64::MAX),
        }
    }

    /// Goes on to the next batch, if the run has one.
    fn load(&mut self) -> Result<(), StoreError> {
        (self.batch, self.row) = (None, 0);
        loop {
            if let Some((path, reader)) = &mut self.reader {
                match reader.next() {
                    Some(Ok(batch)) if batch.num_rows() == 0 => continue,
                    Some(Ok(batch)) => {
                        self.batch = Some(encode::conform(&batch, &self.schema)?);
                        return Ok(());
                    }
                    Some(Err(error)) => {
                        return Err(StoreError::Corrupt { path: path.clone(), reason: error.to_string() });
                    }
                    None => self.reader = None,
                }
            }
            let Some(path) = self.files.pop_front() else { return Ok(()) };
            let file = File::open(&path).map_err(|source| StoreError::Read { path: path.clone(), source })?;
            let rows = encode::rows_of(RUN_BYTES, &self.schema, ROWS_MIN, RUN_ROWS);
            let reader = ParquetRecordBatchReaderBuilder::try_new(file)
                .and_then(|builder| builder.with_batch_size(rows).build())
                .map_err(|error| StoreError::Corrupt { path: path.clone(), reason: error.to_string() })?;
            self.reader = Some((path, reader));
        }
    }
}

#[cfg(test)]
mod tests;
