use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StringViewArray, new_null_array},
    datatypes::{DataType, SchemaRef},
};
use datafusion::{
    catalog::{Session, TableProvider},
    common::Result,
    datasource::{
        TableType,
        listing::PartitionedFile,
        memory::MemorySourceConfig,
        physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource},
        source::DataSourceExec,
    },
    execution::object_store::ObjectStoreUrl,
    logical_expr::{Expr, TableProviderFilterPushDown, utils::split_conjunction},
    physical_plan::{ExecutionPlan, empty::EmptyExec, union::UnionExec},
};

use super::narrow::{self, Narrow};
use crate::{
    columns::{Column, KEYS, schema_of},
    files::DataFile,
    memtable::Chunk,
    state::Table,
};

/// One table as it was at one moment: its files stay while it is held.
pub(crate) struct TelemetryTable {
    pub(super) number: usize,
    pub(super) device_type: Arc<str>,
    pub(super) columns: Vec<Column>,
    pub(super) has_other: bool,
    schema: SchemaRef,
    names: Arc<StringViewArray>,
    chunks: Vec<FreshChunk>,
    files: Vec<Arc<DataFile>>,
}

/// Fresh rows, and the names of their devices once a scan wanted them: the long view scans a table once per column.
struct FreshChunk {
    chunk: Arc<Chunk>,
    devices: OnceLock<ArrayRef>,
}

impl TelemetryTable {
    pub(super) fn snapshot(number: usize, table: &mut Table) -> Self {
        let mut chunks: Vec<Arc<Chunk>> =
            table.frozen.iter().flat_map(|frozen| frozen.chunks.iter().cloned()).collect();
        chunks.extend(table.fresh.snapshot());
        Self {
            number,
            device_type: table.device_type.clone(),
            columns: table.columns.list().to_vec(),
            has_other: table.columns.has_other(),
            schema: table.columns.schema(),
            names: table.devices.names(),
            chunks: chunks.into_iter().map(|chunk| FreshChunk { chunk, devices: OnceLock::new() }).collect(),
            files: table.files.values().flatten().cloned().collect(),
        }
    }

    pub(super) fn empty(device_type: &str) -> Self {
        Self {
            number: usize::MAX,
            device_type: device_type.into(),
            columns: Vec::new(),
            has_other: false,
            schema: schema_of(&[], false),
            names: Arc::new(StringViewArray::from_iter_values::<&str, _>([])),
            chunks: Vec::new(),
            files: Vec::new(),
        }
    }

    fn fresh_rows(
        &self,
        narrow: &Narrow,
        filters: &[Expr],
        projection: &[usize],
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let needed: Vec<usize> = filters
            .iter()
            .flat_map(split_conjunction)
            .filter_map(|filter| match filter {
                Expr::IsNotNull(column) => self.schema.index_of(narrow::name_of(column)?).ok(),
                _ => None,
            })
            .filter(|column| *column >= KEYS)
            .collect();
        let mut nulls =
            Nulls::new(self.chunks.iter().map(|fresh| fresh.chunk.rows).max().unwrap_or_default());
        let mut batches = Vec::new();
        for fresh in self.chunks.iter().filter(|f| narrow.overlaps(f.chunk.time_min, f.chunk.time_max)) {
            if needed.iter().all(|column| fresh.chunk.has(*column, self.columns.len())) {
                batches.push(self.project(fresh, projection, &mut nulls)?);
            }
        }
        if batches.is_empty() {
            return Ok(None);
        }
        let schema = Arc::new(self.schema.project(projection)?);
        Ok(Some(MemorySourceConfig::try_new_exec(&[batches], schema, None)?))
    }

    fn project(&self, fresh: &FreshChunk, wanted: &[usize], nulls: &mut Nulls) -> Result<RecordBatch> {
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(wanted.len());
        for number in wanted {
            let wanted_type = self.schema.field(*number).data_type();
            let array = match (*number, fresh.devices.get()) {
                (0, Some(devices)) => Some(devices.clone()),
                (0, None) => {
                    let devices = fresh.chunk.device_names(&self.names)?;
                    Some(fresh.devices.get_or_init(|| devices).clone())
                }
                _ => fresh.chunk.column(*number, &self.columns, wanted_type)?,
            };
            arrays.push(array.unwrap_or_else(|| nulls.of(wanted_type, fresh.chunk.rows)));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(fresh.chunk.rows));
        let schema = Arc::new(self.schema.project(wanted)?);
        Ok(RecordBatch::try_new_with_options(schema, arrays, &options)?)
    }

    fn rows_in_files(
        &self,
        state: &dyn Session,
        narrow: &Narrow,
        projection: &[usize],
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let mut files: Vec<&Arc<DataFile>> =
            self.files.iter().filter(|file| narrow.may_be_in(file)).collect();
        if files.is_empty() {
            return Ok(None);
        }
        // Large ones first, each to the group that has least, so that all cores end together.
        files.sort_by_key(|file| std::cmp::Reverse(file.entry.bytes));
        let mut groups = vec![(0, Vec::new()); state.config().target_partitions().clamp(1, files.len())];
        for file in files {
            let path = object_store::path::Path::from_absolute_path(&file.path)
                .map_err(|e| datafusion::error::DataFusionError::External(Box::new(e)))?;
            let part = PartitionedFile::new(path.to_string(), file.entry.bytes);
            if let Some(least) = groups.iter_mut().min_by_key(|group| group.0) {
                least.0 += file.entry.bytes;
                least.1.push(part);
            }
        }
        let mut options = state.table_options().parquet.clone();
        options.global.pushdown_filters = true;
        options.global.reorder_filters = true;
        let source = ParquetSource::new(self.schema.clone()).with_table_parquet_options(options);
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), Arc::new(source))
            .with_file_groups(groups.into_iter().map(|(_, files)| FileGroup::new(files)).collect())
            .with_projection_indices(Some(projection.to_vec()))?
            .build();
        Ok(Some(DataSourceExec::from_data_source(config)))
    }
}

/// Columns of nulls that share their memory.
struct Nulls {
    rows_max: usize,
    by_type: Vec<ArrayRef>,
}

impl Nulls {
    fn new(rows_max: usize) -> Self {
        Self { rows_max, by_type: Vec::new() }
    }

    fn of(&mut self, wanted: &DataType, rows: usize) -> ArrayRef {
        if let Some(nulls) = self.by_type.iter().find(|nulls| nulls.data_type() == wanted) {
            return nulls.slice(0, rows);
        }
        let nulls = new_null_array(wanted, self.rows_max);
        self.by_type.push(nulls.clone());
        nulls.slice(0, rows)
    }
}

impl fmt::Debug for TelemetryTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TelemetryTable").field("device_type", &self.device_type).finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl TableProvider for TelemetryTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let narrow = Narrow::of(filters);
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        let projection = projection.unwrap_or(&all);
        let files = self.rows_in_files(state, &narrow, projection)?;
        let fresh = self.fresh_rows(&narrow, filters, projection)?;
        match (files, fresh) {
            (Some(files), Some(fresh)) => UnionExec::try_new(vec![files, fresh]),
            (Some(only), None) | (None, Some(only)) => Ok(only),
            (None, None) => Ok(Arc::new(EmptyExec::new(Arc::new(self.schema.project(projection)?)))),
        }
    }
}
