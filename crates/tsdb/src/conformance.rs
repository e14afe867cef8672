//! What every store must do. A backend's tests call `tests!(its_lab)`.

use std::{sync::Arc, time::Duration};

use dunlin_journal::{Offset, Partition, Topic};
use dunlin_model::{MessageId, Reading, Record, TenantId, TimeSource, Timestamp, Value, ValueRef};
use futures::future::BoxFuture;

use crate::{Aggregate, Counts, Latest, Outcome, Query, QueryError, Series, StoredRecord, Tsdb, Write};

/// A place where a store lives, and survives being dropped.
pub trait Lab: Send + Sync {
    /// Opens the store as the last flush left it. The one opened before has been dropped, without a word.
    fn open(&self, retention: Option<Duration>) -> BoxFuture<'_, Arc<dyn Tsdb>>;
}

/// One `#[tokio::test]` for every function of this module; the argument makes a new lab.
#[macro_export]
macro_rules! conformance_tests {
    ($lab:expr) => {
        $crate::conformance_tests!($lab;
            what_is_written_is_seen_at_once,
            a_replay_is_all_duplicates,
            equal_times_with_other_readings_are_kept,
            server_timed_records_are_no_duplicates,
            known_duplicates_are_only_counted,
            what_stands_for_others_is_weighed,
            a_drop_goes_back_to_the_last_flush,
            duplicates_are_known_after_a_reopen,
            old_records_expire,
            tenants_are_apart,
            latest_is_by_time_and_not_by_arrival,
            steps_aggregate,
            points_are_bounded,
            values_change_their_type,
            an_empty_store_answers,
        );
    };
    ($lab:expr; $($test:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $test() {
                $crate::conformance::$test(&$lab).await;
            }
        )*
    };
}
pub use crate::conformance_tests as tests;

const P0: Partition = Partition { topic: Topic::Telemetry, index: 0 };
const P1: Partition = Partition { topic: Topic::Telemetry, index: 1 };

/// 2024-01-01T00:00:00Z.
const START_SECONDS: i64 = 1_704_067_200;

/// The instant `seconds` after the beginning of 2024; the lab's clock should be near it.
pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros((START_SECONDS + seconds) * 1_000_000)
}

/// A record of tenant `default`, filed under the device's own time.
pub fn record<'a>(device: &'a str, time: Timestamp, readings: &[(&'a str, ValueRef<'a>)]) -> Record<'a> {
    Record {
        tenant: "default",
        device,
        device_type: "default",
        message_id: MessageId::None,
        received_at: time + Duration::from_millis(40),
        device_time: Some(time),
        time,
        time_source: TimeSource::Device,
        readings: readings.iter().map(|(metric, value)| Reading { metric, value: *value }).collect(),
    }
}

/// Writes the records as the next ones of partition 0.
pub fn write(store: &dyn Tsdb, records: &[Record<'_>]) -> Vec<Outcome> {
    let from = store.position(P0).unwrap_or(Offset::ZERO);
    write_at(store, P0, from, records)
}

fn write_at(store: &dyn Tsdb, partition: Partition, from: Offset, records: &[Record<'_>]) -> Vec<Outcome> {
    let records: Vec<_> = records.iter().map(|r| StoredRecord::of(r.clone())).collect();
    let next = from.after(records.len() as u64);
    store.write(Write { partition, records: &records, next }).expect("write")
}

pub fn tenant(name: &str) -> TenantId {
    name.parse().expect("a valid tenant")
}

fn everything() -> Query {
    Query {
        devices: vec![],
        metrics: vec![],
        start: Timestamp::MIN,
        end: Timestamp::MAX,
        step: None,
        points_max: 1_000_000,
    }
}

async fn all(store: &dyn Tsdb) -> Vec<Series> {
    store.query(&tenant("default"), everything()).await.expect("query")
}

fn numbers(series: &Series) -> Vec<(i64, f64)> {
    let point = |(time, value): &(Timestamp, Value)| {
        (time.as_micros() / 1_000_000 - START_SECONDS, value.borrowed().as_number().expect("a number"))
    };
    series.points.iter().map(point).collect()
}

fn counts(store: &dyn Tsdb) -> Counts {
    store.counts().get("default").copied().unwrap_or_default()
}

use ValueRef::{Bool, F64, I64, Text};

pub async fn what_is_written_is_seen_at_once(lab: &impl Lab) {
    let store = lab.open(None).await;
    write(&*store, &[record("a", at(0), &[("t", F64(20.5)), ("on", Bool(true)), ("mode", Text("eco"))])]);
    write(&*store, &[record("a", at(10), &[("t", F64(21.5))])]);
    let series = all(&*store).await;
    let metrics: Vec<_> = series.iter().map(|s| (s.device.as_str(), s.metric.as_str())).collect();
    assert_eq!(metrics, [("a", "mode"), ("a", "on"), ("a", "t")]);
    assert_eq!(series[0].points, [(at(0), Value::Text("eco".into()))]);
    assert_eq!(series[1].points, [(at(0), Value::Bool(true))]);
    assert_eq!(numbers(&series[2]), [(0, 20.5), (10, 21.5)]);
    assert_eq!(store.position(P0), Some(Offset(2)));
    assert_eq!(counts(&*store), Counts { stored: 2, readings: 4, ..Counts::default() });
}

pub async fn a_replay_is_all_duplicates(lab: &impl Lab) {
    let store = lab.open(None).await;
    let records: Vec<_> = (0..50).map(|n| record("a", at(n), &[("t", I64(n)), ("u", F64(0.5))])).collect();
    assert_eq!(write(&*store, &records), [Outcome::Stored; 50]);
    assert_eq!(write(&*store, &records), [Outcome::Duplicate; 50]);
    store.flush().await.expect("flush");
    assert_eq!(write(&*store, &records), [Outcome::Duplicate; 50]);
    let swapped = record("a", at(7), &[("u", F64(0.5)), ("t", F64(7.0))]);
    assert_eq!(write(&*store, &[swapped]), [Outcome::Duplicate]);
    assert_eq!(counts(&*store), Counts { stored: 50, duplicate: 101, readings: 100, ..Counts::default() });
}

pub async fn equal_times_with_other_readings_are_kept(lab: &impl Lab) {
    let store = lab.open(None).await;
    let of = |value| record("a", at(0), &[("t", F64(value))]);
    assert_eq!(write(&*store, &[of(1.0), of(2.0), of(1.0)])[2], Outcome::Duplicate);
    store.flush().await.expect("flush");
    assert_eq!(write(&*store, &[of(2.0), of(3.0)]), [Outcome::Duplicate, Outcome::Stored]);
    let part = record("a", at(0), &[("t", F64(3.0)), ("u", F64(3.0))]);
    assert_eq!(write(&*store, &[part]), [Outcome::Stored]);
    let mut values: Vec<_> = numbers(&all(&*store).await[0]).iter().map(|p| p.1).collect();
    values.sort_by(f64::total_cmp);
    assert_eq!(values, [1.0, 2.0, 3.0, 3.0]);
}

pub async fn server_timed_records_are_no_duplicates(lab: &impl Lab) {
    let store = lab.open(None).await;
    let server_timed = Record {
        time_source: TimeSource::Server,
        device_time: None,
        received_at: at(0),
        ..record("a", at(0), &[("t", I64(1))])
    };
    assert_eq!(write(&*store, &[server_timed.clone(), server_timed.clone()]), [Outcome::Stored; 2]);
    store.flush().await.expect("flush");
    assert_eq!(write(&*store, &[server_timed]), [Outcome::Stored]);
    let by_device = record("a", at(0), &[("t", I64(1))]);
    assert_eq!(write(&*store, &[by_device]), [Outcome::Stored], "a copy of none filed by the device's time");
    assert_eq!(numbers(&all(&*store).await[0]).len(), 4);
}

pub async fn known_duplicates_are_only_counted(lab: &impl Lab) {
    let store = lab.open(None).await;
    let copy = StoredRecord::of(record("a", at(0), &[("t", I64(1))]));
    let records = [StoredRecord { known_duplicate: true, ..copy }];
    let outcomes = store.write(Write { partition: P0, records: &records, next: Offset(1) }).expect("write");
    assert_eq!(outcomes, [Outcome::Duplicate]);
    assert!(all(&*store).await.is_empty());
    assert_eq!(counts(&*store).duplicate, 1);
}

pub async fn what_stands_for_others_is_weighed(lab: &impl Lab) {
    let store = lab.open(None).await;
    // Two are kept, each for ten; one of another metric stands for itself.
    let sampled = |n: i64| StoredRecord {
        weights: vec![10, 1],
        ..StoredRecord::of(record("a", at(n), &[("t", F64(n as f64)), ("u", I64(n))]))
    };
    let out = StoredRecord {
        is_sampled_out: true,
        ..StoredRecord::of(record("a", at(3), &[("t", F64(3.0)), ("u", I64(3))]))
    };
    let plain = StoredRecord::of(record("a", at(4), &[("t", F64(40.0))]));
    let records = [sampled(1), sampled(2), out, plain];
    let written = store.write(Write { partition: P0, records: &records, next: Offset(4) }).expect("write");
    assert_eq!(written, [Outcome::Stored, Outcome::Stored, Outcome::Sampled, Outcome::Stored]);
    for flush in [false, true] {
        if flush {
            store.flush().await.expect("flush");
        }
        let raw = all(&*store).await;
        let metrics: Vec<_> = raw.iter().map(|s| (s.metric.as_str(), s.points.len(), s.is_sampled)).collect();
        assert_eq!(metrics, [("t", 3, true), ("u", 2, false)], "weights are no metric");
        let expected = [
            (Aggregate::Count, 21.0),
            (Aggregate::Sum, 70.0),
            (Aggregate::Avg, 70.0 / 21.0),
            (Aggregate::Max, 40.0),
        ];
        for (aggregate, expected) in expected {
            let step = Some((Duration::from_secs(3_600), aggregate));
            let query = Query { metrics: vec!["t".into()], step, ..everything() };
            let series = store.query(&tenant("default"), query).await.expect("query");
            assert_eq!(numbers(&series[0]), [(0, expected)], "{aggregate:?}");
            assert!(series[0].is_sampled);
        }
        let latest = store.latest(&tenant("default"), &[], 10).await.expect("latest");
        assert_eq!(latest.len(), 2, "{latest:?}");
        let copies: Vec<_> = (1..3)
            .map(|n| StoredRecord::of(record("a", at(n), &[("t", F64(n as f64)), ("u", I64(n))])))
            .collect();
        let next = store.position(P0).unwrap_or(Offset::ZERO).after(2);
        let again = store.write(Write { partition: P0, records: &copies, next }).expect("write");
        assert_eq!(again, [Outcome::Duplicate; 2], "a weight makes no difference");
    }
    let read = Counts { stored: 3, duplicate: 4, sampled: 1, readings: 5, ..Counts::default() };
    assert_eq!(counts(&*store), read);
    store.flush().await.expect("flush");
    drop(store);
    assert_eq!(counts(&*lab.open(None).await), read);
}

pub async fn a_drop_goes_back_to_the_last_flush(lab: &impl Lab) {
    let store = lab.open(None).await;
    let records: Vec<_> = (0..30).map(|n| record("a", at(n), &[("t", I64(n))])).collect();
    write(&*store, &records[..10]);
    write_at(&*store, P1, Offset(100), &records[10..15]);
    store.flush().await.expect("flush");
    let flushed = counts(&*store);
    assert_eq!(store.durable_positions(), [(P0, Offset(10)), (P1, Offset(105))]);
    write(&*store, &records[15..]);
    assert_eq!(store.durable_positions(), [(P0, Offset(10)), (P1, Offset(105))]);
    drop(store);

    let store = lab.open(None).await;
    assert_eq!((store.position(P0), store.position(P1)), (Some(Offset(10)), Some(Offset(105))));
    assert_eq!(counts(&*store), flushed);
    assert_eq!(numbers(&all(&*store).await[0]).len(), 15);
    write(&*store, &records[15..]);
    let stored: Vec<i64> = numbers(&all(&*store).await[0]).iter().map(|p| p.0).collect();
    assert_eq!(stored, (0..30).collect::<Vec<_>>());
    assert_eq!(counts(&*store).stored, 30);
}

pub async fn duplicates_are_known_after_a_reopen(lab: &impl Lab) {
    let days = |n: i64| at(n * 43_200);
    let store = lab.open(None).await;
    let records: Vec<_> =
        (0..40).map(|n| record("a", days(n), &[("t", F64(n as f64 / 4.0)), ("s", Text("x"))])).collect();
    write(&*store, &records);
    store.flush().await.expect("flush");
    drop(store);

    let store = lab.open(None).await;
    assert_eq!(write(&*store, &records), [Outcome::Duplicate; 40]);
    assert_eq!(write(&*store, &[record("a", days(3), &[("t", F64(0.0))])]), [Outcome::Stored]);
    assert_eq!(
        write(&*store, &[record("b", days(3), &[("t", F64(0.75)), ("s", Text("x"))])]),
        [Outcome::Stored]
    );
}

pub async fn old_records_expire(lab: &impl Lab) {
    const DAY: i64 = 86_400;
    let store = lab.open(Some(Duration::from_secs(DAY as u64))).await;
    let reading = [("t", I64(1))];
    // As of when they came, however late they are read.
    let fresh_then = record("a", at(-10 * DAY), &reading);
    let old_then = Record { received_at: at(-8 * DAY), ..record("a", at(-9 * DAY - 1), &reading) };
    let outcomes = write(&*store, &[fresh_then, old_then, record("a", at(0), &reading)]);
    assert_eq!(outcomes, [Outcome::Stored, Outcome::Expired, Outcome::Stored]);
    assert_eq!(counts(&*store), Counts { stored: 2, expired: 1, readings: 2, ..Counts::default() });
    assert_eq!(numbers(&all(&*store).await[0]), [(-10 * DAY, 1.0), (0, 1.0)]);
}

pub async fn tenants_are_apart(lab: &impl Lab) {
    let store = lab.open(None).await;
    let theirs = Record { tenant: "other", ..record("a", at(0), &[("t", I64(1))]) };
    let ours = record("a", at(0), &[("t", I64(1))]);
    assert_eq!(write(&*store, &[theirs, ours]), [Outcome::Stored; 2]);
    store.flush().await.expect("flush");
    let theirs = Record { tenant: "other", ..record("b", at(1), &[("u", I64(2))]) };
    write(&*store, &[theirs]);
    assert_eq!(all(&*store).await.len(), 1);
    assert_eq!(store.query(&tenant("other"), everything()).await.expect("query").len(), 2);
    assert_eq!(store.latest(&tenant("default"), &["b".into()], 10).await.expect("latest"), []);
    assert_eq!(store.counts().len(), 2);
    assert!(store.query(&tenant("nobody"), everything()).await.expect("query").is_empty());
}

pub async fn latest_is_by_time_and_not_by_arrival(lab: &impl Lab) {
    let store = lab.open(None).await;
    write(&*store, &[record("a", at(10), &[("t", I64(10)), ("s", Text("x"))])]);
    write(
        &*store,
        &[record("a", at(5), &[("t", I64(5)), ("u", F64(5.5))]), record("b", at(1), &[("t", I64(1))])],
    );
    let newest = |device: &str, metric: &str, time, value| Latest {
        device: device.into(),
        metric: metric.into(),
        time: at(time),
        value,
    };
    let expected = [
        newest("a", "s", 10, Value::Text("x".into())),
        newest("a", "t", 10, Value::I64(10)),
        newest("a", "u", 5, Value::F64(5.5)),
        newest("b", "t", 1, Value::I64(1)),
    ];
    let latest = async |store: &dyn Tsdb, devices: &[&str], limit| {
        let devices: Vec<String> = devices.iter().map(|d| (*d).into()).collect();
        store.latest(&tenant("default"), &devices, limit).await.expect("latest")
    };
    assert_eq!(latest(&*store, &[], 10).await, expected);
    assert_eq!(latest(&*store, &["b"], 10).await, expected[3..]);
    assert_eq!(latest(&*store, &[], 2).await, expected[..2]);
    store.flush().await.expect("flush");
    drop(store);

    let store = lab.open(None).await;
    write(&*store, &[record("a", at(7), &[("t", I64(7)), ("u", F64(7.5))])]);
    let mut expected = expected;
    expected[2] = newest("a", "u", 7, Value::F64(7.5));
    assert_eq!(latest(&*store, &["a"], 10).await, expected[..3]);
    assert_eq!(latest(&*store, &[], 10).await, expected);
}

pub async fn steps_aggregate(lab: &impl Lab) {
    let store = lab.open(None).await;
    let records: Vec<_> = (0..120).map(|n| record("a", at(n), &[("t", I64(n))])).collect();
    write(&*store, &records[..70]);
    store.flush().await.expect("flush");
    write(&*store, &records[70..]);
    write(&*store, &[record("b", at(3), &[("t", I64(1))]), record("a", at(3), &[("u", I64(1))])]);
    for (aggregate, expected) in [
        (Aggregate::Avg, [44.5, 89.5]),
        (Aggregate::Min, [30.0, 60.0]),
        (Aggregate::Max, [59.0, 119.0]),
        (Aggregate::Sum, [1_335.0, 5_370.0]),
        (Aggregate::Count, [30.0, 60.0]),
        (Aggregate::First, [30.0, 60.0]),
        (Aggregate::Last, [59.0, 119.0]),
    ] {
        let query = Query {
            devices: vec!["a".into()],
            metrics: vec!["t".into()],
            start: at(30),
            end: at(120),
            step: Some((Duration::from_secs(60), aggregate)),
            points_max: 2,
        };
        let series = store.query(&tenant("default"), query).await.expect("query");
        assert_eq!(series.len(), 1);
        assert_eq!(numbers(&series[0]), [(0, expected[0]), (60, expected[1])], "{aggregate:?}");
    }
}

pub async fn points_are_bounded(lab: &impl Lab) {
    let store = lab.open(None).await;
    let records: Vec<_> = (0..20).map(|n| record("a", at(n), &[("t", I64(n))])).collect();
    write(&*store, &records);
    let refused = store.query(&tenant("default"), Query { points_max: 19, ..everything() }).await;
    assert!(matches!(refused, Err(QueryError::TooLarge { max: 19, .. })), "{refused:?}");
    let enough = store.query(&tenant("default"), Query { points_max: 20, ..everything() }).await;
    assert_eq!(enough.expect("query")[0].points.len(), 20);
}

pub async fn values_change_their_type(lab: &impl Lab) {
    let store = lab.open(None).await;
    let odd = (1 << 53) + 1;
    write(&*store, &[record("a", at(0), &[("t", I64(20)), ("big", I64(odd)), ("s", Text("on"))])]);
    store.flush().await.expect("flush");
    write(&*store, &[record("a", at(1), &[("t", F64(20.5)), ("big", F64(0.5)), ("s", I64(3))])]);
    write(&*store, &[record("a", at(2), &[("t", I64(21)), ("big", I64(odd)), ("s", Bool(true))])]);
    write(&*store, &[record("a", at(3), &[("t", Text("broken")), ("big", I64(1))])]);
    store.flush().await.expect("flush");
    let series = all(&*store).await;
    let (big, s, t) = (&series[0].points, &series[1].points, &series[2].points);
    let number = |value: &Value| value.borrowed().as_number();
    assert_eq!(big[0].1, Value::I64(odd), "no bit of an integer is lost");
    assert_eq!(big[2].1, Value::I64(odd));
    assert_eq!((number(&big[1].1), number(&big[3].1)), (Some(0.5), Some(1.0)));
    assert_eq!(s[0].1, Value::Text("on".into()));
    assert_eq!((number(&s[1].1), &s[2].1), (Some(3.0), &Value::Bool(true)));
    let t: Vec<_> = t.iter().map(|(_, value)| number(value)).collect();
    assert_eq!(t, [Some(20.0), Some(20.5), Some(21.0), None]);
    let again = record("a", at(0), &[("t", F64(20.0)), ("big", I64(odd)), ("s", Text("on"))]);
    assert_eq!(write(&*store, &[again]), [Outcome::Duplicate]);
}

pub async fn an_empty_store_answers(lab: &impl Lab) {
    let store = lab.open(None).await;
    assert!(all(&*store).await.is_empty());
    assert!(store.latest(&tenant("default"), &[], 10).await.expect("latest").is_empty());
    assert_eq!((store.position(P0), store.durable_positions()), (None, vec![]));
    store.flush().await.expect("flush");
    write_at(&*store, P0, Offset(5), &[]);
    store.flush().await.expect("flush");
    assert_eq!(
        store.durable_positions(),
        [(P0, Offset(5))],
        "a stretch without records moves the position too"
    );
}
