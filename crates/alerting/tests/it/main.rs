//! Alerting with a real receiver that fails, hangs and comes back.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use dunlin_alerting::{Alerting, Budget, ChannelConfig, Config, Retry, WebhookConfig};
use dunlin_journal::{Batch, Journal, MemoryJournal, Partition, Topic};
use dunlin_model::{
    AlertPhase, AlertState, AlertTransition, Clock, Fingerprint, Severity, TenantId, Timestamp, TransitionId,
    avro::Datum,
};
use dunlin_registry::{AlertFilter, Registry};
use tokio::sync::Notify;

/// A receiver that refuses, then hangs, then takes what it gets.
#[derive(Default)]
struct Receiver {
    asked: AtomicU64,
    refuse_first: u64,
    hang_until: u64,
    taken: Mutex<Vec<String>>,
    changed: Notify,
}

async fn receive(State(receiver): State<Arc<Receiver>>, headers: HeaderMap) -> StatusCode {
    let n = receiver.asked.fetch_add(1, Ordering::SeqCst);
    if n < receiver.refuse_first {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    if n < receiver.hang_until {
        std::future::pending::<()>().await;
    }
    let key = headers["idempotency-key"].to_str().unwrap().to_owned();
    receiver.taken.lock().unwrap().push(key);
    receiver.changed.notify_one();
    StatusCode::NO_CONTENT
}

impl Receiver {
    async fn serve(self: Arc<Self>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let app = Router::new().route("/hook", post(receive)).with_state(self);
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        url
    }

    async fn asked(&self, times: u64) {
        while self.asked.load(Ordering::SeqCst) < times {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn taken(&self, count: usize) -> Vec<String> {
        loop {
            let changed = self.changed.notified();
            let taken = self.taken.lock().unwrap().clone();
            if taken.len() >= count {
                return taken;
            }
            tokio::time::timeout(Duration::from_secs(30), changed).await.expect("notifications arrive");
        }
    }
}

struct Lab {
    journal: Arc<MemoryJournal>,
    registry: Registry,
    clock: Clock,
    _dir: tempfile::TempDir,
}

impl Lab {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::new(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            Timestamp::from_micros(now.as_micros() as i64)
        });
        let registry = Registry::open_file(&dir.path().join("registry.db"), clock.clone()).await.unwrap();
        let journal = Arc::new(MemoryJournal::new(1));
        Self { journal, registry, clock, _dir: dir }
    }

    async fn start(&self, config: &Config) -> Alerting {
        let (journal, registry, clock) = (self.journal.clone(), self.registry.clone(), self.clock.clone());
        Alerting::start(config, journal, registry, clock, None, &mut Default::default()).await.unwrap()
    }

    async fn say(&self, device: &str, phase: AlertPhase) {
        let fingerprint = Fingerprint::of("default", "hot", device);
        let since = Timestamp::from_micros(1_700_000_000_000_000);
        let transition = AlertTransition {
            id: TransitionId::of(fingerprint, phase, since),
            fingerprint,
            tenant: "default".into(),
            device: device.into(),
            rule: "hot".into(),
            severity: Severity::Critical,
            phase,
            at: since,
            since,
            value: 81.0,
            condition: "temperature > 80".into(),
        };
        let mut batch = Batch::default();
        batch.push(&transition.encode());
        self.journal.append(Partition::new(Topic::Alerts, 0), batch).await.unwrap();
    }
}

fn webhook(name: &str, url: String) -> ChannelConfig {
    patient_webhook(name, url, 60)
}

fn patient_webhook(name: &str, url: String, timeout_seconds: u64) -> ChannelConfig {
    ChannelConfig::Webhook(WebhookConfig {
        name: name.into(),
        url,
        timeout_seconds,
        secret_file: None,
        private_network: true,
        budget: Budget { burst: 1_000, per_hour: 1_000 },
        template: None,
    })
}

fn impatient(channel: Vec<ChannelConfig>) -> Config {
    let retry = Retry { attempts_max: 50, pause_first_ms: 10, pause_longest_ms: 50 };
    Config { retry, channel, ..Config::default() }
}

#[tokio::test]
async fn a_receiver_that_fails_and_hangs_hears_everything_and_delays_nobody_else() {
    let lab = Lab::new().await;
    let bad = Arc::new(Receiver { refuse_first: 5, hang_until: 7, ..Receiver::default() });
    let good = Arc::new(Receiver::default());
    let config = impatient(vec![
        patient_webhook("bad", bad.clone().serve().await, 3),
        webhook("good", good.clone().serve().await),
    ]);
    let alerting = lab.start(&config).await;
    for device in ["a", "b", "c"] {
        lab.say(device, AlertPhase::Pending).await;
        lab.say(device, AlertPhase::Firing).await;
    }
    assert_eq!(good.taken(3).await.len(), 3, "pending is not told, firing is told once");
    let heard = bad.taken(3).await;
    alerting.stop().await;
    assert_eq!(heard.iter().collect::<BTreeSet<_>>().len(), 3, "each once: {heard:?}");
}

#[tokio::test]
async fn a_restart_between_applying_and_sending_loses_nothing_and_repeats_nothing() {
    let lab = Lab::new().await;
    let deaf = impatient(vec![webhook("hook", "http://127.0.0.1:9/nobody".into())]);
    let alerting = lab.start(&deaf).await;
    lab.say("a", AlertPhase::Firing).await;
    let tenant = TenantId::default_tenant();
    while lab
        .registry
        .alerts(&tenant, &AlertFilter { limit: 9, ..AlertFilter::default() })
        .await
        .unwrap()
        .is_empty()
    {
        tokio::task::yield_now().await;
    }
    alerting.stop().await;

    let receiver = Arc::new(Receiver::default());
    let config = impatient(vec![webhook("hook", receiver.clone().serve().await)]);
    let alerting = lab.start(&config).await;
    lab.say("a", AlertPhase::Firing).await; // The rules were replayed: the very same transition again.
    lab.say("a", AlertPhase::Resolved).await;
    let heard = receiver.taken(2).await;
    alerting.stop().await;
    assert_eq!(heard.len(), 2);
    assert_ne!(heard[0], heard[1]);
    let alerts =
        lab.registry.alerts(&tenant, &AlertFilter { limit: 9, ..AlertFilter::default() }).await.unwrap();
    assert_eq!(alerts.iter().map(|a| a.state).collect::<Vec<_>>(), [AlertState::Resolved]);
}

#[tokio::test]
async fn a_record_that_is_no_transition_is_skipped() {
    let lab = Lab::new().await;
    let receiver = Arc::new(Receiver::default());
    let config = impatient(vec![webhook("hook", receiver.clone().serve().await)]);
    let alerting = lab.start(&config).await;
    let mut batch = Batch::default();
    batch.push(b"not avro");
    lab.journal.append(Partition::new(Topic::Alerts, 0), batch).await.unwrap();
    lab.say("a", AlertPhase::Firing).await;
    assert_eq!(receiver.taken(1).await.len(), 1);
    alerting.stop().await;
}

#[tokio::test]
async fn a_stop_does_not_wait_for_receivers_and_the_next_start_sends_what_was_cut() {
    let lab = Lab::new().await;
    let silent = Arc::new(Receiver { hang_until: u64::MAX, ..Receiver::default() });
    let url = silent.clone().serve().await;
    let patient = patient_webhook("hook", url, 3_600);
    let alerting = lab.start(&impatient(vec![patient])).await;
    let devices: Vec<String> = (0..20).map(|n| format!("d{n}")).collect();
    for device in &devices {
        lab.say(device, AlertPhase::Firing).await;
    }
    silent.asked(1).await;
    tokio::time::timeout(Duration::from_secs(300), alerting.stop()).await.expect("stops within any patience");
    let due = lab.registry.due_notifications("hook", 100).await.unwrap();
    assert!(!due.is_empty() && due.iter().all(|n| n.attempts == 0), "a cut send is no try: {due:?}");

    let receiver = Arc::new(Receiver::default());
    let alerting = lab.start(&impatient(vec![webhook("hook", receiver.clone().serve().await)])).await;
    let heard = receiver.taken(devices.len()).await;
    alerting.stop().await;
    assert_eq!(heard.iter().collect::<BTreeSet<_>>().len(), devices.len(), "each once: {heard:?}");
}

#[tokio::test]
async fn an_end_is_told_after_its_beginning_though_that_fails_at_first() {
    let lab = Lab::new().await;
    let receiver = Arc::new(Receiver { refuse_first: 3, ..Receiver::default() });
    let config = Config {
        retry: Retry { attempts_max: 50, pause_first_ms: 200, pause_longest_ms: 200 },
        channel: vec![webhook("hook", receiver.clone().serve().await)],
        ..Config::default()
    };
    let alerting = lab.start(&config).await;
    lab.say("a", AlertPhase::Firing).await;
    lab.say("a", AlertPhase::Resolved).await;
    let heard = receiver.taken(2).await;
    alerting.stop().await;
    let fingerprint = Fingerprint::of("default", "hot", "a");
    let since = Timestamp::from_micros(1_700_000_000_000_000);
    let said = [AlertPhase::Firing, AlertPhase::Resolved];
    assert_eq!(heard, said.map(|phase| format!("{}-hook", TransitionId::of(fingerprint, phase, since))));
}
