//! The rules, running: one thread a partition reads, evaluates, says, and keeps a checkpoint. Which partitions, the
//! journal says: all of them, or this process's part, which comes and goes.
//!
//! What a stretch of the journal brings about is durable in `alerts` before a checkpoint covers the stretch. After a
//! crash it is said again, under the same ids.

mod ask; // what others want to know of a device
mod layout; // another number of partitions than before
mod merge; // rules over groups, over all partitions
mod metrics;

use std::{
    collections::BTreeMap,
    fmt, io,
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
use merge::{Merging, PARTIALS};
use metrics::Metrics;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use crate::checkpoints::{CheckpointError, CheckpointStore};
use crate::{
    Account, Limits, RuleSet,
    checkpoints::{Chain, Found, Writer, Written},
    consumer::{Backoff, Every, Stop, Worker},
    copies::Snapshots,
    engine::{BLOCK, Broken, Engine, Fate, State},
    groups::Partial,
};
pub use merge::CONSUMER as GROUPS;

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
/// How much later than to another process something may come to this one, as when a broker of Kafka has died.
const LATER_MAX: Duration = Duration::from_secs(20);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub limits: Limits,
    pub checkpoint_seconds: u64,
    /// Where checkpoints are kept: a directory, or the URL of an object store that the build knows. `pipeline` in the data
    /// directory if empty.
    pub checkpoints: String,
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
            checkpoints: String::new(),
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
    Directory { path: std::path::PathBuf, source: io::Error },
    #[error("checkpoints")]
    Checkpoints(#[from] CheckpointError),
    #[error("move what the rules know from {from} partitions to {to}: {reason}")]
    Move { from: u16, to: u16, reason: String },
    #[error("start a thread for {what}")]
    Thread { what: String, source: io::Error },
}

/// The rules over the partitions of `telemetry` that this process has.
#[derive(Debug)]
pub struct Pipeline {
    /// Begins and ends the others.
    crew: Worker,
    partitions: Arc<[OfPartition]>,
    groups: Arc<Mutex<GroupsStatus>>,
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
    /// The rules over groups.
    pub groups: GroupsStatus,
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
    /// Event time up to which devices are counted for rules over groups, if there are any.
    pub watermark: Option<Timestamp>,
    pub checkpoint: CheckpointStatus,
    /// Why the partition does not move, if it does not.
    pub stalled: Option<String>,
    accounts: BTreeMap<Box<str>, Account>,
}

/// The last checkpoints of a partition.
#[derive(Debug, Clone, Default)]
pub struct CheckpointStatus {
    /// From where a start would go on; `None` before the first.
    pub position: Option<Offset>,
    pub written_at: Option<Timestamp>,
    pub bytes: u64,
    /// Why the last try failed, if it did; the one before it holds.
    pub problem: Option<String>,
}

/// Where the rules over groups are.
#[derive(Debug, Clone, Default)]
pub struct GroupsStatus {
    /// Whether they are judged by this process.
    pub is_held: bool,
    pub position: Offset,
    /// Event time up to which all partitions have counted.
    pub judged_up_to: Option<Timestamp>,
    pub checkpoint: CheckpointStatus,
    pub stalled: Option<String>,
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
    groups: Arc<Mutex<GroupsStatus>>,
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
        status.groups = lock(&self.groups).clone();
        status
    }

    /// Why partitions do not move, of those that do not.
    pub fn stalled(&self) -> Vec<String> {
        let of = |(index, of): (usize, &OfPartition)| {
            lock(&of.shown).stalled.as_ref().map(|reason| format!("partition {index}: {reason}"))
        };
        let groups = lock(&self.groups).stalled.as_ref().map(|reason| format!("groups: {reason}"));
        self.partitions.iter().enumerate().filter_map(of).chain(groups).collect()
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
    /// Starts the threads. State is kept in `checkpoints`; what the store knows of copies is read in `data`. Processes that
    /// share partitions share both. If the journal has another number of partitions than the checkpoints, what is known of
    /// devices moves first: nobody may append before this is over.
    #[expect(clippy::too_many_arguments)]
    pub fn start(
        config: Config,
        journal: Arc<dyn Journal>,
        inflow: Arc<dyn Inflow>,
        rules: RuleSet,
        checkpoints: CheckpointStore,
        data: &Path,
        clock: Clock,
        registry: &mut Registry,
    ) -> Result<Self, StartError> {
        let (rules, in_force) = watch::channel(rules);
        let count = journal.partitions(Topic::Telemetry);
        let partitions: Arc<[OfPartition]> = (0..count).map(|_| OfPartition::default()).collect();
        let groups = Arc::<Mutex<GroupsStatus>>::default();
        let crew = Crew {
            config,
            journal,
            inflow,
            data: data.into(),
            checkpoints,
            in_force,
            clock,
            metrics: Metrics::new(registry),
            partitions: partitions.clone(),
            groups: groups.clone(),
        };
        layout::take_up(&crew.checkpoints, count, |index, of| crew.rules(index, of, OfPartition::default()))?;
        let crew = Worker::spawn("rules".into(), 0, move |stop| crew.clone().run(stop), |_| {});
        let failed = |source| StartError::Thread { what: "the rules".into(), source };
        Ok(Self { crew: crew.map_err(failed)?, partitions, groups, rules })
    }

    pub fn view(&self) -> PipelineView {
        PipelineView { partitions: self.partitions.clone(), groups: self.groups.clone() }
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

/// Has a thread for every partition that this process has, and one for the rules over groups if it has what all partitions
/// counted.
#[derive(Clone)]
struct Crew {
    config: Config,
    journal: Arc<dyn Journal>,
    inflow: Arc<dyn Inflow>,
    data: PathBuf,
    checkpoints: CheckpointStore,
    in_force: watch::Receiver<RuleSet>,
    clock: Clock,
    metrics: Metrics,
    partitions: Arc<[OfPartition]>,
    groups: Arc<Mutex<GroupsStatus>>,
}

impl Crew {
    async fn run(self, mut stop: Stop) {
        let mut telemetry = self.journal.join(CONSUMER, Topic::Telemetry);
        let mut partials = self.journal.join(GROUPS, Topic::Partials);
        let mut workers = BTreeMap::<Partition, Worker>::new();
        self.metrics.partitions.set(self.partitions.len() as i64);
        loop {
            let held = workers.keys().filter(|at| at.topic == Topic::Telemetry).count();
            self.metrics.partitions_held.set(held as i64);
            self.metrics.groups_held.set(i64::from(workers.contains_key(&PARTIALS)));
            let turn = tokio::select! {
                () = stop.asked() => break,
                turn = telemetry.next() => turn,
                turn = partials.next() => turn,
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
                    let membership = if at == PARTIALS { &partials } else { &telemetry };
                    membership.release(at);
                }
                // What it would still write down is the next holder's business by now.
                Turn::Lost(at) => {
                    if let Some(worker) = workers.remove(&at) {
                        worker.given_up().await;
                    }
                    self.ended(at);
                }
            }
        }
        // After those who have something to say to it.
        let groups = workers.remove(&PARTIALS);
        workers.values().for_each(Worker::ask_to_stop);
        for worker in workers.into_values().chain(groups) {
            worker.stopped().await;
        }
    }

    fn begin(&self, at: Partition) -> io::Result<Worker> {
        if at == PARTIALS {
            *lock(&self.groups) = GroupsStatus { is_held: true, ..GroupsStatus::default() };
            return merge::begin(self.merging(), self.config.nice);
        }
        let of = self.partitions[usize::from(at.index)].clone();
        *lock(&of.shown) = PartitionStatus { is_held: true, ..PartitionStatus::default() };
        let told = of.shown.clone();
        let rules = self.rules(at.index, self.partitions.len() as u16, of);
        let work = move |stop| rules.clone().run(stop);
        let broke = move |reason| lock(&told).stalled = Some(reason);
        Worker::spawn(format!("rules-{}", at.index), self.config.nice, work, broke)
    }

    /// What reads one of so many partitions.
    fn rules(&self, index: u16, of: u16, OfPartition { shown, asked }: OfPartition) -> Rules {
        let at = Partition::new(Topic::Telemetry, index);
        Rules {
            at,
            partitions: of,
            chain: Chain::of(&self.checkpoints, of, index),
            snapshots: Snapshots::new(&self.data, at, self.config.limits.copies),
            checkpoint_due: Every::new(Duration::from_secs(self.config.checkpoint_seconds)),
            config: self.config.clone(),
            journal: self.journal.clone(),
            inflow: self.inflow.clone(),
            in_force: self.in_force.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            shown,
            asked,
            position: Offset::ZERO,
            saved: None,
        }
    }

    fn merging(&self) -> Merging {
        Merging {
            chain: Chain::named(&self.checkpoints, "groups"),
            checkpoint_due: Every::new(Duration::from_secs(self.config.checkpoint_seconds)),
            config: self.config.clone(),
            journal: self.journal.clone(),
            in_force: self.in_force.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            shown: self.groups.clone(),
            position: Offset::ZERO,
        }
    }

    fn cannot_begin(&self, at: Partition, error: &io::Error) {
        tracing::error!(partition = %at, %error, "no thread for the rules of a partition");
        let stalled = Some(error.to_string());
        match at {
            PARTIALS => lock(&self.groups).stalled = stalled,
            at => lock(&self.partitions[usize::from(at.index)].shown).stalled = stalled,
        }
    }

    fn ended(&self, at: Partition) {
        if at == PARTIALS {
            *lock(&self.groups) = GroupsStatus::default();
            return;
        }
        let OfPartition { shown, asked } = &self.partitions[usize::from(at.index)];
        *lock(shown) = PartitionStatus::default();
        // Whoever asked meanwhile is not to wait until the partition comes back.
        asked.answer(|_, _| None);
        self.metrics.forget(at.index);
    }
}

/// One partition. Begun anew, it knows nothing but its checkpoint.
#[derive(Clone)]
struct Rules {
    at: Partition,
    /// Of telemetry.
    partitions: u16,
    chain: Chain,
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
        let (mut engine, mut writer) = self.take_up(stop).await?;
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
                    self.checkpoint(&mut engine, &mut writer).await;
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
        if !stop.is_given_up() {
            self.last_checkpoint(&mut engine, &mut writer).await;
        }
        Ok(())
    }

    /// Reads to the end and keeps what it then knows; `None` if it cannot.
    async fn catch_up(mut self, stop: &mut Stop) -> Result<(Offset, State), String> {
        let stopped = |Stopped| "stopped".to_owned();
        let (mut engine, mut writer) = self.take_up(stop).await.map_err(stopped)?;
        while !self.is_at_end() {
            let read = self.journal.read(self.at, self.position, self.config.chunk_bytes).await;
            let entries = read.map_err(|error| chain(&error))?;
            self.evaluate(&mut engine, &entries, stop).await.map_err(stopped)?;
        }
        self.last_checkpoint(&mut engine, &mut writer).await;
        match self.saved == Some(self.position) {
            true => Ok((self.position, engine.state())),
            false => Err(lock(&self.shown).checkpoint.problem.clone().unwrap_or_default()),
        }
    }

    /// From the checkpoint, or from the oldest record if there is none that can be used.
    async fn take_up(&mut self, stop: &mut Stop) -> Result<(Engine, Writer), Stopped> {
        let rules = self.in_force.borrow_and_update().clone();
        let mut out = Vec::new();
        let (found, writer) = self.load(stop).await?;
        if let Some(Found { position, .. }) = &found {
            come_up_to(&*self.journal, self.at, *position, stop).await?;
        }
        let extent = self.journal.extent(self.at);
        let restored = match found {
            None => None,
            Some(Found { position, .. }) if position > extent.next => {
                tracing::error!(partition = %self.at, %position, end = %extent.next, "the checkpoint is beyond the end of the journal; replaying");
                None
            }
            Some(Found { position, states }) => {
                let engine = Engine::restore(self.config.limits.clone(), &rules, states, &mut out);
                if engine.is_none() {
                    tracing::error!(partition = %self.at, "the checkpoint contradicts itself; replaying from the oldest record");
                }
                engine.map(|engine| (position, engine))
            }
        };
        let mut engine = match restored {
            Some((position, engine)) => {
                (self.position, self.saved) = (position, Some(position));
                lock(&self.shown).checkpoint.position = Some(position);
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
        Ok((engine, writer))
    }

    /// A store that does not answer is asked again: without its checkpoints the whole journal would be read again.
    async fn load(&self, stop: &mut Stop) -> Result<(Option<Found<State>>, Writer), Stopped> {
        let mut backoff = Backoff::default();
        loop {
            let error = match self.chain.load().await {
                Ok(loaded) => return Ok(loaded),
                Err(error) => chain(&error),
            };
            let pause = backoff.next();
            tracing::error!(partition = %self.at, error, ?pause, "rules cannot read their checkpoints");
            lock(&self.shown).stalled = Some(error);
            stop.sleep(pause).await;
            if stop.is_asked() {
                return Err(Stopped);
            }
        }
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
        let mut rest = entries.iter().flat_map(Entries::iter);
        let mut block = Vec::with_capacity(BLOCK);
        loop {
            block.clear();
            block.extend(rest.by_ref().take(BLOCK).map(|entry| (avro::decode(entry.bytes), entry)));
            if block.is_empty() {
                break;
            }
            engine.look_ahead(block.iter().filter_map(|(decoded, _)| decoded.as_ref().ok()));
            for (decoded, entry) in &block {
                // The store writer keeps the bytes of others; here they only are in nobody's way.
                let Ok(record) = decoded else {
                    tally.undecodable += 1;
                    continue;
                };
                let fate = engine.evaluate(record, entry.offset, &mut out);
                tally.add(fate);
                if fate == Fate::Failed {
                    broken.push(&dead_letter(record, self.at, entry.offset, entry.bytes).encode());
                }
            }
        }
        self.say(out, stop.clone()).await?;
        self.say_counted(engine, stop).await?;
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
        self.say(out, stop.clone()).await?;
        self.say_counted(engine, stop).await
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
        self.metrics.transitions.inc_by(transitions.len() as u64);
        let partitions = self.journal.partitions(Topic::Alerts);
        let to = Partition::new(Topic::Alerts, self.at.index % partitions.max(1));
        let stalled = |reason: String| lock(&self.shown).stalled = Some(reason);
        say(&*self.journal, to, &transitions, stop.into(), &stalled).await
    }

    /// What was counted of groups, for the rules on them.
    async fn say_counted(&self, engine: &mut Engine, stop: &Stop) -> Result<(), Stopped> {
        let counted = engine.take_counted();
        const PARTIALS_MAX: usize = 1_000;
        for some in counted.chunks(PARTIALS_MAX) {
            let mut batch = Batch::default();
            for counted in some {
                let (partition, of) = (self.at.index, self.partitions);
                batch.push(&Partial { partition, of, counted: counted.clone() }.encode());
            }
            self.append(Partition::new(Topic::Partials, 0), batch, stop.clone()).await?;
        }
        Ok(())
    }

    async fn append(&self, to: Partition, batch: Batch, stop: Stop) -> Result<(), Stopped> {
        let stalled = |reason: String| lock(&self.shown).stalled = Some(reason);
        append(&*self.journal, to, batch, stop, &stalled).await
    }

    /// Begins one when it is due, and notes how the one before ended. It is written beside the work.
    async fn checkpoint(&mut self, engine: &mut Engine, writer: &mut Writer) {
        if writer.is_writing() {
            // The thread's other task gets its turn.
            tokio::task::yield_now().await;
            if let Some(ended) = writer.ended().await {
                self.note(ended).await;
            }
        }
        if !writer.is_writing() && self.saved != Some(self.position) && self.checkpoint_due.is_due() {
            self.begin_checkpoint(engine, writer);
        }
    }

    fn begin_checkpoint(&mut self, engine: &mut Engine, writer: &mut Writer) {
        let is_whole = writer.is_whole_due() || engine.is_whole_due();
        writer.begin(self.position, is_whole, &engine.changes(is_whole));
        lock(&self.shown).windows = engine.window_count();
    }

    async fn last_checkpoint(&mut self, engine: &mut Engine, writer: &mut Writer) {
        if let Some(ended) = writer.finished().await {
            self.note(ended).await;
        }
        if self.saved != Some(self.position) {
            self.begin_checkpoint(engine, writer);
            if let Some(ended) = writer.finished().await {
                self.note(ended).await;
            }
        }
    }

    async fn note(&mut self, ended: Result<Written, CheckpointError>) {
        let shown = self.shown.clone();
        note_checkpoint(
            ended,
            &self.metrics,
            &self.clock,
            &format!("{}", self.at),
            &mut lock(&shown).checkpoint,
        );
        let saved = lock(&shown).checkpoint.position;
        if saved != self.saved {
            self.saved = saved;
            self.commit().await;
        }
    }

    async fn commit(&self) {
        let durable = self.saved.unwrap_or(self.position);
        if let Err(error) = self.journal.commit(CONSUMER, self.at, durable).await {
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
        shown.watermark = engine.watermark();
        shown.accounts.clone_from(engine.accounts());
        shown.late = engine.accounts().values().map(|a| a.late).sum();
        shown.copies = engine.accounts().values().map(|a| a.copies).sum();
        self.metrics.show(self.at.index, &shown, engine.forgotten_count(), engine.evicted_count());
    }
}

/// Whoever had the partition before may have read what has not come here yet.
async fn come_up_to(
    journal: &dyn Journal,
    at: Partition,
    position: Offset,
    stop: &mut Stop,
) -> Result<(), Stopped> {
    let mut progress = journal.progress();
    let comes = async { while journal.extent(at).next < position && progress.changed().await.is_ok() {} };
    tokio::select! {
        () = comes => {}
        () = stop.sleep(LATER_MAX) => {}
    }
    if stop.is_asked() { Err(Stopped) } else { Ok(()) }
}

async fn say(
    journal: &dyn Journal,
    to: Partition,
    transitions: &[AlertTransition],
    stop: Stop,
    stalled: &impl Fn(String),
) -> Result<(), Stopped> {
    // Few at a time, so that a storm of alerts makes no batch that the journal refuses.
    const TRANSITIONS_MAX: usize = 1_000;
    for some in transitions.chunks(TRANSITIONS_MAX) {
        let mut batch = Batch::default();
        some.iter().for_each(|transition| batch.push(&transition.encode()));
        append(journal, to, batch, stop.clone(), stalled).await?;
    }
    Ok(())
}

/// Appends until it is durable. Twice is harmless, never is not.
async fn append(
    journal: &dyn Journal,
    to: Partition,
    batch: Batch,
    mut stop: Stop,
    stalled: &impl Fn(String),
) -> Result<(), Stopped> {
    let mut backoff = Backoff::default();
    loop {
        match journal.append(to, batch.clone()).await {
            Ok(_) => return Ok(()),
            Err(error) => {
                let pause = backoff.next();
                tracing::warn!(%to, error = chain(&error), ?pause, "rules cannot append");
                stalled(chain(&error));
                stop.sleep(pause).await;
            }
        }
        if stop.is_asked() {
            return Err(Stopped);
        }
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

/// How a checkpoint ended, for whoever looks.
fn note_checkpoint(
    ended: Result<Written, CheckpointError>,
    metrics: &Metrics,
    clock: &Clock,
    of: &str,
    shown: &mut CheckpointStatus,
) {
    match ended {
        Ok(Written { position, bytes, is_whole }) => {
            metrics.wrote_checkpoint(bytes, is_whole);
            *shown = CheckpointStatus {
                position: Some(position),
                written_at: Some(clock.now()),
                bytes,
                problem: None,
            };
        }
        Err(error) => {
            metrics.checkpoint_failures.inc();
            let problem = chain(&error);
            tracing::error!(of, error = problem, "checkpoint not written; the one before it holds");
            shown.problem = Some(problem);
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

fn lock<T>(shown: &Mutex<T>) -> MutexGuard<'_, T> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}
