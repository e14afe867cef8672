use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dunlin_journal::{Offset, Partition};
use dunlin_model::{Record, TenantId, TimeSource, Timestamp, Value, ValueRef};
use futures::future::{self, BoxFuture, FutureExt};

use crate::{
    Counts, Gather, Latest, Outcome, Query, QueryError, Series, StoreError, StoredRecord, Tsdb, Write,
};

/// What a memory store has flushed; outlives it, as a disk does.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl MemoryDisk {
    /// From now on every flush fails for this reason, or none does.
    pub fn fail(&self, reason: Option<&str>) {
        *lock(&self.trouble) = reason.map(str::to_owned);
    }
}

/// The contract as plainly as it can be said: every row in one list. For tests and tools.
#[derive(Debug)]
pub struct MemoryTsdb {
    state: Mutex<State>,
    disk: MemoryDisk,
    retention: Option<Duration>,
}

#[derive(Debug, Clone, Default)]
struct State {
    rows: Vec<Row>,
    /// The rows filed under a device's own time.
    known: BTreeSet<String>,
    positions: HashMap<Partition, Offset>,
    counts: BTreeMap<TenantId, Counts>,
}

#[derive(Debug, Clone)]
struct Row {
    tenant: String,
    device: String,
    time: Timestamp,
    readings: BTreeMap<String, Value>,
    /// For how many each stands, if not for itself.
    weights: BTreeMap<String, u32>,
}

impl MemoryTsdb {
    /// A store with the rows that `disk` has.
    pub fn open(disk: MemoryDisk, retention: Option<Duration>) -> Self {
        let state = lock(&disk.state).clone();
        Self { state: Mutex::new(state), disk, retention }
    }
}

impl Tsdb for MemoryTsdb {
    fn position(&self, at: Partition) -> Option<Offset> {
        lock(&self.state).positions.get(&at).copied()
    }

    fn write(&self, write: Write<'_, '_>) -> Result<Vec<Outcome>, StoreError> {
        let mut state = lock(&self.state);
        let outcomes = write.records.iter().map(|stored| {
            let outcome = state.judge(stored, self.retention);
            state.count(&stored.record, outcome);
            outcome
        });
        let outcomes = outcomes.collect();
        state.positions.insert(write.partition, write.next);
        Ok(outcomes)
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        let flushed = match self.stalled() {
            Some(reason) => Err(StoreError::Engine { reason }),
            None => {
                *lock(&self.disk.state) = lock(&self.state).clone();
                Ok(())
            }
        };
        future::ready(flushed).boxed()
    }

    fn stalled(&self) -> Option<String> {
        lock(&self.disk.trouble).clone()
    }

    fn durable_positions(&self) -> Vec<(Partition, Offset)> {
        let mut positions: Vec<_> = lock(&self.disk.state).positions.iter().map(|(p, o)| (*p, *o)).collect();
        positions.sort();
        positions
    }

    fn counts(&self) -> BTreeMap<TenantId, Counts> {
        lock(&self.state).counts.clone()
    }

    fn latest<'a>(
        &'a self,
        tenant: &'a TenantId,
        devices: &'a [String],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Latest>, QueryError>> {
        let state = lock(&self.state);
        let mut newest: BTreeMap<(&str, &str), (Timestamp, &Value)> = BTreeMap::new();
        for row in state.rows_of(tenant, devices) {
            for (metric, value) in &row.readings {
                let at = newest.entry((&row.device, metric)).or_insert((row.time, value));
                if row.time >= at.0 {
                    *at = (row.time, value);
                }
            }
        }
        let latest = newest.into_iter().take(limit).map(|((device, metric), (time, value))| Latest {
            device: device.into(),
            metric: metric.into(),
            time,
            value: value.clone(),
        });
        future::ready(Ok(latest.collect())).boxed()
    }

    fn query<'a>(
        &'a self,
        tenant: &'a TenantId,
        query: Query,
    ) -> BoxFuture<'a, Result<Vec<Series>, QueryError>> {
        let state = lock(&self.state);
        let gathered = Gather::new(&query).and_then(|mut gather| {
            for row in state.rows_of(tenant, &query.devices) {
                for (metric, value) in &row.readings {
                    if query.metrics.is_empty() || query.metrics.contains(metric) {
                        let key = gather.series(&row.device, metric);
                        let weight = row.weights.get(metric).copied().unwrap_or(1);
                        gather.push(key, row.time, value.borrowed(), weight)?;
                    }
                }
            }
            Ok(gather.finish())
        });
        future::ready(gathered).boxed()
    }
}

impl State {
    fn judge(&mut self, stored: &StoredRecord<'_>, kept: Option<Duration>) -> Outcome {
        let record = &stored.record;
        if kept.is_some_and(|kept| record.time < record.received_at - kept) {
            return Outcome::Expired;
        }
        if stored.known_duplicate {
            return Outcome::Duplicate;
        }
        if stored.is_sampled_out {
            return Outcome::Sampled;
        }
        let mut readings = BTreeMap::new();
        for reading in &record.readings {
            readings.entry(reading.metric.to_owned()).or_insert_with(|| reading.value.to_owned());
        }
        if record.time_source == TimeSource::Device && !self.known.insert(identity(record, &readings)) {
            return Outcome::Duplicate;
        }
        self.rows.push(Row {
            tenant: record.tenant.into(),
            device: record.device.into(),
            time: record.time,
            readings,
            weights: record
                .readings
                .iter()
                .map(|r| r.metric.to_owned())
                .zip(stored.weights.iter().copied())
                .collect(),
        });
        Outcome::Stored
    }

    fn count(&mut self, record: &Record<'_>, outcome: Outcome) {
        // A tenant's name was checked where the record came in; one that was not has nowhere to be counted.
        let Ok(tenant) = record.tenant.parse::<TenantId>() else { return };
        let counts = self.counts.entry(tenant).or_default();
        match outcome {
            Outcome::Stored => {
                counts.stored += 1;
                counts.readings += self.rows.last().map_or(0, |row| row.readings.len() as u64);
            }
            Outcome::Duplicate => counts.duplicate += 1,
            Outcome::Expired => counts.expired += 1,
            Outcome::Sampled => counts.sampled += 1,
        }
    }

    fn rows_of(&self, tenant: &TenantId, devices: &[String]) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| {
            row.tenant == tenant.as_str() && (devices.is_empty() || devices.contains(&row.device))
        })
    }
}

/// What two records have in common exactly when they are copies of each other.
fn identity(record: &Record<'_>, readings: &BTreeMap<String, Value>) -> String {
    let values: Vec<_> =
        readings.iter().map(|(metric, value)| (metric, canonical(value.borrowed()))).collect();
    format!("{:?}", (record.tenant, record.device_type, record.device, record.time, values))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers by value, whatever their type; a text never looks like one.
fn canonical(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::F64(v) if v.fract() == 0.0 && v.abs() < 9.0e15 => (v as i64).to_string(),
        ValueRef::F64(v) => format!("{v:?}"),
        ValueRef::I64(v) => v.to_string(),
        ValueRef::Bool(v) => v.to_string(),
        ValueRef::Text(v) => format!("{v:?}"),
    }
}
