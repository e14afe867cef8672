//! Threshold-rule evaluations per second and core with many rules: each metric has its share of them, and a record
//! with one reading costs those alone.
//! `cargo run --release -p dunlin-pipeline --example many_rules_bench [records] [rules] [devices]`

use std::{env, fmt::Write, time::Instant};

use dunlin_journal::Offset;
use dunlin_model::{MessageId, Reading, Readings, Record, TimeSource, Timestamp, ValueRef};
use dunlin_pipeline::{Limits, RuleSet, engine::Engine};

const METRICS: u64 = 100;

fn main() {
    let mut arguments = env::args().skip(1).map(|a| a.parse::<u64>().expect("a number"));
    let records = arguments.next().unwrap_or(200_000);
    let rules = arguments.next().unwrap_or(10_000).max(METRICS);
    let devices = arguments.next().unwrap_or(100).max(1);
    let mut text = String::new();
    for n in 0..rules {
        let (metric, limit) = (n % METRICS, 100 + n / METRICS);
        writeln!(text, "[[rule]]\nname = \"r{n}\"\nwhen = \"m{metric} > {limit}\"").expect("room");
    }
    let started = Instant::now();
    let rules = RuleSet::parse(&text, "bench").expect("rules");
    println!("{} rules read in {:.2} s", rules.len(), started.elapsed().as_secs_f64());

    let names: Vec<String> = (0..devices).map(|n| format!("device-{n:06}")).collect();
    let metrics: Vec<String> = (0..METRICS).map(|n| format!("m{n}")).collect();
    let (mut engine, mut out) = (Engine::new(Limits::default(), &rules), Vec::new());
    let mut offset = 0;
    let mut run = |engine: &mut Engine, records: u64| {
        let started = Instant::now();
        for n in 0..records {
            let time = Timestamp::from_micros(1_700_000_000_000_000 + (offset * 1_000) as i64);
            let record = Record {
                tenant: "default",
                device: &names[(n % devices) as usize],
                device_type: "default",
                message_id: MessageId::None,
                received_at: time,
                device_time: None,
                time,
                time_source: TimeSource::Server,
                readings: Readings::from_iter([Reading {
                    metric: &metrics[(n / devices % METRICS) as usize],
                    // Some of the rules change their mind on a reading in a hundred.
                    value: ValueRef::F64(if n % 97 == 0 { 110.0 } else { 90.0 }),
                }]),
            };
            engine.evaluate(&record, Offset(offset), &mut out);
            out.clear();
            offset += 1;
        }
        started.elapsed().as_secs_f64()
    };
    // Every device looks its rules up once.
    println!("first sight of every metric: {:.2} s", run(&mut engine, devices * METRICS));
    let seconds = run(&mut engine, records);
    let evaluations = records as f64 * (rules.len() as f64 / METRICS as f64);
    println!(
        "{:.2} M evaluations/s, {:.3} M records/s",
        evaluations / seconds / 1e6,
        records as f64 / seconds / 1e6
    );
}
