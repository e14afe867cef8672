//! What a client may do depends on its credential, and not on how it asks.

use dunlin_gateway::{AdmissionConfig, Config};

use crate::lab::{Lab, connack_code, connect, publish};

const READING: &[u8] = br#"{"a":1}"#;

/// How a question is put.
#[derive(Debug, Clone, Copy)]
enum Protocol {
    Mqtt(u8),
    Http,
}

const PROTOCOLS: [Protocol; 3] = [Protocol::Mqtt(4), Protocol::Mqtt(5), Protocol::Http];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Taken,
    /// It may not, whatever it tries.
    Refused,
    /// Nobody can tell now.
    ComeBack,
}

impl Protocol {
    /// A device sends a reading for itself, or for one of its children.
    async fn asks(self, lab: &Lab, token: &str, child: Option<&str>) -> Answer {
        let topic = child.map_or("v1/telemetry".to_owned(), |child| format!("v1/d/{child}/telemetry"));
        let Self::Mqtt(version) = self else {
            let head = format!("POST /{topic} HTTP/1.1\nauthorization: Bearer {token}");
            return match lab.http(&head, READING).await.0 {
                200 => Answer::Taken,
                401 | 403 => Answer::Refused,
                503 => Answer::ComeBack,
                status => panic!("{self:?} {token:?} {child:?}: {status}"),
            };
        };
        let mut client = lab.client().await;
        client.send(&connect(version, "", token)).await;
        match connack_code(&client.packet().await.unwrap()) {
            0 => {}
            5 | 0x86 => return Answer::Refused,
            3 | 0x88 => return Answer::ComeBack,
            code => panic!("{self:?} {token:?} {child:?}: {code:#x}"),
        }
        client.send(&publish(version, 1, 1, &topic, READING)).await;
        match client.packet().await {
            Some(packet) if packet == [0x40, 2, 0, 1] => Answer::Taken,
            Some(packet) if packet[0] == 0x40 && packet[4] == 0x87 => Answer::Refused,
            None if version == 4 => Answer::Refused, // Closing is how MQTT 3.1.1 says no.
            told => panic!("{self:?} {token:?} {child:?}: {told:02x?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_device_may_is_the_same_over_every_protocol() {
    let lab = Lab::start().await;
    let mut taken = 0;
    for (token, child, expected) in [
        ("pump", None, Answer::Taken),
        ("pump@other", None, Answer::Taken),
        ("unknown", None, Answer::Refused),
        ("off", None, Answer::Refused),
        ("down", None, Answer::ComeBack),
        ("pump", Some("child"), Answer::Refused),
        ("gw-1", Some("child"), Answer::Taken),
        ("gw-1", Some("off"), Answer::Refused),
        ("gw-1", Some("stranger"), Answer::Refused),
    ] {
        for protocol in PROTOCOLS {
            assert_eq!(protocol.asks(&lab, token, child).await, expected, "{protocol:?} {token} {child:?}");
            taken += usize::from(expected == Answer::Taken);
        }
    }
    assert_eq!(lab.telemetry().await.len(), taken);
}

/// Names that a pattern or a query would take for more than one.
#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_itself_and_no_pattern() {
    let lab = Lab::start().await;
    assert_eq!(Protocol::Http.asks(&lab, "pump", None).await, Answer::Taken);
    for token in
        ["+", "#", "%", "pump/#", "pum%", "pump'--", "pump\" OR \"1\"=\"1", "../pump", "pump/../pump"]
    {
        for protocol in PROTOCOLS {
            assert_eq!(protocol.asks(&lab, token, None).await, Answer::Refused, "{protocol:?} {token:?}");
        }
    }
    assert_eq!(lab.telemetry().await.len(), 1);
}

/// Whoever is not known to be let in is told to come back: over every protocol, whatever was known before that time.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_comes_in_while_nobody_can_tell() {
    let admission = AdmissionConfig { valid_seconds: 0, ..<_>::default() };
    let lab = Lab::with(Config { admission, ..<_>::default() }).await;
    for protocol in PROTOCOLS {
        assert_eq!(protocol.asks(&lab, "pump", None).await, Answer::Taken);
    }
    lab.directory.fail(true);
    for protocol in PROTOCOLS {
        for (token, child) in [("pump", None), ("unseen", None), ("gw-1", Some("child"))] {
            assert_eq!(protocol.asks(&lab, token, child).await, Answer::ComeBack, "{protocol:?} {token}");
        }
    }
    assert_eq!(lab.telemetry().await.len(), PROTOCOLS.len());
    lab.directory.fail(false);
    for protocol in PROTOCOLS {
        assert_eq!(protocol.asks(&lab, "pump", None).await, Answer::Taken);
    }
}

/// Who was let in a moment ago comes in again, and nobody else, whatever it speaks for.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_known_comes_in_while_nobody_can_tell() {
    let lab = Lab::start().await;
    assert_eq!(Protocol::Http.asks(&lab, "pump", None).await, Answer::Taken);
    lab.directory.fail(true);
    for protocol in PROTOCOLS {
        assert_eq!(protocol.asks(&lab, "pump", None).await, Answer::Taken, "{protocol:?}");
        for (token, child) in [("unseen", None), ("gw-1", Some("child"))] {
            assert_eq!(protocol.asks(&lab, token, child).await, Answer::ComeBack, "{protocol:?} {token}");
        }
    }
}

/// A connection that is open is asked about anew when it speaks for somebody it has not spoken for.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_speaks_for_a_child_while_nobody_can_tell() {
    let lab = Lab::start().await;
    for version in [4, 5] {
        let mut gateway = lab.connected(version, "gw-1").await;
        gateway.send(&publish(version, 1, 1, "v1/d/known/telemetry", READING)).await;
        assert_eq!(gateway.packet().await.unwrap(), [0x40, 2, 0, 1]);
        lab.directory.fail(true);
        gateway.send(&publish(version, 1, 2, "v1/d/new/telemetry", READING)).await;
        match version {
            4 => assert!(gateway.is_closed().await),
            _ => assert_eq!(gateway.packet().await.unwrap()[2], 0x89),
        }
        lab.directory.fail(false);
    }
    assert_eq!(lab.telemetry().await.len(), 2);
}
