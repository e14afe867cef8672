//! Alerts: their lifecycle, and telling people once.
//!
//! The `alerts` topic says what happened; one transaction in the registry remembers it, moves the alert, queues the
//! notifications and moves the position. Sending is another matter: every channel works through its own queue, so
//! one that is down delays nobody else.

mod channel; // log, webhook
mod config;
mod dispatch; // from the registry to people
mod follow; // from the topic into the registry
mod metrics;

use std::sync::Arc;

pub use config::{ChannelConfig, Config, InvalidConfig, Retry};
use dunlin_journal::Journal;
use dunlin_model::Clock;
use dunlin_registry::Registry;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use self::{channel::Channel, dispatch::Dispatcher, follow::Follower, metrics::Metrics};

/// Running alerting.
#[derive(Debug)]
pub struct Alerting {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    #[error("set up the webhook client")]
    Webhook(#[source] reqwest::Error),
}

/// The name under which alerting commits its position.
pub const CONSUMER: &str = "alerting";

impl Alerting {
    /// Starts on the current tokio runtime.
    pub fn start(
        config: &Config,
        journal: Arc<dyn Journal>,
        registry: Registry,
        clock: Clock,
        metrics: &mut prometheus_client::registry::Registry,
    ) -> Result<Self, StartError> {
        config.check()?;
        let metrics = Metrics::register(metrics);
        let (stop, stopped) = watch::channel(false);
        let queued: Vec<(String, Arc<Notify>)> =
            config.channel.iter().map(|c| (c.name().to_owned(), Arc::new(Notify::new()))).collect();

        let mut tasks = JoinSet::new();
        for (settings, (_, wake)) in config.channel.iter().zip(&queued) {
            let dispatcher = Dispatcher {
                channel: Channel::new(settings).map_err(StartError::Webhook)?,
                retry: config.retry.clone(),
                registry: registry.clone(),
                clock: clock.clone(),
                wake: wake.clone(),
                metrics: metrics.clone(),
            };
            tasks.spawn(dispatcher.run(stopped.clone()));
        }
        let follower = Follower { journal, registry, channels: queued, metrics, position: None };
        tasks.spawn(follower.run(stopped));
        Ok(Self { stop, tasks })
    }

    /// Ends after what is being applied or sent. What waits is sent by the next start.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
    }
}
