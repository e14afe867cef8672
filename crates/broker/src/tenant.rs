//! One tenant's topics: who gets what.

use std::{
    borrow::Cow,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use dunlin_model::Timestamp;
use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::{
    change::Publication,
    commands::{command_filter, command_topic, is_of_commands},
    gateways::Me,
    message::{Message, Qos},
    retained::Retained,
    session::{Queued, RetainHandling, Room, Session, SessionId, SessionKey, Subscription},
    topic::Filter,
    tree::{Leaf, Subscriber, Tree},
};

/// What the state of pub/sub may grow to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Subscriptions of one session.
    pub session_subscriptions_max: usize,
    /// Messages that wait for one client.
    pub queue_messages_max: usize,
    /// Bytes that wait for one client.
    pub queue_bytes_max: usize,
    /// Sessions of one tenant that outlive their connection.
    pub sessions_max: usize,
    /// Retained messages of one tenant.
    pub retained_messages_max: usize,
    /// Bytes of one tenant's retained messages.
    pub retained_bytes_max: usize,
}

/// How long retained messages are kept when they have expired, though nobody gets them: longer than a change is on
/// its way to the log.
const EXPIRED_KEPT: Duration = Duration::from_secs(60);

/// Commands of one tenant that their devices have not taken.
const COMMANDS_MAX: usize = 100_000;
const COMMANDS_BYTES_MAX: usize = 256 << 20;

#[derive(Debug)]
pub struct Tenant {
    pub name: Box<str>,
    limits: Limits,
    me: Me,
    topics: RwLock<Topics>,
    /// Those that are in the log.
    sessions: Mutex<HashMap<SessionKey, Arc<Session>>>,
    pub(crate) dropped: AtomicU64,
    pub(crate) delivered: AtomicU64,
    pub(crate) published: AtomicU64,
}

#[derive(Debug, Default)]
struct Topics {
    tree: Tree,
    subscriptions: usize,
    retained: Retained,
    /// What the server itself says about the tenant: not in the log, not in a snapshot.
    announced: Retained,
    /// Commands that their devices have not taken.
    commands: Retained,
}

/// What became of a publish.
#[derive(Debug, PartialEq, Eq)]
pub enum Published {
    /// It is in the queues of all who get it; so many.
    Delivered(usize),
    /// It must be logged first, with the members of shared subscriptions whose turn it was.
    Log { chosen: Vec<(String, SessionId)> },
    /// No more messages may be retained.
    RetainedFull,
}

/// What became of a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscribing {
    Granted(Qos),
    /// The session has as many as it may.
    TooMany,
    /// It is none, or not for this client.
    Refused,
}

/// Somebody who gets a message.
struct Target<'a> {
    session: &'a Arc<Session>,
    qos: Qos,
    retain: bool,
    ids: SmallVec<[u32; 1]>,
}

type Targets<'a> = SmallVec<[Target<'a>; 4]>;

/// Who gets a message of those that share a subscription.
#[derive(Clone, Copy)]
enum Choice<'c> {
    /// Whose turn it is.
    Turn,
    /// Who was chosen when the message was logged, by group and filter. Where nobody was, the number leads to one.
    Made(&'c [(Cow<'c, str>, SessionId)], u64),
    /// Who this number leads to, by what is in the log alone.
    Seeded(u64),
}

impl Tenant {
    pub(crate) fn new(name: &str, limits: Limits, me: Me) -> Self {
        Self {
            name: name.into(),
            limits,
            me,
            topics: RwLock::default(),
            sessions: Mutex::default(),
            dropped: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            published: AtomicU64::new(0),
        }
    }

    /// Gives a message to all who get it, unless it must be in the log for that: because it is retained, because it is
    /// for a session that outlives its connection, or for a client of another gateway. With `in_log` it goes there in any
    /// case, so that it does not overtake what is on its way there.
    pub fn publish(&self, message: &Arc<Message>, in_log: bool) -> Published {
        let topics = self.read();
        let (targets, chosen) = self.targets(&topics, message, Choice::Turn);
        let waits = |t: &Target<'_>| t.qos != Qos::AtMostOnce && t.session.outlives();
        if in_log || message.retain || targets.iter().any(|t| t.session.is_elsewhere() || waits(t)) {
            if message.retain && !self.may_retain(&topics, message) {
                return Published::RetainedFull;
            }
            return Published::Log { chosen };
        }
        self.published.fetch_add(1, Relaxed);
        Published::Delivered(self.deliver(message, targets, true))
    }

    /// Whether there is room for the message among the retained ones. What makes them fewer or smaller always fits.
    fn may_retain(&self, topics: &Topics, message: &Message) -> bool {
        let retained = &topics.retained;
        let before = retained.get(&message.topic).map(|before| before.retained_bytes());
        let is_one_more = before.is_none() && !message.payload.is_empty();
        if is_one_more && retained.len() >= self.limits.retained_messages_max {
            return false;
        }
        let (before, bytes) = (before.unwrap_or(0), message.retained_bytes());
        let all_bytes = (retained.size_bytes() - before).saturating_add(bytes);
        message.payload.is_empty() || bytes <= before || all_bytes <= self.limits.retained_bytes_max
    }

    /// Says something about the tenant to whoever has subscribed, now or later, unless it was what was said last.
    pub fn announce(&self, topic: &str, text: &str) {
        let message = {
            let topics = self.read();
            if topics.announced.get(topic).is_some_and(|last| last.payload == text.as_bytes()) {
                return;
            }
            let message = Arc::new(Message {
                topic: topic.into(),
                payload: text.to_owned().into(),
                qos: Qos::AtMostOnce,
                retain: true,
                expires_at: None,
                properties: None,
                publisher: None,
                packets: Default::default(),
            });
            let (targets, _) = self.targets(&topics, &message, Choice::Turn);
            self.deliver(&message, targets, true);
            message
        };
        self.write().announced.set(message);
    }

    /// A publish that is in the log.
    pub(crate) fn apply_published(&self, publication: &Publication<'_>, offset: u64, live: bool) {
        self.published.fetch_add(1, Relaxed);
        let message = Arc::new(publication.message());
        let choice = Choice::Made(&publication.chosen, offset);
        if !message.retain {
            return self.distribute(&message, choice, live);
        }
        self.distribute_and_keep(&message, choice, live, |topics| {
            // Whoever publishes by a gateway was told there if there was no room.
            if message.publisher.is_some() || self.may_retain(topics, &message) {
                topics.retain(&message);
            }
        });
    }

    /// A will. Nobody hears of it if there is no room to retain it; it is given out all the same.
    pub(crate) fn publish_will(&self, message: &Arc<Message>, seed: u64, live: bool) {
        if !message.retain {
            return self.distribute(message, Choice::Seeded(seed), live);
        }
        self.distribute_and_keep(message, Choice::Seeded(seed), live, |topics| {
            if self.may_retain(topics, message) {
                topics.retain(message);
            }
        });
    }

    /// A command for a device. Beyond the bound it is for those alone who are subscribed now.
    pub(crate) fn command(&self, message: &Arc<Message>, now: Timestamp, live: bool) {
        let mut topics = self.write();
        let (targets, _) = self.targets(&topics, message, Choice::Seeded(0));
        targets.iter().for_each(|target| target.session.forget_commands(now));
        self.deliver(message, targets, live);
        let bytes = topics.commands.size_bytes() + message.retained_bytes();
        if topics.commands.len() < COMMANDS_MAX && bytes <= COMMANDS_BYTES_MAX {
            topics.commands.set(message.clone());
        } else {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Whether a command waits until its device has it.
    pub fn holds_command(&self, device: &str, id: &str) -> bool {
        self.read().commands.get(&command_topic(device, id)).is_some()
    }

    /// The device has the command of that id.
    pub(crate) fn taken(&self, device: &str, id: &str) {
        self.write().commands.clear(&command_topic(device, id));
    }

    fn distribute(&self, message: &Arc<Message>, choice: Choice<'_>, live: bool) {
        let topics = self.read();
        let (targets, _) = self.targets(&topics, message, choice);
        self.deliver(message, targets, live);
    }

    /// In one step, so that whoever subscribes meanwhile has it either way, and once.
    fn distribute_and_keep(
        &self,
        message: &Arc<Message>,
        choice: Choice<'_>,
        live: bool,
        keep: impl FnOnce(&mut Topics),
    ) {
        let mut topics = self.write();
        let (targets, _) = self.targets(&topics, message, choice);
        self.deliver(message, targets, live);
        keep(&mut topics);
    }

    fn deliver(&self, message: &Arc<Message>, targets: Targets<'_>, live: bool) -> usize {
        let (mut delivered, mut dropped) = (0, 0);
        let room = self.room(message);
        for Target { session, qos, retain, ids } in targets {
            let queued = Queued { message: message.clone(), qos, retain, subscription_ids: ids };
            match session.push(queued, room, live) {
                true => delivered += 1,
                false => dropped += 1,
            }
        }
        self.delivered.fetch_add(delivered as u64, Relaxed);
        if dropped > 0 {
            self.dropped.fetch_add(dropped, Relaxed);
        }
        delivered
    }

    /// Commands are bounded where they are sent, and wait for their device whatever else does.
    fn room(&self, message: &Message) -> Option<Room> {
        let room = Room { messages: self.limits.queue_messages_max, bytes: self.limits.queue_bytes_max };
        (!is_of_commands(&message.topic)).then_some(room)
    }

    /// Subscribes a session, and queues the retained messages it asks for. Answers filter by filter.
    pub fn subscribe<'f>(
        &self,
        session: &Arc<Session>,
        subscriptions: impl IntoIterator<Item = (&'f str, Subscription)>,
        now: Timestamp,
    ) -> Vec<Subscribing> {
        let all = subscriptions.into_iter();
        all.map(|(filter, subscription)| self.subscribe_one(session, filter, subscription, now, true))
            .collect()
    }

    pub(crate) fn subscribe_one(
        &self,
        session: &Arc<Session>,
        text: &str,
        subscription: Subscription,
        now: Timestamp,
        live: bool,
    ) -> Subscribing {
        let Ok(filter) = Filter::parse(text) else { return Subscribing::Refused };
        // A gateway grants none but the device's own; what stands in the log from before is not asked for.
        if is_of_commands(filter.path) && text != command_filter(&session.key.device) {
            return Subscribing::Refused;
        }
        let is_new = {
            let mut state = session.lock();
            let known = state.subscriptions.contains_key(text);
            // What is in a log or a snapshot was within the bound when it was granted.
            if live && !known && state.subscriptions.len() >= self.limits.session_subscriptions_max {
                return Subscribing::TooMany;
            }
            state.subscriptions.insert(text.into(), subscription);
            !known
        };
        let wanted = match subscription.retain_handling {
            RetainHandling::Always => filter.group.is_none(),
            RetainHandling::IfNew => filter.group.is_none() && is_new,
            RetainHandling::Never => false,
        };
        let mut topics = self.write();
        if topics.tree.insert(filter, session.clone(), subscription) {
            topics.subscriptions += 1;
        }
        let queue = |message: &Arc<Message>, retain: bool| {
            if !message.is_expired(now) {
                let queued = Queued {
                    message: message.clone(),
                    qos: subscription.qos.min(message.qos),
                    retain,
                    subscription_ids: subscription.id.into_iter().collect(),
                };
                if !session.push(queued, self.room(message), live) {
                    self.dropped.fetch_add(1, Relaxed);
                }
            }
        };
        if is_of_commands(filter.path) {
            // A subscription that was there has brought them when they came, unless its client was away and QoS is 0.
            if is_new || subscription.qos == Qos::AtMostOnce {
                topics.commands.matching(filter.path, &mut |message| queue(message, false));
            }
        } else if wanted {
            topics.retained.matching(filter.path, &mut |message| queue(message, true));
            topics.announced.matching(filter.path, &mut |message| queue(message, true));
        }
        Subscribing::Granted(subscription.qos)
    }

    /// A subscription of a snapshot: what it once brought is in the queue.
    pub(crate) fn restore_subscription(
        &self,
        session: &Arc<Session>,
        text: &str,
        subscription: Subscription,
    ) {
        let restored = Subscription { retain_handling: RetainHandling::Never, ..subscription };
        self.subscribe_one(session, text, restored, Timestamp::MIN, false);
        session.lock().subscriptions.insert(text.into(), subscription);
    }

    /// Clients of another gateway want what the filter matches.
    pub(crate) fn want(&self, clients: &Arc<Session>, filter: &str) {
        const ALL: Subscription = Subscription {
            qos: Qos::ExactlyOnce,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Never,
            id: None,
        };
        if let Ok(parsed) = Filter::parse(filter) {
            self.write().tree.insert(parsed, clients.clone(), ALL);
        }
    }

    /// They do not want it any more.
    pub(crate) fn unwant(&self, clients: &Session, filter: &str) {
        if let Ok(parsed) = Filter::parse(filter) {
            self.write().tree.remove(parsed, clients.id);
        }
    }

    /// Ends subscriptions; whether each was there.
    pub fn unsubscribe<'f>(
        &self,
        session: &Session,
        filters: impl IntoIterator<Item = &'f str>,
    ) -> Vec<bool> {
        let mut topics = self.write();
        filters
            .into_iter()
            .map(|text| {
                let known = session.lock().subscriptions.remove(text).is_some();
                if known {
                    topics.remove(text, session.id);
                }
                known
            })
            .collect()
    }

    /// Whether the session has this subscription.
    pub fn is_subscribed(&self, session: &Session, filter: &str) -> bool {
        session.lock().subscriptions.contains_key(filter)
    }

    /// How many more subscriptions the session may have.
    pub fn subscriptions_left(&self, session: &Session) -> usize {
        self.limits.session_subscriptions_max.saturating_sub(session.lock().subscriptions.len())
    }

    /// Ends a session: nothing is sent to it any more.
    pub fn end(&self, session: &Session) {
        let subscriptions = std::mem::take(&mut session.lock().subscriptions);
        if !subscriptions.is_empty() {
            let mut topics = self.write();
            subscriptions.keys().for_each(|text| topics.remove(text, session.id));
        }
        let mut sessions = self.sessions();
        if sessions.get(&session.key).is_some_and(|s| s.id == session.id) {
            sessions.remove(&session.key);
        }
    }

    /// The session of that key that is in the log.
    pub fn session(&self, key: &SessionKey) -> Option<Arc<Session>> {
        self.sessions().get(key).cloned()
    }

    /// Whether one more session may outlive its connection.
    pub fn has_room_for_sessions(&self) -> bool {
        self.sessions().len() < self.limits.sessions_max
    }

    pub(crate) fn insert_session(&self, session: Arc<Session>) {
        self.sessions().insert(session.key.clone(), session);
    }

    pub(crate) fn all_sessions(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<_> = self.sessions().values().cloned().collect();
        all.sort_by_key(|session| session.id);
        all
    }

    /// Forgets retained messages that have expired. What is logged next may be older than `now`, and finds what it would
    /// have found then.
    pub(crate) fn forget_expired(&self, now: Timestamp) {
        let mut topics = self.write();
        topics.retained.expire(now - EXPIRED_KEPT);
        topics.commands.expire(now - EXPIRED_KEPT);
    }

    pub(crate) fn all_retained(&self) -> Vec<Arc<Message>> {
        let topics = self.read();
        let mut all = Vec::with_capacity(topics.retained.len());
        topics.retained.each(&mut |message| all.push(message.clone()));
        all
    }

    pub(crate) fn all_commands(&self) -> Vec<Arc<Message>> {
        let topics = self.read();
        let mut all = Vec::with_capacity(topics.commands.len());
        topics.commands.each(&mut |message| all.push(message.clone()));
        all
    }

    pub(crate) fn restore_command(&self, message: Arc<Message>) {
        self.write().commands.set(message);
    }

    pub(crate) fn restore_retained(&self, message: Arc<Message>) {
        self.write().retained.set(message);
    }

    pub(crate) fn counts(&self) -> (usize, usize, usize, usize) {
        let topics = self.read();
        (topics.subscriptions, topics.retained.len(), topics.commands.len(), self.sessions().len())
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<SessionKey, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, Topics> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Topics> {
        self.topics.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tenant {
    /// Who gets the message; of those that share, who was `chosen`, or whose turn it is now.
    fn targets<'a>(
        &self,
        topics: &'a Topics,
        message: &Message,
        choice: Choice<'_>,
    ) -> (Targets<'a>, Vec<(String, SessionId)>) {
        let me = self.me.get().copied();
        let mut leaves: SmallVec<[&Leaf; 4]> = SmallVec::new();
        topics.tree.visit(&message.topic, &mut |leaf| leaves.push(leaf));
        let mut targets = Targets::new();
        for leaf in &leaves {
            targets.extend(leaf.subscribers.values().filter_map(|s| s.target(message)));
        }
        if leaves.len() > 1 {
            merge(&mut targets);
        }
        let mut turns = Vec::new();
        for group in leaves.iter().flat_map(|leaf| leaf.groups()) {
            let member = match choice {
                Choice::Turn => {
                    group.choose().inspect(|m| turns.push((group.name.to_string(), m.session.id)))
                }
                Choice::Seeded(seed) => group.choose_by_log(seed, me),
                Choice::Made(chosen, seed) => {
                    let of_group = chosen.iter().find(|(name, _)| **name == *group.name);
                    match of_group {
                        // One of this gateway's clients: which one, it alone knows.
                        Some((_, id)) if me.is_some_and(|me| *id == me.clients()) => group.choose_here(),
                        Some((_, id)) => group.members.get(id),
                        None => group.choose_by_log(seed, me),
                    }
                }
            };
            targets.extend(member.and_then(|member| member.target(message)));
        }
        (targets, turns)
    }
}

impl Topics {
    fn retain(&mut self, message: &Arc<Message>) {
        match message.payload.is_empty() {
            true => self.retained.clear(&message.topic),
            false => self.retained.set(message.clone()),
        }
    }

    fn remove(&mut self, text: &str, id: SessionId) {
        if let Ok(filter) = Filter::parse(text)
            && self.tree.remove(filter, id)
        {
            self.subscriptions -= 1;
        }
    }
}

impl Subscriber {
    fn target(&self, message: &Message) -> Option<Target<'_>> {
        let Self { session, subscription } = self;
        if subscription.no_local && message.publisher == Some(session.id) {
            return None;
        }
        Some(Target {
            session,
            qos: subscription.qos.min(message.qos),
            retain: message.retain && subscription.retain_as_published,
            ids: subscription.id.into_iter().collect(),
        })
    }
}

/// One copy for each session, however many of its subscriptions match (MQTT 5, 3.3.4): with the highest QoS, and
/// the ids of all of them.
fn merge(targets: &mut Targets<'_>) {
    targets.sort_by_key(|t| t.session.id);
    targets.dedup_by(|next, kept| {
        let same = next.session.id == kept.session.id;
        if same {
            kept.qos = kept.qos.max(next.qos);
            kept.retain |= next.retain;
            kept.ids.append(&mut next.ids);
        }
        same
    });
}
