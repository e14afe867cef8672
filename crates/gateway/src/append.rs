//! Records of one worker on their way into the journal.
//!
//! A worker is one thread. Publishes that are read in one turn of it are encoded one after the other into one open
//! batch per partition; when the turn's reads are done the batches go to the journal together. While the journal
//! is busy the next batches grow: load forms its own group commits, and an idle worker waits for nobody.
//! Whoever waits is a range in a connection's queue, so a message costs no task, no channel and no allocation.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bumpalo::Bump;
use dunlin_journal::{AppendError, Appended, Batch, Journal, Partition, Topic};
use dunlin_model::{Clock, Slot, TimePolicy, Timestamp};
use futures::future::BoxFuture;
use ntex::{channel::condition::Condition, task::LocalWaker, time::sleep};
use smallvec::SmallVec;

use crate::{
    account::{Class, TenantAccount},
    arrivals::{Arrivals, Arriving},
    connection::Connection,
    decode::Fault,
    logs::LogBudget,
    metrics::{Books, Metrics},
    pubsub::PubSub,
    record::{Arrival, Delivery, Origin, append_telemetry},
};

/// An open batch of this size is closed, and the next one begun.
pub(crate) const BATCH_BYTES_TARGET: usize = 1 << 20;
/// Appends of one worker that may be under way in one partition: one that is being written, one that waits for it.
const LANE_APPENDS_MAX: usize = 2;
/// How long a record that nobody waits for may wait for others: alone it would cost a sync of its own.
const UNHURRIED_WAIT: Duration = Duration::from_millis(50);
/// What the arena of escaped strings may keep between messages.
const ARENA_BYTES_KEPT_MAX: usize = 64 << 10;

/// Where records of one device and topic go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lane(u16);

pub(crate) struct Appender {
    journal: Arc<dyn Journal>,
    pubsub: Arc<PubSub>,
    clock: Clock,
    policy: TimePolicy,
    metrics: Arc<Metrics>,
    arrivals: Arrivals,
    logs: Rc<LogBudget>,
    lanes: RefCell<Box<[LaneState]>>,
    arena: RefCell<Bump>,
    turn: Cell<Option<Timestamp>>,
    inflight_bytes: Cell<usize>,
    inflight_bytes_max: usize,
    room: Condition<()>,
    idle: Condition<()>,
    handed: Condition<()>,
    flush_wanted: Cell<bool>,
    flusher: LocalWaker,
    /// Somebody will be in a hurry.
    unhurried: Cell<bool>,
    all_due: Cell<bool>,
}

struct LaneState {
    at: Partition,
    open: Open,
    /// `open` holds something to be handed over at the end of the turn.
    due: bool,
    closed: VecDeque<Open>,
    appends: usize,
    /// Batches that were handed to the journal since the start.
    handed: u64,
}

/// A batch, who waits for it, and what it counts as.
#[derive(Default)]
struct Open {
    batch: Batch,
    waiting: Vec<Waiting>,
    tallies: SmallVec<[Tally; 2]>,
    /// Of telemetry, from its first record on.
    arriving: Option<Arriving>,
}

/// An append that the journal has not answered yet.
struct UnderWay {
    lane: usize,
    at: Partition,
    bytes: usize,
    waiting: Vec<Waiting>,
    tallies: SmallVec<[Tally; 2]>,
    arriving: Option<Arriving>,
}

/// `count` entries of a connection's queue, from number `first` on, and all that the connection has in the batch.
struct Waiting {
    connection: Rc<Connection>,
    first: u32,
    count: u32,
    bytes: usize,
}

struct Tally {
    account: Arc<TenantAccount>,
    class: Class,
    records: u64,
}

/// The connection that a record came by, and the number of the answer if it expects one.
pub(crate) type Waits<'a> = Option<(&'a Rc<Connection>, Option<u32>)>;

/// Who a record is counted for.
pub(crate) type Counted<'a> = Option<(&'a Arc<TenantAccount>, Class)>;

impl Appender {
    pub(crate) fn new(
        journal: Arc<dyn Journal>,
        pubsub: Arc<PubSub>,
        clock: Clock,
        policy: TimePolicy,
        inflight_bytes_max: usize,
        books: &Books,
        logs: Rc<LogBudget>,
    ) -> Self {
        let lanes = TOPICS
            .into_iter()
            .flat_map(|topic| (0..journal.partitions(topic)).map(move |index| Partition::new(topic, index)))
            .map(LaneState::new)
            .collect();
        Self {
            journal,
            pubsub,
            clock,
            policy,
            metrics: books.metrics.clone(),
            arrivals: books.arrivals.clone(),
            logs,
            lanes: RefCell::new(lanes),
            arena: RefCell::new(Bump::new()),
            turn: Cell::new(None),
            inflight_bytes: Cell::new(0),
            inflight_bytes_max,
            room: Condition::new(),
            idle: Condition::new(),
            handed: Condition::new(),
            flush_wanted: Cell::new(false),
            flusher: LocalWaker::new(),
            unhurried: Cell::new(false),
            all_due: Cell::new(false),
        }
    }

    pub(crate) fn lane(&self, topic: Topic, slot: Slot) -> Lane {
        self.lane_of(Partition::new(topic, slot.partition(self.journal.partitions(topic))))
    }

    pub(crate) fn lane_of(&self, at: Partition) -> Lane {
        let before: u16 =
            TOPICS.into_iter().take_while(|t| *t != at.topic).map(|t| self.journal.partitions(t)).sum();
        Lane(before + at.index)
    }

    /// When this turn of the worker began.
    pub(crate) fn now(&self) -> Timestamp {
        if let Some(now) = self.turn.get() {
            return now;
        }
        let now = self.clock.now();
        self.turn.set(Some(now));
        self.want_flush();
        now
    }

    /// Decodes a telemetry message into its batch. On a fault nothing was added.
    pub(crate) fn telemetry(
        &self,
        lane: Lane,
        payload: &[u8],
        origin: Origin<'_>,
        delivery: Delivery,
        account: &Arc<TenantAccount>,
        waits: Waits<'_>,
    ) -> Result<(), Fault> {
        let arrival = Arrival { received_at: self.now(), policy: &self.policy };
        let arena = &mut *self.arena.borrow_mut();
        let lanes = &mut *self.lanes.borrow_mut();
        let state = &mut lanes[usize::from(lane.0)];
        let before = state.open.batch.size_bytes();
        let added = append_telemetry(payload, origin, delivery, arrival, arena, &mut state.open.batch);
        if arena.allocated_bytes() > ARENA_BYTES_KEPT_MAX {
            *arena = Bump::new();
        } else if arena.allocated_bytes() > 0 {
            arena.reset();
        }
        self.added(state, before, Some((account, Class::Telemetry)), added? as u64, waits);
        state.due = true;
        Ok(())
    }

    /// Adds one record that is encoded already.
    pub(crate) fn record(&self, lane: Lane, record: &[u8], counted: Counted<'_>, waits: Waits<'_>) {
        let lanes = &mut *self.lanes.borrow_mut();
        let state = &mut lanes[usize::from(lane.0)];
        let before = state.open.batch.size_bytes();
        state.open.batch.push(record);
        self.added(state, before, counted, 1, waits);
        state.due = true;
    }

    /// Adds one record that nobody waits for, and that goes with others.
    pub(crate) fn unhurried(self: &Rc<Self>, lane: Lane, record: &[u8]) {
        let lanes = &mut *self.lanes.borrow_mut();
        let state = &mut lanes[usize::from(lane.0)];
        let before = state.open.batch.size_bytes();
        state.open.batch.push(record);
        self.added(state, before, None, 1, None);
        if !self.unhurried.replace(true) {
            let appender = self.clone();
            ntex::rt::spawn(async move {
                sleep(UNHURRIED_WAIT).await;
                appender.unhurried.set(false);
                appender.hurry();
            });
        }
    }

    fn added(
        &self,
        lane: &mut LaneState,
        bytes_before: usize,
        counted: Counted<'_>,
        records: u64,
        waits: Waits<'_>,
    ) {
        let open = &mut lane.open;
        if lane.at.topic == Topic::Telemetry && open.arriving.is_none() && open.batch.size_bytes() > 0 {
            open.arriving = Some(self.arrivals.begin(self.now()));
        }
        if let Some((account, class)) = counted {
            open.tally(account, class, records);
        }
        let bytes = open.batch.size_bytes() - bytes_before;
        if let Some((connection, number)) = waits {
            open.wait(connection, number, bytes);
            connection.took(bytes);
        }
        self.inflight_bytes.set(self.inflight_bytes.get() + bytes);
        if open.batch.size_bytes() >= BATCH_BYTES_TARGET {
            lane.closed.push_back(std::mem::take(&mut lane.open));
        }
        self.want_flush();
    }

    /// Hands over what is there, at the end of this turn.
    pub(crate) fn hurry(&self) {
        self.all_due.set(true);
        self.want_flush();
    }

    fn want_flush(&self) {
        if !self.flush_wanted.replace(true) {
            self.flusher.wake();
        }
    }

    /// Whether connections may be read.
    pub(crate) fn has_room(&self) -> bool {
        self.inflight_bytes.get() < self.inflight_bytes_max
    }

    pub(crate) async fn room(&self) {
        while !self.has_room() {
            self.room.wait().await;
        }
    }

    /// Until nothing is under way any more.
    pub(crate) async fn drained(&self) {
        self.hurry();
        while self.inflight_bytes.get() > 0 {
            self.idle.wait().await;
        }
    }

    /// Until all that was added up to now has its place in the log; for what is in no hurry that takes its time.
    pub(crate) async fn handed_over(&self) {
        let ahead: Vec<u64> = self.lanes.borrow().iter().map(LaneState::filled).collect();
        let is_over =
            |lanes: &[LaneState]| lanes.iter().zip(&ahead).all(|(lane, ahead)| lane.handed >= *ahead);
        while !is_over(&self.lanes.borrow()) {
            self.handed.wait().await;
        }
    }

    /// Hands batches over after every turn that filled some. Its task is woken by the first record of a turn, and
    /// so runs after the connections that were ready in that turn.
    pub(crate) async fn run(self: Rc<Self>) {
        loop {
            poll_fn(|cx| {
                self.flusher.register(cx.waker());
                if self.flush_wanted.replace(false) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            self.turn.set(None);
            self.hand_over();
            self.handed.notify();
            self.metrics.inflight_bytes.set(self.inflight_bytes.get() as i64);
        }
    }

    fn hand_over(self: &Rc<Self>) {
        let all_due = self.all_due.replace(false);
        let (mut batches, mut under_way) = (Vec::new(), Vec::new());
        for (index, lane) in self.lanes.borrow_mut().iter_mut().enumerate() {
            lane.due |= all_due;
            while lane.appends < LANE_APPENDS_MAX {
                let Some(open) = lane.next() else { break };
                lane.appends += 1;
                lane.handed += 1;
                let at = lane.at;
                let Open { batch, waiting, tallies, arriving } = open;
                let bytes = batch.size_bytes();
                for tally in &tallies {
                    tally.account.received(tally.records);
                }
                batches.push((at, batch));
                under_way.push(UnderWay { lane: index, at, bytes, waiting, tallies, arriving });
            }
        }
        if batches.is_empty() {
            return;
        }
        // The order of these calls is the order in the log; only the answers are awaited elsewhere.
        for (under_way, appending) in under_way.into_iter().zip(self.journal.append_all(batches)) {
            let appender = self.clone();
            ntex::rt::spawn(async move { appender.answer(under_way, appending).await });
        }
    }

    async fn answer(
        self: Rc<Self>,
        under_way: UnderWay,
        appending: BoxFuture<'static, Result<Appended, AppendError>>,
    ) {
        let UnderWay { lane, at, bytes, waiting, tallies, arriving } = under_way;
        let began = Instant::now();
        let outcome = appending.await.map(drop);
        drop(arriving);
        self.metrics.append_seconds.observe(began.elapsed().as_secs_f64());
        self.metrics.payload_bytes.inc_by(bytes as u64);
        if let Err(error) = &outcome
            && self.logs.allow()
        {
            tracing::error!(partition = %at, %error, "append failed, nothing of the batch is acknowledged");
        }
        if at.topic == Topic::Sessions {
            self.pubsub.appended();
        }
        for tally in &tallies {
            match outcome {
                Ok(()) => tally.account.durable(tally.class, tally.records),
                Err(_) => tally.account.failed(tally.records),
            }
        }
        for waiting in waiting {
            waiting.connection.landed(waiting.bytes);
            waiting.connection.resolve(waiting.first, waiting.count, outcome.as_ref().copied());
        }
        self.ended(lane, bytes);
    }

    fn ended(&self, lane: usize, bytes: usize) {
        self.lanes.borrow_mut()[lane].appends -= 1;
        let had_room = self.has_room();
        self.inflight_bytes.set(self.inflight_bytes.get() - bytes);
        if !had_room && self.has_room() {
            self.room.notify();
        }
        if self.inflight_bytes.get() == 0 {
            self.idle.notify();
        }
        self.want_flush();
    }
}

/// What a gateway writes, in the order of its lanes.
const TOPICS: [Topic; 5] =
    [Topic::Telemetry, Topic::Events, Topic::Rejected, Topic::Sessions, Topic::CommandReplies];

/// What became of a batch.
pub(crate) type Outcome<'a> = Result<(), &'a AppendError>;

impl LaneState {
    fn new(at: Partition) -> Self {
        Self { at, open: Open::default(), due: false, closed: VecDeque::new(), appends: 0, handed: 0 }
    }

    /// How many batches there are when all that it holds is handed over.
    fn filled(&self) -> u64 {
        self.handed + self.closed.len() as u64 + u64::from(self.open.batch.size_bytes() > 0)
    }

    fn next(&mut self) -> Option<Open> {
        self.closed.pop_front().or_else(|| {
            let capacity = self.open.batch.size_bytes();
            (self.due && capacity > 0).then(|| {
                self.due = false;
                let next = Open { batch: Batch::with_capacity(capacity), ..Open::default() };
                std::mem::replace(&mut self.open, next)
            })
        })
    }
}

impl Open {
    fn tally(&mut self, account: &Arc<TenantAccount>, class: Class, records: u64) {
        let same = |t: &&mut Tally| t.class == class && Arc::ptr_eq(&t.account, account);
        match self.tallies.iter_mut().rev().find(same) {
            Some(tally) => tally.records += records,
            None => self.tallies.push(Tally { account: account.clone(), class, records }),
        }
    }

    fn wait(&mut self, connection: &Rc<Connection>, number: Option<u32>, bytes: usize) {
        let follows = |last: &&mut Waiting| {
            let next = |number| last.count == 0 || last.first.wrapping_add(last.count) == number;
            Rc::ptr_eq(&last.connection, connection) && number.is_none_or(next)
        };
        match self.waiting.last_mut().filter(follows) {
            Some(last) => {
                if last.count == 0 {
                    last.first = number.unwrap_or_default();
                }
                last.count += u32::from(number.is_some());
                last.bytes += bytes;
            }
            None => self.waiting.push(Waiting {
                connection: connection.clone(),
                first: number.unwrap_or_default(),
                count: number.is_some().into(),
                bytes,
            }),
        }
    }
}
