//! A console whose store another process has: what asks for the store is passed on as it came, and the answer comes as it is
//! given. Who asks is checked there.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    extract::{FromRequest, Request, State},
    http::{HeaderName, header},
    middleware::Next,
    response::Response,
};

use crate::{Config, problem::Problem};

/// What of the question is passed on, and of the answer.
const ASKED: [HeaderName; 3] = [header::AUTHORIZATION, header::CONTENT_TYPE, header::ACCEPT];
const ANSWERED: [HeaderName; 3] = [header::CONTENT_TYPE, header::RETRY_AFTER, header::WWW_AUTHENTICATE];
/// Stands on what was passed on once.
const PASSED_ON: HeaderName = HeaderName::from_static("dunlin-passed-on");
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Without a byte: a back-test says nothing until it is through.
const SILENCE_MAX: Duration = Duration::from_secs(900);

/// Where the store is.
#[derive(Debug, Clone)]
pub struct Elsewhere {
    /// Without a slash at its end.
    url: String,
    http: reqwest::Client,
}

#[derive(Debug, thiserror::Error)]
pub enum NoWay {
    #[error(
        "a console without a store needs console.store_url, the URL of a process with the roles store and console"
    )]
    NoUrl,
    #[error("console.store_url {url:?} must begin with http:// or https:// and name a host")]
    Url { url: String },
    #[error("make an HTTP client")]
    Client(#[from] reqwest::Error),
}

impl Elsewhere {
    pub fn new(config: &Config) -> Result<Self, NoWay> {
        let url = config.store_url.as_deref().ok_or(NoWay::NoUrl)?;
        let is_url = |url: &reqwest::Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        reqwest::Url::parse(url).ok().filter(is_url).ok_or_else(|| NoWay::Url { url: url.to_owned() })?;
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_MAX)
            .read_timeout(SILENCE_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self { url, http })
    }
}

/// Stands before the handlers of what the store answers, and lets nothing through to them.
pub(crate) async fn pass_on(
    State(there): State<Elsewhere>,
    request: Request,
    _here: Next,
) -> Result<Response, Problem> {
    if request.headers().contains_key(&PASSED_ON) {
        return Err(Problem::no_store("console.store_url names a process that has no store itself"));
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let (method, headers) = (request.method().clone(), request.headers().clone());
    let body = Bytes::from_request(request, &()).await?;
    let mut question = there.http.request(method, format!("{}{path}", there.url)).body(body);
    for name in ASKED {
        if let Some(value) = headers.get(&name) {
            question = question.header(name, value);
        }
    }
    let answer = question.header(PASSED_ON, "1").send().await.map_err(|error| {
        tracing::error!(error = dunlin_model::chain(&error), url = there.url, "the store did not answer");
        Problem::no_store("the process with the store does not answer")
    })?;
    let mut response = Response::builder().status(answer.status());
    for name in ANSWERED {
        if let Some(value) = answer.headers().get(&name) {
            response = response.header(name, value);
        }
    }
    response.body(Body::from_stream(answer.bytes_stream())).map_err(|error| Problem::internal(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_is_checked_before_anybody_asks() {
        let with = |url: Option<&str>| {
            Elsewhere::new(&Config { store_url: url.map(Into::into), ..Config::default() })
                .map(|there| there.url)
                .map_err(|error| error.to_string())
        };
        assert_eq!(with(Some("http://store:8080/")).unwrap(), "http://store:8080");
        assert!(with(None).unwrap_err().contains("needs console.store_url"));
        for wrong in ["store:8080", "ftp://store", "http://", ""] {
            assert!(with(Some(wrong)).unwrap_err().contains("must begin with http"), "{wrong:?}");
        }
    }
}
