//! From the topic of commands into the log of sessions, which knows what is under way to each device.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use dunlin_broker::{Change, Command, partition_of};
use dunlin_journal::{AppendError, Entries, Membership, Offset, Partition, ReadError, Topic, Turn};
use dunlin_model::{Clock, Command as Record, Timestamp, avro::Datum, chain};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::task::JoinSet;

use super::{PAUSE_AFTER_ERROR, PubSub, READ_BYTES_MAX, place::END_KNOWN_MAX};

/// As whom the journal knows how far commands are brought. Of several gateways one has each partition.
const CONSUMER: &str = "commands";

/// Brings what stands in the partitions that this gateway has. If two do for a moment, the log takes each command once.
#[derive(Debug)]
pub(super) struct Carrier {
    membership: Membership,
    bringers: BTreeMap<Partition, Bringer>,
}

impl Carrier {
    pub(super) fn join(pubsub: &PubSub) -> Self {
        let membership = pubsub.journal.join(CONSUMER, Topic::Commands);
        Self { membership, bringers: BTreeMap::new() }
    }

    pub(super) async fn turn(&mut self) -> Turn {
        self.membership.next().await
    }

    pub(super) fn take_turn(&mut self, turn: Turn) {
        match turn {
            Turn::Given(at) => _ = self.bringers.insert(at, Bringer::new(at)),
            Turn::Asked(at) => {
                self.bringers.remove(&at);
                self.membership.release(at);
            }
            Turn::Lost(at) => _ = self.bringers.remove(&at),
        }
    }

    /// Sees to it that all is brought that is there now.
    pub(super) fn bring(&mut self, pubsub: &Arc<PubSub>, clock: &Clock) {
        self.bringers.values_mut().for_each(|bringer| bringer.bring(pubsub, clock));
    }
}

/// Works beside what follows the log, which must go on whatever the journal is slow with.
#[derive(Debug)]
struct Bringer {
    at: Partition,
    /// Before it, all is in the log of sessions.
    brought: Arc<AtomicU64>,
    at_work: JoinSet<()>,
    /// Since when the topic ends before what was brought from it.
    short_since: Option<Instant>,
}

#[derive(Debug, thiserror::Error)]
enum NotBrought {
    #[error("read the commands")]
    Read(#[from] ReadError),
    #[error("write down which commands devices are sent")]
    Append(#[from] AppendError),
}

impl Bringer {
    fn new(at: Partition) -> Self {
        Self { at, brought: Arc::default(), at_work: JoinSet::new(), short_since: None }
    }

    fn bring(&mut self, pubsub: &Arc<PubSub>, clock: &Clock) {
        while self.at_work.try_join_next().is_some() {}
        if !self.at_work.is_empty() {
            return;
        }
        let (at, extent) = (self.at, pubsub.journal.extent(self.at));
        let in_log = (0..pubsub.journal.partitions(Topic::Sessions))
            .map(|sessions| pubsub.broker.next_command(sessions, at.index));
        if in_log.clone().any(|next| next > extent.next.0) {
            // A journal that is somewhere else may know its end later.
            let since = *self.short_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= END_KNOWN_MAX {
                self.short_since = None;
                self.brought = Arc::default();
                let (pubsub, begin) = (pubsub.clone(), extent.oldest);
                self.at_work.spawn(async move { begin_again(&pubsub, at, begin).await });
            }
            return;
        }
        self.short_since = None;
        let committed = pubsub.journal.position(CONSUMER, at).filter(|position| *position <= extent.next);
        let known = committed.map_or(0, |position| position.0).max(in_log.min().unwrap_or(0));
        let begin = known.max(self.brought.load(Relaxed)).max(extent.oldest.0);
        if begin < extent.next.0 {
            let (pubsub, clock, brought) = (pubsub.clone(), clock.clone(), self.brought.clone());
            self.at_work.spawn(async move {
                if let Err(error) = bring(&pubsub, &clock, at, Offset(begin), &brought).await {
                    tracing::error!(error = chain(&error), "commands wait");
                    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                }
            });
        }
    }
}

async fn bring(
    pubsub: &PubSub,
    clock: &Clock,
    at: Partition,
    begin: Offset,
    brought: &AtomicU64,
) -> Result<(), NotBrought> {
    let stretch = pubsub.journal.read(at, begin, READ_BYTES_MAX).await?;
    let Some(next) = stretch.last().map(Entries::next) else { return Ok(()) };
    let now = clock.now();
    let partitions = pubsub.journal.partitions(Topic::Sessions);
    let mut found: BTreeMap<u16, Vec<Found>> = BTreeMap::new();
    for entry in stretch.iter().flat_map(Entries::iter) {
        if let Some(command) =
            Found::read(at, entry.offset, entry.bytes).filter(|c| c.record.expires_at > now)
        {
            found.entry(partition_of(&command.record.tenant, partitions)).or_default().push(command);
        }
    }
    for (sessions, commands) in found {
        let mut after = pubsub.broker.next_command(sessions, at.index);
        let changes: Vec<Change<'_>> = commands.iter().map(|c| c.change(at, &mut after, now)).collect();
        pubsub.append(Partition::new(Topic::Sessions, sessions), &changes).await?;
        pubsub.appended();
    }
    brought.store(next.0, Relaxed);
    // What is not remembered is found again, and passed over.
    if let Err(error) = pubsub.journal.commit(CONSUMER, at, next).await {
        tracing::warn!(error = chain(&error), "the journal keeps commands that it need not");
    }
    pubsub.appended(); // There may be more by now.
    Ok(())
}

/// The topic is not the one that commands were brought from, or lost what it had: what it has now is brought.
async fn begin_again(pubsub: &PubSub, at: Partition, begin: Offset) {
    tracing::error!(partition = %at, %begin, "commands end before what was brought; the topic was replaced, or lost what it had");
    let again = Change::CommandsReplaced { partition: at.index, next: begin.0 };
    for sessions in 0..pubsub.journal.partitions(Topic::Sessions) {
        if let Err(error) = pubsub.append(Partition::new(Topic::Sessions, sessions), [&again]).await {
            tracing::error!(error = chain(&error), "commands wait");
        }
    }
    pubsub.appended();
}

/// A command where it was found, and what its device is sent.
struct Found {
    offset: Offset,
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
            Ok(Self { offset, record, payload })
        });
        encoded
            .inspect_err(|error| tracing::error!(error, partition = %at, %offset, "a command was skipped"))
            .ok()
    }

    fn change(&self, at: Partition, after: &mut u64, now: Timestamp) -> Change<'_> {
        let follows = std::mem::replace(after, self.offset.0 + 1);
        Change::Commanded(Command {
            partition: at.index,
            offset: self.offset.0,
            follows,
            tenant: (*self.record.tenant).into(),
            device: (*self.record.device).into(),
            id: (*self.record.id).into(),
            payload: &self.payload,
            at: now,
            expires_at: self.record.expires_at,
        })
    }
}
