//! What is on the disk, and what of it can be trusted.
//!
//! A power cut may leave any part of the writes that no fdatasync has covered, in any order: the end of a group can be
//! there while its beginning is not. So a bad frame with good frames behind it is either the torn rest of a group that
//! was never acknowledged, or damage to records that were. What tells them apart is in the frames themselves:
//!
//! 1. A group is written only after the fdatasync of the group before it has succeeded. Its frames say where that one
//!    ended: `durable_up_to`. A mark says the same, when nothing follows for a while.
//! 2. So if any frame says that byte X was durable and a frame before X is bad, it was damaged after it was
//!    acknowledged. The journal refuses to start: skipping would lose acknowledged records silently.
//! 3. If the first bad frame is at or after every `durable_up_to` to be found, it belongs to the last group, whose
//!    fdatasync had not been known to succeed. That group is cut there. Nobody was told that it is kept, and what of
//!    it is whole may be kept nevertheless: an append without an answer has either outcome.
//!
//! The last group may be in the kernel's memory only, and after a failed fdatasync the kernel does not write it again.
//! So what no frame or mark proves durable (the *tail*) is written once more, into the next segment, before the
//! journal takes appends. Every start goes on in a new segment, so the rest of an old file is never written over, and
//! remains of a torn group can never line up with frames that are written later.
//!
//! A segment before the newest has an exact end, which the header of its successor says; everything up to there was
//! durable before the successor was begun. Files that no header names are remains without an acknowledgement.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use dunlin_journal::Offset;

use crate::{
    catalog::Placed,
    frame::{FRAME_BYTES, HEADER_BYTES, Previous, SegmentHeader, stamp},
    housekeeping::load_index,
    journal::{Log, OpenError},
    partitions::Partitions,
    scan::{Beyond, Found, Scan, look_beyond, read_up_to},
    segment::{Segment, index_path, segment_path, sequence_of},
};

/// Large enough to keep the disk busy, small enough to be checked from the processor's cache.
const SCAN_CHUNK_BYTES: usize = 512 << 10;
const VERIFY_THREADS: usize = 2;

#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) segments: VecDeque<Segment>,
    /// What the next segment's header says is valid before it.
    pub(crate) previous: Option<Previous>,
    pub(crate) tail: Option<Tail>,
    pub(crate) sequence_next: u64,
}

/// Frames at the end of the newest segment that nothing proves durable.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) frames: Vec<Placed>,
    /// The next offsets before them.
    pub(crate) next_before: Box<[u64]>,
}

/// Where segments are and what they must agree with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) secret: u64,
    pub(crate) partitions: Partitions,
}

pub(crate) fn recover(place: Place<'_>, verify_bytes_max: u64) -> Result<Recovered, OpenError> {
    let sequences = sequences(place.dir, "seg")?;
    let sequence_next = sequences.last().map_or(1, |s| s + 1);
    let chain = Chain::find(place, &sequences)?;
    let (mut segments, newest) = chain.read(place, verify_bytes_max)?;
    check_continuity(place, &segments)?;
    chain.remove_remains(place, &sequences)?;

    let Some(Newest { segment, tail }) = newest else {
        return Ok(Recovered { segments, previous: None, tail: None, sequence_next });
    };
    let end = tail.as_ref().and_then(|t| t.frames.first()).map_or(segment.end, |f| f.position);
    let previous = Some(Previous { sequence: segment.sequence, end });
    segments.push_back(segment);
    check_continuity(place, &segments)?;
    Ok(Recovered { segments, previous, tail, sequence_next })
}

/// Reads the durable part of a segment again.
pub(crate) fn verify_prefix(log: &Log, part: Previous) -> io::Result<()> {
    let file = File::open(segment_path(&log.config.dir, part.sequence))?;
    let mut scan =
        Scan::new(&file, stamp(log.secret, part.sequence), HEADER_BYTES, part.end, SCAN_CHUNK_BYTES);
    loop {
        match scan.next()? {
            Found::End => return Ok(()),
            Found::Frame { position, frame } if scan.payload(position, &frame).is_none() => {
                return Err(io::Error::other(format!(
                    "a payload's checksum does not match at byte {position}"
                )));
            }
            Found::Frame { .. } => {}
            Found::Damage { position, reason } => {
                return Err(io::Error::other(format!("{reason} at byte {position}")));
            }
        }
    }
}

/// The segments that count, oldest first, each with its end, but for the newest, whose end is to be found.
#[derive(Debug, Default)]
struct Chain {
    links: Vec<Link>,
}

#[derive(Debug)]
struct Link {
    sequence: u64,
    header: SegmentHeader,
    end: Option<u64>,
}

#[derive(Debug)]
struct Newest {
    segment: Segment,
    tail: Option<Tail>,
}

impl Chain {
    /// From the newest segment with a header, back along what the headers say.
    fn find(place: Place<'_>, sequences: &[u64]) -> Result<Self, OpenError> {
        let mut links: Vec<Link> = Vec::new();
        for &sequence in sequences.iter().rev() {
            let expected = match links.last() {
                None => None,
                Some(newer) => match newer.header.previous {
                    Some(previous) if sequence > previous.sequence => continue, // Remains.
                    Some(previous) if sequence == previous.sequence => Some(previous.end),
                    Some(previous) => return Err(place.missing(previous.sequence, newer.sequence)),
                    None => continue,
                },
            };
            match place.header(sequence)? {
                Ok(header) => links.push(Link { sequence, header, end: expected }),
                Err(reason) if expected.is_some() => return Err(place.corrupt(sequence, 0, reason)),
                Err(reason) => place.check_never_durable(sequence, reason)?,
            }
        }
        links.reverse();
        Ok(Self { links })
    }

    /// All but the newest, and the newest, which is always read through.
    fn read(
        &self,
        place: Place<'_>,
        verify_bytes_max: u64,
    ) -> Result<(VecDeque<Segment>, Option<Newest>), OpenError> {
        let Some((newest, sealed)) = self.links.split_last() else { return Ok((VecDeque::new(), None)) };
        let mut left = verify_bytes_max;
        let mut verify_from = sealed.len();
        while verify_from > 0
            && let Some(less) = left.checked_sub(sealed[verify_from - 1].end.unwrap_or(0))
        {
            left = less;
            verify_from -= 1;
        }
        let taken = AtomicUsize::new(0);
        let mut segments = Vec::with_capacity(sealed.len());
        std::thread::scope(|scope| {
            // Newest first: that is where a crash would have left something.
            let work = || {
                let mut done = Vec::new();
                while let Some(n) = sealed.len().checked_sub(1 + taken.fetch_add(1, Ordering::Relaxed)) {
                    done.push((n, place.read_sealed(&sealed[n], n >= verify_from)?));
                }
                Ok::<_, OpenError>(done)
            };
            let others: Vec<_> = (1..VERIFY_THREADS).map(|_| scope.spawn(work)).collect();
            let mut done = work()?;
            for other in others {
                done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
            }
            done.sort_by_key(|(n, _)| *n);
            segments.extend(done.into_iter().map(|(_, s)| s));
            Ok::<_, OpenError>(())
        })?;
        Ok((segments.into(), Some(place.read_newest(newest)?)))
    }

    /// Deletes files that no header names, unless one holds what must have been acknowledged: then the headers are
    /// wrong, and nothing is deleted.
    fn remove_remains(&self, place: Place<'_>, sequences: &[u64]) -> Result<(), OpenError> {
        let counts = |sequence| self.links.binary_search_by_key(&sequence, |l| l.sequence).is_ok();
        for sequence in sequences.iter().filter(|s| !counts(**s)) {
            place.check_never_durable(
                *sequence,
                "it holds durable records, and no other segment goes on from it",
            )?;
        }
        let indexes = self::sequences(place.dir, "idx")?;
        let files = sequences.iter().map(|s| (*s, segment_path(place.dir, *s)));
        let files = files.chain(indexes.iter().map(|s| (*s, index_path(place.dir, *s))));
        for (_, path) in files.filter(|(sequence, _)| !counts(*sequence)) {
            tracing::info!(file = %path.display(), "removing a file that the journal never acknowledged anything from");
            fs::remove_file(&path).map_err(|source| OpenError::Io { operation: "remove", path, source })?;
        }
        Ok(())
    }
}

impl Place<'_> {
    fn header(&self, sequence: u64) -> Result<Result<SegmentHeader, &'static str>, OpenError> {
        let mut page = vec![0; HEADER_BYTES as usize];
        let read = read_up_to(&self.open(sequence)?, &mut page, 0);
        page.truncate(read.map_err(|e| self.io(sequence, e))?);
        Ok(SegmentHeader::decode(&page, stamp(self.secret, sequence)).map(|mut header| {
            // Topics that this version added have nothing in it.
            let mut base = header.base.into_vec();
            base.resize(self.partitions.count(), 0);
            header.base = base.into();
            header
        }))
    }

    /// A segment without a header is a spare, or its first group was torn. More would have been acknowledged.
    fn check_never_durable(&self, sequence: u64, reason: &'static str) -> Result<(), OpenError> {
        let file = self.open(sequence)?;
        let end = file.metadata().map_err(|e| self.io(sequence, e))?.len();
        let stamp = stamp(self.secret, sequence);
        let Beyond { durable_up_to, written_up_to } =
            look_beyond(&file, stamp, HEADER_BYTES, end).map_err(|e| self.io(sequence, e))?;
        if durable_up_to > HEADER_BYTES {
            return Err(self.corrupt(sequence, 0, reason));
        }
        if written_up_to > HEADER_BYTES {
            tracing::warn!(
                segment = sequence,
                bytes = written_up_to - HEADER_BYTES,
                "cutting a first group that was not completely written and never acknowledged"
            );
        }
        Ok(())
    }

    fn read_sealed(&self, link: &Link, verify: bool) -> Result<Segment, OpenError> {
        let end = link.end.unwrap_or(HEADER_BYTES);
        if !verify
            && let Some(segment) = load_index(self.dir, link.sequence, end)
            && segment.base == link.header.base
        {
            return Ok(segment);
        }
        let file = self.open(link.sequence)?;
        let read = self.read_frames(link, &file, end)?;
        match read.bad {
            Some((position, reason)) => Err(self.corrupt(link.sequence, position, reason)),
            None => Ok(read.segment),
        }
    }

    fn read_newest(&self, link: &Link) -> Result<Newest, OpenError> {
        let sequence = link.sequence;
        let file = self.open(sequence)?;
        let file_end = file.metadata().map_err(|e| self.io(sequence, e))?.len();
        let read = self.read_frames(link, &file, file_end)?;
        let mut segment = read.segment;
        let mut durable_up_to = read.durable_up_to;
        if let Some((position, reason)) = read.bad {
            let stamp = stamp(self.secret, sequence);
            let beyond = look_beyond(&file, stamp, position, file_end).map_err(|e| self.io(sequence, e))?;
            durable_up_to = durable_up_to.max(beyond.durable_up_to);
            if durable_up_to > segment.end {
                return Err(self.corrupt(sequence, position, reason));
            }
            let cut = beyond.written_up_to.saturating_sub(position);
            if cut > 0 {
                tracing::warn!(
                    segment = sequence,
                    position,
                    bytes = cut,
                    reason,
                    "cutting the end of a group that was not completely written and never acknowledged"
                );
            }
        }
        let tail = self.read_tail(&mut segment, &file, durable_up_to)?;
        Ok(Newest { segment, tail })
    }

    /// The frames from `durable_up_to` to the segment's end.
    fn read_tail(
        &self,
        segment: &mut Segment,
        file: &File,
        durable_up_to: u64,
    ) -> Result<Option<Tail>, OpenError> {
        let (sequence, from) = (segment.sequence, durable_up_to.max(HEADER_BYTES));
        let mut scan = Scan::new(file, stamp(self.secret, sequence), from, segment.end, SCAN_CHUNK_BYTES);
        let mut next_before = segment.next.clone();
        let mut frames: Vec<Placed> = Vec::new();
        loop {
            match scan.next().map_err(|e| self.io(sequence, e))? {
                Found::End => break,
                Found::Damage { position, reason } => return Err(self.corrupt(sequence, position, reason)),
                Found::Frame { position, frame } => {
                    let (Some(place), Some(payload)) =
                        (self.partitions.place(frame.at), scan.payload(position, &frame))
                    else {
                        return Err(self.corrupt(sequence, position, "a frame changed while it was read"));
                    };
                    next_before[place] = next_before[place].min(frame.first.0);
                    frames.push(Placed { place, position, frame, payload: Bytes::copy_from_slice(payload) });
                }
            }
        }
        Ok((!frames.is_empty()).then_some(Tail { frames, next_before }))
    }

    fn read_frames(&self, link: &Link, file: &File, end: u64) -> Result<Read, OpenError> {
        let header = &link.header;
        let segment = Segment::begin(link.sequence, header.base.clone(), header.created_at);
        let mut read = Read { segment, durable_up_to: HEADER_BYTES, bad: None };
        let mut scan =
            Scan::new(file, stamp(self.secret, link.sequence), HEADER_BYTES, end, SCAN_CHUNK_BYTES);
        read.bad = loop {
            let (position, frame) = match scan.next().map_err(|e| self.io(link.sequence, e))? {
                Found::End => break None,
                Found::Damage { position, reason } => break Some((position, reason)),
                Found::Frame { position, frame } => (position, frame),
            };
            let place = self.partitions.place(frame.at);
            let reason = match place {
                _ if frame.is_mark() => {
                    read.durable_up_to = read.durable_up_to.max(frame.durable_up_to);
                    // Nothing follows a mark: the next group is written over it.
                    break Some((position + FRAME_BYTES as u64, "records end here"));
                }
                None => "the frame is of a partition that does not exist",
                Some(place) if Offset(read.segment.next[place]) != frame.first => "the offsets have a gap",
                Some(place) if scan.payload(position, &frame).is_some() => {
                    read.durable_up_to = read.durable_up_to.max(frame.durable_up_to);
                    read.segment.note(place, position, &frame);
                    continue;
                }
                Some(_) => "the checksum of the frame's payload does not match",
            };
            break Some((position, reason));
        };
        Ok(read)
    }

    fn open(&self, sequence: u64) -> Result<File, OpenError> {
        File::open(segment_path(self.dir, sequence)).map_err(|e| self.io(sequence, e))
    }

    fn io(&self, sequence: u64, source: io::Error) -> OpenError {
        OpenError::Io { operation: "read", path: segment_path(self.dir, sequence), source }
    }

    fn corrupt(&self, sequence: u64, position: u64, reason: &'static str) -> OpenError {
        OpenError::Corrupt { path: segment_path(self.dir, sequence), position, reason: reason.to_owned() }
    }

    fn missing(&self, sequence: u64, newer: u64) -> OpenError {
        OpenError::Missing { path: segment_path(self.dir, sequence), newer: segment_path(self.dir, newer) }
    }
}

#[derive(Debug)]
struct Read {
    segment: Segment,
    /// The furthest that a good frame says was durable.
    durable_up_to: u64,
    /// The first place without a good frame, and why, if that is before the end.
    bad: Option<(u64, &'static str)>,
}

/// The next offsets after each segment are the ones its successor began with.
fn check_continuity(place: Place<'_>, segments: &VecDeque<Segment>) -> Result<(), OpenError> {
    for (older, newer) in segments.iter().zip(segments.iter().skip(1)) {
        if older.next != newer.base {
            return Err(place.corrupt(
                newer.sequence,
                0,
                "its offsets do not go on where the segment before it ends",
            ));
        }
    }
    Ok(())
}

fn sequences(dir: &Path, extension: &str) -> Result<Vec<u64>, OpenError> {
    let io = |source| OpenError::Io { operation: "list", path: PathBuf::from(dir), source };
    let mut sequences = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        sequences.extend(sequence_of(&entry.map_err(io)?.path(), extension));
    }
    sequences.sort_unstable();
    Ok(sequences)
}
