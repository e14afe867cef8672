use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering::Relaxed},
};

use dunlin_broker::Change;
use dunlin_gateway::{Config, Revoked};
use dunlin_journal::Topic;
use dunlin_model::{Clock, TenantId, Timestamp};

use super::*;
use crate::lab::NOW_MILLIS;

/// CONNECT of MQTT 3.1.1 for a lasting session, with a client id that is not the token.
fn lasting_as(client_id: &str, token: &str) -> Vec<u8> {
    const USER_NAME: u8 = 0x80;
    let mut body = text("MQTT");
    body.extend_from_slice(&[4, USER_NAME, 0, 60]);
    body.extend(text(client_id));
    body.extend(text(token));
    frame(0x10, &body)
}

async fn connected_as(lab: &Lab, client_id: &str, token: &str) -> (Client, bool) {
    let mut client = lab.client().await;
    client.send(&lasting_as(client_id, token)).await;
    let ack = client.packet().await.expect("CONNACK");
    assert_eq!((ack[0], connack_code(&ack)), (0x20, 0), "{client_id:?} {token:?}: {ack:02x?}");
    (client, ack[2] == 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_id_is_one_of_its_device_and_of_nothing_it_spells() {
    let lab = Lab::start().await;
    let ids = ["+", "#", "a", "a/b", "a/+", "$share/g/a", "$SYS", "../a", "%2f", "a\u{feff}", "\u{feff}a"];
    let mut clients = Vec::new();
    for token in ["one", "two", "one@other"] {
        for id in ids {
            let (mut client, present) = connected_as(&lab, id, token).await;
            assert!(!present, "{id:?} of {token}");
            subscribed(&mut client, 4, &format!("to/{token}"), 1).await;
            clients.push((id, token, client));
        }
    }
    for (id, token, client) in &mut clients {
        assert!(client.pings().await, "{id:?} of {token}: nobody took its client id");
    }
    let mut writer = lab.connected(4, "two").await;
    writer.send(&publish(4, 1, 1, "to/one", b"x")).await;
    assert_eq!(writer.packet().await.unwrap(), answer(PUBACK, 1));
    for (id, token, client) in &mut clients {
        if *token == "one" {
            assert_eq!(received(client, 4).await.1, "x", "{id:?}");
        }
        assert!(client.pings().await, "{id:?} of {token}: and nothing else");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_crosses_from_tenant_to_tenant() {
    let lab = Lab::start().await;
    let mut retained = publish(4, 1, 1, "news", b"ours");
    retained[0] |= 1;
    let (mut ours, _) = connected(&lab, 4, "reader").await;
    for filter in ["#", "+", "$share/g/#"] {
        subscribed(&mut ours, 4, filter, 1).await;
    }
    let (mut theirs, present) = connected_as(&lab, "reader", "reader@other").await;
    assert!(!present);
    for filter in ["#", "+", "$share/g/#", "default/#", "$share/default/#", "other/../#"] {
        subscribed(&mut theirs, 4, filter, 1).await;
    }
    let mut writer = lab.connected(4, "writer").await;
    writer.send(&retained).await;
    assert_eq!(writer.packet().await.unwrap(), answer(PUBACK, 1));
    let mut dying = lab.client().await;
    dying.send(&lasting(4, "dying", Some(&Will("wills")))).await;
    assert_eq!(connack_code(&dying.packet().await.unwrap()), 0);
    drop(dying);
    // A copy for the plain subscriptions and one for the shared one, of the message and of the will.
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(received(&mut ours, 4).await.1);
    }
    assert_eq!(all, ["ours", "ours", "gone", "gone"]);
    assert!(theirs.pings().await, "nothing of it");
    subscribed(&mut theirs, 4, "news", 1).await;
    assert!(theirs.pings().await, "and nothing retained");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_device_gets_nothing_that_waited_for_it() {
    let lab = Lab::start().await;
    let (mut reader, _) = connected(&lab, 4, "reader").await;
    subscribed(&mut reader, 4, "news", 1).await;
    lab.directory.revoke("reader");
    lab.gateway.access().revoke_here(&TenantId::default_tenant(), &"reader".parse().unwrap(), Revoked::Token);
    assert!(reader.is_closed().await);
    let mut writer = lab.connected(4, "writer").await;
    writer.send(&publish(4, 1, 1, "news", b"secret")).await;
    assert_eq!(writer.packet().await.unwrap(), answer(PUBACK, 1));
    for token in ["reader", "writer"] {
        // Its session is no other device's either.
        let mut client = lab.client().await;
        client.send(&lasting_as("reader", token)).await;
        let ack = client.packet().await.expect("CONNACK");
        match token {
            "reader" => assert_eq!(connack_code(&ack), 5, "{ack:02x?}"),
            _ => {
                assert_eq!(ack, [0x20, 2, 0, 0]);
                assert!(client.pings().await);
            }
        }
    }
}

/// CONNECT of MQTT 5 for a session of a minute, with a will that waits for ten seconds.
fn with_delayed_will(token: &str) -> Vec<u8> {
    const USER_NAME_AND_WILL: u8 = 0x80 | 0x04 | 1 << 3;
    let mut body = text("MQTT");
    body.extend_from_slice(&[5, USER_NAME_AND_WILL, 0, 60, 5, 0x11, 0, 0, 0, 60]);
    body.extend(text(token));
    body.extend_from_slice(&[5, 0x18, 0, 0, 0, 10]);
    body.extend(text("wills"));
    body.extend(text(token));
    body.extend(text(token));
    frame(0x10, &body)
}

/// Until the log of the sessions holds so many such changes.
async fn until_logged(lab: &Lab, is_one: impl Fn(&Change<'_>) -> bool, count: usize) {
    loop {
        let log = lab.raw(Topic::Sessions).await;
        if log.iter().filter(|bytes| is_one(&Change::decode(bytes).unwrap())).count() >= count {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_device_leaves_no_will() {
    let now = Arc::new(AtomicI64::new(NOW_MILLIS));
    let ticking = now.clone();
    let clock = Clock::new(move || Timestamp::from_millis(ticking.load(Relaxed)).unwrap());
    let lab = Lab::timed(Config { workers: 1, ..Config::default() }, clock).await;
    let mut reader = lab.connected(4, "reader").await;
    subscribed(&mut reader, 4, "wills", 1).await;
    let mut clients = Vec::new();
    for token in ["there", "away", "good", "renewed"] {
        let mut client = lab.client().await;
        client.send(&with_delayed_will(token)).await;
        assert_eq!(connack_code(&client.packet().await.unwrap()), 0);
        clients.push(client);
    }
    let [mut there, away, good, mut renewed] = clients.try_into().ok().unwrap();
    drop((away, good));
    until_logged(&lab, |change| matches!(change, Change::Closed { .. }), 2).await;
    let revoke = |token: &str, what| {
        lab.directory.revoke(token);
        lab.gateway.access().revoke_here(&TenantId::default_tenant(), &token.parse().unwrap(), what);
    };
    revoke("away", Revoked::Device);
    until_logged(&lab, |change| matches!(change, Change::Silenced { .. }), 1).await;
    revoke("there", Revoked::Device);
    revoke("renewed", Revoked::Token);
    assert!(there.ends().await && renewed.ends().await);
    until_logged(&lab, |change| matches!(change, Change::Closed { .. }), 4).await;
    now.fetch_add(20_000, Relaxed);
    let mut said = [received(&mut reader, 4).await.1, received(&mut reader, 4).await.1];
    said.sort();
    assert_eq!(said, ["good", "renewed"]);
    now.fetch_add(100_000, Relaxed);
    while lab.metric("dunlin_mqtt_sessions{tenant=\"default\"}") > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await; // Until all of them are over.
    }
    assert!(reader.pings().await, "and nobody else");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_taken_as_they_are_spelled_or_refused() {
    let lab = Lab::start().await;
    let (mut reader, _) = connected(&lab, 4, "reader").await;
    let odd = ["/", "//", "\u{feff}news", "news\u{feff}", " ", "a//b", "\u{10ffff}", "Ünï/☃"];
    for topic in odd {
        subscribed(&mut reader, 4, topic, 1).await;
    }
    let mut writer = lab.connected(4, "writer").await;
    for (id, topic) in (1..).zip(odd) {
        writer.send(&publish(4, 1, id, topic, topic.as_bytes())).await;
        assert_eq!(writer.packet().await.unwrap(), answer(PUBACK, id));
        assert_eq!(received(&mut reader, 4).await.1, topic);
    }
    writer.send(&publish(4, 1, 50, "news", b"another topic")).await;
    assert_eq!(writer.packet().await.unwrap(), answer(PUBACK, 50));
    assert!(reader.pings().await);
    let (deep, long) = ("/".repeat(64), "a".repeat(65_535));
    for topic in ["", "+", "a/#", "a\0b", &deep, &long] {
        let mut writer = lab.connected(4, "hostile").await;
        writer.send(&publish(4, 1, 1, topic, b"x")).await;
        assert!(writer.is_closed().await, "{:?}", &topic[..topic.len().min(9)]);
    }
    for filter in ["", "a#", "#/a", "a\0b", "$share/g", "$share//a", "$share/+/a", &deep, &long] {
        let mut client = lab.connected(4, "hostile").await;
        client.send(&subscribe(4, 1, filter, 1)).await;
        let is_refused = match client.packet().await {
            None => true,
            Some(packet) => packet == [0x90, 3, 0, 1, 0x80] && client.pings().await,
        };
        assert!(is_refused, "{:?}", &filter[..filter.len().min(9)]);
    }
    assert!(reader.pings().await);
    lab.never_panicked();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_packet_id_again_and_again_is_one_message() {
    let lab = Lab::start().await;
    let (mut reader, _) = connected(&lab, 4, "reader").await;
    subscribed(&mut reader, 4, "news", 2).await;
    let (lasting, _) = connected(&lab, 4, "lasting").await;
    let live = lab.connected(4, "live").await;
    for (name, mut writer) in [("lasting", lasting), ("live", live)] {
        for _ in 0..3_000 {
            writer.send(&publish(4, 2, 7, "news", name.as_bytes())).await;
        }
        // Answers to what was never sent change nothing.
        for kind in [PUBACK, PUBCOMP] {
            writer.send(&answer(kind, 7)).await;
        }
        assert_eq!(writer.packet().await.unwrap(), answer(PUBREC, 7));
        writer.send(&answer(PUBREL, 7)).await;
        let mut last = writer.packet().await.unwrap();
        while last == answer(PUBREC, 7) {
            last = writer.packet().await.unwrap();
        }
        assert_eq!(last, answer(PUBCOMP, 7));
        assert_eq!(received(&mut reader, 4).await.1, name);
        assert!(reader.pings().await, "and nothing else");
    }
    lab.never_panicked();
}
