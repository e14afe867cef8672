//! The few MQTT packets a sender needs, encoded once and patched in place afterwards.
//!
//! A client library encodes every packet anew and allocates for it; a loader that shares two cores with the server
//! it measures cannot afford that. Deliberately absent: subscribing at more than QoS 0, QoS 2, wills, properties other
//! than the ones needed to come back to a session.

use std::num::NonZeroU16;

/// Bytes of a packet from the server. What a sender gets back is smaller; more is a broken peer.
pub const INCOMING_BYTES_MAX: usize = 64 << 10;
/// Bytes of a packet that can be encoded at all.
pub const PACKET_BYTES_MAX: usize = 268_435_455;

/// First byte of a QoS 1 PUBLISH, and the same marked as possibly a repetition.
pub const PUBLISH_QOS1: u8 = 0x32;
pub const PUBLISH_QOS1_DUP: u8 = 0x3a;

/// Bytes of PINGREQ and of a DISCONNECT that says all is well.
pub const PINGREQ: [u8; 2] = [0xc0, 0];
pub const DISCONNECT: [u8; 2] = [0xe0, 0];

/// How long a server keeps the session of a v5 sender that comes back, in seconds.
const SESSION_EXPIRY_SECONDS: u32 = 3_600;

/// Which MQTT is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Version {
    #[default]
    V311,
    V5,
}

/// How often a message may arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    AtMostOnce,
    AtLeastOnce(NonZeroU16),
}

/// What CONNECT says. `clean: false` asks for a session that outlives the connection.
#[derive(Debug, Clone, Copy)]
pub struct Connect<'a> {
    pub version: Version,
    pub client_id: &'a str,
    pub user_name: Option<&'a str>,
    pub clean: bool,
    /// 0 switches the keep-alive off.
    pub keep_alive_seconds: u16,
}

/// What a server sends to one who publishes, and answers to one who subscribes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming {
    /// 0 is yes; otherwise the reason, in the numbers of the version spoken.
    ConnAck {
        code: u8,
    },
    /// Codes of 0x80 and above refuse the message (v5 only).
    PubAck {
        packet_id: u16,
        code: u8,
    },
    /// The answer to a subscription of one filter; codes of 0x80 and above refuse it.
    SubAck {
        code: u8,
    },
    PingResp,
    /// The server says good-bye (v5 only).
    Disconnect {
        code: u8,
    },
}

/// What was sent or received is not MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("a text of {bytes} bytes is too long for MQTT")]
    TextTooLong { bytes: usize },
    #[error("a packet of {bytes} bytes is too long")]
    PacketTooLong { bytes: usize },
    #[error("the server sent a packet of type {first:#04x}, which a sender does not expect")]
    Unexpected { first: u8 },
    #[error("the server sent a malformed packet of type {first:#04x}")]
    Malformed { first: u8 },
}

/// Appends a CONNECT packet.
pub fn encode_connect(connect: &Connect<'_>, out: &mut Vec<u8>) -> Result<(), WireError> {
    let mut body = Vec::with_capacity(64);
    push_text(&mut body, "MQTT")?;
    body.push(match connect.version {
        Version::V311 => 4,
        Version::V5 => 5,
    });
    body.push(u8::from(connect.user_name.is_some()) << 7 | u8::from(connect.clean) << 1);
    body.extend(connect.keep_alive_seconds.to_be_bytes());
    match (connect.version, connect.clean) {
        (Version::V311, _) => {}
        (Version::V5, true) => body.push(0),
        (Version::V5, false) => {
            body.extend([5, 0x11]);
            body.extend(SESSION_EXPIRY_SECONDS.to_be_bytes());
        }
    }
    push_text(&mut body, connect.client_id)?;
    if let Some(name) = connect.user_name {
        push_text(&mut body, name)?;
    }
    push_header(out, 0x10, body.len())?;
    out.extend(body);
    Ok(())
}

/// Appends a PUBLISH packet. Its payload is the last `payload.len()` bytes of `out`.
pub fn encode_publish(
    version: Version,
    topic: &str,
    qos: Qos,
    payload: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), WireError> {
    let (first, id_bytes) = match qos {
        Qos::AtMostOnce => (0x30, 0),
        Qos::AtLeastOnce(_) => (PUBLISH_QOS1, 2),
    };
    let properties_bytes = usize::from(version == Version::V5);
    push_header(out, first, 2 + topic.len() + id_bytes + properties_bytes + payload.len())?;
    push_text(out, topic)?;
    if let Qos::AtLeastOnce(id) = qos {
        out.extend(id.get().to_be_bytes());
    }
    out.extend(&[0][..properties_bytes]);
    out.extend(payload);
    Ok(())
}

/// Appends a SUBSCRIBE packet for one filter at QoS 0.
pub fn encode_subscribe(version: Version, filter: &str, out: &mut Vec<u8>) -> Result<(), WireError> {
    let properties_bytes = usize::from(version == Version::V5);
    push_header(out, 0x82, 2 + properties_bytes + 2 + filter.len() + 1)?;
    out.extend(NonZeroU16::MIN.get().to_be_bytes());
    out.extend(&[0][..properties_bytes]);
    push_text(out, filter)?;
    out.push(0);
    Ok(())
}

/// The length of the PUBLISH at QoS 0 that `bytes` begin with, or `None` while it is not complete.
#[inline]
pub fn delivery(bytes: &[u8]) -> Result<Option<usize>, WireError> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
    if first & 0xf6 != 0x30 {
        return Err(WireError::Unexpected { first });
    }
    let Some((length, header)) = remaining_length(first, rest)? else { return Ok(None) };
    let whole = 1 + header + length;
    if whole > INCOMING_BYTES_MAX {
        return Err(WireError::PacketTooLong { bytes: whole });
    }
    Ok((whole <= bytes.len()).then_some(whole))
}

/// The first packet of `bytes` and its length, or `None` while it is not complete.
#[inline]
pub fn parse(bytes: &[u8]) -> Result<Option<(Incoming, usize)>, WireError> {
    if let [0x40, 2, high, low, ..] = *bytes {
        return Ok(Some((Incoming::PubAck { packet_id: u16::from_be_bytes([high, low]), code: 0 }, 4)));
    }
    parse_any(bytes)
}

fn parse_any(bytes: &[u8]) -> Result<Option<(Incoming, usize)>, WireError> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
    if !matches!(first, 0x20 | 0x40 | 0x90 | 0xd0 | 0xe0) {
        return Err(WireError::Unexpected { first });
    }
    let Some((length, header)) = remaining_length(first, rest)? else { return Ok(None) };
    if length > INCOMING_BYTES_MAX {
        return Err(WireError::PacketTooLong { bytes: length });
    }
    let Some(body) = rest.get(header..header + length) else { return Ok(None) };
    let incoming = match (first, body) {
        (0x20, [_, code, ..]) => Incoming::ConnAck { code: *code },
        (0x40, [high, low]) => Incoming::PubAck { packet_id: u16::from_be_bytes([*high, *low]), code: 0 },
        (0x40, [high, low, code, ..]) => {
            Incoming::PubAck { packet_id: u16::from_be_bytes([*high, *low]), code: *code }
        }
        // The last byte is the code, behind a packet id and in v5 properties.
        (0x90, [_, _, .., code]) => Incoming::SubAck { code: *code },
        (0xd0, []) => Incoming::PingResp,
        (0xe0, rest) => Incoming::Disconnect { code: rest.first().copied().unwrap_or(0) },
        _ => return Err(WireError::Malformed { first }),
    };
    Ok(Some((incoming, 1 + header + length)))
}

/// The remaining length and the number of bytes it took.
fn remaining_length(first: u8, bytes: &[u8]) -> Result<Option<(usize, usize)>, WireError> {
    let mut length = 0;
    for (i, &byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(Some((length, i + 1)));
        }
    }
    if bytes.len() >= 4 { Err(WireError::Malformed { first }) } else { Ok(None) }
}

fn push_header(out: &mut Vec<u8>, first: u8, mut length: usize) -> Result<(), WireError> {
    if length > PACKET_BYTES_MAX {
        return Err(WireError::PacketTooLong { bytes: length });
    }
    out.push(first);
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    Ok(())
}

fn push_text(out: &mut Vec<u8>, text: &str) -> Result<(), WireError> {
    let length = u16::try_from(text.len()).map_err(|_| WireError::TextTooLong { bytes: text.len() })?;
    out.extend(length.to_be_bytes());
    out.extend(text.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests;
