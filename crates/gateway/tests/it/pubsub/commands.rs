//! Commands: from their topic to the device, and what it says about them back into another topic.

use std::time::Duration;

use dunlin_journal::{Batch, Journal, Partition, Topic};
use dunlin_model::{Command, CommandReply, CommandStep, RejectReason, Slot, Timestamp, avro::Datum};

use super::{PUBACK, answer, connected, subscribe, subscribed};
use crate::lab::{Client, Lab, NOW_MILLIS, publish};

const MINE: &str = "v1/commands/+";

async fn send(lab: &Lab, device: &str, id: &str, seconds: i64) {
    let now = Timestamp::from_millis(NOW_MILLIS).unwrap();
    let command = Command {
        tenant: "default".into(),
        device: device.into(),
        id: id.into(),
        method: "say \"hello\"".into(),
        params: "{\"loud\":1.50}".into(),
        sent_at: now,
        expires_at: Timestamp::from_millis(NOW_MILLIS + seconds * 1_000).unwrap(),
    };
    let mut batch = Batch::default();
    batch.push(&command.encode());
    let index = Slot::of("default", device).partition(lab.journal.partitions(Topic::Commands));
    lab.journal.append(Partition::new(Topic::Commands, index), batch).await.unwrap();
    lab.gateway.view().commanded();
}

/// Topic, packet id and payload of the next PUBLISH, of MQTT 3.1.1 and QoS 1.
async fn commanded(client: &mut Client) -> (String, u16, String) {
    let packet = client.packet().await.expect("PUBLISH");
    assert_eq!(packet[0] & 0xF6, 0x32, "{packet:02x?}");
    let (length, rest) = packet[2..].split_first_chunk().unwrap();
    let (topic, rest) = rest.split_at(u16::from_be_bytes(*length).into());
    let (id, payload) = rest.split_first_chunk().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(topic), u16::from_be_bytes(*id), text(payload))
}

/// `DEVICE ID STEP REPLY` of what devices did, once there is so much.
async fn replies(lab: &Lab, count: usize) -> Vec<String> {
    let all = async {
        loop {
            let records = lab.raw(Topic::CommandReplies).await;
            if records.len() >= count {
                return records;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let records = tokio::time::timeout(Duration::from_secs(20), all).await.expect("so many replies");
    let shown = |bytes: &Vec<u8>| {
        let CommandReply { device, id, step, reply, .. } = CommandReply::decode(bytes).unwrap();
        let step = if step == CommandStep::Delivered { "has it" } else { "says" };
        format!("{device} {id} {step} {reply}").trim_end().to_owned()
    };
    records.iter().map(shown).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_gets_its_command_and_what_it_says_is_in_the_journal() {
    let lab = Lab::start().await;
    let mut pump = lab.connected(4, "pump").await;
    subscribed(&mut pump, 4, MINE, 1).await;
    let mut nosy = lab.connected(4, "nosy").await;
    for filter in ["#", MINE] {
        subscribed(&mut nosy, 4, filter, 1).await;
    }
    send(&lab, "pump", "c1", 60).await;
    let (topic, id, payload) = commanded(&mut pump).await;
    assert_eq!(topic, "v1/commands/c1");
    assert_eq!(payload, r#"{"method":"say \"hello\"","params":{"loud":1.50}}"#);
    pump.send(&answer(PUBACK, id)).await;
    assert_eq!(replies(&lab, 1).await, ["pump c1 has it"]);
    pump.send(&publish(4, 1, 9, "v1/commands/c1/reply", b"{\"done\": true}")).await;
    assert_eq!(pump.packet().await.unwrap(), answer(PUBACK, 9));
    assert_eq!(replies(&lab, 2).await[1], "pump c1 says {\"done\": true}");
    assert!(nosy.pings().await, "and nobody else hears of it");
    lab.never_panicked();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_waits_for_its_device_until_that_has_it() {
    let lab = Lab::start().await;
    for (id, seconds) in [("over", 0), ("waits", 60)] {
        send(&lab, "pump", id, seconds).await;
    }
    for _ in 0..2 {
        let mut pump = lab.connected(4, "pump").await;
        subscribed(&mut pump, 4, MINE, 1).await;
        assert_eq!(commanded(&mut pump).await.0, "v1/commands/waits", "it has not said that it has it");
    }
    let mut pump = lab.connected(4, "pump").await;
    subscribed(&mut pump, 4, MINE, 1).await;
    let (_, id, _) = commanded(&mut pump).await;
    pump.send(&answer(PUBACK, id)).await;
    replies(&lab, 1).await;
    until_none_waits(&lab).await;
    let mut pump = lab.connected(4, "pump").await;
    subscribed(&mut pump, 4, MINE, 1).await;
    assert!(pump.pings().await, "nothing waits any more");
}

async fn until_none_waits(lab: &Lab) {
    let waits = async {
        while lab.metric("dunlin_commands_waiting{tenant=\"default\"}") > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waits).await.expect("no command waits");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_survives_a_crash_and_is_brought_once_by_whoever_finds_it() {
    let lab = Lab::start().await;
    let (mut pump, _) = connected(&lab, 4, "pump").await;
    subscribed(&mut pump, 4, MINE, 1).await;
    send(&lab, "pump", "c1", 60).await;
    assert_eq!(commanded(&mut pump).await.0, "v1/commands/c1");
    // Both gateways look for commands now.
    let after = lab.crashed().await;
    send(&lab, "pump", "c2", 60).await;
    send(&after, "pump", "c3", 60).await;
    let (mut pump, present) = connected(&after, 4, "pump").await;
    assert!(present);
    for expected in ["c1", "c2", "c3"] {
        let (topic, id, _) = commanded(&mut pump).await;
        assert_eq!(topic, format!("v1/commands/{expected}"));
        pump.send(&answer(PUBACK, id)).await;
    }
    assert!(pump.pings().await, "each once");
    after.never_panicked();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_of_qos_0_is_sent_a_command_once() {
    let lab = Lab::start().await;
    let mut pump = lab.connected(4, "pump").await;
    subscribed(&mut pump, 4, MINE, 0).await;
    send(&lab, "pump", "c1", 60).await;
    assert_eq!(pump.packet().await.unwrap()[0], 0x30);
    assert_eq!(replies(&lab, 1).await, ["pump c1 has it"]);
    until_none_waits(&lab).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_subscribes_to_the_commands_of_others_or_says_what_is_no_reply() {
    let lab = Lab::start().await;
    for (version, forbidden) in [(4, 0x80), (5, 0x87)] {
        let mut nosy = lab.connected(version, "nosy").await;
        for filter in ["$commands/#", "$commands/pump/+", "$share/g/$commands/+/+"] {
            nosy.send(&subscribe(version, 1, filter, 1)).await;
            assert_eq!(nosy.packet().await.unwrap().last(), Some(&forbidden), "{filter}");
        }
    }
    let mut pump = lab.connected(5, "pump").await;
    let long = [b"\"", "x".repeat(64 << 10).as_bytes(), b"\""].concat();
    let refused: [(&str, &[u8], _, u8); 3] = [
        ("v1/commands/c1/reply", b"done", RejectReason::PayloadFormat, 0x99),
        ("v1/commands/c 1/reply", b"1", RejectReason::UnknownTopic, 0x90),
        ("v1/commands/c1/reply", &long, RejectReason::TooLarge, 0x97),
    ];
    for (id, (topic, payload, reason, code)) in (1..).zip(refused) {
        pump.send(&publish(5, 1, id, topic, payload)).await;
        let ack = pump.packet().await.unwrap();
        assert_eq!((ack[0], ack[4]), (PUBACK, code), "{topic}");
        assert_eq!(lab.rejected().await.last().unwrap().reason, reason);
    }
    assert_eq!(replies(&lab, 0).await.len(), 0);
}
