use std::{fs::File, io, os::unix::fs::FileExt};

use crate::frame::{FRAME_ALIGN, FRAME_BYTES, FRAME_MAGIC, Frame, HEADER_BYTES, crc32c};

/// Goes through a segment, frame by frame, with large reads.
#[derive(Debug)]
pub(crate) struct Scan<'a> {
    file: &'a File,
    stamp: u64,
    chunk_bytes: usize,
    /// Where the scan stands, and where it ends.
    position: u64,
    end: u64,
    /// A window of the file.
    buffer: Vec<u8>,
    buffer_start: u64,
}

#[derive(Debug)]
pub(crate) enum Found {
    /// A header that is right, with its payload loaded but not checked.
    Frame {
        position: u64,
        frame: Frame,
    },
    Damage {
        position: u64,
        reason: &'static str,
    },
    End,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(file: &'a File, stamp: u64, from: u64, end: u64, chunk_bytes: usize) -> Self {
        Self { file, stamp, chunk_bytes, position: from, end, buffer: Vec::new(), buffer_start: from }
    }

    /// After damage, every further call says the same.
    pub(crate) fn next(&mut self) -> io::Result<Found> {
        let position = self.position;
        if position >= self.end {
            return Ok(Found::End);
        }
        let damage = |reason| Ok(Found::Damage { position, reason });
        let Some(header) = self.window(position, FRAME_BYTES)?.and_then(|b| b.first_chunk()) else {
            return damage("the file ends within a frame's header");
        };
        let header = *header;
        let frame = match Frame::decode(&header, self.stamp) {
            Ok(frame) => frame,
            Err(reason) => return damage(reason),
        };
        if frame.durable_up_to > position || frame.durable_up_to < HEADER_BYTES {
            return damage("the frame says that more was durable than was before it");
        }
        if self.window(position, frame.stored_bytes() as usize)?.is_none() {
            return damage("the file ends within a frame");
        }
        self.position += frame.stored_bytes();
        Ok(Found::Frame { position, frame })
    }

    /// The payload of the frame that `next` just returned, if its checksum matches.
    pub(crate) fn payload(&self, position: u64, frame: &Frame) -> Option<&[u8]> {
        let start = (position - self.buffer_start) as usize + FRAME_BYTES;
        let payload = self.buffer.get(start..start + frame.payload_bytes as usize)?;
        (crc32c(payload) == frame.payload_crc).then_some(payload)
    }

    /// `len` bytes at `position`, or `None` if there are not that many before the end.
    fn window(&mut self, position: u64, len: usize) -> io::Result<Option<&[u8]>> {
        if position + len as u64 > self.end {
            return Ok(None);
        }
        let loaded_up_to = self.buffer_start + self.buffer.len() as u64;
        if position < self.buffer_start || position + len as u64 > loaded_up_to {
            let wanted = (self.chunk_bytes.max(len) as u64).min(self.end - position) as usize;
            self.buffer.resize(wanted, 0);
            self.buffer_start = position;
            let read = read_up_to(self.file, &mut self.buffer, position)?;
            self.buffer.truncate(read);
        }
        let start = (position - self.buffer_start) as usize;
        Ok(self.buffer.get(start..start + len))
    }
}

/// What lies in a segment beyond the last good frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Beyond {
    /// The furthest position that a frame found there says was durable.
    pub(crate) durable_up_to: u64,
    /// Where the last byte that is not zero is, plus one.
    pub(crate) written_up_to: u64,
}

/// Looks at every place where a frame could start; headers are enough, because a header says what was durable.
pub(crate) fn look_beyond(file: &File, stamp: u64, from: u64, end: u64) -> io::Result<Beyond> {
    const CHUNK_BYTES: usize = 1 << 20;
    let mut beyond = Beyond { durable_up_to: 0, written_up_to: from };
    let mut buffer = vec![0; CHUNK_BYTES + FRAME_BYTES];
    let mut start = from.next_multiple_of(FRAME_ALIGN as u64);
    while start < end {
        let wanted = ((end - start) as usize).min(buffer.len());
        let read = read_up_to(file, &mut buffer[..wanted], start)?;
        let bytes = &buffer[..read];
        if let Some(last) = bytes.iter().rposition(|b| *b != 0) {
            beyond.written_up_to = beyond.written_up_to.max(start + last as u64 + 1);
            for (n, at) in (0..bytes.len()).step_by(FRAME_ALIGN).enumerate() {
                let Some(header) = bytes[at..].first_chunk::<FRAME_BYTES>() else { break };
                if header[..4] != FRAME_MAGIC {
                    continue;
                }
                let position = start + (n * FRAME_ALIGN) as u64;
                if let Ok(frame) = Frame::decode(header, stamp)
                    && frame.durable_up_to <= position
                {
                    beyond.durable_up_to = beyond.durable_up_to.max(frame.durable_up_to);
                }
            }
        }
        start += CHUNK_BYTES as u64;
    }
    Ok(beyond)
}

/// Fills `buffer` unless the file ends before.
pub(crate) fn read_up_to(file: &File, buffer: &mut [u8], position: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], position + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
