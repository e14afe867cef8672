use std::{fs, path::Path, sync::Arc};

use dunlin_journal::{Offset, Partition, Topic};
use dunlin_model::{Clock, Record, Timestamp, ValueRef};
use dunlin_tsdb::{
    Outcome, Query, StoreError, StoredRecord, Tsdb, Write,
    conformance::{at, record, tenant, write},
};
use dunlin_tsdb_parquet::{Config, OpenError, ParquetTsdb};
use prometheus_client::registry::Registry;

use crate::lab::{ParquetLab, number, sql};

const WRITE_AT: Partition = Partition { topic: Topic::Telemetry, index: 0 };

fn data_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(data_files(&path));
        } else if path.extension().is_some_and(|e| e == "parquet") {
            files.push(path);
        }
    }
    files
}

/// `count` records of each of five devices from `from` on, every ten seconds.
fn fleet(store: &ParquetTsdb, from: i64, count: i64) {
    for n in 0..count {
        let readings = [("t", ValueRef::F64(20.0 + (n % 17) as f64 / 8.0)), ("n", ValueRef::I64(n))];
        let names = ["d1", "d2", "d3", "d4", "d5"];
        let records: Vec<_> = names.iter().map(|d| record(d, at(from + n * 10), &readings)).collect();
        assert_eq!(write(store, &records), [Outcome::Stored; 5]);
    }
}

#[tokio::test]
async fn answers_are_the_same_in_memory_in_files_and_compacted() {
    let lab = ParquetLab::default();
    let store = lab.store();
    fleet(&store, -100_000, 300);
    fleet(&store, 0, 300);
    let questions = [
        "SELECT count(*), min(t), max(t), sum(n), min(time), max(received_at) FROM default",
        "SELECT device, count(*), avg(t) FROM default GROUP BY device ORDER BY device",
        "SELECT * FROM default WHERE device = 'd3' AND time >= '2024-01-01T00:10:00Z' ORDER BY time LIMIT 7",
        "SELECT metric, count(*), sum(value) FROM readings GROUP BY metric ORDER BY metric",
        "SELECT * FROM readings WHERE metric = 'n' AND device = 'd1' AND time < '2024-01-01T00:01:00Z' ORDER BY time",
        "SELECT date_trunc('hour', time) AS h, avg(t) FROM default GROUP BY h ORDER BY h",
        "SELECT count(*) FROM default WHERE time > TIMESTAMP '2024-01-01 00:20:00' AND t > 20.5",
    ];
    let ask = async |store: &ParquetTsdb| {
        let mut answers = Vec::new();
        for question in questions {
            answers.push(sql(store, question).await);
        }
        answers
    };
    let in_memory = ask(&store).await;
    store.flush().await.expect("flush");
    assert_eq!(ask(&store).await, in_memory);
    for n in 0..4 {
        fleet(&store, 10_000 + n * 1_000, 10);
        store.flush().await.expect("flush");
    }
    let mixed = ask(&store).await;
    let before = data_files(lab.dir()).len();
    let done = store.compact_all().expect("compact");
    assert!(done.files_after < done.files_before, "{done:?}");
    assert_eq!(ask(&store).await, mixed);
    assert!(data_files(lab.dir()).len() < before, "replaced files are deleted");
    assert_eq!(store.compact_all().expect("compact"), Default::default(), "nothing is left to do");
    drop(store);
    assert_eq!(ask(&lab.store()).await, mixed);
}

#[tokio::test]
async fn many_fresh_files_of_a_day_are_merged_by_themselves() {
    let lab = ParquetLab::default();
    let store = lab.store();
    for n in 0..8 {
        fleet(&store, n * 100, 3);
        store.flush().await.expect("flush");
    }
    assert_eq!(data_files(lab.dir()).len(), 8);
    assert_eq!(store.compact_once().expect("compact").merges, 1);
    assert_eq!(data_files(lab.dir()).len(), 1);
    assert_eq!(store.compact_once().expect("compact").merges, 0);
    assert_eq!(number(&store, "SELECT count(*) FROM default").await, 120);
}

#[tokio::test]
async fn orphans_go_and_damage_is_refused() {
    let lab = ParquetLab::default();
    let store = lab.store();
    fleet(&store, 0, 3);
    store.close().await.expect("close");
    drop(store);
    let files = data_files(lab.dir());
    let [file] = &files[..] else { panic!("one file: {files:?}") };
    fs::copy(file, file.with_file_name("999.parquet")).expect("copy");
    drop(lab.store());
    assert_eq!(data_files(lab.dir()), files);

    let manifest = lab.dir().join("manifest");
    let good = fs::read(&manifest).expect("the manifest");
    let mut bad = good.clone();
    bad[30] ^= 1;
    fs::write(&manifest, bad).expect("damage");
    let open = || ParquetTsdb::open(lab.config(), Clock::new(|| at(0)), &mut Registry::default());
    let refused = open().expect_err("a damaged manifest");
    assert!(matches!(refused, OpenError::Store(StoreError::Corrupt { .. })), "{refused}");
    fs::write(&manifest, good).expect("repair");
    fs::write(file, b"PAR1").expect("damage");
    let refused = open().expect_err("a damaged file");
    assert!(matches!(refused, OpenError::Store(StoreError::Corrupt { .. })), "{refused}");
}

#[tokio::test]
async fn a_directory_has_one_store() {
    let lab = ParquetLab::default();
    let _store = lab.store();
    let second = ParquetTsdb::open(lab.config(), Clock::new(|| at(0)), &mut Registry::default());
    assert!(matches!(second, Err(OpenError::InUse { .. })));
}

#[tokio::test]
async fn full_memory_is_flushed_while_writes_go_on() {
    let lab = ParquetLab::default();
    let store = lab.store_with(Config { memtable_bytes_max: 20_000, ..lab.config() });
    fleet(&store, 0, 3_000);
    assert!(store.disk_usage().0 >= 1, "nobody asked for this flush");
    assert_eq!(number(&store, "SELECT count(*) FROM default").await, 15_000);
    store.close().await.expect("close");
    assert!(store.flush().await.is_err(), "closed");
}

#[tokio::test]
async fn a_failed_flush_is_tried_again_and_loses_nothing() {
    let lab = ParquetLab::default();
    let store = lab.store();
    // A file where the tenant's directory should be.
    let obstacle = lab.dir().join("default");
    fs::write(&obstacle, b"").expect("obstacle");
    fleet(&store, 0, 10);
    assert_eq!(store.stalled(), None);
    assert!(store.flush().await.is_err());
    let stalled = store.stalled().expect("it says so");
    assert!(stalled.contains("default"), "{stalled}");
    assert!(store.durable_positions().is_empty());
    assert_eq!(number(&store, "SELECT count(*) FROM default").await, 50, "still seen");
    let again = record("d1", at(0), &[("n", ValueRef::I64(0)), ("t", ValueRef::F64(20.0))]);
    assert_eq!(write(&*store, &[again]), [Outcome::Duplicate], "still known");
    fs::remove_file(&obstacle).expect("remove the obstacle");
    store.flush().await.expect("flush");
    assert_eq!(store.stalled(), None);
    drop(store);
    assert_eq!(number(&lab.store(), "SELECT count(*) FROM default").await, 50);
}

#[tokio::test]
async fn what_fails_leaves_no_file() {
    const DAY: i64 = 86_400;
    let lab = ParquetLab::default();
    let store = lab.store();
    fleet(&store, 0, 10);
    store.flush().await.expect("flush");
    let before = data_files(lab.dir());
    // A file where the directory of the second day should be: the first day is written before it fails.
    let obstacle = lab.dir().join("default/default/2024-01-02");
    fs::write(&obstacle, b"").expect("obstacle");
    fleet(&store, 1_000, 10);
    fleet(&store, DAY, 10);
    for _ in 0..3 {
        assert!(store.flush().await.is_err());
        assert_eq!(data_files(lab.dir()), before);
    }
    fs::remove_file(&obstacle).expect("remove the obstacle");
    store.flush().await.expect("flush");
    // A directory in the place of the manifest that is to be written.
    let before = data_files(lab.dir());
    let obstacle = lab.dir().join("manifest.new");
    fs::create_dir(&obstacle).expect("obstacle");
    for _ in 0..2 {
        assert!(store.compact_all().is_err());
        assert_eq!(data_files(lab.dir()), before);
    }
    fs::remove_dir(&obstacle).expect("remove the obstacle");
    assert!(store.compact_all().expect("compact").merges > 0);
    assert_eq!(number(&store, "SELECT count(*) FROM default").await, 150);
}

#[tokio::test]
async fn compaction_leaves_the_reserve_of_the_disk_alone() {
    let lab = ParquetLab::default();
    let store = lab.store_with(Config { disk_reserve_bytes: u64::MAX, ..lab.config() });
    for n in 0..8 {
        fleet(&store, n * 100, 3);
        store.flush().await.expect("flush");
    }
    let before = data_files(lab.dir());
    let done = store.compact_once().expect("nothing fails");
    assert_eq!((done.merges, done.merges_without_room), (0, 1));
    assert_eq!(data_files(lab.dir()), before);
    drop(store);
    assert_eq!(lab.store().compact_once().expect("compact").merges, 1, "there is room again");
}

#[tokio::test]
async fn pauses_of_any_length_are_taken() {
    let lab = ParquetLab::default();
    let long = u64::MAX;
    let config = Config { flush_after_seconds: long, compact_every_seconds: long, ..lab.config() };
    let store = lab.store_with(config);
    fleet(&store, 0, 1);
    store.close().await.expect("the flush thread is there");
}

#[tokio::test]
async fn files_expire_as_a_whole_and_never_by_a_clock_that_ran_ahead() {
    const DAY: i64 = 86_400;
    let lab = ParquetLab::default();
    let open = |now: Timestamp| {
        let config = Config { retention_seconds: Some(2 * DAY as u64), ..lab.config() };
        ParquetTsdb::open(config, Clock::new(move || now), &mut Registry::default()).expect("open")
    };
    let store = open(at(0));
    fleet(&store, -DAY, 3);
    fleet(&store, 0, 3);
    store.flush().await.expect("flush");
    drop(store);
    let store: Arc<ParquetTsdb> = open(at(DAY + 3_600));
    fleet(&store, DAY + 3_600, 3);
    store.flush().await.expect("flush");
    assert_eq!(store.compact_once().expect("compact").files_expired, 1);
    assert_eq!(number(&store, "SELECT count(*) FROM default").await, 30);
    drop(store);
    let store = open(at(400 * DAY));
    assert_eq!(store.compact_once().expect("compact").files_expired, 0);
    assert_eq!(number(&store, "SELECT count(*) FROM default").await, 30);
}

#[tokio::test]
async fn names_of_any_kind_make_safe_paths() {
    let lab = ParquetLab::default();
    let store = lab.store();
    let long = "ä".repeat(64);
    for device_type in ["..", "pump v2.0", &long, "readings"] {
        let readings =
            [("rack.fan/1", ValueRef::I64(1)), ("time", ValueRef::I64(2)), ("Temp", ValueRef::I64(3))];
        write(&*store, &[Record { device_type, ..record("a", at(0), &readings) }]);
    }
    store.flush().await.expect("flush");
    store.compact_all().expect("compact");
    drop(store);
    let store = lab.store();
    assert_eq!(data_files(lab.dir()).len(), 4);
    assert_eq!(number(&store, "SELECT count(*) FROM readings WHERE metric = 'rack.fan/1'").await, 4);
    assert_eq!(
        number(&store, "SELECT sum(\"rack.fan/1\" + \"time_\" + \"Temp\") FROM \"pump v2.0\"").await,
        6
    );
    assert_eq!(number(&store, &format!("SELECT count(*) FROM \"{long}\"")).await, 1);
    assert_eq!(number(&store, "SELECT count(*) FROM readings_table").await, 1);
}

#[tokio::test]
async fn sparse_rows_of_many_metrics_stay_what_they_are() {
    let lab = ParquetLab::default();
    let store = lab.store();
    let names: Vec<String> = (0..300).map(|n| format!("m{n:03}")).collect();
    for n in 0..3_000 {
        let readings = [(names[n as usize % 300].as_str(), ValueRef::I64(n))];
        assert_eq!(write(&*store, &[record("a", at(n), &readings)]), [Outcome::Stored]);
        if n == 1_500 {
            store.flush().await.expect("flush");
        }
    }
    let ask = async || {
        let query = Query {
            devices: vec![],
            metrics: vec![],
            start: at(0),
            end: at(3_000),
            step: None,
            points_max: 10_000,
        };
        store.query(&tenant("default"), query).await.expect("query")
    };
    let in_memory = ask().await;
    assert_eq!((in_memory.len(), in_memory[7].points.len()), (300, 10));
    assert_eq!(in_memory[7].points[9], (at(2_707), dunlin_model::Value::I64(2_707)));
    assert_eq!(number(&store, "SELECT count(*) FROM readings WHERE metric = 'm007'").await, 10);
    store.flush().await.expect("flush");
    assert_eq!(ask().await, in_memory);
    store.compact_all().expect("compact");
    assert_eq!(ask().await, in_memory);
}

#[tokio::test]
async fn a_search_in_files_keeps_nobody_waiting() {
    let lab = ParquetLab::default();
    let store = lab.store();
    fleet(&store, 0, 3);
    store.close().await.expect("close");
    drop(store);
    let store = lab.store();
    // Whoever opens the file waits until somebody writes to it.
    let [file] = &data_files(lab.dir())[..] else { panic!("one file") };
    let file = file.clone();
    let aside = file.with_extension("aside");
    fs::rename(&file, &aside).expect("move the file away");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &file, rustix::fs::FileType::Fifo, mode, 0).expect("a pipe");

    let (tell, thread_id) = std::sync::mpsc::channel();
    let writing = std::thread::spawn({
        let store = store.clone();
        move || {
            tell.send(rustix::thread::gettid()).expect("the test waits");
            let again = record("d1", at(0), &[("t", ValueRef::F64(20.0)), ("n", ValueRef::I64(0))]);
            let from = store.position(WRITE_AT).expect("records were written");
            let records = [StoredRecord::of(again)];
            store.write(Write { partition: WRITE_AT, records: &records, next: Offset(from.0 + 1) })
        }
    });
    let thread = thread_id.recv().expect("an id").as_raw_nonzero();
    let state = || fs::read_to_string(format!("/proc/self/task/{thread}/stat")).expect("a live thread");
    while !state().contains(") S ") {
        std::thread::yield_now();
    }
    let counts = tokio::task::spawn_blocking({
        let store = store.clone();
        move || store.counts()
    });
    let counts = tokio::time::timeout(std::time::Duration::from_secs(60), counts).await;
    let counts = counts.expect("nobody waits for the file").expect("counts");
    assert_eq!(counts[&tenant("default")].stored, 15);
    assert_eq!(number(&store, "SELECT 1").await, 1);

    // The writer sees a broken file, and the write may be repeated once it is whole.
    drop(fs::OpenOptions::new().write(true).open(&file).expect("the other end"));
    assert!(writing.join().expect("no panic").is_err());
    fs::rename(&aside, &file).expect("move the file back");
    let again = record("d1", at(0), &[("t", ValueRef::F64(20.0)), ("n", ValueRef::I64(0))]);
    assert_eq!(write(&*store, &[again]), [Outcome::Duplicate]);
}

#[tokio::test]
async fn newest_values_are_looked_up_in_files_once() {
    let lab = ParquetLab::default();
    let store = lab.store();
    fleet(&store, 0, 3);
    store.close().await.expect("close");
    drop(store);
    let store = lab.store();
    let me = tenant("default");
    let names = ["d1".to_owned(), "d3-that-is-not-there".to_owned()];
    let first = store.latest(&me, &names, 10).await.expect("latest");
    assert_eq!(first.len(), 2, "{first:?}");
    for file in data_files(lab.dir()) {
        fs::remove_file(file).expect("remove");
    }
    assert_eq!(store.latest(&me, &names, 10).await.expect("no file is read"), first);
    assert!(store.latest(&me, &["d2".to_owned()], 10).await.is_err(), "this one would have to be");
}
