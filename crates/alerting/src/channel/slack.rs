use serde_json::json;

use super::{ChannelError, SendError, http::Receiver, secret};
use crate::{config::SlackConfig, message::Message, templates::Rendered};

#[derive(Debug)]
pub(super) struct Slack {
    receiver: Receiver,
}

impl Slack {
    pub(super) fn new(config: &SlackConfig) -> Result<Self, ChannelError> {
        let SlackConfig { name, url_file, timeout_seconds, private_network, .. } = config;
        let url = secret(name, url_file, "address")?;
        Ok(Self { receiver: Receiver::new(name, &url, *timeout_seconds, *private_network)? })
    }

    pub(super) async fn send(&self, message: &Message, rendered: &Rendered) -> Result<(), SendError> {
        // Servers made like Slack read `text`; a preview that a server makes of a link would only cost it a look.
        let body = json!({ "text": rendered.text, "unfurl_links": false }).to_string();
        self.receiver.post(body, &[], |request| request.header("idempotency-key", &message.key)).await
    }
}
