use std::{net::SocketAddr, time::Duration};

use dunlin_sim::{
    certificates,
    connects::{self, Config},
    exchanges::{self, ExchangeError},
    load::Identity,
    payload::{Payload, SEQ_FIRST},
    tls::{Tls, TlsFiles},
    wire::Version,
};

use crate::broker::{Answer, Broker};

fn config(target: SocketAddr) -> Config {
    Config {
        exchanges: exchanges::Config {
            target,
            clients: 4,
            sources: 3,
            tls: None,
            per_second: Some(500.0),
            warm_up: Duration::ZERO,
            measured: Duration::from_millis(400),
            drain: Duration::from_secs(20),
        },
        version: Version::V311,
        identities: vec![Identity { token: Some("token".into()), device: "a".into() }],
        message: None,
        seq_first: SEQ_FIRST,
    }
}

#[test]
fn as_many_come_and_go_as_were_due() {
    let broker = Broker::start(|_| Answer::Ack);
    let report = connects::run(&config(broker.address)).unwrap();
    assert_eq!((report.begun, report.accepted, report.connections), (200, 200, 200));
    assert_eq!((report.failed, report.refused.len()), (0, 0));
    assert!(broker.received().is_empty());
}

#[test]
fn without_a_rate_the_next_one_follows_the_answer() {
    let broker = Broker::start(|_| Answer::Ack);
    let mut config = config(broker.address);
    config.exchanges.per_second = None;
    let report = connects::run(&config).unwrap();
    assert!(report.accepted > 4);
    assert_eq!((report.begun, report.failed), (report.accepted, 0));
    assert_eq!(report.latency_micros.count, report.accepted);
}

#[test]
fn each_leaves_one_message_behind() {
    let broker = Broker::start(|n| match n % 10 {
        3 => Answer::Hang,
        7 => Answer::Refuse(0x97),
        _ => Answer::Ack,
    });
    let payload = Payload::Telemetry { bytes: 96, stamped: false };
    let config = Config {
        version: Version::V5,
        message: Some(("v1/telemetry".into(), payload)),
        ..config(broker.address)
    };
    let report = connects::run(&config).unwrap();
    assert_eq!((report.begun, report.accepted, report.failed), (200, 160, 20));
    assert_eq!(report.refused, [(0x97, 20)].into());
    let mut seqs: Vec<_> = broker
        .received()
        .iter()
        .map(|message| serde_json::from_str::<serde_json::Value>(&message.payload).unwrap()["seq"].as_u64())
        .collect();
    seqs.sort_unstable();
    seqs.dedup();
    assert_eq!(seqs.len(), 200, "every message has a number of its own");
}

#[test]
fn tls_goes_on_from_the_connection_before_if_it_is_told_to() {
    let directory = tempfile::tempdir().unwrap();
    certificates::write(directory.path(), &["a".into()]).unwrap();
    let at = |name: &str| directory.path().join(name);
    let files = TlsFiles { authority: at("ca.pem"), identity: Some((at("a.pem"), at("a.key"))) };
    let broker = Broker::start_tls(|_| Answer::Ack, directory.path());
    for (resume, resumed) in [(false, 0), (true, 196)] {
        let mut config = config(broker.address);
        config.exchanges.tls = Some(Tls::new(&files, "localhost", resume).unwrap());
        let report = connects::run(&config).unwrap();
        assert_eq!((report.accepted, report.resumed), (200, resumed), "all but the first of 4 clients");
    }
}

#[test]
fn a_server_that_is_not_there_is_an_error() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = connects::run(&config(address)).unwrap_err();
    assert!(matches!(error, ExchangeError::Fruitless(_)), "{error}");
}
