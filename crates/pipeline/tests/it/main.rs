//! The consumers over a memory journal and a memory store.

mod breaking; // a journal on which consumers break
mod checkpoints; // failing, incremental, and for another number of partitions
mod copies;
mod groups; // rules over groups of devices
mod labelled; // the shipped rule over a real machine's failures
mod members; // processes that share partitions
mod rejected;
mod rules;
mod store;

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use dunlin_journal::{Batch, Entries, Journal, MemoryJournal, Offset, Partition, Topic};
use dunlin_model::{
    AlertTransition, Clock, MessageId, Reading, Readings, Record, TimeSource, Timestamp, ValueRef,
    avro::{self, Datum},
};

use dunlin_pipeline::{CheckpointStore, Inflow};

const TELEMETRY: Partition = Partition { topic: Topic::Telemetry, index: 0 };
const ALERTS: Partition = Partition { topic: Topic::Alerts, index: 0 };
const REJECTED: Partition = Partition { topic: Topic::Rejected, index: 0 };

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(seconds * 1_000_000)
}

/// Stands still: nothing closes because a test is slow.
fn still() -> Clock {
    Clock::new(|| at(0))
}

fn reading(device: &str, seconds: i64, value: f64) -> Record<'_> {
    Record {
        tenant: "default",
        device,
        device_type: "default",
        message_id: MessageId::None,
        received_at: at(seconds),
        device_time: Some(at(seconds)),
        time: at(seconds),
        time_source: TimeSource::Device,
        readings: Readings::from_iter([Reading { metric: "temperature", value: ValueRef::F64(value) }]),
    }
}

async fn append(journal: &MemoryJournal, records: &[Record<'_>]) {
    let mut batch = Batch::default();
    for record in records {
        batch.push_with(|out| avro::encode(record, out));
    }
    journal.append(TELEMETRY, batch).await.unwrap();
}

async fn append_bytes(journal: &MemoryJournal, to: Partition, bytes: &[u8]) {
    let mut batch = Batch::default();
    batch.push(bytes);
    journal.append(to, batch).await.unwrap();
}

async fn all<T: Datum>(journal: &MemoryJournal, of: Partition) -> Vec<T> {
    let (mut from, mut all) = (Offset::ZERO, Vec::new());
    while from < journal.extent(of).next {
        let entries = journal.read(of, from, 1 << 20).await.unwrap();
        all.extend(entries.iter().flat_map(Entries::iter).map(|e| T::decode(e.bytes).unwrap()));
        from = entries.last().unwrap().next();
    }
    all
}

async fn alerts(journal: &MemoryJournal) -> Vec<AlertTransition> {
    all(journal, ALERTS).await
}

/// Waits until `is_so`; there is no signal to await, so it looks again, and gives up loudly.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let patience = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), patience).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// What is on its way into the journal: nothing, unless a test says so.
#[derive(Debug, Default)]
struct UnderWay(Mutex<Option<Timestamp>>);

impl Inflow for UnderWay {
    fn oldest_under_way(&self) -> Option<Timestamp> {
        *self.0.lock().unwrap()
    }
}

fn nothing() -> Arc<UnderWay> {
    Arc::default()
}

/// Where a platform with this data directory keeps its checkpoints.
fn checkpoints(data: &Path) -> CheckpointStore {
    CheckpointStore::local(&data.join("pipeline")).unwrap()
}

fn journal() -> Arc<MemoryJournal> {
    Arc::new(MemoryJournal::new(1))
}
