use std::{collections::BTreeMap, fmt, io, path::PathBuf, time::Duration};

use arrow::{datatypes::SchemaRef, record_batch::RecordBatch};
use dunlin_journal::{Offset, Partition};
use dunlin_model::{Record, TenantId, Timestamp, Value};
use futures::{future::BoxFuture, stream::BoxStream};

/// Where readings are kept and asked for.
///
/// - `write` makes records visible to queries at once and durable at some later flush. A flush commits the data and
///   the journal position together, so that after a crash the caller resumes from `position` and every record is
///   stored exactly once.
/// - A record of the same tenant, device type, device and time (by the device's clock) and with the same readings as
///   one that is stored is a duplicate and is not stored again, however old it is. Readings are the same when their
///   metrics and values are, in any order; 5 and 5.0 are the same value. A record filed under the server's time is a
///   duplicate only if the caller knows it to be one.
/// - A record that was older than the retention when it was received is expired and not stored.
/// - A reading may stand for others (`StoredRecord::weights`). Its weight is no part of what makes a copy.
/// - Of a metric that stands twice in a record the first value counts.
/// - A metric that ever had a fraction may give its integers back as floats of the same value.
/// - Every query sees the rows of one tenant only.
pub trait Tsdb: fmt::Debug + Send + Sync + 'static {
    /// The journal offset from which `write` must continue; `None` before the first write. What a reopened store
    /// says is what its last flush committed.
    fn position(&self, at: Partition) -> Option<Offset>;

    /// Stores the records of a stretch of the journal, in order, all or (on an error) none of them. `write.next`
    /// becomes the position of `write.partition` with the next flush. Blocking: memory, rarely disk reads, and the
    /// end of a flush when memory is full.
    fn write(&self, write: Write<'_, '_>) -> Result<Vec<Outcome>, StoreError>;

    /// Makes all that was written durable. Returns when the positions are.
    fn flush(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Why what was written cannot be made durable at present; `None` once it can again. What is written stays visible
    /// meanwhile.
    fn stalled(&self) -> Option<String>;

    /// Durable positions, by partition: what a crash now would resume from.
    fn durable_positions(&self) -> Vec<(Partition, Offset)>;

    /// Records stored, duplicate, expired and sampled by tenant, from the first record of the journal to `position`;
    /// commits with the data.
    fn counts(&self) -> BTreeMap<TenantId, Counts>;

    /// The newest value of every metric of these devices (all of the tenant's devices if empty): the first `limit`
    /// values by device and metric.
    fn latest<'a>(
        &'a self,
        tenant: &'a TenantId,
        devices: &'a [String],
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Latest>, QueryError>>;

    /// Points of some metrics of some devices, raw or aggregated in steps.
    fn query<'a>(
        &'a self,
        tenant: &'a TenantId,
        query: Query,
    ) -> BoxFuture<'a, Result<Vec<Series>, QueryError>>;
}

/// SQL over a tenant's tables: one per device type with its metrics as columns, and `readings`, the long view.
pub trait Sql: fmt::Debug + Send + Sync + 'static {
    fn sql<'a>(
        &'a self,
        tenant: &'a TenantId,
        text: &'a str,
        limits: SqlLimits,
    ) -> BoxFuture<'a, Result<SqlResult, QueryError>>;
}

/// A stretch of one partition of the journal, decoded.
#[derive(Debug)]
pub struct Write<'w, 'r> {
    pub partition: Partition,
    pub records: &'w [StoredRecord<'r>],
    /// The offset after the last record read, whether or not its record is among `records`.
    pub next: Offset,
}

/// A record, and what the caller knows of it.
#[derive(Debug)]
pub struct StoredRecord<'a> {
    pub record: Record<'a>,
    /// It is a copy, and only counted.
    pub known_duplicate: bool,
    /// Others stand for it, and it is only counted.
    pub is_sampled_out: bool,
    /// For how many each of its readings stands, in their order; empty: each for itself.
    pub weights: Vec<u32>,
}

impl<'a> StoredRecord<'a> {
    /// A new record that stands for itself.
    pub fn of(record: Record<'a>) -> Self {
        Self { record, known_duplicate: false, is_sampled_out: false, weights: Vec::new() }
    }
}

/// What a store calls the weights of a metric's readings, where it gives them a name: `METRIC__weight`.
pub const WEIGHT_SUFFIX: &str = "__weight";

/// What became of one record, in the order of `Write::records`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Stored,
    Duplicate,
    Expired,
    /// Left out, as others stand for it.
    Sampled,
}

/// How many records had which outcome. `read` is their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub stored: u64,
    pub duplicate: u64,
    pub expired: u64,
    pub sampled: u64,
    /// Readings in the stored records.
    pub readings: u64,
}

impl Counts {
    pub fn read(&self) -> u64 {
        self.stored + self.duplicate + self.expired + self.sampled
    }
}

/// The newest value of one metric of one device.
#[derive(Debug, Clone, PartialEq)]
pub struct Latest {
    pub device: String,
    pub metric: String,
    pub time: Timestamp,
    pub value: Value,
}

/// From `start` up to but not including `end`.
#[derive(Debug, Clone)]
pub struct Query {
    /// All of the tenant's devices if empty.
    pub devices: Vec<String>,
    /// All metrics if empty.
    pub metrics: Vec<String>,
    pub start: Timestamp,
    pub end: Timestamp,
    /// With a step: one point per step that has data, at the step's start. Steps are aligned to 1970.
    pub step: Option<(Duration, Aggregate)>,
    /// Points over all series, at the most; more is an error that says so, not a cut.
    pub points_max: usize,
}

/// How the values of a step become one. The average, the least, the greatest and the sum are of numbers (a bool is
/// 0 or 1) and leave texts out; the others take every value. Average, sum and count go by the weights of the readings,
/// so that they are those of all that were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregate {
    Avg,
    Min,
    Max,
    Sum,
    Count,
    First,
    Last,
}

/// The points of one metric of one device, by time.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub device: String,
    pub metric: String,
    pub points: Vec<(Timestamp, Value)>,
    /// Some of the readings stand for others that were left out.
    pub is_sampled: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct SqlLimits {
    pub rows_max: usize,
    pub timeout: Duration,
}

pub struct SqlResult {
    pub schema: SchemaRef,
    pub batches: BoxStream<'static, Result<RecordBatch, QueryError>>,
}

impl fmt::Debug for SqlResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlResult").field("schema", &self.schema).finish_non_exhaustive()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is damaged: {reason}")]
    Corrupt { path: PathBuf, reason: String },
    /// A bug or a broken file, seen by the engine below.
    #[error("storage engine: {reason}")]
    Engine { reason: String },
}

#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The asker's mistake; the text says what to change.
    #[error("{0}")]
    Invalid(String),
    #[error("the result has more than {max} {what}; narrow the range or ask for a step")]
    TooLarge { what: &'static str, max: usize },
    #[error("the query took longer than {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the query needs more memory than it may use; narrow the range or ask for less")]
    OutOfMemory,
    #[error(transparent)]
    Store(#[from] StoreError),
}
