//! One device: what came and is not yet in order, what the rules know of it, and what is next.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use dunlin_model::{
    AlertPhase, AlertTransition, Fingerprint, Record, Severity, TimeSource, Timestamp, TransitionId,
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use xxhash_rust::xxh3::Xxh3;

use super::{
    Limits,
    clock::DeviceClock,
    groups::{GroupKey, Groups},
    index::{ANY, Index},
};
use crate::{
    rules::{Rule, Scalar},
    watch::{Feed, Kind, Moment, Step, Steps, Watch},
};

/// Deadlines are kept in steps of so many microseconds of receive time.
const DUE_STEP_MICROS: i64 = 50_000;
/// No deadline.
pub(super) const NOT_DUE: i64 = i64::MAX;

/// Where what a step brings about goes.
#[derive(Debug)]
pub(super) struct Out<'a> {
    pub(super) said: &'a mut Vec<AlertTransition>,
    pub(super) groups: &'a mut Groups,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Device {
    pub(super) hash: u64,
    pub(super) tenant: Arc<str>,
    pub(super) name: Box<str>,
    pub(super) device_type: Arc<str>,
    pub(super) clock: DeviceClock,
    /// The newest event time, and when it came.
    pub(super) newest: Timestamp,
    pub(super) newest_received_at: Timestamp,
    pub(super) heard_at: Timestamp,
    /// Records from before it are late; the rules have seen what is before it.
    pub(super) watermark: Timestamp,
    /// Records at or after the watermark, by time.
    pub(super) held: VecDeque<Held>,
    /// Not later than what the cells next wait for.
    pub(super) next: Moment,
    /// Not as the last checkpoint has it.
    pub(super) is_changed: bool,
    /// The entry among the due ones that counts.
    pub(super) queued: i64,
    /// Metrics whose rules were looked up, sorted.
    pub(super) metrics: Vec<u32>,
    /// In the order in which they were made.
    pub(super) cells: Vec<Cell>,
    /// Which cell a rule has, by rule.
    pub(super) by_rule: Vec<(u32, u32)>,
    /// Where a metric goes, by metric.
    pub(super) feeds: Vec<(u32, u32, Feed)>,
}

/// One rule on one device.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Cell {
    pub(super) rule: u32,
    pub(super) watch: Watch,
    pub(super) next: Moment,
    /// Of a rule over a group: the group counts it as one on which the condition holds.
    pub(super) is_counted: bool,
}

/// A record's readings of metrics that rules name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Held {
    pub(super) time: Timestamp,
    pub(super) readings: HeldReadings,
}

impl Held {
    /// Of two at one time, what is in them decides, so that the order of arrival does not.
    fn is_after(&self, other: &Self) -> bool {
        self.time.cmp(&other.time).then_with(|| self.content().cmp(&other.content())).is_gt()
    }

    fn content(&self) -> u64 {
        let mut hash = Xxh3::new();
        for (metric, value) in &self.readings {
            hash.update(&metric.to_le_bytes());
            match value {
                Scalar::F64(v) => hash.update(&v.to_bits().to_le_bytes()),
                Scalar::I64(v) => hash.update(&v.to_le_bytes()),
                Scalar::Bool(v) => hash.update(&[u8::from(*v)]),
                Scalar::Text(v) => hash.update(v.as_bytes()),
            }
        }
        hash.digest()
    }
}

pub(super) type HeldReadings = SmallVec<[(u32, Scalar); 2]>;

impl Device {
    pub(super) fn new(
        hash: u64,
        tenant: Arc<str>,
        name: &str,
        device_type: Arc<str>,
        heard_at: Timestamp,
    ) -> Self {
        Self {
            hash,
            tenant,
            name: name.into(),
            device_type,
            clock: DeviceClock::default(),
            newest: Timestamp::MIN,
            newest_received_at: heard_at,
            heard_at,
            watermark: Timestamp::MIN,
            held: VecDeque::new(),
            next: Moment::NEVER,
            is_changed: false,
            queued: NOT_DUE,
            metrics: Vec::new(),
            cells: Vec::new(),
            by_rule: Vec::new(),
            feeds: Vec::new(),
        }
    }

    /// Takes in a record; false if it is late.
    pub(super) fn take(
        &mut self,
        index: &mut Index,
        record: &Record<'_>,
        limits: &Limits,
        out: &mut Out<'_>,
    ) -> bool {
        let (time, lateness) = self.place(record, limits);
        if time < self.watermark {
            return false;
        }
        if *self.device_type != *record.device_type {
            self.retype(index, record.device_type, out);
        }
        if time >= self.newest {
            self.newest = time;
            self.newest_received_at = record.received_at;
        }
        let to = self.newest - lateness;
        let readings = record.readings.iter().filter_map(|reading| {
            index.metric(reading.metric).map(|metric| (metric, Scalar::from(reading.value)))
        });
        let held = Held { time, readings: readings.collect() };
        if !held.readings.is_empty() || index.has_any() {
            match self.held.is_empty() && time <= to {
                true => {
                    self.pass_before(index, Moment { time, kind: Kind::Reading }, out);
                    self.apply(index, &held, out);
                }
                false => self.hold(held, limits),
            }
        }
        self.watermark = self.watermark.max(to);
        self.advance(index, self.watermark, out);
        true
    }

    /// The time of a record in the order of its device, and how much may still come before it. A device that says no
    /// times has one order, that of arrival, and the journal keeps it: nothing has to be waited for.
    fn place(&mut self, record: &Record<'_>, limits: &Limits) -> (Timestamp, Duration) {
        let time = self.clock.correct(record);
        let says_no_time = matches!(record.time_source, TimeSource::Server | TimeSource::ServerAsTooOld);
        match says_no_time && !self.clock.is_known() {
            true => (time.max(self.newest), Duration::ZERO),
            false => (time, limits.lateness()),
        }
    }

    fn hold(&mut self, held: Held, limits: &Limits) {
        let at = self.held.iter().rposition(|other| !other.is_after(&held)).map_or(0, |n| n + 1);
        self.held.insert(at, held);
        // Beyond it, the oldest is taken to be complete.
        if self.held.len() > limits.held_records_max.max(1)
            && let Some(oldest) = self.held.front()
        {
            self.watermark = self.watermark.max(oldest.time);
        }
    }

    /// Brings everything up to `to`, in the order of event time.
    pub(super) fn advance(&mut self, index: &Index, to: Timestamp, out: &mut Out<'_>) {
        while let Some(held) = self.held.front()
            && held.time <= to
        {
            let moment = Moment { time: held.time, kind: Kind::Reading };
            self.pass_before(index, moment, out);
            if let Some(held) = self.held.pop_front() {
                self.apply(index, &held, out);
            }
        }
        // A reading at `to` may still come, so no wait ends there.
        self.pass_before(index, Moment { time: to, kind: Kind::Reading }, out);
    }

    /// What waits for a moment up to `before`, in order.
    fn pass_before(&mut self, index: &Index, before: Moment, out: &mut Out<'_>) {
        while self.next <= before && !self.next.is_never() {
            let moment = self.next;
            self.next = Moment::NEVER;
            for n in 0..self.cells.len() {
                let cell = &mut self.cells[n];
                if cell.next <= moment {
                    let rule = index.rule(cell.rule);
                    let steps = cell.watch.pass(rule, moment);
                    cell.next = cell.watch.next(rule);
                    self.say(rule, n, steps, out);
                }
                self.next = self.next.min(self.cells[n].next);
            }
        }
    }

    /// The readings of one record, to all rules that look at them.
    fn apply(&mut self, index: &Index, held: &Held, out: &mut Out<'_>) {
        let mut touched: SmallVec<[u32; 8]> = SmallVec::new();
        if index.has_any() {
            self.feed(index, ANY, held.time, None, &mut touched, out);
        }
        for (metric, value) in &held.readings {
            self.feed(index, *metric, held.time, Some(value), &mut touched, out);
        }
        if touched.len() > 1 {
            touched.sort_unstable();
            touched.dedup();
        }
        for n in touched {
            let cell = &mut self.cells[n as usize];
            let rule = index.rule(cell.rule);
            let steps = cell.watch.settle(rule, held.time);
            self.say(rule, n as usize, steps, out);
            let cell = &mut self.cells[n as usize];
            cell.next = cell.watch.next(rule);
            self.next = self.next.min(cell.next);
        }
    }

    fn feed(
        &mut self,
        index: &Index,
        metric: u32,
        time: Timestamp,
        value: Option<&Scalar>,
        touched: &mut SmallVec<[u32; 8]>,
        out: &mut Out<'_>,
    ) {
        if let Err(at) = self.metrics.binary_search(&metric) {
            self.metrics.insert(at, metric);
            for rule in index.rules_for(metric, &self.tenant, &self.device_type, &self.name) {
                if self.add_cell(index, rule, None) && index.rule(rule).group.is_some() {
                    out.groups.change(self.group_key(index.rule(rule)), time, 1, 0);
                }
            }
        }
        let first = self.feeds.partition_point(|(of, ..)| *of < metric);
        for (_, cell, feed) in self.feeds[first..].iter().take_while(|(of, ..)| *of == metric) {
            let state = &mut self.cells[*cell as usize];
            let rule = index.rule(state.rule);
            let has_news = state.watch.take(rule, *feed, time, value);
            if has_news || (feed.is_window && state.next.is_never()) {
                touched.push(*cell);
            }
        }
    }

    /// The cell of a rule, made when the device first sends a metric of it, or as it was kept.
    /// False if it was there.
    pub(super) fn add_cell(&mut self, index: &Index, rule: u32, kept: Option<(Watch, bool)>) -> bool {
        let Err(at) = self.by_rule.binary_search_by_key(&rule, |(rule, _)| *rule) else { return false };
        let cell = self.cells.len() as u32;
        self.by_rule.insert(at, (rule, cell));
        let (watch, is_counted) = kept.unwrap_or_else(|| (Watch::new(index.rule(rule)), false));
        let next = watch.next(index.rule(rule));
        self.next = self.next.min(next);
        self.cells.push(Cell { rule, watch, next, is_counted });
        for (metric, feed) in index.feeds(rule) {
            let at = self.feeds.partition_point(|(of, ..)| of <= metric);
            self.feeds.insert(at, (*metric, cell, *feed));
        }
        true
    }

    /// What comes next: a held record, or what the rules wait for.
    fn next_moment(&self) -> Moment {
        let held = self.held.front().map(|held| Moment { time: held.time, kind: Kind::Reading });
        held.map_or(self.next, |held| held.min(self.next))
    }

    /// The step of receive time at which silence brings about what is next, or the device is forgotten.
    ///
    /// A silent device is taken to live on at the pace of the server's clock. A window waits a little longer, as a link
    /// that was down brings what belongs into it.
    pub(super) fn due(&self, index: &Index, limits: &Limits) -> i64 {
        let moment = self.next_moment();
        if !moment.is_never() {
            let grace = if moment.kind == Kind::Close { limits.idle_grace() } else { Duration::ZERO };
            let ahead = moment.time.as_micros().saturating_sub(self.newest.as_micros());
            // After the instant itself: a reading at the end of a wait comes in time.
            let after = Duration::from_micros(u64::from(moment.kind == Kind::Timer));
            let wait = limits.lateness() + grace + after;
            let at = Timestamp::from_micros(self.newest_received_at.as_micros().saturating_add(ahead)) + wait;
            return step_after(at);
        }
        // Nobody would notice that it speaks again.
        let is_missed = |cell: &Cell| cell.watch.is_firing() && index.rule(cell.rule).watches_silence();
        match self.cells.iter().any(is_missed) {
            true => NOT_DUE,
            false => step_after(self.heard_at + limits.device_ttl()),
        }
    }

    /// Takes silence to have lasted until what is next; false if nothing is.
    pub(super) fn live_on(&mut self, index: &Index, out: &mut Out<'_>) -> bool {
        let moment = self.next_moment();
        if moment.is_never() {
            return false;
        }
        // Readings may have moved what the cells wait for. Looked at exactly before time is taken to have passed: else
        // what is late would depend on when somebody looked.
        for cell in self.cells.iter_mut().filter(|cell| cell.next <= moment) {
            cell.next = cell.watch.next(index.rule(cell.rule));
        }
        let next = self.cells.iter().map(|cell| cell.next).min().unwrap_or(Moment::NEVER);
        if next != self.next {
            self.next = next;
            return true;
        }
        self.watermark = self.watermark.max(moment.time);
        match moment.kind {
            Kind::Close | Kind::Timer => self.pass_before(index, moment, out),
            Kind::Reading => self.advance(index, moment.time, out),
        }
        if self.held.is_empty() {
            self.held.shrink_to_fit();
        }
        true
    }

    /// The server's clock was ahead when this device was last heard, and is right again. What was filed under the
    /// wrong time must not make all that follows late.
    pub(super) fn clock_was_ahead(&mut self, index: &Index, record: &Record<'_>) {
        self.heard_at = record.received_at;
        self.newest_received_at = self.newest_received_at.min(record.received_at);
        self.queued = NOT_DUE;
        self.clock = DeviceClock::default();
        if record.time_source != TimeSource::Device && record.time < self.newest {
            self.newest = Timestamp::MIN;
            self.watermark = Timestamp::MIN;
            self.held.clear();
            self.next = Moment::NEVER;
            for cell in &mut self.cells {
                let rule = index.rule(cell.rule);
                cell.watch.forget_readings(rule);
                cell.next = cell.watch.next(rule);
                self.next = self.next.min(cell.next);
            }
        }
    }

    /// A device that changed its type is looked at by other rules.
    fn retype(&mut self, index: &mut Index, device_type: &str, out: &mut Out<'_>) {
        self.device_type = index.word(device_type);
        for cell in self.take_cells() {
            let rule = index.rule(cell.rule);
            match rule.device_type.as_deref().is_none_or(|t| *t == *self.device_type) {
                true => drop(self.add_cell(index, cell.rule, Some((cell.watch, cell.is_counted)))),
                false => self.leave(rule, &cell, out),
            }
        }
    }

    /// Takes the cells of unchanged rules over into another set of rules.
    pub(super) fn adopt(&mut self, old: &Index, new: &Index, out: &mut Out<'_>) {
        let names = old.metric_names();
        for held in &mut self.held {
            let readings = std::mem::take(&mut held.readings);
            let renamed = readings
                .into_iter()
                .filter_map(|(metric, value)| Some((new.metric(names.get(metric as usize)?)?, value)));
            held.readings = renamed.collect();
        }
        for cell in self.take_cells() {
            match new.same_rule(old.rule(cell.rule)) {
                Some(rule) => drop(self.add_cell(new, rule, Some((cell.watch, cell.is_counted)))),
                None => self.leave(old.rule(cell.rule), &cell, out),
            }
        }
    }

    fn take_cells(&mut self) -> Vec<Cell> {
        self.metrics.clear();
        self.by_rule.clear();
        self.feeds.clear();
        self.next = Moment::NEVER;
        std::mem::take(&mut self.cells)
    }

    pub(super) fn group_key(&self, rule: &Rule) -> GroupKey {
        (rule.content_hash, self.tenant.clone())
    }

    /// The steps of a cell: to people, or into the counts of its group.
    fn say(&mut self, rule: &Rule, cell: usize, steps: Steps, out: &mut Out<'_>) {
        if steps.is_empty() {
            return;
        }
        if rule.group.is_none() {
            return out.said.extend(steps.into_iter().map(|step| self.transition(rule, step)));
        }
        for step in steps {
            let change = match step.phase {
                AlertPhase::Firing => 1,
                AlertPhase::Resolved => -1,
                AlertPhase::Pending | AlertPhase::Cancelled => continue,
            };
            self.cells[cell].is_counted = change > 0;
            out.groups.change(self.group_key(rule), step.at, 0, change);
        }
    }

    /// The rule or the device is gone.
    pub(super) fn leave(&self, rule: &Rule, cell: &Cell, out: &mut Out<'_>) {
        match rule.group.is_some() {
            true => {
                out.groups.change(self.group_key(rule), self.newest, -1, -i64::from(cell.is_counted));
            }
            false => self.say_forgotten(&RuleWords::of(rule), &cell.watch, out.said),
        }
    }

    pub(super) fn say_forgotten(&self, rule: &RuleWords, watch: &Watch, out: &mut Vec<AlertTransition>) {
        if let Some((phase, since)) = watch.on_forgotten() {
            let step = Step {
                phase,
                severity: rule.severity,
                at: self.newest,
                since,
                value: rule.threshold,
                is_change: false,
            };
            out.push(self.said(rule, step));
        }
    }

    fn transition(&self, rule: &Rule, step: Step) -> AlertTransition {
        self.said(&RuleWords::of(rule), step)
    }

    fn said(&self, rule: &RuleWords, step: Step) -> AlertTransition {
        let device = rule.subject.as_deref().unwrap_or(&self.name);
        let fingerprint = Fingerprint::of(&self.tenant, &rule.name, device);
        let id = match step.is_change {
            true => TransitionId::of_change(fingerprint, step.severity, step.at),
            false => TransitionId::of(fingerprint, step.phase, step.since),
        };
        AlertTransition {
            id,
            fingerprint,
            tenant: self.tenant.as_ref().into(),
            device: device.into(),
            rule: rule.name.as_ref().into(),
            severity: step.severity,
            phase: step.phase,
            at: step.at,
            since: step.since,
            value: step.value,
            condition: rule.condition.as_ref().into(),
        }
    }

    /// Reads what the next record needs of the device itself, and nothing that has to be waited for.
    pub(super) fn touch(&self) -> u64 {
        let clocks = self.newest.as_micros() ^ self.watermark.as_micros() ^ self.queued;
        let lengths = self.held.len() ^ self.cells.len() ^ self.feeds.len() ^ self.metrics.len();
        clocks as u64 ^ lengths as u64 ^ u64::from(self.name.as_bytes().first().copied().unwrap_or(0))
    }

    /// Reads what it needs of what the device points to.
    pub(super) fn touch_cells(&self) -> u64 {
        let time = |held: Option<&Held>| held.map_or(0, |held| held.time.as_micros() as u64);
        let metric = u64::from(self.metrics.first().copied().unwrap_or(0));
        let feed = u64::from(self.feeds.first().map_or(0, |(metric, ..)| *metric));
        let cells = self.cells.iter().take(4).map(|cell| cell.watch.touch());
        cells.fold(metric ^ feed ^ time(self.held.front()) ^ time(self.held.back()), |a, b| a ^ b)
    }

    pub(super) fn kept(&self) -> usize {
        self.cells.iter().map(|cell| cell.watch.kept()).sum()
    }
}

/// The first whole step at or after an instant.
pub(super) fn step_after(at: Timestamp) -> i64 {
    let micros = at.as_micros();
    micros.div_euclid(DUE_STEP_MICROS) + i64::from(micros.rem_euclid(DUE_STEP_MICROS) > 0)
}

/// The step that an instant has reached.
pub(super) fn step_of(at: Timestamp) -> i64 {
    at.as_micros().div_euclid(DUE_STEP_MICROS)
}

/// When a step is reached.
pub(super) fn start_of(step: i64) -> Timestamp {
    Timestamp::from_micros(step.saturating_mul(DUE_STEP_MICROS))
}

/// What a transition says of its rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RuleWords {
    pub(super) name: Arc<str>,
    condition: Arc<str>,
    severity: Severity,
    threshold: f64,
    /// What alerts name instead of the device.
    subject: Option<Box<str>>,
}

impl RuleWords {
    pub(super) fn of(rule: &Rule) -> Self {
        Self {
            name: rule.name.clone(),
            condition: rule.words().clone(),
            severity: rule.severity(),
            threshold: rule.levels[0].condition.threshold().unwrap_or(0.0),
            subject: rule.subject.clone(),
        }
    }
}
