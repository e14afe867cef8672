use super::*;

const REQUEST: &str = "GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8A;

/// A client that speaks in frames.
struct Framed(TcpStream);

impl Framed {
    async fn open(lab: &Lab) -> Self {
        let mut socket = lab.socket(0).await;
        socket.write_all(REQUEST.as_bytes()).await.unwrap();
        assert!(head(&mut socket).await.starts_with("HTTP/1.1 101 "));
        Self(socket)
    }

    async fn send(&mut self, first: u8, payload: &[u8]) {
        self.0.write_all(&masked(first, payload)).await.unwrap();
    }

    /// The next frame, its first byte and what it holds; `None` when the server has closed.
    async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let first = self.0.read_u8().await.ok()?;
        let length = match self.0.read_u8().await.ok()? {
            126 => self.0.read_u16().await.ok()?.into(),
            127 => self.0.read_u64().await.ok()?,
            short => u64::from(short),
        };
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some((first, payload))
    }
}

fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [7, 1, 9, 3];
    let mut bytes = vec![first];
    match payload.len() {
        n @ 0..126 => bytes.push(0x80 | n as u8),
        n => {
            bytes.push(0x80 | 126);
            bytes.extend((n as u16).to_be_bytes());
        }
    }
    bytes.extend(mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

async fn head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = socket.read_u8().await else { break };
        head.push(byte);
    }
    String::from_utf8(head).unwrap()
}

async fn lab() -> Lab {
    Lab::with(config(vec![door(Transport::WebSocket, false)])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_and_frames_need_not_begin_together() {
    let lab = lab().await;
    let mut client = Framed::open(&lab).await;
    let packets = [connect(4, "a", "a"), publish(4, 1, 7, "v1/telemetry", br#"{"t":1}"#)].concat();
    let (begin, rest) = packets.split_at(5);
    client.send(0x02, begin).await;
    client.send(PING, b"are you there").await;
    client.send(0x00, &rest[..3]).await;
    client.send(0x80, &rest[3..]).await;
    assert_eq!(client.frame().await, Some((PONG, b"are you there".to_vec())));
    assert_eq!(client.frame().await, Some((BINARY, vec![0x20, 2, 0, 0])));
    assert_eq!(client.frame().await, Some((BINARY, vec![0x40, 2, 0, 7])));
    client.send(CLOSE, &1_000_u16.to_be_bytes()).await;
    assert_eq!(client.frame().await, Some((CLOSE, 1_000_u16.to_be_bytes().to_vec())));
    assert_eq!(client.frame().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_websocket_is_answered_in_http() {
    let lab = lab().await;
    let requests = [
        (REQUEST.replace("Protocol: mqtt", "Protocol: chat"), "HTTP/1.1 400 "),
        (REQUEST.replace("Version: 13", "Version: 12"), "HTTP/1.1 426 "),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "HTTP/1.1 400 "),
        (String::from_utf8_lossy(&connect(4, "a", "a")[..13]).into_owned(), "HTTP/1.1 400 "),
    ];
    for (request, answer) in requests {
        let mut socket = lab.socket(0).await;
        socket.write_all(request.as_bytes()).await.unwrap();
        assert!(head(&mut socket).await.starts_with(answer), "{request}");
        let mut rest = String::new();
        socket.read_to_string(&mut rest).await.unwrap();
        assert!(!rest.is_empty(), "says why");
    }
    assert!(lab.has_refused("websocket", 4).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_break_the_protocol_or_lie_end_their_own_connection() {
    let lab = lab().await;
    let mut healthy = Framed::open(&lab).await;
    healthy.send(BINARY, &connect(4, "healthy", "healthy")).await;
    healthy.frame().await.unwrap();

    let unmasked = [&[BINARY, 4][..], b"MQTT"].concat();
    let endless = [&[BINARY, 0xFF][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
    for (bytes, code) in
        [(masked(0x81, b"text"), 1_003), (unmasked, 1_002), (endless, 1_002), (masked(0x8F, b""), 1_002)]
    {
        let mut client = Framed::open(&lab).await;
        client.0.write_all(&bytes).await.unwrap();
        match client.frame().await {
            Some((first, said)) => assert_eq!((first, said), (CLOSE, u16::to_be_bytes(code).to_vec())),
            None => panic!("closed without a word after {bytes:02x?}"),
        }
        assert_eq!(client.frame().await, None);
    }
    // A frame that says it is endless, around packets that are not: MQTT's own limits hold.
    let mut client = Framed::open(&lab).await;
    let head = [&[BINARY, 0xFF][..], &(i64::MAX as u64).to_be_bytes(), &[0; 4]].concat();
    client.0.write_all(&[&head[..], &connect(4, "a", "a")].concat()).await.unwrap();
    assert_eq!(client.frame().await, Some((BINARY, vec![0x20, 2, 0, 0])));
    client.0.write_all(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F]).await.unwrap();
    while let Some((first, _)) = client.frame().await {
        assert_eq!(first, CLOSE);
    }
    healthy.send(BINARY, &[0xC0, 0]).await;
    assert_eq!(healthy.frame().await, Some((BINARY, vec![0xD0, 0])));
    lab.never_panicked();
}

/// Who sends pings and reads nothing takes no memory.
#[tokio::test(flavor = "multi_thread")]
async fn pings_without_end_are_not_all_answered() {
    let lab = lab().await;
    let mut client = Framed::open(&lab).await;
    client.send(BINARY, &connect(4, "a", "a")).await;
    client.frame().await.unwrap();
    let many = masked(PING, &[0; 125]).repeat(1_000);
    let before = resident();
    for _ in 0..400 {
        client.0.write_all(&many).await.unwrap();
    }
    assert!(resident() < before + (32 << 20), "52 MB of pings");
    client.send(BINARY, &[0xC0, 0]).await;
    while client.frame().await != Some((BINARY, vec![0xD0, 0])) {}
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
