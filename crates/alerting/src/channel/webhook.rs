use base64::{Engine, engine::general_purpose::STANDARD};
use dunlin_model::Timestamp;
use hmac::Mac;
use serde_json::json;

use super::{ChannelError, SendError, http::Receiver, secret};
use crate::{config::WebhookConfig, links::keyed, message::Message, templates::Templates};

#[derive(Debug)]
pub(super) struct Webhook {
    receiver: Receiver,
    secret: Option<Secret>,
    has_template: bool,
}

struct Secret(Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Webhook {
    pub(super) fn new(config: &WebhookConfig) -> Result<Self, ChannelError> {
        let WebhookConfig { name, url, timeout_seconds, private_network, .. } = config;
        let secret = match &config.secret_file {
            None => None,
            Some(file) => {
                let text = secret(name, file, "secret")?;
                // As Standard Webhooks writes secrets; any other text is the secret itself.
                let key = match text.strip_prefix("whsec_") {
                    Some(coded) => STANDARD.decode(coded).map_err(|_| ChannelError::Content {
                        channel: name.clone(),
                        path: file.clone(),
                        what: "secret",
                    })?,
                    None => text.into_bytes(),
                };
                Some(Secret(key))
            }
        };
        let receiver = Receiver::new(name, url, *timeout_seconds, *private_network)?;
        Ok(Self { receiver, secret, has_template: config.template.is_some() })
    }

    pub(super) async fn send(
        &self,
        message: &Message,
        templates: &Templates,
        now: Timestamp,
    ) -> Result<(), SendError> {
        let body = if self.has_template { templates.render(message)?.text } else { body(message) };
        let at = (now.as_millis() / 1_000).to_string();
        let signature = self.secret.as_ref().map(|secret| {
            let mac = keyed(&secret.0, &[message.key.as_bytes(), b".", at.as_bytes(), b".", body.as_bytes()]);
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        });
        self.receiver
            .post(body, &[], |request| {
                let request = request
                    .header("idempotency-key", &message.key)
                    .header("webhook-id", &message.key)
                    .header("webhook-timestamp", &at);
                match &signature {
                    Some(signature) => request.header("webhook-signature", signature),
                    None => request,
                }
            })
            .await
    }
}

/// What a machine reads.
pub(super) fn body(message: &Message) -> String {
    let mut body = match (&message.alert, &message.many) {
        (Some(facts), _) => json!(facts),
        (None, many) => json!({
            "id": message.key,
            "tenant": message.tenant,
            "what": message.what,
            "count": many.as_ref().map(|m| m.count),
            "groups": many.as_ref().map(|m| &m.groups),
            "alerts": many.as_ref().map(|m| &m.first),
            "list_url": many.as_ref().and_then(|m| m.list_url.as_ref()),
        }),
    };
    body["title"] = json!(message.title);
    body["ack_url"] = json!(message.ack_url);
    body.to_string()
}
