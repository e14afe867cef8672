//! From what a message says to what the journal carries.

use bumpalo::Bump;
use dunlin_journal::Batch;
use dunlin_model::{
    CommandReply, CommandStep, Event, EventKind, MessageId, Record, RejectReason, Rejected, TimePolicy,
    Timestamp,
    avro::{self, Datum},
    limits::REJECTED_BYTES_MAX,
};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    decode::{self, Entries, Fault},
    directory::Admitted,
};

/// Whose message it is: from the credential, and for a child from the directory.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    pub tenant: &'a str,
    pub device: &'a str,
    pub device_type: &'a str,
}

impl<'a> From<&'a Admitted> for Origin<'a> {
    fn from(who: &'a Admitted) -> Self {
        Self { tenant: &who.tenant, device: &who.device, device_type: &who.device_type }
    }
}

/// What the transport knows about repetitions of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Nothing: each delivery is a message of its own.
    Plain,
    /// MQTT QoS 1 and 2: the same packet id and payload may come again, marked as a duplicate.
    Packet { packet_id: u16, duplicate: bool },
    /// The sender named the message: HTTP `Idempotency-Key`.
    Keyed(u64),
}

impl Delivery {
    /// The identity of the record at `index`, of `records`, in a message with this payload.
    fn message_id(self, payload: &[u8], index: usize, records: usize, given: Option<u64>) -> MessageId {
        let nth = |id: u64| match records {
            1 => id,
            _ => xxh3_64_with_seed(&id.to_le_bytes(), index as u64),
        };
        match (given, self) {
            (Some(id), _) => MessageId::Given(id),
            (None, Self::Plain) => MessageId::None,
            (None, Self::Keyed(key)) => MessageId::Given(nth(key)),
            (None, Self::Packet { packet_id, duplicate }) => {
                let id = nth(xxh3_64_with_seed(payload, u64::from(packet_id)));
                if duplicate { MessageId::Retry(id) } else { MessageId::First(id) }
            }
        }
    }
}

/// When a message came, and how its own time is judged.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    pub received_at: Timestamp,
    pub policy: &'a TimePolicy,
}

/// Decodes `payload` and adds its records to `batch`: all of them, or none and the fault. Returns how many.
pub fn append_telemetry(
    payload: &[u8],
    origin: Origin<'_>,
    delivery: Delivery,
    arrival: Arrival<'_>,
    arena: &Bump,
    batch: &mut Batch,
) -> Result<usize, Fault> {
    let entries = decode::decode(payload, arena)?;
    let records = entries.len();
    append_entries(entries, payload, origin, delivery, arrival, batch);
    Ok(records)
}

pub(crate) fn append_entries<'a>(
    entries: Entries<'a>,
    payload: &[u8],
    origin: Origin<'a>,
    delivery: Delivery,
    arrival: Arrival<'_>,
    batch: &mut Batch,
) {
    let records = entries.len();
    for (index, entry) in entries.into_iter().enumerate() {
        let (time, time_source) = arrival.policy.judge(entry.device_time, arrival.received_at);
        let record = Record {
            tenant: origin.tenant,
            device: origin.device,
            device_type: origin.device_type,
            message_id: delivery.message_id(payload, index, records, entry.id),
            received_at: arrival.received_at,
            device_time: entry.device_time,
            time,
            time_source,
            readings: entry.readings,
        };
        batch.push_with(|out| avro::encode(&record, out));
    }
}

/// A message that is kept only to say why it was refused.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refused<'a> {
    pub(crate) reason: RejectReason,
    pub(crate) detail: &'a str,
    /// Transport and address: `mqtt:v1/telemetry`.
    pub(crate) source: &'a str,
    pub(crate) payload: &'a [u8],
}

pub(crate) fn rejected(origin: Origin<'_>, refused: Refused<'_>, received_at: Timestamp) -> Vec<u8> {
    Rejected {
        tenant: origin.tenant.to_owned(),
        device: origin.device.to_owned(),
        received_at,
        reason: refused.reason,
        detail: refused.detail.to_owned(),
        source: refused.source.to_owned(),
        payload: refused.payload[..refused.payload.len().min(REJECTED_BYTES_MAX)].to_vec(),
    }
    .encode()
}

pub(crate) fn event(origin: Origin<'_>, kind: EventKind, detail: String, time: Timestamp) -> Vec<u8> {
    Event { tenant: origin.tenant.to_owned(), device: origin.device.to_owned(), time, kind, detail }.encode()
}

/// A step that a device has taken with a command.
pub(crate) fn command_reply(origin: Origin<'_>, id: &str, at: Timestamp, reply: Option<&str>) -> Vec<u8> {
    CommandReply {
        tenant: origin.tenant.to_owned(),
        device: origin.device.to_owned(),
        id: id.to_owned(),
        at,
        step: if reply.is_some() { CommandStep::Replied } else { CommandStep::Delivered },
        reply: reply.unwrap_or_default().to_owned(),
    }
    .encode()
}

/// An event that a device reports: any JSON.
pub(crate) fn check_event(payload: &[u8]) -> Result<&str, Fault> {
    check::<serde::de::IgnoredAny>(payload)
}

/// What a device replies to a command. Whoever asks for it reads it as a value, which bounds how deep it may be.
pub(crate) fn check_reply(payload: &[u8]) -> Result<&str, Fault> {
    check::<serde_json::Value>(payload)
}

fn check<'p, T: serde::Deserialize<'p>>(payload: &'p [u8]) -> Result<&'p str, Fault> {
    let text = std::str::from_utf8(payload)
        .map_err(|e| Fault::new(RejectReason::PayloadFormat, "", format_args!("not UTF-8: {e}")))?;
    serde_json::from_str::<T>(text).map_err(|e| Fault::new(RejectReason::PayloadFormat, "", e))?;
    Ok(text)
}
