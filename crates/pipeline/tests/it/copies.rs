//! The store and the rules over the same journal, with the same memory of what came before.

use dunlin_model::TenantId;
use dunlin_pipeline::{Config, Pipeline, RuleSet, StoreConfig, StoreWriter};
use dunlin_tsdb::{MemoryDisk, MemoryTsdb, Tsdb};
use prometheus_client::registry::Registry;
use tempfile::TempDir;

use super::*;

const HOUR: i64 = 3_600;
/// More than is shown to a memory without a snapshot.
const OTHERS: u64 = 300_000;

fn said(device: &'static str, id: MessageId, seconds: i64) -> Record<'static> {
    Record { time_source: TimeSource::Server, message_id: id, ..reading(device, seconds, 1.0) }
}

/// The store and the rules run until they have all of the journal: how many copies each has found by now.
async fn found(journal: &Arc<MemoryJournal>, disk: &MemoryDisk, dir: &TempDir) -> (u64, u64) {
    let tsdb = Arc::new(MemoryTsdb::open(disk.clone(), None));
    let (metrics, config) = (&mut Registry::default(), StoreConfig::default());
    StoreWriter::start(config, journal.clone(), tsdb.clone(), dir.path(), still(), metrics)
        .unwrap()
        .stop()
        .await;
    tsdb.flush().await.unwrap();
    let (rules, metrics) = (RuleSet::default(), &mut Registry::default());
    let pipeline = Pipeline::start(
        Config::default(),
        journal.clone(),
        nothing(),
        rules,
        checkpoints(dir.path()),
        dir.path(),
        still(),
        metrics,
    )
    .unwrap();
    let end = journal.extent(TELEMETRY).next;
    until("the rules caught up", || pipeline.view().position(0) == Some(end)).await;
    let account = pipeline.view().status().accounts["default"];
    pipeline.stop().await;
    (tsdb.counts()[&TenantId::default_tenant()].duplicate, account.copies)
}

async fn append_others(journal: &MemoryJournal) {
    for chunk in (0..OTHERS).collect::<Vec<_>>().chunks(10_000) {
        let records: Vec<_> = chunk.iter().map(|n| said("other", MessageId::First(*n), HOUR)).collect();
        append(journal, &records).await;
    }
}

#[tokio::test]
async fn a_repetition_after_hours_and_a_restart_is_a_copy_to_both() {
    let (journal, disk, dir) = (journal(), MemoryDisk::default(), tempfile::tempdir().unwrap());
    append(&journal, &[said("d", MessageId::First(7), HOUR), said("d", MessageId::Given(8), 0)]).await;
    append_others(&journal).await;
    assert_eq!(found(&journal, &disk, &dir).await, (0, 0));
    append(&journal, &[said("d", MessageId::Retry(7), 2 * HOUR), said("d", MessageId::Given(8), 5 * HOUR)])
        .await;
    assert_eq!(found(&journal, &disk, &dir).await, (2, 2));

    // All derived state lost: a replay from the beginning decides alike.
    let other = tempfile::tempdir().unwrap();
    assert_eq!(found(&journal, &MemoryDisk::default(), &other).await, (2, 2));
}

#[tokio::test]
async fn without_a_snapshot_both_know_the_last_records_only() {
    let (journal, disk, dir) = (journal(), MemoryDisk::default(), tempfile::tempdir().unwrap());
    append(&journal, &[said("d", MessageId::First(7), HOUR)]).await;
    append_others(&journal).await;
    append(&journal, &[said("d", MessageId::First(9), HOUR)]).await;
    assert_eq!(found(&journal, &disk, &dir).await, (0, 0));
    for file in std::fs::read_dir(dir.path().join("copies")).unwrap() {
        std::fs::write(file.unwrap().path(), b"garbage").unwrap();
    }
    append(&journal, &[said("d", MessageId::Retry(7), HOUR), said("d", MessageId::Retry(9), HOUR)]).await;
    assert_eq!(found(&journal, &disk, &dir).await, (1, 1));
}
