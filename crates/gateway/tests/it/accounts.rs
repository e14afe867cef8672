use std::collections::BTreeMap;

use dunlin_model::{RejectReason, Timestamp};

use crate::lab::{Gate, Lab, NOW_MILLIS, publish};

#[tokio::test(flavor = "multi_thread")]
async fn every_record_is_accounted_for() {
    let lab = Lab::start().await;
    let mut client = lab.connected(5, "probe").await;
    let mut all = publish(5, 0, 0, "v1/telemetry", b"{\"a\":1}");
    all.extend(publish(5, 1, 1, "v1/telemetry", b"[{\"a\":1},{\"a\":2},{\"a\":3}]"));
    all.extend(publish(5, 1, 2, "v1/telemetry", b"no"));
    all.extend(publish(5, 1, 3, "v1/nowhere", b"{\"a\":1}"));
    all.extend(publish(5, 1, 4, "v1/events", b"{}"));
    all.extend(publish(5, 1, 5, "v1/commands/c1/reply", b"{\"done\":true}"));
    client.send(&all).await;
    for id in 1..=5 {
        assert_eq!(client.packet().await.unwrap()[3], id);
    }
    let account = lab.account();
    assert_eq!((account.received, account.accepted, account.events, account.replies), (8, 4, 1, 1));
    assert_eq!((account.failed, account.in_flight), (0, 0));
    assert_eq!(
        account.rejected,
        BTreeMap::from([(RejectReason::PayloadFormat, 1), (RejectReason::UnknownTopic, 1)])
    );

    lab.gate(Gate::Closed);
    let before = lab.arrived();
    client.send(&publish(5, 1, 6, "v1/telemetry", b"{\"a\":1}")).await;
    lab.arrivals(before + 1).await;
    assert_eq!(lab.account().in_flight, 1);
    assert_eq!(lab.gateway.view().oldest_under_way(), Timestamp::from_millis(NOW_MILLIS));
    lab.gate(Gate::Open);
    assert_eq!(client.packet().await.unwrap(), [0x40, 2, 0, 6]);
    assert_eq!(lab.account().in_flight, 0);

    assert_eq!(lab.gateway.view().oldest_under_way(), None);

    let mut metrics = String::new();
    prometheus_client::encoding::text::encode(&mut metrics, &lab.registry).unwrap();
    assert!(
        metrics.contains(r#"dunlin_gateway_records_total{tenant="default",outcome="accepted",reason=""} 5"#),
        "{metrics}"
    );
}
