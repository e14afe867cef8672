//! The journal that the configuration chose. Behind this, nobody knows which it is.

use std::sync::Arc;

use dunlin_journal::{Journal, Topic};
use dunlin_journal_disk::DiskJournal;
use dunlin_journal_kafka::{KafkaJournal, Labels};
use dunlin_model::{Clock, avro};
use prometheus_client::registry::Registry as Metrics;
use tokio::task::block_in_place;

use crate::{config::JournalChoice, exit::Failure};

#[derive(Debug)]
pub(super) enum ChosenJournal {
    Disk(Arc<DiskJournal>),
    Kafka(Arc<KafkaJournal>),
}

impl ChosenJournal {
    pub(super) fn open(
        choice: &JournalChoice,
        clock: &Clock,
        metrics: &mut Metrics,
    ) -> Result<Self, Failure> {
        Ok(match choice {
            JournalChoice::Disk(config) => {
                Self::Disk(DiskJournal::open(config.clone(), clock.clone(), metrics)?)
            }
            JournalChoice::Kafka(config) => {
                Self::Kafka(block_in_place(|| KafkaJournal::open((**config).clone(), describe, metrics))?)
            }
        })
    }

    pub(super) fn handle(&self) -> Arc<dyn Journal> {
        match self {
            Self::Disk(journal) => journal.clone(),
            Self::Kafka(journal) => journal.clone(),
        }
    }

    /// Comes back, with the reason, when the journal cannot be used in this process any more.
    pub(super) async fn broken(&self) -> String {
        match self {
            Self::Disk(journal) => journal.broken().await,
            Self::Kafka(journal) => journal.broken().await,
        }
    }
}

/// What others that read Kafka are told of a record.
fn describe(topic: Topic, record: &[u8]) -> Option<Labels<'_>> {
    let avro = |schema, owner: Option<(_, _)>| {
        let (tenant, device) = owner?;
        Some(Labels { tenant, device, content_type: "avro/binary", schema })
    };
    match topic {
        Topic::Telemetry => avro("dunlin.v1.Record", avro::owner(record)),
        Topic::Events => avro("dunlin.v1.Event", avro::owner(record)),
        Topic::Commands => avro("dunlin.v1.Command", avro::owner(record)),
        Topic::CommandReplies => avro("dunlin.v1.CommandReply", avro::owner(record)),
        Topic::Rejected => avro("dunlin.v1.Rejected", avro::owner(record)),
        Topic::Alerts => avro("dunlin.v1.AlertTransition", avro::owner_of_alert(record)),
        Topic::Sessions => Some(Labels {
            tenant: "",
            device: "",
            content_type: "application/octet-stream",
            schema: "dunlin.broker.Change",
        }),
        Topic::Partials => Some(Labels {
            tenant: "",
            device: "",
            content_type: "application/octet-stream",
            schema: "dunlin.pipeline.Partial",
        }),
    }
}

#[cfg(test)]
mod tests {
    use dunlin_model::{
        AlertPhase, AlertTransition, Event, EventKind, Fingerprint, RejectReason, Rejected, Severity,
        Timestamp, TransitionId, avro::Datum,
    };

    use super::*;

    #[test]
    fn every_topic_says_whose_its_records_are() {
        let at = Timestamp::from_micros(1);
        let (tenant, device) = ("acme".to_owned(), "pump".to_owned());
        let event = Event {
            tenant: tenant.clone(),
            device: device.clone(),
            time: at,
            kind: EventKind::Connected,
            detail: "{}".into(),
        };
        let rejected = Rejected {
            tenant: tenant.clone(),
            device: device.clone(),
            received_at: at,
            reason: RejectReason::TooLarge,
            detail: String::new(),
            source: String::new(),
            payload: vec![1],
        };
        let alert = AlertTransition {
            id: TransitionId(-7),
            fingerprint: Fingerprint(i64::MAX),
            tenant,
            device,
            rule: "hot".into(),
            severity: Severity::Critical,
            phase: AlertPhase::Firing,
            at,
            since: at,
            value: 81.0,
            condition: "temperature > 80".into(),
        };
        let records = [
            (Topic::Events, event.encode()),
            (Topic::Rejected, rejected.encode()),
            (Topic::Alerts, alert.encode()),
        ];
        for (topic, record) in records {
            let labels = describe(topic, &record).unwrap();
            assert_eq!((labels.tenant, labels.device), ("acme", "pump"), "{topic:?}");
        }
        assert_eq!(describe(Topic::Telemetry, b"\x80"), None, "what is no record has no label");
    }
}
