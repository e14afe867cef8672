//! One raw connection: blocking, every wait bounded, and what was not asked for is kept for later.

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::check::{Outcome, Stop, ensure, fail, not_applicable};
use crate::wire::{self, Packet, Properties, Publish, Received, Version, kind, property};

pub(crate) struct Connection {
    stream: TcpStream,
    version: Version,
    limit: Duration,
    buffer: Vec<u8>,
    /// Read while something else was awaited: a PUBLISH may come before a SUBACK.
    early: VecDeque<Received>,
    id_last: u16,
    pub(crate) session_present: bool,
    /// Of the CONNACK.
    pub(crate) server: Properties,
}

enum Came {
    Packet(Received),
    Closed,
    Nothing,
    Malformed(String),
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, version: Version, limit: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(limit))?;
        Ok(Self {
            stream,
            version,
            limit,
            buffer: Vec::new(),
            early: VecDeque::new(),
            id_last: 0,
            session_present: false,
            server: Properties::default(),
        })
    }

    /// Waits longer from now on, where a statement itself is about time.
    pub(crate) fn wait_for(&mut self, limit: Duration) {
        self.limit = limit;
    }

    pub(crate) fn next_id(&mut self) -> u16 {
        self.id_last += 1;
        self.id_last
    }

    // ---- sending

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Outcome {
        self.stream
            .write_all(bytes)
            .or_else(|error| fail(format!("the server to take {}", wire::hex(bytes)), error.to_string()))
    }

    /// For bytes at which the server may rightly hang up while we are still sending.
    pub(crate) fn send_unchecked(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Ends the connection without a DISCONNECT, and waits until the server has noticed.
    pub(crate) fn drop_dead(mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
        while let Came::Packet(_) = self.next_within(self.limit) {}
    }

    /// Ends the connection properly.
    pub(crate) fn disconnect(mut self) {
        self.send_unchecked(&wire::DISCONNECT);
        self.drop_dead();
    }

    pub(crate) fn subscribe(&mut self, filter: &str, options: u8) -> Result<u8, Stop> {
        let wildcards = filter.contains(['+', '#']);
        let shared = filter.starts_with("$share/");
        self.needs(
            !wildcards || self.server_limit(property::WILDCARD_AVAILABLE) == 1,
            "Wildcard Available=0",
        )?;
        self.needs(!shared || self.server_limit(property::SHARED_AVAILABLE) == 1, "Shared Available=0")?;
        let codes = self.subscribe_all(&[(filter, options)])?;
        ensure(
            codes[0] <= 2,
            format!("subscription to {filter} granted"),
            format!("reason {:#04x}", codes[0]),
        )?;
        Ok(codes[0])
    }

    pub(crate) fn subscribe_all<F: AsRef<[u8]>>(&mut self, filters: &[(F, u8)]) -> Result<Vec<u8>, Stop> {
        let id = self.next_id();
        let bytes = wire::subscribe(self.version, id, filters);
        self.send(&bytes)?;
        self.subscribed(id, filters.len())
    }

    pub(crate) fn unsubscribe<F: AsRef<[u8]>>(&mut self, filters: &[F]) -> Result<Vec<u8>, Stop> {
        let id = self.next_id();
        let bytes = wire::unsubscribe(self.version, id, filters);
        self.send(&bytes)?;
        self.unsubscribed(id)
    }

    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8], qos: u8) -> Outcome {
        self.publish_as(Publish::new(topic, payload, qos)).map(drop)
    }

    /// Publishes and does the whole handshake. The reason code of the first acknowledgement comes back.
    pub(crate) fn publish_as(&mut self, mut publish: Publish) -> Result<u8, Stop> {
        self.needs(publish.qos <= 1 || self.server_limit(property::MAXIMUM_QOS) == 2, "Maximum QoS below 2")?;
        self.needs(publish.qos == 0 || self.server_limit(property::MAXIMUM_QOS) > 0, "Maximum QoS 0")?;
        self.needs(
            !publish.retain || self.server_limit(property::RETAIN_AVAILABLE) == 1,
            "Retain Available=0",
        )?;
        if publish.qos > 0 && publish.id == 0 {
            publish.id = self.next_id();
        }
        let bytes = publish.bytes(self.version);
        self.send(&bytes)?;
        match publish.qos {
            0 => Ok(0),
            1 => self.acknowledged(kind::PUBACK, publish.id),
            _ => {
                let code = self.acknowledged(kind::PUBREC, publish.id)?;
                if code < 0x80 {
                    self.send(&wire::ack(kind::PUBREL, publish.id))?;
                    self.acknowledged(kind::PUBCOMP, publish.id)?;
                }
                Ok(code)
            }
        }
    }

    // ---- expecting

    pub(crate) fn welcome(&mut self) -> Outcome {
        let came = self.next("CONNACK with code 0")?;
        match came.packet {
            Packet::ConnAck { session_present, code: 0, properties } => {
                self.session_present = session_present;
                self.server = properties;
                Ok(())
            }
            Packet::ConnAck { code: 0x9a, .. } => not_applicable("the server does not retain (CONNACK 0x9a)"),
            Packet::ConnAck { code: 0x9b, .. } => not_applicable("the server lacks a QoS (CONNACK 0x9b)"),
            _ => fail("CONNACK with code 0", came.to_string()),
        }
    }

    /// What the server has said it does not do is nothing to fail at.
    fn needs(&self, available: bool, announced: &str) -> Outcome {
        if available { Ok(()) } else { not_applicable(format!("the server announced {announced}")) }
    }

    /// What the CONNACK says, or the default of the specification.
    pub(crate) fn server_limit(&self, id: u8) -> u32 {
        let default = match id {
            property::MAXIMUM_QOS => 2,
            property::RECEIVE_MAXIMUM => 65_535,
            property::TOPIC_ALIAS_MAXIMUM => 0,
            property::MAXIMUM_PACKET_SIZE => u32::MAX,
            _ => 1,
        };
        self.server.number(id).unwrap_or(default)
    }

    pub(crate) fn subscribed(&mut self, id: u16, filters: usize) -> Result<Vec<u8>, Stop> {
        let expected = format!("SUBACK {id} with {filters} reason codes");
        let came = self.take(&expected, |packet| matches!(packet, Packet::SubAck { .. }))?;
        match &came.packet {
            Packet::SubAck { id: have, codes, .. } if *have == id && codes.len() == filters => {
                Ok(codes.clone())
            }
            _ => fail(expected, came.to_string()),
        }
    }

    pub(crate) fn unsubscribed(&mut self, id: u16) -> Result<Vec<u8>, Stop> {
        let expected = format!("UNSUBACK {id}");
        let came = self.take(&expected, |packet| matches!(packet, Packet::UnsubAck { .. }))?;
        match &came.packet {
            Packet::UnsubAck { id: have, codes, .. } if *have == id => Ok(codes.clone()),
            _ => fail(expected, came.to_string()),
        }
    }

    pub(crate) fn acknowledged(&mut self, kind: u8, id: u16) -> Result<u8, Stop> {
        let expected = format!("{} {id}", wire::name(kind));
        let came = self.take(&expected, |packet| matches!(packet, Packet::Ack { .. }))?;
        match came.packet {
            Packet::Ack { kind: have, id: same, code, .. } if have == kind && same == id => Ok(code),
            _ => fail(expected, came.to_string()),
        }
    }

    pub(crate) fn ping(&mut self) -> Outcome {
        self.send(&wire::PINGREQ)?;
        self.take("PINGRESP", |packet| matches!(packet, Packet::PingResp)).map(drop)
    }

    /// The next PUBLISH, not acknowledged.
    pub(crate) fn message(&mut self, expected: &str) -> Result<Publish, Stop> {
        let expected = format!("PUBLISH: {expected}");
        let came = self.take(&expected, |packet| matches!(packet, Packet::Publish(_)))?;
        match came.packet {
            Packet::Publish(publish) => Ok(publish),
            _ => fail(expected, came.to_string()),
        }
    }

    /// The next PUBLISH, with its whole handshake.
    pub(crate) fn receive(&mut self, expected: &str) -> Result<Publish, Stop> {
        let publish = self.message(expected)?;
        match publish.qos {
            0 => {}
            1 => self.send(&wire::ack(kind::PUBACK, publish.id))?,
            _ => {
                self.send(&wire::ack(kind::PUBREC, publish.id))?;
                self.acknowledged(kind::PUBREL, publish.id)?;
                self.send(&wire::ack(kind::PUBCOMP, publish.id))?;
            }
        }
        Ok(publish)
    }

    /// The next PUBLISH must have this payload.
    pub(crate) fn receive_payload(&mut self, payload: &[u8]) -> Result<Publish, Stop> {
        let expected = format!("payload {:?}", String::from_utf8_lossy(payload));
        let publish = self.receive(&expected)?;
        if publish.payload == payload { Ok(publish) } else { fail(expected, self.shown(&publish)) }
    }

    /// No PUBLISH has come, and none comes before the answer to a PINGREQ.
    pub(crate) fn silent(&mut self, instead_of: &str) -> Outcome {
        self.ping()?;
        match self.early.iter().find(|came| matches!(came.packet, Packet::Publish(_))) {
            Some(came) => fail(format!("no {instead_of}"), came.to_string()),
            None => Ok(()),
        }
    }

    /// The server hangs up on an accepted connection. In 5.0 a DISCONNECT with an error may come first.
    pub(crate) fn closed(&mut self, why: &str) -> Result<Option<u8>, Stop> {
        let expected = format!("connection closed: {why}");
        let mut said = None;
        loop {
            match self.next_or_early() {
                Came::Closed => return Ok(said),
                Came::Packet(Received { packet: Packet::Disconnect { code, .. }, .. })
                    if code >= 0x80 && said.is_none() =>
                {
                    said = Some(code);
                }
                // Sent before the server read what it objects to.
                Came::Packet(Received { packet: Packet::Publish(_), .. }) if said.is_none() => {}
                Came::Packet(came) => return fail(expected, came.to_string()),
                Came::Nothing => return fail(expected, "nothing, connection still open"),
                Came::Malformed(what) => return fail(expected, what),
            }
        }
    }

    /// The server hangs up on a connection it has not accepted. A CONNACK with an error may come first.
    pub(crate) fn refused(&mut self, why: &str) -> Result<Option<u8>, Stop> {
        let expected = format!("connection refused: {why}");
        let mut said = None;
        loop {
            match self.next_or_early() {
                Came::Closed => return Ok(said),
                Came::Packet(Received {
                    packet: Packet::ConnAck { code, session_present: false, .. },
                    ..
                }) if code != 0 && said.is_none() => {
                    said = Some(code);
                }
                Came::Packet(came) => return fail(expected, came.to_string()),
                Came::Nothing => return fail(expected, "nothing, connection still open"),
                Came::Malformed(what) => return fail(expected, what),
            }
        }
    }

    /// The next packet, whatever it is.
    pub(crate) fn next(&mut self, expected: &str) -> Result<Received, Stop> {
        match self.next_or_early() {
            Came::Packet(came) => Ok(came),
            Came::Closed => fail(expected, "connection closed"),
            Came::Nothing => fail(expected, "nothing"),
            Came::Malformed(what) => fail(expected, what),
        }
    }

    /// The next packet that is `wanted`; others are kept, a DISCONNECT ends the wait.
    pub(crate) fn take(
        &mut self,
        expected: &str,
        wanted: impl Fn(&Packet) -> bool,
    ) -> Result<Received, Stop> {
        if let Some(at) = self.early.iter().position(|came| wanted(&came.packet))
            && let Some(came) = self.early.remove(at)
        {
            return Ok(came);
        }
        let until = Instant::now() + self.limit;
        loop {
            match self.next_within(until.saturating_duration_since(Instant::now())) {
                Came::Packet(came) if wanted(&came.packet) => return Ok(came),
                Came::Packet(Received { packet: Packet::Disconnect { code, properties }, raw }) => {
                    self.needs(
                        code != 0x9b || self.server_limit(property::MAXIMUM_QOS) == 2,
                        "Maximum QoS below 2",
                    )?;
                    let limited = self.server.get(property::MAXIMUM_PACKET_SIZE).is_some();
                    self.needs(code != 0x95 || !limited, "a smaller Maximum Packet Size")?;
                    let came = Received { packet: Packet::Disconnect { code, properties }, raw };
                    return fail(expected, came.to_string());
                }
                Came::Packet(came) => self.early.push_back(came),
                Came::Closed => return fail(expected, self.instead("connection closed")),
                Came::Nothing => return fail(expected, self.instead("nothing")),
                Came::Malformed(what) => return fail(expected, what),
            }
        }
    }

    pub(crate) fn shown(&self, publish: &Publish) -> String {
        format!("PUBLISH {}", wire::hex(&publish.bytes(self.version)))
    }

    fn instead(&self, what: &str) -> String {
        self.early.iter().fold(what.to_owned(), |text, came| format!("{text}, after {came}"))
    }

    fn next_or_early(&mut self) -> Came {
        match self.early.pop_front() {
            Some(came) => Came::Packet(came),
            None => self.next_within(self.limit),
        }
    }

    fn next_within(&mut self, limit: Duration) -> Came {
        let until = Instant::now() + limit;
        loop {
            match wire::frame_length(&self.buffer) {
                Err(error) => return Came::Malformed(format!("{error}: {}", wire::hex(&self.buffer))),
                Ok(Some(length)) if self.buffer.len() >= length => {
                    let raw: Vec<u8> = self.buffer.drain(..length).collect();
                    return match wire::read(self.version, &raw) {
                        Ok(packet) => Came::Packet(Received { raw, packet }),
                        Err(error) => Came::Malformed(format!("{error}: {}", wire::hex(&raw))),
                    };
                }
                Ok(_) => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
                return Came::Nothing;
            }
            let mut chunk = [0; 16 << 10];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Came::Closed,
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Came::Closed,
            }
        }
    }
}
