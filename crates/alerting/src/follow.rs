#[cfg(test)]
mod tests;

use std::{ops::Range, sync::Arc, time::Duration};

use dunlin_journal::{Entries, Journal, Offset, Partition, ReadError, Topic, until_grown};
use dunlin_model::{AlertTransition, avro::Datum};
use dunlin_registry::RegistryError;
use tokio::sync::watch;

use crate::{CONSUMER, execute::Executor, metrics::Metrics};

/// Reads the topic and brings the registry up to it.
pub(crate) struct Follower {
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) executor: Executor,
    pub(crate) metrics: Metrics,
    /// Where it has got to; the registry is asked once, and no more while the topic does not grow.
    pub(crate) position: Option<Offset>,
}

/// Large stretches cost less each, as they change many rows of one page of the registry.
const READ_BYTES_MAX: usize = 1 << 20;
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(1);
/// No look sooner than this after one that found nothing.
const GATHER: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("read the alerts topic")]
    Read(#[from] ReadError),
    #[error("apply alerts")]
    Apply(#[from] RegistryError),
}

impl Follower {
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let at = Partition::new(Topic::Alerts, 0);
        let mut progress = self.journal.progress();
        while !*stop.borrow() {
            // Seen before the look, so that what comes during the look wakes us after it.
            progress.borrow_and_update();
            let pause = match self.step(at).await {
                Ok(true) => continue,
                Ok(false) => None,
                Err(error) => {
                    tracing::error!(error = dunlin_model::chain(&error), "alerts wait");
                    Some(PAUSE_AFTER_ERROR)
                }
            };
            tokio::select! {
                _ = stop.wait_for(|asked| *asked) => return,
                _ = wait(&mut progress, pause) => {}
            }
        }
    }

    /// One stretch of the topic; false if there is nothing new.
    async fn step(&mut self, at: Partition) -> Result<bool, FollowError> {
        let from = match self.position {
            Some(position) => position,
            None => self.take_up(at).await?,
        };
        if from == self.journal.extent(at).next {
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
        let (offsets, transitions) = self.decode(&entries);
        self.apply(at, &offsets, &transitions, next).await?;
        self.tell_journal(at, next).await;
        Ok(true)
    }

    /// Retention may take what is before `position`, and nothing else.
    async fn tell_journal(&self, at: Partition, position: Offset) {
        if let Err(error) = self.journal.commit(CONSUMER, at, position).await {
            tracing::warn!(
                error = dunlin_model::chain(&error),
                "the journal did not take alerting's position; it keeps more than it must"
            );
        }
    }

    /// Applies a stretch that ends at `next`. If the registry refuses it, its halves, and theirs, so that all is
    /// applied, in order, but the very transitions that are refused.
    async fn apply(
        &mut self,
        at: Partition,
        offsets: &[Offset],
        transitions: &[AlertTransition],
        next: Offset,
    ) -> Result<(), RegistryError> {
        let mut left = vec![(0..transitions.len(), next)];
        while let Some((part, next)) = left.pop() {
            let stretch = &transitions[part.clone()];
            let fresh = match self.executor.absorb(at.index, stretch, next.0).await {
                Err(error) if error.is_refusal() && !stretch.is_empty() => {
                    left.extend(self.without_refused(offsets, stretch, part, next, &error));
                    continue;
                }
                fresh => fresh?,
            };
            self.metrics.transitions.inc_by(fresh);
            self.position = Some(next);
            self.metrics.position.set(next.0 as i64);
        }
        Ok(())
    }

    /// What to apply instead of a refused part, the last first: its halves, or nothing but its end.
    fn without_refused(
        &self,
        offsets: &[Offset],
        stretch: &[AlertTransition],
        part: Range<usize>,
        next: Offset,
        error: &RegistryError,
    ) -> Vec<(Range<usize>, Offset)> {
        if let [refused] = stretch {
            self.metrics.refused.inc();
            tracing::error!(
                offset = %offsets[part.start], transition = ?refused, error = dunlin_model::chain(error), "alert transition skipped"
            );
            return vec![(part.end..part.end, next)];
        }
        let middle = part.start + part.len() / 2;
        vec![(middle..part.end, next), (part.start..middle, offsets[middle])]
    }

    /// Where the registry says it is. A journal that ends before that was replaced, or lost what it had.
    async fn take_up(&mut self, at: Partition) -> Result<Offset, FollowError> {
        let extent = self.journal.extent(at);
        let mut position =
            self.executor.registry.position(CONSUMER, at.index).await?.map_or(extent.oldest, Offset);
        if position > extent.next {
            tracing::warn!(
                partition = %at, %position, end = %extent.next,
                "alerting is ahead of the journal; going on from the journal's end"
            );
            position = extent.next;
            // Kept, or a journal that has grown past the old position would be skipped up to it by a later start.
            self.apply(at, &[], &[], position).await?;
        }
        self.position = Some(position);
        self.metrics.position.set(position.0 as i64);
        // Known to the journal before the first transition is applied, or retention would not wait for that.
        self.tell_journal(at, position).await;
        Ok(position)
    }

    fn decode(&self, entries: &[Entries]) -> (Vec<Offset>, Vec<AlertTransition>) {
        let decoded = entries.iter().flat_map(Entries::iter).filter_map(|entry| {
            match AlertTransition::decode(entry.bytes) {
                Ok(transition) => Some((entry.offset, transition)),
                Err(error) => {
                    self.metrics.undecodable.inc();
                    tracing::error!(offset = %entry.offset, error = dunlin_model::chain(&error), "alert transition skipped");
                    None
                }
            }
        });
        decoded.unzip()
    }
}

async fn wait(progress: &mut watch::Receiver<u64>, pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => until_grown(progress, GATHER).await,
    }
}
