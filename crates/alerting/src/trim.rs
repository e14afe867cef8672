use std::time::Duration;

use dunlin_model::{Clock, Timestamp};
use dunlin_registry::{Registry, trim_hourly};
use tokio::sync::watch;

use crate::metrics::Metrics;

/// Forgets, once an hour, what is older than it is kept.
pub(crate) struct Trimmer {
    pub(crate) registry: Registry,
    pub(crate) clock: Clock,
    pub(crate) kept: Duration,
    pub(crate) metrics: Metrics,
}

impl Trimmer {
    pub(crate) async fn run(self, stop: watch::Receiver<bool>) {
        trim_hourly(&self.clock, stop, |now| self.trim(now)).await;
    }

    async fn trim(&self, now: Timestamp) {
        match self.registry.trim_alerts(now - self.kept).await {
            Ok(trimmed) => {
                self.metrics.trimmed.inc_by(trimmed.transitions + trimmed.alerts + trimmed.notifications);
                tracing::debug!(?trimmed, "alerts that are over were forgotten");
            }
            Err(error) => {
                tracing::error!(error = dunlin_model::chain(&error), "old alerts stay for another hour")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    };

    use dunlin_model::{AlertPhase, AlertTransition, Fingerprint, Severity, TransitionId};

    use super::*;

    const A_YEAR: Duration = Duration::from_secs(365 * 86_400);

    #[tokio::test]
    async fn age_is_measured_by_the_clock() {
        let dir = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicI64::new(1_700_000_000_000_000));
        let hands = now.clone();
        let clock = Clock::new(move || Timestamp::from_micros(hands.load(SeqCst)));
        let registry = Registry::open_file(&dir.path().join("registry.db"), clock.clone()).await.unwrap();
        let fingerprint = Fingerprint::of("default", "hot", "a");
        let over = [AlertPhase::Pending, AlertPhase::Cancelled].map(|phase| AlertTransition {
            id: TransitionId::of(fingerprint, phase, clock.now()),
            fingerprint,
            tenant: "default".into(),
            device: "a".into(),
            rule: "hot".into(),
            severity: Severity::Info,
            phase,
            at: clock.now(),
            since: clock.now(),
            value: 81.0,
            condition: "temperature > 80".into(),
        });
        let metrics = Metrics::register(&mut Default::default());
        let executor = crate::execute::Executor {
            registry: registry.clone(),
            policy: Arc::new(crate::policy::Policy::new(&crate::Config::default()).unwrap()),
            metrics: metrics.clone(),
            senders: Vec::new(),
            reminder: Arc::default(),
        };
        assert_eq!(executor.absorb(0, &over, 2).await.unwrap(), 2);

        let trimmer = Trimmer { registry, clock: clock.clone(), kept: A_YEAR, metrics: metrics.clone() };
        now.fetch_add(A_YEAR.as_micros() as i64, SeqCst);
        trimmer.trim(clock.now()).await;
        assert_eq!(metrics.trimmed.get(), 0, "as old as it may be");
        now.fetch_add(1, SeqCst);
        trimmer.trim(clock.now()).await;
        assert_eq!(metrics.trimmed.get(), 3, "two transitions and the alert");
    }
}
