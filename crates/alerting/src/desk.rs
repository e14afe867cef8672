use std::{sync::Arc, time::Duration};

use dunlin_model::{Clock, Timestamp};
use dunlin_registry::Alert;
use tokio::sync::Notify;

use crate::{
    channel,
    config::Config,
    links::{BadLink, Links, Permit},
    message::{Facts, Message},
    templates::Rendered,
};

/// What people's front door needs of alerting. Clones are the same.
#[derive(Debug, Clone)]
pub struct Desk {
    pub(crate) clock: Clock,
    pub(crate) config: Arc<Config>,
    pub(crate) links: Option<Links>,
    pub(crate) reminder: Arc<Notify>,
    pub(crate) senders: Vec<Arc<Notify>>,
}

#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    #[error("there is no channel named {0:?}")]
    NoChannel(String),
    #[error("{0:#}")]
    Template(#[from] minijinja::Error),
}

impl Desk {
    /// Of an alerting that runs elsewhere: it finds out by itself what changed.
    pub fn new(config: &Config, clock: Clock, secret: &str) -> Self {
        let valid = Duration::from_secs(config.link_seconds);
        let links = config.public_url.as_ref().map(|url| Links::new(url, secret, valid));
        Self { clock, config: Arc::new(config.clone()), links, reminder: Arc::default(), senders: Vec::new() }
    }

    /// Of an alerting that runs in another process.
    pub async fn of_another(
        config: &Config,
        registry: &dunlin_registry::Registry,
        clock: Clock,
    ) -> Result<Self, dunlin_registry::RegistryError> {
        Ok(Self::new(config, clock, &registry.secret("acknowledge links").await?))
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// People changed alerts or silences in the registry.
    pub fn changed(&self) {
        self.reminder.notify_one();
        self.senders.iter().for_each(|sender| sender.notify_one());
    }

    /// What a signed link permits.
    pub fn permit(&self, token: &str) -> Result<Permit, BadLink> {
        self.links.as_ref().ok_or(BadLink::Forged)?.read(token, self.clock.now())
    }

    /// What a channel would say of an alert, by its own templates or by these.
    pub fn preview(
        &self,
        name: &str,
        alert: &Alert,
        subject: Option<&str>,
        template: Option<&str>,
    ) -> Result<Rendered, PreviewError> {
        let channel = self.config.channel.iter().find(|channel| channel.name() == name);
        let channel = channel.ok_or_else(|| PreviewError::NoChannel(name.to_owned()))?;
        let facts = Facts::preview(alert, self.clock.now());
        // A link that works is for those who were told.
        let ack_url = self
            .config
            .public_url
            .as_ref()
            .map(|url| format!("{}/v1/ack/PREVIEW", url.trim_end_matches('/')));
        let message = Message::of_one("preview", "", facts, ack_url);
        Ok(channel::preview(channel, subject, template, &message)?)
    }
}
