//! Alerts: their lifecycle, and telling people once.
//!
//! The `alerts` topic says what happened; one transaction in the registry remembers it, moves the alert, queues the
//! notifications and moves the position. Sending is another matter: every channel works through its own queue, so
//! one that is down delays nobody else.

mod config;
mod desk; // what people's front door asks

mod absorb; // what a stretch of the topic makes of the alerts: pure
mod matchers; // which alerts
mod plan; // who is told what, when, and why not: pure
mod policy; // what plans go by

mod execute; // does what is planned
mod follow; // from the topic into the registry
mod remind; // escalations, ends of silences, acts of people
mod trim; // what is over, when it is old

mod channel; // ways to tell people
mod dispatch; // from the registry to people
mod links; // acknowledge by a click
mod message; // what they are told
mod metrics;
mod templates; // in what words

use std::{sync::Arc, time::Duration};

pub use channel::{ChannelError, PublishFailed, Publisher};
pub use config::{
    ALERTS_KEPT_DEFAULT, AlertmanagerConfig, Budget, ChannelConfig, Config, Dependencies, EmailConfig,
    Flapping, InvalidConfig, LogConfig, MqttConfig, PagerDutyConfig, Person, PolicyConfig, Reach, Retry,
    RouteConfig, SlackConfig, SmtpTls, StepConfig, WebhookConfig,
};
pub use desk::{Desk, PreviewError};
use dunlin_journal::Journal;
use dunlin_model::Clock;
use dunlin_registry::{Registry, RegistryError};
pub use links::{BadLink, Permit};
pub use matchers::{InvalidMatcher, MATCHERS_MAX, MatcherDto, Matchers};
pub use message::{CSV_HEADER, Line};
pub use templates::{Rendered, TEMPLATE_BYTES_MAX};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use self::{
    channel::Channel, dispatch::Dispatcher, execute::Executor, follow::Follower, links::Links,
    metrics::Metrics, policy::Policy, remind::Reminder, trim::Trimmer,
};

/// Running alerting.
#[derive(Debug)]
pub struct Alerting {
    desk: Desk,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("read the key of signed links")]
    Links(#[source] RegistryError),
}

/// The name under which alerting commits its position.
pub const CONSUMER: &str = "alerting";

/// A registry that does not answer holds the stop up no longer than this.
const STOP_MAX: Duration = Duration::from_secs(5);

impl Alerting {
    /// Starts on the current tokio runtime. Without a publisher there may be no channel that needs one.
    pub async fn start(
        config: &Config,
        journal: Arc<dyn Journal>,
        registry: Registry,
        clock: Clock,
        publisher: Option<Arc<dyn Publisher>>,
        metrics: &mut prometheus_client::registry::Registry,
    ) -> Result<Self, StartError> {
        let policy = Arc::new(Policy::new(config)?);
        let links = links(config, &registry).await?;
        let channels = config
            .channel
            .iter()
            .map(|channel| Channel::new(channel, publisher.as_ref(), config.public_url.as_deref()))
            .collect::<Result<Vec<_>, _>>()?;
        let metrics = Metrics::register(metrics);
        let (stop, stopped) = watch::channel(false);
        let senders: Vec<Arc<Notify>> = channels.iter().map(|_| Arc::new(Notify::new())).collect();
        let reminder = Arc::new(Notify::new());
        let executor = Executor {
            registry: registry.clone(),
            policy,
            metrics: metrics.clone(),
            senders: senders.clone(),
            reminder: reminder.clone(),
        };

        let mut tasks = JoinSet::new();
        for (channel, wake) in channels.into_iter().zip(&senders) {
            let dispatcher = Dispatcher {
                channel,
                retry: config.retry.clone(),
                links: links.clone(),
                registry: registry.clone(),
                clock: clock.clone(),
                wake: wake.clone(),
                metrics: metrics.clone(),
            };
            tasks.spawn(dispatcher.run(stopped.clone()));
        }
        let trimmer = Trimmer {
            registry,
            clock: clock.clone(),
            kept: Duration::from_secs(config.kept_seconds),
            metrics: metrics.clone(),
        };
        tasks.spawn(trimmer.run(stopped.clone()));
        let wake = reminder.clone();
        let of_reminder = Reminder { executor: executor.clone(), clock: clock.clone(), wake };
        tasks.spawn(of_reminder.run(stopped.clone()));
        let follower = Follower { journal, executor, metrics, position: None };
        tasks.spawn(follower.run(stopped));
        let desk = Desk { clock, config: Arc::new(config.clone()), links, reminder, senders };
        Ok(Self { desk, stop, tasks })
    }

    pub fn desk(&self) -> Desk {
        self.desk.clone()
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

/// Nothing without an address that the links could begin with.
async fn links(config: &Config, registry: &Registry) -> Result<Option<Links>, StartError> {
    let Some(url) = &config.public_url else { return Ok(None) };
    let secret = registry.secret("acknowledge links").await.map_err(StartError::Links)?;
    Ok(Some(Links::new(url, &secret, Duration::from_secs(config.link_seconds))))
}
