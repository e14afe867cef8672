//! What was refused, counted by tenant and reason from the first message on: counts and position stand in one file.
//!
//! A consumer that takes up from an earlier position lays the same records aside again. It does so in their order, so
//! each counts once if only those count that lie beyond the last one of that consumer and partition.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dunlin_journal::{Entries, Journal, Offset, Partition, ReadError, Topic};
use dunlin_model::{RejectReason, Rejected, avro::Datum, chain};
use serde::{Deserialize, Serialize};

use crate::{
    StartError, checkpoint,
    consumer::{Backoff, Every, Stop, Worker},
};

/// Under which the journal knows the position.
const CONSUMER: &str = "rejected-counter";
const CHUNK_BYTES: usize = 1 << 20;
const GATHER: Duration = Duration::from_millis(50);
/// How the sources begin of those who lay records aside, before partition and offset.
const LAID_ASIDE_BY: [&str; 2] = ["store:", "pipeline:"];
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// Messages by tenant and reason. Of messages from behind the journal that name no tenant, it is empty.
pub type RejectedCounts = BTreeMap<(String, RejectReason), u64>;

/// The counter, running.
#[derive(Debug)]
pub struct RejectedCounter {
    worker: Worker,
    shown: Shown,
}

type Shown = Arc<Mutex<Status>>;

/// As it stands in the file.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Counted {
    counts: RejectedCounts,
    /// By consumer and partition, the offset after the last record that it laid aside.
    laid_aside: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct Status {
    counts: RejectedCounts,
    position: Offset,
    /// Why nothing is counted, if nothing is.
    stalled: Option<String>,
}

impl RejectedCounter {
    /// Keeps its file as `dir`/pipeline/rejected.ckpt.
    pub fn start(journal: Arc<dyn Journal>, dir: &Path) -> Result<Self, StartError> {
        let dir = dir.join("pipeline");
        fs::create_dir_all(&dir).map_err(|source| StartError::Directory { path: dir.clone(), source })?;
        let shown = Shown::default();
        let counter = Counter {
            journal,
            at: Partition::new(Topic::Rejected, 0),
            file: dir.join("rejected.ckpt"),
            position: Offset::ZERO,
            saved: None,
            counted: Counted::default(),
            shown: Arc::clone(&shown),
        };
        let told = shown.clone();
        let work = move |stop| counter.clone().run(stop);
        let worker =
            Worker::spawn("rejected".into(), 5, work, move |reason| lock(&told).stalled = Some(reason))
                .map_err(|source| StartError::Thread {
                    what: "the count of refused messages".into(),
                    source,
                })?;
        Ok(Self { worker, shown })
    }

    pub fn view(&self) -> RejectedView {
        RejectedView(self.shown.clone())
    }

    /// Counts what is in the journal by now, then ends.
    pub async fn stop(self) {
        self.worker.stopped().await;
    }
}

/// Shows the counts, also while somebody else stops the counter.
#[derive(Debug, Clone)]
pub struct RejectedView(Shown);

impl RejectedView {
    pub fn counts(&self) -> RejectedCounts {
        lock(&self.0).counts.clone()
    }

    /// How far in the journal messages are counted, and the counts.
    pub fn counts_up_to(&self) -> (Offset, RejectedCounts) {
        let status = lock(&self.0);
        (status.position, status.counts.clone())
    }

    /// Why nothing is counted, if nothing is.
    pub fn stalled(&self) -> Option<String> {
        lock(&self.0).stalled.clone()
    }
}

#[derive(Clone)]
struct Counter {
    journal: Arc<dyn Journal>,
    at: Partition,
    file: PathBuf,
    position: Offset,
    saved: Option<Offset>,
    counted: Counted,
    shown: Shown,
}

impl Counter {
    async fn run(mut self, mut stop: Stop) {
        let mut progress = self.journal.progress();
        let mut backoff = Backoff::default();
        let mut save_due = Every::new(SAVE_EVERY);
        self.take_up();
        // Before anything is counted, too: retention spares only the consumers it knows.
        self.commit().await;
        loop {
            let last_round = stop.is_asked();
            progress.mark_unchanged();
            match self.journal.read(self.at, self.position, CHUNK_BYTES).await {
                Ok(entries) if entries.is_empty() => {
                    lock(&self.shown).stalled = None;
                    if save_due.is_due() || last_round {
                        self.save().await;
                    }
                    if last_round {
                        return;
                    }
                    stop.sleep(GATHER).await;
                    tokio::select! {
                        () = stop.asked() => {}
                        _ = progress.changed() => {}
                        () = tokio::time::sleep(SAVE_EVERY) => {}
                    }
                }
                Ok(entries) => {
                    backoff = Backoff::default();
                    self.count(&entries);
                }
                Err(ReadError::Gone { oldest, .. }) => self.position = oldest,
                Err(error) => {
                    let pause = backoff.next();
                    lock(&self.shown).stalled = Some(chain(&error));
                    tracing::error!(partition = %self.at, error = chain(&error), ?pause, "refused messages cannot be counted");
                    if last_round {
                        return self.save().await;
                    }
                    stop.sleep(pause).await;
                }
            }
        }
    }

    fn take_up(&mut self) {
        let extent = self.journal.extent(self.at);
        match checkpoint::load::<Counted>(&self.file) {
            Ok(Some((position, counted))) if position <= extent.next => {
                (self.position, self.saved, self.counted) = (position, Some(position), counted);
            }
            Ok(None) => self.position = extent.oldest,
            Ok(Some((position, _))) => {
                tracing::error!(%position, end = %extent.next, "the count of refused messages is ahead of the journal; counting anew");
                self.position = extent.oldest;
            }
            Err(broken) => {
                tracing::error!(error = chain(&broken), "counting refused messages anew");
                self.position = extent.oldest;
            }
        }
        self.show();
    }

    fn count(&mut self, entries: &[Entries]) {
        for entry in entries.iter().flat_map(Entries::iter) {
            let Ok(rejected) = Rejected::decode(entry.bytes) else {
                tracing::error!(partition = %self.at, offset = %entry.offset, "not a refused message");
                continue;
            };
            if self.counted.is_first(&rejected) {
                *self.counted.counts.entry((rejected.tenant, rejected.reason)).or_default() += 1;
            }
        }
        if let Some(last) = entries.last() {
            self.position = last.next();
        }
        self.show();
    }

    fn show(&self) {
        let mut shown = lock(&self.shown);
        shown.position = self.position;
        shown.counts.clone_from(&self.counted.counts);
    }

    async fn save(&mut self) {
        if self.saved == Some(self.position) {
            return;
        }
        if let Err(error) = checkpoint::save(&self.file, self.position, &self.counted) {
            return tracing::error!(file = %self.file.display(), error = chain(&error), "counts of refused messages not written");
        }
        self.saved = Some(self.position);
        self.commit().await;
    }

    async fn commit(&self) {
        if let Err(error) = self.journal.commit(CONSUMER, self.at, self.position).await {
            tracing::warn!(partition = %self.at, error = chain(&error), "position not committed");
        }
    }
}

impl Counted {
    /// False for a record that was laid aside before. What the doors refused comes once.
    fn is_first(&mut self, rejected: &Rejected) -> bool {
        let place = LAID_ASIDE_BY
            .iter()
            .any(|consumer| rejected.source.starts_with(consumer))
            .then(|| rejected.source.rsplit_once('@'))
            .flatten();
        let Some((whose, Ok(offset))) = place.map(|(whose, offset)| (whose, offset.parse::<u64>())) else {
            return true;
        };
        let known = self.laid_aside.get(whose).copied().unwrap_or(0);
        if offset < known {
            return false;
        }
        self.laid_aside.insert(whose.to_owned(), offset + 1);
        true
    }
}

fn lock(shown: &Mutex<Status>) -> MutexGuard<'_, Status> {
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}
