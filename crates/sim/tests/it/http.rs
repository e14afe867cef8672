use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use dunlin_sim::{
    exchanges,
    http::{self, Config},
    load::Identity,
    payload::{Payload, SEQ_FIRST},
};

/// Takes requests, and says no to every fifth.
#[derive(Clone, Default)]
struct Server {
    connections: Arc<AtomicUsize>,
    bodies: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start() -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (server, address) = (Self::default(), listener.local_addr().unwrap());
        let serving = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serving.connections.fetch_add(1, Relaxed);
                let serving = serving.clone();
                std::thread::spawn(move || serving.serve(stream));
            }
        });
        (server, address)
    }

    /// Returns when the peer is gone.
    fn serve(&self, stream: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut stream = stream;
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                if reader.read_until(b'\n', &mut head).ok()? == 0 {
                    return None;
                }
            }
            let head = String::from_utf8(head).unwrap();
            assert!(head.starts_with("POST /v1/telemetry HTTP/1.1\r\n"), "{head}");
            assert!(head.contains("Authorization: Bearer token\r\n"), "{head}");
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            reader.read_exact(&mut body).ok()?;
            let n = {
                let mut bodies = self.bodies.lock().unwrap();
                bodies.push(String::from_utf8(body).unwrap());
                bodies.len()
            };
            let status = if n.is_multiple_of(5) { "503 Service Unavailable" } else { "200 OK" };
            stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n").as_bytes()).ok()?;
            stream.write_all(b"{}").ok()?;
            if head.contains("Connection: close\r\n") {
                return None;
            }
        }
    }
}

fn config(target: SocketAddr) -> Config {
    Config {
        exchanges: exchanges::Config {
            target,
            clients: 4,
            sources: 1,
            tls: None,
            per_second: Some(500.0),
            warm_up: Duration::ZERO,
            measured: Duration::from_millis(400),
            drain: Duration::from_secs(20),
        },
        host: "dunlin".into(),
        path: "/v1/telemetry".into(),
        identities: vec![Identity { token: Some("token".into()), device: "a".into() }],
        records: 3,
        payload: Payload::Telemetry { bytes: 96, stamped: true },
        keep_alive: true,
        seq_first: SEQ_FIRST,
    }
}

#[test]
fn requests_go_over_kept_connections_or_new_ones() {
    for keep_alive in [true, false] {
        let (server, address) = Server::start();
        let report = http::run(&Config { keep_alive, ..config(address) }).unwrap();
        assert_eq!((report.begun, report.accepted, report.failed), (200, 160, 0));
        assert_eq!(report.refused, [(503, 40)].into());
        let connections = if keep_alive { 4 } else { 200 };
        assert_eq!(report.connections, connections);
        assert_eq!(server.connections.load(Relaxed) as u64, connections);
    }
}

#[test]
fn every_record_of_a_batch_has_a_number_of_its_own() {
    let (server, address) = Server::start();
    http::run(&config(address)).unwrap();
    let bodies = server.bodies.lock().unwrap();
    let mut seqs = Vec::new();
    for body in bodies.iter() {
        let records: Vec<serde_json::Value> = serde_json::from_str(body).unwrap();
        assert_eq!(records.len(), 3);
        seqs.extend(records.iter().map(|record| record["values"]["seq"].as_u64().unwrap()));
    }
    seqs.sort_unstable();
    assert_eq!(seqs, (SEQ_FIRST..SEQ_FIRST + 600).collect::<Vec<_>>());
}

#[test]
fn a_single_record_is_no_array() {
    let (server, address) = Server::start();
    http::run(&Config { records: 1, ..config(address) }).unwrap();
    let bodies = server.bodies.lock().unwrap();
    let record: serde_json::Value = serde_json::from_str(&bodies[0]).unwrap();
    assert!(record["values"]["seq"].is_u64());
}
