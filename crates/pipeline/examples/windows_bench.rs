//! Events per second and core through 1 s tumbling windows (avg, max and count) in event time over 10,000 keys, beside
//! a hand-written loop over arrays with the same data and windows.
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
    let (mut engine, mut out) = (Engine::new(Limits::default(), &rules), Vec::new());
    let started = Instant::now();
    let event = |n: u64| {
        let time = Timestamp::from_micros(micros(n) as i64);
        Record {
            tenant: "default",
            device: &names[(n % keys) as usize],
            device_type: "default",
            message_id: MessageId::None,
            received_at: time,
            device_time: None,
            time,
            time_source: TimeSource::Server,
            readings: Readings::from_iter([Reading { metric: "value", value: ValueRef::F64(value(n)) }]),
        }
    };
    // In blocks, as a pipeline reads them.
    let mut block = Vec::with_capacity(32);
    for first in (0..events).step_by(32) {
        block.clear();
        block.extend((first..events.min(first + 32)).map(event));
        engine.look_ahead(block.iter());
        for (record, n) in block.iter().zip(first..) {
            engine.evaluate(record, Offset(n), &mut out);
        }
    }
    let engine = events as f64 / started.elapsed().as_secs_f64() / 1e6;
    println!("array loop   {array:.2} M events/s ({closed} windows, check {check:.0})");
    println!("engine       {engine:.2} M events/s ({} transitions)", out.len());
    println!("engine / array loop {:.4}", engine / array);
}
