//! The newest records of all partitions, in memory. One consumer follows every partition from the end that the start
//! found, whoever writes there, and consumers of the journal read from here as long as they keep up.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use dunlin_journal::{Entries, Offset, Topic};
use dunlin_model::Timestamp;
use rdkafka::{
    Message, Offset as KafkaOffset, TopicPartitionList,
    consumer::Consumer as _,
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    message::BorrowedMessage,
};
use tokio::sync::watch;

use crate::{
    client::{Consumer, held, words},
    metrics::Metrics,
    places::Places,
};

const POLL: Duration = Duration::from_millis(100);
/// Records that came together are shown together, so many at most.
const ROUND_RECORDS_MAX: usize = 10_000;
/// A chunk is closed when it is larger: what a read may have to walk through.
const CHUNK_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Tail {
    places: Arc<Places>,
    /// Whether a place is followed.
    follows: Vec<bool>,
    newest: Vec<RwLock<Newest>>,
    /// Whose chunk came when, to forget the oldest first.
    order: Mutex<VecDeque<usize>>,
    bytes: AtomicUsize,
    bytes_max: usize,
    /// When the newest record was taken, by the log's clock.
    newest_millis: AtomicI64,
    progress: watch::Sender<u64>,
    metrics: Arc<Metrics>,
}

/// From `from` up to but not including `end`, without a gap.
#[derive(Debug)]
struct Newest {
    from: u64,
    end: u64,
    chunks: VecDeque<Chunk>,
}

#[derive(Debug)]
struct Chunk {
    first: Offset,
    records: u32,
    appended_at: Timestamp,
    bytes: Bytes,
}

/// What the tail says of some offset.
#[derive(Debug)]
pub(crate) enum Looked {
    Found(Vec<Entries>),
    /// It comes, as it is known to be durable.
    Soon,
    Older,
}

impl Tail {
    pub(crate) fn new(
        places: Arc<Places>,
        topics: &[Topic],
        bytes_max: usize,
        progress: watch::Sender<u64>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let newest = places.row().iter().map(|place| {
            let next = place.extent().next.0;
            RwLock::new(Newest { from: next, end: next, chunks: VecDeque::new() })
        });
        let newest = newest.collect();
        let follows = places.row().iter().map(|place| topics.contains(&place.at.topic)).collect();
        Self {
            follows,
            newest,
            order: Mutex::default(),
            bytes: AtomicUsize::new(0),
            bytes_max,
            newest_millis: AtomicI64::new(i64::MIN),
            places,
            progress,
            metrics,
        }
    }

    pub(crate) fn follows(&self, place: usize) -> bool {
        self.follows[place]
    }

    pub(crate) fn newest_millis(&self) -> Option<i64> {
        let millis = self.newest_millis.load(Ordering::Acquire);
        (millis != i64::MIN).then_some(millis)
    }

    pub(crate) fn look(&self, place: usize, from: Offset, bytes_max: usize) -> Looked {
        let newest = self.read(place);
        if from.0 < newest.from || !self.follows[place] {
            return Looked::Older;
        }
        if from.0 >= newest.end {
            return Looked::Soon;
        }
        let start = newest.chunks.partition_point(|chunk| chunk.next() <= from.0);
        let (mut found, mut bytes, mut from) = (Vec::new(), 0, from);
        for chunk in newest.chunks.range(start..) {
            if bytes >= bytes_max && !found.is_empty() {
                break;
            }
            let entries = chunk.cut(from, bytes_max - bytes);
            if entries.is_empty() {
                break;
            }
            bytes += entries.size_bytes();
            from = entries.next();
            let is_cut = from.0 < chunk.next();
            found.push(entries);
            if is_cut {
                break;
            }
        }
        Looked::Found(found)
    }

    /// The thread that follows, until it is told to stop.
    pub(crate) fn run(&self, consumer: &Consumer, stop: &AtomicBool) {
        let mut wanted = true;
        let mut round: Vec<Builder> = self.newest.iter().map(|_| Builder::default()).collect();
        while !stop.load(Ordering::Acquire) {
            if wanted {
                match self.take_up(consumer) {
                    Ok(()) => wanted = false,
                    Err(error) => {
                        tracing::warn!(
                            error = words(&error, consumer.context()),
                            "the journal's end is not followed"
                        );
                        thread::sleep(POLL);
                        continue;
                    }
                }
            }
            let mut polled = consumer.poll(POLL);
            let mut records = 0;
            while let Some(message) = polled {
                match message {
                    Ok(message) => self.gather(&mut round, &message),
                    Err(error) if is_lost(&error) => {
                        tracing::error!(%error, "the journal's end is no longer where it was");
                        wanted = true;
                        break;
                    }
                    Err(error) => tracing::debug!(%error, "following the journal's end"),
                }
                records += 1;
                if records >= ROUND_RECORDS_MAX {
                    break;
                }
                polled = consumer.poll(Duration::ZERO);
            }
            if records > 0 {
                self.metrics.fetched_records.inc_by(records as u64);
                for (place, builder) in round.iter_mut().enumerate() {
                    self.push(place, builder.build());
                }
                self.progress.send_modify(|n| *n += 1);
            }
        }
    }

    /// From where each partition was followed, or from where it can be.
    fn take_up(&self, consumer: &Consumer) -> KafkaResult<()> {
        let mut assignment = TopicPartitionList::new();
        for (n, place) in self.places.row().iter().enumerate().filter(|(n, _)| self.follows[*n]) {
            let (low, high) = consumer.fetch_watermarks(&place.topic, place.partition(), POLL * 50)?;
            let (low, high) = (low.max(0) as u64, high.max(0) as u64);
            let end = self.read(n).end;
            if high < end {
                tracing::error!(
                    partition = %place.at, known = end, end = high,
                    "Kafka's log ends before what it had acknowledged: records are lost"
                );
            }
            let from = end.clamp(low, high);
            place.starts_at(Offset(low));
            if from != end {
                self.start_anew(n, from);
            }
            assignment.add_partition_offset(
                &place.topic,
                place.partition(),
                KafkaOffset::Offset(from as i64),
            )?;
        }
        consumer.assign(&assignment)
    }

    fn gather(&self, round: &mut [Builder], message: &BorrowedMessage<'_>) {
        let Some(place) = self.places.find_named(message.topic(), message.partition()) else { return };
        let Ok(offset) = u64::try_from(message.offset()) else { return };
        let builder = &mut round[place];
        if builder.is_full() || (builder.records > 0 && builder.next() != offset) {
            self.push(place, builder.build());
        }
        builder.push(offset, message);
        self.newest_millis.fetch_max(message.timestamp().to_millis().unwrap_or(i64::MIN), Ordering::AcqRel);
    }

    fn push(&self, place: usize, chunk: Option<Chunk>) {
        let Some(chunk) = chunk else { return };
        let mut newest = self.write(place);
        if chunk.first.0 != newest.end {
            // Offsets that hold no record (see `cold`), or records that came twice.
            if chunk.first.0 < newest.end {
                return;
            }
            self.forget(&mut newest);
            newest.from = chunk.first.0;
        }
        newest.end = chunk.next();
        let bytes = chunk.bytes.len();
        newest.chunks.push_back(chunk);
        self.places.row()[place].reaches(Offset(newest.end));
        drop(newest);
        let mut order = held(&self.order);
        order.push_back(place);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        while self.bytes.load(Ordering::Acquire) > self.bytes_max
            && let Some(oldest) = order.pop_front()
        {
            let mut newest = self.write(oldest);
            // What was started anew has left its marks in the order.
            if let Some(chunk) = newest.chunks.pop_front() {
                newest.from = chunk.next();
                self.bytes.fetch_sub(chunk.bytes.len(), Ordering::AcqRel);
            }
        }
    }

    fn start_anew(&self, place: usize, from: u64) {
        let mut newest = self.write(place);
        self.forget(&mut newest);
        (newest.from, newest.end) = (from, from);
    }

    fn forget(&self, newest: &mut Newest) {
        let bytes = newest.chunks.drain(..).map(|chunk| chunk.bytes.len()).sum();
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }

    fn read(&self, place: usize) -> RwLockReadGuard<'_, Newest> {
        self.newest[place].read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self, place: usize) -> RwLockWriteGuard<'_, Newest> {
        self.newest[place].write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Whether a consumer has nothing to go on from.
pub(crate) fn is_lost(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset)
    )
}

impl Chunk {
    fn next(&self) -> u64 {
        self.first.0 + u64::from(self.records)
    }

    /// About `bytes_max` bytes from `from` on, at least one record if there is any.
    fn cut(&self, from: Offset, bytes_max: usize) -> Entries {
        if from <= self.first && self.bytes.len() <= bytes_max {
            return Entries::new(self.first, self.records, self.appended_at, self.bytes.clone(), self.first);
        }
        let (mut start, mut end, mut records) = (0, 0, 0);
        for n in 0..self.records {
            let Some(len) = self.bytes[end..].first_chunk::<4>() else { break };
            let record_end = end + 4 + u32::from_le_bytes(*len) as usize;
            if self.first.0 + u64::from(n) < from.0 {
                start = record_end;
            } else if records > 0 && record_end - start > bytes_max {
                break;
            } else {
                records += 1;
            }
            end = record_end;
        }
        let first = from.max(self.first);
        Entries::new(first, records, self.appended_at, self.bytes.slice(start..end), first)
    }
}

/// Messages that follow one another, on their way into a chunk.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    first: u64,
    records: u32,
    appended_at_millis: i64,
    bytes: Vec<u8>,
}

impl Builder {
    pub(crate) fn push(&mut self, offset: u64, message: &BorrowedMessage<'_>) {
        if self.records == 0 {
            self.first = offset;
            self.appended_at_millis = message.timestamp().to_millis().unwrap_or(0);
        }
        self.push_bytes(message.payload().unwrap_or_default());
    }

    /// An offset that holds no record of anybody's is read as an empty one.
    pub(crate) fn push_nothing(&mut self, offset: u64) {
        if self.records == 0 {
            self.first = offset;
        }
        self.push_bytes(&[]);
    }

    fn push_bytes(&mut self, record: &[u8]) {
        self.bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(record);
        self.records += 1;
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    fn next(&self) -> u64 {
        self.first + u64::from(self.records)
    }

    fn is_full(&self) -> bool {
        self.bytes.len() >= CHUNK_BYTES
    }

    fn build(&mut self) -> Option<Chunk> {
        if self.records == 0 {
            return None;
        }
        let built = std::mem::take(self);
        Some(Chunk {
            first: Offset(built.first),
            records: built.records,
            appended_at: Timestamp::from_micros(built.appended_at_millis.saturating_mul(1000)),
            bytes: built.bytes.into(),
        })
    }

    pub(crate) fn into_entries(mut self) -> Option<Entries> {
        self.build().map(|c| Entries::new(c.first, c.records, c.appended_at, c.bytes, c.first))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(first: u64, records: &[&str]) -> Chunk {
        let mut builder = Builder { first, ..Builder::default() };
        records.iter().for_each(|record| builder.push_bytes(record.as_bytes()));
        builder.build().unwrap()
    }

    fn texts(entries: &Entries) -> Vec<(u64, &str)> {
        entries.iter().map(|e| (e.offset.0, str::from_utf8(e.bytes).unwrap())).collect()
    }

    #[test]
    fn a_chunk_is_cut_at_records() {
        let chunk = chunk(7, &["a", "bb", "", "dddd"]);
        assert_eq!(texts(&chunk.cut(Offset(7), 1000)).len(), 4);
        assert_eq!(texts(&chunk.cut(Offset(8), 1000)), [(8, "bb"), (9, ""), (10, "dddd")]);
        assert_eq!(texts(&chunk.cut(Offset(7), 11)), [(7, "a"), (8, "bb")]);
        assert_eq!(texts(&chunk.cut(Offset(10), 0)), [(10, "dddd")]);
        assert!(chunk.cut(Offset(11), 100).is_empty());
    }
}
