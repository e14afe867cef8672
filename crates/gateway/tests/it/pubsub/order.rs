use std::collections::{BTreeMap, BTreeSet};

use dunlin_gateway::{Config, PubSubConfig};

use super::*;

/// The number of a message in its publisher's order.
fn numbered(payload: &str) -> (String, u32) {
    let (publisher, number) = payload.split_once(' ').expect("PUBLISHER NUMBER");
    (publisher.to_owned(), number.parse().unwrap())
}

/// What a client publishes from memory must not overtake what it published by the log, also over an earlier connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_again_does_not_overtake_itself() {
    let lab = Lab::start().await;
    let (mut reader, _) = connected(&lab, 4, "reader").await;
    subscribed(&mut reader, 4, "news", 1).await;
    let mut writer = lab.connected(4, "writer").await;
    lab.follow(false);
    writer.send(&publish(4, 1, 1, "news", b"1")).await;
    assert_eq!(writer.packet().await.unwrap(), answer(PUBACK, 1), "it is in the log, and nowhere else yet");
    writer.send(&publish(4, 0, 0, "news", b"2")).await;
    writer.send(&[0xE0, 0]).await;
    assert!(writer.is_closed().await);
    let mut again = lab.connected(4, "writer").await;
    again.send(&publish(4, 0, 0, "news", b"3")).await;
    assert!(again.pings().await);
    lab.follow(true);
    for expected in ["1", "2", "3"] {
        assert_eq!(heard(&mut reader).await.payload, expected);
    }
}

/// Also if what was acknowledged has not been applied yet.
#[tokio::test(flavor = "multi_thread")]
async fn who_subscribes_gets_what_is_retained_by_then() {
    let lab = Lab::start().await;
    let mut writer = lab.connected(4, "writer").await;
    let retained = |id, payload| {
        let mut packet = publish(4, 1, id, "state", payload);
        packet[0] |= 1;
        packet
    };
    writer.send(&retained(1, b"old")).await;
    assert_eq!(writer.packet().await.unwrap(), answer(PUBACK, 1));
    lab.follow(false);
    writer.send(&retained(2, b"new")).await;
    assert_eq!(writer.packet().await.unwrap(), answer(PUBACK, 2));
    let mut reader = lab.connected(4, "reader").await;
    reader.send(&subscribe(4, 1, "state", 0)).await;
    lab.follow(true);
    assert_eq!(reader.packet().await.unwrap()[0], 0x90);
    assert_eq!(heard(&mut reader).await.payload, "new");
}

/// Some of it goes by the log, and some does not.
#[tokio::test(flavor = "multi_thread")]
async fn each_publisher_is_heard_in_its_order() {
    const PUBLISHERS: u32 = 4;
    const MESSAGES: u32 = 150;
    let lab = Lab::start().await;
    let (mut lasting, _) = connected(&lab, 4, "lasting").await;
    let mut live = lab.connected(4, "live").await;
    for reader in [&mut lasting, &mut live] {
        subscribed(reader, 4, "news/#", 2).await;
    }
    let mut writing = Vec::new();
    for n in 0..PUBLISHERS {
        let mut writer = lab.connected(4, &format!("writer-{n}")).await;
        writing.push(tokio::spawn(async move {
            for number in 0..MESSAGES {
                let qos = [0, 1, 0, 0, 2][number as usize % 5];
                let topic = ["news/a", "news/b"][(number / 7) as usize % 2];
                let packet = publish(4, qos, number as u16 + 1, topic, format!("{n} {number}").as_bytes());
                writer.send(&packet).await;
                if number % 20 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            writer // Its answers are not read, and do not matter here.
        }));
    }
    for reader in [&mut lasting, &mut live] {
        let mut last: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..PUBLISHERS * MESSAGES {
            let message = heard(reader).await;
            let (publisher, number) = numbered(&message.payload);
            let expected = last.get(&publisher).map_or(0, |last| last + 1);
            assert_eq!(number, expected, "of {publisher}");
            last.insert(publisher, number);
        }
    }
    for writing in writing {
        writing.await.unwrap();
    }
    lab.never_panicked();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_takeover_in_the_middle_of_publishes_keeps_order_and_count() {
    const FIRST: u16 = 50;
    const ALL: u16 = 60;
    let lab = Lab::start().await;
    let (mut reader, _) = connected(&lab, 4, "reader").await;
    subscribed(&mut reader, 4, "news", 2).await;
    let (mut before, _) = connected(&lab, 4, "writer").await;
    let appends = lab.arrived();
    lab.gate(Gate::Closed);
    let packet = |n: u16| publish(4, 2, n, "news", n.to_string().as_bytes());
    for n in 1..=FIRST {
        before.send(&packet(n)).await;
    }
    lab.arrivals(appends + 1).await;
    let mut after = lab.client().await;
    after.send(&lasting(4, "writer", None)).await;
    assert!(before.is_closed().await, "nothing was durable, and nothing is acknowledged");
    lab.gate(Gate::Open);
    let ack = after.packet().await.expect("CONNACK");
    assert_eq!(ack, [0x20, 2, 1, 0]);
    for n in 1..=ALL {
        let mut packet = packet(n);
        packet[0] |= if n <= FIRST { DUP } else { 0 };
        after.send(&packet).await;
        assert_eq!(after.packet().await.unwrap(), answer(PUBREC, n));
    }
    for n in 1..=ALL {
        assert_eq!(received(&mut reader, 4).await.1, n.to_string());
    }
    assert!(reader.pings().await, "and nothing else");
}

/// Whether the client comes back to the same server, or to one that has crashed.
#[tokio::test(flavor = "multi_thread")]
async fn packet_ids_of_unacknowledged_messages_are_nobody_elses() {
    const FRESH: u16 = 5;
    let mut at = Lab::start().await;
    let (mut reader, _) = connected(&at, 4, "reader").await;
    subscribed(&mut reader, 4, "news", 1).await;
    let mut crashed = Vec::new(); // A crash says nothing to anybody.
    let mut holders: BTreeMap<u16, String> = BTreeMap::new();
    for round in 0..6 {
        let mut writer = at.connected(4, "writer").await;
        for n in 1..=FRESH {
            writer.send(&publish(4, 1, n, "news", format!("{round} {n}").as_bytes())).await;
            assert_eq!(writer.packet().await.unwrap(), answer(PUBACK, n));
        }
        if round > 0 {
            let (back, present) = connected(&at, 4, "reader").await;
            assert!(present);
            crashed.push((None, reader));
            reader = back;
        }
        let waiting: BTreeSet<u16> = holders.keys().copied().collect();
        for n in 0..waiting.len() + usize::from(FRESH) {
            let (id, payload) = received(&mut reader, 4).await;
            assert_eq!(waiting.contains(&id), n < waiting.len(), "what waits comes first");
            let holder = holders.entry(id).or_insert_with(|| payload.clone());
            assert_eq!(*holder, payload, "packet id {id} in round {round}");
        }
        assert_eq!(holders.len(), waiting.len() + usize::from(FRESH));
        // Every second one is done with, and its id is free.
        for id in waiting.iter().copied().step_by(2) {
            reader.send(&answer(PUBACK, id)).await;
            holders.remove(&id);
        }
        subscribed(&mut reader, 4, "other", 0).await; // It is in the log behind them.
        if round % 2 == 0 {
            let next = at.crashed().await;
            crashed.push((Some(std::mem::replace(&mut at, next)), writer));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_subscriber_delays_nobody_and_loses_no_more_than_was_counted() {
    const MESSAGES: u32 = 2_000;
    let pubsub = PubSubConfig { queue_messages_max: 20, ..PubSubConfig::default() };
    let lab = Lab::with(Config { workers: 1, pubsub, ..Config::default() }).await;
    let mut slow = lab.connected(4, "slow").await;
    let mut quick = lab.connected(4, "quick").await;
    for reader in [&mut slow, &mut quick] {
        subscribed(reader, 4, "news", 0).await;
    }
    let mut writer = lab.connected(4, "writer").await;
    // More than the sockets between here and there take.
    let padding = "x".repeat(16 << 10);
    for n in 0..MESSAGES {
        writer.send(&publish(4, 1, 1, "news", format!("writer {n} {padding}").as_bytes())).await;
        assert_eq!(writer.packet().await.unwrap(), answer(PUBACK, 1));
        assert!(heard(&mut quick).await.payload.starts_with(&format!("writer {n} ")));
    }
    let dropped = lab.metric("dunlin_mqtt_messages_dropped_total{tenant=\"default\"}") as u32;
    assert!(dropped > 0);
    let mut last = None;
    for _ in 0..MESSAGES - dropped {
        let payload = heard(&mut slow).await.payload;
        let number: u32 = payload.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(last < Some(number), "{last:?} before {number}");
        last = Some(number);
    }
    // It is as quick as anybody once it reads.
    writer.send(&publish(4, 1, 1, "news", b"writer last")).await;
    assert_eq!(heard(&mut slow).await.payload, "writer last");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_will_is_said_when_the_connection_breaks_and_not_after_a_goodbye() {
    for version in [4, 5] {
        let lab = Lab::start().await;
        let (mut reader, _) = connected(&lab, version, "reader").await;
        subscribed(&mut reader, version, "wills/#", 1).await;
        let mut writer = lab.connected(version, "writer").await;
        let mut polite = lab.client().await;
        polite.send(&lasting(version, "polite", Some(&Will("wills/polite")))).await;
        assert_eq!(connack_code(&polite.packet().await.unwrap()), 0);
        polite.send(&[0xE0, 0]).await;
        assert!(polite.is_closed().await);
        let mut dying = lab.client().await;
        dying.send(&lasting(version, "dying", Some(&Will("wills/dying")))).await;
        assert_eq!(connack_code(&dying.packet().await.unwrap()), 0);
        drop(dying);
        let (_, payload) = received(&mut reader, version).await;
        assert_eq!(payload, "gone");
        // Retained: only the one that was said.
        writer.send(&publish(version, 1, 1, "wills/marker", b"marker")).await;
        assert_eq!(writer.packet().await.unwrap(), answer(PUBACK, 1));
        assert_eq!(received(&mut reader, version).await.1, "marker");
        assert_eq!(lab.metric("dunlin_mqtt_retained_messages{tenant=\"default\"}"), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_subscriptions_leave_nothing() {
    const SUBSCRIPTIONS: usize = 10_000;
    const OF_A_PACKET: usize = 500;
    let pubsub = PubSubConfig { session_subscriptions_max: SUBSCRIPTIONS, ..PubSubConfig::default() };
    let lab = Lab::with(Config { workers: 2, pubsub, ..Config::default() }).await;
    let live = lab.connected(4, "live").await;
    let (lasting, _) = connected(&lab, 4, "lasting").await;
    let count = || lab.metric("dunlin_mqtt_subscriptions{tenant=\"default\"}") as usize;
    for mut client in [live, lasting] {
        let filters: Vec<String> = (0..SUBSCRIPTIONS).map(|n| format!("a/{}/+/{n}/#", n % 100)).collect();
        for filters in filters.chunks(OF_A_PACKET) {
            let body = filters.iter().flat_map(|filter| [text(filter), vec![1]].concat());
            client.send(&frame(0x82, &[0, 1].into_iter().chain(body).collect::<Vec<u8>>())).await;
            assert_eq!(client.packet().await.unwrap().iter().filter(|b| **b == 1).count(), OF_A_PACKET + 1);
        }
        assert_eq!(count(), SUBSCRIPTIONS);
        for filters in filters.chunks(OF_A_PACKET) {
            let body = filters.iter().flat_map(|filter| text(filter));
            client.send(&frame(0xA2, &[0, 1].into_iter().chain(body).collect::<Vec<u8>>())).await;
            assert_eq!(client.packet().await.unwrap(), [0xB0, 2, 0, 1]);
        }
        assert_eq!(count(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_stands_twice_in_a_subscribe_counts_once() {
    let pubsub = PubSubConfig { session_subscriptions_max: 2, ..PubSubConfig::default() };
    for is_lasting in [false, true] {
        let lab = Lab::with(Config { workers: 1, pubsub: pubsub.clone(), ..Config::default() }).await;
        let mut client = match is_lasting {
            true => connected(&lab, 4, "client").await.0,
            false => lab.connected(4, "client").await,
        };
        let body = ["a", "a", "b", "c", "a"].into_iter().flat_map(|filter| [text(filter), vec![1]].concat());
        client.send(&frame(0x82, &[0, 1].into_iter().chain(body).collect::<Vec<u8>>())).await;
        assert_eq!(client.packet().await.unwrap()[4..], [1, 1, 1, 0x80, 1]);
    }
}

/// A client that has left in peace repeats nothing: what it marks as a repetition got lost on its way the first time.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_marked_as_a_repetition_is_a_copy_only_after_a_broken_connection() {
    use dunlin_model::MessageId;
    const READING: &[u8] = br#"{"temperature":21.5}"#;
    for leaves_in_peace in [true, false] {
        let lab = Lab::start().await;
        let mut client = lab.connected(4, "probe").await;
        client.send(&publish(4, 1, 1, "v1/telemetry", READING)).await;
        assert_eq!(client.packet().await.unwrap(), answer(PUBACK, 1));
        if leaves_in_peace {
            client.send(&[0xE0, 0]).await;
            assert!(client.is_closed().await);
        } else {
            drop(client);
        }
        let mut client = lab.connected(4, "probe").await;
        let mut again = publish(4, 1, 1, "v1/telemetry", READING);
        again[0] |= DUP;
        client.send(&again).await;
        assert_eq!(client.packet().await.unwrap(), answer(PUBACK, 1));
        let records = lab.raw(dunlin_journal::Topic::Telemetry).await;
        let ids: Vec<MessageId> =
            records.iter().map(|bytes| dunlin_model::avro::decode(bytes).unwrap().message_id).collect();
        let [MessageId::First(first), second] = ids[..] else { panic!("{ids:?}") };
        let expected = if leaves_in_peace { MessageId::First(first) } else { MessageId::Retry(first) };
        assert_eq!(second, expected);
    }
}
