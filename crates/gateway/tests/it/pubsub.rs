//! Publish and subscribe, and what a crash leaves of it: a second gateway on the same journal.

use dunlin_gateway::StartError;

use crate::lab::{Client, Gate, Lab, connack_code, frame, publish, text};

mod commands; // what devices are asked to do
mod faults; // a journal that does not take what it is given
mod order; // what a subscriber may rely on
mod strangers; // who gets nothing

const FOR_A_WEEK: u32 = 7 * 24 * 3_600;

/// A will to be retained.
struct Will(&'static str);

/// CONNECT for a session that outlives its connection.
fn lasting(version: u8, name: &str, will: Option<&Will>) -> Vec<u8> {
    const USER_NAME: u8 = 0x80;
    const RETAINED_WILL: u8 = 0x20 | 1 << 3 | 0x04;
    let mut body = text("MQTT");
    let flags = USER_NAME | if will.is_some() { RETAINED_WILL } else { 0 };
    body.extend_from_slice(&[version, flags, 0, 60]);
    if version == 5 {
        body.extend_from_slice(&[5, 0x11]);
        body.extend_from_slice(&FOR_A_WEEK.to_be_bytes());
    }
    body.extend(text(name));
    if let Some(Will(topic)) = will {
        if version == 5 {
            body.push(0);
        }
        body.extend(text(topic));
        body.extend(text("gone"));
    }
    body.extend(text(name));
    frame(0x10, &body)
}

/// A client with a session that lasts, and whether there was one.
async fn connected(lab: &Lab, version: u8, name: &str) -> (Client, bool) {
    let mut client = lab.client().await;
    client.send(&lasting(version, name, None)).await;
    let ack = client.packet().await.expect("CONNACK");
    assert_eq!((ack[0], connack_code(&ack)), (0x20, 0), "{ack:02x?}");
    (client, ack[2] == 1)
}

fn subscribe(version: u8, id: u16, filter: &str, qos: u8) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    if version == 5 {
        body.push(0);
    }
    body.extend(text(filter));
    body.push(qos);
    frame(0x82, &body)
}

async fn subscribed(client: &mut Client, version: u8, filter: &str, qos: u8) {
    client.send(&subscribe(version, 1, filter, qos)).await;
    let ack = client.packet().await.expect("SUBACK");
    assert_eq!((ack[0], ack.last()), (0x90, Some(&qos)), "{ack:02x?}");
}

/// Packet id and payload of the next packet.
async fn received(client: &mut Client, version: u8) -> (u16, String) {
    payload_of(&client.packet().await.expect("PUBLISH"), version)
}

/// Packet id and payload of a short PUBLISH of QoS 1 or 2 without properties.
fn payload_of(packet: &[u8], version: u8) -> (u16, String) {
    assert!(packet[0] >> 4 == 3 && packet[0] & 0b0110 != 0, "{packet:02x?}");
    let topic = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let id = u16::from_be_bytes([packet[4 + topic], packet[5 + topic]]);
    let payload = &packet[6 + topic + usize::from(version == 5)..];
    (id, String::from_utf8(payload.to_vec()).unwrap())
}

fn answer(kind: u8, id: u16) -> Vec<u8> {
    frame(kind, &id.to_be_bytes())
}

const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;
const PUBREL: u8 = 0x62;
const PUBCOMP: u8 = 0x70;
/// Of a PUBLISH.
const DUP: u8 = 0x08;

/// A PUBLISH of MQTT 3.1.1 that has come.
struct Heard {
    payload: String,
}

/// The next PUBLISH, of any QoS and length; the client says what is to be said of it, and to PUBREL.
async fn heard(client: &mut Client) -> Heard {
    loop {
        let packet = client.packet().await.expect("PUBLISH");
        let length_bytes = packet[1..].iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
        let body = &packet[1 + length_bytes..];
        match packet[0] & 0xF0 {
            0x60 => client.send(&answer(PUBCOMP, u16::from_be_bytes([body[0], body[1]]))).await,
            0x30 => {
                let (topic_length, rest) = body.split_first_chunk().unwrap();
                let rest = &rest[usize::from(u16::from_be_bytes(*topic_length))..];
                let qos = packet[0] >> 1 & 3;
                let payload = if qos > 0 {
                    let kind = if qos == 1 { PUBACK } else { PUBREC };
                    client.send(&answer(kind, u16::from_be_bytes([rest[0], rest[1]]))).await;
                    &rest[2..]
                } else {
                    rest
                };
                return Heard { payload: String::from_utf8(payload.to_vec()).unwrap() };
            }
            _ => panic!("not a PUBLISH: {packet:02x?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_while_a_client_was_away_is_there_after_a_crash() {
    for version in [4, 5] {
        let lab = Lab::start().await;
        let (mut away, present) = connected(&lab, version, "away").await;
        assert!(!present);
        subscribed(&mut away, version, "news/#", 1).await;
        let mut publisher = lab.connected(version, "publisher").await;
        for n in 1..=20u16 {
            publisher.send(&publish(version, 1, n, "news/x", n.to_string().as_bytes())).await;
            assert_eq!(publisher.packet().await.unwrap(), answer(PUBACK, n));
        }
        // It has seen some of them, and acknowledged two.
        let mut before = Vec::new();
        for _ in 1..=5 {
            before.push(received(&mut away, version).await);
        }
        let appends = lab.arrived();
        for (id, _) in &before[..2] {
            away.send(&answer(PUBACK, *id)).await;
        }
        lab.arrivals(appends + 1).await;
        assert!(ends_in_order(&mut away, version, 6..=20).await);
        // A second acknowledgement is behind the first ones in the log.
        away.send(&subscribe(version, 9, "other", 0)).await;
        assert_eq!(away.packet().await.unwrap()[0], 0x90);

        let after = lab.crashed().await;
        let (mut back, present) = connected(&after, version, "away").await;
        assert!(present);
        for n in 3..=20u16 {
            let (id, payload) = received(&mut back, version).await;
            assert_eq!(payload, n.to_string());
            if let Some((known, _)) = before.get(usize::from(n) - 1) {
                assert_eq!(id, *known, "an unacknowledged message keeps its packet id");
            }
            back.send(&answer(PUBACK, id)).await;
        }
        assert!(back.pings().await, "and nothing else");
        after.never_panicked();
    }
}

async fn ends_in_order(client: &mut Client, version: u8, expected: std::ops::RangeInclusive<u16>) -> bool {
    for n in expected {
        if received(client, version).await.1 != n.to_string() {
            return false;
        }
    }
    true
}

/// The server crashes after each step that the client has taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_published_qos_2_message_arrives_once_across_a_crash_at_each_step() {
    for steps in 1..=3 {
        let lab = Lab::start().await;
        let (mut reader, _) = connected(&lab, 4, "reader").await;
        subscribed(&mut reader, 4, "news", 2).await;
        let (mut writer, _) = connected(&lab, 4, "writer").await;
        writer.send(&publish(4, 2, 7, "news", b"once")).await;
        assert_eq!(writer.packet().await.unwrap(), answer(PUBREC, 7));
        if steps >= 2 {
            writer.send(&answer(PUBREL, 7)).await;
            assert_eq!(writer.packet().await.unwrap(), answer(PUBCOMP, 7));
        }

        let after = lab.crashed().await;
        let (mut writer, present) = connected(&after, 4, "writer").await;
        assert!(present);
        if steps == 1 {
            // PUBREC got lost, as far as the client knows.
            let mut again = publish(4, 2, 7, "news", b"once");
            again[0] |= 0x08;
            writer.send(&again).await;
            assert_eq!(writer.packet().await.unwrap(), answer(PUBREC, 7));
        }
        if steps <= 2 {
            writer.send(&answer(PUBREL, 7)).await;
            assert_eq!(writer.packet().await.unwrap(), answer(PUBCOMP, 7));
        }
        writer.send(&publish(4, 2, 7, "news", b"next")).await;
        assert_eq!(writer.packet().await.unwrap(), answer(PUBREC, 7), "the packet id is free again");
        let (mut reader, _) = connected(&after, 4, "reader").await;
        for expected in ["once", "next"] {
            assert_eq!(received(&mut reader, 4).await.1, expected);
        }
        assert!(reader.pings().await, "and nothing else");
    }
}

/// The server crashes after each step that it has taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_delivered_qos_2_message_arrives_once_across_a_crash_at_each_step() {
    for steps in 1..=3 {
        let lab = Lab::start().await;
        let (mut reader, _) = connected(&lab, 4, "reader").await;
        subscribed(&mut reader, 4, "news", 2).await;
        let (mut writer, _) = connected(&lab, 4, "writer").await;
        writer.send(&publish(4, 2, 7, "news", b"once")).await;
        let (id, _) = received(&mut reader, 4).await;
        if steps >= 2 {
            reader.send(&answer(PUBREC, id)).await;
            assert_eq!(reader.packet().await.unwrap(), answer(PUBREL, id));
        }
        if steps >= 3 {
            reader.send(&answer(PUBCOMP, id)).await;
            subscribed(&mut reader, 4, "other", 0).await; // It is in the log behind PUBCOMP.
        }

        let after = lab.crashed().await;
        let (mut reader, present) = connected(&after, 4, "reader").await;
        assert!(present);
        match steps {
            1 => assert_eq!(received(&mut reader, 4).await, (id, "once".to_owned())),
            2 => assert_eq!(reader.packet().await.unwrap(), answer(PUBREL, id)),
            _ => {}
        }
        assert!(reader.pings().await, "after {steps}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retained_messages_and_wills_survive_a_crash() {
    for version in [4, 5] {
        let lab = Lab::start().await;
        let mut dying = lab.client().await;
        dying.send(&lasting(version, "dying", Some(&Will("kept/will")))).await;
        assert_eq!(connack_code(&dying.packet().await.unwrap()), 0);
        let mut retained = publish(version, 1, 1, "kept/message", b"here");
        retained[0] |= 1;
        dying.send(&retained).await;
        assert_eq!(dying.packet().await.unwrap(), answer(PUBACK, 1));

        let after = lab.crashed().await;
        let (mut reader, _) = connected(&after, version, "reader").await;
        // The will of whoever was connected at the crash is said at the start, before anybody is let in.
        reader.send(&subscribe(version, 1, "kept/#", 1)).await;
        // They may come before SUBACK (MQTT 5, 3.8.4).
        let mut all = Vec::new();
        while all.len() < 2 {
            let packet = reader.packet().await.expect("SUBACK and two messages");
            if packet[0] != 0x90 {
                all.push(payload_of(&packet, version).1);
            }
        }
        all.sort();
        assert_eq!(all, ["gone", "here"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_before_it_is_durable() {
    let lab = Lab::start().await;
    let (mut client, _) = connected(&lab, 4, "client").await;
    subscribed(&mut client, 4, "news", 1).await;
    let before = lab.arrived();
    lab.gate(Gate::Closed);
    client.send(&publish(4, 1, 5, "news", b"x")).await;
    lab.arrivals(before + 1).await;
    let mut other = lab.client().await;
    other.send(&lasting(4, "other", None)).await;
    lab.arrivals(before + 2).await;
    assert!(client.pings().await, "neither PUBACK nor the message");
    client.send(&subscribe(4, 6, "more", 1)).await;
    lab.arrivals(before + 3).await;
    lab.gate(Gate::Open);
    let mut kinds = Vec::new();
    for _ in 0..3 {
        kinds.push(client.packet().await.unwrap()[0] & 0xF0);
    }
    kinds.sort_unstable();
    assert_eq!(kinds, [0x30, 0x40, 0x90]);
    assert_eq!(connack_code(&other.packet().await.unwrap()), 0);
}

/// What a power cut leaves beside or instead of a snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_finds_the_sessions_whatever_became_of_the_snapshot() {
    let lab = Lab::start().await;
    let (mut client, _) = connected(&lab, 5, "client").await;
    subscribed(&mut client, 5, "news", 1).await;
    let journal = lab.journal.clone();
    let old = lab.crashed().await;
    let directory = old.sessions.path().to_owned();
    let kept = tempfile::tempdir().unwrap();
    let save = |from: &std::path::Path, to: &std::path::Path| {
        for file in std::fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    let Lab { gateway, sessions, .. } = old;
    gateway.stop().await;
    save(&directory, kept.path());
    drop(sessions);
    let snapshots: Vec<_> =
        std::fs::read_dir(kept.path()).unwrap().map(|file| file.unwrap().path()).collect();
    assert!(!snapshots.is_empty(), "a stop writes them");
    assert!(std::sync::Arc::ptr_eq(&journal, &lab.journal));

    // An older snapshot, with one half written beside it, and more in the log since.
    let later = lab.crashed().await;
    let (mut late, _) = connected(&later, 5, "late").await;
    subscribed(&mut late, 5, "news", 1).await;
    let leftover = tempfile::tempdir().unwrap();
    save(kept.path(), leftover.path());
    std::fs::write(leftover.path().join("0.fresh"), b"dunlinS2 half").unwrap();
    for directory in [leftover, tempfile::tempdir().unwrap()] {
        let after = lab.crashed_with(directory).await.unwrap();
        for name in ["client", "late"] {
            let (_, present) = connected(&after, 5, name).await;
            assert!(present, "{name}");
        }
    }

    let damaged = tempfile::tempdir().unwrap();
    save(kept.path(), damaged.path());
    let victim = damaged.path().join(snapshots[0].file_name().unwrap());
    let mut bytes = std::fs::read(&victim).unwrap();
    bytes.truncate(bytes.len() / 2);
    std::fs::write(&victim, bytes).unwrap();
    let Err(StartError::Sessions(error)) = lab.crashed_with(damaged).await else { panic!("it is damaged") };
    assert!(error.to_string().contains(victim.to_str().unwrap()), "{error}");
}
