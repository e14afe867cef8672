//! Readings over HTTP: one request at a time on each connection, which is kept or not.

use crate::{
    exchanges::{self, ExchangeError, Heard, Report, Talk},
    load::Identity,
    payload::{Payload, SEQ_FIRST, Template},
};

const HEADERS_MAX: usize = 32;

#[derive(Debug, Clone)]
pub struct Config {
    pub exchanges: exchanges::Config,
    /// What the header `Host` says.
    pub host: String,
    pub path: String,
    /// Clients speak as these in turn; never empty.
    pub identities: Vec<Identity>,
    /// Records of one request; more than one are a JSON array.
    pub records: usize,
    pub payload: Payload,
    /// Keep connections for the next request.
    pub keep_alive: bool,
    /// The sequence number of the first record.
    pub seq_first: u64,
}

/// Runs to the end of the measured time. Blocks the thread.
pub fn run(config: &Config) -> Result<Report, ExchangeError> {
    let wrong = |what: &str| Err(ExchangeError::Config(what.to_owned()));
    if config.identities.is_empty() {
        return wrong("at least one identity is needed");
    }
    if config.records == 0 {
        return wrong("a request has at least one record");
    }
    let requests = config.identities.iter().map(|identity| Request::new(config, identity)).collect();
    let sent = config.seq_first.max(SEQ_FIRST);
    exchanges::run(
        &config.exchanges,
        Http { requests, payload: config.payload, sent, keep_alive: config.keep_alive },
    )
}

struct Http {
    requests: Vec<Request>,
    payload: Payload,
    sent: u64,
    keep_alive: bool,
}

/// One device's request with the places that change.
struct Request {
    bytes: Vec<u8>,
    records: Vec<Template>,
}

impl Request {
    fn new(config: &Config, identity: &Identity) -> Self {
        let template = Template::new(config.payload);
        let separators = if config.records == 1 { 0 } else { config.records + 1 };
        let length = config.records * template.text().len() + separators;
        let Config { path, host, .. } = config;
        let mut head = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n");
        if let Some(token) = &identity.token {
            head += &format!("Authorization: Bearer {token}\r\n");
        }
        head += "Content-Type: application/json\r\n";
        if !config.keep_alive {
            head += "Connection: close\r\n";
        }
        head += &format!("Content-Length: {length}\r\n\r\n");
        let mut bytes = head.into_bytes();
        let mut records = Vec::new();
        for n in 0..config.records {
            if config.records > 1 {
                bytes.push(if n == 0 { b'[' } else { b',' });
            }
            records.push(template.clone().stands_at(bytes.len()));
            bytes.extend_from_slice(template.text());
        }
        if config.records > 1 {
            bytes.push(b']');
        }
        Self { bytes, records }
    }
}

impl Talk for Http {
    fn begin(&mut self, client: usize, _: u64, out: &mut Vec<u8>) {
        let device = client % self.requests.len();
        let Request { bytes, records } = &mut self.requests[device];
        let stamp = self.payload.stamp();
        for record in records {
            record.fill(bytes, self.sent, stamp);
            self.sent += 1;
        }
        out.extend_from_slice(bytes);
    }

    fn hear(&mut self, _: usize, bytes: &[u8], _: &mut Vec<u8>) -> Result<Heard, String> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let head = match response.parse(bytes).map_err(|error| error.to_string())? {
            httparse::Status::Partial => return Ok(Heard::Nothing),
            httparse::Status::Complete(head) => head,
        };
        let header = |name: &str| {
            let found = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(found.value).ok()
        };
        let code = response.code.unwrap_or(0);
        let length = match header("content-length").map(str::parse) {
            Some(Ok(length)) => length,
            None if code == 204 => 0,
            _ => return Err(format!("an answer {code} without a length")),
        };
        if bytes.len() < head + length {
            return Ok(Heard::Nothing);
        }
        let closes = header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        Ok(Heard::Answer {
            bytes: head + length,
            accepted: (200..300).contains(&code),
            code,
            keep: self.keep_alive && !closes,
        })
    }

    fn farewell(&self) -> &'static [u8] {
        &[]
    }
}
