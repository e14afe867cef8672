use dunlin_gateway::Config;
use dunlin_journal::{AppendError, Topic};
use dunlin_model::{EventKind, RejectReason};

use crate::lab::{Client, Gate, Lab, connack_code, connect, frame, publish};

const READING: &[u8] = br#"{"temperature":21.5}"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_comes_only_after_the_journal_has_answered() {
    for version in [4, 5] {
        let lab = Lab::start().await;
        let mut client = lab.connected(version, "probe").await;
        lab.gate(Gate::Closed);
        client.send(&publish(version, 1, 7, "v1/telemetry", READING)).await;
        lab.arrivals(1).await;
        assert!(client.pings().await, "a PINGRESP and no PUBACK before it");
        lab.gate(Gate::Open);
        assert_eq!(client.packet().await.unwrap(), [0x40, 2, 0, 7]);
        assert_eq!(lab.telemetry().await, ["default/probe: temperature=F64(21.5)"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_publishes_are_in_flight_and_answered_in_order() {
    let lab = Lab::start().await;
    let mut client = lab.connected(4, "probe").await;
    lab.gate(Gate::Closed);
    let all: Vec<u8> = (1..=200u16)
        .flat_map(|n| publish(4, 1 + (n % 2) as u8, n, "v1/telemetry", format!("{{\"n\":{n}}}").as_bytes()))
        .collect();
    client.send(&all).await;
    lab.arrivals(1).await;
    lab.gate(Gate::Open);
    for n in 1..=200u16 {
        let kind = if n % 2 == 1 { 0x50 } else { 0x40 };
        assert_eq!(client.packet().await.unwrap(), [kind, 2, (n >> 8) as u8, n as u8]);
    }
    let expected: Vec<String> = (1..=200).map(|n| format!("default/probe: n=I64({n})")).collect();
    assert_eq!(lab.telemetry().await, expected);
    assert!(lab.append_count() < 20, "{} appends for 200 messages", lab.append_count());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_window_is_waited_for_and_not_refused() {
    let lab = Lab::with(Config { workers: 1, connection_inflight_max: 4, ..Config::default() }).await;
    let mut client = lab.connected(5, "probe").await;
    let all: Vec<u8> = (1..=50u16).flat_map(|n| publish(5, 1, n, "v1/telemetry", READING)).collect();
    client.send(&all).await;
    for n in 1..=50u8 {
        assert_eq!(client.packet().await.unwrap(), [0x40, 2, 0, n]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qos_2_has_one_effect_until_it_is_released() {
    let lab = Lab::start().await;
    let mut client = lab.connected(4, "probe").await;
    let mut again = publish(4, 2, 9, "v1/telemetry", READING);
    client.send(&again).await;
    assert_eq!(client.packet().await.unwrap(), [0x50, 2, 0, 9]);
    again[0] |= 0x08;
    client.send(&again).await;
    assert_eq!(client.packet().await.unwrap(), [0x50, 2, 0, 9]);
    client.send(&[0x62, 2, 0, 9]).await;
    assert_eq!(client.packet().await.unwrap(), [0x70, 2, 0, 9]);
    assert_eq!(lab.telemetry().await.len(), 1);
    client.send(&publish(4, 2, 9, "v1/telemetry", READING)).await;
    assert_eq!(client.packet().await.unwrap(), [0x50, 2, 0, 9]);
    assert_eq!(lab.telemetry().await.len(), 2);
}

/// Version 5 says why and goes on; 3.1.1 has no words and closes. Either way the message is kept with the reason.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_said_and_kept() {
    let cases: [(&str, &[u8], u8, RejectReason, &str); 4] = [
        (
            "v1/telemetry",
            b"{\"a\":1e999}",
            0x99,
            RejectReason::InvalidValue,
            "a: a number that is not finite",
        ),
        ("v1/telemetry", b"hello", 0x99, RejectReason::PayloadFormat, "expected value at line 1 column 1"),
        (
            "v1/elsewhere",
            b"{\"a\":1}",
            0x90,
            RejectReason::UnknownTopic,
            "not a topic that devices publish to",
        ),
        (
            "v1/d/x/telemetry",
            b"{\"a\":1}",
            0x87,
            RejectReason::NotAuthorized,
            "this device does not speak for others",
        ),
    ];
    for (topic, payload, code, reason, detail) in cases {
        let lab = Lab::start().await;
        let mut five = lab.connected(5, "five").await;
        five.send(&publish(5, 1, 3, topic, payload)).await;
        let answer = five.packet().await.unwrap();
        assert_eq!((answer[0], &answer[2..4], answer[4]), (0x40, &[0, 3][..], code), "{answer:02x?}");
        assert!(String::from_utf8_lossy(&answer).contains(detail), "{answer:02x?}");
        assert!(five.pings().await);

        let mut four = lab.connected(4, "four").await;
        four.send(&publish(4, 1, 3, topic, payload)).await;
        assert!(four.is_closed().await);

        let rejected = lab.rejected().await;
        assert_eq!(rejected.len(), 2);
        for (rejected, device) in rejected.iter().zip(["five", "four"]) {
            assert_eq!((&*rejected.device, rejected.reason, &*rejected.detail), (device, reason, detail));
            assert_eq!((&*rejected.source, &*rejected.payload), (&*format!("mqtt:{topic}"), payload));
        }
        assert!(lab.telemetry().await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_keeps_its_place_among_acknowledgements() {
    let lab = Lab::start().await;
    let mut client = lab.connected(5, "probe").await;
    let mut all = publish(5, 1, 1, "v1/telemetry", READING);
    all.extend(publish(5, 1, 2, "v1/telemetry", b"nonsense"));
    all.extend(publish(5, 1, 3, "v1/telemetry", READING));
    client.send(&all).await;
    for id in 1..=3 {
        assert_eq!(client.packet().await.unwrap()[3], id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_known_token_comes_in() {
    let lab = Lab::start().await;
    let cases = [("", 5, 0x86), ("unknown", 5, 0x86), ("off", 5, 0x86), ("down", 3, 0x88)];
    for (token, code_4, code_5) in cases {
        for (version, code) in [(4, code_4), (5, code_5)] {
            let mut client = lab.client().await;
            client.send(&connect(version, "c", token)).await;
            let answer = client.packet().await.unwrap();
            assert_eq!(
                (answer[0], connack_code(&answer)),
                (0x20, code),
                "token {token:?}, version {version}"
            );
            assert!(client.is_closed().await);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newer_connection_has_the_client_id() {
    let lab = Lab::start().await;
    for version in [4, 5] {
        let mut first = lab.connected(version, "probe").await;
        let mut second = lab.connected(version, "probe").await;
        if version == 5 {
            let goodbye = first.packet().await.unwrap();
            assert_eq!((goodbye[0], goodbye[2]), (0xE0, 0x8E));
        }
        assert!(first.is_closed().await);
        assert!(second.pings().await);
        // Another device with the same client id takes nothing.
        let mut stranger = lab.client().await;
        stranger.send(&connect(version, "probe", "stranger")).await;
        assert_eq!(connack_code(&stranger.packet().await.unwrap()), 0);
        assert!(second.pings().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_acknowledges_what_is_durable_and_says_goodbye() {
    let lab = Lab::start().await;
    let mut five = lab.connected(5, "five").await;
    let mut four = lab.connected(4, "four").await;
    lab.gate(Gate::Closed);
    five.send(&publish(5, 1, 1, "v1/telemetry", READING)).await;
    four.send(&publish(4, 1, 1, "v1/telemetry", READING)).await;
    lab.arrivals(2).await;
    let Lab { gateway, journal, http, registry, sessions, .. } = lab;
    let accounts = gateway.accounts();
    let stopping = tokio::spawn(gateway.stop());
    let lab_gate = journal.clone();
    lab_gate.open();
    assert_eq!(five.packet().await.unwrap(), [0x40, 2, 0, 1]);
    assert_eq!(four.packet().await.unwrap(), [0x40, 2, 0, 1]);
    let goodbye = five.packet().await.unwrap();
    assert_eq!((goodbye[0], goodbye[2]), (0xE0, 0x8B));
    assert!(five.is_closed().await && four.is_closed().await);
    stopping.await.unwrap();
    let account = accounts.snapshot().into_values().next().unwrap();
    assert_eq!((account.received, account.accepted, account.in_flight), (2, 2, 0));
    drop((http, registry, sessions));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_journal_is_said_and_a_fenced_one_ends_the_connection() {
    let lab = Lab::start().await;
    let mut five = lab.connected(5, "five").await;
    let mut four = lab.connected(4, "four").await;
    lab.gate(Gate::Failing(AppendError::Full { reason: "disk".into() }));
    five.send(&publish(5, 1, 1, "v1/telemetry", READING)).await;
    let answer = five.packet().await.unwrap();
    assert_eq!((answer[0], answer[4]), (0x40, 0x97));
    four.send(&publish(4, 1, 1, "v1/telemetry", READING)).await;
    assert!(four.is_closed().await);

    lab.gate(Gate::Failing(AppendError::Fenced { operation: "fdatasync", reason: "EIO".into() }));
    five.send(&publish(5, 1, 2, "v1/telemetry", READING)).await;
    let goodbye = five.packet().await.unwrap();
    assert_eq!((goodbye[0], goodbye[2]), (0xE0, 0x89));
    assert!(five.is_closed().await);

    lab.gate(Gate::Open);
    let mut back = lab.connected(5, "five").await;
    let mut again = publish(5, 1, 2, "v1/telemetry", READING);
    again[0] |= 0x08;
    back.send(&again).await;
    assert_eq!(back.packet().await.unwrap(), [0x40, 2, 0, 2]);
    let account = lab.account();
    assert_eq!((account.received, account.accepted, account.failed, account.in_flight), (4, 1, 3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_speaks_for_its_children() {
    let lab = Lab::start().await;
    let mut gateway = lab.connected(5, "gw-1").await;
    gateway.send(&publish(5, 1, 1, "v1/d/pump-7/telemetry", READING)).await;
    assert_eq!(gateway.packet().await.unwrap(), [0x40, 2, 0, 1]);
    let refused = [
        ("off", 0x87, "off: the device is disabled"),
        ("stranger", 0x87, "stranger: a device of this name exists and is not a child of this one"),
        ("beyond", 0x97, "beyond: a device has at most 3 children"),
    ];
    for (name, code, words) in refused {
        gateway.send(&publish(5, 1, 2, &format!("v1/d/{name}/telemetry"), READING)).await;
        let answer = gateway.packet().await.unwrap();
        assert_eq!(answer[4], code, "{name}");
        assert!(String::from_utf8_lossy(&answer).contains(words), "{answer:02x?}");
    }
    let reasons: Vec<RejectReason> = lab.rejected().await.iter().map(|r| r.reason).collect();
    let (not_authorized, quota) = (RejectReason::NotAuthorized, RejectReason::QuotaExceeded);
    assert_eq!(reasons, [not_authorized, not_authorized, quota]);
    assert_eq!(lab.telemetry().await, ["child/pump-7: temperature=F64(21.5)"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_who_came_and_what_was_reported() {
    let lab = Lab::start().await;
    let mut client = lab.connected(5, "probe").await;
    client.send(&publish(5, 1, 1, "v1/events", br#"{"door":"open"}"#)).await;
    assert_eq!(client.packet().await.unwrap(), [0x40, 2, 0, 1]);
    client.send(&[0xE0, 0]).await;
    assert!(client.is_closed().await);
    let events = lab.events_up_to(3).await;
    let kinds: Vec<EventKind> = events.iter().map(|e| e.kind).collect();
    assert_eq!(kinds, [EventKind::Connected, EventKind::Reported, EventKind::Disconnected]);
    assert_eq!(events[1].detail, r#"{"door":"open"}"#);
    assert_eq!(events[2].detail, r#"{"reason":"client"}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_alias_stands_for_its_topic() {
    let lab = Lab::start().await;
    let mut client = lab.connected(5, "probe").await;
    let aliased = |id: u8, topic: &str, alias: u8| {
        let mut body = vec![0, topic.len() as u8];
        body.extend_from_slice(topic.as_bytes());
        body.extend_from_slice(&[0, id, 3, 0x23, 0, alias]);
        body.extend_from_slice(READING);
        frame(0x32, &body)
    };
    client.send(&aliased(1, "v1/telemetry", 2)).await;
    client.send(&aliased(2, "", 2)).await;
    assert_eq!(client.packet().await.unwrap(), [0x40, 2, 0, 1]);
    assert_eq!(client.packet().await.unwrap(), [0x40, 2, 0, 2]);
    client.send(&aliased(3, "", 3)).await;
    let goodbye = client.packet().await.unwrap();
    assert_eq!((goodbye[0], goodbye[2]), (0xE0, 0x94));
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_pass_and_larger_ones_end_the_connection() {
    let lab = Lab::with(Config { workers: 1, message_bytes_max: 100_000, ..Config::default() }).await;
    let mut client = lab.connected(5, "probe").await;
    let text = |bytes: usize| {
        format!("[{}]", vec![format!("{{\"t\":\"{}\"}}", "x".repeat(9_990)); bytes / 10_000].join(","))
    };
    client.send(&publish(5, 1, 1, "v1/telemetry", text(90_000).as_bytes())).await;
    assert_eq!(client.packet().await.unwrap(), [0x40, 2, 0, 1]);
    assert_eq!(lab.telemetry().await.len(), 9);
    client.send(&publish(5, 1, 2, "v1/telemetry", &vec![b' '; 101_000])).await;
    assert_eq!(client.packet().await.unwrap()[4], 0x97);
    client.try_send(&publish(5, 1, 3, "v1/telemetry", &vec![b' '; 120_000])).await;
    let goodbye = client.packet().await.unwrap();
    assert_eq!((goodbye[0], goodbye[2]), (0xE0, 0x95));
    assert!(client.is_closed().await);
    lab.arrivals(11).await;
    let sizes: Vec<_> = lab.rejected().await.iter().map(|r| (r.reason, r.payload.len())).collect();
    let reason = RejectReason::TooLarge;
    assert_eq!(sizes, [(reason, dunlin_model::limits::REJECTED_BYTES_MAX), (reason, 0)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_connect_and_half_a_packet_are_not_waited_for() {
    let lab = Lab::with(Config { workers: 1, handshake_seconds_max: 3, ..Config::default() }).await;
    let mut silent = lab.client().await;
    let mut half: Client = lab.client().await;
    half.send(&connect(4, "c", "probe")[..9]).await;
    let mut slow = lab.connected(4, "slow").await;
    slow.send(&publish(4, 1, 1, "v1/telemetry", READING)[..10]).await;
    assert!(silent.is_closed().await && half.is_closed().await && slow.is_closed().await);
    assert!(lab.raw(Topic::Telemetry).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_ends_a_connection_but_not_before_its_time() {
    let lab = Lab::with(Config { workers: 1, keepalive_seconds_max: 3, ..Config::default() }).await;
    let mut client = lab.connected(5, "probe").await;
    let mut half = publish(5, 1, 1, "v1/telemetry", READING);
    let rest = half.split_off(10);
    for part in [half, rest] {
        client.send(&part).await; // The timer of a packet that was begun gives way again.
        tokio::task::yield_now().await;
    }
    assert_eq!(client.packet().await.unwrap(), [0x40, 2, 0, 1]);
    let before = std::time::Instant::now();
    assert!(client.pings().await);
    let goodbye = client.packet().await.unwrap();
    assert_eq!((goodbye[0], goodbye[2]), (0xE0, 0x8D));
    assert!(before.elapsed() >= std::time::Duration::from_millis(4_500), "{:?}", before.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn qos_2_beyond_the_receive_maximum_ends_the_connection() {
    let lab = Lab::with(Config { workers: 1, connection_inflight_max: 4, ..Config::default() }).await;
    let mut client = lab.connected(5, "probe").await;
    let all: Vec<u8> = (1..=4).flat_map(|id| publish(5, 2, id, "v1/telemetry", READING)).collect();
    client.send(&all).await;
    for id in 1..=4 {
        assert_eq!(client.packet().await.unwrap(), [0x50, 2, 0, id]);
    }
    client.send(&publish(5, 2, 4, "v1/telemetry", READING)).await;
    assert_eq!(client.packet().await.unwrap(), [0x50, 2, 0, 4], "a repetition is none more");
    client.send(&[0x62, 2, 0, 1]).await;
    assert_eq!(client.packet().await.unwrap(), [0x70, 2, 0, 1]);
    client.send(&publish(5, 2, 1, "v1/telemetry", READING)).await;
    assert_eq!(client.packet().await.unwrap(), [0x50, 2, 0, 1], "a released id makes room");
    client.send(&publish(5, 1, 5, "v1/telemetry", READING)).await;
    let goodbye = client.packet().await.unwrap();
    assert_eq!((goodbye[0], goodbye[2]), (0xE0, 0x93));
    assert_eq!(lab.telemetry().await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_is_answered_before_a_client_is_told_that_it_sends_too_much() {
    let lab = Lab::with(Config { workers: 1, connection_inflight_max: 4, ..Config::default() }).await;
    let mut client = lab.connected(5, "probe").await;
    let all: Vec<u8> = (1..=9).flat_map(|id| publish(5, 2, id, "v1/telemetry", READING)).collect();
    client.send(&all).await;
    for id in 1..=4 {
        assert_eq!(client.packet().await.unwrap(), [0x50, 2, 0, id]);
    }
    assert_eq!(client.packet().await.unwrap()[2], 0x93);
    assert!(client.is_closed().await);
}

/// MQTT 3.1.1 announces nothing: its clients are closed only when there is no end to it.
#[tokio::test(flavor = "multi_thread")]
async fn qos_2_without_end_ends_an_old_client_too() {
    let lab = Lab::with(Config { workers: 1, connection_inflight_max: 4, ..Config::default() }).await;
    let mut client = lab.connected(4, "probe").await;
    for id in 1..=4_096_u16 {
        client.send(&publish(4, 2, id, "v1/telemetry", READING)).await;
        assert_eq!(client.packet().await.unwrap()[..2], [0x50, 2]);
    }
    client.send(&publish(4, 2, 4_097, "v1/telemetry", READING)).await;
    assert!(client.is_closed().await);
}
