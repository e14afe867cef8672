//! What the journal reaches beside what the disk does, in one run.
//!
//! `append_bench DIR [GIB_TO_REOPEN]`: a directory on the disk in question, and how much to write before the reopen.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use dunlin_journal::{Batch, Journal, Partition, Topic};
use dunlin_journal_disk::{Config, Disk, DiskJournal, SystemDisk};
use dunlin_model::{Clock, Timestamp};
use prometheus_client::registry::Registry;

const MIB: usize = 1 << 20;
const ROUNDS: usize = 15;
const ROUND_COMMITS: usize = 128;
const WRITERS: usize = 32;
const PARTITIONS: u16 = 4;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("usage: append_bench DIR [GIB_TO_REOPEN]")?)
        .join("append_bench");
    let gib: usize = arguments.next().map_or(Ok(5), |a| a.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let measured = runtime.block_on(run(&dir, gib));
    fs::remove_dir_all(&dir)?;
    measured
}

async fn run(dir: &Path, gib: usize) -> Result<(), Box<dyn std::error::Error>> {
    fs::create_dir_all(dir)?;
    let journal = open(dir)?;

    // Each kind takes each place in the order, so that what one leaves behind does not always meet the same other.
    let mut seconds = [const { Vec::new() }; 3];
    for round in 0..ROUNDS {
        for place in 0..3 {
            let kind = (round + place) % 3;
            let time = match kind {
                0 => raw_round(dir)?,
                1 => journal_round(&journal, 1).await,
                _ => journal_round(&journal, 4).await,
            };
            seconds[kind].push(time.as_secs_f64());
        }
    }
    let rate = |seconds: f64| (ROUND_COMMITS * MIB) as f64 / 1e6 / seconds;
    println!("1 MiB commits, {ROUNDS} rounds        MB/s: median   least    most   ratio of medians");
    let names = [
        "raw preallocated write + fdatasync",
        "journal, one append at a time",
        "journal, four appends at a time",
    ];
    for times in &mut seconds {
        times.sort_by(f64::total_cmp);
    }
    for (name, times) in names.iter().zip(&seconds) {
        let (median, raw) = (times[ROUNDS / 2], seconds[0][ROUNDS / 2]);
        let (least, most) = (rate(times[ROUNDS - 1]), rate(times[0]));
        println!("  {name:<36} {:>10.0} {least:>7.0} {most:>7.0}   {:.2}", rate(median), raw / median);
    }

    println!("150 B records, {WRITERS} writers               records/s    MB/s   appends/s");
    for records in [1, 100, 1_000] {
        let (appends, time) = many_writers(&journal, records).await;
        let per_second = appends as f64 / time.as_secs_f64();
        println!(
            "  {records:>5} per append                    {:>10.0} {:>7.0}  {per_second:>10.0}",
            per_second * records as f64,
            per_second * records as f64 * 150.0 / 1e6,
        );
    }

    let bytes =
        |dir: &Path| -> io::Result<u64> { fs::read_dir(dir)?.map(|f| Ok(f?.metadata()?.len())).sum() };
    while bytes(&dir.join("journal"))? < (gib as u64) << 30 {
        many_writers(&journal, 100).await;
    }
    drop(journal);
    let held = bytes(&dir.join("journal"))?;
    for round in ["first", "second"] {
        let started = Instant::now();
        let journal = open(dir)?;
        println!(
            "reopen {:.1} GB, {round} time: {:.2} s",
            held as f64 / 1e9,
            started.elapsed().as_secs_f64()
        );
        drop(journal);
    }
    Ok(())
}

fn open(dir: &Path) -> Result<Arc<DiskJournal>, Box<dyn std::error::Error>> {
    let config = Config {
        dir: dir.join("journal"),
        telemetry_partitions: PARTITIONS,
        retention_bytes: 64 << 30,
        ..Config::default()
    };
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as i64;
    let clock = Clock::new(move || Timestamp::from_micros(now()));
    Ok(DiskJournal::open(config, clock, &mut Registry::default())?)
}

/// What a program without a journal would do: the next MiB of a preallocated file, and fdatasync.
fn raw_round(dir: &Path) -> io::Result<Duration> {
    let path = dir.join("raw");
    let file = File::create(&path)?;
    SystemDisk.allocate(&file, (ROUND_COMMITS * MIB) as u64)?;
    file.sync_all()?;
    let bytes = vec![0xA5; MIB];
    let started = Instant::now();
    for n in 0..ROUND_COMMITS {
        file.write_all_at(&bytes, (n * MIB) as u64)?;
        file.sync_data()?;
    }
    let time = started.elapsed();
    fs::remove_file(&path)?;
    Ok(time)
}

async fn journal_round(journal: &DiskJournal, at_a_time: usize) -> Duration {
    let record = vec![0xA5; MIB - 64];
    let mut batches: Vec<Batch> = (0..ROUND_COMMITS)
        .map(|_| {
            let mut batch = Batch::with_capacity(MIB);
            batch.push(&record);
            batch
        })
        .collect();
    let at = Partition::new(Topic::Telemetry, 0);
    let started = Instant::now();
    while !batches.is_empty() {
        let appends = batches.drain(..at_a_time.min(batches.len())).map(|b| journal.append(at, b));
        for appended in futures::future::join_all(appends).await {
            appended.expect("the disk takes what is appended");
        }
    }
    started.elapsed()
}

async fn many_writers(journal: &Arc<DiskJournal>, records: usize) -> (usize, Duration) {
    let run_for = Duration::from_secs(3);
    let started = Instant::now();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let journal = Arc::clone(journal);
            tokio::spawn(async move {
                let at = Partition::new(Topic::Telemetry, writer as u16 % PARTITIONS);
                let record = [0x5A; 150];
                let mut appends = 0;
                while started.elapsed() < run_for {
                    let mut batch = Batch::with_capacity(records * 154);
                    (0..records).for_each(|_| batch.push(&record));
                    journal.append(at, batch).await.expect("the disk takes what is appended");
                    appends += 1;
                }
                appends
            })
        })
        .collect();
    let mut appends = 0;
    for writer in writers {
        appends += writer.await.expect("writers do not panic");
    }
    (appends, started.elapsed())
}
