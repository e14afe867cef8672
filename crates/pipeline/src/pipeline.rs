//! The rules, running: one thread a partition reads, evaluates, says, and keeps a checkpoint. Which partitions, the
//! journal says: all of them, or this process's part, which comes and goes.
//!
//! What a stretch of the journal brings about is durable in `alerts` before a checkpoint covers the stretch. After a
//! crash it is said again, under the same ids.

mod ask; // what others want to know of a device
mod metrics;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ask::Asked;
use dunlin_journal::{Batch, Entries, Journal, Offset, Partition, ReadError, Topic, Turn};
use dunlin_model::{
    AlertTransition, Clock, Record, RejectReason, Rejected, Slot, Timestamp,
    avro::{self, Datum},
    chain,
    limits::REJECTED_BYTES_MAX,
};
use metrics::Metrics;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    Account, Limits, RuleSet, checkpoint,
    consumer::{Backoff, Every, Stop, Worker},
    copies::Snapshots,
    engine::{Broken, Engine, Fate, State},
};

/// Records behind at which the rules go on at once; fewer gather first.
const WORTH_A_ROUND: u64 = 1_000;
/// Under which the journal knows the position.
pub const CONSUMER: &str = "pipeline";
/// How far a tick stays behind what is settled, for the moments between a record's arrival and its being under way.
const TICK_MARGIN: Duration = Duration::from_millis(500);
/// The engine says when silence brings something about. Looked at no later than this, as the server's clock may be set,
const TICK_AFTER_MAX: Duration = Duration::from_secs(1);
/// and no sooner, while what is under way holds time back.
const TICK_AFTER_MIN: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub limits: Limits,
    pub checkpoint_seconds: u64,
    /// Bytes of the journal taken in at once.
    pub chunk_bytes: usize,
    /// Where gateways are other processes: what they received longer ago is in the journal. Time passes so much later.
    pub inflow_seconds_max: u64,
    /// How long news of the journal gather before they are read: fewer, larger stretches cost less.
    pub gather_millis: u64,
    /// The threads' scheduling priority, 0 to 19; larger yields more.
    pub nice: i32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            checkpoint_seconds: 10,
            chunk_bytes: 1 << 20,
            inflow_seconds_max: 5,
            gather_millis: 20,
            nice: 5,
        }
    }
}

/// Tells what is on its way into the journal, so that time does not pass before it is there.
pub trait Inflow: fmt::Debug + Send + Sync + 'static {
    /// When the oldest telemetry was received that is not in the journal yet and may still come; `None` if there is
    /// none.
    fn oldest_under_way(&self) -> Option<Timestamp>;

    /// Something came that the log took at that moment, by its own clock.
    fn came(&self, _appended_at: Timestamp) {}
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("create {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("start a thread for {what}")]
    Thread { what: String, source: io::Error },
}

/// The rules over the partitions of `telemetry` that this process has.
#[derive(Debug)]
pub struct Pipeline {
    /// Begins and ends the others.
    crew: Worker,
    partitions: Arc<[OfPartition]>,
    rules: watch::Sender<RuleSet>,
}

/// What others see of a partition, and ask it.
#[derive(Debug, Clone, Default)]
struct OfPartition {
    shown: Shown,
    asked: Asked,
}

#[derive(Debug, Clone, Default)]
pub struct Status {
    /// By partition.
    pub partitions: Vec<PartitionStatus>,
    /// By tenant, over all partitions, from the first record of the journal on.
    pub accounts: BTreeMap<String, Account>,
}

#[derive(Debug, Clone, Default)]
pub struct PartitionStatus {
    /// Whether this process has it.
    pub is_held: bool,
    pub position: Offset,
    /// Records that are in the journal and not yet evaluated.
    pub lag: u64,
    pub devices: usize,
    /// Panes and readings that windows keep, as of the last checkpoint.
    pub windows: usize,
    pub late: u64,
    pub copies: u64,
    /// Why the partition does not move, if it does not.
    pub stalled: Option<String>,
    accounts: BTreeMap<Box<str>, Account>,
}

type Shown = Arc<Mutex<PartitionStatus>>;

/// The rules that all partitions go by.
#[derive(Debug, Clone)]
pub struct RulesInForce(watch::Sender<RuleSet>);

impl RulesInForce {
    /// Goes on with other rules; every partition takes them up before its next stretch. What an unchanged rule knows
    /// stays, what a rule that is gone was firing is resolved.
    pub fn set(&self, rules: RuleSet) {
        self.0.send_replace(rules);
    }
}

/// Shows how the rules stand, also while somebody else stops them.
#[derive(Debug, Clone)]
pub struct PipelineView {
    partitions: Arc<[OfPartition]>,
}

impl PipelineView {
    pub fn status(&self) -> Status {
        let mut status = Status::default();
        for OfPartition { shown, .. } in &*self.partitions {
            let partition = lock(shown).clone();
            for (tenant, account) in &partition.accounts {
                *status.accounts.entry(tenant.to_string()).or_default() += *account;
            }
            status.partitions.push(partition);
        }
        status
    }

    /// Why partitions do not move, of those that do not.
    pub fn stalled(&self) -> Vec<String> {
        let of = |(index, of): (usize, &OfPartition)| {
            lock(&of.shown).stalled.as_ref().map(|reason| format!("partition {index}: {reason}"))
        };
        self.partitions.iter().enumerate().filter_map(of).collect()
    }

    /// How far the clock of a device is ahead of the server's, in microseconds; below zero, behind. `None` if it says no
    /// times, or nothing is known of it here.
    pub async fn clock_ahead_micros(&self, tenant: &str, device: &str) -> Option<i64> {
        let partition = Slot::of(tenant, device).partition(self.partitions.len() as u16);
        let OfPartition { shown, asked } = self.partitions.get(usize::from(partition))?;
        if !lock(shown).is_held {
            return None;
        }
        asked.ask(tenant, device).await
    }

    /// How far the rules are in a partition; `None` if another process has it.
    pub fn position(&self, partition: u16) -> Option<Offset> {
        let shown = lock(&self.partitions.get(usize::from(partition))?.shown);
        shown.is_held.then_some(shown.position)
    }
}

impl Pipeline {
    /// Starts the threads. State is kept under `dir`/pipeline; what the store knows of copies is read in `dir`. Processes
    /// that share partitions share the directory.
    pub fn start(
        config: Config,
        journal: Arc<dyn Journal>,
        inflow: Arc<dyn Inflow>,
        rules: RuleSet,
        dir: &Path,
        clock: Clock,
        registry: &mut Registry,
    ) -> Result<Self, StartError> {
        let checkpoints = dir.join("pipeline");
        fs::create_dir_all(&checkpoints)
            .map_err(|source| StartError::Directory { path: checkpoints.clone(), source })?;
        let (rules, in_force) = watch::channel(rules);
        let partitions: Arc<[OfPartition]> =
            (0..journal.partitions(Topic::Telemetry)).map(|_| OfPartition::default()).collect();
        let crew = Crew {
            config,
            journal,
            inflow,
            data: dir.into(),
            checkpoints,
            in_force,
            clock,
            metrics: Metrics::new(registry),
            partitions: partitions.clone(),
        };
        let crew = Worker::spawn("rules".into(), 0, move |stop| crew.clone().run(stop), |_| {});
        let failed = |source| StartError::Thread { what: "the rules".into(), source };
        Ok(Self { crew: crew.map_err(failed)?, partitions, rules })
    }

    pub fn view(&self) -> PipelineView {
        PipelineView { partitions: self.partitions.clone() }
    }

    /// What changes the rules, also while somebody else stops them.
    pub fn rules(&self) -> RulesInForce {
        RulesInForce(self.rules.clone())
    }

    /// Ends after the stretches under way and a last checkpoint.
    pub async fn stop(self) {
        self.crew.stopped().await;
    }
}

/// Has a thread for every partition that this process has.
#[derive(Clone)]
struct Crew {
    config: Config,
    journal: Arc<dyn Journal>,
    inflow: Arc<dyn Inflow>,
    data: PathBuf,
    checkpoints: PathBuf,
    in_force: watch::Receiver<RuleSet>,
    clock: Clock,
    metrics: Metrics,
    partitions: Arc<[OfPartition]>,
}

impl Crew {
    async fn run(self, mut stop: Stop) {
        let mut membership = self.journal.join(CONSUMER, Topic::Telemetry);
        let mut workers = BTreeMap::<Partition, Worker>::new();
        self.metrics.partitions.set(self.partitions.len() as i64);
        loop {
            self.metrics.partitions_held.set(workers.len() as i64);
            let turn = tokio::select! {
                () = stop.asked() => break,
                turn = membership.next() => turn,
            };
            match turn {
                Turn::Given(at) => match self.begin(at) {
                    Ok(worker) => _ = workers.insert(at, worker),
                    Err(error) => self.cannot_begin(at, &error),
                },
                Turn::Asked(at) => {
                    if let Some(worker) = workers.remove(&at) {
                        worker.stopped().await;
                    }
                    self.ended(at);
                    membership.release(at);
                }
                // Its last checkpoint is as good as the next holder's, and its commit is refused.
                Turn::Lost(at) => {
                    if let Some(worker) = workers.remove(&at) {
                        worker.stopped().await;
                    }
                    self.ended(at);
                }
            }
        }
        workers.values().for_each(Worker::ask_to_stop);
        for (_, worker) in workers {
            worker.stopped().await;
        }
    }

    fn begin(&self, at: Partition) -> io::Result<Worker> {
        let OfPartition { shown, asked } = self.partitions[usize::from(at.index)].clone();
        *lock(&shown) = PartitionStatus { is_held: true, ..PartitionStatus::default() };
        let rules = Rules {
            at,
            file: self.checkpoints.join(format!("{}.ckpt", at.index)),
            snapshots: Snapshots::new(&self.data, at, self.config.limits.copies),
            checkpoint_due: Every::new(Duration::from_secs(self.config.checkpoint_seconds)),
            config: self.config.clone(),
            journal: self.journal.clone(),
            inflow: self.inflow.clone(),
            in_force: self.in_force.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            shown: shown.clone(),
            asked,
            position: Offset::ZERO,
            saved: None,
        };
        let work = move |stop| rules.clone().run(stop);
        let broke = move |reason| lock(&shown).stalled = Some(reason);
        Worker::spawn(format!("rules-{}", at.index), self.config.nice, work, broke)
    }

    fn cannot_begin(&self, at: Partition, error: &io::Error) {
        tracing::error!(partition = %at, %error, "no thread for the rules of a partition");
        lock(&self.partitions[usize::from(at.index)].shown).stalled = Some(error.to_string());
    }

    fn ended(&self, at: Partition) {
        *lock(&self.partitions[usize::from(at.index)].shown) = PartitionStatus::default();
        self.metrics.forget(at.index);
    }
}

/// One partition. Begun anew, it knows nothing but its checkpoint.
#[derive(Clone)]
struct Rules {
    at: Partition,
    file: PathBuf,
    /// Of the copies, which the store writes.
    snapshots: Snapshots,
    config: Config,
    journal: Arc<dyn Journal>,
    inflow: Arc<dyn Inflow>,
    in_force: watch::Receiver<RuleSet>,
    clock: Clock,
    metrics: Metrics,
    shown: Shown,
    asked: Asked,
    position: Offset,
    saved: Option<Offset>,
    checkpoint_due: Every,
}

/// The owner asked to stop before something became durable.
struct Stopped;

impl Rules {
    async fn run(mut self, mut stop: Stop) {
        if let Err(Stopped) = self.follow(&mut stop).await {
            tracing::info!(partition = %self.at, "rules stopped before their transitions were durable; they are said again");
        }
    }

    async fn follow(&mut self, stop: &mut Stop) -> Result<(), Stopped> {
        let mut progress = self.journal.progress();
        let mut engine = self.take_up(stop).await?;
        let mut backoff = Backoff::default();
        while !stop.is_asked() {
            progress.mark_unchanged();
            self.asked.answer(|tenant, device| engine.clock_ahead_micros(tenant, device));
            if self.in_force.has_changed().unwrap_or(false) {
                self.change_rules(&mut engine, stop).await?;
            }
            match self.journal.read(self.at, self.position, self.config.chunk_bytes).await {
                Ok(entries) => {
                    backoff = Backoff::default();
                    if let Some(last) = entries.last() {
                        self.inflow.came(last.appended_at());
                    }
                    self.evaluate(&mut engine, &entries, stop).await?;
                    self.tick(&mut engine, stop).await?;
                    self.show(&engine, None);
                    if self.checkpoint_due.is_due() {
                        self.checkpoint(&engine).await;
                    }
                    if self.lag() < WORTH_A_ROUND {
                        self.wait_for_news(&engine, &mut progress, stop).await;
                    }
                }
                Err(ReadError::Gone { oldest, .. }) => {
                    let missed = oldest.0.saturating_sub(self.position.0);
                    tracing::error!(partition = %self.at, missed, %oldest, "the retention took records before the rules saw them");
                    self.position = oldest;
                }
                Err(error) => {
                    let pause = backoff.next();
                    tracing::error!(partition = %self.at, position = %self.position, error = chain(&error), ?pause, "rules cannot read");
                    self.show(&engine, Some(chain(&error)));
                    stop.sleep(pause).await;
                }
            }
        }
        self.checkpoint(&engine).await;
        Ok(())
    }

    /// From the checkpoint, or from the oldest record if there is none that can be used.
    async fn take_up(&mut self, stop: &mut Stop) -> Result<Engine, Stopped> {
        let rules = self.in_force.borrow_and_update().clone();
        let extent = self.journal.extent(self.at);
        let mut out = Vec::new();
        let restored = match checkpoint::load::<State>(&self.file) {
            Ok(None) => None,
            Ok(Some((position, _))) if position > extent.next => {
                tracing::error!(partition = %self.at, %position, end = %extent.next, "the checkpoint is beyond the end of the journal; replaying");
                self.forget_checkpoint();
                None
            }
            Ok(Some((position, state))) => {
                Engine::restore(self.config.limits.clone(), &rules, state, &mut out)
                    .map(|engine| (position, engine))
            }
            Err(broken) => {
                tracing::error!(partition = %self.at, error = chain(&broken), "no usable checkpoint; replaying from the oldest record");
                self.forget_checkpoint();
                None
            }
        };
        let mut engine = match restored {
            Some((position, engine)) => {
                (self.position, self.saved) = (position, Some(position));
                engine
            }
            None => {
                self.position = extent.oldest;
                Engine::new(self.config.limits.clone(), &rules)
            }
        };
        // Before the first checkpoint, too: retention spares only the consumers it knows.
        self.commit().await;
        self.prime(&mut engine, extent.oldest, stop).await?;
        self.say(out, stop).await?;
        // What stopped the last run is over once this one has got through a stretch.
        let stalled = lock(&self.shown).stalled.clone();
        self.show(&engine, stalled);
        Ok(engine)
    }

    /// Shows the engine what came before, so that it knows the copies of it.
    async fn prime(&self, engine: &mut Engine, oldest: Offset, stop: &mut Stop) -> Result<(), Stopped> {
        let (copies, mut from) = self.snapshots.load(self.position, oldest);
        engine.know(copies);
        let mut backoff = Backoff::default();
        while from < self.position {
            let entries = match self.journal.read(self.at, from, self.config.chunk_bytes).await {
                Ok(entries) => entries,
                Err(ReadError::Gone { oldest, .. }) => {
                    from = oldest;
                    continue;
                }
                // Without the earlier records, repetitions of them would count again.
                Err(error) => {
                    let pause = backoff.next();
                    tracing::error!(partition = %self.at, error = chain(&error), ?pause, "rules cannot see what came before");
                    self.show(engine, Some(chain(&error)));
                    stop.sleep(pause).await;
                    if stop.is_asked() {
                        return Err(Stopped);
                    }
                    continue;
                }
            };
            let Some(last) = entries.last() else { break };
            let next = last.next();
            for entry in entries.iter().flat_map(Entries::iter).take_while(|e| e.offset < self.position) {
                if let Ok(record) = avro::decode(entry.bytes) {
                    engine.remember(&record, entry.offset);
                }
            }
            from = next;
        }
        Ok(())
    }

    async fn evaluate(
        &mut self,
        engine: &mut Engine,
        entries: &[Entries],
        stop: &Stop,
    ) -> Result<(), Stopped> {
        let (mut out, mut broken) = (Vec::new(), Batch::default());
        let mut tally = Tally::default();
        for entry in entries.iter().flat_map(Entries::iter) {
            match avro::decode(entry.bytes) {
                Ok(record) => {
                    let fate = engine.evaluate(&record, entry.offset, &mut out);
                    tally.add(fate);
                    if fate == Fate::Failed {
                        broken.push(&dead_letter(&record, self.at, entry.offset, entry.bytes).encode());
                    }
                }
                // The store writer keeps the bytes; here they only are in nobody's way.
                Err(_) => tally.undecodable += 1,
            }
        }
        self.say(out, stop.clone()).await?;
        self.tell_broken(engine);
        if !broken.is_empty() {
            tracing::error!(partition = %self.at, records = broken.len(), "rules broke on records; moved to `rejected`");
            self.append(Partition::new(Topic::Rejected, 0), broken, stop.clone()).await?;
        }
        if let Some(last) = entries.last() {
            self.position = last.next();
        }
        self.metrics.add(&tally);
        Ok(())
    }

    /// Lets time pass up to what is settled: however long a record takes into the journal, it finds the windows open
    /// that it finds open in a replay.
    async fn tick(&mut self, engine: &mut Engine, stop: &Stop) -> Result<(), Stopped> {
        // In this order: what was received before `now` and is not under way any more stands in the journal by the
        // time its end is looked at.
        let now = self.clock.now();
        let settled = self.inflow.oldest_under_way().unwrap_or(now).min(now) - TICK_MARGIN;
        if !self.is_at_end() || engine.next_due().is_none_or(|due| due > settled) {
            return Ok(());
        }
        let mut out = Vec::new();
        engine.tick(now, settled, &mut out);
        self.tell_broken(engine);
        self.say(out, stop.clone()).await
    }

    /// There is no record to lay aside for them: it broke on what silence brings about.
    fn tell_broken(&self, engine: &mut Engine) {
        for Broken { tenant, device } in engine.take_broken() {
            self.metrics.broken.inc();
            tracing::error!(partition = %self.at, %tenant, %device, "a rule broke on a silent device; the device starts afresh");
        }
    }

    async fn change_rules(&mut self, engine: &mut Engine, stop: &Stop) -> Result<(), Stopped> {
        let rules = self.in_force.borrow_and_update().clone();
        let mut out = Vec::new();
        engine.reload(&rules, &mut out);
        tracing::info!(partition = %self.at, rules = rules.len(), "rules reloaded");
        // Taken anew soon: the old checkpoint would not know the new rules.
        self.saved = None;
        self.say(out, stop.clone()).await
    }

    async fn say(&self, transitions: Vec<AlertTransition>, stop: impl Into<Stop>) -> Result<(), Stopped> {
        if transitions.is_empty() {
            return Ok(());
        }
        self.metrics.transitions.inc_by(transitions.len() as u64);
        let partitions = self.journal.partitions(Topic::Alerts);
        let to = Partition::new(Topic::Alerts, self.at.index % partitions.max(1));
        // Few at a time, so that a storm of alerts makes no batch that the journal refuses.
        const TRANSITIONS_MAX: usize = 1_000;
        let stop = stop.into();
        for some in transitions.chunks(TRANSITIONS_MAX) {
            let mut batch = Batch::default();
            some.iter().for_each(|transition| batch.push(&transition.encode()));
            self.append(to, batch, stop.clone()).await?;
        }
        Ok(())
    }

    /// Appends until it is durable. Twice is harmless, never is not.
    async fn append(&self, to: Partition, batch: Batch, mut stop: Stop) -> Result<(), Stopped> {
        let mut backoff = Backoff::default();
        loop {
            match self.journal.append(to, batch.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) => {
                    let pause = backoff.next();
                    tracing::warn!(partition = %self.at, error = chain(&error), ?pause, "rules cannot append");
                    lock(&self.shown).stalled = Some(chain(&error));
                    stop.sleep(pause).await;
                }
            }
            if stop.is_asked() {
                return Err(Stopped);
            }
        }
    }

    /// Nothing is worse than a checkpoint that would not be replaced.
    fn forget_checkpoint(&self) {
        if let Err(error) = fs::remove_file(&self.file) {
            tracing::error!(file = %self.file.display(), %error, "checkpoint not removed");
        }
    }

    async fn checkpoint(&mut self, engine: &Engine) {
        if self.saved == Some(self.position) {
            return;
        }
        // Whoever has the partition by now has come further: this process was away, and is told so soon.
        if checkpoint::position(&self.file).is_some_and(|there| there > self.position) {
            return tracing::warn!(partition = %self.at, position = %self.position, "there is a newer checkpoint; this one is not written");
        }
        if let Err(error) = checkpoint::save(&self.file, self.position, &engine.state()) {
            self.metrics.checkpoint_failures.inc();
            return tracing::error!(file = %self.file.display(), error = chain(&error), "checkpoint not written");
        }
        self.saved = Some(self.position);
        lock(&self.shown).windows = engine.window_count();
        self.metrics.checkpoints.inc();
        self.commit().await;
    }

    async fn commit(&self) {
        if let Err(error) = self.journal.commit(CONSUMER, self.at, self.position).await {
            tracing::warn!(partition = %self.at, error = chain(&error), "position of the rules not committed");
        }
    }

    /// News gather for a moment, so that a busy journal is read in large stretches.
    async fn wait_for_news(&self, engine: &Engine, progress: &mut watch::Receiver<u64>, stop: &mut Stop) {
        stop.sleep(Duration::from_millis(self.config.gather_millis)).await;
        if !self.is_at_end() {
            return;
        }
        let mut in_force = self.in_force.clone();
        tokio::select! {
            () = stop.asked() => {}
            _ = progress.changed() => {}
            _ = in_force.changed() => {}
            () = self.asked.somebody() => {}
            () = tokio::time::sleep(self.tick_after(engine)) => {}
        }
    }

    /// Until silence brings something about.
    fn tick_after(&self, engine: &Engine) -> Duration {
        let Some(due) = engine.next_due() else { return TICK_AFTER_MAX };
        (due + TICK_MARGIN).since(self.clock.now()).clamp(TICK_AFTER_MIN, TICK_AFTER_MAX)
    }

    /// Records in the journal that are not evaluated yet.
    fn lag(&self) -> u64 {
        self.journal.extent(self.at).next.0.saturating_sub(self.position.0)
    }

    fn is_at_end(&self) -> bool {
        self.lag() == 0
    }

    fn show(&self, engine: &Engine, stalled: Option<String>) {
        let lag = self.lag();
        let mut shown = lock(&self.shown);
        shown.position = self.position;
        shown.lag = lag;
        shown.devices = engine.device_count();
        shown.stalled = stalled;
        shown.accounts.clone_from(engine.accounts());
        shown.late = engine.accounts().values().map(|a| a.late).sum();
        shown.copies = engine.accounts().values().map(|a| a.copies).sum();
        self.metrics.show(self.at.index, &shown, engine.forgotten_count(), engine.evicted_count());
    }
}

impl From<&mut Stop> for Stop {
    fn from(stop: &mut Stop) -> Self {
        stop.clone()
    }
}

/// Fates of one stretch: counted here, added to the metrics once.
#[derive(Debug, Default)]
struct Tally {
    evaluated: u64,
    late: u64,
    copies: u64,
    failed: u64,
    undecodable: u64,
}

impl Tally {
    fn add(&mut self, fate: Fate) {
        match fate {
            Fate::Evaluated => self.evaluated += 1,
            Fate::Late => self.late += 1,
            Fate::Copy => self.copies += 1,
            Fate::Failed => self.failed += 1,
        }
    }
}

fn dead_letter(record: &Record<'_>, at: Partition, offset: Offset, bytes: &[u8]) -> Rejected {
    Rejected {
        tenant: record.tenant.into(),
        device: record.device.into(),
        received_at: record.received_at,
        reason: RejectReason::Unprocessable,
        detail: "a rule broke on the record; it is stored all the same".into(),
        source: format!("pipeline:{at}@{offset}"),
        payload: bytes[..bytes.len().min(REJECTED_BYTES_MAX)].to_vec(),
    }
}

fn lock(shown: &Mutex<PartitionStatus>) -> MutexGuard<'_, PartitionStatus> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}
