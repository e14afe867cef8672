use proptest::prelude::*;

use super::*;

const REQUEST: &str = "GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Protocol: mqttv3.1, mqtt\r\n\r\n";

fn ask(request: &str) -> Result<Option<Result<Accepted, Refusal>>, NoRequest> {
    Request.decode(&mut BytesMut::copy_from_slice(request.as_bytes()))
}

fn why(request: &str) -> &'static str {
    ask(request).unwrap().unwrap().unwrap_err().why
}

#[test]
fn the_example_of_the_rfc_is_answered_as_there() {
    let answer_key = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned();
    assert_eq!(ask(REQUEST), Ok(Some(Ok(Accepted { answer_key }))));
    for length in 0..REQUEST.len() {
        assert_eq!(ask(&REQUEST[..length]), Ok(None), "{length}");
    }
}

#[test]
fn what_is_missing_is_named() {
    assert_eq!(why(&REQUEST.replace("GET", "POST")), "not a request for a WebSocket");
    assert_eq!(why(&REQUEST.replace("Upgrade: websocket\r\n", "")), "not a request for a WebSocket");
    assert_eq!(
        why(&REQUEST.replace("mqttv3.1, mqtt", "chat")),
        "the client must offer Sec-WebSocket-Protocol: mqtt"
    );
    assert_eq!(why(&REQUEST.replace("13", "8")), "only version 13 of WebSocket is spoken here");
    let no_key = REQUEST.replace("dGhlIHNhbXBsZSBub25jZQ==", "short");
    assert_eq!(why(&no_key), "Sec-WebSocket-Key must be 16 bytes in Base64");
}

#[test]
fn a_head_has_a_bound_and_what_is_no_http_is_refused() {
    let padding = format!("X: {}\r\n\r\n", "x".repeat(REQUEST_BYTES_MAX));
    assert_eq!(ask(&REQUEST.replace("\r\n\r\n", &format!("\r\n{padding}"))), Err(NoRequest));
    assert_eq!(ask(&format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(REQUEST_BYTES_MAX))), Err(NoRequest));
    assert_eq!(ask("\x10\x0c\0\x04MQTT\x04\x02\0<\0\0"), Err(NoRequest));
}

#[derive(Debug, Clone)]
struct Sent {
    first: u8,
    payload: Vec<u8>,
    mask: [u8; 4],
}

impl Sent {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.first];
        match self.payload.len() {
            n @ 0..126 => bytes.push(0x80 | n as u8),
            n @ 126..=0xFFFF => {
                bytes.push(0x80 | 126);
                bytes.extend((n as u16).to_be_bytes());
            }
            n => {
                bytes.push(0x80 | 127);
                bytes.extend((n as u64).to_be_bytes());
            }
        }
        bytes.extend(self.mask);
        bytes.extend(self.payload.iter().zip(self.mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    Sent { first, payload: payload.to_vec(), mask: [1, 2, 3, 4] }.bytes()
}

/// What goes on to MQTT, and how it ends.
fn read(frames: &mut Frames, chunks: &[&[u8]]) -> Result<Vec<u8>, Violation> {
    let (mut src, mut dst) = (BytesMut::new(), BytesMut::new());
    for chunk in chunks {
        src.extend_from_slice(chunk);
        frames.read(&mut src, &mut dst)?;
        assert!(src.len() < 14 || frames.is_closed(), "nothing is kept but a part of a head");
    }
    Ok(dst.to_vec())
}

fn refused(bytes: &[u8]) -> (CloseCode, &'static str) {
    let Violation { close, what } = read(&mut Frames::default(), &[bytes]).unwrap_err();
    (close, what)
}

#[test]
fn what_breaks_the_protocol_is_named() {
    use CloseCode::{Protocol, Unsupported};
    assert_eq!(refused(&frame(0x81, b"text")), (Unsupported, "MQTT comes in binary frames"));
    assert_eq!(refused(&frame(0x80, b"x")), (Protocol, "a continuation of no message"));
    let twice = [frame(0x02, b"a"), frame(0x82, b"b")].concat();
    assert_eq!(refused(&twice), (Protocol, "a message in the midst of another"));
    assert_eq!(refused(&[0x82, 1, b'x']), (Protocol, "a client's frames are masked"));
    assert_eq!(refused(&frame(0xC2, b"x")).1, "a reserved bit is set, and no extension was agreed on");
    assert_eq!(refused(&frame(0x83, b"x")), (Protocol, "a reserved opcode"));
    assert_eq!(refused(&frame(0x09, b"x")).1, "a control frame in parts, or of more than 125 bytes");
    assert_eq!(refused(&frame(0x89, &[0; 126])).1, "a control frame in parts, or of more than 125 bytes");
    let lie = [&[0x82, 0xFF][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
    assert_eq!(refused(&lie), (Protocol, "a length with its highest bit set"));
}

#[test]
fn a_frame_that_lies_about_its_length_takes_no_memory() {
    let mut frames = Frames::default();
    let head = [&[0x82, 0xFF][..], &(i64::MAX as u64).to_be_bytes(), &[0; 4]].concat();
    assert_eq!(read(&mut frames, &[&head, b"MQ", b"TT"]).unwrap(), b"MQTT");
}

#[test]
fn the_newest_ping_is_answered_and_nothing_is_read_after_a_close() {
    let mut frames = Frames::default();
    let bytes = [frame(0x89, b"one"), frame(0x02, b"a"), frame(0x89, b"two"), frame(0x80, b"b")].concat();
    assert_eq!(read(&mut frames, &[&bytes]).unwrap(), b"ab");
    assert_eq!((frames.take_ping(), frames.take_ping()), (Some(b"two".to_vec()), None));
    let bytes = [frame(0x8A, b"pong"), frame(0x82, b"c"), frame(0x88, &[3, 232]), frame(0x82, b"d")].concat();
    assert_eq!(read(&mut frames, &[&bytes]).unwrap(), b"c");
    assert!(frames.is_closed());
}

fn any_frames() -> impl Strategy<Value = Vec<Sent>> {
    let payload = prop_oneof![
        8 => proptest::collection::vec(any::<u8>(), 0..200),
        1 => proptest::collection::vec(any::<u8>(), 60_000..70_000),
    ];
    let part =
        (payload, any::<[u8; 4]>(), proptest::option::of(proptest::collection::vec(any::<u8>(), 0..=125)));
    proptest::collection::vec(part, 1..8).prop_map(|parts| {
        let last = parts.len() - 1;
        let mut frames = Vec::new();
        for (n, (payload, mask, ping)) in parts.into_iter().enumerate() {
            let first = (if n == 0 { 2 } else { 0 }) | (if n == last { 0x80 } else { 0 });
            frames.push(Sent { first, payload, mask });
            frames.extend(ping.map(|payload| Sent { first: 0x89, payload, mask }));
        }
        frames
    })
}

proptest! {
    #[test]
    fn the_same_bytes_come_through_however_they_are_cut(
        frames in any_frames(),
        cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
    ) {
        let bytes: Vec<u8> = frames.iter().flat_map(Sent::bytes).collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
        let expected: Vec<u8> =
            frames.iter().filter(|sent| sent.first & 0x0F != 9).flat_map(|sent| sent.payload.clone()).collect();
        prop_assert_eq!(read(&mut Frames::default(), &chunks).unwrap(), expected);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let _ = read(&mut Frames::default(), &[&bytes]);
    }
}
