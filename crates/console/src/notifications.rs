use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use dunlin_alerting::{CSV_HEADER, Line};
use dunlin_registry::{NotificationFilter, Told};
use futures::stream;
use serde::{Deserialize, Serialize};

use crate::{Console, ask::Asker, problem::Problem};

const LIST_MAX: u32 = 1_000;
const PAGE: u32 = 5_000;
const STATES: [&str; 7] = ["due", "held", "sent", "dead", "gathering", "carried", "suppressed"];

#[derive(Serialize)]
pub(crate) struct NotificationView {
    key: String,
    alert: Option<String>,
    channel: String,
    recipient: String,
    what: String,
    /// `due`, `held` behind an older one of the alert, `sent`, `dead`; `gathering`: a message of many that takes
    /// more; `carried`: told in another; `suppressed`: not told.
    state: String,
    /// Why it was not sent by itself.
    reason: Option<String>,
    /// The message in which it is told.
    carrier: Option<String>,
    /// Of a message of many: how many.
    alerts: u64,
    attempts: u32,
    last_error: Option<String>,
    at: String,
    sent_at: Option<String>,
}

impl From<Told> for NotificationView {
    fn from(told: Told) -> Self {
        Self {
            key: told.idempotency_key,
            alert: told.alert.map(|id| id.to_string()),
            channel: told.channel,
            recipient: told.recipient,
            what: told.what,
            state: told.state,
            reason: told.reason,
            carrier: told.carrier,
            alerts: told.members,
            attempts: told.attempts,
            last_error: told.last_error,
            at: told.created_at.to_string(),
            sent_at: told.sent_at.map(|t| t.to_string()),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NotificationsQuery {
    state: Option<String>,
    channel: Option<String>,
    alert: Option<String>,
    limit: Option<u32>,
}

#[derive(Serialize)]
pub(crate) struct NotificationsView {
    /// The newest first; of one alert the oldest.
    notifications: Vec<NotificationView>,
}

pub(crate) async fn list(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    query: Result<Query<NotificationsQuery>, QueryRejection>,
) -> Result<Json<NotificationsView>, Problem> {
    let Query(query) = query?;
    if let Some(state) = query.state.as_deref().filter(|state| !STATES.contains(state)) {
        return Err(Problem::invalid("state", format!("{state:?} is none of {}", STATES.join(", "))));
    }
    let alert = query.alert.map(|id| id.parse().map_err(|e| Problem::invalid("alert", e))).transpose()?;
    let limit = query.limit.unwrap_or(LIST_MAX).clamp(1, LIST_MAX);
    let filter = NotificationFilter { state: query.state, channel: query.channel, alert, limit };
    let told = console.registry.notifications(&user.tenant, &filter).await?;
    Ok(Json(NotificationsView { notifications: told.into_iter().map(NotificationView::from).collect() }))
}

/// Sends again what was given up.
pub(crate) async fn retry(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(key): Path<String>,
) -> Result<StatusCode, Problem> {
    if !console.registry.revive_notification(&user.tenant, &key).await? {
        return Err(Problem::not_found("dead notification", &key));
    }
    console.desk.changed();
    Ok(StatusCode::ACCEPTED)
}

/// All that a message of many tells, as CSV, page by page.
pub(crate) async fn carried(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(key): Path<String>,
) -> Result<Response, Problem> {
    if !console.registry.has_carrier(&user.tenant, &key).await? {
        return Err(Problem::not_found("message of many", &key));
    }
    let pages = stream::try_unfold(Some(0), move |after| {
        let (console, key) = (console.clone(), key.clone());
        async move {
            let Some(after) = after else { return Ok::<_, std::io::Error>(None) };
            let page = console.registry.carried(&key, after, PAGE).await.map_err(std::io::Error::other)?;
            let next = page.last().map(|last| last.seq);
            let mut text = if after == 0 { CSV_HEADER.to_owned() } else { String::new() };
            page.into_iter().for_each(|carried| text.push_str(&Line::from(carried).to_csv()));
            Ok(Some((Bytes::from(text), next)))
        }
    });
    Ok(([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], Body::from_stream(pages)).into_response())
}
