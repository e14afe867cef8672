//! One thread's share of the front door: its connections, and what they have in common.

use std::{
    cell::Cell,
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use dunlin_broker::Home;
use dunlin_journal::{Journal, Topic};
use dunlin_model::{Clock, EventKind, Slot};
use ntex::channel::condition::Condition;
use tokio::sync::mpsc;

use crate::{
    admissions::Admissions,
    append::Appender,
    config::Config,
    connection::{Connection, Connections},
    delivery::Inbox,
    directory::{Admitted, Directory},
    guard::Guard,
    http::HttpRoom,
    logs::LogBudget,
    metrics::Books,
    pubsub::PubSub,
    record::{self, Origin},
    sessions::{Ending, Order, Orders, Sessions},
    share::Shares,
    wire::Code,
};

/// What all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    /// Asked once: the system reads files to tell how many cores there are.
    pub(crate) worker_count: usize,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) clock: Clock,
    pub(crate) books: Books,
    pub(crate) guard: Guard,
    pub(crate) admissions: Admissions,
    pub(crate) sessions: Sessions,
    pub(crate) pubsub: Arc<PubSub>,
    pub(crate) workers: Mutex<BTreeMap<usize, Orders>>,
    pub(crate) connections: AtomicUsize,
    connection_ids: AtomicU64,
    client_ids: String,
    /// Bytes that HTTP requests may still bring.
    pub(crate) http_room: HttpRoom,
    http_logs: Mutex<LogBudget>,
}

impl Shared {
    pub(crate) fn new(
        config: Config,
        journal: Arc<dyn Journal>,
        pubsub: Arc<PubSub>,
        directory: Arc<dyn Directory>,
        clock: Clock,
        books: Books,
    ) -> Self {
        let http_room = HttpRoom::new(&config);
        let guard = Guard::new(config.guard.within(config.handshake_seconds_max), clock.clone());
        let admissions = Admissions::new(&config.admission, directory.clone(), clock.clone());
        let client_ids = format!("dunlin-{:x}-", clock.now().as_micros());
        Self {
            worker_count: config.worker_count(),
            config,
            journal,
            directory,
            clock,
            books,
            guard,
            admissions,
            sessions: pubsub.seats.clone(),
            workers: Mutex::default(),
            connections: AtomicUsize::new(0),
            connection_ids: AtomicU64::new(pubsub.first_connection()),
            pubsub,
            client_ids,
            http_room,
            http_logs: Mutex::new(LogBudget::new()),
        }
    }

    /// MQTT connections, also those that have not said who they are.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    pub(crate) fn http_logs(&self) -> MutexGuard<'_, LogBudget> {
        self.http_logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn next_connection_id(&self) -> u64 {
        self.connection_ids.fetch_add(1, Relaxed)
    }

    /// A client id for a client that brought none; other processes and earlier runs give others.
    pub(crate) fn client_id(&self, connection: u64) -> String {
        format!("{}{connection}", self.client_ids)
    }
}

pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) appender: Rc<Appender>,
    pub(crate) orders: Orders,
    /// Where sessions say that there is something to be sent.
    pub(crate) inbox: Arc<dyn Home>,
    pub(crate) connections: Connections,
    pub(crate) shares: Shares,
    pub(crate) logs: Rc<LogBudget>,
    leaving: Cell<bool>,
    emptied: Condition<()>,
}

impl Worker {
    /// To be called on the worker's own thread; its tasks live there.
    pub(crate) fn start(shared: Arc<Shared>) -> Rc<Self> {
        let (orders, mailbox) = mpsc::unbounded_channel();
        let logs = Rc::new(LogBudget::new());
        let inflight_bytes_max = (shared.config.inflight_bytes_max / shared.worker_count).max(1);
        let appender = Rc::new(Appender::new(
            shared.journal.clone(),
            shared.pubsub.clone(),
            shared.clock.clone(),
            shared.config.time.clone(),
            inflight_bytes_max,
            &shared.books,
            logs.clone(),
        ));
        {
            let mut workers = shared.workers.lock().unwrap_or_else(PoisonError::into_inner);
            let number = workers.len();
            workers.insert(number, orders.clone());
        }
        let inbox = Arc::new(Inbox::default());
        let worker = Rc::new(Self {
            shared,
            appender: appender.clone(),
            orders,
            inbox: inbox.clone(),
            connections: Connections::default(),
            shares: Shares::new(inflight_bytes_max),
            logs,
            leaving: Cell::new(false),
            emptied: Condition::new(),
        });
        ntex::rt::spawn(appender.run());
        ntex::rt::spawn(worker.clone().obey(mailbox));
        ntex::rt::spawn(worker.clone().deliver_always(inbox));
        worker
    }

    /// Whether the doors are closed: what comes now is not read any more.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.get()
    }

    async fn obey(self: Rc<Self>, mut mailbox: mpsc::UnboundedReceiver<Order>) {
        while let Some(order) = mailbox.recv().await {
            match order {
                Order::Finish { connection, ending } => self.finish(connection, ending),
                Order::Leave { left } => {
                    self.leave().await;
                    let _nobody_waits = left.send(());
                }
            }
        }
    }

    fn finish(&self, connection: u64, Ending { code, why }: Ending) {
        self.appender.hurry(); // Its seat is wanted.
        let connection = self.connections.borrow().get(&connection).cloned();
        if let Some(connection) = connection {
            connection.finish(code, why);
        }
    }

    /// The stop, in the order of the promise: read no more, acknowledge what is durable, say goodbye.
    async fn leave(&self) {
        self.leaving.set(true);
        self.appender.drained().await;
        let all: Vec<Rc<Connection>> = self.connections.borrow().values().cloned().collect();
        for connection in all {
            connection.finish(Code::ShuttingDown, "the server is shutting down");
        }
        while !self.connections.borrow().is_empty() {
            self.emptied.wait().await;
        }
        self.appender.drained().await; // The events of the disconnects.
    }

    pub(crate) fn enters(&self, connection: &Rc<Connection>) {
        self.connections.borrow_mut().insert(connection.id, connection.clone());
        connection.account.enters();
        self.shared.books.metrics.connections.inc();
    }

    pub(crate) fn leaves(&self, connection: &Connection) {
        self.connections.borrow_mut().remove(&connection.id);
        self.shares.leave(&connection.share);
        connection.account.leaves();
        self.shared.books.metrics.connections.dec();
        if self.connections.borrow().is_empty() {
            self.emptied.notify();
        }
    }

    /// Tells the journal that a device came or went.
    pub(crate) fn event(&self, who: &Admitted, kind: EventKind, detail: String) {
        let slot = Slot::of(&who.tenant, &who.device);
        let record = record::event(Origin::from(who), kind, detail, self.appender.now());
        self.appender.unhurried(self.appender.lane(Topic::Events, slot), &record);
    }
}
