use std::{path::Path, sync::Arc, time::Duration};

use arrow::{array::RecordBatch, util::pretty::pretty_format_batches};
use dunlin_model::Clock;
use dunlin_tsdb::{
    QueryError, Sql, SqlLimits, Tsdb,
    conformance::{Lab, at, tenant},
};
use dunlin_tsdb_parquet::{Config, ParquetTsdb};
use futures::{
    TryStreamExt,
    future::{BoxFuture, FutureExt},
};
use prometheus_client::registry::Registry;

pub(crate) struct ParquetLab(tempfile::TempDir);

impl Default for ParquetLab {
    fn default() -> Self {
        Self(tempfile::tempdir().expect("a directory for the test"))
    }
}

impl ParquetLab {
    pub(crate) fn config(&self) -> Config {
        Config {
            dir: self.0.path().into(),
            flush_after_seconds: 3_600,
            compact_every_seconds: 3_600,
            ..Config::default()
        }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn store(&self) -> Arc<ParquetTsdb> {
        self.store_with(self.config())
    }

    pub(crate) fn store_with(&self, config: Config) -> Arc<ParquetTsdb> {
        ParquetTsdb::open(config, Clock::new(|| at(0)), &mut Registry::default()).expect("open")
    }
}

impl Lab for ParquetLab {
    fn open(&self, retention: Option<Duration>) -> BoxFuture<'_, Arc<dyn Tsdb>> {
        let retention_seconds = retention.map(|retention| retention.as_secs());
        let store = self.store_with(Config { retention_seconds, ..self.config() });
        async move { store as Arc<dyn Tsdb> }.boxed()
    }
}

pub(crate) const LIMITS: SqlLimits = SqlLimits { rows_max: 100_000, timeout: Duration::from_secs(120) };

pub(crate) async fn rows(
    store: &ParquetTsdb,
    of: &str,
    text: &str,
    limits: SqlLimits,
) -> Result<Vec<RecordBatch>, QueryError> {
    store.sql(&tenant(of), text, limits).await?.batches.try_collect().await
}

/// The result as a table of text, for the default tenant.
pub(crate) async fn sql(store: &ParquetTsdb, text: &str) -> String {
    let batches = rows(store, "default", text, LIMITS).await.expect(text);
    pretty_format_batches(&batches).expect("a printable result").to_string()
}

/// A result of one number.
pub(crate) async fn number(store: &ParquetTsdb, text: &str) -> i64 {
    use arrow::{array::AsArray, datatypes::Int64Type};
    let batches = rows(store, "default", text, LIMITS).await.expect(text);
    let batch = batches.iter().find(|batch| batch.num_rows() == 1).expect("one row");
    batch.column(0).as_primitive::<Int64Type>().value(0)
}

pub(crate) async fn refusal(store: &ParquetTsdb, text: &str) -> String {
    match rows(store, "default", text, LIMITS).await {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{text} was not refused"),
    }
}
