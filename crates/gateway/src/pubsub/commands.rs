//! From the topic of commands into the log of sessions, which knows what is under way to each device.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use dunlin_broker::{Change, Command, partition_of};
use dunlin_journal::{AppendError, Entries, Offset, Partition, ReadError, Topic};
use dunlin_model::{Clock, Command as Record, Timestamp, avro::Datum, chain};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::task::JoinSet;

use super::{PAUSE_AFTER_ERROR, PubSub, READ_BYTES_MAX};

/// Brings what there is for the tenants of one partition of the log. One gateway does, and if two do for a moment, the log
/// takes each command once. It does so beside what follows the log, which must go on whatever the journal is slow with.
#[derive(Debug)]
pub(super) struct Bringer {
    into: Partition,
    /// By partition of the topic of commands: before it, all is in the log of sessions.
    brought: Arc<[AtomicU64]>,
    at_work: JoinSet<()>,
}

#[derive(Debug, thiserror::Error)]
enum NotBrought {
    #[error("read the commands")]
    Read(#[from] ReadError),
    #[error("write down which commands devices are sent")]
    Append(#[from] AppendError),
}

impl Bringer {
    pub(super) fn new(pubsub: &PubSub, into: Partition) -> Self {
        let brought = (0..pubsub.journal.partitions(Topic::Commands)).map(|_| AtomicU64::new(0)).collect();
        Self { into, brought, at_work: JoinSet::new() }
    }

    /// Sees to it that all is brought that is there now.
    pub(super) fn bring(&mut self, pubsub: &Arc<PubSub>, clock: &Clock) {
        while self.at_work.try_join_next().is_some() {}
        if !self.at_work.is_empty() {
            return;
        }
        let (into, clock) = (self.into, clock.clone());
        let mut work = Vec::new();
        for (index, brought) in (0..).zip(&*self.brought) {
            let from = Partition::new(Topic::Commands, index);
            let extent = pubsub.journal.extent(from);
            let known = pubsub.journal.position(&consumer(into), from).map_or(0, |position| position.0);
            let known = known.max(pubsub.broker.next_command(into.index, index)).max(brought.load(Relaxed));
            let begin = known.clamp(extent.oldest.0, extent.next.0);
            if begin < extent.next.0 {
                work.push((from, begin));
            }
        }
        if work.is_empty() {
            return;
        }
        let (pubsub, brought) = (pubsub.clone(), self.brought.clone());
        self.at_work.spawn(async move {
            for (from, begin) in work {
                let done = &brought[usize::from(from.index)];
                if let Err(error) = bring(&pubsub, into, &clock, from, begin, done).await {
                    tracing::error!(error = chain(&error), "commands wait");
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                }
            }
        });
    }
}

async fn bring(
    pubsub: &PubSub,
    into: Partition,
    clock: &Clock,
    from: Partition,
    begin: u64,
    brought: &AtomicU64,
) -> Result<(), NotBrought> {
    let stretch = pubsub.journal.read(from, Offset(begin), READ_BYTES_MAX).await?;
    let Some(next) = stretch.last().map(Entries::next) else { return Ok(()) };
    let now = clock.now();
    let records = stretch.iter().flat_map(Entries::iter);
    let found = records.filter_map(|entry| Found::read(from, entry.offset, entry.bytes));
    let found: Vec<Found> = found.filter(|found| found.is_for(pubsub, into, now)).collect();
    if !found.is_empty() {
        let changes: Vec<_> = found.iter().map(Found::change).collect();
        pubsub.append(into, &changes).await?;
    }
    brought.store(next.0, Relaxed);
    pubsub.appended();
    // What is not remembered is found again, and passed over.
    if let Err(error) = pubsub.journal.commit(&consumer(into), from, next).await {
        tracing::warn!(error = chain(&error), "the journal keeps commands that it need not");
    }
    pubsub.appended(); // There may be more by now.
    Ok(())
}

/// As whom the journal keeps what is not brought yet.
fn consumer(into: Partition) -> String {
    format!("commands.{}", into.index)
}

/// A command where it was found, and what its device is sent.
struct Found {
    partition: u16,
    offset: u64,
    record: Record,
    payload: Vec<u8>,
}

#[derive(Serialize)]
struct Payload<'c> {
    method: &'c str,
    params: &'c RawValue,
}

impl Found {
    fn read(at: Partition, offset: Offset, bytes: &[u8]) -> Option<Self> {
        let record = Record::decode(bytes).map_err(|error| chain(&error));
        let encoded = record.and_then(|record| {
            let params: &RawValue = serde_json::from_str(&record.params).map_err(|error| chain(&error))?;
            let payload = Payload { method: &record.method, params };
            let payload = serde_json::to_vec(&payload).map_err(|error| chain(&error))?;
            Ok(Self { partition: at.index, offset: offset.0, record, payload })
        });
        encoded
            .inspect_err(|error| tracing::error!(error, partition = %at, %offset, "a command was skipped"))
            .ok()
    }

    fn is_for(&self, pubsub: &PubSub, into: Partition, now: Timestamp) -> bool {
        let partitions = pubsub.journal.partitions(Topic::Sessions);
        partition_of(&self.record.tenant, partitions) == into.index && now < self.record.expires_at
    }

    fn change(&self) -> Change<'_> {
        Change::Commanded(Command {
            partition: self.partition,
            offset: self.offset,
            tenant: (*self.record.tenant).into(),
            device: (*self.record.device).into(),
            id: (*self.record.id).into(),
            payload: &self.payload,
            expires_at: self.record.expires_at,
        })
    }
}
