//! The path of an MQTT reading: handshake, then packet after packet until the client or the server leaves.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    collections::HashSet,
    future::poll_fn,
    num::NonZeroU16,
    panic::AssertUnwindSafe,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use dunlin_broker::{
    Acknowledged, Change, Filter, Message, Publication, Published, Session, SessionKey, Subscription, Tenant,
    UNDER_WAY_MAX, check_topic, is_of_commands,
};
use dunlin_journal::{AppendError, Topic};
use dunlin_model::{
    CommandId, DeviceId, DeviceType, EventKind, InvalidCommandId, RejectReason, Slot,
    limits::{COMMAND_BYTES_MAX, NAME_BYTES_MAX},
};
use futures::{
    FutureExt,
    future::{Either, join, select},
};
use ntex::{
    io::{Io, RecvError},
    time::{Seconds, sleep, timeout_checked},
    util::{ByteString, Bytes},
};
use ntex_mqtt::{QoS, error::DecodeError};

use crate::{
    account::Class,
    append::Lane,
    connection::{Connection, IN_LOG, NOT_IN_LOG, Parts, Refusal},
    decode::Fault,
    directory::{self, Admitted, Credential, Denied},
    guard::{Address, Arrival, TurnedAway, Visitor},
    listen::{Listener, NotLetIn, Opened, Stream},
    record::{self, Delivery, Origin, Refused},
    sessions::{Ending, Entry, Last, Sessions},
    tls::Certified,
    topic::{Route, asked, child_name},
    wire::{
        AnswerTo, Code, Connect, Granted, Greeting, Inbound, Publish, Unwelcome, Version, Welcome, Wire,
        broker_qos,
    },
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

/// How long another gateway may take to let a client go.
const CLAIM_SECONDS_MAX: Seconds = Seconds(2);

/// Serves one connection from its first byte to its end. A panic ends this connection alone.
pub(crate) async fn serve(io: Io, listener: &Listener, worker: &Rc<Worker>) {
    let shared = &worker.shared;
    let open = shared.connections.fetch_add(1, Relaxed);
    if open < shared.config.connections_max && !worker.is_leaving() {
        greet(io, listener, worker).await;
    } else {
        shared.books.metrics.connect("too_many");
        io.terminate();
    }
    shared.connections.fetch_sub(1, Relaxed);
}

async fn greet(io: Io, listener: &Listener, worker: &Rc<Worker>) {
    let patience = Seconds(worker.shared.config.handshake_seconds_max);
    let source = Cell::new(None);
    // Boxed: a connection needs what a handshake needs for a moment only.
    let shaking = Box::pin(AssertUnwindSafe(shake_hands(io, listener, worker, &source)).catch_unwind());
    let refusal = match timeout_checked(patience, shaking).await {
        Ok(Ok(Ok((stream, client)))) => {
            worker.shared.books.metrics.connect("accepted");
            client.run(&stream, worker).await;
            return close(stream, client, worker).await;
        }
        Ok(Ok(Err(refusal))) => refusal,
        Ok(Err(_panic)) => "panicked".into(),
        Err(()) => "timed_out".into(),
    };
    let NotLetIn { outcome, why } = refusal;
    worker.shared.books.metrics.connect(outcome);
    if worker.logs.allow() {
        let address = source.get().map(tracing::field::display);
        tracing::info!(outcome, why, address, door = listener.name(), "connect refused");
    }
}

/// Its connection need not wait until the journal has answered for what it has sent; its next connection must: what
/// comes over that has its place after all of this.
async fn close(stream: Stream, client: Client, worker: &Worker) {
    let closes = async move {
        let _gone = stream.shutdown().await;
    };
    let settles = async {
        if client.connection.end().is_some() {
            worker.appender.hurry(); // Another may wait for the seat.
        }
        let _seated = client;
        worker.appender.handed_over().await;
    };
    join(closes, settles).await;
}

/// From a socket to a client that is in.
async fn shake_hands(
    io: Io,
    listener: &Listener,
    worker: &Rc<Worker>,
    source: &Cell<Option<Address>>,
) -> Result<(Stream, Client), NotLetIn> {
    let arrival = worker.shared.guard.arrive(listener.source(&io).await?);
    let arrival = arrival.map_err(TurnedAway::outcome)?;
    source.set(Some(arrival.address()));
    let Opened { stream, certified } = listener.open(io, &arrival).await?;
    match handshake(&stream, listener, worker, arrival, certified).await {
        Ok(client) => Ok((stream, client)),
        Err(outcome) => {
            let _gone = stream.shutdown().await; // With what was said.
            Err(outcome.into())
        }
    }
}

/// A client that was let in.
struct Client {
    connection: Rc<Connection>,
    seat: Seat,
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
async fn handshake(
    io: &Stream,
    listener: &Listener,
    worker: &Rc<Worker>,
    arrival: Arrival,
    certified: Option<Certified>,
) -> Result<Client, &'static str> {
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
    let turn_away = |wire: &Wire, why: Unwelcome, outcome: &'static str| {
        let _closed = io.with_write_buf(|out| wire.unwelcome(why, out));
        outcome
    };
    let wire = Wire::new(version, CONNECT_BYTES_MAX);
    let connect = match io.recv(&wire).await {
        Ok(Some(Inbound::Connect(connect))) => connect,
        Ok(None) | Err(ntex::util::Either::Right(_)) => return Err("gone"),
        Err(ntex::util::Either::Left(DecodeError::InvalidClientId)) => {
            return Err(turn_away(&wire, Unwelcome::ClientId, "client_id"));
        }
        Ok(Some(_)) | Err(ntex::util::Either::Left(_)) => return Err("malformed"),
    };
    let credential = match certified {
        Some(certified) => Credential::Certificate(certified),
        None => Credential::Token(connect.user_name.as_deref().unwrap_or_default().to_owned()),
    };
    let visitor = match arrival.introduce(&connect.client_id, &credential) {
        Ok(visitor) => visitor,
        Err(turned_away) => return Err(turn_away(&wire, turned_away.into(), turned_away.outcome())),
    };
    if !has_its_turn(io, &visitor).await {
        return Err("gone");
    }
    let plan = match take_seat(worker, connect, credential).await {
        Ok(plan) => plan,
        Err((why, outcome)) => {
            if why == Unwelcome::BadCredentials {
                visitor.failed();
            }
            return Err(turn_away(&wire, why, outcome));
        }
    };
    visitor.admitted();
    let ending = plan.seat.ending();
    if ending.is_some() || worker.is_leaving() {
        plan.give_up(worker).await;
        return Err(match ending.map(|ending| ending.code) {
            None => turn_away(&wire, Unwelcome::Unavailable, "leaving"),
            Some(Code::TakenOver) => turn_away(&wire, Unwelcome::Unavailable, "taken_over"),
            Some(_) => turn_away(&wire, Unwelcome::BadCredentials, "revoked"),
        });
    }
    Ok(enter(io, listener, worker, wire, plan))
}

/// Waits for the client's turn; false if it leaves before.
async fn has_its_turn(io: &Stream, visitor: &Visitor) -> bool {
    let wait = visitor.wait();
    if wait.is_zero() {
        return true;
    }
    let gone = io.on_disconnect();
    let turn = sleep(wait);
    futures::pin_mut!(gone, turn);
    matches!(select(gone, turn).await, Either::Right(_))
}

impl From<TurnedAway> for Unwelcome {
    fn from(why: TurnedAway) -> Self {
        match why {
            TurnedAway::AddressRate => Self::Rate,
            TurnedAway::Banned => Self::Banned,
            TurnedAway::HalfOpen | TurnedAway::Busy | TurnedAway::BackOff => Self::Busy,
        }
    }
}

async fn admit(
    worker: &Worker,
    connect: &Connect,
    credential: &Credential,
) -> Result<Admitted, (Unwelcome, &'static str)> {
    if connect.auth_method {
        return Err((Unwelcome::AuthMethod, "auth_method"));
    }
    let client_id = connect.client_id.as_str();
    let nameless = client_id.is_empty() && !connect.clean;
    if nameless || client_id.len() > CLIENT_ID_BYTES_MAX || client_id.chars().any(char::is_control) {
        return Err((Unwelcome::ClientId, "client_id"));
    }
    if let Some(will) = &connect.will
        && (check_topic(&will.topic).is_err() || Route::of(&will.topic) != Route::Message)
    {
        return Err((Unwelcome::WillTopic, "will_topic"));
    }
    if matches!(credential, Credential::Token(token) if token.is_empty()) {
        return Err((Unwelcome::BadCredentials, "no_token"));
    }
    worker.shared.admissions.admit(credential).await.map_err(|denied| match denied {
        Denied::UnknownToken => (Unwelcome::BadCredentials, "unknown_token"),
        Denied::UnknownDevice => (Unwelcome::BadCredentials, "unknown_device"),
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

/// A client id that is held; given back when this is dropped.
struct Seat {
    sessions: Sessions,
    key: SessionKey,
    connection: u64,
    last: Cell<Last>,
}

impl Seat {
    /// Why this connection is to end already, if it is.
    fn ending(&self) -> Option<Ending> {
        self.sessions.ending(&self.key, self.connection)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.sessions.leave(&self.key, self.connection, self.last.get());
    }
}

/// What a handshake has found.
struct Plan {
    seat: Seat,
    who: Admitted,
    asked: Connect,
    assigned_client_id: Option<String>,
    tenant: Arc<Tenant>,
    /// The session that is in the log, if there is one, and whether it was before.
    session: Option<Arc<Session>>,
    present: bool,
    expiry_seconds: u32,
    settled: bool,
}

impl Plan {
    /// The client will not be let in: the session is closed as if it had never come.
    async fn give_up(self, worker: &Rc<Worker>) {
        if let Some(session) = &self.session {
            let at = worker.shared.clock.now();
            let (session, connection) = (session.id, self.seat.connection);
            let closed = Change::Closed { session, connection, at, with_will: false, expiry_seconds: None };
            let _said_by_commit = commit(worker, &self.seat.key.tenant, &closed).await;
        }
    }
}

/// Lets the client in, takes over the client id, and opens the session if it is one for the log.
async fn take_seat(
    worker: &Rc<Worker>,
    mut asked: Connect,
    credential: Credential,
) -> Result<Plan, (Unwelcome, &'static str)> {
    let shared = &worker.shared;
    let id = shared.next_connection_id();
    let assigned_client_id = asked.client_id.is_empty().then(|| shared.client_id(id));
    let (who, key, settled) = loop {
        let revocations = shared.sessions.revocations();
        let who = admit(worker, &asked, &credential).await?;
        if worker.is_leaving() {
            return Err((Unwelcome::Unavailable, "leaving"));
        }
        let key = SessionKey {
            tenant: (*who.tenant).into(),
            device: (*who.device).into(),
            client_id: assigned_client_id.as_deref().unwrap_or(&asked.client_id).into(),
        };
        match shared.sessions.enter(&key, id, &worker.orders, revocations) {
            Entry::In { settled } => break (who, key, settled),
            Entry::Wait(turn) => turn.await.map_err(|_| (Unwelcome::Unavailable, "taken_over"))?,
            Entry::Stale => {}
        }
    };
    let (sessions, last) = (shared.sessions.clone(), Cell::new(Last::Nothing));
    let seat = Seat { sessions, key: key.clone(), connection: id, last };

    let longest = shared.config.pubsub.session_expiry_seconds_max;
    let expiry_seconds = asked.expiry_seconds.unwrap_or(u32::MAX).min(longest);
    let tenant = shared.pubsub.broker.tenant(&who.tenant);
    let before = tenant.session(&key);
    let will = asked.will.take().map(|will| *will);
    if let Some(before) = before.as_ref().filter(|before| before.is_elsewhere()) {
        claim(worker, &key, id, before).await?;
    }
    let before = tenant.session(&key);
    let is_for_log = expiry_seconds > 0 || will.is_some() || (before.is_some() && !asked.clean);
    let at = shared.clock.now();
    let mut session = None;
    let mut present = false;
    if is_for_log {
        if before.is_none() && !tenant.has_room_for_sessions() {
            return Err((Unwelcome::Quota, "sessions"));
        }
        let (clean, connection) = (asked.clean, id);
        let opened = Change::Opened { key: key.clone(), clean, expiry_seconds, will, connection, at };
        let offset = commit(worker, &key.tenant, &opened).await?;
        // The log takes no word of a gateway that the others have gone on without.
        let opened = tenant.session(&key).filter(|session| session.opened_by() == id);
        session = Some(opened.ok_or((Unwelcome::Unavailable, "left_behind"))?);
        present = session.as_ref().is_some_and(|s| !s.is_opened_at(offset));
    } else if let Some(before) = before {
        commit(worker, &key.tenant, &Change::Ended { session: before.id, at }).await?;
    }
    Ok(Plan { seat, who, asked, assigned_client_id, tenant, session, present, expiry_seconds, settled })
}

/// Asks the gateway that has the client to let it go: what the client sends next comes after all that it has sent there.
/// One that does not answer is not waited for.
async fn claim(
    worker: &Worker,
    key: &SessionKey,
    connection: u64,
    before: &Session,
) -> Result<(), (Unwelcome, &'static str)> {
    commit(worker, &key.tenant, &Change::Claimed { key: key.clone(), connection }).await?;
    let _late = timeout_checked(CLAIM_SECONDS_MAX, worker.shared.pubsub.let_go(before)).await;
    Ok(())
}

async fn commit(
    worker: &Worker,
    tenant: &str,
    change: &Change<'_>,
) -> Result<u64, (Unwelcome, &'static str)> {
    worker.shared.pubsub.commit(tenant, change).await.map_err(|error| {
        if worker.logs.allow() {
            tracing::error!(%error, "the journal did not take a session, connect refused");
        }
        match error {
            AppendError::Full { .. } => (Unwelcome::Quota, "journal_full"),
            _ => (Unwelcome::Unavailable, "journal"),
        }
    })
}

/// Everything that a connection has, and CONNACK. Nothing here waits: the client is in.
fn enter(io: &Stream, listener: &Listener, worker: &Rc<Worker>, wire: Wire, plan: Plan) -> Client {
    let Plan { seat, who, asked, assigned_client_id, tenant, session, present, expiry_seconds, settled } =
        plan;
    let shared = &worker.shared;
    let config = &shared.config;
    let id = seat.connection;
    let packet_bytes_max = config.message_bytes_max as u32 + PACKET_OVERHEAD_BYTES_MAX;
    wire.set_packet_bytes_max(packet_bytes_max);
    if let Some(bytes) = asked.packet_bytes_max {
        wire.set_answer_bytes_max(bytes);
    }

    let keepalive = match asked.keepalive_seconds {
        0 => config.keepalive_seconds_max,
        seconds => seconds.min(config.keepalive_seconds_max),
    };
    let version = wire.version();
    let detail = serde_json::json!({
        "transport": listener.name(), "version": version.name(), "client_id": &*seat.key.client_id,
    });
    worker.event(&who, EventKind::Connected, detail.to_string());

    let slot = Slot::of(&who.tenant, &who.device);
    let connection = Rc::new(Connection::new(Parts {
        id,
        account: shared.books.accounts.of(&who.tenant),
        telemetry: worker.appender.lane(Topic::Telemetry, slot),
        changes: worker.appender.lane_of(shared.pubsub.partition_of(&who.tenant)),
        share: worker.shares.enter(&who.tenant),
        who,
        wire,
        tenant,
        key: seat.key.clone(),
        window: usize::from(asked.receive_max.min(UNDER_WAY_MAX)),
        session,
        settled,
        io: io.get_ref(),
        unanswered_max: usize::from(config.connection_inflight_max),
        inflight_bytes_max: config.connection_inflight_bytes_max,
        metrics: shared.books.metrics.clone(),
        logs: worker.logs.clone(),
    }));
    connection.in_log_until.set(shared.pubsub.end(shared.pubsub.partition_of(&connection.who.tenant)));
    worker.enters(&connection);
    if connection.session().is_none() && shared.pubsub.has_company() {
        shared.sessions.is_live(&connection.key, id);
        let seated = Change::Seated { key: connection.key.clone(), connection: id, at: shared.clock.now() };
        worker.append_change(&connection, &seated, None);
    }
    connection.write(|out| {
        connection.wire.welcome(
            Welcome {
                inflight_max: config.connection_inflight_max,
                packet_bytes_max,
                topic_aliases_max: TOPIC_ALIASES_MAX,
                assigned_client_id,
                keepalive_seconds: (keepalive != asked.keepalive_seconds).then_some(keepalive),
                session_present: present,
                expiry_seconds,
            },
            out,
        );
    });
    if let Some(session) = connection.session() {
        session.attach(worker.inbox.clone(), id);
        worker.deliver(&connection);
    }
    Client {
        connection,
        seat,
        keepalive: Seconds(keepalive),
        aliases: RefCell::default(),
        children: RefCell::default(),
        revocations: Cell::new(0),
    }
}

impl Client {
    async fn run(&self, io: &Stream, worker: &Rc<Worker>) {
        let goodbye = match AssertUnwindSafe(self.read(io, worker)).catch_unwind().await {
            Ok(goodbye) => goodbye,
            Err(_panic) => {
                tracing::error!(tenant = %self.connection.who.tenant, device = %self.connection.who.device, "a packet made its connection panic");
                self.connection.finish(Code::Panicked, "the packet could not be handled");
                None
            }
        };
        let connection = &self.connection;
        self.close_session(worker, goodbye.as_ref());
        let reason = connection.end().unwrap_or("gone");
        let detail = serde_json::json!({ "reason": reason });
        worker.event(&connection.who, EventKind::Disconnected, detail.to_string());
        self.seat.last.set(match () {
            () if goodbye.is_some() && connection.has_answered_all() => Last::Settled,
            () if connection.may_repeat.get() => Last::Unsettled,
            () => Last::Nothing,
        });
        worker.leaves(connection);
    }

    /// Until there is room for a packet that brings something: of the connection, of its tenant, of the worker.
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

    /// Whether the device may not publish any more.
    fn is_disabled(&self) -> bool {
        self.seat.ending().is_some_and(|ending| ending.code == Code::Administrative)
    }

    /// Ends the session or leaves it to the log, which knows what becomes of it.
    fn close_session(&self, worker: &Worker, goodbye: Option<&Goodbye>) {
        let connection = &self.connection;
        let Some(session) = connection.session() else { return };
        session.detach(connection.id);
        if session.id.is_logged() {
            let closed = Change::Closed {
                session: session.id,
                connection: connection.id,
                at: worker.shared.clock.now(),
                with_will: goodbye.is_none_or(|g| g.with_will) && !self.is_disabled(),
                expiry_seconds: goodbye.and_then(|g| g.expiry_seconds),
            };
            worker.log_change(connection, &closed);
        } else {
            worker.shared.pubsub.wants_no_more(&connection.who.tenant, session.filters());
            connection.tenant.end(session);
        }
    }

    /// Packet after packet; one that brings something waits for room, and what is behind it with it. Returns what the
    /// client said at the end.
    async fn read(&self, io: &Stream, worker: &Rc<Worker>) -> Option<Goodbye> {
        let connection = &self.connection;
        let mut patience =
            Patience::new(io, self.keepalive, Seconds(worker.shared.config.handshake_seconds_max));
        while connection.end().is_none() {
            let packet = poll_fn(|cx| patience.poll_packet(io, &connection.wire, cx)).await;
            let packet = match packet {
                Ok(Some(packet)) => packet,
                Ok(None) => {
                    worker.deliver(connection);
                    continue;
                }
                Err(End::Gone) => {
                    connection.gone("gone");
                    return None;
                }
                Err(End::Silent) => {
                    connection.finish(Code::KeepAlive, "nothing came in time");
                    return None;
                }
                Err(End::Wrong(error)) => {
                    let code = code_of(error);
                    if code == Code::PacketTooLarge {
                        self.reject_unread(worker, error.to_string());
                    }
                    connection.finish(code, &error.to_string());
                    return None;
                }
            };
            if packet.brings_something() {
                self.room(worker).await;
            }
            match packet {
                _ if worker.is_leaving() || connection.end().is_some() => {}
                Inbound::Publish(publish, payload) => self.publish(worker, publish, payload).await,
                Inbound::Release(packet_id) => self.release(worker, packet_id),
                Inbound::Answer { packet_id, to, refused } => self.answered(worker, packet_id, to, refused),
                Inbound::Ping => connection.write(Wire::pong),
                Inbound::Subscribe { packet_id, filters } => self.subscribe(worker, packet_id, filters).await,
                Inbound::Unsubscribe { packet_id, filters } => {
                    self.unsubscribe(worker, packet_id, &filters).await;
                }
                Inbound::Disconnect { with_will, expiry_seconds } => {
                    return self.goodbye(worker, with_will, expiry_seconds);
                }
                Inbound::Connect(_) => connection.finish(Code::Protocol, "a second CONNECT"),
                Inbound::Unexpected => {
                    connection.finish(Code::Protocol, "a packet that a client does not send")
                }
            }
        }
        None
    }

    fn goodbye(&self, worker: &Worker, with_will: bool, expiry_seconds: Option<u32>) -> Option<Goodbye> {
        let connection = &self.connection;
        // Nothing can be made to outlive a connection that was not meant to (MQTT 5, 3.14.2.2.2).
        let outlives = connection.session().is_some_and(|session| session.outlives());
        if expiry_seconds.is_some_and(|seconds| seconds > 0) && !outlives {
            connection.finish(Code::Protocol, "the session was to end with the connection");
            return None;
        }
        let longest = worker.shared.config.pubsub.session_expiry_seconds_max;
        connection.gone("client");
        Some(Goodbye { with_will, expiry_seconds: expiry_seconds.map(|seconds| seconds.min(longest)) })
    }

    /// PUBREL: the client has seen PUBREC, and the packet id is free again.
    fn release(&self, worker: &Worker, packet_id: NonZeroU16) {
        let connection = &self.connection;
        let session = connection.session_id();
        if connection.release(packet_id) || !session.is_logged() {
            return connection.write(|out| connection.wire.complete(packet_id, true, out));
        }
        let number = connection.expect_released(packet_id);
        let change = Change::Released { session, packet_id: packet_id.get() };
        worker.append_change(connection, &change, Some((connection, Some(number))));
    }

    /// What the client says about messages it was sent.
    fn answered(&self, worker: &Worker, packet_id: NonZeroU16, to: AnswerTo, refused: bool) {
        let connection = &self.connection;
        let unknown = || {
            if to == AnswerTo::Received && !refused {
                connection.write(|out| connection.wire.release(packet_id, false, out));
            }
        };
        let Some(session) = connection.session() else { return unknown() };
        if to == AnswerTo::Received && !refused {
            // Marked only when that is applied: PUBREL must not go out on any connection before it is in the log.
            let is_logged = session.id.is_logged();
            let found = session.look(|outbox| match is_logged {
                true => outbox.under_way(packet_id),
                false => outbox.received(packet_id),
            });
            let Acknowledged::Message(number) = found else { return unknown() };
            if !is_logged {
                return connection.write(|out| connection.wire.release(packet_id, true, out));
            }
            let answer = connection.expect_received(packet_id);
            let change = Change::Received { session: session.id, number };
            worker.append_change(connection, &change, Some((connection, Some(answer))));
        } else {
            let (command, found) = session.look(|outbox| {
                let command = outbox.message(packet_id).filter(|message| is_of_commands(&message.topic));
                (command.cloned(), outbox.acknowledge(packet_id))
            });
            if let Acknowledged::Message(number) = found {
                match command.filter(|_| !refused) {
                    Some(command) => worker.command_taken(connection, &command.topic, Some(number)),
                    None => {
                        let acknowledged = Change::Acknowledged { session: session.id, number };
                        worker.log_change(connection, &acknowledged);
                    }
                }
            }
        }
        worker.deliver(connection); // There is room for another one.
    }

    async fn subscribe(
        &self,
        worker: &Rc<Worker>,
        packet_id: NonZeroU16,
        filters: Vec<(ByteString, Subscription)>,
    ) {
        let connection = &self.connection;
        if filters.is_empty() {
            return connection.finish(Code::Protocol, "SUBSCRIBE without a filter");
        }
        if filters.iter().any(|(filter, _)| filter.contains('\0')) {
            return connection.finish(Code::Malformed, "a filter holds U+0000");
        }
        if filters.iter().any(|(filter, s)| s.no_local && filter.starts_with("$share/")) {
            return connection.finish(Code::Protocol, "a shared subscription cannot be no-local");
        }
        let session = connection.session_at(&worker.inbox);
        let mut left = connection.tenant.subscriptions_left(session);
        let mut granted = Vec::with_capacity(filters.len());
        let mut taken: Vec<(&str, Subscription)> = Vec::with_capacity(filters.len());
        let mut new: HashSet<&str> = HashSet::new();
        let device = &connection.who.device;
        let asked: Vec<_> = filters.iter().map(|(filter, s)| (asked(filter, device), s)).collect();
        for (filter, subscription) in &asked {
            let Some(filter) = filter.as_deref() else {
                granted.push(Granted::Forbidden);
                continue;
            };
            let is_known = new.contains(filter) || connection.tenant.is_subscribed(session, filter);
            granted.push(match Filter::parse(filter) {
                Err(_) => Granted::Invalid,
                Ok(_) if left == 0 && !is_known => Granted::Quota,
                Ok(_) => {
                    if !is_known {
                        left -= 1;
                        new.insert(filter);
                    }
                    taken.push((filter, **subscription));
                    Granted::Qos(subscription.qos)
                }
            });
        }
        let at = worker.shared.clock.now();
        if !session.id.is_logged() {
            // What is acknowledged by now is retained for this client, too.
            let pubsub = &worker.shared.pubsub;
            let of_tenant = pubsub.partition_of(&connection.who.tenant);
            if let Err(error) = pubsub.applied(of_tenant, pubsub.end(of_tenant)).await {
                return connection.finish(Code::ServerBusy, &error.to_string());
            }
            connection.tenant.subscribe(session, taken, at);
            let new: Vec<&str> = new.into_iter().collect();
            match connection.while_there(pubsub.wants(&connection.who.tenant, &new)).await {
                Some(Ok(())) => {}
                Some(Err(error)) => return connection.finish(Code::ServerBusy, &error.to_string()),
                None => return,
            }
        } else if !taken.is_empty() {
            let subscriptions = taken.into_iter().map(|(filter, s)| (filter.into(), s)).collect();
            let change = Change::Subscribed { session: session.id, subscriptions, at };
            let committing = worker.shared.pubsub.commit_everywhere(&connection.who.tenant, &change);
            match connection.while_there(committing).await {
                None => return,
                Some(Ok(())) => {}
                Some(Err(AppendError::Full { .. })) => {
                    let refused = granted.iter_mut().filter(|granted| matches!(granted, Granted::Qos(_)));
                    refused.for_each(|granted| *granted = Granted::Quota);
                }
                Some(Err(error)) => return connection.finish(Code::ServerBusy, &error.to_string()),
            }
        }
        connection.write(|out| connection.wire.subscribed(packet_id, &granted, out));
    }

    async fn unsubscribe(&self, worker: &Rc<Worker>, packet_id: NonZeroU16, filters: &[ByteString]) {
        let connection = &self.connection;
        if filters.is_empty() {
            return connection.finish(Code::Protocol, "UNSUBSCRIBE without a filter");
        }
        let mut known: Vec<Option<bool>> =
            filters.iter().map(|f| Filter::parse(f).is_ok().then_some(false)).collect();
        // What a client cannot have, it has not.
        let filters: Vec<Cow<'_, str>> = filters
            .iter()
            .map(|filter| asked(filter, &connection.who.device).unwrap_or(Cow::Borrowed(filter)))
            .collect();
        if let Some(session) = connection.session() {
            if session.id.is_logged() {
                for (known, filter) in known.iter_mut().zip(&filters).filter(|(known, _)| known.is_some()) {
                    *known = Some(connection.tenant.is_subscribed(session, filter));
                }
                let filters = filters.iter().map(|f| (&**f).into()).collect();
                if !self.committed(worker, &Change::Unsubscribed { session: session.id, filters }).await {
                    return;
                }
            } else {
                let ended = connection.tenant.unsubscribe(session, filters.iter().map(|f| &**f));
                let gone = filters.iter().zip(&ended).filter(|(_, ended)| **ended).map(|(filter, _)| filter);
                worker.shared.pubsub.wants_no_more(&connection.who.tenant, gone);
                for (known, ended) in known.iter_mut().zip(ended) {
                    *known = known.map(|_| ended);
                }
            }
        }
        connection.write(|out| connection.wire.unsubscribed(packet_id, &known, out));
    }

    /// Logs a change and waits until it is in force. If that fails the client is told to come back.
    async fn committed(&self, worker: &Worker, change: &Change<'_>) -> bool {
        let committed = worker.shared.pubsub.commit(&self.connection.who.tenant, change).await;
        if let Err(error) = &committed {
            self.connection.finish(Code::ServerBusy, &error.to_string());
        }
        committed.is_ok()
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
        let is_known = publish.packet_id.is_some_and(|packet_id| connection.is_held(packet_id));
        if publish.packet_id.is_some() && !is_known && !connection.keeps_receive_maximum() {
            connection.answered().await; // What it may expect.
            return connection.finish(Code::ReceiveMaximum, "more publishes than were announced");
        }
        if let Err((code, why)) = check_publish(topic, &publish) {
            return connection.finish(code, why);
        }
        if publish.qos != QoS::AtMostOnce {
            connection.may_repeat.set(true);
        }
        let route = Route::of(topic);
        // The log knows the packet ids of messages that went through it.
        let is_known_by_log = route == Route::Message && connection.session_id().is_logged();
        if publish.qos == QoS::ExactlyOnce
            && !is_known_by_log
            && let Some(packet_id) = publish.packet_id
            && !connection.hold(packet_id)
        {
            if !connection.is_queued(packet_id) {
                connection.repeat(packet_id, publish.qos);
            }
            return;
        }
        let taken = match route {
            Route::Telemetry => self.telemetry(worker, &publish, &payload, None),
            Route::Events => self.event(worker, &publish, &payload),
            Route::Child(name) => match self.child(worker, name).await {
                Ok(Some(child)) => self.telemetry(worker, &publish, &payload, Some(&child)),
                Ok(None) => return connection.finish(Code::ServerBusy, "the directory is not available"),
                Err(refusal) => Err(refusal),
            },
            Route::Reply(id) => self.reply(worker, id, &publish, &payload),
            Route::Message => self.message(worker, topic, &publish, &payload),
            Route::Reserved => Err(Refusal {
                code: Code::TopicName,
                reason: RejectReason::UnknownTopic,
                detail: "not a topic that devices publish to".into(),
            }),
        };
        if let Err(refusal) = taken {
            self.reject(worker, topic, &publish, &payload, refusal);
        }
    }

    /// Publishes to whoever has subscribed in the tenant.
    fn message(
        &self,
        worker: &Worker,
        topic: &str,
        publish: &Publish,
        payload: &[u8],
    ) -> Result<(), Refusal> {
        let connection = &self.connection;
        self.check_size(worker, payload)?;
        check_topic(topic).map_err(|fault| Refusal {
            code: Code::TopicName,
            reason: RejectReason::UnknownTopic,
            detail: fault.to_string(),
        })?;
        let session = connection.session_id();
        let at = worker.appender.now();
        let message = Arc::new(Message {
            topic: topic.into(),
            payload: payload.to_vec().into(),
            qos: broker_qos(publish.qos),
            retain: publish.retain,
            expires_at: publish.expiry_seconds.map(|seconds| at + Duration::from_secs(seconds.into())),
            properties: publish.properties.clone(),
            publisher: Some(session),
            packets: Default::default(),
        });
        let once_by_log = publish.qos == QoS::ExactlyOnce && session.is_logged();
        let in_log = once_by_log || self.publishes_in_log(worker) || !worker.shared.pubsub.knows_all();
        match connection.tenant.publish(&message, in_log) {
            Published::Delivered(_) => {
                if let Some(packet_id) = publish.packet_id {
                    connection.repeat(packet_id, publish.qos);
                }
            }
            Published::RetainedFull => {
                return Err(Refusal {
                    code: Code::Quota,
                    reason: RejectReason::QuotaExceeded,
                    detail: "the tenant has as many retained messages as it may".into(),
                });
            }
            Published::Log { chosen } => {
                connection.in_log_until.set(IN_LOG);
                let change = Change::Published(Publication {
                    tenant: (*connection.who.tenant).into(),
                    topic: topic.into(),
                    payload,
                    qos: message.qos,
                    retain: message.retain,
                    at,
                    expires_at: message.expires_at,
                    properties: message.properties.clone(),
                    publisher: message.publisher,
                    packet_id: publish.packet_id.filter(|_| once_by_log).map(Into::into),
                    chosen: chosen.into_iter().map(|(group, id)| (group.into(), id)).collect(),
                });
                let number = connection.expect(publish.packet_id, publish.qos);
                worker.append_change(connection, &change, Some((connection, Some(number))));
            }
        }
        Ok(())
    }

    /// Whether something that this client has published, over this connection or one before it, is on its way through
    /// the log: then what follows must not overtake it.
    fn publishes_in_log(&self, worker: &Worker) -> bool {
        let (connection, pubsub) = (&self.connection, &worker.shared.pubsub);
        if connection.in_log_until.get() == NOT_IN_LOG {
            return false;
        }
        let at = pubsub.partition_of(&connection.who.tenant);
        if connection.in_log_until.get() == IN_LOG && connection.has_answered_all() {
            connection.in_log_until.set(pubsub.end(at));
        }
        if pubsub.is_applied(at, connection.in_log_until.get()) {
            connection.in_log_until.set(NOT_IN_LOG);
        }
        connection.in_log_until.get() != NOT_IN_LOG
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
        let delivery = Delivery::Packet {
            packet_id: packet_id.get(),
            duplicate: publish.duplicate && !connection.settled,
        };
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

    /// What the device answers to a command.
    fn reply(&self, worker: &Worker, id: &str, publish: &Publish, payload: &[u8]) -> Result<(), Refusal> {
        let connection = &self.connection;
        let id: CommandId = id.parse().map_err(|fault: InvalidCommandId| Refusal {
            code: Code::TopicName,
            reason: RejectReason::UnknownTopic,
            detail: fault.to_string(),
        })?;
        if payload.len() > COMMAND_BYTES_MAX {
            let bytes = payload.len();
            return Err(Refusal {
                code: Code::Quota,
                reason: RejectReason::TooLarge,
                detail: format!("a reply has at most {COMMAND_BYTES_MAX} bytes, this one has {bytes}"),
            });
        }
        let reply = record::check_reply(payload)?;
        let origin = Origin::from(&connection.who);
        let record = record::command_reply(origin, &id, worker.appender.now(), Some(reply));
        let number = publish.packet_id.map(|id| connection.expect(Some(id), publish.qos));
        let lane = worker.appender.lane(Topic::CommandReplies, Slot::of(origin.tenant, origin.device));
        let counted = Some((&connection.account, Class::Reply));
        worker.appender.record(lane, &record, counted, Some((connection, number)));
        if connection.tenant.holds_command(origin.device, &id) {
            let (tenant, device) = (origin.tenant.into(), origin.device.into());
            let taken = Change::Taken { tenant, device, id: (*id).into() };
            worker.append_change(connection, &taken, None);
        }
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

/// What is wrong in a way that ends the connection.
fn check_publish(topic: &str, publish: &Publish) -> Result<(), (Code, &'static str)> {
    let is_wild = |topic: &str| topic.contains(['+', '#']);
    if publish.subscription_ids {
        return Err((Code::Protocol, "a client does not send subscription identifiers"));
    }
    if is_wild(topic) {
        return Err((Code::TopicName, "a topic to publish to holds no + or #"));
    }
    if topic.contains('\0') {
        return Err((Code::Malformed, "the topic holds U+0000"));
    }
    let Some(properties) = &publish.properties else { return Ok(()) };
    if properties.response_topic.as_deref().is_some_and(is_wild) {
        return Err((Code::Protocol, "a response topic holds no + or #"));
    }
    if properties.texts().any(|text| text.contains('\0')) {
        return Err((Code::Malformed, "a property holds U+0000"));
    }
    Ok(())
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self { code: Code::PayloadFormat, reason: fault.reason, detail: fault.detail }
    }
}

/// What a client said with its DISCONNECT.
#[derive(Debug)]
struct Goodbye {
    with_will: bool,
    expiry_seconds: Option<u32>,
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
    fn new(io: &Stream, keepalive: Seconds, packet: Seconds) -> Self {
        let patience =
            Self { silence: Silence { since: Instant::now(), keepalive }, packet, heard: false, begun: None };
        patience.goes_on_for(io, patience.silence.since);
        patience
    }

    /// The next packet; `None` if the socket takes more again.
    fn poll_packet(
        &mut self,
        io: &Stream,
        wire: &Wire,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Inbound>, End>> {
        loop {
            match io.poll_recv_decode(wire, cx) {
                Ok(decoded) => match decoded.item {
                    Some(packet) => {
                        self.heard = true;
                        return Poll::Ready(Ok(Some(packet)));
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
                    return Poll::Ready(match ready!(io.poll_flush(cx, false)) {
                        Ok(()) => Ok(None),
                        Err(_) => Err(End::Gone),
                    });
                }
                Err(RecvError::Decoder(error)) => return Poll::Ready(Err(End::Wrong(error))),
                Err(RecvError::PeerGone(_)) => return Poll::Ready(Err(End::Gone)),
            }
        }
    }

    /// The silence begins: after all packets that came together, and after this server's own time with them.
    fn waits_for_the_next(&mut self, io: &Stream) {
        if std::mem::take(&mut self.heard) {
            self.silence.since = Instant::now();
            if self.begun.take().is_some() {
                self.goes_on_for(io, self.silence.since);
            }
        }
    }

    fn waits_for_the_rest(&mut self, io: &Stream, bytes: usize) {
        match &mut self.begun {
            Some(begun) => begun.bytes = bytes,
            none => {
                *none = Some(Begun { bytes, bytes_before: bytes });
                io.start_timer(self.packet);
            }
        }
    }

    /// The timer fired: whether to wait on.
    fn goes_on(&mut self, io: &Stream) -> bool {
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
    fn goes_on_for(&self, io: &Stream, now: Instant) -> bool {
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
