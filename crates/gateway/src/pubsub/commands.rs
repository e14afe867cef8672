//! From the topic of commands into the log of sessions, which knows what is under way to each device.

use dunlin_broker::{Change, Command, partition_of};
use dunlin_journal::{AppendError, Entries, Offset, Partition, ReadError, Topic};
use dunlin_model::{Clock, Command as Record, Timestamp, avro::Datum, chain};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{PubSub, READ_BYTES_MAX};

/// Brings what there is for the tenants of one partition of the log. One gateway does, and if two do for a moment, the log
/// takes each command once.
#[derive(Debug, Default)]
pub(super) struct Bringer {
    /// By partition of the topic of commands: before it, all is in the log of sessions.
    brought: Vec<u64>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum NotBrought {
    #[error("read the commands")]
    Read(#[from] ReadError),
    #[error("write down which commands devices are sent")]
    Append(#[from] AppendError),
}

impl Bringer {
    /// All that is there now.
    pub(super) async fn bring(
        &mut self,
        pubsub: &PubSub,
        into: Partition,
        clock: &Clock,
    ) -> Result<(), NotBrought> {
        let journal = &*pubsub.journal;
        self.brought.resize(journal.partitions(Topic::Commands).into(), 0);
        for (brought, index) in self.brought.iter_mut().zip(0..) {
            let from = Partition::new(Topic::Commands, index);
            let extent = journal.extent(from);
            let known = journal.position(&consumer(into), from).map_or(0, |position| position.0);
            let known = known.max(pubsub.broker.next_command(into.index, index)).max(extent.oldest.0);
            *brought = known.max(*brought).min(extent.next.0);
            while *brought < journal.extent(from).next.0 {
                let stretch = journal.read(from, Offset(*brought), READ_BYTES_MAX).await?;
                let Some(next) = stretch.last().map(Entries::next) else { break };
                let now = clock.now();
                let records = stretch.iter().flat_map(Entries::iter);
                let found = records.filter_map(|entry| Found::read(from, entry.offset, entry.bytes));
                let found: Vec<Found> = found.filter(|found| found.is_for(pubsub, into, now)).collect();
                if !found.is_empty() {
                    let changes: Vec<_> = found.iter().map(Found::change).collect();
                    pubsub.append(into, &changes).await?;
                }
                *brought = next.0;
                // What is not remembered is found again, and passed over.
                if let Err(error) = journal.commit(&consumer(into), from, next).await {
                    tracing::warn!(error = chain(&error), "the journal keeps commands that it need not");
                }
            }
        }
        Ok(())
    }
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
