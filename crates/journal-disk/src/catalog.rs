use std::collections::VecDeque;

use bytes::Bytes;
use dunlin_journal::{Entries, Extent, Offset};
use dunlin_model::Timestamp;

use crate::{frame::Frame, segment::Segment};

/// What can be read: every durable frame, by segment, and the newest of them in memory.
#[derive(Debug)]
pub(crate) struct Catalog {
    segments: VecDeque<Segment>,
    /// What a partition's extent is while there is no segment at all.
    partitions: usize,
    tail: Tail,
}

/// A frame where it is in its segment.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) place: usize,
    pub(crate) position: u64,
    pub(crate) frame: Frame,
    pub(crate) payload: Bytes,
}

/// Where to look for an offset.
#[derive(Debug)]
pub(crate) enum Lookup {
    Gone { oldest: Offset },
    BeyondEnd { next: Offset },
    Ready(Vec<Entries>),
    InSegment { sequence: u64, position: u64, end: u64 },
}

impl Catalog {
    pub(crate) fn new(segments: VecDeque<Segment>, partitions: usize, tail_bytes_max: usize) -> Self {
        Self { segments, partitions, tail: Tail::new(partitions, tail_bytes_max) }
    }

    pub(crate) fn extent(&self, place: usize) -> Extent {
        Extent {
            oldest: Offset(self.segments.front().map_or(0, |s| s.base[place])),
            next: Offset(self.segments.back().map_or(0, |s| s.next[place])),
        }
    }

    /// The next offset of every partition.
    pub(crate) fn next(&self) -> Box<[u64]> {
        self.segments.back().map_or_else(|| vec![0; self.partitions].into(), |s| s.next.clone())
    }

    pub(crate) fn lookup(&self, place: usize, from: Offset, bytes_max: usize) -> Lookup {
        let Extent { oldest, next } = self.extent(place);
        if from < oldest {
            return Lookup::Gone { oldest };
        }
        if from > next {
            return Lookup::BeyondEnd { next };
        }
        if from == next {
            return Lookup::Ready(Vec::new());
        }
        if let Some(entries) = self.tail.read(place, from, bytes_max) {
            return Lookup::Ready(entries);
        }
        let at = self.segments.partition_point(|s| s.next[place] <= from.0);
        let segment = &self.segments[at];
        debug_assert!(segment.holds(place, from));
        Lookup::InSegment {
            sequence: segment.sequence,
            position: segment.find(place, from),
            end: segment.end,
        }
    }

    /// Makes a group readable. It lies in the newest segment.
    pub(crate) fn publish(&mut self, group: Vec<Placed>) {
        let Some(newest) = self.segments.back_mut() else { return };
        for placed in group {
            debug_assert_eq!(placed.frame.first.0, newest.next[placed.place], "offsets have no gaps");
            newest.note(placed.place, placed.position, &placed.frame);
            self.tail.push(placed);
        }
    }

    pub(crate) fn begin(&mut self, segment: Segment) {
        self.segments.push_back(segment);
    }

    pub(crate) fn newest_mut(&mut self) -> Option<&mut Segment> {
        self.segments.back_mut()
    }

    pub(crate) fn segments(&self) -> impl DoubleEndedIterator<Item = &Segment> + ExactSizeIterator {
        self.segments.iter()
    }

    /// Forgets the oldest segment if it has that sequence. The newest stays: it knows what the next offsets are.
    pub(crate) fn forget_oldest(&mut self, sequence: u64) -> bool {
        let forgotten = self.segments.len() > 1 && self.segments[0].sequence == sequence;
        if forgotten {
            self.segments.pop_front();
            for place in 0..self.partitions {
                self.tail.forget_before(place, Offset(self.segments[0].base[place]));
            }
        }
        forgotten
    }
}

/// The newest batches, so that consumers near the end read without IO, checksum or copy.
#[derive(Debug)]
struct Tail {
    partitions: Vec<VecDeque<Kept>>,
    /// Partitions in the order their batches came, to evict the oldest first.
    order: VecDeque<usize>,
    bytes: usize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Kept {
    first: Offset,
    records: u32,
    appended_at: Timestamp,
    payload: Bytes,
}

impl Kept {
    /// What keeping it costs beside the payload: the entry, its place in the order, and the allocation.
    const OVERHEAD_BYTES: usize = 128;

    fn next(&self) -> Offset {
        self.first.after(u64::from(self.records))
    }

    fn cost_bytes(&self) -> usize {
        self.payload.len() + Self::OVERHEAD_BYTES
    }
}

impl Tail {
    fn new(partitions: usize, bytes_max: usize) -> Self {
        let partitions = (0..partitions).map(|_| VecDeque::new()).collect();
        Self { partitions, order: VecDeque::new(), bytes: 0, bytes_max }
    }

    fn push(&mut self, placed: Placed) {
        let Placed { place, frame, payload, .. } = placed;
        let kept =
            Kept { first: frame.first, records: frame.records, appended_at: frame.appended_at, payload };
        self.bytes += kept.cost_bytes();
        self.partitions[place].push_back(kept);
        self.order.push_back(place);
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.order.pop_front()
        {
            if let Some(evicted) = self.partitions[oldest].pop_front() {
                self.bytes -= evicted.cost_bytes();
            }
        }
    }

    fn read(&self, place: usize, from: Offset, bytes_max: usize) -> Option<Vec<Entries>> {
        let kept = &self.partitions[place];
        if kept.front()?.first > from {
            return None;
        }
        let mut bytes = 0;
        let wanted = kept.range(kept.partition_point(|k| k.next() <= from)..).take_while(|k| {
            let wanted = bytes == 0 || bytes + k.payload.len() <= bytes_max;
            bytes += k.payload.len();
            wanted
        });
        Some(
            wanted
                .map(|k| Entries::new(k.first, k.records, k.appended_at, k.payload.clone(), from))
                .collect(),
        )
    }

    /// Their places in the order stay, and then evict a younger batch of the same partition too early: harmless.
    fn forget_before(&mut self, place: usize, oldest: Offset) {
        while let Some(kept) = self.partitions[place].pop_front_if(|k| k.next() <= oldest) {
            self.bytes -= kept.cost_bytes();
        }
    }
}
