//! What the store knows in memory: tenants, tables, devices, fresh rows, live files. One lock around all of it; a
//! batch of records takes it once.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::Path,
    sync::Arc,
    time::Duration,
};

use arrow::array::{Array, StringViewArray, StringViewBuilder};
use dunlin_journal::{Offset, Partition as JournalPartition};
use dunlin_model::{Reading, Record, TenantId, TimeSource, Timestamp};
use dunlin_tsdb::{Counts, Outcome, StoreError, StoredRecord, WEIGHT_SUFFIX, Write};

use crate::{
    columns::{self, Column, Columns, Place},
    files::{DataFile, FileEntry, Partition},
    identity,
    latest::Newest,
    manifest::{Manifest, TableEntry},
    memtable::{Chunk, Memtable, Prints, RowKey},
    seek::Seek,
};

/// Names of devices that are not there, remembered per table so that asking again reads no file.
const ABSENT_MAX: usize = 4_096;
/// A metric that has no number: it goes into `other`.
const NO_METRIC: u32 = u32::MAX;

#[derive(Debug, Default)]
pub(crate) struct State {
    tenants: Vec<Tenant>,
    tenant_by_name: HashMap<Arc<str>, u32, foldhash::fast::FixedState>,
    pub(crate) tables: Vec<Table>,
    pub(crate) positions: BTreeMap<JournalPartition, Offset>,
    /// Why the last flush failed, until one succeeds.
    pub(crate) flush_error: Option<String>,
    /// Bytes of fresh rows that no flush has taken yet.
    pub(crate) bytes: usize,
    /// Counts freezes: what was looked up before one may be elsewhere after it.
    pub(crate) freezes: u64,
    pub(crate) latest_devices: usize,
    /// The tenant and table of the record before.
    guess: Option<(u32, u32)>,
    scratch: Scratch,
}

#[derive(Debug)]
struct Tenant {
    name: Arc<str>,
    id: TenantId,
    counts: Counts,
    tables: HashMap<Arc<str>, u32, foldhash::fast::FixedState>,
}

#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) tenant: Arc<str>,
    pub(crate) device_type: Arc<str>,
    pub(crate) columns: Columns,
    pub(crate) devices: Devices,
    pub(crate) fresh: Memtable,
    /// What a flush is writing right now.
    pub(crate) frozen: Option<Frozen>,
    frozen_prints: Prints,
    pub(crate) files: BTreeMap<Partition, Vec<Arc<DataFile>>>,
    /// Counts freezes, so that a device knows whether its `frozen` is of now.
    generation: u32,
    /// Per metric, the row that last had it: of a metric that stands twice in a row, the first value counts.
    marks: Vec<u64>,
    row: u64,
}

/// Rows that a flush is writing.
#[derive(Debug, Clone)]
pub(crate) struct Frozen {
    pub(crate) chunks: Arc<Vec<Arc<Chunk>>>,
}

#[derive(Debug, Default)]
pub(crate) struct Devices {
    pub(crate) list: Vec<Device>,
    by_name: HashMap<Arc<str>, u32, foldhash::fast::FixedState>,
    names: StringViewBuilder,
    names_taken: Option<Arc<StringViewArray>>,
    /// No row in files at the start is later.
    newest_at_start: Timestamp,
    /// All devices that are in files are listed here.
    pub(crate) complete: bool,
    /// Names that were looked for in files and are not there. Only names without a number are in question.
    absent: HashSet<String>,
}

#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) name: Arc<str>,
    hash: u64,
    /// No row of the device is later.
    newest: Timestamp,
    /// No row outside the memtable is later; of the freeze `generation`.
    frozen: Timestamp,
    generation: u32,
    pub(crate) latest: Option<Newest>,
}

#[derive(Debug, Default)]
struct Scratch {
    metrics: Vec<u32>,
}

/// The records of a write that are stored already: found before anything of it is stored, as that may fail.
#[derive(Debug, Default)]
pub(crate) struct Found(HashSet<usize>);

/// The late records of a write, and the files that may hold them: read without the lock of the state.
#[derive(Debug, Default)]
pub(crate) struct Late {
    found: Found,
    unsure: Vec<Unsure>,
    /// The columns of the tables in question.
    columns: HashMap<u32, Vec<Column>>,
    freezes: u64,
}

#[derive(Debug)]
struct Unsure {
    /// Place in the write.
    number: usize,
    table: u32,
    print: u64,
    files: Vec<Arc<DataFile>>,
}

/// How long a record is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retention(pub(crate) Option<Duration>);

impl Retention {
    /// Whether the record was too old when it came.
    fn has_expired(self, record: &Record<'_>) -> bool {
        self.0.is_some_and(|kept| record.time < record.received_at - kept)
    }
}

impl Late {
    pub(crate) fn needs_files(&self) -> bool {
        !self.unsure.is_empty()
    }

    /// Reads the files in question. All that can fail in a write fails here.
    pub(crate) fn seek(&mut self, write: &Write<'_, '_>, seek: &Seek) -> Result<(), StoreError> {
        for unsure in std::mem::take(&mut self.unsure) {
            let record = &write.records[unsure.number].record;
            let columns = self.columns.get(&unsure.table).map_or(&[][..], Vec::as_slice);
            for file in &unsure.files {
                if seek.holds(file, columns, record.device, record.time, unsure.print)? {
                    self.found.0.insert(unsure.number);
                    break;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn into_found(self) -> Found {
        self.found
    }
}

impl State {
    pub(crate) fn restore(manifest: &Manifest, dir: &Path) -> Self {
        let mut state = Self { positions: manifest.positions.clone(), ..Self::default() };
        for (tenant, counts) in &manifest.counts {
            if let Ok(tenant) = state.tenant(tenant) {
                state.tenants[tenant as usize].counts = *counts;
            }
        }
        for ((tenant, device_type), entry) in &manifest.tables {
            let Ok(tenant) = state.tenant(tenant) else { continue };
            let table = state.table(tenant, device_type);
            state.tables[table as usize].restore(entry, dir);
        }
        state
    }

    pub(crate) fn counts(&self) -> BTreeMap<TenantId, Counts> {
        self.tenants.iter().map(|tenant| (tenant.id.clone(), tenant.counts)).collect()
    }

    /// The tables of a tenant, by device type.
    pub(crate) fn tables_of(&self, tenant: &str) -> Vec<usize> {
        let Some(tenant) = self.tenant_by_name.get(tenant) else { return Vec::new() };
        let mut tables: Vec<usize> =
            self.tenants[*tenant as usize].tables.values().map(|table| *table as usize).collect();
        tables.sort_by(|a, b| self.tables[*a].device_type.cmp(&self.tables[*b].device_type));
        tables
    }

    pub(crate) fn table_number(&self, tenant: &str, device_type: &str) -> Option<usize> {
        let tenant = self.tenant_by_name.get(tenant)?;
        self.tenants[*tenant as usize].tables.get(device_type).map(|table| *table as usize)
    }

    fn tenant(&mut self, name: &str) -> Result<u32, StoreError> {
        if let Some(tenant) = self.tenant_by_name.get(name) {
            return Ok(*tenant);
        }
        let id = name.parse::<TenantId>().map_err(|e| StoreError::Engine { reason: e.to_string() })?;
        let (number, name): (_, Arc<str>) = (self.tenants.len() as u32, name.into());
        self.tenants.push(Tenant {
            name: name.clone(),
            id,
            counts: Counts::default(),
            tables: HashMap::default(),
        });
        self.tenant_by_name.insert(name, number);
        Ok(number)
    }

    fn table(&mut self, tenant: u32, device_type: &str) -> u32 {
        let of = &mut self.tenants[tenant as usize];
        if let Some(table) = of.tables.get(device_type) {
            return *table;
        }
        let (number, device_type): (_, Arc<str>) = (self.tables.len() as u32, device_type.into());
        self.tables.push(Table::new(of.name.clone(), device_type.clone()));
        of.tables.insert(device_type, number);
        number
    }

    /// The tenant and the table of a record; most records go where the one before went.
    fn locate(&mut self, record: &Record<'_>) -> Result<(u32, u32), StoreError> {
        if let Some((tenant, table)) = self.guess
            && *self.tenants[tenant as usize].name == *record.tenant
            && *self.tables[table as usize].device_type == *record.device_type
        {
            return Ok((tenant, table));
        }
        let tenant = self.tenant(record.tenant)?;
        let table = self.table(tenant, record.device_type);
        self.guess = Some((tenant, table));
        Ok((tenant, table))
    }

    /// The records that may be behind the memtables.
    pub(crate) fn find_late(
        &mut self,
        write: &Write<'_, '_>,
        retention: Retention,
    ) -> Result<Late, StoreError> {
        let mut late = Late { freezes: self.freezes, ..Late::default() };
        for (number, stored) in write.records.iter().enumerate() {
            let record = &stored.record;
            let (_, table_number) = self.locate(record)?;
            if stored.known_duplicate
                || stored.is_sampled_out
                || record.time_source != TimeSource::Device
                || retention.has_expired(record)
            {
                continue;
            }
            let table = &mut self.tables[table_number as usize];
            let device = table.devices.number(record.device);
            if record.time > table.frozen_until(device) {
                continue;
            }
            let print = table.resolve(record, device, &mut self.scratch);
            if table.frozen_prints.contains(print) {
                late.found.0.insert(number);
                continue;
            }
            let files = table.files_that_may_hold(record);
            if !files.is_empty() {
                late.columns.entry(table_number).or_insert_with(|| table.columns.list().to_vec());
                late.unsure.push(Unsure { number, table: table_number, print, files });
            }
        }
        Ok(late)
    }

    /// Whether what was found still holds: fresh rows have not been moved since.
    pub(crate) fn is_as_before(&self, late: &Late) -> bool {
        self.freezes == late.freezes
    }

    /// Stores what is new. Cannot fail.
    pub(crate) fn store(
        &mut self,
        write: &Write<'_, '_>,
        retention: Retention,
        found: &Found,
        latest_devices_max: usize,
    ) -> Result<Vec<Outcome>, StoreError> {
        let mut outcomes = Vec::with_capacity(write.records.len());
        let mut scratch = std::mem::take(&mut self.scratch);
        for (number, stored) in write.records.iter().enumerate() {
            let record = &stored.record;
            let (tenant, table) = self.locate(record)?;
            let counts = &mut self.tenants[tenant as usize].counts;
            let outcome = if retention.has_expired(record) {
                counts.expired += 1;
                Outcome::Expired
            } else if stored.known_duplicate || (!found.0.is_empty() && found.0.contains(&number)) {
                counts.duplicate += 1;
                Outcome::Duplicate
            } else if stored.is_sampled_out {
                counts.sampled += 1;
                Outcome::Sampled
            } else {
                let keep_latest = self.latest_devices < latest_devices_max;
                match self.tables[table as usize].store(stored, &mut scratch, keep_latest) {
                    Some(added) => {
                        counts.stored += 1;
                        counts.readings += added.readings;
                        self.bytes += added.bytes;
                        self.latest_devices += usize::from(added.latest_device);
                        Outcome::Stored
                    }
                    None => {
                        counts.duplicate += 1;
                        Outcome::Duplicate
                    }
                }
            };
            outcomes.push(outcome);
        }
        self.scratch = scratch;
        self.positions.insert(write.partition, write.next);
        Ok(outcomes)
    }
}

/// What storing a record added.
struct Added {
    bytes: usize,
    readings: u64,
    latest_device: bool,
}

impl Table {
    fn new(tenant: Arc<str>, device_type: Arc<str>) -> Self {
        Self {
            tenant,
            device_type,
            columns: Columns::default(),
            devices: Devices { newest_at_start: Timestamp::MIN, complete: true, ..Devices::default() },
            fresh: Memtable::default(),
            frozen: None,
            frozen_prints: Prints::default(),
            files: BTreeMap::new(),
            generation: 0,
            marks: Vec::new(),
            row: 0,
        }
    }

    fn restore(&mut self, entry: &TableEntry, dir: &Path) {
        self.columns = Columns::restore(entry.columns.clone(), entry.other);
        for file in &entry.files {
            self.devices.newest_at_start = self.devices.newest_at_start.max(file.time_max);
            self.add_file(Arc::new(DataFile::new(dir, file.clone())));
        }
        self.devices.complete = entry.files.is_empty();
    }

    pub(crate) fn add_file(&mut self, file: Arc<DataFile>) {
        self.files.entry(file.entry.partition).or_default().push(file);
    }

    /// Takes files out; the last who holds them deletes them: not under the lock.
    pub(crate) fn remove_files(&mut self, gone: &[FileEntry]) -> Vec<Arc<DataFile>> {
        let mut removed = Vec::with_capacity(gone.len());
        for partition in self.files.values_mut() {
            let is_gone = |file: &mut Arc<DataFile>| gone.iter().any(|gone| gone.id == file.entry.id);
            removed.extend(partition.extract_if(.., is_gone));
        }
        removed.iter().for_each(|file| file.replaced());
        self.files.retain(|_, files| !files.is_empty());
        removed
    }

    fn frozen_until(&self, device: u32) -> Timestamp {
        let device = &self.devices.list[device as usize];
        if device.generation == self.generation { device.frozen } else { device.newest }
    }

    fn files_that_may_hold(&self, record: &Record<'_>) -> Vec<Arc<DataFile>> {
        let partitions = [Partition::day_of(record.time), Partition::wide_of(record.time)];
        let files = partitions.iter().flat_map(|partition| self.files.get(partition).into_iter().flatten());
        files.filter(|file| file.may_hold(record.device, record.time)).cloned().collect()
    }

    /// Finds the numbers of the row's metrics and the row's identity.
    fn resolve(&mut self, record: &Record<'_>, device: u32, scratch: &mut Scratch) -> u64 {
        self.row += 1;
        scratch.metrics.clear();
        let mut print = identity::row(self.devices.list[device as usize].hash, record.time);
        for (position, reading) in record.readings.iter().enumerate() {
            let Some(metric) = self.columns.metric_at(position, reading.metric) else {
                // Rare enough to compare with all before it.
                let again = record.readings[..position].iter().any(|before| before.metric == reading.metric);
                scratch.metrics.push(if again { SKIP } else { NO_METRIC });
                if !again {
                    print =
                        print.wrapping_add(identity::reading(identity::name(reading.metric), reading.value));
                }
                continue;
            };
            if self.marks.len() <= metric as usize {
                self.marks.resize(metric as usize + 1, 0);
            }
            if std::mem::replace(&mut self.marks[metric as usize], self.row) == self.row {
                scratch.metrics.push(SKIP);
                continue;
            }
            scratch.metrics.push(metric);
            let hash = self.columns.metrics()[metric as usize].hash;
            print = print.wrapping_add(identity::reading(hash, reading.value));
        }
        identity::seal(print)
    }

    /// Stores a record that is not behind the memtable, unless it is in it.
    fn store(
        &mut self,
        stored: &StoredRecord<'_>,
        scratch: &mut Scratch,
        keep_latest: bool,
    ) -> Option<Added> {
        let record = &stored.record;
        let device = self.devices.number(record.device);
        let print = self.resolve(record, device, scratch);
        let by_device = record.time_source == TimeSource::Device;
        if by_device && record.time <= self.devices.list[device as usize].newest && self.fresh.holds(print) {
            return None;
        }
        let mut added = Added { bytes: 0, readings: 0, latest_device: false };
        let latest = self.devices.saw(device, record.time, self.generation, keep_latest, &mut added);
        let mut weights_of_others: Vec<(String, dunlin_model::ValueRef<'_>)> = Vec::new();
        let mut others: Vec<(&str, dunlin_model::ValueRef<'_>)> = Vec::new();
        for (position, (reading, metric)) in record.readings.iter().zip(&scratch.metrics).enumerate() {
            let Reading { metric: name, value } = *reading;
            if *metric == SKIP {
                continue;
            }
            added.readings += 1;
            let place = if *metric == NO_METRIC { Place::Other } else { self.columns.place(*metric, value) };
            match place {
                Place::Column(column) => {
                    added.bytes += self.fresh.set(column, self.columns.kind(column), value);
                }
                Place::Promoted(column) => {
                    self.fresh.promote(column);
                    added.bytes += self.fresh.set(column, self.columns.kind(column), value);
                }
                Place::Other => others.push((name, value)),
            }
            if *metric != NO_METRIC
                && let Some(latest) = &mut self.devices.list[latest].latest
            {
                latest.take(position, *metric, record.time, value);
            }
        }
        for ((reading, metric), weight) in record.readings.iter().zip(&scratch.metrics).zip(&stored.weights) {
            if *weight == 1 || *metric == SKIP {
                continue;
            }
            let value = dunlin_model::ValueRef::I64(i64::from(*weight));
            match self.columns.place_weight(reading.metric, value) {
                Some(Place::Column(column)) => {
                    added.bytes += self.fresh.set(column, self.columns.kind(column), value);
                }
                // Of a metric without a column; or there is no room for one more.
                _ => weights_of_others.push((format!("{}{WEIGHT_SUFFIX}", reading.metric), value)),
            }
        }
        others.extend(weights_of_others.iter().map(|(name, value)| (&**name, *value)));
        if !others.is_empty() {
            self.columns.need_other();
            added.bytes += self.fresh.set_other(&columns::other_json(&others));
        }
        added.bytes += self.fresh.push(RowKey {
            device,
            time: record.time,
            received_at: by_device.then(|| milliseconds(record.received_at)),
            print: if by_device { print } else { identity::NEVER },
        });
        Some(added)
    }

    /// Hands the fresh rows to a flush.
    pub(crate) fn freeze(&mut self) {
        let (chunks, prints) = self.fresh.take();
        self.frozen = Some(Frozen { chunks: Arc::new(chunks) });
        self.frozen_prints = prints;
        self.generation += 1;
    }

    /// The frozen rows are in files.
    pub(crate) fn thaw(&mut self) {
        self.frozen = None;
        self.frozen_prints = Prints::default();
    }
}

/// Stands for a metric that the row had already.
const SKIP: u32 = u32::MAX - 1;

/// A device's own clock seldom says more, and microseconds of the server's would take more room than the readings.
fn milliseconds(time: Timestamp) -> Timestamp {
    Timestamp::from_millis(time.as_millis()).unwrap_or(time)
}

impl Devices {
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).map(|device| *device as usize)
    }

    /// Whether a device without a number is known to have no row in files.
    pub(crate) fn is_absent(&self, name: &str) -> bool {
        self.complete || self.absent.contains(name)
    }

    pub(crate) fn note_absent(&mut self, name: &str) {
        if self.find(name).is_none() {
            if self.absent.len() >= ABSENT_MAX {
                self.absent.clear();
            }
            self.absent.insert(name.to_owned());
        }
    }

    pub(crate) fn number(&mut self, name: &str) -> u32 {
        if let Some(device) = self.by_name.get(name) {
            return *device;
        }
        let (number, name): (_, Arc<str>) = (self.list.len() as u32, name.into());
        self.names.append_value(&name);
        self.list.push(Device {
            name: name.clone(),
            hash: identity::name(&name),
            newest: self.newest_at_start,
            frozen: self.newest_at_start,
            generation: 0,
            latest: None,
        });
        self.by_name.insert(name, number);
        number
    }

    /// Notes a new row of a device; where its latest values are kept.
    fn saw(
        &mut self,
        number: u32,
        time: Timestamp,
        generation: u32,
        keep_latest: bool,
        added: &mut Added,
    ) -> usize {
        let device = &mut self.list[number as usize];
        // No file and no row before this one.
        let complete = device.newest == Timestamp::MIN;
        if device.generation != generation {
            device.generation = generation;
            device.frozen = device.newest;
        }
        device.newest = device.newest.max(time);
        if device.latest.is_none() && keep_latest {
            device.latest = Some(Newest::new(complete));
            added.latest_device = true;
        }
        number as usize
    }

    /// The names by number.
    pub(crate) fn names(&mut self) -> Arc<StringViewArray> {
        match &self.names_taken {
            Some(names) if names.len() == self.list.len() => names.clone(),
            _ => {
                let names = Arc::new(self.names.finish_cloned());
                self.names_taken = Some(names.clone());
                names
            }
        }
    }
}
