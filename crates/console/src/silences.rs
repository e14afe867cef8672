use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::StatusCode,
};
use dunlin_alerting::{MatcherDto, Matchers};
use dunlin_model::Timestamp;
use dunlin_registry::{NewSilence, Silence};
use serde::{Deserialize, Serialize};

use crate::{
    Console,
    ask::{Asker, name_of},
    problem::Problem,
    when,
};

const LIST_MAX: u32 = 1_000;
/// Silences of a tenant that have not ended.
const OPEN_MAX: u64 = 1_000;
const COMMENT_BYTES_MAX: usize = 4_096;
const DURATION_DEFAULT: Duration = Duration::from_secs(3_600);

/// Alertmanager's names are understood, too.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewSilenceBody {
    matchers: Vec<MatcherBody>,
    /// Now if absent.
    #[serde(alias = "startsAt")]
    starts_at: Option<String>,
    #[serde(alias = "endsAt")]
    ends_at: Option<String>,
    /// `2h`: instead of `ends_at`. An hour if neither is said.
    duration: Option<String>,
    /// A maintenance window: again after this time, `1d`, `1w`.
    every: Option<String>,
    /// The end of a maintenance window's repetitions.
    until: Option<String>,
    #[serde(default)]
    comment: String,
    #[serde(alias = "createdBy")]
    created_by: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum MatcherBody {
    /// `rule="too-hot"`
    Text(String),
    Parts(MatcherDto),
}

#[derive(Serialize)]
pub(crate) struct SilenceView {
    id: String,
    /// `pending`, `active` or `expired`.
    state: &'static str,
    matchers: Vec<MatcherDto>,
    /// As one would write it.
    matching: String,
    starts_at: String,
    ends_at: String,
    every_seconds: Option<u64>,
    /// In force never from here on.
    until: String,
    comment: String,
    created_by: String,
    created_at: String,
}

#[derive(Serialize)]
pub(crate) struct SilencesView {
    silences: Vec<SilenceView>,
}

fn view(silence: Silence, now: Timestamp) -> SilenceView {
    let matchers = Matchers::restore(&silence.matchers).ok();
    let state = match silence.in_force_until(now) {
        Some(_) => "active",
        None if now < silence.until => "pending",
        None => "expired",
    };
    SilenceView {
        state,
        matching: matchers.as_ref().map(ToString::to_string).unwrap_or_default(),
        matchers: matchers.map(|m| m.dtos()).unwrap_or_default(),
        id: silence.id,
        starts_at: silence.starts_at.to_string(),
        ends_at: silence.ends_at.to_string(),
        every_seconds: silence.every_seconds,
        until: silence.until.to_string(),
        comment: silence.comment,
        created_by: silence.created_by,
        created_at: silence.created_at.to_string(),
    }
}

pub(crate) async fn add(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    body: Result<Json<NewSilenceBody>, JsonRejection>,
) -> Result<(StatusCode, Json<SilenceView>), Problem> {
    let Json(body) = body?;
    let now = console.desk.now();
    let created_by = name_of(&user, body.created_by.clone())?;
    let new = new_silence(body, created_by, now)?;
    if console.registry.silences_open(&user.tenant).await? >= OPEN_MAX {
        return Err(Problem::conflict(format!(
            "there are {OPEN_MAX} silences that have not ended; expire some"
        )));
    }
    let silence = console.registry.add_silence(&user.tenant, &new).await?;
    console.desk.changed();
    Ok((StatusCode::CREATED, Json(view(silence, now))))
}

fn new_silence(body: NewSilenceBody, created_by: String, now: Timestamp) -> Result<NewSilence, Problem> {
    if body.comment.len() > COMMENT_BYTES_MAX {
        return Err(Problem::invalid("comment", format!("at most {COMMENT_BYTES_MAX} bytes")));
    }
    let starts_at = body.starts_at.map(|text| when::time("starts_at", &text)).transpose()?.unwrap_or(now);
    let ends_at = match (&body.ends_at, &body.duration) {
        (Some(text), None) => when::time("ends_at", text)?,
        (None, Some(span)) => starts_at + when::span("duration", span)?,
        (None, None) => starts_at + DURATION_DEFAULT,
        (Some(_), Some(_)) => return Err(Problem::invalid("duration", "say either `ends_at` or `duration`")),
    };
    let every = body.every.map(|span| when::span("every", &span)).transpose()?;
    let until = match (body.until, every) {
        (Some(_), None) => return Err(Problem::invalid("until", "only what repeats, `every`, has this")),
        (Some(text), Some(_)) => when::time("until", &text)?,
        (None, Some(_)) => starts_at + when::SPAN_MAX,
        (None, None) => ends_at,
    };
    if ends_at <= starts_at || until <= now || until.since(now) > 2 * when::SPAN_MAX {
        return Err(Problem::invalid("ends_at", "a time to come, after the start and within 5 years"));
    }
    if every.is_some_and(|every| every < ends_at.since(starts_at)) {
        return Err(Problem::invalid("every", "longer than the window itself"));
    }
    let matchers = matchers(&body.matchers)?;
    Ok(NewSilence {
        matchers: matchers.keep(),
        starts_at,
        ends_at,
        every_seconds: every.map(|every| every.as_secs()),
        until,
        comment: body.comment,
        created_by,
    })
}

fn matchers(bodies: &[MatcherBody]) -> Result<Matchers, Problem> {
    let mut dtos = Vec::new();
    for body in bodies {
        match body {
            MatcherBody::Parts(dto) => dtos.push(dto.clone()),
            MatcherBody::Text(text) => {
                let parsed = Matchers::parse(std::slice::from_ref(text));
                dtos.extend(parsed.map_err(|e| Problem::invalid("matchers", e))?.dtos());
            }
        }
    }
    let matchers = Matchers::new(&dtos).map_err(|e| Problem::invalid("matchers", e))?;
    match matchers.is_empty() {
        true => Err(Problem::invalid("matchers", "at least one, or everything would be silent")),
        false => Ok(matchers),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SilencesQuery {
    /// `pending`, `active` or `expired`; all if absent.
    state: Option<String>,
}

pub(crate) async fn list(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    query: Result<Query<SilencesQuery>, QueryRejection>,
) -> Result<Json<SilencesView>, Problem> {
    let Query(query) = query?;
    let now = console.desk.now();
    let silences = console.registry.silences(&user.tenant, LIST_MAX).await?;
    let mut views: Vec<SilenceView> = silences.into_iter().map(|silence| view(silence, now)).collect();
    if let Some(state) = query.state {
        views.retain(|view| view.state == state);
    }
    Ok(Json(SilencesView { silences: views }))
}

pub(crate) async fn show(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(id): Path<String>,
) -> Result<Json<SilenceView>, Problem> {
    let silence = console.registry.silence(&user.tenant, &id).await?;
    let silence = silence.ok_or_else(|| Problem::not_found("silence", &id))?;
    Ok(Json(view(silence, console.desk.now())))
}

pub(crate) async fn expire(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    let silence = console.registry.silence(&user.tenant, &id).await?;
    silence.ok_or_else(|| Problem::not_found("silence", &id))?;
    console.registry.expire_silence(&user.tenant, &id).await?;
    console.desk.changed();
    Ok(StatusCode::NO_CONTENT)
}
