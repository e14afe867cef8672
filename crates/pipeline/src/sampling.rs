//! Which readings are stored, and for how many each stands.
//!
//! Metrics that are marked as not critical are sampled: always, or while the store is behind. Which are kept is decided
//! by a hash of device and time, so a copy is judged as the first was, and whole messages stay together. One that is
//! kept has a weight, so that counts, sums and means are those of all on average. Critical metrics, which are all that
//! nobody marked, are never left out, and the rules see everything.

use std::collections::HashMap;

use dunlin_model::Record;
use dunlin_tsdb::StoredRecord;
use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::copies::device_hash;

/// Names of metrics whose class is remembered.
const KNOWN_MAX: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SamplingConfig {
    /// Of so many readings that may be left out, one is kept.
    pub keep_one_in: u32,
    /// Records behind from which on the store is under pressure.
    pub pressure_lag_records: u64,
    /// What is not critical.
    pub metrics: Vec<NotCritical>,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self { keep_one_in: 10, pressure_lag_records: 200_000, metrics: Vec::new() }
    }
}

/// Metrics that need not all be stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotCritical {
    /// A glob.
    pub metric: String,
    /// All if absent.
    #[serde(default)]
    pub device_type: Option<String>,
    #[serde(default)]
    pub tenant: Option<String>,
    /// Sampled at all times, and not only under pressure.
    #[serde(default)]
    pub always: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    keep_one_in: u32,
    pressure_lag_records: u64,
    metrics: Vec<(WildMatch, NotCritical)>,
    /// Which of them a metric's name fits.
    known: HashMap<Box<str>, Box<[u16]>>,
}

/// What may happen to a reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Critical,
    UnderPressure,
    Always,
}

impl Sampler {
    pub(crate) fn new(config: &SamplingConfig) -> Self {
        let metrics = config.metrics.iter().map(|of| (WildMatch::new(&of.metric), of.clone()));
        Self {
            keep_one_in: config.keep_one_in.max(1),
            pressure_lag_records: config.pressure_lag_records,
            metrics: metrics.collect(),
            known: HashMap::new(),
        }
    }

    pub(crate) fn is_pressed(&self, lag_records: u64) -> bool {
        lag_records >= self.pressure_lag_records
    }

    /// Decides about a record: as it is, thinned, or left out.
    pub(crate) fn thin<'a>(&mut self, record: Record<'a>, is_pressed: bool) -> StoredRecord<'a> {
        if self.metrics.is_empty() || self.keep_one_in == 1 || record.readings.is_empty() {
            return StoredRecord::of(record);
        }
        let classes: Vec<Class> =
            record.readings.iter().map(|reading| self.class(&record, reading.metric)).collect();
        // Under pressure messages are left out whole: the rest of one that is not would look like another message.
        let sheds_all = is_pressed && !classes.contains(&Class::Critical);
        let is_sampled = |class: &Class| *class == Class::Always || sheds_all;
        if !classes.iter().any(is_sampled) {
            return StoredRecord::of(record);
        }
        let mut stored = StoredRecord::of(record);
        if self.keeps(&stored.record) {
            let weight = |class: &Class| if is_sampled(class) { self.keep_one_in } else { 1 };
            stored.weights = classes.iter().map(weight).collect();
        } else {
            let mut classes = classes.iter();
            stored.record.readings.retain(|_| !classes.next().is_some_and(is_sampled));
            stored.is_sampled_out = stored.record.readings.is_empty();
        }
        stored
    }

    fn keeps(&self, record: &Record<'_>) -> bool {
        let of = device_hash(record.tenant, record.device);
        xxh3_64_with_seed(&record.time.as_micros().to_le_bytes(), of)
            .is_multiple_of(u64::from(self.keep_one_in))
    }

    fn class(&mut self, record: &Record<'_>, metric: &str) -> Class {
        if !self.known.contains_key(metric) {
            if self.known.len() >= KNOWN_MAX {
                self.known.clear();
            }
            let fitting = (0u16..).zip(&self.metrics).filter(|(_, (glob, _))| glob.matches(metric));
            self.known.insert(metric.into(), fitting.map(|(n, _)| n).collect());
        }
        let fitting = self.known.get(metric).into_iter().flatten().map(|n| &self.metrics[usize::from(*n)].1);
        let is_of = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
        fitting
            .filter(|of| is_of(&of.device_type, record.device_type) && is_of(&of.tenant, record.tenant))
            .map(|of| if of.always { Class::Always } else { Class::UnderPressure })
            .max()
            .unwrap_or(Class::Critical)
    }
}

#[cfg(test)]
mod tests {
    use dunlin_model::{MessageId, Reading, Readings, TimeSource, Timestamp, ValueRef};

    use super::*;

    fn record<'a>(n: i64, metrics: &[&'a str]) -> Record<'a> {
        let reading = |metric: &&'a str| Reading { metric, value: ValueRef::I64(n) };
        let time = Timestamp::from_micros(n * 1_000_000);
        Record {
            tenant: "default",
            device: "d",
            device_type: "default",
            message_id: MessageId::None,
            received_at: time,
            device_time: None,
            time,
            time_source: TimeSource::Server,
            readings: metrics.iter().map(reading).collect::<Readings<'_>>(),
        }
    }

    fn sampler(text: &str) -> Sampler {
        Sampler::new(&toml::from_str(text).unwrap())
    }

    const DEBUG: &str = "[[metrics]]\nmetric = \"debug.*\"\n";

    #[test]
    fn one_in_ten_is_kept_and_stands_for_ten() {
        let mut sampler = sampler(DEBUG);
        let (mut kept, mut weight) = (0, 0);
        for n in 0..20_000 {
            let stored = sampler.thin(record(n, &["debug.rssi", "debug.heap"]), true);
            assert_eq!(stored.is_sampled_out, stored.weights.is_empty());
            kept += u32::from(!stored.is_sampled_out);
            weight += stored.weights.first().copied().unwrap_or(0);
        }
        assert!((1_800..2_200).contains(&kept), "{kept}");
        assert_eq!(weight, kept * 10);
    }

    #[test]
    fn a_copy_is_judged_as_the_first_was() {
        let (mut one, mut other) = (sampler(DEBUG), sampler(DEBUG));
        for n in 0..1_000 {
            let judged =
                |sampler: &mut Sampler| sampler.thin(record(n, &["debug.rssi"]), true).is_sampled_out;
            assert_eq!(judged(&mut one), judged(&mut other));
        }
    }

    #[test]
    fn what_is_critical_is_never_left_out() {
        let mut under_pressure = sampler(DEBUG);
        let mut always = sampler("[[metrics]]\nmetric = \"debug.*\"\nalways = true\n");
        let mut thinned = 0;
        for n in 0..1_000 {
            let metrics = ["temperature", "debug.rssi"];
            let whole = under_pressure.thin(record(n, &metrics), true);
            assert_eq!((whole.record.readings.len(), whole.weights.len()), (2, 0), "kept as a whole");
            let stored = always.thin(record(n, &metrics), false);
            assert!(!stored.is_sampled_out && stored.record.readings[0].metric == "temperature");
            match &stored.weights[..] {
                [] => thinned += 1,
                weights => assert_eq!(weights, [1, 10]),
            }
        }
        assert!((850..950).contains(&thinned), "{thinned}");
    }

    #[test]
    fn without_pressure_and_for_others_everything_is_kept() {
        let mut of_boilers = sampler("[[metrics]]\nmetric = \"*\"\ndevice_type = \"boiler\"\n");
        for n in 0..100 {
            let stored = of_boilers.thin(record(n, &["debug.rssi"]), true);
            assert!(!stored.is_sampled_out && stored.weights.is_empty());
            let stored = sampler(DEBUG).thin(record(n, &["debug.rssi"]), false);
            assert!(!stored.is_sampled_out && stored.weights.is_empty());
        }
        assert!(of_boilers.is_pressed(200_000) && !of_boilers.is_pressed(199_999));
    }
}
