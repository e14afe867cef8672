use std::sync::Arc;

use dunlin_broker::{Change, Message, Publication, Published, Qos, TopicFault, check_topic, partition_of};
use dunlin_journal::{AppendError, Batch, Journal, Partition, Topic};
use dunlin_model::Clock;

use crate::{pubsub::PubSub, topic::Route};

/// Publishes in a tenant for the server itself, at least once.
#[derive(Debug, Clone)]
pub struct Announcer {
    way: Way,
    clock: Clock,
}

#[derive(Debug, Clone)]
enum Way {
    Gateway(Arc<PubSub>),
    /// The gateways are other processes.
    Log(Arc<dyn Journal>),
}

#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    #[error("the topic {topic:?}")]
    Topic { topic: String, source: TopicFault },
    #[error("the topic {topic:?} is reserved")]
    Reserved { topic: String },
    #[error("the tenant has as many retained messages as it may")]
    RetainedFull,
    #[error("the journal did not take it")]
    Journal(#[from] AppendError),
}

impl Announcer {
    pub(crate) fn of_gateway(pubsub: Arc<PubSub>, clock: Clock) -> Self {
        Self { way: Way::Gateway(pubsub), clock }
    }

    /// Of a process without a gateway: all those on the journal send what it publishes.
    pub fn by_log(journal: Arc<dyn Journal>, clock: Clock) -> Self {
        Self { way: Way::Log(journal), clock }
    }

    /// Comes back when it is in the log, or all who are connected and want it have it in their queues.
    pub async fn publish(
        &self,
        tenant: &str,
        topic: &str,
        payload: Vec<u8>,
        retain: bool,
    ) -> Result<(), AnnounceError> {
        check_topic(topic).map_err(|source| AnnounceError::Topic { topic: topic.to_owned(), source })?;
        if Route::of(topic) != Route::Message {
            return Err(AnnounceError::Reserved { topic: topic.to_owned() });
        }
        let published = |payload, chosen| {
            Change::Published(Publication {
                tenant: tenant.into(),
                topic: topic.into(),
                payload,
                qos: Qos::AtLeastOnce,
                retain,
                at: self.clock.now(),
                expires_at: None,
                properties: None,
                publisher: None,
                packet_id: None,
                chosen,
            })
        };
        match &self.way {
            Way::Gateway(pubsub) => {
                let message = Arc::new(message(topic, payload, retain));
                let in_log = !pubsub.knows_all();
                let chosen = match pubsub.broker.tenant(tenant).publish(&message, in_log) {
                    Published::Delivered(_) => return Ok(()),
                    Published::RetainedFull => return Err(AnnounceError::RetainedFull),
                    Published::Log { chosen } => chosen,
                };
                let chosen = chosen.into_iter().map(|(group, id)| (group.into(), id)).collect();
                pubsub.commit(tenant, &published(&message.payload, chosen)).await?;
            }
            Way::Log(journal) => log(&**journal, tenant, &published(&payload, Vec::new())).await?,
        }
        Ok(())
    }
}

fn message(topic: &str, payload: Vec<u8>, retain: bool) -> Message {
    Message {
        topic: topic.into(),
        payload: payload.into(),
        qos: Qos::AtLeastOnce,
        retain,
        expires_at: None,
        properties: None,
        publisher: None,
        packets: Default::default(),
    }
}

/// Logs a change for all gateways, of which this process may have none.
pub(crate) async fn log(journal: &dyn Journal, tenant: &str, change: &Change<'_>) -> Result<(), AppendError> {
    let index = partition_of(tenant, journal.partitions(Topic::Sessions));
    let mut batch = Batch::default();
    batch.push_with(|out| change.encode(out));
    journal.append(Partition::new(Topic::Sessions, index), batch).await.map(drop)
}
