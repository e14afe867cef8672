//! What a rule's own tests say: readings that are given, and what is expected of them.
//!
//! ```toml
//! [[rule.test]]
//! name = "a short peak pages nobody"
//! start = "2026-07-01T08:00:00Z"                          # 1970 if absent
//! readings = "0s temperature=81 fan=3 | 60s temperature=79 | b: 61s temperature=90"
//! until = "10m"                                           # time goes on so far; up to the last reading if absent
//! expect = "120s firing | 300s firing critical | 360s resolved"
//! ```

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime};
use dunlin_model::{AlertPhase, Severity, Timestamp};
use serde::Deserialize;

use super::{Rule, Scalar, duration};

/// One test of one rule.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleTest {
    pub name: String,
    pub start: Timestamp,
    pub readings: Vec<Given>,
    pub until: Duration,
    pub expect: Vec<Expected>,
}

/// One record: from the start of the test on, of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Given {
    pub after: Duration,
    pub device: String,
    pub readings: Vec<(Box<str>, Scalar)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub after: Duration,
    pub device: String,
    pub phase: AlertPhase,
    /// Any if `None`.
    pub severity: Option<Severity>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TestToml {
    name: String,
    start: Option<String>,
    readings: String,
    until: Option<String>,
    #[serde(default)]
    expect: String,
}

impl TestToml {
    pub(super) fn read(self, rule: &Rule) -> Result<RuleTest, String> {
        let start = match &self.start {
            None => Timestamp::from_micros(0),
            Some(text) => instant(text)
                .ok_or_else(|| format!("{text:?} is no time; write for example 2026-07-01T08:00:00Z"))?,
        };
        let device = device_of(rule);
        let only_metric = only_metric(rule);
        let parts = |text: &str| -> Vec<String> {
            text.split(['|', '\n']).map(|p| p.trim().to_owned()).filter(|p| !p.is_empty()).collect()
        };
        let given = |part: String| Given::read(&part, &device, only_metric);
        let readings = parts(&self.readings).into_iter().map(given).collect::<Result<Vec<_>, _>>()?;
        let subject = rule.told().subject.as_deref().unwrap_or(&device);
        let expected = |part: String| Expected::read(&part, subject);
        let expect = parts(&self.expect).into_iter().map(expected).collect::<Result<Vec<_>, _>>()?;
        let last = readings.iter().map(|given| given.after).max().unwrap_or_default();
        let until = match &self.until {
            None => last,
            Some(text) => seconds(text).ok_or_else(|| not_a_time(text))?.max(last),
        };
        Ok(RuleTest { name: self.name, start, readings, until, expect })
    }
}

/// A time in RFC 3339; without a zone it is UTC.
pub fn instant(text: &str) -> Option<Timestamp> {
    let micros = match DateTime::parse_from_rfc3339(text) {
        Ok(time) => time.timestamp_micros(),
        Err(_) => {
            let local = NaiveDateTime::parse_from_str(&text.replacen(' ', "T", 1), "%Y-%m-%dT%H:%M:%S%.f");
            local.ok()?.and_utc().timestamp_micros()
        }
    };
    Some(Timestamp::from_micros(micros))
}

/// A device that the rule looks at.
fn device_of(rule: &Rule) -> String {
    rule.devices.to_string().replace(['*', '?'], "1")
}

fn only_metric(rule: &Rule) -> Option<&str> {
    let mut metrics: Vec<&str> = rule.inputs().flatten().collect();
    metrics.sort_unstable();
    metrics.dedup();
    <[&str; 1]>::try_from(metrics).ok().map(|[only]| only)
}

impl Given {
    fn read(text: &str, device: &str, only_metric: Option<&str>) -> Result<Self, String> {
        let (device, rest) = of_device(text, device);
        let mut words = words(rest).into_iter();
        let after = words.next().unwrap_or_default();
        let after = seconds(&after).ok_or_else(|| not_a_time(&after))?;
        let reading = |word: String| {
            let (metric, value) = match (word.split_once('='), only_metric) {
                (Some((metric, value)), _) => (metric, value),
                (None, Some(only)) => (only, &*word),
                (None, None) => return Err(format!("{word:?}: write METRIC=VALUE")),
            };
            Ok((Box::from(metric), scalar(value).ok_or_else(|| format!("{value:?} is no value"))?))
        };
        Ok(Self { after, device, readings: words.map(reading).collect::<Result<_, _>>()? })
    }
}

impl Expected {
    fn read(text: &str, device: &str) -> Result<Self, String> {
        let (device, rest) = of_device(text, device);
        let mut words = rest.split_whitespace();
        let after = words.next().unwrap_or_default();
        let after = seconds(after).ok_or_else(|| not_a_time(after))?;
        let phase = match words.next() {
            Some("pending") => AlertPhase::Pending,
            Some("firing") => AlertPhase::Firing,
            Some("resolved") => AlertPhase::Resolved,
            Some("cancelled") => AlertPhase::Cancelled,
            _ => return Err(format!("{text:?}: write for example 120s firing, or 300s resolved")),
        };
        let severity = match words.next() {
            None => None,
            Some("info") => Some(Severity::Info),
            Some("warning") => Some(Severity::Warning),
            Some("critical") => Some(Severity::Critical),
            Some(other) => {
                return Err(format!("{other:?} is no severity; there are info, warning, critical"));
            }
        };
        Ok(Self { after, device, phase, severity })
    }
}

fn of_device<'a>(text: &'a str, device: &str) -> (String, &'a str) {
    match text.split_once(": ") {
        Some((device, rest)) => (device.trim().to_owned(), rest),
        None => (device.to_owned(), text),
    }
}

/// By spaces, but for those within quotes.
fn words(text: &str) -> Vec<String> {
    let (mut all, mut word, mut is_quoted) = (Vec::new(), String::new(), false);
    for c in text.chars() {
        match c {
            '\'' => {
                is_quoted = !is_quoted;
                word.push(c);
            }
            c if c.is_whitespace() && !is_quoted => {
                if !word.is_empty() {
                    all.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        all.push(word);
    }
    all
}

/// `0s`, `90s`, `1.5s`, `10m`, `2h30m`.
fn seconds(text: &str) -> Option<Duration> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    if let (Ok(count), "s") = (number.parse::<f64>(), &text[number.len()..]) {
        return Duration::try_from_secs_f64(count).ok();
    }
    let mut whole = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |n| digits + n);
        whole += duration(&rest[..unit])?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(whole)
}

fn not_a_time(text: &str) -> String {
    format!("{text:?} is no time from the start; write for example 0s, 90s, 10m or 2h30m")
}

fn scalar(text: &str) -> Option<Scalar> {
    if let Some(text) = text.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')) {
        return Some(Scalar::Text(text.into()));
    }
    match text {
        "true" => Some(Scalar::Bool(true)),
        "false" => Some(Scalar::Bool(false)),
        _ => match text.parse::<i64>() {
            Ok(v) => Some(Scalar::I64(v)),
            Err(_) => text.parse::<f64>().ok().filter(|v| v.is_finite()).map(Scalar::F64),
        },
    }
}
