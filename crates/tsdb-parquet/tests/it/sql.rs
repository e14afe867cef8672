use std::time::Duration;

use dunlin_model::{Record, ValueRef::*};
use dunlin_tsdb::{
    Query, QueryError, Sql, SqlLimits, Tsdb,
    conformance::{at, record, tenant, write},
};

use dunlin_tsdb_parquet::Config;
use futures::StreamExt;

use crate::lab::{LIMITS, ParquetLab, number, refusal, rows, sql};

#[tokio::test]
async fn a_tenant_without_data_has_its_tables() {
    let lab = ParquetLab::default();
    let store = lab.store();
    assert_eq!(number(&store, "SELECT count(*) FROM default").await, 0);
    assert_eq!(number(&store, "SELECT count(*) FROM readings WHERE metric = 't'").await, 0);
    assert_eq!(number(&store, "select count(value) from Readings").await, 0);
    let readings = store.sql(&tenant("default"), "SELECT * FROM readings", LIMITS).await.expect("readings");
    let columns: Vec<_> = readings.schema.fields().iter().map(|field| field.name().as_str()).collect();
    let expected =
        ["tenant", "device", "device_type", "metric", "time", "value", "text", "received_at", "weight"];
    assert_eq!(columns, expected);
}

#[tokio::test]
async fn default_needs_no_quotes() {
    let lab = ParquetLab::default();
    let store = lab.store();
    write(&*store, &[record("a", at(0), &[("temperature", F64(21.5)), ("Fan.Speed", I64(3))])]);
    for (text, expected) in [
        ("SELECT count(*) FROM default", 1),
        ("SELECT count(*) FROM default WHERE temperature > 21", 1),
        ("SELECT count(*) FROM default AS d JOIN readings r ON r.device = d.device", 2),
        ("SELECT default.\"Fan.Speed\" FROM default", 3),
        ("SELECT count(*) FROM \"default\"", 1),
        ("SELECT count(*) FROM public.default", 1),
    ] {
        assert_eq!(number(&store, text).await, expected, "{text}");
    }
    assert!(sql(&store, "SHOW TABLES").await.contains("readings"));
    assert!(sql(&store, "SHOW COLUMNS FROM default").await.contains("Fan.Speed"));
    assert!(sql(&store, "EXPLAIN SELECT * FROM default").await.contains("plan"));
}

#[tokio::test]
async fn readings_show_every_kind_of_value() {
    let lab = ParquetLab::default();
    let store = lab.store();
    write(&*store, &[record("a", at(0), &[("t", I64(1)), ("on", Bool(true)), ("mode", Text("eco"))])]);
    store.flush().await.expect("flush");
    write(&*store, &[record("a", at(1), &[("t", F64(1.5)), ("mode", I64(7))])]);
    let table =
        sql(&store, "SELECT metric, time, value, text FROM readings ORDER BY metric, time, value").await;
    let expected = "\
+--------+----------------------+-------+------+
| metric | time                 | value | text |
+--------+----------------------+-------+------+
| mode   | 2024-01-01T00:00:00Z |       | eco  |
| mode   | 2024-01-01T00:00:01Z | 7.0   |      |
| on     | 2024-01-01T00:00:00Z | 1.0   |      |
| t      | 2024-01-01T00:00:00Z | 1.0   |      |
| t      | 2024-01-01T00:00:01Z | 1.5   |      |
+--------+----------------------+-------+------+";
    assert_eq!(table, expected);
    let wide = sql(&store, "SELECT t, \"on\", mode, mode__number FROM default ORDER BY time").await;
    assert!(wide.contains("1.5"), "{wide}");
}

#[tokio::test]
async fn a_condition_reaches_the_files() {
    let lab = ParquetLab::default();
    let store = lab.store();
    for day in 0..3 {
        let records: Vec<_> = (0..100)
            .map(|n| {
                record(
                    if n % 2 == 0 { "a" } else { "b" },
                    at(day * 86_400 + n),
                    &[("t", I64(n)), ("u", I64(n))],
                )
            })
            .collect();
        write(&*store, &records);
    }
    store.flush().await.expect("flush");
    let plan = async |text: &str| sql(&store, &format!("EXPLAIN {text}")).await;
    let all = plan("SELECT value FROM readings").await;
    let of_one_metric = plan("SELECT value FROM readings WHERE metric = 't'").await;
    assert!(
        of_one_metric.matches("DataSourceExec").count() * 2 <= all.matches("DataSourceExec").count(),
        "{of_one_metric}"
    );
    let of_one_day = plan("SELECT t FROM default WHERE time < '2024-01-02' AND device = 'a'").await;
    assert!(of_one_day.contains("2024-01-01") && !of_one_day.contains("2024-01-03/"), "{of_one_day}");
    assert!(of_one_day.contains("pruning_predicate"), "{of_one_day}");
}

#[tokio::test]
async fn tenants_see_their_own_rows_only() {
    let lab = ParquetLab::default();
    let store = lab.store();
    write(
        &*store,
        &[
            Record { tenant: "other", device_type: "secret", ..record("x", at(0), &[("s", I64(1))]) },
            Record { tenant: "other", ..record("x", at(0), &[("s", I64(1))]) },
            record("a", at(0), &[("t", I64(1))]),
        ],
    );
    store.flush().await.expect("flush");
    assert_eq!(number(&store, "SELECT count(*) FROM readings").await, 1);
    assert_eq!(number(&store, "SELECT count(*) FROM default").await, 1);
    assert!(refusal(&store, "SELECT * FROM secret").await.contains("secret"));
    assert!(!sql(&store, "SHOW TABLES").await.contains("secret"));
    assert!(!sql(&store, "SELECT * FROM information_schema.columns").await.contains("secret"));
    let theirs = rows(&store, "other", "SELECT DISTINCT tenant FROM readings", LIMITS).await.expect("rows");
    assert_eq!(theirs.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1);
}

#[tokio::test]
async fn only_reading_is_allowed() {
    let lab = ParquetLab::default();
    let store = lab.store();
    write(&*store, &[record("a", at(0), &[("t", I64(1))])]);
    for text in [
        "DROP TABLE default",
        "DELETE FROM default",
        "INSERT INTO default VALUES (1)",
        "UPDATE default SET t = 2",
        "CREATE TABLE x AS SELECT 1",
        "CREATE VIEW v AS SELECT 1",
        "CREATE EXTERNAL TABLE x STORED AS PARQUET LOCATION '/tmp/x'",
        "COPY default TO '/tmp/x.parquet'",
        "SET datafusion.execution.batch_size = 1",
        "EXPLAIN ANALYZE DELETE FROM default",
        "PREPARE p AS SELECT 1",
        "TRUNCATE TABLE default",
        "BEGIN",
    ] {
        let refused = refusal(&store, text).await;
        assert!(refused.contains("only reads") || refused.contains("syntax"), "{text}: {refused}");
    }
    for text in [
        "SELECT 1; DROP TABLE default",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_parquet('x')",
        "SELEC 1",
        "SELECT nothing FROM default",
        "",
    ] {
        assert!(!refusal(&store, text).await.is_empty(), "{text}");
    }
    assert_eq!(number(&store, "SELECT count(*) FROM default").await, 1);
}

#[tokio::test]
async fn results_and_time_are_bounded() {
    let lab = ParquetLab::default();
    let store = lab.store();
    let records: Vec<_> = (0..100).map(|n| record("a", at(n), &[("t", I64(n))])).collect();
    write(&*store, &records);
    let few = SqlLimits { rows_max: 99, ..LIMITS };
    let refused = rows(&store, "default", "SELECT * FROM default", few).await;
    assert!(matches!(refused, Err(QueryError::TooLarge { what: "rows", max: 99 })), "{refused:?}");
    let enough = SqlLimits { rows_max: 100, ..LIMITS };
    assert!(rows(&store, "default", "SELECT * FROM default", enough).await.is_ok());
    let hurry = SqlLimits { timeout: Duration::from_millis(200), ..LIMITS };
    let endless = "SELECT count(*) FROM generate_series(1, 1000000000000) WHERE value % 7 = 3";
    let refused = rows(&store, "default", endless, hurry).await;
    assert!(matches!(refused, Err(QueryError::Timeout(_))), "{refused:?}");
}

#[tokio::test]
async fn metrics_beyond_the_columns_are_in_the_long_view() {
    let lab = ParquetLab::default();
    let store = lab.store();
    let names: Vec<String> = (0..600).map(|n| format!("m{n:03}")).collect();
    let mut readings: Vec<_> = names.iter().map(|name| (name.as_str(), F64(0.5))).collect();
    write(&*store, &[record("a", at(0), &readings)]);
    readings.extend([("on", Bool(true)), ("mode", Text("eco")), ("n", I64(7))]);
    write(&*store, &[record("b", at(1), &readings)]);
    for place in ["memory", "a file", "a packed file"] {
        match place {
            "memory" => {}
            "a file" => store.flush().await.expect("flush"),
            _ => drop(store.compact_all().expect("compact")),
        }
        let of_b = "SELECT count(*) FROM readings WHERE device = 'b' AND metric = 'm599' AND value = 0.5";
        assert_eq!(number(&store, of_b).await, 1, "{place}");
        let late = sql(
            &store,
            "SELECT tenant, device, device_type, metric, time, value, text FROM readings \
             WHERE metric IN ('on', 'mode', 'n') AND time > '2024-01-01' ORDER BY metric",
        )
        .await;
        let expected = "\
+---------+--------+-------------+--------+----------------------+-------+------+
| tenant  | device | device_type | metric | time                 | value | text |
+---------+--------+-------------+--------+----------------------+-------+------+
| default | b      | default     | mode   | 2024-01-01T00:00:01Z |       | eco  |
| default | b      | default     | n      | 2024-01-01T00:00:01Z | 7.0   |      |
| default | b      | default     | on     | 2024-01-01T00:00:01Z | 1.0   |      |
+---------+--------+-------------+--------+----------------------+-------+------+";
        assert_eq!(late, expected, "{place}");
    }
    assert_eq!(number(&store, "SELECT count(*) FROM readings").await, 1_203);
}

#[tokio::test]
async fn metrics_beyond_the_columns_are_kept() {
    let lab = ParquetLab::default();
    let store = lab.store();
    let names: Vec<String> = (0..600).map(|n| format!("m{n}")).collect();
    let readings: Vec<_> =
        names.iter().enumerate().map(|(n, name)| (name.as_str(), F64(n as f64 / 3.0))).collect();
    write(&*store, &[record("a", at(0), &readings)]);
    let ask = async |store: &dyn Tsdb| {
        let query = Query {
            devices: vec![],
            metrics: vec!["m599".into(), "m3".into()],
            start: at(0),
            end: at(1),
            step: None,
            points_max: 10,
        };
        store.query(&tenant("default"), query).await.expect("query")
    };
    let fresh = ask(&*store).await;
    assert_eq!(fresh.len(), 2);
    assert_eq!(fresh[1].points[0].1.borrowed(), F64(599.0 / 3.0));
    store.flush().await.expect("flush");
    store.compact_all().expect("compact");
    assert_eq!(ask(&*store).await, fresh);
    let again = write(&*store, &[record("a", at(0), &readings)]);
    assert_eq!(again, [dunlin_tsdb::Outcome::Duplicate]);
}

#[tokio::test]
async fn a_statement_too_deep_is_refused_and_one_below_the_bound_works() {
    let lab = ParquetLab::default();
    let store = lab.store();
    let chain = |of: &str, with: &str, count: usize| vec![of; count].join(with);
    for text in [
        format!("SELECT {}", chain("1", "+", 20_000)),
        format!("SELECT {}", chain("1", " + ", 200_000)),
        format!("SELECT {}1{}", "(".repeat(10_000), ")".repeat(10_000)),
        format!("SELECT 1 WHERE {} true", "NOT ".repeat(10_000)),
        format!("SELECT 1{}", " IS NULL".repeat(5_000)),
        format!("{} SELECT 1", "EXPLAIN ".repeat(5_000)),
        chain("SELECT 1", " UNION ALL ", 3_000),
    ] {
        let refused = refusal(&store, &text).await;
        assert!(refused.contains("at the most"), "{refused:.300}");
    }
    assert_eq!(number(&store, &format!("SELECT {}", chain("1", "+", 500))).await, 500);
    assert_eq!(number(&store, &format!("SELECT count(*) WHERE {}", chain("true", " AND ", 2_040))).await, 1);
    let list = chain("'a'", ",", 10_000);
    assert_eq!(number(&store, &format!("SELECT count(*) FROM default WHERE device IN ({list})")).await, 0);
    // These may meet limits of the parser, too; what matters is that they are answered.
    for text in [
        format!("SELECT {}1{}", "(".repeat(39), ")".repeat(39)),
        format!("SELECT * FROM {}default{}", "(".repeat(39), ")".repeat(39)),
        format!("SELECT 1 WHERE {} true", "NOT ".repeat(2_000)),
        format!("SELECT 1{}", " IS NULL".repeat(1_000)),
        format!("SELECT 1{}", "::int".repeat(1_000)),
        format!("SELECT {}1", "- ".repeat(2_000)),
        format!("{} SELECT 1", "EXPLAIN ".repeat(2_000)),
        chain("SELECT 1", " UNION ALL ", 650),
    ] {
        drop(rows(&store, "default", &text, LIMITS).await);
    }
}

/// Many batches, quickly made.
const ENDLESS: &str = "SELECT value FROM generate_series(1, 1000000000000)";

#[tokio::test]
async fn readers_that_do_not_read_stop_nobody_for_longer_than_their_time() {
    let lab = ParquetLab::default();
    let store = lab.store_with(Config { queries_max: 2, queries_per_tenant_max: 2, ..lab.config() });
    let hurry = SqlLimits { rows_max: usize::MAX, timeout: Duration::from_secs(2) };
    let me = tenant("default");
    let mut unread = Vec::new();
    for _ in 0..2 {
        unread.push(store.sql(&me, ENDLESS, hurry).await.expect("a result"));
    }
    // Both permits are taken until the time of those two is over.
    assert_eq!(number(&store, "SELECT 1").await, 1);
    for mut result in unread {
        let mut last = result.batches.next().await;
        while let Some(Ok(_)) = last {
            last = result.batches.next().await; // The time of this one is not over yet.
        }
        assert!(matches!(last, Some(Err(QueryError::Timeout(_)))), "what was cut says so: {last:?}");
        assert!(result.batches.next().await.is_none());
    }
}

#[tokio::test]
async fn one_tenant_leaves_room_for_others() {
    let lab = ParquetLab::default();
    let store = lab.store_with(Config { queries_max: 4, queries_per_tenant_max: 3, ..lab.config() });
    let patient = SqlLimits { rows_max: usize::MAX, timeout: Duration::from_secs(3_600) };
    let greedy = tenant("greedy");
    let mut unread = Vec::new();
    for _ in 0..3 {
        unread.push(store.sql(&greedy, ENDLESS, patient).await.expect("a result"));
    }
    let hurry = SqlLimits { timeout: Duration::from_millis(50), ..patient };
    let refused = store.sql(&greedy, ENDLESS, hurry).await;
    assert!(matches!(refused, Err(QueryError::Timeout(_))), "its share is used up");
    assert_eq!(number(&store, "SELECT 1").await, 1);
}

#[tokio::test]
async fn points_and_newest_values_have_a_time_limit() {
    let lab = ParquetLab::default();
    let store = lab.store();
    write(&*store, &[record("a", at(0), &[("t", I64(1))])]);
    store.close().await.expect("close");
    drop(store);
    let store = lab.store_with(Config { query_seconds_max: 0, ..lab.config() });
    let me = tenant("default");
    let query =
        Query { devices: vec![], metrics: vec![], start: at(0), end: at(1), step: None, points_max: 10 };
    assert!(matches!(store.query(&me, query).await, Err(QueryError::Timeout(_))));
    assert!(matches!(store.latest(&me, &[], 10).await, Err(QueryError::Timeout(_))));
}
