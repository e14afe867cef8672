//! What must hold for whatever is found on the disk.

use std::{fs, path::Path};

use dunlin_journal::{Offset, Partition, Topic};
use dunlin_model::Timestamp;

use crate::{
    frame::{FRAME_BYTES, Frame, HEADER_BYTES, SegmentHeader, crc32c, stamp},
    housekeeping::load_index,
    partitions::Partitions,
    positions,
    recovery::{Place, Recovered, recover},
    segment::{index_path, segment_path},
    side_file,
};

const SECRET: u64 = 0x5EED;
const SEQUENCE: u64 = 1;
const TELEMETRY_PARTITIONS: u16 = 2;
const AT: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

/// The first byte says which file the rest is about. `dir` is the caller's, and holds nothing else.
pub fn recovery(data: &[u8], dir: &Path) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 4 {
        0 => damaged_log(rest, dir),
        1 => forged_log(rest, dir),
        2 => index(rest, dir),
        _ => positions(rest),
    }
}

fn partitions() -> Partitions {
    Partitions::new(TELEMETRY_PARTITIONS)
}

fn recovered(log: &[u8], dir: &Path) -> Option<Recovered> {
    fs::write(segment_path(dir, SEQUENCE), log).expect("the caller's directory can be written");
    recover(Place { dir, secret: SECRET, partitions: partitions() }, u64::MAX).ok()
}

/// Groups of frames as they are written, then damage: nothing that a frame or a mark says was durable is lost without
/// a word, and nothing comes back that was not written.
fn damaged_log(data: &[u8], dir: &Path) {
    let (mut written, damage) = Written::of(data);
    let mut log = std::mem::take(&mut written.bytes);
    let mut spoilt = vec![false; log.len()];
    for hit in damage.chunks_exact(4) {
        let at = usize::from(u16::from_le_bytes([hit[0], hit[1]])) % log.len();
        match hit[2] {
            0 => {
                log.truncate(at);
                spoilt[at..].fill(true);
            }
            with => {
                let end = (at + usize::from(hit[3] % 64) + 1).min(log.len());
                log[at..end].iter_mut().for_each(|byte| *byte ^= with);
                spoilt[at..end].fill(true);
            }
        }
        if log.is_empty() {
            return;
        }
    }
    let is_whole = |start: usize, bytes: usize| !spoilt[start..start + bytes].contains(&true);
    let frames = written.frames.iter();
    let durable = frames.filter(|f| is_whole(f.start, FRAME_BYTES)).map(|f| f.durable_up_to).max();
    let Some(recovered) = recovered(&log, dir) else {
        let acknowledged = written.frames.last().map_or(HEADER_BYTES, |last| last.durable_up_to) as usize;
        assert!(
            spoilt[..acknowledged].contains(&true),
            "refused to start without damage to what was durable"
        );
        return;
    };
    let Some(segment) = recovered.segments.back() else {
        assert!(durable.is_none_or(|durable| durable == HEADER_BYTES), "durable records are not seen");
        return assert!(!is_whole(0, HEADER_BYTES as usize), "a good segment is not seen");
    };
    assert!(durable.is_none_or(|durable| segment.end >= durable), "{} < {durable:?}", segment.end);
    let end = written.ends.iter().find(|(end, _)| *end == segment.end);
    let (_, next) = end.expect("what is cut off begins with a frame");
    assert_eq!(&segment.next[..], next);
}

/// A log as the committer writes it.
struct Written {
    bytes: Vec<u8>,
    frames: Vec<WrittenFrame>,
    /// Where frames end, and the next offsets there.
    ends: Vec<(u64, Vec<u64>)>,
}

struct WrittenFrame {
    start: usize,
    durable_up_to: u64,
}

impl Written {
    /// One byte for each group, up to a zero; returns what is left of `data`.
    fn of(data: &[u8]) -> (Self, &[u8]) {
        const GROUPS_MAX: usize = 8;
        let stamp = stamp(SECRET, SEQUENCE);
        let mut next = vec![0; partitions().count()];
        let header = SegmentHeader { previous: None, created_at: AT, base: next.clone().into() };
        let mut written = Self {
            bytes: header.encode(stamp),
            frames: Vec::new(),
            ends: vec![(HEADER_BYTES, next.clone())],
        };
        let groups = data.iter().take(GROUPS_MAX).take_while(|group| **group != 0).count();
        let (shapes, rest) = data.split_at(groups);
        for shape in shapes {
            let durable_up_to = written.bytes.len() as u64;
            for n in 0..1 + shape % 3 {
                let payload = vec![shape.wrapping_add(n); usize::from(shape / 3) * 7 % 300];
                written.push(
                    Partition::new(Topic::Telemetry, u16::from(n % 2)),
                    &payload,
                    durable_up_to,
                    &mut next,
                );
            }
        }
        let rest = rest.strip_prefix(&[0]).unwrap_or(rest);
        if let Some((1, rest)) = rest.split_first().map(|(first, rest)| (*first, rest)) {
            written.mark();
            return (written, rest);
        }
        (written, rest)
    }

    fn push(&mut self, at: Partition, payload: &[u8], durable_up_to: u64, next: &mut [u64]) {
        let place = partitions().place(at).expect("it exists");
        let frame = Frame {
            at,
            schema_version: 1,
            first: Offset(next[place]),
            records: 1,
            appended_at: AT,
            durable_up_to,
            payload_bytes: payload.len() as u32,
            payload_crc: crc32c(payload),
        };
        self.frames.push(WrittenFrame { start: self.bytes.len(), durable_up_to });
        next[place] += 1;
        self.bytes.extend_from_slice(&frame.encode(stamp(SECRET, SEQUENCE)));
        self.bytes.extend_from_slice(payload);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.ends.push((self.bytes.len() as u64, next.to_vec()));
    }

    fn mark(&mut self) {
        let durable_up_to = self.bytes.len() as u64;
        self.frames.push(WrittenFrame { start: self.bytes.len(), durable_up_to });
        self.bytes.extend_from_slice(&Frame::mark(durable_up_to).encode(stamp(SECRET, SEQUENCE)));
    }
}

/// Headers with any content and the right checksums.
fn forged_log(data: &[u8], dir: &Path) {
    let stamp = stamp(SECRET, SEQUENCE);
    let (first, rest) = data.split_at(data.len().min(8));
    let mut first_bytes = [0; 8];
    first_bytes[..first.len()].copy_from_slice(first);
    let base = vec![u64::from_le_bytes(first_bytes); partitions().count()];
    let mut log = SegmentHeader { previous: None, created_at: AT, base: base.into() }.encode(stamp);
    let mut rest = rest;
    while let Some((fields, behind)) = rest.split_first_chunk::<33>() {
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| fields[at + n]));
        let payload_bytes = number(0) as u32;
        let (payload, behind) = behind.split_at(behind.len().min(payload_bytes as usize));
        rest = behind;
        let frame = Frame {
            at: Partition::new(
                Topic::ALL[usize::from(fields[32]) % Topic::ALL.len()],
                (number(0) >> 48) as u16,
            ),
            schema_version: 1,
            first: Offset(number(8)),
            records: (number(0) >> 32) as u16 as u32,
            appended_at: Timestamp::from_micros(number(16) as i64),
            durable_up_to: number(24),
            payload_bytes,
            payload_crc: crc32c(payload),
        };
        log.extend_from_slice(&frame.encode(stamp));
        log.extend_from_slice(payload);
        log.resize(log.len().next_multiple_of(8), 0);
    }
    drop(recovered(&log, dir));
}

/// The index of a sealed segment, with a checksum that matches: it is about this segment, or it is not used.
fn index(data: &[u8], dir: &Path) {
    let (end, index) = data.split_at(data.len().min(8));
    let mut bytes = [0; 8];
    bytes[..end.len()].copy_from_slice(end);
    side_file::store(&index_path(dir, SEQUENCE), index).expect("the caller's directory can be written");
    let Some(segment) = load_index(dir, SEQUENCE, u64::from_le_bytes(bytes)) else { return };
    for place in 0..segment.base.len() {
        let found = segment.find(place, Offset(segment.base[place]));
        assert!((HEADER_BYTES..=segment.end).contains(&found));
        segment.holds(place, Offset(segment.next[place]));
    }
}

/// How far consumers have got: refused, or the same once it is written and read again.
fn positions(data: &[u8]) {
    let Ok(known) = positions::decode(data, partitions()) else { return };
    let written = positions::encode(&known, partitions());
    assert_eq!(positions::decode(&written, partitions()).expect("what was written is read"), known);
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[test]
fn what_the_fuzzer_found_holds() {
    let dir = tempfile::tempdir().unwrap();
    replay::replay("recovery", |data| recovery(data, dir.path()));
}
