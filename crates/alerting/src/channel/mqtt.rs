use std::sync::Arc;

use futures::future::BoxFuture;

use super::{SendError, webhook};
use crate::{config::MqttConfig, message::Message};

/// A tenant's publish and subscribe; whoever has one plugs it in.
pub trait Publisher: std::fmt::Debug + Send + Sync {
    /// Comes back when the message is as durable as that of a device would be. At least once.
    fn publish(
        &self,
        tenant: String,
        topic: String,
        payload: Vec<u8>,
        retain: bool,
    ) -> BoxFuture<'static, Result<(), PublishFailed>>;
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PublishFailed(pub String);

#[derive(Debug)]
pub(super) struct Mqtt {
    publisher: Arc<dyn Publisher>,
    topic: String,
    retain: bool,
}

impl Mqtt {
    pub(super) fn new(config: &MqttConfig, publisher: Arc<dyn Publisher>) -> Self {
        Self { publisher, topic: config.topic.clone(), retain: config.retain }
    }

    pub(super) async fn send(&self, message: &Message) -> Result<(), SendError> {
        let topic = topic(&self.topic, message);
        let payload = webhook::body(message).into_bytes();
        // What is retained tells how one alert stands; a message of many is of none.
        let retain = self.retain && message.alert.is_some();
        Ok(self.publisher.publish(message.tenant.clone(), topic, payload, retain).await?)
    }
}

fn topic(pattern: &str, message: &Message) -> String {
    let level = |text: &str| text.replace(['/', '+', '#', '\0'], "_");
    let (rule, device, severity, state) = match &message.alert {
        Some(facts) => {
            (level(&facts.rule), level(&facts.device), facts.severity.clone(), facts.state.clone())
        }
        None => (message.what.clone(), message.what.clone(), message.what.clone(), message.what.clone()),
    };
    pattern
        .replace("{rule}", &rule)
        .replace("{device}", &device)
        .replace("{severity}", &severity)
        .replace("{state}", &state)
}
