use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

use dunlin_model::{RejectReason, Rejected, TenantId};
use dunlin_pipeline::{StoreConfig, StoreView, StoreWriter};
use dunlin_tsdb::{
    Counts, Latest, MemoryDisk, MemoryTsdb, Outcome, Query, QueryError, Series, StoreError, Tsdb, Write,
};
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use tempfile::TempDir;

use super::*;

fn start(journal: &Arc<MemoryJournal>, tsdb: &Arc<MemoryTsdb>, dir: &TempDir) -> StoreWriter {
    let config = StoreConfig { gather_millis: 1, write_records_max: 3, ..StoreConfig::default() };
    let metrics = &mut Registry::default();
    StoreWriter::start(config, journal.clone(), tsdb.clone(), dir.path(), still(), metrics).unwrap()
}

fn tempdir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn store(disk: &MemoryDisk) -> Arc<MemoryTsdb> {
    Arc::new(MemoryTsdb::open(disk.clone(), None))
}

#[tokio::test]
async fn stopping_drains_and_a_crash_stores_each_record_once() {
    let (journal, disk, dir) = (journal(), MemoryDisk::default(), tempdir());
    let records: Vec<_> = (0..10).map(|n| reading("d", n, n as f64)).collect();
    append(&journal, &records[..6]).await;
    let tsdb = store(&disk);
    start(&journal, &tsdb, &dir).stop().await;
    assert_eq!(tsdb.position(TELEMETRY), Some(Offset(6)));
    tsdb.flush().await.unwrap();
    append(&journal, &records[6..]).await;
    start(&journal, &tsdb, &dir).stop().await;
    assert_eq!(tsdb.position(TELEMETRY), Some(Offset(10)));

    // What was not flushed is gone; the journal has it.
    let tsdb = store(&disk);
    assert_eq!(tsdb.position(TELEMETRY), Some(Offset(6)));
    start(&journal, &tsdb, &dir).stop().await;
    let counts = tsdb.counts()[&TenantId::default_tenant()];
    assert_eq!((counts.stored, counts.duplicate), (10, 0));
}

#[tokio::test]
async fn retries_are_counted_and_not_stored_across_a_restart_too() {
    let (journal, disk, dir) = (journal(), MemoryDisk::default(), tempdir());
    let by_server = |id| Record { time_source: TimeSource::Server, message_id: id, ..reading("d", 1, 1.0) };
    append(&journal, &[by_server(MessageId::First(7))]).await;
    let tsdb = store(&disk);
    start(&journal, &tsdb, &dir).stop().await;
    append(&journal, &[by_server(MessageId::Retry(7)), by_server(MessageId::First(7))]).await;
    start(&journal, &tsdb, &dir).stop().await;
    let counts = tsdb.counts()[&TenantId::default_tenant()];
    assert_eq!((counts.stored, counts.duplicate), (2, 1));
}

#[tokio::test]
async fn the_journal_learns_what_is_durable_and_no_more() {
    let (journal, disk, dir) = (journal(), MemoryDisk::default(), tempdir());
    let tsdb = store(&disk);
    append(&journal, &[reading("d", 0, 0.0)]).await;
    start(&journal, &tsdb, &dir).stop().await;
    // Known to the journal at once, so that retention waits for the first flush.
    assert_eq!(journal.position("store", TELEMETRY), Some(Offset(0)));
    tsdb.flush().await.unwrap();
    append(&journal, &[reading("d", 1, 0.0)]).await;
    start(&journal, &tsdb, &dir).stop().await;
    assert_eq!(journal.position("store", TELEMETRY), Some(Offset(1)));
}

#[tokio::test]
async fn an_unreadable_record_goes_to_rejected_with_its_bytes() {
    let (journal, disk, dir) = (journal(), MemoryDisk::default(), tempdir());
    append_bytes(&journal, TELEMETRY, b"\xff\xfe not a record").await;
    append(&journal, &[reading("d", 1, 1.0)]).await;
    let tsdb = store(&disk);
    start(&journal, &tsdb, &dir).stop().await;
    assert_eq!(tsdb.counts()[&TenantId::default_tenant()].stored, 1);
    let rejected: Vec<Rejected> = all(&journal, REJECTED).await;
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].reason, RejectReason::Unprocessable);
    assert_eq!(rejected[0].payload, b"\xff\xfe not a record");
    assert_eq!(rejected[0].source, "store:telemetry/0@0");
}

/// A store that compares the writer's account with its own whenever it is written to, and breaks a few times.
#[derive(Debug)]
struct Suspicious {
    inner: MemoryTsdb,
    of_writer: OnceLock<StoreView>,
    /// What it was told and what is to come must be this many together.
    total: u64,
    breaks_left: AtomicU32,
    writes: AtomicU32,
}

impl Suspicious {
    fn look(&self) {
        let read: u64 = self.counts().values().map(Counts::read).sum();
        let status = self.of_writer.wait().status();
        let told = status.backlog.values().sum::<u64>();
        assert!(told >= read, "{read} in the store, {told} counted");
        assert_eq!(told + status.unread, self.total);
    }
}

impl Tsdb for Suspicious {
    fn position(&self, at: Partition) -> Option<Offset> {
        self.inner.position(at)
    }

    fn write(&self, write: Write<'_, '_>) -> Result<Vec<Outcome>, StoreError> {
        self.look();
        let less = |left: u32| left.checked_sub(1);
        if self.breaks_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
            panic!("a bug of the store");
        }
        let written = self.inner.write(write);
        self.look();
        self.writes.fetch_add(1, Ordering::SeqCst);
        written
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.inner.flush()
    }

    fn stalled(&self) -> Option<String> {
        self.inner.stalled()
    }

    fn durable_positions(&self) -> Vec<(Partition, Offset)> {
        self.inner.durable_positions()
    }

    fn counts(&self) -> std::collections::BTreeMap<TenantId, Counts> {
        self.inner.counts()
    }

    fn latest<'a>(
        &'a self,
        tenant: &'a TenantId,
        devices: &'a [String],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Latest>, QueryError>> {
        self.inner.latest(tenant, devices, limit)
    }

    fn query<'a>(
        &'a self,
        tenant: &'a TenantId,
        query: Query,
    ) -> BoxFuture<'a, Result<Vec<Series>, QueryError>> {
        self.inner.query(tenant, query)
    }
}

#[tokio::test]
async fn what_was_there_before_is_accounted_for_at_every_moment() {
    let (journal, dir) = (journal(), tempdir());
    let records: Vec<_> = (0..10).map(|n| reading("d", n, n as f64)).collect();
    append(&journal, &records).await;
    let tsdb = Arc::new(Suspicious {
        inner: MemoryTsdb::open(MemoryDisk::default(), None),
        of_writer: OnceLock::new(),
        total: 10,
        breaks_left: 2.into(),
        writes: 0.into(),
    });
    let config = StoreConfig { gather_millis: 1, write_records_max: 3, ..StoreConfig::default() };
    let metrics = &mut Registry::default();
    let writer =
        StoreWriter::start(config, journal.clone(), tsdb.clone(), dir.path(), still(), metrics).unwrap();
    // It may have counted a first stretch; the store still holds it up.
    let status = writer.view().status();
    assert_eq!(status.unread + status.backlog.values().sum::<u64>(), 10);
    tsdb.of_writer.set(writer.view()).unwrap();
    until("all is stored", || tsdb.position(TELEMETRY) == Some(Offset(10))).await;
    let status = writer.view().status();
    assert_eq!((status.unread, status.backlog["default"]), (0, 10));
    writer.stop().await;
    assert_eq!(tsdb.writes.load(Ordering::SeqCst), 4);
}
