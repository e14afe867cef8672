//! Alerting's way into a tenant's publish and subscribe: through the gateway of this process, or by the log to all of them.

use std::sync::OnceLock;

use dunlin_alerting::{PublishFailed, Publisher};
use dunlin_gateway::Announcer;
use dunlin_model::chain;
use futures::future::BoxFuture;

/// Before there is a way, nothing is taken; what is not taken is tried again.
#[derive(Debug, Default)]
pub(crate) struct GatewayPublisher(OnceLock<Announcer>);

impl GatewayPublisher {
    pub(crate) fn is_through(&self, announcer: Announcer) {
        // There is one way in a process.
        let _ = self.0.set(announcer);
    }
}

impl Publisher for GatewayPublisher {
    fn publish(
        &self,
        tenant: String,
        topic: String,
        payload: Vec<u8>,
        retain: bool,
    ) -> BoxFuture<'static, Result<(), PublishFailed>> {
        let announcer = self.0.get().cloned();
        Box::pin(async move {
            let announcer = announcer.ok_or_else(|| PublishFailed("the gateway is starting".to_owned()))?;
            let published = announcer.publish(&tenant, &topic, payload, retain).await;
            published.map_err(|error| PublishFailed(chain(&error)))
        })
    }
}
