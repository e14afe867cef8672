use std::sync::atomic::AtomicU64;

use dunlin_tsdb::Outcome;
use prometheus_client::{
    metrics::{
        counter::Counter,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

#[derive(Debug)]
pub(crate) struct Metrics {
    stored: Counter,
    duplicate: Counter,
    expired: Counter,
    sampled: Counter,
    pub(crate) memtable_bytes: Gauge,
    pub(crate) flush_seconds: Histogram,
    pub(crate) flush_failures: Counter,
    pub(crate) files: Gauge,
    pub(crate) file_bytes: Gauge,
    pub(crate) compactions: Counter,
    pub(crate) compactions_without_room: Counter,
    pub(crate) compaction_seconds: Counter<f64, AtomicU64>,
    pub(crate) query_seconds: Histogram,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let metrics = Self {
            stored: Counter::default(),
            duplicate: Counter::default(),
            expired: Counter::default(),
            sampled: Counter::default(),
            memtable_bytes: Gauge::default(),
            flush_seconds: seconds(),
            flush_failures: Counter::default(),
            files: Gauge::default(),
            file_bytes: Gauge::default(),
            compactions: Counter::default(),
            compactions_without_room: Counter::default(),
            compaction_seconds: Counter::default(),
            query_seconds: seconds(),
        };
        let r = registry;
        let m = &metrics;
        r.register("dunlin_tsdb_rows_stored", "Records stored", m.stored.clone());
        r.register("dunlin_tsdb_rows_duplicate", "Records that were stored before", m.duplicate.clone());
        r.register("dunlin_tsdb_rows_expired", "Records older than the retention", m.expired.clone());
        r.register(
            "dunlin_tsdb_rows_sampled",
            "Records left out, as others stand for them",
            m.sampled.clone(),
        );
        r.register("dunlin_tsdb_memtable_bytes", "Fresh rows in memory", m.memtable_bytes.clone());
        r.register("dunlin_tsdb_flush_seconds", "Writing fresh rows to files", m.flush_seconds.clone());
        r.register(
            "dunlin_tsdb_flush_failures",
            "Flushes that failed and are tried again",
            m.flush_failures.clone(),
        );
        r.register("dunlin_tsdb_files", "Live data files", m.files.clone());
        r.register("dunlin_tsdb_file_bytes", "Live data files' size", m.file_bytes.clone());
        r.register("dunlin_tsdb_compactions", "Partitions compacted", m.compactions.clone());
        r.register(
            "dunlin_tsdb_compactions_without_room",
            "Compactions put off because the disk is nearly full",
            m.compactions_without_room.clone(),
        );
        r.register("dunlin_tsdb_compaction_seconds", "Time spent compacting", m.compaction_seconds.clone());
        r.register("dunlin_tsdb_query_seconds", "Queries, until their last row", m.query_seconds.clone());
        metrics
    }

    pub(crate) fn wrote(&self, outcomes: &[Outcome]) {
        let of = |wanted: Outcome| outcomes.iter().filter(|outcome| **outcome == wanted).count() as u64;
        let (stored, expired, sampled) = (of(Outcome::Stored), of(Outcome::Expired), of(Outcome::Sampled));
        self.stored.inc_by(stored);
        self.expired.inc_by(expired);
        self.sampled.inc_by(sampled);
        self.duplicate.inc_by(of(Outcome::Duplicate));
    }
}
