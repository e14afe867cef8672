use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::{
    catalog::view::ViewTable,
    common::Result,
    datasource::provider_as_source,
    functions::expr_fn::coalesce,
    logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, Union, cast, col, lit},
    scalar::ScalarValue,
};

use super::{column_named, table::TelemetryTable};
use crate::columns::{Column, DEVICE, Kind, RECEIVED_AT, TIME};

/// One row per reading. Each column of a table is a branch with its metric as a constant, so that a condition on the
/// metric drops the other branches before anything is read.
pub(super) fn view(tenant: &str, tables: &[Arc<TelemetryTable>]) -> Result<ViewTable> {
    let mut branches = Vec::new();
    for table in tables {
        for column in &table.columns {
            branches.push(Arc::new(branch(tenant, table, column)?));
        }
    }
    let plan = match branches.len() {
        0 => nothing(tenant)?,
        1 => Arc::unwrap_or_clone(branches.swap_remove(0)),
        _ => LogicalPlan::Union(Union::try_new_with_loose_types(branches)?),
    };
    Ok(ViewTable::new(plan, None))
}

fn branch(tenant: &str, table: &Arc<TelemetryTable>, column: &Column) -> Result<LogicalPlan> {
    let value = column_named(&column.name);
    let (number, text) = match column.kind {
        Kind::Text => (lit(ScalarValue::Float64(None)), value.clone()),
        Kind::F64 => (value.clone(), no_text()),
        Kind::I64 | Kind::Bool => (cast(value.clone(), DataType::Float64), no_text()),
    };
    LogicalPlanBuilder::scan(&*table.device_type, provider_as_source(table.clone()), None)?
        .filter(value.is_not_null())?
        .project([
            name(tenant).alias("tenant"),
            col(DEVICE).alias("device"),
            name(&table.device_type).alias("device_type"),
            name(&column.metric).alias("metric"),
            col(TIME).alias("time"),
            number.alias("value"),
            text.alias("text"),
            coalesce(vec![col(RECEIVED_AT), col(TIME)]).alias("received_at"),
        ])?
        .build()
}

/// The view of a tenant that has sent nothing yet.
fn nothing(tenant: &str) -> Result<LogicalPlan> {
    let table = Arc::new(TelemetryTable::empty("default"));
    LogicalPlanBuilder::scan("default", provider_as_source(table), None)?
        .project([
            name(tenant).alias("tenant"),
            col(DEVICE).alias("device"),
            name("default").alias("device_type"),
            name("").alias("metric"),
            col(TIME).alias("time"),
            lit(ScalarValue::Float64(None)).alias("value"),
            no_text().alias("text"),
            col(RECEIVED_AT).alias("received_at"),
        ])?
        .build()
}

fn name(text: &str) -> Expr {
    lit(ScalarValue::Utf8View(Some(text.into())))
}

fn no_text() -> Expr {
    lit(ScalarValue::Utf8View(None))
}
