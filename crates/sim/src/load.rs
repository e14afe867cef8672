//! The loader: as many QoS 1 messages as the server acknowledges, or a fixed rate of them, and how long each took.
//!
//! One thread, one epoll, a window of pre-encoded packets per connection: the loader shares its cores with the server
//! it measures, so a message costs it two system calls per window and a few bytes patched in place. With a rate, the
//! latency of a message counts from the moment it was due, not from the moment it could be sent.
//!
//! With a record it is a witness too: it knows of every message whether it was acknowledged, refused or never
//! answered, and repeats the unanswered (DUP, same packet id) on a new connection.

mod lane; // one connection
mod outcomes; // what became of each message
mod ring; // what is sent

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::SmallRng};
use serde::Serialize;

use self::{
    lane::{Answers, Lane, Link, Lost},
    ring::Ring,
};
use crate::{
    backoff::Backoff,
    latency::{Latencies, Latency, cpu_seconds},
    payload::{Payload, SEQ_FIRST, SEQ_LAST},
    poll::Poll,
    schedule::Schedule,
    sockets,
    stream::Stream,
    tls::Tls,
    wire::{self, Connect, Version, WireError},
};

pub use self::outcomes::{Outcome, Outcomes, Run};

/// Messages in flight on one connection.
pub const WINDOW_MAX: u16 = 4_096;
/// Waits between two tries to connect again, if nothing else is wished.
pub const BACKOFF: Backoff = Backoff { first: Duration::from_millis(50), max: Duration::from_secs(1) };
const WAIT_MAX: Duration = Duration::from_millis(100);

/// A device to speak as: its access token, and its name for the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub token: Option<String>,
    pub device: String,
}

/// What to do.
#[derive(Debug, Clone)]
pub struct Config {
    pub target: SocketAddr,
    pub version: Version,
    pub topic: String,
    pub payload: Payload,
    /// Connections speak as these in turn; never empty.
    pub identities: Vec<Identity>,
    pub connections: usize,
    /// Messages in flight per connection.
    pub window: u16,
    /// Messages per second over all connections; `None` sends as soon as there is room.
    pub messages_per_second: Option<f64>,
    pub warm_up: Duration,
    pub measured: Duration,
    /// How long answers are awaited after the last message.
    pub drain: Duration,
    /// The sequence number each connection begins with, `SEQ_FIRST` or more.
    pub seq_first: u64,
    /// Keep the outcome of every message.
    pub record: bool,
    /// For how long a lost connection is tried again; zero makes a lost connection an error.
    pub reconnect_for: Duration,
    pub backoff: Backoff,
    /// Of the waits before a connection is tried again.
    pub seed: u64,
    /// Sessions end with their connection, also those that are tried again.
    pub clean_sessions: bool,
    pub tls: Option<Tls>,
}

/// What happened.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub connections: usize,
    pub window: u16,
    pub packet_bytes: usize,
    pub target_messages_per_second: Option<f64>,
    pub measured_seconds: f64,
    /// Acknowledged per second of the measured time.
    pub acked_per_second: f64,
    /// Of the whole run, warm-up and drain included.
    pub sent: u64,
    pub acked: u64,
    pub refused: u64,
    /// Sent and never answered.
    pub unknown: u64,
    /// Due by the schedule and never sent, because the window stayed full to the end.
    pub unsent: u64,
    pub reconnects: u64,
    /// Of the messages due in the measured time.
    pub latency_micros: Latency,
    /// Processor time of the loader itself.
    pub loader_cpu_seconds: f64,
    #[serde(skip)]
    pub record: Vec<(String, Outcomes)>,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{0}")]
    Config(String),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("connect to {target} as {device}")]
    Connect { target: SocketAddr, device: String, source: io::Error },
    #[error("connection of {device} lost: {reason}")]
    Lost { device: String, reason: String },
    #[error("wait for the sockets")]
    Poll(#[from] io::Error),
}

/// Runs to the end of the measured time and the answers to what was sent in it. Blocks the thread.
pub fn run(config: &Config) -> Result<Report, LoadError> {
    check(config)?;
    let mut load = Load::connect(config)?;
    load.drive()?;
    Ok(load.report())
}

fn check(config: &Config) -> Result<(), LoadError> {
    let wrong = |what: &str| Err(LoadError::Config(what.to_owned()));
    if config.connections == 0 || config.identities.is_empty() {
        return wrong("at least one connection and one identity are needed");
    }
    if config.window == 0 || config.window > WINDOW_MAX {
        return Err(LoadError::Config(format!(
            "a window is 1 to {WINDOW_MAX} messages, not {}",
            config.window
        )));
    }
    if config.messages_per_second.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
        return wrong("a rate is more than 0 messages per second");
    }
    if !(SEQ_FIRST..SEQ_LAST).contains(&config.seq_first) {
        return Err(LoadError::Config(format!("the first sequence number is {SEQ_FIRST} to {SEQ_LAST}")));
    }
    if config.record && matches!(config.payload, Payload::Fixed { .. }) {
        return wrong("a record needs sequence numbers, so it needs telemetry payloads");
    }
    Ok(())
}

struct Load<'a> {
    config: &'a Config,
    poll: Poll,
    ready: Vec<usize>,
    lanes: Vec<Lane>,
    schedule: Option<Schedule>,
    /// Messages released by the schedule so far.
    released: u64,
    measure: Measure,
    reconnects: u64,
    chance: SmallRng,
    started: Instant,
    packet_bytes: usize,
    /// Lanes that are not connected.
    down: usize,
}

/// All times are nanoseconds from the start of the load.
struct Measure {
    now: u64,
    from: u64,
    until: u64,
    latencies: Latencies,
    acked: u64,
    refused: u64,
    acked_measured: u64,
}

impl Answers for Measure {
    #[inline]
    fn answered(&mut self, due_at: u64, accepted: bool) {
        if !accepted {
            self.refused += 1;
            return;
        }
        self.acked += 1;
        self.acked_measured += u64::from((self.from..self.until).contains(&self.now));
        if (self.from..self.until).contains(&due_at) {
            self.latencies.record(self.now.saturating_sub(due_at));
        }
    }
}

impl<'a> Load<'a> {
    /// Opens all connections and waits until the server has let them in.
    fn connect(config: &'a Config) -> Result<Self, LoadError> {
        let from = config.warm_up.as_nanos() as u64;
        let until = from + config.measured.as_nanos() as u64;
        let latencies = Latencies::new();
        let mut load = Self {
            config,
            poll: Poll::new()?,
            ready: Vec::new(),
            lanes: Vec::with_capacity(config.connections),
            schedule: config.messages_per_second.map(|rate| Schedule::new(rate, config.connections)),
            released: 0,
            measure: Measure { now: 0, from, until, latencies, acked: 0, refused: 0, acked_measured: 0 },
            reconnects: 0,
            chance: SmallRng::seed_from_u64(config.seed),
            started: Instant::now(),
            packet_bytes: 0,
            down: 0,
        };
        // Connections of one device must not give out the same sequence numbers.
        let sharing = config.connections.div_ceil(config.identities.len()) as u64;
        let seq_span = (SEQ_LAST - config.seq_first) / sharing;
        for index in 0..config.connections {
            let identity = &config.identities[index % config.identities.len()];
            let seq_first = config.seq_first + (index / config.identities.len()) as u64 * seq_span;
            let mut connect = Vec::new();
            let client_id = format!("load-{index}-{}", config.seq_first);
            wire::encode_connect(
                &Connect {
                    version: config.version,
                    client_id: &client_id,
                    user_name: identity.token.as_deref(),
                    clean: config.reconnect_for.is_zero() || config.clean_sessions,
                    keep_alive_seconds: 0,
                },
                &mut connect,
            )?;
            let ring = Ring::new(config.version, &config.topic, config.payload, config.window)?;
            load.packet_bytes = ring.packet_bytes;
            load.lanes.push(Lane::new(
                index,
                identity.device.clone(),
                connect,
                config.tls.as_ref().map(Tls::of_device),
                ring,
                seq_first,
                config.record,
            ));
            load.down += 1;
            load.open(index)?;
        }
        let mut scratch = vec![0; lane::READ_BYTES];
        while load.down > 0 {
            load.reopen()?;
            load.wait(WAIT_MAX, &mut scratch, |_, _| Ok(()))?;
        }
        Ok(load)
    }

    fn drive(&mut self) -> Result<(), LoadError> {
        let mut scratch = vec![0; lane::READ_BYTES];
        self.started = Instant::now();
        self.measure.now = 0;
        for index in 0..self.lanes.len() {
            self.send(index)?;
        }
        let end = self.measure.until + self.config.drain.as_nanos() as u64;
        loop {
            self.measure.now = self.started.elapsed().as_nanos() as u64;
            let sending = self.measure.now < self.measure.until;
            self.release()?;
            if self.measure.now >= end || (!sending && self.is_drained()) {
                return Ok(());
            }
            if self.down > 0 {
                self.reopen()?;
            }
            let pause = match &self.schedule {
                Some(schedule) if sending => schedule.pause(self.measure.now).min(WAIT_MAX),
                _ => WAIT_MAX,
            };
            let until_turn = if sending { self.measure.until } else { end } - self.measure.now;
            self.wait(pause.min(Duration::from_nanos(until_turn)), &mut scratch, Self::send)?;
        }
    }

    /// Gives the messages that have come due to their lanes.
    fn release(&mut self) -> Result<(), LoadError> {
        let Some(schedule) = self.schedule else { return Ok(()) };
        let due = schedule.due(self.measure.now.min(self.measure.until));
        let lanes = self.lanes.len() as u64;
        let from = self.released;
        self.released = due;
        // Every lane sends all that it may, so no lane needs to be asked twice.
        for n in from..due.min(from + lanes) {
            self.send((n % lanes) as usize)?;
        }
        Ok(())
    }

    /// Fills the lane's window with what it may send and writes it.
    fn send(&mut self, index: usize) -> Result<(), LoadError> {
        let lanes = self.lanes.len() as u64;
        let now = self.measure.now;
        let lane = &mut self.lanes[index];
        let stamp = self.config.payload.stamp();
        match self.schedule {
            Some(schedule) => {
                // Messages of this lane are those with n % lanes == index.
                let allowed = (self.released + lanes - 1 - index as u64) / lanes;
                while lane.next() < allowed && lane.has_room() {
                    lane.take(schedule.due_at(index as u64, lane.next()), stamp);
                }
            }
            None if now < self.measure.until => {
                while lane.has_room() {
                    lane.take(now, stamp);
                }
            }
            None => {}
        }
        match lane.flush() {
            Ok(()) => Ok(()),
            Err(lost) => self.lost(index, lost),
        }
    }

    /// Waits for the sockets and takes in what they bring; `then` is called for every lane that had something.
    fn wait(
        &mut self,
        longest: Duration,
        scratch: &mut [u8],
        then: fn(&mut Self, usize) -> Result<(), LoadError>,
    ) -> Result<(), LoadError> {
        let mut ready = std::mem::take(&mut self.ready);
        ready.clear();
        self.poll.wait(longest, &mut ready)?;
        for &index in &ready {
            self.measure.now = self.started.elapsed().as_nanos() as u64;
            match self.lanes[index].read(scratch, &mut self.measure) {
                Ok(let_in) => self.down -= usize::from(let_in),
                Err(lost) => self.lost(index, lost)?,
            }
            then(self, index)?;
        }
        self.ready = ready;
        Ok(())
    }

    fn open(&mut self, index: usize) -> Result<(), LoadError> {
        let Link::Down { failures, since, .. } = self.lanes[index].link else { return Ok(()) };
        let opened = sockets::open(self.config.target, index).and_then(|stream| {
            self.poll.add(&stream, index)?;
            Stream::new(stream, self.lanes[index].tls.as_ref())
        });
        match opened {
            Ok(stream) => match self.lanes[index].opened(stream, failures, since) {
                Ok(()) => Ok(()),
                Err(lost) => self.lost(index, lost),
            },
            Err(source) if self.config.reconnect_for.is_zero() => Err(LoadError::Connect {
                target: self.config.target,
                device: self.lanes[index].device.clone(),
                source,
            }),
            Err(error) => self.lost(index, error.into()),
        }
    }

    /// Tries those lanes again whose time has come.
    fn reopen(&mut self) -> Result<(), LoadError> {
        self.measure.now = self.started.elapsed().as_nanos() as u64;
        for index in 0..self.lanes.len() {
            if matches!(self.lanes[index].link, Link::Down { retry_at, .. } if retry_at <= self.measure.now) {
                self.open(index)?;
            }
        }
        Ok(())
    }

    fn lost(&mut self, index: usize, lost: Lost) -> Result<(), LoadError> {
        let now = self.measure.now;
        let lane = &mut self.lanes[index];
        let (failures, since) = match lane.link {
            Link::Down { failures, since, .. } | Link::Greeting { failures, since, .. } => (failures, since),
            Link::Up(_) => {
                self.down += 1;
                self.reconnects += 1;
                (0, now)
            }
        };
        if Duration::from_nanos(now.saturating_sub(since)) >= self.config.reconnect_for {
            return Err(lost.into_error(&lane.device));
        }
        tracing::debug!(device = %lane.device, error = %lost, "connection lost");
        let wait = self.config.backoff.wait(failures, &mut self.chance);
        lane.link = Link::Down { retry_at: now + wait.as_nanos() as u64, failures: failures + 1, since };
        Ok(())
    }

    fn is_drained(&self) -> bool {
        let lanes = self.lanes.len() as u64;
        self.lanes.iter().all(|lane| {
            let behind = self.schedule.is_some()
                && lane.next() < (self.released + lanes - 1 - lane.index as u64) / lanes;
            lane.in_flight() == 0 && !behind
        })
    }

    fn report(self) -> Report {
        let sent = self.lanes.iter().map(Lane::next).sum();
        let mut unknown = 0;
        let mut record = Vec::new();
        for lane in self.lanes {
            let (device, outcomes, unanswered) = lane.finish();
            unknown += unanswered;
            record.extend(outcomes.map(|outcomes| (device, outcomes)));
        }
        let measured_seconds = self.config.measured.as_secs_f64();
        Report {
            connections: self.config.connections,
            window: self.config.window,
            packet_bytes: self.packet_bytes,
            target_messages_per_second: self.config.messages_per_second,
            measured_seconds,
            acked_per_second: self.measure.acked_measured as f64 / measured_seconds,
            sent,
            acked: self.measure.acked,
            refused: self.measure.refused,
            unknown,
            unsent: self.schedule.map_or(0, |_| self.released.saturating_sub(sent)),
            reconnects: self.reconnects,
            latency_micros: self.measure.latencies.summary(),
            loader_cpu_seconds: cpu_seconds(),
            record,
        }
    }
}
