//! What the console shows of the rest.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::Instant,
};

use dunlin_alerting::CONSUMER as ALERTING;
use dunlin_console::{
    LedgerView, NotSent, PartitionStatus, Platform, Readiness, Revoked, StageStatus, StatusView,
};
use dunlin_fleet::CONSUMER as FLEET;
use dunlin_gateway::{Access, GatewayView, revoke_everywhere};
use dunlin_journal::{AppendError, Batch, Health, Journal, Offset, Partition, Topic};
use dunlin_model::{Clock, Command, DeviceId, Slot, TenantId, avro::Datum, chain};
use dunlin_pipeline::{
    CheckpointStatus, GROUPS, GroupsStatus, PIPELINE as RULES, PipelineView, RejectedView, STORE, Status,
    StoreView,
};
use dunlin_tsdb::Tsdb;
use futures::future::{BoxFuture, FutureExt};
use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        text::{encode_eof, encode_registry},
    },
    metrics::{family::Family, gauge::Gauge},
    registry::Registry as Metrics,
};

use super::{
    ledger::{Counters, Ledger, partitions},
    registry_watch::RegistryWatch,
};

#[derive(Debug)]
pub(crate) struct ServerPlatform {
    pub(crate) started: Instant,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) registry: RegistryWatch,
    /// What this process does not run is not there.
    pub(crate) mqtt: Option<SocketAddr>,
    pub(crate) tsdb: Option<Arc<dyn Tsdb>>,
    pub(crate) store: Option<StoreView>,
    pub(crate) rejected: Option<RejectedView>,
    pub(crate) rules: Option<PipelineView>,
    pub(crate) gateway: Option<GatewayView>,
    pub(crate) access: Option<Access>,
    /// Other processes may have gateways.
    pub(crate) has_company: bool,
    pub(crate) ledger: Option<Ledger>,
    pub(crate) clock: Clock,
    pub(crate) metrics: Mutex<Metrics>,
}

impl Platform for ServerPlatform {
    fn ledger(&self) -> LedgerView {
        match (&self.ledger, &self.tsdb, &self.store, &self.rejected) {
            (Some(ledger), Some(tsdb), Some(store), Some(rejected)) => ledger.view(Counters {
                journal: &*self.journal,
                tsdb: &**tsdb,
                gateway: self.gateway.as_ref(),
                store,
                rules: self.rules.as_ref(),
                rejected,
            }),
            _ => LedgerView::default(),
        }
    }

    fn status(&self) -> StatusView {
        let alerts = Partition::new(Topic::Alerts, 0);
        let replies = (0..self.journal.partitions(Topic::CommandReplies))
            .map(|index| Partition::new(Topic::CommandReplies, index));
        // Where others are, as they have committed it.
        let stored = |at| match &self.tsdb {
            Some(tsdb) => tsdb.position(at),
            None => self.journal.position(STORE, at),
        };
        let rules = self.rules.as_ref().map(PipelineView::status).unwrap_or_default();
        StatusView {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            mqtt: self.mqtt.map(|address| address.to_string()).unwrap_or_default(),
            connections: self.gateway.as_ref().map_or(0, GatewayView::connections),
            stages: vec![
                self.stage("store", partitions(&*self.journal), stored),
                self.rules_stage(&rules),
                self.groups_stage(&rules.groups),
                self.stage("alerting", [alerts], |at| self.journal.position(ALERTING, at)),
                self.stage("fleet", replies, |at| self.journal.position(FLEET, at)),
            ],
        }
    }

    fn readiness(&self) -> Readiness {
        let journal = match self.journal.health() {
            Health::Writable => None,
            Health::Refusing { reason, .. } => Some(format!("journal: {reason}")),
            Health::Closed => Some("journal: closed".to_owned()),
        };
        // Everybody may ask, and reasons name files, which have the names of tenants: those are in the log.
        let registry = (!self.registry.answers()).then(|| "registry: does not answer".to_owned());
        let stalled = self.store.as_ref().and_then(|store| store.status().stalled);
        let store = stalled.map(|_| "store: takes nothing, the log says why".to_owned());
        let uncounted = self.rejected.as_ref().and_then(RejectedView::stalled);
        let rejected = uncounted.map(|_| "count of rejected: does not get on".to_owned());
        let stalled = self.rules.as_ref().map(PipelineView::stalled).unwrap_or_default();
        let rules = stalled.into_iter().map(|_| "rules: do not get on, the log says why".to_owned());
        match [journal, registry, store, rejected].into_iter().flatten().chain(rules).collect::<Vec<_>>() {
            reasons if reasons.is_empty() => Readiness::Ready,
            reasons => Readiness::NotReady(reasons),
        }
    }

    fn revoked<'a>(
        &'a self,
        tenant: &'a TenantId,
        device: &'a DeviceId,
        what: Revoked,
    ) -> BoxFuture<'a, Result<(), String>> {
        let what = match what {
            Revoked::Token => dunlin_gateway::Revoked::Token,
            Revoked::Device => dunlin_gateway::Revoked::Device,
        };
        async move {
            let told = match self.has_company {
                true => revoke_everywhere(&*self.journal, tenant, device, what).await,
                false => Ok(()),
            };
            // The log tells this process, too.
            if (!self.has_company || told.is_err())
                && let Some(access) = &self.access
            {
                access.revoke_here(tenant, device, what);
            }
            told.map_err(|error| chain(&error))
        }
        .boxed()
    }

    fn send<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Result<(), NotSent>> {
        let slot = Slot::of(&command.tenant, &command.device);
        let at = Partition::new(Topic::Commands, slot.partition(self.journal.partitions(Topic::Commands)));
        let mut batch = Batch::default();
        batch.push(&command.encode());
        let appended = self.journal.append(at, batch);
        async move {
            appended.await.map_err(not_sent)?;
            if let Some(gateway) = &self.gateway {
                gateway.commanded();
            }
            Ok(())
        }
        .boxed()
    }

    fn clock_ahead_micros<'a>(
        &'a self,
        tenant: &'a TenantId,
        device: &'a DeviceId,
    ) -> BoxFuture<'a, Option<i64>> {
        async move { self.rules.as_ref()?.clock_ahead_micros(tenant, device).await }.boxed()
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        let own = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing into a String does not fail.
        let _ = encode_registry(&mut text, &own);
        let _ = encode_registry(&mut text, &clock_metrics(&self.clock));
        if self.ledger.is_some() {
            let _ = encode_registry(&mut text, &ledger_metrics(&self.ledger()));
        }
        let _ = encode_eof(&mut text);
        text
    }
}

impl ServerPlatform {
    fn stage(
        &self,
        stage: &'static str,
        of: impl IntoIterator<Item = Partition>,
        position: impl Fn(Partition) -> Option<Offset>,
    ) -> StageStatus {
        let partitions: Vec<PartitionStatus> = of
            .into_iter()
            .map(|at| {
                let extent = self.journal.extent(at);
                let position = position(at).unwrap_or(extent.oldest);
                PartitionStatus {
                    partition: at.to_string(),
                    position: position.0,
                    end: extent.next.0,
                    checkpoint: None,
                    watermark: None,
                }
            })
            .collect();
        let lag = partitions.iter().map(|p| p.end.saturating_sub(p.position)).sum();
        StageStatus { stage, lag, problems: Vec::new(), partitions }
    }

    fn rules_stage(&self, rules: &Status) -> StageStatus {
        let own = |at: Partition| rules.partitions.get(usize::from(at.index)).filter(|own| own.is_held);
        let evaluated = |at| own(at).map(|own| own.position).or_else(|| self.journal.position(RULES, at));
        let mut stage = self.stage("rules", partitions(&*self.journal), evaluated);
        for (shown, partition) in stage.partitions.iter_mut().zip(&rules.partitions) {
            shown.checkpoint = partition.checkpoint.position.map(|position| position.0);
            shown.watermark = partition.watermark.map(|watermark| watermark.to_string());
        }
        let problems = rules.partitions.iter().zip(0..);
        stage.problems = problems
            .filter_map(|(partition, n)| problem_of(&format!("partition {n}"), &partition.checkpoint))
            .collect();
        stage
    }

    fn groups_stage(&self, groups: &GroupsStatus) -> StageStatus {
        let judged = |at| match groups.is_held {
            true => Some(groups.position),
            false => self.journal.position(GROUPS, at),
        };
        let problems = problem_of("groups", &groups.checkpoint).into_iter().collect();
        StageStatus { problems, ..self.stage("groups", [Partition::new(Topic::Partials, 0)], judged) }
    }
}

/// The journal says of few errors that the log does not hold what it was given.
fn not_sent(error: AppendError) -> NotSent {
    let reason = chain(&error);
    match error {
        AppendError::Full { .. } | AppendError::TooLarge { .. } | AppendError::NoPartition(_) => {
            NotSent::Refused(reason)
        }
        AppendError::Fenced { .. } | AppendError::Closed | AppendError::Unreachable { .. } => {
            NotSent::Unknown(reason)
        }
    }
}

fn problem_of(what: &str, checkpoint: &CheckpointStatus) -> Option<String> {
    checkpoint.problem.as_ref().map(|problem| format!("{what}: checkpoint: {problem}"))
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Line {
    tenant: String,
    /// What became of the records.
    outcome: String,
    reason: String,
}

/// For others to compare with theirs.
fn clock_metrics(clock: &Clock) -> Metrics {
    let now = Gauge::<f64, AtomicU64>::default();
    now.set(clock.now().as_micros() as f64 / 1e6);
    let mut metrics = Metrics::default();
    metrics.register("dunlin_clock_timestamp_seconds", "What this process takes for the time", now);
    metrics
}

fn ledger_metrics(ledger: &LedgerView) -> Metrics {
    let records = Family::<Line, Gauge>::default();
    for (tenant, account) in &ledger.tenants {
        let set = |outcome: &str, reason: &str, n: u64| {
            let line = Line { tenant: tenant.clone(), outcome: outcome.into(), reason: reason.into() };
            records.get_or_create(&line).set(n as i64);
        };
        set("accepted", "", account.accepted);
        set("stored", "", account.stored);
        set("duplicate", "", account.duplicate);
        set("expired", "", account.expired);
        set("sampled", "", account.sampled);
        set("in_flight", "", account.in_flight);
        account.rejected.iter().for_each(|(reason, n)| set("rejected", reason, *n));
    }
    let balanced = Gauge::<i64>::default();
    balanced.set(i64::from(ledger.balanced));
    let mut metrics = Metrics::default();
    metrics.register("dunlin_ledger_records", "Records by tenant and outcome, since the first", records);
    metrics.register("dunlin_ledger_balanced", "1 if every message is accounted for", balanced);
    metrics
}
