use std::sync::Arc;

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
};
use dunlin_alerting::PreviewError;
use dunlin_model::{AlertId, AlertState, Fingerprint, Severity, TenantId, Timestamp};
use dunlin_registry::{Act, Alert, AlertFilter, NotificationFilter};
use serde::{Deserialize, Serialize};

use crate::{
    Console,
    ask::{Asker, name_of},
    notifications::NotificationView,
    problem::Problem,
    when,
};

const ALERTS_MAX: u32 = 1_000;
/// Lines of the history of one alert.
const HISTORY_MAX: u32 = 1_000;
const WORDS_BYTES_MAX: usize = 4_096;
const NAME_BYTES_MAX: usize = 256;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AlertsQuery {
    /// `pending`, `firing`, `acknowledged`, `resolved`, `cancelled`; several by comma; `open` is the first three. All
    /// if absent.
    state: Option<String>,
    device: Option<String>,
    rule: Option<String>,
    severity: Option<Severity>,
    assignee: Option<String>,
    /// The id of the last one of the page before.
    after: Option<String>,
    limit: Option<u32>,
}

#[derive(Serialize)]
pub(crate) struct AlertView {
    id: String,
    fingerprint: String,
    rule: String,
    device: String,
    severity: Severity,
    state: AlertState,
    /// Event time, RFC 3339: since when the condition held.
    since: String,
    fired_at: Option<String>,
    resolved_at: Option<String>,
    acknowledged_at: Option<String>,
    acknowledged_by: Option<String>,
    assignee: Option<String>,
    snoozed_until: Option<String>,
    value: f64,
    condition: String,
}

#[derive(Serialize)]
pub(crate) struct AlertsView {
    /// The newest first.
    alerts: Vec<AlertView>,
    /// Ask again with `after` set to this for the next page.
    next: Option<String>,
}

impl From<Alert> for AlertView {
    fn from(a: Alert) -> Self {
        let text = |t: Option<Timestamp>| t.map(|t| t.to_string());
        Self {
            id: a.id.to_string(),
            fingerprint: a.id.fingerprint.to_string(),
            rule: a.rule,
            device: a.device,
            severity: a.severity,
            state: a.state,
            since: a.id.since.to_string(),
            fired_at: text(a.fired_at),
            resolved_at: text(a.resolved_at),
            acknowledged_at: text(a.acknowledged_at),
            acknowledged_by: a.acknowledged_by,
            assignee: a.assignee,
            snoozed_until: text(a.snoozed_until),
            value: a.value,
            condition: a.condition,
        }
    }
}

pub(crate) async fn list(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    query: Result<Query<AlertsQuery>, QueryRejection>,
) -> Result<Json<AlertsView>, Problem> {
    let Query(query) = query?;
    let limit = query.limit.unwrap_or(ALERTS_MAX).clamp(1, ALERTS_MAX);
    let after = query.after.map(|id| id.parse().map_err(|e| Problem::invalid("after", e)));
    let filter = AlertFilter {
        states: query.state.as_deref().map(states).transpose()?.unwrap_or_default(),
        device: query.device,
        rule: query.rule,
        severity: query.severity,
        assignee: query.assignee,
        fingerprint: None,
        after: after.transpose()?,
        limit,
    };
    let alerts = console.registry.alerts(&user.tenant, &filter).await?;
    let next = alerts.last().filter(|_| alerts.len() == limit as usize).map(|a| a.id.to_string());
    Ok(Json(AlertsView { alerts: alerts.into_iter().map(AlertView::from).collect(), next }))
}

fn states(text: &str) -> Result<Vec<AlertState>, Problem> {
    let mut states = Vec::new();
    for name in text.split(',') {
        let named =
            AlertState::ALL.into_iter().filter(|s| s.as_str() == name || (name == "open" && s.is_open()));
        let before = states.len();
        states.extend(named);
        if states.len() == before {
            let known = "pending, firing, acknowledged, resolved, cancelled or open";
            return Err(Problem::invalid("state", format!("{name:?} is no state; say {known}")));
        }
    }
    Ok(states)
}

#[derive(Serialize)]
pub(crate) struct WholeAlert {
    #[serde(flatten)]
    alert: AlertView,
    /// What its rule made of it.
    steps: Vec<StepView>,
    /// What people did to it and said of it.
    notes: Vec<NoteView>,
    /// Who was told of it, and who was not and why.
    notifications: Vec<NotificationView>,
}

#[derive(Serialize)]
struct StepView {
    at: String,
    state: String,
    value: f64,
}

#[derive(Serialize)]
struct NoteView {
    at: String,
    who: String,
    what: String,
    words: String,
}

pub(crate) async fn show(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(id): Path<String>,
) -> Result<Json<WholeAlert>, Problem> {
    let alert = find(&console, &user.tenant, &id).await?;
    let (registry, tenant, id) = (&console.registry, &user.tenant, alert.id);
    let steps = registry.alert_steps(tenant, id, HISTORY_MAX).await?;
    let until = alert.resolved_at;
    let steps = steps
        .into_iter()
        // Of this episode, and not of those after it.
        .filter(|(at, ..)| until.is_none_or(|until| *at <= until))
        .map(|(at, state, value)| StepView { at: at.to_string(), state, value });
    let notes = registry.alert_notes(tenant, id, HISTORY_MAX).await?.into_iter().map(|n| NoteView {
        at: n.at.to_string(),
        who: n.who,
        what: n.what,
        words: n.words,
    });
    let filter = NotificationFilter { alert: Some(id), limit: HISTORY_MAX, ..NotificationFilter::default() };
    let told = registry.notifications(tenant, &filter).await?;
    Ok(Json(WholeAlert {
        steps: steps.collect(),
        notes: notes.collect(),
        notifications: told.into_iter().map(NotificationView::from).collect(),
        alert: alert.into(),
    }))
}

/// By its id, or the newest of a fingerprint.
async fn find(console: &Console, tenant: &TenantId, id: &str) -> Result<Alert, Problem> {
    let (fingerprint, since) = match id.parse::<AlertId>() {
        Ok(id) => (id.fingerprint, Some(id.since)),
        Err(_) => (id.parse::<Fingerprint>().map_err(|e| Problem::invalid("alert", e))?, None),
    };
    let found = console.registry.find_alert(tenant, fingerprint, since).await?;
    found.ok_or_else(|| Problem::not_found("alert", id))
}

/// What goes along with an act. All of it may be absent.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ActBody {
    comment: String,
    /// Who did it, if the token is of several people.
    by: Option<String>,
    /// To assign: to whom; nobody if absent.
    to: Option<String>,
    /// To snooze: `2h`.
    #[serde(rename = "for")]
    span: Option<String>,
    /// To snooze: RFC 3339.
    until: Option<String>,
}

/// What people do to an alert, by the last part of the address.
pub(crate) async fn act(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path((id, name)): Path<(String, String)>,
    body: Result<Option<Json<ActBody>>, JsonRejection>,
) -> Result<Json<AlertView>, Problem> {
    let Json(body) = body?.unwrap_or_default();
    let act = match name.as_str() {
        "ack" => Act::Acknowledge,
        "unack" => Act::Unacknowledge,
        "comments" => body.comment()?,
        "assign" => body.assign()?,
        "snooze" => body.snooze(console.desk.now())?,
        _ => return Err(Problem::not_found("act", &name)),
    };
    if body.comment.len() > WORDS_BYTES_MAX {
        return Err(Problem::invalid("comment", format!("at most {WORDS_BYTES_MAX} bytes")));
    }
    let who = name_of(&user, body.by)?;
    let alert = find(&console, &user.tenant, &id).await?;
    let acted =
        console.registry.act_on_alert(&user.tenant, alert.id, &act, &who, &body.comment, None).await?;
    console.desk.changed();
    acted.map(|alert| Json(alert.into())).ok_or_else(|| Problem::not_found("alert", &id))
}

impl ActBody {
    fn comment(&self) -> Result<Act, Problem> {
        match self.comment.as_str() {
            "" => Err(Problem::invalid("comment", "say something")),
            _ => Ok(Act::Comment),
        }
    }

    fn assign(&self) -> Result<Act, Problem> {
        match &self.to {
            Some(to) if to.is_empty() || to.len() > NAME_BYTES_MAX => {
                Err(Problem::invalid("to", format!("a name has from 1 to {NAME_BYTES_MAX} bytes")))
            }
            to => Ok(Act::Assign(to.clone())),
        }
    }

    fn snooze(&self, now: Timestamp) -> Result<Act, Problem> {
        let until = match (&self.span, &self.until) {
            (Some(span), None) => now + when::span("for", span)?,
            (None, Some(until)) => when::time("until", until)?,
            _ => return Err(Problem::invalid("for", "say either `for` or `until`")),
        };
        match until > now && until.since(now) <= when::SPAN_MAX {
            true => Ok(Act::Snooze(until)),
            false => Err(Problem::invalid("until", "a time to come, within 5 years")),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PreviewBody {
    channel: String,
    /// Of this alert; of an example if absent.
    alert: Option<String>,
    /// Instead of the channel's own.
    subject: Option<String>,
    template: Option<String>,
}

#[derive(Serialize)]
pub(crate) struct Preview {
    subject: String,
    text: String,
}

/// What a channel would say: nothing is sent.
pub(crate) async fn preview(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    body: Result<Json<PreviewBody>, JsonRejection>,
) -> Result<Json<Preview>, Problem> {
    let Json(body) = body?;
    let alert = match &body.alert {
        Some(id) => find(&console, &user.tenant, id).await?,
        None => example(&user.tenant, console.desk.now()),
    };
    let (subject, template) = (body.subject.as_deref(), body.template.as_deref());
    let rendered = console.desk.preview(&body.channel, &alert, subject, template);
    let rendered = rendered.map_err(|error| match error {
        PreviewError::NoChannel(_) => Problem::invalid("channel", error),
        PreviewError::Template(_) => Problem::invalid("template", error),
    })?;
    Ok(Json(Preview { subject: rendered.subject, text: rendered.text }))
}

fn example(tenant: &TenantId, now: Timestamp) -> Alert {
    Alert {
        tenant: tenant.to_string(),
        id: AlertId { fingerprint: Fingerprint::of(tenant.as_str(), "too-hot", "press-7"), since: now },
        rule: "too-hot".into(),
        device: "press-7".into(),
        severity: Severity::Critical,
        state: AlertState::Firing,
        fired_at: Some(now),
        resolved_at: None,
        acknowledged_at: None,
        acknowledged_by: None,
        assignee: None,
        snoozed_until: None,
        value: 83.5,
        condition: "avg(temperature) over 1m > 80 for 2m, clear below 75".into(),
        told: None,
    }
}
