use std::{fmt, io, path::PathBuf, time::Duration};

use bytes::Bytes;
use dunlin_model::Timestamp;
use futures::future::BoxFuture;
use tokio::sync::watch;

use crate::Membership;

/// An ordered, durable, partitioned log.
///
/// - A batch is durable once `append` returns its offset, and every later reader reads it.
/// - Within a partition, offsets follow the order of the `append` calls, count records one by one, and have no gaps. The
///   records of a batch stand together, unless other processes append to the partition as well: then theirs may stand
///   between.
/// - A reader never sees a record that is not durable. A batch is no transaction: a journal that is somewhere else may
///   show its first records before `append` has returned, and after an error some of them may be there without the
///   others. Whoever needs a message whole recognises its records one by one when it is sent again.
/// - After an error from `append` the batch may or may not be in the log (the outcome is unknown);
///   unless the error is `Full` or `TooLarge`: then it is not.
/// - Records older than the retention may be gone; a reader learns it as `ReadError::Gone`. Retention never
///   takes a record that a consumer with a committed position has not passed.
pub trait Journal: fmt::Debug + Send + Sync + 'static {
    /// How many partitions a topic has. At least one, and fixed while the journal is open.
    fn partitions(&self, topic: Topic) -> u16;

    /// Appends a batch; its place among the others is decided by the call, not by the first poll. A future that is
    /// dropped leaves the outcome unknown: a batch on its way to the disk is written, one that still waited for room
    /// may not be. Whoever counts on it waits for it.
    fn append(&self, at: Partition, batch: Batch) -> BoxFuture<'static, Result<Appended, AppendError>>;

    /// Appends batches as that many calls of `append` would, with an answer for each. Who has several at hand calls
    /// this: the backend then sees them together, and need not begin with the first.
    fn append_all(
        &self,
        batches: Vec<(Partition, Batch)>,
    ) -> Vec<BoxFuture<'static, Result<Appended, AppendError>>> {
        batches.into_iter().map(|(at, batch)| self.append(at, batch)).collect()
    }

    /// The records from `from` on, in order: about `bytes_max` bytes of them, at least one batch if there is any,
    /// none if `from` is the end. The first batch may start before `from`; `Entries` hides what is before it.
    fn read(
        &self,
        at: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Entries>, ReadError>>;

    /// What can be read now.
    fn extent(&self, at: Partition) -> Extent;

    /// Changes whenever something became readable in any partition; to wait without polling.
    fn progress(&self) -> watch::Receiver<u64>;

    /// Where `consumer` committed that it has got to; `None` if it never did.
    fn position(&self, consumer: &str, at: Partition) -> Option<Offset>;

    /// Takes part in the work of `consumer` on a topic, with all processes that do. A journal of one's own gives everything
    /// at once. Once at a time in a process, for a consumer.
    fn join(&self, _consumer: &str, topic: Topic) -> Membership {
        Membership::alone((0..self.partitions(topic)).map(|index| Partition::new(topic, index)))
    }

    /// Remembers that `consumer` needs nothing before `position` any more. Survives a restart; after a crash an
    /// older position may come back, so a consumer whose results are stored elsewhere keeps its own. Of a consumer that
    /// was joined, only where its partition is held.
    fn commit(&self, consumer: &str, at: Partition, position: Offset) -> BoxFuture<'static, io::Result<()>>;

    /// Whether an append can succeed now.
    fn health(&self) -> Health;

    /// Refuses new appends, lets those under way end, and makes positions durable.
    fn close(&self) -> BoxFuture<'static, ()>;
}

/// Waits until the journal has grown, of which a reader that found nothing was told by `progress`. That is of all topics, and
/// so mostly none of the reader's: it looks no sooner than `gather` from now.
pub async fn until_grown(progress: &mut watch::Receiver<u64>, gather: Duration) {
    tokio::time::sleep(gather).await;
    // An error means the journal is gone; then only the stop is left to wait for.
    if progress.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What a journal carries. The ordinal is stored and must stay what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Topic {
    /// Device messages, as Avro records (`dunlin_model::avro`).
    Telemetry = 0,
    /// Connect, disconnect, gap, firmware state.
    Events = 1,
    /// Alert transitions: pending, firing, resolved.
    Alerts = 2,
    Commands = 3,
    CommandReplies = 4,
    /// What was refused: the reason and the original bytes.
    Rejected = 5,
    /// Subscriptions, sessions and what waits in them (`dunlin_broker::Change`).
    Sessions = 6,
    /// How many devices of a group there are and on how many its condition holds, as each partition of telemetry counts
    /// them (`dunlin_pipeline::Partial`).
    Partials = 7,
}

impl Topic {
    pub const ALL: [Self; 8] = [
        Self::Telemetry,
        Self::Events,
        Self::Alerts,
        Self::Commands,
        Self::CommandReplies,
        Self::Rejected,
        Self::Sessions,
        Self::Partials,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Telemetry => "telemetry",
            Self::Events => "events",
            Self::Alerts => "alerts",
            Self::Commands => "commands",
            Self::CommandReplies => "command-replies",
            Self::Rejected => "rejected",
            Self::Sessions => "sessions",
            Self::Partials => "partials",
        }
    }

    pub fn from_ordinal(ordinal: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|t| *t as u8 == ordinal)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    pub topic: Topic,
    pub index: u16,
}

impl Partition {
    pub fn new(topic: Topic, index: u16) -> Self {
        Self { topic, index }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic.name(), self.index)
    }
}

/// The number of a record within its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Offset(pub u64);

impl Offset {
    pub const ZERO: Self = Self(0);

    pub fn after(self, records: u64) -> Self {
        Self(self.0 + records)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Records on their way into the log: each a length (u32, little endian) and its bytes, one after the other, so
/// that what the gateway encoded is what is written.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    records: u32,
}

impl Batch {
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), records: 0 }
    }

    pub fn push(&mut self, record: &[u8]) {
        self.push_with(|out| out.extend_from_slice(record));
    }

    /// Adds the record that `encode` appends to the buffer. If that panics the batch is as it was: it carries the
    /// records of others.
    pub fn push_with(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        let record = Unfinished { start: self.bytes.len(), batch: self };
        record.batch.bytes.extend_from_slice(&[0; 4]);
        encode(&mut record.batch.bytes);
        record.finish();
    }

    pub fn len(&self) -> u32 {
        self.records
    }

    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    pub fn into_bytes(self) -> Bytes {
        self.bytes.into()
    }
}

/// A record that is being added to a batch; dropped, it is taken out again.
struct Unfinished<'a> {
    batch: &'a mut Batch,
    start: usize,
}

impl Unfinished<'_> {
    fn finish(mut self) {
        let (start, bytes) = (self.start, &mut self.batch.bytes);
        let len = u32::try_from(bytes.len() - start - 4).expect("a record is far smaller than 4 GiB");
        bytes[start..start + 4].copy_from_slice(&len.to_le_bytes());
        self.batch.records += 1;
        self.start = usize::MAX;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.batch.bytes.truncate(self.start);
    }
}

/// Where a batch went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    pub first: Offset,
    pub records: u32,
}

/// A batch as it is read, from some offset on.
#[derive(Debug, Clone)]
pub struct Entries {
    first: Offset,
    records: u32,
    skip: u32,
    appended_at: Timestamp,
    bytes: Bytes,
}

impl Entries {
    /// `bytes` is what `Batch::into_bytes` gave. Records before `from` are not shown.
    pub fn new(first: Offset, records: u32, appended_at: Timestamp, bytes: Bytes, from: Offset) -> Self {
        let skip = from.0.saturating_sub(first.0).min(u64::from(records)) as u32;
        Self { first, records, skip, appended_at, bytes }
    }

    /// The offset of the first record shown.
    pub fn first(&self) -> Offset {
        self.first.after(u64::from(self.skip))
    }

    /// The offset after the last record.
    pub fn next(&self) -> Offset {
        self.first.after(u64::from(self.records))
    }

    pub fn len(&self) -> u32 {
        self.records - self.skip
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// When the log took the batch, by the server's clock.
    pub fn appended_at(&self) -> Timestamp {
        self.appended_at
    }

    pub fn iter(&self) -> impl Iterator<Item = Entry<'_>> {
        let mut rest = &self.bytes[..];
        (0..self.records)
            .map_while(move |n| {
                let (len, tail) = rest.split_first_chunk::<4>()?;
                let (record, tail) = tail.split_at_checked(u32::from_le_bytes(*len) as usize)?;
                rest = tail;
                Some(Entry { offset: self.first.after(u64::from(n)), bytes: record })
            })
            .skip(self.skip as usize)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    pub offset: Offset,
    pub bytes: &'a [u8],
}

/// What a partition holds: `oldest` up to but not including `next`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    pub oldest: Offset,
    pub next: Offset,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// Nothing was written. Space must come back first; the journal notices by itself.
    #[error("the journal has no space left: {reason}")]
    Full { reason: String },
    /// A write or a sync failed. What was under way has an unknown outcome; the journal reopens by itself.
    #[error("the journal is fenced after a failed {operation}: {reason}")]
    Fenced { operation: &'static str, reason: String },
    #[error("the journal is closed")]
    Closed,
    #[error("a batch has at most {max} bytes, this one has {bytes}")]
    TooLarge { bytes: usize, max: usize },
    #[error("there is no partition {0}")]
    NoPartition(Partition),
    /// For journals that are somewhere else.
    #[error("the journal is unreachable: {reason}")]
    Unreachable { reason: String },
}

impl AppendError {
    /// Whether the same batch may be accepted later.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::TooLarge { .. } | Self::NoPartition(_))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{partition} starts at {oldest} now; the retention took what was before")]
    Gone { partition: Partition, oldest: Offset },
    #[error("{partition} ends at {next}, before {asked}")]
    BeyondEnd { partition: Partition, asked: Offset, next: Offset },
    #[error("{path} is damaged at byte {position}: {reason}")]
    Corrupt { path: PathBuf, position: u64, reason: String },
    #[error("read {path}")]
    Io { path: PathBuf, source: io::Error },
    #[error("there is no partition {0}")]
    NoPartition(Partition),
    #[error("the journal is unreachable: {reason}")]
    Unreachable { reason: String },
}

/// Whether appends can succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Writable,
    /// Refusing; the reason, and what it waits for.
    Refusing {
        reason: String,
        recovery: Recovery,
    },
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// Resumes by itself when space comes back.
    Space,
    /// Reopens by itself with a growing pause between tries.
    Reopen,
}
