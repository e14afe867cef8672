//! How many devices a group has in this partition, and on how many its condition holds: counted second by second.
//!
//! Devices have watermarks of their own; their counts need one that they share. It is the partition's: the server's
//! clock, as the receive times of the partition's records and the passing of silent time tell it, less what a record
//! may be late and a little more for its way. A change counts from its event time on; one that comes about further
//! back than the partition's watermark, as of a batch that was kept for a day, counts from now on. So the counts of
//! every second are a function of the partition, and final.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use dunlin_model::Timestamp;
use serde::{Deserialize, Serialize};

use super::CLOCK_UNEVENNESS_MAX;

/// Counts are said at whole seconds.
const STEP: Duration = Duration::from_secs(1);

/// A group: the content of its rule, and the tenant.
pub(crate) type GroupKey = (u64, Arc<str>);

/// What is said of one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupCount {
    pub(crate) group: GroupKey,
    pub(crate) members: u64,
    /// Members on which the condition holds.
    pub(crate) count: u64,
}

/// The counts that changed up to a second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counted {
    /// How often the server's clock was set back.
    pub(crate) era: u32,
    /// All that is before is said.
    pub(crate) up_to: Timestamp,
    /// These are all groups; any other has no members.
    pub(crate) is_whole: bool,
    pub(crate) counts: Vec<GroupCount>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Members {
    members: i64,
    count: i64,
}

impl std::ops::AddAssign for Members {
    fn add_assign(&mut self, other: Self) {
        self.members += other.members;
        self.count += other.count;
    }
}

/// What a checkpoint keeps; the counts themselves are those of the devices in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct GroupsState {
    era: u32,
    up_to: Timestamp,
    coming: Vec<(Timestamp, GroupKey, Members)>,
}

impl Default for GroupsState {
    fn default() -> Self {
        Self { era: 0, up_to: Timestamp::MIN, coming: Vec::new() }
    }
}

impl GroupsState {
    /// Of devices that came from several partitions: whoever listens is told everything anew.
    pub(super) fn moved(self, other: &Self) -> Self {
        Self { era: self.era.max(other.era), up_to: self.up_to.max(other.up_to), coming: Vec::new() }
    }
}

#[derive(Debug)]
pub(super) struct Groups {
    /// As of `up_to`.
    now: HashMap<GroupKey, Members>,
    /// Changes after it, by the second from which on they count.
    coming: BTreeMap<Timestamp, BTreeMap<GroupKey, Members>>,
    up_to: Timestamp,
    era: u32,
    said: Vec<Counted>,
    said_up_to: Timestamp,
    /// Whoever listens knows nothing of this partition yet.
    is_whole_due: bool,
}

impl Default for Groups {
    fn default() -> Self {
        Self {
            now: HashMap::new(),
            coming: BTreeMap::new(),
            up_to: Timestamp::MIN,
            era: 0,
            said: Vec::new(),
            said_up_to: Timestamp::MIN,
            is_whole_due: true,
        }
    }
}

impl Groups {
    pub(super) fn state(&self) -> GroupsState {
        let coming = self
            .coming
            .iter()
            .flat_map(|(at, changes)| changes.iter().map(|(group, change)| (*at, group.clone(), *change)));
        GroupsState { era: self.era, up_to: self.up_to, coming: coming.collect() }
    }

    /// Goes on from a checkpoint, before its devices are counted.
    pub(super) fn restore(state: GroupsState) -> Self {
        let mut groups = Self { era: state.era, up_to: state.up_to, ..Self::default() };
        for (at, group, change) in state.coming {
            // Its devices will be counted as they are after the change.
            let now = groups.now.entry(group.clone()).or_default();
            *now += Members { members: -change.members, count: -change.count };
            *groups.coming.entry(at).or_default().entry(group).or_default() += change;
        }
        groups
    }

    /// A device of the checkpoint.
    pub(super) fn recount(&mut self, group: GroupKey, holds: bool) {
        *self.now.entry(group).or_default() += Members { members: 1, count: i64::from(holds) };
    }

    /// From `at` on there are so many more members, and so many more on which the condition holds.
    pub(super) fn change(&mut self, group: GroupKey, at: Timestamp, members: i64, count: i64) {
        let from = seconds_up(at).max(self.up_to + STEP);
        *self.coming.entry(from).or_default().entry(group).or_default() += Members { members, count };
    }

    /// All changes before `to` are known, by the server's clock; far behind what was known, that was set back.
    pub(super) fn follow(&mut self, to: Timestamp) {
        let to = to.window_start(STEP);
        match to + CLOCK_UNEVENNESS_MAX < self.up_to {
            true => self.set_back(to),
            false => self.advance(to),
        }
    }

    /// All changes before `to` are known.
    pub(super) fn advance(&mut self, to: Timestamp) {
        let to = to.window_start(STEP);
        if to <= self.up_to {
            return;
        }
        while let Some(entry) = self.coming.first_entry().filter(|entry| *entry.key() <= to) {
            let (at, changes) = entry.remove_entry();
            self.up_to = at;
            let mut counts = Vec::with_capacity(changes.len());
            for (group, change) in changes {
                let now = self.now.entry(group.clone()).or_default();
                let was = *now;
                *now += change;
                let now = *now;
                if now.members == 0 {
                    self.now.remove(&group);
                }
                if now != was {
                    counts.push(group_count(group, now));
                }
            }
            if !counts.is_empty() && !self.is_whole_due {
                self.say(Counted { era: self.era, up_to: at, is_whole: false, counts });
            }
            if self.is_whole_due {
                self.say_whole();
            }
        }
        self.up_to = to;
    }

    /// The server's clock was ahead: what was to count from a time that is far off counts from now on.
    fn set_back(&mut self, to: Timestamp) {
        self.era += 1;
        self.up_to = to;
        let mut changes = BTreeMap::<GroupKey, Members>::new();
        for (group, change) in std::mem::take(&mut self.coming).into_values().flatten() {
            *changes.entry(group).or_default() += change;
        }
        if !changes.is_empty() {
            self.coming.insert(to + STEP, changes);
        }
    }

    fn say_whole(&mut self) {
        self.is_whole_due = false;
        let mut counts: Vec<_> =
            self.now.iter().map(|(group, now)| group_count(group.clone(), *now)).collect();
        counts.sort_by(|a, b| a.group.cmp(&b.group));
        self.say(Counted { era: self.era, up_to: self.up_to, is_whole: true, counts });
    }

    fn say(&mut self, counted: Counted) {
        self.said_up_to = counted.up_to;
        self.said.push(counted);
    }

    /// What was counted since this was last asked, with how far it goes.
    pub(super) fn take_said(&mut self) -> Vec<Counted> {
        if self.up_to > Timestamp::MIN {
            if self.is_whole_due {
                self.say_whole();
            } else if self.said_up_to != self.up_to {
                self.say(Counted { era: self.era, up_to: self.up_to, is_whole: false, counts: Vec::new() });
            }
        }
        std::mem::take(&mut self.said)
    }

    /// When the next second is over.
    pub(super) fn next_step(&self) -> Timestamp {
        self.up_to + STEP
    }

    pub(super) fn up_to(&self) -> Timestamp {
        self.up_to
    }
}

fn group_count(group: GroupKey, now: Members) -> GroupCount {
    GroupCount { group, members: now.members.max(0) as u64, count: now.count.max(0) as u64 }
}

/// The first whole second at or after an instant.
fn seconds_up(at: Timestamp) -> Timestamp {
    let start = at.window_start(STEP);
    if start < at { start + STEP } else { start }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn what_was_due_long_ago_turns_no_clock_back_and_the_servers_clock_does() {
        let mut groups = Groups::default();
        groups.follow(at(1_000));
        groups.advance(at(100));
        assert_eq!((groups.up_to, groups.era), (at(1_000), 0));
        groups.follow(at(100));
        assert_eq!((groups.up_to, groups.era), (at(100), 1));
    }
}
