use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::commit::Trouble;

#[derive(Debug)]
pub(crate) struct Metrics {
    appended_records: Counter,
    appended_bytes: Counter,
    commits: Counter,
    commit_group_batches: Histogram,
    pub(crate) fdatasync_seconds: Histogram,
    pub(crate) queue_bytes: Gauge,
    fenced: Gauge,
    full: Gauge,
    failures: Family<Operation, Counter>,
    pub(crate) segments: Gauge,
    pub(crate) on_disk_bytes: Gauge<u64, AtomicU64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            appended_records: Counter::default(),
            appended_bytes: Counter::default(),
            commits: Counter::default(),
            commit_group_batches: Histogram::new(exponential_buckets(1.0, 2.0, 14)),
            fdatasync_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 16)),
            queue_bytes: Gauge::default(),
            fenced: Gauge::default(),
            full: Gauge::default(),
            failures: Family::default(),
            segments: Gauge::default(),
            on_disk_bytes: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("dunlin_journal_disk");
        let m = &metrics;
        registry.register("appended_records", "Records made durable", m.appended_records.clone());
        registry.register("appended_bytes", "Bytes made durable, with frames", m.appended_bytes.clone());
        registry.register("commits", "Groups made durable, each by one fdatasync", m.commits.clone());
        registry.register("commit_group_batches", "Batches in a group", m.commit_group_batches.clone());
        registry.register("fdatasync_seconds", "How long an fdatasync took", m.fdatasync_seconds.clone());
        registry.register(
            "queue_bytes",
            "Bytes of batches under way after the last commit",
            m.queue_bytes.clone(),
        );
        registry.register("fenced", "1 while appends are refused after a failed operation", m.fenced.clone());
        registry.register("full", "1 while appends are refused for want of space", m.full.clone());
        registry.register("failures", "Operations on the disk that failed", m.failures.clone());
        registry.register("segments", "Segments that hold records", m.segments.clone());
        registry.register("on_disk_bytes", "Bytes that segments occupy", m.on_disk_bytes.clone());
        metrics
    }

    pub(crate) fn committed(&self, batches: usize, records: u64, bytes: u64) {
        self.appended_records.inc_by(records);
        self.appended_bytes.inc_by(bytes);
        self.commits.inc();
        self.commit_group_batches.observe(batches as f64);
    }

    pub(crate) fn refusing(&self, trouble: &Trouble) {
        let operation = match trouble {
            Trouble::NoSpace { .. } => "allocating space",
            Trouble::Failed { operation, .. } => operation,
        };
        self.failures.get_or_create(&Operation { operation }).inc();
        self.full.set(i64::from(matches!(trouble, Trouble::NoSpace { .. })));
        self.fenced.set(i64::from(matches!(trouble, Trouble::Failed { .. })));
    }

    pub(crate) fn writable(&self) {
        self.full.set(0);
        self.fenced.set(0);
    }
}
