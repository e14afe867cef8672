//! DataFusion's house: queries over fresh rows and files, on threads of their own, within bounds of memory, number,
//! rows and time.

mod narrow; // what a filter says about devices and times
mod readings; // the long view over all tables of a tenant
mod statement; // what may be parsed at all
mod table; // a table as DataFusion sees it

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    future::Future,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Float64Type, Int64Type, TimestampMicrosecondType},
};
use datafusion::{
    catalog::{
        CatalogProvider, CatalogProviderList, MemoryCatalogProvider, MemoryCatalogProviderList,
        MemorySchemaProvider, SchemaProvider,
    },
    dataframe::DataFrame,
    error::DataFusionError,
    execution::{
        SendableRecordBatchStream, SessionStateBuilder,
        context::{SQLOptions, SessionContext, SessionState},
        memory_pool::GreedyMemoryPool,
        runtime_env::RuntimeEnvBuilder,
    },
    logical_expr::{Expr, col, lit},
    prelude::SessionConfig,
    scalar::ScalarValue,
    sql::{parser::Statement as ParsedStatement, sqlparser::ast::Statement},
};
use dunlin_model::{TenantId, Timestamp, Value, ValueRef};
use dunlin_tsdb::{
    Gather, Latest, Query, QueryError, Series, SeriesKey, SqlLimits, SqlResult, StoreError, WEIGHT_SUFFIX,
};
use futures::{StreamExt, stream};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::Instant,
};

use crate::{
    columns::{DEVICE, OTHER, TIME, is_weight, other_readings},
    latest::Newest,
    store::{Inner, lock, lower_priority},
};

use table::TelemetryTable;

/// Batches of a result that wait for a slow reader.
const RESULT_BATCHES_MAX: usize = 4;
/// Stack of a query thread, reserved and not used: what `statement` lets through fits, also without optimization.
const STACK_BYTES: usize = 256 << 20;
/// Threads that read files for queries.
const READERS_MAX: usize = 32;
/// The table that is there even before its first record.
const DEFAULT_TABLE: &str = "default";
const READINGS: &str = "readings";
const CATALOG: &str = "dunlin";
const SCHEMA: &str = "public";

pub(crate) struct Engine {
    inner: Arc<Inner>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
    session: SessionState,
    permits: Arc<Semaphore>,
    /// The share of each tenant that asks right now.
    shares: Mutex<HashMap<TenantId, Weak<Semaphore>>>,
}

/// The right to run one query.
struct Permit {
    _of_tenant: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Engine {
    pub(crate) fn new(inner: Arc<Inner>) -> Result<Self, DataFusionError> {
        let config = &inner.config;
        let runtime = Builder::new_multi_thread()
            .worker_threads(config.query_threads.max(1))
            .max_blocking_threads(READERS_MAX)
            .thread_name("tsdb-query")
            .thread_stack_size(STACK_BYTES)
            .on_thread_start(lower_priority)
            .enable_all()
            .build()?;
        let memory = GreedyMemoryPool::new(config.query_memory_bytes_max);
        let environment = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(memory)).build_arc()?;
        let mut session = SessionConfig::new()
            .with_target_partitions(config.query_threads.max(1))
            .with_information_schema(true)
            .with_default_catalog_and_schema(CATALOG, SCHEMA)
            .with_create_default_catalog_and_schema(false);
        session.options_mut().execution.parquet.pushdown_filters = true;
        let session = SessionStateBuilder::new_with_default_features()
            .with_config(session)
            .with_runtime_env(environment)
            .build();
        let permits = Arc::new(Semaphore::new(config.queries_max.max(1)));
        Ok(Self { inner, runtime: Some(runtime), session, permits, shares: Mutex::default() })
    }

    fn handle(&self) -> Result<&Handle, QueryError> {
        self.runtime.as_ref().map(Runtime::handle).ok_or_else(closed)
    }

    /// Waits for the tenant's turn: one who asks much waits for itself, not the others for it.
    async fn permit(&self, tenant: &TenantId, deadline: Deadline) -> Result<Permit, QueryError> {
        let share = self.share(tenant);
        let both = async {
            let of_tenant = share.acquire_owned().await.map_err(|_| closed())?;
            let of_all = self.permits.clone().acquire_owned().await.map_err(|_| closed())?;
            Ok(Permit { _of_tenant: of_tenant, _of_all: of_all })
        };
        deadline.bound(both).await?
    }

    fn share(&self, tenant: &TenantId) -> Arc<Semaphore> {
        let mut shares = lock(&self.shares);
        if let Some(share) = shares.get(tenant).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(self.inner.config.queries_per_tenant_max.max(1)));
        shares.insert(tenant.clone(), Arc::downgrade(&share));
        share
    }

    /// Of a query that brings no limit of its own.
    fn deadline(&self) -> Deadline {
        Deadline::after(Duration::from_secs(self.inner.config.query_seconds_max))
    }

    /// Runs on the query threads; stops when the asker leaves or the time is over.
    async fn run<T: Send + 'static>(
        &self,
        tenant: &TenantId,
        deadline: Deadline,
        work: impl Future<Output = Result<T, QueryError>> + Send + 'static,
    ) -> Result<T, QueryError> {
        let permit = self.permit(tenant, deadline).await?;
        let seconds = self.inner.metrics.query_seconds.clone();
        let mut task = AbortOnDrop(self.handle()?.spawn(async move {
            let _permit = permit;
            let began = Instant::now();
            let done = work.await;
            seconds.observe(began.elapsed().as_secs_f64());
            done
        }));
        let done = deadline.bound(&mut task.0).await?;
        done.map_err(|e| StoreError::Engine { reason: e.to_string() })?
    }

    pub(crate) async fn query(&self, tenant: &TenantId, query: Query) -> Result<Vec<Series>, QueryError> {
        let gather = Gather::new(&query)?;
        let tables = self.tables(tenant);
        let context = SessionContext::new_with_state(self.session.clone());
        self.run(tenant, self.deadline(), gather_all(context, tables, query, gather)).await
    }

    pub(crate) async fn sql(
        &self,
        tenant: &TenantId,
        text: &str,
        limits: SqlLimits,
    ) -> Result<SqlResult, QueryError> {
        statement::check(text)?;
        let deadline = Deadline::after(limits.timeout);
        let permit = self.permit(tenant, deadline).await?;
        let (tables, text, session) = (self.tables(tenant), text.to_owned(), self.session.clone());
        let name = tenant.to_string();
        let seconds = self.inner.metrics.query_seconds.clone();
        let (schema, planned) = oneshot::channel();
        let (sender, receiver) = mpsc::channel(RESULT_BATCHES_MAX);
        // All of it on the query threads: nobody else's stack has room even to drop a plan.
        self.handle()?.spawn(async move {
            let _permit = permit;
            let began = Instant::now();
            match plan(session, &name, tables, &text).await {
                Ok(rows) => {
                    if schema.send(Ok(rows.schema())).is_ok() {
                        forward(rows, sender, limits.rows_max, deadline).await;
                    }
                }
                // Who asked may have left.
                Err(error) => drop(schema.send(Err(error))),
            }
            seconds.observe(began.elapsed().as_secs_f64());
        });
        let schema = deadline.bound(planned).await?.map_err(|_| deadline.cut_short())??;
        // The reader looks at the clock itself: an operator may compute for long without a pause.
        let batches = stream::unfold(Some(receiver), move |from| async move {
            let mut from = from?;
            match deadline.bound(from.recv()).await {
                Ok(Some(Sent::Rows(batch))) => Some((Ok(batch), Some(from))),
                Ok(Some(Sent::Failed(error))) | Err(error) => Some((Err(error), None)),
                Ok(Some(Sent::End)) => None,
                Ok(None) => Some((Err(deadline.cut_short()), None)),
            }
        });
        Ok(SqlResult { schema, batches: batches.boxed() })
    }

    /// The newest values; what is not in memory is looked up once and then kept.
    pub(crate) async fn latest(
        &self,
        tenant: &TenantId,
        devices: &[String],
        limit: usize,
    ) -> Result<Vec<Latest>, QueryError> {
        let deadline = self.deadline();
        let mut found: Found = BTreeMap::new();
        for table in self.tables_to_scan(tenant, devices) {
            let (number, wanted) = table;
            let Some(table) = self.tables(tenant).into_iter().find(|t| t.number == number) else { continue };
            let context = SessionContext::new_with_state(self.session.clone());
            let scanned =
                self.run(tenant, deadline, newest(context, Arc::new(table), wanted.clone())).await?;
            self.keep(number, &wanted, &scanned);
            merge(&mut found, scanned);
        }
        let names = self.names(tenant, devices, &found);
        let state = lock(&self.inner.state);
        let mut latest = Vec::new();
        for name in names {
            let mut metrics = found.remove(&*name).unwrap_or_default();
            for number in state.tables_of(tenant) {
                let table = &state.tables[number];
                let device = table.devices.find(&name).map(|device| &table.devices.list[device]);
                for (metric, time, value) in
                    device.and_then(|d| d.latest.as_ref()).map_or(&[][..], Newest::values)
                {
                    let metric = &table.columns.metrics()[*metric as usize].name;
                    newer(&mut metrics, metric, *time, value.borrowed());
                }
            }
            latest.extend(metrics.into_iter().map(|(metric, (time, value))| Latest {
                device: name.to_string(),
                metric,
                time,
                value,
            }));
            if latest.len() >= limit {
                latest.truncate(limit);
                break;
            }
        }
        Ok(latest)
    }

    /// The tables that must be read to answer, and for which devices (all if empty).
    fn tables_to_scan(&self, tenant: &TenantId, devices: &[String]) -> Vec<(usize, Vec<String>)> {
        let state = lock(&self.inner.state);
        let of = |number: usize| {
            let table = &state.tables[number].devices;
            let is_known = |name: &String| match table.find(name) {
                Some(device) => table.list[device].latest.as_ref().is_some_and(|latest| latest.complete),
                None => table.is_absent(name),
            };
            if devices.is_empty() {
                let all = table.complete
                    && table.list.iter().all(|d| d.latest.as_ref().is_some_and(|latest| latest.complete));
                return (!all).then(Vec::new);
            }
            let unknown: Vec<String> = devices.iter().filter(|name| !is_known(name)).cloned().collect();
            (!unknown.is_empty()).then_some(unknown)
        };
        state.tables_of(tenant).into_iter().filter_map(|number| Some((number, of(number)?))).collect()
    }

    /// Keeps what a scan found, so that the next who asks needs none.
    fn keep(&self, number: usize, wanted: &[String], scanned: &Found) {
        let mut state = lock(&self.inner.state);
        let mut room = self.inner.config.latest_devices_max.saturating_sub(state.latest_devices);
        let room_before = room;
        let table = &mut state.tables[number];
        for (device, metrics) in scanned {
            let device = table.devices.number(device) as usize;
            let slot = &mut table.devices.list[device].latest;
            if slot.is_none() && room == 0 {
                continue;
            }
            room -= usize::from(slot.is_none());
            let latest = slot.get_or_insert_default();
            latest.complete = true;
            for (position, (metric, (time, value))) in metrics.iter().enumerate() {
                if let Some(metric) = table.columns.number(metric) {
                    latest.take_older(position, metric, *time, value.borrowed());
                }
            }
        }
        for device in wanted.iter().filter(|device| !scanned.contains_key(*device)) {
            table.devices.note_absent(device);
        }
        table.devices.complete |= wanted.is_empty();
        state.latest_devices += room_before - room;
    }

    fn names(&self, tenant: &TenantId, devices: &[String], found: &Found) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = if devices.is_empty() {
            let state = lock(&self.inner.state);
            let known = state.tables_of(tenant).into_iter();
            known.flat_map(|table| state.tables[table].devices.list.iter().map(|d| d.name.clone())).collect()
        } else {
            devices.iter().map(|device| device.as_str().into()).collect()
        };
        names.extend(found.keys().map(|device| Arc::from(device.as_str())));
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The tenant's tables as they are now.
    fn tables(&self, tenant: &TenantId) -> Vec<TelemetryTable> {
        let mut state = lock(&self.inner.state);
        let numbers = state.tables_of(tenant);
        numbers
            .into_iter()
            .map(|number| TelemetryTable::snapshot(number, &mut state.tables[number]))
            .collect()
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime must not wait for its threads inside another one.
            runtime.shutdown_background();
        }
    }
}

/// When a query must be done, and the time it was given.
#[derive(Debug, Clone, Copy)]
struct Deadline {
    until: Instant,
    given: Duration,
}

impl Deadline {
    /// So far away that the clock cannot say when, it is a year.
    fn after(given: Duration) -> Self {
        const FAR: Duration = Duration::from_secs(365 * 86_400);
        Self { until: Instant::now() + given.min(FAR), given }
    }

    /// What is ready counts only within the time.
    async fn bound<T>(self, work: impl Future<Output = T>) -> Result<T, QueryError> {
        if Instant::now() >= self.until {
            return Err(QueryError::Timeout(self.given));
        }
        tokio::time::timeout_at(self.until, work).await.map_err(|_| QueryError::Timeout(self.given))
    }

    /// Why the query's task went away without an end: a result that is cut must not look whole.
    fn cut_short(self) -> QueryError {
        if Instant::now() >= self.until {
            return QueryError::Timeout(self.given);
        }
        StoreError::Engine { reason: "the query ended early".into() }.into()
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn closed() -> QueryError {
    StoreError::Engine { reason: "the store is closed".into() }.into()
}

/// What a query sends to its reader; without `End` the result is not whole.
enum Sent {
    Rows(RecordBatch),
    Failed(QueryError),
    End,
}

/// Newest values by device and metric.
type Found = BTreeMap<String, BTreeMap<String, (Timestamp, Value)>>;

fn newer(
    metrics: &mut BTreeMap<String, (Timestamp, Value)>,
    metric: &str,
    time: Timestamp,
    value: ValueRef<'_>,
) {
    match metrics.get_mut(metric) {
        Some(known) if time >= known.0 => *known = (time, value.to_owned()),
        Some(_) => {}
        None => {
            metrics.insert(metric.into(), (time, value.to_owned()));
        }
    }
}

fn merge(into: &mut Found, found: Found) {
    for (device, metrics) in found {
        let of = into.entry(device).or_default();
        for (metric, (time, value)) in metrics {
            newer(of, &metric, time, value.borrowed());
        }
    }
}

async fn newest(
    context: SessionContext,
    table: Arc<TelemetryTable>,
    devices: Vec<String>,
) -> Result<Found, QueryError> {
    let mut found: Found = BTreeMap::new();
    let query = Query {
        devices,
        metrics: vec![],
        start: Timestamp::MIN,
        end: Timestamp::MAX,
        step: None,
        points_max: 0,
    };
    let metrics = Wanted::of(&table, &query);
    let mut rows = scan(&context, &table, &query, &metrics).await?;
    while let Some(batch) = rows.next().await {
        metrics.each(&batch.map_err(failed)?, |device, metric, time, value, _| {
            if !found.contains_key(device) {
                found.insert(device.to_owned(), BTreeMap::new());
            }
            if let Some(metrics) = found.get_mut(device) {
                newer(metrics, metric, time, value);
            }
            Ok(())
        })?;
    }
    Ok(found)
}

async fn gather_all(
    context: SessionContext,
    tables: Vec<TelemetryTable>,
    query: Query,
    mut gather: Gather,
) -> Result<Vec<Series>, QueryError> {
    for table in tables {
        let table = Arc::new(table);
        let metrics = Wanted::of(&table, &query);
        if metrics.is_empty() {
            continue;
        }
        let mut rows = scan(&context, &table, &query, &metrics).await?;
        while let Some(batch) = rows.next().await {
            let mut last: Option<(String, String, SeriesKey)> = None;
            metrics.each(&batch.map_err(failed)?, |device, metric, time, value, weight| {
                let key = match &last {
                    Some((d, m, key)) if d == device && m == metric => *key,
                    _ => {
                        let key = gather.series(device, metric);
                        last = Some((device.into(), metric.into(), key));
                        key
                    }
                };
                gather.push(key, time, value, weight)
            })?;
        }
    }
    Ok(gather.finish())
}

/// The columns that hold the metrics of a query.
struct Wanted {
    /// Name of the column, and the metric it holds; `None` for `other`.
    columns: Vec<(Arc<str>, Option<Arc<str>>)>,
    /// Of each of them, the column that says for how many its values stand, if there is one: by its place behind them.
    weights: Vec<Option<usize>>,
    weight_columns: Vec<Arc<str>>,
    metrics: Vec<String>,
}

impl Wanted {
    fn of(table: &TelemetryTable, query: &Query) -> Self {
        let is_wanted = |metric: &str| query.metrics.is_empty() || query.metrics.iter().any(|m| m == metric);
        let mut columns: Vec<_> = table
            .columns
            .iter()
            .filter(|column| is_wanted(&column.metric) && !is_weight(&column.metric))
            .map(|column| (column.name.clone(), Some(column.metric.clone())))
            .collect();
        if table.has_other {
            columns.push((OTHER.into(), None));
        }
        let mut weight_columns = Vec::new();
        let weights = columns.iter().map(|(_, metric)| {
            let name = format!("{}{WEIGHT_SUFFIX}", metric.as_deref()?);
            let column = table.columns.iter().find(|column| *column.metric == *name)?;
            weight_columns.push(column.name.clone());
            Some(weight_columns.len() - 1)
        });
        let weights = weights.collect();
        Self { columns, weights, weight_columns, metrics: query.metrics.clone() }
    }

    fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Every reading of a batch that `scan` gave.
    fn each(
        &self,
        batch: &RecordBatch,
        mut take: impl FnMut(&str, &str, Timestamp, ValueRef<'_>, u32) -> Result<(), QueryError>,
    ) -> Result<(), QueryError> {
        let devices = batch.column(0).as_string_view();
        let times = batch.column(1).as_primitive::<TimestampMicrosecondType>();
        let (values, weights) = batch.columns()[2..].split_at(self.columns.len());
        for ((array, (_, metric)), weight) in values.iter().zip(&self.columns).zip(&self.weights) {
            let weights = weight.and_then(|n| weights.get(n)?.as_primitive_opt::<Int64Type>());
            for row in (0..batch.num_rows()).filter(|row| array.is_valid(*row)) {
                let (device, time) = (devices.value(row), Timestamp::from_micros(times.value(row)));
                match metric {
                    Some(metric) => {
                        let weight =
                            weights.filter(|w| w.is_valid(row)).map_or(1, |w| w.value(row).max(1) as u32);
                        take(device, metric, time, value_at(array, row), weight)?
                    }
                    None => {
                        let readings = other_readings(array.as_string_view().value(row));
                        for (metric, value) in &readings {
                            if is_weight(metric) {
                                continue;
                            }
                            if self.metrics.is_empty() || self.metrics.contains(metric) {
                                take(device, metric, time, value.borrowed(), weight_in(&readings, metric))?;
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// For how many a reading among those without a column stands.
fn weight_in(readings: &[(String, Value)], metric: &str) -> u32 {
    let is_its = |name: &str| name.strip_suffix(WEIGHT_SUFFIX) == Some(metric);
    match readings.iter().find(|(name, _)| is_its(name)) {
        Some((_, Value::I64(weight))) => (*weight).max(1) as u32,
        _ => 1,
    }
}

fn value_at(array: &dyn Array, row: usize) -> ValueRef<'_> {
    match array.data_type() {
        DataType::Float64 => ValueRef::F64(array.as_primitive::<Float64Type>().value(row)),
        DataType::Int64 => ValueRef::I64(array.as_primitive::<Int64Type>().value(row)),
        DataType::Boolean => ValueRef::Bool(array.as_boolean().value(row)),
        _ => ValueRef::Text(array.as_string_view().value(row)),
    }
}

/// Device, time and the wanted columns of the rows that the query is about.
async fn scan(
    context: &SessionContext,
    table: &Arc<TelemetryTable>,
    query: &Query,
    wanted: &Wanted,
) -> Result<SendableRecordBatchStream, QueryError> {
    let time =
        |at: Timestamp| lit(ScalarValue::TimestampMicrosecond(Some(at.as_micros()), Some("UTC".into())));
    let mut rows = context.read_table(table.clone()).map_err(failed)?;
    if !query.devices.is_empty() {
        let devices = query.devices.iter().map(|device| lit(ScalarValue::Utf8View(Some(device.clone()))));
        rows = rows.filter(col(DEVICE).in_list(devices.collect(), false)).map_err(failed)?;
    }
    if query.start > Timestamp::MIN {
        rows = rows.filter(col(TIME).gt_eq(time(query.start))).map_err(failed)?;
    }
    if query.end < Timestamp::MAX {
        rows = rows.filter(col(TIME).lt(time(query.end))).map_err(failed)?;
    }
    let columns = wanted.columns.iter().map(|(column, _)| column).chain(&wanted.weight_columns);
    let columns = columns.map(|column| column_named(column));
    let columns: Vec<Expr> = [col(DEVICE), col(TIME)].into_iter().chain(columns).collect();
    rows.select(columns).map_err(failed)?.execute_stream().await.map_err(failed)
}

/// The column of exactly this name; dots and capitals are part of it.
fn column_named(name: &str) -> Expr {
    Expr::Column(datafusion::common::Column::new_unqualified(name))
}

/// Plans a statement that only reads, over the tables of one tenant.
async fn plan(
    session: SessionState,
    tenant: &str,
    tables: Vec<TelemetryTable>,
    text: &str,
) -> Result<SendableRecordBatchStream, QueryError> {
    let schema = MemorySchemaProvider::new();
    let tables: Vec<Arc<TelemetryTable>> = tables.into_iter().map(Arc::new).collect();
    // The view has a branch per column, so it is made only where it can be meant.
    let lower = text.to_ascii_lowercase();
    if [READINGS, "show", "information_schema"].iter().any(|word| lower.contains(word)) {
        let view = readings::view(tenant, &tables).map_err(failed)?;
        schema.register_table(READINGS.into(), Arc::new(view)).map_err(failed)?;
    }
    if !tables.iter().any(|table| &*table.device_type == DEFAULT_TABLE) {
        let empty = Arc::new(TelemetryTable::empty(DEFAULT_TABLE));
        schema.register_table(DEFAULT_TABLE.into(), empty).map_err(failed)?;
    }
    for table in tables {
        let name = if &*table.device_type == READINGS { "readings_table" } else { &table.device_type };
        if !schema.table_exist(name) {
            schema.register_table(name.to_owned(), table).map_err(failed)?;
        }
    }
    let catalog = MemoryCatalogProvider::new();
    catalog.register_schema(SCHEMA, Arc::new(schema)).map_err(failed)?;
    let catalogs = MemoryCatalogProviderList::new();
    catalogs.register_catalog(CATALOG.into(), Arc::new(catalog));
    let session =
        SessionStateBuilder::new_from_existing(session).with_catalog_list(Arc::new(catalogs)).build();

    let dialect = session.config_options().sql_parser.dialect;
    let statement = session.sql_to_statement(text, &dialect).map_err(failed)?;
    only_reads(&statement)?;
    let plan = session.statement_to_plan(statement).await.map_err(failed)?;
    let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    options.verify_plan(&plan).map_err(failed)?;
    DataFrame::new(session, plan).execute_stream().await.map_err(failed)
}

fn only_reads(statement: &ParsedStatement) -> Result<(), QueryError> {
    let reads = match statement {
        ParsedStatement::Explain(explain) => return only_reads(&explain.statement),
        ParsedStatement::Statement(statement) => matches!(
            **statement,
            Statement::Query(_)
                | Statement::ShowTables { .. }
                | Statement::ShowColumns { .. }
                | Statement::ExplainTable { .. }
        ),
        _ => false,
    };
    if reads {
        return Ok(());
    }
    Err(QueryError::Invalid("SQL here only reads: SELECT, EXPLAIN, SHOW TABLES and SHOW COLUMNS".into()))
}

/// Sends a result on until it ends, its reader leaves, or a limit is reached. The time limit holds for a reader that
/// does not read, too.
async fn forward(
    mut rows: SendableRecordBatchStream,
    to: mpsc::Sender<Sent>,
    rows_max: usize,
    deadline: Deadline,
) {
    let mut count = 0;
    loop {
        let next = tokio::select! {
            () = to.closed() => return,
            next = deadline.bound(rows.next()) => next,
        };
        let item = match next {
            Err(late) => Sent::Failed(late),
            Ok(None) => Sent::End,
            Ok(Some(Err(error))) => Sent::Failed(failed(error)),
            Ok(Some(Ok(batch))) => {
                count += batch.num_rows();
                if count > rows_max {
                    Sent::Failed(QueryError::TooLarge { what: "rows", max: rows_max })
                } else {
                    Sent::Rows(batch)
                }
            }
        };
        let is_last = !matches!(item, Sent::Rows(_));
        // A reader that it does not reach finds that the time is over.
        if !matches!(deadline.bound(to.send(item)).await, Ok(Ok(()))) || is_last {
            return;
        }
    }
}

/// Whose mistake it was.
fn failed(error: DataFusionError) -> QueryError {
    let text = error.strip_backtrace();
    match error.find_root() {
        DataFusionError::ResourcesExhausted(_) => QueryError::OutOfMemory,
        DataFusionError::ParquetError(_)
        | DataFusionError::ObjectStore(_)
        | DataFusionError::IoError(_)
        | DataFusionError::Internal(_) => StoreError::Engine { reason: text }.into(),
        _ => QueryError::Invalid(text),
    }
}
