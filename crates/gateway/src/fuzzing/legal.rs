//! What a client may send, read off the specifications (MQTT 3.1.1 and 5, chapters 2 and 3) and sharing nothing with
//! the codec. What the gateway looks at once a packet is decoded is left out: wildcards and U+0000 in topics and filters,
//! packets without a filter, enhanced authentication.

use crate::wire::Version;

/// The packets of a stream, as far as they are whole: first byte and body.
pub(super) fn packets(mut stream: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (first, rest) = stream.split_first()?;
        let mut rest = Body(rest);
        let length = rest.length()?;
        let body = rest.take(length)?;
        stream = rest.0;
        Some((*first, body))
    })
}

pub(super) fn is_legal(first: u8, body: &[u8], version: Version) -> bool {
    let mut body = Body(body);
    let legal = match first {
        0x10 => body.connect(version),
        0x30..=0x3F => body.publish(first, version),
        0x40 | 0x50 => body.answer(version, &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
        0x62 | 0x70 => body.answer(version, &[0, 0x92]),
        0x82 => body.subscribe(version),
        0xA2 => body.unsubscribe(version),
        0xC0 => Some(()),
        0xE0 => body.disconnect(version),
        _ => None,
    };
    legal.is_some() && body.0.is_empty()
}

struct Body<'a>(&'a [u8]);

/// Properties that may stand more than once.
const USER_PROPERTY: u8 = 0x26;
const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;

impl<'a> Body<'a> {
    fn connect(&mut self, version: Version) -> Option<()> {
        let level = if version == Version::V3 { 4 } else { 5 };
        let head = self.take(8)?;
        let flags = head[7];
        let (will, will_qos, will_retain) = (flags & 4 != 0, flags >> 3 & 3, flags & 0x20 != 0);
        let (password, user_name) = (flags & 0x40 != 0, flags & 0x80 != 0);
        let agree = head[..7] == [0, 4, b'M', b'Q', b'T', b'T', level]
            && flags & 1 == 0
            && will_qos < 3
            && (will || (will_qos == 0 && !will_retain))
            && (version == Version::V5 || user_name || !password);
        check(agree)?;
        self.take(2)?; // keep alive
        self.properties(version, &[0x11, 0x21, 0x27, 0x22, 0x19, 0x17, USER_PROPERTY, 0x15, 0x16])?;
        let is_nameless = self.0.starts_with(&[0, 0]);
        check(version == Version::V5 || flags & 2 != 0 || !is_nameless)?;
        self.text()?;
        if will {
            self.properties(version, &[0x18, 0x01, 0x02, 0x03, 0x08, 0x09, USER_PROPERTY])?;
            self.text()?;
            self.binary()?;
        }
        if user_name {
            self.text()?;
        }
        if password {
            self.binary()?;
        }
        Some(())
    }

    fn publish(&mut self, first: u8, version: Version) -> Option<()> {
        let (qos, duplicate) = (first >> 1 & 3, first & 8 != 0);
        check(qos < 3 && (qos > 0 || !duplicate))?;
        self.text()?;
        if qos > 0 {
            self.packet_id()?;
        }
        self.properties(
            version,
            &[0x01, 0x02, 0x23, 0x08, 0x09, USER_PROPERTY, SUBSCRIPTION_IDENTIFIER, 0x03],
        )?;
        self.0 = &[];
        Some(())
    }

    fn answer(&mut self, version: Version, reasons: &[u8]) -> Option<()> {
        self.packet_id()?;
        self.reason(version, reasons, &[0x1F, USER_PROPERTY])
    }

    fn subscribe(&mut self, version: Version) -> Option<()> {
        self.packet_id()?;
        let properties = self.properties(version, &[SUBSCRIPTION_IDENTIFIER, USER_PROPERTY])?;
        check(properties.iter().filter(|kind| **kind == SUBSCRIPTION_IDENTIFIER).count() < 2)?;
        while !self.0.is_empty() {
            self.text()?;
            let options = self.byte()?;
            let reserved = if version == Version::V3 { 0xFC } else { 0xC0 };
            check(options & reserved == 0 && options & 3 < 3 && options >> 4 & 3 < 3)?;
        }
        Some(())
    }

    fn unsubscribe(&mut self, version: Version) -> Option<()> {
        self.packet_id()?;
        self.properties(version, &[USER_PROPERTY])?;
        while !self.0.is_empty() {
            self.text()?;
        }
        Some(())
    }

    fn disconnect(&mut self, version: Version) -> Option<()> {
        const REASONS: &[u8] =
            b"\x00\x04\x80\x81\x82\x83\x87\x89\x8B\x8D\x8E\x8F\x90\x93\x94\x95\x96\x97\x98\x99\
              \x9A\x9B\x9C\x9D\x9E\x9F\xA0\xA1\xA2";
        self.reason(version, REASONS, &[0x11, 0x1F, USER_PROPERTY])
    }

    /// May be left out, and the properties behind it.
    fn reason(&mut self, version: Version, reasons: &[u8], properties: &[u8]) -> Option<()> {
        if version == Version::V3 || self.0.is_empty() {
            return Some(());
        }
        let reason = self.byte()?;
        check(reasons.contains(&reason))?;
        if !self.0.is_empty() {
            self.properties(version, properties)?;
        }
        Some(())
    }

    /// Their kinds.
    fn properties(&mut self, version: Version, known: &[u8]) -> Option<Vec<u8>> {
        let mut kinds = Vec::new();
        if version == Version::V3 {
            return Some(kinds);
        }
        let length = self.length()?;
        let mut inside = Body(self.take(length)?);
        while let Some((kind, rest)) = inside.0.split_first() {
            inside.0 = rest;
            let may_repeat = matches!(*kind, USER_PROPERTY | SUBSCRIPTION_IDENTIFIER);
            check(known.contains(kind) && (may_repeat || !kinds.contains(kind)))?;
            kinds.push(*kind);
            match kind {
                0x01 | 0x17 | 0x19 => check(inside.byte()? < 2)?,
                0x21 | 0x23 => check(inside.take(2)? != [0, 0])?,
                0x22 => drop(inside.take(2)?),
                0x27 => check(inside.take(4)? != [0; 4])?,
                // An expiry of zero seconds is legal; the codec refuses it.
                0x02 => check(inside.take(4)? != [0; 4])?,
                0x11 | 0x18 => drop(inside.take(4)?),
                0x09 | 0x16 => inside.binary()?,
                &SUBSCRIPTION_IDENTIFIER => check(inside.length()? > 0)?,
                &USER_PROPERTY => {
                    inside.text()?;
                    inside.text()?;
                }
                _ => inside.text()?,
            }
        }
        Some(kinds)
    }

    fn packet_id(&mut self) -> Option<()> {
        check(self.take(2)? != [0, 0])
    }

    fn text(&mut self) -> Option<()> {
        let bytes = self.prefixed()?;
        str::from_utf8(bytes).ok().map(drop)
    }

    fn binary(&mut self) -> Option<()> {
        self.prefixed().map(drop)
    }

    fn prefixed(&mut self) -> Option<&'a [u8]> {
        let length = self.take(2)?;
        self.take(usize::from(u16::from_be_bytes([length[0], length[1]])))
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    /// A variable byte integer.
    fn length(&mut self) -> Option<usize> {
        let mut length = 0;
        for place in 0..4 {
            let byte = self.byte()?;
            length |= usize::from(byte & 0x7F) << (7 * place);
            if byte < 0x80 {
                return Some(length);
            }
        }
        None
    }
}

fn check(holds: bool) -> Option<()> {
    holds.then_some(())
}
