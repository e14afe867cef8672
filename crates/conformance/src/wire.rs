//! Packets as bytes. The writer writes whatever it is told, valid or not; the reader takes only what a server
//! may send and says what is wrong with the rest. Shares no code with any broker, so that no mistake is made twice.

use std::fmt;
use std::fmt::Write as _;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V4,
    V5,
}

impl Version {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V4 => "3.1.1",
            Self::V5 => "5.0",
        }
    }
}

pub(crate) mod kind {
    pub(crate) const CONNECT: u8 = 1;
    pub(crate) const CONNACK: u8 = 2;
    pub(crate) const PUBLISH: u8 = 3;
    pub(crate) const PUBACK: u8 = 4;
    pub(crate) const PUBREC: u8 = 5;
    pub(crate) const PUBREL: u8 = 6;
    pub(crate) const PUBCOMP: u8 = 7;
    pub(crate) const SUBSCRIBE: u8 = 8;
    pub(crate) const SUBACK: u8 = 9;
    pub(crate) const UNSUBSCRIBE: u8 = 10;
    pub(crate) const UNSUBACK: u8 = 11;
    pub(crate) const PINGREQ: u8 = 12;
    pub(crate) const PINGRESP: u8 = 13;
    pub(crate) const DISCONNECT: u8 = 14;
    pub(crate) const AUTH: u8 = 15;
}

pub(crate) mod property {
    pub(crate) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION_DATA: u8 = 0x09;
    pub(crate) const SUBSCRIPTION_ID: u8 = 0x0b;
    pub(crate) const SESSION_EXPIRY: u8 = 0x11;
    pub(crate) const ASSIGNED_CLIENT_ID: u8 = 0x12;
    pub(crate) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(crate) const AUTH_METHOD: u8 = 0x15;
    pub(crate) const AUTH_DATA: u8 = 0x16;
    pub(crate) const REQUEST_PROBLEM: u8 = 0x17;
    pub(crate) const WILL_DELAY: u8 = 0x18;
    pub(crate) const REQUEST_RESPONSE: u8 = 0x19;
    pub(crate) const RESPONSE_INFORMATION: u8 = 0x1a;
    pub(crate) const SERVER_REFERENCE: u8 = 0x1c;
    pub(crate) const REASON_STRING: u8 = 0x1f;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(crate) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(crate) const TOPIC_ALIAS: u8 = 0x23;
    pub(crate) const MAXIMUM_QOS: u8 = 0x24;
    pub(crate) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(crate) const USER_PROPERTY: u8 = 0x26;
    pub(crate) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(crate) const WILDCARD_AVAILABLE: u8 = 0x28;
    pub(crate) const SUBSCRIPTION_ID_AVAILABLE: u8 = 0x29;
    pub(crate) const SHARED_AVAILABLE: u8 = 0x2a;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Byte(u8),
    Short(u16),
    Long(u32),
    Variable(u32),
    Bytes(Vec<u8>),
    Text(String),
    Pair(String, String),
}

pub(crate) fn text(value: &str) -> Value {
    Value::Text(value.into())
}

pub(crate) fn pair(name: &str, value: &str) -> Value {
    Value::Pair(name.into(), value.into())
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Properties(pub(crate) Vec<(u8, Value)>);

impl Properties {
    pub(crate) fn get(&self, id: u8) -> Option<&Value> {
        self.0.iter().find(|(have, _)| *have == id).map(|(_, value)| value)
    }

    /// A number of whatever width.
    pub(crate) fn number(&self, id: u8) -> Option<u32> {
        match self.get(id)? {
            Value::Byte(n) => Some(u32::from(*n)),
            Value::Short(n) => Some(u32::from(*n)),
            Value::Long(n) | Value::Variable(n) => Some(*n),
            _ => None,
        }
    }

    pub(crate) fn subscription_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self
            .0
            .iter()
            .filter_map(|(id, value)| match value {
                Value::Variable(n) if *id == property::SUBSCRIPTION_ID => Some(*n),
                _ => None,
            })
            .collect();
        ids.sort_unstable();
        ids
    }

    pub(crate) fn user(&self) -> Vec<(&str, &str)> {
        self.0
            .iter()
            .filter_map(|(_, value)| match value {
                Value::Pair(name, value) => Some((name.as_str(), value.as_str())),
                _ => None,
            })
            .collect()
    }
}

// ---- writing

/// A frame with the right remaining length around any body.
pub(crate) fn frame(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    put_variable(&mut out, body.len() as u32);
    out.extend_from_slice(body);
    out
}

pub(crate) fn put_variable(out: &mut Vec<u8>, mut value: u32) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

pub(crate) fn put_properties(out: &mut Vec<u8>, properties: &[(u8, Value)]) {
    let mut body = Vec::new();
    for (id, value) in properties {
        body.push(*id);
        match value {
            Value::Byte(n) => body.push(*n),
            Value::Short(n) => body.extend_from_slice(&n.to_be_bytes()),
            Value::Long(n) => body.extend_from_slice(&n.to_be_bytes()),
            Value::Variable(n) => put_variable(&mut body, *n),
            Value::Bytes(bytes) => put_bytes(&mut body, bytes),
            Value::Text(text) => put_bytes(&mut body, text.as_bytes()),
            Value::Pair(name, value) => {
                put_bytes(&mut body, name.as_bytes());
                put_bytes(&mut body, value.as_bytes());
            }
        }
    }
    put_variable(out, body.len() as u32);
    out.extend_from_slice(&body);
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Will {
    pub(crate) topic: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) properties: Vec<(u8, Value)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Connect {
    pub(crate) version: Version,
    pub(crate) name: Vec<u8>,
    pub(crate) level: u8,
    /// Turns single connect flags over, without the payload following.
    pub(crate) flags_flipped: u8,
    pub(crate) client: Vec<u8>,
    pub(crate) clean: bool,
    pub(crate) keep_alive_seconds: u16,
    pub(crate) properties: Vec<(u8, Value)>,
    pub(crate) will: Option<Will>,
    pub(crate) user: Option<Vec<u8>>,
    pub(crate) password: Option<Vec<u8>>,
}

impl Connect {
    pub(crate) fn new(version: Version, client: &str) -> Self {
        Self {
            version,
            name: b"MQTT".to_vec(),
            level: if version == Version::V4 { 4 } else { 5 },
            flags_flipped: 0,
            client: client.as_bytes().to_vec(),
            clean: true,
            keep_alive_seconds: 60,
            properties: Vec::new(),
            will: None,
            user: None,
            password: None,
        }
    }

    pub(crate) fn with(mut self, id: u8, value: Value) -> Self {
        self.properties.push((id, value));
        self
    }

    pub(crate) fn body(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, &self.name);
        out.push(self.level);
        let mut flags = u8::from(self.clean) << 1;
        if let Some(will) = &self.will {
            flags |= 0x04 | will.qos << 3 | u8::from(will.retain) << 5;
        }
        flags |= u8::from(self.password.is_some()) << 6 | u8::from(self.user.is_some()) << 7;
        out.push(flags ^ self.flags_flipped);
        out.extend_from_slice(&self.keep_alive_seconds.to_be_bytes());
        if self.version == Version::V5 {
            put_properties(&mut out, &self.properties);
        }
        put_bytes(&mut out, &self.client);
        if let Some(will) = &self.will {
            if self.version == Version::V5 {
                put_properties(&mut out, &will.properties);
            }
            put_bytes(&mut out, &will.topic);
            put_bytes(&mut out, &will.payload);
        }
        for field in [&self.user, &self.password].into_iter().flatten() {
            put_bytes(&mut out, field);
        }
        out
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        frame(kind::CONNECT << 4, &self.body())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Publish {
    pub(crate) topic: Vec<u8>,
    pub(crate) payload: Vec<u8>,
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) dup: bool,
    pub(crate) id: u16,
    pub(crate) properties: Properties,
}

impl Publish {
    pub(crate) fn new(topic: impl AsRef<[u8]>, payload: impl AsRef<[u8]>, qos: u8) -> Self {
        Self { topic: topic.as_ref().to_vec(), payload: payload.as_ref().to_vec(), qos, ..Self::default() }
    }

    pub(crate) fn retained(mut self) -> Self {
        self.retain = true;
        self
    }

    pub(crate) fn dup(mut self) -> Self {
        self.dup = true;
        self
    }

    pub(crate) fn id(mut self, id: u16) -> Self {
        self.id = id;
        self
    }

    pub(crate) fn with(mut self, id: u8, value: Value) -> Self {
        self.properties.0.push((id, value));
        self
    }

    pub(crate) fn bytes(&self, version: Version) -> Vec<u8> {
        let mut body = Vec::new();
        put_bytes(&mut body, &self.topic);
        if self.qos > 0 {
            body.extend_from_slice(&self.id.to_be_bytes());
        }
        if version == Version::V5 {
            put_properties(&mut body, &self.properties.0);
        }
        body.extend_from_slice(&self.payload);
        let flags = u8::from(self.dup) << 3 | self.qos << 1 | u8::from(self.retain);
        frame(kind::PUBLISH << 4 | flags, &body)
    }
}

pub(crate) fn subscribe_body<F: AsRef<[u8]>>(
    version: Version,
    id: u16,
    filters: &[(F, u8)],
    properties: &[(u8, Value)],
) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == Version::V5 {
        put_properties(&mut body, properties);
    }
    for (filter, options) in filters {
        put_bytes(&mut body, filter.as_ref());
        body.push(*options);
    }
    body
}

pub(crate) fn subscribe<F: AsRef<[u8]>>(version: Version, id: u16, filters: &[(F, u8)]) -> Vec<u8> {
    frame(kind::SUBSCRIBE << 4 | 2, &subscribe_body(version, id, filters, &[]))
}

pub(crate) fn unsubscribe_body<F: AsRef<[u8]>>(version: Version, id: u16, filters: &[F]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.push(0);
    }
    for filter in filters {
        put_bytes(&mut body, filter.as_ref());
    }
    body
}

pub(crate) fn unsubscribe<F: AsRef<[u8]>>(version: Version, id: u16, filters: &[F]) -> Vec<u8> {
    frame(kind::UNSUBSCRIBE << 4 | 2, &unsubscribe_body(version, id, filters))
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP without a reason code, which means success in 5.0 too.
pub(crate) fn ack(kind: u8, id: u16) -> Vec<u8> {
    let flags = if kind == kind::PUBREL { 2 } else { 0 };
    frame(kind << 4 | flags, &id.to_be_bytes())
}

pub(crate) fn ack_with(kind: u8, id: u16, reason: u8) -> Vec<u8> {
    let flags = if kind == kind::PUBREL { 2 } else { 0 };
    let [high, low] = id.to_be_bytes();
    frame(kind << 4 | flags, &[high, low, reason])
}

pub(crate) const PINGREQ: [u8; 2] = [kind::PINGREQ << 4, 0];
pub(crate) const DISCONNECT: [u8; 2] = [kind::DISCONNECT << 4, 0];

// ---- reading

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Packet {
    ConnAck { session_present: bool, code: u8, properties: Properties },
    Publish(Publish),
    Ack { kind: u8, id: u16, code: u8, properties: Properties },
    SubAck { id: u16, codes: Vec<u8>, properties: Properties },
    UnsubAck { id: u16, codes: Vec<u8>, properties: Properties },
    PingResp,
    Disconnect { code: u8, properties: Properties },
    Auth { code: u8, properties: Properties },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) raw: Vec<u8>,
    pub(crate) packet: Packet,
}

impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", name(self.raw[0] >> 4), hex(&self.raw))
    }
}

pub(crate) fn name(kind: u8) -> &'static str {
    const NAMES: [&str; 16] = [
        "packet of type 0",
        "CONNECT",
        "CONNACK",
        "PUBLISH",
        "PUBACK",
        "PUBREC",
        "PUBREL",
        "PUBCOMP",
        "SUBSCRIBE",
        "SUBACK",
        "UNSUBSCRIBE",
        "UNSUBACK",
        "PINGREQ",
        "PINGRESP",
        "DISCONNECT",
        "AUTH",
    ];
    NAMES[usize::from(kind & 0x0f)]
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 64;
    let mut out = String::new();
    for (index, byte) in bytes.iter().take(SHOWN_BYTES_MAX).enumerate() {
        let gap = if index == 0 { "" } else { " " };
        let _ = write!(out, "{gap}{byte:02x}");
    }
    if bytes.len() > SHOWN_BYTES_MAX {
        let _ = write!(out, " … ({} bytes)", bytes.len());
    }
    out
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("remaining length of more than four bytes")]
    LengthTooLong,
    #[error("variable byte integer not in its shortest form")]
    LengthNotShortest,
    #[error("{0} has fixed header flags {1:#x}")]
    Flags(&'static str, u8),
    #[error("{0} is never sent by a server")]
    NotForClients(&'static str),
    #[error("packet ends within {0}")]
    Truncated(&'static str),
    #[error("{0} bytes after the end of {1}")]
    Trailing(usize, &'static str),
    #[error("text is not UTF-8, or has U+0000")]
    Text,
    #[error("property {0:#04x} is unknown, or not for this packet")]
    Property(u8),
    #[error("property {0:#04x} stands twice")]
    PropertyTwice(u8),
    #[error("{0} has reason code {1:#04x}, which is not one of its own")]
    Reason(&'static str, u8),
    #[error("packet identifier 0")]
    IdentifierZero,
    #[error("QoS 3, or DUP with QoS 0")]
    Qos,
    #[error("topic name empty or with a wildcard")]
    Topic,
    #[error("CONNACK flags {0:#04x}")]
    ConnAckFlags(u8),
}

/// The length of the first frame in `bytes`, `None` while it cannot be known.
pub(crate) fn frame_length(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut value = 0_usize;
    for index in 0..4 {
        let Some(byte) = bytes.get(1 + index) else { return Ok(None) };
        value |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            if *byte == 0 && index > 0 {
                return Err(Malformed::LengthNotShortest);
            }
            return Ok(Some(2 + index + value));
        }
    }
    Err(Malformed::LengthTooLong)
}

/// One whole frame.
pub(crate) fn read(version: Version, raw: &[u8]) -> Result<Packet, Malformed> {
    let header = raw.iter().skip(1).take_while(|byte| **byte & 0x80 != 0).count() + 2;
    let (kind, flags) = (raw[0] >> 4, raw[0] & 0x0f);
    let flags_due = if kind == kind::PUBREL { 2 } else { 0 };
    if kind != kind::PUBLISH && flags != flags_due {
        return Err(Malformed::Flags(name(kind), flags));
    }
    let mut body = Reader { rest: &raw[header..], version, kind };
    let packet = match kind {
        kind::CONNACK => body.connack()?,
        kind::PUBLISH => body.publish(flags)?,
        kind::PUBACK | kind::PUBREC | kind::PUBREL | kind::PUBCOMP => body.ack()?,
        kind::SUBACK | kind::UNSUBACK => body.sub_or_unsuback()?,
        kind::PINGRESP => Packet::PingResp,
        kind::DISCONNECT | kind::AUTH if version == Version::V5 => body.disconnect_or_auth()?,
        _ => return Err(Malformed::NotForClients(name(kind))),
    };
    match body.rest.len() {
        0 => Ok(packet),
        left => Err(Malformed::Trailing(left, name(kind))),
    }
}

struct Reader<'a> {
    rest: &'a [u8],
    version: Version,
    kind: u8,
}

impl<'a> Reader<'a> {
    fn connack(&mut self) -> Result<Packet, Malformed> {
        let flags = self.byte("flags")?;
        if flags > 1 {
            return Err(Malformed::ConnAckFlags(flags));
        }
        let code = self.reason()?;
        // A server that does not speak the version asked for may answer in the shorter form of 3.1.1.
        let properties =
            if self.rest.is_empty() && code != 0 { Properties::default() } else { self.properties()? };
        Ok(Packet::ConnAck { session_present: flags == 1, code, properties })
    }

    fn publish(&mut self, flags: u8) -> Result<Packet, Malformed> {
        let (dup, qos, retain) = (flags & 8 != 0, flags >> 1 & 3, flags & 1 != 0);
        if qos == 3 || (dup && qos == 0) {
            return Err(Malformed::Qos);
        }
        let topic = self.text()?;
        let id = if qos > 0 { self.identifier()? } else { 0 };
        let properties = self.properties()?;
        if topic.contains(['+', '#']) || (topic.is_empty() && properties.get(property::TOPIC_ALIAS).is_none())
        {
            return Err(Malformed::Topic);
        }
        let payload = std::mem::take(&mut self.rest).to_vec();
        Ok(Packet::Publish(Publish { topic: topic.into(), payload, qos, retain, dup, id, properties }))
    }

    fn ack(&mut self) -> Result<Packet, Malformed> {
        let id = self.identifier()?;
        let short = self.version == Version::V4 || self.rest.is_empty();
        let code = if short { 0 } else { self.reason()? };
        let properties = if self.rest.is_empty() { Properties::default() } else { self.properties()? };
        Ok(Packet::Ack { kind: self.kind, id, code, properties })
    }

    fn sub_or_unsuback(&mut self) -> Result<Packet, Malformed> {
        let id = self.identifier()?;
        let properties = self.properties()?;
        let mut codes = Vec::new();
        while !self.rest.is_empty() {
            codes.push(self.reason()?);
        }
        Ok(match self.kind {
            kind::SUBACK => Packet::SubAck { id, codes, properties },
            _ => Packet::UnsubAck { id, codes, properties },
        })
    }

    fn disconnect_or_auth(&mut self) -> Result<Packet, Malformed> {
        let code = if self.rest.is_empty() { 0 } else { self.reason()? };
        let properties = if self.rest.is_empty() { Properties::default() } else { self.properties()? };
        Ok(match self.kind {
            kind::AUTH => Packet::Auth { code, properties },
            _ => Packet::Disconnect { code, properties },
        })
    }

    fn reason(&mut self) -> Result<u8, Malformed> {
        let code = self.byte("reason code")?;
        let own: &[u8] = match (self.version, self.kind) {
            (Version::V4, kind::CONNACK) => &[0, 1, 2, 3, 4, 5],
            (Version::V4, kind::SUBACK) => &[0, 1, 2, 0x80],
            (_, kind::CONNACK) => &[
                0, 1, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8a, 0x8c, 0x90, 0x95,
                0x97, 0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9f,
            ],
            (_, kind::PUBACK | kind::PUBREC) => &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99],
            (_, kind::PUBREL | kind::PUBCOMP) => &[0, 0x92],
            (_, kind::SUBACK) => &[0, 1, 2, 0x80, 0x83, 0x87, 0x8f, 0x91, 0x97, 0x9e, 0xa1, 0xa2],
            (_, kind::UNSUBACK) => &[0, 0x11, 0x80, 0x83, 0x87, 0x8f, 0x91],
            (_, kind::AUTH) => &[0, 0x18],
            _ => &[
                0, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8b, 0x8d, 0x8e, 0x8f, 0x90, 0x93, 0x94, 0x95, 0x96,
                0x97, 0x98, 0x99, 0x9a, 0x9b, 0x9c, 0x9d, 0x9e, 0x9f, 0xa0, 0xa1, 0xa2,
            ],
        };
        if own.contains(&code) { Ok(code) } else { Err(Malformed::Reason(name(self.kind), code)) }
    }

    fn properties(&mut self) -> Result<Properties, Malformed> {
        if self.version == Version::V4 {
            return Ok(Properties::default());
        }
        let length = self.variable()? as usize;
        let mut inside = Reader { rest: self.bytes(length, "properties")?, ..*self };
        let mut found = Properties::default();
        while !inside.rest.is_empty() {
            let id = inside.byte("property")?;
            if !is_from_server(self.kind, id) {
                return Err(Malformed::Property(id));
            }
            let many = id == property::USER_PROPERTY || id == property::SUBSCRIPTION_ID;
            if !many && found.get(id).is_some() {
                return Err(Malformed::PropertyTwice(id));
            }
            let value = inside.value(id)?;
            found.0.push((id, value));
        }
        Ok(found)
    }

    fn value(&mut self, id: u8) -> Result<Value, Malformed> {
        use property as p;
        Ok(match id {
            p::PAYLOAD_FORMAT
            | p::MAXIMUM_QOS
            | p::RETAIN_AVAILABLE
            | p::WILDCARD_AVAILABLE
            | p::SUBSCRIPTION_ID_AVAILABLE
            | p::SHARED_AVAILABLE => Value::Byte(self.byte("property")?),
            p::SERVER_KEEP_ALIVE | p::RECEIVE_MAXIMUM | p::TOPIC_ALIAS_MAXIMUM | p::TOPIC_ALIAS => {
                Value::Short(self.short("property")?)
            }
            p::MESSAGE_EXPIRY | p::SESSION_EXPIRY | p::MAXIMUM_PACKET_SIZE => {
                let bytes = self.bytes(4, "property")?;
                Value::Long(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            }
            p::SUBSCRIPTION_ID => Value::Variable(self.variable()?),
            p::CORRELATION_DATA | p::AUTH_DATA => {
                let length = usize::from(self.short("property")?);
                Value::Bytes(self.bytes(length, "property")?.to_vec())
            }
            p::USER_PROPERTY => Value::Pair(self.text()?, self.text()?),
            _ => Value::Text(self.text()?),
        })
    }

    fn identifier(&mut self) -> Result<u16, Malformed> {
        match self.short("packet identifier")? {
            0 => Err(Malformed::IdentifierZero),
            id => Ok(id),
        }
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let length = usize::from(self.short("text")?);
        let text = std::str::from_utf8(self.bytes(length, "text")?).map_err(|_| Malformed::Text)?;
        if text.contains('\0') { Err(Malformed::Text) } else { Ok(text.into()) }
    }

    fn variable(&mut self) -> Result<u32, Malformed> {
        let mut value = 0;
        for index in 0..4 {
            let byte = self.byte("variable byte integer")?;
            value |= u32::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return if byte == 0 && index > 0 { Err(Malformed::LengthNotShortest) } else { Ok(value) };
            }
        }
        Err(Malformed::LengthTooLong)
    }

    fn short(&mut self, of: &'static str) -> Result<u16, Malformed> {
        let bytes = self.bytes(2, of)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn byte(&mut self, of: &'static str) -> Result<u8, Malformed> {
        Ok(self.bytes(1, of)?[0])
    }

    fn bytes(&mut self, count: usize, of: &'static str) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Malformed::Truncated(of))?;
        self.rest = rest;
        Ok(taken)
    }
}

fn is_from_server(kind: u8, id: u8) -> bool {
    use property as p;
    let own: &[u8] = match kind {
        kind::CONNACK => &[
            p::SESSION_EXPIRY,
            p::ASSIGNED_CLIENT_ID,
            p::SERVER_KEEP_ALIVE,
            p::AUTH_METHOD,
            p::AUTH_DATA,
            p::RESPONSE_INFORMATION,
            p::SERVER_REFERENCE,
            p::RECEIVE_MAXIMUM,
            p::TOPIC_ALIAS_MAXIMUM,
            p::MAXIMUM_QOS,
            p::RETAIN_AVAILABLE,
            p::MAXIMUM_PACKET_SIZE,
            p::WILDCARD_AVAILABLE,
            p::SUBSCRIPTION_ID_AVAILABLE,
            p::SHARED_AVAILABLE,
        ],
        kind::PUBLISH => &[
            p::PAYLOAD_FORMAT,
            p::MESSAGE_EXPIRY,
            p::CONTENT_TYPE,
            p::RESPONSE_TOPIC,
            p::CORRELATION_DATA,
            p::SUBSCRIPTION_ID,
            p::TOPIC_ALIAS,
        ],
        kind::DISCONNECT => &[p::SERVER_REFERENCE],
        kind::AUTH => &[p::AUTH_METHOD, p::AUTH_DATA],
        _ => &[],
    };
    id == p::USER_PROPERTY || (id == p::REASON_STRING && kind != kind::PUBLISH) || own.contains(&id)
}

#[cfg(test)]
mod tests;
