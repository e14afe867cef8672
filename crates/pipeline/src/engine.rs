//! The rules over one partition. A function of the journal alone: the same records in the same order say the same
//! transitions, wherever the run was cut and taken up again.
//!
//! Every device has a watermark of its own: its newest event time less the allowed lateness. So one wrong clock, or
//! a file of last year's data, moves nobody else. A device that falls silent is taken to live on at the pace of the
//! server's clock, as the receive times of the other records of the partition tell it.
//!
//! Deliberately absent: IO, a clock, threads.

mod alert; // the life of one rule on one device
mod index; // which rules look at a reading
mod state; // devices, as they are kept in a checkpoint
mod window; // readings gathered over time

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use alert::{Episode, Step, Stretch, Verdict};
use dunlin_journal::Offset;
use dunlin_model::{AlertTransition, Fingerprint, Record, Severity, TimeSource, Timestamp, TransitionId};
use hashbrown::HashTable;
use index::Index;
use serde::{Deserialize, Serialize};
pub use state::State;
use state::{Cell, Device};

use crate::{
    copies::{RecentIds, RecentIdsLimits, device_hash},
    rules::{Rule, RuleSet},
};

/// Records of one partition are stamped by several threads; what is further back than this was stamped by a clock
/// that was set right.
const CLOCK_UNEVENNESS_MAX: Duration = Duration::from_secs(60);

/// How the rules treat time, and how much they may keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// How far a record may lie behind its device's newest one and still count.
    pub lateness_millis: u64,
    /// How much longer a window of a silent device waits for data.
    pub idle_grace_seconds: u64,
    /// A device that was silent for so long is forgotten.
    pub device_ttl_seconds: u64,
    /// Devices kept per partition; beyond it the one that was silent longest is forgotten.
    pub devices_max: usize,
    /// How copies are recognised; the store goes by the same.
    #[serde(skip)]
    pub copies: RecentIdsLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            lateness_millis: 5_000,
            idle_grace_seconds: 10,
            device_ttl_seconds: 86_400,
            devices_max: 1_000_000,
            copies: RecentIdsLimits::default(),
        }
    }
}

/// What became of the records, by tenant, from the first record of the journal on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Account {
    /// The sum of the others.
    pub read: u64,
    pub evaluated: u64,
    /// Behind the watermark of the device: changes no alert.
    pub late: u64,
    pub copies: u64,
    /// A rule broke on it.
    pub failed: u64,
}

impl std::ops::AddAssign for Account {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.evaluated += other.evaluated;
        self.late += other.late;
        self.copies += other.copies;
        self.failed += other.failed;
    }
}

/// What became of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Evaluated,
    Late,
    Copy,
    /// A rule panicked; its device starts afresh.
    Failed,
}

#[derive(Debug)]
pub struct Engine {
    limits: Limits,
    index: Index,
    copies: RecentIds,
    devices: Vec<Option<Device>>,
    free: Vec<u32>,
    by_name: HashTable<u32>,
    /// When something is due for a device, in seconds of receive time. Entries that the device has outdated stay
    /// until they come up.
    due: BinaryHeap<Reverse<Due>>,
    newest_received: Timestamp,
    accounts: BTreeMap<Box<str>, Account>,
    forgotten: u64,
    broken: Vec<Broken>,
}

/// A device on which a rule broke while nothing came from it. It starts afresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub tenant: Box<str>,
    pub device: Box<str>,
}

/// The hash makes the order independent of where a device is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    second: i64,
    hash: u64,
    device: u32,
}

impl Engine {
    pub fn new(limits: Limits, rules: &RuleSet) -> Self {
        let copies = RecentIds::new(limits.copies);
        Self {
            limits,
            index: Index::new(rules),
            copies,
            devices: Vec::new(),
            free: Vec::new(),
            by_name: HashTable::new(),
            due: BinaryHeap::new(),
            newest_received: Timestamp::MIN,
            accounts: BTreeMap::new(),
            forgotten: 0,
            broken: Vec::new(),
        }
    }

    /// Takes over what is known of the records before the start.
    pub fn know(&mut self, copies: RecentIds) {
        self.copies = copies;
    }

    /// A record from before the start, after what is known: only whether a later one repeats it counts.
    pub fn remember(&mut self, record: &Record<'_>, offset: Offset) {
        self.copies.observe(record, device_hash(record.tenant, record.device), offset);
    }

    /// Takes in the next record; what it brings about is added to `out`.
    pub fn evaluate(&mut self, record: &Record<'_>, offset: Offset, out: &mut Vec<AlertTransition>) -> Fate {
        self.follow_clock(record.received_at);
        self.run_due(out);
        let hash = device_hash(record.tenant, record.device);
        let fate = match self.copies.observe(record, hash, offset) {
            true => Fate::Copy,
            false => self.contain(record, hash, out),
        };
        self.account(record.tenant, fate);
        fate
    }

    /// What the passing of time alone brings about, up to `settled`: no record still to come is older. `now` is the
    /// server's clock, of which it may be far behind.
    pub fn tick(&mut self, now: Timestamp, settled: Timestamp, out: &mut Vec<AlertTransition>) {
        let settled = settled.min(now);
        if settled > self.newest_received || now + CLOCK_UNEVENNESS_MAX < self.newest_received {
            self.newest_received = settled;
        }
        self.run_due(out);
    }

    /// The server's clock goes on, a little unevenly over its threads. If it was ahead and is set right, silence is
    /// measured from there: else everybody would count as silent for as long as it was ahead.
    fn follow_clock(&mut self, now: Timestamp) {
        if now > self.newest_received || now + CLOCK_UNEVENNESS_MAX < self.newest_received {
            self.newest_received = now;
        }
    }

    /// Goes on with other rules. What an unchanged rule knows stays; what another one was firing is resolved.
    pub fn reload(&mut self, rules: &RuleSet, out: &mut Vec<AlertTransition>) {
        let index = Index::new(rules);
        let old = std::mem::replace(&mut self.index, index);
        for device in self.devices.iter_mut().flatten() {
            device.adopt(&old, &self.index, out);
        }
        let slots: Vec<u32> = (0..).zip(&self.devices).filter(|(_, d)| d.is_some()).map(|(n, _)| n).collect();
        for device in slots {
            self.schedule(device);
        }
    }

    pub fn accounts(&self) -> &BTreeMap<Box<str>, Account> {
        &self.accounts
    }

    pub fn device_count(&self) -> usize {
        self.devices.len() - self.free.len()
    }

    /// Panes of windows that are open.
    pub fn window_count(&self) -> usize {
        self.devices.iter().flatten().flat_map(|d| &d.cells).map(|c| c.windows.len()).sum()
    }

    /// Devices forgotten since the start, for silence or for room.
    pub fn forgotten_count(&self) -> u64 {
        self.forgotten
    }

    /// Devices on which a rule broke as time passed, since this was last asked.
    pub fn take_broken(&mut self) -> Vec<Broken> {
        std::mem::take(&mut self.broken)
    }

    /// A rule that panics costs its own device's state and nothing else.
    fn contain(&mut self, record: &Record<'_>, hash: u64, out: &mut Vec<AlertTransition>) -> Fate {
        let said = out.len();
        match catch_unwind(AssertUnwindSafe(|| self.apply(record, hash, out))) {
            Ok(fate) => fate,
            Err(_) => {
                out.truncate(said);
                if let Some(device) = self.find(record.tenant, record.device, hash) {
                    self.remove(device);
                }
                Fate::Failed
            }
        }
    }

    fn apply(&mut self, record: &Record<'_>, hash: u64, out: &mut Vec<AlertTransition>) -> Fate {
        let slot = match self.find(record.tenant, record.device, hash) {
            Some(slot) => slot,
            None => self.insert(record, hash, out),
        };
        let Some(device) = &mut self.devices[slot as usize] else { return Fate::Failed };
        if record.received_at + CLOCK_UNEVENNESS_MAX < device.heard_at {
            device.clock_was_ahead(record);
        }
        device.heard_at = device.heard_at.max(record.received_at);
        if record.time < device.watermark {
            return Fate::Late;
        }
        if *device.device_type != *record.device_type {
            device.retype(&mut self.index, record.device_type, out);
        }
        for reading in &record.readings {
            let Some(metric) = self.index.metric(reading.metric) else { continue };
            let Some(value) = reading.value.as_number().filter(|v| v.is_finite()) else { continue };
            device.resolve(&self.index, metric);
            device.take(&self.index, metric, record.time, value, out);
        }
        if record.time >= device.newest {
            device.newest = record.time;
            device.newest_received_at = record.received_at;
            device.watermark = device.watermark.max(record.time - self.limits.lateness());
        }
        device.close_windows(&self.index, device.watermark, out);
        self.schedule(slot);
        Fate::Evaluated
    }

    fn find(&self, tenant: &str, name: &str, hash: u64) -> Option<u32> {
        let is_it = |slot: &u32| {
            self.devices[*slot as usize]
                .as_ref()
                .is_some_and(|d| d.hash == hash && *d.name == *name && *d.tenant == *tenant)
        };
        self.by_name.find(hash, is_it).copied()
    }

    fn insert(&mut self, record: &Record<'_>, hash: u64, out: &mut Vec<AlertTransition>) -> u32 {
        if self.device_count() >= self.limits.devices_max.max(1) {
            self.forget_one(out);
        }
        let device = Device::new(
            hash,
            self.index.word(record.tenant),
            record.device,
            self.index.word(record.device_type),
            record.received_at,
        );
        self.place(device)
    }

    fn place(&mut self, device: Device) -> u32 {
        let hash = device.hash;
        let slot = match self.free.pop() {
            Some(slot) => {
                self.devices[slot as usize] = Some(device);
                slot
            }
            None => {
                self.devices.push(Some(device));
                (self.devices.len() - 1) as u32
            }
        };
        let devices = &self.devices;
        self.by_name.insert_unique(hash, slot, |slot| {
            devices[*slot as usize].as_ref().map_or(0, |device| device.hash)
        });
        slot
    }

    fn remove(&mut self, slot: u32) -> Option<Device> {
        let device = self.devices[slot as usize].take()?;
        if let Ok(entry) = self.by_name.find_entry(device.hash, |s| *s == slot) {
            entry.remove();
        }
        self.free.push(slot);
        Some(device)
    }

    /// Notes when the device is to be looked at next: never later than something is due.
    fn schedule(&mut self, slot: u32) {
        let Some(device) = &mut self.devices[slot as usize] else { return };
        let second = device.due_second(&self.limits);
        if second < device.queued_second {
            device.queued_second = second;
            self.due.push(Reverse(Due { second, hash: device.hash, device: slot }));
        }
    }

    fn run_due(&mut self, out: &mut Vec<AlertTransition>) {
        let now = self.newest_received.as_micros().div_euclid(1_000_000);
        while let Some(Reverse(due)) = self.due.peek().copied().filter(|d| d.0.second <= now) {
            self.due.pop();
            if self.is_current(due) {
                self.look_at_contained(due.device, now, out);
            }
        }
    }

    /// As `contain`, for what silence alone brings about.
    fn look_at_contained(&mut self, slot: u32, now_second: i64, out: &mut Vec<AlertTransition>) {
        let said = out.len();
        if catch_unwind(AssertUnwindSafe(|| self.look_at(slot, now_second, out))).is_err() {
            out.truncate(said);
            if let Some(device) = self.remove(slot) {
                self.broken.push(Broken { tenant: device.tenant.as_ref().into(), device: device.name });
            }
        }
    }

    fn is_current(&self, due: Due) -> bool {
        self.devices[due.device as usize]
            .as_ref()
            .is_some_and(|d| d.hash == due.hash && d.queued_second == due.second)
    }

    fn look_at(&mut self, slot: u32, now_second: i64, out: &mut Vec<AlertTransition>) {
        let Some(device) = &mut self.devices[slot as usize] else { return };
        while device.due_second(&self.limits) <= now_second {
            let Some(end) = device.next_close() else {
                self.forgotten += 1;
                return self.forget(slot, out);
            };
            device.watermark = device.watermark.max(end);
            device.close_windows(&self.index, end, out);
        }
        device.queued_second = i64::MAX;
        self.schedule(slot);
    }

    /// Makes room: of the devices that come up first, the one that was silent longest.
    fn forget_one(&mut self, out: &mut Vec<AlertTransition>) {
        const LOOKED_AT_MAX: usize = 8;
        let mut candidates = Vec::with_capacity(LOOKED_AT_MAX);
        while candidates.len() < LOOKED_AT_MAX
            && let Some(Reverse(due)) = self.due.pop()
        {
            if self.is_current(due)
                && let Some(device) = &mut self.devices[due.device as usize]
            {
                device.queued_second = i64::MAX;
                candidates.push((device.heard_at, device.hash, due.device));
            }
        }
        let silent_longest = candidates.iter().copied().min();
        for (_, _, slot) in &candidates {
            self.schedule(*slot);
        }
        if let Some((_, _, slot)) = silent_longest {
            self.forgotten += 1;
            self.forget(slot, out);
        }
    }

    /// What a forgotten device was firing would never be resolved: nobody would remember it.
    fn forget(&mut self, slot: u32, out: &mut Vec<AlertTransition>) {
        if let Some(device) = self.remove(slot) {
            for cell in &device.cells {
                let rule = RuleWords::of(self.index.rule(cell.rule));
                device.say_forgotten(&rule, &cell.episode, out);
            }
        }
    }

    fn account(&mut self, tenant: &str, fate: Fate) {
        if !self.accounts.contains_key(tenant) {
            self.accounts.insert(tenant.into(), Account::default());
        }
        let Some(account) = self.accounts.get_mut(tenant) else { return };
        account.read += 1;
        match fate {
            Fate::Evaluated => account.evaluated += 1,
            Fate::Late => account.late += 1,
            Fate::Copy => account.copies += 1,
            Fate::Failed => account.failed += 1,
        }
    }
}

impl Limits {
    fn lateness(&self) -> Duration {
        Duration::from_millis(self.lateness_millis)
    }

    fn idle_grace(&self) -> Duration {
        Duration::from_secs(self.idle_grace_seconds)
    }

    fn device_ttl(&self) -> Duration {
        Duration::from_secs(self.device_ttl_seconds)
    }
}

impl Device {
    /// The server's clock was ahead when this device was last heard, and is right again. What was filed under the
    /// wrong time must not make all that follows look late.
    fn clock_was_ahead(&mut self, record: &Record<'_>) {
        self.heard_at = record.received_at;
        self.newest_received_at = self.newest_received_at.min(record.received_at);
        self.queued_second = i64::MAX;
        if record.time_source != TimeSource::Device && record.time < self.newest {
            self.newest = Timestamp::MIN;
            self.watermark = Timestamp::MIN;
            self.next_close = Timestamp::MAX;
            self.cells.iter_mut().for_each(|cell| cell.windows.restart());
        }
    }

    /// The cells of the rules that look at `metric` on this device are made when the device first sends it.
    fn resolve(&mut self, index: &Index, metric: u32) {
        let Err(at) = self.metrics.binary_search(&metric) else { return };
        self.metrics.insert(at, metric);
        for rule in index.rules_for(metric, &self.tenant, &self.device_type, &self.name) {
            self.add_cell(metric, rule);
        }
    }

    fn add_cell(&mut self, metric: u32, rule: u32) {
        let key = (metric, rule);
        if let Err(at) = self.cells.binary_search_by_key(&key, |c| (c.metric, c.rule)) {
            self.cells.reserve_exact(1);
            self.cells.insert(at, Cell::new(metric, rule));
        }
    }

    fn take(
        &mut self,
        index: &Index,
        metric: u32,
        time: Timestamp,
        value: f64,
        out: &mut Vec<AlertTransition>,
    ) {
        let first = self.cells.partition_point(|c| c.metric < metric);
        for n in first..self.cells.len() {
            let cell = &mut self.cells[n];
            if cell.metric != metric {
                break;
            }
            let rule = index.rule(cell.rule);
            match &rule.condition.over {
                Some(over) => {
                    cell.windows.add(over, time, value);
                    self.next_close =
                        cell.windows.next_end(over).map_or(self.next_close, |e| e.min(self.next_close));
                }
                // A single value is judged in the order of time: one from before the last is too late to matter.
                None if time >= self.newest => {
                    let at = Stretch { start: time, end: time };
                    let step = cell.episode.on(verdict(rule, value), at, rule.condition.hold);
                    if let Some(step) = step {
                        out.push(self.transition(&RuleWords::of(rule), step, time, value));
                    }
                }
                None => {}
            }
        }
    }

    /// Judges the windows that end at `now` or before, each rule's in order.
    fn close_windows(&mut self, index: &Index, now: Timestamp, out: &mut Vec<AlertTransition>) {
        if self.next_close > now {
            return;
        }
        self.next_close = Timestamp::MAX;
        for n in 0..self.cells.len() {
            let rule = index.rule(self.cells[n].rule);
            let Some(over) = &rule.condition.over else { continue };
            while let Some((at, value)) = self.cells[n].windows.close(over, now) {
                let episode = &mut self.cells[n].episode;
                let steps = [episode.on_gap(at), episode.on(verdict(rule, value), at, rule.condition.hold)];
                for step in steps.into_iter().flatten() {
                    out.push(self.transition(&RuleWords::of(rule), step, at.end, value));
                }
            }
            if let Some(end) = self.cells[n].windows.next_end(over) {
                self.next_close = self.next_close.min(end);
            }
        }
    }

    fn next_close(&self) -> Option<Timestamp> {
        Some(self.next_close).filter(|end| *end != Timestamp::MAX)
    }

    /// The second of receive time at which the next window closes for silence, or the device is forgotten.
    fn due_second(&self, limits: &Limits) -> i64 {
        match self.next_close() {
            Some(end) => {
                let to_go = end.since(self.newest) + limits.lateness() + limits.idle_grace();
                window::second_after(self.newest_received_at, to_go)
            }
            None => window::second_after(self.heard_at, limits.device_ttl()),
        }
    }

    /// A device that changed its type is looked at by other rules.
    fn retype(&mut self, index: &mut Index, device_type: &str, out: &mut Vec<AlertTransition>) {
        self.device_type = index.word(device_type);
        self.metrics.clear();
        let cells = std::mem::take(&mut self.cells);
        let (kept, gone) = cells.into_iter().partition(|c: &Cell| {
            let rule = index.rule(c.rule);
            rule.device_type.as_deref().is_none_or(|t| *t == *self.device_type)
        });
        self.cells = kept;
        let gone: Vec<Cell> = gone;
        for cell in &gone {
            self.say_forgotten(&RuleWords::of(index.rule(cell.rule)), &cell.episode, out);
        }
        self.find_next_close(index);
    }

    /// Takes the cells of unchanged rules over into another set of rules.
    fn adopt(&mut self, old: &Index, new: &Index, out: &mut Vec<AlertTransition>) {
        let cells = std::mem::take(&mut self.cells);
        self.metrics.clear();
        for mut cell in cells {
            match new.same_rule(old.rule(cell.rule)) {
                Some((metric, rule)) => {
                    (cell.metric, cell.rule) = (metric, rule);
                    self.cells.push(cell);
                }
                None => self.say_forgotten(&RuleWords::of(old.rule(cell.rule)), &cell.episode, out),
            }
        }
        self.cells.sort_unstable_by_key(|c| (c.metric, c.rule));
        self.find_next_close(new);
    }

    fn find_next_close(&mut self, index: &Index) {
        let ends = self.cells.iter().filter_map(|c| {
            index.rule(c.rule).condition.over.as_ref().and_then(|over| c.windows.next_end(over))
        });
        self.next_close = ends.min().unwrap_or(Timestamp::MAX);
    }

    fn say_forgotten(&self, rule: &RuleWords, episode: &Episode, out: &mut Vec<AlertTransition>) {
        if let Some(phase) = episode.phase.on_forgotten() {
            let step = Step { phase, since: episode.since() };
            out.push(self.transition(rule, step, self.newest, rule.threshold));
        }
    }

    fn transition(&self, rule: &RuleWords, step: Step, at: Timestamp, value: f64) -> AlertTransition {
        let fingerprint = Fingerprint::of(&self.tenant, &rule.name, &self.name);
        AlertTransition {
            id: TransitionId::of(fingerprint, step.phase, step.since),
            fingerprint,
            tenant: self.tenant.as_ref().into(),
            device: self.name.as_ref().into(),
            rule: rule.name.as_ref().into(),
            severity: rule.severity,
            phase: step.phase,
            at,
            since: step.since,
            value,
            condition: rule.condition.as_ref().into(),
        }
    }
}

/// What a transition says of its rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct RuleWords {
    name: Arc<str>,
    condition: Arc<str>,
    severity: Severity,
    threshold: f64,
}

impl RuleWords {
    fn of(rule: &Rule) -> Self {
        Self {
            name: rule.name.clone(),
            condition: rule.words.clone(),
            severity: rule.severity,
            threshold: rule.condition.threshold,
        }
    }
}

fn verdict(rule: &Rule, value: f64) -> Verdict {
    match () {
        () if rule.condition.holds(value) => Verdict::Holds,
        () if rule.condition.clears(value) => Verdict::Clear,
        () => Verdict::Between,
    }
}

impl Cell {
    fn new(metric: u32, rule: u32) -> Self {
        Self { metric, rule, episode: Episode::default(), windows: Default::default() }
    }
}

#[cfg(test)]
mod tests;
