use std::time::Duration;

use dunlin_registry::Notification;

use crate::config::ChannelConfig;

/// A way to tell people.
#[derive(Debug)]
pub(crate) struct Channel {
    name: String,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Log,
    Webhook { url: String, client: reqwest::Client },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the receiver answered {0}")]
    Refused(reqwest::StatusCode),
    /// Without the address: it may hold a secret.
    #[error("no answer")]
    NoAnswer(#[source] reqwest::Error),
}

impl Channel {
    pub(crate) fn new(config: &ChannelConfig) -> Result<Self, reqwest::Error> {
        let way = match config {
            ChannelConfig::Log { .. } => Way::Log,
            ChannelConfig::Webhook { url, timeout_seconds, .. } => Way::Webhook {
                url: url.clone(),
                client: reqwest::Client::builder()
                    .timeout(Duration::from_secs(*timeout_seconds))
                    // A receiver that sends us elsewhere could send us inside.
                    .redirect(reqwest::redirect::Policy::none())
                    .build()?,
            },
        };
        Ok(Self { name: config.name().to_owned(), way })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) async fn send(&self, notification: &Notification) -> Result<(), SendError> {
        match &self.way {
            Way::Log => {
                tracing::warn!(target: "dunlin_alerting::log", alert = notification.body, "alert");
                Ok(())
            }
            Way::Webhook { url, client } => {
                let answer = client
                    .post(url)
                    .header("content-type", "application/json")
                    .header("idempotency-key", &notification.idempotency_key)
                    .body(notification.body.clone())
                    .send()
                    .await
                    .map_err(|error| SendError::NoAnswer(error.without_url()))?;
                match answer.status() {
                    status if status.is_success() => Ok(()),
                    status => Err(SendError::Refused(status)),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_receiver_that_is_not_there_is_told_with_its_cause_and_without_its_address() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("http://{nobody}/hook?key=secret");
        let config = ChannelConfig::Webhook { name: "hook".into(), url, timeout_seconds: 60 };
        let notification = Notification {
            idempotency_key: "1-hook".into(),
            channel: "hook".into(),
            body: "{}".into(),
            attempts: 0,
        };
        let error = Channel::new(&config).unwrap().send(&notification).await.unwrap_err();
        let text = dunlin_model::chain(&error);
        assert!(text.starts_with("no answer: ") && text.to_lowercase().contains("refused"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}
