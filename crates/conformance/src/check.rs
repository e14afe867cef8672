//! What a check is, and what it may use: client ids and topics of its own, and connections.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::connection::Connection;
use crate::wire::{self, Connect, Packet, Publish, Value, Version, kind, property};

pub(crate) struct Check {
    /// As the specification numbers it: `MQTT-3.1.2-24`.
    pub(crate) statement: &'static str,
    pub(crate) version: Version,
    pub(crate) what: &'static str,
    pub(crate) run: fn(&mut Ctx<'_>) -> Outcome,
}

/// How late the end of an interval may be noticed. The specification allows nothing, but nobody can see the
/// very moment, and servers look at their clocks every few seconds.
pub(crate) const CLOCK_SLACK: Duration = Duration::from_secs(6);

/// `Ok` is a pass.
pub(crate) type Outcome = Result<(), Stop>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Fail { expected: String, came: String },
    NotApplicable(String),
}

pub(crate) fn fail<T>(expected: impl Into<String>, came: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Fail { expected: expected.into(), came: came.into() })
}

pub(crate) fn not_applicable<T>(reason: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::NotApplicable(reason.into()))
}

pub(crate) fn ensure(holds: bool, expected: impl Into<String>, came: impl Into<String>) -> Outcome {
    if holds { Ok(()) } else { fail(expected, came) }
}

/// The broker under test, and who we are to it.
#[derive(Debug)]
pub(crate) struct Target {
    address: SocketAddr,
    usernames: Vec<String>,
    password: Option<String>,
    topic_prefix: String,
    limit: Duration,
    /// Keeps runs apart on a broker that remembers sessions.
    run: u32,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("target {0:?} has no address")]
    NoAddress(String),
    #[error("target {target:?}: {source}")]
    Resolve { target: String, source: io::Error },
    #[error("target {target:?}: {source}")]
    Connect { target: String, source: io::Error },
}

impl Target {
    pub(crate) fn resolve(
        target: &str,
        usernames: Vec<String>,
        password: Option<String>,
        topic_prefix: String,
        limit: Duration,
    ) -> Result<Self, TargetError> {
        let address = target
            .to_socket_addrs()
            .map_err(|source| TargetError::Resolve { target: target.into(), source })?
            .next()
            .ok_or_else(|| TargetError::NoAddress(target.into()))?;
        TcpStream::connect_timeout(&address, limit)
            .map_err(|source| TargetError::Connect { target: target.into(), source })?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let run = (since.as_secs() as u32).wrapping_mul(1_000).wrapping_add(since.subsec_millis());
        Ok(Self { address, usernames, password, topic_prefix, limit, run })
    }

    /// A server that takes nobody would pass every check that it must refuse something.
    pub(crate) fn takes(&self, version: Version) -> Outcome {
        let ctx = Ctx::new(self, PREFLIGHT, version);
        ('a'..='z').take(self.usernames.len().max(1)).try_for_each(|role| ctx.connect(role).map(drop))
    }
}

/// No check has this index; it still fits the three hexadecimal digits of client ids.
const PREFLIGHT: usize = 0xfff;

/// What one run of one check has to itself.
pub(crate) struct Ctx<'a> {
    pub(crate) version: Version,
    target: &'a Target,
    index: usize,
    /// Left behind on the broker unless `clean_up` takes them away.
    sessions: Vec<char>,
    retained: Vec<String>,
}

impl<'a> Ctx<'a> {
    pub(crate) fn new(target: &'a Target, index: usize, version: Version) -> Self {
        Self { version, target, index, sessions: Vec::new(), retained: Vec::new() }
    }

    pub(crate) fn is_v5(&self) -> bool {
        self.version == Version::V5
    }

    pub(crate) fn limit(&self) -> Duration {
        self.target.limit
    }

    /// The client id of a role: at most 23 letters and digits, which every server takes.
    pub(crate) fn client(&self, role: char) -> String {
        format!("dc{:08x}{:03x}{role}", self.target.run, self.index)
    }

    /// A topic of this check's own.
    pub(crate) fn topic(&self, name: &str) -> String {
        format!("{}/{:08x}{:03x}/{name}", self.target.topic_prefix, self.target.run, self.index)
    }

    /// A topic with a retained message, which is taken away at the end.
    pub(crate) fn retained_topic(&mut self, name: &str) -> String {
        let topic = self.topic(name);
        self.retained.push(topic.clone());
        topic
    }

    /// CONNECT of a role whose session ends with its connection.
    pub(crate) fn hello(&self, role: char) -> Connect {
        let mut connect = Connect::new(self.version, &self.client(role));
        let names = &self.target.usernames;
        if !names.is_empty() {
            let turn = (role as usize).saturating_sub('a' as usize) % names.len();
            connect.user = Some(names[turn].clone().into_bytes());
            connect.password = self.target.password.clone().map(String::into_bytes);
        }
        connect
    }

    /// CONNECT of a role that resumes its session, and leaves it behind.
    pub(crate) fn lasting(&mut self, role: char) -> Connect {
        if !self.sessions.contains(&role) {
            self.sessions.push(role);
        }
        let mut connect = self.hello(role);
        connect.clean = false;
        if self.is_v5() {
            connect = connect.with(property::SESSION_EXPIRY, Value::Long(120));
        }
        connect
    }

    /// A bare TCP connection.
    pub(crate) fn open(&self) -> Result<Connection, Stop> {
        let stream = TcpStream::connect_timeout(&self.target.address, self.target.limit);
        stream
            .and_then(|stream| Connection::new(stream, self.version, self.target.limit))
            .or_else(|error| fail("a TCP connection", error.to_string()))
    }

    /// Connected with a clean session.
    pub(crate) fn connect(&self, role: char) -> Result<Connection, Stop> {
        self.connect_with(&self.hello(role))
    }

    pub(crate) fn connect_with(&self, connect: &Connect) -> Result<Connection, Stop> {
        let mut connection = self.open()?;
        connection.send(&connect.bytes())?;
        connection.welcome()?;
        Ok(connection)
    }

    /// A new subscriber of `filter` with these options.
    pub(crate) fn subscriber(&self, role: char, filter: &str, options: u8) -> Result<Connection, Stop> {
        let mut connection = self.connect(role)?;
        connection.subscribe(filter, options)?;
        Ok(connection)
    }

    /// Sees that nothing (more) comes to `subscriber`: a message that `publisher` sends now arrives first.
    pub(crate) fn silent(
        &self,
        subscriber: &mut Connection,
        publisher: &mut Connection,
        instead_of: &str,
    ) -> Outcome {
        let sentinel = self.topic("sentinel");
        let id = subscriber.next_id();
        subscriber.send(&wire::subscribe(self.version, id, &[(&sentinel, 0)]))?;
        subscriber
            .take("SUBACK", |packet| matches!(packet, Packet::SubAck { id: have, .. } if *have == id))?;
        publisher.publish(&sentinel, b"sentinel", 1)?;
        let came = subscriber.take("a sentinel message", |packet| matches!(packet, Packet::Publish(_)))?;
        match &came.packet {
            Packet::Publish(publish) if publish.topic == sentinel.as_bytes() => Ok(()),
            _ => fail(format!("no {instead_of}"), came.to_string()),
        }
    }

    /// Sends `bytes` on a fresh, accepted connection, which the server must then close.
    pub(crate) fn refused(&self, bytes: &[u8], why: &str) -> Outcome {
        let mut connection = self.connect('a')?;
        connection.send_unchecked(bytes);
        connection.closed(why)?;
        Ok(())
    }

    /// Sends `bytes` first on a fresh TCP connection, which the server must then close.
    pub(crate) fn refused_first(&self, bytes: &[u8], why: &str) -> Outcome {
        let mut connection = self.open()?;
        connection.send_unchecked(bytes);
        connection.refused(why)?;
        Ok(())
    }

    /// Takes away what the check left on the broker. Failures are the check's to show, not ours.
    pub(crate) fn clean_up(self) {
        for role in &self.sessions {
            if let Ok(mut connection) = self.connect(*role) {
                connection.send_unchecked(&wire::DISCONNECT);
            }
        }
        if self.retained.is_empty() {
            return;
        }
        if let Ok(mut connection) = self.connect('a') {
            for topic in &self.retained {
                let empty = Publish::new(topic, b"", 1).retained().id(1);
                connection.send_unchecked(&empty.bytes(self.version));
                let _ = connection.acknowledged(kind::PUBACK, 1);
            }
            connection.send_unchecked(&wire::DISCONNECT);
        }
    }
}
