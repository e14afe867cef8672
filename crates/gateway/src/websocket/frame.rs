use ntex::util::{BufMut, BytePages, BytesMut};

/// Control frames hold no more (RFC 6455, 5.5).
const CONTROL_BYTES_MAX: usize = 125;
/// Two bytes, eight of a length, four of a mask.
const HEAD_BYTES_MAX: usize = 14;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// Why a WebSocket ends (RFC 6455, 7.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CloseCode {
    Normal = 1_000,
    Protocol = 1_002,
    /// MQTT comes in binary frames ([MQTT-6.0.0-1]).
    Unsupported = 1_003,
}

impl CloseCode {
    pub(super) fn bytes(self) -> [u8; 2] {
        (self as u16).to_be_bytes()
    }
}

/// The client does not keep to the protocol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) close: CloseCode,
    pub(super) what: &'static str,
}

/// What has come of the frames of one client.
#[derive(Debug)]
pub(super) struct Frames {
    place: Place,
    /// A message was begun whose last frame has not come.
    in_message: bool,
    /// What a control frame holds.
    control: Vec<u8>,
    /// The newest ping that is not answered (5.5.3).
    ping: Option<Vec<u8>>,
    is_closed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Head,
    Payload { opcode: Opcode, left: u64, mask: [u8; 4] },
}

struct Head {
    opcode: Opcode,
    is_last: bool,
    payload_bytes: u64,
    mask: [u8; 4],
    bytes: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self { place: Place::Head, in_message: false, control: Vec::new(), ping: None, is_closed: false }
    }
}

impl Frames {
    /// Moves what binary frames hold from `src` to `dst`. What is left in `src` is a part of a frame's head, or comes
    /// after the frame that closes, or after a violation, after which nothing is read.
    pub(super) fn read(&mut self, src: &mut BytesMut, dst: &mut BytesMut) -> Result<(), Violation> {
        let read = self.read_frames(src, dst);
        self.is_closed |= read.is_err();
        read
    }

    fn read_frames(&mut self, src: &mut BytesMut, dst: &mut BytesMut) -> Result<(), Violation> {
        while !self.is_closed {
            match self.place {
                Place::Head => {
                    let Some(head) = Head::read(src)? else { return Ok(()) };
                    src.advance_to(head.bytes);
                    self.begin(head)?;
                }
                Place::Payload { left: 0, opcode, .. } => {
                    self.place = Place::Head;
                    self.end(opcode);
                }
                Place::Payload { .. } if src.is_empty() => return Ok(()),
                Place::Payload { opcode, left, mask } => {
                    let bytes = src.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    let chunk = &mut src[..bytes];
                    unmask(chunk, mask);
                    match opcode {
                        Opcode::Binary => dst.extend_from_slice(chunk),
                        _ => self.control.extend_from_slice(chunk),
                    }
                    src.advance_to(bytes);
                    let mut mask = mask;
                    mask.rotate_left(bytes % 4);
                    self.place = Place::Payload { opcode, left: left - bytes as u64, mask };
                }
            }
        }
        Ok(())
    }

    /// The ping to be answered.
    pub(super) fn take_ping(&mut self) -> Option<Vec<u8>> {
        self.ping.take()
    }

    /// Whether nothing more is read: the client has said that it is the end, or broke the protocol.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    fn begin(&mut self, head: Head) -> Result<(), Violation> {
        let wrong = |what| Err(Violation { close: CloseCode::Protocol, what });
        let opcode = match (head.opcode, self.in_message) {
            (Opcode::Continuation, false) => return wrong("a continuation of no message"),
            (Opcode::Binary, true) => return wrong("a message in the midst of another"),
            (Opcode::Text, _) => {
                let (close, what) = (CloseCode::Unsupported, "MQTT comes in binary frames");
                return Err(Violation { close, what });
            }
            (Opcode::Continuation | Opcode::Binary, _) => {
                self.in_message = !head.is_last;
                Opcode::Binary
            }
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => {
                if !head.is_last || head.payload_bytes > CONTROL_BYTES_MAX as u64 {
                    return wrong("a control frame in parts, or of more than 125 bytes");
                }
                head.opcode
            }
        };
        self.place = Place::Payload { opcode, left: head.payload_bytes, mask: head.mask };
        Ok(())
    }

    fn end(&mut self, opcode: Opcode) {
        match opcode {
            Opcode::Ping => self.ping = Some(std::mem::take(&mut self.control)),
            Opcode::Close => self.is_closed = true,
            _ => self.control.clear(),
        }
    }
}

impl Head {
    /// `None` if not all of it has come.
    fn read(src: &[u8]) -> Result<Option<Self>, Violation> {
        let wrong = |what| Err(Violation { close: CloseCode::Protocol, what });
        let &[first, second, ref rest @ ..] = src else { return Ok(None) };
        if first & 0x70 != 0 {
            return wrong("a reserved bit is set, and no extension was agreed on");
        }
        if second & 0x80 == 0 {
            return wrong("a client's frames are masked");
        }
        let opcode = match first & 0x0F {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return wrong("a reserved opcode"),
        };
        let (length, rest) = match second & 0x7F {
            126 => (rest.first_chunk::<2>().map(|b| u64::from(u16::from_be_bytes(*b))), rest.get(2..)),
            127 => (rest.first_chunk::<8>().map(|b| u64::from_be_bytes(*b)), rest.get(8..)),
            short => (Some(short.into()), Some(rest)),
        };
        let (Some(payload_bytes), Some(&mask)) = (length, rest.and_then(|rest| rest.first_chunk::<4>()))
        else {
            return Ok(None);
        };
        if payload_bytes > i64::MAX as u64 {
            return wrong("a length with its highest bit set");
        }
        let bytes = match second & 0x7F {
            126 => 8,
            127 => HEAD_BYTES_MAX,
            _ => 6,
        };
        Ok(Some(Self { opcode, is_last: first & 0x80 != 0, payload_bytes, mask, bytes }))
    }
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let (whole, rest) = bytes.as_chunks_mut::<4>();
    for word in whole {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    rest.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

/// A whole frame of the server, which masks nothing.
pub(super) fn write(opcode: Opcode, payload: &[u8], out: &mut BytePages) {
    write_head(opcode, payload.len(), out);
    out.extend_from_slice(payload);
}

pub(super) fn write_head(opcode: Opcode, payload_bytes: usize, out: &mut BytePages) {
    let first = 0x80 | opcode as u8;
    match payload_bytes {
        0..126 => out.extend_from_slice(&[first, payload_bytes as u8]),
        126..=0xFFFF => {
            out.extend_from_slice(&[first, 126]);
            out.put_u16(payload_bytes as u16);
        }
        _ => {
            out.extend_from_slice(&[first, 127]);
            out.put_u64(payload_bytes as u64);
        }
    }
}
