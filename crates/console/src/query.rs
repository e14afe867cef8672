use std::{sync::Arc, time::Duration};

use arrow::{csv, json, record_batch::RecordBatch, util::pretty::pretty_format_batches};
use axum::{
    Json,
    body::Body,
    extract::{
        Query, State,
        rejection::{QueryRejection, StringRejection},
    },
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use dunlin_model::{Timestamp, Value};
use dunlin_registry::User;
use dunlin_tsdb::{Aggregate, QueryError, SqlLimits, SqlResult, StoreError};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use crate::{Console, ask::Asker, problem::Problem};

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Format {
    Csv,
    #[default]
    Json,
    Table,
}

/// A table is for people: beyond this nobody reads it, and its widths need all of it in memory.
const TABLE_ROWS_MAX: usize = 10_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SqlQuery {
    /// The statement, for GET.
    sql: Option<String>,
    #[serde(default)]
    format: Format,
}

/// `POST /v1/query?format=csv|json|table` with the statement as the body.
pub(crate) async fn sql(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    query: Result<Query<SqlQuery>, QueryRejection>,
    statement: Result<String, StringRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    answer(&console, &user, &statement?, query.format).await
}

/// `GET /v1/query?sql=…&format=…`
pub(crate) async fn sql_by_get(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    query: Result<Query<SqlQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    let statement = query.sql.ok_or_else(|| Problem::invalid("sql", "say which statement: ?sql=SELECT …"))?;
    answer(&console, &user, &statement, query.format).await
}

async fn answer(
    console: &Console,
    user: &User,
    statement: &str,
    format: Format,
) -> Result<Response, Problem> {
    let rows_max = match format {
        Format::Table => TABLE_ROWS_MAX,
        Format::Csv | Format::Json => console.config.sql_rows_max,
    };
    let limits = SqlLimits { rows_max, timeout: Duration::from_secs(console.config.sql_timeout_seconds) };
    let SqlResult { schema, mut batches } = console.sql()?.sql(&user.tenant, statement, limits).await?;

    if let Format::Table = format {
        let mut all: Vec<RecordBatch> = batches.try_collect().await?;
        if all.is_empty() {
            all.push(RecordBatch::new_empty(schema));
        }
        let table = pretty_format_batches(&all).map_err(|e| QueryError::from(engine(e)))?;
        return Ok(typed("text/plain; charset=utf-8", Body::from(format!("{table}\n"))));
    }

    // The first batch is awaited so that a statement that fails is answered with its error, not with half a body.
    let first = match batches.next().await {
        Some(batch) => batch?,
        None => RecordBatch::new_empty(schema),
    };
    let batches = stream::once(async { Ok(first) }).chain(batches);
    let body = match format {
        Format::Csv => Body::from_stream(csv_chunks(batches)),
        _ => Body::from_stream(json_chunks(batches)),
    };
    Ok(match format {
        Format::Csv => typed("text/csv; charset=utf-8", body),
        _ => typed("application/json", body),
    })
}

fn typed(content_type: &'static str, body: Body) -> Response {
    ([(header::CONTENT_TYPE, content_type)], body).into_response()
}

type Batches<T> = Result<T, QueryError>;

/// One header line, then the rows.
fn csv_chunks(
    batches: impl stream::Stream<Item = Batches<RecordBatch>> + Send + 'static,
) -> impl stream::Stream<Item = Batches<Bytes>> + Send {
    batches.enumerate().map(|(n, batch)| {
        let mut out = Vec::new();
        csv::WriterBuilder::new().with_header(n == 0).build(&mut out).write(&batch?).map_err(engine)?;
        Ok(out.into())
    })
}

/// One array of objects; a null is left out of its object.
fn json_chunks(
    batches: impl stream::Stream<Item = Batches<RecordBatch>> + Send + 'static,
) -> impl stream::Stream<Item = Batches<Bytes>> + Send {
    let mut separator = "[";
    let rows = batches.map(move |batch| {
        let batch = batch?;
        if batch.num_rows() == 0 {
            return Ok(Bytes::new());
        }
        let mut writer = json::ArrayWriter::new(Vec::new());
        writer.write(&batch).and_then(|()| writer.finish()).map_err(engine)?;
        let array = writer.into_inner();
        let elements = array.strip_prefix(b"[").and_then(|a| a.strip_suffix(b"]")).unwrap_or(&array);
        let mut out = Vec::with_capacity(elements.len() + 1);
        out.extend_from_slice(separator.as_bytes());
        out.extend_from_slice(elements);
        separator = ",\n";
        Ok(Bytes::from(out))
    });
    // An answer without a row has not opened its array.
    let mut empty = true;
    rows.map(Some).chain(stream::once(async { None })).map(move |chunk| match chunk {
        Some(chunk) => {
            if let Ok(bytes) = &chunk {
                empty &= bytes.is_empty();
            }
            chunk
        }
        None if empty => Ok(Bytes::from_static(b"[]\n")),
        None => Ok(Bytes::from_static(b"]\n")),
    })
}

fn engine(error: arrow::error::ArrowError) -> StoreError {
    StoreError::Engine { reason: error.to_string() }
}

/// A typed query: `?device=a,b&metric=m&start=…&end=…[&step=60s&aggregate=avg]`. Times in ms since 1970.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReadingsQuery {
    device: String,
    metric: String,
    start: i64,
    end: i64,
    step_ms: Option<u64>,
    aggregate: Option<AggregateName>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
enum AggregateName {
    Avg,
    Min,
    Max,
    Sum,
    Count,
    First,
    Last,
}

impl From<AggregateName> for Aggregate {
    fn from(name: AggregateName) -> Self {
        match name {
            AggregateName::Avg => Self::Avg,
            AggregateName::Min => Self::Min,
            AggregateName::Max => Self::Max,
            AggregateName::Sum => Self::Sum,
            AggregateName::Count => Self::Count,
            AggregateName::First => Self::First,
            AggregateName::Last => Self::Last,
        }
    }
}

#[derive(Serialize)]
pub(crate) struct SeriesView {
    device: String,
    metric: String,
    /// `[ms since 1970, value]`
    points: Vec<(i64, Value)>,
    /// Some of the readings stand for others that were left out.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    sampled: bool,
}

pub(crate) async fn readings(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    query: Result<Query<ReadingsQuery>, QueryRejection>,
) -> Result<Json<Vec<SeriesView>>, Problem> {
    let Query(query) = query?;
    let instant = |field, ms| {
        Timestamp::from_millis(ms).ok_or_else(|| Problem::invalid(field, "not a time in ms since 1970"))
    };
    let step = match (query.step_ms, query.aggregate) {
        (Some(0), _) => return Err(Problem::invalid("step_ms", "a step is at least 1 ms")),
        (Some(ms), aggregate) => {
            Some((Duration::from_millis(ms), aggregate.map_or(Aggregate::Avg, Aggregate::from)))
        }
        (None, Some(_)) => {
            return Err(Problem::invalid("step_ms", "an aggregate needs a step: &step_ms=60000"));
        }
        (None, None) => None,
    };
    let names = |list: &str| list.split(',').map(str::to_owned).collect();
    let query = dunlin_tsdb::Query {
        devices: names(&query.device),
        metrics: names(&query.metric),
        start: instant("start", query.start)?,
        end: instant("end", query.end)?,
        step,
        points_max: console.config.query_points_max,
    };
    let series = console.tsdb()?.query(&user.tenant, query).await?;
    let view = series.into_iter().map(|s| SeriesView {
        device: s.device,
        metric: s.metric,
        points: s.points.into_iter().map(|(time, value)| (time.as_millis(), value)).collect(),
        sampled: s.is_sampled,
    });
    Ok(Json(view.collect()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LatestQuery {
    /// Comma-separated; all devices if absent.
    device: Option<String>,
    limit: Option<usize>,
}

#[derive(Serialize)]
pub(crate) struct LatestView {
    device: String,
    metric: String,
    time: String,
    value: Value,
}

const LATEST_ROWS_MAX: usize = 100_000;

pub(crate) async fn latest(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    query: Result<Query<LatestQuery>, QueryRejection>,
) -> Result<Json<Vec<LatestView>>, Problem> {
    let Query(query) = query?;
    let devices: Vec<String> =
        query.device.iter().flat_map(|list| list.split(',')).map(str::to_owned).collect();
    let limit = query.limit.unwrap_or(LATEST_ROWS_MAX).min(LATEST_ROWS_MAX);
    let latest = console.tsdb()?.latest(&user.tenant, &devices, limit).await?;
    let view = latest.into_iter().map(|l| LatestView {
        device: l.device,
        metric: l.metric,
        time: l.time.to_string(),
        value: l.value,
    });
    Ok(Json(view.collect()))
}
