use std::{sync::Arc, time::Duration};

use dunlin_journal::{Entries, Extent, Journal, Offset, Partition, ReadError, Topic};
use dunlin_model::{AlertTransition, avro::Datum, chain};
use dunlin_registry::{AppliedAlerts, Registry, RegistryError};
use tokio::sync::{Notify, watch};

use crate::{CONSUMER, dispatch::body, metrics::Metrics};

/// Reads the topic and brings the registry up to it.
pub(crate) struct Follower {
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) registry: Registry,
    /// Names of the channels, and what wakes their dispatchers.
    pub(crate) channels: Vec<(String, Arc<Notify>)>,
    pub(crate) metrics: Metrics,
}

const READ_BYTES_MAX: usize = 256 << 10;
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("read the alerts topic")]
    Read(#[from] ReadError),
    #[error("apply alerts")]
    Apply(#[from] RegistryError),
}

impl Follower {
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let at = Partition::new(Topic::Alerts, 0);
        let mut progress = self.journal.progress();
        let mut known = None;
        while !*stop.borrow() {
            // Seen before the look, so that what comes during the look wakes us after it.
            progress.borrow_and_update();
            let pause = match self.step(at, &mut known).await {
                Ok(true) => continue,
                Ok(false) => None,
                Err(error) => {
                    tracing::error!(error = chain(&error), "alerts wait");
                    Some(PAUSE_AFTER_ERROR)
                }
            };
            tokio::select! {
                _ = stop.changed() => return,
                _ = wait(&mut progress, pause) => {}
            }
        }
    }

    /// One stretch of the topic; false if there is nothing new. `known` is the position as the registry has it: the
    /// journal moves with every message of every device, and nobody need be asked for each.
    async fn step(&self, at: Partition, known: &mut Option<Offset>) -> Result<bool, FollowError> {
        let extent = self.journal.extent(at);
        let from = match *known {
            Some(from) => from,
            None => *known.insert(self.resume(at, extent).await?),
        };
        if from >= extent.next {
            return Ok(false);
        }
        let entries = match self.journal.read(at, from, READ_BYTES_MAX).await {
            Err(ReadError::Gone { oldest, .. }) => {
                tracing::error!(%from, %oldest, "alert transitions were deleted before they were read");
                self.journal.read(at, oldest, READ_BYTES_MAX).await?
            }
            read => read?,
        };
        let Some(next) = entries.last().map(Entries::next) else { return Ok(false) };
        *known = None; // Until the registry has the new one.
        let applied = self.apply(at, &self.decode(&entries), next).await?;
        *known = Some(next);
        self.metrics.transitions.inc_by(applied.transitions);
        self.metrics.position.set(next.0 as i64);
        if applied.notifications > 0 {
            self.channels.iter().for_each(|(_, wake)| wake.notify_one());
        }
        if let Err(error) = self.journal.commit(CONSUMER, at, next).await {
            tracing::warn!(%error, "the journal did not take alerting's position; it keeps more than it must");
        }
        Ok(true)
    }

    /// Where an earlier run has got to.
    async fn resume(&self, at: Partition, extent: Extent) -> Result<Offset, RegistryError> {
        let position = self.registry.position(CONSUMER, at.index).await?.map_or(extent.oldest, Offset);
        if position > extent.next {
            tracing::error!(%position, end = %extent.next, "the journal is not the one that alerting has read; it goes on at its end");
            return Ok(extent.next);
        }
        Ok(position)
    }

    /// All at once; if one of them is at fault, one by one without it, so that it blocks nobody.
    async fn apply(
        &self,
        at: Partition,
        transitions: &[AlertTransition],
        next: Offset,
    ) -> Result<AppliedAlerts, RegistryError> {
        let names: Vec<String> = self.channels.iter().map(|(name, _)| name.clone()).collect();
        let apply = async |some: &[AlertTransition], next: Offset| {
            self.registry.apply_alerts(CONSUMER, at.index, some, next.0, &names, body).await
        };
        match apply(transitions, next).await {
            Err(error) if error.is_of_the_data() => {}
            outcome => return outcome,
        }
        let mut all = AppliedAlerts::default();
        let before = self.registry.position(CONSUMER, at.index).await?.map_or(Offset::ZERO, Offset);
        for transition in transitions {
            match apply(std::slice::from_ref(transition), before).await {
                Ok(applied) => all += applied,
                Err(error) if error.is_of_the_data() => {
                    self.metrics.unusable.inc();
                    tracing::error!(?transition, error = chain(&error), "alert transition skipped");
                }
                Err(error) => return Err(error),
            }
        }
        all += apply(&[], next).await?;
        Ok(all)
    }

    fn decode(&self, entries: &[Entries]) -> Vec<AlertTransition> {
        let mut transitions = Vec::new();
        for entry in entries.iter().flat_map(Entries::iter) {
            match AlertTransition::decode(entry.bytes) {
                Ok(transition) => transitions.push(transition),
                Err(error) => {
                    self.metrics.unusable.inc();
                    tracing::error!(offset = %entry.offset, %error, "alert transition skipped");
                }
            }
        }
        transitions
    }
}

async fn wait(progress: &mut watch::Receiver<u64>, pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        // An error means the journal is gone; then only the stop is left to wait for.
        None => {
            if progress.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
