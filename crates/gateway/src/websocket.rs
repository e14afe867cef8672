//! MQTT in the frames of a WebSocket (RFC 6455; MQTT 5, clause 6).
//!
//! Frames are taken apart as their bytes come: a frame may be as long as it says, what it holds goes on to MQTT at
//! once, and so nothing is kept here of a client that nobody knows yet. (The layer that ntex has keeps whole frames.)

mod frame; // from frames to bytes

use std::{cell::RefCell, io, task::Poll};

use ntex::{
    codec::Decoder,
    io::{Filter, FilterBuf, FilterLayer, Io},
    util::{BytePages, BytesMut},
    ws::hash_key,
};

use crate::listen::Stream;
use frame::{CloseCode, Frames, Opcode, Violation};

/// A request to become a WebSocket, with all its headers.
const REQUEST_BYTES_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 64;
/// While so much waits to be sent, a ping is not answered: who reads nothing must not fill the memory.
const PONG_BACKLOG_BYTES_MAX: usize = 16 << 10;

/// Answers the client's request; from then on it speaks in frames.
pub(crate) async fn accept<F: Filter>(io: Io<F>) -> Result<Stream, &'static str> {
    let asked = match io.recv(&Request).await {
        Ok(Some(asked)) => asked,
        Ok(None) | Err(ntex::util::Either::Right(_)) => return Err("gone"),
        Err(ntex::util::Either::Left(NoRequest)) => Err(Refusal::BAD_REQUEST),
    };
    match asked {
        Ok(Accepted { answer_key }) => {
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {answer_key}\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
            );
            io.encode_slice(answer.as_bytes()).map_err(|_| "gone")?;
            Ok(io.add_filter(Layer::default()).seal())
        }
        Err(Refusal { status, why, header }) => {
            let answer = format!(
                "HTTP/1.1 {status}\r\n{header}Connection: close\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{why}\n",
                why.len() + 1
            );
            let _closed = io.encode_slice(answer.as_bytes());
            let _gone = io.shutdown().await;
            Err("websocket")
        }
    }
}

/// The head of the client's request.
struct Request;

/// What came is no HTTP request, or one with too large a head.
#[derive(Debug, PartialEq, Eq)]
struct NoRequest;

#[derive(Debug, PartialEq, Eq)]
struct Accepted {
    answer_key: String,
}

/// Why the client is not answered with a WebSocket.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    status: &'static str,
    why: &'static str,
    header: &'static str,
}

impl Refusal {
    const BAD_REQUEST: Self = Self::new("not a request for a WebSocket");

    const fn new(why: &'static str) -> Self {
        Self { status: "400 Bad Request", why, header: "" }
    }
}

impl Decoder for Request {
    type Item = Result<Accepted, Refusal>;
    type Error = NoRequest;

    fn decode(&self, src: &mut BytesMut) -> Result<Option<Self::Item>, NoRequest> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let (item, length) = match request.parse(src) {
            Ok(httparse::Status::Complete(length)) if length <= REQUEST_BYTES_MAX => {
                (check(&request), length)
            }
            Ok(httparse::Status::Partial) if src.len() < REQUEST_BYTES_MAX => return Ok(None),
            _ => return Err(NoRequest),
        };
        src.advance_to(length);
        Ok(Some(item))
    }
}

/// What RFC 6455, 4.2.1, and MQTT 5, 6.0.0-3, ask of the request.
fn check(request: &httparse::Request<'_, '_>) -> Result<Accepted, Refusal> {
    let values = |name: &'static str| {
        let named = request.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.filter_map(|header| std::str::from_utf8(header.value).ok())
    };
    let has = |name, token: &str| {
        values(name).flat_map(|value| value.split(',')).any(|found| found.trim().eq_ignore_ascii_case(token))
    };
    if request.method != Some("GET") || !has("upgrade", "websocket") || !has("connection", "upgrade") {
        return Err(Refusal::BAD_REQUEST);
    }
    if !has("sec-websocket-version", "13") {
        return Err(Refusal {
            status: "426 Upgrade Required",
            why: "only version 13 of WebSocket is spoken here",
            header: "Sec-WebSocket-Version: 13\r\n",
        });
    }
    if !has("sec-websocket-protocol", "mqtt") {
        return Err(Refusal::new("the client must offer Sec-WebSocket-Protocol: mqtt"));
    }
    const KEY_BYTES: usize = 24;
    let key = values("sec-websocket-key").map(str::trim).find(|key| key.len() == KEY_BYTES);
    let answer_key = key.and_then(|key| hash_key(key.as_bytes()).ok());
    let answer_key = answer_key.ok_or(Refusal::new("Sec-WebSocket-Key must be 16 bytes in Base64"))?;
    Ok(Accepted { answer_key })
}

/// Frames below, bytes above.
#[derive(Debug, Default)]
struct Layer(RefCell<State>);

#[derive(Debug, Default)]
struct State {
    frames: Frames,
    /// The last frame was written: nothing may follow.
    has_closed: bool,
}

impl State {
    fn close(&mut self, code: CloseCode, out: &mut BytePages) {
        if !std::mem::replace(&mut self.has_closed, true) {
            frame::write(Opcode::Close, &code.bytes(), out);
        }
    }
}

impl FilterLayer for Layer {
    fn process_read_buf(&self, buf: &FilterBuf<'_>) -> io::Result<()> {
        let state = &mut *self.0.borrow_mut();
        let read = buf.with_read_buffers(|src, dst| match src {
            Some(src) => state.frames.read(src, dst),
            None => Ok(()),
        });
        if let Some(ping) = state.frames.take_ping()
            && !state.has_closed
            && buf.io().with_write_dst_buf(|out| out.len()) < PONG_BACKLOG_BYTES_MAX
        {
            buf.with_write_buffers(|_, out| frame::write(Opcode::Pong, &ping, out));
        }
        if let Err(Violation { close, what }) = read {
            tracing::debug!(what, "a WebSocket ends");
            buf.with_write_buffers(|_, out| state.close(close, out));
        }
        if state.frames.is_closed() {
            buf.io().close();
        }
        Ok(())
    }

    fn process_write_buf(&self, buf: &FilterBuf<'_>) -> io::Result<()> {
        if !self.0.borrow().has_closed {
            buf.with_write_buffers(|bytes: &mut BytePages, out| {
                while let Some(page) = bytes.take() {
                    frame::write_head(Opcode::Binary, page.len(), out);
                    out.append(page);
                }
            });
        }
        Ok(())
    }

    fn shutdown(&self, buf: &FilterBuf<'_>) -> io::Result<Poll<()>> {
        self.process_write_buf(buf)?;
        buf.with_write_buffers(|_, out| self.0.borrow_mut().close(CloseCode::Normal, out));
        Ok(Poll::Ready(()))
    }
}

/// For the fuzzer: the request, up to where it goes, and why it is refused.
#[cfg(any(test, fuzzing))]
pub(crate) fn request(src: &mut BytesMut) -> Option<Result<String, &'static str>> {
    match Request.decode(src) {
        Ok(asked) => {
            asked.map(|asked| asked.map(|accepted| accepted.answer_key).map_err(|refusal| refusal.why))
        }
        Err(NoRequest) => Some(Err("no request")),
    }
}

/// For the fuzzer: what frames hold, and how they end.
#[cfg(any(test, fuzzing))]
pub(crate) fn unframe<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<u8>, bool, Option<&'static str>) {
    let (mut frames, mut src, mut dst) = (Frames::default(), BytesMut::new(), BytesMut::new());
    for piece in pieces {
        src.extend_from_slice(piece);
        if let Err(violation) = frames.read(&mut src, &mut dst) {
            return (dst.to_vec(), true, Some(violation.what));
        }
    }
    (dst.to_vec(), frames.is_closed(), None)
}

#[cfg(test)]
mod tests;
