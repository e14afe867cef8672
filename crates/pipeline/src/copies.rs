//! Which messages are copies of one that came before.
//!
//! The answer is a function of the journal alone: a record is a copy if one of the `records_max` records before it
//! in its partition was received at most `AGE_MAX` earlier and says the same. So the store and the rules agree, and
//! a replay decides as the first run did, once the records before its start were shown to `observe`.

use std::{collections::VecDeque, time::Duration};

use dunlin_journal::Offset;
use dunlin_model::{MessageId, Record, TimeSource, Timestamp, ValueRef};
use hashbrown::HashMap;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// How long a sender may take to repeat a message.
pub(crate) const AGE_MAX: Duration = Duration::from_secs(600);
/// How many records of a partition are remembered by default.
pub(crate) const RECORDS_MAX: u64 = 1 << 18;

/// What was said by the last records of one partition.
#[derive(Debug)]
pub struct RecentIds {
    records_max: u64,
    last: HashMap<u64, Seen, foldhash::fast::FixedState>,
    /// In the order of the offsets; may name keys that came again since.
    order: VecDeque<(u64, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    offset: u64,
    received_at: Timestamp,
}

impl RecentIds {
    pub fn new(records_max: u64) -> Self {
        Self { records_max, last: HashMap::default(), order: VecDeque::new() }
    }

    /// From where the journal must be shown for right answers from `position` on.
    pub fn primed_from(&self, position: Offset, oldest: Offset) -> Offset {
        Offset(position.0.saturating_sub(self.records_max)).max(oldest).min(position)
    }

    /// Whether the record at `offset` is a copy; remembers it. Offsets must grow. `device_hash` stands for tenant
    /// and device.
    pub fn observe(&mut self, record: &Record<'_>, device_hash: u64, offset: Offset) -> bool {
        self.forget_before(offset.0.saturating_sub(self.records_max));
        let seen = Seen { offset: offset.0, received_at: record.received_at };
        let by_id = match record.message_id {
            MessageId::None => false,
            MessageId::Given(id) => self.see(key(device_hash, 1, id), seen),
            MessageId::Retry(id) => self.see(key(device_hash, 2, id), seen),
            // A first delivery is none by its id: packet ids are used again.
            MessageId::First(id) => {
                self.see(key(device_hash, 2, id), seen);
                false
            }
        };
        let by_content = record.time_source == TimeSource::Device
            && self.see(key(device_hash, 3, content_hash(record)), seen);
        by_id || by_content
    }

    /// How many ids are kept.
    pub fn len(&self) -> usize {
        self.last.len()
    }

    pub fn is_empty(&self) -> bool {
        self.last.is_empty()
    }

    fn see(&mut self, key: u64, seen: Seen) -> bool {
        self.order.push_back((key, seen.offset));
        let before = self.last.insert(key, seen);
        before.is_some_and(|before| seen.received_at.since(before.received_at) <= AGE_MAX)
    }

    fn forget_before(&mut self, oldest: u64) {
        while let Some((key, offset)) = self.order.pop_front_if(|(_, offset)| *offset < oldest) {
            if self.last.get(&key).is_some_and(|seen| seen.offset == offset) {
                self.last.remove(&key);
            }
        }
    }
}

/// Stands for tenant and device wherever a table or a deadline is kept: stored in no file, the same in every run.
pub(crate) fn device_hash(tenant: &str, device: &str) -> u64 {
    xxh3_64_with_seed(device.as_bytes(), xxh3_64(tenant.as_bytes()))
}

fn key(device_hash: u64, kind: u64, id: u64) -> u64 {
    // Multiplied and folded, so that neither part cancels the other.
    let wide = u128::from(device_hash ^ kind.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_mul(u128::from(id ^ 0xa076_1d64_78bd_642f) | 1);
    (wide as u64) ^ ((wide >> 64) as u64) ^ id.rotate_left(32)
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
