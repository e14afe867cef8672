use proptest::prelude::*;

use super::*;

fn id(id: u16) -> Qos {
    Qos::AtLeastOnce(NonZeroU16::new(id).unwrap())
}

#[test]
fn a_connect_carries_the_token_as_user_name() {
    let connect = Connect {
        version: Version::V311,
        client_id: "c",
        user_name: Some("tok"),
        clean: true,
        keep_alive_seconds: 60,
    };
    let mut out = Vec::new();
    encode_connect(&connect, &mut out).unwrap();
    assert_eq!(out, b"\x10\x12\0\x04MQTT\x04\x82\0\x3c\0\x01c\0\x03tok");
}

#[test]
fn a_v5_connect_that_comes_back_asks_for_a_lasting_session() {
    let connect = Connect {
        version: Version::V5,
        client_id: "c",
        user_name: None,
        clean: false,
        keep_alive_seconds: 0,
    };
    let mut out = Vec::new();
    encode_connect(&connect, &mut out).unwrap();
    assert_eq!(out, b"\x10\x13\0\x04MQTT\x05\0\0\0\x05\x11\0\0\x0e\x10\0\x01c");
}

#[test]
fn a_publish_ends_with_its_payload() {
    let mut out = Vec::new();
    encode_publish(Version::V311, "a/b", id(258), b"hi", &mut out).unwrap();
    assert_eq!(out, b"\x32\x09\0\x03a/b\x01\x02hi");
    out.clear();
    encode_publish(Version::V5, "a/b", Qos::AtMostOnce, b"hi", &mut out).unwrap();
    assert_eq!(out, b"\x30\x08\0\x03a/b\0hi");
    out.clear();
    encode_publish(Version::V311, "t", id(1), &[7; 300], &mut out).unwrap();
    assert_eq!(&out[..3], [0x32, 0xb1, 0x02]);
    assert_eq!(out.len(), 3 + 0x131);
}

#[test]
fn acks_are_read_one_after_the_other() {
    let stream = b"\x20\x02\0\0\x40\x02\0\x01\x40\x03\0\x02\x97\x40\x04\0\x03\x10\0\xd0\0\xe0\x01\x8b";
    let mut rest = &stream[..];
    let mut seen = Vec::new();
    while let Some((incoming, length)) = parse(rest).unwrap() {
        seen.push(incoming);
        rest = &rest[length..];
    }
    let ack = |packet_id, code| Incoming::PubAck { packet_id, code };
    assert_eq!(
        seen,
        [
            Incoming::ConnAck { code: 0 },
            ack(1, 0),
            ack(2, 0x97),
            ack(3, 0x10),
            Incoming::PingResp,
            Incoming::Disconnect { code: 0x8b },
        ]
    );
    assert!(rest.is_empty());
}

#[test]
fn a_broken_peer_is_named_not_waited_for() {
    assert_eq!(parse(b"\x30\x02"), Err(WireError::Unexpected { first: 0x30 }));
    assert_eq!(parse(b"\x40\xff\xff\xff\xff"), Err(WireError::Malformed { first: 0x40 }));
    assert_eq!(parse(b"\x40\x01\x00"), Err(WireError::Malformed { first: 0x40 }));
    assert_eq!(parse(b"\x20\xff\xff\x7f"), Err(WireError::PacketTooLong { bytes: 2_097_151 }));
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        if let Ok(Some((_, length))) = parse(&bytes) {
            prop_assert!(length >= 2 && length <= bytes.len());
        }
    }
}

#[test]
fn a_subscriber_asks_for_one_filter_and_takes_what_is_published() {
    let mut out = Vec::new();
    encode_subscribe(Version::V311, "a/+", &mut out).unwrap();
    assert_eq!(out, b"\x82\x08\0\x01\0\x03a/+\0");
    out.clear();
    encode_subscribe(Version::V5, "a/+", &mut out).unwrap();
    assert_eq!(out, b"\x82\x09\0\x01\0\0\x03a/+\0");
    assert_eq!(parse(b"\x90\x03\0\x01\0").unwrap(), Some((Incoming::SubAck { code: 0 }, 5)));
    assert_eq!(parse(b"\x90\x04\0\x01\0\x97").unwrap(), Some((Incoming::SubAck { code: 0x97 }, 6)));

    out.clear();
    encode_publish(Version::V311, "a/b", Qos::AtMostOnce, b"hi", &mut out).unwrap();
    for cut in 0..out.len() {
        assert_eq!(delivery(&out[..cut]).unwrap(), None);
    }
    let length = out.len();
    out.extend(b"\x30\x09");
    assert_eq!(delivery(&out).unwrap(), Some(length));
    assert!(delivery(b"\x32\x09").is_err(), "QoS 1 was not asked for");
    assert!(delivery(b"\x40\x02").is_err());
}
