//! Telemetry from brokers of others. The broker here is another gateway; a real one is tried end to end.

use std::time::Duration;

use dunlin_gateway::{Config, SourceConfig};
use dunlin_journal::AppendError;
use dunlin_model::{MessageId, RejectReason, avro};

use super::lab::{Client, Gate, Lab, publish};

const PATIENCE: Duration = Duration::from_secs(20);

/// What has no default, and pauses that a test can wait for.
fn source(broker: &Lab, device: &str) -> SourceConfig {
    let text = format!(
        r#"{{ "name": "plant", "address": "{}", "tenant": "default", "device": "{device}", "username": "dunlin",
              "topics": ["plant/{{device}}/data"], "pause_first_millis": 10, "pause_longest_seconds": 1 }}"#,
        broker.gateway.mqtt_addresses()[0]
    );
    serde_json::from_str(&text).unwrap()
}

async fn taking(broker: &Lab, device: &str) -> Lab {
    let config = Config { workers: 1, source: vec![source(broker, device)], ..Config::default() };
    let lab = Lab::with(config).await;
    if device.starts_with("gw") {
        until("connected", || lab.metric(r#"dunlin_source_connected{source="plant"}"#) == 1).await;
    }
    lab
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

fn acknowledged(lab: &Lab) -> u64 {
    lab.metric(r#"dunlin_source_acknowledged_total{source="plant"}"#)
}

async fn say(device: &mut Client, id: u16, topic: &str, payload: &str) {
    device.send(&publish(5, 1, id, topic, payload.as_bytes())).await;
    let answer = device.packet().await.unwrap();
    assert_eq!((answer[0], &answer[2..4]), (0x40, &id.to_be_bytes()[..]));
}

#[tokio::test]
async fn a_message_is_acknowledged_to_the_broker_when_it_is_durable() {
    let broker = Lab::start().await;
    let lab = taking(&broker, "gw-plant").await;
    let mut device = broker.connected(5, "press-7").await;
    lab.gate(Gate::Closed);
    say(&mut device, 1, "plant/press-7/data", r#"{"t": 1}"#).await;
    say(&mut device, 2, "plant/press-8/data", r#"[{"t": 2}, {"t": 3}]"#).await;
    until("taken", || lab.metric(r#"dunlin_source_unacknowledged{source="plant"}"#) > 0).await;
    assert_eq!(acknowledged(&lab), 0);
    lab.gate(Gate::Open);
    until("acknowledged", || acknowledged(&lab) == 2).await;
    let mut told = lab.telemetry().await;
    told.sort();
    assert_eq!(told, ["child/press-7: t=I64(1)", "child/press-8: t=I64(2)", "child/press-8: t=I64(3)"]);
    let account = lab.account();
    assert_eq!((account.received, account.accepted), (3, 3));
    lab.gateway.stop().await;
}

#[tokio::test]
async fn what_the_journal_did_not_take_comes_again_as_a_repetition() {
    let broker = Lab::start().await;
    let lab = taking(&broker, "gw-plant").await;
    let mut device = broker.connected(5, "press-7").await;
    lab.gate(Gate::Failing(AppendError::Unreachable { reason: "gone".into() }));
    say(&mut device, 1, "plant/press-7/data", r#"{"t": 1}"#).await;
    let interrupted = r#"dunlin_source_interruptions_total{source="plant",reason="journal"}"#;
    until("interrupted", || lab.metric(interrupted) > 0).await;
    assert_eq!(acknowledged(&lab), 0);
    lab.gate(Gate::Open);
    until("acknowledged", || acknowledged(&lab) == 1).await;
    let records = lab.raw(dunlin_journal::Topic::Telemetry).await;
    assert_eq!(records.len(), 1);
    assert!(matches!(avro::decode(&records[0]).unwrap().message_id, MessageId::Retry(_)));
    assert_eq!(lab.metric(r#"dunlin_source_sessions_lost_total{source="plant"}"#), 0);
    // And so does what came to nobody while nobody was there.
    lab.gateway.stop().await;
    say(&mut device, 2, "plant/press-7/data", r#"{"t": 2}"#).await;
    let later = taking(&broker, "gw-plant").await;
    until("acknowledged", || acknowledged(&later) == 1).await;
    assert_eq!(later.telemetry().await, ["child/press-7: t=I64(2)"]);
}

#[tokio::test]
async fn what_is_refused_is_kept_with_its_reason_and_holds_nobody_up() {
    let broker = Lab::start().await;
    let mut config = source(&broker, "gw-plant");
    config.topics.push("alarms/{device}/#".into());
    let lab = Lab::with(Config { workers: 1, source: vec![config], ..Config::default() }).await;
    until("connected", || lab.metric(r#"dunlin_source_connected{source="plant"}"#) == 1).await;
    let mut device = broker.connected(5, "press-7").await;
    let long = format!("plant/{}/data", "x".repeat(300));
    let sent = [
        ("plant/press-7/data", "no json"),
        ("plant/press-7/data", r#"{"t": null}"#),
        ("alarms/stranger/high", r#"{"t": 1}"#),
        ("alarms/off", r#"{"t": 1}"#),
        ("alarms/beyond", r#"{"t": 1}"#),
        (long.as_str(), r#"{"t": 1}"#),
        ("alarms/press-9/high/1", r#"{"t": 1}"#),
    ];
    for (n, (topic, payload)) in sent.iter().enumerate() {
        say(&mut device, n as u16 + 1, topic, payload).await;
    }
    until("acknowledged", || acknowledged(&lab) == sent.len() as u64).await;
    assert_eq!(lab.telemetry().await, ["child/press-9: t=I64(1)"]);
    let mut told: Vec<_> = lab.rejected().await.into_iter().map(|r| (r.reason, r.device, r.source)).collect();
    told.sort_by_key(|(reason, _, source)| (*reason as u8, source.clone()));
    let mut reasons: Vec<_> = told.iter().map(|(reason, ..)| *reason).collect();
    reasons.sort_by_key(|reason| *reason as u8);
    use RejectReason::*;
    assert_eq!(
        reasons,
        [PayloadFormat, InvalidValue, UnknownTopic, NotAuthorized, NotAuthorized, QuotaExceeded]
    );
    let (_, device, source) = &told[0];
    assert_eq!((device.as_str(), source.as_str()), ("press-7", "source:plant:plant/press-7/data"));
    assert_eq!(lab.account().rejected.values().sum::<u64>(), 6);
    assert_eq!(lab.metric(r#"dunlin_source_messages_total{source="plant",outcome="rejected"}"#), 6);
}

#[tokio::test]
async fn nothing_is_taken_without_a_device_that_speaks_for_those_behind_the_broker() {
    let broker = Lab::start().await;
    for (device, reason) in [("press-7", "not_admitted"), ("off", "not_admitted"), ("down", "directory")] {
        let lab = taking(&broker, device).await;
        let why = format!(r#"dunlin_source_interruptions_total{{source="plant",reason="{reason}"}}"#);
        until("refused", || lab.metric(&why) > 1).await;
        assert_eq!(lab.metric(r#"dunlin_source_connected{source="plant"}"#), 0);
    }
}

#[tokio::test]
async fn a_directory_that_is_away_costs_nothing_but_time() {
    let broker = Lab::start().await;
    let lab = taking(&broker, "gw-plant").await;
    let mut device = broker.connected(5, "press-7").await;
    lab.directory.fail(true);
    say(&mut device, 1, "plant/press-7/data", r#"{"t": 1}"#).await;
    let interrupted = r#"dunlin_source_interruptions_total{source="plant",reason="directory"}"#;
    until("interrupted", || lab.metric(interrupted) > 0).await;
    lab.directory.fail(false);
    until("acknowledged", || acknowledged(&lab) == 1).await;
    assert_eq!(lab.telemetry().await, ["child/press-7: t=I64(1)"]);
}

#[tokio::test]
async fn two_of_one_name_are_told() {
    let broker = Lab::start().await;
    let first = taking(&broker, "gw-plant").await;
    let _second = taking(&broker, "gw-plant").await;
    let taken_over = r#"dunlin_source_interruptions_total{source="plant",reason="taken_over"}"#;
    until("taken over", || first.metric(taken_over) > 0).await;
}
