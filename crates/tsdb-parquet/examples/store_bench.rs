//! What a row costs: `cargo run --release -p dunlin-tsdb-parquet --example store_bench -- [devices] [hours]`.
//! Prints rows per second and core into memory and through to files, bytes per reading after compaction, and the
//! time of some queries. Data: five metrics at 10 s, as sensors round them.

use std::time::Instant;

use dunlin_journal::{Offset, Partition, Topic};
use dunlin_model::{Clock, MessageId, Reading, Record, TimeSource, Timestamp, ValueRef};
use dunlin_tsdb::{Sql, SqlLimits, StoredRecord, Tsdb, Write};
use dunlin_tsdb_parquet::{Config, ParquetTsdb};
use futures::TryStreamExt;
use prometheus_client::registry::Registry;
use rand::{Rng, SeedableRng, rngs::SmallRng};

const START: i64 = 1_767_225_600_000_000; // 2026-01-01
const METRICS: [&str; 5] = ["temperature", "humidity", "pressure", "battery_mv", "rssi"];

struct Sensor {
    name: String,
    temperature: i32,
    humidity: i32,
    pressure: i32,
    battery: i64,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let devices = arguments.next().transpose()?.unwrap_or(200);
    let hours = arguments.next().transpose()?.unwrap_or(6);
    let dir = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    in_memory()?;
    let now = Timestamp::from_micros(START + (hours as i64 + 100) * 3_600_000_000);
    let config = Config { dir: dir.path().into(), compact_every_seconds: 86_400, ..Config::default() };
    let store = ParquetTsdb::open(config, Clock::new(move || now), &mut Registry::default())?;

    let mut chance = SmallRng::seed_from_u64(42);
    let mut fleet: Vec<Sensor> = (0..devices)
        .map(|n| Sensor {
            name: format!("sensor-{n:05}"),
            temperature: chance.random_range(150..300),
            humidity: chance.random_range(300..700),
            pressure: chance.random_range(98_000..103_000),
            battery: chance.random_range(3_300..4_200),
        })
        .collect();
    let rounds = hours * 360;
    let (mut offset, mut writing) = (0, std::time::Duration::ZERO);
    let began = Instant::now();
    for round in 0..rounds as i64 {
        let times: Vec<(Timestamp, Timestamp)> = fleet
            .iter_mut()
            .map(|sensor| {
                sensor.step(&mut chance);
                let jitter = chance.random_range(0..50);
                let time = START + round * 10_000_000 + jitter * 1_000;
                let delay = 20_000 + chance.random_range(0..40_000);
                (Timestamp::from_micros(time), Timestamp::from_micros(time + delay))
            })
            .collect();
        let records: Vec<StoredRecord<'_>> = fleet
            .iter()
            .zip(times)
            .map(|(sensor, (time, received))| sensor.record(time, received, chance.random_range(-92..-80)))
            .collect();
        offset += records.len() as u64;
        let before = Instant::now();
        store.write(Write {
            partition: Partition::new(Topic::Telemetry, 0),
            records: &records,
            next: Offset(offset),
        })?;
        writing += before.elapsed();
    }
    runtime.block_on(store.flush())?;
    let readings = offset * METRICS.len() as u64;
    println!("rows                        {offset}");
    println!("write calls, rows/s         {:.0}", offset as f64 / writing.as_secs_f64());
    println!("with data and flush, rows/s {:.0}", offset as f64 / began.elapsed().as_secs_f64());
    let (files, bytes) = store.disk_usage();
    println!("fresh: {files} files, bytes per reading {:.3}", bytes as f64 / readings as f64);
    let began = Instant::now();
    store.compact_all()?;
    let (files, bytes) = store.disk_usage();
    println!("compaction, rows/s          {:.0}", offset as f64 / began.elapsed().as_secs_f64());
    println!("packed: {files} files, bytes per reading {:.3}", bytes as f64 / readings as f64);
    for text in [
        "SELECT count(*) FROM default",
        "SELECT time, temperature FROM default WHERE device = 'sensor-00042'",
        "SELECT date_trunc('hour', time) h, avg(temperature) FROM default WHERE device = 'sensor-00042' GROUP BY h",
        "SELECT avg(value) FROM readings WHERE metric = 'humidity'",
        "SELECT device, avg(temperature) m FROM default GROUP BY device ORDER BY m DESC LIMIT 10",
    ] {
        let began = Instant::now();
        let limits = SqlLimits { rows_max: 1_000_000, timeout: std::time::Duration::from_secs(60) };
        let rows: usize = runtime.block_on(async {
            let tenant = "default".parse().map_err(|_| std::io::Error::other("tenant"))?;
            let result = store.sql(&tenant, text, limits).await.map_err(std::io::Error::other)?;
            let batches: Vec<_> = result.batches.try_collect().await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(batches.iter().map(|batch| batch.num_rows()).sum())
        })?;
        println!("{:8.1} ms {rows:>7} rows  {text}", began.elapsed().as_secs_f64() * 1_000.0);
    }
    runtime.block_on(store.close())?;
    Ok(())
}

/// The memtable alone: three readings per row, ten thousand devices, no flush.
fn in_memory() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let config = Config { dir: dir.path().into(), memtable_bytes_max: usize::MAX, ..Config::default() };
    let now = Timestamp::from_micros(START);
    let store = ParquetTsdb::open(config, Clock::new(move || now), &mut Registry::default())?;
    let names: Vec<String> = (0..10_000).map(|n| format!("sensor-{n:05}")).collect();
    let rows = if cfg!(debug_assertions) { 100_000 } else { 2_000_000 };
    let mut spent = std::time::Duration::ZERO;
    for batch in 0..rows / 1_000 {
        let records: Vec<StoredRecord<'_>> = (0..1_000)
            .map(|n| {
                let row = batch * 1_000 + n;
                let time = Timestamp::from_micros(START + (row / 10_000) as i64 * 1_000_000);
                let values = [ValueRef::F64(row as f64 / 8.0), ValueRef::F64(0.5), ValueRef::I64(row as i64)];
                record(&names[row % 10_000], time, time, METRICS.iter().copied().zip(values))
            })
            .collect();
        let began = Instant::now();
        store.write(Write {
            partition: Partition::new(Topic::Telemetry, 0),
            records: &records,
            next: Offset((batch * 1_000 + 1_000) as u64),
        })?;
        spent += began.elapsed();
    }
    println!("memtable alone, rows/s/core {:.0}", rows as f64 / spent.as_secs_f64());
    Ok(())
}

impl Sensor {
    fn step(&mut self, chance: &mut SmallRng) {
        // Most readings repeat the one before; the rest move by one digit.
        let mut walk = |of: &mut i32| match chance.random_range(0..6) {
            0 => *of += 1,
            1 => *of -= 1,
            _ => {}
        };
        walk(&mut self.temperature);
        walk(&mut self.humidity);
        walk(&mut self.pressure);
        if chance.random_range(0..300) == 0 {
            self.battery -= 1;
        }
    }

    fn record(&self, time: Timestamp, received: Timestamp, rssi: i64) -> StoredRecord<'_> {
        let values = [
            ValueRef::F64(f64::from(self.temperature) / 10.0),
            ValueRef::F64(f64::from(self.humidity) / 10.0),
            ValueRef::F64(f64::from(self.pressure) / 100.0),
            ValueRef::I64(self.battery),
            ValueRef::I64(rssi),
        ];
        record(&self.name, time, received, METRICS.into_iter().zip(values))
    }
}

fn record<'a>(
    device: &'a str,
    time: Timestamp,
    received_at: Timestamp,
    readings: impl Iterator<Item = (&'a str, ValueRef<'a>)>,
) -> StoredRecord<'a> {
    let record = Record {
        tenant: "default",
        device,
        device_type: "default",
        message_id: MessageId::None,
        received_at,
        device_time: Some(time),
        time,
        time_source: TimeSource::Device,
        readings: readings.map(|(metric, value)| Reading { metric, value }).collect(),
    };
    StoredRecord::of(record)
}
