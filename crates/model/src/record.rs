use smallvec::SmallVec;

use crate::{TimeSource, Timestamp, ValueRef};

/// One device message, decoded: what the `telemetry` topic carries.
///
/// It borrows: from the packet while it is encoded, from the journal's bytes while it is read.
#[derive(Debug, Clone, PartialEq)]
pub struct Record<'a> {
    pub tenant: &'a str,
    pub device: &'a str,
    pub device_type: &'a str,
    pub message_id: MessageId,
    pub received_at: Timestamp,
    /// The device's own clock, as it said it.
    pub device_time: Option<Timestamp>,
    /// The time the record is filed under, and which clock it is from.
    pub time: Timestamp,
    pub time_source: TimeSource,
    pub readings: Readings<'a>,
}

/// Eight readings fit without an allocation; most messages have fewer.
pub type Readings<'a> = SmallVec<[Reading<'a>; 8]>;

/// One value of one metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading<'a> {
    pub metric: &'a str,
    pub value: ValueRef<'a>,
}

/// Tells a message from its retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageId {
    /// The device gave its message an id: a later message of the device with that id is a copy, within a day and 1,024
    /// such messages (both as configured).
    Given(u64),
    /// First delivery of a message that the sender may repeat. Hash of what a retry would repeat:
    /// MQTT packet id and payload.
    First(u64),
    /// Marked by the sender as possibly a repetition (MQTT DUP): a copy if a `First` or `Retry` with that id came
    /// before, within an hour (as configured) and 256 such messages.
    Retry(u64),
    /// Cannot be a retry (MQTT QoS 0, HTTP without an id).
    None,
}
