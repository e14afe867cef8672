use std::sync::atomic::{AtomicBool, Ordering};

use dunlin_model::ValueRef;
use dunlin_tsdb::conformance::{at, record, write};

use super::*;

fn open(dir: &std::path::Path, clock: Clock) -> Arc<ParquetTsdb> {
    let config = Config {
        dir: dir.into(),
        flush_after_seconds: 3_600,
        compact_every_seconds: 3_600,
        ..Config::default()
    };
    ParquetTsdb::open(config, clock, &mut Registry::default()).unwrap()
}

fn write_one(store: &ParquetTsdb, second: i64) {
    let one = record("d", at(second), &[("t", ValueRef::I64(second))]);
    assert_eq!(write(store, &[one]), [Outcome::Stored]);
}

fn position(store: &ParquetTsdb) -> Option<Offset> {
    store.position(JournalPartition::new(dunlin_journal::Topic::Telemetry, 0))
}

#[tokio::test]
async fn a_flush_that_panics_failed_and_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let breaks = Arc::new(AtomicBool::new(true));
    let bug = breaks.clone();
    let store = open(
        dir.path(),
        Clock::new(move || {
            let is_flush = std::thread::current().name() == Some("tsdb-flush");
            assert!(!is_flush || !bug.load(Ordering::SeqCst), "a bug");
            at(0)
        }),
    );
    write_one(&store, 0);
    let error = store.flush().await.unwrap_err();
    assert_eq!(error.to_string(), "storage engine: panicked: a bug");
    assert!(store.stalled().unwrap().contains("panicked: a bug"));
    assert!(store.durable_positions().is_empty());
    write_one(&store, 1);

    breaks.store(false, Ordering::SeqCst);
    store.flush().await.unwrap();
    assert_eq!(store.stalled(), None);
    assert_eq!(store.durable_positions()[0].1, Offset(2));
}

#[tokio::test]
async fn a_store_that_breaks_down_takes_and_commits_nothing_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let still = || Clock::new(|| at(0));
    let store = open(dir.path(), still());
    write_one(&store, 0);
    store.flush().await.unwrap();
    write_one(&store, 1);
    let committed = store.inner.commit(|_| (), |_| panic!("a bug"));
    assert!(matches!(committed, Err(StoreError::Engine { .. })));

    let said = "commit panicked: a bug";
    assert_eq!(store.broken().await, said);
    assert_eq!(store.stalled().as_deref(), Some(said));
    let next = Write {
        partition: JournalPartition::new(dunlin_journal::Topic::Telemetry, 0),
        records: &[],
        next: Offset(9),
    };
    assert!(matches!(store.write(next), Err(StoreError::Engine { .. })));
    // Nobody is left waiting.
    assert!(store.flush().await.is_err());
    assert!(store.close().await.is_err());
    drop(store);
    assert_eq!(position(&open(dir.path(), still())), Some(Offset(1)));
}
