use dunlin_model::Timestamp;

use super::*;
use crate::{columns::Kind, files::Partition};

fn manifest() -> Manifest {
    let time = Timestamp::from_micros(1_704_067_200_000_000);
    let file = FileEntry {
        id: 6,
        path: "t/default/2024-01-01/6.parquet".into(),
        partition: Partition::day_of(time),
        run: 6,
        level: 0,
        rows: 10,
        bytes: 1_000,
        time_min: time,
        time_max: time,
        device_min: "a".into(),
        device_max: "b".into(),
        written_at: time,
    };
    let column = Column { name: "t".into(), metric: "t".into(), kind: Kind::F64, wide: false };
    Manifest {
        next_file: 7,
        positions: [(JournalPartition::new(Topic::Telemetry, 3), Offset(9))].into(),
        counts: [(
            "t".parse().unwrap(),
            Counts { stored: 1, duplicate: 2, expired: 3, sampled: 5, readings: 4 },
        )]
        .into(),
        tables: [(
            ("t".into(), "default".into()),
            TableEntry { columns: vec![column], other: true, files: vec![file] },
        )]
        .into(),
    }
}

#[test]
fn round_trips() {
    assert_eq!(decode(&encode(&manifest()).unwrap()).unwrap(), manifest());
}

#[test]
fn every_flipped_bit_and_every_cut_is_seen() {
    let bytes = encode(&manifest()).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(decode(&flipped).is_err(), "bit {bit}");
    }
    for end in 0..bytes.len() {
        assert!(decode(&bytes[..end]).is_err(), "{end} bytes");
    }
}
