//! What the loader sends: every packet of a connection has the same length, so that a window of them is one piece of
//! memory in which only digits change.

use std::num::NonZeroU16;

use super::LoadError;
use crate::wire::{self, PUBLISH_QOS1, Qos, Version};

/// Sequence numbers have ten digits, because JSON numbers have no leading zeros.
pub const SEQ_FIRST: u64 = 1_000_000_000;
pub const SEQ_LAST: u64 = 9_999_999_999;

const SEQ_DIGITS: usize = 10;
const TS_DIGITS: usize = 13;
const TEMPERATURE_DIGITS: usize = 4;
const TEMPERATURE_CYCLE: u64 = 1_000;

/// What stands in a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// This many bytes, always the same; no sequence number.
    Fixed { bytes: usize },
    /// `{"temperature":2x.xx,"humidity":..,"seq":..}`, filled with blanks to this many bytes if it is shorter. The
    /// temperature is 20 + (seq mod 1000) / 100, so that a reader can tell an altered value. With `stamped`, the
    /// wrapped form with the time of sending, in milliseconds.
    Telemetry { bytes: usize, stamped: bool },
}

/// One connection's packets, `window` of them, with the places that change.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) bytes: Vec<u8>,
    pub(super) packet_bytes: usize,
    window: usize,
    places: Option<Places>,
}

#[derive(Debug, Clone, Copy)]
struct Places {
    temperature: usize,
    seq: usize,
    ts: Option<usize>,
}

impl Ring {
    pub(super) fn new(
        version: Version,
        topic: &str,
        payload: Payload,
        window: u16,
    ) -> Result<Self, LoadError> {
        let (text, places) = template(payload);
        let mut bytes = Vec::new();
        let mut packet_bytes = 0;
        for id in 1..=window {
            let id = NonZeroU16::new(id).unwrap_or(NonZeroU16::MIN);
            wire::encode_publish(version, topic, Qos::AtLeastOnce(id), &text, &mut bytes)?;
            if id == NonZeroU16::MIN {
                packet_bytes = bytes.len();
                bytes.reserve_exact(packet_bytes * (usize::from(window) - 1));
            }
        }
        let payload_at = packet_bytes - text.len();
        let places = places.map(|p| Places {
            temperature: p.temperature + payload_at,
            seq: p.seq + payload_at,
            ts: p.ts.map(|ts| ts + payload_at),
        });
        Ok(Self { bytes, packet_bytes, window: usize::from(window), places })
    }

    /// Makes the packet in `slot` a first delivery of `seq`.
    #[inline]
    pub(super) fn fill(&mut self, slot: usize, seq: u64, unix_milliseconds: u64) {
        let packet = &mut self.bytes[slot * self.packet_bytes..][..self.packet_bytes];
        packet[0] = PUBLISH_QOS1;
        let Some(places) = self.places else { return };
        write_digits(&mut packet[places.seq..][..SEQ_DIGITS], seq);
        let hundredths = seq % TEMPERATURE_CYCLE;
        packet[places.temperature] = b'2';
        packet[places.temperature + 1] = b'0' + (hundredths / 100) as u8;
        packet[places.temperature + 3] = b'0' + (hundredths / 10 % 10) as u8;
        packet[places.temperature + 4] = b'0' + (hundredths % 10) as u8;
        if let Some(ts) = places.ts {
            write_digits(&mut packet[ts..][..TS_DIGITS], unix_milliseconds);
        }
    }

    pub(super) fn packet(&self, slot: usize) -> &[u8] {
        &self.bytes[slot * self.packet_bytes..][..self.packet_bytes]
    }

    pub(super) fn window(&self) -> usize {
        self.window
    }
}

#[inline]
fn write_digits(place: &mut [u8], mut number: u64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn template(payload: Payload) -> (Vec<u8>, Option<Places>) {
    match payload {
        Payload::Fixed { bytes } => (vec![b'x'; bytes], None),
        Payload::Telemetry { bytes, stamped } => {
            let (head, tail) = if stamped {
                (format!("{{\"ts\":{},\"values\":{{", "0".repeat(TS_DIGITS)), "}}")
            } else {
                ("{".to_owned(), "}")
            };
            let mut text = head;
            text += "\"temperature\":";
            let temperature = text.len();
            text += "20.00";
            debug_assert_eq!(text.len() - temperature, TEMPERATURE_DIGITS + 1);
            text += ",\"humidity\":40.25,\"seq\":";
            let seq = text.len();
            text += &"0".repeat(SEQ_DIGITS);
            let blanks = bytes.saturating_sub(text.len() + tail.len());
            text.extend(std::iter::repeat_n(' ', blanks));
            text += tail;
            let ts = stamped.then_some("{\"ts\":".len());
            (text.into_bytes(), Some(Places { temperature, seq, ts }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(payload: Payload) -> Vec<u8> {
        let mut ring = Ring::new(Version::V311, "v1/telemetry", payload, 3).unwrap();
        ring.fill(2, 1_234_567_890, 1_700_000_000_123);
        let packet = ring.packet(2);
        packet[packet.iter().position(|&b| b == b'{').unwrap()..].to_vec()
    }

    #[test]
    fn telemetry_is_json_of_the_length_asked_for() {
        let text = filled(Payload::Telemetry { bytes: 128, stamped: false });
        assert_eq!(text.len(), 128);
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json, serde_json::json!({"temperature": 28.90, "humidity": 40.25, "seq": 1_234_567_890}));
    }

    #[test]
    fn stamped_telemetry_carries_the_time() {
        let text = filled(Payload::Telemetry { bytes: 0, stamped: true });
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["ts"], 1_700_000_000_123_u64);
        assert_eq!(json["values"]["seq"], 1_234_567_890);
    }

    #[test]
    fn packets_of_a_ring_differ_in_their_id_only() {
        let ring = Ring::new(Version::V311, "t", Payload::Fixed { bytes: 4 }, 3).unwrap();
        assert_eq!(ring.packet(0), b"\x32\x09\0\x01t\0\x01xxxx");
        assert_eq!(ring.packet(2), b"\x32\x09\0\x01t\0\x03xxxx");
        assert_eq!(ring.window(), 3);
    }
}
