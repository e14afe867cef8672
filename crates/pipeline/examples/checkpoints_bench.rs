//! What a checkpoint every second costs: records per second through the rules of a pipeline that reads a full journal,
//! with and without.
//! `cargo run --release -p dunlin-pipeline --example checkpoints_bench [records] [devices] [rounds]`

use std::{
    env,
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use dunlin_journal::{Batch, Journal, MemoryJournal, Partition, Topic};
use dunlin_model::{Clock, MessageId, Reading, Readings, Record, TimeSource, Timestamp, ValueRef, avro};
use dunlin_pipeline::{CheckpointStore, Config, Inflow, Pipeline, RuleSet};
use prometheus_client::registry::Registry;

const RULES: &str =
    "[[rule]]\nname = \"hot\"\nwhen = \"avg(temperature) over 1m > 80 for 2m, clear below 75\"\n";
const TELEMETRY: Partition = Partition { topic: Topic::Telemetry, index: 0 };

#[derive(Debug)]
struct Nothing;

impl Inflow for Nothing {
    fn oldest_under_way(&self) -> Option<Timestamp> {
        None
    }
}

fn now() -> Timestamp {
    let micros = UNIX_EPOCH.elapsed().map_or(0, |since| since.as_micros());
    Timestamp::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
}

async fn fill(journal: &MemoryJournal, records: u64, devices: u64) {
    let names: Vec<String> = (0..devices).map(|n| format!("device-{n:06}")).collect();
    let (mut batch, mut n) = (Batch::default(), 0);
    while n < records {
        let time = Timestamp::from_micros((1_700_000_000 + n / devices) as i64 * 1_000_000);
        let reading = |metric, value| Reading { metric, value: ValueRef::F64(value) };
        let record = Record {
            tenant: "default",
            device: &names[(n % devices) as usize],
            device_type: "default",
            message_id: MessageId::First(n),
            received_at: time,
            device_time: None,
            time,
            time_source: TimeSource::Server,
            readings: Readings::from_iter([
                reading("temperature", 60.0 + (n % 30) as f64),
                reading("humidity", 40.0),
                reading("battery", 3.7),
            ]),
        };
        batch.push_with(|out| avro::encode(&record, out));
        n += 1;
        if batch.len() == 10_000 || n == records {
            journal.append(TELEMETRY, std::mem::take(&mut batch)).await.expect("room");
        }
    }
}

/// Records per second, checkpoints, and their bytes.
async fn run(journal: &Arc<MemoryJournal>, every: u64) -> (f64, u64, u64) {
    let dir = tempfile::tempdir().expect("a directory");
    let rules = RuleSet::parse(RULES, "bench").expect("a rule");
    let config = Config { checkpoint_seconds: every, ..Config::default() };
    let kept = CheckpointStore::local(&dir.path().join("pipeline")).expect("a directory");
    let mut metrics = Registry::default();
    let end = journal.extent(TELEMETRY).next;
    let began = Instant::now();
    let clock = Clock::new(now);
    let pipeline = Pipeline::start(
        config,
        journal.clone(),
        Arc::new(Nothing),
        rules,
        kept,
        dir.path(),
        clock,
        &mut metrics,
    )
    .expect("it starts");
    let view = pipeline.view();
    while view.position(0) != Some(end) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let rate = end.0 as f64 / began.elapsed().as_secs_f64();
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &metrics).expect("text");
    let total = |name: &str| {
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    let made = (total("dunlin_pipeline_checkpoints_total"), total("dunlin_pipeline_checkpoint_bytes_total"));
    pipeline.stop().await;
    (rate, made.0, made.1)
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut arguments = env::args().skip(1).map(|a| a.parse::<u64>().expect("a number"));
    let records = arguments.next().unwrap_or(8_000_000);
    let devices = arguments.next().unwrap_or(10_000).max(1);
    let rounds = arguments.next().unwrap_or(3);
    let journal = Arc::new(MemoryJournal::new(1));
    fill(&journal, records, devices).await;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        without.push(run(&journal, 86_400).await.0);
        let (rate, checkpoints, bytes) = run(&journal, 1).await;
        println!("{checkpoints} checkpoints, {:.1} MB", bytes as f64 / 1e6);
        with.push(rate);
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let (without, with) = (median(&mut without), median(&mut with));
    println!("without      {:.3} M records/s", without / 1e6);
    println!("every second {:.3} M records/s", with / 1e6);
    println!("lost {:.2} %", (1.0 - with / without) * 100.0);
}
