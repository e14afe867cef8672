//! Which metric lives in which column. The first value decides a column's type; an integer column that meets a
//! fraction becomes a float column if every integer in it fits one; any other conflict gets a column of its own beside
//! it (`<metric>__text`), so nothing is lost. Beyond `METRIC_COLUMNS_MAX` columns the rest goes, as JSON, into `other`.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use dunlin_model::{Value, ValueRef};
use dunlin_tsdb::WEIGHT_SUFFIX;
use serde::{Deserialize, Serialize};

use crate::identity;

/// Columns of metrics in one table.
pub(crate) const METRIC_COLUMNS_MAX: usize = 512;

pub(crate) const DEVICE: &str = "device";
pub(crate) const TIME: &str = "time";
/// Null when the row is filed under the server's time, which then is `time`.
pub(crate) const RECEIVED_AT: &str = "received_at";
/// A JSON object of the readings that found no column; there only once it was needed.
pub(crate) const OTHER: &str = "other";
/// Columns before the first metric's.
pub(crate) const KEYS: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    F64,
    I64,
    Bool,
    Text,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Column {
    pub(crate) name: Arc<str>,
    pub(crate) metric: Arc<str>,
    pub(crate) kind: Kind,
    /// Holds integers that a float would round.
    pub(crate) wide: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Metric {
    pub(crate) name: Arc<str>,
    pub(crate) hash: u64,
    /// The column per kind of value, in the order of `Kind`.
    columns: [Option<u16>; 4],
}

/// Where a value goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Column(u16),
    /// The column is to change from integers to floats first.
    Promoted(u16),
    Other,
}

#[derive(Debug, Default)]
pub(crate) struct Columns {
    list: Vec<Column>,
    names: HashSet<Arc<str>>,
    metrics: Vec<Metric>,
    by_metric: HashMap<Arc<str>, u32, foldhash::fast::FixedState>,
    other: bool,
    /// The metrics of the row before, which the next row most likely has too.
    guess: Vec<u32>,
    schema: Option<SchemaRef>,
}

impl Columns {
    pub(crate) fn restore(list: Vec<Column>, other: bool) -> Self {
        let mut columns = Self { other, ..Self::default() };
        for column in list {
            if let Some(metric) = columns.metric(&column.metric) {
                columns.metrics[metric as usize].columns[column.kind as usize] =
                    Some(columns.list.len() as u16);
            }
            columns.names.insert(column.name.clone());
            columns.list.push(column);
        }
        columns
    }

    pub(crate) fn list(&self) -> &[Column] {
        &self.list
    }

    pub(crate) fn kind(&self, column: u16) -> Kind {
        self.list[usize::from(column)].kind
    }

    pub(crate) fn has_other(&self) -> bool {
        self.other
    }

    pub(crate) fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    /// The number of a known metric.
    pub(crate) fn number(&self, metric: &str) -> Option<u32> {
        self.by_metric.get(metric).copied()
    }

    /// The number of the metric that is the `position`th in its row; `None` if there are too many to know it.
    pub(crate) fn metric_at(&mut self, position: usize, name: &str) -> Option<u32> {
        if let Some(guess) = self.guess.get(position)
            && &*self.metrics[*guess as usize].name == name
        {
            return Some(*guess);
        }
        let metric = self.metric(name)?;
        if position < self.guess.len() {
            self.guess[position] = metric;
        } else if position == self.guess.len() {
            self.guess.push(metric);
        }
        Some(metric)
    }

    fn metric(&mut self, name: &str) -> Option<u32> {
        if let Some(metric) = self.by_metric.get(name) {
            return Some(*metric);
        }
        if self.metrics.len() >= METRIC_COLUMNS_MAX {
            return None;
        }
        let number = self.metrics.len() as u32;
        let name: Arc<str> = name.into();
        self.metrics.push(Metric { name: name.clone(), hash: identity::name(&name), columns: [None; 4] });
        self.by_metric.insert(name, number);
        Some(number)
    }

    /// Readings go into `other` from now on.
    pub(crate) fn need_other(&mut self) {
        if !self.other {
            self.other = true;
            self.schema = None;
        }
    }

    /// Finds or makes the place of a value.
    pub(crate) fn place(&mut self, metric: u32, value: ValueRef<'_>) -> Place {
        let of = self.metrics[metric as usize].columns;
        let (floats, integers) = (of[Kind::F64 as usize], of[Kind::I64 as usize]);
        match value {
            ValueRef::F64(_) => match (floats, integers) {
                (Some(column), _) => Place::Column(column),
                (None, Some(column)) if !self.list[column as usize].wide => {
                    self.promote(metric, column);
                    Place::Promoted(column)
                }
                (None, _) => self.add(metric, Kind::F64, if integers.is_some() { "float" } else { "number" }),
            },
            ValueRef::I64(v) => {
                let exact = identity::is_exact(v);
                let place = match (integers, floats) {
                    (Some(column), _) => Place::Column(column),
                    (None, Some(column)) if exact => Place::Column(column),
                    (None, _) => {
                        self.add(metric, Kind::I64, if floats.is_some() { "integer" } else { "number" })
                    }
                };
                if let (false, Place::Column(column)) = (exact, place) {
                    self.list[column as usize].wide = true;
                }
                place
            }
            ValueRef::Bool(_) => match of[Kind::Bool as usize] {
                Some(column) => Place::Column(column),
                None => self.add(metric, Kind::Bool, "bool"),
            },
            ValueRef::Text(_) => match of[Kind::Text as usize] {
                Some(column) => Place::Column(column),
                None => self.add(metric, Kind::Text, "text"),
            },
        }
    }

    /// Finds or makes the place of a weight of the metric's readings.
    pub(crate) fn place_weight(&mut self, metric: &str, weight: ValueRef<'_>) -> Option<Place> {
        let name = format!("{metric}{WEIGHT_SUFFIX}");
        let number = self.metric(&name)?;
        Some(self.place(number, weight))
    }

    fn promote(&mut self, metric: u32, column: u16) {
        self.list[column as usize].kind = Kind::F64;
        let of = &mut self.metrics[metric as usize].columns;
        of[Kind::I64 as usize] = None;
        of[Kind::F64 as usize] = Some(column);
        self.schema = None;
    }

    fn add(&mut self, metric: u32, kind: Kind, suffix: &str) -> Place {
        if self.list.len() >= METRIC_COLUMNS_MAX {
            return Place::Other;
        }
        self.schema = None;
        let of = &mut self.metrics[metric as usize];
        let mut name = of.name.to_string();
        if of.columns.iter().any(Option::is_some) {
            name = format!("{name}__{suffix}");
        }
        // A metric may be called as a column of ours is, or as another metric's second column.
        while [DEVICE, TIME, RECEIVED_AT, OTHER].contains(&name.as_str()) || self.names.contains(&*name) {
            name.push('_');
        }
        let (name, column): (Arc<str>, _) = (name.into(), self.list.len() as u16);
        of.columns[kind as usize] = Some(column);
        self.names.insert(name.clone());
        self.list.push(Column { name, metric: of.name.clone(), kind, wide: false });
        Place::Column(column)
    }

    /// The table as queries see it: the keys, a column per metric, `other`.
    pub(crate) fn schema(&mut self) -> SchemaRef {
        self.schema.get_or_insert_with(|| schema_of(&self.list, self.other)).clone()
    }
}

/// Whether it is no metric, but says for how many each reading of one stands.
pub(crate) fn is_weight(metric: &str) -> bool {
    metric.ends_with(WEIGHT_SUFFIX)
}

/// What `identity::reading` wants of the metric in a column; a weight is no part of what a row is.
pub(crate) fn metric_hash(list: &[Column], column: &str) -> Option<u64> {
    let column = list.iter().find(|c| &*c.name == column).filter(|c| !is_weight(&c.metric))?;
    Some(identity::name(&column.metric))
}

/// The schema of a file, in the types that the table has now. What a later column would hold is left out.
pub(crate) fn schema_of_file(list: &[Column], file: &SchemaRef) -> SchemaRef {
    let here: Vec<Column> = list.iter().filter(|c| file.field_with_name(&c.name).is_ok()).cloned().collect();
    schema_of(&here, file.field_with_name(OTHER).is_ok())
}

pub(crate) fn schema_of(list: &[Column], other: bool) -> SchemaRef {
    let mut fields = vec![
        Field::new(DEVICE, DataType::Utf8View, false),
        Field::new(TIME, time_type(), false),
        Field::new(RECEIVED_AT, time_type(), true),
    ];
    fields.extend(list.iter().map(|column| Field::new(&*column.name, data_type(column.kind), true)));
    if other {
        fields.push(Field::new(OTHER, DataType::Utf8View, true));
    }
    Arc::new(Schema::new(fields))
}

/// Readings as the JSON object that `other` holds, numbers to the last bit.
pub(crate) fn other_json(readings: &[(&str, ValueRef<'_>)]) -> String {
    let object: serde_json::Map<String, serde_json::Value> =
        readings.iter().map(|(metric, value)| ((*metric).to_owned(), json(*value))).collect();
    serde_json::Value::Object(object).to_string()
}

fn json(value: ValueRef<'_>) -> serde_json::Value {
    match value {
        ValueRef::F64(v) => v.into(),
        ValueRef::I64(v) => v.into(),
        ValueRef::Bool(v) => v.into(),
        ValueRef::Text(v) => v.into(),
    }
}

/// The readings of an `other` column.
pub(crate) fn other_readings(json: &str) -> Vec<(String, Value)> {
    // Read as text first: numbers are parsed here, because serde_json's own parser may be off by a bit.
    let raw: std::collections::BTreeMap<String, &serde_json::value::RawValue> =
        serde_json::from_str(json).unwrap_or_default();
    let value = |raw: &str| match raw.as_bytes().first()? {
        b'"' => serde_json::from_str::<Box<str>>(raw).ok().map(Value::Text),
        b't' => Some(Value::Bool(true)),
        b'f' => Some(Value::Bool(false)),
        _ => raw.parse().map(Value::I64).or_else(|_| raw.parse().map(Value::F64)).ok(),
    };
    raw.into_iter().filter_map(|(metric, raw)| Some((metric, value(raw.get())?))).collect()
}

/// What the readings of an `other` column add to the identity of their row.
pub(crate) fn other_print(json: &str) -> u64 {
    other_readings(json).iter().filter(|(metric, _)| !is_weight(metric)).fold(0, |sum, (metric, value)| {
        sum.wrapping_add(identity::reading(identity::name(metric), value.borrowed()))
    })
}

pub(crate) fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

pub(crate) fn data_type(kind: Kind) -> DataType {
    match kind {
        Kind::F64 => DataType::Float64,
        Kind::I64 => DataType::Int64,
        Kind::Bool => DataType::Boolean,
        Kind::Text => DataType::Utf8View,
    }
}
