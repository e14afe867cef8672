use std::path::Path;

use dunlin_model::{AlertPhase, TenantId};
use dunlin_pipeline::{
    Config, Limits, Pipeline, RuleSet, StoreConfig, StoreWriter,
    backtest::{self, BacktestLimits},
    engine::Engine,
};
use dunlin_tsdb::{MemoryDisk, MemoryTsdb};
use prometheus_client::registry::Registry;
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

#[tokio::test]
async fn a_backtest_and_a_live_replay_of_a_real_machine_find_the_identical_list() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shipped = std::fs::read_to_string(here.join("../../rules/machine-temperature.toml")).unwrap();
    let rules = RuleSet::parse(&shipped, "machine-temperature.toml").unwrap();
    let mut file = csv::Reader::from_path(here.join("tests/data/machine_temperature.csv")).unwrap();
    let rows: Vec<_> = file.records().map(Result::unwrap).collect();
    let records: Vec<_> =
        rows.iter().map(|row| reading("press-1", instant(&row[0]), row[1].parse().unwrap())).collect();

    let (dir, journal) = (tempfile::tempdir().unwrap(), journal());
    let tsdb = Arc::new(MemoryTsdb::open(MemoryDisk::default(), None));
    let metrics = &mut Registry::default();
    let pipeline = Pipeline::start(
        Config::default(),
        journal.clone(),
        nothing(),
        rules.clone(),
        checkpoints(dir.path()),
        dir.path(),
        still(),
        metrics,
    )
    .unwrap();
    for chunk in records.chunks(1_000) {
        append(&journal, chunk).await;
    }
    let end = journal.extent(TELEMETRY).next;
    until("the rules caught up", || pipeline.view().position(0) == Some(end)).await;
    pipeline.stop().await;
    let writer = StoreWriter::start(
        StoreConfig::default(),
        journal.clone(),
        tsdb.clone(),
        dir.path(),
        still(),
        &mut Registry::default(),
    );
    writer.unwrap().stop().await;

    let range = backtest::Range {
        tenant: &TenantId::default_tenant(),
        from: at(instant("2013-12-01 00:00:00")),
        to: at(instant("2014-03-01 00:00:00")),
        device_types: &[("press-1".to_owned(), "default".to_owned())].into(),
    };
    let rule = &rules.rules()[0];
    let limits = BacktestLimits { points_max: 3_000, ..BacktestLimits::default() };
    let report = backtest::run(rule, &*tsdb, &range, limits).await.unwrap();
    let live: Vec<_> = alerts(&journal).await.into_iter().filter(|t| *t.rule == *rule.name).collect();
    let fired: Vec<_> = live
        .iter()
        .filter(|t| t.phase == AlertPhase::Firing)
        .map(|t| (t.since, t.at, t.value.to_bits()))
        .collect();
    let found: Vec<_> = report.firings.iter().map(|f| (f.since, f.fired_at, f.value.to_bits())).collect();
    assert_eq!(found, fired);
    assert_eq!((report.fired, report.devices), (fired.len() as u64, 1));
    let resolved: Vec<_> = live.iter().filter(|t| t.phase == AlertPhase::Resolved).map(|t| t.at).collect();
    assert_eq!(report.firings.iter().filter_map(|f| f.resolved_at).collect::<Vec<_>>(), resolved);

    let labelled = LABELLED.map(|(start, end)| (at(instant(start)), at(instant(end))));
    for (start, end) in labelled {
        assert!(report.firings.iter().any(|f| f.is_about(Some("press-1"), start, end)), "silent in {start}");
    }
    let inside = report.firings.iter().filter(|f| labelled.iter().any(|(s, e)| f.is_about(None, *s, *e)));
    println!("{} firings, {} in the labelled windows", report.fired, inside.count());
}

/// Records as they would be filed, by a device whose clock is off.
fn told(device: &'static str, received: i64, clock: i64, value: f64) -> Record<'static> {
    let policy = dunlin_model::TimePolicy::default();
    let (time, time_source) = policy.judge(Some(at(clock)), at(received));
    let reading = reading(device, received, value);
    Record { received_at: at(received), device_time: Some(at(clock)), time, time_source, ..reading }
}

#[test]
fn wrong_clocks_a_late_batch_and_copies_change_no_alert() {
    const NOW: i64 = 1_800_000_000;
    const HOURS: i64 = 28;
    const KEPT: std::ops::Range<i64> = 3_600 + 600..25 * 3_600 + 600;
    let text = "[[rule]]\nname = \"hot\"\nwhen = \"avg(temperature) over 1m > 80 for 2m, clear below 75\"\n";
    let rules = RuleSet::parse(text, "hot.toml").unwrap();
    // Hot for five minutes in every hour.
    let value = |second: i64| if second.rem_euclid(3_600) < 300 { 90.0 } else { 20.0 };
    let devices = ["ahead", "drifting", "reset", "kept"];
    let run = |is_right: bool| {
        let mut stream: Vec<Record<'static>> = Vec::new();
        for second in (0..HOURS * 3_600).step_by(10) {
            for device in devices {
                let right = NOW + second;
                let clock = match device {
                    _ if is_right => right,
                    "ahead" => right + 3 * 3_600,
                    "drifting" => right + second / 60,
                    "reset" if (3_000..7_000).contains(&second) => second,
                    _ => right,
                };
                // One goes off line after an hour, and brings what it kept for a day in one batch.
                let is_kept = !is_right && device == "kept" && KEPT.contains(&second);
                let received = if is_kept { NOW + KEPT.end } else { right };
                stream.push(told(device, received, clock, value(right)));
            }
        }
        stream.sort_by_key(|record| record.received_at);
        let mut engine = Engine::new(Limits::default(), &rules);
        let mut said = Vec::new();
        for (record, offset) in stream.iter().zip((0..).step_by(2)) {
            engine.evaluate(record, Offset(offset), &mut said);
            if !is_right && record.time_source == TimeSource::Device {
                engine.evaluate(record, Offset(offset + 1), &mut said);
            }
        }
        let ids: std::collections::HashSet<_> = said.iter().map(|t| t.id).collect();
        assert_eq!(ids.len(), said.len(), "something is told twice");
        if !is_right {
            let ahead = engine.clock_ahead_micros("default", "ahead").unwrap();
            assert_eq!(ahead, 3 * 3_600 * 1_000_000);
        }
        let fired = said.iter().filter(|t| t.phase == AlertPhase::Firing);
        let mut fired: Vec<_> = fired.map(|t| (t.device.clone(), t.at.as_micros() / 60_000_000)).collect();
        fired.sort();
        fired
    };
    let right = run(true);
    assert_eq!(right.len(), devices.len() * HOURS as usize, "{right:?}");
    assert_eq!(run(false), right);
}
