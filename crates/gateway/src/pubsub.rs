//! Pub/sub and the log: what must survive a crash is appended to the `sessions` topic, and applied from there.

mod commands; // what devices are asked to do
mod place; // one partition of it
mod snapshots; // what a start reads
mod waiting; // until something is applied

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Release},
    },
    thread::JoinHandle,
    time::Duration,
};

use commands::Carrier;
use dunlin_broker::{Broker, Change, DamagedSnapshot, Limits, Session, is_of_commands};
use dunlin_journal::{
    AppendError, Appended, Batch, Journal, Membership, Offset, Partition, ReadError, Topic, Turn,
};
use dunlin_model::{Clock, chain};
use futures::{FutureExt, future::BoxFuture};
use place::{Place, TICK};
use tokio::sync::{Notify, watch};
use waiting::Waiting;

use crate::{
    company::{Company, Lease, Wishes},
    sessions::{Access, Sessions},
    statistics::Statistics,
};

/// As whom the journal knows how far the snapshots are. Of several gateways one has each partition: it writes the
/// snapshots, and says what time has brought.
const CONSUMER: &str = "sessions";
const READ_BYTES_MAX: usize = 1 << 20;
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(1);

/// The sessions cannot be brought back.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error(
        "{path}; restore it from a copy, or move it away to start with the sessions that the journal still holds"
    )]
    Snapshot { path: PathBuf, source: DamagedSnapshot },
    #[error("read or write {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("read the journal's sessions")]
    Read(#[from] ReadError),
    #[error("start the thread of the sessions")]
    Thread(#[source] io::Error),
    #[error("the thread of the sessions ended")]
    Ended,
    #[error(
        "{directory} has sessions up to {kept}, and the journal begins at {oldest}: it must be the directory that all gateways share"
    )]
    Missing { directory: PathBuf, kept: u64, oldest: Offset },
    #[error("{directory} has sessions up to {kept}, and the journal ends at {next}")]
    Ahead { directory: PathBuf, kept: u64, next: Offset },
}

/// Filters of one record: with many it would be more than the journal takes.
const RECORD_FILTER_BYTES_MAX: usize = 64 << 10;

/// Pub/sub of all tenants, and its place in the log.
#[derive(Debug)]
pub(crate) struct PubSub {
    pub(crate) broker: Broker,
    /// Which connection has which client id.
    pub(crate) seats: Sessions,
    journal: Arc<dyn Journal>,
    /// As the other gateways know this one.
    name: String,
    lease: Lease,
    wishes: Wishes,
    followed: Box<[Followed]>,
    /// Something was appended, or the end has come.
    news: Notify,
    /// A client was let go somewhere.
    let_go: Notify,
    /// Why the journal has not taken this gateway's word that it is there.
    not_there: Mutex<Option<AppendError>>,
    /// How far the log has this gateway.
    standing: watch::Sender<Standing>,
    /// To take back what was taken back elsewhere.
    access: OnceLock<Access>,
    stopping: AtomicBool,
}

/// How a gateway stands with those that share the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The journal has not taken it yet.
    Coming,
    There,
    /// The others go on without it.
    Gone,
}

/// How far one partition is applied, and who waits for more.
#[derive(Debug, Default)]
struct Followed {
    applied: AtomicU64,
    waiting: Waiting,
    /// For the other gateways.
    elsewhere: Waiting,
}

/// The thread that applies the log.
#[derive(Debug)]
pub(crate) struct Follower {
    pubsub: Arc<PubSub>,
    thread: JoinHandle<()>,
}

impl PubSub {
    fn new(journal: Arc<dyn Journal>, limits: Limits, company: &Company) -> Self {
        let partitions = journal.partitions(Topic::Sessions);
        Self {
            broker: Broker::new(partitions, limits),
            seats: Sessions::default(),
            journal,
            name: company.name().to_owned(),
            lease: Lease::new(company),
            wishes: Wishes::default(),
            followed: (0..partitions).map(|_| Followed::default()).collect(),
            news: Notify::new(),
            let_go: Notify::new(),
            not_there: Mutex::default(),
            standing: watch::Sender::new(Standing::Coming),
            access: OnceLock::new(),
            stopping: AtomicBool::new(false),
        }
    }

    /// Whether other gateways may share the journal.
    pub(crate) fn has_company(&self) -> bool {
        self.lease.beat().is_some()
    }

    /// Whether what is known here says all about who wants a message. If not, it goes by the log.
    pub(crate) fn knows_all(&self) -> bool {
        self.lease.holds()
    }

    /// The first connection of this gateway, as all gateways count them.
    pub(crate) fn first_connection(&self) -> u64 {
        self.broker.me().map_or(1, |me| me.connection(1))
    }

    /// From here on access is taken back here, too, when another process takes it back.
    pub(crate) fn takes_back(&self, access: Access) {
        // There is one gateway, which says this once.
        let _ = self.access.set(access);
    }

    /// Comes back when the other gateways have gone on without this one.
    pub(crate) async fn left_behind(&self) {
        let mut standing = self.standing.subscribe();
        if standing.wait_for(|standing| *standing == Standing::Gone).await.is_err() {
            std::future::pending().await
        }
    }

    pub(crate) fn partition_of(&self, tenant: &str) -> Partition {
        Partition::new(Topic::Sessions, self.broker.partition_of(tenant))
    }

    /// Logs a change, and returns its offset once it is durable and applied.
    pub(crate) async fn commit(&self, tenant: &str, change: &Change<'_>) -> Result<u64, AppendError> {
        self.is_there()?;
        let at = self.partition_of(tenant);
        let offset = self.append(at, [change]).await?.first.0;
        self.news.notify_one();
        self.applied(at, offset + 1).await.map(|()| offset)
    }

    /// Logs changes that nobody waits to see applied.
    pub(crate) async fn log(&self, tenant: &str, changes: &[Change<'_>]) -> Result<(), AppendError> {
        self.append(self.partition_of(tenant), changes).await?;
        self.news.notify_one();
        Ok(())
    }

    /// The same of a change that every gateway must know before it holds: comes back when each has said so, or is gone.
    pub(crate) async fn commit_everywhere(
        &self,
        tenant: &str,
        change: &Change<'_>,
    ) -> Result<(), AppendError> {
        let offset = self.commit(tenant, change).await?;
        self.known_everywhere(self.partition_of(tenant), offset + 1).await
    }

    fn append<'c, 'a: 'c>(
        &self,
        at: Partition,
        changes: impl IntoIterator<Item = &'c Change<'a>>,
    ) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let mut batch = Batch::default();
        for change in changes {
            batch.push_with(|out| change.encode(out));
        }
        self.journal.append(at, batch)
    }

    /// A client whose session is in no log wants what these filters match, which it did not before. Comes back when
    /// every gateway knows.
    pub(crate) async fn wants(&self, tenant: &str, filters: &[&str]) -> Result<(), AppendError> {
        let Some(gateway) = self.broker.me().filter(|_| self.has_company()) else { return Ok(()) };
        self.is_there()?;
        let at = self.partition_of(tenant);
        // Commands go by the log in any case.
        let filters: Vec<&str> = filters.iter().filter(|filter| !is_of_commands(filter)).copied().collect();
        if filters.is_empty() {
            return Ok(());
        }
        let (mut end, telling) = self.wishes.add(tenant, &filters, |untold| {
            let wanted = untold.iter().map(|filter| (*filter).into()).collect();
            self.append(at, [&Change::Wanted { gateway, tenant: tenant.into(), filters: wanted }])
        });
        if let Some(telling) = telling {
            let told = telling.await?.first.0 + 1;
            self.wishes.told(tenant, &filters, told);
            self.news.notify_one();
            end = end.max(told);
        }
        self.applied(at, end).await?;
        self.known_everywhere(at, end).await
    }

    /// It does not want it any more.
    pub(crate) fn wants_no_more(&self, tenant: &str, filters: impl IntoIterator<Item = impl AsRef<str>>) {
        if self.has_company() {
            self.wishes.drop(tenant, filters);
        }
    }

    /// Whether the log takes what this gateway says of its clients.
    fn is_there(&self) -> Result<(), AppendError> {
        let why = match *self.standing.borrow() {
            Standing::There => return Ok(()),
            Standing::Coming => self.not_there.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            Standing::Gone => None,
        };
        Err(why.unwrap_or(AppendError::Closed))
    }

    /// Until all before `end` is applied, which the log holds.
    pub(crate) async fn applied(&self, at: Partition, end: u64) -> Result<(), AppendError> {
        let followed = &self.followed[usize::from(at.index)];
        followed.waiting.wait(end, || followed.applied.load(Acquire)).await
    }

    async fn known_everywhere(&self, at: Partition, end: u64) -> Result<(), AppendError> {
        let followed = &self.followed[usize::from(at.index)];
        followed.elsewhere.wait(end, || self.broker.applied_elsewhere(at.index)).await?;
        // One that the others have gone on without knows nothing of them.
        self.is_there()
    }

    /// How far the others are may have changed.
    fn others_said(&self, index: u16) {
        self.followed[usize::from(index)].elsewhere.release(|| self.broker.applied_elsewhere(index));
    }

    /// The journal has not taken this gateway's word that it is there.
    fn not_there(&self, error: AppendError) {
        tracing::warn!(
            error = chain(&error),
            "the journal does not take the word of this gateway that it is there; no session is opened until it does"
        );
        *self.not_there.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn stand(&self, standing: Standing) {
        self.standing.send_replace(standing);
        if standing == Standing::Gone {
            self.followed.iter().for_each(|followed| followed.elsewhere.give_up());
        }
    }

    /// Comes back when no other gateway has the connection of the session.
    pub(crate) async fn let_go(&self, session: &Session) {
        loop {
            let mut changed = std::pin::pin!(self.let_go.notified());
            changed.as_mut().enable();
            if !session.is_elsewhere() {
                return;
            }
            changed.await;
        }
    }

    /// Tells the others what nobody wants any more here.
    async fn forget_wishes(&self) {
        let Some(gateway) = self.broker.me().filter(|_| self.has_company()) else { return };
        let telling = self.wishes.forget_idle(RECORD_FILTER_BYTES_MAX, |tenant, filters| {
            let filters = filters.iter().map(|filter| (&**filter).into()).collect();
            self.append(
                self.partition_of(tenant),
                [&Change::Unwanted { gateway, tenant: tenant.into(), filters }],
            )
        });
        for (idle, telling) in telling {
            if let Err(error) = telling.await {
                tracing::warn!(
                    error = chain(&error),
                    "other gateways send what nobody wants here for a while yet"
                );
                self.wishes.still_idle(idle);
            }
        }
    }

    /// Takes the wills of devices that were disabled back.
    async fn silence_disowned(&self) {
        let mut left = Vec::new();
        for device in self.seats.take_disowned() {
            let changes = self.broker.silence(&device.tenant, &device.device);
            if !changes.is_empty()
                && let Err(error) = self.append(self.partition_of(&device.tenant), &changes).await
            {
                tracing::warn!(error = chain(&error), device = %device.device, "the journal did not take a will back");
                left.push(device);
            }
        }
        self.seats.still_disowned(left);
    }

    /// To be told after every append to the topic, or to that of commands.
    pub(crate) fn appended(&self) {
        self.news.notify_one();
    }

    /// Behind all that the log holds.
    pub(crate) fn end(&self, at: Partition) -> u64 {
        self.journal.extent(at).next.0
    }

    /// Whether all before `end` is applied.
    pub(crate) fn is_applied(&self, at: Partition, end: u64) -> bool {
        self.followed[usize::from(at.index)].applied.load(Acquire) >= end
    }

    fn set_applied(&self, index: u16, next: u64) {
        let followed = &self.followed[usize::from(index)];
        followed.waiting.release(|| {
            followed.applied.store(next, Release);
            next
        });
    }
}

impl Follower {
    /// Brings back what the snapshots and the log hold; then follows the log until it is stopped.
    pub(crate) fn start(
        journal: Arc<dyn Journal>,
        clock: Clock,
        directory: PathBuf,
        limits: Limits,
        company: &Company,
        statistics: Statistics,
    ) -> Result<Self, RecoverError> {
        let pubsub = Arc::new(PubSub::new(journal, limits, company));
        let (recovered, recovering) = std::sync::mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .map_err(RecoverError::Thread)?;
        let of_thread = pubsub.clone();
        let thread = std::thread::Builder::new()
            .name("sessions".into())
            .spawn(move || runtime.block_on(follow(of_thread, clock, directory, statistics, recovered)))
            .map_err(RecoverError::Thread)?;
        recovering.recv().map_err(|_| RecoverError::Ended)??;
        Ok(Self { pubsub, thread })
    }

    pub(crate) fn pubsub(&self) -> Arc<PubSub> {
        self.pubsub.clone()
    }

    /// Applies what is in the log, writes the last snapshots, and ends. Blocks.
    pub(crate) fn stop(self) {
        self.pubsub.stopping.store(true, Release);
        self.pubsub.news.notify_one();
        let _panicked = self.thread.join();
    }
}

async fn follow(
    pubsub: Arc<PubSub>,
    clock: Clock,
    directory: PathBuf,
    mut statistics: Statistics,
    recovered: std::sync::mpsc::Sender<Result<(), RecoverError>>,
) {
    let partitions = pubsub.followed.len() as u16;
    let mut places = Vec::new();
    for index in 0..partitions {
        // Nobody is connected yet who was connected then, and nobody may be before this has its place in the log.
        let place = async {
            let mut place = Place::recover(&pubsub, index, &directory).await?;
            place.join(&pubsub, &clock).await.map(|()| place)
        };
        match place.await {
            Ok(place) => places.push(place),
            Err(error) => {
                let _gone = recovered.send(Err(error));
                return;
            }
        }
    }
    let _gone = recovered.send(Ok(()));
    let mut duties = pubsub.journal.join(CONSUMER, Topic::Sessions);
    let mut carrier = Carrier::join(&pubsub);
    let mut progress = pubsub.journal.progress();
    loop {
        while let Some(turn) = duties.next().now_or_never() {
            take_turn(turn, &duties, &mut places, &pubsub, &clock).await;
        }
        while let Some(turn) = carrier.turn().now_or_never() {
            carrier.take_turn(turn);
        }
        let stopping = pubsub.stopping.load(Acquire);
        let mut failed = false;
        pubsub.silence_disowned().await; // Before their time may come.
        for place in &mut places {
            if let Err(error) = place.step(&pubsub, &clock, stopping).await {
                if pubsub.has_company() && matches!(error, ReadError::Gone { .. }) {
                    pubsub.stand(Standing::Gone); // The others have not waited.
                }
                tracing::error!(error = chain(&error), partition = %place.at, "sessions wait");
                failed = true;
            }
            place.keep(&pubsub, &clock, stopping).await;
        }
        if stopping {
            return;
        }
        carrier.bring(&pubsub, &clock);
        statistics.show(&pubsub);
        let pause = if failed { PAUSE_AFTER_ERROR } else { TICK.min(pubsub.lease.beat().unwrap_or(TICK)) };
        tokio::select! {
            () = pubsub.news.notified() => {}
            Ok(()) = progress.changed(), if pubsub.has_company() && !failed => {}
            turn = duties.next() => take_turn(turn, &duties, &mut places, &pubsub, &clock).await,
            turn = carrier.turn() => carrier.take_turn(turn),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn take_turn(turn: Turn, duties: &Membership, places: &mut [Place], pubsub: &PubSub, clock: &Clock) {
    let (Turn::Given(at) | Turn::Asked(at) | Turn::Lost(at)) = turn;
    let Some(place) = places.get_mut(usize::from(at.index)) else { return };
    if matches!(turn, Turn::Asked(_)) {
        place.keep(pubsub, clock, true).await;
        duties.release(at);
    }
    place.is_duty = matches!(turn, Turn::Given(_));
}

#[cfg(test)]
mod tests;
