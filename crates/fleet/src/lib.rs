//! What devices do about their commands.
//!
//! The `command-replies` topic says what happened; the registry remembers it, and then the position is committed. After
//! a crash a stretch is read again, and comes to the same. Processes that do this share the partitions.

mod crew; // which partitions
mod follow; // one of them, into the registry
mod metrics;
mod trim; // what expired long ago

use std::{sync::Arc, time::Duration};

use dunlin_journal::Journal;
use dunlin_model::Clock;
use dunlin_registry::Registry;
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::{sync::watch, task::JoinSet};

use self::{crew::Crew, metrics::Metrics, trim::Trimmer};

/// The name under which it commits its positions.
pub const CONSUMER: &str = "fleet";

/// A registry that does not answer holds the stop up no longer than this.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Running.
#[derive(Debug)]
pub struct Fleet {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Fleet {
    /// Starts on the current tokio runtime.
    pub fn start(
        journal: Arc<dyn Journal>,
        registry: Registry,
        clock: Clock,
        metrics: &mut MetricsRegistry,
    ) -> Self {
        let metrics = Metrics::register(metrics);
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let trimmer = Trimmer { registry: registry.clone(), clock, metrics: metrics.clone() };
        tasks.spawn(trimmer.run(stopped.clone()));
        tasks.spawn(Crew { journal, registry, metrics }.run(stopped));
        Self { stop, tasks }
    }

    /// Ends in seconds, after what is being recorded.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_MAX, all).await.is_err() {
            tracing::warn!(
                "replies to commands wait for the registry still and are cut off; the next start reads them again"
            );
            self.tasks.shutdown().await;
        }
    }
}
