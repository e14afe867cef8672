//! Rules over groups, running: one thread reads what the partitions counted, and says what follows from it.

use std::{
    io,
    sync::{Arc, Mutex},
};

use dunlin_journal::{Entries, Journal, Offset, Partition, ReadError, Topic};
use dunlin_model::{AlertTransition, Clock, Timestamp, chain};
use tokio::sync::watch;

use super::{
    Config, GroupsStatus, Stopped, TICK_AFTER_MAX, come_up_to, lock, metrics::Metrics, note_checkpoint, say,
};
use crate::{
    RuleSet,
    checkpoints::{Chain, Found, Writer},
    consumer::{Backoff, Every, Stop, Worker},
    groups::{Merge, MergeState, Partial},
};

/// Under which the journal knows the position.
pub const CONSUMER: &str = "groups";
pub(super) const PARTIALS: Partition = Partition { topic: Topic::Partials, index: 0 };

/// Begins the thread.
pub(super) fn begin(merging: Merging, nice: i32) -> io::Result<Worker> {
    let told = merging.shown.clone();
    let work = move |stop| merging.clone().run(stop);
    Worker::spawn("groups".into(), nice, work, move |reason| lock(&told).stalled = Some(reason))
}

/// Begun anew, it knows nothing but its checkpoint.
#[derive(Debug, Clone)]
pub(super) struct Merging {
    pub(super) chain: Chain,
    pub(super) checkpoint_due: Every,
    pub(super) config: Config,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) in_force: watch::Receiver<RuleSet>,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) shown: Arc<Mutex<GroupsStatus>>,
    pub(super) position: Offset,
}

impl Merging {
    async fn run(mut self, mut stop: Stop) {
        if let Err(Stopped) = self.follow(&mut stop).await {
            tracing::info!(
                "rules over groups stopped before their transitions were durable; they are said again"
            );
        }
    }

    async fn follow(&mut self, stop: &mut Stop) -> Result<(), Stopped> {
        let mut progress = self.journal.progress();
        let (mut merge, mut writer) = self.take_up(stop).await?;
        let mut backoff = Backoff::default();
        loop {
            // Asked before the journal is looked at: what the partitions said to the end is judged.
            let last_round = stop.is_asked();
            if stop.is_given_up() {
                return Ok(());
            }
            progress.mark_unchanged();
            if self.in_force.has_changed().unwrap_or(false) {
                let rules = self.in_force.borrow_and_update().clone();
                let mut out = Vec::new();
                merge.reload(&rules, &mut out);
                self.say(out, stop).await?;
            }
            match self.journal.read(PARTIALS, self.position, self.config.chunk_bytes).await {
                Ok(entries) => {
                    backoff = Backoff::default();
                    self.take(&mut merge, &entries, stop).await?;
                    self.show(&merge, None);
                    self.checkpoint(&merge, &mut writer).await;
                }
                Err(ReadError::Gone { oldest, .. }) => {
                    tracing::error!(%oldest, "the retention took counts of groups before they were judged");
                    self.position = oldest;
                }
                Err(error) => {
                    let pause = backoff.next();
                    tracing::error!(error = chain(&error), ?pause, "rules over groups cannot read");
                    self.show(&merge, Some(chain(&error)));
                    if last_round {
                        return Ok(());
                    }
                    stop.sleep(pause).await;
                }
            }
            if self.is_at_end() {
                if last_round {
                    self.last_checkpoint(&merge, &mut writer).await;
                    return Ok(());
                }
                let mut in_force = self.in_force.clone();
                tokio::select! {
                    () = stop.asked() => {}
                    _ = progress.changed() => {}
                    _ = in_force.changed() => {}
                    () = tokio::time::sleep(TICK_AFTER_MAX) => {}
                }
            }
        }
    }

    async fn take_up(&mut self, stop: &mut Stop) -> Result<(Merge, Writer), Stopped> {
        let rules = self.in_force.borrow_and_update().clone();
        let (found, writer) = self.load(stop).await?;
        if let Some(Found { position, .. }) = &found {
            come_up_to(&*self.journal, PARTIALS, *position, stop).await?;
        }
        let extent = self.journal.extent(PARTIALS);
        let mut out = Vec::new();
        let restored = found.filter(|found| found.position <= extent.next).and_then(|found| {
            let state: MergeState = found.states.into_iter().next_back()?;
            Some((found.position, Merge::restore(&rules, state, &mut out)?))
        });
        let (position, merge) = restored.unwrap_or_else(|| (extent.oldest, Merge::new(&rules)));
        self.position = position;
        lock(&self.shown).checkpoint.position = Some(position);
        // Before the first checkpoint, too: retention spares only the consumers it knows.
        self.commit(position).await;
        self.say(out, stop).await?;
        self.show(&merge, None);
        Ok((merge, writer))
    }

    async fn load(&self, stop: &mut Stop) -> Result<(Option<Found<MergeState>>, Writer), Stopped> {
        let mut backoff = Backoff::default();
        loop {
            let error = match self.chain.load().await {
                Ok(loaded) => return Ok(loaded),
                Err(error) => chain(&error),
            };
            let pause = backoff.next();
            tracing::error!(error, ?pause, "rules over groups cannot read their checkpoints");
            lock(&self.shown).stalled = Some(error);
            stop.sleep(pause).await;
            if stop.is_asked() {
                return Err(Stopped);
            }
        }
    }

    async fn take(&mut self, merge: &mut Merge, entries: &[Entries], stop: &Stop) -> Result<(), Stopped> {
        let mut out = Vec::new();
        for stretch in entries {
            for entry in stretch.iter() {
                match Partial::decode(entry.bytes) {
                    Some(partial) => merge.take(partial, stretch.appended_at(), &mut out),
                    None => {
                        tracing::error!(offset = %entry.offset, "what a partition counted cannot be read")
                    }
                }
            }
        }
        self.say(out, stop).await?;
        if let Some(last) = entries.last() {
            self.position = last.next();
        }
        Ok(())
    }

    async fn say(&self, out: Vec<AlertTransition>, stop: &Stop) -> Result<(), Stopped> {
        let stalled = |reason: String| lock(&self.shown).stalled = Some(reason);
        self.metrics.transitions.inc_by(out.len() as u64);
        say(&*self.journal, Partition::new(Topic::Alerts, 0), &out, stop.clone(), &stalled).await
    }

    /// Its state is small, so it is always whole.
    async fn checkpoint(&mut self, merge: &Merge, writer: &mut Writer) {
        if writer.is_writing() {
            tokio::task::yield_now().await;
            if let Some(ended) = writer.ended().await {
                self.note(ended).await;
            }
        }
        let saved = lock(&self.shown).checkpoint.position;
        if !writer.is_writing() && saved != Some(self.position) && self.checkpoint_due.is_due() {
            writer.begin(self.position, true, &merge.state());
        }
    }

    async fn last_checkpoint(&mut self, merge: &Merge, writer: &mut Writer) {
        if let Some(ended) = writer.finished().await {
            self.note(ended).await;
        }
        if lock(&self.shown).checkpoint.position != Some(self.position) {
            writer.begin(self.position, true, &merge.state());
            if let Some(ended) = writer.finished().await {
                self.note(ended).await;
            }
        }
    }

    async fn note(&self, ended: Result<crate::checkpoints::Written, super::CheckpointError>) {
        let written = ended.as_ref().ok().map(|written| written.position);
        note_checkpoint(ended, &self.metrics, &self.clock, "groups", &mut lock(&self.shown).checkpoint);
        if let Some(position) = written {
            self.commit(position).await;
        }
    }

    async fn commit(&self, position: Offset) {
        if let Err(error) = self.journal.commit(CONSUMER, PARTIALS, position).await {
            tracing::warn!(error = chain(&error), "position of the rules over groups not committed");
        }
    }

    fn is_at_end(&self) -> bool {
        self.journal.extent(PARTIALS).next <= self.position
    }

    fn show(&self, merge: &Merge, stalled: Option<String>) {
        let mut shown = lock(&self.shown);
        shown.position = self.position;
        shown.judged_up_to = Some(merge.judged_up_to()).filter(|up_to| *up_to > Timestamp::MIN);
        shown.stalled = stalled;
    }
}
