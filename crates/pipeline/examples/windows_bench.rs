//! Events per second and core through 1 s tumbling windows (avg, max and count) in event time over 10,000 keys, beside
//! a hand-written loop over arrays with the same data and windows. The records of devices that say their times wait the
//! lateness of 1 s, and are compared with earlier ones as copies of them; those are measured as well.
//! `cargo run --release -p dunlin-pipeline --example windows_bench [events] [keys]`

use std::{env, time::Instant};

use dunlin_journal::Offset;
use dunlin_model::{MessageId, Reading, Readings, Record, TimeSource, Timestamp, ValueRef};
use dunlin_pipeline::{Limits, RuleSet, engine::Engine};

const RULES: &str = "
[[rule]]
name = \"avg\"
when = \"avg(value) over 1s > 1000000\"
[[rule]]
name = \"max\"
when = \"max(value) over 1s > 1000000\"
[[rule]]
name = \"count\"
when = \"count(value) over 1s > 1000000\"
";

const BLOCK: u64 = 32;

#[derive(Clone, Copy, Default)]
struct Window {
    second: u64,
    count: u64,
    sum: f64,
    max: f64,
}

fn main() {
    let mut arguments = env::args().skip(1).map(|a| a.parse::<u64>().expect("a number"));
    let events = arguments.next().unwrap_or(5_000_000);
    let keys = arguments.next().unwrap_or(10_000).max(1);
    let names: Vec<String> = (0..keys).map(|n| format!("key-{n:06}")).collect();
    // Ten events of a key in a second.
    let micros = |n: u64| 1_700_000_000_000_000 + n * 100_000 / keys;
    let value = |n: u64| (n.wrapping_mul(0x9E37_79B9) % 1_000) as f64;

    let started = Instant::now();
    let mut windows = vec![Window::default(); keys as usize];
    let (mut closed, mut check) = (0u64, 0.0);
    for n in 0..events {
        let (second, value) = (micros(n) / 1_000_000, value(n));
        let window = &mut windows[(n % keys) as usize];
        if window.second != second {
            if window.count > 0 {
                closed += 1;
                check += window.sum / window.count as f64 + window.max;
            }
            *window = Window { second, count: 0, sum: 0.0, max: f64::MIN };
        }
        window.count += 1;
        window.sum += value;
        window.max = window.max.max(value);
    }
    let array = events as f64 / started.elapsed().as_secs_f64() / 1e6;

    let rules = RuleSet::parse(RULES, "bench").expect("rules");
    let run = |time_source: TimeSource| {
        let (mut engine, mut out) = (Engine::new(Limits::default(), &rules), Vec::new());
        // In blocks, as a pipeline reads them. The records are used again: what reading them from somewhere costs is not
        // measured.
        let mut block: Vec<Record<'_>> = (0..BLOCK).map(|_| blank(time_source)).collect();
        let started = Instant::now();
        for first in (0..events).step_by(BLOCK as usize) {
            let block = &mut block[..(events - first).min(BLOCK) as usize];
            for (record, n) in block.iter_mut().zip(first..) {
                let time = Timestamp::from_micros(micros(n) as i64);
                record.device = &names[(n % keys) as usize];
                (record.received_at, record.time) = (time, time);
                record.device_time = (time_source == TimeSource::Device).then_some(time);
                record.readings[0].value = ValueRef::F64(value(n));
            }
            engine.look_ahead(block.iter());
            for (record, n) in block.iter().zip(first..) {
                engine.evaluate(record, Offset(n), &mut out);
            }
        }
        let rate = events as f64 / started.elapsed().as_secs_f64() / 1e6;
        let evaluated: u64 = engine.accounts().values().map(|account| account.evaluated).sum();
        assert_eq!((evaluated, out.len()), (events, 0), "all counted, and nobody alarmed");
        rate
    };
    let engine = run(TimeSource::Server);
    println!("array loop   {array:.2} M events/s ({closed} windows, check {check:.0})");
    println!("engine       {engine:.2} M events/s");
    println!("engine / array loop {:.4}", engine / array);
    println!("devices that say their times: {:.2} M events/s", run(TimeSource::Device));
}

fn blank<'a>(time_source: TimeSource) -> Record<'a> {
    Record {
        tenant: "default",
        device: "",
        device_type: "default",
        message_id: MessageId::None,
        received_at: Timestamp::MIN,
        device_time: None,
        time: Timestamp::MIN,
        time_source,
        readings: Readings::from_iter([Reading { metric: "value", value: ValueRef::F64(0.0) }]),
    }
}
