#[cfg(test)]
pub(crate) mod tests;

use std::{sync::Arc, time::Duration};

use dunlin_journal::{Entries, Journal, Offset, Partition, ReadError, until_grown};
use dunlin_model::{CommandReply, avro::Datum, chain};
use dunlin_registry::{Registry, RegistryError};
use tokio::sync::watch;

use crate::{CONSUMER, metrics::Metrics};

/// Reads a partition and brings the registry up to it.
pub(crate) struct Follower {
    pub(crate) at: Partition,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
    /// Where it has got to; the journal is asked once.
    pub(crate) position: Option<Offset>,
}

const READ_BYTES_MAX: usize = 1 << 20;
/// Replies recorded in one transaction.
const REPLIES_MAX: usize = 500;
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(1);
/// No look sooner than this after one that found nothing.
const GATHER: Duration = Duration::from_millis(20);
/// How much later than to another process something may come to this one, as when a broker of Kafka has died.
const LATER_MAX: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("read {0}")]
    Read(Partition, #[source] ReadError),
    #[error("record replies to commands")]
    Record(#[from] RegistryError),
}

impl Follower {
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut progress = self.journal.progress();
        tokio::select! {
            _ = stop.wait_for(|asked| *asked) => return,
            () = self.take_up(LATER_MAX) => {}
        }
        while !is_asked(&stop) {
            // Seen before the look, so that what comes during the look wakes us after it.
            progress.borrow_and_update();
            let pause = match self.step().await {
                Ok(true) => continue,
                Ok(false) => None,
                Err(error) => {
                    self.metrics.errors.inc();
                    tracing::error!(partition = %self.at, error = chain(&error), "replies to commands wait");
                    Some(PAUSE_AFTER_ERROR)
                }
            };
            self.metrics.show_lag(self.at, self.lag());
            tokio::select! {
                _ = stop.wait_for(|asked| *asked) => return,
                _ = wait(&mut progress, pause) => {}
            }
        }
    }

    /// One stretch of the topic; false if there is nothing new.
    async fn step(&mut self) -> Result<bool, FollowError> {
        let from = self.position.unwrap_or_else(|| self.journal.extent(self.at).oldest);
        if from == self.journal.extent(self.at).next {
            return Ok(false);
        }
        let entries = match self.journal.read(self.at, from, READ_BYTES_MAX).await {
            Err(ReadError::Gone { oldest, .. }) => {
                tracing::error!(partition = %self.at, %from, %oldest, "replies to commands were deleted before they were read");
                self.journal.read(self.at, oldest, READ_BYTES_MAX).await
            }
            read => read,
        };
        let entries = entries.map_err(|error| FollowError::Read(self.at, error))?;
        let Some(next) = entries.last().map(Entries::next) else { return Ok(false) };
        let (offsets, replies) = self.decode(&entries);
        for (offsets, replies) in offsets.chunks(REPLIES_MAX).zip(replies.chunks(REPLIES_MAX)) {
            self.record(offsets, replies).await?;
            self.position = offsets.last().map(|last| last.after(1));
        }
        self.position = Some(next);
        self.metrics.show_lag(self.at, self.lag());
        self.tell_journal(next).await;
        Ok(true)
    }

    /// In one transaction; if the registry refuses that, each in its own, so that all is recorded but the very replies
    /// that are refused.
    async fn record(&self, offsets: &[Offset], replies: &[CommandReply]) -> Result<(), RegistryError> {
        match self.registry.record_replies(replies).await {
            Err(error) if error.is_refusal() => {}
            unknown => {
                self.metrics.recorded(replies, unknown?);
                return Ok(());
            }
        }
        for (offset, reply) in offsets.iter().zip(replies) {
            match self.registry.record_replies(std::slice::from_ref(reply)).await {
                Err(error) if error.is_refusal() => {
                    self.metrics.skipped.inc();
                    tracing::error!(partition = %self.at, %offset, ?reply, error = chain(&error), "reply to a command skipped");
                }
                unknown => self.metrics.recorded(std::slice::from_ref(reply), unknown?),
            }
        }
        Ok(())
    }

    /// Where the holder before has committed that it is.
    async fn take_up(&mut self, patience: Duration) {
        let mut position =
            self.journal.position(CONSUMER, self.at).unwrap_or_else(|| self.journal.extent(self.at).oldest);
        // Whoever had the partition before may have read what has not come here yet.
        let mut progress = self.journal.progress();
        let comes = async {
            while self.journal.extent(self.at).next < position && progress.changed().await.is_ok() {}
        };
        let _ = tokio::time::timeout(patience, comes).await;
        let end = self.journal.extent(self.at).next;
        if position > end {
            tracing::warn!(
                partition = %self.at, %position, %end,
                "the fleet is ahead of the journal; going on from the journal's end"
            );
            position = end;
        }
        self.position = Some(position);
        // Known to the journal before the first reply is recorded, or retention would not wait for that.
        self.tell_journal(position).await;
    }

    /// Retention may take what is before `position`, and nothing else.
    async fn tell_journal(&self, position: Offset) {
        if let Err(error) = self.journal.commit(CONSUMER, self.at, position).await {
            self.metrics.errors.inc();
            tracing::warn!(
                partition = %self.at, error = chain(&error),
                "the journal did not take the fleet's position; a start reads again what is recorded"
            );
        }
    }

    fn decode(&self, entries: &[Entries]) -> (Vec<Offset>, Vec<CommandReply>) {
        let decoded = entries.iter().flat_map(Entries::iter).filter_map(|entry| {
            match CommandReply::decode(entry.bytes) {
                Ok(reply) => Some((entry.offset, reply)),
                Err(error) => {
                    self.metrics.skipped.inc();
                    tracing::error!(
                        partition = %self.at, offset = %entry.offset, error = chain(&error),
                        "record is no reply to a command; skipped"
                    );
                    None
                }
            }
        });
        decoded.unzip()
    }

    /// Records in the journal that are not recorded yet.
    fn lag(&self) -> u64 {
        let extent = self.journal.extent(self.at);
        extent.next.0.saturating_sub(self.position.unwrap_or(extent.oldest).0)
    }
}

/// Also if nobody is left to ask.
fn is_asked(stop: &watch::Receiver<bool>) -> bool {
    *stop.borrow() || stop.has_changed().is_err()
}

async fn wait(progress: &mut watch::Receiver<u64>, pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => until_grown(progress, GATHER).await,
    }
}
