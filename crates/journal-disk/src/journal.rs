use std::{
    fmt,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle, Thread},
    time::Duration,
};

use dunlin_journal::{
    AppendError, Appended, Batch, Entries, Extent, Health, Journal, Offset, Partition, ReadError, Topic,
};
use dunlin_model::{Clock, Timestamp, limits::BATCH_BYTES_MAX, panic_words};
use futures::future::{self, BoxFuture, FutureExt};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    Config, InvalidConfig,
    catalog::{Catalog, Lookup},
    commit::{Committer, Trouble},
    disk::{Disk, SystemDisk},
    frame::{FORMAT, crc32c, stamp},
    housekeeping::{self, Space},
    metrics::Metrics,
    partitions::Partitions,
    positions::Positions,
    queue::{Queue, Unqueued},
    read::FromSegment,
    recovery::{Place, recover},
    segment::segment_path,
    side_file,
};

/// The journal on a local disk. Dropping it ends it like `close`, and waits for what is under way.
pub struct DiskJournal {
    log: Arc<Log>,
    ended: watch::Receiver<bool>,
    threads: Vec<JoinHandle<()>>,
    /// Held until the threads have ended.
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    #[error("the journal in {dir} is in use by another process")]
    Locked { dir: PathBuf },
    #[error(
        "the journal in {dir} was made with {stored} telemetry partitions and cannot be opened with {asked}; \
         set journal.telemetry_partitions to {stored}"
    )]
    Partitions { dir: PathBuf, stored: u16, asked: u16 },
    #[error(
        "{path} is damaged at byte {position}: {reason}; acknowledged records would be lost by going on. \
         Restore this file from a copy, or, to go on without its records and all newer ones, move it and every \
         newer segment out of the directory"
    )]
    Corrupt { path: PathBuf, position: u64, reason: String },
    #[error("{path} is missing, which {newer} goes on from; restore it from a copy")]
    Missing { path: PathBuf, newer: PathBuf },
    #[error("{path} is damaged: {reason}; restore it from a copy")]
    Meta { path: PathBuf, reason: String },
    #[error(
        "{path} is damaged: {reason}; restore it from a copy, or delete it to have every consumer that keeps no \
         position of its own start from the oldest record"
    )]
    Positions { path: PathBuf, reason: String },
    #[error("{operation} {path}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("the first segment in {dir} cannot be written: {operation} failed: {reason}")]
    Unwritable { dir: PathBuf, operation: &'static str, reason: String },
}

impl DiskJournal {
    /// Opens the journal in `config.dir`, which is made if it is not there. Reads and checks up to
    /// `config.verify_at_start_bytes_max` of it, so it blocks: about a second for 5 GB in the page cache.
    /// On a full disk it opens and refuses appends until there is space.
    pub fn open(config: Config, clock: Clock, registry: &mut Registry) -> Result<Arc<Self>, OpenError> {
        Self::open_on(config, clock, registry, Arc::new(SystemDisk))
    }

    /// `open` on a disk of the caller's, for injecting faults.
    pub fn open_on(
        config: Config,
        clock: Clock,
        registry: &mut Registry,
        disk: Arc<dyn Disk>,
    ) -> Result<Arc<Self>, OpenError> {
        config.check()?;
        let dir = config.dir.clone();
        fs::create_dir_all(&dir).map_err(|source| io_error("create", &dir, source))?;
        let lock = lock(&dir)?;
        let meta = Meta::load_or_make(&dir, config.telemetry_partitions)?;
        let partitions = Partitions::new(meta.telemetry_partitions);
        let positions_path = dir.join("positions.json");
        let positions = Positions::load(&positions_path, partitions)
            .map_err(|source| io_error("read", &positions_path, source))?
            .map_err(|reason| OpenError::Positions { path: positions_path, reason })?;

        let place = Place { dir: &dir, secret: meta.secret, partitions };
        let recovered = recover(place, config.verify_at_start_bytes_max)?;
        let newest_at = recovered.segments.back().map(|s| s.newest_at);
        let tail_bytes_max = config.tail_cache_bytes;
        let log = Arc::new(Log {
            partitions,
            secret: meta.secret,
            disk,
            queue: Arc::new(Queue::new(config.inflight_bytes_max)),
            catalog: RwLock::new(Catalog::new(recovered.segments, partitions.count(), tail_bytes_max)),
            positions,
            progress: watch::Sender::new(0),
            metrics: Metrics::new(registry),
            sequence_next: AtomicU64::new(recovered.sequence_next),
            space: Mutex::new(None),
            spare: Mutex::new(None),
            retention_clock: Mutex::new(newest_at.map_or(clock.now(), |t| t.min(clock.now()))),
            housekeeper: Mutex::new(None),
            has_ended: AtomicBool::new(false),
            broken: watch::Sender::new(None),
            clock,
            config,
        });
        let mut committer = Committer::new(Arc::clone(&log), recovered.previous, recovered.tail);
        let trouble = match committer.settle_tail() {
            Ok(()) => None,
            Err(trouble @ Trouble::NoSpace { .. }) => Some(trouble),
            Err(Trouble::Failed { operation, reason }) => {
                return Err(OpenError::Unwritable { dir, operation, reason });
            }
        };
        if let Some(trouble) = &trouble {
            log.refuse(trouble);
        }
        log.measure();
        let (threads, ended) =
            start(&log, committer, trouble).map_err(|e| io_error("start threads for", &dir, e))?;
        Ok(Arc::new(Self { log, ended, threads, _lock: lock }))
    }

    /// Deletes the oldest segments that the retention gives up, and returns how many. Runs by itself every ten
    /// seconds; may be called at any time. The retention's clock follows the server's by at most an hour per call.
    pub fn trim_once(&self) -> io::Result<usize> {
        housekeeping::trim(&self.log)
    }

    /// Comes back, with the reason, once a thread of the journal has panicked. From then on it takes nothing, and in
    /// this process it will not again: what its threads knew is lost, and the next opening finds out from the disk.
    pub fn broken(&self) -> BoxFuture<'static, String> {
        let mut broken = self.log.broken.subscribe();
        async move {
            let reason = broken.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
            match reason {
                Some(reason) => reason,
                // Closed before it could break.
                None => future::pending().await,
            }
        }
        .boxed()
    }
}

impl DiskJournal {
    /// What goes into the queue; or the answer, if nothing does.
    fn unqueued(&self, at: Partition, batch: Batch) -> Result<Unqueued, Result<Appended, AppendError>> {
        let place = self.log.partitions.place(at).ok_or(Err(AppendError::NoPartition(at)))?;
        if batch.size_bytes() > BATCH_BYTES_MAX {
            return Err(Err(AppendError::TooLarge { bytes: batch.size_bytes(), max: BATCH_BYTES_MAX }));
        }
        if batch.is_empty() {
            return Err(Ok(Appended { first: self.extent(at).next, records: 0 }));
        }
        let records = batch.len();
        let payload = batch.into_bytes();
        // Here rather than in the writer: callers are many, the writer is one.
        let payload_crc = crc32c(&payload);
        Ok(Unqueued { at, place, records, payload, payload_crc })
    }
}

impl Journal for DiskJournal {
    fn partitions(&self, topic: Topic) -> u16 {
        self.log.partitions.of(topic)
    }

    fn append(&self, at: Partition, batch: Batch) -> BoxFuture<'static, Result<Appended, AppendError>> {
        match self.unqueued(at, batch) {
            Ok(batch) => self.log.queue.push(batch).boxed(),
            Err(answer) => future::ready(answer).boxed(),
        }
    }

    fn append_all(
        &self,
        batches: Vec<(Partition, Batch)>,
    ) -> Vec<BoxFuture<'static, Result<Appended, AppendError>>> {
        let batches: Vec<_> = batches.into_iter().map(|(at, batch)| self.unqueued(at, batch)).collect();
        self.log.queue.together(|queue| {
            let appending = batches.into_iter().map(|batch| match batch {
                Ok(batch) => queue.push(batch).boxed(),
                Err(answer) => future::ready(answer).boxed(),
            });
            appending.collect()
        })
    }

    fn read(
        &self,
        at: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Entries>, ReadError>> {
        let Some(place) = self.log.partitions.place(at) else {
            return future::ready(Err(ReadError::NoPartition(at))).boxed();
        };
        match self.log.find(place, at, from, bytes_max) {
            Found::Now(found) => future::ready(found).boxed(),
            Found::InSegment(segment) => read_segment(Arc::clone(&self.log), place, segment).boxed(),
        }
    }

    fn extent(&self, at: Partition) -> Extent {
        let none = Extent { oldest: Offset::ZERO, next: Offset::ZERO };
        self.log.partitions.place(at).map_or(none, |place| self.log.catalog_read().extent(place))
    }

    fn progress(&self) -> watch::Receiver<u64> {
        self.log.progress.subscribe()
    }

    fn position(&self, consumer: &str, at: Partition) -> Option<Offset> {
        self.log.positions.get(consumer, self.log.partitions.place(at)?)
    }

    fn commit(&self, consumer: &str, at: Partition, position: Offset) -> BoxFuture<'static, io::Result<()>> {
        let committed = match self.log.partitions.place(at) {
            Some(place) => {
                self.log.positions.set(consumer, place, position);
                Ok(())
            }
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no partition {at}"))),
        };
        future::ready(committed).boxed()
    }

    fn health(&self) -> Health {
        self.log.queue.health()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.log.queue.close();
        let mut ended = self.ended.clone();
        async move {
            // An error means that the threads are gone, which is what is waited for.
            let _ = ended.wait_for(|ended| *ended).await;
        }
        .boxed()
    }
}

impl fmt::Debug for DiskJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskJournal").field("dir", &self.log.config.dir).finish_non_exhaustive()
    }
}

impl Drop for DiskJournal {
    fn drop(&mut self) {
        self.log.queue.close();
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// What the handle, the writer and the housekeeper share.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) partitions: Partitions,
    pub(crate) secret: u64,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) queue: Arc<Queue>,
    catalog: RwLock<Catalog>,
    pub(crate) positions: Positions,
    pub(crate) progress: watch::Sender<u64>,
    pub(crate) metrics: Metrics,
    sequence_next: AtomicU64,
    /// The file that is written now, and the next one, for the housekeeper.
    space: Mutex<Option<Arc<Space>>>,
    spare: Mutex<Option<Arc<Space>>>,
    retention_clock: Mutex<Timestamp>,
    housekeeper: Mutex<Option<Thread>>,
    has_ended: AtomicBool,
    /// Why one of the threads is no more.
    broken: watch::Sender<Option<String>>,
}

impl Log {
    pub(crate) fn catalog_read(&self) -> RwLockReadGuard<'_, Catalog> {
        self.catalog.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn catalog_write(&self) -> RwLockWriteGuard<'_, Catalog> {
        self.catalog.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Counted before anybody is told.
    pub(crate) fn refuse(&self, trouble: &Trouble) {
        self.metrics.refusing(trouble);
        self.queue.refuse(trouble.append_error(), trouble.health());
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.sequence_next.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn space(&self) -> Option<Arc<Space>> {
        held(&self.space).clone()
    }

    pub(crate) fn set_space(&self, space: Option<Arc<Space>>) {
        *held(&self.space) = space;
    }

    /// The next segment's file: the spare, or a new one. Sequences are drawn under the spare's lock only, so files
    /// are used in the order of their sequences, which recovery reads as the order of the records.
    pub(crate) fn next_space(&self) -> Result<Arc<Space>, Trouble> {
        let mut spare = held(&self.spare);
        spare.take().map_or_else(|| Space::create(self), Ok)
    }

    pub(crate) fn prepare_spare(&self) -> Result<(), Trouble> {
        let mut spare = held(&self.spare);
        if spare.is_none() {
            *spare = Some(Space::create(self)?);
        }
        Ok(())
    }

    pub(crate) fn wake_housekeeper(&self) {
        if let Some(housekeeper) = &*held(&self.housekeeper) {
            housekeeper.unpark();
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// The time that ages are counted to: the server's, unless that ran ahead.
    pub(crate) fn retention_now(&self, step_max: Duration) -> Timestamp {
        let mut clock = held(&self.retention_clock);
        *clock = self.clock.now().min(*clock + step_max).max(*clock);
        *clock
    }

    pub(crate) fn measure(&self) {
        let catalog = self.catalog_read();
        let newest = self.space().map_or(0, |s| s.allocated_bytes());
        let sealed: u64 = catalog.segments().map(|s| s.end).sum();
        self.metrics.segments.set(catalog.segments().len() as i64);
        self.metrics.on_disk_bytes.set(sealed + newest);
    }

    fn find(&self, place: usize, at: Partition, from: Offset, bytes_max: usize) -> Found {
        match self.catalog_read().lookup(place, from, bytes_max) {
            Lookup::Gone { oldest } => Found::Now(Err(ReadError::Gone { partition: at, oldest })),
            Lookup::BeyondEnd { next } => {
                Found::Now(Err(ReadError::BeyondEnd { partition: at, asked: from, next }))
            }
            Lookup::Ready(entries) => Found::Now(Ok(entries)),
            Lookup::InSegment { sequence, position, end } => Found::InSegment(FromSegment {
                path: segment_path(&self.config.dir, sequence),
                stamp: stamp(self.secret, sequence),
                position,
                end,
                at,
                from,
                bytes_max,
            }),
        }
    }
}

enum Found {
    Now(Result<Vec<Entries>, ReadError>),
    InSegment(FromSegment),
}

async fn read_segment(log: Arc<Log>, place: usize, segment: FromSegment) -> Result<Vec<Entries>, ReadError> {
    let FromSegment { at, from, bytes_max, .. } = segment;
    let path = segment.path.clone();
    let read = tokio::task::spawn_blocking(move || segment.read()).await;
    match read.unwrap_or_else(|error| Err(ReadError::Io { path, source: io::Error::other(error) })) {
        // The retention, or a start's tail being written anew, may have come between.
        Err(ReadError::Io { path, source }) if source.kind() == io::ErrorKind::NotFound => {
            match log.find(place, at, from, bytes_max) {
                Found::Now(found) => found,
                Found::InSegment(_) => Err(ReadError::Io { path, source }),
            }
        }
        read => read,
    }
}

fn start(
    log: &Arc<Log>,
    committer: Committer,
    trouble: Option<Trouble>,
) -> io::Result<(Vec<JoinHandle<()>>, watch::Receiver<bool>)> {
    let (ended, when_ended) = watch::channel(false);
    let housekeeper = {
        let log = Arc::clone(log);
        thread::Builder::new().name("journal-house".into()).spawn(move || {
            supervised(&log, || housekeeping::run(&log));
            ended.send_replace(true);
        })?
    };
    *held(&log.housekeeper) = Some(housekeeper.thread().clone());
    let writer = {
        let log = Arc::clone(log);
        thread::Builder::new().name("journal-writer".into()).spawn(move || {
            supervised(&log, || committer.run(trouble));
            // The housekeeper outlives the writer.
            log.has_ended.store(true, Ordering::Release);
            log.wake_housekeeper();
        })?
    };
    Ok((vec![writer, housekeeper], when_ended))
}

/// A thread that panics takes the journal with it: nobody knows in which state it left what it was about, and an
/// append must not wait for somebody who is no more.
fn supervised(log: &Log, work: impl FnOnce()) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(work)) else { return };
    let thread = thread::current();
    let reason = format!("{} panicked: {}", thread.name().unwrap_or("a thread"), panic_words(&*panic));
    tracing::error!(dir = %log.config.dir.display(), reason, "the journal takes nothing any more");
    log.broken.send_replace(Some(reason));
    log.queue.close();
    log.queue.refuse(AppendError::Closed, Health::Closed);
}

/// What a directory was made with.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    format: u32,
    telemetry_partitions: u16,
    /// Mixed into every frame; see `frame`.
    secret: u64,
}

impl Meta {
    fn load_or_make(dir: &Path, telemetry_partitions: u16) -> Result<Self, OpenError> {
        let path = dir.join("meta.json");
        let damaged = |reason: String| OpenError::Meta { path: path.clone(), reason };
        let meta = match side_file::load(&path).map_err(|e| io_error("read", &path, e))? {
            Some(None) => return Err(damaged("its checksum does not match".into())),
            Some(Some(bytes)) => {
                serde_json::from_slice::<Self>(&bytes).map_err(|e| damaged(e.to_string()))?
            }
            None if holds_segments(dir).map_err(|e| io_error("list", dir, e))? => {
                return Err(damaged("it does not exist, and there are segments".into()));
            }
            None => {
                let meta = Self { format: FORMAT, telemetry_partitions, secret: random() };
                let bytes = serde_json::to_vec_pretty(&meta).map_err(|e| damaged(e.to_string()))?;
                side_file::store(&path, &bytes).map_err(|e| io_error("write", &path, e))?;
                meta
            }
        };
        if meta.format != FORMAT {
            return Err(damaged(format!("it has format {}, this version knows {FORMAT}", meta.format)));
        }
        let (stored, asked) = (meta.telemetry_partitions, telemetry_partitions);
        if stored != asked {
            return Err(OpenError::Partitions { dir: dir.to_owned(), stored, asked });
        }
        Ok(meta)
    }
}

fn holds_segments(dir: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(dir)? {
        if entry?.path().extension().is_some_and(|e| e == "seg") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Unguessable is enough: no outcome depends on it.
fn random() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one("journal")
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(|e| io_error("open", &path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { dir: dir.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io_error("lock", &path, source)),
    }
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> OpenError {
    OpenError::Io { operation, path: path.to_owned(), source }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
