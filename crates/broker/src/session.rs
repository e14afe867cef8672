use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroU16,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use dunlin_model::{Timestamp, limits::MESSAGE_BYTES_MAX};
use hashbrown::HashSet;
use serde::{Deserialize, Serialize};

use crate::{
    gateways::GatewayNumber,
    message::{Message, Properties, Qos},
    outbox::Outbox,
};

/// A session, unique within its partition. One that is in the log has the offset of the change that opened it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(u64);

impl SessionId {
    const LIVE: u64 = 1 << 63;

    /// For a session that ends with its connection and is in no log.
    pub fn live(number: u64) -> Self {
        Self(number | Self::LIVE)
    }

    pub(crate) fn logged(offset: u64) -> Self {
        Self(offset)
    }

    /// Whether its changes must be logged.
    pub fn is_logged(self) -> bool {
        self.0 & Self::LIVE == 0
    }

    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// Where its connection is, of one that is in no log.
    pub(crate) fn gateway(self) -> Option<GatewayNumber> {
        (!self.is_logged()).then(|| GatewayNumber::of(self.0))
    }
}

/// Whose session: every device has client ids of its own, so that no stranger takes one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionKey {
    pub tenant: Box<str>,
    pub device: Box<str>,
    pub client_id: Box<str>,
}

/// What a client asks for with one filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscription {
    pub qos: Qos,
    pub no_local: bool,
    pub retain_as_published: bool,
    pub retain_handling: RetainHandling,
    /// Stands in every message that comes by this subscription.
    pub id: Option<u32>,
}

/// Which retained messages a subscription brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RetainHandling {
    Always,
    IfNew,
    Never,
}

/// What is published when a connection ends without a word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Will {
    pub topic: Box<str>,
    pub payload: Vec<u8>,
    pub qos: Qos,
    pub retain: bool,
    pub delay_seconds: u32,
    pub expiry_seconds: Option<u32>,
    pub properties: Properties,
}

/// Where a session's connection is served.
pub trait Home: fmt::Debug + Send + Sync {
    /// There is something to send. Told once, until the connection has looked.
    fn wake(&self, connection: u64);
}

/// One client's side of the conversation. It outlives the connection if the client asked for that.
#[derive(Debug)]
pub struct Session {
    pub id: SessionId,
    pub key: SessionKey,
    connected: AtomicBool,
    /// Another gateway has its connection.
    elsewhere: AtomicBool,
    /// Messages of QoS 1 and 2 wait for a client that is away.
    outlives: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) home: Option<(Arc<dyn Home>, u64)>,
    /// The home was told, and has not looked since.
    pub(crate) woken: bool,
    pub(crate) outbox: Outbox,
    pub(crate) subscriptions: BTreeMap<Box<str>, Subscription>,
    /// QoS 2 packet ids from PUBLISH to PUBREL, of messages that went through the log.
    pub(crate) held: HashSet<u16, foldhash::fast::RandomState>,
    pub(crate) life: Life,
}

/// How a logged session goes on when its connection ends.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Life {
    pub(crate) expiry_seconds: u32,
    pub(crate) will: Option<Will>,
    /// The one that opened it last.
    pub(crate) connection: u64,
    /// Since when its client is away.
    pub(crate) closed_at: Option<Timestamp>,
}

impl Life {
    pub(crate) fn expires_at(&self) -> Option<Timestamp> {
        self.closed_at.map(|at| after(at, self.expiry_seconds))
    }

    /// When the will is published, unless the client comes back.
    pub(crate) fn will_at(&self) -> Option<Timestamp> {
        let will = self.will.as_ref()?;
        self.closed_at.map(|at| after(at, will.delay_seconds.min(self.expiry_seconds)))
    }
}

pub(crate) fn after(at: Timestamp, seconds: u32) -> Timestamp {
    Timestamp::from_micros(at.as_micros().saturating_add(i64::from(seconds) * 1_000_000))
}

impl Session {
    /// A session that ends with its connection.
    pub fn live(id: SessionId, key: SessionKey) -> Arc<Self> {
        Self::new(id, key, State::default())
    }

    /// For clients of another gateway.
    pub(crate) fn elsewhere(id: SessionId, key: SessionKey) -> Arc<Self> {
        let session = Self::live(id, key);
        session.elsewhere.store(true, Relaxed);
        session
    }

    pub(crate) fn new(id: SessionId, key: SessionKey, state: State) -> Arc<Self> {
        let (connected, elsewhere) = (AtomicBool::new(false), AtomicBool::new(false));
        let outlives = AtomicBool::new(state.life.expiry_seconds > 0);
        Arc::new(Self { id, key, connected, elsewhere, outlives, state: Mutex::new(state) })
    }

    /// A connection takes the session up: what it was sent before and has not acknowledged is to be sent again.
    pub fn attach(&self, home: Arc<dyn Home>, connection: u64) {
        let mut state = self.lock();
        state.outbox.begin_again();
        state.woken = false;
        state.home = Some((home, connection));
        self.connected.store(true, Relaxed);
    }

    /// The connection is gone, unless another one has the session by now.
    pub fn detach(&self, connection: u64) {
        let mut state = self.lock();
        if state.home.as_ref().is_some_and(|(_, of)| *of == connection) {
            state.home = None;
            state.outbox.forget_unreliable();
            self.connected.store(false, Relaxed);
        }
    }

    /// Whether the change at `offset` of the log made the session.
    pub fn is_opened_at(&self, offset: u64) -> bool {
        self.id == SessionId::logged(offset)
    }

    pub fn is_connected(&self) -> bool {
        self.connected.load(Relaxed)
    }

    /// Whether the log says that its client is there.
    pub(crate) fn is_open(&self) -> bool {
        self.lock().life.closed_at.is_none()
    }

    /// Whether another gateway has its connection.
    pub fn is_elsewhere(&self) -> bool {
        self.elsewhere.load(Relaxed)
    }

    pub(crate) fn set_elsewhere(&self, elsewhere: bool) {
        self.elsewhere.store(elsewhere, Relaxed);
    }

    /// The connection that opened it last, as the log has it.
    pub fn opened_by(&self) -> u64 {
        self.lock().life.connection
    }

    /// What it has subscribed.
    pub fn filters(&self) -> Vec<Box<str>> {
        self.lock().subscriptions.keys().cloned().collect()
    }

    /// Whether messages of QoS 1 and 2 wait for a client that is away.
    pub fn outlives(&self) -> bool {
        self.outlives.load(Relaxed)
    }

    /// Whether a message of QoS 2 with this packet id went through the log and is not released.
    pub fn holds(&self, packet_id: NonZeroU16) -> bool {
        self.lock().held.contains(&packet_id.get())
    }

    /// How many packet ids it holds.
    pub fn held(&self) -> usize {
        self.lock().held.len()
    }

    /// What is to be sent. After a look at it the home is woken by the next message.
    pub fn look<T>(&self, look: impl FnOnce(&mut Outbox) -> T) -> T {
        let mut state = self.lock();
        state.woken = false;
        look(&mut state.outbox)
    }

    /// Queues a message; without a bound if there is no `room` given, or if the log brings back what was taken before. False
    /// if there was no room for it.
    pub(crate) fn push(&self, queued: Queued, room: Option<Room>, live: bool) -> bool {
        let mut state = self.lock();
        if state.home.is_none() && (queued.qos == Qos::AtMostOnce || !self.outlives()) {
            return true;
        }
        let is_elsewhere = self.is_elsewhere();
        let room = room.filter(|_| live).map(|room| if is_elsewhere { room.elsewhere() } else { room });
        let taken = state.outbox.push(queued, room, !live || is_elsewhere);
        if taken
            && !state.woken
            && let Some((home, connection)) = &state.home
        {
            home.wake(*connection);
            state.woken = true;
        }
        taken
    }

    /// Commands whose time is over need not wait.
    pub(crate) fn forget_commands(&self, now: Timestamp) {
        self.lock().outbox.forget_commands(now);
    }

    pub(crate) fn life(&self) -> Life {
        self.lock().life.clone()
    }

    pub(crate) fn update_life(&self, update: impl FnOnce(&mut Life)) {
        let mut state = self.lock();
        update(&mut state.life);
        self.outlives.store(state.life.expiry_seconds > 0, Relaxed);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A message on its way into an outbox.
#[derive(Debug)]
pub(crate) struct Queued {
    pub(crate) message: Arc<Message>,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    pub(crate) subscription_ids: smallvec::SmallVec<[u32; 1]>,
}

/// What one session's queue holds at most.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

/// Messages of QoS 1 and 2 that are under way to one client.
pub const UNDER_WAY_MAX: u16 = 1_000;

impl Room {
    /// Of a session whose connection is elsewhere: what is under way there waits here, and what its client has acknowledged
    /// is known here a moment later. So nothing is dropped here that is not dropped there.
    fn elsewhere(self) -> Self {
        let under_way = usize::from(UNDER_WAY_MAX);
        Self {
            messages: self.messages.saturating_mul(2).saturating_add(under_way),
            bytes: self.bytes.saturating_mul(2).saturating_add(under_way * MESSAGE_BYTES_MAX),
        }
    }
}
