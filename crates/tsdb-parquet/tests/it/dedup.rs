//! The real data set: 22,695 readings over 80 days, with twelve times that occur twice.

use dunlin_model::{Timestamp, ValueRef};
use dunlin_tsdb::{
    Outcome, Tsdb,
    conformance::{record, write},
};
use time::{PrimitiveDateTime, macros::format_description};

use crate::lab::{ParquetLab, number};

const ROWS: usize = 22_695;

fn readings() -> Vec<(Timestamp, f64)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/machine_temperature.csv");
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");
    let mut file = csv::Reader::from_path(path).expect("the data set");
    let row = |row: (String, f64)| {
        let time = PrimitiveDateTime::parse(&row.0, format).expect("a time").assume_utc();
        (Timestamp::from_micros(time.unix_timestamp() * 1_000_000), row.1)
    };
    file.deserialize().map(|line| row(line.expect("a row"))).collect()
}

fn replay(store: &dyn Tsdb, readings: &[(Timestamp, f64)]) -> (usize, usize) {
    let mut stored = 0;
    for batch in readings.chunks(1_000) {
        let values: Vec<_> =
            batch.iter().map(|(_, value)| [("temperature", ValueRef::F64(*value))]).collect();
        let records: Vec<_> =
            batch.iter().zip(&values).map(|((time, _), value)| record("machine", *time, value)).collect();
        stored += write(store, &records).iter().filter(|outcome| **outcome == Outcome::Stored).count();
    }
    (stored, readings.len() - stored)
}

#[tokio::test]
async fn a_second_replay_of_the_real_data_stores_nothing() {
    let lab = ParquetLab::default();
    let readings = readings();
    assert_eq!(readings.len(), ROWS);
    let count = "SELECT count(*) FROM default";
    let store = lab.store();
    assert_eq!(replay(&*store, &readings), (ROWS, 0));
    assert_eq!(replay(&*store, &readings), (0, ROWS), "from memory");
    assert_eq!(number(&store, count).await, ROWS as i64);
    store.flush().await.expect("flush");
    assert_eq!(replay(&*store, &readings), (0, ROWS), "from files");
    store.flush().await.expect("flush");
    drop(store);

    let store = lab.store();
    assert_eq!(replay(&*store, &readings), (0, ROWS), "after a restart");
    assert_eq!(number(&store, count).await, ROWS as i64);
    store.compact_all().expect("compact");
    assert!(store.disk_usage().0 <= 4, "80 thin old days share their files: {:?}", store.disk_usage());
    assert_eq!(number(&store, count).await, ROWS as i64);
    drop(store);

    let store = lab.store();
    let backwards: Vec<_> = readings.iter().rev().copied().collect();
    assert_eq!(replay(&*store, &backwards), (0, ROWS), "after compaction, backwards");
    assert_eq!(
        number(&store, "SELECT count(*) FROM readings WHERE metric = 'temperature'").await,
        ROWS as i64
    );
}
