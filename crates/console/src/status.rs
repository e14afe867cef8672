use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Extension, Json,
    extract::{FromRequestParts, State},
    http::{StatusCode, header, request::Parts},
    response::IntoResponse,
};
use dunlin_registry::Scope;
use serde::Serialize;
use tokio::time::timeout;

use crate::{
    Console, Platform, Vitals,
    ask::{self, AsRegistry, Asker, PlatformAsker},
    problem::Problem,
};

/// What `dunlin top` shows.
#[derive(Debug, Clone)]
pub struct StatusView {
    pub version: &'static str,
    pub uptime_seconds: u64,
    /// Where devices connect by MQTT, `HOST:PORT`.
    pub mqtt: String,
    pub connections: u64,
    pub stages: Vec<StageStatus>,
}

/// One consumer of the journal.
#[derive(Debug, Clone, Serialize)]
pub struct StageStatus {
    pub stage: &'static str,
    /// Records behind the end of the journal.
    pub lag: u64,
    /// What does not work, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    pub partitions: Vec<PartitionStatus>,
}

#[derive(Debug, Clone, Serialize)]
pub struct PartitionStatus {
    pub partition: String,
    pub position: u64,
    pub end: u64,
    /// From where a start would go on, where that is kept beside the journal's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<u64>,
    /// Event time up to which devices are counted together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watermark: Option<String>,
}

/// Whether the platform can do its work now.
#[derive(Debug, Clone)]
pub enum Readiness {
    Ready,
    /// Devices are being refused or a stage is down; the reasons, in words.
    NotReady(Vec<String>),
}

#[derive(Serialize)]
pub(crate) struct Shown {
    version: &'static str,
    uptime_seconds: u64,
    mqtt: String,
    alerts_firing: u64,
    /// Of all tenants together, and so for the platform's administrators alone.
    #[serde(flatten)]
    load: Option<Load>,
}

#[derive(Serialize)]
struct Load {
    connections: u64,
    stages: Vec<StageStatus>,
}

pub(crate) async fn show(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
) -> Result<Json<Shown>, Problem> {
    let alerts_firing = console.registry.alerts_firing(&user.tenant).await?;
    let StatusView { version, uptime_seconds, mqtt, connections, stages } = console.platform.status();
    let load = (user.scope == Scope::Platform).then_some(Load { connections, stages });
    Ok(Json(Shown { version, uptime_seconds, mqtt, alerts_firing, load }))
}

/// What health and metrics are seen by.
pub(crate) trait Seen: AsRegistry {
    fn platform(&self) -> &dyn Platform;
    fn metrics_open(&self) -> bool;
}

impl Seen for Arc<Console> {
    fn platform(&self) -> &dyn Platform {
        &*self.platform
    }

    fn metrics_open(&self) -> bool {
        self.config.metrics_open
    }
}

impl Seen for Arc<Vitals> {
    fn platform(&self) -> &dyn Platform {
        &*self.platform
    }

    fn metrics_open(&self) -> bool {
        self.config.metrics_open
    }
}

/// Who reads the metrics. They go on to, while the registry cannot say whose their token is: the metrics tell that.
#[derive(Debug, Default)]
pub(crate) struct Readers(Mutex<Vec<(String, Instant)>>);

const READERS_MAX: usize = 8;
const READER_KEPT: Duration = Duration::from_secs(600);
/// Whoever watches gives up soon, and would take the process for dead.
const READER_WAITS: Duration = Duration::from_millis(500);

impl Readers {
    /// `asking` is whose the token is. Who has read before does not wait for a registry that says nothing.
    pub(crate) async fn admit(
        &self,
        token: &str,
        asking: impl Future<Output = Result<PlatformAsker, Problem>>,
    ) -> Result<(), Problem> {
        if !self.has_read(token) {
            return self.let_in(token, asking.await);
        }
        match timeout(READER_WAITS, asking).await {
            Ok(asker) => self.let_in(token, asker),
            Err(_) => Ok(()),
        }
    }

    fn has_read(&self, token: &str) -> bool {
        let readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        readers.iter().any(|(known, at)| known == token && at.elapsed() < READER_KEPT)
    }

    fn let_in(&self, token: &str, asker: Result<PlatformAsker, Problem>) -> Result<(), Problem> {
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = readers.iter().position(|(known, _)| known == token);
        match asker {
            Err(problem) if problem.is_unavailable() => {
                let is_reader = known.is_some_and(|n| readers[n].1.elapsed() < READER_KEPT);
                return if is_reader { Ok(()) } else { Err(problem) };
            }
            asker => {
                known.map(|n| readers.remove(n));
                asker?;
            }
        }
        readers.truncate(READERS_MAX - 1);
        readers.insert(0, (token.to_owned(), Instant::now()));
        Ok(())
    }
}

pub(crate) async fn metrics<S: Seen>(
    mut parts: Parts,
    Extension(readers): Extension<Arc<Readers>>,
    State(seen): State<S>,
) -> Result<impl IntoResponse, Problem> {
    if !seen.metrics_open() {
        let token = ask::token(&parts.headers).unwrap_or_default().to_owned();
        readers.admit(&token, PlatformAsker::from_request_parts(&mut parts, &seen)).await?;
    }
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], seen.platform().metrics()))
}

/// The process is alive.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

pub(crate) async fn readyz<S: Seen>(State(seen): State<S>) -> (StatusCode, String) {
    match seen.platform().readiness() {
        Readiness::Ready => (StatusCode::OK, "ready\n".to_owned()),
        Readiness::NotReady(reasons) => (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
    }
}
