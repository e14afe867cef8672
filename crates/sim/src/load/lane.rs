//! One connection of the loader: a window of packets that are written in order and freed by their acks.

use std::io::{self, Read, Write};

use super::{LoadError, Outcome, Outcomes, ring::Ring};
use crate::{
    stream::Stream,
    tls::Tls,
    wire::{Incoming, PUBLISH_QOS1_DUP, WireError, parse},
};

/// What one read may bring: many acks.
pub(super) const READ_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) index: usize,
    pub(super) device: String,
    pub(super) link: Link,
    /// CONNECT, sent at the beginning of every connection.
    connect: Vec<u8>,
    pub(super) tls: Option<Tls>,
    ring: Ring,
    /// When the message in each slot was due, nanoseconds from the start.
    due_at: Box<[u64]>,
    done: Box<[bool]>,
    seq_first: u64,
    /// Messages 0.. : `head` is the oldest without an answer, `next` the first not taken from the schedule.
    head: u64,
    next: u64,
    /// Where the socket stands in the endless row of packets, in bytes.
    written: u64,
    /// Goes out before anything else: CONNECT, then what has to be repeated.
    urgent: Vec<u8>,
    urgent_written: usize,
    partial: Vec<u8>,
    outcomes: Option<Outcomes>,
}

#[derive(Debug)]
pub(super) enum Link {
    /// To be opened at this time, nanoseconds from the start, after so many failures.
    Down {
        retry_at: u64,
        failures: u32,
        since: u64,
    },
    /// Connected, CONNACK not yet seen.
    Greeting {
        stream: Stream,
        failures: u32,
        since: u64,
    },
    Up(Stream),
}

/// Who hears of answers: the measurement.
pub(super) trait Answers {
    fn answered(&mut self, due_at: u64, accepted: bool);
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server refused the connection with code {code}")]
    Refused { code: u8 },
    #[error("the server said good-bye with code {code:#04x}")]
    Goodbye { code: u8 },
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("the server acknowledged packet {packet_id}, which is not in flight")]
    AckForNothing { packet_id: u16 },
}

impl Lane {
    pub(super) fn new(
        index: usize,
        device: String,
        connect: Vec<u8>,
        tls: Option<Tls>,
        ring: Ring,
        seq_first: u64,
        record: bool,
    ) -> Self {
        let window = ring.window();
        Self {
            index,
            device,
            link: Link::Down { retry_at: 0, failures: 0, since: 0 },
            connect,
            tls,
            ring,
            due_at: vec![0; window].into(),
            done: vec![false; window].into(),
            seq_first,
            head: 0,
            next: 0,
            written: 0,
            urgent: Vec::new(),
            urgent_written: 0,
            partial: Vec::new(),
            outcomes: record.then(Outcomes::default),
        }
    }

    pub(super) fn opened(&mut self, stream: Stream, failures: u32, since: u64) -> Result<(), Lost> {
        self.urgent.clear();
        self.urgent.extend(&self.connect);
        self.urgent_written = 0;
        self.partial.clear();
        self.link = Link::Greeting { stream, failures, since };
        self.flush()
    }

    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.next - self.head
    }

    pub(super) fn has_room(&self) -> bool {
        self.in_flight() < self.ring.window() as u64
    }

    /// Puts the next message into the window.
    #[inline]
    pub(super) fn take(&mut self, due_at: u64, unix_milliseconds: u64) {
        let slot = self.slot(self.next);
        self.ring.fill(slot, self.seq_first + self.next, unix_milliseconds);
        self.due_at[slot] = due_at;
        self.done[slot] = false;
        self.next += 1;
    }

    /// Writes what is waiting, as far as the socket takes it.
    pub(super) fn flush(&mut self) -> Result<(), Lost> {
        let stream = match &mut self.link {
            Link::Down { .. } => return Ok(()),
            Link::Greeting { stream, .. } | Link::Up(stream) => stream,
        };
        while self.urgent_written < self.urgent.len() {
            match write(stream, &self.urgent[self.urgent_written..])? {
                Some(bytes) => self.urgent_written += bytes,
                None => return Ok(()),
            }
        }
        if matches!(self.link, Link::Greeting { .. }) {
            return Ok(());
        }
        let Link::Up(stream) = &mut self.link else { return Ok(()) };
        let end = self.next * self.ring.packet_bytes as u64;
        let ring_bytes = self.ring.bytes.len() as u64;
        while self.written < end {
            let from = (self.written % ring_bytes) as usize;
            let bytes = (end - self.written).min(ring_bytes - from as u64) as usize;
            match write(stream, &self.ring.bytes[from..from + bytes])? {
                Some(bytes) => self.written += bytes as u64,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Reads and takes in all answers that are there. Says whether the server has just let the connection in.
    pub(super) fn read(&mut self, scratch: &mut [u8], answers: &mut impl Answers) -> Result<bool, Lost> {
        let mut let_in = false;
        loop {
            let stream = match &mut self.link {
                Link::Down { .. } => return Ok(let_in),
                Link::Greeting { stream, .. } | Link::Up(stream) => stream,
            };
            let emptied_by_short_reads = stream.is_emptied_by_short_reads();
            let kept = self.partial.len();
            scratch[..kept].copy_from_slice(&self.partial);
            let bytes = match stream.read(&mut scratch[kept..]) {
                Ok(0) => return Err(Lost::Closed),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(let_in),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            self.partial.clear();
            let mut rest = &scratch[..kept + bytes];
            while let Some((incoming, length)) = parse(rest)? {
                rest = &rest[length..];
                match incoming {
                    Incoming::PubAck { packet_id, code } => self.answer(packet_id, code, answers)?,
                    Incoming::ConnAck { code: 0 } => {
                        self.let_in();
                        let_in = true;
                    }
                    Incoming::ConnAck { code } => return Err(Lost::Refused { code }),
                    Incoming::Disconnect { code } => return Err(Lost::Goodbye { code }),
                    Incoming::SubAck { .. } | Incoming::PingResp => {}
                }
            }
            self.partial.extend(rest);
            if kept + bytes < scratch.len() && emptied_by_short_reads {
                return Ok(let_in);
            }
        }
    }

    /// Ends the connection and gives what is known of every message.
    pub(super) fn finish(mut self) -> (String, Option<Outcomes>, u64) {
        if let Link::Up(stream) = &mut self.link {
            // A good-bye that does not fit changes nothing.
            let _ = stream.write(&crate::wire::DISCONNECT);
            stream.say_end();
        }
        let mut unknown = 0;
        for n in self.head..self.next {
            if !self.done[self.slot(n)] {
                unknown += 1;
                if let Some(outcomes) = &mut self.outcomes {
                    outcomes.push(self.seq_first + n, Outcome::Unknown);
                }
            }
        }
        (self.device, self.outcomes, unknown)
    }

    /// Repeats what is in flight, marked as possibly a repetition, before anything new is sent.
    fn let_in(&mut self) {
        let link = std::mem::replace(&mut self.link, Link::Down { retry_at: 0, failures: 0, since: 0 });
        self.link = match link {
            Link::Greeting { stream, .. } => Link::Up(stream),
            other => other,
        };
        for n in self.head..self.next {
            let slot = self.slot(n);
            if !self.done[slot] && n * (self.ring.packet_bytes as u64) < self.written {
                let at = self.urgent.len();
                self.urgent.extend_from_slice(self.ring.packet(slot));
                self.urgent[at] = PUBLISH_QOS1_DUP;
            }
        }
        // A packet of which a part went out is repeated as a whole, so the row goes on at its end.
        self.written = self.written.next_multiple_of(self.ring.packet_bytes as u64);
    }

    #[inline]
    fn answer(&mut self, packet_id: u16, code: u8, answers: &mut impl Answers) -> Result<(), Lost> {
        let window = self.ring.window();
        let slot = usize::from(packet_id).wrapping_sub(1);
        if slot >= window {
            return Err(Lost::AckForNothing { packet_id });
        }
        let n = self.head + ((slot + window - self.slot(self.head)) % window) as u64;
        if n >= self.next || self.done[slot] {
            return Err(Lost::AckForNothing { packet_id });
        }
        let accepted = code < 0x80;
        self.done[slot] = true;
        answers.answered(self.due_at[slot], accepted);
        if let Some(outcomes) = &mut self.outcomes {
            outcomes.push(self.seq_first + n, if accepted { Outcome::Acked } else { Outcome::Refused });
        }
        while self.head < self.next && self.done[self.slot(self.head)] {
            self.head += 1;
        }
        Ok(())
    }

    #[inline]
    fn slot(&self, n: u64) -> usize {
        (n % self.ring.window() as u64) as usize
    }
}

fn write(stream: &mut Stream, bytes: &[u8]) -> Result<Option<usize>, Lost> {
    loop {
        return match stream.write(bytes) {
            Ok(written) => Ok(Some(written)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error.into()),
        };
    }
}

impl Lost {
    pub(super) fn into_error(self, device: &str) -> LoadError {
        LoadError::Lost { device: device.to_owned(), reason: self.to_string() }
    }
}
