//! A rule's own tests, run by the same engine as live records.

use std::fmt;

use dunlin_journal::Offset;
use dunlin_model::{AlertPhase, AlertTransition, MessageId, Reading, Readings, Record, TimeSource};

use crate::{
    engine::Limits,
    groups::Alone,
    rules::{Expected, Rule, RuleSet, RuleTest},
};

/// How a test ended otherwise than expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    pub test: String,
    pub expected: String,
    pub found: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, found {}", self.test, said(&self.expected), said(&self.found))
    }
}

fn said(steps: &str) -> &str {
    if steps.is_empty() { "nothing" } else { steps }
}

/// Runs a rule's tests; those that failed.
pub fn check(rule: &Rule) -> Vec<Failed> {
    rule.tests.iter().filter_map(|test| check_one(rule, test).err()).collect()
}

fn check_one(rule: &Rule, test: &RuleTest) -> Result<(), Failed> {
    // What is pending is told to nobody, so a test that does not speak of it does not mean it.
    let speaks_of = |phases: [AlertPhase; 2]| test.expect.iter().any(|e| phases.contains(&e.phase));
    let is_meant = |phase: AlertPhase| match phase {
        AlertPhase::Firing | AlertPhase::Resolved => true,
        AlertPhase::Pending | AlertPhase::Cancelled => {
            speaks_of([AlertPhase::Pending, AlertPhase::Cancelled])
        }
    };
    let found: Vec<AlertTransition> = run(rule, test).into_iter().filter(|t| is_meant(t.phase)).collect();
    let is_same = |(expected, found): (&Expected, &AlertTransition)| {
        found.at == test.start + expected.after
            && found.phase == expected.phase
            && found.device == expected.device
            && expected.severity.is_none_or(|severity| severity == found.severity)
    };
    if found.len() == test.expect.len() && test.expect.iter().zip(&found).all(is_same) {
        return Ok(());
    }
    let expected = test.expect.iter().map(|e| {
        let severity = e.severity.map(|s| format!(" {}", word(s))).unwrap_or_default();
        format!("{}: {}s {}{severity}", e.device, e.after.as_secs_f64(), word(e.phase))
    });
    let found = found.iter().map(|t| {
        let after = t.at.since(test.start).as_secs_f64();
        format!("{}: {after}s {} {}", t.device, word(t.phase), word(t.severity))
    });
    let joined = |steps: &mut dyn Iterator<Item = String>| steps.collect::<Vec<_>>().join(" | ");
    Err(Failed {
        test: test.name.clone(),
        expected: joined(&mut expected.into_iter()),
        found: joined(&mut found.into_iter()),
    })
}

/// All that a rule says of what a test gives.
pub(crate) fn run(rule: &Rule, test: &RuleTest) -> Vec<AlertTransition> {
    let rules = RuleSet::of(vec![rule.clone().into()]);
    let limits =
        Limits { lateness_millis: 0, idle_grace_seconds: 0, group_wait_millis: 0, ..Limits::default() };
    let (mut engine, mut out) = (Alone::new(limits, &rules), Vec::new());
    let mut given: Vec<_> = test.readings.iter().collect();
    given.sort_by_key(|given| given.after);
    for (given, offset) in given.into_iter().zip(0..) {
        let time = test.start + given.after;
        let readings =
            given.readings.iter().map(|(metric, value)| Reading { metric, value: value.borrowed() });
        let record = Record {
            tenant: rule.tenant.as_deref().unwrap_or("default"),
            device: &given.device,
            device_type: rule.device_type.as_deref().unwrap_or("default"),
            message_id: MessageId::None,
            received_at: time,
            device_time: None,
            time,
            time_source: TimeSource::Server,
            readings: readings.collect::<Readings<'_>>(),
        };
        engine.evaluate(&record, Offset(offset), &mut out);
    }
    // Beyond the instant itself, so that what is due then has come about.
    let end = test.start + test.until + std::time::Duration::from_millis(50);
    engine.tick(end, &mut out);
    out
}

fn word(of: impl fmt::Debug) -> String {
    format!("{of:?}").to_lowercase()
}
