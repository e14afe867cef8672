//! What the console shows of the rest.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use dunlin_alerting::CONSUMER as ALERTING;
use dunlin_console::{LedgerView, PartitionStatus, Platform, Readiness, Revoked, StageStatus, StatusView};
use dunlin_gateway::{Access, GatewayView};
use dunlin_journal::{Health, Journal, Offset, Partition, Topic};
use dunlin_model::{DeviceId, TenantId};
use dunlin_pipeline::{CheckpointStatus, PipelineView, RejectedView, Status, StoreView};
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
    pub(crate) mqtt: SocketAddr,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) tsdb: Arc<dyn Tsdb>,
    pub(crate) store: StoreView,
    pub(crate) rules: PipelineView,
    pub(crate) rejected: RejectedView,
    pub(crate) gateway: GatewayView,
    pub(crate) access: Access,
    pub(crate) registry: RegistryWatch,
    pub(crate) ledger: Ledger,
    pub(crate) metrics: Mutex<Metrics>,
}

impl Platform for ServerPlatform {
    fn ledger(&self) -> LedgerView {
        self.ledger.view(Counters {
            journal: &*self.journal,
            tsdb: &*self.tsdb,
            gateway: &self.gateway,
            store: &self.store,
            rules: &self.rules,
            rejected: &self.rejected,
        })
    }

    fn status(&self) -> StatusView {
        let alerts = Partition::new(Topic::Alerts, 0);
        let partials = Partition::new(Topic::Partials, 0);
        let rules = self.rules.status();
        StatusView {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            mqtt: self.mqtt.to_string(),
            connections: self.gateway.connections(),
            stages: vec![
                self.stage("store", partitions(&*self.journal), |at| self.tsdb.position(at)),
                self.rules_stage(&rules),
                StageStatus {
                    problems: problem_of("groups", &rules.groups.checkpoint).into_iter().collect(),
                    ..self.stage("groups", [partials], |_| Some(rules.groups.position))
                },
                self.stage("alerting", [alerts], |at| self.journal.position(ALERTING, at)),
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
        let store = self.store.status().stalled.map(|_| "store: takes nothing, the log says why".to_owned());
        let rejected = self.rejected.stalled().map(|_| "count of rejected: does not get on".to_owned());
        let rules =
            self.rules.stalled().into_iter().map(|_| "rules: do not get on, the log says why".to_owned());
        let registry = (!self.registry.answers()).then(|| "registry: does not answer".to_owned());
        match [journal, registry, store, rejected].into_iter().flatten().chain(rules).collect::<Vec<_>>() {
            reasons if reasons.is_empty() => Readiness::Ready,
            reasons => Readiness::NotReady(reasons),
        }
    }

    fn revoked(&self, tenant: &TenantId, device: &DeviceId, what: Revoked) {
        let what = match what {
            Revoked::Token => dunlin_gateway::Revoked::Token,
            Revoked::Device => dunlin_gateway::Revoked::Device,
        };
        self.access.revoke(tenant, device, what);
    }

    fn clock_ahead_micros<'a>(
        &'a self,
        tenant: &'a TenantId,
        device: &'a DeviceId,
    ) -> BoxFuture<'a, Option<i64>> {
        self.rules.clock_ahead_micros(tenant, device).boxed()
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        let own = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing into a String does not fail.
        let _ = encode_registry(&mut text, &own);
        let _ = encode_registry(&mut text, &ledger_metrics(&self.ledger()));
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
        let of = |at: Partition| rules.partitions.get(usize::from(at.index));
        let mut stage = self.stage("rules", partitions(&*self.journal), |at| Some(of(at)?.position));
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
