//! The memory of a partition on disk, so that a start need not read hours of the journal.
//!
//! `DLID` | version u8 | xxh3 of the rest, u64 | position u64 | recent_ids_max u64 | first stretch u64 | devices u64 |
//! of each: hash u64, three lengths u16, and as many keys u64 and sightings u64. All little endian: hashes would grow
//! as postcard's numbers.
//!
//! The store writes one after so many records, under the position in its name, and keeps those from which it and the
//! rules could have to go on. Whoever starts takes the newest that is not after its position and shows it the journal
//! from there on. Replaced as a whole, as a checkpoint is. Derived: one that cannot be read is deleted.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use dunlin_journal::{Offset, Partition};
use dunlin_model::chain;
use tokio::task::JoinHandle;
use xxhash_rust::xxh3::xxh3_64;

use super::{CONTENTS_MAX, GIVEN_MAX, PACKETS_MAX, RecentIds, RecentIdsLimits, STRETCHES_MAX, Sighting};
use crate::checkpoint::replace;

const MAGIC: &[u8; 4] = b"DLID";
const VERSION: u8 = 1;
const HEAD_BYTES: usize = 13;
const ENDING: &str = ".ids";
/// Records shown to a memory that has no snapshot to go on from.
const RECORDS_SHOWN: u64 = 1 << 18;
/// Kept beside those that are needed now, for positions that are committed later.
const NEWEST_KEPT: usize = 3;

/// Records from one snapshot to the next, at least; a large memory takes half as many as it holds ids.
const RECORDS_BETWEEN: u64 = 500_000;
/// Fewer records do after these times.
const TIME_BETWEEN: Duration = Duration::from_secs(60);
const TIME_BETWEEN_MAX: Duration = Duration::from_secs(3_600);

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("read")]
    Read(#[from] io::Error),
    #[error("it is not a snapshot of version {VERSION}")]
    Foreign,
    #[error("it was taken with recent_ids_max = {0}")]
    OtherLimits(u64),
    #[error("it is damaged")]
    Damaged,
}

/// The snapshots of one partition.
#[derive(Debug, Clone)]
pub(crate) struct Snapshots {
    dir: PathBuf,
    at: Partition,
    limits: RecentIdsLimits,
}

impl Snapshots {
    /// Where they are, below the data directory.
    pub(crate) fn dir(data: &Path) -> PathBuf {
        data.join("copies")
    }

    pub(crate) fn new(data: &Path, at: Partition, limits: RecentIdsLimits) -> Self {
        Self { dir: Self::dir(data), at, limits }
    }

    /// Deletes those of records that a journal ending there has lost: other records come in their place. For the
    /// store alone, which writes them.
    pub(crate) fn forget_after(&self, end: Offset) {
        for lost in self.positions().into_iter().filter(|file| *file > end) {
            tracing::warn!(partition = %self.at, snapshot = %lost, %end, "copies: snapshot of lost records deleted");
            let _ = fs::remove_file(self.path(lost));
        }
    }

    /// What is known of the records before `position`, once those from the returned offset on were shown to it.
    pub(crate) fn load(&self, position: Offset, oldest: Offset) -> (RecentIds, Offset) {
        let at_or_before = |file: &Offset| *file <= position;
        for snapshot in self.positions().into_iter().rev().filter(at_or_before) {
            let path = self.path(snapshot);
            match fs::read(&path).map_err(Unusable::from).and_then(|bytes| self.decode(&bytes, snapshot)) {
                Ok(ids) => return (ids, snapshot.max(oldest).min(position)),
                Err(error) => {
                    tracing::error!(file = %path.display(), error = chain(&error), "copies: snapshot not usable");
                    if !matches!(error, Unusable::Read(_)) {
                        let _ = fs::remove_file(&path);
                    }
                }
            }
        }
        let from = Offset(position.0.saturating_sub(RECORDS_SHOWN)).max(oldest).min(position);
        if from > oldest {
            tracing::warn!(partition = %self.at, %position, %from, "copies: no snapshot; known from the last records only");
        }
        (RecentIds::new(self.limits), from)
    }

    fn decode(&self, bytes: &[u8], position: Offset) -> Result<RecentIds, Unusable> {
        let (found, ids) = decode(bytes, self.limits)?;
        if found == position { Ok(ids) } else { Err(Unusable::Damaged) }
    }

    /// Replaces what no consumer at one of `needed` and none after it goes on from.
    fn save(&self, position: Offset, mut bytes: Vec<u8>, needed: &[Offset]) -> io::Result<()> {
        seal(&mut bytes);
        replace(&self.path(position), &self.dir.join(format!("{}.tmp", self.at.index)), &bytes)?;
        let positions = self.positions();
        let for_needed = needed.iter().filter_map(|n| positions.iter().rev().find(|p| *p <= n));
        let mut kept: Vec<Offset> = positions.iter().rev().take(NEWEST_KEPT).copied().collect();
        kept.extend(for_needed);
        for old in positions.iter().filter(|p| !kept.contains(p)) {
            fs::remove_file(self.path(*old))?;
        }
        Ok(())
    }

    /// Of all snapshots, growing.
    fn positions(&self) -> Vec<Offset> {
        let begin = format!("{}-", self.at.index);
        let position = |entry: fs::DirEntry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix(&begin)?.strip_suffix(ENDING)?;
            number.parse().ok().map(Offset)
        };
        let files = fs::read_dir(&self.dir).into_iter().flatten();
        let mut positions: Vec<Offset> = files.flatten().filter_map(position).collect();
        positions.sort_unstable();
        positions
    }

    fn path(&self, position: Offset) -> PathBuf {
        self.dir.join(format!("{}-{:020}{ENDING}", self.at.index, position.0))
    }
}

/// Takes the snapshots of one partition. Only the copying of the memory keeps its owner waiting.
#[derive(Debug)]
pub(crate) struct Keeper {
    snapshots: Snapshots,
    saved: Offset,
    saved_at: Instant,
    writing: Option<JoinHandle<()>>,
}

impl Keeper {
    /// `saved`: up to where there is no need to take one.
    pub(crate) fn new(snapshots: Snapshots, saved: Offset) -> Self {
        Self { snapshots, saved, saved_at: Instant::now(), writing: None }
    }

    /// Whether so much has come since the last one that a start would take long without another.
    pub(crate) fn is_due(&self, ids: &RecentIds, position: Offset) -> bool {
        let records = position.0.saturating_sub(self.saved.0);
        records > 0 && is_due(records, ids.len, self.saved_at.elapsed())
    }

    pub(crate) fn is_writing(&self) -> bool {
        self.writing.as_ref().is_some_and(|writing| !writing.is_finished())
    }

    /// `needed`: the positions from which a consumer may have to go on.
    pub(crate) fn take(&mut self, ids: &RecentIds, position: Offset, needed: Vec<Offset>) {
        let (snapshots, bytes) = (self.snapshots.clone(), encode(ids, position));
        (self.saved, self.saved_at) = (position, Instant::now());
        self.writing = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = snapshots.save(position, bytes, &needed) {
                tracing::error!(partition = %snapshots.at, error = chain(&error), "copies: snapshot not written");
            }
        }));
    }

    /// Takes a last one, and returns when it is on disk.
    pub(crate) async fn finish(&mut self, ids: &RecentIds, position: Offset, needed: Vec<Offset>) {
        self.written().await;
        if position > self.saved {
            self.take(ids, position, needed);
            self.written().await;
        }
    }

    async fn written(&mut self) {
        if let Some(writing) = self.writing.take() {
            let _ = writing.await;
        }
    }
}

fn is_due(records: u64, ids: u64, since: Duration) -> bool {
    records >= RECORDS_BETWEEN.max(ids / 2)
        || since >= TIME_BETWEEN && records >= ids / 16
        || since >= TIME_BETWEEN_MAX
}

/// Not sealed yet: the sum of it all is not the owner's to wait for.
pub(super) fn encode(ids: &RecentIds, position: Offset) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + 32 + ids.devices.len() * 14 + ids.len() * 16);
    bytes.resize(HEAD_BYTES, 0);
    for number in [position.0, ids.limits.recent_ids_max, ids.stretch_first, ids.devices.len() as u64] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for (hash, device) in &ids.devices {
        bytes.extend_from_slice(&hash.to_le_bytes());
        let rings = [&device.packets, &device.given, &device.contents];
        rings.iter().for_each(|ring| bytes.extend_from_slice(&(ring.len() as u16).to_le_bytes()));
        for (key, sighting) in rings.iter().flat_map(|ring| ring.iter()) {
            bytes.extend_from_slice(&key.to_le_bytes());
            bytes.extend_from_slice(&sighting.0.to_le_bytes());
        }
    }
    bytes
}

pub(super) fn seal(bytes: &mut [u8]) {
    let sum = xxh3_64(&bytes[HEAD_BYTES..]);
    bytes[..4].copy_from_slice(MAGIC);
    bytes[4] = VERSION;
    bytes[5..HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
}

pub(super) fn decode(bytes: &[u8], limits: RecentIdsLimits) -> Result<(Offset, RecentIds), Unusable> {
    let (head, mut rest) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or(Unusable::Damaged)?;
    if head[..4] != *MAGIC || head[4] != VERSION {
        return Err(Unusable::Foreign);
    }
    if head[5..] != xxh3_64(rest).to_le_bytes() {
        return Err(Unusable::Damaged);
    }
    let mut ids = RecentIds::new(limits);
    let position = Offset(number(&mut rest)?);
    let recent_ids_max = number(&mut rest)?;
    if recent_ids_max != limits.recent_ids_max {
        return Err(Unusable::OtherLimits(recent_ids_max));
    }
    ids.stretch_first = number(&mut rest)?;
    for _ in 0..number(&mut rest)? {
        device(&mut rest, &mut ids)?;
    }
    if rest.is_empty() { Ok((position, ids)) } else { Err(Unusable::Damaged) }
}

fn device(rest: &mut &[u8], ids: &mut RecentIds) -> Result<(), Unusable> {
    let hash = number(rest)?;
    let (lens, after) = rest.split_first_chunk::<6>().ok_or(Unusable::Damaged)?;
    *rest = after;
    let device = ids.devices.entry(hash).or_default();
    let lens_max = [PACKETS_MAX, GIVEN_MAX, CONTENTS_MAX];
    let rings = device.rings();
    for ((ring, len), len_max) in rings.into_iter().zip(lens.as_chunks::<2>().0).zip(lens_max) {
        for _ in 0..u16::from_le_bytes(*len) {
            let (key, sighting) = (number(rest)?, Sighting(number(rest)?));
            let stretch = sighting.stretches_after(ids.stretch_first);
            if stretch >= STRETCHES_MAX || ring.push(key, sighting, len_max).is_some() {
                return Err(Unusable::Damaged);
            }
            let stretches = ids.stretches.len().max(stretch as usize + 1);
            ids.stretches.resize(stretches, 0);
            ids.stretches[stretch as usize] += 1;
            ids.len += 1;
        }
    }
    device.untimed = if device.contents.len() > 0 { CONTENTS_MAX as u16 } else { 0 };
    let packets = device.packets.iter().collect::<Vec<_>>();
    let since_early = packets.iter().rev().position(|(_, sighting)| sighting.is_early());
    device.early = since_early.map_or(0, |after| (PACKETS_MAX - after) as u16);
    Ok(())
}

fn number(rest: &mut &[u8]) -> Result<u64, Unusable> {
    let (number, after) = rest.split_first_chunk::<8>().ok_or(Unusable::Damaged)?;
    *rest = after;
    Ok(u64::from_le_bytes(*number))
}
