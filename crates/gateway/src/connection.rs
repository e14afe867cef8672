//! One connected device: what it has published and not yet heard about, answered in the order it was sent.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{HashSet, VecDeque},
    num::NonZeroU16,
    rc::Rc,
    sync::Arc,
};

use dunlin_broker::{Home, Session, SessionId, SessionKey, Tenant};
use dunlin_journal::AppendError;
use dunlin_model::RejectReason;
use futures::future::{Either, select};
use ntex::{channel::condition::Condition, io::IoRef, util::BytePages};
use ntex_mqtt::QoS;

use crate::{
    account::TenantAccount,
    append::{Lane, Outcome},
    directory::Admitted,
    logs::LogBudget,
    metrics::Metrics,
    share::Share,
    wire::{Code, Version, Wire},
};

/// QoS 2 packet ids of an MQTT 3.1.1 client that wait for their PUBREL: it was not told of any maximum.
const UNRELEASED_V3_MAX: usize = 4_096;
/// Something it published goes by the log, and has no known place there yet.
pub(crate) const IN_LOG: u64 = u64::MAX;
/// All that it published by the log is applied.
pub(crate) const NOT_IN_LOG: u64 = 0;
/// Queues above this many entries give their memory back when they are empty.
const QUEUE_ENTRIES_KEPT_MAX: usize = 32;

pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) who: Admitted,
    pub(crate) account: Arc<TenantAccount>,
    pub(crate) telemetry: Lane,
    /// Where changes of its session go.
    pub(crate) changes: Lane,
    pub(crate) wire: Wire,
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) key: SessionKey,
    /// Messages of QoS 1 and 2 that the client takes before it has acknowledged the first.
    pub(crate) window: usize,
    /// Made when it is first needed: most devices only publish.
    session: OnceCell<Arc<Session>>,
    /// The client has nothing to repeat of what it sent on earlier connections.
    pub(crate) settled: bool,
    /// It has published something that it may repeat.
    pub(crate) may_repeat: Cell<bool>,
    /// Up to where the log must be applied before a publish may go past it.
    pub(crate) in_log_until: Cell<u64>,
    pub(crate) share: Rc<Share>,
    io: IoRef,
    metrics: Arc<Metrics>,
    logs: Rc<LogBudget>,
    unanswered: RefCell<Unanswered>,
    unanswered_max: usize,
    /// Of what it published, decoded and not yet durable.
    inflight_bytes: Cell<usize>,
    inflight_bytes_max: usize,
    /// QoS 2 packet ids from PUBLISH to PUBREL.
    unreleased: RefCell<HashSet<NonZeroU16>>,
    room: Condition<()>,
    end: Cell<Option<&'static str>>,
}

/// Publishes in the order they came. The front one has number `first`.
#[derive(Default)]
struct Unanswered {
    first: u32,
    queue: VecDeque<Answer>,
}

struct Answer {
    packet_id: Option<NonZeroU16>,
    to: To,
    state: State,
}

/// What is answered once the log has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum To {
    /// By PUBACK or PUBREC.
    Publish(QoS),
    /// PUBREC for one of ours, by PUBREL.
    Received,
    /// PUBREL, by PUBCOMP.
    Released,
}

enum State {
    Waiting,
    Durable,
    /// Refused, once the reason is durable.
    WaitingToRefuse(Box<Refusal>),
    Refused(Box<Refusal>),
    /// The journal refused, and the message is not in the log.
    NotTaken(String),
    /// Nobody knows whether the message is in the log.
    Unknown,
}

/// Why a publish is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) reason: RejectReason,
    pub(crate) detail: String,
}

/// What a connection is made of, as the handshake found it.
pub(crate) struct Parts {
    pub(crate) id: u64,
    pub(crate) who: Admitted,
    pub(crate) account: Arc<TenantAccount>,
    pub(crate) telemetry: Lane,
    pub(crate) changes: Lane,
    pub(crate) share: Rc<Share>,
    pub(crate) wire: Wire,
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) key: SessionKey,
    pub(crate) window: usize,
    /// The session that is in the log, if there is one.
    pub(crate) session: Option<Arc<Session>>,
    pub(crate) settled: bool,
    pub(crate) io: IoRef,
    pub(crate) unanswered_max: usize,
    pub(crate) inflight_bytes_max: usize,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) logs: Rc<LogBudget>,
}

impl Connection {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { id, who, account, telemetry, changes, wire, tenant, key, window, session, .. } = parts;
        Self {
            id,
            who,
            account,
            telemetry,
            changes,
            wire,
            share: parts.share,
            tenant,
            key,
            window,
            session: session.map_or_else(OnceCell::new, OnceCell::from),
            settled: parts.settled,
            may_repeat: Cell::new(false),
            in_log_until: Cell::new(NOT_IN_LOG),
            io: parts.io,
            metrics: parts.metrics,
            logs: parts.logs,
            unanswered: RefCell::default(),
            unanswered_max: parts.unanswered_max,
            inflight_bytes: Cell::new(0),
            inflight_bytes_max: parts.inflight_bytes_max,
            unreleased: RefCell::default(),
            room: Condition::new(),
            end: Cell::new(None),
        }
    }

    /// The session, if the client has one by now.
    pub(crate) fn session(&self) -> Option<&Arc<Session>> {
        self.session.get()
    }

    pub(crate) fn session_id(&self) -> SessionId {
        self.session.get().map_or(SessionId::live(self.id), |session| session.id)
    }

    /// The session; made now if the client had none.
    pub(crate) fn session_at(&self, home: &Arc<dyn Home>) -> &Arc<Session> {
        self.session.get_or_init(|| {
            let session = Session::live(self.session_id(), self.key.clone());
            session.attach(home.clone(), self.id);
            session
        })
    }

    /// Whether everything that the client has sent is answered.
    pub(crate) fn has_answered_all(&self) -> bool {
        self.unanswered.borrow().queue.is_empty()
    }

    /// Whether another publish may be read.
    pub(crate) fn has_room(&self) -> bool {
        self.unanswered.borrow().queue.len() < self.unanswered_max
            && self.inflight_bytes.get() < self.inflight_bytes_max
    }

    pub(crate) async fn room(&self) {
        while !self.has_room() && self.end.get().is_none() {
            self.room.wait().await;
        }
    }

    /// What it published stands in a batch with so many bytes.
    pub(crate) fn took(&self, bytes: usize) {
        self.inflight_bytes.set(self.inflight_bytes.get() + bytes);
        self.share.took(bytes);
    }

    /// The journal has answered for so many bytes.
    pub(crate) fn landed(&self, bytes: usize) {
        let was_full = self.inflight_bytes.get() >= self.inflight_bytes_max;
        self.inflight_bytes.set(self.inflight_bytes.get() - bytes);
        self.share.landed(bytes);
        if was_full {
            self.room.notify();
        }
    }

    /// Why the connection ends, if it does.
    pub(crate) fn end(&self) -> Option<&'static str> {
        self.end.get()
    }

    /// Queues the answer to a publish; its number is what `resolve` will name.
    pub(crate) fn expect(&self, packet_id: Option<NonZeroU16>, qos: QoS) -> u32 {
        self.queue(Answer { packet_id, to: To::Publish(qos), state: State::Waiting })
    }

    pub(crate) fn expect_refusal(&self, packet_id: Option<NonZeroU16>, qos: QoS, refusal: Refusal) -> u32 {
        let to = To::Publish(qos);
        self.queue(Answer { packet_id, to, state: State::WaitingToRefuse(Box::new(refusal)) })
    }

    /// Queues PUBREL, for when the log knows that the client has the message.
    pub(crate) fn expect_received(&self, packet_id: NonZeroU16) -> u32 {
        self.queue(Answer { packet_id: Some(packet_id), to: To::Received, state: State::Waiting })
    }

    /// Queues PUBCOMP, for when the log has forgotten the packet id.
    pub(crate) fn expect_released(&self, packet_id: NonZeroU16) -> u32 {
        self.queue(Answer { packet_id: Some(packet_id), to: To::Released, state: State::Waiting })
    }

    /// Takes back the newest `expect`: the publish turned out to be one to refuse.
    pub(crate) fn unexpect(&self) {
        self.unanswered.borrow_mut().queue.pop_back();
    }

    /// Acknowledges again, in its turn, what is durable already.
    pub(crate) fn repeat(&self, packet_id: NonZeroU16, qos: QoS) {
        let number = self.expect(Some(packet_id), qos);
        self.resolve(number, 1, Ok(()));
    }

    fn queue(&self, answer: Answer) -> u32 {
        let mut unanswered = self.unanswered.borrow_mut();
        let number = unanswered.first.wrapping_add(unanswered.queue.len() as u32);
        unanswered.queue.push_back(answer);
        number
    }

    /// Whether the client keeps to what it was told: publishes that are not acknowledged, QoS 2 ones not released.
    pub(crate) fn keeps_receive_maximum(&self) -> bool {
        let in_log = self.logged().map_or(0, Session::held);
        let held = self.unreleased.borrow().len() + in_log;
        if self.wire.version() == Version::V3 {
            return held < UNRELEASED_V3_MAX;
        }
        let unanswered = &self.unanswered.borrow().queue;
        held + unanswered.len() < self.unanswered_max // The usual case; now without counting QoS 2 twice.
            || held + unanswered.iter().filter(|a| self.is_under_way_alone(a)).count() < self.unanswered_max
    }

    /// Whether it is a publish whose packet id is not held.
    fn is_under_way_alone(&self, answer: &Answer) -> bool {
        let To::Publish(qos) = answer.to else { return false };
        qos == QoS::AtLeastOnce || answer.packet_id.is_some_and(|packet_id| !self.is_held(packet_id))
    }

    /// Until every publish so far is answered.
    pub(crate) async fn answered(&self) {
        while !self.unanswered.borrow().queue.is_empty() && self.end.get().is_none() {
            self.room.wait().await;
        }
    }

    pub(crate) fn is_held(&self, packet_id: NonZeroU16) -> bool {
        self.unreleased.borrow().contains(&packet_id) || self.logged().is_some_and(|s| s.holds(packet_id))
    }

    /// The session, if it is in the log.
    fn logged(&self) -> Option<&Session> {
        self.session.get().map(|session| &**session).filter(|session| session.id.is_logged())
    }

    /// Remembers a QoS 2 packet id. False if it is remembered already: the message is a repetition.
    pub(crate) fn hold(&self, packet_id: NonZeroU16) -> bool {
        self.unreleased.borrow_mut().insert(packet_id)
    }

    /// Forgets a QoS 2 packet id; false if it was unknown.
    pub(crate) fn release(&self, packet_id: NonZeroU16) -> bool {
        self.unreleased.borrow_mut().remove(&packet_id)
    }

    /// Whether the answer to this packet id is still queued.
    pub(crate) fn is_queued(&self, packet_id: NonZeroU16) -> bool {
        self.unanswered
            .borrow()
            .queue
            .iter()
            .any(|a| a.packet_id == Some(packet_id) && a.to == To::Publish(QoS::ExactlyOnce))
    }

    /// What comes of `waiting`, unless the client leaves before.
    pub(crate) async fn while_there<T>(&self, waiting: impl Future<Output = T>) -> Option<T> {
        let over = async {
            while self.end.get().is_none() {
                self.room.wait().await;
            }
        };
        let gone = self.io.on_disconnect();
        futures::pin_mut!(waiting, over, gone);
        match select(waiting, select(over, gone)).await {
            Either::Left((came, _)) => Some(came),
            Either::Right(_) => None,
        }
    }

    /// Writes what `write` puts out, if the connection still takes anything.
    pub(crate) fn write(&self, write: impl FnOnce(&mut BytePages)) {
        if self.end.get().is_none() {
            let _closed = self.io.with_write_buf(write);
        }
    }

    /// The journal has answered for `count` publishes from number `first` on.
    pub(crate) fn resolve(&self, first: u32, count: u32, outcome: Outcome<'_>) {
        if self.end.get().is_some() {
            return;
        }
        {
            let unanswered = &mut *self.unanswered.borrow_mut();
            let start = first.wrapping_sub(unanswered.first) as usize;
            for answer in unanswered.queue.iter_mut().skip(start).take(count as usize) {
                answer.state = match (std::mem::replace(&mut answer.state, State::Waiting), outcome) {
                    (State::WaitingToRefuse(refusal), _) => State::Refused(refusal),
                    (_, Ok(())) => State::Durable,
                    (_, Err(error @ (AppendError::Full { .. } | AppendError::TooLarge { .. }))) => {
                        State::NotTaken(error.to_string())
                    }
                    (_, Err(_)) => State::Unknown,
                };
            }
        }
        self.answer();
    }

    /// Answers from the front of the queue as far as it is decided, in one write.
    fn answer(&self) {
        let mut last = None;
        let _closed = self.io.with_write_buf(|out| {
            let unanswered = &mut *self.unanswered.borrow_mut();
            while last.is_none()
                && let Some(answer) = unanswered.queue.pop_front_if(|a| a.is_decided())
            {
                unanswered.first = unanswered.first.wrapping_add(1);
                last = self.write_answer(answer, out);
            }
            if unanswered.queue.is_empty() && unanswered.queue.capacity() > QUEUE_ENTRIES_KEPT_MAX {
                unanswered.queue.shrink_to(QUEUE_ENTRIES_KEPT_MAX);
            }
        });
        if let Some((code, why)) = last {
            self.finish(code, &why);
        }
        if self.has_room() {
            self.room.notify();
        }
    }

    /// Writes one answer. What cannot be said in an answer ends the connection.
    fn write_answer(&self, answer: Answer, out: &mut BytePages) -> Option<(Code, String)> {
        let Answer { packet_id, to, state } = answer;
        let (code, why) = match state {
            State::Waiting | State::WaitingToRefuse(_) => return None,
            State::Durable => {
                if let Some(packet_id) = packet_id {
                    match to {
                        To::Publish(qos) => Wire::acknowledge(packet_id, qos, out),
                        To::Received => self.wire.release(packet_id, true, out),
                        To::Released => self.wire.complete(packet_id, true, out),
                    }
                }
                return None;
            }
            // An answer would tell the client to forget the message; so it gets none and may send it again.
            State::Unknown => return Some((Code::ServerBusy, "the journal is not available".into())),
            State::NotTaken(why) => (Code::Quota, why),
            State::Refused(refusal) => (refusal.code, refusal.detail),
        };
        let (Some(packet_id), To::Publish(qos)) = (packet_id, to) else { return Some((code, why)) };
        if qos == QoS::ExactlyOnce {
            self.release(packet_id);
        }
        (!self.wire.refuse(packet_id, qos, code, &why, out)).then_some((code, why))
    }

    /// Says why (MQTT 5) and closes. Whatever is unanswered stays so.
    pub(crate) fn finish(&self, code: Code, why: &str) {
        if self.end.get().is_some() {
            return;
        }
        let _closed = self.io.with_write_buf(|out| self.wire.disconnect(code, why, out));
        let reason = code.name();
        self.end.set(Some(reason));
        self.metrics.disconnect(reason);
        if self.logs.allow() {
            tracing::info!(tenant = %self.who.tenant, device = %self.who.device, reason, why, "connection closed");
        }
        self.io.close();
        self.room.notify();
    }

    /// The client is gone.
    pub(crate) fn gone(&self, reason: &'static str) {
        if self.end.get().is_none() {
            self.end.set(Some(reason));
            self.metrics.disconnect(reason);
        }
        self.room.notify();
    }
}

impl Answer {
    fn is_decided(&self) -> bool {
        !matches!(self.state, State::Waiting | State::WaitingToRefuse(_))
    }
}

/// Connections of one worker, to find the one that another worker speaks of.
pub(crate) type Connections = RefCell<hashbrown::HashMap<u64, Rc<Connection>>>;
