//! Connections that only stand there. What they cost is memory, and what it takes to let all of them in again when the
//! server was gone: each tries again by itself, with a back-off.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    io::{self, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::SmallRng};
use serde::Serialize;

use crate::{
    backoff::Backoff,
    load::Identity,
    poll::Poll,
    sockets,
    stream::Stream,
    tls::Tls,
    wire::{self, Connect, Incoming, Version, WireError},
};

/// Connections whose first greetings are under way at the same time.
const GREETINGS_MAX: usize = 100;
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);
/// A greeting is a few bytes; a server that sends more before it answers is broken.
const READ_BYTES: usize = 4_096;
const WAIT_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub struct Config {
    pub target: SocketAddr,
    pub version: Version,
    /// Connections speak as these in turn; never empty.
    pub identities: Vec<Identity>,
    pub connections: usize,
    /// The number of the first connection: it tells client ids, tokens and source addresses of several processes apart.
    pub first: usize,
    /// Ask for sessions that outlive their connections.
    pub lasting: bool,
    pub tls: Option<Tls>,
    /// For how long a lost connection is tried again; zero leaves it lost.
    pub reconnect_for: Duration,
    pub backoff: Backoff,
    /// Of the waits.
    pub seed: u64,
    /// How long to hold, from the moment when all are in.
    pub duration: Duration,
}

/// What an onlooker wants to know at once.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// All are in for the first time.
    Holding(usize),
    /// All are in again, that many seconds after the first of them was lost.
    Back { lost: usize, seconds: f64, tries: u64, refused: BTreeMap<u8, u64> },
}

/// How it ended.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Connections that stood at the end.
    pub held: usize,
    /// Connections that the server ended.
    pub lost: u64,
    pub reconnects: u64,
    /// Connects of the whole run, and the answers that were no, by their code.
    pub tries: u64,
    pub refused: BTreeMap<u8, u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum IdleError {
    #[error("at least one connection and one identity are needed")]
    Empty,
    #[error("wait for the sockets")]
    Poll(#[from] io::Error),
    #[error("connection {index} to {target}: {reason}")]
    Connect { index: usize, target: SocketAddr, reason: String },
    #[error("connection {index}: {source}")]
    Wire { index: usize, source: WireError },
}

/// Opens the connections and holds them. They never send a ping; their keep-alive is off. Blocks the thread.
pub fn hold(config: &Config, news: impl FnMut(News)) -> Result<Report, IdleError> {
    if config.connections == 0 || config.identities.is_empty() {
        return Err(IdleError::Empty);
    }
    Idle::new(config)?.hold(news)
}

/// All times are nanoseconds from the start.
struct Idle<'a> {
    config: &'a Config,
    poll: Poll,
    connections: Vec<Connection>,
    /// When to look after which connection.
    due: BinaryHeap<Reverse<(u64, usize)>>,
    chance: SmallRng,
    started: Instant,
    now: u64,
    up: usize,
    lost: u64,
    reconnects: u64,
    tries: u64,
    refused: BTreeMap<u8, u64>,
    away: Option<Away>,
}

/// Since not all are in.
struct Away {
    since: u64,
    lost: usize,
    tries_before: u64,
    refused_before: BTreeMap<u8, u64>,
}

struct Connection {
    tls: Option<Tls>,
    link: Link,
    was_up: bool,
}

enum Link {
    Down {
        retry_at: u64,
        failures: u32,
        since: u64,
    },
    Greeting {
        stream: Stream,
        partial: Vec<u8>,
        out: Vec<u8>,
        until: u64,
        failures: u32,
        since: u64,
    },
    Up(Stream),
    /// Not tried again.
    Lost,
}

/// Why a connection ended.
enum Broken {
    Refused(u8),
    Reason(String),
}

impl<'a> Idle<'a> {
    fn new(config: &'a Config) -> Result<Self, IdleError> {
        let connection = || Connection {
            tls: config.tls.as_ref().map(Tls::of_device),
            link: Link::Down { retry_at: 0, failures: 0, since: 0 },
            was_up: false,
        };
        Ok(Self {
            config,
            poll: Poll::new()?,
            connections: std::iter::repeat_with(connection).take(config.connections).collect(),
            due: BinaryHeap::new(),
            chance: SmallRng::seed_from_u64(config.seed.wrapping_add(config.first as u64)),
            started: Instant::now(),
            now: 0,
            up: 0,
            lost: 0,
            reconnects: 0,
            tries: 0,
            refused: BTreeMap::new(),
            away: None,
        })
    }

    fn hold(mut self, mut news: impl FnMut(News)) -> Result<Report, IdleError> {
        let all = self.connections.len();
        let mut opened = 0;
        let mut end = None;
        let mut ready = Vec::new();
        loop {
            self.now = self.started.elapsed().as_nanos() as u64;
            if self.up == all {
                if end.is_none() {
                    end = Some(self.now + self.config.duration.as_nanos() as u64);
                    news(News::Holding(all));
                }
                if let Some(away) = self.away.take() {
                    news(self.back(away));
                }
            }
            if end.is_some_and(|end| self.now >= end) {
                let (held, tries) = (self.up, self.tries);
                let (lost, reconnects, refused) = (self.lost, self.reconnects, self.refused);
                return Ok(Report { held, lost, reconnects, tries, refused });
            }
            while opened < all && opened < self.up + GREETINGS_MAX {
                self.open(opened)?;
                opened += 1;
            }
            while let Some(&Reverse((at, index))) = self.due.peek()
                && at <= self.now
            {
                self.due.pop();
                self.look_after(index)?;
            }
            let until_due = self.due.peek().map_or(WAIT_MAX, |Reverse((at, _))| {
                Duration::from_nanos(at.saturating_sub(self.now)).min(WAIT_MAX)
            });
            let until_end = end.map_or(WAIT_MAX, |end| Duration::from_nanos(end - self.now));
            ready.clear();
            self.poll.wait(until_due.min(until_end), &mut ready)?;
            self.now = self.started.elapsed().as_nanos() as u64;
            for &index in &ready {
                if let Err(broken) = self.read(index) {
                    self.broken(index, broken)?;
                }
            }
        }
    }

    fn back(&self, away: Away) -> News {
        let refused = self.refused.iter().filter_map(|(code, count)| {
            let since = count - away.refused_before.get(code).unwrap_or(&0);
            (since > 0).then_some((*code, since))
        });
        News::Back {
            lost: away.lost,
            seconds: (self.now - away.since) as f64 / 1e9,
            tries: self.tries - away.tries_before,
            refused: refused.collect(),
        }
    }

    /// The time has come that was set for the connection.
    fn look_after(&mut self, index: usize) -> Result<(), IdleError> {
        match self.connections[index].link {
            Link::Down { retry_at, .. } if retry_at <= self.now => self.open(index),
            Link::Greeting { until, .. } if until <= self.now => {
                let seconds = GREETING_TIMEOUT.as_secs();
                self.broken(index, Broken::Reason(format!("the server did not answer within {seconds} s")))
            }
            _ => Ok(()),
        }
    }

    fn open(&mut self, index: usize) -> Result<(), IdleError> {
        let Link::Down { failures, since, .. } = self.connections[index].link else { return Ok(()) };
        let number = self.config.first + index;
        let connect = Connect {
            version: self.config.version,
            client_id: &format!("idle-{number}"),
            user_name: self.config.identities[number % self.config.identities.len()].token.as_deref(),
            clean: !self.config.lasting,
            keep_alive_seconds: 0,
        };
        let mut out = Vec::new();
        wire::encode_connect(&connect, &mut out).map_err(|source| IdleError::Wire { index, source })?;
        self.tries += 1;
        let opened = sockets::open(self.config.target, number).and_then(|socket| {
            self.poll.add(&socket, index)?;
            Stream::new(socket, self.connections[index].tls.as_ref())
        });
        match opened {
            Ok(stream) => {
                let until = self.now + GREETING_TIMEOUT.as_nanos() as u64;
                self.due.push(Reverse((until, index)));
                let partial = Vec::new();
                self.connections[index].link =
                    Link::Greeting { stream, partial, out, until, failures, since };
                Ok(())
            }
            Err(error) => self.broken(index, Broken::Reason(error.to_string())),
        }
    }

    /// Says and hears what there is.
    fn read(&mut self, index: usize) -> Result<(), Broken> {
        let connection = &mut self.connections[index];
        let (stream, greeting) = match &mut connection.link {
            Link::Down { .. } | Link::Lost => return Ok(()),
            Link::Greeting { stream, partial, out, .. } => (stream, Some((partial, out))),
            Link::Up(stream) => (stream, None),
        };
        let mut bytes = [0; READ_BYTES];
        let Some((partial, out)) = greeting else {
            // Whatever the server says to one who stands there.
            while read(stream, &mut bytes)?.is_some() {}
            return Ok(());
        };
        while !out.is_empty() {
            match stream.write(out) {
                Ok(written) => _ = out.drain(..written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        while let Some(read) = read(stream, &mut bytes)? {
            partial.extend_from_slice(&bytes[..read]);
            match wire::parse(partial).map_err(|error| Broken::Reason(error.to_string()))? {
                Some((Incoming::ConnAck { code: 0 }, _)) => {
                    self.let_in(index);
                    return Ok(());
                }
                Some((Incoming::ConnAck { code } | Incoming::Disconnect { code }, _)) => {
                    return Err(Broken::Refused(code));
                }
                Some(_) => return Err(Broken::Reason("the server did not begin with CONNACK".into())),
                None if partial.len() >= READ_BYTES => {
                    return Err(Broken::Reason("the server sends without end".into()));
                }
                None => {}
            }
        }
        Ok(())
    }

    fn let_in(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let Link::Greeting { stream, .. } = std::mem::replace(&mut connection.link, Link::Lost) else {
            return;
        };
        connection.link = Link::Up(stream);
        self.reconnects += u64::from(connection.was_up);
        connection.was_up = true;
        self.up += 1;
    }

    fn broken(&mut self, index: usize, broken: Broken) -> Result<(), IdleError> {
        if let Broken::Refused(code) = broken {
            *self.refused.entry(code).or_default() += 1;
        }
        let connection = &mut self.connections[index];
        let (failures, since) = match connection.link {
            Link::Down { failures, since, .. } | Link::Greeting { failures, since, .. } => (failures, since),
            Link::Up(_) => {
                self.up -= 1;
                self.lost += 1;
                let (now, tries_before) = (self.now, self.tries);
                let refused = &self.refused;
                let away = self.away.get_or_insert_with(|| Away {
                    since: now,
                    lost: 0,
                    tries_before,
                    refused_before: refused.clone(),
                });
                away.lost += 1;
                (0, self.now)
            }
            Link::Lost => return Ok(()),
        };
        if Duration::from_nanos(self.now - since) < self.config.reconnect_for {
            let wait = self.config.backoff.wait(failures, &mut self.chance);
            let retry_at = self.now + wait.as_nanos() as u64;
            connection.link = Link::Down { retry_at, failures: failures + 1, since };
            self.due.push(Reverse((retry_at, index)));
            return Ok(());
        }
        connection.link = Link::Lost;
        if connection.was_up {
            return Ok(());
        }
        let reason = match broken {
            Broken::Refused(code) => format!("the server refused it with code {code}"),
            Broken::Reason(reason) => reason,
        };
        Err(IdleError::Connect { index, target: self.config.target, reason })
    }
}

/// `None` when there is nothing now.
fn read(stream: &mut Stream, bytes: &mut [u8]) -> Result<Option<usize>, Broken> {
    loop {
        return match stream.read(bytes) {
            Ok(0) => Err(Broken::Reason("the server closed the connection".into())),
            Ok(read) => Ok(Some(read)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => Err(error.into()),
        };
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Reason(error.to_string())
    }
}
