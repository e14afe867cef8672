//! The record as a plain Avro datum (Apache Avro 1.11, binary encoding, no header), so that Kafka's and Flink's
//! own tools read the journal without our code. Values stand in nullable typed fields because Flink SQL reads no
//! union but with null. The schema is fixed; a new version is a new file beside it.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_avro_fast::{Schema, ser::SerializerConfig};
use smallvec::SmallVec;

use crate::{AlertTransition, Event, MessageId, Reading, Record, Rejected, TimeSource, Timestamp, ValueRef};

/// Version of `record.avsc`; stands in every batch of the journal.
pub const SCHEMA_VERSION: u8 = 1;
pub const SCHEMA_JSON: &str = include_str!("record.avsc");

static SCHEMA: LazyLock<Schema> =
    LazyLock::new(|| SCHEMA_JSON.parse().expect("record.avsc is checked by this module's tests"));

/// Bytes that are not a record of this schema.
#[derive(Debug, thiserror::Error)]
#[error("not a record of schema version {SCHEMA_VERSION}: {reason}")]
pub struct NotARecord {
    reason: String,
}

/// Encodes records, keeping its scratch space between them.
pub struct Encoder(SerializerConfig<'static>);

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encoder")
    }
}

impl Default for Encoder {
    fn default() -> Self {
        Self(SerializerConfig::new(&SCHEMA))
    }
}

impl Encoder {
    /// Appends the datum to `out`.
    pub fn encode(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        serde_avro_fast::to_datum(&Wire::from(record), out, &mut self.0)
            .expect("a record fits its schema, and a Vec takes all that is written to it");
    }
}

/// What rare topics carry: one schema a type, encoded without a kept encoder.
pub trait Datum: Serialize + for<'de> Deserialize<'de> {
    fn schema() -> &'static Schema;

    fn encode(&self) -> Vec<u8> {
        serde_avro_fast::to_datum(self, Vec::new(), &mut SerializerConfig::new(Self::schema()))
            .expect("the type fits its schema, and a Vec takes all that is written to it")
    }

    fn decode(datum: &[u8]) -> Result<Self, NotARecord> {
        serde_avro_fast::from_datum_slice(datum, Self::schema())
            .map_err(|e| NotARecord { reason: e.to_string() })
    }
}

macro_rules! datum {
    ($type:ident, $file:literal) => {
        impl Datum for $type {
            fn schema() -> &'static Schema {
                static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
                    include_str!($file).parse().expect("the schema is checked by this module's tests")
                });
                &SCHEMA
            }
        }
    };
}
datum!(Rejected, "rejected.avsc");
datum!(Event, "event.avsc");
datum!(AlertTransition, "alert.avsc");

/// Reads one datum; strings stay where they are.
pub fn decode(datum: &[u8]) -> Result<Record<'_>, NotARecord> {
    let wire: Wire<'_> = serde_avro_fast::from_datum_slice(datum, &SCHEMA)
        .map_err(|e| NotARecord { reason: e.to_string() })?;
    wire.try_into()
}

#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    tenant: &'a str,
    device: &'a str,
    device_type: &'a str,
    message_id_kind: i32,
    message_id: i64,
    received_at: i64,
    device_time: Option<i64>,
    time: i64,
    time_source: i32,
    content_type: Option<&'a str>,
    schema_id: Option<&'a str>,
    schema_version: Option<i32>,
    #[serde(borrow)]
    readings: SmallVec<[WireReading<'a>; 8]>,
    ciphertext: Option<&'a [u8]>,
}

#[derive(Serialize, Deserialize)]
struct WireReading<'a> {
    metric: &'a str,
    f64: Option<f64>,
    i64: Option<i64>,
    bool: Option<bool>,
    text: Option<&'a str>,
}

impl<'a> From<&Record<'a>> for Wire<'a> {
    fn from(r: &Record<'a>) -> Self {
        let (message_id_kind, message_id) = match r.message_id {
            MessageId::None => (0, 0),
            MessageId::First(id) => (1, id),
            MessageId::Retry(id) => (2, id),
            MessageId::Given(id) => (3, id),
        };
        Self {
            tenant: r.tenant,
            device: r.device,
            device_type: r.device_type,
            message_id_kind,
            message_id: message_id as i64,
            received_at: r.received_at.as_micros(),
            device_time: r.device_time.map(Timestamp::as_micros),
            time: r.time.as_micros(),
            time_source: match r.time_source {
                TimeSource::Device => 0,
                TimeSource::Server => 1,
                TimeSource::ServerAsFuture => 2,
                TimeSource::ServerAsTooOld => 3,
            },
            content_type: None,
            schema_id: None,
            schema_version: None,
            readings: r.readings.iter().map(WireReading::from).collect(),
            ciphertext: None,
        }
    }
}

impl<'a> From<&Reading<'a>> for WireReading<'a> {
    fn from(r: &Reading<'a>) -> Self {
        let mut wire = Self { metric: r.metric, f64: None, i64: None, bool: None, text: None };
        match r.value {
            ValueRef::F64(v) => wire.f64 = Some(v),
            ValueRef::I64(v) => wire.i64 = Some(v),
            ValueRef::Bool(v) => wire.bool = Some(v),
            ValueRef::Text(v) => wire.text = Some(v),
        }
        wire
    }
}

impl<'a> TryFrom<Wire<'a>> for Record<'a> {
    type Error = NotARecord;

    fn try_from(w: Wire<'a>) -> Result<Self, NotARecord> {
        let unknown = |what: &str, n: i32| NotARecord { reason: format!("unknown {what} {n}") };
        let id = w.message_id as u64;
        Ok(Self {
            tenant: w.tenant,
            device: w.device,
            device_type: w.device_type,
            message_id: match w.message_id_kind {
                0 => MessageId::None,
                1 => MessageId::First(id),
                2 => MessageId::Retry(id),
                3 => MessageId::Given(id),
                n => return Err(unknown("message id kind", n)),
            },
            received_at: Timestamp::from_micros(w.received_at),
            device_time: w.device_time.map(Timestamp::from_micros),
            time: Timestamp::from_micros(w.time),
            time_source: match w.time_source {
                0 => TimeSource::Device,
                1 => TimeSource::Server,
                2 => TimeSource::ServerAsFuture,
                3 => TimeSource::ServerAsTooOld,
                n => return Err(unknown("time source", n)),
            },
            readings: w.readings.into_iter().map(Reading::try_from).collect::<Result<_, _>>()?,
        })
    }
}

impl<'a> TryFrom<WireReading<'a>> for Reading<'a> {
    type Error = NotARecord;

    fn try_from(w: WireReading<'a>) -> Result<Self, NotARecord> {
        let value = match (w.f64, w.i64, w.bool, w.text) {
            (Some(v), ..) => ValueRef::F64(v),
            (_, Some(v), ..) => ValueRef::I64(v),
            (_, _, Some(v), _) => ValueRef::Bool(v),
            (_, _, _, Some(v)) => ValueRef::Text(v),
            _ => return Err(NotARecord { reason: format!("reading {:?} has no value", w.metric) }),
        };
        Ok(Self { metric: w.metric, value })
    }
}

#[cfg(test)]
mod tests;
