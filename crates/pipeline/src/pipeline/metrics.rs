use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{PartitionStatus, Tally};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct At {
    partition: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    /// `whole`, or `changes` since the one before.
    kind: &'static str,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    records: Family<Outcome, Counter>,
    pub(super) transitions: Counter,
    checkpoints: Family<Kind, Counter>,
    checkpoint_bytes: Counter,
    pub(super) checkpoint_failures: Counter,
    pub(super) broken: Counter,
    pub(super) partitions: Gauge,
    pub(super) partitions_held: Gauge,
    pub(super) groups_held: Gauge,
    lag: Family<At, Gauge>,
    devices: Family<At, Gauge>,
    windows: Family<At, Gauge>,
    forgotten: Family<At, Gauge>,
    evicted: Family<At, Gauge>,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register("dunlin_pipeline_records", "Records that the rules took in", m.records.clone());
        registry.register("dunlin_pipeline_transitions", "Alert transitions said", m.transitions.clone());
        registry.register("dunlin_pipeline_checkpoints", "Checkpoints written", m.checkpoints.clone());
        registry.register(
            "dunlin_pipeline_checkpoint_bytes",
            "Bytes of checkpoints written",
            m.checkpoint_bytes.clone(),
        );
        registry.register(
            "dunlin_pipeline_checkpoint_failures",
            "Checkpoints that could not be written",
            m.checkpoint_failures.clone(),
        );
        registry.register(
            "dunlin_pipeline_broken_devices",
            "Devices that start afresh because a rule broke on their silence",
            m.broken.clone(),
        );
        registry.register("dunlin_pipeline_partitions", "Partitions that there are", m.partitions.clone());
        registry.register(
            "dunlin_pipeline_partitions_held",
            "Partitions that this process evaluates",
            m.partitions_held.clone(),
        );
        registry.register(
            "dunlin_pipeline_groups_held",
            "1 if this process judges groups",
            m.groups_held.clone(),
        );
        registry.register("dunlin_pipeline_lag_records", "Records not yet evaluated", m.lag.clone());
        registry.register("dunlin_pipeline_devices", "Devices with state", m.devices.clone());
        registry.register(
            "dunlin_pipeline_windows",
            "Panes and readings that windows keep",
            m.windows.clone(),
        );
        registry.register(
            "dunlin_pipeline_forgotten_devices",
            "Devices forgotten for their silence, since the first record",
            m.forgotten.clone(),
        );
        registry.register(
            "dunlin_pipeline_evicted_devices",
            "Devices forgotten for want of room, the longest silent first, since the first record",
            m.evicted.clone(),
        );
        m
    }

    pub(super) fn wrote_checkpoint(&self, bytes: u64, is_whole: bool) {
        let kind = if is_whole { "whole" } else { "changes" };
        self.checkpoints.get_or_create(&Kind { kind }).inc();
        self.checkpoint_bytes.inc_by(bytes);
    }

    pub(super) fn add(&self, tally: &Tally) {
        let outcomes = [
            ("evaluated", tally.evaluated),
            ("late", tally.late),
            ("copy", tally.copies),
            ("failed", tally.failed),
            ("undecodable", tally.undecodable),
        ];
        for (outcome, count) in outcomes.into_iter().filter(|(_, count)| *count > 0) {
            self.records.get_or_create(&Outcome { outcome }).inc_by(count);
        }
    }

    pub(super) fn show(&self, partition: u16, status: &PartitionStatus, forgotten: u64, evicted: u64) {
        let at = At { partition };
        self.lag.get_or_create(&at).set(status.lag as i64);
        self.devices.get_or_create(&at).set(status.devices as i64);
        self.windows.get_or_create(&at).set(status.windows as i64);
        self.forgotten.get_or_create(&at).set(forgotten as i64);
        self.evicted.get_or_create(&at).set(evicted as i64);
    }

    /// Another process has the partition.
    pub(super) fn forget(&self, partition: u16) {
        let at = At { partition };
        for family in [&self.lag, &self.devices, &self.windows, &self.forgotten, &self.evicted] {
            family.remove(&at);
        }
    }
}
