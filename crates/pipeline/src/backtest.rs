//! A rule over stored history: how often, on which devices and when it would have fired.
//!
//! The readings go through the very engine that evaluates live records, in the order of event time. What history does
//! not tell is left out: the order of arrival, and clocks that were set right.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use dunlin_journal::Offset;
use dunlin_model::{
    AlertPhase, AlertTransition, MessageId, Reading, Readings, Record, Severity, TenantId, TimeSource,
    Timestamp, Value,
};
use dunlin_tsdb::{Query, QueryError, Tsdb};

use crate::{
    engine::Limits,
    groups::Alone,
    rules::{Rule, RuleSet},
};

/// How much one back-test may read and say.
#[derive(Debug, Clone, Copy)]
pub struct BacktestLimits {
    /// Points read at once.
    pub points_max: usize,
    /// Firings that are told one by one; all are counted.
    pub firings_max: usize,
}

impl Default for BacktestLimits {
    fn default() -> Self {
        Self { points_max: 1_000_000, firings_max: 10_000 }
    }
}

/// History is read in stretches of at most this, and at least that.
const STRETCH_MAX: Duration = Duration::from_secs(7 * 86_400);
const STRETCH_MIN: Duration = Duration::from_secs(1);

/// What a rule would have done.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    pub records: u64,
    pub readings: u64,
    pub devices: u64,
    /// All firings, also those that are not told.
    pub fired: u64,
    /// By device, of those that fired.
    pub fired_by_device: BTreeMap<String, u64>,
    /// By time.
    pub firings: Vec<Firing>,
}

/// One episode.
#[derive(Debug, Clone, PartialEq)]
pub struct Firing {
    pub device: String,
    /// The worst it had.
    pub severity: Severity,
    pub since: Timestamp,
    pub fired_at: Timestamp,
    /// `None`: it still fires at the end.
    pub resolved_at: Option<Timestamp>,
    pub value: f64,
}

impl Firing {
    /// Whether it has something to do with what people say of a time: of a device, or of all.
    pub fn is_about(&self, device: Option<&str>, from: Timestamp, to: Timestamp) -> bool {
        device.is_none_or(|device| device == self.device)
            && self.since <= to
            && self.resolved_at.is_none_or(|resolved| resolved >= from)
    }
}

/// Which part of history, of whom.
#[derive(Debug, Clone)]
pub struct Range<'a> {
    pub tenant: &'a TenantId,
    pub from: Timestamp,
    pub to: Timestamp,
    /// The types of the devices, where the rule asks for one; who is not there is of another.
    pub device_types: &'a HashMap<String, String>,
}

/// Replays history through one rule.
pub async fn run(
    rule: &Rule,
    tsdb: &dyn Tsdb,
    range: &Range<'_>,
    limits: BacktestLimits,
) -> Result<Report, QueryError> {
    let mut replay = Replay::new(rule, range, limits);
    let (mut at, mut stretch) = (range.from, STRETCH_MAX);
    while at < range.to {
        let end = (at + stretch).min(range.to);
        match tsdb.query(range.tenant, replay.query(at, end)).await {
            Ok(series) => {
                let points: usize = series.iter().map(|series| series.points.len()).sum();
                replay.take(series);
                at = end;
                if points < limits.points_max / 4 {
                    stretch = (stretch * 2).min(STRETCH_MAX);
                }
            }
            // Too much at once: half of it.
            Err(QueryError::TooLarge { .. }) if stretch > STRETCH_MIN => {
                stretch = (stretch / 2).max(STRETCH_MIN)
            }
            Err(error) => return Err(error),
        }
        // Evaluating is work without a wait: others get their turn.
        tokio::task::yield_now().await;
    }
    Ok(replay.finish())
}

struct Replay<'a> {
    rule: &'a Rule,
    range: &'a Range<'a>,
    limits: BacktestLimits,
    metrics: Vec<String>,
    engine: Alone,
    said: Vec<AlertTransition>,
    offset: u64,
    report: Report,
    open: HashMap<String, Firing>,
}

impl<'a> Replay<'a> {
    fn new(rule: &'a Rule, range: &'a Range<'a>, limits: BacktestLimits) -> Self {
        // In the order of time, nothing is late and nobody has to be waited for.
        let engine_limits = Limits {
            lateness_millis: 0,
            idle_grace_seconds: 0,
            group_wait_millis: 0,
            device_ttl_seconds: u64::MAX / 4,
            devices_max: usize::MAX,
            ..Limits::default()
        };
        let mut metrics: Vec<Option<&str>> = rule.inputs().collect();
        metrics.sort_unstable();
        metrics.dedup();
        let all = metrics.contains(&None);
        Self {
            rule,
            range,
            limits,
            // None named is all.
            metrics: metrics.into_iter().flatten().filter(|_| !all).map(Into::into).collect(),
            engine: Alone::new(engine_limits, &RuleSet::of(vec![rule.clone().into()])),
            said: Vec::new(),
            offset: 0,
            report: Report::default(),
            open: HashMap::new(),
        }
    }

    fn query(&self, start: Timestamp, end: Timestamp) -> Query {
        let devices = self.rule.devices.to_string();
        Query {
            devices: if devices.contains(['*', '?']) { Vec::new() } else { vec![devices] },
            metrics: self.metrics.clone(),
            start,
            end,
            step: None,
            points_max: self.limits.points_max,
        }
    }

    fn is_looked_at(&self, device: &str) -> bool {
        self.rule.devices.matches(device)
            && self.rule.device_type.as_deref().is_none_or(|wanted| {
                self.range.device_types.get(device).is_some_and(|device_type| device_type == wanted)
            })
    }

    /// One stretch of history: its points by time, those of one device and time as one record.
    fn take(&mut self, series: Vec<dunlin_tsdb::Series>) {
        let mut records = BTreeMap::<(Timestamp, &str), Vec<(&str, &Value)>>::new();
        for series in series.iter().filter(|series| self.is_looked_at(&series.device)) {
            for (time, value) in &series.points {
                records.entry((*time, &series.device)).or_default().push((&series.metric, value));
            }
        }
        for ((time, device), readings) in records {
            self.report.records += 1;
            self.report.readings += readings.len() as u64;
            let readings = readings
                .into_iter()
                .map(|(metric, value)| Reading { metric, value: value.borrowed() })
                .collect::<Readings<'_>>();
            let record = Record {
                tenant: self.range.tenant,
                device,
                device_type: self.rule.device_type.as_deref().unwrap_or("default"),
                message_id: MessageId::None,
                received_at: time,
                device_time: None,
                time,
                time_source: TimeSource::Server,
                readings,
            };
            self.engine.evaluate(&record, Offset(self.offset), &mut self.said);
            self.offset += 1;
            self.note();
        }
    }

    fn note(&mut self) {
        for said in std::mem::take(&mut self.said) {
            match said.phase {
                AlertPhase::Firing => match self.open.get_mut(&said.device) {
                    Some(open) => open.severity = open.severity.max(said.severity),
                    None => {
                        self.report.fired += 1;
                        *self.report.fired_by_device.entry(said.device.clone()).or_default() += 1;
                        let firing = Firing {
                            device: said.device.clone(),
                            severity: said.severity,
                            since: said.since,
                            fired_at: said.at,
                            resolved_at: None,
                            value: said.value,
                        };
                        self.open.insert(said.device, firing);
                    }
                },
                AlertPhase::Resolved => {
                    if let Some(firing) = self.open.remove(&said.device) {
                        self.tell(Firing { resolved_at: Some(said.at), ..firing });
                    }
                }
                AlertPhase::Pending | AlertPhase::Cancelled => {}
            }
        }
    }

    fn tell(&mut self, firing: Firing) {
        if self.report.firings.len() < self.limits.firings_max {
            self.report.firings.push(firing);
        }
    }

    fn finish(mut self) -> Report {
        self.engine.tick(self.range.to, &mut self.said);
        self.note();
        for firing in std::mem::take(&mut self.open).into_values() {
            self.tell(firing);
        }
        self.report.devices = self.engine.engine().device_count() as u64;
        self.report.firings.sort_by(|a, b| (a.fired_at, &a.device).cmp(&(b.fired_at, &b.device)));
        self.report
    }
}
