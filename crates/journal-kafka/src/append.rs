//! Records on their way to Kafka, in the order of the calls.
//!
//! A batch that there is room for goes to librdkafka within the call, record by record and under its partition's lock,
//! so that batches do not mix. What there is no room for waits in the line of its partition, and whoever comes later,
//! to any partition, waits behind it. The thread that hears of deliveries answers the callers and lets the line move on.
//!
//! The idempotent producer keeps the order and takes out repetitions. When it cannot go on it says so once and for
//! all; then everything under way is answered, its outcome unknown, and a new producer takes its place.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use dunlin_journal::{AppendError, Appended, Entries, Offset};
use dunlin_model::Timestamp;
use rdkafka::{
    ClientConfig, ClientContext, Message,
    config::RDKafkaLogLevel,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, PurgeConfig},
};
use tokio::sync::{oneshot, watch};

use crate::{
    Config, Describe,
    client::{Told, held},
    metrics::Metrics,
    places::Places,
};

const POLL: Duration = Duration::from_millis(100);
/// How long the answers of a producer that is given up are waited for; they are made on the spot.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(10);
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LONGEST: Duration = Duration::from_secs(5);

pub(crate) type Producer = BaseProducer<Deliveries>;

#[derive(Debug)]
pub(crate) struct Appender {
    places: Arc<Places>,
    describe: Describe,
    lanes: Vec<Mutex<Lane>>,
    room: Mutex<Room>,
    emptied: Condvar,
    /// None while a new one is made.
    producer: RwLock<Option<Client>>,
    progress: watch::Sender<u64>,
    metrics: Arc<Metrics>,
}

#[derive(Clone)]
struct Client(Arc<Producer>);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

/// Batches of one partition that there was no room for.
#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Pending>,
}

#[derive(Debug)]
struct Pending {
    records: u32,
    bytes: Bytes,
    reply: Reply,
}

type Reply = oneshot::Sender<Result<Appended, AppendError>>;

#[derive(Debug)]
struct Room {
    bytes_max: usize,
    records_max: usize,
    bytes: usize,
    records: usize,
    /// Batches in all lines.
    waiting: usize,
    closed: bool,
    /// When the last batch was answered, or the first came after there was none.
    moved: Instant,
}

enum Entry {
    Admitted,
    Waits,
    Closed,
}

impl Room {
    fn enter(&mut self, pending: &Pending, must_wait: bool) -> Entry {
        if self.closed {
            return Entry::Closed;
        }
        if must_wait || self.waiting > 0 || !self.fits(pending) {
            self.waiting += 1;
            return Entry::Waits;
        }
        self.take(pending);
        Entry::Admitted
    }

    /// From the line, if there is room now.
    fn advance(&mut self, pending: &Pending) -> bool {
        if !self.fits(pending) {
            return false;
        }
        self.waiting -= 1;
        self.take(pending);
        true
    }

    fn fits(&self, pending: &Pending) -> bool {
        self.records == 0
            || (self.bytes + pending.bytes.len() <= self.bytes_max
                && self.records + pending.records as usize <= self.records_max)
    }

    fn take(&mut self, pending: &Pending) {
        if self.records == 0 {
            self.moved = Instant::now();
        }
        self.bytes += pending.bytes.len();
        self.records += pending.records as usize;
    }

    fn leave(&mut self, under_way: &UnderWay) {
        self.bytes -= under_way.bytes;
        self.records -= under_way.records as usize;
        self.moved = Instant::now();
    }

    fn is_empty(&self) -> bool {
        self.records == 0 && self.waiting == 0
    }
}

/// A batch that librdkafka has.
pub(crate) struct UnderWay {
    appender: Arc<Appender>,
    place: usize,
    records: u32,
    bytes: usize,
    left: AtomicU32,
    first: AtomicU64,
    next: AtomicU64,
    answer: Mutex<Answer>,
}

#[derive(Debug)]
struct Answer {
    error: Option<AppendError>,
    reply: Option<Reply>,
}

impl Appender {
    pub(crate) fn new(
        config: &Config,
        describe: Describe,
        places: Arc<Places>,
        progress: watch::Sender<u64>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let room = Room {
            bytes_max: config.inflight_bytes_max,
            records_max: config.inflight_records_max,
            bytes: 0,
            records: 0,
            waiting: 0,
            closed: false,
            moved: Instant::now(),
        };
        Arc::new(Self {
            lanes: places.row().iter().map(|_| Mutex::default()).collect(),
            places,
            describe,
            room: Mutex::new(room),
            emptied: Condvar::new(),
            producer: RwLock::new(None),
            progress,
            metrics,
        })
    }

    /// Its place among the batches of the partition is decided when this returns.
    pub(crate) fn append(
        self: &Arc<Self>,
        place: usize,
        records: u32,
        bytes: Bytes,
    ) -> oneshot::Receiver<Result<Appended, AppendError>> {
        let (reply, answer) = oneshot::channel();
        let pending = Pending { records, bytes, reply };
        let mut lane = held(&self.lanes[place]);
        let client = self.client();
        let must_wait = client.is_none() || !lane.waiting.is_empty();
        let entry = held(&self.room).enter(&pending, must_wait);
        match (entry, client) {
            (Entry::Admitted, Some(client)) => self.send(&client, place, pending),
            (Entry::Closed, _) => {
                let _gone = pending.reply.send(Err(AppendError::Closed));
            }
            _ => {
                lane.waiting.push_back(pending);
                drop(lane);
                // Room may have come between the look and the line.
                self.advance();
            }
        }
        answer
    }

    /// Lets in what waits, as far as there is room.
    fn advance(self: &Arc<Self>) {
        let Some(client) = self.client() else { return };
        for (place, lane) in self.lanes.iter().enumerate() {
            let mut lane = held(lane);
            while let Some(pending) = lane.waiting.front() {
                if !held(&self.room).advance(pending) {
                    return;
                }
                if let Some(pending) = lane.waiting.pop_front() {
                    self.send(&client, place, pending);
                }
            }
        }
    }

    /// Under the lock of its lane, so that the records of a batch stand together.
    fn send(self: &Arc<Self>, client: &Client, place: usize, pending: Pending) {
        let to = &self.places.row()[place];
        let Pending { records, bytes, reply } = pending;
        let under_way = Arc::new(UnderWay {
            appender: Arc::clone(self),
            place,
            records,
            bytes: bytes.len(),
            left: AtomicU32::new(records),
            first: AtomicU64::new(u64::MAX),
            next: AtomicU64::new(0),
            answer: Mutex::new(Answer { error: None, reply: Some(reply) }),
        });
        let entries = Entries::new(Offset::ZERO, records, Timestamp::from_micros(0), bytes, Offset::ZERO);
        let mut key = Vec::new();
        let mut sent = 0;
        for entry in entries.iter() {
            key.clear();
            let mut record = BaseRecord::<[u8], [u8], _>::with_opaque_to(&to.topic, Arc::clone(&under_way))
                .partition(to.partition())
                .payload(entry.bytes);
            if let Some(labels) = (self.describe)(to.at.topic, entry.bytes) {
                labels.key_into(&mut key);
                record = record.headers(labels.headers());
            }
            if !key.is_empty() {
                record = record.key(&key);
            }
            if let Err((error, _)) = client.0.send(record) {
                under_way.fail(failure(&error));
                break;
            }
            sent += 1;
        }
        // Those that were not sent will not be heard of. Whoever calls this looks after the line.
        self.settled(&under_way, records - sent);
    }

    /// Some more records have come to their end; whether somebody waits who may now go on.
    fn settled(&self, under_way: &UnderWay, records: u32) -> bool {
        if records == 0 || under_way.left.fetch_sub(records, Ordering::AcqRel) > records {
            return false;
        }
        let mut answer = held(&under_way.answer);
        let (error, reply) = (answer.error.take(), answer.reply.take());
        drop(answer);
        let first = Offset(under_way.first.load(Ordering::Acquire));
        // Also after a failure: some of it may be there.
        self.places.row()[under_way.place].reaches(Offset(under_way.next.load(Ordering::Acquire)));
        let outcome = match error {
            Some(error) => {
                self.metrics.failed(&error, under_way.records);
                Err(error)
            }
            None => {
                self.metrics.appended(under_way.records, under_way.bytes);
                Ok(Appended { first, records: under_way.records })
            }
        };
        let mut room = held(&self.room);
        room.leave(under_way);
        self.metrics.under_way(room.bytes, room.records, room.waiting);
        if room.is_empty() {
            self.emptied.notify_all();
        }
        let somebody_waits = room.waiting > 0;
        drop(room);
        if let Some(reply) = reply {
            let _gone = reply.send(outcome);
        }
        self.progress.send_modify(|n| *n += 1);
        somebody_waits
    }

    /// One that can go on: the line waits for the next where this one cannot.
    fn client(&self) -> Option<Client> {
        let client = self.producer.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        client.filter(|client| client.0.client().fatal_error().is_none())
    }

    fn set_client(&self, client: Option<Client>) {
        *self.producer.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = client;
    }

    pub(crate) fn close(&self) {
        self.room().closed = true;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.room().closed
    }

    /// Waits until nothing is under way; whether that came about in time.
    pub(crate) fn emptied(&self, within: Duration) -> bool {
        let waited = self.emptied.wait_timeout_while(self.room(), within, |room| !room.is_empty());
        waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0.is_empty()
    }

    /// For how long nothing has been answered though something is under way.
    pub(crate) fn stuck_for(&self) -> Duration {
        let room = self.room();
        if room.is_empty() { Duration::ZERO } else { room.moved.elapsed() }
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        held(&self.room)
    }

    /// The thread that hears of deliveries. Ends when it is told to, and answers what is under way then.
    pub(crate) fn run(
        self: &Arc<Self>,
        make: impl Fn() -> KafkaResult<Producer>,
        first: Producer,
        stop: &AtomicBool,
    ) {
        let mut client = Client(Arc::new(first));
        let mut pause = PAUSE_FIRST;
        loop {
            self.set_client(Some(client.clone()));
            self.advance();
            let fatal = hear(&client.0, stop);
            self.set_client(None);
            give_up(client);
            let Some(reason) = fatal else { break };
            tracing::error!(
                reason,
                ?pause,
                "the producer cannot go on; what was under way has an unknown outcome"
            );
            self.metrics.producers_lost.inc();
            client = loop {
                thread::sleep(pause);
                pause = (pause * 2).min(PAUSE_LONGEST);
                match make() {
                    Ok(producer) => break Client(Arc::new(producer)),
                    Err(_) if stop.load(Ordering::Acquire) => return self.refuse_waiting(),
                    Err(error) => tracing::error!(%error, "no new producer"),
                }
            };
        }
        self.refuse_waiting();
    }

    fn refuse_waiting(&self) {
        for lane in &self.lanes {
            for pending in held(lane).waiting.drain(..) {
                self.room().waiting -= 1;
                let _gone = pending.reply.send(Err(AppendError::Closed));
            }
        }
        self.emptied.notify_all();
    }
}

/// Serves deliveries until it is told to stop, or why the producer cannot go on.
fn hear(producer: &Producer, stop: &AtomicBool) -> Option<String> {
    while !stop.load(Ordering::Acquire) {
        producer.poll(POLL);
        if let Some((code, reason)) = producer.client().fatal_error() {
            return Some(format!("{code}: {reason}"));
        }
    }
    None
}

/// Answers all that a producer has, and waits for those who are just using it.
fn give_up(client: Client) {
    client.0.purge(PurgeConfig::default().queue().inflight());
    let deadline = Instant::now() + GIVEN_UP_WITHIN;
    while (Arc::strong_count(&client.0) > 1 || client.0.in_flight_count() > 0) && Instant::now() < deadline {
        client.0.poll(Duration::from_millis(1));
        client.0.purge(PurgeConfig::default().queue().inflight());
    }
}

impl UnderWay {
    fn delivered(&self, offset: i64) {
        match u64::try_from(offset) {
            Ok(offset) => {
                self.first.fetch_min(offset, Ordering::AcqRel);
                self.next.fetch_max(offset + 1, Ordering::AcqRel);
            }
            Err(_) => self.fail(AppendError::Unreachable {
                reason: "the broker has had the record before and does not say where it is".into(),
            }),
        }
    }

    fn fail(&self, error: AppendError) {
        held(&self.answer).error.get_or_insert(error);
    }
}

fn failure(error: &KafkaError) -> AppendError {
    let reason = error.to_string();
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::PurgeInflight | RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::Fatal) => {
            AppendError::Fenced { operation: "produce", reason }
        }
        _ => AppendError::Unreachable { reason },
    }
}

/// What librdkafka calls back.
#[derive(Debug, Default)]
pub(crate) struct Deliveries(Told);

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Arc<UnderWay>;

    fn delivery(&self, result: &DeliveryResult<'_>, under_way: Arc<UnderWay>) {
        match result {
            Ok(message) => under_way.delivered(message.offset()),
            Err((error, _)) => under_way.fail(failure(error)),
        }
        if under_way.appender.settled(&under_way, 1) {
            under_way.appender.advance();
        }
    }
}

/// A producer that acknowledges what all in-sync replicas have.
pub(crate) fn producer(
    client: &ClientConfig,
    config: &Config,
    message_bytes_max: usize,
) -> KafkaResult<Producer> {
    let mut client = client.clone();
    client.set("acks", "all").set("enable.idempotence", "true");
    client.set("message.timeout.ms", (config.delivery_seconds_max * 1000).to_string());
    client.set("request.timeout.ms", (config.request_seconds_max * 1000).to_string());
    client.set("retry.backoff.ms", "50").set("retry.backoff.max.ms", "500");
    client.set("topic.metadata.refresh.fast.interval.ms", "100");
    client.set("linger.ms", (config.linger_micros as f64 / 1000.0).to_string());
    client.set("compression.type", config.compression.name());
    client.set("message.max.bytes", message_bytes_max.to_string());
    client.set("batch.size", BATCH_SIZE.min(message_bytes_max).to_string());
    client.set("batch.num.messages", "10000");
    // Bounded here, by `inflight_bytes_max` and `inflight_records_max`; librdkafka must not refuse what was let in.
    client.set("queue.buffering.max.messages", "0").set("queue.buffering.max.kbytes", i32::MAX.to_string());
    client.create_with_context(Deliveries::default())
}

const BATCH_SIZE: usize = 1_000_000;

/// The size of the largest record of a batch, if that is more than one may have.
pub(crate) fn too_large(batch: &[u8], record_bytes_max: usize) -> Option<usize> {
    if batch.len() <= record_bytes_max {
        return None; // The whole is never smaller than its largest record.
    }
    let (mut rest, mut largest) = (batch, 0);
    while let Some((len, tail)) = rest.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        largest = largest.max(len);
        rest = tail.get(len..).unwrap_or_default();
    }
    (largest > record_bytes_max).then_some(largest)
}

#[cfg(test)]
mod tests;
