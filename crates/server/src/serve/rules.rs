//! The rules in force: those of the files, and those of the API. What the console asks of them.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dunlin_console::{Backtest, BacktestError, Firing, RuleSummary, RuleToTest, Rules};
use dunlin_model::{TenantId, Timestamp, chain};
use dunlin_pipeline::{
    RuleSet, RulesInForce,
    backtest::{self, BacktestLimits},
    proof,
    rules::Rule,
};
use dunlin_registry::Registry;
use dunlin_tsdb::Tsdb;
use futures::future::{BoxFuture, FutureExt};
use tokio::sync::Semaphore;

use crate::exit::Failure;

/// Back-tests at the same time; each reads much and works hard.
const BACKTESTS_MAX: usize = 1;
const PAGE_DEVICES: u32 = 1_000;

#[derive(Debug)]
pub(crate) struct ServerRules {
    dir: PathBuf,
    registry: Registry,
    /// Of a process that has the store; back-tests of another one are passed on.
    tsdb: Option<Arc<dyn Tsdb>>,
    files: Mutex<RuleSet>,
    /// Of a process that has the rules running; another one finds out by itself.
    in_force: Option<RulesInForce>,
    /// One at a time, so that the last to read the registry is the last to put its rules in force.
    taking_up: tokio::sync::Mutex<()>,
    backtests: Semaphore,
}

impl ServerRules {
    pub(crate) fn new(
        dir: PathBuf,
        files: RuleSet,
        registry: Registry,
        tsdb: Option<Arc<dyn Tsdb>>,
        in_force: Option<RulesInForce>,
    ) -> Self {
        Self {
            dir,
            registry,
            tsdb,
            files: Mutex::new(files),
            in_force,
            taking_up: tokio::sync::Mutex::new(()),
            backtests: Semaphore::new(BACKTESTS_MAX),
        }
    }

    /// Takes the files as they are on disk now; if one is wrong, those in force stay.
    pub(crate) async fn reload_files(&self) {
        match load(&self.dir) {
            Ok(rules) => {
                *self.files() = rules;
                if let Err(error) = self.put_in_force().await {
                    tracing::error!(error, "rules not reloaded");
                }
            }
            Err(failure) => tracing::error!(?failure, "rules are not valid; those in force stay"),
        }
    }

    async fn put_in_force(&self) -> Result<(), String> {
        let _turn = self.taking_up.lock().await;
        let Some(in_force) = &self.in_force else { return Ok(()) };
        let files = self.files().clone();
        let all = together(files, &self.registry).await.map_err(|error| chain(&error))?;
        tracing::info!(rules = all.len(), "rules reloaded");
        in_force.set(all);
        Ok(())
    }

    fn files(&self) -> MutexGuard<'_, RuleSet> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The types of a tenant's devices, for a rule that asks for one.
    async fn device_types(
        &self,
        tenant: &TenantId,
        rule: &Rule,
    ) -> Result<HashMap<String, String>, BacktestError> {
        let mut types = HashMap::new();
        if rule.device_type.is_none() {
            return Ok(types);
        }
        let mut after = None;
        loop {
            let page = self.registry.devices(tenant, after.as_deref(), PAGE_DEVICES).await;
            let page = page.map_err(|error| BacktestError::Rule(chain(&error)))?;
            let Some(last) = page.last() else { return Ok(types) };
            after = Some(last.name.to_string());
            types.extend(page.iter().map(|d| (d.name.to_string(), d.device_type.to_string())));
        }
    }
}

/// The files' rules and what the registry has enabled. A stored rule that is not valid any more is left out, loudly.
pub(crate) async fn together(
    files: RuleSet,
    registry: &Registry,
) -> Result<RuleSet, dunlin_registry::RegistryError> {
    let stored = registry.enabled_rules().await?;
    let read = stored.iter().filter_map(|stored| match RuleSet::parse_own(&stored.text, &stored.tenant) {
        Ok(rule) => Some(rule),
        Err(problems) => {
            let problem = problems.first().map(ToString::to_string);
            tracing::error!(tenant = %stored.tenant, rule = stored.name, problem, "a stored rule is not valid and not in force");
            None
        }
    });
    let (all, left) = files.and(read);
    for rule in left {
        tracing::error!(tenant = rule.tenant.as_deref(), rule = %rule.name, "a file has a rule of that name; the stored one is not in force");
    }
    Ok(all)
}

/// How often a process without a console looks for rules that another one has changed.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Puts rules in force as they change, in the files and in the registry.
pub(crate) async fn follow(dir: PathBuf, registry: Registry, in_force: RulesInForce) {
    let mut known = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match changed(&dir, &registry, &mut known).await {
            Ok(None) => {}
            Ok(Some(all)) => {
                tracing::info!(rules = all.len(), "rules reloaded");
                in_force.set(all);
            }
            Err(error) => tracing::error!(error, "rules not reloaded; those in force stay"),
        }
    }
}

/// What rules are made of.
type Texts = Vec<String>;

async fn changed(
    dir: &std::path::Path,
    registry: &Registry,
    known: &mut Option<Texts>,
) -> Result<Option<RuleSet>, String> {
    let files = load(dir).map_err(|failure| format!("{failure:?}"))?;
    let mut texts: Texts = files.rules().iter().map(|rule| format!("{rule:?}")).collect();
    let stored = registry.enabled_rules().await.map_err(|error| chain(&error))?;
    texts.extend(stored.iter().map(|rule| format!("{} {}", rule.tenant, rule.text)));
    if known.as_ref() == Some(&texts) {
        return Ok(None);
    }
    let all = together(files, registry).await.map_err(|error| chain(&error))?;
    *known = Some(texts);
    Ok(Some(all))
}

pub(crate) fn load(dir: &std::path::Path) -> Result<RuleSet, Failure> {
    RuleSet::load(dir).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Failure::Invalid(lines.join("\ndunlin: "))
    })
}

impl Rules for ServerRules {
    fn read(&self, tenant: &TenantId, text: &str) -> Result<RuleSummary, String> {
        let rule = parse(tenant, text)?;
        match proof::check(&rule) {
            failed if failed.is_empty() => Ok(summary(&rule)),
            failed => {
                let lines: Vec<String> = failed.iter().map(|failed| format!("test {failed}")).collect();
                Err(lines.join("; "))
            }
        }
    }

    fn in_files(&self, tenant: &TenantId) -> Vec<RuleSummary> {
        let files = self.files();
        let of_tenant = |rule: &&Arc<Rule>| rule.tenant.as_deref().is_none_or(|t| t == tenant.as_str());
        files.rules().iter().filter(of_tenant).map(|rule| summary(rule)).collect()
    }

    fn take_up(&self) -> BoxFuture<'_, Result<(), String>> {
        self.put_in_force().boxed()
    }

    fn backtest<'a>(
        &'a self,
        tenant: &'a TenantId,
        rule: RuleToTest<'a>,
        from: Timestamp,
        to: Timestamp,
    ) -> BoxFuture<'a, Result<Backtest, BacktestError>> {
        async move {
            let rule = match rule {
                RuleToTest::Text(text) => parse(tenant, text).map_err(BacktestError::Rule)?,
                RuleToTest::OfFile(name) => {
                    let found = self.files().rules().iter().find(|rule| *rule.name == *name).cloned();
                    found.ok_or_else(|| BacktestError::Rule(format!("no file has a rule {name:?}")))?
                }
            };
            let _turn = self.backtests.try_acquire().map_err(|_| BacktestError::Busy)?;
            let device_types = self.device_types(tenant, &rule).await?;
            let range = backtest::Range { tenant, from, to, device_types: &device_types };
            let tsdb = self.tsdb.as_ref().ok_or(BacktestError::NoStore)?;
            let report = backtest::run(&rule, &**tsdb, &range, BacktestLimits::default()).await?;
            Ok(Backtest {
                records: report.records,
                readings: report.readings,
                devices: report.devices,
                fired: report.fired,
                fired_by_device: report.fired_by_device.into_iter().collect(),
                firings: report.firings.into_iter().map(firing).collect(),
            })
        }
        .boxed()
    }
}

fn parse(tenant: &TenantId, text: &str) -> Result<Arc<Rule>, String> {
    RuleSet::parse_own(text, tenant).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        lines.join("; ")
    })
}

fn summary(rule: &Rule) -> RuleSummary {
    RuleSummary {
        name: rule.name.to_string(),
        severity: rule.severity(),
        condition: rule.told().words().to_string(),
        levels: rule.told().levels[1..]
            .iter()
            .map(|level| (level.severity, level.words.to_string()))
            .collect(),
        devices: rule.devices.to_string(),
        device_type: rule.device_type.as_deref().map(Into::into),
        description: rule.description.clone(),
    }
}

fn firing(firing: backtest::Firing) -> Firing {
    Firing {
        device: firing.device,
        severity: firing.severity,
        since: firing.since,
        fired_at: firing.fired_at,
        resolved_at: firing.resolved_at,
        value: firing.value,
    }
}
