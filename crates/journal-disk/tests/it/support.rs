use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use dunlin_journal::{Batch, Journal, Offset, Partition, Topic};
use dunlin_journal_disk::{Config, Disk, DiskJournal, OpenError, SystemDisk};
use dunlin_model::{Clock, Timestamp};
use prometheus_client::registry::Registry;
use tempfile::TempDir;

pub(crate) const T0: Partition = Partition { topic: Topic::Telemetry, index: 0 };
pub(crate) const T1: Partition = Partition { topic: Topic::Telemetry, index: 1 };

pub(crate) const HOUR_MICROS: i64 = 3_600_000_000;

/// A directory for a journal, with a clock that stands still until it is moved.
pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    pub(crate) config: Config,
    pub(crate) now_micros: Arc<AtomicI64>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            dir: dir.path().join("journal"),
            telemetry_partitions: 2,
            segment_bytes: 256 << 10,
            preallocate_bytes: 64 << 10,
            ..Config::default()
        };
        Self { dir, config, now_micros: Arc::new(AtomicI64::new(1_700_000_000_000_000)) }
    }

    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut bench = Self::new();
        change(&mut bench.config);
        bench
    }

    pub(crate) fn open(&self) -> Arc<DiskJournal> {
        self.try_open().unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) fn try_open(&self) -> Result<Arc<DiskJournal>, OpenError> {
        self.open_on(Arc::new(SystemDisk), &mut Registry::default())
    }

    pub(crate) fn open_on(
        &self,
        disk: Arc<dyn Disk>,
        registry: &mut Registry,
    ) -> Result<Arc<DiskJournal>, OpenError> {
        let now = Arc::clone(&self.now_micros);
        let clock = Clock::new(move || Timestamp::from_micros(now.load(Ordering::Relaxed)));
        DiskJournal::open_on(self.config.clone(), clock, registry, disk)
    }

    /// What a crash at this moment would leave: every write that was made, and no farewell.
    pub(crate) fn image(&self) -> Self {
        let image = Self::with(|config| {
            let dir = std::mem::take(&mut config.dir);
            *config = Config { dir, ..self.config.clone() };
        });
        let image =
            Self { config: Config { dir: image.dir.path().join("journal"), ..self.config.clone() }, ..image };
        fs::create_dir(&image.config.dir).unwrap();
        for file in fs::read_dir(&self.config.dir).unwrap() {
            let path = file.unwrap().path();
            let copied = fs::copy(&path, image.config.dir.join(path.file_name().unwrap()));
            // The housekeeper may just be replacing a side file; a crash leaves the old or the new one.
            let is_being_replaced = path.extension().is_some_and(|e| e == "new");
            assert!(copied.is_ok() || is_being_replaced, "{}: {copied:?}", path.display());
        }
        image
    }

    pub(crate) fn files(&self, extension: &str) -> Vec<PathBuf> {
        let all = fs::read_dir(&self.config.dir).unwrap().map(|f| f.unwrap().path());
        let mut files: Vec<_> = all.filter(|p| p.extension().is_some_and(|e| e == extension)).collect();
        files.sort();
        files
    }
}

/// A record of `bytes` that says its own offset.
pub(crate) fn numbered(first: u64, records: u64, bytes: usize) -> Batch {
    let mut batch = Batch::default();
    (first..first + records).for_each(|n| batch.push(format!("{n:0>bytes$}").as_bytes()));
    batch
}

/// Appends `batches` of `records` each, one after the other.
pub(crate) async fn fill(journal: &DiskJournal, at: Partition, batches: usize, records: u64, bytes: usize) {
    for _ in 0..batches {
        let first = journal.extent(at).next;
        let appended = journal.append(at, numbered(first.0, records, bytes)).await.unwrap();
        assert_eq!(appended.first, first);
    }
}

/// Reads from `from` to the end, checks that every record says its own offset, and returns how many there are.
pub(crate) async fn check_numbered(journal: &DiskJournal, at: Partition, from: Offset) -> u64 {
    let mut next = from;
    loop {
        let read = journal.read(at, next, 100_000).await.unwrap();
        if read.is_empty() {
            assert_eq!(next, journal.extent(at).next);
            return next.0 - from.0;
        }
        for record in read.iter().flat_map(|e| e.iter()) {
            assert_eq!(record.offset, next);
            assert_eq!(std::str::from_utf8(record.bytes).unwrap().parse::<u64>().unwrap(), next.0);
            next = next.after(1);
        }
    }
}

pub(crate) fn write_at(path: &Path, position: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, position).unwrap();
}

pub(crate) fn flip(path: &Path, position: u64) {
    let mut byte = [0];
    File::open(path).unwrap().read_exact_at(&mut byte, position).unwrap();
    write_at(path, position, &[byte[0] ^ 0x10]);
}

/// Positions of all frames in a segment, by their magic.
pub(crate) fn frames(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).unwrap();
    (4096..bytes.len())
        .step_by(8)
        .filter(|at| bytes[*at..].starts_with(b"DNLF"))
        .map(|at| at as u64)
        .collect()
}

/// The system's disk, with faults: how many of the next calls fail, and how much space there is.
#[derive(Debug)]
pub(crate) struct FaultyDisk {
    pub(crate) syncs_failing: AtomicI64,
    pub(crate) writes_failing: AtomicI64,
    /// The thread of this name meets a bug when it next comes by.
    pub(crate) breaks: Mutex<Option<&'static str>>,
    pub(crate) quota_bytes: AtomicU64,
    /// How long the housekeeper takes to allocate.
    pub(crate) housekeeper_millis: AtomicU64,
    /// Files whose sync failed: another one could succeed without having written what was lost.
    spoilt: Mutex<HashSet<(u64, SystemTime)>>,
}

impl Default for FaultyDisk {
    fn default() -> Self {
        Self {
            syncs_failing: AtomicI64::new(0),
            writes_failing: AtomicI64::new(0),
            breaks: Mutex::default(),
            quota_bytes: AtomicU64::new(u64::MAX),
            housekeeper_millis: AtomicU64::new(0),
            spoilt: Mutex::default(),
        }
    }
}

impl FaultyDisk {
    fn meet_bug(&self) {
        let breaks = *self.breaks.lock().unwrap();
        assert!(breaks.is_none() || thread::current().name() != breaks, "a bug");
    }
}

impl Disk for FaultyDisk {
    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        self.meet_bug();
        if thread::current().name() == Some("journal-house") {
            thread::sleep(Duration::from_millis(self.housekeeper_millis.load(Ordering::SeqCst)));
        }
        let more = bytes.saturating_sub(file.metadata()?.len());
        let taken =
            self.quota_bytes.try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(more));
        if taken.is_err() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        SystemDisk.allocate(file, bytes)
    }

    fn write(&self, file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
        self.meet_bug();
        assert!(!self.spoilt.lock().unwrap().contains(&identity(file)), "a spoilt file is written");
        fails(&self.writes_failing)?;
        SystemDisk.write(file, bytes, position)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let mut spoilt = self.spoilt.lock().unwrap();
        assert!(!spoilt.contains(&identity(file)), "a file is synced again after that failed");
        let synced = fails(&self.syncs_failing);
        if synced.is_err() {
            spoilt.insert(identity(file));
        }
        drop(spoilt);
        synced.and_then(|()| SystemDisk.sync(file))
    }
}

/// Inodes are used again once their file is deleted.
fn identity(file: &File) -> (u64, SystemTime) {
    let metadata = file.metadata().unwrap();
    (metadata.ino(), metadata.created().unwrap())
}

fn fails(left: &AtomicI64) -> io::Result<()> {
    if left.fetch_sub(1, Ordering::SeqCst) > 0 {
        return Err(io::Error::from_raw_os_error(5));
    }
    left.store(0, Ordering::SeqCst);
    Ok(())
}
