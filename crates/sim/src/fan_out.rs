//! A few publishers, many subscribers, every message to all of them at QoS 0: how many deliveries a second, how late,
//! and how many are lost.
//!
//! One thread and one epoll for both ends. Nobody acknowledges QoS 0, so publishers that send as fast as they can would
//! measure how a server drops. Here a publisher has a window of messages that have not reached all subscribers, or
//! keeps to a rate. Messages are numbered: a subscriber that sees a gap has lost what is in it.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    latency::{Latencies, Latency, cpu_seconds},
    load::Identity,
    poll::Poll,
    schedule::Schedule,
    sockets,
    stream::Stream,
    tls::Tls,
    wire::{self, Connect, Incoming, Qos, Version, WireError},
};

/// Connections whose greetings are under way at the same time.
const GREETINGS_MAX: usize = 50;
const GREETINGS_TIMEOUT: Duration = Duration::from_secs(60);
const WAIT_MAX: Duration = Duration::from_millis(100);
const READ_BYTES: usize = 64 << 10;
/// Messages that a publisher writes at once.
const BURST_MAX: u64 = 64;
/// Without any delivery for so long, all that is on its way is lost.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// Publisher, number of the message, when it was due.
const HEADER_BYTES: usize = 4 + 8 + 8;

#[derive(Debug, Clone)]
pub struct Config {
    pub target: SocketAddr,
    pub version: Version,
    /// Publisher n publishes to `{topic}/{n}`, subscribers subscribe to `{topic}/+`.
    pub topic: String,
    pub payload_bytes: usize,
    /// Connections speak as these in turn; never empty.
    pub identities: Vec<Identity>,
    pub subscribers: usize,
    pub publishers: usize,
    /// Messages of one publisher that have not reached all subscribers.
    pub window: u64,
    /// Messages per second over all publishers, whatever has arrived; `None` goes by the window.
    pub messages_per_second: Option<f64>,
    pub warm_up: Duration,
    pub measured: Duration,
    /// How long deliveries are awaited after the last message.
    pub drain: Duration,
    pub tls: Option<Tls>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub subscribers: usize,
    pub publishers: usize,
    pub window: u64,
    pub target_messages_per_second: Option<f64>,
    pub packet_bytes: usize,
    pub measured_seconds: f64,
    pub deliveries_per_second: f64,
    /// Of the whole run, warm-up and drain included.
    pub published: u64,
    pub delivered: u64,
    /// Overtaken by a later message, or given up after a long silence.
    pub lost: u64,
    /// Still on their way when the time for it was over.
    pub late: u64,
    /// From the moment a message was due to each of its deliveries, of those that arrived in the measured time.
    pub latency_micros: Latency,
    pub loader_cpu_seconds: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum FanOutError {
    #[error("{0}")]
    Config(String),
    #[error("wait for the sockets")]
    Poll(#[from] io::Error),
    #[error("connect number {index} to {target}")]
    Connect { index: usize, target: SocketAddr, source: io::Error },
    #[error("connection {index}: {source}")]
    Wire { index: usize, source: WireError },
    #[error("connection {index}: the server refused it with code {code}")]
    Refused { index: usize, code: u8 },
    #[error("connection {index} broke: {reason}")]
    Lost { index: usize, reason: String },
    #[error("{waiting} connections were not let in within {} s", GREETINGS_TIMEOUT.as_secs())]
    Greeting { waiting: usize },
    #[error("connection {index} got a message that was never published")]
    Invented { index: usize },
}

/// Runs to the end of the measured time and the deliveries of what was published in it. Blocks the thread.
pub fn run(config: &Config) -> Result<Report, FanOutError> {
    let wrong = |what: &str| Err(FanOutError::Config(what.to_owned()));
    if config.subscribers == 0 || config.publishers == 0 || config.identities.is_empty() {
        return wrong("at least one subscriber, one publisher and one identity are needed");
    }
    if config.payload_bytes < HEADER_BYTES {
        return Err(FanOutError::Config(format!("a payload has at least {HEADER_BYTES} bytes")));
    }
    if config.window == 0 {
        return wrong("a window is at least one message");
    }
    if config.messages_per_second.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
        return wrong("a rate is more than 0 messages per second");
    }
    let mut fan_out = FanOut::join(config)?;
    fan_out.drive()?;
    Ok(fan_out.report())
}

/// All times are nanoseconds from the start. Members are the subscribers, then the publishers.
struct FanOut<'a> {
    config: &'a Config,
    poll: Poll,
    members: Vec<Member>,
    /// A PUBLISH of every publisher.
    packets: Vec<Vec<u8>>,
    schedule: Option<Schedule>,
    tally: Tally,
    started: Instant,
    late: u64,
}

struct Member {
    stream: Stream,
    out: Vec<u8>,
    written: usize,
    partial: Vec<u8>,
    joined: bool,
}

/// What became of the messages.
struct Tally {
    subscribers: u64,
    publishers: usize,
    payload_bytes: usize,
    now: u64,
    from: u64,
    until: u64,
    /// By publisher: messages sent, and deliveries that have arrived or will not.
    sent: Vec<u64>,
    settled: Vec<u64>,
    /// By subscriber and publisher: the number that comes next.
    next: Vec<u64>,
    delivered: u64,
    delivered_measured: u64,
    lost: u64,
    latencies: Latencies,
    heard_at: u64,
}

impl<'a> FanOut<'a> {
    /// Opens all connections; subscribers have subscribed when it returns.
    fn join(config: &'a Config) -> Result<Self, FanOutError> {
        let from = config.warm_up.as_nanos() as u64;
        let tally = Tally {
            subscribers: config.subscribers as u64,
            publishers: config.publishers,
            payload_bytes: config.payload_bytes,
            now: 0,
            from,
            until: from + config.measured.as_nanos() as u64,
            sent: vec![0; config.publishers],
            settled: vec![0; config.publishers],
            next: vec![0; config.subscribers * config.publishers],
            delivered: 0,
            delivered_measured: 0,
            lost: 0,
            latencies: Latencies::new(),
            heard_at: 0,
        };
        let mut packets = Vec::new();
        for number in 0..config.publishers {
            let mut packet = Vec::new();
            let topic = format!("{}/{number}", config.topic);
            let payload = vec![b'x'; config.payload_bytes];
            wire::encode_publish(config.version, &topic, Qos::AtMostOnce, &payload, &mut packet)
                .map_err(|source| FanOutError::Wire { index: config.subscribers + number, source })?;
            packets.push(packet);
        }
        let mut fan_out = Self {
            config,
            poll: Poll::new()?,
            members: Vec::new(),
            packets,
            schedule: config.messages_per_second.map(|rate| Schedule::new(rate, config.publishers)),
            tally,
            started: Instant::now(),
            late: 0,
        };
        let all = config.subscribers + config.publishers;
        let mut scratch = vec![0; READ_BYTES];
        let mut ready = Vec::new();
        let mut joined = 0;
        while joined < all {
            while fan_out.members.len() < all.min(joined + GREETINGS_MAX) {
                fan_out.open()?;
            }
            if fan_out.started.elapsed() > GREETINGS_TIMEOUT {
                return Err(FanOutError::Greeting { waiting: all - joined });
            }
            ready.clear();
            fan_out.poll.wait(WAIT_MAX, &mut ready)?;
            for &index in &ready {
                let joined_before = fan_out.members[index].joined;
                fan_out.read(index, &mut scratch)?;
                fan_out.members[index].flush(index)?;
                joined += usize::from(fan_out.members[index].joined && !joined_before);
            }
        }
        Ok(fan_out)
    }

    fn open(&mut self) -> Result<(), FanOutError> {
        let index = self.members.len();
        let connect = Connect {
            version: self.config.version,
            client_id: &format!("fan-out-{index}"),
            user_name: self.config.identities[index % self.config.identities.len()].token.as_deref(),
            clean: true,
            keep_alive_seconds: 0,
        };
        let mut out = Vec::new();
        wire::encode_connect(&connect, &mut out).map_err(|source| FanOutError::Wire { index, source })?;
        let stream = sockets::open(self.config.target, index)
            .and_then(|socket| {
                self.poll.add(&socket, index)?;
                Stream::new(socket, self.config.tls.as_ref())
            })
            .map_err(|source| FanOutError::Connect { index, target: self.config.target, source })?;
        self.members.push(Member { stream, out, written: 0, partial: Vec::new(), joined: false });
        self.members[index].flush(index)
    }

    fn drive(&mut self) -> Result<(), FanOutError> {
        let mut scratch = vec![0; READ_BYTES];
        let mut ready = Vec::new();
        self.started = Instant::now();
        let end = self.tally.until + self.config.drain.as_nanos() as u64;
        loop {
            self.tally.now = self.started.elapsed().as_nanos() as u64;
            let sending = self.tally.now < self.tally.until;
            if self.tally.is_silent() {
                self.tally.write_off();
            }
            for number in 0..self.config.publishers {
                self.publish(number)?;
            }
            if self.tally.now >= end || (!sending && self.tally.is_settled() && !self.is_behind()) {
                self.late = self.tally.under_way();
                return Ok(());
            }
            let pause = match &self.schedule {
                Some(schedule) if sending => schedule.pause(self.tally.now).min(WAIT_MAX),
                _ => WAIT_MAX,
            };
            let until_turn = if sending { self.tally.until } else { end } - self.tally.now;
            ready.clear();
            self.poll.wait(pause.min(Duration::from_nanos(until_turn)), &mut ready)?;
            for &index in &ready {
                self.tally.now = self.started.elapsed().as_nanos() as u64;
                self.read(index, &mut scratch)?;
                self.members[index].flush(index)?;
            }
        }
    }

    /// Sends what the publisher may send now.
    fn publish(&mut self, number: usize) -> Result<(), FanOutError> {
        let index = self.config.subscribers + number;
        if self.members[index].written < self.members[index].out.len() {
            return Ok(());
        }
        let sent = self.tally.sent[number];
        let publishers = self.config.publishers as u64;
        let room = match &self.schedule {
            // The publisher's messages are those with n % publishers == number.
            Some(_) => (self.due() + publishers - 1 - number as u64) / publishers - sent,
            None if self.tally.now < self.tally.until => self.tally.room(number, self.config.window),
            None => 0,
        };
        let member = &mut self.members[index];
        member.out.clear();
        member.written = 0;
        let packet = &mut self.packets[number];
        let payload_at = packet.len() - self.config.payload_bytes;
        for seq in sent..sent + room.min(BURST_MAX) {
            let due_at = match &self.schedule {
                Some(schedule) => schedule.due_at(number as u64, seq),
                None => self.tally.now,
            };
            let header = &mut packet[payload_at..][..HEADER_BYTES];
            header[..4].copy_from_slice(&(number as u32).to_be_bytes());
            header[4..12].copy_from_slice(&seq.to_be_bytes());
            header[12..].copy_from_slice(&due_at.to_be_bytes());
            member.out.extend_from_slice(packet);
            self.tally.sent[number] += 1;
        }
        member.flush(index)
    }

    /// Messages that are due by the schedule, of all publishers.
    fn due(&self) -> u64 {
        self.schedule.map_or(0, |schedule| schedule.due(self.tally.now.min(self.tally.until)))
    }

    fn is_behind(&self) -> bool {
        self.tally.sent.iter().sum::<u64>() < self.due()
    }

    fn read(&mut self, index: usize, scratch: &mut [u8]) -> Result<(), FanOutError> {
        let member = &mut self.members[index];
        loop {
            let kept = member.partial.len();
            scratch[..kept].copy_from_slice(&member.partial);
            let bytes = match member.stream.read(&mut scratch[kept..]) {
                Ok(0) => return Err(lost(index, "the server closed it")),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(lost(index, error)),
            };
            let filled = kept + bytes;
            let mut rest = &scratch[..filled];
            if member.joined {
                let wrong = |source| FanOutError::Wire { index, source };
                while let Some(length) = wire::delivery(rest).map_err(wrong)? {
                    self.tally.arrived(index, &rest[..length])?;
                    rest = &rest[length..];
                }
            } else {
                rest = &rest[member.greeted(index, index < self.config.subscribers, self.config, rest)?..];
            }
            member.partial.clear();
            member.partial.extend_from_slice(rest);
            if filled < scratch.len() && member.stream.is_emptied_by_short_reads() {
                return Ok(());
            }
        }
    }

    fn report(self) -> Report {
        let measured_seconds = self.config.measured.as_secs_f64();
        Report {
            subscribers: self.config.subscribers,
            publishers: self.config.publishers,
            window: self.config.window,
            target_messages_per_second: self.config.messages_per_second,
            packet_bytes: self.packets.iter().map(Vec::len).max().unwrap_or(0),
            measured_seconds,
            deliveries_per_second: self.tally.delivered_measured as f64 / measured_seconds,
            published: self.tally.sent.iter().sum(),
            delivered: self.tally.delivered,
            lost: self.tally.lost,
            late: self.late,
            latency_micros: self.tally.latencies.summary(),
            loader_cpu_seconds: cpu_seconds(),
        }
    }
}

impl Member {
    fn flush(&mut self, index: usize) -> Result<(), FanOutError> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(index, error)),
            }
        }
        Ok(())
    }

    /// Takes in what the server says before there are messages; returns how many bytes that were.
    fn greeted(
        &mut self,
        index: usize,
        subscribes: bool,
        config: &Config,
        bytes: &[u8],
    ) -> Result<usize, FanOutError> {
        let wrong = |source| FanOutError::Wire { index, source };
        let mut rest = bytes;
        while let Some((incoming, length)) = wire::parse(rest).map_err(wrong)? {
            rest = &rest[length..];
            match incoming {
                Incoming::ConnAck { code: 0 } if subscribes => {
                    let filter = format!("{}/+", config.topic);
                    wire::encode_subscribe(config.version, &filter, &mut self.out).map_err(wrong)?;
                }
                Incoming::ConnAck { code: 0 } | Incoming::SubAck { code: 0 } => {
                    self.joined = true;
                    break;
                }
                Incoming::ConnAck { code } | Incoming::SubAck { code } | Incoming::Disconnect { code } => {
                    return Err(FanOutError::Refused { index, code });
                }
                Incoming::PubAck { .. } | Incoming::PingResp => {}
            }
        }
        Ok(bytes.len() - rest.len())
    }
}

impl Tally {
    #[inline]
    fn arrived(&mut self, subscriber: usize, packet: &[u8]) -> Result<(), FanOutError> {
        let invented = FanOutError::Invented { index: subscriber };
        let header = packet
            .len()
            .checked_sub(self.payload_bytes)
            .and_then(|at| packet[at..].first_chunk::<HEADER_BYTES>());
        let Some(&[p0, p1, p2, p3, ref numbers @ ..]) = header else { return Err(invented) };
        let publisher = u32::from_be_bytes([p0, p1, p2, p3]) as usize;
        let (seq, due_at) = numbers.split_at(8);
        let (Ok(seq), Ok(due_at)) = (seq.try_into(), due_at.try_into()) else { return Err(invented) };
        let (seq, due_at) = (u64::from_be_bytes(seq), u64::from_be_bytes(due_at));
        if publisher >= self.publishers
            || seq >= self.sent[publisher]
            || subscriber as u64 >= self.subscribers
        {
            return Err(invented);
        }
        self.heard_at = self.now;
        self.delivered += 1;
        if (self.from..self.until).contains(&self.now) {
            self.delivered_measured += 1;
            self.latencies.record(self.now.saturating_sub(due_at));
        }
        let next = &mut self.next[subscriber * self.publishers + publisher];
        match seq.checked_sub(*next) {
            Some(gap) => {
                self.lost += gap;
                self.settled[publisher] += gap + 1;
                *next = seq + 1;
            }
            // It was written off and came after all.
            None => self.lost = self.lost.saturating_sub(1),
        }
        Ok(())
    }

    /// How many more messages the publisher may send.
    fn room(&self, publisher: usize, window: u64) -> u64 {
        let under_way = self.sent[publisher] * self.subscribers - self.settled[publisher];
        window.saturating_sub(under_way.div_ceil(self.subscribers))
    }

    fn under_way(&self) -> u64 {
        let settled: u64 = self.settled.iter().sum();
        self.sent.iter().sum::<u64>() * self.subscribers - settled
    }

    fn is_settled(&self) -> bool {
        self.under_way() == 0
    }

    fn is_silent(&self) -> bool {
        self.now.saturating_sub(self.heard_at) > SILENCE_MAX.as_nanos() as u64 && !self.is_settled()
    }

    /// Gives up what has not arrived.
    fn write_off(&mut self) {
        self.heard_at = self.now;
        for (place, next) in self.next.iter_mut().enumerate() {
            let sent = self.sent[place % self.publishers];
            self.lost += sent - *next;
            *next = sent;
        }
        for (sent, settled) in self.sent.iter().zip(&mut self.settled) {
            *settled = sent * self.subscribers;
        }
    }
}

fn lost(index: usize, reason: impl ToString) -> FanOutError {
    FanOutError::Lost { index, reason: reason.to_string() }
}
