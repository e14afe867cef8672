//! What the specifications forbid and the codec lets pass: looked at in the raw packet, before it is decoded.

use ntex_mqtt::error::DecodeError;

use crate::wire::Version;

const CONNECT: u8 = 1;
const PUBLISH: u8 = 3;
const SUBSCRIBE: u8 = 8;
const PINGREQ: u8 = 12;
const DISCONNECT: u8 = 14;

/// Whether a packet may be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checked {
    Good,
    /// More of it must come first.
    NeedsMore,
}

/// Checks the packet at the front of `src`. One larger than `bytes_max` is left to the codec, which refuses it.
pub(crate) fn check(src: &[u8], version: Version, bytes_max: u32) -> Result<Checked, DecodeError> {
    let Some((&first, rest)) = src.split_first() else { return Ok(Checked::NeedsMore) };
    let Some((length, rest)) = variable_length(rest)? else { return Ok(Checked::NeedsMore) };
    if length > bytes_max as usize {
        return Ok(Checked::Good);
    }
    let whole = rest.get(..length);
    match (first >> 4, whole) {
        (PUBLISH, _) => publish(first, length, rest, version),
        // Nothing is in them (3.12.1; MQTT 3.1.1, 3.14.1).
        (PINGREQ, _) if length > 0 => Err(DecodeError::MalformedPacket),
        (DISCONNECT, _) if length > 0 && version == Version::V3 => Err(DecodeError::MalformedPacket),
        // The codec would make room for all that the length promises.
        (_, None) => Ok(Checked::NeedsMore),
        (CONNECT, Some(body)) => connect(body, version).ok_or(DecodeError::MalformedPacket),
        (SUBSCRIBE, Some(body)) => subscribe(body, version).ok_or(DecodeError::MalformedPacket),
        _ => Ok(Checked::Good),
    }
}

/// The topic, the packet id and the properties stand within the packet, and nothing of QoS 0 is a repetition (3.3.1.1).
fn publish(first: u8, length: usize, rest: &[u8], version: Version) -> Result<Checked, DecodeError> {
    if first & 0b1110 == 0b1000 {
        return Err(DecodeError::MalformedPacket);
    }
    let within = |needed: usize| if needed > length { Err(DecodeError::InvalidLength) } else { Ok(needed) };
    let Some(topic_length) = rest.first_chunk::<2>() else {
        return within(2).map(|_| Checked::NeedsMore);
    };
    let packet_id = if first & 0b0110 == 0 { 0 } else { 2 };
    let head = within(2 + usize::from(u16::from_be_bytes(*topic_length)) + packet_id)?;
    if version == Version::V3 {
        return Ok(Checked::Good);
    }
    let after_head = rest.get(head..length.min(rest.len())).unwrap_or_default();
    match variable_length(after_head)? {
        Some((properties, after)) => {
            within(head + (after_head.len() - after.len()) + properties).map(|_| Checked::Good)
        }
        None => within(head + after_head.len() + 1).map(|_| Checked::NeedsMore),
    }
}

/// The flags and the fields agree, and nothing stands behind the last one (MQTT 3.1.1 and 5, 3.1.2 and 3.1.3).
fn connect(body: &[u8], version: Version) -> Option<Checked> {
    const NAME_AND_LEVEL: usize = 7;
    const KEEP_ALIVE: usize = 2;
    let (&flags, rest) = body.get(NAME_AND_LEVEL..)?.split_first()?;
    let has = |bit: u8| flags >> bit & 1 == 1;
    let (will, password, user_name) = (has(2), has(6), has(7));
    if !will && flags & 0b0011_1000 != 0 {
        return None;
    }
    if version == Version::V3 && password && !user_name {
        return None;
    }
    let mut left = Fields(rest.get(KEEP_ALIVE..)?);
    if version == Version::V5 {
        left.properties()?;
    }
    left.text()?;
    if will {
        if version == Version::V5 {
            left.properties()?;
        }
        left.text()?;
        left.text()?;
    }
    for _ in 0..u8::from(user_name) + u8::from(password) {
        left.text()?;
    }
    left.0.is_empty().then_some(Checked::Good)
}

/// Reserved bits of the options are zero (3.8.3).
fn subscribe(body: &[u8], version: Version) -> Option<Checked> {
    const PACKET_ID: usize = 2;
    let mut left = Fields(body.get(PACKET_ID..)?);
    let reserved = match version {
        Version::V3 => 0b1111_1100,
        Version::V5 => {
            left.properties()?;
            0b1100_0000
        }
    };
    while !left.0.is_empty() {
        left.text()?;
        let (&options, rest) = left.0.split_first()?;
        if options & reserved != 0 {
            return None;
        }
        left.0 = rest;
    }
    Some(Checked::Good)
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn text(&mut self) -> Option<()> {
        let (length, rest) = self.0.split_first_chunk::<2>()?;
        self.0 = rest.get(usize::from(u16::from_be_bytes(*length))..)?;
        Some(())
    }

    fn properties(&mut self) -> Option<()> {
        let (length, rest) = variable_length(self.0).ok().flatten()?;
        self.0 = rest.get(length..)?;
        Some(())
    }
}

/// A variable byte integer and what follows it; `None` if it is not complete.
fn variable_length(src: &[u8]) -> Result<Option<(usize, &[u8])>, DecodeError> {
    let mut length = 0;
    for (place, byte) in src.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(Some((length, &src[place + 1..])));
        }
    }
    if src.len() >= 4 { Err(DecodeError::InvalidLength) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codec makes room for a whole packet once it has seen its length.
    #[test]
    fn nothing_is_begun_on_the_word_of_its_length() {
        for version in [Version::V3, Version::V5] {
            for kind in (0..16).filter(|kind| ![PUBLISH, PINGREQ, DISCONNECT].contains(kind)) {
                let begun = [kind << 4, 0xff, 0xff, 0x3f, 0, 0];
                assert_eq!(check(&begun, version, 1 << 20).ok(), Some(Checked::NeedsMore), "kind {kind}");
            }
        }
    }
}
