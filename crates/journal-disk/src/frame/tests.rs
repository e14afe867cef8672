use proptest::prelude::*;

use super::*;

fn any_frame() -> impl Strategy<Value = Frame> {
    (0..Topic::ALL.len(), any::<(u16, u8, u64, u32, i64, u64, u32, u32)>()).prop_map(|(topic, f)| Frame {
        at: Partition::new(Topic::ALL[topic], f.0),
        schema_version: f.1,
        first: Offset(f.2),
        records: f.3,
        appended_at: Timestamp::from_micros(f.4),
        durable_up_to: f.5,
        payload_bytes: f.6,
        payload_crc: f.7,
    })
}

proptest! {
    #[test]
    fn a_frame_round_trips(frame in any_frame(), stamp: u64) {
        prop_assert_eq!(Frame::decode(&frame.encode(stamp), stamp), Ok(frame));
    }

    #[test]
    fn a_frame_with_a_flipped_bit_is_none(frame in any_frame(), stamp: u64, bit in 0..FRAME_BYTES * 8) {
        let mut bytes = frame.encode(stamp);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Frame::decode(&bytes, stamp).is_err());
    }

    #[test]
    fn a_segment_header_round_trips(sequence in 1_u64.., end: u64, created: i64, base: [u64; 9], stamp: u64) {
        let header = SegmentHeader {
            previous: Some(Previous { sequence, end }),
            created_at: Timestamp::from_micros(created),
            base: base.into(),
        };
        prop_assert_eq!(SegmentHeader::decode(&header.encode(stamp), stamp), Ok(header));
    }
}

#[test]
fn a_frame_of_another_segment_is_refused() {
    let bytes = Frame::mark(4096).encode(stamp(7, 1));
    assert!(Frame::decode(&bytes, stamp(7, 1)).is_ok());
    assert!(Frame::decode(&bytes, stamp(7, 2)).is_err());
    assert!(Frame::decode(&bytes, stamp(8, 1)).is_err());
}

#[test]
fn the_stored_bytes_stay_what_they_are() {
    // Journals on disk depend on these.
    let frame = Frame {
        at: Partition::new(Topic::Events, 2),
        schema_version: 1,
        first: Offset(5),
        records: 3,
        appended_at: Timestamp::from_micros(6),
        durable_up_to: 4096,
        payload_bytes: 9,
        payload_crc: crc32c(b"123456789"),
    };
    assert_eq!(frame.payload_crc, 0xE306_9283);
    let bytes = frame.encode(0x0102_0304_0506_0708);
    assert_eq!(
        bytes[8..],
        [
            0x83, 0x92, 0x06, 0xE3, 9, 0, 0, 0, 1, 1, 2, 0, 3, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0,
            0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1
        ]
    );
    assert_eq!(stamp(1, 2), (3_u64.wrapping_mul(0x9E37_79B9_7F4A_7C15)).rotate_left(29) ^ 1);
}
