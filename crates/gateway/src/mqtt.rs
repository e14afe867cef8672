//! The path of an MQTT reading: handshake, then packet after packet until the client or the server leaves.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    num::NonZeroU16,
    panic::AssertUnwindSafe,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use dunlin_journal::Topic;
use dunlin_model::{DeviceId, DeviceType, EventKind, RejectReason, Slot, limits::NAME_BYTES_MAX};
use futures::FutureExt;
use ntex::{
    io::{Io, RecvError},
    time::{Seconds, timeout_checked},
    util::Bytes,
};
use ntex_mqtt::{QoS, error::DecodeError};

use crate::{
    account::Class,
    append::Lane,
    connection::{Connection, Refusal},
    decode::Fault,
    directory::{self, Admitted, Denied},
    record::{self, Delivery, Origin, Refused},
    sessions::SessionKey,
    topic::{Route, child_name},
    wire::{Code, Connect, Greeting, Inbound, Publish, Unwelcome, Version, Welcome, Wire},
    worker::Worker,
};

/// Topics that an MQTT 5 client may abbreviate.
const TOPIC_ALIASES_MAX: u16 = 16;
/// What a client may send before it is known: client id, token, will.
const CONNECT_BYTES_MAX: u32 = 16 << 10;
/// Bytes of a client id.
const CLIENT_ID_BYTES_MAX: usize = 256;
/// Fixed header, topic and properties around a payload of the largest size.
const PACKET_OVERHEAD_BYTES_MAX: u32 = 4 << 10;
/// Bytes that a packet must grow by, in the time a handshake may take, to be waited for any longer.
const PACKET_PROGRESS_BYTES_MIN: usize = 4 << 10;

/// Serves one connection from its first byte to its end. A panic ends this connection alone.
pub(crate) async fn serve(io: Io, worker: Rc<Worker>) {
    use std::sync::atomic::Ordering::Relaxed;
    let open = worker.shared.connections.fetch_add(1, Relaxed);
    if open >= worker.shared.config.connections_max || worker.is_leaving() {
        worker.shared.books.metrics.connect("too_many");
        io.terminate();
    } else {
        greet(&io, &worker).await;
        let _gone = io.shutdown().await;
    }
    worker.shared.connections.fetch_sub(1, Relaxed);
}

async fn greet(io: &Io, worker: &Rc<Worker>) {
    let patience = Seconds(worker.shared.config.handshake_seconds_max);
    let shaken = timeout_checked(patience, AssertUnwindSafe(handshake(io, worker)).catch_unwind()).await;
    let outcome = match shaken {
        Ok(Ok(Ok(session))) => {
            worker.shared.books.metrics.connect("accepted");
            return session.run(io, worker).await;
        }
        Ok(Ok(Err(outcome))) => outcome,
        Ok(Err(_panic)) => "panicked",
        Err(()) => "timed_out",
    };
    worker.shared.books.metrics.connect(outcome);
    if worker.logs.allow() {
        tracing::info!(outcome, "connect refused");
    }
}

/// A client that was let in.
struct Session {
    connection: Rc<Connection>,
    key: SessionKey,
    keepalive: Seconds,
    aliases: RefCell<Vec<Option<Box<str>>>>,
    children: RefCell<hashbrown::HashMap<DeviceId, Rc<Child>>>,
    /// What the tenant had of them when the children were asked for.
    revocations: Cell<u64>,
}

/// A device that this connection speaks for.
struct Child {
    device: DeviceId,
    device_type: DeviceType,
    lane: Lane,
}

/// Lets a client in, or says why not; then it is one word for the metrics.
async fn handshake(io: &Io, worker: &Rc<Worker>) -> Result<Session, &'static str> {
    let version = match io.recv(&Greeting).await {
        Ok(Some(version)) => version,
        Err(ntex::util::Either::Left(DecodeError::UnsupportedProtocolLevel)) => {
            const UNACCEPTABLE_VERSION: [u8; 4] = [0x20, 2, 0, 1];
            let _closed = io.encode_slice(&UNACCEPTABLE_VERSION);
            return Err("version");
        }
        Ok(None) | Err(ntex::util::Either::Right(_)) => return Err("gone"),
        Err(ntex::util::Either::Left(_)) => return Err("malformed"),
    };
    let wire = Wire::new(version, CONNECT_BYTES_MAX);
    let connect = match io.recv(&wire).await {
        Ok(Some(Inbound::Connect(connect))) => connect,
        Ok(None) | Err(ntex::util::Either::Right(_)) => return Err("gone"),
        Ok(Some(_)) | Err(ntex::util::Either::Left(_)) => return Err("malformed"),
    };
    let turn_away = |why: Unwelcome, outcome: &'static str| {
        let _closed = io.with_write_buf(|out| wire.unwelcome(why, out));
        outcome
    };
    let sessions = &worker.shared.sessions;
    let id = worker.shared.next_connection_id();
    let assigned_client_id = connect.client_id.is_empty().then(|| worker.shared.client_id(id));
    loop {
        let revocations = sessions.revocations();
        let who = match admit(worker, &connect).await {
            Ok(who) => who,
            Err((why, outcome)) => return Err(turn_away(why, outcome)),
        };
        if worker.is_leaving() {
            return Err(turn_away(Unwelcome::Unavailable, "leaving"));
        }
        let key = SessionKey::new(&who, assigned_client_id.as_deref().unwrap_or(&connect.client_id));
        if sessions.enter(key.clone(), id, worker.orders.clone(), revocations) {
            return Ok(enter(io, worker, wire, connect, Entered { id, who, key, assigned_client_id }));
        }
    }
}

async fn admit(worker: &Worker, connect: &Connect) -> Result<Admitted, (Unwelcome, &'static str)> {
    if connect.auth_method {
        return Err((Unwelcome::AuthMethod, "auth_method"));
    }
    let client_id = connect.client_id.as_str();
    let nameless = client_id.is_empty() && !connect.clean;
    if nameless || client_id.len() > CLIENT_ID_BYTES_MAX || client_id.chars().any(char::is_control) {
        return Err((Unwelcome::ClientId, "client_id"));
    }
    let token = connect.user_name.as_deref().unwrap_or_default();
    if token.is_empty() {
        return Err((Unwelcome::BadCredentials, "no_token"));
    }
    worker.shared.directory.admit(token.to_owned()).await.map_err(|denied| match denied {
        Denied::UnknownToken => (Unwelcome::BadCredentials, "unknown_token"),
        Denied::Disabled | Denied::NotAChild | Denied::TooManyChildren { .. } => {
            (Unwelcome::BadCredentials, "disabled")
        }
        Denied::Unavailable(reason) => {
            if worker.logs.allow() {
                tracing::error!(reason, "directory unavailable, connect refused");
            }
            (Unwelcome::Unavailable, "unavailable")
        }
    })
}

/// A client that has its client id.
struct Entered {
    id: u64,
    who: Admitted,
    key: SessionKey,
    assigned_client_id: Option<String>,
}

/// Everything that a connection has, and CONNACK. Nothing here waits: the client is in.
fn enter(io: &Io, worker: &Rc<Worker>, wire: Wire, connect: Connect, entered: Entered) -> Session {
    let Entered { id, who, key, assigned_client_id } = entered;
    let shared = &worker.shared;
    let config = &shared.config;
    let packet_bytes_max = config.message_bytes_max as u32 + PACKET_OVERHEAD_BYTES_MAX;
    wire.set_packet_bytes_max(packet_bytes_max);
    if let Some(bytes) = connect.packet_bytes_max {
        wire.set_answer_bytes_max(bytes);
    }

    let asked = connect.keepalive_seconds;
    let keepalive = match asked {
        0 => config.keepalive_seconds_max,
        asked => asked.min(config.keepalive_seconds_max),
    };
    let version = wire.version();
    let client_id = assigned_client_id.as_deref().unwrap_or(&connect.client_id);
    let detail =
        serde_json::json!({ "transport": "mqtt", "version": version.name(), "client_id": client_id });
    worker.event(&who, EventKind::Connected, detail.to_string());

    let slot = Slot::of(&who.tenant, &who.device);
    let account = shared.books.accounts.of(&who.tenant);
    let share = worker.shares.enter(&who.tenant);
    let connection = Rc::new(Connection::new(
        id,
        who,
        account,
        worker.appender.lane(Topic::Telemetry, slot),
        wire,
        share,
        io.get_ref(),
        config,
        shared.books.metrics.clone(),
        worker.logs.clone(),
    ));
    worker.enters(&connection);
    connection.write(|out| {
        connection.wire.welcome(
            Welcome {
                inflight_max: config.connection_inflight_max,
                packet_bytes_max,
                topic_aliases_max: TOPIC_ALIASES_MAX,
                assigned_client_id,
                keepalive_seconds: (keepalive != asked).then_some(keepalive),
            },
            out,
        );
    });
    Session {
        connection,
        key,
        keepalive: Seconds(keepalive),
        aliases: RefCell::default(),
        children: RefCell::default(),
        revocations: Cell::new(0),
    }
}

impl Session {
    async fn run(self, io: &Io, worker: &Rc<Worker>) {
        if AssertUnwindSafe(self.read(io, worker)).catch_unwind().await.is_err() {
            tracing::error!(tenant = %self.connection.who.tenant, device = %self.connection.who.device, "a packet made its connection panic");
            self.connection.finish(Code::Panicked, "the packet could not be handled");
        }
        let connection = &self.connection;
        worker.shared.sessions.leave(&self.key, connection.id);
        let reason = connection.end().unwrap_or("gone");
        let detail = serde_json::json!({ "reason": reason });
        worker.event(&connection.who, EventKind::Disconnected, detail.to_string());
        worker.leaves(connection);
    }

    /// Until there is room for a publish: of the connection, of its tenant, of the worker.
    async fn room(&self, worker: &Worker) {
        let connection = &self.connection;
        while connection.end().is_none() {
            if !connection.has_room() {
                connection.room().await;
            } else if !connection.share.has_room() {
                connection.share.room().await;
            } else if !worker.appender.has_room() {
                worker.appender.room().await;
            } else {
                return;
            }
        }
    }

    /// Packet after packet; a publish waits for room, and what is behind it with it.
    async fn read(&self, io: &Io, worker: &Rc<Worker>) {
        let connection = &self.connection;
        let mut patience =
            Patience::new(io, self.keepalive, Seconds(worker.shared.config.handshake_seconds_max));
        while connection.end().is_none() {
            let packet = match poll_fn(|cx| patience.poll_packet(io, &connection.wire, cx)).await {
                Ok(packet) => packet,
                Err(End::Gone) => return connection.gone("gone"),
                Err(End::Silent) => return connection.finish(Code::KeepAlive, "nothing came in time"),
                Err(End::Wrong(error)) => {
                    let code = code_of(error);
                    if code == Code::PacketTooLarge {
                        self.reject_unread(worker, error.to_string());
                    }
                    return connection.finish(code, &error.to_string());
                }
            };
            match packet {
                _ if worker.is_leaving() => {}
                Inbound::Publish(publish, payload) => {
                    self.room(worker).await;
                    if connection.end().is_none() && !worker.is_leaving() {
                        self.publish(worker, publish, payload).await;
                    }
                }
                Inbound::Release(packet_id) => {
                    let known = connection.release(packet_id);
                    connection.write(|out| connection.wire.complete(packet_id, known, out));
                }
                Inbound::Ping => connection.write(Wire::pong),
                Inbound::Subscribe { packet_id, filters } => {
                    connection.write(|out| connection.wire.refuse_subscriptions(packet_id, filters, out));
                }
                Inbound::Unsubscribe { packet_id, filters } => {
                    connection.write(|out| connection.wire.unsubscribed(packet_id, filters, out));
                }
                Inbound::Disconnect => return connection.gone("client"),
                Inbound::Connect(_) => return connection.finish(Code::Protocol, "a second CONNECT"),
                Inbound::Unexpected => {
                    return connection.finish(Code::Protocol, "a packet that answers nothing");
                }
            }
        }
    }

    /// Takes a publish to its batch, or to the rejected ones. Its answer comes when that is durable.
    async fn publish(&self, worker: &Rc<Worker>, publish: Publish, payload: Bytes) {
        let connection = &self.connection;
        let alias;
        let topic = match self.resolve_alias(&publish) {
            Ok(None) => publish.topic.as_str(),
            Ok(Some(known)) => {
                alias = known;
                &alias
            }
            Err(why) => return connection.finish(Code::TopicAlias, why),
        };
        if let Some(packet_id) = publish.packet_id
            && !connection.is_held(packet_id)
            && !connection.keeps_receive_maximum()
        {
            connection.answered().await; // What it may expect.
            return connection.finish(Code::ReceiveMaximum, "more publishes than were announced");
        }
        if publish.qos == QoS::ExactlyOnce
            && let Some(packet_id) = publish.packet_id
            && !connection.hold(packet_id)
        {
            if !connection.is_queued(packet_id) {
                connection.repeat(packet_id, publish.qos);
            }
            return;
        }
        let taken = match Route::of(topic) {
            Some(Route::Telemetry) => self.telemetry(worker, &publish, &payload, None),
            Some(Route::Events) => self.event(worker, &publish, &payload),
            Some(Route::Child(name)) => match self.child(worker, name).await {
                Ok(Some(child)) => self.telemetry(worker, &publish, &payload, Some(&child)),
                Ok(None) => return connection.finish(Code::ServerBusy, "the directory is not available"),
                Err(refusal) => Err(refusal),
            },
            None => Err(Refusal {
                code: Code::TopicName,
                reason: RejectReason::UnknownTopic,
                detail: "not a topic that devices publish to".into(),
            }),
        };
        if let Err(refusal) = taken {
            self.reject(worker, topic, &publish, &payload, refusal);
        }
    }

    fn telemetry(
        &self,
        worker: &Worker,
        publish: &Publish,
        payload: &[u8],
        child: Option<&Child>,
    ) -> Result<(), Refusal> {
        let connection = &self.connection;
        self.check_size(worker, payload)?;
        let (origin, lane) = match child {
            None => (Origin::from(&connection.who), connection.telemetry),
            Some(child) => (
                Origin {
                    tenant: &connection.who.tenant,
                    device: &child.device,
                    device_type: &child.device_type,
                },
                child.lane,
            ),
        };
        let Some(packet_id) = publish.packet_id else {
            let unanswered = Some((connection, None));
            let account = &connection.account;
            worker.appender.telemetry(lane, payload, origin, Delivery::Plain, account, unanswered)?;
            return Ok(());
        };
        let delivery = Delivery::Packet { packet_id: packet_id.get(), duplicate: publish.duplicate };
        let number = connection.expect(publish.packet_id, publish.qos);
        let waits = Some((connection, Some(number)));
        let taken = worker.appender.telemetry(lane, payload, origin, delivery, &connection.account, waits);
        taken.map_err(|fault| {
            connection.unexpect();
            fault.into()
        })
    }

    fn event(&self, worker: &Worker, publish: &Publish, payload: &[u8]) -> Result<(), Refusal> {
        let connection = &self.connection;
        self.check_size(worker, payload)?;
        let detail = record::check_event(payload)?;
        let now = worker.appender.now();
        let event = record::event(Origin::from(&connection.who), EventKind::Reported, detail.to_owned(), now);
        let slot = Slot::of(&connection.who.tenant, &connection.who.device);
        let number = publish.packet_id.map(|id| connection.expect(Some(id), publish.qos));
        let waits = Some((connection, number));
        let counted = Some((&connection.account, Class::Event));
        worker.appender.record(worker.appender.lane(Topic::Events, slot), &event, counted, waits);
        Ok(())
    }

    fn check_size(&self, worker: &Worker, payload: &[u8]) -> Result<(), Refusal> {
        let max = worker.shared.config.message_bytes_max;
        if payload.len() <= max {
            return Ok(());
        }
        Err(Refusal {
            code: Code::Quota,
            reason: RejectReason::TooLarge,
            detail: format!("a message has at most {max} bytes, this one has {}", payload.len()),
        })
    }

    /// The child of that name; `None` if nobody can tell now.
    async fn child(&self, worker: &Rc<Worker>, name: &str) -> Result<Option<Rc<Child>>, Refusal> {
        let who = &self.connection.who;
        let not_allowed = |detail: String| Refusal {
            code: Code::NotAuthorized,
            reason: RejectReason::NotAuthorized,
            detail,
        };
        if !who.speaks_for_children {
            return Err(not_allowed("this device does not speak for others".into()));
        }
        let revocations = self.connection.account.revocations();
        if self.revocations.replace(revocations) != revocations {
            self.children.borrow_mut().clear(); // One of them may be disabled by now.
        }
        if let Some(child) = self.children.borrow().get(name) {
            return Ok(Some(child.clone()));
        }
        let name = child_name(name).map_err(|e| Refusal {
            code: Code::TopicName,
            reason: RejectReason::UnknownTopic,
            detail: e.to_string(),
        })?;
        let found = directory::child(&*worker.shared.directory, who, name.clone()).await;
        let (device, device_type) = match found {
            Ok(found) => found,
            Err(Denied::Unavailable(reason)) => {
                if worker.logs.allow() {
                    tracing::error!(reason, "directory unavailable, publish for a child not taken");
                }
                return Ok(None);
            }
            Err(denied @ Denied::TooManyChildren { .. }) => {
                let (code, reason) = (Code::Quota, RejectReason::QuotaExceeded);
                return Err(Refusal { code, reason, detail: format!("{name}: {denied}") });
            }
            Err(denied) => return Err(not_allowed(format!("{name}: {denied}"))),
        };
        let lane = worker.appender.lane(Topic::Telemetry, Slot::of(&who.tenant, &device));
        let child = Rc::new(Child { device, device_type, lane });
        let mut children = self.children.borrow_mut();
        if children.len() >= worker.shared.config.connection_children_max {
            children.clear(); // They are asked for again.
        }
        children.insert(name, child.clone());
        Ok(Some(child))
    }

    /// Keeps the original bytes and the reason; the refusal is said once they are durable.
    fn reject(&self, worker: &Worker, topic: &str, publish: &Publish, payload: &[u8], refusal: Refusal) {
        let connection = &self.connection;
        let who = &connection.who;
        let shown: String = topic.chars().take(NAME_BYTES_MAX * 2).collect();
        let refused = Refused {
            reason: refusal.reason,
            detail: &refusal.detail,
            source: &format!("mqtt:{shown}"),
            payload,
        };
        let record = record::rejected(Origin::from(who), refused, worker.appender.now());
        let lane = worker.appender.lane(Topic::Rejected, Slot::of(&who.tenant, &who.device));
        let counted = Some((&connection.account, Class::Rejected(refusal.reason)));
        let number = connection.expect_refusal(publish.packet_id, publish.qos, refusal);
        worker.appender.record(lane, &record, counted, Some((connection, Some(number))));
    }

    /// Keeps the reason why a packet is not read; its bytes are not here.
    fn reject_unread(&self, worker: &Worker, detail: String) {
        let Connection { who, account, .. } = &*self.connection;
        let reason = RejectReason::TooLarge;
        let refused = Refused { reason, detail: &detail, source: "mqtt", payload: &[] };
        let record = record::rejected(Origin::from(who), refused, worker.appender.now());
        let lane = worker.appender.lane(Topic::Rejected, Slot::of(&who.tenant, &who.device));
        worker.appender.record(lane, &record, Some((account, Class::Rejected(reason))), None);
    }

    /// The topic behind an alias, or `None` if the packet names its topic.
    fn resolve_alias(&self, publish: &Publish) -> Result<Option<Box<str>>, &'static str> {
        let Some(alias) = publish.topic_alias.map(NonZeroU16::get) else {
            return match publish.topic.is_empty() {
                true => Err("neither a topic nor an alias"),
                false => Ok(None),
            };
        };
        if alias > TOPIC_ALIASES_MAX {
            return Err("a topic alias beyond the maximum");
        }
        let mut aliases = self.aliases.borrow_mut();
        let place = usize::from(alias) - 1;
        if publish.topic.is_empty() {
            let known = aliases.get(place).cloned().flatten();
            return known.map(Some).ok_or("a topic alias that was not set");
        }
        if aliases.len() <= place {
            aliases.resize(place + 1, None);
        }
        aliases[place] = Some(publish.topic.as_str().into());
        Ok(None)
    }
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self { code: Code::PayloadFormat, reason: fault.reason, detail: fault.detail }
    }
}

/// Why reading ends.
#[derive(Debug)]
enum End {
    Gone,
    Silent,
    Wrong(DecodeError),
}

fn code_of(error: DecodeError) -> Code {
    match error {
        DecodeError::MaxSizeExceeded { .. } => Code::PacketTooLarge,
        _ => Code::Malformed,
    }
}

/// How long a client is waited for. A packet that was begun has less time than the next one, unless it keeps growing.
/// The timer is left alone while packets come; when it fires it is set for what is left of the silence.
struct Patience {
    silence: Silence,
    packet: Seconds,
    /// A packet came since it was last waited for.
    heard: bool,
    begun: Option<Begun>,
}

/// A client that says nothing for 1.5 times its keep-alive is gone.
struct Silence {
    since: Instant,
    keepalive: Seconds,
}

impl Silence {
    /// How long it may still last; `None` if it is over.
    fn left(&self, now: Instant) -> Option<Seconds> {
        let max = Duration::from_millis(u64::from(self.keepalive.0) * 1_500);
        let left = max.saturating_sub(now.saturating_duration_since(self.since));
        let seconds = left.as_millis().div_ceil(1_000);
        (seconds > 0).then(|| Seconds(u16::try_from(seconds).unwrap_or(u16::MAX)))
    }
}

/// A packet of which a part has come.
#[derive(Default)]
struct Begun {
    bytes: usize,
    bytes_before: usize,
}

impl Patience {
    fn new(io: &Io, keepalive: Seconds, packet: Seconds) -> Self {
        let patience =
            Self { silence: Silence { since: Instant::now(), keepalive }, packet, heard: false, begun: None };
        patience.goes_on_for(io, patience.silence.since);
        patience
    }

    fn poll_packet(&mut self, io: &Io, wire: &Wire, cx: &mut Context<'_>) -> Poll<Result<Inbound, End>> {
        loop {
            match io.poll_recv_decode(wire, cx) {
                Ok(decoded) => match decoded.item {
                    Some(packet) => {
                        self.heard = true;
                        return Poll::Ready(Ok(packet));
                    }
                    None => {
                        self.waits_for_the_next(io);
                        if decoded.remains + decoded.consumed > 0 || self.begun.is_some() {
                            self.waits_for_the_rest(io, decoded.remains);
                        }
                        return Poll::Pending;
                    }
                },
                Err(RecvError::KeepAlive) => {
                    if !self.goes_on(io) {
                        return Poll::Ready(Err(End::Silent));
                    }
                }
                Err(RecvError::WriteBackpressure) => {
                    if ready!(io.poll_flush(cx, false)).is_err() {
                        return Poll::Ready(Err(End::Gone));
                    }
                }
                Err(RecvError::Decoder(error)) => return Poll::Ready(Err(End::Wrong(error))),
                Err(RecvError::PeerGone(_)) => return Poll::Ready(Err(End::Gone)),
            }
        }
    }

    /// The silence begins: after all packets that came together, and after this server's own time with them.
    fn waits_for_the_next(&mut self, io: &Io) {
        if std::mem::take(&mut self.heard) {
            self.silence.since = Instant::now();
            if self.begun.take().is_some() {
                self.goes_on_for(io, self.silence.since);
            }
        }
    }

    fn waits_for_the_rest(&mut self, io: &Io, bytes: usize) {
        match &mut self.begun {
            Some(begun) => begun.bytes = bytes,
            none => {
                *none = Some(Begun { bytes, bytes_before: bytes });
                io.start_timer(self.packet);
            }
        }
    }

    /// The timer fired: whether to wait on.
    fn goes_on(&mut self, io: &Io) -> bool {
        self.waits_for_the_next(io);
        if let Some(begun) = &mut self.begun {
            let grown = begun.bytes.saturating_sub(begun.bytes_before);
            begun.bytes_before = begun.bytes;
            io.start_timer(self.packet);
            return grown >= PACKET_PROGRESS_BYTES_MIN;
        }
        self.goes_on_for(io, Instant::now())
    }

    /// Sets the timer for what is left of the silence, if anything is.
    fn goes_on_for(&self, io: &Io, now: Instant) -> bool {
        let left = self.silence.left(now);
        if let Some(left) = left {
            io.start_timer(left);
        }
        left.is_some()
    }
}

impl Version {
    fn name(self) -> &'static str {
        match self {
            Self::V3 => "3.1.1",
            Self::V5 => "5",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_lasts_one_and_a_half_keep_alives_from_the_last_packet() {
        let since = Instant::now();
        let left = |keepalive, after| {
            let silence = Silence { since, keepalive: Seconds(keepalive) };
            silence.left(since + Duration::from_millis(after)).map(|left| left.0)
        };
        assert_eq!((left(60, 0), left(60, 60_000)), (Some(90), Some(30)));
        assert_eq!((left(60, 89_999), left(60, 90_000)), (Some(1), None));
        assert_eq!((left(1, 0), left(1, 1_499), left(1, 1_500)), (Some(2), Some(1), None));
        assert_eq!(left(u16::MAX, 0), Some(u16::MAX), "and then the rest");
        assert_eq!(left(u16::MAX, 98_302_500), None);
    }
}
