//! One device: what came and is not yet in order, what the rules know of it, and what is next.

use std::{collections::VecDeque, sync::Arc};

use dunlin_model::{
    AlertPhase, AlertTransition, Fingerprint, Reading, Record, Severity, TimeSource, Timestamp, TransitionId,
    ValueRef,
};
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use xxhash_rust::xxh3::Xxh3;

use super::{
    Waits,
    clock::DeviceClock,
    groups::{GroupKey, Groups},
    index::{ANY, Index},
    name::{Name, is_same},
    plan::Plan,
};
use crate::{
    rules::{Rule, Scalar, number},
    watch::{Ended, Ends, Feed, Fixed, Kind, Lengths, Moment, Step, Steps, Verdict, Watch},
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

/// What a reading in the order of its device needs stands first and together: there are more devices than caches hold.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Device {
    pub(super) hash: u64,
    pub(super) name: Name,
    pub(super) tenant: Arc<str>,
    plan: Arc<Plan>,
    /// The entry among the due ones that counts.
    pub(super) queued: i64,
    /// The newest event time, and when it came.
    pub(super) newest: Timestamp,
    pub(super) newest_received_at: Timestamp,
    pub(super) heard_at: Timestamp,
    /// Records from before it are late; the rules have seen what is before it.
    pub(super) watermark: Timestamp,
    /// Not later than what the cells and the windows next wait for.
    pub(super) next: Moment,
    pub(super) device_type: Arc<str>,
    /// By the numbers that the plan gives them, as are the cells.
    pub(super) windows: SmallVec<[Fixed; 1]>,
    /// Not as the last checkpoint has it.
    pub(super) is_changed: bool,
    /// Records at or after the watermark, by time.
    pub(super) held: VecDeque<Held>,
    pub(super) clock: DeviceClock,
    /// What the cells of rules that are a single comparison last said, so that nobody has to go there to hear it again.
    settled: SmallVec<[Option<Verdict>; 16]>,
    pub(super) cells: Vec<Cell>,
    /// Not later than what the cells next wait for, but for windows that have something in them.
    cells_next: Moment,
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

impl Cell {
    pub(super) fn new(rule: u32, watch: Watch, is_counted: bool) -> Self {
        Self { rule, watch, next: Moment::NEVER, is_counted }
    }
}

/// Cells that have to be looked at.
type Touched = SmallVec<[u32; 8]>;

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

    fn touch(&self) -> u64 {
        let last = self.readings.last().map_or(0, |(metric, _)| *metric);
        self.time.as_micros() as u64 ^ u64::from(last)
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
        index: &Index,
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
            cells_next: Moment::NEVER,
            is_changed: false,
            queued: NOT_DUE,
            plan: index.plans.none().clone(),
            windows: SmallVec::new(),
            cells: Vec::new(),
            settled: SmallVec::new(),
        }
    }

    #[inline]
    pub(super) fn is(&self, tenant: &str, name: &str) -> bool {
        self.name.is(name) && is_same(self.tenant.as_bytes(), tenant.as_bytes())
    }

    /// Takes in a record; false if it is late.
    pub(super) fn take(
        &mut self,
        index: &mut Index,
        record: &Record<'_>,
        waits: &Waits,
        out: &mut Out<'_>,
    ) -> bool {
        let (time, lateness) = self.place(record, waits);
        if time < self.watermark {
            return false;
        }
        if !is_same(self.device_type.as_bytes(), record.device_type.as_bytes()) {
            self.retype(index, record.device_type, out);
        }
        if time >= self.newest {
            self.newest = time;
            self.newest_received_at = record.received_at;
        }
        let to = Timestamp::from_micros(self.newest.as_micros().saturating_sub(lateness));
        match self.held.is_empty() && time <= to {
            true => self.take_at_once(index, record, time, out),
            false => self.hold(index, record, time, waits),
        }
        self.watermark = self.watermark.max(to);
        self.advance(index, self.watermark, out);
        true
    }

    /// A record before which nothing can come any more.
    fn take_at_once(&mut self, index: &mut Index, record: &Record<'_>, time: Timestamp, out: &mut Out<'_>) {
        let mut touched = Touched::new();
        if index.has_any() {
            self.pass_before(index, Moment { time, kind: Kind::Reading }, out);
            self.feed(index, ANY, time, None, &mut touched, out);
        }
        for reading in &record.readings {
            if let Some(metric) = index.metric(reading.metric) {
                self.pass_before(index, Moment { time, kind: Kind::Reading }, out);
                self.feed(index, metric, time, Some(reading.value), &mut touched, out);
            }
        }
        self.settle(index, time, touched, out);
    }

    /// The time of a record in the order of its device, and how much may still come before it. A device that says no
    /// times has one order, that of arrival, and the journal keeps it: nothing has to be waited for.
    fn place(&mut self, record: &Record<'_>, waits: &Waits) -> (Timestamp, i64) {
        let time = self.clock.correct(record);
        let says_no_time = matches!(record.time_source, TimeSource::Server | TimeSource::ServerAsTooOld);
        match says_no_time && !self.clock.is_known() {
            true => (time.max(self.newest), 0),
            false => (time, waits.lateness),
        }
    }

    fn hold(&mut self, index: &Index, record: &Record<'_>, time: Timestamp, waits: &Waits) {
        let numbered = |reading: &Reading<'_>| Some((index.metric(reading.metric)?, reading.value.into()));
        let readings: HeldReadings = record.readings.iter().filter_map(numbered).collect();
        if readings.is_empty() && !index.has_any() {
            return;
        }
        let held = Held { time, readings };
        let at = self.held.iter().rposition(|other| !other.is_after(&held)).map_or(0, |n| n + 1);
        self.held.insert(at, held);
        // Beyond it, the oldest is taken to be complete.
        if self.held.len() > waits.held_records_max
            && let Some(oldest) = self.held.front()
        {
            self.watermark = self.watermark.max(oldest.time);
        }
    }

    /// Brings everything up to `to`, in the order of event time.
    #[inline]
    pub(super) fn advance(&mut self, index: &mut Index, to: Timestamp, out: &mut Out<'_>) {
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

    /// What waits for a moment up to `before`, in order: mostly nothing.
    #[inline]
    fn pass_before(&mut self, index: &Index, before: Moment, out: &mut Out<'_>) {
        while self.next <= before && !self.next.is_never() {
            self.pass(index, self.next, out);
        }
    }

    #[inline(never)]
    fn pass(&mut self, index: &Index, moment: Moment, out: &mut Out<'_>) {
        let mut touched = Touched::new();
        let (ended, windows_next) = self.end_windows(moment, &mut touched);
        if self.cells_next <= moment {
            let waited = |(_, cell): &(u32, &Cell)| cell.next <= moment;
            touched.extend((0u32..).zip(&self.cells).filter(waited).map(|(n, _)| n));
        }
        sort_and_dedup(&mut touched);
        for n in touched {
            let ends = Ends { windows: &self.windows, ended: &ended };
            let cell = &mut self.cells[n as usize];
            let rule = index.rule(cell.rule);
            let steps = cell.watch.pass(rule, moment, ends);
            self.note(rule, n);
            self.say(rule, n as usize, steps, out);
        }
        // Exactly, as what was put off must not hold up what comes before it.
        if !self.cells_next.is_never() {
            self.cells_next = self.cells.iter().map(|cell| cell.next).min().unwrap_or(Moment::NEVER);
        }
        self.next = self.cells_next.min(windows_next);
    }

    /// Closes the windows that end at a moment; also says when the next one does. `touched`: who has news of it.
    fn end_windows(
        &mut self,
        moment: Moment,
        touched: &mut Touched,
    ) -> (SmallVec<[(u32, Ended); 1]>, Moment) {
        let (mut ended, mut next) = (SmallVec::new(), Moment::NEVER);
        for ((number, window), plan) in (0..).zip(&mut self.windows).zip(self.plan.windows()) {
            if end_of(window, plan.of) <= moment
                && let Some(closed) = window.close(plan.of)
            {
                for (aggregate, single) in &plan.singles {
                    let verdict = Verdict::of(&single.threshold, closed.totals.result(*aggregate));
                    if self.settled[single.cell as usize] != Some(verdict) {
                        touched.push(single.cell);
                    }
                }
                touched.extend_from_slice(&plan.others);
                ended.push((number, closed));
            }
            next = next.min(end_of(window, plan.of));
        }
        (ended, next)
    }

    /// After a cell has changed.
    fn note(&mut self, rule: &Rule, cell: u32) {
        let of = &mut self.cells[cell as usize];
        of.next = of.watch.next(rule, &self.windows);
        self.cells_next = self.cells_next.min(of.next);
        self.settled[cell as usize] = of.watch.settled();
    }

    /// The readings of one record, to all rules that look at them.
    fn apply(&mut self, index: &mut Index, held: &Held, out: &mut Out<'_>) {
        let mut touched = Touched::new();
        if index.has_any() {
            self.feed(index, ANY, held.time, None, &mut touched, out);
        }
        for (metric, value) in &held.readings {
            self.feed(index, *metric, held.time, Some(value.borrowed()), &mut touched, out);
        }
        self.settle(index, held.time, touched, out);
    }

    /// After all readings of one record. `touched`: who has news of them, mostly nobody.
    #[inline]
    fn settle(&mut self, index: &Index, time: Timestamp, touched: Touched, out: &mut Out<'_>) {
        if !touched.is_empty() {
            self.settle_touched(index, time, touched, out);
        }
    }

    #[inline(never)]
    fn settle_touched(&mut self, index: &Index, time: Timestamp, mut touched: Touched, out: &mut Out<'_>) {
        sort_and_dedup(&mut touched);
        for n in touched {
            let cell = &mut self.cells[n as usize];
            let rule = index.rule(cell.rule);
            let steps = cell.watch.settle(rule, time);
            self.note(rule, n);
            self.say(rule, n as usize, steps, out);
        }
        self.next = self.next.min(self.cells_next);
    }

    fn feed(
        &mut self,
        index: &mut Index,
        metric: u32,
        time: Timestamp,
        value: Option<ValueRef<'_>>,
        touched: &mut Touched,
        out: &mut Out<'_>,
    ) {
        let at = match self.plan.find(metric) {
            Some(at) => at,
            None => self.look_up(index, metric, time, out),
        };
        let ways = self.plan.ways(at);
        if let Some(number) = value.and_then(number) {
            for (window, of) in &ways.windows {
                let window = &mut self.windows[*window as usize];
                if window.add(*of, time, number) {
                    self.next = self.next.min(end_of(window, *of));
                }
            }
            for single in &ways.singles {
                if self.settled[single.cell as usize] != Some(Verdict::of(&single.threshold, number)) {
                    let cell = &mut self.cells[single.cell as usize];
                    if cell.watch.take(index.rule(cell.rule), Feed::default(), time, value) {
                        touched.push(single.cell);
                    }
                }
            }
        }
        for (n, feed) in &ways.others {
            let cell = &mut self.cells[*n as usize];
            let has_news = cell.watch.take(index.rule(cell.rule), *feed, time, value);
            // A session waits from here on, whatever else the cell waits for.
            if has_news || feed.is_window {
                touched.push(*n);
            }
        }
    }

    /// Makes the cells of the rules on a metric that the device sends for the first time; where its readings go.
    #[cold]
    fn look_up(&mut self, index: &mut Index, metric: u32, time: Timestamp, out: &mut Out<'_>) -> usize {
        let mut rules = index.rules_for(metric, &self.tenant, &self.device_type, self.name.as_str());
        rules.retain(|rule| !self.plan.has_rule(*rule));
        let mut numbers = HashMap::<(u32, Lengths), u32>::new();
        let mut cells = Vec::with_capacity(rules.len());
        for number in rules {
            let rule = index.rule(number);
            // Rules that come to the device together share a window: it will have seen the same for all of them.
            let watch = Watch::new(rule, |metric, of| {
                let fresh = (self.windows.len() + numbers.len()) as u32;
                *numbers.entry((index.metric(metric).unwrap_or(ANY), of)).or_insert(fresh)
            });
            if rule.group.is_some() {
                out.groups.change(self.group_key(rule), time, 1, 0);
            }
            cells.push(Cell::new(number, watch, false));
        }
        self.windows.resize_with(self.windows.len() + numbers.len(), Fixed::default);
        self.add_cells(index, Some(metric), cells);
        self.plan.find(metric).unwrap_or_default()
    }

    /// Adds cells as they were kept, with the windows that they had.
    pub(super) fn add_kept(&mut self, index: &mut Index, mut cells: Vec<Cell>, windows: &[Fixed]) {
        let mut moved = HashMap::<u32, u32>::new();
        for number in cells.iter_mut().flat_map(|cell| cell.watch.windows_mut()) {
            *number = *moved.entry(*number).or_insert_with(|| {
                self.windows.push(windows[*number as usize].clone());
                (self.windows.len() - 1) as u32
            });
        }
        self.add_cells(index, None, cells);
    }

    fn add_cells(&mut self, index: &mut Index, looked_up: Option<u32>, cells: Vec<Cell>) {
        self.plan = index.plan_with(&self.plan, looked_up, cells.iter().map(|cell| (cell.rule, &cell.watch)));
        for cell in cells {
            let (n, rule) = (self.cells.len() as u32, index.rule(cell.rule));
            self.cells.push(cell);
            self.settled.push(None);
            self.note(rule, n);
        }
        self.next = self.next.min(self.cells_next).min(self.windows_next());
    }

    fn windows_next(&self) -> Moment {
        let ends = self.windows.iter().zip(self.plan.windows()).map(|(window, plan)| end_of(window, plan.of));
        ends.min().unwrap_or(Moment::NEVER)
    }

    /// What comes next: a held record, or what the rules wait for.
    fn next_moment(&self) -> Moment {
        let held = self.held.front().map(|held| Moment { time: held.time, kind: Kind::Reading });
        held.map_or(self.next, |held| held.min(self.next))
    }

    /// The step of receive time at which silence brings about what is next, or the device is forgotten, if that is not
    /// after `up_to`.
    ///
    /// A silent device is taken to live on at the pace of the server's clock. A window waits a little longer, as a link
    /// that was down brings what belongs into it.
    pub(super) fn due(&self, index: &Index, waits: &Waits, up_to: i64) -> Option<i64> {
        let moment = self.next_moment();
        if !moment.is_never() {
            let grace = if moment.kind == Kind::Close { waits.idle_grace } else { 0 };
            let ahead = moment.time.as_micros().saturating_sub(self.newest.as_micros());
            // After the instant itself: a reading at the end of a wait comes in time.
            let after = i64::from(moment.kind == Kind::Timer);
            let wait = waits.lateness.saturating_add(grace).saturating_add(after);
            let at = self.newest_received_at.as_micros().saturating_add(ahead).saturating_add(wait);
            // A division costs more than the rest.
            return (at <= start_of(up_to).as_micros()).then(|| step_after(Timestamp::from_micros(at)));
        }
        let forgotten = self.heard_at.as_micros().saturating_add(waits.device_ttl);
        if forgotten > start_of(up_to).as_micros() {
            return None;
        }
        // Nobody would notice that it speaks again.
        let is_missed = |cell: &Cell| cell.watch.is_firing() && index.rule(cell.rule).watches_silence();
        (!self.cells.iter().any(is_missed)).then(|| step_after(Timestamp::from_micros(forgotten)))
    }

    /// Takes silence to have lasted until what is next; false if nothing is.
    pub(super) fn live_on(&mut self, index: &mut Index, out: &mut Out<'_>) -> bool {
        let moment = self.next_moment();
        if moment.is_never() {
            return false;
        }
        // Readings may have moved what the cells wait for. Looked at exactly before time is taken to have passed: else
        // what is late would depend on when somebody looked.
        for cell in self.cells.iter_mut().filter(|cell| cell.next <= moment) {
            cell.next = cell.watch.next(index.rule(cell.rule), &self.windows);
        }
        self.cells_next = self.cells.iter().map(|cell| cell.next).min().unwrap_or(Moment::NEVER);
        let next = self.cells_next.min(self.windows_next());
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
            self.windows.fill(Fixed::default());
            self.cells_next = Moment::NEVER;
            for n in 0..self.cells.len() {
                let rule = index.rule(self.cells[n].rule);
                self.cells[n].watch.forget_readings(rule);
                self.note(rule, n as u32);
            }
            self.next = self.cells_next;
        }
    }

    /// A device that changed its type is looked at by other rules.
    fn retype(&mut self, index: &mut Index, device_type: &str, out: &mut Out<'_>) {
        self.device_type = index.word(device_type);
        let (mut cells, windows) = self.take_cells(index);
        cells.retain(|cell| {
            let rule = index.rule(cell.rule);
            let is_on = rule.device_type.as_deref().is_none_or(|t| *t == *self.device_type);
            if !is_on {
                self.leave(rule, cell, out);
            }
            is_on
        });
        self.add_kept(index, cells, &windows);
    }

    /// Takes the cells of unchanged rules over into another set of rules.
    pub(super) fn adopt(&mut self, old: &Index, new: &mut Index, out: &mut Out<'_>) {
        let names = old.metric_names();
        for held in &mut self.held {
            let readings = std::mem::take(&mut held.readings);
            let renamed = readings
                .into_iter()
                .filter_map(|(metric, value)| Some((new.metric(names.get(metric as usize)?)?, value)));
            held.readings = renamed.collect();
        }
        let (mut cells, windows) = self.take_cells(new);
        cells.retain_mut(|cell| match new.same_rule(old.rule(cell.rule)) {
            Some(rule) => {
                cell.rule = rule;
                true
            }
            None => {
                self.leave(old.rule(cell.rule), cell, out);
                false
            }
        });
        self.add_kept(new, cells, &windows);
    }

    fn take_cells(&mut self, index: &Index) -> (Vec<Cell>, SmallVec<[Fixed; 1]>) {
        self.plan = index.plans.none().clone();
        self.settled.clear();
        (self.next, self.cells_next) = (Moment::NEVER, Moment::NEVER);
        (std::mem::take(&mut self.cells), std::mem::take(&mut self.windows))
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
        let device = rule.subject.as_deref().unwrap_or(self.name.as_str());
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
        let places = self.windows.len() ^ self.held.len() ^ usize::from(self.is_changed);
        self.hash ^ self.watermark.as_micros() as u64 ^ places as u64
    }

    /// Reads what it needs of what the device points to.
    pub(super) fn touch_more(&self) -> u64 {
        let windows = self.windows.iter().take(4).map(Fixed::touch);
        let held = [self.held.front(), self.held.back()].into_iter().flatten().map(Held::touch);
        windows.chain(held).fold(0, |a, b| a ^ b)
    }

    /// Panes and readings that windows keep.
    pub(super) fn kept(&self) -> usize {
        let of_cells = self.cells.iter().map(|cell| cell.watch.kept());
        of_cells.chain(self.windows.iter().map(Fixed::len)).sum()
    }
}

/// When the next of these windows ends, if there is anything in it.
fn end_of(window: &Fixed, of: Lengths) -> Moment {
    Moment::new(window.next_end(of), Kind::Close)
}

fn sort_and_dedup(touched: &mut Touched) {
    if touched.len() > 1 {
        touched.sort_unstable();
        touched.dedup();
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
