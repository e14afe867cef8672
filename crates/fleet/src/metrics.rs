use dunlin_journal::Partition;
use dunlin_model::{CommandReply, CommandStep};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    replies: Family<ByStep, Counter>,
    pub(crate) unknown: Counter,
    pub(crate) skipped: Counter,
    pub(crate) errors: Counter,
    pub(crate) trimmed: Counter,
    lag: Family<At, Gauge>,
    pub(crate) partitions_held: Gauge,
    pub(crate) partitions: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByStep {
    step: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct At {
    partition: u16,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register("dunlin_fleet_replies", "Steps of commands recorded", m.replies.clone());
        let mut add = |name, help, counter: &Counter| registry.register(name, help, counter.clone());
        add("dunlin_fleet_replies_unknown", "Steps of commands that nobody has sent", &m.unknown);
        add(
            "dunlin_fleet_replies_skipped",
            "Records that are no reply to a command, or that the registry refused",
            &m.skipped,
        );
        add("dunlin_fleet_errors", "Tries that failed and were made again", &m.errors);
        add("dunlin_fleet_trimmed", "Commands that expired long ago, forgotten", &m.trimmed);
        registry.register(
            "dunlin_fleet_lag_records",
            "Records in the journal and not in the registry yet",
            m.lag.clone(),
        );
        registry.register(
            "dunlin_fleet_partitions_held",
            "Partitions that this process follows",
            m.partitions_held.clone(),
        );
        registry.register("dunlin_fleet_partitions", "Partitions that there are", m.partitions.clone());
        // Both are there before the first.
        m.recorded(&[], 0);
        m
    }

    pub(crate) fn recorded(&self, replies: &[CommandReply], unknown: u64) {
        for (step, name) in [(CommandStep::Delivered, "delivered"), (CommandStep::Replied, "replied")] {
            let count = replies.iter().filter(|reply| reply.step == step).count() as u64;
            self.replies.get_or_create(&ByStep { step: name }).inc_by(count);
        }
        self.unknown.inc_by(unknown);
    }

    pub(crate) fn show_lag(&self, at: Partition, records: u64) {
        self.lag.get_or_create(&At { partition: at.index }).set(records as i64);
    }

    /// Another process has the partition.
    pub(crate) fn forget(&self, at: Partition) {
        self.lag.remove(&At { partition: at.index });
    }

    #[cfg(test)]
    pub(crate) fn replies(&self, step: &'static str) -> u64 {
        self.replies.get_or_create(&ByStep { step }).get()
    }
}
