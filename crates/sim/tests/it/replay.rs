use std::{io::Write, time::Duration};

use dunlin_sim::{
    publisher::PublishError,
    replay::{Config, ReplayError, Speed, replay},
};

use crate::broker::{Answer, Broker};

fn config(broker: &Broker, file: &std::path::Path) -> Config {
    Config {
        file: file.to_owned(),
        metric: "temperature".into(),
        target: broker.address.to_string(),
        client_id: "replay".into(),
        token: "token".into(),
        topic: "v1/telemetry".into(),
        speed: Speed::Max,
        reconnect_for: Duration::from_secs(20),
    }
}

fn file_of(lines: usize) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "timestamp,value").unwrap();
    for i in 0..lines {
        writeln!(file, "{},{i}.5", 1_386_018_900_000_u64 + i as u64 * 20).unwrap();
    }
    file
}

fn values(payload: &str) -> Vec<f64> {
    let json: serde_json::Value = serde_json::from_str(payload).unwrap();
    let all = json.as_array().cloned().unwrap_or_else(|| vec![json]);
    all.iter().map(|one| one["values"]["temperature"].as_f64().unwrap()).collect()
}

#[tokio::test]
async fn a_file_arrives_whole_and_in_order_over_lost_connections() {
    let broker = Broker::start(|n| if n % 7 == 5 { Answer::Hang } else { Answer::Ack });
    let file = file_of(2_345);
    let replayed = replay(&config(&broker, file.path()), |_| {}).await.unwrap();
    assert_eq!((replayed.readings, replayed.messages, replayed.acked), (2_345, 24, 24));
    assert!(replayed.reconnects > 0);

    let mut arrived = Vec::new();
    for message in broker.received() {
        let values = values(&message.payload);
        if !arrived.contains(&values[0]) {
            arrived.extend(values);
        } else {
            assert!(message.dup, "a repetition is marked: {message:?}");
        }
    }
    assert_eq!(arrived, (0..2_345).map(|i| f64::from(i) + 0.5).collect::<Vec<_>>());
}

#[tokio::test]
async fn at_a_speed_every_reading_is_a_message_of_its_own() {
    let broker = Broker::start(|_| Answer::Ack);
    let file = file_of(10);
    let config = Config { speed: Speed::Times(10.0), ..config(&broker, file.path()) };
    let replayed = replay(&config, |_| {}).await.unwrap();
    assert_eq!((replayed.readings, replayed.messages, replayed.acked), (10, 10, 10));
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let broker = Broker::start(|_| Answer::Hang);
    let file = file_of(1);
    let error = replay(&config(&broker, file.path()), |_| {}).await.unwrap_err();
    assert!(matches!(error, ReplayError::Publish(PublishError::Fruitless { .. })), "{error}");
}
