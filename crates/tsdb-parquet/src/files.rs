//! Data files: where they are, what they hold, and when they go.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use dunlin_model::Timestamp;
use serde::{Deserialize, Serialize};

const DAY_MICROS: i64 = 86_400_000_000;
/// Days in the wide partition that thin old days share.
const WIDE_DAYS: i64 = 32;

/// A stretch of time whose rows share files: a day, or for thin old days 32 of them, aligned to 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Partition {
    start_day: i64,
    days: i64,
}

impl Partition {
    pub(crate) fn day_of(time: Timestamp) -> Self {
        Self { start_day: time.as_micros().div_euclid(DAY_MICROS), days: 1 }
    }

    pub(crate) fn wide_of(time: Timestamp) -> Self {
        Self::day_of(time).widened()
    }

    pub(crate) fn widened(self) -> Self {
        Self { start_day: self.start_day.div_euclid(WIDE_DAYS) * WIDE_DAYS, days: WIDE_DAYS }
    }

    pub(crate) fn is_wide(self) -> bool {
        self.days == WIDE_DAYS
    }

    pub(crate) fn end(self) -> Timestamp {
        Timestamp::from_micros((self.start_day + self.days).saturating_mul(DAY_MICROS))
    }

    /// `2024-02-29`, or `2024-02-04+32d`.
    pub(crate) fn dir_name(self) -> String {
        let start = Timestamp::from_micros(self.start_day.saturating_mul(DAY_MICROS)).to_string();
        let date = start.split('T').next().unwrap_or_default().to_owned();
        if self.is_wide() { format!("{date}+{WIDE_DAYS}d") } else { date }
    }
}

/// What the manifest says of a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct FileEntry {
    pub(crate) id: u64,
    /// Below the store's directory.
    pub(crate) path: String,
    pub(crate) partition: Partition,
    /// Files of one run are disjoint in their (device, time) and were written together; the id of the first.
    pub(crate) run: u64,
    /// How often its rows were merged; `PACKED` when for good.
    pub(crate) level: u8,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) time_min: Timestamp,
    pub(crate) time_max: Timestamp,
    pub(crate) device_min: String,
    pub(crate) device_max: String,
    pub(crate) written_at: Timestamp,
}

pub(crate) const PACKED: u8 = u8::MAX;

/// A live file. The last one who holds a replaced file deletes it.
#[derive(Debug)]
pub(crate) struct DataFile {
    pub(crate) entry: FileEntry,
    pub(crate) path: PathBuf,
    replaced: AtomicBool,
}

impl DataFile {
    pub(crate) fn new(dir: &Path, entry: FileEntry) -> Self {
        Self { path: dir.join(&entry.path), entry, replaced: AtomicBool::new(false) }
    }

    /// No manifest names it any more.
    pub(crate) fn replaced(&self) {
        self.replaced.store(true, Ordering::Release);
    }

    pub(crate) fn may_hold(&self, device: &str, time: Timestamp) -> bool {
        let e = &self.entry;
        time >= e.time_min
            && time <= e.time_max
            && device >= e.device_min.as_str()
            && device <= e.device_max.as_str()
    }
}

impl Drop for DataFile {
    fn drop(&mut self) {
        if self.replaced.load(Ordering::Acquire)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "replaced file not deleted; the next start does it");
        }
    }
}

/// A name as one part of a path: what is not a letter, a digit or a dash becomes `_` and its code.
pub(crate) fn safe_name(name: &str) -> String {
    const PART_BYTES_MAX: usize = 200;
    let mut safe = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => safe.push(char::from(byte)),
            _ => safe.push_str(&format!("_{byte:02x}")),
        }
    }
    if safe.len() > PART_BYTES_MAX {
        // File systems end at 255 bytes. The checksum keeps names apart that begin alike.
        let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, name.as_bytes());
        safe.truncate(PART_BYTES_MAX);
        safe.push_str(&format!("_{sum:016x}"));
    }
    safe
}

/// Makes what happened in the directory durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}

/// Makes a directory below `root`, durably.
pub(crate) fn make_dirs(root: &Path, below: &Path) -> io::Result<()> {
    let mut dir = root.to_path_buf();
    for part in below.components() {
        let parent = dir.clone();
        dir.push(part);
        match fs::create_dir(&dir) {
            Ok(()) => sync_dir(&parent)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
