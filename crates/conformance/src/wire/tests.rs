use super::*;

#[track_caller]
fn read_hex(version: Version, hex: &str) -> Result<Packet, Malformed> {
    let bytes: Vec<u8> = hex.split(' ').map(|byte| u8::from_str_radix(byte, 16).expect("hex")).collect();
    assert_eq!(frame_length(&bytes), Ok(Some(bytes.len())));
    read(version, &bytes)
}

#[test]
fn connect_is_written_as_the_specification_shows_it() {
    let mut connect = Connect::new(Version::V4, "a");
    connect.user = Some(b"u".to_vec());
    connect.will = Some(Will { topic: b"w".to_vec(), payload: b"x".to_vec(), qos: 1, ..Will::default() });
    assert_eq!(
        hex(&connect.bytes()),
        "10 16 00 04 4d 51 54 54 04 8e 00 3c 00 01 61 00 01 77 00 01 78 00 01 75"
    );
    let five = Connect::new(Version::V5, "a").with(property::SESSION_EXPIRY, Value::Long(10));
    assert_eq!(hex(&five.bytes()), "10 13 00 04 4d 51 54 54 05 02 00 3c 05 11 00 00 00 0a 00 01 61");
}

#[test]
fn publish_round_trips() {
    for version in [Version::V4, Version::V5] {
        let mut publish = Publish::new("a/b", vec![7; 200], 2).id(0x0102).dup().retained();
        if version == Version::V5 {
            publish = publish
                .with(property::USER_PROPERTY, pair("k", "v"))
                .with(property::SUBSCRIPTION_ID, Value::Variable(268_435_455))
                .with(property::CORRELATION_DATA, Value::Bytes(vec![0, 255]))
                .with(property::MESSAGE_EXPIRY, Value::Long(9));
        }
        let bytes = publish.bytes(version);
        assert_eq!(frame_length(&bytes), Ok(Some(bytes.len())));
        assert_eq!(read(version, &bytes), Ok(Packet::Publish(publish)));
    }
}

#[test]
fn variable_byte_integers_have_their_shortest_form() {
    for (value, bytes) in [
        (0, "00"),
        (127, "7f"),
        (128, "80 01"),
        (16_383, "ff 7f"),
        (16_384, "80 80 01"),
        (268_435_455, "ff ff ff 7f"),
    ] {
        let mut out = Vec::new();
        put_variable(&mut out, value);
        assert_eq!(hex(&out), bytes);
    }
    assert_eq!(frame_length(&[0xd0, 0x80, 0x00]), Err(Malformed::LengthNotShortest));
    assert_eq!(frame_length(&[0xd0, 0x80, 0x80, 0x80, 0x80]), Err(Malformed::LengthTooLong));
    assert_eq!(frame_length(&[0xd0, 0x80]), Ok(None));
}

#[test]
fn reader_refuses_what_no_server_may_send() {
    use Version::{V4, V5};
    assert_eq!(read_hex(V4, "21 02 00 00"), Err(Malformed::Flags("CONNACK", 1)));
    assert_eq!(read_hex(V4, "20 02 02 00"), Err(Malformed::ConnAckFlags(2)));
    assert_eq!(read_hex(V4, "20 02 00 06"), Err(Malformed::Reason("CONNACK", 6)));
    assert_eq!(read_hex(V4, "40 02 00 00"), Err(Malformed::IdentifierZero));
    assert_eq!(read_hex(V4, "90 03 00 01 03"), Err(Malformed::Reason("SUBACK", 3)));
    assert_eq!(read_hex(V4, "e0 00"), Err(Malformed::NotForClients("DISCONNECT")));
    assert_eq!(read_hex(V4, "c0 00"), Err(Malformed::NotForClients("PINGREQ")));
    assert_eq!(read_hex(V4, "d0 01 00"), Err(Malformed::Trailing(1, "PINGRESP")));
    assert_eq!(read_hex(V4, "36 05 00 01 61 00 01"), Err(Malformed::Qos));
    assert_eq!(read_hex(V4, "38 03 00 01 61"), Err(Malformed::Qos));
    assert_eq!(read_hex(V4, "30 03 00 01 23"), Err(Malformed::Topic));
    assert_eq!(read_hex(V4, "30 03 00 01 ff"), Err(Malformed::Text));
    assert_eq!(read_hex(V4, "30 03 00 02 61"), Err(Malformed::Truncated("text")));
    assert_eq!(read_hex(V5, "30 05 00 01 61 01 00"), Err(Malformed::Property(0)));
    assert_eq!(read_hex(V5, "30 08 00 01 61 04 01 00 01 00"), Err(Malformed::PropertyTwice(1)));
    assert_eq!(read_hex(V5, "e0 07 00 05 11 00 00 00 01"), Err(Malformed::Property(0x11)));
}

#[test]
fn short_acknowledgements_mean_success() {
    let ack = |kind, code| Packet::Ack { kind, id: 1, code, properties: Properties::default() };
    assert_eq!(read_hex(Version::V5, "40 02 00 01"), Ok(ack(kind::PUBACK, 0)));
    assert_eq!(read_hex(Version::V5, "40 03 00 01 10"), Ok(ack(kind::PUBACK, 0x10)));
    assert_eq!(read_hex(Version::V5, "62 04 00 01 92 00"), Ok(ack(kind::PUBREL, 0x92)));
    assert_eq!(read_hex(Version::V4, "70 02 00 01"), Ok(ack(kind::PUBCOMP, 0)));
}
