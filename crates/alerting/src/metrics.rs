use dunlin_registry::{NewNotification, NotificationState};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    pub(crate) transitions: Counter,
    pub(crate) undecodable: Counter,
    pub(crate) refused: Counter,
    pub(crate) trimmed: Counter,
    pub(crate) position: Gauge,
    pub(crate) sent: Family<ByChannel, Counter>,
    pub(crate) failed: Family<ByChannel, Counter>,
    pub(crate) given_up: Family<ByChannel, Counter>,
    pub(crate) carried: Family<ByChannel, Counter>,
    pub(crate) suppressed: Family<ByChannel, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ByChannel {
    pub(crate) channel: String,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        let mut add = |name, help, counter: &Counter| registry.register(name, help, counter.clone());
        add("dunlin_alerting_transitions", "Alert transitions applied", &m.transitions);
        add("dunlin_alerting_undecodable", "Records of the alerts topic that were skipped", &m.undecodable);
        add(
            "dunlin_alerting_refused",
            "Alert transitions that the registry refused and that were skipped",
            &m.refused,
        );
        add("dunlin_alerting_trimmed", "Rows of alerts that are over, forgotten by age", &m.trimmed);
        registry.register(
            "dunlin_alerting_position",
            "Offset alerting has got to in the alerts topic",
            m.position.clone(),
        );
        let mut add =
            |name, help, family: &Family<ByChannel, Counter>| registry.register(name, help, family.clone());
        add("dunlin_alerting_notifications_sent", "Notifications a channel took", &m.sent);
        add("dunlin_alerting_notifications_failed", "Tries that failed", &m.failed);
        add("dunlin_alerting_notifications_given_up", "Notifications kept as dead", &m.given_up);
        add(
            "dunlin_alerting_notifications_carried",
            "Notifications told in a digest or with their group",
            &m.carried,
        );
        add(
            "dunlin_alerting_notifications_suppressed",
            "Notifications that were not sent, and say why",
            &m.suppressed,
        );
        m
    }

    pub(crate) fn count(&self, notifications: &[NewNotification]) {
        for n in notifications {
            let family = match n.state {
                NotificationState::Carried { .. } => &self.carried,
                NotificationState::Suppressed { .. } => &self.suppressed,
                NotificationState::Due | NotificationState::Gathering { .. } => continue,
            };
            family.get_or_create(&ByChannel { channel: n.channel.clone() }).inc();
        }
    }
}
