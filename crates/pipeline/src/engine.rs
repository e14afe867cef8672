//! The rules over one partition. A function of the journal alone: the same records in the same order say the same
//! transitions, wherever the run was cut and taken up again.
//!
//! Every device has a watermark of its own: its newest event time less the allowed lateness. So one wrong clock, or
//! a file of last year's data, moves nobody else. Records wait until the watermark has passed them, and the rules see
//! them in the order of event time: in whatever order they came within the lateness, the rules say the same. Records
//! of a device that says no times are in the order of the journal and wait for nothing. A device
//! that falls silent is taken to live on at the pace of the server's clock, as the receive times of the other records
//! of the partition tell it; so waits end when they are due, and not when somebody happens to look.
//!
//! Deliberately absent: IO, a clock, threads.

mod clock; // how far a device's clock is from the server's
mod device; // one device: its order, its rules, what is next
mod due; // when something is due for which device
mod groups; // devices of a group, counted
mod index; // which rules look at a reading
mod name; // compared for every record
mod plan; // what devices with the same rules have in common
mod state; // devices, as they are kept in a checkpoint

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use device::{Device, NOT_DUE, Out, start_of, step_of};
use due::{Due, Dues};
use dunlin_journal::Offset;
use dunlin_model::{AlertTransition, Record, Timestamp};
use groups::Groups;
pub(crate) use groups::{Counted, GroupCount, GroupKey};
use hashbrown::HashTable;
use index::Index;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
pub use state::State;

use crate::{
    copies::{RecentIds, RecentIdsLimits, device_hash},
    rules::RuleSet,
};

/// Records of one partition are stamped by several threads; what is further back than this was stamped by a clock
/// that was set right.
const CLOCK_UNEVENNESS_MAX: Duration = Duration::from_secs(60);

/// Records looked at ahead.
pub(crate) const BLOCK: usize = 32;

/// Entries of deadlines that have been outdated, beyond as many as there are devices.
const TIDY_SPARE: usize = 1_024;

/// How the rules treat time, and how much they may keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// How far a record may lie behind its device's newest one and still count; records wait so long for those before
    /// them.
    pub lateness_millis: u64,
    /// How much longer a window of a silent device waits for data.
    pub idle_grace_seconds: u64,
    /// How much longer than a record may be late the counts of groups wait: for the way of a message.
    pub group_wait_millis: u64,
    /// Records of one device that wait; of more, the oldest no longer does.
    pub held_records_max: usize,
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
            lateness_millis: 1_000,
            idle_grace_seconds: 10,
            group_wait_millis: 1_000,
            held_records_max: 4_096,
            device_ttl_seconds: 86_400,
            devices_max: 1_000_000,
            copies: RecentIdsLimits::default(),
        }
    }
}

/// How long a device's records and deadlines wait, in microseconds: they are added up for every record.
#[derive(Debug, Clone, Copy)]
struct Waits {
    lateness: i64,
    idle_grace: i64,
    device_ttl: i64,
    held_records_max: usize,
    /// Of the counts of groups.
    group: Duration,
}

impl Waits {
    fn of(limits: &Limits) -> Self {
        let micros = |count: u64, of: i64| i64::try_from(count).unwrap_or(i64::MAX).saturating_mul(of);
        Self {
            lateness: micros(limits.lateness_millis, 1_000),
            idle_grace: micros(limits.idle_grace_seconds, 1_000_000),
            device_ttl: micros(limits.device_ttl_seconds, 1_000_000),
            held_records_max: limits.held_records_max.max(1),
            group: Duration::from_millis(limits.lateness_millis.saturating_add(limits.group_wait_millis)),
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

impl Account {
    fn add(&mut self, fate: Fate) {
        self.read += 1;
        match fate {
            Fate::Evaluated => self.evaluated += 1,
            Fate::Late => self.late += 1,
            Fate::Copy => self.copies += 1,
            Fate::Failed => self.failed += 1,
        }
    }
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
    waits: Waits,
    devices_max: usize,
    index: Index,
    copies: RecentIds,
    devices: Vec<Option<Device>>,
    free: Vec<u32>,
    by_name: HashTable<Named>,
    ahead: Ahead,
    /// When something is due for a device, in steps of receive time. Entries that the device has outdated stay until
    /// they come up.
    due: Dues,
    /// Devices by when they were heard, as it was when they were entered: one that was heard since goes back when it
    /// comes up. So the first that was not is the one that was silent longest.
    by_silence: BinaryHeap<Reverse<(Timestamp, u64, u32)>>,
    groups: Groups,
    changed: Changed,
    newest_received: Timestamp,
    accounts: BTreeMap<Box<str>, Account>,
    forgotten: u64,
    evicted: u64,
    broken: Vec<Broken>,
}

/// A device on which a rule broke while nothing came from it. It starts afresh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub tenant: Box<str>,
    pub device: Box<str>,
}

/// What has changed since a checkpoint took it.
#[derive(Debug, Default)]
struct Changed {
    /// A checkpoint has taken everything; before, there is nothing to tell apart.
    is_noted: bool,
    /// Devices that are marked.
    devices: Vec<u32>,
    /// Tenants and names.
    gone: Vec<(Arc<str>, Box<str>)>,
}

impl Changed {
    fn note(&mut self, device: &mut Device, slot: u32) {
        if self.is_noted && !device.is_changed {
            device.is_changed = true;
            self.devices.push(slot);
        }
    }
}

/// Where a device is kept. A part of the hash of its name stands here as well, so that to find it reads nothing of any
/// other.
#[derive(Debug, Clone, Copy)]
struct Named {
    tag: u32,
    slot: u32,
}

impl Named {
    fn may_be(self, hash: u64) -> bool {
        self.tag == hash as u32
    }
}

/// Where the devices of the next records were found. It may be outdated, so that whoever goes by it looks at the name.
#[derive(Debug, Default)]
struct Ahead {
    slots: SmallVec<[Option<u32>; BLOCK]>,
    taken: usize,
}

impl Ahead {
    fn take(&mut self) -> Option<u32> {
        let slot = self.slots.get(self.taken).copied().flatten();
        self.taken += 1;
        slot
    }
}

impl Engine {
    pub fn new(limits: Limits, rules: &RuleSet) -> Self {
        let copies = RecentIds::new(limits.copies);
        Self {
            waits: Waits::of(&limits),
            devices_max: limits.devices_max.max(1),
            index: Index::new(rules),
            copies,
            devices: Vec::new(),
            free: Vec::new(),
            by_name: HashTable::new(),
            ahead: Ahead::default(),
            due: Dues::default(),
            by_silence: BinaryHeap::new(),
            groups: Groups::default(),
            changed: Changed::default(),
            newest_received: Timestamp::MIN,
            accounts: BTreeMap::new(),
            forgotten: 0,
            evicted: 0,
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

    /// Brings near what the next records need, as many as `BLOCK`: their devices lie apart in memory, and to wait for all
    /// of them at once takes as long as to wait for one.
    pub fn look_ahead<'a, 'r: 'a>(&mut self, records: impl Iterator<Item = &'a Record<'r>>) {
        self.ahead.slots.clear();
        self.ahead.taken = 0;
        // One thing after the other for all of them: what has to be waited for is then waited for together.
        let hashed = |record: &'a Record<'r>| (device_hash(record.tenant, record.device), record);
        let records: SmallVec<[_; BLOCK]> = records.take(BLOCK).map(hashed).collect();
        self.copies.look_ahead(&records);
        for (hash, _) in records {
            self.ahead.slots.push(self.by_name.find(hash, |of| of.may_be(hash)).map(|of| of.slot));
        }
        touch_all(&self.devices, self.ahead.slots.iter().flatten().copied());
    }

    /// Takes in the next record; what it brings about is added to `out`.
    pub fn evaluate(&mut self, record: &Record<'_>, offset: Offset, out: &mut Vec<AlertTransition>) -> Fate {
        self.follow_clock(record.received_at);
        self.run_due(out);
        self.follow_groups();
        let (hash, slot) = self.whose(record);
        let fate = match self.copies.observe(record, hash, offset) {
            true => Fate::Copy,
            false => self.contain(record, hash, slot, out),
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
        self.follow_groups();
    }

    /// The counts of groups up to the watermark of the partition, which goes back with the server's clock.
    fn follow_groups(&mut self) {
        if self.index.has_groups() {
            self.groups.follow(self.group_watermark(self.newest_received));
        }
    }

    /// What is at that very instant may still come.
    fn group_watermark(&self, now: Timestamp) -> Timestamp {
        now - self.waits.group - Duration::from_micros(1)
    }

    /// What was counted of groups since this was last asked.
    pub(crate) fn take_counted(&mut self) -> Vec<Counted> {
        match self.index.has_groups() {
            true => self.groups.take_said(),
            false => Vec::new(),
        }
    }

    /// Event time up to which the partition's devices are counted together; `None` while no rule asks for it.
    pub fn watermark(&self) -> Option<Timestamp> {
        self.index.has_groups().then(|| self.groups.up_to()).filter(|up_to| *up_to > Timestamp::MIN)
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
        self.changed = Changed::default();
        let old = std::mem::replace(&mut self.index, index);
        let out = &mut Out { said: out, groups: &mut self.groups };
        for device in self.devices.iter_mut().flatten() {
            // The next checkpoint is whole, and knows of no marks.
            device.is_changed = false;
            device.adopt(&old, &mut self.index, out);
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

    /// Panes and readings that windows keep.
    pub fn window_count(&self) -> usize {
        self.devices.iter().flatten().map(Device::kept).sum()
    }

    /// When silence next brings something about, by the server's clock.
    pub fn next_due(&self) -> Option<Timestamp> {
        let due = Some(self.due.next()).filter(|step| *step != NOT_DUE).map(start_of);
        let counts = self.index.has_groups() && self.groups.up_to() > Timestamp::MIN;
        let count = counts.then(|| self.groups.next_step() + self.waits.group);
        due.into_iter().chain(count).min()
    }

    /// How far the clock of a device is ahead of the server's, in microseconds; below zero, behind. `None` if the
    /// device says no times, or is not known.
    pub fn clock_ahead_micros(&self, tenant: &str, device: &str) -> Option<i64> {
        let slot = self.find(tenant, device, device_hash(tenant, device))?;
        self.devices[slot as usize].as_ref()?.clock.ahead_micros()
    }

    /// Devices forgotten for their silence, from the first record of the journal on.
    pub fn forgotten_count(&self) -> u64 {
        self.forgotten
    }

    /// Devices forgotten for want of room, from the first record of the journal on.
    pub fn evicted_count(&self) -> u64 {
        self.evicted
    }

    /// Devices on which a rule broke as time passed, since this was last asked.
    pub fn take_broken(&mut self) -> Vec<Broken> {
        std::mem::take(&mut self.broken)
    }

    /// A rule that panics costs its own device's state and nothing else.
    fn contain(
        &mut self,
        record: &Record<'_>,
        hash: u64,
        slot: Option<u32>,
        out: &mut Vec<AlertTransition>,
    ) -> Fate {
        let said = out.len();
        match catch_unwind(AssertUnwindSafe(|| self.apply(record, hash, slot, out))) {
            Ok(fate) => fate,
            Err(_) => {
                out.truncate(said);
                if let Some(device) = self.find(record.tenant, record.device, hash) {
                    self.drop_broken(device);
                }
                Fate::Failed
            }
        }
    }

    fn apply(
        &mut self,
        record: &Record<'_>,
        hash: u64,
        slot: Option<u32>,
        out: &mut Vec<AlertTransition>,
    ) -> Fate {
        let slot = slot.unwrap_or_else(|| self.insert(record, hash, out));
        let Some(device) = &mut self.devices[slot as usize] else { return Fate::Failed };
        self.changed.note(device, slot);
        if record.received_at + CLOCK_UNEVENNESS_MAX < device.heard_at {
            device.clock_was_ahead(&self.index, record);
        }
        device.heard_at = device.heard_at.max(record.received_at);
        let out = &mut Out { said: out, groups: &mut self.groups };
        if !device.take(&mut self.index, record, &self.waits, out) {
            return Fate::Late;
        }
        self.schedule(slot);
        Fate::Evaluated
    }

    /// The hash of a record's device, and where it is kept, if it is known.
    fn whose(&mut self, record: &Record<'_>) -> (u64, Option<u32>) {
        if let Some(slot) = self.ahead.take()
            && let Some(device) = &self.devices[slot as usize]
            && device.is(record.tenant, record.device)
        {
            return (device.hash, Some(slot));
        }
        let hash = device_hash(record.tenant, record.device);
        (hash, self.find(record.tenant, record.device, hash))
    }

    fn find(&self, tenant: &str, name: &str, hash: u64) -> Option<u32> {
        let is_it = |of: &Named| {
            of.may_be(hash) && self.devices[of.slot as usize].as_ref().is_some_and(|d| d.is(tenant, name))
        };
        self.by_name.find(hash, is_it).map(|of| of.slot)
    }

    fn insert(&mut self, record: &Record<'_>, hash: u64, out: &mut Vec<AlertTransition>) -> u32 {
        if self.device_count() >= self.devices_max {
            self.forget_one(out);
        }
        let (tenant, device_type) = (self.index.word(record.tenant), self.index.word(record.device_type));
        let device = Device::new(&self.index, hash, tenant, record.device, device_type, record.received_at);
        self.place(device)
    }

    fn place(&mut self, device: Device) -> u32 {
        let (hash, heard_at) = (device.hash, device.heard_at);
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
        let (devices, named) = (&self.devices, Named { tag: hash as u32, slot });
        self.by_name
            .insert_unique(hash, named, |of| devices[of.slot as usize].as_ref().map_or(0, |d| d.hash));
        self.by_silence.push(Reverse((heard_at, hash, slot)));
        self.tidy();
        slot
    }

    /// What devices that are gone have left behind is bounded by what is there.
    fn tidy(&mut self) {
        let entries_max = 2 * self.device_count() + TIDY_SPARE;
        let devices = &self.devices;
        let is_there = |slot: u32, hash: u64| devices[slot as usize].as_ref().is_some_and(|d| d.hash == hash);
        if self.due.len() > entries_max {
            self.due.retain(|due| {
                is_there(due.device, due.hash)
                    && devices[due.device as usize].as_ref().is_some_and(|d| d.queued == due.step)
            });
        }
        if self.by_silence.len() > entries_max {
            self.by_silence.retain(|Reverse((_, hash, slot))| is_there(*slot, *hash));
        }
    }

    fn remove(&mut self, slot: u32) -> Option<Device> {
        let device = self.devices[slot as usize].take()?;
        if let Ok(entry) = self.by_name.find_entry(device.hash, |of| of.slot == slot) {
            entry.remove();
        }
        self.free.push(slot);
        if self.changed.is_noted {
            self.changed.gone.push((device.tenant.clone(), device.name.as_str().into()));
        }
        Some(device)
    }

    /// Notes when the device is to be looked at next: never later than something is due.
    fn schedule(&mut self, slot: u32) {
        let Some(device) = &mut self.devices[slot as usize] else { return };
        if let Some(step) = device.due(&self.index, &self.waits, device.queued - 1) {
            device.queued = step;
            self.due.push(Due { step, hash: device.hash, device: slot });
        }
    }

    /// What is due by now: for most records, nothing.
    #[inline]
    fn run_due(&mut self, out: &mut Vec<AlertTransition>) {
        let now = step_of(self.newest_received);
        if self.due.next() <= now {
            self.run_due_up_to(now, out);
        }
    }

    /// Step by step over all devices: what is counted together is counted at one time.
    #[inline(never)]
    fn run_due_up_to(&mut self, now: i64, out: &mut Vec<AlertTransition>) {
        let mut done = 0;
        while let Some(due) = self.due.pop(now) {
            if done % BLOCK == 0 {
                let coming = self.due.coming(BLOCK).iter().map(|due| due.device);
                touch_all(&self.devices, coming);
            }
            done += 1;
            if self.is_current(due) {
                if self.index.has_groups() {
                    // Something may have been due long ago: that turns no clock back.
                    self.groups.advance(self.group_watermark(start_of(due.step)));
                }
                self.look_at_contained(due, out);
            }
        }
    }

    /// As `contain`, for what silence alone brings about.
    fn look_at_contained(&mut self, due: Due, out: &mut Vec<AlertTransition>) {
        let said = out.len();
        if catch_unwind(AssertUnwindSafe(|| self.look_at(due, out))).is_err() {
            out.truncate(said);
            if let Some(device) = self.drop_broken(due.device) {
                self.broken.push(Broken {
                    tenant: device.tenant.as_ref().into(),
                    device: device.name.as_str().into(),
                });
            }
        }
    }

    /// A device whose state cannot be trusted; what groups count of it can.
    fn drop_broken(&mut self, slot: u32) -> Option<Device> {
        let device = self.remove(slot)?;
        for cell in &device.cells {
            if let Some(rule) = self.index.get(cell.rule).filter(|rule| rule.group.is_some()) {
                let counted = -i64::from(cell.is_counted);
                self.groups.change(device.group_key(rule), device.newest, -1, counted);
            }
        }
        Some(device)
    }

    fn is_current(&self, due: Due) -> bool {
        self.devices[due.device as usize].as_ref().is_some_and(|d| d.hash == due.hash && d.queued == due.step)
    }

    /// One thing that is due. What comes next for the device waits for its turn among those of the others, so that the
    /// order of what is said does not depend on how exactly a deadline was known.
    fn look_at(&mut self, due: Due, out: &mut Vec<AlertTransition>) {
        let Some(device) = &mut self.devices[due.device as usize] else { return };
        self.changed.note(device, due.device);
        let mut all = Out { said: &mut *out, groups: &mut self.groups };
        let is_due = device.due(&self.index, &self.waits, due.step).is_some();
        if is_due && !device.live_on(&mut self.index, &mut all) {
            self.forgotten += 1;
            return self.forget(due.device, out);
        }
        device.queued = NOT_DUE;
        self.schedule(due.device);
    }

    /// Makes room: the device that was silent longest goes.
    fn forget_one(&mut self, out: &mut Vec<AlertTransition>) {
        while let Some(Reverse((heard_at, hash, slot))) = self.by_silence.pop() {
            let Some(device) = self.devices[slot as usize].as_ref().filter(|d| d.hash == hash) else {
                continue;
            };
            match device.heard_at == heard_at {
                true => {
                    self.evicted += 1;
                    return self.forget(slot, out);
                }
                false => self.by_silence.push(Reverse((device.heard_at, hash, slot))),
            }
        }
    }

    /// What a forgotten device was firing would never be resolved: nobody would remember it.
    fn forget(&mut self, slot: u32, out: &mut Vec<AlertTransition>) {
        if let Some(device) = self.remove(slot) {
            let out = &mut Out { said: out, groups: &mut self.groups };
            for cell in &device.cells {
                device.leave(self.index.rule(cell.rule), cell, out);
            }
        }
    }

    fn account(&mut self, tenant: &str, fate: Fate) {
        match self.accounts.get_mut(tenant) {
            Some(account) => account.add(fate),
            None => self.accounts.entry(tenant.into()).or_default().add(fate),
        }
    }
}

/// Brings devices near, and what they point to.
fn touch_all(devices: &[Option<Device>], slots: impl Iterator<Item = u32> + Clone) {
    let them = || slots.clone().filter_map(|slot| devices[slot as usize].as_ref());
    let near = them().map(Device::touch).fold(0, |a, b| a ^ b);
    let far = them().map(Device::touch_more).fold(0, |a, b| a ^ b);
    std::hint::black_box((near, far));
}

#[cfg(test)]
mod tests;
