use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use dunlin_model::{AlertPhase, Severity};
use dunlin_registry::{Alert, AlertFilter};
use serde::{Deserialize, Serialize};

use crate::{Console, ask::Asker, problem::Problem};

const ALERTS_MAX: u32 = 1_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AlertsQuery {
    /// `pending`, `firing`, `resolved` or `cancelled`; all if absent.
    state: Option<AlertPhase>,
    limit: Option<u32>,
}

#[derive(Serialize)]
pub(crate) struct AlertView {
    fingerprint: String,
    rule: String,
    device: String,
    severity: Severity,
    state: AlertPhase,
    /// Event time, RFC 3339: since when the condition held.
    since: String,
    fired_at: Option<String>,
    resolved_at: Option<String>,
    value: f64,
    condition: String,
}

#[derive(Serialize)]
pub(crate) struct AlertsView {
    /// The newest first.
    alerts: Vec<AlertView>,
}

impl From<Alert> for AlertView {
    fn from(a: Alert) -> Self {
        Self {
            fingerprint: a.fingerprint,
            rule: a.rule,
            device: a.device,
            severity: a.severity,
            state: a.phase,
            since: a.since.to_string(),
            fired_at: a.fired_at.map(|t| t.to_string()),
            resolved_at: a.resolved_at.map(|t| t.to_string()),
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
    let alerts = console.registry.alerts(&user.tenant, AlertFilter { phase: query.state, limit }).await?;
    Ok(Json(AlertsView { alerts: alerts.into_iter().map(AlertView::from).collect() }))
}
