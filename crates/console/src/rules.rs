use std::{collections::HashMap, sync::Arc};

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection, StringRejection},
    },
    http::StatusCode,
};
use dunlin_model::{DeviceId, Severity, TenantId, Timestamp};
use dunlin_registry::{RuleMark, RuleMeasure};
use dunlin_tsdb::QueryError;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{Console, ask::Asker, problem::Problem};

/// What the console needs of the rules; the binary plugs it in.
pub trait Rules: std::fmt::Debug + Send + Sync + 'static {
    /// Reads the text of one rule of a tenant and runs its own tests; the words say what to change.
    fn read(&self, tenant: &TenantId, text: &str) -> Result<RuleSummary, String>;
    /// The rules of files that hold for a tenant.
    fn in_files(&self, tenant: &TenantId) -> Vec<RuleSummary>;
    /// What the registry says has changed; comes back when it is in force.
    fn take_up(&self) -> BoxFuture<'_, Result<(), String>>;
    /// What a rule would have done: of its text, or by the name of one in a file.
    fn backtest<'a>(
        &'a self,
        tenant: &'a TenantId,
        rule: RuleToTest<'a>,
        from: Timestamp,
        to: Timestamp,
    ) -> BoxFuture<'a, Result<Backtest, BacktestError>>;
}

#[derive(Debug, Clone, Copy)]
pub enum RuleToTest<'a> {
    Text(&'a str),
    OfFile(&'a str),
}

#[derive(Debug, thiserror::Error)]
pub enum BacktestError {
    #[error("{0}")]
    Rule(String),
    #[error("as many back-tests as may run at once are running; try again later")]
    Busy,
    #[error("this process has no store")]
    NoStore,
    #[error(transparent)]
    Query(#[from] QueryError),
}

/// A rule, in words.
#[derive(Debug, Clone, Serialize)]
pub struct RuleSummary {
    pub name: String,
    pub severity: Severity,
    pub condition: String,
    /// What it escalates to: severity and condition.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<(Severity, String)>,
    pub devices: String,
    pub device_type: Option<String>,
    pub description: String,
}

/// What a rule would have done.
#[derive(Debug, Clone, Default)]
pub struct Backtest {
    pub records: u64,
    pub readings: u64,
    pub devices: u64,
    pub fired: u64,
    pub fired_by_device: Vec<(String, u64)>,
    /// By time; the first ones, if there are very many.
    pub firings: Vec<Firing>,
}

#[derive(Debug, Clone)]
pub struct Firing {
    pub device: String,
    pub severity: Severity,
    pub since: Timestamp,
    pub fired_at: Timestamp,
    pub resolved_at: Option<Timestamp>,
    pub value: f64,
}

#[derive(Serialize)]
pub(crate) struct RuleView {
    #[serde(flatten)]
    summary: RuleSummary,
    /// `file` or `api`.
    source: &'static str,
    version: Option<u64>,
    enabled: bool,
    measured: Option<MeasureView>,
}

#[derive(Serialize)]
struct MeasureView {
    version: Option<u64>,
    from: String,
    to: String,
    measured_at: String,
    fired: u64,
    /// Of the firings that people marked.
    right: u64,
    r#false: u64,
    /// `null` while nobody marked any.
    precision: Option<f64>,
    false_positive_rate: Option<f64>,
}

impl From<RuleMeasure> for MeasureView {
    fn from(m: RuleMeasure) -> Self {
        Self {
            version: (m.version > 0).then_some(m.version),
            from: m.from.to_string(),
            to: m.to.to_string(),
            measured_at: m.measured_at.to_string(),
            fired: m.fired,
            right: m.right_count,
            r#false: m.false_count,
            precision: m.precision(),
            false_positive_rate: m.precision().map(|precision| 1.0 - precision),
        }
    }
}

#[derive(Serialize)]
pub(crate) struct RulesView {
    rules: Vec<RuleView>,
}

/// Those of files and those of the API, by name.
pub(crate) async fn list(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
) -> Result<Json<RulesView>, Problem> {
    let mut measures: HashMap<String, RuleMeasure> =
        console.registry.rule_measures(&user.tenant).await?.into_iter().collect();
    let mut view = |summary: RuleSummary, version: Option<u64>, enabled: bool| RuleView {
        measured: measures.remove(&summary.name).map(Into::into),
        source: if version.is_some() { "api" } else { "file" },
        summary,
        version,
        enabled,
    };
    let mut rules: Vec<RuleView> =
        console.rules.in_files(&user.tenant).into_iter().map(|summary| view(summary, None, true)).collect();
    for rule in console.registry.rules(&user.tenant).await? {
        let summary = console.rules.read(&user.tenant, &rule.text).unwrap_or_else(|wrong| RuleSummary {
            name: rule.name.clone(),
            severity: Severity::default(),
            condition: format!("not valid any more: {wrong}"),
            levels: Vec::new(),
            devices: String::new(),
            device_type: None,
            description: String::new(),
        });
        rules.push(view(summary, Some(rule.version), rule.enabled));
    }
    rules.sort_by(|a, b| a.summary.name.cmp(&b.summary.name));
    Ok(Json(RulesView { rules }))
}

#[derive(Serialize)]
pub(crate) struct StoredView {
    name: String,
    version: u64,
    enabled: bool,
    text: String,
    /// The newest first.
    versions: Vec<VersionView>,
}

#[derive(Serialize)]
struct VersionView {
    version: u64,
    created_at: String,
    text: String,
}

pub(crate) async fn show(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(name): Path<String>,
) -> Result<Json<StoredView>, Problem> {
    let rule = console.registry.rule(&user.tenant, &name).await?;
    let rule = rule.ok_or_else(|| Problem::not_found("rule of the API", &name))?;
    let versions = console.registry.rule_versions(&user.tenant, &name).await?;
    let versions = versions.into_iter().map(|v| VersionView {
        version: v.version,
        created_at: v.created_at.to_string(),
        text: v.text,
    });
    Ok(Json(StoredView {
        name: rule.name,
        version: rule.version,
        enabled: rule.enabled,
        text: rule.text,
        versions: versions.collect(),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PutQuery {
    /// False: it is kept and not in force, as to back-test it first.
    #[serde(default = "yes")]
    enabled: bool,
}

fn yes() -> bool {
    true
}

#[derive(Serialize)]
pub(crate) struct PutView {
    name: String,
    version: u64,
    enabled: bool,
}

/// The body is one `[[rule]]` in TOML; its name says which rule it is. Its own tests must pass.
pub(crate) async fn put(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    query: Result<Query<PutQuery>, QueryRejection>,
    text: Result<String, StringRejection>,
) -> Result<Json<PutView>, Problem> {
    let (Query(PutQuery { enabled }), text) = (query?, text?);
    let rule = console.rules.read(&user.tenant, &text).map_err(|wrong| Problem::invalid("rule", wrong))?;
    if console.rules.in_files(&user.tenant).iter().any(|other| other.name == rule.name) {
        return Err(Problem::invalid("rule", "a rule file has a rule of that name"));
    }
    let version = console.registry.put_rule(&user.tenant, &rule.name, &text, enabled).await?;
    take_up(&console).await?;
    Ok(Json(PutView { name: rule.name, version, enabled }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Change {
    enabled: Option<bool>,
    /// Goes back to a version that was in force before.
    version: Option<u64>,
}

pub(crate) async fn change(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(name): Path<String>,
    body: Result<Json<Change>, JsonRejection>,
) -> Result<StatusCode, Problem> {
    let Json(change) = body?;
    if let Some(version) = change.version {
        console.registry.set_rule_version(&user.tenant, &name, version).await?;
    }
    if let Some(enabled) = change.enabled {
        console.registry.set_rule_enabled(&user.tenant, &name, enabled).await?;
    }
    take_up(&console).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn delete(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    console.registry.delete_rule(&user.tenant, &name).await?;
    take_up(&console).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn take_up(console: &Console) -> Result<(), Problem> {
    console.rules.take_up().await.map_err(|wrong| Problem::invalid("rule", wrong))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BacktestQuery {
    /// Milliseconds since 1970.
    from: i64,
    to: i64,
}

#[derive(Serialize)]
pub(crate) struct BacktestView {
    from: String,
    to: String,
    records: u64,
    readings: u64,
    devices: u64,
    fired: u64,
    /// Of the firings in stretches that people marked, how many are right, and how many false.
    right: u64,
    r#false: u64,
    precision: Option<f64>,
    fired_by_device: Vec<DeviceFirings>,
    firings: Vec<FiringView>,
}

#[derive(Serialize)]
struct DeviceFirings {
    device: String,
    fired: u64,
}

#[derive(Serialize)]
struct FiringView {
    device: String,
    severity: Severity,
    since: String,
    fired_at: String,
    resolved_at: Option<String>,
    value: f64,
    /// What people say of it, if they do.
    is_false: Option<bool>,
}

/// Of a rule that exists; what is found stays with the rule.
pub(crate) async fn backtest(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(name): Path<String>,
    query: Result<Query<BacktestQuery>, QueryRejection>,
) -> Result<Json<BacktestView>, Problem> {
    let (from, to) = query?.0.range()?;
    let stored = console.registry.rule(&user.tenant, &name).await?;
    let rule = match &stored {
        Some(stored) => RuleToTest::Text(&stored.text),
        None if console.rules.in_files(&user.tenant).iter().any(|rule| rule.name == name) => {
            RuleToTest::OfFile(&name)
        }
        None => return Err(Problem::not_found("rule", &name)),
    };
    let found = console.rules.backtest(&user.tenant, rule, from, to).await?;
    let view = judged(&console, &user.tenant, &name, found, (from, to)).await?;
    let measure = RuleMeasure {
        version: stored.map_or(0, |stored| stored.version),
        from,
        to,
        fired: view.fired,
        right_count: view.right,
        false_count: view.r#false,
        measured_at: to,
    };
    console.registry.set_rule_measure(&user.tenant, &name, &measure).await?;
    Ok(Json(view))
}

/// Of a text that is not a rule yet.
pub(crate) async fn backtest_text(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    query: Result<Query<BacktestQuery>, QueryRejection>,
    text: Result<String, StringRejection>,
) -> Result<Json<BacktestView>, Problem> {
    let ((from, to), text) = (query?.0.range()?, text?);
    let name = console.rules.read(&user.tenant, &text).map_err(|wrong| Problem::invalid("rule", wrong))?.name;
    let found = console.rules.backtest(&user.tenant, RuleToTest::Text(&text), from, to).await?;
    Ok(Json(judged(&console, &user.tenant, &name, found, (from, to)).await?))
}

impl BacktestQuery {
    fn range(&self) -> Result<(Timestamp, Timestamp), Problem> {
        let instant = |field, ms| {
            Timestamp::from_millis(ms).ok_or_else(|| Problem::invalid(field, "not a time in ms since 1970"))
        };
        let (from, to) = (instant("from", self.from)?, instant("to", self.to)?);
        match from < to {
            true => Ok((from, to)),
            false => Err(Problem::invalid("from", "`from` is before `to`")),
        }
    }
}

/// What was found, beside what people say of it.
async fn judged(
    console: &Console,
    tenant: &TenantId,
    rule: &str,
    found: Backtest,
    (from, to): (Timestamp, Timestamp),
) -> Result<BacktestView, Problem> {
    let marks = console.registry.rule_marks(tenant, rule).await?;
    let firings: Vec<FiringView> = found.firings.into_iter().map(|firing| firing.view(&marks)).collect();
    let count = |is_false| firings.iter().filter(|firing| firing.is_false == Some(is_false)).count() as u64;
    let (right, wrong) = (count(false), count(true));
    Ok(BacktestView {
        from: from.to_string(),
        to: to.to_string(),
        records: found.records,
        readings: found.readings,
        devices: found.devices,
        fired: found.fired,
        right,
        r#false: wrong,
        precision: (right + wrong > 0).then(|| right as f64 / (right + wrong) as f64),
        fired_by_device: found
            .fired_by_device
            .into_iter()
            .map(|(device, fired)| DeviceFirings { device, fired })
            .collect(),
        firings,
    })
}

impl Firing {
    /// A firing in a stretch that is marked right is right, whatever else is said.
    fn view(self, marks: &[RuleMark]) -> FiringView {
        let is_about = |mark: &&RuleMark| {
            mark.device == self.device
                && self.since <= mark.to
                && self.resolved_at.is_none_or(|resolved| resolved >= mark.from)
        };
        let is_false = marks.iter().filter(is_about).map(|mark| mark.is_false).min();
        FiringView {
            device: self.device,
            severity: self.severity,
            since: self.since.to_string(),
            fired_at: self.fired_at.to_string(),
            resolved_at: self.resolved_at.map(|t| t.to_string()),
            value: self.value,
            is_false,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MarkBody {
    device: String,
    /// Milliseconds since 1970, of event time.
    from: i64,
    to: i64,
    r#false: bool,
}

/// People say whether a rule is right to fire on a device in a stretch of time.
pub(crate) async fn mark(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(name): Path<String>,
    body: Result<Json<MarkBody>, JsonRejection>,
) -> Result<StatusCode, Problem> {
    let Json(body) = body?;
    let (from, to) = BacktestQuery { from: body.from, to: body.to.saturating_add(1) }.range()?;
    let device: DeviceId = body.device.parse()?;
    let mark = RuleMark { device: device.to_string(), from, to, is_false: body.r#false };
    console.registry.mark_rule(&user.tenant, &name, &mark).await?;
    Ok(StatusCode::NO_CONTENT)
}
