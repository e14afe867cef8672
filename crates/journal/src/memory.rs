//! A journal in memory: the double that tests of the later stages run on. Nothing is durable, nothing is trimmed by
//! itself, and `close` is final for this value only (see `reopened`).

use std::{
    collections::HashMap,
    io,
    sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use dunlin_model::{Clock, Timestamp, limits::BATCH_BYTES_MAX};
use futures::future::{self, BoxFuture, FutureExt};
use tokio::sync::watch;

use crate::{
    AppendError, Appended, Batch, Entries, Extent, Health, Journal, Offset, Partition, ReadError, Topic,
};

/// Keeps every batch it was given, in memory.
#[derive(Debug)]
pub struct MemoryJournal {
    partitions_telemetry: u16,
    clock: Clock,
    log: Arc<RwLock<Log>>,
    progress: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Log {
    partitions: HashMap<Partition, Kept>,
    positions: HashMap<(String, Partition), Offset>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Kept {
    oldest: Offset,
    next: Offset,
    batches: Vec<Stored>,
}

#[derive(Debug)]
struct Stored {
    first: Offset,
    records: u32,
    appended_at: Timestamp,
    bytes: Bytes,
}

impl MemoryJournal {
    /// `partitions_telemetry` (at least one) is for telemetry; the other topics have one partition.
    /// Its clock stands at 1970 (`with_clock` for another).
    pub fn new(partitions_telemetry: u16) -> Self {
        Self::with_clock(partitions_telemetry, Clock::new(|| Timestamp::from_micros(0)))
    }

    pub fn with_clock(partitions_telemetry: u16, clock: Clock) -> Self {
        Self {
            partitions_telemetry: partitions_telemetry.max(1),
            clock,
            log: Arc::default(),
            progress: watch::Sender::new(0),
        }
    }

    /// What a restart would find: open again, with the same records and positions. The old value shares them.
    pub fn reopened(&self) -> Self {
        self.write().closed = false;
        Self {
            partitions_telemetry: self.partitions_telemetry,
            clock: self.clock.clone(),
            log: Arc::clone(&self.log),
            progress: watch::Sender::new(0),
        }
    }

    /// Takes the batches that end at or before `before` away, as retention would.
    pub fn trim(&self, at: Partition, before: Offset) {
        let mut log = self.write();
        let Some(kept) = log.partitions.get_mut(&at) else { return };
        kept.batches.retain(|b| b.first.after(u64::from(b.records)) > before);
        kept.oldest = kept.batches.first().map_or(kept.next, |b| b.first);
    }

    fn exists(&self, at: Partition) -> bool {
        at.index < self.partitions(at.topic)
    }

    fn append_now(&self, at: Partition, batch: Batch) -> Result<Appended, AppendError> {
        if !self.exists(at) {
            return Err(AppendError::NoPartition(at));
        }
        if batch.size_bytes() > BATCH_BYTES_MAX {
            return Err(AppendError::TooLarge { bytes: batch.size_bytes(), max: BATCH_BYTES_MAX });
        }
        let mut log = self.write();
        if log.closed {
            return Err(AppendError::Closed);
        }
        let kept = log.partitions.entry(at).or_default();
        let (first, records) = (kept.next, batch.len());
        if records > 0 {
            kept.next = first.after(u64::from(records));
            let bytes = batch.into_bytes();
            kept.batches.push(Stored { first, records, appended_at: self.clock.now(), bytes });
            drop(log);
            self.progress.send_modify(|n| *n += 1);
        }
        Ok(Appended { first, records })
    }

    fn read_now(&self, at: Partition, from: Offset, bytes_max: usize) -> Result<Vec<Entries>, ReadError> {
        if !self.exists(at) {
            return Err(ReadError::NoPartition(at));
        }
        let log = self.read();
        let none = Kept::default();
        let kept = log.partitions.get(&at).unwrap_or(&none);
        if from < kept.oldest {
            return Err(ReadError::Gone { partition: at, oldest: kept.oldest });
        }
        if from > kept.next {
            return Err(ReadError::BeyondEnd { partition: at, asked: from, next: kept.next });
        }
        let start = kept.batches.partition_point(|b| b.first.after(u64::from(b.records)) <= from);
        let mut bytes = 0;
        Ok(kept.batches[start..]
            .iter()
            .take_while(|b| {
                let wanted = bytes == 0 || bytes + b.bytes.len() <= bytes_max;
                bytes += b.bytes.len();
                wanted
            })
            .map(|b| Entries::new(b.first, b.records, b.appended_at, b.bytes.clone(), from))
            .collect())
    }

    fn read(&self) -> RwLockReadGuard<'_, Log> {
        self.log.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Log> {
        self.log.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Journal for MemoryJournal {
    fn partitions(&self, topic: Topic) -> u16 {
        match topic {
            Topic::Telemetry => self.partitions_telemetry,
            _ => 1,
        }
    }

    fn append(&self, at: Partition, batch: Batch) -> BoxFuture<'static, Result<Appended, AppendError>> {
        future::ready(self.append_now(at, batch)).boxed()
    }

    fn read(
        &self,
        at: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Entries>, ReadError>> {
        future::ready(self.read_now(at, from, bytes_max)).boxed()
    }

    fn extent(&self, at: Partition) -> Extent {
        let log = self.read();
        log.partitions.get(&at).map_or(Extent { oldest: Offset::ZERO, next: Offset::ZERO }, |k| Extent {
            oldest: k.oldest,
            next: k.next,
        })
    }

    fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    fn position(&self, consumer: &str, at: Partition) -> Option<Offset> {
        self.read().positions.get(&(consumer.to_owned(), at)).copied()
    }

    fn commit(&self, consumer: &str, at: Partition, position: Offset) -> BoxFuture<'static, io::Result<()>> {
        self.write().positions.insert((consumer.to_owned(), at), position);
        future::ready(Ok(())).boxed()
    }

    fn health(&self) -> Health {
        if self.read().closed { Health::Closed } else { Health::Writable }
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.write().closed = true;
        future::ready(()).boxed()
    }
}
