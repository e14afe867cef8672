use std::sync::{Arc, LazyLock};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, Float64Builder, Int64Builder, ListArray, StringViewBuilder, StructArray,
    },
    buffer::OffsetBuffer,
    datatypes::{DataType, Field, FieldRef, Fields},
};
use datafusion::{
    catalog::view::ViewTable,
    common::{Result, UnnestOptions},
    datasource::provider_as_source,
    functions::{core::expr_fn::get_field, expr_fn::coalesce},
    logical_expr::{
        ColumnarValue, Expr, LogicalPlan, LogicalPlanBuilder, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
        Signature, Union, Volatility, cast, col, lit,
    },
    scalar::ScalarValue,
};
use dunlin_model::ValueRef;
use dunlin_tsdb::WEIGHT_SUFFIX;

use super::{column_named, table::TelemetryTable, weight_in};
use crate::columns::{Column, DEVICE, Kind, OTHER, RECEIVED_AT, TIME, is_weight, other_readings};

/// One row per reading. Each column of a table is a branch with its metric as a constant, so that a condition on the
/// metric drops the other branches before anything is read.
pub(super) fn view(tenant: &str, tables: &[Arc<TelemetryTable>]) -> Result<ViewTable> {
    let mut branches = Vec::new();
    for table in tables {
        for column in table.columns.iter().filter(|column| !is_weight(&column.metric)) {
            branches.push(Arc::new(branch(tenant, table, column)?));
        }
        if table.has_other {
            branches.push(Arc::new(branch_of_other(tenant, table)?));
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
    let name_of_weight = format!("{}{WEIGHT_SUFFIX}", column.metric);
    let weight = match table.columns.iter().find(|column| *column.metric == *name_of_weight) {
        Some(weight) => coalesce(vec![column_named(&weight.name), lit(1i64)]),
        None => lit(1i64),
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
            weight.alias("weight"),
        ])?
        .build()
}

/// The readings that found no column.
fn branch_of_other(tenant: &str, table: &Arc<TelemetryTable>) -> Result<LogicalPlan> {
    let reading = |part: &str| get_field(col(READING), part);
    let of_rows_with_any = UnnestOptions::new().with_preserve_nulls(false);
    LogicalPlanBuilder::scan(&*table.device_type, provider_as_source(table.clone()), None)?
        .filter(col(OTHER).is_not_null())?
        .project([
            col(DEVICE).alias("device"),
            col(TIME).alias("time"),
            coalesce(vec![col(RECEIVED_AT), col(TIME)]).alias("received_at"),
            OTHER_READINGS.call(vec![col(OTHER)]).alias(READING),
        ])?
        .unnest_column_with_options(READING, of_rows_with_any)?
        .project([
            name(tenant).alias("tenant"),
            col("device"),
            name(&table.device_type).alias("device_type"),
            reading("metric").alias("metric"),
            col("time"),
            reading("value").alias("value"),
            reading("text").alias("text"),
            col("received_at"),
            reading("weight").alias("weight"),
        ])?
        .build()
}

const READING: &str = "reading";

/// The readings of `other` as a list.
static OTHER_READINGS: LazyLock<ScalarUDF> = LazyLock::new(|| {
    ScalarUDF::from(OtherReadings {
        signature: Signature::exact(vec![DataType::Utf8View], Volatility::Immutable),
    })
});

#[derive(Debug, PartialEq, Eq, Hash)]
struct OtherReadings {
    signature: Signature,
}

impl OtherReadings {
    fn parts() -> Fields {
        [
            ("metric", DataType::Utf8View),
            ("value", DataType::Float64),
            ("text", DataType::Utf8View),
            ("weight", DataType::Int64),
        ]
        .map(|(name, kind)| Field::new(name, kind, true))
        .into_iter()
        .collect()
    }

    fn item() -> FieldRef {
        Arc::new(Field::new_list_field(DataType::Struct(Self::parts()), true))
    }
}

impl ScalarUDFImpl for OtherReadings {
    fn name(&self) -> &str {
        "other_readings"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::List(Self::item()))
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let others = ColumnarValue::values_to_arrays(&args.args)?.swap_remove(0);
        let others = others.as_string_view();
        let (mut metrics, mut numbers, mut texts, mut weights) =
            (StringViewBuilder::new(), Float64Builder::new(), StringViewBuilder::new(), Int64Builder::new());
        let mut lengths = Vec::with_capacity(others.len());
        for other in others {
            let all = other.map(other_readings).unwrap_or_default();
            let readings: Vec<_> = all.iter().filter(|(metric, _)| !is_weight(metric)).collect();
            lengths.push(readings.len());
            for (metric, value) in readings {
                metrics.append_value(metric);
                weights.append_value(i64::from(weight_in(&all, metric)));
                let value = value.borrowed();
                numbers.append_option(value.as_number());
                texts.append_option(match value {
                    ValueRef::Text(text) => Some(text),
                    _ => None,
                });
            }
        }
        let parts: Vec<ArrayRef> = vec![
            Arc::new(metrics.finish()),
            Arc::new(numbers.finish()),
            Arc::new(texts.finish()),
            Arc::new(weights.finish()),
        ];
        let readings = StructArray::try_new(Self::parts(), parts, None)?;
        let lists =
            ListArray::try_new(Self::item(), OffsetBuffer::from_lengths(lengths), Arc::new(readings), None)?;
        Ok(ColumnarValue::Array(Arc::new(lists)))
    }
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
            lit(1i64).alias("weight"),
        ])?
        .build()
}

fn name(text: &str) -> Expr {
    lit(ScalarValue::Utf8View(Some(text.into())))
}

fn no_text() -> Expr {
    lit(ScalarValue::Utf8View(None))
}
