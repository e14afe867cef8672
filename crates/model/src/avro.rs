//! The record as a plain Avro datum (Apache Avro 1.11, binary encoding, no header), so that Kafka's and Flink's
//! own tools read the journal without our code. Values stand in nullable typed fields because Flink SQL reads no
//! union but with null. The schema is fixed; a new version is a new file beside it.

use std::sync::LazyLock;

use crate::{
    AlertTransition, Command, CommandReply, Event, MessageId, Reading, Readings, Record, Rejected,
    TimeSource, Timestamp, ValueRef,
};
use serde::{Deserialize, Serialize};
use serde_avro_fast::{Schema, ser::SerializerConfig};

/// Version of `record.avsc`; stands in every batch of the journal.
pub const SCHEMA_VERSION: u8 = 1;
pub const SCHEMA_JSON: &str = include_str!("record.avsc");

/// Bytes that are not a record of this schema.
#[derive(Debug, thiserror::Error)]
#[error("not a record of schema version {SCHEMA_VERSION}: {reason}")]
pub struct NotARecord {
    reason: String,
}

/// Appends the datum to `out`.
///
/// Written by hand because it is the hottest code there is: three times as fast as a serializer that walks the schema,
/// against which the tests check it.
pub fn encode(record: &Record<'_>, out: &mut Vec<u8>) {
    let (id_kind, id) = match record.message_id {
        MessageId::None => (0, 0),
        MessageId::First(id) => (1, id),
        MessageId::Retry(id) => (2, id),
        MessageId::Given(id) => (3, id),
    };
    let time_source = match record.time_source {
        TimeSource::Device => 0,
        TimeSource::Server => 1,
        TimeSource::ServerAsFuture => 2,
        TimeSource::ServerAsTooOld => 3,
    };
    put_text(out, record.tenant);
    put_text(out, record.device);
    put_text(out, record.device_type);
    put_long(out, id_kind);
    put_long(out, id as i64);
    put_long(out, record.received_at.as_micros());
    match record.device_time {
        Some(time) => {
            out.push(PRESENT);
            put_long(out, time.as_micros());
        }
        None => out.push(NULL),
    }
    put_long(out, record.time.as_micros());
    put_long(out, time_source);
    out.extend_from_slice(&[NULL; 3]); // content type, schema id, schema version
    if !record.readings.is_empty() {
        put_long(out, record.readings.len() as i64);
        record.readings.iter().for_each(|reading| put_reading(out, reading));
    }
    out.push(0); // the end of the array
    out.push(NULL); // not encrypted
}

/// The branches of a union of null and something.
const NULL: u8 = 0;
const PRESENT: u8 = 2;

fn put_reading(out: &mut Vec<u8>, reading: &Reading<'_>) {
    put_text(out, reading.metric);
    match reading.value {
        ValueRef::F64(v) => {
            out.push(PRESENT);
            out.extend_from_slice(&v.to_le_bytes());
            out.extend_from_slice(&[NULL; 3]);
        }
        ValueRef::I64(v) => {
            out.extend_from_slice(&[NULL, PRESENT]);
            put_long(out, v);
            out.extend_from_slice(&[NULL; 2]);
        }
        ValueRef::Bool(v) => out.extend_from_slice(&[NULL, NULL, PRESENT, u8::from(v), NULL]),
        ValueRef::Text(v) => {
            out.extend_from_slice(&[NULL, NULL, NULL, PRESENT]);
            put_text(out, v);
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_long(out, text.len() as i64);
    out.extend_from_slice(text.as_bytes());
}

/// Zigzag, then seven bits a byte, the lowest first.
fn put_long(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// Reads one datum; texts stay where they are.
pub fn decode(datum: &[u8]) -> Result<Record<'_>, NotARecord> {
    let mut rest = Rest(datum);
    let (tenant, device, device_type) = (rest.text()?, rest.text()?, rest.text()?);
    let (id_kind, id) = (rest.long()?, rest.long()? as u64);
    let record = Record {
        tenant,
        device,
        device_type,
        message_id: match id_kind {
            0 => MessageId::None,
            1 => MessageId::First(id),
            2 => MessageId::Retry(id),
            3 => MessageId::Given(id),
            n => return Err(not(format!("unknown message id kind {n}"))),
        },
        received_at: Timestamp::from_micros(rest.long()?),
        device_time: rest.nullable(Rest::long)?.map(Timestamp::from_micros),
        time: Timestamp::from_micros(rest.long()?),
        time_source: match rest.long()? {
            0 => TimeSource::Device,
            1 => TimeSource::Server,
            2 => TimeSource::ServerAsFuture,
            3 => TimeSource::ServerAsTooOld,
            n => return Err(not(format!("unknown time source {n}"))),
        },
        readings: {
            rest.nullable(Rest::text)?; // content type
            rest.nullable(Rest::text)?; // schema id
            rest.nullable(Rest::long)?; // schema version
            rest.readings()?
        },
    };
    rest.nullable(Rest::bytes)?; // ciphertext
    match rest.0 {
        [] => Ok(record),
        more => Err(not(format!("{} bytes after its end", more.len()))),
    }
}

/// Tenant and device, which stand first in all records but alerts, without reading on.
pub fn owner(datum: &[u8]) -> Option<(&str, &str)> {
    let mut rest = Rest(datum);
    Some((rest.text().ok()?, rest.text().ok()?))
}

/// Tenant and device of an `AlertTransition`, which stand behind its id and fingerprint.
pub fn owner_of_alert(datum: &[u8]) -> Option<(&str, &str)> {
    let mut rest = Rest(datum);
    rest.long().ok()?;
    rest.long().ok()?;
    owner(rest.0)
}

fn not(reason: impl Into<String>) -> NotARecord {
    NotARecord { reason: reason.into() }
}

/// What is left of a datum.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn byte(&mut self) -> Result<u8, NotARecord> {
        let (first, rest) = self.0.split_first().ok_or_else(|| not("it ends early"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn take(&mut self, len: i64) -> Result<&'a [u8], NotARecord> {
        let len = usize::try_from(len).map_err(|_| not("a length below zero"))?;
        let (taken, rest) = self.0.split_at_checked(len).ok_or_else(|| not("it ends early"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn long(&mut self) -> Result<i64, NotARecord> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        Err(not("a number of more than 64 bits"))
    }

    fn bytes(&mut self) -> Result<&'a [u8], NotARecord> {
        let len = self.long()?;
        self.take(len)
    }

    fn text(&mut self) -> Result<&'a str, NotARecord> {
        str::from_utf8(self.bytes()?).map_err(|_| not("a text that is not UTF-8"))
    }

    fn double(&mut self) -> Result<f64, NotARecord> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or_else(|| not("it ends early"))?;
        self.0 = rest;
        Ok(f64::from_le_bytes(*bytes))
    }

    fn boolean(&mut self) -> Result<bool, NotARecord> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            n => Err(not(format!("{n} is no boolean"))),
        }
    }

    fn nullable<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, NotARecord>,
    ) -> Result<Option<T>, NotARecord> {
        match self.byte()? {
            NULL => Ok(None),
            PRESENT => read(self).map(Some),
            n => Err(not(format!("{n} is no branch of a union"))),
        }
    }

    /// Blocks of items, up to an empty one; a count below zero is followed by the block's size.
    fn readings(&mut self) -> Result<Readings<'a>, NotARecord> {
        let mut readings = Readings::new();
        loop {
            let count = self.long()?;
            if count == 0 {
                return Ok(readings);
            }
            if count < 0 {
                self.long()?;
            }
            for _ in 0..count.unsigned_abs() {
                readings.push(self.reading()?); // Ends with the bytes, whatever the count says.
            }
        }
    }

    fn reading(&mut self) -> Result<Reading<'a>, NotARecord> {
        let metric = self.text()?;
        let (f64, i64) = (self.nullable(Self::double)?, self.nullable(Self::long)?);
        let (bool, text) = (self.nullable(Self::boolean)?, self.nullable(Self::text)?);
        let value = match (f64, i64, bool, text) {
            (Some(v), ..) => ValueRef::F64(v),
            (_, Some(v), ..) => ValueRef::I64(v),
            (_, _, Some(v), _) => ValueRef::Bool(v),
            (_, _, _, Some(v)) => ValueRef::Text(v),
            _ => return Err(not(format!("reading {metric:?} has no value"))),
        };
        Ok(Reading { metric, value })
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
datum!(Command, "command.avsc");
datum!(CommandReply, "command_reply.avsc");
datum!(AlertTransition, "alert.avsc");

#[cfg(test)]
mod tests;
