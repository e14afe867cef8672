//! JSON as devices send it, decoded straight into readings that borrow from the packet.
//!
//! - `{"temperature": 21.5, "on": true}`: the readings themselves; a numeric `ts` among them is their time.
//! - `{"ts": <ms since 1970>, "values": {...}, "id": "any"}`: time and id are optional; other keys are refused.
//! - an array of either, taken whole or not at all.
//!
//! Integers beyond 64 bits become floats. `null`, nested objects and arrays, numbers beyond f64, and a name given
//! twice are refused: a row has one place per name, and nothing is dropped silently.

use std::{cell::Cell, cell::RefCell, fmt};

use bumpalo::Bump;
use dunlin_model::{
    MetricName, Reading, Readings, RejectReason, Timestamp, ValueRef,
    limits::{MESSAGE_RECORDS_MAX, RECORD_READINGS_MAX, TEXT_BYTES_MAX},
};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// What one record is made of, before it is known whose it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry<'a> {
    pub device_time: Option<Timestamp>,
    /// Hash of the id that the device gave.
    pub id: Option<u64>,
    pub readings: Readings<'a>,
}

pub type Entries<'a> = SmallVec<[Entry<'a>; 1]>;

/// Why a message is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Fault {
    pub reason: RejectReason,
    /// The field that is wrong, as a path (`[3].values.temperature`); empty when it is the whole message.
    pub field: String,
    /// What is wrong, in words; starts with the field.
    pub detail: String,
}

/// Bytes of what is said about a message, and of its field: a refusal does not repeat what it refuses.
const DETAIL_BYTES_MAX: usize = 1 << 10;
const FIELD_BYTES_MAX: usize = 512;

impl Fault {
    pub(crate) fn new(reason: RejectReason, field: impl Into<String>, what: impl fmt::Display) -> Self {
        let field = cut(field.into(), FIELD_BYTES_MAX);
        let detail = if field.is_empty() { what.to_string() } else { format!("{field}: {what}") };
        Self { reason, field, detail: cut(detail, DETAIL_BYTES_MAX) }
    }
}

fn cut(mut text: String, bytes_max: usize) -> String {
    if text.len() > bytes_max {
        text.truncate(text.floor_char_boundary(bytes_max - '…'.len_utf8()));
        text.push('…');
        text.shrink_to_fit();
    }
    text
}

/// Who named a message: the same name from two sources is two names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdSource {
    /// JSON, `"id": "7"`.
    Text = 1,
    /// JSON, `"id": 7`.
    Number,
    /// HTTP, `Idempotency-Key: 7`.
    Key,
}

impl IdSource {
    pub(crate) fn hash(self, id: &[u8]) -> u64 {
        xxh3_64_with_seed(id, self as u64)
    }
}

/// Decodes a whole message. Strings with escapes go to `arena`; everything else stays in `payload`.
pub fn decode<'a>(payload: &'a [u8], arena: &'a Bump) -> Result<Entries<'a>, Fault> {
    let text = std::str::from_utf8(payload)
        .map_err(|e| Fault::new(RejectReason::PayloadFormat, "", format_args!("not UTF-8: {e}")))?;
    let place = Place {
        arena,
        index: Cell::new(None),
        within: Cell::new(""),
        key: Cell::new(""),
        fault: RefCell::default(),
    };
    let mut json = serde_json::Deserializer::from_str(text);
    let decoded = Message(&place).deserialize(&mut json).and_then(|entries| json.end().map(|()| entries));
    decoded.map_err(|e| place.fault.take().unwrap_or_else(|| place.syntax(&e)))
}

/// Where in the message the decoder is, and what it found wrong there.
struct Place<'a> {
    arena: &'a Bump,
    index: Cell<Option<usize>>,
    within: Cell<&'static str>,
    key: Cell<&'a str>,
    fault: RefCell<Option<Fault>>,
}

impl<'a> Place<'a> {
    fn fail<E: de::Error>(&self, what: impl fmt::Display) -> E {
        self.fail_as(RejectReason::InvalidValue, what)
    }

    fn fail_as<E: de::Error>(&self, reason: RejectReason, what: impl fmt::Display) -> E {
        self.fault.replace(Some(Fault::new(reason, self.path(), what)));
        E::custom("refused")
    }

    fn path(&self) -> String {
        let index = self.index.get().map(|i| format!("[{i}]")).unwrap_or_default();
        let key: String = self.key.get().chars().take(dunlin_model::limits::NAME_BYTES_MAX).collect();
        [index.as_str(), self.within.get(), key.as_str()]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(".")
    }

    fn syntax(&self, error: &serde_json::Error) -> Fault {
        let words = error.to_string();
        if words.starts_with("number out of range") {
            Fault::new(RejectReason::InvalidValue, self.path(), "a number that is not finite")
        } else if error.is_data() && !self.key.get().is_empty() {
            Fault::new(RejectReason::InvalidValue, self.path(), words)
        } else {
            Fault::new(RejectReason::PayloadFormat, "", words)
        }
    }

    fn keep(&self, text: &str) -> &'a str {
        self.arena.alloc_str(text)
    }
}

/// An object, or an array of them.
struct Message<'p, 'a>(&'p Place<'a>);

impl<'a> DeserializeSeed<'a> for Message<'_, 'a> {
    type Value = Entries<'a>;

    fn deserialize<D: Deserializer<'a>>(self, d: D) -> Result<Entries<'a>, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Message<'_, 'a> {
    type Value = Entries<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array of objects")
    }

    fn visit_map<M: MapAccess<'a>>(self, map: M) -> Result<Entries<'a>, M::Error> {
        let mut entries = Entries::new();
        entries.push(One(self.0).visit_map(map)?);
        Ok(entries)
    }

    fn visit_seq<S: SeqAccess<'a>>(self, mut seq: S) -> Result<Entries<'a>, S::Error> {
        let mut entries = Entries::new();
        self.0.index.set(Some(0));
        while let Some(entry) = seq.next_element_seed(One(self.0))? {
            entries.push(entry);
            self.0.index.set(Some(entries.len()));
            if entries.len() > MESSAGE_RECORDS_MAX {
                self.0.index.set(None);
                return Err(self.0.fail(format_args!("a message has at most {MESSAGE_RECORDS_MAX} records")));
            }
        }
        self.0.index.set(None); // What is wrong from here on is wrong with the whole.
        match entries.is_empty() {
            true => Err(self.0.fail_as(RejectReason::PayloadFormat, "an empty array")),
            false => Ok(entries),
        }
    }
}

/// One object.
struct One<'p, 'a>(&'p Place<'a>);

impl<'a> DeserializeSeed<'a> for One<'_, 'a> {
    type Value = Entry<'a>;

    fn deserialize<D: Deserializer<'a>>(self, d: D) -> Result<Entry<'a>, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for One<'_, 'a> {
    type Value = Entry<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<Entry<'a>, M::Error> {
        let place = self.0;
        let mut readings = Readings::new();
        let mut device_time = None;
        let mut id = None;
        let mut wrapped = false;
        let mut plain = false;
        while let Some(key) = map.next_key_seed(Key(place))? {
            place.key.set(key);
            match key {
                "ts" if device_time.is_some() => return Err(place.fail("given twice")),
                "ts" => device_time = Some(place.time(map.next_value_seed(Scalar(place))?)?),
                "id" if id.is_some() => return Err(place.fail("given twice")),
                "id" => id = Some(map.next_value_seed(Scalar(place))?),
                "values" if plain => return Err(place.fail("an object beside plain readings")),
                "values" if wrapped => return Err(place.fail("given twice")),
                "values" => {
                    wrapped = true;
                    map.next_value_seed(Values { place, readings: &mut readings })?;
                }
                _ if wrapped => return Err(place.fail("beside `values`; put it inside")),
                _ => {
                    plain = true;
                    let value = map.next_value_seed(Scalar(place))?;
                    place.push(&mut readings, key, value)?;
                }
            }
        }
        place.key.set("");
        let id = match id {
            Some(value) if wrapped => {
                place.key.set("id");
                Some(place.message_id(value)?)
            }
            Some(value) => {
                place.push(&mut readings, "id", value)?;
                None
            }
            None => None,
        };
        place.distinct(&readings)?;
        place.key.set("");
        if readings.is_empty() {
            return Err(place.fail_as(RejectReason::PayloadFormat, "no reading in it"));
        }
        Ok(Entry { device_time, id, readings })
    }
}

impl<'a> Place<'a> {
    fn push<E: de::Error>(
        &self,
        readings: &mut Readings<'a>,
        metric: &'a str,
        value: ValueRef<'a>,
    ) -> Result<(), E> {
        if !is_plain_name(metric) {
            MetricName::check(metric).map_err(|e| self.fail::<E>(e))?;
        }
        if readings.len() == RECORD_READINGS_MAX {
            return Err(self.fail(format_args!("a record has at most {RECORD_READINGS_MAX} readings")));
        }
        readings.push(Reading { metric, value });
        Ok(())
    }

    fn time<E: de::Error>(&self, value: ValueRef<'_>) -> Result<Timestamp, E> {
        let time = match value {
            ValueRef::I64(ms) => Timestamp::from_millis(ms),
            ValueRef::F64(ms) if (ms * 1_000.0).abs() < i64::MAX as f64 => {
                Some(Timestamp::from_micros((ms * 1_000.0).round() as i64))
            }
            _ => None,
        };
        time.ok_or_else(|| self.fail("a time is a number of milliseconds since 1970"))
    }

    fn message_id<E: de::Error>(&self, value: ValueRef<'_>) -> Result<u64, E> {
        match value {
            ValueRef::Text(text) => Ok(IdSource::Text.hash(text.as_bytes())),
            ValueRef::I64(number) => Ok(IdSource::Number.hash(&number.to_le_bytes())),
            _ => Err(self.fail("a message id is a text or an integer")),
        }
    }

    fn distinct<E: de::Error>(&self, readings: &[Reading<'a>]) -> Result<(), E> {
        match repeated(readings) {
            None => Ok(()),
            Some(metric) => {
                self.key.set(metric);
                Err(self.fail("given twice"))
            }
        }
    }
}

/// A metric that stands twice among `readings`.
pub(crate) fn repeated<'a>(readings: &[Reading<'a>]) -> Option<&'a str> {
    const FEW: usize = 16;
    if readings.len() <= FEW {
        let twice = |n: usize| readings[..n].iter().any(|r| r.metric == readings[n].metric);
        return (1..readings.len()).find(|n| twice(*n)).map(|n| readings[n].metric);
    }
    let mut seen = hashbrown::HashSet::with_capacity(readings.len());
    readings.iter().map(|r| r.metric).find(|metric| !seen.insert(*metric))
}

/// What nearly every name is; the rest is left to `MetricName::check`.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= dunlin_model::limits::NAME_BYTES_MAX
        && name.bytes().all(|b| matches!(b, b' '..=b'~') && b != b'"')
}

/// The inside of `values`.
struct Values<'p, 'r, 'a> {
    place: &'p Place<'a>,
    readings: &'r mut Readings<'a>,
}

impl<'a> DeserializeSeed<'a> for Values<'_, '_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, d: D) -> Result<(), D::Error> {
        d.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for Values<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of metric and value")
    }

    fn visit_map<M: MapAccess<'a>>(self, mut map: M) -> Result<(), M::Error> {
        let place = self.place;
        place.within.set("values");
        while let Some(key) = map.next_key_seed(Key(place))? {
            place.key.set(key);
            let value = map.next_value_seed(Scalar(place))?;
            place.push(self.readings, key, value)?;
        }
        place.distinct(self.readings)?;
        place.within.set("");
        Ok(())
    }
}

/// A name.
struct Key<'p, 'a>(&'p Place<'a>);

impl<'a> DeserializeSeed<'a> for Key<'_, 'a> {
    type Value = &'a str;

    fn deserialize<D: Deserializer<'a>>(self, d: D) -> Result<&'a str, D::Error> {
        d.deserialize_str(self)
    }
}

impl<'a> Visitor<'a> for Key<'_, 'a> {
    type Value = &'a str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_borrowed_str<E>(self, v: &'a str) -> Result<&'a str, E> {
        Ok(v)
    }

    fn visit_str<E>(self, v: &str) -> Result<&'a str, E> {
        Ok(self.0.keep(v))
    }
}

/// The value of one reading.
struct Scalar<'p, 'a>(&'p Place<'a>);

impl<'a> DeserializeSeed<'a> for Scalar<'_, 'a> {
    type Value = ValueRef<'a>;

    fn deserialize<D: Deserializer<'a>>(self, d: D) -> Result<ValueRef<'a>, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Scalar<'_, 'a> {
    type Value = ValueRef<'a>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a text, true or false")
    }

    fn visit_bool<E>(self, v: bool) -> Result<ValueRef<'a>, E> {
        Ok(ValueRef::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<ValueRef<'a>, E> {
        Ok(ValueRef::I64(v))
    }

    fn visit_u64<E>(self, v: u64) -> Result<ValueRef<'a>, E> {
        Ok(i64::try_from(v).map_or(ValueRef::F64(v as f64), ValueRef::I64))
    }

    fn visit_f64<E: de::Error>(self, v: f64) -> Result<ValueRef<'a>, E> {
        match v.is_finite() {
            true => Ok(ValueRef::F64(v)),
            false => Err(self.0.fail("a number that is not finite")),
        }
    }

    fn visit_borrowed_str<E: de::Error>(self, v: &'a str) -> Result<ValueRef<'a>, E> {
        match v.len() <= TEXT_BYTES_MAX {
            true => Ok(ValueRef::Text(v)),
            false => Err(self.0.fail(format_args!("a text has at most {TEXT_BYTES_MAX} bytes"))),
        }
    }

    fn visit_str<E: de::Error>(self, v: &str) -> Result<ValueRef<'a>, E> {
        let kept = self.0.keep(v);
        self.visit_borrowed_str(kept)
    }

    fn visit_unit<E: de::Error>(self) -> Result<ValueRef<'a>, E> {
        Err(self.0.fail("null is no value; leave the reading out"))
    }

    fn visit_map<M: MapAccess<'a>>(self, _: M) -> Result<ValueRef<'a>, M::Error> {
        Err(self.0.fail("an object is no value"))
    }

    fn visit_seq<S: SeqAccess<'a>>(self, _: S) -> Result<ValueRef<'a>, S::Error> {
        Err(self.0.fail("an array is no value"))
    }
}

#[cfg(test)]
mod tests;
