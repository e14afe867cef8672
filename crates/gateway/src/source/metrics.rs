use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// What sources count for operators; the records themselves are counted by `Accounts`.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    connected: Family<Name, Gauge>,
    unacknowledged: Family<Name, Gauge>,
    messages: Family<Outcome, Counter>,
    acknowledged: Family<Name, Counter>,
    interruptions: Family<Reason, Counter>,
    sessions_lost: Family<Name, Counter>,
}

/// Of one source.
#[derive(Debug, Clone)]
pub(super) struct OfSource {
    name: String,
    interruptions: Family<Reason, Counter>,
    pub(super) connected: Gauge,
    pub(super) unacknowledged: Gauge,
    pub(super) accepted: Counter,
    pub(super) rejected: Counter,
    pub(super) acknowledged: Counter,
    pub(super) sessions_lost: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Name {
    source: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    source: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    source: String,
    reason: &'static str,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let m = Self::default();
        let sub = registry.sub_registry_with_prefix("dunlin_source");
        sub.register("connected", "1 while the broker has the subscription", m.connected.clone());
        sub.register("unacknowledged", "Messages taken and not yet acknowledged", m.unacknowledged.clone());
        sub.register("messages", "Messages taken, by what they are", m.messages.clone());
        sub.register("acknowledged", "Messages that are durable and acknowledged", m.acknowledged.clone());
        sub.register("interruptions", "How often nothing could be taken, by why", m.interruptions.clone());
        let help = "How often the broker had forgotten the session, and so what waited in it";
        sub.register("sessions_lost", help, m.sessions_lost.clone());
        m
    }

    pub(super) fn of(&self, name: &str) -> OfSource {
        let source = Name { source: name.into() };
        let outcome = |outcome| {
            let label = Outcome { source: name.into(), outcome };
            self.messages.get_or_create_owned(&label)
        };
        OfSource {
            name: name.into(),
            interruptions: self.interruptions.clone(),
            connected: self.connected.get_or_create_owned(&source),
            unacknowledged: self.unacknowledged.get_or_create_owned(&source),
            accepted: outcome("accepted"),
            rejected: outcome("rejected"),
            acknowledged: self.acknowledged.get_or_create_owned(&source),
            sessions_lost: self.sessions_lost.get_or_create_owned(&source),
        }
    }
}

impl OfSource {
    pub(super) fn interrupted(&self, reason: &'static str) {
        self.interruptions.get_or_create(&Reason { source: self.name.clone(), reason }).inc();
    }
}
