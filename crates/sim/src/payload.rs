//! What the senders send: every message of a kind has the same length, and only digits change in it.

use std::time::{SystemTime, UNIX_EPOCH};

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

/// A message and the places in it that change.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    text: Vec<u8>,
    places: Option<Places>,
}

impl Template {
    pub(crate) fn new(payload: Payload) -> Self {
        let (text, places) = template(payload);
        Self { text, places }
    }

    pub(crate) fn text(&self) -> &[u8] {
        &self.text
    }

    /// The message stands so many bytes after the beginning of what `fill` is given.
    pub(crate) fn stands_at(mut self, bytes: usize) -> Self {
        self.places = self.places.map(|places| Places {
            temperature: places.temperature + bytes,
            seq: places.seq + bytes,
            ts: places.ts.map(|ts| ts + bytes),
        });
        self
    }

    /// Makes it message `seq`, of now.
    #[inline]
    pub(crate) fn fill(&self, packet: &mut [u8], seq: u64, unix_milliseconds: u64) {
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
}

impl Payload {
    /// The time that its messages carry; 0 if they carry none.
    pub(crate) fn stamp(self) -> u64 {
        match self {
            Self::Telemetry { stamped: true, .. } => {
                SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
            }
            _ => 0,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Places {
    temperature: usize,
    seq: usize,
    ts: Option<usize>,
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
        let template = Template::new(payload).stands_at(2);
        let mut packet = [b"..", template.text()].concat();
        template.fill(&mut packet, 1_234_567_890, 1_700_000_000_123);
        packet[2..].to_vec()
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
}
