//! Random histories on the real registry.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicI64, Ordering::SeqCst},
    time::Duration,
};

use dunlin_model::{AlertState, AlertStep, Clock, Severity, TenantId, Timestamp, TransitionId};
use dunlin_registry::{Act, AlertFilter, NewSilence, NotificationFilter};
use proptest::prelude::*;

use super::*;
use crate::Config;

const DEVICES: [&str; 3] = ["a", "b", "c"];
const START: i64 = 1_700_000_000_000_000;

/// `b` is behind the gateway `a`; the rule `x-down` says that a device is down.
#[derive(Debug, Clone)]
enum Op {
    /// The rule says a phase, of the episode at hand or a new one.
    Say {
        device: usize,
        rule: usize,
        phase: AlertPhase,
        is_new: bool,
        is_critical: bool,
    },
    Repeat,
    Acknowledge(usize),
    Unacknowledge(usize),
    Snooze(usize),
    Silence(usize),
    Expire,
    Pass(u64),
    Look,
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let phase = prop_oneof![
        Just(AlertPhase::Pending),
        Just(AlertPhase::Firing),
        Just(AlertPhase::Firing),
        Just(AlertPhase::Resolved),
        Just(AlertPhase::Cancelled),
    ];
    prop_oneof![
        8 => (0..3usize, 0..2usize, phase, any::<bool>(), any::<bool>())
            .prop_map(|(device, rule, phase, is_new, is_critical)| Op::Say { device, rule, phase, is_new, is_critical }),
        1 => Just(Op::Repeat),
        2 => (0..3usize).prop_map(Op::Acknowledge),
        1 => (0..3usize).prop_map(Op::Unacknowledge),
        1 => (0..3usize).prop_map(Op::Snooze),
        1 => (0..3usize).prop_map(Op::Silence),
        1 => Just(Op::Expire),
        2 => (1..400u64).prop_map(Op::Pass),
        2 => Just(Op::Look),
        1 => Just(Op::Restart),
    ]
}

const CONFIG: &str = r#"
digest_seconds = 60
[flapping]
firings = 4
within_seconds = 300
quiet_seconds = 100
[[channel]]
kind = "webhook"
name = "hook"
url = "https://example.com"
budget = { burst = 2, per_hour = 60 }
[[channel]]
kind = "log"
name = "log"
[[policy]]
name = "p"
repeat_times = 1
step = [{ tell = ["hook"], wait_seconds = 50 }, { tell = ["log"], wait_seconds = 50 }]
[[route]]
match = ["rule!=other"]
policy = "p"
"#;

struct Lab {
    dir: tempfile::TempDir,
    hands: Arc<AtomicI64>,
    executor: Executor,
    said: Vec<AlertTransition>,
    since: BTreeMap<(usize, usize), i64>,
    silences: Vec<String>,
    states: BTreeMap<AlertId, AlertState>,
    notifications: BTreeSet<String>,
}

impl Lab {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hands = Arc::new(AtomicI64::new(START));
        let executor = Self::executor(&dir, &hands).await;
        let tenant = TenantId::default_tenant();
        executor.registry.add_tenant(&tenant).await.unwrap();
        let gateway = dunlin_registry::NewDevice {
            name: "a".parse().unwrap(),
            device_type: dunlin_model::DeviceType::default_type(),
            is_gateway: true,
        };
        executor.registry.add_device(&tenant, &gateway).await.unwrap();
        let gateway = executor.registry.device(&tenant, &gateway.name).await.unwrap().unwrap();
        executor.registry.children_of(&gateway, &["b".parse().unwrap()], 9).await.unwrap();
        Self {
            dir,
            hands,
            executor,
            said: Vec::new(),
            since: BTreeMap::new(),
            silences: Vec::new(),
            states: BTreeMap::new(),
            notifications: BTreeSet::new(),
        }
    }

    async fn executor(dir: &tempfile::TempDir, hands: &Arc<AtomicI64>) -> Executor {
        let hands = hands.clone();
        let clock = Clock::new(move || Timestamp::from_micros(hands.load(SeqCst)));
        let config: Config = toml::from_str(CONFIG).unwrap();
        Executor {
            registry: Registry::open_file(&dir.path().join("registry.db"), clock).await.unwrap(),
            policy: Arc::new(Policy::new(&config).unwrap()),
            metrics: Metrics::register(&mut Default::default()),
            senders: Vec::new(),
            reminder: Arc::default(),
        }
    }

    fn transition(
        &mut self,
        device: usize,
        rule: usize,
        phase: AlertPhase,
        is_new: bool,
        is_critical: bool,
    ) -> AlertTransition {
        let now = self.hands.load(SeqCst);
        let since = self.since.entry((device, rule)).or_insert(now);
        if is_new {
            *since = now;
        }
        let since = Timestamp::from_micros(*since);
        let rule = ["x-down", "hot"][rule];
        let fingerprint = Fingerprint::of("default", rule, DEVICES[device]);
        AlertTransition {
            // Raising is a transition of its own.
            id: TransitionId(TransitionId::of(fingerprint, phase, since).0 ^ i64::from(is_critical)),
            fingerprint,
            tenant: "default".into(),
            device: DEVICES[device].into(),
            rule: rule.into(),
            severity: if is_critical { Severity::Critical } else { Severity::Warning },
            phase,
            at: Timestamp::from_micros(now),
            since,
            value: 81.0,
            condition: "temperature > 80".into(),
        }
    }

    async fn act(&self, device: usize, act: Act) {
        let (registry, tenant) = (&self.executor.registry, TenantId::default_tenant());
        let filter = AlertFilter { device: Some(DEVICES[device].into()), limit: 1, ..AlertFilter::default() };
        if let Some(alert) = registry.alerts(&tenant, &filter).await.unwrap().pop() {
            let legal = act == Act::Acknowledge && alert.state == AlertState::Firing;
            let done = registry.act_on_alert(&tenant, alert.id, &act, "ada", "", None).await;
            assert!(done.is_ok() || !legal, "{done:?}");
        }
    }

    async fn run(&mut self, op: Op) {
        let now = Timestamp::from_micros(self.hands.fetch_add(1, SeqCst) + 1);
        match op {
            Op::Say { device, rule, phase, is_new, is_critical } => {
                let transition = self.transition(device, rule, phase, is_new, is_critical);
                self.said.push(transition);
                self.executor
                    .absorb(0, &self.said[self.said.len() - 1..], self.said.len() as u64)
                    .await
                    .unwrap();
            }
            Op::Repeat => {
                let before = self.picture().await;
                let fresh = self.executor.absorb(0, &self.said, self.said.len() as u64).await.unwrap();
                assert_eq!(fresh, 0);
                assert_eq!(self.picture().await, before, "a replay changes nothing and tells nobody");
            }
            Op::Acknowledge(device) => self.act(device, Act::Acknowledge).await,
            Op::Unacknowledge(device) => self.act(device, Act::Unacknowledge).await,
            Op::Snooze(device) => self.act(device, Act::Snooze(now + Duration::from_secs(60))).await,
            Op::Silence(device) => {
                let matchers = crate::Matchers::parse(&[format!("device={}", DEVICES[device])]).unwrap();
                let ends_at = now + Duration::from_secs(90);
                let new = NewSilence {
                    matchers: matchers.keep(),
                    starts_at: now,
                    ends_at,
                    every_seconds: None,
                    until: ends_at,
                    comment: String::new(),
                    created_by: "ada".into(),
                };
                let silence =
                    self.executor.registry.add_silence(&TenantId::default_tenant(), &new).await.unwrap();
                self.silences.push(silence.id);
            }
            Op::Expire => {
                if let Some(id) = self.silences.pop() {
                    self.executor.registry.expire_silence(&TenantId::default_tenant(), &id).await.unwrap();
                }
            }
            Op::Pass(seconds) => {
                self.hands.fetch_add(seconds as i64 * 1_000_000, SeqCst);
            }
            Op::Look => while self.executor.look_again().await.unwrap() {},
            Op::Restart => {
                self.executor.registry.close().await;
                self.executor = Self::executor(&self.dir, &self.hands).await;
            }
        }
    }

    /// Everything that people could see.
    async fn picture(&self) -> (Vec<Alert>, Vec<dunlin_registry::Told>) {
        let (registry, tenant) = (&self.executor.registry, TenantId::default_tenant());
        let all = AlertFilter { limit: 1_000, ..AlertFilter::default() };
        let told = NotificationFilter { limit: 10_000, ..NotificationFilter::default() };
        (registry.alerts(&tenant, &all).await.unwrap(), registry.notifications(&tenant, &told).await.unwrap())
    }

    async fn check(&mut self) {
        let (alerts, told) = self.picture().await;
        let mut open = BTreeSet::new();
        for alert in &alerts {
            assert!(!alert.state.is_open() || open.insert(alert.id.fingerprint), "two are open: {alerts:?}");
            let before = self.states.insert(alert.id, alert.state);
            assert!(is_legal(before, alert.state), "{before:?} to {}", alert.state);
        }
        let mut beginnings = BTreeMap::<_, u32>::new();
        for n in &told {
            let why = n.reason.as_deref().unwrap_or_default();
            let is_kept = matches!(n.state.as_str(), "suppressed" | "carried");
            assert!(!is_kept || !why.is_empty(), "no reason: {n:?}");
            assert_eq!(n.state == "carried", n.carrier.is_some(), "{n:?}");
            if let Some(carrier) = &n.carrier {
                assert!(told.iter().any(|m| m.idempotency_key == *carrier), "no carrier: {n:?}");
            }
            if n.state != "suppressed" && matches!(n.what.as_str(), "fired" | "flapping" | "calmed") {
                let count = beginnings.entry((n.alert, n.channel.clone())).or_default();
                *count += 1;
                assert_eq!(*count, 1, "told twice that it fires: {n:?}");
            }
        }
        for alert in alerts.iter().filter(|alert| alert.fired_at.is_some()) {
            let accounted = told.iter().any(|n| n.alert == Some(alert.id) && n.channel == "hook");
            assert!(accounted, "nothing says whether anybody was told of {alert:?}");
        }
        let keys: BTreeSet<String> = told.into_iter().map(|n| n.idempotency_key).collect();
        assert!(keys.is_superset(&self.notifications), "what was written down is there");
        self.notifications = keys;
    }
}

/// In at most two steps: what a rule says may both fire and raise nothing else.
fn is_legal(before: Option<AlertState>, now: AlertState) -> bool {
    use AlertStep::*;
    let steps = [Fired, Raised, Lowered, Resolved, Cancelled, Acknowledged, Unacknowledged];
    match before {
        None => matches!(now, AlertState::Pending | AlertState::Firing),
        Some(before) => before == now || steps.iter().any(|step| before.on(*step) == Ok(now)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn every_history_is_legal_and_explained(ops in prop::collection::vec(op(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut lab = Lab::new().await;
            for op in ops {
                lab.run(op).await;
                lab.check().await;
            }
            // In the end nothing waits that time alone would bring.
            lab.hands.fetch_add(86_400_000_000, SeqCst);
            for _ in 0..20 {
                while lab.executor.look_again().await.unwrap() {}
                lab.check().await;
                lab.hands.fetch_add(3_600_000_000, SeqCst);
            }
        });
    }
}
