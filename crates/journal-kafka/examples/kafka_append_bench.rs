//! Records per second through the journal on Kafka, acknowledged by all in-sync replicas.
//!
//!     kafka_append_bench HOST:PORT [SECONDS] [RECORD_BYTES] [RECORDS_PER_BATCH] [BATCHES_UNDER_WAY]
//!
//! With the same number of brokers and bytes, `kafka-producer-perf-test --producer-props acks=all` says what Kafka's own
//! client does.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use dunlin_journal::{Batch, Journal, Partition, Topic};
use dunlin_journal_kafka::{Config, KafkaJournal, Labels};
use prometheus_client::registry::Registry;

const PARTITIONS: u16 = 4;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let brokers = arguments.next().expect("HOST:PORT");
    let mut number = |otherwise: usize| arguments.next().map_or(otherwise, |n| n.parse().expect("a number"));
    let (seconds, bytes, records, under_way) = (number(10), number(128), number(200), number(64));

    let config = Config {
        brokers,
        prefix: format!("bench-{}.", std::process::id()),
        telemetry_partitions: PARTITIONS,
        replication_factor: 1,
        min_insync_replicas: 1,
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let journal = KafkaJournal::open(config, describe, &mut Registry::default()).unwrap();
    let end = Instant::now() + Duration::from_secs(seconds as u64);
    let began = Instant::now();
    let tasks: Vec<_> = (0..under_way)
        .map(|n| runtime.spawn(append(journal.clone(), n as u16 % PARTITIONS, end, bytes, records)))
        .collect();
    let total: u64 = tasks.into_iter().map(|task| runtime.block_on(task).unwrap()).sum();
    let took = began.elapsed().as_secs_f64();
    println!("{:.0} records/s, {:.1} MB/s", total as f64 / took, total as f64 * bytes as f64 / took / 1e6);
    runtime.block_on(journal.close());
}

async fn append(journal: Arc<KafkaJournal>, index: u16, end: Instant, bytes: usize, records: usize) -> u64 {
    let at = Partition::new(Topic::Telemetry, index);
    let mut total = 0;
    let mut noise = u64::from(index) + 1;
    while Instant::now() < end {
        let mut batch = Batch::with_capacity(records * (bytes + 4));
        for _ in 0..records {
            batch.push_with(|out| {
                for _ in 0..bytes {
                    noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    out.push(b'a' + (noise >> 60) as u8);
                }
            });
        }
        total += u64::from(journal.append(at, batch).await.unwrap().records);
    }
    total
}

fn describe(_: Topic, _: &[u8]) -> Option<Labels<'_>> {
    Some(Labels {
        tenant: "default",
        device: "machine-17",
        content_type: "avro/binary",
        schema: "dunlin.v1.Record",
    })
}
