//! The path of an HTTP reading: the same rules as MQTT, one request one append.

mod problem;
mod room; // how much may be under way

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequestParts, Path, Query, Request, State, rejection::BytesRejection},
    http::{HeaderMap, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use base64::Engine;
use bumpalo::Bump;
use dunlin_journal::{AppendError, Topic};
use dunlin_model::{DeviceId, DeviceType, EventKind, RejectReason, Timestamp, limits::MESSAGE_RECORDS_MAX};
use problem::Problem;
pub(crate) use room::HttpRoom;
use room::Room;
use serde::Deserialize;
use tower_http::{decompression::RequestDecompressionLayer, timeout::RequestBodyTimeoutLayer};

use crate::{
    account::{Class, TenantAccount},
    arrivals::Arriving,
    decode::{Fault, IdSource},
    directory::{self, Admitted, Credential, Denied},
    line_protocol::{Line, Precision, Reader},
    metrics::Status,
    part::Part,
    record::{self, Arrival, Delivery, Origin, Refused, append_entries, append_telemetry},
    tls::Certified,
    topic::child_name,
    worker::Shared,
};

type Gate = State<Arc<Shared>>;
type Body = Result<Bytes, BytesRejection>;

pub(crate) fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/telemetry", post(telemetry))
        .route("/v1/events", post(events))
        .route("/v1/d/{device}/telemetry", post(child_telemetry))
        .route("/api/v2/write", post(write_lines))
        .route("/write", post(write_lines))
        .route("/query", get(create_database).post(create_database))
        .route("/ping", get(ping))
        .route("/health", get(health))
        .layer(DefaultBodyLimit::max(shared.config.message_bytes_max))
        .layer(RequestDecompressionLayer::new())
        .layer(RequestBodyTimeoutLayer::new(Duration::from_secs(shared.config.handshake_seconds_max.into())))
        .layer(middleware::from_fn_with_state(shared.clone(), watch))
        .with_state(shared)
}

/// The body of a request was encoded when it came.
#[derive(Debug, Clone, Copy)]
struct Encoded;

/// Every request has an end in time and is counted.
async fn watch(State(shared): Gate, mut request: Request, next: Next) -> Response {
    if request.headers().contains_key(header::CONTENT_ENCODING) {
        request.extensions_mut().insert(Encoded); // Who decodes it takes the header away.
    }
    let patience = Duration::from_secs(shared.config.http_request_seconds_max.into());
    let response = match tokio::time::timeout(patience, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::unavailable("the request took too long").into_response(),
    };
    let status = Status { status: response.status().as_u16() };
    shared.books.metrics.http_requests.get_or_create(&status).inc();
    response
}

async fn telemetry(door: Door, headers: HeaderMap, body: Body) -> Result<Response, Problem> {
    const SOURCE: &str = "/v1/telemetry";
    let payload = door.whole(SOURCE, body).await?;
    door.telemetry(SOURCE, &headers, &payload, None).await
}

async fn child_telemetry(
    door: Door,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let source = "/v1/d/{device}/telemetry";
    let payload = door.whole(source, body).await?;
    let child = match child_name(&name) {
        Ok(name) => door.child(name).await,
        Err(e) => Err(Denial::Refused(Fault::new(RejectReason::UnknownTopic, "device", e))),
    };
    match child {
        Ok(child) => door.telemetry(source, &headers, &payload, Some(child)).await,
        Err(denial) => Err(door.deny(source, &payload, denial).await),
    }
}

async fn events(door: Door, body: Body) -> Result<Response, Problem> {
    const SOURCE: &str = "/v1/events";
    let payload = door.whole(SOURCE, body).await?;
    let detail = match record::check_event(&payload) {
        Ok(detail) => detail,
        Err(fault) => return Err(door.reject(SOURCE, &payload, fault).await),
    };
    let origin = Origin::from(&door.who);
    let mut part = door.part(Topic::Events, &door.who.device, Class::Event);
    part.batch.push(&record::event(origin, EventKind::Reported, detail.to_owned(), door.received_at));
    door.append(vec![part]).await?;
    Ok(accepted(1))
}

/// What InfluxDB's clients put into the query string. `org`, `bucket`, `db` and `rp` are theirs; the credential
/// says where the data goes.
#[derive(Debug, Default, Deserialize)]
struct Parameters {
    #[serde(default)]
    precision: String,
    u: Option<String>,
    p: Option<String>,
}

/// Good lines are stored whatever the others are, because clients drop a batch that is answered with 400.
async fn write_lines(
    door: Door,
    Query(parameters): Query<Parameters>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    const SOURCE: &str = "/api/v2/write";
    let payload = door.whole(SOURCE, body).await?;
    let Some(precision) = Precision::of(&parameters.precision) else {
        let fault = Fault::new(RejectReason::PayloadFormat, "precision", "one of ns, us, ms, s, m, h");
        return Err(door.reject(SOURCE, &payload, fault).await);
    };
    let text = match std::str::from_utf8(&payload) {
        Ok(text) => text,
        Err(e) => {
            let fault = Fault::new(RejectReason::PayloadFormat, "", format_args!("not UTF-8: {e}"));
            return Err(door.reject(SOURCE, &payload, fault).await);
        }
    };
    if text.lines().take(MESSAGE_RECORDS_MAX + 1).count() > MESSAGE_RECORDS_MAX {
        let what = format!("a request has at most {MESSAGE_RECORDS_MAX} lines");
        return Err(door.reject(SOURCE, &payload, Fault::new(RejectReason::TooLarge, "", what)).await);
    }
    let children = door.children_of(text, precision).await?;
    let (parts, faults) = door.lines(text, precision, key_of(&headers), &children);
    let (good, bad) = (parts.iter().filter(|p| p.class == Class::Telemetry).count(), faults.len());
    door.append(parts).await?;
    match faults.into_iter().next() {
        Some(fault) if good == 0 => Err(Problem::refused(&Fault {
            detail: format!("none of {bad} lines is good; {}", fault.detail),
            ..fault
        })),
        _ => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// What clients of InfluxDB 1 ask for before they write. There is nothing to create.
async fn create_database() -> Response {
    Json(serde_json::json!({ "results": [{ "statement_id": 0 }] })).into_response()
}

async fn ping() -> Response {
    (StatusCode::NO_CONTENT, [("X-Influxdb-Version", concat!("dunlin-", env!("CARGO_PKG_VERSION")))])
        .into_response()
}

async fn health() -> Response {
    Json(serde_json::json!({ "name": "dunlin", "message": "ready for queries and writes", "status": "pass", "checks": [] }))
        .into_response()
}

fn accepted(records: usize) -> Response {
    Json(serde_json::json!({ "accepted": records })).into_response()
}

/// What makes a request repeatable: its records are told apart by this and their place in the request.
pub(crate) fn key_of(headers: &HeaderMap) -> Option<u64> {
    headers.get("idempotency-key").map(|key| IdSource::Key.hash(key.as_bytes()))
}

/// The request of a device that showed its credential. Its body is read only now, when there is room for it.
struct Door {
    shared: Arc<Shared>,
    who: Admitted,
    account: Arc<TenantAccount>,
    received_at: Timestamp,
    /// Held like `room`.
    arriving: Arc<Arriving>,
    encoded: bool,
    /// Held until all that the request brought is durable or refused.
    room: Arc<Room>,
}

type Child = (DeviceId, DeviceType);

/// Why there is no child of a name.
enum Denial {
    Refused(Fault),
    Unavailable(String),
}

impl Denial {
    fn of(name: &DeviceId, denied: Denied) -> Self {
        let reason = match denied {
            Denied::Unavailable(reason) => return Self::Unavailable(reason),
            Denied::TooManyChildren { .. } => RejectReason::QuotaExceeded,
            _ => RejectReason::NotAuthorized,
        };
        Self::Refused(Fault::new(reason, "device", format_args!("{name}: {denied}")))
    }
}

impl FromRequestParts<Arc<Shared>> for Door {
    type Rejection = Problem;

    async fn from_request_parts(request: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Problem> {
        let headers = &request.headers;
        let parameters = Query::<Parameters>::try_from_uri(&request.uri)
            .map_err(|e| Problem::malformed(format!("the query string: {e}")))?;
        let credential = match request.extensions.get::<Certified>() {
            Some(certified) => Some(Credential::Certificate(certified.clone())),
            None => token(headers, &parameters).map(Credential::Token),
        };
        let credential = credential.ok_or_else(|| Problem::unauthorized("no token in the request"))?;
        let who = shared.admissions.admit(&credential).await.map_err(|denied| match denied {
            Denied::Unavailable(reason) => {
                tracing::error!(reason, "directory unavailable, request refused");
                Problem::unavailable("the directory is unavailable")
            }
            denied => Problem::unauthorized(denied.to_string()),
        })?;
        let room = shared
            .http_room
            .take(&who.tenant, shared.config.room_of(content_bytes(headers)))
            .map_err(|no_room| Problem::unavailable(no_room.to_string()))?;
        let account = shared.books.accounts.of(&who.tenant);
        let (shared, received_at) = (shared.clone(), shared.clock.now());
        let arriving = Arc::new(shared.books.arrivals.begin(received_at));
        let encoded = request.extensions.get::<Encoded>().is_some();
        Ok(Self { shared, who, account, received_at, arriving, encoded, room: Arc::new(room) })
    }
}

/// What the body will be at most, if the client says so and it is not compressed.
pub(crate) fn content_bytes(headers: &HeaderMap) -> Option<usize> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        return None;
    }
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Door {
    /// The body. One that is refused unread is told of in `rejected` without its bytes; one that stopped on its way
    /// was not sent.
    async fn whole(&self, source: &'static str, body: Body) -> Result<Bytes, Problem> {
        let rejection = match body {
            Ok(payload) => return Ok(payload),
            Err(rejection) => rejection,
        };
        let fault = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let max = self.shared.config.message_bytes_max;
            Fault::new(RejectReason::TooLarge, "", format_args!("a message has at most {max} bytes"))
        } else {
            let what = format!("the body could not be read: {rejection}");
            if !self.encoded {
                return Err(Problem::malformed(what));
            }
            Fault::new(RejectReason::PayloadFormat, "", what)
        };
        Err(self.reject(source, &[], fault).await)
    }

    async fn telemetry(
        &self,
        source: &'static str,
        headers: &HeaderMap,
        payload: &[u8],
        child: Option<Child>,
    ) -> Result<Response, Problem> {
        let delivery = key_of(headers).map_or(Delivery::Plain, Delivery::Keyed);
        let origin = self.origin(child.as_ref());
        let mut part = self.part(Topic::Telemetry, origin.device, Class::Telemetry);
        let appended = {
            let arena = Bump::new();
            append_telemetry(payload, origin, delivery, self.arrival(), &arena, &mut part.batch)
        };
        match appended {
            Ok(records) => {
                self.append(vec![part]).await?;
                Ok(accepted(records))
            }
            Err(fault) => Err(self.reject(source, payload, fault).await),
        }
    }

    fn origin<'a>(&'a self, child: Option<&'a Child>) -> Origin<'a> {
        match child {
            None => Origin::from(&self.who),
            Some((device, device_type)) => Origin { tenant: &self.who.tenant, device, device_type },
        }
    }

    fn arrival(&self) -> Arrival<'_> {
        Arrival { received_at: self.received_at, policy: &self.shared.config.time }
    }

    async fn child(&self, name: DeviceId) -> Result<Child, Denial> {
        if !self.who.speaks_for_children {
            let what = "this device does not speak for others";
            return Err(Denial::Refused(Fault::new(RejectReason::NotAuthorized, "device", what)));
        }
        let found = directory::child(&*self.shared.directory, &self.who, name.clone()).await;
        found.map_err(|denied| Denial::of(&name, denied))
    }

    async fn deny(&self, source: &'static str, payload: &[u8], denial: Denial) -> Problem {
        match denial {
            Denial::Refused(fault) => self.reject(source, payload, fault).await,
            Denial::Unavailable(reason) => {
                tracing::error!(reason, "directory unavailable, request refused");
                Problem::unavailable("the directory is unavailable")
            }
        }
    }

    /// Asks once for every child that the lines name.
    async fn children_of(
        &self,
        text: &str,
        precision: Precision,
    ) -> Result<hashbrown::HashMap<DeviceId, Result<Child, Fault>>, Problem> {
        let mut children = hashbrown::HashMap::new();
        if !self.who.speaks_for_children {
            return Ok(children);
        }
        let names: hashbrown::HashSet<DeviceId> = {
            let arena = Bump::new();
            self.reader(precision, &arena).lines(text).filter_map(|(_, line)| line.ok()?.child).collect()
        };
        if names.is_empty() {
            return Ok(children);
        }
        let names: Vec<DeviceId> = names.into_iter().collect();
        let answers = match self.shared.directory.children(&self.who, names.clone()).await {
            Ok(answers) => answers,
            Err(denied) => vec![Err(denied); names.len()],
        };
        for (name, answer) in names.into_iter().zip(answers) {
            let child = match answer.map_err(|denied| Denial::of(&name, denied)) {
                Ok(child) => Ok(child),
                Err(Denial::Refused(fault)) => Err(fault),
                Err(unavailable) => return Err(self.deny("", &[], unavailable).await),
            };
            children.insert(name, child);
        }
        Ok(children)
    }

    fn reader<'a>(&'a self, precision: Precision, arena: &'a Bump) -> Reader<'a> {
        Reader {
            device_type: &self.who.device_type,
            speaks_for_children: self.who.speaks_for_children,
            precision,
            arena,
        }
    }

    /// Good lines as telemetry, bad ones as rejected; and what is wrong with those.
    fn lines(
        &self,
        text: &str,
        precision: Precision,
        key: Option<u64>,
        children: &hashbrown::HashMap<DeviceId, Result<Child, Fault>>,
    ) -> (Vec<Part>, Vec<Fault>) {
        let arena = Bump::new();
        let mut parts: Vec<Part> = Vec::new();
        let mut faults = Vec::new();
        for (number, (raw, line)) in (0_u64..).zip(self.reader(precision, &arena).lines(text)) {
            let delivery = key.map_or(Delivery::Plain, |key| Delivery::Keyed(key.wrapping_add(number)));
            let whose =
                line.and_then(|Line { child, entry }| match child.and_then(|name| children.get(&name)) {
                    None => Ok((None, entry)),
                    Some(Ok(child)) => Ok((Some(child), entry)),
                    Some(Err(fault)) => Err(fault.clone()),
                });
            match whose {
                Ok((child, entry)) => {
                    let origin = self.origin(child);
                    let part = self.part_in(&mut parts, Topic::Telemetry, origin.device, Class::Telemetry);
                    let entries = std::iter::once(entry).collect();
                    let arrival = self.arrival();
                    append_entries(entries, &[], origin, delivery, arrival, &mut part.batch);
                }
                Err(fault) => {
                    let refused = Refused {
                        reason: fault.reason,
                        detail: &fault.detail,
                        source: "http:/api/v2/write",
                        payload: raw.as_bytes(),
                    };
                    let record = record::rejected(Origin::from(&self.who), refused, self.received_at);
                    let class = Class::Rejected(fault.reason);
                    self.part_in(&mut parts, Topic::Rejected, &self.who.device, class).batch.push(&record);
                    faults.push(fault);
                }
            }
        }
        (parts, faults)
    }

    fn part(&self, topic: Topic, device: &str, class: Class) -> Part {
        Part::new(&*self.shared.journal, topic, &self.who.tenant, device, class)
    }

    fn part_in<'p>(
        &self,
        parts: &'p mut Vec<Part>,
        topic: Topic,
        device: &str,
        class: Class,
    ) -> &'p mut Part {
        Part::among(parts, self.part(topic, device, class))
    }

    /// Keeps the original bytes with the reason, then says the reason.
    async fn reject(&self, source: &'static str, payload: &[u8], fault: Fault) -> Problem {
        let mut part = self.part(Topic::Rejected, &self.who.device, Class::Rejected(fault.reason));
        let refused = Refused {
            reason: fault.reason,
            detail: &fault.detail,
            source: &format!("http:{source}"),
            payload,
        };
        part.batch.push(&record::rejected(Origin::from(&self.who), refused, self.received_at));
        if let Err(problem) = self.append(vec![part]).await {
            // Said below anyway: whatever becomes of the copy, the message is refused.
            tracing::debug!(detail = problem.detail(), "the refused message is not kept");
        }
        Problem::refused(&fault)
    }

    /// Until all of it is durable. The appends go on if the client leaves, so that the account stays true.
    async fn append(&self, parts: Vec<Part>) -> Result<(), Problem> {
        let appends = parts.into_iter().filter(|part| !part.batch.is_empty()).map(|part| {
            let append = append(
                self.shared.clone(),
                self.account.clone(),
                part,
                self.room.clone(),
                self.arriving.clone(),
            );
            async { tokio::spawn(append).await.unwrap_or(Err(AppendError::Closed)) }
        });
        for outcome in futures::future::join_all(appends).await {
            outcome.map_err(|error| match error.is_transient() {
                true => Problem::unavailable(error.to_string()),
                false => Problem::too_large(error.to_string()),
            })?;
        }
        Ok(())
    }
}

async fn append(
    shared: Arc<Shared>,
    account: Arc<TenantAccount>,
    part: Part,
    _room: Arc<Room>,
    _arriving: Arc<Arriving>,
) -> Result<(), AppendError> {
    let at = part.at;
    let outcome = part.append(&*shared.journal, &account).await;
    if let Err(error) = &outcome
        && shared.http_logs().allow()
    {
        tracing::error!(partition = %at, %error, "append failed, the request is not acknowledged");
    }
    outcome
}

/// The token that a request shows.
#[cfg(any(test, fuzzing))]
pub(crate) fn shown_token(headers: &HeaderMap, uri: &axum::http::Uri) -> Option<String> {
    token(headers, &Query::<Parameters>::try_from_uri(uri).ok()?.0)
}

/// `Bearer` and `Token` carry it as it is; `Basic` as password, or as user name without one; InfluxDB 1 clients
/// also as `p` or `u`.
fn token(headers: &HeaderMap, parameters: &Parameters) -> Option<String> {
    let of_pair = |user: &str, password: &str| match password {
        "" => user.to_owned(),
        password => password.to_owned(),
    };
    let token = match headers.get(header::AUTHORIZATION) {
        Some(value) => {
            let (scheme, rest) = value.to_str().ok()?.split_once(' ')?;
            match scheme.to_ascii_lowercase().as_str() {
                "bearer" | "token" => rest.trim().to_owned(),
                "basic" => {
                    let pair = base64::engine::general_purpose::STANDARD.decode(rest.trim()).ok()?;
                    let pair = String::from_utf8(pair).ok()?;
                    let (user, password) = pair.split_once(':')?;
                    of_pair(user, password)
                }
                _ => return None,
            }
        }
        None => {
            of_pair(parameters.u.as_deref().unwrap_or_default(), parameters.p.as_deref().unwrap_or_default())
        }
    };
    (!token.is_empty()).then_some(token)
}
