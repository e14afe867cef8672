//! People's front door: the HTTP API. It shows and asks; it decides nothing.

mod ask; // who asks: bearer tokens
mod body; // how long a request may take to arrive
mod elsewhere; // a store that another process has
mod problem; // what a client sees when it goes wrong

mod acknowledge; // by a link, without a token
mod alerts;
mod commands; // to devices
mod devices;
mod ledger;
mod notifications; // who was told, and who was not and why
mod query; // SQL and typed queries
mod rules; // what is watched for, and what it would have found
mod silences;
mod status; // health, metrics, lag
mod tenants;
mod when; // times as people write them

use std::{sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{get, post},
};
use dunlin_alerting::Desk;
use dunlin_model::{Command, DeviceId, TenantId};
use dunlin_registry::Registry;
use dunlin_tsdb::{Sql, Tsdb};
pub use elsewhere::{Elsewhere, NoWay};
use futures::future::BoxFuture;
pub use ledger::{Disagreement, GatewayAccount, LedgerView, RulesAccount, TenantLedger};
use problem::Problem;
pub use rules::{Backtest, BacktestError, Firing, RuleSummary, RuleToTest, Rules};
use serde::{Deserialize, Serialize};
use status::Readers;
pub use status::{PartitionStatus, Readiness, StageStatus, StatusView};

/// What the console needs of the rest of the platform; the binary plugs it in.
pub trait Platform: std::fmt::Debug + Send + Sync + 'static {
    /// The account of every message, by tenant.
    fn ledger(&self) -> LedgerView;
    /// Where every stage is.
    fn status(&self) -> StatusView;
    fn readiness(&self) -> Readiness;
    /// What the device could come in with is no longer good, or the device itself; it may be connected now. An error says
    /// why it may still be.
    fn revoked<'a>(
        &'a self,
        tenant: &'a TenantId,
        device: &'a DeviceId,
        what: Revoked,
    ) -> BoxFuture<'a, Result<(), String>>;
    /// Takes a command to its device: once the journal has it, it is on its way.
    fn send<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Result<(), NotSent>>;
    /// How far a device's clock is ahead of the server's, in microseconds; below zero, behind. `None` if it says no
    /// times.
    fn clock_ahead_micros<'a>(
        &'a self,
        tenant: &'a TenantId,
        device: &'a DeviceId,
    ) -> BoxFuture<'a, Option<i64>>;
    /// Prometheus text format.
    fn metrics(&self) -> String;
}

/// Why it is not certain that a command is on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotSent {
    /// It is not, and will not be.
    Refused(String),
    /// It may be.
    Unknown(String),
}

/// What was taken from a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoked {
    Token,
    /// The device is disabled.
    Device,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Rows of one SQL answer, at the most.
    pub sql_rows_max: usize,
    pub sql_timeout_seconds: u64,
    /// Points of one typed query, at the most.
    pub query_points_max: usize,
    /// Bytes of one request of a person.
    pub request_bytes_max: usize,
    /// How long the body of a request may take to arrive.
    pub request_body_seconds_max: u64,
    /// Of a process without a store: where another one has it, and a console.
    pub store_url: Option<String>,
    /// Whether `/metrics`, which names every tenant, is shown without a platform administrator's token.
    pub metrics_open: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sql_rows_max: 5_000_000,
            sql_timeout_seconds: 60,
            query_points_max: 1_000_000,
            request_bytes_max: 1 << 20,
            request_body_seconds_max: 30,
            store_url: None,
            metrics_open: false,
        }
    }
}

#[derive(Debug)]
pub struct Console {
    pub config: Config,
    pub registry: Registry,
    pub store: Store,
    pub platform: Arc<dyn Platform>,
    pub desk: Desk,
    pub rules: Arc<dyn Rules>,
}

/// Where readings are asked for.
#[derive(Debug)]
pub enum Store {
    Here { tsdb: Arc<dyn Tsdb>, sql: Arc<dyn Sql> },
    Elsewhere(Elsewhere),
}

impl Console {
    fn tsdb(&self) -> Result<&dyn Tsdb, Problem> {
        match &self.store {
            Store::Here { tsdb, .. } => Ok(&**tsdb),
            Store::Elsewhere(_) => Err(Problem::no_store("this process has no store")),
        }
    }

    fn sql(&self) -> Result<&dyn Sql, Problem> {
        match &self.store {
            Store::Here { sql, .. } => Ok(&**sql),
            Store::Elsewhere(_) => Err(Problem::no_store("this process has no store")),
        }
    }
}

/// What a process shows of itself that has no console.
#[derive(Debug)]
pub struct Vitals {
    pub config: Config,
    pub registry: Registry,
    pub platform: Arc<dyn Platform>,
}

/// Health and metrics alone.
pub fn vitals(vitals: Vitals) -> Router {
    Router::new()
        .route("/metrics", get(status::metrics::<Arc<Vitals>>).layer(readers()))
        .route("/healthz", get(status::healthz))
        .route("/readyz", get(status::readyz::<Arc<Vitals>>))
        .with_state(Arc::new(vitals))
}

fn readers() -> Extension<Arc<Readers>> {
    Extension(Arc::default())
}

/// The routes of the API. They share a port with the devices' HTTP endpoints, whose paths differ.
pub fn routes(console: Console) -> Router {
    let request_bytes_max = console.config.request_bytes_max;
    let patience = Duration::from_secs(console.config.request_body_seconds_max);
    let mut of_store = Router::new()
        .route("/v1/query", get(query::sql_by_get).post(query::sql))
        .route("/v1/readings", get(query::readings))
        .route("/v1/latest", get(query::latest))
        .route("/v1/rules:backtest", post(rules::backtest_text))
        .route("/v1/rules/{rule}/backtest", post(rules::backtest))
        .route("/v1/ledger", get(ledger::show));
    if let Store::Elsewhere(there) = &console.store {
        of_store = of_store.layer(middleware::from_fn_with_state(there.clone(), elsewhere::pass_on));
    }
    Router::new()
        .merge(of_store)
        .route("/v1/tenants", get(tenants::list).post(tenants::add))
        .route("/v1/devices", get(devices::list).post(devices::add))
        .route("/v1/devices/{device}", get(devices::show).patch(devices::change))
        .route("/v1/devices/{device}/tokens", post(devices::add_token))
        .route("/v1/devices/{device}/commands", get(commands::list).post(commands::send))
        .route("/v1/commands/{command}", get(commands::show))
        .route("/v1/alerts", get(alerts::list))
        .route("/v1/alerts/preview", post(alerts::preview))
        .route("/v1/alerts/{alert}", get(alerts::show))
        .route("/v1/alerts/{alert}/{act}", post(alerts::act))
        .route("/v1/ack/{token}", get(acknowledge::ask).post(acknowledge::act))
        .route("/v1/silences", get(silences::list).post(silences::add))
        .route("/v1/silences/{silence}", get(silences::show).delete(silences::expire))
        .route("/v1/notifications", get(notifications::list))
        .route("/v1/notifications/{key}/retry", post(notifications::retry))
        .route("/v1/notifications/{key}/alerts", get(notifications::carried))
        .route("/v1/rules", get(rules::list).put(rules::put))
        .route("/v1/rules/{rule}", get(rules::show).patch(rules::change).delete(rules::delete))
        .route("/v1/rules/{rule}/marks", post(rules::mark))
        .route("/v1/status", get(status::show))
        .route("/metrics", get(status::metrics::<Arc<Console>>).layer(readers()))
        .route("/healthz", get(status::healthz))
        .route("/readyz", get(status::readyz::<Arc<Console>>))
        .layer(DefaultBodyLimit::max(request_bytes_max))
        .layer(middleware::map_request(move |request| body::arrive_within(patience, request)))
        .with_state(Arc::new(console))
}

#[cfg(test)]
mod tests;
