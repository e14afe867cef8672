use dunlin_gateway::Revoked;
use dunlin_model::TenantId;

use crate::lab::{Client, Lab, connack_code, connect, publish};

const READING: &[u8] = br#"{"temperature":21.5}"#;

impl Lab {
    fn revoke(&self, device: &str, what: Revoked) {
        self.directory.revoke(device);
        self.gateway.access().revoke_here(&TenantId::default_tenant(), &device.parse().unwrap(), what);
    }

    async fn connected_as(&self, version: u8, client_id: &str, token: &str) -> Client {
        let mut client = self.client().await;
        client.send(&connect(version, client_id, token)).await;
        assert_eq!(connack_code(&client.packet().await.unwrap()), 0);
        client
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_access_any_more_is_not_connected_any_more() {
    for (what, code) in [(Revoked::Token, 0x87), (Revoked::Device, 0x98)] {
        let lab = Lab::start().await;
        let mut told = Vec::new();
        let mut closed = Vec::new();
        for n in 0..4 {
            told.push(lab.connected_as(5, &format!("five-{n}"), "pump").await);
            closed.push(lab.connected_as(4, &format!("four-{n}"), "pump").await);
        }
        let mut others = Vec::new();
        for token in ["pum", "pump-2", "pump@other", "pum@other"] {
            others.push(lab.connected_as(5, "five-0", token).await);
        }
        lab.revoke("pump", what);
        for client in &mut told {
            let goodbye = client.packet().await.unwrap();
            assert_eq!((goodbye[0], goodbye[2]), (0xE0, code));
            assert!(client.is_closed().await);
        }
        for client in &mut closed {
            assert!(client.is_closed().await);
        }
        for client in &mut others {
            assert!(client.pings().await);
        }
        let mut again = lab.client().await;
        again.send(&connect(5, "five-0", "pump")).await;
        assert_eq!(connack_code(&again.packet().await.unwrap()), 0x86);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn access_that_is_taken_back_during_a_handshake_lets_nobody_in() {
    let lab = Lab::start().await;
    lab.directory.hold();
    let mut thief = lab.client().await;
    thief.send(&connect(5, "thief", "pump")).await;
    let mut other = lab.client().await;
    other.send(&connect(5, "other", "other")).await;
    lab.directory.holds(2).await; // Both are as good as in.
    lab.revoke("pump", Revoked::Token);
    lab.directory.let_go();
    assert_eq!(connack_code(&thief.packet().await.unwrap()), 0x86);
    assert_eq!(connack_code(&other.packet().await.unwrap()), 0);
    assert!(other.pings().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_for_a_child_that_was_disabled() {
    let lab = Lab::start().await;
    let mut gateway = lab.connected(5, "gw-1").await;
    let mut publish_for = async |id: u8, child: &str| {
        let topic = format!("v1/d/{child}/telemetry");
        gateway.send(&publish(5, 1, id.into(), &topic, READING)).await;
        gateway.packet().await.unwrap()
    };
    for id in 1..=3 {
        assert_eq!(publish_for(id, "meter").await, [0x40, 2, 0, id]);
    }
    assert_eq!(lab.directory.asked(), 1, "the child is remembered");
    lab.revoke("meter", Revoked::Device);
    assert_eq!(publish_for(4, "meter").await[4], 0x87);
    assert_eq!(publish_for(5, "meter-2").await, [0x40, 2, 0, 5], "and the gateway itself stays");
    assert_eq!(lab.telemetry().await.len(), 4);
}
