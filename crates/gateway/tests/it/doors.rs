//! Every way in to MQTT: TCP, TLS, WebSocket, both, and a load balancer in front.

mod authority; // certificates for a test
mod certificates; // who is who by a certificate, and renewal
mod proxies;
mod websockets;

use std::{io, net::SocketAddr, sync::Arc};

use dunlin_gateway::{ClientCertificates, Config, ListenerConfig, Transport};
use dunlin_model::{Clock, EventKind, Timestamp};
use futures::{SinkExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, rustls};
use tokio_tungstenite::tungstenite::{Message, client::IntoClientRequest};

use crate::lab::{Client, Lab, Pipe, connack_code, connect, frame, publish, text};
use authority::{Authority, Identity};

/// Certificates are judged by the real time, as those of a test are.
fn real_clock() -> Clock {
    Clock::new(|| {
        let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap();
        Timestamp::from_micros(i64::try_from(since_1970.as_micros()).unwrap())
    })
}

fn door(transport: Transport, tls: bool) -> ListenerConfig {
    ListenerConfig { transport, tls, ..ListenerConfig::plain("127.0.0.1:0") }
}

fn asking(client_certificates: ClientCertificates) -> ListenerConfig {
    ListenerConfig { client_certificates, ..door(Transport::Tcp, true) }
}

fn config(listener: Vec<ListenerConfig>) -> Config {
    Config { workers: 2, listener, ..Config::default() }
}

impl Lab {
    /// The door that was named at this place.
    fn door(&self, place: usize) -> SocketAddr {
        self.gateway.mqtt_addresses()[place + 1]
    }

    async fn socket(&self, place: usize) -> TcpStream {
        let stream = TcpStream::connect(self.door(place)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    fn refused(&self, outcome: &str) -> u64 {
        self.metric(&format!("dunlin_gateway_connects_total{{outcome=\"{outcome}\"}}"))
    }

    /// Until so many connects had this outcome: the client hears of it before it is counted.
    async fn has_refused(&self, outcome: &str, count: u64) -> bool {
        for _ in 0..1_000 {
            if self.refused(outcome) == count {
                return true;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        false
    }
}

async fn tls(
    socket: TcpStream,
    trusts: &Authority,
    shows: Option<&Identity>,
) -> io::Result<impl Pipe + use<>> {
    let connector = TlsConnector::from(Arc::new(trusts.client_config(shows)));
    connector.connect("localhost".try_into().unwrap(), socket).await
}

/// The bytes inside the frames of a WebSocket, by somebody else's code.
async fn websocket(pipe: impl Pipe + 'static) -> impl Pipe {
    let mut request = "ws://localhost/mqtt".into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "mqtt".parse().unwrap());
    let (socket, answer) = tokio_tungstenite::client_async(request, pipe).await.unwrap();
    assert_eq!(answer.headers()["Sec-WebSocket-Protocol"], "mqtt");
    let (mine, theirs) = tokio::io::duplex(64 << 10);
    let (mut reads, mut writes) = tokio::io::split(theirs);
    let (mut sink, mut stream) = socket.split();
    tokio::spawn(async move {
        let mut chunk = vec![0; 8 << 10];
        while let Ok(bytes @ 1..) = reads.read(&mut chunk).await {
            if sink.send(Message::binary(chunk[..bytes].to_vec())).await.is_err() {
                return;
            }
        }
        let _gone = sink.close().await;
    });
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            if let Message::Binary(bytes) = message
                && writes.write_all(&bytes).await.is_err()
            {
                return;
            }
        }
        let _gone = writes.shutdown().await;
    });
    mine
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_mqtt_is_spoken_over_every_transport() {
    let authority = Authority::new("root");
    let doors = [(Transport::Tcp, true), (Transport::WebSocket, false), (Transport::WebSocket, true)];
    let config = config(doors.map(|(transport, tls)| door(transport, tls)).to_vec());
    let lab = Lab::with_tls(config, authority.tls(&[]), real_clock()).await;
    for version in [4, 5] {
        let over_tls = tls(lab.socket(0).await, &authority, None).await.unwrap();
        let over_both = tls(lab.socket(2).await, &authority, None).await.unwrap();
        let clients = [
            ("mqtt", lab.client().await),
            ("mqtts", Client::over(over_tls)),
            ("ws", Client::over(websocket(lab.socket(1).await).await)),
            ("wss", Client::over(websocket(over_both).await)),
        ];
        for (name, mut client) in clients {
            let device = format!("{name}-{version}");
            client.send(&connect(version, &device, &device)).await;
            assert_eq!(connack_code(&client.packet().await.unwrap()), 0, "{device}");
            client.send(&publish(version, 1, 7, "v1/telemetry", br#"{"t":1}"#)).await;
            assert_eq!(client.packet().await.unwrap()[..4], [0x40, 2, 0, 7], "{device}");

            // Larger than any buffer on the way, in both directions.
            client.send(&subscribe(version, "echo")).await;
            assert_eq!(client.packet().await.unwrap()[0], 0x90, "{device}");
            let payload: Vec<u8> = (0..900_000_u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
            client.send(&publish(version, 0, 0, "echo", &payload)).await;
            assert!(client.packet().await.unwrap().ends_with(&payload), "{device}");
            client.send(&[0xE0, 0]).await;
            assert!(client.is_closed().await, "{device}");
        }
    }
    assert_eq!(lab.telemetry().await.len(), 8);
    let events = lab.events_up_to(16).await; // Eight come, and eight go.
    let connected = events.iter().filter(|event| event.kind == EventKind::Connected);
    let mut transports: Vec<String> = connected
        .map(|event| {
            let device: &str = &event.device;
            let (transport, _) = device.split_once('-').unwrap();
            assert!(event.detail.contains(&format!("\"transport\":\"{transport}\"")), "{}", event.detail);
            transport.to_owned()
        })
        .collect();
    transports.sort();
    assert_eq!(transports, ["mqtt", "mqtt", "mqtts", "mqtts", "ws", "ws", "wss", "wss"]);
    lab.never_panicked();
}

fn subscribe(version: u8, filter: &str) -> Vec<u8> {
    let mut body = vec![0, 1];
    if version == 5 {
        body.push(0);
    }
    body.extend(text(filter));
    body.push(0);
    frame(0x82, &body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_with_tls_needs_a_certificate() {
    let sessions = tempfile::tempdir().unwrap();
    let error =
        Lab::without_certificate(config(vec![door(Transport::Tcp, true)]), sessions).await.err().unwrap();
    assert_eq!(
        error.to_string(),
        "the listener on 127.0.0.1:0 has TLS and needs tls.certificate and tls.key"
    );
}

/// What is no TLS, and what stops in the midst of it, ends its own connection in time.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_at_the_tls_door_disturb_nobody() {
    let authority = Authority::new("root");
    let config = Config { handshake_seconds_max: 2, ..config(vec![door(Transport::Tcp, true)]) };
    let lab = Lab::with_tls(config, authority.tls(&[]), real_clock()).await;
    let mut healthy = Client::over(tls(lab.socket(0).await, &authority, None).await.unwrap());
    healthy.send(&connect(5, "healthy", "healthy")).await;
    healthy.packet().await.unwrap();

    let mut plain = Client::over(lab.socket(0).await);
    plain.send(&connect(4, "plain", "plain")).await;
    assert!(plain.ends_with_an_alert().await);
    assert!(lab.has_refused("tls", 1).await);

    let mut silent = Client::over(lab.socket(0).await);
    let mut half = Client::over(lab.socket(0).await);
    half.send(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC]).await;
    assert!(silent.is_closed().await && half.is_closed().await);
    assert!(lab.has_refused("timed_out", 2).await);
    assert!(healthy.pings().await);
    assert_eq!(lab.metric("dunlin_gateway_half_open"), 0);
    assert_eq!(lab.metric("dunlin_gateway_tls_handshakes"), 0);
    lab.never_panicked();
}

impl Client {
    /// Whether the server closes, with a TLS alert or without.
    async fn ends_with_an_alert(&mut self) -> bool {
        let mut said = Vec::new();
        let _reset = self.read_to_end(&mut said).await;
        said.is_empty() || said[0] == 0x15
    }
}
