//! Which messages are copies of one that came before.
//!
//! Every device has a memory of its own for each of the three things that tell a copy: packets, given ids, contents.
//! It holds the last sightings, so however much one device says, it pushes out nothing of another's. Only when all
//! of the partition together is more than `recent_ids_max` do the oldest go, whosever they are.
//!
//! The answer is a function of the journal alone, so the store and the rules agree, and a replay decides as the first
//! run did. A start goes on from a snapshot of the memory; `snapshot` says how.

mod ring; // the last sightings of one kind of one device
mod snapshot; // the memory on disk

use std::{collections::VecDeque, time::Duration};

use dunlin_journal::Offset;
use dunlin_model::{MessageId, Record, TimeSource, Timestamp, ValueRef};
use indexmap::IndexMap;
use ring::{Ring, STRETCHES_APART, Sighting, ticks};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
pub(crate) use snapshot::{Keeper, Snapshots};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::engine::BLOCK;

/// Packets a device is remembered by: as many as an MQTT client may have unanswered.
const PACKETS_MAX: usize = 256;
/// Ids of its own, or of HTTP requests, that a device is remembered by.
const GIVEN_MAX: usize = 1_024;
/// Contents with the device's own time that it is remembered by.
const CONTENTS_MAX: usize = 256;
/// How long a delivery may be overtaken by its own repetition, on another connection.
const OVERTAKEN_MAX: Duration = Duration::from_secs(60);
/// A device counts as so many ids against the bound: what its place in the table takes.
const DEVICE_IDS: u64 = 8;
/// What is forgotten at once where the bound is passed: one id in so many.
const FORGOTTEN_PART: u64 = 8;
/// Offsets are told apart by stretches of which so many make `recent_ids_max`.
const STRETCHES_IN_ALL: u64 = 64;
/// The newest stretches; nothing is known of what is further back.
const STRETCHES_MAX: u64 = 1 << 20;
const _: () = assert!(STRETCHES_MAX * 2 <= STRETCHES_APART);

/// How much is remembered to recognise copies. The store and the rules go by the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecentIdsLimits {
    /// How long after a packet another one of the device with DUP, that id and that payload is its repetition. Short:
    /// the packet ids of MQTT come round, and a repetition of what was never heard must not be taken for a copy.
    pub packet_minutes: u64,
    /// How long a message with an id of its own, or of the device's own time, may take to come again.
    pub id_hours: u64,
    /// Ids remembered of a partition. A device counts as eight more.
    pub recent_ids_max: u64,
}

impl Default for RecentIdsLimits {
    fn default() -> Self {
        Self { packet_minutes: 60, id_hours: 24, recent_ids_max: 3_500_000 }
    }
}

/// What the devices of one partition said last.
#[derive(Debug)]
pub struct RecentIds {
    limits: RecentIdsLimits,
    packet_ticks_max: i64,
    id_ticks_max: i64,
    /// One beside the other, as all are looked at when the oldest ids go.
    devices: IndexMap<u64, Device, foldhash::fast::FixedState>,
    len: u64,
    /// Ids by stretch of offsets, from `stretch_first` on.
    stretches: VecDeque<u32>,
    stretch_first: u64,
    stretch_bits: u32,
}

#[derive(Debug, Default)]
struct Device {
    packets: Ring,
    given: Ring,
    contents: Ring,
    /// None of the contents is of a later time: one that is need not be looked for.
    contents_up_to: Timestamp,
    /// So many contents from now on, their times are not known, as they are from before the start.
    untimed: u16,
    /// So many of the coming first deliveries may find that their own repetition came before them.
    early: u16,
}

impl Device {
    /// Whether a content of that time may be among those that came.
    fn may_know(&self, time: Timestamp) -> bool {
        self.untimed > 0 || time <= self.contents_up_to
    }

    fn rings(&mut self) -> [&mut Ring; 3] {
        [&mut self.packets, &mut self.given, &mut self.contents]
    }
}

impl RecentIds {
    pub fn new(limits: RecentIdsLimits) -> Self {
        Self {
            limits,
            packet_ticks_max: ticks(Duration::from_secs(limits.packet_minutes.saturating_mul(60))),
            id_ticks_max: ticks(Duration::from_secs(limits.id_hours.saturating_mul(3_600))),
            devices: IndexMap::default(),
            len: 0,
            stretches: VecDeque::new(),
            stretch_first: 0,
            stretch_bits: (limits.recent_ids_max / STRETCHES_IN_ALL).max(1).ilog2(),
        }
    }

    /// Brings near what the next records need.
    pub(crate) fn look_ahead(&self, records: &[(u64, &Record<'_>)]) {
        let ids = |record: &Record<'_>| record.message_id != MessageId::None;
        let devices = records.iter().filter(|(_, record)| ids(record) || has_own_time(record));
        let devices = devices.filter_map(|(hash, record)| Some((self.devices.get(hash)?, record)));
        let devices: SmallVec<[_; BLOCK]> = devices.collect();
        let touched = devices.iter().map(|(device, record)| {
            let of_id = match record.message_id {
                MessageId::None => 0,
                MessageId::Given(_) => device.given.touch(true),
                MessageId::First(_) => device.packets.touch(device.early > 0),
                MessageId::Retry(_) => device.packets.touch(true),
            };
            of_id ^ if has_own_time(record) { device.contents.touch(device.may_know(record.time)) } else { 0 }
        });
        std::hint::black_box(touched.fold(0, |a, b| a ^ b));
    }

    /// Whether the record at `offset` is a copy; remembers it. Offsets must grow. `device_hash` stands for tenant
    /// and device.
    #[inline]
    pub fn observe(&mut self, record: &Record<'_>, device_hash: u64, offset: Offset) -> bool {
        let has_own_time = has_own_time(record);
        (record.message_id != MessageId::None || has_own_time)
            && self.observe_id(record, has_own_time, device_hash, offset)
    }

    fn observe_id(
        &mut self,
        record: &Record<'_>,
        has_own_time: bool,
        device_hash: u64,
        offset: Offset,
    ) -> bool {
        let stretch = self.stretch_of(offset);
        let now = Sighting::new(stretch, record.received_at.as_micros());
        let within = |ticks_max| move |before: &Sighting| now.ticks_since(*before) <= ticks_max;
        let (packet_in_time, id_in_time) = (within(self.packet_ticks_max), within(self.id_ticks_max));
        let device = self.devices.entry(device_hash).or_default();
        let mut count = Count { added: 0, gone: [None; 2] };
        let by_id = match record.message_id {
            MessageId::None => false,
            MessageId::Given(id) => {
                let before = device.given.newest(id).filter(id_in_time);
                count.push(&mut device.given, id, now, GIVEN_MAX);
                before.is_some()
            }
            MessageId::Retry(id) => {
                let before = device.packets.newest(id).filter(packet_in_time);
                let is_early = before.is_none_or(Sighting::is_early);
                if is_early {
                    device.early = PACKETS_MAX as u16;
                }
                let seen = if is_early { now.early() } else { now };
                count.push(&mut device.packets, id, seen, PACKETS_MAX);
                before.is_some()
            }
            // A first delivery is none by its id, as packet ids are used again, unless its repetition, received later,
            // has overtaken it.
            MessageId::First(id) => {
                let is_overtaken = device.early > 0 && {
                    device.early -= 1;
                    device.packets.newest(id).is_some_and(|before| {
                        before.is_early() && (0..=ticks(OVERTAKEN_MAX)).contains(&before.ticks_since(now))
                    })
                };
                count.push(&mut device.packets, id, now, PACKETS_MAX);
                is_overtaken
            }
        };
        let by_content = has_own_time && {
            let content = content_hash(record);
            let found = if device.may_know(record.time) { device.contents.newest(content) } else { None };
            let before = found.filter(id_in_time);
            device.contents_up_to = device.contents_up_to.max(record.time);
            device.untimed = device.untimed.saturating_sub(1);
            count.push(&mut device.contents, content, now, CONTENTS_MAX);
            before.is_some()
        };
        self.count(&count, stretch);
        by_id || by_content
    }

    /// How many ids are kept.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The stretch of an offset, with room to count in it.
    fn stretch_of(&mut self, offset: Offset) -> u64 {
        let stretch = offset.0 >> self.stretch_bits;
        if self.stretches.is_empty() {
            self.stretch_first = stretch;
        }
        if stretch - self.stretch_first >= STRETCHES_MAX {
            self.forget_before(stretch - STRETCHES_MAX + 1);
            if self.stretches.is_empty() {
                self.stretch_first = stretch;
            }
        }
        let stretches = (stretch - self.stretch_first + 1) as usize;
        if stretches > self.stretches.len() {
            self.stretches.resize(stretches, 0);
        }
        stretch
    }

    fn count(&mut self, count: &Count, stretch: u64) {
        for gone in count.gone.iter().flatten() {
            self.stretches[gone.stretches_after(self.stretch_first) as usize] -= 1;
            self.len -= 1;
        }
        self.stretches[(stretch - self.stretch_first) as usize] += count.added;
        self.len += u64::from(count.added);
        while self.len + self.devices.len() as u64 * DEVICE_IDS > self.limits.recent_ids_max && self.len > 0 {
            self.forget_oldest();
        }
    }

    /// The same ids in every run: which go is told by their offsets.
    fn forget_oldest(&mut self) {
        let wanted = self.len.div_ceil(FORGOTTEN_PART);
        let (mut found, mut stretches) = (0, 0);
        while found < wanted {
            found += u64::from(self.stretches[stretches]);
            stretches += 1;
        }
        self.forget_before(self.stretch_first + stretches as u64);
    }

    fn forget_before(&mut self, stretch: u64) {
        let (first, stretches) = (self.stretch_first, stretch - self.stretch_first);
        let mut gone = 0;
        self.devices.retain(|_, device| {
            let mut left = 0;
            for ring in device.rings() {
                let before = ring.len();
                while ring.begins_within(first, stretches) {
                    ring.pop();
                }
                if ring.len() < before {
                    ring.shrink();
                }
                gone += (before - ring.len()) as u64;
                left += ring.len();
            }
            left > 0
        });
        self.len -= gone;
        self.stretches.drain(..self.stretches.len().min(stretches as usize));
        self.stretch_first = stretch;
    }
}

/// What one record changed in the number of ids.
struct Count {
    added: u32,
    gone: [Option<Sighting>; 2],
}

impl Count {
    fn push(&mut self, ring: &mut Ring, key: u64, sighting: Sighting, len_max: usize) {
        self.gone[self.added as usize] = ring.push(key, sighting, len_max);
        self.added += 1;
    }
}

fn has_own_time(record: &Record<'_>) -> bool {
    record.time_source == TimeSource::Device
}

/// Stands for tenant and device wherever a table or a deadline is kept: the same in every run, and in the snapshots.
pub(crate) fn device_hash(tenant: &str, device: &str) -> u64 {
    xxh3_64_with_seed(device.as_bytes(), xxh3_64(tenant.as_bytes()))
}

fn content_hash(record: &Record<'_>) -> u64 {
    let mut hash = xxh3_64_with_seed(record.device_type.as_bytes(), record.time.as_micros() as u64);
    for reading in &record.readings {
        hash = xxh3_64_with_seed(reading.metric.as_bytes(), hash);
        hash = match reading.value {
            ValueRef::F64(v) => xxh3_64_with_seed(&v.to_bits().to_le_bytes(), hash),
            // 5 and 5.0 are the same value.
            ValueRef::I64(v) if v.unsigned_abs() < 1 << 53 => {
                xxh3_64_with_seed(&(v as f64).to_bits().to_le_bytes(), hash)
            }
            ValueRef::I64(v) => xxh3_64_with_seed(&v.to_le_bytes(), hash ^ 1),
            ValueRef::Bool(v) => xxh3_64_with_seed(&[u8::from(v)], hash),
            ValueRef::Text(v) => xxh3_64_with_seed(v.as_bytes(), hash ^ 2),
        };
    }
    hash
}

#[cfg(test)]
mod tests;
