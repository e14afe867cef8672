use std::{path::Path, time::Duration};

use reqwest::{Certificate, RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde_json::Value;

use crate::{
    cli::{DATA_DEFAULT, Server},
    exit::Failure,
};

/// The server's API, as the user of a token.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    url: String,
    token: String,
    http: reqwest::Client,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl Client {
    pub(crate) fn new(server: &Server) -> Result<Self, Failure> {
        Ok(Self {
            url: server.url.trim_end_matches('/').to_owned(),
            token: token(server)?,
            http: reqwest::Client::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .tls_certs_merge(authorities(server)?)
                .build()?,
        })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        Ok(self.send(self.http.get(format!("{}{path}", self.url))).await?.json().await?)
    }

    pub(crate) async fn get_text(&self, path: &str) -> Result<String, Failure> {
        Ok(self.send(self.http.get(format!("{}{path}", self.url))).await?.text().await?)
    }

    pub(crate) async fn post(&self, path: &str, body: &impl Serialize) -> Result<Value, Failure> {
        Ok(self.send(self.http.post(format!("{}{path}", self.url)).json(body)).await?.json().await?)
    }

    /// What answers with nothing but that it is done.
    pub(crate) async fn post_nothing(&self, path: &str, body: &Value) -> Result<(), Failure> {
        self.send(self.http.post(format!("{}{path}", self.url)).json(body)).await.map(drop)
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Result<(), Failure> {
        self.send(self.http.patch(format!("{}{path}", self.url)).json(body)).await.map(drop)
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<(), Failure> {
        self.send(self.http.delete(format!("{}{path}", self.url))).await.map(drop)
    }

    pub(crate) async fn put_text(&self, path: &str, body: String) -> Result<Value, Failure> {
        Ok(self.send(self.http.put(format!("{}{path}", self.url)).body(body)).await?.json().await?)
    }

    /// The answer's body as it comes.
    pub(crate) async fn post_text(&self, path: &str, body: String) -> Result<Response, Failure> {
        self.send(self.http.post(format!("{}{path}", self.url)).body(body)).await
    }

    /// The token of a device: of a new one, or a further one of a device that exists, which may end the others.
    pub(crate) async fn device_token(
        &self,
        name: &str,
        device_type: &str,
        revoke_others: bool,
    ) -> Result<String, Failure> {
        let request = self.http.post(format!("{}/v1/devices", self.url));
        let response =
            self.ask(request.json(&serde_json::json!({ "name": name, "device_type": device_type }))).await?;
        let response = match response.status() {
            StatusCode::CONFLICT => {
                let path = tokens_path(name, revoke_others);
                self.ask(self.http.post(format!("{}{path}", self.url))).await?
            }
            _ => response,
        };
        let body: Value = self.accept(response).await?.json().await?;
        text(&body, "token")
    }

    /// Where devices connect by MQTT: as asked for, else as the server says. A server that listens on every address
    /// is met where its API is.
    pub(crate) async fn mqtt(&self, asked: Option<String>) -> Result<String, Failure> {
        if let Some(address) = asked {
            return Ok(address);
        }
        let address = text(&self.get("/v1/status").await?, "mqtt")?;
        let host = reqwest::Url::parse(&self.url).ok().and_then(|url| url.host_str().map(str::to_owned));
        Ok(match (address.parse::<std::net::SocketAddr>(), host) {
            (Ok(address), Some(host)) if address.ip().is_unspecified() => {
                format!("{host}:{}", address.port())
            }
            _ => address,
        })
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = self.ask(request).await?;
        self.accept(response).await
    }

    async fn ask(&self, request: RequestBuilder) -> Result<Response, Failure> {
        request.bearer_auth(&self.token).send().await.map_err(|error| {
            Failure::NoServer(format!("no answer from {}: {}", self.url, dunlin_model::chain(&error)))
        })
    }

    async fn accept(&self, response: Response) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.text().await.unwrap_or_default();
        let problem: Option<Value> = serde_json::from_str(&body).ok();
        let detail = problem.as_ref().and_then(|p| p["detail"].as_str()).unwrap_or(&body).to_owned();
        match status {
            StatusCode::UNAUTHORIZED => Err(Failure::NoServer(format!("{}: {detail}", self.url))),
            _ => Err(Failure::Failed(detail)),
        }
    }
}

fn authorities(server: &Server) -> Result<Vec<Certificate>, Failure> {
    let Some(file) = &server.ca else { return Ok(Vec::new()) };
    let invalid = |error: &dyn std::fmt::Display| Failure::Invalid(format!("{}: {error}", file.display()));
    let pem = std::fs::read(file).map_err(|error| invalid(&error))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if certificates.is_empty() => Err(invalid(&"holds no certificate in PEM")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(invalid(&error)),
    }
}

/// A name as a part of a path or of a query.
pub(crate) fn escaped(name: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    name.bytes().map(escape).collect()
}

pub(crate) fn tokens_path(device: &str, revoke_others: bool) -> String {
    format!("/v1/devices/{}/tokens?revoke_others={revoke_others}", escaped(device))
}

/// A text field that the API promises.
pub(crate) fn text(body: &Value, field: &str) -> Result<String, Failure> {
    body[field]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| Failure::Failed(format!("the server's answer has no field {field:?}: {body}")))
}

fn token(server: &Server) -> Result<String, Failure> {
    let from_file = |file: &Path| {
        std::fs::read_to_string(file)
            .map(|token| token.trim().to_owned())
            .map_err(|error| Failure::NoServer(format!("no token: read {}: {error}", file.display())))
    };
    if let Some(file) = &server.token_file {
        return from_file(file);
    }
    match std::env::var("DUNLIN_TOKEN") {
        Ok(token) if !token.is_empty() => Ok(token),
        _ => from_file(&Path::new(DATA_DEFAULT).join("admin.token")).map_err(|_| {
            Failure::NoServer("no token: set DUNLIN_TOKEN, or say --token-file DIR/admin.token".to_owned())
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_to_their_place_in_an_address() {
        let path = tokens_path("a?b&c %ü", true);
        assert_eq!(path, "/v1/devices/a%3Fb%26c%20%25%C3%BC/tokens?revoke_others=true");
    }
}
