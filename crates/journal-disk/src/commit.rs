//! The one thread that writes. An append is answered only after the fdatasync that covers it has succeeded and
//! readers can see it.
//!
//! When a write or a sync fails, what the kernel still has of the file is not to be trusted: after a failed sync the
//! pages count as clean, and the next sync would succeed without having written them. So the segment is abandoned at
//! its last durable byte, everything under way fails, and appends are refused (the fence) until a new segment, whose
//! header says where the old one ends, has itself been written and synced. A failed sync is never called again.
//!
//! When space cannot be allocated nothing was written, so the segment stays, and appends are refused until it can.

use std::{
    fs, io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use dunlin_journal::{AppendError, Appended, Health, Offset, Recovery};
use dunlin_model::avro::SCHEMA_VERSION;

use crate::{
    catalog::Placed,
    frame::{FRAME_BYTES, Frame, HEADER_BYTES, Previous, SegmentHeader, stamp, stored_bytes},
    housekeeping::Space,
    journal::Log,
    queue::{Next, Pending},
    recovery::{Tail, verify_prefix},
    segment::{Segment, segment_path},
};

/// How long after a commit with nothing behind it the mark is written that proves it durable.
const MARK_AFTER: Duration = Duration::from_millis(10);
const SPACE_PROBE_EVERY: Duration = Duration::from_millis(500);
const REOPEN_AFTER_MIN: Duration = Duration::from_millis(100);
const REOPEN_AFTER_MAX: Duration = Duration::from_secs(10);
/// A payload from this size on is written from where it is; smaller ones are gathered first.
const WRITE_DIRECTLY_BYTES_MIN: usize = 64 << 10;

/// Why appends cannot go on.
#[derive(Debug, Clone)]
pub(crate) enum Trouble {
    /// Nothing was written; this much more space is needed.
    NoSpace { bytes: u64, reason: String },
    /// What was written may or may not be there.
    Failed { operation: &'static str, reason: String },
}

impl Trouble {
    pub(crate) fn failed(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Failed { operation, reason: error.to_string() }
    }

    pub(crate) fn append_error(&self) -> AppendError {
        match self.clone() {
            Self::NoSpace { reason, .. } => AppendError::Full { reason },
            Self::Failed { operation, reason } => AppendError::Fenced { operation, reason },
        }
    }

    pub(crate) fn health(&self) -> Health {
        let recovery = match self {
            Self::NoSpace { .. } => Recovery::Space,
            Self::Failed { .. } => Recovery::Reopen,
        };
        Health::Refusing { reason: self.append_error().to_string(), recovery }
    }
}

#[derive(Debug)]
pub(crate) struct Committer {
    log: Arc<Log>,
    /// The segment that is written, if there is one.
    newest: Option<Newest>,
    /// What the next segment's header will say is valid before it.
    previous: Option<Previous>,
    /// What recovery found and could not prove durable: it goes into the next segment before anything else.
    tail: Option<Tail>,
    /// The durable part of `previous` is read again before the fence is lifted.
    previous_in_doubt: bool,
    gather: Vec<u8>,
    /// The newest group has a successor or a mark on the disk.
    marked: bool,
}

#[derive(Debug, Clone)]
struct Newest {
    space: Arc<Space>,
    stamp: u64,
    /// Everything before is durable. `None` until the header is, which goes with the first group.
    durable: Option<u64>,
}

impl Committer {
    pub(crate) fn new(log: Arc<Log>, previous: Option<Previous>, tail: Option<Tail>) -> Self {
        Self { log, newest: None, previous, tail, previous_in_doubt: false, gather: Vec::new(), marked: true }
    }

    /// Writes what recovery left to be written. Before the first append.
    pub(crate) fn settle_tail(&mut self) -> Result<(), Trouble> {
        if self.tail.is_some() { self.reopen() } else { Ok(()) }
    }

    pub(crate) fn run(mut self, trouble: Option<Trouble>) {
        prefer_this_thread();
        if let Some(trouble) = trouble {
            self.refuse_until_able(trouble);
        }
        let linger = Duration::from_micros(self.log.config.linger_micros);
        let mut company = false;
        loop {
            let patience = if self.marked { Duration::from_secs(3600) } else { MARK_AFTER };
            match self.log.queue.take(patience, if company { linger } else { Duration::ZERO }) {
                Next::Write(group) => {
                    company = group.len() > 1;
                    self.commit(group);
                }
                Next::Idle => self.mark(),
                Next::End => break,
            }
        }
        self.mark();
        if let Some(newest) = &self.newest
            && let Err(error) = self.log.disk.sync(&newest.space.file)
        {
            tracing::warn!(%error, "the journal's last mark was not synced; the next start checks a little more");
        }
    }

    fn commit(&mut self, group: Vec<Pending>) {
        let (bytes, batches) = (group.iter().map(|p| p.payload.len()).sum(), group.len());
        match self.write(&group) {
            Ok(placed) => {
                self.publish(placed.clone());
                for (pending, placed) in group.into_iter().zip(placed) {
                    let appended = Appended { first: placed.frame.first, records: pending.records };
                    let _ = pending.reply.send(Ok(appended)); // The caller may have gone.
                }
                self.log.queue.settled(bytes, batches);
                self.log.progress.send_modify(|n| *n += 1);
                self.log.metrics.queue_bytes.set(self.log.queue.bytes() as i64);
            }
            Err(trouble) => {
                // Refused first, so that nobody who is told tries again at once and is let in.
                self.log.refuse(&trouble);
                for pending in group {
                    let _ = pending.reply.send(Err(trouble.append_error()));
                }
                self.log.queue.settled(bytes, batches);
                self.refuse_until_able(trouble);
            }
        }
    }

    /// Writes a group and makes it durable. What comes back is not readable yet.
    fn write(&mut self, group: &[Pending]) -> Result<Vec<Placed>, Trouble> {
        let bytes = group.iter().map(|p| stored_bytes(p.payload.len())).sum();
        let mut next = self.log.catalog_read().next();
        let newest = self.make_room(bytes)?;

        let appended_at = self.log.clock.now();
        let start = newest.durable.unwrap_or(HEADER_BYTES);
        let mut out = Gathered::new(&self.log, &newest, &mut self.gather);
        if newest.durable.is_none() {
            let header =
                SegmentHeader { previous: self.previous, created_at: appended_at, base: next.clone() };
            out.add(&header.encode(newest.stamp))?;
        } else {
            out.position = start;
        }
        let mut placed = Vec::with_capacity(group.len());
        for pending in group {
            let frame = Frame {
                at: pending.at,
                schema_version: SCHEMA_VERSION,
                first: Offset(next[pending.place]),
                records: pending.records,
                appended_at,
                durable_up_to: start,
                payload_bytes: pending.payload.len() as u32,
                payload_crc: pending.payload_crc,
            };
            next[pending.place] = frame.next().0;
            let payload = pending.payload.clone();
            placed.push(Placed { place: pending.place, position: out.end(), frame, payload });
            out.add_frame(&frame, &pending.payload)?;
        }
        let end = out.finish()?;
        self.sync(&newest)?;

        let records = group.iter().map(|p| u64::from(p.records)).sum();
        self.log.metrics.committed(group.len(), records, end - start);
        newest.space.used_up_to(end);
        if newest.durable.is_none() {
            let base = self.log.catalog_read().next();
            self.log.catalog_write().begin(Segment::begin(newest.space.sequence, base, appended_at));
        }
        if newest.durable.is_none() || newest.space.is_running_out(&self.log.config) {
            self.log.wake_housekeeper();
        }
        self.newest = Some(Newest { durable: Some(end), ..newest });
        self.marked = false;
        Ok(placed)
    }

    /// A segment with that much room, on a new one if need be.
    fn make_room(&mut self, bytes: u64) -> Result<Newest, Trouble> {
        if let Some(newest) = &self.newest
            && let Some(durable) = newest.durable
            && durable > HEADER_BYTES
            && durable + bytes > self.log.config.segment_bytes
        {
            self.previous = Some(Previous { sequence: newest.space.sequence, end: durable });
            self.newest = None;
        }
        let newest = match &self.newest {
            Some(newest) => newest,
            None => self.newest.insert(Newest::prepared(&self.log)?),
        };
        newest.space.ensure(&self.log, newest.durable.unwrap_or(HEADER_BYTES) + bytes)?;
        Ok(newest.clone())
    }

    fn publish(&self, placed: Vec<Placed>) {
        self.log.catalog_write().publish(placed);
    }

    fn sync(&self, newest: &Newest) -> Result<(), Trouble> {
        let started = Instant::now();
        self.log.disk.sync(&newest.space.file).map_err(Trouble::failed("fdatasync"))?;
        self.log.metrics.fdatasync_seconds.observe(started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Says on the disk that the newest group is durable, so that a later start can tell damage to it from a write
    /// that a crash cut short. Needs no sync: it is true whenever it gets there.
    fn mark(&mut self) {
        if std::mem::replace(&mut self.marked, true) {
            return;
        }
        let Some(Newest { space, stamp, durable: Some(durable) }) = &self.newest else { return };
        if space.has(*durable + FRAME_BYTES as u64)
            && let Err(error) =
                self.log.disk.write(&space.file, &Frame::mark(*durable).encode(*stamp), *durable)
        {
            // The next commit will meet the same disk and say so.
            tracing::debug!(%error, "the journal's mark was not written");
        }
    }

    /// Tries to go on until it works or the journal is closed. Appends are refused already.
    fn refuse_until_able(&mut self, mut trouble: Trouble) {
        let mut pause = REOPEN_AFTER_MIN;
        let mut tries = 0_u32;
        loop {
            match &trouble {
                Trouble::NoSpace { bytes, reason } if tries == 0 => tracing::error!(
                    dir = %self.log.config.dir.display(), needed_bytes = bytes, reason,
                    "the journal is out of space; it refuses appends until there is some"
                ),
                Trouble::NoSpace { .. } => {}
                Trouble::Failed { operation, reason } => {
                    self.abandon();
                    tracing::error!(
                        dir = %self.log.config.dir.display(), operation, reason, tries,
                        retry_after_ms = pause.as_millis(),
                        "the journal is fenced: nothing is acknowledged until a new segment is durable"
                    );
                }
            }
            let closed = self.log.queue.pause(match trouble {
                Trouble::NoSpace { .. } => SPACE_PROBE_EVERY,
                Trouble::Failed { .. } => pause,
            });
            if closed {
                return;
            }
            pause = (pause * 2).min(REOPEN_AFTER_MAX);
            tries += 1;
            match self.resume(&trouble) {
                Ok(()) => break,
                Err(again) => {
                    self.log.refuse(&again);
                    trouble = again;
                }
            }
        }
        self.log.metrics.writable();
        self.log.queue.accept();
        tracing::info!(dir = %self.log.config.dir.display(), tries, "the journal takes appends again");
    }

    fn resume(&mut self, trouble: &Trouble) -> Result<(), Trouble> {
        match (trouble, &self.newest) {
            (Trouble::NoSpace { bytes, .. }, Some(newest)) => {
                newest.space.ensure(&self.log, newest.durable.unwrap_or(HEADER_BYTES) + bytes)
            }
            _ => self.reopen(),
        }
    }

    /// Never to be written again. What was durable in it stays readable.
    fn abandon(&mut self) {
        let Some(newest) = self.newest.take() else { return };
        self.log.set_space(None);
        match newest.durable {
            Some(end) => {
                self.previous = Some(Previous { sequence: newest.space.sequence, end });
                self.previous_in_doubt = true;
            }
            // No header: recovery ignores the file, and its space is wanted.
            None => drop(fs::remove_file(segment_path(&self.log.config.dir, newest.space.sequence))),
        }
    }

    /// Goes on in a new segment, once that has proven that it can be written.
    fn reopen(&mut self) -> Result<(), Trouble> {
        if self.previous_in_doubt
            && let Some(previous) = self.previous
        {
            verify_prefix(&self.log, previous)
                .map_err(Trouble::failed("reading back the abandoned segment"))?;
            self.previous_in_doubt = false;
        }
        let newest = Newest::prepared(&self.log)?;
        let begun = self.begin_in(newest.clone());
        if begun.is_err() {
            self.log.set_space(None);
            // Whatever is in it, the segment before still has.
            let _ = fs::remove_file(segment_path(&self.log.config.dir, newest.space.sequence));
        }
        begun
    }

    /// Writes the tail, then the header, which takes the tail away from the segment before: so that one durably has it
    /// at any time.
    fn begin_in(&mut self, newest: Newest) -> Result<(), Trouble> {
        let mut placed = self.tail.as_ref().map_or(Vec::new(), |t| t.frames.clone());
        let bytes: u64 = placed.iter().map(|p| p.frame.stored_bytes()).sum();
        newest.space.ensure(&self.log, HEADER_BYTES + bytes)?;

        let mut out = Gathered::new(&self.log, &newest, &mut self.gather);
        out.position = HEADER_BYTES;
        for carried in &mut placed {
            carried.position = out.end();
            carried.frame.durable_up_to = HEADER_BYTES;
            out.add_frame(&carried.frame, &carried.payload)?;
        }
        let end = out.finish()?;
        if !placed.is_empty() {
            self.sync(&newest)?;
        }
        let base =
            self.tail.as_ref().map_or_else(|| self.log.catalog_read().next(), |t| t.next_before.clone());
        let created_at = self.log.clock.now();
        let header = SegmentHeader { previous: self.previous, created_at, base: base.clone() };
        let written = self.log.disk.write(&newest.space.file, &header.encode(newest.stamp), 0);
        written.map_err(Trouble::failed("write"))?;
        self.sync(&newest)?;

        let mut catalog = self.log.catalog_write();
        if let (Some(tail), Some(previous), Some(cut)) = (&self.tail, self.previous, catalog.newest_mut()) {
            cut.cut(previous.end, &tail.next_before);
        }
        catalog.begin(Segment::begin(newest.space.sequence, base, created_at));
        catalog.publish(placed);
        drop(catalog);
        newest.space.used_up_to(end);
        self.tail = None;
        self.newest = Some(Newest { durable: Some(end), ..newest });
        self.marked = false;
        self.log.wake_housekeeper();
        Ok(())
    }
}

impl Newest {
    fn prepared(log: &Arc<Log>) -> Result<Self, Trouble> {
        let space = log.next_space()?;
        log.set_space(Some(Arc::clone(&space)));
        let stamp = stamp(log.secret, space.sequence);
        Ok(Self { space, stamp, durable: None })
    }
}

/// Gathers small pieces, so that a group is written with few calls.
struct Gathered<'a> {
    log: &'a Log,
    newest: &'a Newest,
    pieces: &'a mut Vec<u8>,
    /// Where the pieces go.
    position: u64,
}

impl<'a> Gathered<'a> {
    fn new(log: &'a Log, newest: &'a Newest, pieces: &'a mut Vec<u8>) -> Self {
        pieces.clear();
        Self { log, newest, pieces, position: 0 }
    }

    fn end(&self) -> u64 {
        self.position + self.pieces.len() as u64
    }

    fn add_frame(&mut self, frame: &Frame, payload: &Bytes) -> Result<(), Trouble> {
        self.add(&frame.encode(self.newest.stamp))?;
        self.add(payload)?;
        let padding = frame.stored_bytes() as usize - FRAME_BYTES - payload.len();
        self.add(&[0; 8][..padding])
    }

    fn add(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        if bytes.len() < WRITE_DIRECTLY_BYTES_MIN {
            self.pieces.extend_from_slice(bytes);
            return Ok(());
        }
        self.flush()?;
        self.write(bytes)
    }

    fn flush(&mut self) -> Result<(), Trouble> {
        let pieces = std::mem::take(self.pieces);
        let written = if pieces.is_empty() { Ok(()) } else { self.write(&pieces) };
        *self.pieces = pieces;
        self.pieces.clear();
        written
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        let written = self.log.disk.write(&self.newest.space.file, bytes, self.position);
        written.map_err(Trouble::failed("write"))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Where the file's frames end now.
    fn finish(mut self) -> Result<u64, Trouble> {
        self.flush()?;
        Ok(self.position)
    }
}

/// A sync that waits behind other work for a processor is as slow as a slow disk.
fn prefer_this_thread() {
    const NICENESS: i32 = -10;
    let thread = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(thread), NICENESS) {
        tracing::debug!(%error, "the journal's writer runs at normal priority");
    }
}
