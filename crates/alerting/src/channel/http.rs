use std::time::Duration;

use reqwest::{RequestBuilder, Response, StatusCode, Url};

use super::{ChannelError, SendError, guard};

/// A receiver over HTTP.
#[derive(Debug)]
pub(super) struct Receiver {
    client: reqwest::Client,
    url: Url,
    private_network: bool,
}

/// Of what a receiver says of its refusal.
const DETAIL_CHARS_MAX: usize = 200;
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3_600);

impl Receiver {
    pub(super) fn new(
        channel: &str,
        url: &str,
        timeout_seconds: u64,
        private_network: bool,
    ) -> Result<Self, ChannelError> {
        let url: Url = url.parse().map_err(|_| ChannelError::Address {
            channel: channel.to_owned(),
            // Without the address: it may hold a secret.
            why: "this is not an http or https address".to_owned(),
        })?;
        if !private_network {
            let why = |error: guard::NotAllowed| ChannelError::Address {
                channel: channel.to_owned(),
                why: error.to_string(),
            };
            guard::check(&url).map_err(why)?;
        }
        let client = reqwest::Client::builder()
            .timeout(Duration::from_secs(timeout_seconds))
            // A receiver that sends us elsewhere could send us inside.
            .redirect(reqwest::redirect::Policy::none())
            // A proxy would look names up, unseen.
            .no_proxy();
        let client = if private_network { client } else { client.dns_resolver(guard::resolver()) };
        let client =
            client.build().map_err(|source| ChannelError::Http { channel: channel.to_owned(), source })?;
        Ok(Self { client, url, private_network })
    }

    /// `finals` are the answers after which another try makes no sense.
    pub(super) async fn post(
        &self,
        body: String,
        finals: &[StatusCode],
        with: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<(), SendError> {
        if !self.private_network {
            guard::check(&self.url)?;
        }
        let request =
            self.client.post(self.url.clone()).header("content-type", "application/json").body(body);
        let answer = with(request).send().await.map_err(|error| SendError::NoAnswer(error.without_url()))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let retry_after = retry_after(&answer);
        let detail = detail(answer).await;
        Err(match finals.contains(&status) {
            true => SendError::Rejected { status, detail },
            false => SendError::Refused { status, detail, retry_after },
        })
    }
}

fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer.headers().get("retry-after")?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

/// The beginning of what it says, in one line.
async fn detail(mut answer: Response) -> String {
    let Ok(Some(chunk)) = answer.chunk().await else { return String::new() };
    let start = &chunk[..chunk.len().min(4 * DETAIL_CHARS_MAX)];
    let text = String::from_utf8_lossy(start);
    let line: String = text.chars().filter(|c| !c.is_control()).take(DETAIL_CHARS_MAX).collect();
    if line.is_empty() { line } else { format!(": {line}") }
}
