//! Records that the tail does not have in memory. A reader is a client of its own that stands in one partition and goes
//! on where it was, so that somebody who catches up is served without seeking. There are so many of them and no more; the
//! one that was not used for longest is sent elsewhere.
//!
//! Offsets are to be without gaps, and Kafka's are not when somebody else writes transactions into a topic: their marks
//! take offsets and are never shown. Such an offset is read as an empty record, which no schema fits, so that it is
//! accounted for by whoever counts.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use dunlin_journal::{Entries, Offset, ReadError};
use rdkafka::{
    ClientConfig, Message, Offset as KafkaOffset, TopicPartitionList, consumer::Consumer as _,
    error::KafkaResult,
};
use tokio::sync::Semaphore;

use crate::{
    client::{self, Consumer, held, words},
    metrics::Metrics,
    places::Places,
    tail::{Builder, is_lost},
};

const POLL: Duration = Duration::from_millis(100);
const IDLE: Duration = Duration::from_secs(30);
/// Of one read.
const NOTHINGS_MAX: u64 = 10_000;

#[derive(Debug)]
pub(crate) struct Cold {
    places: Arc<Places>,
    client: ClientConfig,
    group: String,
    readers_max: usize,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Reader>>,
    timeout: Duration,
    metrics: Arc<Metrics>,
}

struct Reader {
    consumer: Consumer,
    place: usize,
    next: u64,
    used: Instant,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("place", &self.place).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Cold {
    pub(crate) fn new(
        places: Arc<Places>,
        client: ClientConfig,
        group: String,
        readers_max: usize,
        timeout: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(readers_max));
        Self { places, client, group, readers_max, permits, idle: Mutex::default(), timeout, metrics }
    }

    pub(crate) async fn read(
        self: Arc<Self>,
        place: usize,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<Entries>, ReadError> {
        let unreachable = |reason: String| ReadError::Unreachable { reason };
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|error| unreachable(error.to_string()))?;
        let read = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            self.read_now(place, from, bytes_max)
        });
        read.await.unwrap_or_else(|error| Err(unreachable(error.to_string())))
    }

    fn read_now(&self, place: usize, from: Offset, bytes_max: usize) -> Result<Vec<Entries>, ReadError> {
        self.metrics.cold_reads.inc();
        let mut reader =
            self.reader(place, from.0).map_err(|e| ReadError::Unreachable { reason: e.to_string() })?;
        let entries = self.fill(&mut reader, bytes_max)?;
        reader.used = Instant::now();
        held(&self.idle).push(reader);
        Ok(entries.into_iter().collect())
    }

    /// One that stands there, a new one, or the one that was idle for longest.
    fn reader(&self, place: usize, from: u64) -> KafkaResult<Reader> {
        let mut idle = held(&self.idle);
        let stands = |reader: &Reader| reader.place == place && reader.next == from;
        if let Some(n) = idle.iter().position(stands) {
            return Ok(idle.swap_remove(n));
        }
        let oldest = (0..idle.len()).min_by_key(|n| idle[*n].used);
        let out = self.readers_max - self.permits.available_permits();
        let reused = oldest.filter(|_| idle.len() + out > self.readers_max).map(|n| idle.swap_remove(n));
        drop(idle);
        let consumer = match reused {
            Some(reader) => reader.consumer,
            None => client::consumer(&self.client, &self.group)?,
        };
        let at = &self.places.row()[place];
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&at.topic, at.partition(), KafkaOffset::Offset(from as i64))?;
        consumer.assign(&assignment)?;
        Ok(Reader { consumer, place, next: from, used: Instant::now() })
    }

    fn fill(&self, reader: &mut Reader, bytes_max: usize) -> Result<Option<Entries>, ReadError> {
        let place = &self.places.row()[reader.place];
        let until = place.extent().next.0;
        let deadline = Instant::now() + self.timeout;
        let mut builder = Builder::default();
        let mut complaint = None;
        while reader.next < until && (builder.size_bytes() < bytes_max || builder.size_bytes() == 0) {
            let message = match reader.consumer.poll(POLL) {
                Some(Ok(message)) => message,
                Some(Err(error)) if is_lost(&error) => return Err(self.lost(reader)),
                Some(Err(error)) => {
                    complaint = Some(words(&error, reader.consumer.context()));
                    continue;
                }
                // What was found is enough for now.
                None if builder.size_bytes() > 0 => break,
                None if Instant::now() >= deadline => {
                    if self.is_nothing(reader, until) {
                        push_nothings(&mut builder, &mut reader.next, until);
                        break;
                    }
                    let reason = complaint.unwrap_or_else(|| format!("no answer about {}", place.at));
                    return Err(ReadError::Unreachable { reason });
                }
                None => continue,
            };
            let offset = u64::try_from(message.offset()).unwrap_or(0);
            if offset < reader.next {
                continue;
            }
            if offset > reader.next {
                let gone = self.lost(reader);
                if matches!(gone, ReadError::Gone { oldest, .. } if oldest.0 > reader.next) {
                    return Err(gone);
                }
                if offset - reader.next > NOTHINGS_MAX {
                    push_nothings(&mut builder, &mut reader.next, offset);
                    // The message that was seen is to be seen again.
                    reader.place = usize::MAX;
                    return Ok(builder.into_entries());
                }
                push_nothings(&mut builder, &mut reader.next, offset);
            }
            builder.push(offset, &message);
            reader.next = offset + 1;
        }
        Ok(builder.into_entries())
    }

    /// Whether the log goes on to `until` and yet shows nothing.
    fn is_nothing(&self, reader: &Reader, until: u64) -> bool {
        let place = &self.places.row()[reader.place];
        let marks = reader.consumer.fetch_watermarks(&place.topic, place.partition(), self.timeout);
        marks.is_ok_and(|(low, high)| low as u64 <= reader.next && high as u64 >= until)
    }

    /// What has become of the place where a reader stands.
    fn lost(&self, reader: &Reader) -> ReadError {
        let place = &self.places.row()[reader.place];
        match reader.consumer.fetch_watermarks(&place.topic, place.partition(), self.timeout) {
            Ok((low, _)) => {
                let oldest = Offset(low.max(0) as u64);
                place.starts_at(oldest);
                ReadError::Gone { partition: place.at, oldest }
            }
            Err(error) => ReadError::Unreachable { reason: words(&error, reader.consumer.context()) },
        }
    }

    /// Lets go of readers that nobody has used for a while.
    pub(crate) fn forget_idle(&self) {
        let mut idle = held(&self.idle);
        let (kept, gone): (Vec<_>, Vec<_>) =
            idle.drain(..).partition(|reader| reader.used.elapsed() < IDLE && reader.place != usize::MAX);
        *idle = kept;
        drop(idle);
        drop(gone); // Takes a moment each.
    }
}

fn push_nothings(builder: &mut Builder, next: &mut u64, until: u64) {
    for offset in *next..until.min(*next + NOTHINGS_MAX) {
        builder.push_nothing(offset);
    }
    *next = until.min(*next + NOTHINGS_MAX);
}
