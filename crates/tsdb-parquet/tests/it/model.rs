//! Random writes, flushes, compactions and kills: the store answers as the memory store does.

use std::sync::Arc;

use dunlin_model::{Record, TimeSource, Value, ValueRef};
use dunlin_tsdb::{
    MemoryDisk, MemoryTsdb, Query, Series, Tsdb,
    conformance::{at, record, tenant, write},
};
use proptest::prelude::*;

use crate::lab::ParquetLab;

#[derive(Debug, Clone)]
enum Step {
    Write(Vec<Row>),
    Flush,
    Compact,
    Kill,
    Ask,
}

#[derive(Debug, Clone)]
struct Row {
    device: u8,
    seconds: i64,
    by_server: bool,
    readings: Vec<(u8, Value)>,
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => (-8_i64..8).prop_map(|n| Value::F64(n as f64 / 4.0)),
        4 => (-8_i64..8).prop_map(Value::I64),
        1 => Just(Value::I64((1 << 53) + 1)),
        1 => any::<bool>().prop_map(Value::Bool),
        1 => "[a-c]{0,2}".prop_map(|s| Value::Text(s.into())),
    ]
}

fn row() -> impl Strategy<Value = Row> {
    // Few devices, times and metrics, so that copies and conflicts happen; days apart, so that files do.
    let seconds = prop_oneof![0_i64..6, Just(-86_400), Just(-90 * 86_400), -100 * 86_400_i64..0];
    let readings = proptest::collection::vec((0_u8..3, value()), 0..4);
    (0_u8..3, seconds, proptest::bool::weighted(0.1), readings)
        .prop_map(|(device, seconds, by_server, readings)| Row { device, seconds, by_server, readings })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => proptest::collection::vec(row(), 1..12).prop_map(Step::Write),
        2 => Just(Step::Flush),
        1 => Just(Step::Compact),
        1 => Just(Step::Kill),
        1 => Just(Step::Ask),
    ]
}

const DEVICES: [&str; 3] = ["a", "b", "c"];
const METRICS: [&str; 3] = ["x", "y", "z"];

fn records(rows: &[Row]) -> Vec<Record<'_>> {
    let of = |row: &'static str, r: &Row| (row, r.seconds);
    rows.iter()
        .map(|r| {
            let readings: Vec<(&str, ValueRef<'_>)> =
                r.readings.iter().map(|(m, v)| (METRICS[usize::from(*m)], v.borrowed())).collect();
            let (device, seconds) = of(DEVICES[usize::from(r.device)], r);
            let mut record = record(device, at(seconds), &readings);
            if r.by_server {
                record.time_source = TimeSource::Server;
                record.received_at = record.time;
            }
            record
        })
        .collect()
}

/// What a store holds, numbers by value, rows of one time in any order.
async fn holds(store: &dyn Tsdb) -> Vec<(String, String, Vec<(i64, String)>)> {
    let query = Query {
        devices: vec![],
        metrics: vec![],
        start: at(-1 << 32),
        end: at(1 << 32),
        step: None,
        points_max: 100_000,
    };
    let series = store.query(&tenant("default"), query).await.expect("query");
    let text = |value: &Value| match value {
        Value::I64(v) if v.abs() <= 1 << 53 => format!("{:?}", *v as f64 + 0.0),
        Value::F64(v) => format!("{:?}", v + 0.0),
        other => format!("{other:?}"),
    };
    let plain = |series: Series| {
        let mut points: Vec<_> = series.points.iter().map(|(t, v)| (t.as_micros(), text(v))).collect();
        points.sort();
        (series.device, series.metric, points)
    };
    series.into_iter().map(plain).collect()
}

async fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let (lab, disk) = (ParquetLab::default(), MemoryDisk::default());
    let model = || MemoryTsdb::open(disk.clone(), None);
    let (mut store, mut expected) = (lab.store(), Arc::new(model()));
    for step in steps {
        match step {
            Step::Write(rows) => {
                let records = records(&rows);
                prop_assert_eq!(write(&*store, &records), write(&*expected, &records));
            }
            Step::Flush => {
                store.flush().await.expect("flush");
                expected.flush().await.expect("flush");
            }
            Step::Compact => {
                store.compact_all().expect("compact");
            }
            Step::Kill => {
                drop(store);
                (store, expected) = (lab.store(), Arc::new(model()));
            }
            Step::Ask => prop_assert_eq!(holds(&*store).await, holds(&*expected).await),
        }
        prop_assert_eq!(store.counts(), expected.counts());
        prop_assert_eq!(store.durable_positions(), expected.durable_positions());
    }
    prop_assert_eq!(holds(&*store).await, holds(&*expected).await);
    let newest = async |store: &dyn Tsdb| {
        let latest = store.latest(&tenant("default"), &[], 1_000).await.expect("latest");
        // Of two rows at the same time either is the latest.
        latest.into_iter().map(|l| (l.device, l.metric, l.time)).collect::<Vec<_>>()
    };
    prop_assert_eq!(newest(&*store).await, newest(&*expected).await);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_as_in_the_memory_store(steps in proptest::collection::vec(step(), 1..25)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run(steps))?;
    }
}
