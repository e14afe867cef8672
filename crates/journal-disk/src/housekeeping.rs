//! What need not stand in the way of an acknowledgement. Each step looks at what is, and may be run again.

use std::{
    fs::{self, File, OpenOptions},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use dunlin_model::Timestamp;

use crate::{
    Config,
    commit::Trouble,
    disk::is_out_of_space,
    journal::Log,
    segment::{Segment, index_path, segment_path},
    side_file::{self, sync_dir},
};

const POSITIONS_EVERY: Duration = Duration::from_secs(1);
const TRIM_EVERY: Duration = Duration::from_secs(10);
/// The retention's clock takes no larger steps than this from one trim to the next, so that a server whose clock
/// jumps ahead by a year does not delete a year.
const RETENTION_STEP_MAX: Duration = Duration::from_secs(3600);

/// The thread's work, until the journal ends.
pub(crate) fn run(log: &Arc<Log>) {
    let mut trimmed = Instant::now();
    let mut sealed_up_to = 0;
    let mut is_last = false;
    while !is_last {
        std::thread::park_timeout(POSITIONS_EVERY);
        is_last = log.has_ended();
        if !is_last {
            extend(log);
            prepare_spare(log);
        }
        seal(log, &mut sealed_up_to);
        if let Err(error) = log.positions.save() {
            tracing::warn!(%error, "the journal's consumer positions were not saved");
        }
        if trimmed.elapsed() >= TRIM_EVERY {
            trimmed = Instant::now();
            if let Err(error) = trim(log) {
                tracing::warn!(%error, "the journal's oldest segments were not trimmed");
            }
        }
    }
}

/// A segment's file while it is filled.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) sequence: u64,
    pub(crate) file: File,
    used: AtomicU64,
    allocated: AtomicU64,
    allocating: Mutex<()>,
}

impl Space {
    /// A new file in the directory, with its first step of space.
    pub(crate) fn create(log: &Log) -> Result<Arc<Self>, Trouble> {
        let sequence = log.next_sequence();
        let path = segment_path(&log.config.dir, sequence);
        let bytes = log.config.preallocate_bytes;
        let created = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = created.map_err(|e| no_space_or("creating a segment", bytes, e))?;
        let allocated = log.disk.allocate(&file, bytes).and_then(|()| sync_dir(&log.config.dir));
        if let Err(error) = allocated {
            let _ = fs::remove_file(&path); // Empty, and ignored at the next start if it stays.
            return Err(no_space_or("allocating space", bytes, error));
        }
        Ok(Arc::new(Self {
            sequence,
            file,
            used: AtomicU64::new(0),
            allocated: AtomicU64::new(bytes),
            allocating: Mutex::new(()),
        }))
    }

    /// Makes sure that the file can be written up to `bytes`.
    pub(crate) fn ensure(&self, log: &Log, bytes: u64) -> Result<(), Trouble> {
        if self.has(bytes) {
            return Ok(());
        }
        let _one_at_a_time = self.allocating.lock().unwrap_or_else(|p| p.into_inner());
        if self.has(bytes) {
            return Ok(());
        }
        let wanted = bytes.next_multiple_of(log.config.preallocate_bytes);
        let allocated = log.disk.allocate(&self.file, wanted);
        let missing = bytes - self.used.load(Ordering::Acquire).min(bytes);
        allocated.map_err(|e| no_space_or("allocating space", missing, e))?;
        self.allocated.store(wanted, Ordering::Release);
        Ok(())
    }

    pub(crate) fn has(&self, bytes: u64) -> bool {
        self.allocated_bytes() >= bytes
    }

    pub(crate) fn used_up_to(&self, end: u64) {
        self.used.store(end, Ordering::Release);
    }

    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.allocated.load(Ordering::Acquire)
    }

    /// Whether the next step, or the next segment, should be made ready.
    pub(crate) fn is_running_out(&self, config: &Config) -> bool {
        let used = self.used.load(Ordering::Acquire);
        used + config.preallocate_bytes > self.allocated_bytes() || used > config.segment_bytes / 2
    }
}

fn no_space_or(operation: &'static str, bytes: u64, error: io::Error) -> Trouble {
    if is_out_of_space(&error) {
        Trouble::NoSpace { bytes, reason: error.to_string() }
    } else {
        Trouble::failed(operation)(error)
    }
}

/// Allocates the next step before the writer needs it. A failure is the writer's to meet.
fn extend(log: &Log) {
    let Some(space) = log.space() else { return };
    let ahead = space.used.load(Ordering::Acquire) + log.config.preallocate_bytes;
    if ahead < log.config.segment_bytes
        && let Err(trouble) = space.ensure(log, ahead)
    {
        tracing::debug!(?trouble, "space for the journal was not allocated ahead");
    }
}

/// Has the next segment ready when this one is half full.
fn prepare_spare(log: &Log) {
    let half_full = |s: Arc<Space>| s.used.load(Ordering::Acquire) > log.config.segment_bytes / 2;
    if log.space().is_some_and(half_full)
        && let Err(trouble) = log.prepare_spare()
    {
        tracing::debug!(?trouble, "the journal's next segment was not prepared");
    }
}

/// Writes the index of every segment that has a successor, and gives back the space it did not use.
fn seal(log: &Log, sealed_up_to: &mut u64) {
    let unsealed: Vec<Segment> = {
        let catalog = log.catalog_read();
        let newest = catalog.segments().next_back().map_or(0, |s| s.sequence);
        let finished = |s: &&Segment| s.sequence > *sealed_up_to && s.sequence < newest;
        catalog.segments().filter(finished).cloned().collect()
    };
    for segment in unsealed {
        let path = index_path(&log.config.dir, segment.sequence);
        if !path.exists()
            && let Err(error) = write_index(log, &segment)
        {
            tracing::warn!(%error, segment = segment.sequence, "a segment's index was not written");
            break;
        }
        *sealed_up_to = segment.sequence;
    }
    log.measure();
}

fn write_index(log: &Log, segment: &Segment) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(segment_path(&log.config.dir, segment.sequence))?;
    file.set_len(segment.end)?;
    let index = postcard::to_stdvec(segment).map_err(io::Error::other)?;
    side_file::store(&index_path(&log.config.dir, segment.sequence), &index)
}

/// The index of a sealed segment, if it is there, whole, and about the same bytes.
pub(crate) fn load_index(log_dir: &std::path::Path, sequence: u64, end: u64) -> Option<Segment> {
    let bytes = side_file::load(&index_path(log_dir, sequence)).ok()??;
    let segment: Segment = postcard::from_bytes(&bytes?).ok()?;
    (segment.sequence == sequence && segment.end == end && segment.is_sound()).then_some(segment)
}

/// Deletes the oldest segments that are too old or too many, up to the first that a consumer has not passed.
/// Returns how many.
pub(crate) fn trim(log: &Log) -> io::Result<usize> {
    // Only positions that a crash cannot take back count. On a full disk they cannot be saved, and what was saved
    // before is what frees it.
    if let Err(error) = log.positions.save() {
        tracing::warn!(%error, "consumers' positions are not saved");
    }
    let now = log.retention_now(RETENTION_STEP_MAX);
    let mut trimmed = 0;
    while let Some(sequence) = oldest_to_trim(log, now) {
        // The file first: a segment that is left behind by one that follows it would look like a loss.
        match fs::remove_file(segment_path(&log.config.dir, sequence)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let _ = fs::remove_file(index_path(&log.config.dir, sequence)); // Derived, and may not exist.
        if !log.catalog_write().forget_oldest(sequence) {
            break;
        }
        tracing::info!(segment = sequence, "the journal's retention removed a segment");
        trimmed += 1;
    }
    log.measure();
    Ok(trimmed)
}

fn oldest_to_trim(log: &Log, now: Timestamp) -> Option<u64> {
    let catalog = log.catalog_read();
    let bytes: u64 = catalog.segments().map(|s| s.end).sum();
    let mut segments = catalog.segments();
    let oldest = segments.next()?;
    segments.next()?; // The newest is never trimmed.
    let is_too_much = bytes > log.config.retention_bytes;
    let is_too_old = oldest.newest_at + Duration::from_secs(log.config.retention_seconds) < now;
    let is_passed = log.positions.least().iter().all(|(place, position)| oldest.next[*place] <= position.0);
    ((is_too_much || is_too_old) && is_passed).then_some(oldest.sequence)
}
