use std::path::Path;

use dunlin_model::AlertPhase;
use dunlin_pipeline::{Limits, RuleSet, engine::Engine};
use time::{PrimitiveDateTime, format_description::FormatItem, macros::format_description};

use super::*;

/// Where people labelled the machine as failing, from the benchmark.
const LABELLED: [(&str, &str); 4] = [
    ("2013-12-10 06:25:00", "2013-12-12 05:35:00"),
    ("2013-12-15 17:50:00", "2013-12-17 17:00:00"),
    ("2014-01-27 14:20:00", "2014-01-29 13:30:00"),
    ("2014-02-07 14:55:00", "2014-02-09 14:05:00"),
];
const FORMAT: &[FormatItem<'_>] = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");

fn instant(text: &str) -> i64 {
    PrimitiveDateTime::parse(text, &FORMAT).unwrap().assume_utc().unix_timestamp()
}

#[test]
fn the_shipped_rule_fires_in_every_labelled_failure_of_a_real_machine() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shipped = std::fs::read_to_string(here.join("../../rules/machine-temperature.toml")).unwrap();
    let rules = RuleSet::parse(&shipped, "machine-temperature.toml").unwrap();
    let mut engine = Engine::new(Limits::default(), &rules);
    let mut said = Vec::new();
    let mut file = csv::Reader::from_path(here.join("tests/data/machine_temperature.csv")).unwrap();
    for (row, offset) in file.records().zip(0..) {
        let row = row.unwrap();
        let record = reading("press-1", instant(&row[0]), row[1].parse().unwrap());
        engine.evaluate(&record, Offset(offset), &mut said);
    }
    let fired: Vec<i64> =
        said.iter().filter(|t| t.phase == AlertPhase::Firing).map(|t| t.at.as_micros() / 1_000_000).collect();
    let labelled = LABELLED.map(|(start, end)| instant(start)..=instant(end));
    for window in &labelled {
        assert!(fired.iter().any(|at| window.contains(at)), "silent in {window:?}; fired {fired:?}");
    }
    let outside = fired.iter().filter(|at| !labelled.iter().any(|w| w.contains(at))).count();
    assert!(outside <= 4, "{outside} of {} firings are outside: {fired:?}", fired.len());
    println!("{} firings, {outside} outside the labelled windows", fired.len());
}
