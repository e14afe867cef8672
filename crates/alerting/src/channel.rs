//! Ways to tell people.

mod alertmanager;
mod email;
mod guard; // which addresses a receiver may have
mod http; // what the ways over HTTP share
mod mqtt;
mod pagerduty;
mod slack;
mod webhook;

use std::{path::PathBuf, sync::Arc, time::Duration};

use dunlin_model::Timestamp;
pub use mqtt::{PublishFailed, Publisher};

use crate::{
    config::ChannelConfig,
    message::Message,
    templates::{Rendered, Templates},
};

#[derive(Debug)]
pub(crate) struct Channel {
    name: String,
    way: Way,
    templates: Templates,
}

#[derive(Debug)]
enum Way {
    Log,
    Webhook(webhook::Webhook),
    Email(email::Email),
    Slack(slack::Slack),
    PagerDuty(pagerduty::PagerDuty),
    Mqtt(mqtt::Mqtt),
    Alertmanager(alertmanager::Alertmanager),
}

/// A channel cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("alerting channel {channel:?}: set up the HTTP client")]
    Http { channel: String, source: reqwest::Error },
    #[error("alerting channel {channel:?}: read {path}")]
    File { channel: String, path: PathBuf, source: std::io::Error },
    #[error("alerting channel {channel:?}: {path} holds no valid {what}")]
    Content { channel: String, path: PathBuf, what: &'static str },
    #[error("alerting channel {channel:?}: {why}")]
    Address { channel: String, why: String },
    #[error("alerting channel {channel:?}: TLS")]
    Tls { channel: String, source: lettre::transport::smtp::Error },
    #[error("alerting channel {channel:?}: template")]
    Template { channel: String, source: minijinja::Error },
    #[error("alerting channel {0:?}: there is no publish and subscribe here")]
    NoPublisher(String),
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the receiver answered {status}{detail}")]
    Refused { status: reqwest::StatusCode, detail: String, retry_after: Option<Duration> },
    /// It will answer the same again.
    #[error("the receiver answered {status}{detail}, which is final")]
    Rejected { status: reqwest::StatusCode, detail: String },
    /// Without the address: it may hold a secret.
    #[error("no answer")]
    NoAnswer(#[source] reqwest::Error),
    #[error(transparent)]
    Guard(#[from] guard::NotAllowed),
    #[error("the mail server")]
    Smtp(#[source] lettre::transport::smtp::Error),
    #[error("the mail server has not taken the mail within {} s", .0.as_secs())]
    SmtpSilence(Duration),
    #[error("make the mail: {0}")]
    Mail(String),
    #[error("template")]
    Template(#[from] minijinja::Error),
    #[error("publish")]
    Publish(#[from] PublishFailed),
}

impl SendError {
    /// Another try would end the same.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Rejected { .. } | Self::Mail(_) => true,
            Self::Smtp(error) => error.is_permanent(),
            _ => false,
        }
    }

    /// Before this time is over the receiver does not want to be asked.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl Channel {
    pub(crate) fn new(
        config: &ChannelConfig,
        publisher: Option<&Arc<dyn Publisher>>,
        public_url: Option<&str>,
    ) -> Result<Self, ChannelError> {
        let name = config.name().to_owned();
        let templates = Templates::of(config)
            .map_err(|source| ChannelError::Template { channel: name.clone(), source })?;
        let way = match config {
            ChannelConfig::Log(_) => Way::Log,
            ChannelConfig::Webhook(c) => Way::Webhook(webhook::Webhook::new(c)?),
            ChannelConfig::Email(c) => Way::Email(email::Email::new(c)?),
            ChannelConfig::Slack(c) => Way::Slack(slack::Slack::new(c)?),
            ChannelConfig::PagerDuty(c) => Way::PagerDuty(pagerduty::PagerDuty::new(c)?),
            ChannelConfig::Mqtt(c) => {
                let publisher = publisher.ok_or_else(|| ChannelError::NoPublisher(name.clone()))?;
                Way::Mqtt(mqtt::Mqtt::new(c, publisher.clone()))
            }
            ChannelConfig::Alertmanager(c) => {
                Way::Alertmanager(alertmanager::Alertmanager::new(c, public_url)?)
            }
        };
        Ok(Self { name, way, templates })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// How many messages go in one piece.
    pub(crate) fn batch_max(&self) -> usize {
        match self.way {
            Way::Alertmanager(_) => alertmanager::BATCH_MAX,
            _ => 1,
        }
    }

    /// Whether a message of many brings all of them along.
    pub(crate) fn attaches_lists(&self) -> bool {
        matches!(self.way, Way::Email(_))
    }

    /// What fires is said again so often.
    pub(crate) fn refresh_every(&self) -> Option<Duration> {
        match &self.way {
            Way::Alertmanager(alertmanager) => Some(alertmanager.refresh_every()),
            _ => None,
        }
    }

    /// All of them, or none.
    pub(crate) async fn send(&self, messages: &[Message], now: Timestamp) -> Result<(), SendError> {
        if let Way::Alertmanager(alertmanager) = &self.way {
            return alertmanager.send(messages, now).await;
        }
        for message in messages {
            match &self.way {
                Way::Log => {
                    let alert = message.alert.as_ref().map(|facts| facts.to_json());
                    let count = message.many.as_ref().map(|many| many.count);
                    tracing::warn!(target: "dunlin_alerting::log", title = message.title, alert, count, "alert");
                }
                Way::Webhook(webhook) => webhook.send(message, &self.templates, now).await?,
                Way::Email(email) => email.send(message, &self.templates.render(message)?).await?,
                Way::Slack(slack) => slack.send(message, &self.templates.render(message)?).await?,
                Way::PagerDuty(pagerduty) => pagerduty.send(message).await?,
                Way::Mqtt(mqtt) => mqtt.send(message).await?,
                Way::Alertmanager(_) => {}
            }
        }
        Ok(())
    }

    /// Says of alerts that they fire still.
    pub(crate) async fn refresh(
        &self,
        alerts: &[dunlin_registry::Alert],
        now: Timestamp,
    ) -> Result<(), SendError> {
        match &self.way {
            Way::Alertmanager(alertmanager) => alertmanager.refresh(alerts, now).await,
            _ => Ok(()),
        }
    }
}

/// The words a channel would send.
pub(crate) fn preview(
    channel: &ChannelConfig,
    subject: Option<&str>,
    template: Option<&str>,
    message: &Message,
) -> Result<Rendered, minijinja::Error> {
    if subject.is_none() && template.is_none() {
        return Templates::of(channel)?.render(message);
    }
    let own = Templates::of(channel)?.render(message)?;
    let theirs =
        Templates::new(subject.unwrap_or("{{ title }}"), template.unwrap_or_default())?.render(message)?;
    Ok(Rendered {
        subject: if subject.is_some() { theirs.subject } else { own.subject },
        text: if template.is_some() { theirs.text } else { own.text },
    })
}

/// A secret from its file, without the line's end.
fn secret(channel: &str, path: &std::path::Path, what: &'static str) -> Result<String, ChannelError> {
    let channel = || channel.to_owned();
    let text = std::fs::read_to_string(path).map_err(|source| ChannelError::File {
        channel: channel(),
        path: path.to_owned(),
        source,
    })?;
    match text.trim() {
        "" => Err(ChannelError::Content { channel: channel(), path: path.to_owned(), what }),
        secret => Ok(secret.to_owned()),
    }
}
