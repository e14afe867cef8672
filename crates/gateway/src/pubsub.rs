//! Pub/sub and the log: what must survive a crash is appended to the `sessions` topic, and applied from there.

use std::{
    collections::{BTreeSet, VecDeque},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Release},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use dunlin_broker::{Broker, Change, DamagedSnapshot, GatewayNumber, Limits, News, Session, SessionId};
use dunlin_journal::{
    AppendError, Appended, Batch, Journal, Membership, Offset, Partition, ReadError, Topic, Turn,
};
use dunlin_model::{Clock, DeviceId, TenantId, chain};
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::{Notify, oneshot, watch};

use crate::{
    company::{Company, Lease, Silence, Wishes},
    sessions::{Access, Revoked, Sessions},
    statistics::Statistics,
};

/// As whom the journal knows how far the snapshots are. Of several gateways one has each partition: it writes the
/// snapshots, and says what time has brought.
const CONSUMER: &str = "sessions";
const READ_BYTES_MAX: usize = 1 << 20;
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(1);
/// How often wills and expiries are looked for.
const TICK: Duration = Duration::from_millis(500);
/// How often sessions are looked for that are open and have no connection.
const SWEEP: Duration = Duration::from_secs(30);
/// A snapshot is written after so many records, or after so long if there were any.
const SNAPSHOT_AFTER_RECORDS: u64 = 200_000;
const SNAPSHOT_AFTER: Duration = Duration::from_secs(60);

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

/// How long the end of the journal may take to be known at a start, with gateways that go on meanwhile.
const END_KNOWN_MAX: Duration = Duration::from_secs(20);
/// Filters of one record: with many it would be more than the journal takes.
const RECORD_FILTER_BYTES_MAX: usize = 64 << 10;

/// Snapshots that are looked for when the newest is replaced meanwhile.
const SNAPSHOT_TRIES: usize = 10;

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

/// Who waits, by the end up to which must be applied, and in its order.
#[derive(Debug, Default)]
struct Waiting(Mutex<VecDeque<(u64, oneshot::Sender<()>)>>);

impl Waiting {
    /// Until all before `end` is applied. `applied` says how far that is now.
    async fn wait(&self, end: u64, applied: impl FnOnce() -> u64) -> Result<(), AppendError> {
        let waits = {
            let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            (applied() < end).then(|| {
                let (done, waits) = oneshot::channel();
                let place = waiting.partition_point(|(other, _)| *other <= end);
                waiting.insert(place, (end, done));
                waits
            })
        };
        match waits {
            Some(waits) => waits.await.map_err(|_| AppendError::Closed),
            None => Ok(()),
        }
    }

    /// So far it is applied, as `advance` makes known.
    fn release(&self, advance: impl FnOnce() -> u64) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let applied = advance();
        while let Some((_, done)) = waiting.pop_front_if(|(end, _)| *end <= applied) {
            let _gone = done.send(());
        }
    }

    /// Nobody will be told any more.
    fn give_up(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
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
        let (mut end, telling) = self.wishes.add(tenant, filters, |untold| {
            let wanted = untold.iter().map(|filter| (*filter).into()).collect();
            self.append(at, [&Change::Wanted { gateway, tenant: tenant.into(), filters: wanted }])
        });
        if let Some(telling) = telling {
            let told = telling.await?.first.0 + 1;
            self.wishes.told(tenant, filters, told);
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

    /// To be told after every append to the topic.
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
    let mut progress = pubsub.journal.progress();
    loop {
        while let Some(turn) = duties.next().now_or_never() {
            take_turn(turn, &duties, &mut places, &pubsub, &clock).await;
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
        statistics.show(&pubsub);
        let pause = if failed { PAUSE_AFTER_ERROR } else { TICK.min(pubsub.lease.beat().unwrap_or(TICK)) };
        tokio::select! {
            () = pubsub.news.notified() => {}
            Ok(()) = progress.changed(), if pubsub.has_company() && !failed => {}
            turn = duties.next() => take_turn(turn, &duties, &mut places, &pubsub, &clock).await,
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

/// One partition of the topic.
struct Place {
    at: Partition,
    position: u64,
    directory: PathBuf,
    /// Of all gateways, this one writes the snapshots and says what time has brought.
    is_duty: bool,
    silence: Silence,
    /// When this gateway said last that it is there.
    said: Option<Duration>,
    /// It has said so, and the journal has not answered. There is one at a time, so that the others can count them.
    saying: Option<BoxFuture<'static, Result<Appended, AppendError>>>,
    /// Somebody waits until this gateway says how far it is.
    is_waited_for: bool,
    /// A snapshot that is being written, and up to where it goes.
    keeping: Option<(u64, tokio::task::JoinHandle<io::Result<()>>)>,
    /// Up to where the snapshot on disk is.
    kept: u64,
    kept_when: Instant,
    ticked: Instant,
    swept: Instant,
    /// Those that the last sweep found open and without a connection.
    abandoned: BTreeSet<SessionId>,
}

impl Place {
    async fn recover(pubsub: &PubSub, index: u16, directory: &Path) -> Result<Self, RecoverError> {
        let at = Partition::new(Topic::Sessions, index);
        let snapshot = newest_snapshot(directory, index)?;
        let kept = snapshot.as_ref().map_or(0, |snapshot| snapshot.next);
        if pubsub.has_company() {
            knows_end(pubsub, at, kept, directory).await?;
        }
        let extent = pubsub.journal.extent(at);
        if kept > extent.next.0 {
            tracing::error!(partition = %at, kept, end = %extent.next, "the journal ends before the snapshot of the sessions; it was replaced or lost what it had");
        }
        if kept < extent.oldest.0 {
            if pubsub.has_company() {
                let (directory, oldest) = (directory.to_owned(), extent.oldest);
                return Err(RecoverError::Missing { directory, kept, oldest });
            }
            tracing::error!(partition = %at, kept, oldest = %extent.oldest, "changes of sessions were deleted before they were in a snapshot");
        }
        if let Some(Snapshot { path, bytes, .. }) = snapshot {
            let restored = pubsub.broker.restore(index, &bytes);
            restored.map_err(|source| RecoverError::Snapshot { path, source })?;
        }
        let position = kept.clamp(extent.oldest.0, extent.next.0);
        let now = Instant::now();
        let mut place = Self {
            at,
            position,
            directory: directory.to_owned(),
            is_duty: false,
            silence: Silence::default(),
            said: None,
            saying: None,
            is_waited_for: false,
            keeping: None,
            kept: position,
            kept_when: now,
            ticked: now,
            swept: now,
            abandoned: BTreeSet::new(),
        };
        while place.read(pubsub, false).await? {}
        Ok(place)
    }

    /// Takes part in the log; what an earlier run had open is closed with that. A journal that takes nothing now is asked
    /// again later.
    async fn join(&mut self, pubsub: &PubSub, clock: &Clock) -> Result<(), RecoverError> {
        loop {
            // All partitions know this gateway by the number that the first gave it.
            let next = || pubsub.broker.next_gateway(self.at.index);
            let gateway = pubsub.broker.me().unwrap_or_else(next);
            let joined = pubsub.append(self.at, [&self.joined(pubsub, gateway, clock)]).await;
            match joined {
                Ok(joined) => {
                    while self.position <= joined.first.0 {
                        self.read(pubsub, false).await?;
                    }
                    if !pubsub.broker.has_gateway(self.at.index, gateway, &pubsub.name) {
                        continue; // Another one came at the same moment.
                    }
                    pubsub.stand(Standing::There);
                }
                Err(error) => pubsub.not_there(error),
            }
            pubsub.broker.is_gateway(gateway);
            return Ok(());
        }
    }

    fn joined<'p>(&self, pubsub: &'p PubSub, gateway: GatewayNumber, clock: &Clock) -> Change<'p> {
        Change::Joined { gateway, name: pubsub.name.as_str().into(), at: clock.now() }
    }

    async fn step(&mut self, pubsub: &PubSub, clock: &Clock, is_last: bool) -> Result<(), ReadError> {
        while self.read(pubsub, true).await? {}
        self.say(pubsub, clock, is_last).await;
        if self.ticked.elapsed() >= TICK {
            self.ticked = Instant::now();
            self.join_late(pubsub, clock).await;
            pubsub.forget_wishes().await;
            if self.is_duty {
                let mut due = pubsub.broker.due(self.at.index, clock.now());
                let gone = self.silence.gone().into_iter();
                due.extend(gone.map(|gateway| Change::Gone { gateway, at: clock.now() }));
                self.log(pubsub, due).await;
            }
            if self.swept.elapsed() >= SWEEP {
                self.swept = Instant::now();
                self.sweep(pubsub, clock).await;
            }
        }
        while self.read(pubsub, true).await? {}
        Ok(())
    }

    /// Takes part, if the journal did not take the word for it before.
    async fn join_late(&mut self, pubsub: &PubSub, clock: &Clock) {
        let Some(gateway) = pubsub.broker.me() else { return };
        let standing = *pubsub.standing.borrow();
        if standing == Standing::Coming
            && let Err(error) = pubsub.append(self.at, [&self.joined(pubsub, gateway, clock)]).await
        {
            pubsub.not_there(error);
        }
    }

    /// Says to the other gateways that this one is there, how far it is, or that it leaves. Does not wait for the journal:
    /// what it brings is to be applied meanwhile.
    async fn say(&mut self, pubsub: &PubSub, clock: &Clock, is_last: bool) {
        let Some(gateway) = pubsub.broker.me() else { return };
        let is_there = *pubsub.standing.borrow() == Standing::There;
        let Some(beat) = pubsub.lease.beat().filter(|_| is_there) else { return };
        if is_last {
            return self.log(pubsub, vec![Change::Gone { gateway, at: clock.now() }]).await;
        }
        if let Some(saying) = &mut self.saying {
            match saying.now_or_never() {
                None => return,
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::warn!(error = chain(&error), "the other gateways do not hear of this one")
                }
            }
            self.saying = None;
        }
        let sent = pubsub.lease.now();
        if self.is_waited_for || self.said.is_none_or(|said| said + beat <= sent) {
            self.said = Some(sent);
            self.is_waited_for = false;
            let heard = Change::Heard { gateway, applied: self.position, sent: sent.as_micros() as u64 };
            self.saying = Some(pubsub.append(self.at, [&heard]));
        }
    }

    /// Applies a stretch of the log; false at its end.
    async fn read(&mut self, pubsub: &PubSub, live: bool) -> Result<bool, ReadError> {
        if self.position >= pubsub.journal.extent(self.at).next.0 {
            pubsub.set_applied(self.at.index, self.position);
            return Ok(false);
        }
        let stretch = pubsub.journal.read(self.at, Offset(self.position), READ_BYTES_MAX).await?;
        for entries in &stretch {
            for entry in entries.iter() {
                match pubsub.broker.apply(self.at.index, entry.offset.0, entry.bytes, live) {
                    Ok(news) if live => self.hear(pubsub, news),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::error!(error = chain(&error), offset = %entry.offset, "a change of a session was skipped");
                    }
                }
            }
            self.position = entries.next().0;
            pubsub.set_applied(self.at.index, self.position);
        }
        Ok(!stretch.is_empty())
    }

    /// What a change means here, besides what has become of the sessions.
    fn hear(&mut self, pubsub: &PubSub, news: News) {
        let Some(me) = pubsub.broker.me() else { return };
        match news {
            News::Nothing => {}
            News::Closed => pubsub.let_go.notify_waiters(),
            News::Subscribed(by) => self.is_waited_for |= by != me,
            News::Seated { key, connection } => {
                pubsub.seats.seated(&key, connection, me);
                pubsub.let_go.notify_waiters();
            }
            News::Claimed { key, connection } => pubsub.seats.claimed(&key, connection, me),
            News::Heard { gateway, sent } if gateway == me => {
                let sent = Duration::from_micros(sent);
                pubsub.lease.renew(sent);
                if let Some(beat) = pubsub.lease.beat() {
                    let others = pubsub.broker.gateways(self.at.index).into_iter();
                    self.silence.lasts(sent, beat, others.filter(|other| *other != me));
                }
            }
            News::Heard { gateway, .. } => {
                self.silence.broken(gateway);
                pubsub.others_said(self.at.index);
            }
            News::Joined(gateway) => {
                pubsub.others_said(self.at.index);
                pubsub.let_go.notify_waiters();
                match pubsub.broker.has_gateway(self.at.index, me, &pubsub.name) {
                    true if gateway == me => pubsub.stand(Standing::There),
                    true => {}
                    // It has the name of another, or its number.
                    false if gateway == me || *pubsub.standing.borrow() != Standing::Coming => {
                        pubsub.stand(Standing::Gone);
                    }
                    false => {}
                }
            }
            News::Gone(gateway) => {
                self.silence.broken(gateway);
                pubsub.others_said(self.at.index);
                pubsub.let_go.notify_waiters();
                if gateway == me && !pubsub.stopping.load(Acquire) {
                    pubsub.stand(Standing::Gone);
                }
            }
            News::Revoked { tenant, device, is_disabled } => {
                let of = (tenant.parse::<TenantId>(), device.parse::<DeviceId>());
                if let (Some(access), (Ok(tenant), Ok(device))) = (pubsub.access.get(), of) {
                    let what = if is_disabled { Revoked::Device } else { Revoked::Token };
                    access.is_revoked(&tenant, &device, what);
                }
            }
        }
    }

    /// Closes the sessions whose connection has ended without a word in the log: its handshake was cut short, or the
    /// journal did not take the word. They are found twice before, so that a word on its way has come.
    async fn sweep(&mut self, pubsub: &PubSub, clock: &Clock) {
        let found_before = std::mem::take(&mut self.abandoned);
        let (mut seats, mut changes) = (Vec::new(), Vec::new());
        for session in pubsub.broker.abandoned(self.at.index) {
            // Whoever has the client id is on the way in or out. Nobody comes in before this has its place in the log.
            let Some(seat) = pubsub.seats.hold(&session.key) else { continue };
            if found_before.contains(&session.id) {
                changes.push(closed(&session, clock));
                seats.push(seat);
            } else {
                self.abandoned.insert(session.id);
            }
        }
        if pubsub.has_company() {
            let unlogged = pubsub.seats.unlogged().into_iter();
            let unlogged = unlogged.filter(|(key, _)| pubsub.partition_of(&key.tenant) == self.at);
            changes.extend(unlogged.map(|(key, connection)| Change::Seated {
                key,
                connection,
                at: clock.now(),
            }));
        }
        let logged = self.log(pubsub, changes);
        drop(seats);
        logged.await;
    }

    /// Logs what the server itself has found out; it has its place in the log when this returns. What the journal
    /// does not take is found again.
    fn log(&self, pubsub: &PubSub, changes: Vec<Change<'_>>) -> impl Future<Output = ()> + use<> {
        let appending = (!changes.is_empty()).then(|| pubsub.append(self.at, &changes));
        async move {
            let Some(appending) = appending else { return };
            if let Err(error) = appending.await {
                tracing::warn!(error = chain(&error), "wills and ends of sessions wait for the journal");
            }
        }
    }

    /// Writes a snapshot if it is this gateway's to write, and time for one. What the log brings is applied meanwhile,
    /// unless it is to be written `at_once`.
    async fn keep(&mut self, pubsub: &PubSub, clock: &Clock, at_once: bool) {
        if at_once || self.keeping.as_ref().is_some_and(|(_, keeping)| keeping.is_finished()) {
            self.kept(pubsub).await;
        }
        let is_time = self.position - self.kept >= SNAPSHOT_AFTER_RECORDS
            || self.kept_when.elapsed() >= SNAPSHOT_AFTER
            || at_once;
        if !self.is_duty || self.position == self.kept || self.keeping.is_some() || !is_time {
            return;
        }
        self.kept_when = Instant::now();
        // All forget the same at the same place.
        self.log(pubsub, vec![Change::Passed { at: clock.now() }]).await;
        while let Ok(true) = self.read(pubsub, true).await {}
        let (next, bytes) = (self.position, pubsub.broker.snapshot(self.at.index, self.position));
        let (directory, index) = (self.directory.clone(), self.at.index);
        let writer = pubsub.broker.me();
        let writing =
            tokio::task::spawn_blocking(move || write_snapshot(&directory, index, next, writer, &bytes));
        self.keeping = Some((next, writing));
        if at_once {
            self.kept(pubsub).await;
        }
    }

    /// The snapshot that is being written is there, once this comes back.
    async fn kept(&mut self, pubsub: &PubSub) {
        let Some((next, writing)) = self.keeping.take() else { return };
        let written = writing.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        if let Err(error) = written {
            let directory = self.directory.display();
            tracing::error!(%directory, %error, "snapshot of the sessions not written; the journal keeps what it needs");
            return;
        }
        self.kept = next;
        if let Err(error) = pubsub.journal.commit(CONSUMER, self.at, Offset(next)).await {
            tracing::warn!(%error, "the journal did not take the position of the sessions; it keeps more than it must");
        }
    }
}

/// Waits until the journal is known to go as far as the snapshot, which a gateway that goes on has written: what is
/// before it must not be applied twice.
async fn knows_end(pubsub: &PubSub, at: Partition, kept: u64, directory: &Path) -> Result<(), RecoverError> {
    let mut progress = pubsub.journal.progress();
    let known =
        async { while pubsub.journal.extent(at).next.0 < kept && progress.changed().await.is_ok() {} };
    let _late = tokio::time::timeout(END_KNOWN_MAX, known).await;
    let next = pubsub.journal.extent(at).next;
    match next.0 < kept {
        true => Err(RecoverError::Ahead { directory: directory.to_owned(), kept, next }),
        false => Ok(()),
    }
}

/// The connection is gone and has left no word.
fn closed(session: &Session, clock: &Clock) -> Change<'static> {
    let (connection, at) = (session.opened_by(), clock.now());
    Change::Closed { session: session.id, connection, at, with_will: true, expiry_seconds: None }
}

/// The snapshots of a partition, each with the offset up to which it goes, the newest first. Nobody replaces another's: a
/// gateway that was taken for gone, and writes one all the same, writes an older one.
fn snapshots(directory: &Path, index: u16) -> io::Result<Vec<(u64, PathBuf)>> {
    let files = match std::fs::read_dir(directory) {
        Ok(files) => files.collect::<Result<Vec<_>, _>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let prefix = format!("{index}-");
    let next = |name: &str| name.strip_prefix(&prefix)?.strip_suffix(".snapshot")?.parse().ok();
    let named = files.iter().filter_map(|file| Some((next(file.file_name().to_str()?)?, file.path())));
    let mut all: Vec<_> = named.collect();
    all.sort_by(|one, other| other.cmp(one));
    Ok(all)
}

struct Snapshot {
    next: u64,
    path: PathBuf,
    bytes: Vec<u8>,
}

fn newest_snapshot(directory: &Path, index: u16) -> Result<Option<Snapshot>, RecoverError> {
    let in_directory = |source| RecoverError::Io { path: directory.to_owned(), source };
    for _ in 0..SNAPSHOT_TRIES {
        let Some((next, path)) = snapshots(directory, index).map_err(in_directory)?.into_iter().next() else {
            return Ok(None);
        };
        match std::fs::read(&path) {
            Ok(bytes) => return Ok(Some(Snapshot { next, path, bytes })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // There is a newer one by now.
            Err(source) => return Err(RecoverError::Io { path, source }),
        }
    }
    Err(in_directory(io::ErrorKind::NotFound.into()))
}

/// It is whole or not there, also after a power cut; then the older ones go, and what was left half written.
fn write_snapshot(
    directory: &Path,
    index: u16,
    next: u64,
    writer: Option<GatewayNumber>,
    bytes: &[u8],
) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let path = directory.join(format!("{index}-{next}.snapshot"));
    let number = writer.map(|writer| writer.to_string()).unwrap_or_default();
    let fresh = directory.join(format!("{index}-{next}-{number}.fresh"));
    let mut file = std::fs::File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, &path)?;
    std::fs::File::open(directory)?.sync_all()?;
    let older = snapshots(directory, index)?.into_iter().filter(|(other, _)| *other < next);
    let is_fresh = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "fresh");
    let half = std::fs::read_dir(directory)?.filter_map(|file| Some(file.ok()?.path())).filter(is_fresh);
    for file in older.map(|(_, path)| path).chain(half) {
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
