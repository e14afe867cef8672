//! Rules over groups: what the partitions counted of their devices, put together in event time.
//!
//! A group is what a rule looks at: a tenant's devices by name and type. Every partition says how many of its members
//! there are and on how many the condition holds, second by second, up to its watermark. A second is judged when all
//! partitions have passed it, so it does not matter in which order they came; the rule on the counts runs in an engine
//! like any other, with the group in a device's place.
//!
//! A function of what was said, in its order: no IO, no clock.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use dunlin_journal::Offset;
use dunlin_model::{AlertTransition, MessageId, Reading, Readings, Record, TimeSource, Timestamp, ValueRef};
use serde::{Deserialize, Serialize};

use crate::{
    engine::{Counted, Engine, GroupCount, GroupKey, Limits, State},
    rules::{GROUP_METRICS, RuleSet, group_key},
};

/// Nobody waits for a partition that has said nothing for so long while others did: its process is gone. What it said
/// last stands.
const SILENT_PARTITION_AFTER: Duration = Duration::from_secs(60);
/// Counts that wait for a partition that is behind; beyond it, it is not waited for.
const WAITING_MAX: usize = 1_000_000;
/// Time that goes back by more was a server's clock that is right again.
const SET_BACK_MIN: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_secs(1);

/// What one partition of telemetry says of groups, as the topic `partials` carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Partial {
    pub(crate) partition: u16,
    /// Partitions of telemetry.
    pub(crate) of: u16,
    pub(crate) counted: Counted,
}

const PARTIAL_VERSION: u8 = 1;

impl Partial {
    pub(crate) fn encode(&self) -> Vec<u8> {
        // Writing into memory does not fail.
        postcard::to_extend(self, vec![PARTIAL_VERSION]).unwrap_or_default()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first() {
            Some((&PARTIAL_VERSION, rest)) => postcard::from_bytes(rest).ok(),
            _ => None,
        }
    }
}

/// The counts of all partitions, and the rules on them.
#[derive(Debug)]
pub(crate) struct Merge {
    engine: Engine,
    parts: Vec<Part>,
    judged_up_to: Timestamp,
    /// Groups whose counts changed since they were last judged.
    touched: BTreeSet<GroupKey>,
    /// When the newest of what was said came into the journal.
    heard_at: Timestamp,
}

/// What one partition said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Part {
    era: u32,
    up_to: Timestamp,
    heard_at: Timestamp,
    /// As of the last second that was judged.
    counts: BTreeMap<GroupKey, (u64, u64)>,
    coming: VecDeque<Counted>,
}

impl Default for Part {
    fn default() -> Self {
        Self {
            era: 0,
            up_to: Timestamp::MIN,
            heard_at: Timestamp::MIN,
            counts: BTreeMap::new(),
            coming: VecDeque::new(),
        }
    }
}

/// As it stands in a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MergeState {
    engine: State,
    parts: Vec<Part>,
    judged_up_to: Timestamp,
    heard_at: Timestamp,
}

impl Merge {
    pub(crate) fn new(rules: &RuleSet) -> Self {
        Self {
            engine: Engine::new(limits(), &rules.groups()),
            parts: Vec::new(),
            judged_up_to: Timestamp::MIN,
            touched: BTreeSet::new(),
            heard_at: Timestamp::MIN,
        }
    }

    pub(crate) fn state(&self) -> MergeState {
        MergeState {
            engine: self.engine.state(),
            parts: self.parts.clone(),
            judged_up_to: self.judged_up_to,
            heard_at: self.heard_at,
        }
    }

    pub(crate) fn restore(
        rules: &RuleSet,
        state: MergeState,
        out: &mut Vec<AlertTransition>,
    ) -> Option<Self> {
        let mut merge = Self {
            engine: Engine::restore(limits(), &rules.groups(), vec![state.engine], out)?,
            parts: state.parts,
            judged_up_to: state.judged_up_to,
            touched: BTreeSet::new(),
            heard_at: state.heard_at,
        };
        merge.touch_all();
        Some(merge)
    }

    /// Goes on with other rules; what one that is gone was firing is resolved.
    pub(crate) fn reload(&mut self, rules: &RuleSet, out: &mut Vec<AlertTransition>) {
        self.engine.reload(&rules.groups(), out);
        self.touch_all();
    }

    /// What was counted may be another rule's news.
    fn touch_all(&mut self) {
        self.touched.extend(self.parts.iter().flat_map(|part| part.counts.keys().cloned()));
    }

    /// Event time up to which groups are judged.
    pub(crate) fn judged_up_to(&self) -> Timestamp {
        self.judged_up_to
    }

    /// Takes in what a partition said; `at` is when it came into the journal.
    pub(crate) fn take(&mut self, partial: Partial, at: Timestamp, out: &mut Vec<AlertTransition>) {
        let Partial { partition, of, counted } = partial;
        if self.parts.len() != usize::from(of) {
            // Devices have moved: every partition counts anew, and says so as a whole.
            let groups: Vec<_> = self.parts.iter().flat_map(|part| part.counts.keys().cloned()).collect();
            self.touched.extend(groups);
            self.parts = vec![Part { heard_at: at, ..Part::default() }; usize::from(of)];
        }
        if at > self.heard_at + SILENT_PARTITION_AFTER {
            // Nobody was heard: that singles nobody out.
            self.parts.iter_mut().for_each(|part| part.heard_at = at);
        }
        let Some(part) = self.parts.get_mut(usize::from(partition)) else { return };
        self.heard_at = self.heard_at.max(at);
        part.heard_at = part.heard_at.max(at);
        // Said before: a partition that was begun anew says the same again.
        if (counted.era, counted.up_to) < (part.era, part.up_to) {
            return;
        }
        (part.era, part.up_to) = (counted.era, counted.up_to);
        if !counted.counts.is_empty() || counted.is_whole {
            part.coming.push_back(counted);
        }
        self.judge(out);
    }

    /// Judges every second that all have passed.
    fn judge(&mut self, out: &mut Vec<AlertTransition>) {
        let Some(up_to) = self.passed() else { return };
        if up_to + SET_BACK_MIN < self.judged_up_to {
            self.judged_up_to = up_to;
        }
        if up_to <= self.judged_up_to {
            return;
        }
        loop {
            let next = self.parts.iter().filter_map(|part| part.coming.front()).map(|c| c.up_to).min();
            let Some(next) = next.filter(|next| *next <= up_to) else { break };
            self.apply(next);
            // What came too late for its own second counts from the next one on.
            if next > self.judged_up_to {
                self.judge_touched(next, out);
            }
        }
        if !self.touched.is_empty() {
            self.judge_touched(self.judged_up_to.max(up_to - STEP) + STEP, out);
        }
        self.judged_up_to = up_to;
        self.engine.tick(up_to, up_to, out);
    }

    /// The second that all partitions have passed who are waited for.
    fn passed(&self) -> Option<Timestamp> {
        let waiting: usize = self.parts.iter().flat_map(|part| &part.coming).map(|c| c.counts.len()).sum();
        let is_waited_for = |part: &&Part| part.heard_at + SILENT_PARTITION_AFTER >= self.heard_at;
        let passed = self.parts.iter().filter(is_waited_for).map(|part| part.up_to);
        let passed = match waiting > WAITING_MAX {
            false => passed.min(),
            true => self.parts.iter().map(|part| part.up_to).max(),
        };
        passed.filter(|up_to| *up_to > Timestamp::MIN)
    }

    fn apply(&mut self, at: Timestamp) {
        for part in &mut self.parts {
            while let Some(counted) = part.coming.pop_front_if(|counted| counted.up_to <= at) {
                if counted.is_whole {
                    self.touched.extend(std::mem::take(&mut part.counts).into_keys());
                }
                for GroupCount { group, members, count } in counted.counts {
                    match members {
                        0 => part.counts.remove(&group),
                        _ => part.counts.insert(group.clone(), (members, count)),
                    };
                    self.touched.insert(group);
                }
            }
        }
    }

    fn judge_touched(&mut self, at: Timestamp, out: &mut Vec<AlertTransition>) {
        self.judged_up_to = at;
        for group in std::mem::take(&mut self.touched) {
            let of_parts = self.parts.iter().filter_map(|part| part.counts.get(&group));
            let (members, count) = of_parts.fold((0, 0), |(m, c), (members, count)| (m + members, c + count));
            let share = if members == 0 { 0.0 } else { count as f64 / members as f64 * 100.0 };
            let values = [ValueRef::F64(share), ValueRef::I64(count as i64), ValueRef::I64(members as i64)];
            let readings = GROUP_METRICS.into_iter().zip(values);
            let record = Record {
                tenant: &group.1,
                device: &group_key(group.0),
                device_type: "default",
                message_id: MessageId::None,
                received_at: at,
                device_time: None,
                time: at,
                time_source: TimeSource::Server,
                readings: readings.map(|(metric, value)| Reading { metric, value }).collect::<Readings<'_>>(),
            };
            // Without an id and without a device's time, nothing of it is taken for a copy.
            self.engine.evaluate(&record, Offset::ZERO, out);
        }
    }
}

/// Counts come in the order of time, and a group is forgotten with its rule.
fn limits() -> Limits {
    Limits {
        lateness_millis: 0,
        idle_grace_seconds: 0,
        device_ttl_seconds: u64::MAX / 4_000_000,
        ..Limits::default()
    }
}

/// All of it in one place, with one partition: for a rule's own tests and for back-tests.
#[derive(Debug)]
pub(crate) struct Alone {
    engine: Engine,
    merge: Merge,
}

impl Alone {
    pub(crate) fn new(limits: Limits, rules: &RuleSet) -> Self {
        Self { engine: Engine::new(limits, rules), merge: Merge::new(rules) }
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    pub(crate) fn evaluate(&mut self, record: &Record<'_>, offset: Offset, out: &mut Vec<AlertTransition>) {
        self.engine.evaluate(record, offset, out);
        self.merge_counted(record.received_at, out);
    }

    pub(crate) fn tick(&mut self, now: Timestamp, out: &mut Vec<AlertTransition>) {
        self.engine.tick(now, now, out);
        self.merge_counted(now, out);
    }

    fn merge_counted(&mut self, at: Timestamp, out: &mut Vec<AlertTransition>) {
        for counted in self.engine.take_counted() {
            self.merge.take(Partial { partition: 0, of: 1, counted }, at, out);
        }
    }
}

#[cfg(test)]
mod tests;
