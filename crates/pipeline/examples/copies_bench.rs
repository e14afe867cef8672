//! Records per second through the memory of copies, by what tells a copy, and what the memory weighs.
//! `cargo run --release -p dunlin-pipeline --example copies_bench [records] [devices] [case]`; memory is right for the first case of a run only.

use std::{env, fs, time::Instant};

use dunlin_journal::Offset;
use dunlin_model::{MessageId, Reading, Readings, Record, TimeSource, Timestamp, ValueRef};
use dunlin_pipeline::{RecentIds, RecentIdsLimits};

type IdOf = fn(u64) -> MessageId;

fn main() {
    let mut arguments = env::args().skip(1).map(|a| a.parse::<u64>().expect("a number"));
    let records = arguments.next().unwrap_or(10_000_000);
    let devices = arguments.next().unwrap_or(10_000).max(1);
    let only = arguments.next().map(|case| case as usize);
    let mix = |n: u64| (n ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let cases: [(&str, IdOf, TimeSource); 4] = [
        ("first delivery, server's time", MessageId::First, TimeSource::Server),
        ("first delivery, device's time", MessageId::First, TimeSource::Device),
        ("given id, server's time", MessageId::Given, TimeSource::Server),
        ("retry, server's time", MessageId::Retry, TimeSource::Server),
    ];
    for (name, id, time_source) in only.map_or(&cases[..], |case| &cases[case..=case]).iter().copied() {
        let before = resident_bytes();
        let mut ids = RecentIds::new(RecentIdsLimits::default());
        let (started, mut copies) = (Instant::now(), 0u64);
        for n in 0..records {
            let time = Timestamp::from_micros(1_700_000_000_000_000 + n as i64 * 8);
            let reading = |metric, value| Reading { metric, value: ValueRef::F64(value) };
            let record = Record {
                tenant: "default",
                device: "device",
                device_type: "default",
                message_id: id(mix(n)),
                received_at: time,
                device_time: None,
                time,
                time_source,
                readings: Readings::from_iter([
                    reading("temperature", 60.0 + (n % 30) as f64),
                    reading("humidity", 40.0),
                    reading("battery", 3.7),
                ]),
            };
            copies += u64::from(ids.observe(&record, mix(n % devices), Offset(n)));
        }
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{name:32} {:6.2} M records/s, {:5.1} MiB, {} ids, {copies} copies",
            records as f64 / seconds / 1e6,
            resident_bytes().saturating_sub(before) as f64 / f64::from(1 << 20),
            ids.len(),
        );
    }
}

/// Of this process, as the kernel says.
fn resident_bytes() -> u64 {
    let said = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    said.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
