use std::sync::atomic::{AtomicU32, Ordering};

use dunlin_journal::{AppendError, Appended, Extent, Health, ReadError};
use dunlin_model::{RejectReason, Rejected, TenantId};
use dunlin_pipeline::{Config, Limits, Pipeline, RejectedCounter, RuleSet, StoreConfig, StoreWriter};
use dunlin_tsdb::{MemoryDisk, MemoryTsdb, Tsdb};
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::*;

/// A journal on which whoever reads panics, for as often as is left, once there is something to read.
#[derive(Debug)]
struct Breaking {
    inner: Arc<MemoryJournal>,
    left: AtomicU32,
}

impl Breaking {
    fn times(inner: &Arc<MemoryJournal>, left: u32) -> Arc<Self> {
        Arc::new(Self { inner: inner.clone(), left: left.into() })
    }

    fn mend(&self) {
        self.left.store(0, Ordering::SeqCst);
    }
}

impl Journal for Breaking {
    fn partitions(&self, topic: Topic) -> u16 {
        self.inner.partitions(topic)
    }

    fn append(&self, at: Partition, batch: Batch) -> BoxFuture<'static, Result<Appended, AppendError>> {
        self.inner.append(at, batch)
    }

    fn read(
        &self,
        at: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Entries>, ReadError>> {
        let less = |left: u32| left.checked_sub(1);
        if from < self.extent(at).next
            && self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
        {
            panic!("a bug of the reader");
        }
        self.inner.read(at, from, bytes_max)
    }

    fn extent(&self, at: Partition) -> Extent {
        self.inner.extent(at)
    }

    fn progress(&self) -> watch::Receiver<u64> {
        self.inner.progress()
    }

    fn position(&self, consumer: &str, at: Partition) -> Option<Offset> {
        self.inner.position(consumer, at)
    }

    fn commit(
        &self,
        consumer: &str,
        at: Partition,
        position: Offset,
    ) -> BoxFuture<'static, std::io::Result<()>> {
        self.inner.commit(consumer, at, position)
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.inner.close()
    }
}

const ALWAYS: u32 = u32::MAX;
const SAID: &str = "panicked: a bug of the reader";

#[tokio::test]
async fn a_store_writer_that_breaks_says_so_and_goes_on_where_it_was() {
    let (memory, disk, dir) = (journal(), MemoryDisk::default(), tempfile::tempdir().unwrap());
    let tsdb = Arc::new(MemoryTsdb::open(disk, None));
    let breaking = Breaking::times(&memory, 0);
    let config = StoreConfig { gather_millis: 1, ..StoreConfig::default() };
    let writer = StoreWriter::start(
        config,
        breaking.clone(),
        tsdb.clone(),
        dir.path(),
        still(),
        &mut Registry::default(),
    )
    .unwrap();
    append(&memory, &[reading("d", 0, 0.0)]).await;
    until("the first is stored", || tsdb.position(TELEMETRY) == Some(Offset(1))).await;

    breaking.left.store(ALWAYS, Ordering::SeqCst);
    append(&memory, &[reading("d", 1, 1.0)]).await;
    until("it says that it broke", || writer.view().status().stalled.as_deref() == Some(SAID)).await;
    breaking.mend();
    until("it goes on", || tsdb.position(TELEMETRY) == Some(Offset(2))).await;
    until("all is well again", || writer.view().status().stalled.is_none()).await;
    writer.stop().await;
    let counts = tsdb.counts()[&TenantId::default_tenant()];
    assert_eq!((counts.stored, counts.duplicate), (2, 0));
}

#[tokio::test]
async fn rules_that_break_say_so_and_repeat_nothing() {
    let (dir, memory) = (tempfile::tempdir().unwrap(), journal());
    let text = "[[rule]]\nname = \"hot\"\nwhen = \"temperature > 80\"\n";
    let rules = RuleSet::parse(text, "hot.toml").unwrap();
    let breaking = Breaking::times(&memory, ALWAYS);
    let limits = Limits { lateness_millis: 0, ..Limits::default() };
    let config = Config { gather_millis: 1, limits, ..Config::default() };
    let pipeline = Pipeline::start(
        config,
        breaking.clone(),
        nothing(),
        rules,
        checkpoints(dir.path()),
        dir.path(),
        still(),
        &mut Registry::default(),
    )
    .unwrap();
    append(&memory, &[reading("d", 0, 90.0), reading("d", 1, 70.0)]).await;
    until("they say that they broke", || pipeline.view().stalled() == [format!("partition 0: {SAID}")]).await;
    breaking.mend();
    until("they go on", || pipeline.view().position(0) == Some(Offset(2))).await;
    until("all is well again", || pipeline.view().stalled().is_empty()).await;
    pipeline.stop().await;
    assert_eq!(alerts(&memory).await.len(), 2);
}

#[tokio::test]
async fn a_count_of_refused_messages_that_breaks_counts_each_once() {
    let (dir, memory) = (tempfile::tempdir().unwrap(), journal());
    let breaking = Breaking::times(&memory, 1);
    let refused = Rejected {
        tenant: "a".into(),
        device: "d".into(),
        received_at: at(0),
        reason: RejectReason::TooLarge,
        detail: String::new(),
        source: String::new(),
        payload: Vec::new(),
    };
    append_bytes(&memory, REJECTED, &refused.encode()).await;
    let counter = RejectedCounter::start(breaking, dir.path()).unwrap();
    let view = counter.view();
    until("it is counted", || view.counts().values().sum::<u64>() == 1).await;
    until("all is well again", || view.stalled().is_none()).await;
    counter.stop().await;
    assert_eq!(view.counts().values().sum::<u64>(), 1);
}

#[tokio::test]
async fn a_store_that_cannot_make_its_rows_durable_shows_it() {
    let (memory, disk, dir) = (journal(), MemoryDisk::default(), tempfile::tempdir().unwrap());
    let tsdb = Arc::new(MemoryTsdb::open(disk.clone(), None));
    let config = StoreConfig { gather_millis: 1, ..StoreConfig::default() };
    let writer =
        StoreWriter::start(config, memory, tsdb.clone(), dir.path(), still(), &mut Registry::default())
            .unwrap();
    disk.fail(Some("flush failed: no space left on device"));
    assert!(tsdb.flush().await.is_err());
    let stalled = writer.view().status().stalled;
    assert_eq!(stalled.as_deref(), Some("flush failed: no space left on device"));
    disk.fail(None);
    tsdb.flush().await.unwrap();
    assert_eq!(writer.view().status().stalled, None);
    writer.stop().await;
}
