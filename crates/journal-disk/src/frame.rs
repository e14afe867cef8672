//! The stored format. All numbers are little endian; changing anything here is a new `FORMAT`.
//!
//! A segment is a header page and then frames, each at a multiple of 8 bytes:
//!
//! | header page (4096 bytes) | | frame | |
//! |---|---|---|---|
//! | 0 | magic `DUNLNSEG` | 0 | magic `DNLF` |
//! | 8 | CRC-32C of byte 12 to the end of the page | 4 | CRC-32C of bytes 8 to 55 |
//! | 12 | format | 8 | CRC-32C of the payload |
//! | 16 | stamp | 12 | payload length |
//! | 24 | sequence of the segment before, or 0 | 16 | topic u8, record schema version u8, partition u16 |
//! | 32 | where that one ends | 20 | records |
//! | 40 | created at, µs | 24 | first offset |
//! | 48 | partitions u32, 0 u32 | 32 | appended at, µs |
//! | 56 | next offset of each partition | 40 | durable up to |
//! | | | 48 | stamp |
//!
//! *Durable up to* is the position in this segment before which everything was synced when the frame was written;
//! recovery rests on it. A frame without records and payload is a *mark*: it only carries that position, and the
//! next group is written over it. The *stamp* is a secret of the directory mixed with the segment's sequence: bytes
//! that a device sent, or that another file left on the disk, cannot pass for a frame of this segment.

use dunlin_journal::{Offset, Partition, Topic};
use dunlin_model::Timestamp;

pub(crate) const FORMAT: u32 = 1;
pub(crate) const HEADER_BYTES: u64 = 4096;
pub(crate) const FRAME_BYTES: usize = 56;
pub(crate) const FRAME_ALIGN: usize = 8;

pub(crate) const FRAME_MAGIC: [u8; 4] = *b"DNLF";
const SEGMENT_MAGIC: [u8; 8] = *b"DUNLNSEG";

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

pub(crate) fn stamp(secret: u64, sequence: u64) -> u64 {
    (secret ^ sequence).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29) ^ secret
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) at: Partition,
    pub(crate) schema_version: u8,
    pub(crate) first: Offset,
    pub(crate) records: u32,
    pub(crate) appended_at: Timestamp,
    pub(crate) durable_up_to: u64,
    pub(crate) payload_bytes: u32,
    pub(crate) payload_crc: u32,
}

impl Frame {
    pub(crate) fn mark(durable_up_to: u64) -> Self {
        Self {
            at: Partition::new(Topic::Telemetry, 0),
            schema_version: 0,
            first: Offset::ZERO,
            records: 0,
            appended_at: Timestamp::from_micros(0),
            durable_up_to,
            payload_bytes: 0,
            payload_crc: 0,
        }
    }

    pub(crate) fn is_mark(&self) -> bool {
        self.records == 0
    }

    /// Bytes in the file: header, payload, and zeros up to the next multiple of 8.
    pub(crate) fn stored_bytes(&self) -> u64 {
        stored_bytes(self.payload_bytes as usize)
    }

    pub(crate) fn next(&self) -> Offset {
        self.first.after(u64::from(self.records))
    }

    pub(crate) fn encode(&self, stamp: u64) -> [u8; FRAME_BYTES] {
        let mut out = [0; FRAME_BYTES];
        out[0..4].copy_from_slice(&FRAME_MAGIC);
        out[8..12].copy_from_slice(&self.payload_crc.to_le_bytes());
        out[12..16].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[16] = self.at.topic as u8;
        out[17] = self.schema_version;
        out[18..20].copy_from_slice(&self.at.index.to_le_bytes());
        out[20..24].copy_from_slice(&self.records.to_le_bytes());
        out[24..32].copy_from_slice(&self.first.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.appended_at.as_micros().to_le_bytes());
        out[40..48].copy_from_slice(&self.durable_up_to.to_le_bytes());
        out[48..56].copy_from_slice(&stamp.to_le_bytes());
        let crc = crc32c(&out[8..]);
        out[4..8].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Says why these bytes are not a frame's header.
    pub(crate) fn decode(bytes: &[u8; FRAME_BYTES], stamp: u64) -> Result<Self, &'static str> {
        if bytes[0..4] != FRAME_MAGIC {
            return Err("no frame starts here");
        }
        if u32_at(bytes, 4) != crc32c(&bytes[8..]) {
            return Err("the checksum of the frame's header does not match");
        }
        if u64_at(bytes, 48) != stamp {
            return Err("the frame belongs to another segment");
        }
        let topic =
            Topic::from_ordinal(bytes[16]).ok_or("the frame has a topic that this version does not know")?;
        Ok(Self {
            at: Partition::new(topic, u16::from_le_bytes([bytes[18], bytes[19]])),
            schema_version: bytes[17],
            first: Offset(u64_at(bytes, 24)),
            records: u32_at(bytes, 20),
            appended_at: Timestamp::from_micros(u64_at(bytes, 32) as i64),
            durable_up_to: u64_at(bytes, 40),
            payload_bytes: u32_at(bytes, 12),
            payload_crc: u32_at(bytes, 8),
        })
    }
}

pub(crate) fn stored_bytes(payload_bytes: usize) -> u64 {
    (FRAME_BYTES + payload_bytes).next_multiple_of(FRAME_ALIGN) as u64
}

/// A segment's first page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// What is valid before this segment: that segment, up to that byte. Whatever else lies between the two was
    /// abandoned without an acknowledgement.
    pub(crate) previous: Option<Previous>,
    pub(crate) created_at: Timestamp,
    /// The next offset of each partition when the segment was begun.
    pub(crate) base: Box<[u64]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Previous {
    pub(crate) sequence: u64,
    pub(crate) end: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self, stamp: u64) -> Vec<u8> {
        let previous = self.previous.unwrap_or(Previous { sequence: 0, end: 0 });
        let mut out = Vec::with_capacity(HEADER_BYTES as usize);
        out.extend_from_slice(&SEGMENT_MAGIC);
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&stamp.to_le_bytes());
        out.extend_from_slice(&previous.sequence.to_le_bytes());
        out.extend_from_slice(&previous.end.to_le_bytes());
        out.extend_from_slice(&self.created_at.as_micros().to_le_bytes());
        out.extend_from_slice(&(self.base.len() as u64).to_le_bytes());
        self.base.iter().for_each(|next| out.extend_from_slice(&next.to_le_bytes()));
        out.resize(HEADER_BYTES as usize, 0);
        let crc = crc32c(&out[12..]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `page` has `HEADER_BYTES`, or it is not a header.
    pub(crate) fn decode(page: &[u8], stamp: u64) -> Result<Self, &'static str> {
        if page.len() != HEADER_BYTES as usize || page[0..8] != SEGMENT_MAGIC {
            return Err("no segment starts here");
        }
        if u32_at(page, 8) != crc32c(&page[12..]) {
            return Err("the checksum of the segment's header does not match");
        }
        if u32_at(page, 12) != FORMAT {
            return Err("the segment has a format that this version does not know");
        }
        if u64_at(page, 16) != stamp {
            return Err("the segment belongs to another directory, or was renamed");
        }
        let previous = Previous { sequence: u64_at(page, 24), end: u64_at(page, 32) };
        let partitions = u64_at(page, 48).min((HEADER_BYTES - 56) / 8) as usize;
        Ok(Self {
            previous: (previous.sequence != 0).then_some(previous),
            created_at: Timestamp::from_micros(u64_at(page, 40) as i64),
            base: (0..partitions).map(|n| u64_at(page, 56 + n * 8)).collect(),
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests;
