use std::time::Duration;

use dunlin_gateway::Config;

use crate::lab::{Client, Gate, Lab, publish};

const RECORD_BYTES: usize = 1_000;
/// What comes with a message of that many bytes, at the most.
const OVERHEAD_BYTES: usize = 200;

fn messages(qos: u8, count: u16) -> Vec<u8> {
    let message = format!("{{\"t\":\"{}\"}}", "x".repeat(RECORD_BYTES));
    (1..=count).flat_map(|id| publish(5, qos, id, "v1/telemetry", message.as_bytes())).collect()
}

fn config(inflight_bytes_max: usize, connection_inflight_bytes_max: usize) -> Config {
    let workers = 1;
    let message_bytes_max = 2 * RECORD_BYTES;
    Config {
        workers,
        inflight_bytes_max,
        connection_inflight_bytes_max,
        message_bytes_max,
        ..Config::default()
    }
}

/// So many turns of the worker that all it would read of the others it has read.
async fn turns(client: &mut Client) {
    for _ in 0..200 {
        assert!(client.pings().await);
    }
}

fn within(bytes: usize, max: usize) -> bool {
    (max..max + RECORD_BYTES + OVERHEAD_BYTES).contains(&bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_does_not_take_its_workers_whole_room() {
    for qos in [0, 1] {
        let lab = Lab::with(config(100_000, 5_000)).await;
        let mut hog = lab.connected(5, "hog").await;
        let mut other = lab.connected(5, "other").await;
        turns(&mut other).await;
        lab.gate(Gate::Closed);
        hog.send(&messages(qos, 60)).await;
        hog.send(&publish(5, 1, 61, "v1/events", b"{}")).await;
        turns(&mut other).await;
        assert!(within(lab.inflight_bytes(), 5_000), "{} bytes are under way", lab.inflight_bytes());
        other.send(&publish(5, 1, 1, "v1/telemetry", b"{\"a\":1}")).await;
        assert!(other.pings().await, "is read");

        lab.gate(Gate::Open);
        assert_eq!(other.packet().await.unwrap(), [0x40, 2, 0, 1]);
        let first = if qos == 0 { 61 } else { 1 };
        for id in first..=61 {
            assert_eq!(hog.packet().await.unwrap(), [0x40, 2, 0, id], "room comes back");
        }
        assert_eq!(lab.telemetry().await.len(), 61);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenant_takes_half_of_a_worker_while_others_are_there() {
    let lab = Lab::with(config(40_000, 10_000)).await;
    let mut other = lab.connected(5, "other@other").await;
    let mut hogs = Vec::new();
    for n in 0..8 {
        hogs.push(lab.connected(5, &format!("hog-{n}")).await);
    }
    turns(&mut other).await;
    lab.gate(Gate::Closed);
    for hog in &mut hogs {
        hog.send(&messages(1, 20)).await;
    }
    turns(&mut other).await;
    assert!(within(lab.inflight_bytes(), 20_000), "{} bytes are under way", lab.inflight_bytes());
    other.send(&publish(5, 1, 1, "v1/telemetry", b"{\"a\":1}")).await;
    assert!(other.pings().await, "is read");

    other.send(&[0xE0, 0]).await;
    assert!(other.is_closed().await);
    while lab.inflight_bytes() < 40_000 {
        tokio::time::sleep(Duration::from_millis(5)).await; // Alone, the tenant may have it all.
    }
    lab.gate(Gate::Open);
    for hog in &mut hogs {
        for id in 1..=20 {
            assert_eq!(hog.packet().await.unwrap(), [0x40, 2, 0, id], "room comes back");
        }
    }
}
