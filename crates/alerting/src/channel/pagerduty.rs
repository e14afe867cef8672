use reqwest::StatusCode;
use serde_json::{Value, json};

use super::{ChannelError, SendError, http::Receiver, secret};
use crate::{config::PagerDutyConfig, message::Message};

#[derive(Debug)]
pub(super) struct PagerDuty {
    receiver: Receiver,
    routing_key: RoutingKey,
}

struct RoutingKey(String);

impl std::fmt::Debug for RoutingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RoutingKey(…)")
    }
}

const SUMMARY_CHARS_MAX: usize = 1_024;

impl PagerDuty {
    pub(super) fn new(config: &PagerDutyConfig) -> Result<Self, ChannelError> {
        let PagerDutyConfig { name, routing_key_file, url, timeout_seconds, private_network, .. } = config;
        let routing_key = RoutingKey(secret(name, routing_key_file, "routing key")?);
        Ok(Self { receiver: Receiver::new(name, url, *timeout_seconds, *private_network)?, routing_key })
    }

    pub(super) async fn send(&self, message: &Message) -> Result<(), SendError> {
        let body = event(&self.routing_key.0, message).to_string();
        // An event that it calls invalid is invalid the next time, too.
        self.receiver.post(body, &[StatusCode::BAD_REQUEST], |request| request).await
    }
}

/// Incidents go by the fingerprint: what comes and goes is one.
fn event(routing_key: &str, message: &Message) -> Value {
    let summary: String = message.title.chars().take(SUMMARY_CHARS_MAX).collect();
    let Some(facts) = &message.alert else {
        return json!({
            "routing_key": routing_key,
            "event_action": "trigger",
            "dedup_key": message.key,
            "client": "Dunlin",
            "payload": { "summary": summary, "source": message.tenant, "severity": "warning",
                         "custom_details": message.many },
        });
    };
    let action = match facts.what.as_str() {
        "resolved" => "resolve",
        "acknowledged" => "acknowledge",
        _ => "trigger",
    };
    let links: Vec<Value> =
        message.ack_url.iter().map(|url| json!({ "href": url, "text": "Acknowledge in Dunlin" })).collect();
    json!({
        "routing_key": routing_key,
        "event_action": action,
        "dedup_key": facts.fingerprint,
        "client": "Dunlin",
        "links": links,
        "payload": {
            "summary": summary,
            "source": facts.device,
            "severity": facts.severity,
            "timestamp": facts.at,
            "component": facts.device,
            "class": facts.rule,
            "custom_details": facts,
        },
    })
}
