//! All tenants, and what the log does to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, atomic::Ordering::Relaxed},
};

use dunlin_model::{Slot, Timestamp};
use hashbrown::HashMap;

use crate::{
    change::{Change, NotAChange, Publication},
    commands::Progress,
    gateways::{GatewayNumber, Gateways, Me, Wanted},
    message::Message,
    session::{Session, SessionId, SessionKey, State, Will, after},
    tenant::{Limits, Tenant},
};

#[derive(Debug)]
pub struct Broker {
    limits: Limits,
    me: Me,
    tenants: RwLock<HashMap<Box<str>, Arc<Tenant>>>,
    partitions: Vec<Mutex<Partition>>,
}

/// What is in one partition of the log.
#[derive(Debug, Default)]
pub(crate) struct Partition {
    pub(crate) sessions: BTreeMap<SessionId, (Arc<Tenant>, Arc<Session>)>,
    deadlines: BTreeSet<(Timestamp, SessionId, Due)>,
    pub(crate) gateways: Gateways,
    pub(crate) commands: Progress,
}

/// What a change means to the gateway that has applied it, beyond the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    Nothing,
    /// A client of that gateway has subscribed, which holds when the others have said that they know.
    Subscribed(GatewayNumber),
    /// The connection has the client id from here on.
    Seated {
        key: SessionKey,
        connection: u64,
    },
    /// The connection wants the client id.
    Claimed {
        key: SessionKey,
        connection: u64,
    },
    /// A connection has let its client go.
    Closed,
    Heard {
        gateway: GatewayNumber,
        sent: u64,
    },
    Joined(GatewayNumber),
    Gone(GatewayNumber),
    Revoked {
        tenant: Box<str>,
        device: Box<str>,
        is_disabled: bool,
    },
}

/// What time does to a session whose client is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Will,
    End,
}

/// One tenant's figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub subscriptions: usize,
    pub retained: usize,
    /// Commands that devices have not taken.
    pub commands: usize,
    /// Sessions that are in the log.
    pub sessions: usize,
    pub published: u64,
    pub delivered: u64,
    /// Messages that found no room in a queue.
    pub dropped: u64,
}

impl Broker {
    pub fn new(partitions: u16, limits: Limits) -> Self {
        let partitions = (0..partitions.max(1)).map(|_| Mutex::default()).collect();
        Self { limits, me: Me::default(), tenants: RwLock::default(), partitions }
    }

    /// The number that the next gateway may join a partition with.
    pub fn next_gateway(&self, partition: u16) -> GatewayNumber {
        self.partition(partition).gateways.next_number()
    }

    /// Whether the gateway of that number and name has joined and is not gone.
    pub fn has_gateway(&self, partition: u16, gateway: GatewayNumber, name: &str) -> bool {
        self.partition(partition).gateways.name_of(gateway) == Some(name)
    }

    /// Those that share the log.
    pub fn gateways(&self, partition: u16) -> Vec<GatewayNumber> {
        self.partition(partition).gateways.all().collect()
    }

    /// This is the gateway of that number, for good.
    pub fn is_gateway(&self, me: GatewayNumber) {
        self.me.get_or_init(|| me);
    }

    /// Which gateway this is, once it has joined.
    pub fn me(&self) -> Option<GatewayNumber> {
        self.me.get().copied()
    }

    /// Up to where all other gateways have applied the log; without an end if there is no other.
    pub fn applied_elsewhere(&self, partition: u16) -> u64 {
        self.partition(partition).gateways.applied(self.me())
    }

    /// The partition of the log that holds the tenant.
    pub fn partition_of(&self, tenant: &str) -> u16 {
        partition_of(tenant, self.partitions.len() as u16)
    }

    /// Up to where a partition of the log of commands is in this partition.
    pub fn next_command(&self, partition: u16, of_commands: u16) -> u64 {
        self.partition(partition).commands.next(of_commands)
    }

    pub fn tenant(&self, name: &str) -> Arc<Tenant> {
        if let Some(tenant) = self.tenants.read().unwrap_or_else(PoisonError::into_inner).get(name) {
            return tenant.clone();
        }
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        tenants
            .entry_ref(name)
            .or_insert_with(|| Arc::new(Tenant::new(name, self.limits, self.me.clone())))
            .clone()
    }

    pub fn counts(&self) -> BTreeMap<String, Counts> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let counts = tenants.iter().map(|(name, tenant)| {
            let (subscriptions, retained, commands, sessions) = tenant.counts();
            let counts = Counts {
                subscriptions,
                retained,
                commands,
                sessions,
                published: tenant.published.load(Relaxed),
                delivered: tenant.delivered.load(Relaxed),
                dropped: tenant.dropped.load(Relaxed),
            };
            (name.to_string(), counts)
        });
        counts.collect()
    }

    /// Applies the change at `offset` of a partition. `live` if it was logged by this run, not found at its start.
    pub fn apply(&self, partition: u16, offset: u64, bytes: &[u8], live: bool) -> Result<News, NotAChange> {
        let change = Change::decode(bytes)?;
        let mut state = self.partition(partition);
        let mut news = News::Nothing;
        match change {
            Change::Opened { key, clean, expiry_seconds, will, connection, at } => {
                // Who was not heard of for too long says nothing any more.
                if state.gateways.has(GatewayNumber::of(connection)) {
                    news = News::Seated { key: key.clone(), connection };
                    self.open(&mut state, offset, key, clean, expiry_seconds, will, connection, at, live);
                }
            }
            Change::Closed { session, connection, at, with_will, expiry_seconds } => {
                close(&mut state, session, connection, at, with_will, expiry_seconds, live);
                news = News::Closed;
            }
            Change::WillDue { session, at } => {
                if let Some((tenant, session)) = state.of(session)
                    && session.life().will_at().is_some_and(|will_at| will_at <= at)
                {
                    state.forget_deadlines(&session);
                    publish_will(&tenant, &session, at, live);
                    state.remember_deadlines(&session);
                }
            }
            Change::Ended { session, at } => {
                state.end(session, at, live);
                news = News::Closed;
            }
            Change::Expired { session, at } => {
                let expires_at = state.of(session).and_then(|(_, session)| session.life().expires_at());
                if expires_at.is_some_and(|expires_at| expires_at <= at) {
                    state.end(session, at, live);
                }
            }
            Change::Silenced { session } => {
                if let Some((_, session)) = state.of(session) {
                    state.silence(&session);
                }
            }
            Change::Subscribed { session, subscriptions, at } => {
                if let Some((tenant, session)) = state.of(session) {
                    for (filter, subscription) in subscriptions {
                        tenant.subscribe_one(&session, &filter, subscription, at, live);
                    }
                    news = News::Subscribed(GatewayNumber::of(session.opened_by()));
                }
            }
            Change::Unsubscribed { session, filters } => {
                if let Some((tenant, session)) = state.of(session) {
                    tenant.unsubscribe(&session, filters.iter().map(AsRef::as_ref));
                }
            }
            Change::Published(publication) => {
                if state.is_first(&publication) {
                    self.tenant(&publication.tenant).apply_published(&publication, offset, live);
                }
            }
            Change::Acknowledged { session, number } => {
                if let Some((_, session)) = state.of(session) {
                    session.lock().outbox.apply_acknowledged(number);
                }
            }
            Change::Received { session, number } => {
                if let Some((_, session)) = state.of(session) {
                    session.lock().outbox.apply_received(number);
                }
            }
            Change::Released { session, packet_id } => {
                if let Some((_, session)) = state.of(session) {
                    session.lock().held.remove(&packet_id);
                }
            }
            Change::Joined { gateway, name, at } => {
                let before = state.gateways.replaced_by(&name);
                if state.gateways.join(gateway, &name) {
                    before.into_iter().for_each(|before| self.leave(&mut state, before, at, live));
                }
                news = News::Joined(gateway);
            }
            Change::Heard { gateway, applied, sent } => {
                state.gateways.heard(gateway, applied);
                news = News::Heard { gateway, sent };
            }
            Change::Gone { gateway, at } => {
                self.leave(&mut state, gateway, at, live);
                news = News::Gone(gateway);
            }
            Change::Wanted { gateway, tenant, filters } => {
                self.want(&mut state, gateway, &tenant, filters.iter().map(AsRef::as_ref));
                news = News::Subscribed(gateway);
            }
            Change::Unwanted { gateway, tenant, filters } => {
                for filter in &filters {
                    if let Some(clients) = state.gateways.unwant(gateway, &tenant, filter) {
                        self.tenant(&tenant).unwant(&clients, filter);
                    }
                }
            }
            Change::Seated { key, connection, at } => {
                if state.gateways.has(GatewayNumber::of(connection)) {
                    if let Some(before) = self.tenant(&key.tenant).session(&key) {
                        state.end(before.id, at, live);
                    }
                    news = News::Seated { key, connection };
                }
            }
            Change::Claimed { key, connection } => news = News::Claimed { key, connection },
            Change::Passed { at } => {
                self.tenants_of(partition).iter().for_each(|tenant| tenant.forget_expired(at));
            }
            Change::Commanded(command) => {
                if state.commands.pass(&command) {
                    self.tenant(&command.tenant).command(&Arc::new(command.message()), command.at, live);
                }
            }
            Change::CommandsReplaced { partition, next } => state.commands.begin(partition, next),
            Change::Taken { tenant, device, id } => self.tenant(&tenant).taken(&device, &id),
            Change::Revoked { tenant, device, is_disabled } => {
                if is_disabled {
                    for session in self.with_will(&tenant, &device) {
                        state.silence(&session);
                    }
                }
                let (tenant, device) = (tenant.as_ref().into(), device.as_ref().into());
                news = News::Revoked { tenant, device, is_disabled };
            }
        }
        Ok(news)
    }

    /// A gateway is not there any more, and so is none of its connections.
    fn leave(&self, state: &mut Partition, gateway: GatewayNumber, at: Timestamp, live: bool) {
        let Some(wanted) = state.gateways.leave(gateway) else { return };
        for (tenant, Wanted { clients, filters }) in wanted {
            let tenant = self.tenant(&tenant);
            filters.iter().for_each(|filter| tenant.unwant(&clients, filter));
        }
        let opened = state.sessions.values().map(|(_, session)| (session.id, session.opened_by()));
        let of_it: Vec<_> = opened.filter(|(_, by)| GatewayNumber::of(*by) == gateway).collect();
        for (session, connection) in of_it {
            close(state, session, connection, at, true, None, live);
        }
    }

    pub(crate) fn want<'f>(
        &self,
        state: &mut Partition,
        gateway: GatewayNumber,
        tenant: &str,
        filters: impl Iterator<Item = &'f str>,
    ) {
        for filter in filters {
            if let Some(clients) = state.gateways.want(gateway, tenant, filter)
                && self.me() != Some(gateway)
            {
                self.tenant(tenant).want(&clients, filter);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one change")]
    fn open(
        &self,
        state: &mut Partition,
        offset: u64,
        key: SessionKey,
        clean: bool,
        expiry_seconds: u32,
        will: Option<Will>,
        connection: u64,
        at: Timestamp,
        live: bool,
    ) {
        let tenant = self.tenant(&key.tenant);
        // The connection that had it is elsewhere, and its word was not waited for any longer.
        if let Some(open) = tenant.session(&key).filter(|session| session.is_open()) {
            close(state, open.id, open.opened_by(), at, true, None, live);
        }
        let mut before = tenant.session(&key);
        if clean && let Some(ended) = before.take() {
            state.end(ended.id, at, live);
        }
        let session = before.unwrap_or_else(|| {
            let session = Session::new(SessionId::logged(offset), key, State::default());
            tenant.insert_session(session.clone());
            state.sessions.insert(session.id, (tenant.clone(), session.clone()));
            session
        });
        state.forget_deadlines(&session);
        session.update_life(|life| {
            life.expiry_seconds = expiry_seconds;
            life.will = will;
            life.connection = connection;
            life.closed_at = None;
        });
        session.set_elsewhere(self.me() != Some(GatewayNumber::of(connection)));
    }

    /// What time has brought, to be logged. Asked again before that is applied, the answer is the same.
    pub fn due(&self, partition: u16, now: Timestamp) -> Vec<Change<'static>> {
        let state = self.partition(partition);
        let due = state.deadlines.iter().take_while(|(at, ..)| *at <= now);
        due.map(|(_, session, due)| match due {
            Due::Will => Change::WillDue { session: *session, at: now },
            Due::End => Change::Expired { session: *session, at: now },
        })
        .collect()
    }

    /// To be logged when the device may not publish any more.
    pub fn silence(&self, tenant: &str, device: &str) -> Vec<Change<'static>> {
        let with_will = self.with_will(tenant, device).into_iter();
        with_will.map(|session| Change::Silenced { session: session.id }).collect()
    }

    fn with_will(&self, tenant: &str, device: &str) -> Vec<Arc<Session>> {
        let mut sessions = self.tenant(tenant).all_sessions();
        sessions.retain(|s| &*s.key.device == device && s.life().will.is_some());
        sessions
    }

    /// The sessions that are open here, as the log has it, and have no connection.
    pub fn abandoned(&self, partition: u16) -> Vec<Arc<Session>> {
        let state = self.partition(partition);
        let is_abandoned = |s: &Session| !s.is_elsewhere() && !s.is_connected() && s.is_open();
        let abandoned = state.sessions.values().filter(|(_, session)| is_abandoned(session));
        abandoned.map(|(_, session)| session.clone()).collect()
    }

    pub(crate) fn partition(&self, index: u16) -> MutexGuard<'_, Partition> {
        self.partitions[usize::from(index)].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// By name.
    pub(crate) fn tenants_of(&self, partition: u16) -> Vec<Arc<Tenant>> {
        let tenants = self.tenants.read().unwrap_or_else(PoisonError::into_inner);
        let mut of_it: Vec<_> =
            tenants.values().filter(|t| self.partition_of(&t.name) == partition).cloned().collect();
        of_it.sort_by(|one, other| one.name.cmp(&other.name));
        of_it
    }
}

/// Of so many partitions of the log, the one that holds the tenant.
pub fn partition_of(tenant: &str, partitions: u16) -> u16 {
    Slot::of(tenant, "").partition(partitions)
}

fn close(
    state: &mut Partition,
    id: SessionId,
    connection: u64,
    at: Timestamp,
    with_will: bool,
    expiry_seconds: Option<u32>,
    live: bool,
) {
    let Some((tenant, session)) = state.of(id) else { return };
    // Who finds a connection gone may say so after the connection itself, or when the client has another by now: the
    // first word counts.
    if !session.is_open() || session.opened_by() != connection {
        return;
    }
    state.forget_deadlines(&session);
    session.set_elsewhere(false);
    session.update_life(|life| {
        life.expiry_seconds = expiry_seconds.unwrap_or(life.expiry_seconds);
        life.closed_at = Some(at);
        if !with_will {
            life.will = None;
        }
    });
    let life = session.life();
    if life.will_at().is_some_and(|will_at| will_at <= at) {
        publish_will(&tenant, &session, at, live);
    }
    if life.expires_at().is_some_and(|expires_at| expires_at <= at) {
        return state.end(id, at, live);
    }
    state.remember_deadlines(&session);
}

/// Publishes the session's will, if it still has one.
fn publish_will(tenant: &Tenant, session: &Session, now: Timestamp, live: bool) {
    let mut will = None;
    session.update_life(|life| will = life.will.take());
    let Some(will) = will else { return };
    let message = Message {
        topic: will.topic,
        payload: will.payload.into(),
        qos: will.qos,
        retain: will.retain,
        expires_at: will.expiry_seconds.map(|seconds| after(now, seconds)),
        properties: will.properties.boxed(),
        publisher: Some(session.id),
        packets: Default::default(),
    };
    tenant.publish_will(&Arc::new(message), session.id.number() ^ now.as_micros().unsigned_abs(), live);
}

impl Partition {
    fn of(&self, id: SessionId) -> Option<(Arc<Tenant>, Arc<Session>)> {
        self.sessions.get(&id).cloned()
    }

    /// Ends a session; its will is published, if it has not been (MQTT 5, 3.1.2.5).
    fn end(&mut self, id: SessionId, now: Timestamp, live: bool) {
        let Some((tenant, session)) = self.sessions.remove(&id) else { return };
        self.forget_deadlines(&session);
        session.set_elsewhere(false);
        tenant.end(&session);
        publish_will(&tenant, &session, now, live);
    }

    /// The will stays unsaid.
    fn silence(&mut self, session: &Session) {
        self.forget_deadlines(session);
        session.update_life(|life| life.will = None);
        self.remember_deadlines(session);
    }

    /// Whether a QoS 2 message came for the first time; remembers it until it is released.
    fn is_first(&self, publication: &Publication<'_>) -> bool {
        let (Some(publisher), Some(packet_id)) = (publication.publisher, publication.packet_id) else {
            return true;
        };
        self.of(publisher).is_none_or(|(_, session)| session.lock().held.insert(packet_id))
    }

    pub(crate) fn remember_deadlines(&mut self, session: &Session) {
        self.deadlines.extend(deadlines(session));
    }

    /// To be called before that which decides about them changes.
    fn forget_deadlines(&mut self, session: &Session) {
        for deadline in deadlines(session) {
            self.deadlines.remove(&deadline);
        }
    }
}

fn deadlines(session: &Session) -> impl Iterator<Item = (Timestamp, SessionId, Due)> {
    let held = session.lock();
    let will = held.life.will_at().map(|at| (at, session.id, Due::Will));
    let end = held.life.expires_at().map(|at| (at, session.id, Due::End));
    will.into_iter().chain(end)
}
