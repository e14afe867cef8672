//! Pub/sub and the log: what must survive a crash is appended to the `sessions` topic, and applied from there.

use std::{
    collections::{BTreeSet, VecDeque},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Release},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use dunlin_broker::{Broker, Change, DamagedSnapshot, Limits, Session, SessionId};
use dunlin_journal::{AppendError, Batch, Journal, Offset, Partition, ReadError, Topic};
use dunlin_model::{Clock, chain};
use tokio::sync::{Notify, oneshot};

use crate::{sessions::Sessions, statistics::Statistics};

/// As whom the journal knows how far the snapshots are.
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
}

/// Pub/sub of all tenants, and its place in the log.
#[derive(Debug)]
pub(crate) struct PubSub {
    pub(crate) broker: Broker,
    /// Which connection has which client id.
    pub(crate) seats: Sessions,
    journal: Arc<dyn Journal>,
    followed: Box<[Followed]>,
    /// Something was appended, or the end has come.
    news: Notify,
    stopping: AtomicBool,
}

/// How far one partition is applied, and who waits for more.
#[derive(Debug, Default)]
struct Followed {
    applied: AtomicU64,
    /// By the end up to which must be applied; in its order.
    waiting: Mutex<VecDeque<(u64, oneshot::Sender<()>)>>,
}

/// The thread that applies the log.
#[derive(Debug)]
pub(crate) struct Follower {
    pubsub: Arc<PubSub>,
    thread: JoinHandle<()>,
}

impl PubSub {
    fn new(journal: Arc<dyn Journal>, limits: Limits) -> Self {
        let partitions = journal.partitions(Topic::Sessions);
        Self {
            broker: Broker::new(partitions, limits),
            seats: Sessions::default(),
            journal,
            followed: (0..partitions).map(|_| Followed::default()).collect(),
            news: Notify::new(),
            stopping: AtomicBool::new(false),
        }
    }

    pub(crate) fn partition_of(&self, tenant: &str) -> Partition {
        Partition::new(Topic::Sessions, self.broker.partition_of(tenant))
    }

    /// Logs a change, and returns its offset once it is durable and applied.
    pub(crate) async fn commit(&self, tenant: &str, change: &Change<'_>) -> Result<u64, AppendError> {
        let at = self.partition_of(tenant);
        let mut batch = Batch::default();
        batch.push_with(|out| change.encode(out));
        let offset = self.journal.append(at, batch).await?.first.0;
        self.news.notify_one();
        self.applied(at, offset + 1).await.map(|()| offset)
    }

    /// Until all before `end` is applied, which the log holds.
    pub(crate) async fn applied(&self, at: Partition, end: u64) -> Result<(), AppendError> {
        let applied = {
            let followed = &self.followed[usize::from(at.index)];
            let mut waiting = followed.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            (followed.applied.load(Acquire) < end).then(|| {
                let (done, applied) = oneshot::channel();
                let place = waiting.partition_point(|(other, _)| *other <= end);
                waiting.insert(place, (end, done));
                applied
            })
        };
        match applied {
            Some(applied) => applied.await.map_err(|_| AppendError::Closed),
            None => Ok(()),
        }
    }

    /// Takes the wills of devices that were disabled back.
    async fn silence_disowned(&self) {
        let mut left = Vec::new();
        for device in self.seats.take_disowned() {
            let mut batch = Batch::default();
            for change in self.broker.silence(&device.tenant, &device.device) {
                batch.push_with(|out| change.encode(out));
            }
            if !batch.is_empty()
                && let Err(error) = self.journal.append(self.partition_of(&device.tenant), batch).await
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
        let mut waiting = followed.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        followed.applied.store(next, Release);
        while let Some((_, done)) = waiting.pop_front_if(|(end, _)| *end <= next) {
            let _gone = done.send(());
        }
    }
}

impl Follower {
    /// Brings back what the snapshots and the log hold; then follows the log until it is stopped.
    pub(crate) fn start(
        journal: Arc<dyn Journal>,
        clock: Clock,
        directory: PathBuf,
        limits: Limits,
        statistics: Statistics,
    ) -> Result<Self, RecoverError> {
        let pubsub = Arc::new(PubSub::new(journal, limits));
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
        let place = Place::recover(&pubsub, index, &directory).await;
        match place {
            Ok(place) => places.push(place),
            Err(error) => {
                let _gone = recovered.send(Err(error));
                return;
            }
        }
    }
    // Nobody is connected yet who was connected then, and nobody may be before this has its place in the log.
    for place in &mut places {
        let abandoned = pubsub.broker.abandoned(place.at.index);
        place.log(&pubsub, abandoned.iter().map(|session| closed(session, &clock)).collect()).await;
    }
    let _gone = recovered.send(Ok(()));
    loop {
        let stopping = pubsub.stopping.load(Acquire);
        let mut failed = false;
        pubsub.silence_disowned().await; // Before their time may come.
        for place in &mut places {
            if let Err(error) = place.step(&pubsub, &clock).await {
                tracing::error!(error = chain(&error), partition = %place.at, "sessions wait");
                failed = true;
            }
            place.keep(&pubsub, &clock, stopping).await;
        }
        if stopping {
            return;
        }
        statistics.show(&pubsub);
        let pause = if failed { PAUSE_AFTER_ERROR } else { TICK };
        let _tick = tokio::time::timeout(pause, pubsub.news.notified()).await;
    }
}

/// One partition of the topic.
#[derive(Debug)]
struct Place {
    at: Partition,
    position: u64,
    path: PathBuf,
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
        let path = directory.join(format!("{index}.snapshot"));
        let from = match std::fs::read(&path) {
            Ok(bytes) => pubsub
                .broker
                .restore(index, &bytes)
                .map_err(|source| RecoverError::Snapshot { path: path.clone(), source })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(source) => return Err(RecoverError::Io { path, source }),
        };
        let extent = pubsub.journal.extent(at);
        if from > extent.next.0 {
            tracing::error!(partition = %at, from, end = %extent.next, "the journal ends before the snapshot of the sessions; it was replaced or lost what it had");
        }
        if from < extent.oldest.0 {
            tracing::error!(partition = %at, from, oldest = %extent.oldest, "changes of sessions were deleted before they were in a snapshot");
        }
        let position = from.clamp(extent.oldest.0, extent.next.0);
        let (now, abandoned) = (Instant::now(), BTreeSet::new());
        let mut place =
            Self { at, position, path, kept: position, kept_when: now, ticked: now, swept: now, abandoned };
        while place.read(pubsub, false).await? {}
        Ok(place)
    }

    async fn step(&mut self, pubsub: &PubSub, clock: &Clock) -> Result<(), ReadError> {
        while self.read(pubsub, true).await? {}
        if self.ticked.elapsed() >= TICK {
            self.ticked = Instant::now();
            let due = pubsub.broker.due(self.at.index, clock.now());
            self.log(pubsub, due).await;
            if self.swept.elapsed() >= SWEEP {
                self.swept = Instant::now();
                self.sweep(pubsub, clock).await;
            }
            while self.read(pubsub, true).await? {}
        }
        Ok(())
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
                let applied = pubsub.broker.apply(self.at.index, entry.offset.0, entry.bytes, live);
                if let Err(error) = applied {
                    tracing::error!(error = chain(&error), offset = %entry.offset, "a change of a session was skipped");
                }
            }
            self.position = entries.next().0;
            pubsub.set_applied(self.at.index, self.position);
        }
        Ok(!stretch.is_empty())
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
        let logged = self.log(pubsub, changes);
        drop(seats);
        logged.await;
    }

    /// Logs what the server itself has found out; it has its place in the log when this returns. What the journal
    /// does not take is found again.
    fn log(&self, pubsub: &PubSub, changes: Vec<Change<'static>>) -> impl Future<Output = ()> + use<> {
        let mut batch = Batch::default();
        for change in changes {
            batch.push_with(|out| change.encode(out));
        }
        let appending = (!batch.is_empty()).then(|| pubsub.journal.append(self.at, batch));
        async move {
            let Some(appending) = appending else { return };
            if let Err(error) = appending.await {
                tracing::warn!(error = chain(&error), "wills and ends of sessions wait for the journal");
            }
        }
    }

    /// Writes a snapshot if it is time for one.
    async fn keep(&mut self, pubsub: &PubSub, clock: &Clock, at_once: bool) {
        let records = self.position - self.kept;
        let is_time =
            records >= SNAPSHOT_AFTER_RECORDS || self.kept_when.elapsed() >= SNAPSHOT_AFTER || at_once;
        if records == 0 || !is_time {
            return;
        }
        self.kept_when = Instant::now();
        let bytes = pubsub.broker.snapshot(self.at.index, self.position, clock.now());
        if let Err(error) = replace(&self.path, &bytes) {
            tracing::error!(path = %self.path.display(), %error, "snapshot of the sessions not written; the journal keeps what it needs");
            return;
        }
        self.kept = self.position;
        if let Err(error) = pubsub.journal.commit(CONSUMER, self.at, Offset(self.position)).await {
            tracing::warn!(%error, "the journal did not take the position of the sessions; it keeps more than it must");
        }
    }
}

/// The connection is gone and has left no word.
fn closed(session: &Session, clock: &Clock) -> Change<'static> {
    Change::Closed { session: session.id, at: clock.now(), with_will: true, expiry_seconds: None }
}

/// The file is whole or as it was, also after a power cut.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let fresh = path.with_extension("fresh");
    let mut file = std::fs::File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests;
