use dunlin_journal::AppendError;

use super::*;

fn full() -> Gate {
    Gate::Failing(AppendError::Full { reason: "disk".into() })
}

fn fenced() -> Gate {
    Gate::Failing(AppendError::Fenced { operation: "fdatasync", reason: "EIO".into() })
}

/// The client is not told to forget a message (PUBREL) that the log would bring back.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_pubrec_is_not_in_the_log_is_sent_again() {
    for fault in [full(), fenced()] {
        let lab = Lab::start().await;
        let (mut reader, _) = connected(&lab, 4, "reader").await;
        subscribed(&mut reader, 4, "news", 2).await;
        let mut writer = lab.connected(4, "writer").await;
        writer.send(&publish(4, 2, 7, "news", b"once")).await;
        let (id, _) = received(&mut reader, 4).await;
        lab.gate(fault);
        reader.send(&answer(PUBREC, id)).await;
        assert!(reader.is_closed().await, "PUBREL would be a promise");

        lab.gate(Gate::Open);
        let (mut reader, present) = connected(&lab, 4, "reader").await;
        assert!(present);
        assert_eq!(received(&mut reader, 4).await, (id, "once".to_owned()));
        reader.send(&answer(PUBREC, id)).await;
        assert_eq!(reader.packet().await.unwrap(), answer(PUBREL, id));

        // The client has forgotten the packet id: the message must not come back under it.
        let after = lab.crashed().await;
        let (mut reader, _) = connected(&after, 4, "reader").await;
        assert_eq!(reader.packet().await.unwrap(), answer(PUBREL, id));
        reader.send(&answer(PUBCOMP, id)).await;
        assert!(reader.pings().await, "and nothing else");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_journal_says_so_and_takes_nothing() {
    for version in [4, 5] {
        let lab = Lab::start().await;
        let (mut reader, _) = connected(&lab, version, "reader").await;
        subscribed(&mut reader, version, "news", 2).await;
        let (mut writer, _) = connected(&lab, version, "writer").await;
        lab.gate(full());

        reader.send(&subscribe(version, 2, "more", 1)).await;
        let ack = reader.packet().await.expect("SUBACK");
        let refused = if version == 5 { 0x97 } else { 0x80 };
        assert_eq!((ack[0], ack.last()), (0x90, Some(&refused)), "{ack:02x?}");
        let mut other = lab.client().await;
        other.send(&lasting(version, "other", None)).await;
        let refused = if version == 5 { 0x97 } else { 3 };
        assert_eq!(connack_code(&other.packet().await.unwrap()), refused);
        for (qos, kind) in [(1, PUBACK), (2, PUBREC)] {
            writer.send(&publish(version, qos, 7, "news", b"lost")).await;
            if version == 4 {
                assert!(writer.is_closed().await, "3.1.1 has no word for it");
                break;
            }
            let ack = writer.packet().await.expect("a refusal");
            assert_eq!((ack[0], ack[4]), (kind, 0x97), "{ack:02x?}");
        }

        lab.gate(Gate::Open);
        if version == 4 {
            let (back, present) = connected(&lab, version, "writer").await;
            assert!(present);
            writer = back;
        }
        // The packet id is free, and nothing of the refused ones is anywhere.
        writer.send(&publish(version, 2, 7, "news", b"taken")).await;
        assert_eq!(writer.packet().await.unwrap(), answer(PUBREC, 7));
        writer.send(&publish(version, 1, 8, "more", b"unwanted")).await;
        assert_eq!(writer.packet().await.unwrap(), answer(PUBACK, 8));
        assert_eq!(received(&mut reader, version).await.1, "taken");
        assert!(reader.pings().await, "and nothing else");
        let after = lab.crashed().await;
        let (mut reader, _) = connected(&after, version, "reader").await;
        assert_eq!(received(&mut reader, version).await.1, "taken");
        assert!(reader.pings().await, "and nothing else");
        let (_, present) = connected(&after, version, "other").await;
        assert!(!present);
        after.never_panicked();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_journal_ends_the_connection_and_a_repetition_is_taken_once() {
    for version in [4, 5] {
        let lab = Lab::start().await;
        let (mut reader, _) = connected(&lab, version, "reader").await;
        subscribed(&mut reader, version, "news", 2).await;
        let (mut writer, _) = connected(&lab, version, "writer").await;
        let packets = [
            publish(version, 1, 7, "news", b"1"),
            publish(version, 2, 7, "news", b"2"),
            subscribe(version, 7, "more", 1),
        ];
        for packet in packets {
            lab.gate(fenced());
            writer.send(&packet).await;
            if version == 5 {
                let goodbye = writer.packet().await.expect("DISCONNECT");
                assert_eq!((goodbye[0], goodbye[2]), (0xE0, 0x89), "{goodbye:02x?}");
            }
            assert!(writer.is_closed().await);
            lab.gate(Gate::Open);
            let (back, present) = connected(&lab, version, "writer").await;
            assert!(present);
            writer = back;
        }
        // A release that is not in the log is not confirmed, and can be said again.
        writer.send(&publish(version, 2, 9, "news", b"once")).await;
        assert_eq!(writer.packet().await.unwrap(), answer(PUBREC, 9));
        lab.gate(fenced());
        writer.send(&answer(PUBREL, 9)).await;
        assert!(writer.ends_without(PUBCOMP).await);
        lab.gate(Gate::Open);
        let (mut writer, _) = connected(&lab, version, "writer").await;
        let mut again = publish(version, 2, 9, "news", b"once");
        again[0] |= DUP;
        writer.send(&again).await;
        assert_eq!(writer.packet().await.unwrap(), answer(PUBREC, 9));
        writer.send(&answer(PUBREL, 9)).await;
        assert_eq!(writer.packet().await.unwrap(), answer(PUBCOMP, 9));
        assert_eq!(received(&mut reader, version).await.1, "once");
        assert!(reader.pings().await, "and nothing else");
        lab.never_panicked();
    }
}

impl Client {
    /// Whether the server closes, and says no packet of that kind before.
    async fn ends_without(&mut self, kind: u8) -> bool {
        while let Some(packet) = self.packet().await {
            if packet[0] == kind {
                return false;
            }
        }
        true
    }
}

/// The journal was full when the client left: it is not known that it left, and its session goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_goodbye_that_is_not_in_the_log_loses_nothing() {
    let lab = Lab::start().await;
    let (mut reader, _) = connected(&lab, 4, "reader").await;
    subscribed(&mut reader, 4, "news", 1).await;
    lab.gate(full());
    reader.send(&[0xE0, 0]).await;
    assert!(reader.is_closed().await);
    lab.gate(Gate::Open);
    let mut writer = lab.connected(4, "writer").await;
    writer.send(&publish(4, 1, 1, "news", b"kept")).await;
    assert_eq!(writer.packet().await.unwrap(), answer(PUBACK, 1));
    let is_kept = async |lab: &Lab| {
        let (mut reader, present) = connected(lab, 4, "reader").await;
        assert!(present);
        assert_eq!(received(&mut reader, 4).await.1, "kept");
    };
    is_kept(&lab).await;
    is_kept(&lab.crashed().await).await;
}
