//! Whatever happened, the log alone brings back every session, and so does a snapshot with the rest of the log.

use std::collections::{BTreeMap, BTreeSet};

use dunlin_broker::{
    Acknowledged, Broker, Change, GatewayNumber, Message, Outgoing, Qos, RetainHandling, Session,
    Subscription, Will,
};
use dunlin_model::Timestamp;
use proptest::{collection::vec, prelude::*, sample::select};

use crate::commands::command;
use crate::world::{Changed, LIMITS, Open, TENANT, WINDOW, World, message, seconds, subscription, will};

const FILTERS: [&str; 7] = ["a", "a/#", "+", "$share/g/a", "$share/g/+", "$share/h/a", "$commands/d/+"];
const COMMANDS: [&str; 2] = ["one", "other"];
const TOPICS: [&str; 3] = ["a", "a/b", "b"];
const CLIENTS: [&str; 3] = ["0", "1", "2"];
/// Clients whose sessions are in no log.
const LIVE: usize = 2;

#[derive(Debug, Clone)]
enum Step {
    Open {
        client: usize,
        clean: bool,
        expiry_seconds: u32,
        will: Option<Will>,
    },
    Close {
        client: usize,
        with_will: bool,
    },
    Subscribe {
        client: usize,
        filter: &'static str,
        subscription: Subscription,
    },
    SubscribeLive {
        client: usize,
        filter: &'static str,
    },
    Unsubscribe {
        client: usize,
        filter: &'static str,
    },
    Publish {
        topic: &'static str,
        qos: Qos,
        retain: bool,
        is_empty: bool,
        expires_in: Option<i64>,
    },
    PublishOnce {
        client: usize,
        topic: &'static str,
        packet_id: u16,
    },
    Release {
        client: usize,
        packet_id: u16,
    },
    /// A client is sent so much, acknowledges the `done`th of it and says PUBREC for the `received`th.
    Converse {
        client: usize,
        count: usize,
        done: Option<usize>,
        received: Option<usize>,
    },
    /// A command for the one device that all clients are.
    Command {
        id: &'static str,
        /// By so many before the end of its log.
        back: u64,
        expires_in: i64,
    },
    Take {
        id: &'static str,
    },
    Pass {
        seconds: i64,
    },
}

fn qos() -> impl Strategy<Value = Qos> {
    prop_oneof![Just(Qos::AtMostOnce), Just(Qos::AtLeastOnce), Just(Qos::ExactlyOnce)]
}

fn any_will() -> impl Strategy<Value = Will> {
    (select(TOPICS.to_vec()), 0..4u32, qos(), any::<bool>()).prop_map(|(topic, delay, qos, retain)| Will {
        qos,
        retain,
        ..will(topic, delay * 10)
    })
}

fn any_subscription() -> impl Strategy<Value = Subscription> {
    let handling = select(vec![RetainHandling::Always, RetainHandling::IfNew, RetainHandling::Never]);
    (qos(), any::<bool>(), handling, prop::option::of(1..5u32)).prop_map(
        |(qos, retain_as_published, retain_handling, id)| Subscription {
            retain_as_published,
            retain_handling,
            id,
            ..subscription(qos)
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let (client, topic, filter) = (0..CLIENTS.len(), select(TOPICS.to_vec()), select(FILTERS.to_vec()));
    let nth = || prop::option::of(0..4usize);
    prop_oneof![
        3 => (client.clone(), prop::bool::weighted(0.2), select(vec![0, 20, 1_000]), prop::option::of(any_will()))
            .prop_map(|(client, clean, expiry_seconds, will)| Step::Open { client, clean, expiry_seconds, will }),
        2 => (client.clone(), any::<bool>()).prop_map(|(client, with_will)| Step::Close { client, with_will }),
        4 => (client.clone(), filter.clone(), any_subscription())
            .prop_map(|(client, filter, subscription)| Step::Subscribe { client, filter, subscription }),
        1 => (0..LIVE, filter.clone()).prop_map(|(client, filter)| Step::SubscribeLive { client, filter }),
        1 => (client.clone(), filter).prop_map(|(client, filter)| Step::Unsubscribe { client, filter }),
        8 => (topic.clone(), qos(), prop::bool::weighted(0.3), prop::bool::weighted(0.1), prop::option::of(5..30i64))
            .prop_map(|(topic, qos, retain, is_empty, expires_in)| Step::Publish { topic, qos, retain, is_empty, expires_in }),
        2 => (client.clone(), topic, 1..3u16)
            .prop_map(|(client, topic, packet_id)| Step::PublishOnce { client, topic, packet_id }),
        1 => (client.clone(), 1..3u16).prop_map(|(client, packet_id)| Step::Release { client, packet_id }),
        5 => (client, 1..4usize, nth(), nth())
            .prop_map(|(client, count, done, received)| Step::Converse { client, count, done, received }),
        3 => (select(COMMANDS.to_vec()), 0..3u64, 5..30i64)
            .prop_map(|(id, back, expires_in)| Step::Command { id, back, expires_in }),
        1 => select(COMMANDS.to_vec()).prop_map(|id| Step::Take { id }),
        2 => (1..15i64).prop_map(|seconds| Step::Pass { seconds }),
    ]
}

/// What happens, as gateways and their clients make it happen.
struct History {
    world: World,
    live: Vec<std::sync::Arc<Session>>,
    payload: u32,
}

impl History {
    fn new() -> Self {
        let mut world = World::new();
        let live = (0..LIVE).map(|n| world.live(&format!("live {n}"))).collect();
        Self { world, live, payload: 0 }
    }

    /// The session of a client that is connected.
    fn connected(&self, client: usize) -> Option<std::sync::Arc<Session>> {
        self.world.session(CLIENTS[client]).filter(|session| session.is_connected())
    }

    fn message(&mut self, topic: &str, qos: Qos) -> Message {
        self.payload += 1;
        message(topic, &self.payload.to_string(), qos)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Open { client, clean, expiry_seconds, will } => {
                if let Some(session) = self.connected(client) {
                    self.world.close(&session, true);
                }
                self.world.open(CLIENTS[client], Open { clean, expiry_seconds, will });
            }
            Step::Close { client, with_will } => {
                if let Some(session) = self.connected(client) {
                    self.world.close(&session, with_will);
                }
            }
            Step::Subscribe { client, filter, subscription } => {
                if let Some(session) = self.connected(client) {
                    self.world.subscribe(&session, filter, subscription);
                }
            }
            Step::SubscribeLive { client, filter } => {
                let session = self.live[client].clone();
                self.world.subscribe(&session, filter, subscription(Qos::ExactlyOnce));
            }
            Step::Unsubscribe { client, filter } => {
                if let Some(session) = self.connected(client) {
                    self.world.unsubscribe(&session, filter);
                }
            }
            Step::Publish { topic, qos, retain, is_empty, expires_in } => {
                let mut message = self.message(topic, qos);
                message.retain = retain;
                if is_empty {
                    message.payload = Default::default();
                }
                let now = self.world.now;
                message.expires_at = expires_in.map(|secs| now + std::time::Duration::from_secs(secs as u64));
                self.world.publish(message);
            }
            Step::PublishOnce { client, topic, packet_id } => {
                if let Some(session) = self.connected(client) {
                    let message = self.message(topic, Qos::ExactlyOnce).by(&session);
                    let published = self.world.tenant().publish(&std::sync::Arc::new(message.copy()), true);
                    let dunlin_broker::Published::Log { chosen } = published else { panic!("{published:?}") };
                    self.world.log_publish(&message, Some(packet_id), &chosen);
                }
            }
            Step::Release { client, packet_id } => {
                if let Some(session) = self.connected(client) {
                    self.world.log(&Change::Released { session: session.id, packet_id });
                }
            }
            Step::Converse { client, count, done, received } => {
                if let Some(session) = self.connected(client) {
                    self.converse(&session, count, done, received);
                }
            }
            Step::Command { id, back, expires_in } => {
                let offset = self.world.broker.next_command(0, 0).saturating_sub(back);
                let expires_at = self.world.now + std::time::Duration::from_secs(expires_in as u64);
                self.world.log(&command("d", id, offset, expires_at));
            }
            Step::Take { id } => {
                self.world.log(&Change::Taken { tenant: TENANT.into(), device: "d".into(), id: id.into() });
            }
            Step::Pass { seconds } => {
                let now = self.world.now + std::time::Duration::from_secs(seconds as u64);
                self.world.pass(now);
            }
        }
    }

    fn converse(&mut self, session: &Session, count: usize, done: Option<usize>, received: Option<usize>) {
        let (mut packets, mut expired) = (Vec::new(), Vec::new());
        for _ in 0..count {
            match session.look(|outbox| outbox.next(WINDOW, self.world.now)) {
                None => break,
                Some(Outgoing::Publish(delivery)) => packets.extend(delivery.packet_id),
                Some(Outgoing::Release(packet)) => packets.push(packet),
                Some(Outgoing::Expired(number)) => expired.extend((number > 0).then_some(number)),
            }
        }
        let id = session.id;
        for number in expired {
            self.world.log(&Change::Acknowledged { session: id, number });
        }
        if let Some(packet) = received.and_then(|nth| packets.get(nth))
            && let Acknowledged::Message(number) = session.look(|outbox| outbox.received(*packet))
        {
            self.world.log(&Change::Received { session: id, number });
        }
        if let Some(packet) = done.and_then(|nth| packets.get(nth))
            && let Acknowledged::Message(number) = session.look(|outbox| outbox.acknowledge(*packet))
        {
            self.world.log(&Change::Acknowledged { session: id, number });
        }
    }

    /// All connections end, and those in no log leave nothing.
    fn end(&mut self) {
        for client in 0..CLIENTS.len() {
            if let Some(session) = self.connected(client) {
                self.world.close(&session, false);
            }
        }
        for session in self.live.drain(..) {
            self.world.tenant().end(&session);
        }
    }
}

/// Everything that anybody could notice.
#[derive(Debug, PartialEq, Eq)]
struct Observed {
    sessions: BTreeMap<&'static str, ObservedSession>,
    retained: BTreeSet<String>,
    due: Vec<String>,
    subscriptions: usize,
}

#[derive(Debug, PartialEq, Eq)]
struct ObservedSession {
    id: dunlin_broker::SessionId,
    subscribed: Vec<&'static str>,
    held: Vec<u16>,
    /// In the order they are sent.
    publishes: Vec<String>,
    releases: BTreeSet<u16>,
}

fn observe(world: &mut World) -> Observed {
    let mut due: Vec<String> =
        world.broker.due(0, seconds(1_000_000)).iter().map(|change| format!("{change:?}")).collect();
    due.sort();
    let subscriptions = world.counts().subscriptions;
    let mut sessions = BTreeMap::new();
    for client in CLIENTS {
        let Some(session) = world.session(client) else { continue };
        world.attach(&session);
        let (mut publishes, mut releases) = (Vec::new(), BTreeSet::new());
        // What was sent once is sent again however old it is, and the log does not know what was sent.
        while let Some(outgoing) = session.look(|outbox| outbox.next(usize::MAX, Timestamp::MIN)) {
            match outgoing {
                Outgoing::Release(packet) => {
                    releases.insert(packet.get());
                }
                Outgoing::Expired(number) => publishes.push(format!("expired {number}")),
                Outgoing::Publish(d) => {
                    let payload = String::from_utf8_lossy(&d.message.payload).into_owned();
                    let mut ids = d.subscription_ids.to_vec();
                    ids.sort_unstable();
                    publishes.push(format!(
                        "{} {payload} {:?} {:?} retain {} ids {ids:?}",
                        d.message.topic, d.qos, d.packet_id, d.retain
                    ));
                }
            }
        }
        let subscribed = FILTERS.into_iter().filter(|f| world.tenant().is_subscribed(&session, f)).collect();
        let held = (1..3).filter(|id| session.holds((*id).try_into().unwrap())).collect();
        let id = session.id;
        sessions.insert(client, ObservedSession { id, subscribed, held, publishes, releases });
    }
    let reader = world.live("reader");
    world.subscribe(&reader, "#", subscription(Qos::AtMostOnce));
    let retained = crate::world::sent(&reader, world.now).into_iter().collect();
    Observed { sessions, retained, due, subscriptions }
}

/// The log, with a restart from a snapshot at each of the `cuts`.
fn with_restarts(history: &World, cuts: &BTreeSet<usize>) -> World {
    let mut world = World { now: history.now, ..World::new() };
    let mut last = 0;
    for (offset, bytes) in history.log.iter().enumerate() {
        if cuts.contains(&offset) {
            let snapshot = world.broker.snapshot(0, offset as u64);
            let me = world.broker.me().unwrap();
            world.broker = Broker::new(1, LIMITS);
            world.broker.is_gateway(me);
            world.broker.tenant(TENANT);
            last = world.broker.restore(0, &snapshot).unwrap() as usize;
            assert_eq!(last, offset);
        }
        // Applied live in this run, or found at its start.
        world.broker.apply(0, offset as u64, bytes, offset > last + 3).unwrap();
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_log_alone_brings_everything_back(
        steps in vec(step(), 1..80),
        cuts in vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let mut history = History::new();
        steps.into_iter().for_each(|step| history.step(step));
        history.end();
        let mut world = history.world;
        let cuts = cuts.iter().map(|cut| cut.index(world.log.len().max(1))).collect();

        let mut restarted = with_restarts(&world, &cuts);
        let mut replayed = world.replayed();
        let snapshot = world.broker.snapshot(0, world.log.len() as u64);
        let mut restored = World { now: world.now, ..World::new() };
        restored.broker.restore(0, &snapshot).unwrap();

        let expected = observe(&mut world);
        prop_assert_eq!(&observe(&mut replayed), &expected, "replayed");
        prop_assert_eq!(&observe(&mut restarted), &expected, "restarted at {:?}", cuts);
        prop_assert_eq!(&observe(&mut restored), &expected, "restored");
    }

    #[test]
    fn every_gateway_on_the_log_has_the_same_state(steps in vec(step(), 1..80)) {
        let mut history = History::new();
        steps.into_iter().for_each(|step| history.step(step));
        history.end();
        let world = history.world;
        let other = Broker::new(1, LIMITS);
        other.is_gateway(GatewayNumber::of(2 << 40));
        for (offset, bytes) in (0..).zip(&world.log) {
            other.apply(0, offset, bytes, true).unwrap();
        }
        let end = world.log.len() as u64;
        prop_assert_eq!(other.snapshot(0, end), world.broker.snapshot(0, end));
    }
}
