use std::time::Duration;

use dunlin_model::{Clock, Timestamp, chain};
use dunlin_registry::{Registry, trim_hourly};
use tokio::sync::watch;

use crate::metrics::Metrics;

/// Forgets, once an hour, what expired longer ago than it is kept.
pub(crate) struct Trimmer {
    pub(crate) registry: Registry,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
}

/// How long a command is known after it has expired.
const KEPT: Duration = Duration::from_secs(30 * 86_400);

impl Trimmer {
    pub(crate) async fn run(self, stop: watch::Receiver<bool>) {
        trim_hourly(&self.clock, stop, |now| self.trim(now)).await;
    }

    async fn trim(&self, now: Timestamp) {
        match self.registry.trim_commands(now - KEPT).await {
            Ok(trimmed) => {
                self.metrics.trimmed.inc_by(trimmed);
                tracing::debug!(trimmed, "commands that expired long ago were forgotten");
            }
            Err(error) => {
                self.metrics.errors.inc();
                tracing::error!(error = chain(&error), "old commands stay for another hour");
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

    use super::*;
    use crate::follow::tests::{registry_at, send};

    #[tokio::test]
    async fn a_command_is_forgotten_when_it_expired_long_ago() {
        let dir = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicI64::new(1_700_000_000_000_000));
        let hands = now.clone();
        let clock = Clock::new(move || Timestamp::from_micros(hands.load(SeqCst)));
        let registry = registry_at(&dir, clock.clone()).await;
        let sent = send(&registry).await;
        let metrics = Metrics::register(&mut Default::default());
        let trimmer = Trimmer { registry, clock, metrics: metrics.clone() };
        trimmer.trim(sent.expires_at + KEPT).await;
        assert_eq!(metrics.trimmed.get(), 0, "as old as it may be");
        trimmer.trim(sent.expires_at + KEPT + Duration::from_micros(1)).await;
        assert_eq!(metrics.trimmed.get(), 1);
    }
}
