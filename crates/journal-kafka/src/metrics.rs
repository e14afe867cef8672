use dunlin_journal::AppendError;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Debug)]
pub(crate) struct Metrics {
    appended_records: Counter,
    appended_bytes: Counter,
    failed_records: Family<Reason, Counter>,
    pub(crate) producers_lost: Counter,
    inflight_bytes: Gauge,
    inflight_records: Gauge,
    waiting_batches: Gauge,
    pub(crate) stuck_seconds: Gauge,
    pub(crate) writable: Gauge,
    pub(crate) partitions_without_leader: Gauge,
    pub(crate) partitions_below_min_isr: Gauge,
    pub(crate) partitions_under_replicated: Gauge,
    pub(crate) fetched_records: Counter,
    pub(crate) cold_reads: Counter,
    pub(crate) trimmed_records: Counter,
    lag_records: Family<Lag, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lag {
    consumer: String,
    partition: String,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let m = Self {
            appended_records: Counter::default(),
            appended_bytes: Counter::default(),
            failed_records: Family::default(),
            producers_lost: Counter::default(),
            inflight_bytes: Gauge::default(),
            inflight_records: Gauge::default(),
            waiting_batches: Gauge::default(),
            stuck_seconds: Gauge::default(),
            writable: Gauge::default(),
            partitions_without_leader: Gauge::default(),
            partitions_below_min_isr: Gauge::default(),
            partitions_under_replicated: Gauge::default(),
            fetched_records: Counter::default(),
            cold_reads: Counter::default(),
            trimmed_records: Counter::default(),
            lag_records: Family::default(),
        };
        let registry = registry.sub_registry_with_prefix("dunlin_journal_kafka");
        registry.register(
            "appended_records",
            "Records that all in-sync replicas have",
            m.appended_records.clone(),
        );
        registry.register("appended_bytes", "Bytes of them, before compression", m.appended_bytes.clone());
        registry.register("failed_records", "Records whose append failed", m.failed_records.clone());
        registry.register("producers_lost", "Producers that could not go on", m.producers_lost.clone());
        registry.register("inflight_bytes", "Bytes under way to the brokers", m.inflight_bytes.clone());
        registry.register("inflight_records", "Records under way to the brokers", m.inflight_records.clone());
        registry.register("waiting_batches", "Batches that wait for room", m.waiting_batches.clone());
        registry.register(
            "stuck_seconds",
            "For how long nothing was acknowledged though something is under way",
            m.stuck_seconds.clone(),
        );
        registry.register("writable", "1 if appends can succeed", m.writable.clone());
        registry.register(
            "partitions_without_leader",
            "Partitions that nobody takes records for",
            m.partitions_without_leader.clone(),
        );
        registry.register(
            "partitions_below_min_isr",
            "Partitions with too few replicas in sync to acknowledge",
            m.partitions_below_min_isr.clone(),
        );
        registry.register(
            "partitions_under_replicated",
            "Partitions with replicas that are not in sync",
            m.partitions_under_replicated.clone(),
        );
        registry.register(
            "fetched_records",
            "Records fetched at the journal's end",
            m.fetched_records.clone(),
        );
        registry.register("cold_reads", "Reads of what is no longer in memory", m.cold_reads.clone());
        registry.register("trimmed_records", "Records that the retention deleted", m.trimmed_records.clone());
        registry.register("lag_records", "Records that a consumer has not passed", m.lag_records.clone());
        m
    }

    pub(crate) fn appended(&self, records: u32, bytes: usize) {
        self.appended_records.inc_by(u64::from(records));
        self.appended_bytes.inc_by(bytes as u64);
    }

    pub(crate) fn failed(&self, error: &AppendError, records: u32) {
        let reason = match error {
            AppendError::Fenced { .. } => "fenced",
            _ => "unreachable",
        };
        self.failed_records.get_or_create(&Reason { reason }).inc_by(u64::from(records));
    }

    pub(crate) fn under_way(&self, bytes: usize, records: usize, waiting: usize) {
        self.inflight_bytes.set(bytes as i64);
        self.inflight_records.set(records as i64);
        self.waiting_batches.set(waiting as i64);
    }

    pub(crate) fn lag(&self, consumer: String, partition: String, records: u64) {
        self.lag_records.get_or_create(&Lag { consumer, partition }).set(records as i64);
    }
}
