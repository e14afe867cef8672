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
mod trim; // what is over, when it is old

use std::{sync::Arc, time::Duration};

pub use config::{ALERTS_KEPT_DEFAULT, ChannelConfig, Config, InvalidConfig, Retry};
use dunlin_journal::Journal;
use dunlin_model::Clock;
use dunlin_registry::Registry;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use self::{channel::Channel, dispatch::Dispatcher, follow::Follower, metrics::Metrics, trim::Trimmer};

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

/// A registry that does not answer holds the stop up no longer than this.
const STOP_MAX: Duration = Duration::from_secs(5);

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
        let trimmer = Trimmer {
            registry: registry.clone(),
            clock,
            kept: Duration::from_secs(config.kept_seconds),
            metrics: metrics.clone(),
        };
        tasks.spawn(trimmer.run(stopped.clone()));
        let follower = Follower { journal, registry, channels: queued, metrics, position: None };
        tasks.spawn(follower.run(stopped));
        Ok(Self { stop, tasks })
    }

    /// Ends in seconds, after what is being applied. What is being sent is cut off, and sent by the next start as
    /// all that waits.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_MAX, all).await.is_err() {
            tracing::warn!(
                "alerting waits for the registry still and is cut off; the next start does it again"
            );
            self.tasks.shutdown().await;
        }
    }
}
