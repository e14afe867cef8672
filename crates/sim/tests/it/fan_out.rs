use std::{
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    time::Duration,
};

use dunlin_sim::{
    fan_out::{self, Config},
    load::Identity,
    wire::Version,
};

use crate::broker::packet;

/// Hands what is published to all who have subscribed, but for every so many deliveries.
#[derive(Clone, Default)]
struct Relay {
    lose_every: Option<usize>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    subscribers: Vec<TcpStream>,
    deliveries: usize,
    lost: u64,
}

impl Relay {
    fn start(lose_every: Option<usize>) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (relay, address) = (Self { lose_every, ..Self::default() }, listener.local_addr().unwrap());
        let serving = relay.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = serving.clone();
                std::thread::spawn(move || serving.serve(stream));
            }
        });
        (relay, address)
    }

    /// Returns when the peer is gone.
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        packet(&mut stream)?;
        stream.write_all(b"\x20\x02\0\0").ok()?;
        loop {
            let (first, body) = packet(&mut stream)?;
            let state = &mut *self.state.lock().unwrap();
            if first == 0x82 {
                assert!(body.ends_with(b"fan-out/+\0"));
                stream.write_all(&[0x90, 3, body[0], body[1], 0]).ok()?;
                state.subscribers.push(stream.try_clone().ok()?);
                continue;
            }
            assert_eq!(first, 0x30);
            let mut whole = vec![first, body.len() as u8];
            whole.extend(&body);
            for subscriber in &mut state.subscribers {
                state.deliveries += 1;
                if self.lose_every.is_some_and(|every| state.deliveries.is_multiple_of(every)) {
                    state.lost += 1;
                } else {
                    let _gone = subscriber.write_all(&whole);
                }
            }
        }
    }
}

fn config(target: SocketAddr) -> Config {
    Config {
        target,
        version: Version::V311,
        topic: "fan-out".into(),
        payload_bytes: 64,
        identities: vec![Identity { token: None, device: "a".into() }],
        subscribers: 20,
        publishers: 3,
        window: 4,
        messages_per_second: None,
        warm_up: Duration::ZERO,
        measured: Duration::from_millis(300),
        drain: Duration::from_secs(20),
        tls: None,
    }
}

#[test]
fn every_message_reaches_every_subscriber() {
    let (_, address) = Relay::start(None);
    let report = fan_out::run(&config(address)).unwrap();
    assert!(report.published >= 12, "the window opens again");
    assert_eq!((report.delivered, report.lost, report.late), (report.published * 20, 0, 0));
    assert!(report.deliveries_per_second > 0.0 && report.latency_micros.count > 0);
}

#[test]
fn what_is_lost_is_counted_to_the_message() {
    let (relay, address) = Relay::start(Some(17));
    let config = Config { messages_per_second: Some(1_000.0), ..config(address) };
    let report = fan_out::run(&config).unwrap();
    assert_eq!(report.published, 300);
    assert_eq!(report.lost, relay.state.lock().unwrap().lost);
    assert_eq!(report.delivered + report.lost, 300 * 20);
}
