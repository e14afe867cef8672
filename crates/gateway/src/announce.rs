use std::sync::Arc;

use dunlin_broker::{Change, Message, Publication, Published, Qos, TopicFault, check_topic};
use dunlin_journal::AppendError;
use dunlin_model::Clock;

use crate::pubsub::PubSub;

/// Publishes in a tenant for the server itself, at least once.
#[derive(Debug, Clone)]
pub struct Announcer {
    pub(crate) pubsub: Arc<PubSub>,
    pub(crate) clock: Clock,
}

#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    #[error("the topic {topic:?}")]
    Topic { topic: String, source: TopicFault },
    #[error("the tenant has as many retained messages as it may")]
    RetainedFull,
    #[error("the journal did not take it")]
    Journal(#[from] AppendError),
}

impl Announcer {
    /// Comes back when all who are connected have it in their queues, and it is in the log for those who are not.
    pub async fn publish(
        &self,
        tenant: &str,
        topic: &str,
        payload: Vec<u8>,
        retain: bool,
    ) -> Result<(), AnnounceError> {
        check_topic(topic).map_err(|source| AnnounceError::Topic { topic: topic.to_owned(), source })?;
        let at = self.clock.now();
        let message = Arc::new(Message {
            topic: topic.into(),
            payload: payload.into(),
            qos: Qos::AtLeastOnce,
            retain,
            expires_at: None,
            properties: None,
            publisher: None,
            packets: Default::default(),
        });
        let chosen = match self.pubsub.broker.tenant(tenant).publish(&message, !self.pubsub.knows_all()) {
            Published::Delivered(_) => return Ok(()),
            Published::RetainedFull => return Err(AnnounceError::RetainedFull),
            Published::Log { chosen } => chosen,
        };
        let change = Change::Published(Publication {
            tenant: tenant.into(),
            topic: topic.into(),
            payload: &message.payload,
            qos: message.qos,
            retain,
            at,
            expires_at: None,
            properties: None,
            publisher: None,
            packet_id: None,
            chosen: chosen.into_iter().map(|(group, id)| (group.into(), id)).collect(),
        });
        self.pubsub.commit(tenant, &change).await?;
        Ok(())
    }
}
