//! Telemetry into the time-series store, in the order of the journal.
//!
//! The store commits its own position with its data; this writer starts from there, so a crash stores nothing twice
//! and leaves nothing out. The journal learns only what is durable, and so keeps the rest.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dunlin_journal::{Batch, Entries, Entry, Journal, Offset, Partition, ReadError, Topic};
use dunlin_model::{
    Clock, RejectReason, Rejected,
    avro::{self, Datum},
    chain,
    limits::REJECTED_BYTES_MAX,
};
use dunlin_tsdb::{StoredRecord, Tsdb, Write};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use serde::{Deserialize, Serialize};

use crate::{
    RecentIds, RecentIdsLimits, StartError,
    consumer::{Backoff, Every, Stop, Worker},
    copies::{Keeper, Snapshots, device_hash},
    pipeline,
    sampling::{Sampler, SamplingConfig},
};

/// Records behind at which the writer goes on at once; fewer gather first.
const WORTH_A_ROUND: u64 = 1_000;
/// Under which the journal knows the position.
pub const CONSUMER: &str = "store";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Bytes of the journal read at once, per partition.
    pub chunk_bytes: usize,
    /// Records handed to the store at once.
    pub write_records_max: usize,
    /// How long news of the journal gather before they are read; well under the second in which data must show.
    pub gather_millis: u64,
    /// How often the journal is told what is durable.
    pub commit_seconds: u64,
    /// What need not all be stored.
    pub sampling: SamplingConfig,
    /// How copies are recognised; the rules go by the same.
    #[serde(skip)]
    pub copies: RecentIdsLimits,
    /// The thread's scheduling priority, 0 to 19; larger yields more.
    pub nice: i32,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            chunk_bytes: 2 << 20,
            write_records_max: 10_000,
            gather_millis: 50,
            commit_seconds: 1,
            sampling: SamplingConfig::default(),
            copies: RecentIdsLimits::default(),
            nice: 5,
        }
    }
}

/// The writer, running.
#[derive(Debug)]
pub struct StoreWriter {
    worker: Worker,
    view: StoreView,
}

#[derive(Debug, Clone, Default)]
pub struct StoreStatus {
    /// Records that were in the journal before the start and were handed to the store since, by tenant. Counted before
    /// the store has them: whoever asks it first and then looks here finds no fewer.
    pub backlog: BTreeMap<String, u64>,
    /// Those not handed to it yet; whose they are shows when they are.
    pub unread: u64,
    /// Records that could not be decoded, since the start; their bytes are in `rejected`.
    pub undecodable: u64,
    /// Why nothing moves or nothing becomes durable, if so.
    pub stalled: Option<String>,
}

type Shown = Arc<Mutex<StoreStatus>>;

/// Shows how the writer stands, also while somebody else stops it.
#[derive(Debug, Clone)]
pub struct StoreView {
    shown: Shown,
    tsdb: Arc<dyn Tsdb>,
}

impl StoreView {
    pub fn status(&self) -> StoreStatus {
        let mut status = lock(&self.shown).clone();
        // What was read is not lost while it cannot become durable, but the journal cannot let go of it either.
        status.stalled = status.stalled.or_else(|| self.tsdb.stalled());
        status
    }
}

impl StoreWriter {
    /// Starts the thread. What is known of copies is kept under `dir`/copies.
    pub fn start(
        config: StoreConfig,
        journal: Arc<dyn Journal>,
        tsdb: Arc<dyn Tsdb>,
        dir: &Path,
        clock: Clock,
        registry: &mut Registry,
    ) -> Result<Self, StartError> {
        let copies = Snapshots::dir(dir);
        fs::create_dir_all(&copies).map_err(|source| StartError::Directory { path: copies, source })?;
        let partitions =
            (0..journal.partitions(Topic::Telemetry)).map(|n| Partition::new(Topic::Telemetry, n));
        let backlog_ends: Vec<Offset> = partitions.clone().map(|at| journal.extent(at).next).collect();
        let unread_of = |(at, end)| unread(&*journal, at, tsdb.position(at).unwrap_or_default(), end);
        let unread = partitions.zip(backlog_ends.iter().copied()).map(unread_of).sum();
        let shown = Shown::new(Mutex::new(StoreStatus { unread, ..StoreStatus::default() }));
        let view = StoreView { shown: shown.clone(), tsdb: tsdb.clone() };
        let metrics = Metrics::new(registry);
        let nice = config.nice;
        let writer = Writer {
            partitions: Vec::new(),
            backlog_ends,
            commit_due: Every::new(Duration::from_secs(config.commit_seconds)),
            sampler: Sampler::new(&config.sampling),
            config,
            dir: dir.into(),
            journal,
            tsdb,
            clock,
            metrics,
            shown: shown.clone(),
        };
        let told = shown.clone();
        let work = move |stop| writer.anew().run(stop);
        let worker =
            Worker::spawn("store".into(), nice, work, move |reason| lock(&told).stalled = Some(reason))
                .map_err(|source| StartError::Thread { what: "the store writer".into(), source })?;
        Ok(Self { worker, view })
    }

    pub fn view(&self) -> StoreView {
        self.view.clone()
    }

    /// Writes what is in the journal by now, then ends. The caller flushes the store.
    pub async fn stop(self) {
        self.worker.stopped().await;
    }
}

struct Writer {
    config: StoreConfig,
    dir: PathBuf,
    journal: Arc<dyn Journal>,
    tsdb: Arc<dyn Tsdb>,
    clock: Clock,
    metrics: Metrics,
    shown: Shown,
    /// The journal's end when the writer was started, by partition.
    backlog_ends: Vec<Offset>,
    partitions: Vec<Place>,
    commit_due: Every,
    sampler: Sampler,
}

/// Where the writer is in one partition.
struct Place {
    at: Partition,
    position: Offset,
    /// The journal's end when the writer started.
    backlog_end: Offset,
    copies: RecentIds,
    keeper: Keeper,
    committed: Offset,
}

impl Place {
    /// Records from `position` on that were in the journal before the start.
    fn backlog_from(&self, position: Offset) -> u64 {
        self.backlog_end.0.saturating_sub(position.0)
    }
}

/// Records from `position` to `end` that the journal has.
fn unread(journal: &dyn Journal, at: Partition, position: Offset, end: Offset) -> u64 {
    end.0.saturating_sub(position.max(journal.extent(at).oldest).0)
}

/// A stretch was not written; why.
struct Failed(String);

impl Writer {
    /// Knows nothing but what the store will say of its position.
    fn anew(&self) -> Self {
        Self {
            config: self.config.clone(),
            dir: self.dir.clone(),
            journal: self.journal.clone(),
            tsdb: self.tsdb.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            shown: self.shown.clone(),
            backlog_ends: self.backlog_ends.clone(),
            partitions: Vec::new(),
            commit_due: self.commit_due.clone(),
            sampler: self.sampler.clone(),
        }
    }

    async fn run(mut self, mut stop: Stop) {
        let mut progress = self.journal.progress();
        let mut backoff = Backoff::default();
        self.hold_back().await;
        for index in 0..self.journal.partitions(Topic::Telemetry) {
            let Some(place) = self.placed(Partition::new(Topic::Telemetry, index), &mut stop).await else {
                return;
            };
            self.partitions.push(place);
        }
        loop {
            // Asked before the journal is looked at: what was in it by then is written before the end.
            let last_round = stop.is_asked();
            progress.mark_unchanged();
            match self.round().await {
                Ok(()) => {
                    backoff = Backoff::default();
                    self.show(None);
                    if self.commit_due.is_due() || last_round {
                        self.commit().await;
                        self.keep_copies();
                    }
                    match (self.lag(), last_round) {
                        (0, true) => return self.finish_copies().await,
                        (_, true) | (WORTH_A_ROUND.., false) => {}
                        (_, false) => self.wait_for_news(&mut progress, &mut stop).await,
                    }
                }
                Err(Failed(reason)) => {
                    let pause = backoff.next();
                    tracing::error!(reason, ?pause, "the store takes nothing");
                    self.metrics.failures.inc();
                    self.show(Some(reason));
                    if last_round {
                        return;
                    }
                    stop.sleep(pause).await;
                    if !self.go_back(&mut stop).await {
                        return;
                    }
                }
            }
        }
    }

    /// Tells the journal from where this store needs it, before there is anything durable: retention spares only those
    /// it knows.
    async fn hold_back(&self) {
        let durable: BTreeMap<Partition, Offset> = self.tsdb.durable_positions().into_iter().collect();
        for index in 0..self.journal.partitions(Topic::Telemetry) {
            let at = Partition::new(Topic::Telemetry, index);
            let position = durable.get(&at).copied().unwrap_or_else(|| self.journal.extent(at).oldest);
            if let Err(error) = self.journal.commit(CONSUMER, at, position).await {
                tracing::warn!(partition = %at, error = chain(&error), "position of the store not committed");
            }
        }
    }

    /// One chunk of every partition.
    async fn round(&mut self) -> Result<(), Failed> {
        for n in 0..self.partitions.len() {
            let Place { at, position, .. } = self.partitions[n];
            match self.journal.read(at, position, self.config.chunk_bytes).await {
                Ok(entries) => {
                    self.write(n, &entries).await?;
                }
                Err(ReadError::Gone { oldest, .. }) => {
                    let missed = oldest.0.saturating_sub(position.0);
                    tracing::error!(partition = %at, missed, %oldest, "the retention took records before they were stored");
                    self.partitions[n].position = oldest;
                    let of = |p: &Place| unread(&*self.journal, p.at, p.position, p.backlog_end);
                    lock(&self.shown).unread = self.partitions.iter().map(of).sum();
                }
                Err(error) => return Err(Failed(chain(&error))),
            }
        }
        Ok(())
    }

    /// Records in the journal that the store has not seen.
    fn lag(&self) -> u64 {
        let of = |p: &Place| self.journal.extent(p.at).next.0.saturating_sub(p.position.0);
        self.partitions.iter().map(of).sum()
    }

    async fn write(&mut self, n: usize, entries: &[Entries]) -> Result<(), Failed> {
        let Some(end) = entries.last().map(Entries::next) else { return Ok(()) };
        let mut rest: Vec<Entry<'_>> = entries.iter().flat_map(Entries::iter).collect();
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(self.config.write_records_max.max(1)));
            let next = later.first().map_or(end, |entry| entry.offset);
            self.write_some(n, &rest, next).await?;
            rest = later;
        }
        Ok(())
    }

    async fn write_some(&mut self, n: usize, entries: &[Entry<'_>], next: Offset) -> Result<(), Failed> {
        let is_pressed = self.sampler.is_pressed(self.lag());
        let place = &mut self.partitions[n];
        let mut records = Vec::with_capacity(entries.len());
        let mut backlog = 0;
        let mut undecodable = Batch::default();
        for entry in entries {
            match avro::decode(entry.bytes) {
                Ok(record) => {
                    let hash = device_hash(record.tenant, record.device);
                    let known_duplicate = place.copies.observe(&record, hash, entry.offset);
                    let mut stored = self.sampler.thin(record, is_pressed);
                    stored.known_duplicate = known_duplicate;
                    records.push(stored);
                    backlog += usize::from(entry.offset < place.backlog_end);
                }
                Err(error) => {
                    let source = format!("store:{}@{}", place.at, entry.offset);
                    undecodable.push(&dead_letter(entry, source, error.to_string(), &self.clock).encode());
                }
            }
        }
        let bad = u64::from(undecodable.len());
        if bad > 0 {
            tracing::error!(partition = %place.at, records = bad, "undecodable records; moved to `rejected`");
            let to = Partition::new(Topic::Rejected, 0);
            self.journal.append(to, undecodable).await.map_err(|error| Failed(chain(&error)))?;
        }
        // Those that were in the journal before the start come first.
        let passed = place.backlog_from(place.position) - place.backlog_from(next);
        let counted = Counted::before_write(&self.shown, |status| {
            status.undecodable += bad;
            status.unread = status.unread.saturating_sub(passed);
            add_by_tenant(&mut status.backlog, &records[..backlog]);
        });
        self.tsdb
            .write(Write { partition: place.at, records: &records, next })
            .map_err(|error| Failed(chain(&error)))?;
        counted.stands();
        place.position = next;
        self.metrics.records.inc_by(records.len() as u64);
        self.metrics.undecodable.inc_by(bad);
        Ok(())
    }

    /// Where the store says it is, with the copies that a later record could be of.
    async fn place(&self, at: Partition) -> Result<Place, ReadError> {
        let extent = self.journal.extent(at);
        let mut position = self.tsdb.position(at).unwrap_or(extent.oldest);
        if position > extent.next {
            tracing::error!(partition = %at, %position, end = %extent.next, "the store is ahead of the journal; going on from the journal's end");
            position = extent.next;
        }
        let snapshots = Snapshots::new(&self.dir, at, self.config.copies);
        snapshots.forget_after(extent.next);
        let (mut copies, mut from) = snapshots.load(position, extent.oldest);
        let keeper = Keeper::new(snapshots, from);
        while from < position {
            let entries = match self.journal.read(at, from, self.config.chunk_bytes).await {
                Err(ReadError::Gone { oldest, .. }) => {
                    from = oldest;
                    continue;
                }
                read => read?,
            };
            let Some(last) = entries.last() else { break };
            let next = last.next();
            for entry in entries.iter().flat_map(Entries::iter).take_while(|e| e.offset < position) {
                if let Ok(record) = avro::decode(entry.bytes) {
                    copies.observe(&record, device_hash(record.tenant, record.device), entry.offset);
                }
            }
            from = next;
        }
        let backlog_end = self.backlog_ends.get(usize::from(at.index)).copied().unwrap_or(Offset::ZERO);
        Ok(Place { at, position, backlog_end, copies, keeper, committed: Offset::ZERO })
    }

    /// Tries until it works: without the earlier records, repetitions of them would be stored again. `None` if it is
    /// stopped before.
    async fn placed(&self, at: Partition, stop: &mut Stop) -> Option<Place> {
        let mut backoff = Backoff::default();
        loop {
            let error = match self.place(at).await {
                Ok(place) => return Some(place),
                Err(error) => chain(&error),
            };
            let pause = backoff.next();
            tracing::error!(partition = %at, error, ?pause, "the store cannot see what came before");
            self.metrics.failures.inc();
            self.show(Some(error));
            stop.sleep(pause).await;
            if stop.is_asked() {
                return None;
            }
        }
    }

    /// After a failure the store alone knows what it took. False if it is stopped before it knows.
    async fn go_back(&mut self, stop: &mut Stop) -> bool {
        for n in 0..self.partitions.len() {
            let Some(place) = self.placed(self.partitions[n].at, stop).await else { return false };
            self.partitions[n] = place;
        }
        true
    }

    async fn commit(&mut self) {
        for (at, durable) in self.tsdb.durable_positions() {
            let Some(place) = self.partitions.iter_mut().find(|p| p.at == at && p.committed < durable) else {
                continue;
            };
            match self.journal.commit(CONSUMER, at, durable).await {
                Ok(()) => place.committed = durable,
                Err(error) => {
                    tracing::warn!(partition = %at, error = chain(&error), "position of the store not committed");
                }
            }
        }
    }

    /// Of one partition at a time, as every snapshot takes memory until it is written.
    fn keep_copies(&mut self) {
        let is_due = |p: &Place| p.keeper.is_due(&p.copies, p.position);
        if self.partitions.iter().any(|p| p.keeper.is_writing()) {
            return;
        }
        if let Some(n) = self.partitions.iter().position(is_due) {
            let needed = self.needed(self.partitions[n].at);
            let place = &mut self.partitions[n];
            place.keeper.take(&place.copies, place.position, needed);
        }
    }

    async fn finish_copies(&mut self) {
        for n in 0..self.partitions.len() {
            let needed = self.needed(self.partitions[n].at);
            let place = &mut self.partitions[n];
            place.keeper.finish(&place.copies, place.position, needed).await;
        }
    }

    /// From where a start could go on: the store, and the rules.
    fn needed(&self, at: Partition) -> Vec<Offset> {
        let durable = self.tsdb.durable_positions().into_iter().find(|(of, _)| *of == at);
        let store = durable.map(|(_, position)| position);
        store.into_iter().chain(self.journal.position(pipeline::CONSUMER, at)).collect()
    }

    async fn wait_for_news(&self, progress: &mut tokio::sync::watch::Receiver<u64>, stop: &mut Stop) {
        stop.sleep(Duration::from_millis(self.config.gather_millis)).await;
        if self.lag() > 0 {
            return;
        }
        tokio::select! {
            () = stop.asked() => {}
            _ = progress.changed() => {}
            () = tokio::time::sleep(Duration::from_secs(self.config.commit_seconds.max(1))) => {}
        }
    }

    fn show(&self, stalled: Option<String>) {
        lock(&self.shown).stalled = stalled;
        self.metrics.lag.set(self.lag() as i64);
    }
}

/// What is counted before the store has it, so that nobody finds it there uncounted. Taken back if the store fails or
/// breaks.
struct Counted<'a> {
    shown: &'a Shown,
    before: Option<StoreStatus>,
}

impl<'a> Counted<'a> {
    fn before_write(shown: &'a Shown, count: impl FnOnce(&mut StoreStatus)) -> Self {
        let mut status = lock(shown);
        let before = Some(status.clone());
        count(&mut status);
        drop(status);
        Self { shown, before }
    }

    fn stands(mut self) {
        self.before = None;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            *lock(self.shown) = before;
        }
    }
}

fn dead_letter(entry: &Entry<'_>, source: String, detail: String, clock: &Clock) -> Rejected {
    Rejected {
        tenant: String::new(),
        device: String::new(),
        received_at: clock.now(),
        reason: RejectReason::Unprocessable,
        detail,
        source,
        payload: entry.bytes[..entry.bytes.len().min(REJECTED_BYTES_MAX)].to_vec(),
    }
}

#[derive(Debug, Clone, Default)]
struct Metrics {
    records: Counter,
    undecodable: Counter,
    failures: Counter,
    lag: Gauge,
}

impl Metrics {
    fn new(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register("dunlin_store_records", "Records handed to the store", m.records.clone());
        registry.register(
            "dunlin_store_undecodable_records",
            "Records that no schema fits",
            m.undecodable.clone(),
        );
        registry.register(
            "dunlin_store_write_failures",
            "Stretches that were not written",
            m.failures.clone(),
        );
        registry.register("dunlin_store_lag_records", "Records not yet stored", m.lag.clone());
        m
    }
}

fn lock(shown: &Mutex<StoreStatus>) -> MutexGuard<'_, StoreStatus> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add_by_tenant(counts: &mut BTreeMap<String, u64>, records: &[StoredRecord<'_>]) {
    for same in records.chunk_by(|a, b| a.record.tenant == b.record.tenant) {
        let Some(tenant) = same.first().map(|r| r.record.tenant) else { continue };
        match counts.get_mut(tenant) {
            Some(read) => *read += same.len() as u64,
            None => {
                counts.insert(tenant.into(), same.len() as u64);
            }
        }
    }
}
