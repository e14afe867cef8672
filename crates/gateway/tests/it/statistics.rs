//! What clients and operators may know about publish and subscribe.

use dunlin_gateway::{Config, PubSubConfig};

use crate::lab::{Lab, frame, publish};

/// SUBSCRIBE of MQTT 3.1.1 with one filter.
fn subscribe(filter: &str) -> Vec<u8> {
    let mut body = vec![0, 1];
    body.extend((filter.len() as u16).to_be_bytes());
    body.extend(filter.as_bytes());
    body.push(0);
    frame(0x82, &body)
}

/// Topic and payload of a PUBLISH of QoS 0, MQTT 3.1.1.
fn message(packet: &[u8]) -> (String, String) {
    assert_eq!(packet[0] >> 4, 3, "not a PUBLISH: {packet:02x?}");
    let body = &packet[2..];
    let (topic, payload) = body[2..].split_at(usize::from(u16::from_be_bytes([body[0], body[1]])));
    (String::from_utf8(topic.to_vec()).unwrap(), String::from_utf8(payload.to_vec()).unwrap())
}

#[tokio::test]
async fn clients_are_shown_their_tenants_figures() {
    let pubsub = PubSubConfig { statistics_seconds: 1, ..PubSubConfig::default() };
    let lab = Lab::with(Config { pubsub, ..Config::default() }).await;
    let mut watcher = lab.connected(4, "token-1").await;
    watcher.send(&subscribe("$SYS/broker/clients/connected")).await;
    assert_eq!(watcher.packet().await.unwrap()[0], 0x90);
    let mut all = lab.connected(4, "token-2").await;
    all.send(&subscribe("#")).await;
    assert_eq!(all.packet().await.unwrap()[0], 0x90);

    let mut shown = String::new();
    while shown != "2" {
        let (topic, text) = message(&watcher.packet().await.unwrap());
        assert_eq!(topic, "$SYS/broker/clients/connected");
        shown = text;
    }
    assert!(all.pings().await, "# does not match what begins with $");
}

#[tokio::test]
async fn operators_see_what_publish_and_subscribe_holds() {
    let lab = Lab::start().await;
    let mut client = lab.connected(4, "token-1").await;
    client.send(&subscribe("a/+")).await;
    assert_eq!(client.packet().await.unwrap()[0], 0x90);
    client.send(&publish(4, 0, 0, "a/b", b"x")).await;
    assert_eq!(message(&client.packet().await.unwrap()), ("a/b".into(), "x".into()));

    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &lab.registry).unwrap();
    for line in [
        "dunlin_mqtt_subscriptions{",
        "dunlin_mqtt_messages_published_total{",
        "dunlin_mqtt_messages_delivered_total{",
    ] {
        let figure =
            text.lines().find(|l| l.starts_with(line)).unwrap_or_else(|| panic!("no {line} in {text}"));
        assert!(figure.ends_with(" 1"), "{figure}");
    }
}
