use std::sync::{Arc, atomic::Ordering};

use dunlin_journal::{Journal, Offset};
use dunlin_journal_disk::{DiskJournal, OpenError};

use crate::support::{Bench, HOUR_MICROS, T0, T1, check_numbered, fill};

#[tokio::test]
async fn size_limits_the_log() {
    let bench = Bench::with(|c| c.retention_bytes = 512 << 10);
    let journal = bench.open();
    fill(&journal, T0, 200, 1, 10_000).await;
    assert!(journal.trim_once().unwrap() > 0);
    assert_eq!(journal.trim_once().unwrap(), 0, "trimming again has nothing to do");
    let bytes: u64 = bench.files("seg").iter().map(|f| f.metadata().unwrap().len()).sum();
    assert!(bytes <= (512 << 10) + (256 << 10) * 2, "{bytes}");
    let oldest = journal.extent(T0).oldest;
    assert!(oldest > Offset::ZERO);
    assert_eq!(check_numbered(&journal, T0, oldest).await, 200 - oldest.0);
}

#[tokio::test]
async fn age_limits_the_log() {
    let bench = Bench::with(|c| c.retention_seconds = 2 * 3600);
    let journal = bench.open();
    fill(&journal, T0, 60, 1, 10_000).await;
    assert_eq!(journal.trim_once().unwrap(), 0);
    for _ in 0..3 {
        bench.now_micros.fetch_add(HOUR_MICROS, Ordering::Relaxed);
        journal.trim_once().unwrap();
    }
    assert!(journal.extent(T0).oldest > Offset::ZERO);
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_deletes_nothing() {
    let bench = Bench::new();
    let journal = bench.open();
    fill(&journal, T0, 60, 1, 10_000).await;
    bench.now_micros.fetch_add(400 * 24 * HOUR_MICROS, Ordering::Relaxed);
    assert_eq!(journal.trim_once().unwrap(), 0);
    fill(&journal, T0, 60, 1, 10_000).await;
    assert_eq!(journal.trim_once().unwrap(), 0);
}

#[tokio::test]
async fn a_consumer_holds_back_what_it_has_not_passed_across_restarts() {
    let bench = Bench::with(|c| c.retention_bytes = 0);
    let journal = bench.open();
    fill(&journal, T0, 30, 1, 10_000).await;
    journal.commit("store", T0, Offset(10)).await.unwrap();
    journal.commit("rules", T0, Offset(20)).await.unwrap();
    fill(&journal, T1, 60, 1, 10_000).await;
    journal.trim_once().unwrap();
    let held = |journal: &Arc<DiskJournal>| journal.extent(T0).oldest;
    assert!(held(&journal) <= Offset(10), "{}", held(&journal));
    drop(journal);
    let journal = bench.open();
    journal.trim_once().unwrap();
    assert!(held(&journal) <= Offset(10));
    for consumer in ["store", "rules"] {
        journal.commit(consumer, T0, Offset(30)).await.unwrap();
    }
    journal.trim_once().unwrap();
    assert_eq!(held(&journal), Offset(30));
}

#[tokio::test]
async fn a_directory_belongs_to_one_process_at_a_time() {
    let bench = Bench::new();
    let journal = bench.open();
    assert!(matches!(bench.try_open(), Err(OpenError::Locked { .. })));
    drop(journal);
    bench.open();
}

#[tokio::test]
async fn the_number_of_partitions_is_fixed() {
    let mut bench = Bench::new();
    drop(bench.open());
    bench.config.telemetry_partitions = 3;
    let error = bench.try_open().unwrap_err();
    assert!(matches!(error, OpenError::Partitions { stored: 2, asked: 3, .. }));
    assert!(error.to_string().contains("set journal.telemetry_partitions to 2"));
}
