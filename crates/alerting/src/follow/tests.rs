use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    time::Instant,
};

use dunlin_journal::{AppendError, Appended, Batch, Extent, Health, MemoryJournal};
use dunlin_model::{
    AlertPhase, Clock, Fingerprint, Severity, TenantId, Timestamp, TransitionId, avro::Datum,
};
use dunlin_registry::{AlertFilter, Registry};
use futures::future::BoxFuture;

use super::*;

const ALERTS: Partition = Partition { topic: Topic::Alerts, index: 0 };

/// A journal that counts how often somebody looks for its end.
#[derive(Debug)]
struct Watched {
    journal: MemoryJournal,
    looks: AtomicU64,
}

impl Watched {
    fn new() -> Arc<Self> {
        Arc::new(Self { journal: MemoryJournal::new(1), looks: AtomicU64::new(0) })
    }

    async fn say(&self, topic: Topic, record: &[u8]) {
        let mut batch = Batch::default();
        batch.push(record);
        self.journal.append(Partition::new(topic, 0), batch).await.unwrap();
    }
}

impl Journal for Watched {
    fn partitions(&self, topic: Topic) -> u16 {
        self.journal.partitions(topic)
    }
    fn append(&self, at: Partition, batch: Batch) -> BoxFuture<'static, Result<Appended, AppendError>> {
        self.journal.append(at, batch)
    }
    fn read(
        &self,
        at: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Entries>, ReadError>> {
        self.journal.read(at, from, bytes_max)
    }
    fn extent(&self, at: Partition) -> Extent {
        self.looks.fetch_add(1, SeqCst);
        self.journal.extent(at)
    }
    fn progress(&self) -> watch::Receiver<u64> {
        self.journal.progress()
    }
    fn position(&self, consumer: &str, at: Partition) -> Option<Offset> {
        self.journal.position(consumer, at)
    }
    fn commit(&self, consumer: &str, at: Partition, position: Offset) -> BoxFuture<'static, io::Result<()>> {
        self.journal.commit(consumer, at, position)
    }
    fn health(&self) -> Health {
        self.journal.health()
    }
    fn close(&self) -> BoxFuture<'static, ()> {
        self.journal.close()
    }
}

async fn follower(journal: Arc<Watched>, dir: &tempfile::TempDir) -> Follower {
    let clock = Clock::new(|| Timestamp::from_micros(1_700_000_000_000_000));
    let registry = Registry::open_file(&dir.path().join("registry.db"), clock).await.unwrap();
    let metrics = Metrics::register(&mut Default::default());
    let executor = executor(registry, &metrics);
    Follower { journal, executor, metrics, position: None }
}

fn executor(registry: Registry, metrics: &Metrics) -> Executor {
    let policy = Arc::new(crate::policy::Policy::new(&crate::Config::default()).unwrap());
    let (senders, reminder) = (Vec::new(), Arc::default());
    Executor { registry, policy, metrics: metrics.clone(), senders, reminder }
}

fn firing(device: &str, value: f64) -> Vec<u8> {
    let fingerprint = Fingerprint::of("default", "hot", device);
    let since = Timestamp::from_micros(1);
    let transition = AlertTransition {
        id: TransitionId::of(fingerprint, AlertPhase::Firing, since),
        fingerprint,
        tenant: "default".into(),
        device: device.into(),
        rule: "hot".into(),
        severity: Severity::Critical,
        phase: AlertPhase::Firing,
        at: since,
        since,
        value,
        condition: "temperature > 80".into(),
    };
    transition.encode()
}

async fn devices_with_alerts(registry: &Registry) -> Vec<String> {
    let all = AlertFilter { limit: 100, ..AlertFilter::default() };
    let alerts = registry.alerts(&TenantId::default_tenant(), &all).await.unwrap();
    let mut devices: Vec<_> = alerts.into_iter().map(|a| a.device).collect();
    devices.sort();
    devices
}

#[tokio::test]
async fn telemetry_alone_never_asks_the_registry() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Watched::new();
    journal.say(Topic::Alerts, &firing("a", 81.0)).await;
    let mut follower = follower(journal.clone(), &dir).await;
    assert!(follower.step(ALERTS).await.unwrap());
    assert_eq!(devices_with_alerts(&follower.executor.registry).await, ["a"]);

    follower.executor.registry.close().await; // Any question to it is an error from here on.
    for _ in 0..10 {
        journal.say(Topic::Telemetry, b"21.5").await;
        assert!(!follower.step(ALERTS).await.unwrap());
    }
    journal.say(Topic::Alerts, &firing("b", 81.0)).await;
    assert!(matches!(follower.step(ALERTS).await, Err(FollowError::Apply(_))), "now it had to ask");
}

#[tokio::test]
async fn many_commits_are_one_look() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Watched::new();
    let follower = follower(journal.clone(), &dir).await;
    let (stop, stopped) = watch::channel(false);
    let started = Instant::now();
    let running = tokio::spawn(follower.run(stopped));
    for _ in 0..20_000 {
        journal.say(Topic::Telemetry, b"21.5").await;
        tokio::task::yield_now().await;
    }
    stop.send(true).unwrap();
    running.await.unwrap();
    // A slow machine has more time to look in, so the bound follows the time it took.
    let looks_max = started.elapsed().as_millis() as u64 / GATHER.as_millis() as u64 + 3;
    let looks = journal.looks.load(SeqCst);
    assert!(looks <= looks_max, "{looks} looks, at most {looks_max}");
}

#[tokio::test]
async fn what_the_registry_refuses_is_skipped_alone_and_blocks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Watched::new();
    let mut batch = Batch::default();
    for (n, value) in [81.0, 82.0, f64::NAN, 83.0, f64::NAN, f64::NAN, 84.0].into_iter().enumerate() {
        batch.push(&firing(&format!("d{n}"), value));
        batch.push(b"not avro");
    }
    journal.append(ALERTS, batch).await.unwrap();
    journal.say(Topic::Alerts, &firing("d7", f64::NAN)).await;

    let mut follower = follower(journal.clone(), &dir).await;
    while follower.step(ALERTS).await.unwrap() {}
    assert_eq!(devices_with_alerts(&follower.executor.registry).await, ["d0", "d1", "d3", "d6"]);
    assert_eq!((follower.metrics.refused.get(), follower.metrics.transitions.get()), (4, 4));
    assert_eq!(follower.executor.registry.position(CONSUMER, 0).await.unwrap(), Some(15), "past all of it");

    journal.say(Topic::Alerts, &firing("d8", 85.0)).await;
    assert!(follower.step(ALERTS).await.unwrap());
    assert_eq!(devices_with_alerts(&follower.executor.registry).await.last().unwrap(), "d8");
}

#[tokio::test]
async fn a_registry_that_fails_is_tried_again_with_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Watched::new();
    for device in ["a", "b"] {
        journal.say(Topic::Alerts, &firing(device, 81.0)).await;
    }
    let mut follower = follower(journal.clone(), &dir).await;
    let from = follower.take_up(ALERTS).await.unwrap();
    follower.executor.registry.close().await;
    assert!(matches!(follower.step(ALERTS).await, Err(FollowError::Apply(_))));
    assert_eq!((follower.position, follower.metrics.refused.get()), (Some(from), 0), "nothing is skipped");

    let clock = Clock::new(|| Timestamp::from_micros(1_700_000_000_000_000));
    follower.executor.registry = Registry::open_file(&dir.path().join("registry.db"), clock).await.unwrap();
    assert!(follower.step(ALERTS).await.unwrap());
    assert_eq!(devices_with_alerts(&follower.executor.registry).await, ["a", "b"]);
}

#[tokio::test]
async fn a_journal_that_ends_before_the_position_is_followed_from_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Watched::new();
    journal.say(Topic::Alerts, &firing("before", 81.0)).await;
    let mut follower = follower(journal.clone(), &dir).await;
    follower.executor.absorb(0, &[], 1_000).await.unwrap();

    assert!(!follower.step(ALERTS).await.unwrap());
    assert_eq!(
        follower.executor.registry.position(CONSUMER, 0).await.unwrap(),
        Some(1),
        "a later start knows, too"
    );
    journal.say(Topic::Alerts, &firing("after", 81.0)).await;
    assert!(follower.step(ALERTS).await.unwrap());
    assert_eq!(devices_with_alerts(&follower.executor.registry).await, ["after"]);
}

#[tokio::test]
async fn retention_waits_for_alerting_from_its_start_on() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Watched::new();
    let mut follower = follower(journal.clone(), &dir).await;
    assert_eq!(journal.position(CONSUMER, ALERTS), None);
    assert!(!follower.step(ALERTS).await.unwrap());
    assert_eq!(journal.position(CONSUMER, ALERTS), Some(Offset(0)));
    journal.say(Topic::Alerts, &firing("d", 81.0)).await;
    assert!(follower.step(ALERTS).await.unwrap());
    assert_eq!(journal.position(CONSUMER, ALERTS), Some(Offset(1)));
}

#[tokio::test]
async fn what_retention_took_is_passed() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Watched::new();
    let mut follower = follower(journal.clone(), &dir).await;
    assert!(!follower.step(ALERTS).await.unwrap());
    for device in ["gone", "kept"] {
        journal.say(Topic::Alerts, &firing(device, 81.0)).await;
    }
    journal.journal.trim(ALERTS, Offset(1));
    while follower.step(ALERTS).await.unwrap() {}
    assert_eq!(devices_with_alerts(&follower.executor.registry).await, ["kept"]);
}
