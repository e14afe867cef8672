//! Clients that do one thing after the other and wait for its answer each time, on a connection that is kept or on a
//! new one every time. One thread and one epoll for all of them, as in `load`.
//!
//! With a rate, the latency of an exchange counts from the moment it was due; without, from its beginning, which is
//! that of the connection if it needs a new one.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    latency::{Latencies, Latency, cpu_seconds},
    poll::Poll,
    schedule::Schedule,
    sockets::Fresh,
    stream::Stream,
    tls::Tls,
};

const WAIT_MAX: Duration = Duration::from_millis(100);
/// How long a client rests after its connection was lost.
const REST: Duration = Duration::from_millis(50);
const READ_BYTES: usize = 16 << 10;
/// An answer is a few hundred bytes; a server that sends so much without one is broken.
const HEARD_BYTES_MAX: usize = 64 << 10;

/// What clients do, whatever they say.
#[derive(Debug, Clone)]
pub struct Config {
    pub target: SocketAddr,
    pub clients: usize,
    /// New connections come from so many loopback addresses in turn.
    pub sources: u16,
    pub tls: Option<Tls>,
    /// Exchanges a second over all clients; `None` begins the next one with the answer to the one before.
    pub per_second: Option<f64>,
    pub warm_up: Duration,
    pub measured: Duration,
    /// How long answers are awaited after the measured time.
    pub drain: Duration,
}

/// What happened.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub clients: usize,
    pub target_per_second: Option<f64>,
    pub measured_seconds: f64,
    /// Exchanges that ended well, per second of the measured time.
    pub accepted_per_second: f64,
    /// Of the whole run, warm-up and drain included.
    pub begun: u64,
    pub accepted: u64,
    /// By the code of the answer.
    pub refused: BTreeMap<u16, u64>,
    /// Ended without an answer, and why the last one did.
    pub failed: u64,
    pub failure: Option<String>,
    pub connections: u64,
    /// Connections whose TLS went on from an earlier one.
    pub resumed: u64,
    /// Of the exchanges due in the measured time.
    pub latency_micros: Latency,
    pub loader_cpu_seconds: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("{0}")]
    Config(String),
    #[error("wait for the sockets")]
    Poll(#[from] io::Error),
    #[error("no exchange succeeded; the last one failed: {0}")]
    Fruitless(String),
}

/// What is said, and what the answer means. Nothing is remembered from one call to the next.
pub(crate) trait Talk {
    /// Appends how exchange number `n` of all begins.
    fn begin(&mut self, client: usize, n: u64, out: &mut Vec<u8>);
    /// Looks at what was heard; what has to be said next goes to `out`.
    fn hear(&mut self, client: usize, bytes: &[u8], out: &mut Vec<u8>) -> Result<Heard, String>;
    /// The last words on a connection.
    fn farewell(&self) -> &'static [u8];
}

/// What was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Not enough to know.
    Nothing,
    /// So many bytes, and the exchange goes on.
    Part(usize),
    /// The end of the exchange. `keep` if the connection is good for the next one.
    Answer { bytes: usize, accepted: bool, code: u16, keep: bool },
}

/// Runs to the end of the measured time and the answers to what was begun in it. Blocks the thread.
pub(crate) fn run(config: &Config, talk: impl Talk) -> Result<Report, ExchangeError> {
    if config.clients == 0 {
        return Err(ExchangeError::Config("at least one client is needed".into()));
    }
    if config.per_second.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
        return Err(ExchangeError::Config("a rate is more than 0 a second".into()));
    }
    let mut exchanges = Exchanges::new(config, talk)?;
    exchanges.drive()?;
    exchanges.report()
}

/// All times are nanoseconds from the start.
struct Exchanges<'a, T> {
    config: &'a Config,
    talk: T,
    poll: Poll,
    fresh: Fresh,
    clients: Vec<Client>,
    schedule: Option<Schedule>,
    /// Exchanges that have come due by the schedule.
    released: u64,
    started: Instant,
    now: u64,
    from: u64,
    until: u64,
    busy: usize,
    /// Clients that rest after a failure.
    resting: usize,
    latencies: Latencies,
    begun: u64,
    accepted: u64,
    accepted_measured: u64,
    refused: BTreeMap<u16, u64>,
    failed: u64,
    failure: Option<String>,
    connections: u64,
    resumed: u64,
}

struct Client {
    stream: Option<Stream>,
    tls: Option<Tls>,
    out: Vec<u8>,
    written: usize,
    heard: Vec<u8>,
    state: State,
    /// Exchanges begun.
    next: u64,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Free,
    Busy { due_at: u64 },
    Resting { until: u64 },
}

impl<'a, T: Talk> Exchanges<'a, T> {
    fn new(config: &'a Config, talk: T) -> Result<Self, ExchangeError> {
        let client = || Client {
            stream: None,
            tls: config.tls.as_ref().map(Tls::of_device),
            out: Vec::new(),
            written: 0,
            heard: Vec::new(),
            state: State::Free,
            next: 0,
        };
        let from = config.warm_up.as_nanos() as u64;
        Ok(Self {
            config,
            talk,
            poll: Poll::new()?,
            fresh: Fresh::new(config.target, config.sources),
            clients: std::iter::repeat_with(client).take(config.clients).collect(),
            schedule: config.per_second.map(|rate| Schedule::new(rate, config.clients)),
            released: 0,
            started: Instant::now(),
            now: 0,
            from,
            until: from + config.measured.as_nanos() as u64,
            busy: 0,
            resting: 0,
            latencies: Latencies::new(),
            begun: 0,
            accepted: 0,
            accepted_measured: 0,
            refused: BTreeMap::new(),
            failed: 0,
            failure: None,
            connections: 0,
            resumed: 0,
        })
    }

    fn drive(&mut self) -> Result<(), ExchangeError> {
        let mut scratch = vec![0; READ_BYTES];
        let mut ready = Vec::new();
        self.started = Instant::now();
        for index in 0..self.clients.len() {
            self.advance(index, &mut scratch);
        }
        let end = self.until + self.config.drain.as_nanos() as u64;
        loop {
            self.tick();
            self.release(&mut scratch);
            let sending = self.now < self.until;
            let behind = self.schedule.is_some() && self.begun < self.released;
            if self.now >= end || (!sending && self.busy == 0 && !behind) {
                return Ok(());
            }
            if self.resting > 0 {
                self.wake(&mut scratch);
            }
            let pause = match &self.schedule {
                Some(schedule) if sending => schedule.pause(self.now).min(WAIT_MAX),
                _ => WAIT_MAX,
            };
            let until_turn = Duration::from_nanos(if sending { self.until } else { end } - self.now);
            let until_wake = if self.resting > 0 { REST } else { WAIT_MAX };
            ready.clear();
            self.poll.wait(pause.min(until_turn).min(until_wake), &mut ready)?;
            for &index in &ready {
                self.tick();
                self.advance(index, &mut scratch);
            }
        }
    }

    fn tick(&mut self) {
        self.now = self.started.elapsed().as_nanos() as u64;
    }

    /// Lets those begin whose exchange has come due.
    fn release(&mut self, scratch: &mut [u8]) {
        let Some(schedule) = self.schedule else { return };
        let from = self.released;
        self.released = schedule.due(self.now.min(self.until));
        let clients = self.clients.len() as u64;
        for n in from..self.released.min(from + clients) {
            self.advance((n % clients) as usize, scratch);
        }
    }

    fn wake(&mut self, scratch: &mut [u8]) {
        for index in 0..self.clients.len() {
            if matches!(self.clients[index].state, State::Resting { until } if until <= self.now) {
                self.clients[index].state = State::Free;
                self.resting -= 1;
                self.advance(index, scratch);
            }
        }
    }

    /// Goes on with a client as far as it can without waiting.
    fn advance(&mut self, index: usize, scratch: &mut [u8]) {
        loop {
            let went_on = match self.clients[index].state {
                State::Resting { .. } => return,
                State::Free => self.begin(index),
                State::Busy { .. } => self.go_on(index, scratch),
            };
            match went_on {
                Ok(true) => {}
                Ok(false) => return,
                Err(reason) => self.fail(index, reason),
            }
        }
    }

    /// Begins the client's next exchange, if it may.
    fn begin(&mut self, index: usize) -> Result<bool, String> {
        let clients = self.clients.len() as u64;
        let client = &mut self.clients[index];
        let due_at = match self.schedule {
            Some(schedule) => {
                // The client's exchanges are those with n % clients == index.
                let allowed = (self.released + clients - 1 - index as u64) / clients;
                if client.next >= allowed {
                    return Ok(false);
                }
                schedule.due_at(index as u64, client.next)
            }
            None if self.now < self.until => self.now,
            None => return Ok(false),
        };
        client.state = State::Busy { due_at };
        client.heard.clear();
        client.out.clear();
        client.written = 0;
        self.talk.begin(index, client.next * clients + index as u64, &mut client.out);
        client.next += 1;
        self.busy += 1;
        self.begun += 1;
        if client.stream.is_none() {
            self.connections += 1;
            let opened = self.fresh.open().and_then(|socket| {
                self.poll.add(&socket, index)?;
                Stream::new(socket, client.tls.as_ref())
            });
            client.stream = Some(opened.map_err(|error| error.to_string())?);
        }
        Ok(true)
    }

    /// Says and hears what there is; false when it has to wait.
    fn go_on(&mut self, index: usize, scratch: &mut [u8]) -> Result<bool, String> {
        let client = &mut self.clients[index];
        let Some(stream) = &mut client.stream else { return Err("no connection".into()) };
        while client.written < client.out.len() {
            match stream.write(&client.out[client.written..]) {
                Ok(bytes) => client.written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        match stream.read(scratch) {
            Ok(0) => return Err("the server closed the connection".into()),
            Ok(bytes) => client.heard.extend_from_slice(&scratch[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error.to_string()),
        }
        if client.heard.len() > HEARD_BYTES_MAX {
            return Err("the server sends without end".into());
        }
        loop {
            match self.talk.hear(index, &client.heard, &mut client.out)? {
                Heard::Nothing => return Ok(true),
                Heard::Part(bytes) => _ = client.heard.drain(..bytes),
                Heard::Answer { bytes, accepted, code, keep } => {
                    client.heard.drain(..bytes);
                    self.answered(index, accepted, code, keep);
                    return Ok(true);
                }
            }
        }
    }

    fn answered(&mut self, index: usize, accepted: bool, code: u16, keep: bool) {
        let client = &mut self.clients[index];
        let State::Busy { due_at } = client.state else { return };
        client.state = State::Free;
        self.busy -= 1;
        let measured = self.from..self.until;
        if accepted {
            self.accepted += 1;
            self.accepted_measured += u64::from(measured.contains(&self.now));
            if measured.contains(&due_at) {
                self.latencies.record(self.now.saturating_sub(due_at));
            }
        } else {
            *self.refused.entry(code).or_default() += 1;
        }
        if !keep && let Some(mut stream) = client.stream.take() {
            self.resumed += u64::from(stream.is_resumed());
            // A good-bye that does not fit changes nothing.
            let _ = stream.write(self.talk.farewell());
            stream.say_end();
        }
    }

    fn fail(&mut self, index: usize, reason: String) {
        let client = &mut self.clients[index];
        client.stream = None;
        if let State::Busy { .. } = client.state {
            self.busy -= 1;
            self.failed += 1;
            self.failure = Some(reason);
        }
        client.state = State::Resting { until: self.now + REST.as_nanos() as u64 };
        self.resting += 1;
    }

    fn report(self) -> Result<Report, ExchangeError> {
        let measured_seconds = self.config.measured.as_secs_f64();
        if let (0, true, Some(failure)) = (self.accepted, self.refused.is_empty(), &self.failure) {
            return Err(ExchangeError::Fruitless(failure.clone()));
        }
        let kept = self.clients.iter().filter_map(|client| client.stream.as_ref());
        let resumed = self.resumed + kept.filter(|stream| stream.is_resumed()).count() as u64;
        Ok(Report {
            clients: self.config.clients,
            target_per_second: self.config.per_second,
            measured_seconds,
            accepted_per_second: self.accepted_measured as f64 / measured_seconds,
            begun: self.begun,
            accepted: self.accepted,
            refused: self.refused,
            failed: self.failed + self.busy as u64,
            failure: self.failure,
            connections: self.connections,
            resumed,
            latency_micros: self.latencies.summary(),
            loader_cpu_seconds: cpu_seconds(),
        })
    }
}
