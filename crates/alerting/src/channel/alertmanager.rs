use std::time::Duration;

use dunlin_model::Timestamp;
use dunlin_registry::Alert;
use serde_json::{Value, json};

use super::{ChannelError, SendError, http::Receiver};
use crate::{
    config::AlertmanagerConfig,
    message::{Facts, Message},
};

/// Alerts in one request.
pub(super) const BATCH_MAX: usize = 500;
/// Refreshes that may fail before an Alertmanager takes an alert for resolved.
const REFRESHES_MISSED_MAX: u32 = 5;

#[derive(Debug)]
pub(super) struct Alertmanager {
    receiver: Receiver,
    refresh_every: Duration,
    public_url: Option<String>,
}

impl Alertmanager {
    pub(super) fn new(config: &AlertmanagerConfig, public_url: Option<&str>) -> Result<Self, ChannelError> {
        let AlertmanagerConfig { name, url, timeout_seconds, private_network, refresh_seconds } = config;
        let url = format!("{}/api/v2/alerts", url.trim_end_matches('/'));
        Ok(Self {
            receiver: Receiver::new(name, &url, *timeout_seconds, *private_network)?,
            refresh_every: Duration::from_secs(*refresh_seconds),
            public_url: public_url.map(|url| url.trim_end_matches('/').to_owned()),
        })
    }

    pub(super) fn refresh_every(&self) -> Duration {
        self.refresh_every
    }

    pub(super) async fn send(&self, messages: &[Message], now: Timestamp) -> Result<(), SendError> {
        let facts = messages.iter().filter_map(|m| m.alert.as_ref());
        self.post(facts.map(|facts| self.alert(facts, now)).collect()).await
    }

    pub(super) async fn refresh(&self, alerts: &[Alert], now: Timestamp) -> Result<(), SendError> {
        let facts = alerts.iter().map(|alert| Facts::preview(alert, now));
        self.post(facts.map(|facts| self.alert(&facts, now)).collect()).await
    }

    async fn post(&self, alerts: Vec<Value>) -> Result<(), SendError> {
        match alerts.is_empty() {
            true => Ok(()),
            false => self.receiver.post(Value::from(alerts).to_string(), &[], |request| request).await,
        }
    }

    /// Labels name the alert; an Alertmanager knows it by them.
    fn alert(&self, facts: &Facts, now: Timestamp) -> Value {
        let ends_at = match facts.is_over() {
            true => facts.at.clone(),
            false => (now + self.refresh_every * REFRESHES_MISSED_MAX).to_string(),
        };
        let url = self.public_url.as_ref().map(|url| format!("{url}/v1/alerts/{}", facts.alert));
        json!({
            "labels": {
                "alertname": facts.rule,
                "device": facts.device,
                "tenant": facts.tenant,
                "severity": facts.severity,
            },
            "annotations": {
                "summary": format!("{} on {}", facts.rule, facts.device),
                "description": facts.condition,
                "value": facts.value.map(|v| v.to_string()).unwrap_or_default(),
                "alert": facts.alert,
            },
            "startsAt": facts.since,
            "endsAt": ends_at,
            "generatorURL": url.unwrap_or_default(),
        })
    }
}
