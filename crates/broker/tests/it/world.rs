use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use dunlin_broker::{
    Broker, Change, Counts, GatewayNumber, Home, Limits, Message, Outgoing, Publication, Published, Qos,
    RetainHandling, Session, SessionId, SessionKey, Subscription, Tenant, Will,
};
use dunlin_model::Timestamp;

pub(crate) const TENANT: &str = "t";
pub(crate) const WINDOW: usize = 1_000;

pub(crate) const LIMITS: Limits = Limits {
    session_subscriptions_max: 100,
    queue_messages_max: 1_000,
    queue_bytes_max: 1 << 20,
    sessions_max: 100,
    retained_messages_max: 100,
    retained_bytes_max: 1 << 20,
};

/// Counts how often it was woken.
#[derive(Debug, Default)]
pub(crate) struct Wakes(AtomicU64);

impl Home for Wakes {
    fn wake(&self, _connection: u64) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl Wakes {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A broker with the log of all that has happened to it.
pub(crate) struct World {
    pub(crate) broker: Broker,
    pub(crate) log: Vec<Vec<u8>>,
    pub(crate) now: Timestamp,
    pub(crate) connections: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(LIMITS)
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let broker = Broker::new(1, limits);
        broker.tenant(TENANT);
        let mut world = Self { broker, log: Vec::new(), now: seconds(0), connections: 0 };
        world.join("alone");
        world
    }

    /// The gateway takes part in the log.
    pub(crate) fn join(&mut self, name: &str) -> GatewayNumber {
        let gateway = self.broker.next_gateway(0);
        self.broker.is_gateway(gateway);
        self.log(&Change::Joined { gateway, name: name.into(), at: self.now });
        gateway
    }

    /// Of this gateway.
    pub(crate) fn connection(&self, nth: u64) -> u64 {
        self.broker.me().expect("it has joined").connection(nth)
    }

    /// What a start finds: the log, applied from its beginning.
    pub(crate) fn replayed(&self) -> Self {
        let mut world = Self { now: self.now, ..Self::new() };
        world.log.clone_from(&self.log);
        for (offset, bytes) in (0..).zip(&world.log) {
            world.broker.apply(0, offset, bytes, false).unwrap();
        }
        world
    }

    pub(crate) fn tenant(&self) -> Arc<Tenant> {
        self.broker.tenant(TENANT)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.broker.counts()[TENANT]
    }

    pub(crate) fn log(&mut self, change: &Change<'_>) -> u64 {
        let mut bytes = Vec::new();
        change.encode(&mut bytes);
        let offset = self.log.len() as u64;
        self.broker.apply(0, offset, &bytes, true).unwrap();
        self.log.push(bytes);
        offset
    }

    /// Lets time pass, and logs what it brings.
    pub(crate) fn pass(&mut self, now: Timestamp) {
        self.now = now;
        for change in self.broker.due(0, now) {
            self.log(&change);
        }
    }

    /// Opens a session for the log, and attaches a connection to it.
    pub(crate) fn open(&mut self, client: &str, open: Open) -> Arc<Session> {
        let Open { clean, expiry_seconds, will } = open;
        let connection = self.connection(self.connections + 1);
        self.log(&Change::Opened { key: key(client), clean, expiry_seconds, will, connection, at: self.now });
        let session = self.session(client).expect("it was opened");
        self.attach(&session);
        session
    }

    /// A session that is in no log.
    pub(crate) fn live(&mut self, client: &str) -> Arc<Session> {
        let session = Session::live(SessionId::live(self.connection(self.connections + 1)), key(client));
        self.attach(&session);
        session
    }

    pub(crate) fn attach(&mut self, session: &Session) -> Arc<Wakes> {
        self.connections += 1;
        let wakes = Arc::new(Wakes::default());
        session.attach(wakes.clone(), self.connection(self.connections));
        wakes
    }

    pub(crate) fn session(&self, client: &str) -> Option<Arc<Session>> {
        self.tenant().session(&key(client))
    }

    /// The connection ends.
    pub(crate) fn close(&mut self, session: &Session, with_will: bool) {
        (0..=self.connections).for_each(|connection| session.detach(self.connection(connection)));
        let (connection, at) = (session.opened_by(), self.now);
        self.log(&Change::Closed { session: session.id, connection, at, with_will, expiry_seconds: None });
    }

    pub(crate) fn subscribe(&mut self, session: &Arc<Session>, filter: &str, subscription: Subscription) {
        if session.id.is_logged() {
            let subscriptions = vec![(filter.to_owned().into(), subscription)];
            self.log(&Change::Subscribed { session: session.id, subscriptions, at: self.now });
        } else {
            self.tenant().subscribe(session, [(filter, subscription)], self.now);
        }
    }

    pub(crate) fn unsubscribe(&mut self, session: &Arc<Session>, filter: &str) {
        if session.id.is_logged() {
            let filters = vec![filter.to_owned().into()];
            self.log(&Change::Unsubscribed { session: session.id, filters });
        } else {
            self.tenant().unsubscribe(session, [filter]);
        }
    }

    /// Publishes as a gateway does: by the log if it must be.
    pub(crate) fn publish(&mut self, message: Message) -> Published {
        let published = self.tenant().publish(&Arc::new(message.copy()), false);
        if let Published::Log { chosen } = &published {
            self.log_publish(&message, None, chosen);
        }
        published
    }

    pub(crate) fn log_publish(
        &mut self,
        message: &Message,
        packet_id: Option<u16>,
        chosen: &[(String, SessionId)],
    ) {
        self.log(&published(message, self.now, packet_id, chosen));
    }
}

pub(crate) fn published<'m>(
    message: &'m Message,
    at: Timestamp,
    packet_id: Option<u16>,
    chosen: &'m [(String, SessionId)],
) -> Change<'m> {
    Change::Published(Publication {
        tenant: TENANT.into(),
        topic: (*message.topic).into(),
        payload: &message.payload,
        qos: message.qos,
        retain: message.retain,
        at,
        expires_at: message.expires_at,
        properties: message.properties.clone(),
        publisher: message.publisher,
        packet_id,
        chosen: chosen.iter().map(|(group, id)| (group.as_str().into(), *id)).collect(),
    })
}

/// How a client comes.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    pub(crate) clean: bool,
    pub(crate) expiry_seconds: u32,
    pub(crate) will: Option<Will>,
}

/// A session that outlives its connection by so many seconds.
pub(crate) fn lasting(expiry_seconds: u32) -> Open {
    Open { clean: false, expiry_seconds, will: None }
}

pub(crate) fn with_will(expiry_seconds: u32, will: Will) -> Open {
    Open { will: Some(will), ..lasting(expiry_seconds) }
}

pub(crate) fn will(topic: &str, delay_seconds: u32) -> Will {
    Will {
        topic: topic.into(),
        payload: b"will".to_vec(),
        qos: Qos::AtLeastOnce,
        retain: false,
        delay_seconds,
        expiry_seconds: None,
        properties: Default::default(),
    }
}

pub(crate) fn key(client: &str) -> SessionKey {
    SessionKey { tenant: TENANT.into(), device: "d".into(), client_id: client.into() }
}

pub(crate) fn seconds(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

pub(crate) fn subscription(qos: Qos) -> Subscription {
    Subscription {
        qos,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Always,
        id: None,
    }
}

pub(crate) fn message(topic: &str, payload: &str, qos: Qos) -> Message {
    Message {
        topic: topic.into(),
        payload: payload.to_owned().into(),
        qos,
        retain: false,
        expires_at: None,
        properties: None,
        publisher: None,
        packets: Default::default(),
    }
}

/// What a test changes about a message.
pub(crate) trait Changed {
    fn copy(&self) -> Message;
    fn retained(self) -> Message;
    fn expires_at(self, at: Timestamp) -> Message;
    fn by(self, publisher: &Session) -> Message;
}

impl Changed for Message {
    fn copy(&self) -> Message {
        Message {
            topic: self.topic.clone(),
            payload: self.payload.clone(),
            properties: self.properties.clone(),
            packets: Default::default(),
            ..*self
        }
    }

    fn retained(self) -> Message {
        Message { retain: true, ..self }
    }

    fn expires_at(self, at: Timestamp) -> Message {
        Message { expires_at: Some(at), ..self }
    }

    fn by(self, publisher: &Session) -> Message {
        Message { publisher: Some(publisher.id), ..self }
    }
}

/// `TOPIC PAYLOAD` of all that waits for the client, which acknowledges nothing.
pub(crate) fn sent(session: &Session, now: Timestamp) -> Vec<String> {
    let mut all = Vec::new();
    session.look(|outbox| {
        while let Some(outgoing) = outbox.next(WINDOW, now) {
            match outgoing {
                Outgoing::Publish(d) => {
                    all.push(format!("{} {}", d.message.topic, String::from_utf8_lossy(&d.message.payload)));
                }
                Outgoing::Release(packet) => all.push(format!("PUBREL {packet}")),
                Outgoing::Expired(number) => all.push(format!("expired {number}")),
            }
        }
    });
    all
}
