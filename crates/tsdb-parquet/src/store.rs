use std::{
    any::Any,
    collections::BTreeMap,
    fmt, fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use dunlin_journal::{Offset, Partition as JournalPartition};
use dunlin_model::{Clock, TenantId, Timestamp, panic_words};
use dunlin_tsdb::{
    Counts, Latest, Outcome, Query, QueryError, Series, Sql, SqlLimits, SqlResult, StoreError, Tsdb, Write,
};
use futures::future::{self, BoxFuture, FutureExt};
use prometheus_client::registry::Registry;
use tokio::sync::{oneshot, watch};

use crate::{
    Compacted, Config, compact,
    engine::Engine,
    flush,
    manifest::Manifest,
    metrics::Metrics,
    seek::Seek,
    state::{Retention, State},
};

/// The embedded store. Dropped without `close`, it comes back as its last flush left it.
pub struct ParquetTsdb {
    inner: Arc<Inner>,
    engine: Engine,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Held while the store is open: a second one in the same directory would delete its files.
    _in_use: fs::File,
}

impl fmt::Debug for ParquetTsdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParquetTsdb").field("dir", &self.inner.config.dir).finish_non_exhaustive()
    }
}

/// What all threads of a store share.
pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) seek: Seek,
    /// Held through a write, taken before `state`: between its search in files and its rows no other write comes.
    writing: Mutex<()>,
    /// Held for moments only: queries and those who ask for counts wait for it.
    pub(crate) state: Mutex<State>,
    /// Memory has room again, or will not.
    pub(crate) room: Condvar,
    /// What is committed. Taken before `state` by those who take both.
    pub(crate) manifest: Mutex<Manifest>,
    pub(crate) next_file: AtomicU64,
    pub(crate) compacting: Mutex<()>,
    pub(crate) control: Control,
    /// Why what is in memory can no longer be trusted.
    broken: watch::Sender<Option<String>>,
}

/// What wakes the background threads.
#[derive(Debug, Default)]
pub(crate) struct Control {
    pub(crate) asked: Mutex<Asked>,
    pub(crate) changed: Condvar,
}

#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) stop: bool,
    pub(crate) full: bool,
    pub(crate) flushes: Vec<oneshot::Sender<Result<(), StoreError>>>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("make the directory {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("{path} is used by another process")]
    InUse { path: PathBuf },
    #[error("start a background thread")]
    Thread(#[source] io::Error),
    #[error("set up queries: {0}")]
    Queries(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ParquetTsdb {
    /// Opens the store in `config.dir`, which is made if it is not there.
    pub fn open(config: Config, clock: Clock, registry: &mut Registry) -> Result<Arc<Self>, OpenError> {
        let dir = config.dir.clone();
        let unusable = |source| OpenError::Directory { path: dir.clone(), source };
        fs::create_dir_all(&dir).map_err(unusable)?;
        let config = Config { dir: fs::canonicalize(&dir).map_err(unusable)?, ..config };
        let in_use = fs::File::create(config.dir.join("lock")).map_err(unusable)?;
        if in_use.try_lock().is_err() {
            return Err(OpenError::InUse { path: dir });
        }
        let manifest = Manifest::read(&config.dir)?;
        check_files(&manifest, &config)?;
        let orphans = manifest.remove_orphans(&config.dir)?;
        if orphans > 0 {
            tracing::info!(orphans, "removed files of an unfinished flush or compaction");
        }
        let inner = Arc::new(Inner {
            metrics: Metrics::new(registry),
            seek: Seek::new(config.fingerprint_bytes_max),
            state: Mutex::new(State::restore(&manifest, &config.dir)),
            writing: Mutex::default(),
            room: Condvar::new(),
            next_file: AtomicU64::new(manifest.next_file),
            manifest: Mutex::new(manifest),
            compacting: Mutex::new(()),
            control: Control::default(),
            broken: watch::Sender::new(None),
            clock,
            config,
        });
        inner.show_files();
        let engine = Engine::new(inner.clone()).map_err(|e| OpenError::Queries(e.to_string()))?;
        let store = Arc::new(Self { inner, engine, threads: Mutex::default(), _in_use: in_use });
        store.start_thread("tsdb-flush", flush::run)?;
        store.start_thread("tsdb-compact", compact::run)?;
        Ok(store)
    }

    /// Comes back, with the reason, once a panic has left what is in memory half changed. From then on the store takes
    /// nothing and commits nothing, and in this process it will not again; the next opening finds the last commit.
    pub fn broken(&self) -> BoxFuture<'static, String> {
        let mut broken = self.inner.broken.subscribe();
        async move {
            let reason = broken.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
            match reason {
                Some(reason) => reason,
                // Dropped before it could break.
                None => future::pending().await,
            }
        }
        .boxed()
    }

    fn start_thread(&self, name: &'static str, run: fn(&Inner)) -> Result<(), OpenError> {
        let inner = self.inner.clone();
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            lower_priority();
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(&inner))) {
                inner.break_down(name, &*panic);
            }
        });
        lock(&self.threads).push(thread.map_err(OpenError::Thread)?);
        Ok(())
    }

    /// Flushes, and ends the background work. Writes after it are refused.
    pub async fn close(&self) -> Result<(), StoreError> {
        let flushed = self.flush().await;
        self.stop();
        flushed
    }

    fn stop(&self) {
        lock(&self.inner.control.asked).stop = true;
        self.inner.control.changed.notify_all();
        self.inner.room.notify_all();
    }

    /// Compacts what the rules say is due; the background thread does it by itself.
    pub fn compact_once(&self) -> Result<Compacted, StoreError> {
        compact::compact_once(&self.inner)
    }

    /// Packs every partition for good, whether it is due or not.
    pub fn compact_all(&self) -> Result<Compacted, StoreError> {
        compact::compact_all(&self.inner)
    }

    /// Live data files and their bytes.
    pub fn disk_usage(&self) -> (u64, u64) {
        let manifest = lock(&self.inner.manifest);
        manifest.files().fold((0, 0), |(files, bytes), file| (files + 1, bytes + file.bytes))
    }
}

impl Drop for ParquetTsdb {
    fn drop(&mut self) {
        self.stop();
        for thread in lock(&self.threads).drain(..) {
            // None ends by a panic.
            let _ = thread.join();
        }
    }
}

impl Tsdb for ParquetTsdb {
    fn position(&self, at: JournalPartition) -> Option<Offset> {
        lock(&self.inner.state).positions.get(&at).copied()
    }

    fn write(&self, write: Write<'_, '_>) -> Result<Vec<Outcome>, StoreError> {
        self.inner.write(write)
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        let (reply, flushed) = oneshot::channel();
        let mut asked = lock(&self.inner.control.asked);
        if !asked.stop {
            asked.flushes.push(reply);
        }
        drop(asked);
        self.inner.control.changed.notify_all();
        async move {
            flushed.await.unwrap_or_else(|_| Err(StoreError::Engine { reason: "the store is closed".into() }))
        }
        .boxed()
    }

    fn stalled(&self) -> Option<String> {
        // Not held while waiting for the state, under which it may be told.
        let broken = self.inner.broken.borrow().clone();
        let failed = || lock(&self.inner.state).flush_error.as_ref().map(|e| format!("flush failed: {e}"));
        broken.or_else(failed)
    }

    fn durable_positions(&self) -> Vec<(JournalPartition, Offset)> {
        lock(&self.inner.manifest).positions.iter().map(|(at, offset)| (*at, *offset)).collect()
    }

    fn counts(&self) -> BTreeMap<TenantId, Counts> {
        lock(&self.inner.state).counts()
    }

    fn latest<'a>(
        &'a self,
        tenant: &'a TenantId,
        devices: &'a [String],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Latest>, QueryError>> {
        self.engine.latest(tenant, devices, limit).boxed()
    }

    fn query<'a>(
        &'a self,
        tenant: &'a TenantId,
        query: Query,
    ) -> BoxFuture<'a, Result<Vec<Series>, QueryError>> {
        self.engine.query(tenant, query).boxed()
    }
}

impl Sql for ParquetTsdb {
    fn sql<'a>(
        &'a self,
        tenant: &'a TenantId,
        text: &'a str,
        limits: SqlLimits,
    ) -> BoxFuture<'a, Result<SqlResult, QueryError>> {
        self.engine.sql(tenant, text, limits).boxed()
    }
}

impl Inner {
    fn write(&self, write: Write<'_, '_>) -> Result<Vec<Outcome>, StoreError> {
        // As of when the record came, which the journal says: a replay decides as the first run did, and a clock that
        // runs ahead by now takes nothing from what came before.
        let retention = Retention(self.config.retention_seconds.map(Duration::from_secs));
        let _one_at_a_time = lock(&self.writing);
        let (mut state, found) = loop {
            let mut state = self.with_room()?;
            let mut late = state.find_late(&write, retention)?;
            if late.needs_files() {
                // Queries and the flush go on while files are read.
                drop(state);
                late.seek(&write, &self.seek)?;
                state = lock(&self.state);
                if !state.is_as_before(&late) {
                    continue;
                }
            }
            break (state, late.into_found());
        };
        let latest_max = self.config.latest_devices_max;
        let stored = catch_unwind(AssertUnwindSafe(|| state.store(&write, retention, &found, latest_max)));
        // Before anybody else comes to the state: half a write must not be committed.
        let outcomes = stored.map_err(|panic| self.break_down("write", &*panic))??;
        let bytes = state.bytes;
        drop(state);
        self.metrics.wrote(&outcomes);
        self.metrics.memtable_bytes.set(bytes as i64);
        if bytes >= self.config.memtable_bytes_max {
            self.ask_for_room();
        }
        Ok(outcomes)
    }

    /// Rows before it have expired.
    pub(crate) fn oldest(&self, now: Timestamp) -> Option<Timestamp> {
        self.config.retention_seconds.map(|seconds| now - Duration::from_secs(seconds))
    }

    /// What is in memory is no longer a function of what was written: no more of it is taken or committed. Who waits
    /// for a flush is told, and the threads end.
    pub(crate) fn break_down(&self, part: &str, panic: &(dyn Any + Send)) -> StoreError {
        let reason = format!("{part} panicked: {}", panic_words(panic));
        tracing::error!(dir = %self.config.dir.display(), reason, "the store takes nothing any more");
        self.broken.send_replace(Some(reason.clone()));
        let mut asked = lock(&self.control.asked);
        asked.stop = true;
        asked.flushes.clear();
        drop(asked);
        self.control.changed.notify_all();
        self.room.notify_all();
        StoreError::Engine { reason }
    }

    fn check_whole(&self) -> Result<(), StoreError> {
        match &*self.broken.borrow() {
            Some(reason) => Err(StoreError::Engine { reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// The state, once fresh rows fit into memory.
    fn with_room(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let mut state = lock(&self.state);
        self.check_whole()?;
        while state.bytes >= self.config.memtable_bytes_max {
            if let Some(error) = &state.flush_error {
                return Err(StoreError::Engine {
                    reason: format!("memory is full and the flush failed: {error}"),
                });
            }
            if self.is_stopping() {
                return Err(StoreError::Engine { reason: "the store is closed".into() });
            }
            self.ask_for_room();
            // The time-out is for a wake-up between the two locks.
            let waited = self.room.wait_timeout(state, Duration::from_millis(50));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(state)
    }

    fn ask_for_room(&self) {
        lock(&self.control.asked).full = true;
        self.control.changed.notify_all();
    }

    pub(crate) fn is_stopping(&self) -> bool {
        lock(&self.control.asked).stop
    }

    pub(crate) fn new_file_id(&self) -> u64 {
        self.next_file.fetch_add(1, Ordering::Relaxed)
    }

    /// Commits what `change` makes of the manifest, and then lets `publish` show it to queries.
    pub(crate) fn commit(
        &self,
        change: impl FnOnce(&mut Manifest),
        publish: impl FnOnce(&mut State),
    ) -> Result<(), StoreError> {
        let commit = || {
            let mut committed = lock(&self.manifest);
            self.check_whole()?;
            let mut next = committed.clone();
            change(&mut next);
            next.next_file = self.next_file.load(Ordering::Relaxed);
            if next != *committed {
                next.write(&self.config.dir)?;
                *committed = next;
            }
            publish(&mut lock(&self.state));
            Ok(())
        };
        catch_unwind(AssertUnwindSafe(commit)).map_err(|panic| self.break_down("commit", &*panic))??;
        self.show_files();
        Ok(())
    }

    fn show_files(&self) {
        let manifest = lock(&self.manifest);
        let (files, bytes) = manifest.files().fold((0, 0), |(n, bytes), file| (n + 1, bytes + file.bytes));
        self.metrics.files.set(files);
        self.metrics.file_bytes.set(bytes as i64);
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("dir", &self.config.dir).finish_non_exhaustive()
    }
}

/// Work that changes nothing in memory: a panic of it is a failure like others, and it may be tried again.
pub(crate) fn contained<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let failed = |panic: Box<dyn Any + Send>| StoreError::Engine {
        reason: format!("panicked: {}", panic_words(&*panic)),
    };
    catch_unwind(AssertUnwindSafe(work)).map_err(failed)?
}

fn check_files(manifest: &Manifest, config: &Config) -> Result<(), StoreError> {
    for file in manifest.files() {
        let path = config.dir.join(&file.path);
        match fs::metadata(&path) {
            Ok(found) if found.len() == file.bytes => {}
            Ok(found) => {
                let reason = format!("it has {} bytes and not {}", found.len(), file.bytes);
                return Err(StoreError::Corrupt { path, reason });
            }
            Err(source) => return Err(StoreError::Read { path, source }),
        }
    }
    Ok(())
}

/// Background work and queries give way to the gateway.
pub(crate) fn lower_priority() {
    const NICE: i32 = 5;
    // On Linux the priority is the calling thread's own. Where that is refused, it stays.
    let _ = rustix::process::setpriority_process(None, NICE);
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
