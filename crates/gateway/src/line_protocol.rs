//! InfluxDB line protocol, one line one record.
//!
//! - A field is the metric `measurement.field`; just `field` if the measurement is `telemetry` or the device's type.
//! - Tags are kept as text readings, named like fields; but the tag `device` of a credential that speaks for
//!   children says whose line it is.
//! - A line with a time is its own identity, as it is for InfluxDB: sent again, it is the same point.

use bumpalo::Bump;
use dunlin_model::{
    DeviceId, MetricName, Reading, Readings, RejectReason, Timestamp, ValueRef,
    limits::{RECORD_READINGS_MAX, TEXT_BYTES_MAX},
};
use influxdb_line_protocol::{FieldValue, ParsedLine, parse_lines, split_lines};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::decode::{Entry, Fault, repeated};

/// What the numbers at the end of lines count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    Nanoseconds,
    /// This many microseconds.
    Microseconds(i64),
}

impl Precision {
    /// By its name in the query string: InfluxDB 1 and 2 use different ones.
    pub(crate) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "" | "ns" | "n" => Self::Nanoseconds,
            "us" | "u" | "µs" => Self::Microseconds(1),
            "ms" => Self::Microseconds(1_000),
            "s" => Self::Microseconds(1_000_000),
            "m" => Self::Microseconds(60_000_000),
            "h" => Self::Microseconds(3_600_000_000),
            _ => return None,
        })
    }

    fn timestamp(self, number: i64) -> Option<Timestamp> {
        match self {
            Self::Nanoseconds => Some(Timestamp::from_micros(number.div_euclid(1_000))),
            Self::Microseconds(unit) => number.checked_mul(unit).map(Timestamp::from_micros),
        }
    }
}

/// Whose lines they are, and how they are read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub(crate) device_type: &'a str,
    pub(crate) speaks_for_children: bool,
    pub(crate) precision: Precision,
    pub(crate) arena: &'a Bump,
}

/// One line, understood.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    pub(crate) child: Option<DeviceId>,
    pub(crate) entry: Entry<'a>,
}

impl<'a> Reader<'a> {
    /// Every line that is not empty or a comment, with what it says.
    pub(crate) fn lines(self, text: &'a str) -> impl Iterator<Item = (&'a str, Result<Line<'a>, Fault>)> {
        split_lines(text).filter_map(move |raw| {
            let parsed = parse_lines(raw).next()?;
            let line = parsed
                .map_err(|e| Fault::new(RejectReason::PayloadFormat, "", e))
                .and_then(|line| self.line(raw, line));
            Some((raw.trim(), line))
        })
    }

    fn line(self, raw: &'a str, line: ParsedLine<'a>) -> Result<Line<'a>, Fault> {
        let measurement = line.series.measurement.as_str();
        let prefix = match measurement == "telemetry" || measurement == self.device_type {
            true => "",
            false => measurement,
        };
        let mut child = None;
        let mut readings = Readings::new();
        for (key, value) in line.series.tag_set.iter().flatten() {
            if self.speaks_for_children && key.as_str() == "device" {
                let name = value.as_str().parse();
                child = Some(name.map_err(|e| Fault::new(RejectReason::InvalidValue, "device", e))?);
                continue;
            }
            let text = self.keep(value.as_str());
            self.push(&mut readings, prefix, key.as_str(), ValueRef::Text(text))?;
        }
        for (key, value) in &line.field_set {
            let value = match value {
                FieldValue::I64(v) => ValueRef::I64(*v),
                FieldValue::U64(v) => i64::try_from(*v).map_or(ValueRef::F64(*v as f64), ValueRef::I64),
                FieldValue::F64(v) => ValueRef::F64(*v),
                FieldValue::Boolean(v) => ValueRef::Bool(*v),
                FieldValue::String(v) => ValueRef::Text(self.keep(v.as_str())),
            };
            self.push(&mut readings, prefix, key.as_str(), value)?;
        }
        if let Some(metric) = repeated(&readings) {
            return Err(Fault::new(RejectReason::InvalidValue, metric, "given twice"));
        }
        let device_time = match line.timestamp {
            None => None,
            Some(number) => Some(self.precision.timestamp(number).ok_or_else(|| {
                Fault::new(RejectReason::InvalidValue, "timestamp", "beyond what a time can be")
            })?),
        };
        let id = device_time.map(|time| xxh3_64_with_seed(raw.trim().as_bytes(), time.as_micros() as u64));
        Ok(Line { child, entry: Entry { device_time, id, readings } })
    }

    fn push(
        self,
        readings: &mut Readings<'a>,
        prefix: &str,
        key: &str,
        value: ValueRef<'a>,
    ) -> Result<(), Fault> {
        let metric = match prefix {
            "" => self.keep(key),
            prefix => self.keep(&format!("{prefix}.{key}")),
        };
        let wrong = |what: &dyn std::fmt::Display| Fault::new(RejectReason::InvalidValue, metric, what);
        MetricName::check(metric).map_err(|e| wrong(&e))?;
        match value {
            ValueRef::F64(v) if !v.is_finite() => return Err(wrong(&"a number that is not finite")),
            ValueRef::Text(v) if v.len() > TEXT_BYTES_MAX => {
                return Err(wrong(&format_args!("a text has at most {TEXT_BYTES_MAX} bytes")));
            }
            _ => {}
        }
        if readings.len() == RECORD_READINGS_MAX {
            return Err(wrong(&format_args!("a record has at most {RECORD_READINGS_MAX} readings")));
        }
        readings.push(Reading { metric, value });
        Ok(())
    }

    fn keep(self, text: &str) -> &'a str {
        self.arena.alloc_str(text)
    }
}

#[cfg(test)]
mod tests;
