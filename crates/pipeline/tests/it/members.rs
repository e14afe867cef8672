//! Processes that share partitions, as two pipelines on one journal.

use std::{
    path::Path,
    sync::atomic::{AtomicI64, Ordering},
};

use dunlin_journal::{AppendError, Appended, Caller, Extent, Health, Membership, ReadError, Turn};
use dunlin_model::AlertPhase;
use dunlin_pipeline::{Config, Limits, Pipeline, RuleSet};
use futures::future::BoxFuture;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::{
    checkpoints::{append_to, history, rules, said_in, unbroken},
    groups::{PARTIALS, PARTITIONS, append_all, judged, many_hot},
    *,
};

/// A process's view of the journal, in which a test says who has what.
#[derive(Debug)]
struct Shared {
    inner: Arc<MemoryJournal>,
    callers: Mutex<Vec<(Topic, Caller)>>,
}

impl Shared {
    fn of(inner: &Arc<MemoryJournal>) -> Arc<Self> {
        Arc::new(Self { inner: inner.clone(), callers: Mutex::default() })
    }

    async fn call(&self, turn: Turn) {
        let (Turn::Given(at) | Turn::Asked(at) | Turn::Lost(at)) = turn;
        until("it has joined", || {
            let callers = self.callers.lock().unwrap();
            let caller = callers.iter().find(|(topic, _)| *topic == at.topic);
            caller.inspect(|(_, caller)| caller.call(turn)).is_some()
        })
        .await;
    }

    /// Comes back when the partition is released.
    async fn ask(self: &Arc<Self>, at: Partition) {
        let shared = self.clone();
        let asking = tokio::task::spawn_blocking(move || {
            let callers = shared.callers.lock().unwrap();
            let (_, caller) = callers.iter().find(|(topic, _)| *topic == at.topic).unwrap();
            caller.ask(&[at], Duration::from_secs(60))
        });
        assert!(asking.await.unwrap());
    }
}

impl Journal for Shared {
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

    fn join(&self, _consumer: &str, topic: Topic) -> Membership {
        let (membership, caller) = Membership::new();
        self.callers.lock().unwrap().push((topic, caller));
        membership
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

/// Writes a checkpoint when it is asked for a partition, and no other.
fn start(journal: &Arc<Shared>, rules: RuleSet, dir: &Path, clock: Clock) -> Pipeline {
    let limits = Limits { lateness_millis: 0, ..Limits::default() };
    let config = Config { gather_millis: 1, limits, checkpoint_seconds: 3_600, ..Config::default() };
    let (kept, metrics) = (checkpoints(dir).shared(), &mut Registry::default());
    Pipeline::start(config, journal.clone(), nothing(), rules, kept, dir, clock, metrics).unwrap()
}

#[tokio::test]
async fn a_partition_moves_with_its_state_and_who_has_lost_it_writes_nothing() {
    let (dir, memory) = (tempfile::tempdir().unwrap(), journal());
    let (a, b) = (Shared::of(&memory), Shared::of(&memory));
    let first = start(&a, rules(), dir.path(), still());
    let second = start(&b, rules(), dir.path(), still());
    let (of_first, of_second) = (first.view(), second.view());
    a.call(Turn::Given(TELEMETRY)).await;
    append_to(&memory, 1, &said_in(0..10)).await;
    until("the first has read it", || of_first.position(0) == Some(Offset(400))).await;
    assert_eq!(of_second.position(0), None);

    a.ask(TELEMETRY).await;
    assert_eq!(of_first.position(0), None);
    b.call(Turn::Given(TELEMETRY)).await;
    append_to(&memory, 1, &said_in(10..20)).await;
    until("the second has read it", || of_second.position(0) == Some(Offset(800))).await;
    assert_eq!(of_second.status().partitions[0].checkpoint.position, Some(Offset(400)));

    b.call(Turn::Lost(TELEMETRY)).await;
    until("the second has given it up", || of_second.position(0).is_none()).await;
    a.call(Turn::Given(TELEMETRY)).await;
    append_to(&memory, 1, &said_in(20..30)).await;
    until("the first goes on", || of_first.position(0) == Some(Offset(1_200))).await;
    assert_eq!(of_first.status().partitions[0].checkpoint.position, Some(Offset(400)));
    first.stop().await;
    second.stop().await;
    assert_eq!(history(&memory).await, unbroken(30).await);
}

#[tokio::test]
async fn groups_are_judged_by_the_one_that_has_what_was_counted() {
    let (dir, memory) = (tempfile::tempdir().unwrap(), Arc::new(MemoryJournal::new(PARTITIONS)));
    let now = Arc::new(AtomicI64::new(10));
    let clock = || {
        let now = now.clone();
        Clock::new(move || at(now.load(Ordering::SeqCst)))
    };
    let (a, b) = (Shared::of(&memory), Shared::of(&memory));
    let first = start(&a, many_hot(), dir.path(), clock());
    let second = start(&b, many_hot(), dir.path(), clock());
    for (journal, partition) in [(&a, 0), (&a, 1), (&b, 2)] {
        journal.call(Turn::Given(Partition::new(Topic::Telemetry, partition))).await;
    }
    a.call(Turn::Given(PARTIALS)).await;
    append_all(&memory, 10, 0..3).await;
    judged(&first, &now, 10).await;
    let groups = second.view().status().groups;
    assert!(!groups.is_held && groups.judged_up_to.is_none());

    a.ask(PARTIALS).await;
    assert!(!first.view().status().groups.is_held);
    b.call(Turn::Given(PARTIALS)).await;
    append_all(&memory, 20, 0..1).await;
    judged(&second, &now, 20).await;
    first.stop().await;
    second.stop().await;
    let phases: Vec<_> = alerts(&memory).await.iter().map(|t| t.phase).collect();
    assert_eq!(phases, [AlertPhase::Firing, AlertPhase::Resolved]);
}
