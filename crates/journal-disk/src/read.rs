use std::{fs::File, io, path::PathBuf};

use bytes::Bytes;
use dunlin_journal::{Entries, Offset, Partition, ReadError};

use crate::scan::{Found, Scan};

const CHUNK_BYTES_MIN: usize = 64 << 10;
const CHUNK_BYTES_MAX: usize = 1 << 20;

/// Reading a partition's frames from a segment. Every payload that is given out was checked.
#[derive(Debug)]
pub(crate) struct FromSegment {
    pub(crate) path: PathBuf,
    pub(crate) stamp: u64,
    /// A frame of the partition at or before the one that is wanted, and the durable end.
    pub(crate) position: u64,
    pub(crate) end: u64,
    pub(crate) at: Partition,
    pub(crate) from: Offset,
    pub(crate) bytes_max: usize,
}

impl FromSegment {
    /// About `bytes_max` bytes from `from` on, and no further than this segment. Blocks.
    pub(crate) fn read(&self) -> Result<Vec<Entries>, ReadError> {
        let file = File::open(&self.path).map_err(|e| self.io(e))?;
        // The other partitions' frames lie in between.
        let chunk_bytes = self.bytes_max.saturating_mul(4).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX);
        let mut scan = Scan::new(&file, self.stamp, self.position, self.end, chunk_bytes);
        let (mut entries, mut bytes) = (Vec::new(), 0);
        loop {
            let (position, frame) = match scan.next().map_err(|e| self.io(e))? {
                Found::End => break,
                Found::Damage { position, reason } => return Err(self.corrupt(position, reason)),
                Found::Frame { position, frame } => (position, frame),
            };
            if frame.at != self.at || frame.next() <= self.from {
                continue;
            }
            bytes += frame.payload_bytes as usize;
            if !entries.is_empty() && bytes > self.bytes_max {
                break;
            }
            let Some(payload) = scan.payload(position, &frame) else {
                return Err(self.corrupt(position, "the checksum of the frame's payload does not match"));
            };
            let payload = Bytes::copy_from_slice(payload);
            entries.push(Entries::new(frame.first, frame.records, frame.appended_at, payload, self.from));
        }
        if entries.is_empty() {
            return Err(self.corrupt(self.end, "it ends before a record that it should hold"));
        }
        Ok(entries)
    }

    fn io(&self, source: io::Error) -> ReadError {
        ReadError::Io { path: self.path.clone(), source }
    }

    fn corrupt(&self, position: u64, reason: &str) -> ReadError {
        ReadError::Corrupt { path: self.path.clone(), position, reason: reason.to_owned() }
    }
}
