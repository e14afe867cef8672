//! Checkpoints in an object store, which may be a local directory.
//!
//! `PARTITIONS-PARTITION/SEQUENCE-RUN.ckpt`, one object each:
//! `DLCK` | version u8 | xxh3 of the rest, u64 LE | postcard of (sequence of the base, position, state)
//!
//! A checkpoint is one object, so it is there as a whole or not at all: the position and the state it belongs to. It
//! is whole, a base, or holds what changed since the one before it; a start reads the newest base and all that follow
//! it. One that cannot be read ends the chain before it, and the run goes on from there. After a failed write the next
//! is a base. What two bases have made needless is deleted.
//!
//! A run begins its sequence far behind all that is there, and what it writes bears its name. So whoever goes on writing
//! after a partition was given to another spoils nothing: what it writes stands before that one's first. Even if both
//! went on from the same, neither replaces what is the other's, deletes it or makes a chain with it. Of the store nothing
//! more is asked than to list what was put; conditional requests are not known to all of them.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::File,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use dunlin_journal::Offset;
use dunlin_model::chain;
use futures::TryStreamExt;
use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutPayload, RetryConfig,
    aws::AmazonS3Builder, local::LocalFileSystem, path::Path as Key,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::task::JoinHandle;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 4] = b"DLCK";
const VERSION: u8 = 5;
const HEAD_BYTES: usize = 13;
const ENDING: &str = ".ckpt";
const SEQUENCE_DIGITS: usize = 20;
/// Objects of one chain: a start reads them all.
const CHAIN_MAX: u64 = 256;
/// Left between the sequences of two runs: more than one writes after it has lost its partition.
const RUN_MAX: u64 = 1 << 20;
/// An object store that hangs must not hold back the next try for ever.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// For all that is old at once.
const DELETE_TIMEOUT: Duration = Duration::from_secs(120);
/// One request. Who asks tries again by itself, and wants to be told what is wrong before.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_RETRIES: usize = 3;
/// Says for how many partitions the checkpoints are.
const LAYOUT: &str = "layout";

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{0:?} is no place for checkpoints: a directory, or s3://BUCKET/PREFIX")]
    NoPlace(String),
    #[error("checkpoint {key}")]
    Store { key: String, source: object_store::Error },
    #[error("write {path} through")]
    Sync { path: PathBuf, source: std::io::Error },
    #[error("checkpoint {key} is not one of version {VERSION}")]
    Foreign { key: String },
    #[error("checkpoint {key} is damaged")]
    Damaged { key: String },
    #[error("no answer for {} s", WRITE_TIMEOUT.as_secs())]
    Timeout,
}

/// Where all checkpoints are. Clones are one.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    store: Arc<dyn ObjectStore>,
    prefix: Key,
    /// Of a local store: what is written there is synced by hand.
    root: Option<PathBuf>,
    is_shared: bool,
}

impl CheckpointStore {
    /// In a directory, which is made if it is not there.
    pub fn local(dir: &Path) -> Result<Self, CheckpointError> {
        let made = std::fs::create_dir_all(dir).and_then(|()| std::fs::canonicalize(dir));
        let root = made.map_err(|source| CheckpointError::Sync { path: dir.into(), source })?;
        let store = LocalFileSystem::new_with_prefix(&root)
            .map_err(|source| CheckpointError::Store { key: dir.display().to_string(), source })?;
        Ok(Self { store: Arc::new(store), prefix: Key::default(), root: Some(root), is_shared: false })
    }

    /// At `s3://BUCKET/PREFIX` or `file:///DIRECTORY`. `options` are those of S3 by their usual names, `aws_endpoint` and
    /// so on; others are passed over.
    pub fn at(
        url: &str,
        options: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, CheckpointError> {
        let no_place = || CheckpointError::NoPlace(url.into());
        let parsed = url::Url::parse(url).map_err(|_| no_place())?;
        let (scheme, prefix) = ObjectStoreScheme::parse(&parsed).map_err(|_| no_place())?;
        match scheme {
            ObjectStoreScheme::Local => Self::local(&parsed.to_file_path().map_err(|()| no_place())?),
            ObjectStoreScheme::AmazonS3 => {
                let known = options.into_iter().filter_map(|(name, value)| Some((name.parse().ok()?, value)));
                let builder = AmazonS3Builder::new()
                    .with_url(url)
                    .with_client_options(
                        ClientOptions::new()
                            .with_timeout(REQUEST_TIMEOUT)
                            .with_connect_timeout(CONNECT_TIMEOUT),
                    )
                    .with_retry(RetryConfig {
                        backoff: BackoffConfig::default(),
                        max_retries: REQUEST_RETRIES,
                        retry_timeout: REQUEST_TIMEOUT,
                    });
                let builder = known.fold(builder, |builder, (key, value)| builder.with_config(key, value));
                let store =
                    builder.build().map_err(|source| CheckpointError::Store { key: url.into(), source })?;
                Ok(Self { store: Arc::new(store), prefix, root: None, is_shared: false })
            }
            _ => Err(no_place()),
        }
    }

    /// On any object store.
    pub fn on(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, prefix: Key::default(), root: None, is_shared: false }
    }

    /// Other processes work on theirs at the same time: nothing moves to another number of partitions.
    pub fn shared(self) -> Self {
        Self { is_shared: true, ..self }
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared
    }

    fn key(&self, name: &str) -> Key {
        name.split('/').fold(self.prefix.clone(), |key, part| key.join(part))
    }

    /// For how many partitions the checkpoints are; `None`: there are none yet.
    pub(crate) async fn layout(&self) -> Result<Option<u16>, CheckpointError> {
        match self.get(LAYOUT).await {
            Ok(bytes) => {
                let number = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok());
                number.map(Some).ok_or_else(|| CheckpointError::Damaged { key: LAYOUT.into() })
            }
            Err(CheckpointError::Store { source: object_store::Error::NotFound { .. }, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn set_layout(&self, partitions: u16) -> Result<(), CheckpointError> {
        self.put(LAYOUT, partitions.to_string().into_bytes()).await
    }

    /// Deletes all chains of another number of partitions.
    pub(crate) async fn forget_layout(&self, partitions: u16) -> Result<(), CheckpointError> {
        for partition in 0..partitions {
            let chain = Chain::of(self, partitions, partition);
            for name in chain.names().await? {
                chain.delete(&name).await?;
            }
        }
        Ok(())
    }

    async fn get(&self, name: &str) -> Result<Vec<u8>, CheckpointError> {
        let failed = |source| CheckpointError::Store { key: name.into(), source };
        let found = self.store.get(&self.key(name)).await.map_err(failed)?;
        Ok(found.bytes().await.map_err(failed)?.into())
    }

    /// Durable once this returns.
    async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<(), CheckpointError> {
        let put = async {
            self.store
                .put(&self.key(name), PutPayload::from(bytes))
                .await
                .map_err(|source| CheckpointError::Store { key: name.into(), source })?;
            let Some(root) = self.root.clone() else { return Ok(()) };
            let path = root.join(name);
            let synced = {
                let path = path.clone();
                tokio::task::spawn_blocking(move || {
                    File::open(&path)?.sync_all()?;
                    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
                })
            };
            match synced.await {
                Ok(done) => done.map_err(|source| CheckpointError::Sync { path, source }),
                Err(_) => Err(CheckpointError::Timeout),
            }
        };
        tokio::time::timeout(WRITE_TIMEOUT, put).await.unwrap_or(Err(CheckpointError::Timeout))
    }
}

/// The checkpoints of one partition.
#[derive(Debug, Clone)]
pub(crate) struct Chain {
    store: CheckpointStore,
    name: String,
}

/// Of an object in a chain, which is one run's. Runs before there were several have no name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    sequence: u64,
    run: String,
}

/// A chain as it was found: its states, the oldest first, and what they belong to.
pub(crate) struct Found<S> {
    pub(crate) position: Offset,
    pub(crate) states: Vec<S>,
}

impl Chain {
    pub(crate) fn of(store: &CheckpointStore, partitions: u16, partition: u16) -> Self {
        Self { store: store.clone(), name: format!("{partitions}-{partition}") }
    }

    /// One that is no partition's of telemetry.
    pub(crate) fn named(store: &CheckpointStore, name: &str) -> Self {
        Self { store: store.clone(), name: name.into() }
    }

    fn object(&self, Name { sequence, run }: &Name) -> String {
        format!("{}/{sequence:0SEQUENCE_DIGITS$}{run}{ENDING}", self.name)
    }

    /// Growing.
    async fn names(&self) -> Result<Vec<Name>, CheckpointError> {
        let prefix = self.store.key(&self.name);
        let failed = |source| CheckpointError::Store { key: self.name.clone(), source };
        let listed: Vec<_> = self.store.store.list(Some(&prefix)).try_collect().await.map_err(failed)?;
        let name = |key: &Key| {
            let (sequence, run) = key.filename()?.strip_suffix(ENDING)?.split_at_checked(SEQUENCE_DIGITS)?;
            Some(Name { sequence: sequence.parse().ok()?, run: run.into() })
        };
        let mut names: Vec<Name> = listed.iter().filter_map(|object| name(&object.location)).collect();
        names.sort_unstable();
        Ok(names)
    }

    async fn delete(&self, name: &Name) -> Result<(), CheckpointError> {
        let key = self.object(name);
        match self.store.store.delete(&self.store.key(&key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(CheckpointError::Store { key, source }),
        }
    }

    /// The newest chain that can be read, and the writer that goes on after it. What cannot be read is told and passed.
    pub(crate) async fn load<S: DeserializeOwned>(
        &self,
    ) -> Result<(Option<Found<S>>, Writer), CheckpointError> {
        let names = self.names().await?;
        let next = names.last().map_or(0, |last| last.sequence + RUN_MAX);
        let mut writer = Writer::new(self.clone(), next);
        let mut read = BTreeMap::<Name, (u64, Offset, S)>::new();
        for newest in names.iter().rev() {
            match self.chain_to(newest, &mut read).await {
                Ok(base) => {
                    let position = read[newest].1;
                    let of_chain = base..=newest.sequence;
                    read.retain(|name, _| name.run == newest.run && of_chain.contains(&name.sequence));
                    let states = read.into_values().map(|(_, _, state)| state).collect();
                    writer.good_base = Some(base);
                    return Ok((Some(Found { position, states }), writer));
                }
                // A store that does not answer has not lost anything.
                Err(error @ CheckpointError::Store { .. }) if !is_not_found(&error) => return Err(error),
                Err(error) => {
                    tracing::error!(
                        chain = self.name,
                        object = self.object(newest),
                        error = chain(&error),
                        "checkpoint not usable; going on from one before it"
                    );
                }
            }
        }
        Ok((None, writer))
    }

    /// Reads what the checkpoint needs; the sequence of its base.
    async fn chain_to<S: DeserializeOwned>(
        &self,
        newest: &Name,
        read: &mut BTreeMap<Name, (u64, Offset, S)>,
    ) -> Result<u64, CheckpointError> {
        let mut name = newest.clone();
        let mut base = None;
        loop {
            let object = self.object(&name);
            if let Entry::Vacant(unread) = read.entry(name.clone()) {
                unread.insert(decode(&object, &self.store.get(&object).await?)?);
            }
            let of = read[&name].0;
            let base = *base.get_or_insert(of);
            match name.sequence {
                // The chain is another's, or begins after itself.
                s if of != base || s < base => return Err(CheckpointError::Damaged { key: object }),
                s if s == base => return Ok(base),
                s => name.sequence = s - 1,
            }
        }
    }
}

impl CheckpointError {
    /// The store has answered, and will not answer otherwise if it is asked again.
    pub(crate) fn is_final(&self) -> bool {
        use object_store::Error::{PermissionDenied, Unauthenticated};
        match self {
            Self::Store { source, .. } => matches!(source, PermissionDenied { .. } | Unauthenticated { .. }),
            Self::NoPlace(_) | Self::Damaged { .. } | Self::Foreign { .. } => true,
            Self::Sync { .. } | Self::Timeout => false,
        }
    }
}

fn is_not_found(error: &CheckpointError) -> bool {
    matches!(error, CheckpointError::Store { source: object_store::Error::NotFound { .. }, .. })
}

fn decode<S: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<(u64, Offset, S), CheckpointError> {
    let damaged = || CheckpointError::Damaged { key: key.into() };
    let (head, body) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or_else(damaged)?;
    if head[..4] != *MAGIC || head[4] != VERSION {
        return Err(CheckpointError::Foreign { key: key.into() });
    }
    if head[5..] != xxh3_64(body).to_le_bytes() {
        return Err(damaged());
    }
    let (base, position, state) = postcard::from_bytes::<(u64, u64, S)>(body).map_err(|_| damaged())?;
    Ok((base, Offset(position), state))
}

fn encode(base: u64, position: Offset, state: &impl Serialize) -> Vec<u8> {
    let bytes = vec![0; HEAD_BYTES];
    // Writing into memory does not fail; an object that is cut would not be read.
    let mut bytes = postcard::to_extend(&(base, position.0, state), bytes).unwrap_or_default();
    bytes.resize(bytes.len().max(HEAD_BYTES), 0);
    let sum = xxh3_64(&bytes[HEAD_BYTES..]);
    bytes[..4].copy_from_slice(MAGIC);
    bytes[4] = VERSION;
    bytes[5..HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// Writes one checkpoint after the other, beside the work.
#[derive(Debug)]
pub(crate) struct Writer {
    chain: Chain,
    /// No other writer's.
    run: String,
    first: u64,
    next: u64,
    base: Option<u64>,
    /// The newest that is known to be there, of this run or one before it.
    good_base: Option<u64>,
    base_bytes: u64,
    chain_bytes: u64,
    under_way: Option<UnderWay>,
    deleting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct UnderWay {
    sequence: u64,
    position: Offset,
    bytes: u64,
    is_whole: bool,
    task: JoinHandle<Result<(), CheckpointError>>,
}

/// A checkpoint that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) position: Offset,
    pub(crate) bytes: u64,
    pub(crate) is_whole: bool,
}

impl Writer {
    fn new(chain: Chain, first: u64) -> Self {
        Self {
            chain,
            run: format!("-{:016x}", RandomState::new().hash_one("run")),
            first,
            next: first,
            base: None,
            good_base: None,
            base_bytes: 0,
            chain_bytes: 0,
            under_way: None,
            deleting: None,
        }
    }

    fn name(&self, sequence: u64) -> Name {
        Name { sequence, run: self.run.clone() }
    }

    /// Whether the next has to be whole.
    pub(crate) fn is_whole_due(&self) -> bool {
        let Some(base) = self.base else { return true };
        self.chain_bytes > self.base_bytes || self.next - base >= CHAIN_MAX
    }

    pub(crate) fn is_writing(&self) -> bool {
        self.under_way.is_some()
    }

    /// Begins to write what changed since the one before, or if it `is_whole` everything. One at a time.
    pub(crate) fn begin(&mut self, position: Offset, is_whole: bool, state: &impl Serialize) {
        debug_assert!(self.under_way.is_none() && (is_whole || self.base.is_some()));
        let sequence = self.next;
        self.next += 1;
        let base = self.base.filter(|_| !is_whole).unwrap_or(sequence);
        let bytes = encode(base, position, state);
        let len = bytes.len() as u64;
        let (store, object) = (self.chain.store.clone(), self.chain.object(&self.name(sequence)));
        let task = tokio::spawn(async move { store.put(&object, bytes).await });
        self.under_way = Some(UnderWay { sequence, position, bytes: len, is_whole, task });
    }

    /// What became of the one under way, once it is over; `None` while it is not, or there is none.
    pub(crate) async fn ended(&mut self) -> Option<Result<Written, CheckpointError>> {
        match &self.under_way {
            Some(under_way) if under_way.task.is_finished() => self.finished().await,
            _ => None,
        }
    }

    /// Waits for the one under way, if there is one.
    pub(crate) async fn finished(&mut self) -> Option<Result<Written, CheckpointError>> {
        let UnderWay { sequence, position, bytes, is_whole, task } = self.under_way.take()?;
        let done = task.await.unwrap_or(Err(CheckpointError::Timeout));
        if let Err(error) = done {
            // Whether it is there is not known, and what it holds is in no other.
            self.base = None;
            return Some(Err(error));
        }
        if is_whole {
            self.base = Some(sequence);
            (self.base_bytes, self.chain_bytes) = (bytes, 0);
            // One chain is kept to go back to.
            if let Some(before) = self.good_base.replace(sequence) {
                self.delete_before(before);
            }
        } else {
            self.chain_bytes += bytes;
        }
        Some(Ok(Written { position, bytes, is_whole }))
    }

    /// Of its own and of the runs before it, beside the work. What is left over costs room and nothing else, and goes with
    /// the next.
    fn delete_before(&mut self, sequence: u64) {
        if self.deleting.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (chain, run, first) = (self.chain.clone(), self.run.clone(), self.first);
        self.deleting = Some(tokio::spawn(async move {
            let deleted = async {
                for old in chain.names().await? {
                    if old.sequence < sequence && (old.sequence < first || old.run == run) {
                        chain.delete(&old).await?;
                    }
                }
                Ok::<(), CheckpointError>(())
            };
            let deleted = tokio::time::timeout(DELETE_TIMEOUT, deleted).await;
            if let Err(error) = deleted.unwrap_or(Err(CheckpointError::Timeout)) {
                tracing::warn!(
                    chain = chain.name,
                    error = dunlin_model::chain(&error),
                    "old checkpoints not deleted"
                );
            }
        }));
    }
}

#[cfg(test)]
mod tests;
