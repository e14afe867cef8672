#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use dunlin_model::{AlertTransition, Clock};
use dunlin_registry::{Notification, Registry, RegistryError};
use tokio::sync::{Notify, watch};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    channel::{Channel, SendError},
    config::Retry,
    metrics::{ByChannel, Metrics},
};

/// Sends what one channel has to hear, oldest first.
pub(crate) struct Dispatcher {
    pub(crate) channel: Channel,
    pub(crate) retry: Retry,
    pub(crate) registry: Registry,
    pub(crate) clock: Clock,
    pub(crate) wake: Arc<Notify>,
    pub(crate) metrics: Metrics,
}

const DUE_AT_ONCE_MAX: u32 = 100;
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(1);

/// What a receiver reads.
pub(crate) fn body(t: &AlertTransition) -> String {
    serde_json::json!({
        "id": t.id.to_string(),
        "fingerprint": t.fingerprint.to_string(),
        "tenant": t.tenant,
        "device": t.device,
        "rule": t.rule,
        "severity": t.severity,
        "state": t.phase,
        "at": t.at.to_string(),
        "since": t.since.to_string(),
        "value": t.value,
        "condition": t.condition,
    })
    .to_string()
}

impl Dispatcher {
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let pause = match self.send_due(&mut stop).await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::error!(
                        channel = self.channel.name(),
                        error = dunlin_model::chain(&error),
                        "notifications wait"
                    );
                    Some(PAUSE_AFTER_ERROR)
                }
            };
            tokio::select! {
                _ = stop.wait_for(|asked| *asked) => return,
                _ = self.wake.notified() => {}
                _ = pause_of(pause) => {}
            }
        }
    }

    /// Sends all that is due, and says how long there is nothing more to do; `None` if nothing waits.
    async fn send_due(&self, stop: &mut watch::Receiver<bool>) -> Result<Option<Duration>, RegistryError> {
        loop {
            if *stop.borrow() {
                return Ok(None);
            }
            let due = self.registry.due_notifications(self.channel.name(), DUE_AT_ONCE_MAX).await?;
            if due.is_empty() {
                let next = self.registry.next_notification(self.channel.name()).await?;
                return Ok(next.map(|at| at.since(self.clock.now())));
            }
            for notification in &due {
                // A receiver may take its time to answer; the stop does not. What is cut off stays due, and is sent
                // by the next start with the same key.
                let sent = tokio::select! {
                    biased;
                    _ = stop.wait_for(|asked| *asked) => return Ok(None),
                    sent = self.channel.send(notification) => sent,
                };
                self.remember(notification, sent).await?;
            }
        }
    }

    async fn remember(
        &self,
        notification: &Notification,
        sent: Result<(), SendError>,
    ) -> Result<(), RegistryError> {
        let by = ByChannel { channel: self.channel.name().to_owned() };
        let key = &notification.idempotency_key;
        let Err(error) = sent else {
            self.metrics.sent.get_or_create(&by).inc();
            return self.registry.notification_sent(key).await;
        };
        let error = dunlin_model::chain(&error);
        self.metrics.failed.get_or_create(&by).inc();
        let attempts = notification.attempts + 1;
        let retry_at =
            self.retry.pause(attempts, spread(key, attempts)).map(|pause| self.clock.now() + pause);
        match retry_at {
            Some(_) => tracing::warn!(channel = by.channel, key, attempts, error, "notification failed"),
            None => {
                tracing::error!(channel = by.channel, key, attempts, error, "notification given up");
                self.metrics.given_up.get_or_create(&by).inc();
            }
        }
        self.registry.notification_failed(key, &error, retry_at).await
    }
}

/// Between 0 and 1, differently for every notification and try: chance that a replay repeats.
fn spread(key: &str, attempts: u32) -> f64 {
    (xxh3_64(format!("{key}#{attempts}").as_bytes()) >> 11) as f64 / (1u64 << 53) as f64
}

async fn pause_of(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}
