use std::path::{Path, PathBuf};

use dunlin_journal::Offset;
use dunlin_model::Timestamp;
use serde::{Deserialize, Serialize};

use crate::frame::{Frame, HEADER_BYTES};

/// A partition's frames are found through an entry for about every this many bytes of them.
const INDEX_STRIDE_BYTES: u64 = 64 << 10;

/// What is known of one file of the log. Its stored form, the `.idx` file, is derived: without it the segment is
/// read through at start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Segment {
    pub(crate) sequence: u64,
    /// Per partition: the next offset when the segment was begun, and after its last frame.
    pub(crate) base: Box<[u64]>,
    pub(crate) next: Box<[u64]>,
    /// Where the durable frames end.
    pub(crate) end: u64,
    /// When its newest batch was appended.
    pub(crate) newest_at: Timestamp,
    index: Box<[Index]>,
}

/// Where a partition's frames are in a segment.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Index {
    entries: Vec<(u64, u64)>,
    bytes_since_entry: u64,
}

impl Segment {
    pub(crate) fn begin(sequence: u64, base: Box<[u64]>, created_at: Timestamp) -> Self {
        let index = base.iter().map(|_| Index::default()).collect();
        Self { sequence, next: base.clone(), base, end: HEADER_BYTES, newest_at: created_at, index }
    }

    /// Takes the next frame of the file in. Its offset must be the partition's next.
    pub(crate) fn note(&mut self, place: usize, position: u64, frame: &Frame) {
        let index = &mut self.index[place];
        if index.entries.is_empty() || index.bytes_since_entry >= INDEX_STRIDE_BYTES {
            index.entries.push((frame.first.0, position));
            index.bytes_since_entry = 0;
        }
        index.bytes_since_entry += frame.stored_bytes();
        self.next[place] = frame.next().0;
        self.newest_at = self.newest_at.max(frame.appended_at);
        self.end = position + frame.stored_bytes();
    }

    /// Takes everything from `end` on out again; `next` is what was next there.
    pub(crate) fn cut(&mut self, end: u64, next: &[u64]) {
        self.end = end;
        self.next.copy_from_slice(next);
        for index in &mut self.index {
            index.entries.retain(|(_, position)| *position < end);
        }
    }

    /// A position at or before the frame that holds `offset`, which this segment must hold.
    pub(crate) fn find(&self, place: usize, offset: Offset) -> u64 {
        let entries = &self.index[place].entries;
        match entries.partition_point(|(first, _)| *first <= offset.0) {
            0 => HEADER_BYTES,
            n => entries[n - 1].1,
        }
    }

    /// Whether what was stored can be what `note` has put together.
    pub(crate) fn is_sound(&self) -> bool {
        let partitions = self.base.len();
        let is_in_order = |index: &Index| {
            index.entries.is_sorted_by(|(one, at), (next, then)| one < next && at < then)
                && index.entries.iter().all(|(_, position)| (HEADER_BYTES..self.end).contains(position))
        };
        self.next.len() == partitions
            && self.index.len() == partitions
            && self.base.iter().zip(&self.next).all(|(base, next)| base <= next)
            && self.index.iter().all(is_in_order)
    }

    pub(crate) fn holds(&self, place: usize, offset: Offset) -> bool {
        (self.base[place]..self.next[place]).contains(&offset.0)
    }
}

pub(crate) fn segment_path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:020}.seg"))
}

pub(crate) fn index_path(dir: &Path, sequence: u64) -> PathBuf {
    dir.join(format!("{sequence:020}.idx"))
}

/// The sequence in a file name with the given extension.
pub(crate) fn sequence_of(path: &Path, extension: &str) -> Option<u64> {
    (path.extension()? == extension).then(|| path.file_stem()?.to_str()?.parse().ok()).flatten()
}
