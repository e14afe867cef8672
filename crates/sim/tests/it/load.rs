use std::{collections::HashMap, time::Duration};

use dunlin_sim::{
    certificates,
    load::{self, BACKOFF, Config, Identity, LoadError, Outcome},
    nullsink,
    payload::{Payload, SEQ_FIRST},
    tls::{Tls, TlsFiles},
    wire::Version,
};

use crate::broker::{Answer, Broker};

fn config(target: std::net::SocketAddr) -> Config {
    Config {
        target,
        version: Version::V311,
        topic: "v1/telemetry".into(),
        payload: Payload::Telemetry { bytes: 96, stamped: false },
        identities: vec![
            Identity { token: Some("token-a".into()), device: "a".into() },
            Identity { token: Some("token-b".into()), device: "b".into() },
        ],
        connections: 2,
        window: 8,
        messages_per_second: None,
        warm_up: Duration::ZERO,
        measured: Duration::from_millis(300),
        drain: Duration::from_secs(20),
        seq_first: SEQ_FIRST,
        record: true,
        reconnect_for: Duration::from_secs(20),
        backoff: BACKOFF,
        seed: 1,
        clean_sessions: false,
        tls: None,
    }
}

fn seq(payload: &str) -> u64 {
    serde_json::from_str::<serde_json::Value>(payload).unwrap()["seq"].as_u64().unwrap()
}

#[test]
fn every_message_to_the_null_sink_is_acknowledged() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || nullsink::run(listener, 1));
    let report = load::run(&config(address)).unwrap();
    assert!(report.acked > 0);
    assert_eq!((report.acked, report.unknown, report.refused), (report.sent, 0, 0));
    assert_eq!(report.latency_micros.count, report.acked);
}

#[test]
fn a_schedule_is_kept_to_the_message() {
    let broker = Broker::start(|_| Answer::Ack);
    let config = Config { messages_per_second: Some(1_000.0), ..config(broker.address) };
    let report = load::run(&config).unwrap();
    assert_eq!((report.acked, report.unsent), (300, 0));
    assert_eq!(report.latency_micros.count, 300 - 1, "the last one is due as the measured time ends");
}

#[test]
fn what_a_lost_connection_left_open_is_repeated_and_nothing_else() {
    let broker = Broker::start(|n| if n % 50 == 20 { Answer::Hang } else { Answer::Ack });
    let config = Config { messages_per_second: Some(1_000.0), ..config(broker.address) };
    let report = load::run(&config).unwrap();
    assert!(report.reconnects > 0);
    assert_eq!((report.sent, report.acked, report.unknown), (300, 300, 0));

    let mut first_ids = HashMap::new();
    for message in broker.received() {
        let key = (message.user.clone(), seq(&message.payload));
        match first_ids.get(&key) {
            None => _ = first_ids.insert(key, message.packet_id),
            Some(id) => {
                assert!(message.dup, "a repetition is marked: {message:?}");
                assert_eq!(*id, message.packet_id);
            }
        }
    }
    assert_eq!(first_ids.len(), 300);
    for (device, outcomes) in &report.record {
        let acked: u64 = outcomes.runs().iter().map(|run| run.last - run.first + 1).sum();
        assert_eq!(acked, 150, "device {device}");
        assert!(outcomes.runs().iter().all(|run| run.outcome == Outcome::Acked));
    }
}

#[test]
fn a_refusal_is_recorded_and_not_repeated() {
    let broker = Broker::start(|n| if n % 10 == 3 { Answer::Refuse(0x97) } else { Answer::Ack });
    let config =
        Config { messages_per_second: Some(1_000.0), version: Version::V5, ..config(broker.address) };
    let report = load::run(&config).unwrap();
    assert_eq!((report.acked, report.refused), (270, 30));
    assert!(broker.received().iter().all(|message| !message.dup));
}

#[test]
fn without_a_second_try_a_lost_connection_ends_the_run() {
    let broker = Broker::start(|_| Answer::Hang);
    let config = Config { reconnect_for: Duration::ZERO, ..config(broker.address) };
    assert!(matches!(load::run(&config), Err(LoadError::Lost { .. })));
}

#[test]
fn messages_are_counted_and_repeated_over_mutual_tls_too() {
    let directory = tempfile::tempdir().unwrap();
    certificates::write(directory.path(), &["a".into()]).unwrap();
    let at = |name: &str| directory.path().join(name);
    let files = TlsFiles { authority: at("ca.pem"), identity: Some((at("a.pem"), at("a.key"))) };
    let broker =
        Broker::start_tls(|n| if n % 50 == 20 { Answer::Hang } else { Answer::Ack }, directory.path());
    let config = Config {
        messages_per_second: Some(1_000.0),
        tls: Some(Tls::new(&files, "localhost", true).unwrap()),
        ..config(broker.address)
    };
    let report = load::run(&config).unwrap();
    assert!(report.reconnects > 0);
    assert_eq!((report.sent, report.acked, report.unknown), (300, 300, 0));
}

#[test]
fn a_server_that_asks_for_a_certificate_gets_one_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    certificates::write(directory.path(), &[]).unwrap();
    let files = TlsFiles { authority: directory.path().join("ca.pem"), identity: None };
    let broker = Broker::start_tls(|_| Answer::Ack, directory.path());
    let tls = Some(Tls::new(&files, "localhost", false).unwrap());
    let config = Config { reconnect_for: Duration::ZERO, tls, ..config(broker.address) };
    let error = load::run(&config).unwrap_err();
    assert!(matches!(&error, LoadError::Lost { reason, .. } if reason.contains("Certificate")), "{error}");
}
