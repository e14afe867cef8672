use std::{collections::BTreeSet, ops::Bound};

use datafusion::{
    common::Column,
    logical_expr::{BinaryExpr, Expr, Operator, utils::split_conjunction},
    scalar::ScalarValue,
};
use dunlin_model::Timestamp;

use crate::{
    columns::{DEVICE, TIME},
    files::DataFile,
};

/// What a filter says about devices and times: rows outside of it need not be read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Narrow {
    /// `None`: any.
    pub(super) devices: Option<BTreeSet<String>>,
    pub(super) first: Timestamp,
    pub(super) last: Timestamp,
}

impl Narrow {
    pub(super) fn of(filters: &[Expr]) -> Self {
        let mut narrow = Self { devices: None, first: Timestamp::MIN, last: Timestamp::MAX };
        for filter in filters.iter().flat_map(split_conjunction) {
            narrow.by(filter);
        }
        narrow
    }

    pub(super) fn overlaps(&self, time_min: Timestamp, time_max: Timestamp) -> bool {
        time_min <= self.last && time_max >= self.first
    }

    pub(super) fn may_be_in(&self, file: &DataFile) -> bool {
        let e = &file.entry;
        self.overlaps(e.time_min, e.time_max)
            && self.devices.as_ref().is_none_or(|devices| {
                let bounds = (Bound::Included(e.device_min.as_str()), Bound::Included(e.device_max.as_str()));
                devices.range::<str, _>(bounds).next().is_some()
            })
    }

    fn by(&mut self, filter: &Expr) {
        match filter {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                if let (Some(name), Expr::Literal(value, _)) = (name_of(left), &**right) {
                    self.by_comparison(name, *op, value);
                } else if let (Expr::Literal(value, _), Some(name)) = (&**left, name_of(right))
                    && let Some(op) = op.swap()
                {
                    self.by_comparison(name, op, value);
                }
            }
            Expr::Between(between) if !between.negated && name_of(&between.expr) == Some(TIME) => {
                if let (Expr::Literal(low, _), Expr::Literal(high, _)) = (&*between.low, &*between.high) {
                    self.by_comparison(TIME, Operator::GtEq, low);
                    self.by_comparison(TIME, Operator::LtEq, high);
                }
            }
            Expr::InList(list) if !list.negated && name_of(&list.expr) == Some(DEVICE) => {
                let devices: Option<BTreeSet<String>> = list.list.iter().map(text_of).collect();
                if let Some(devices) = devices {
                    self.only(devices);
                }
            }
            _ => {}
        }
    }

    fn by_comparison(&mut self, name: &str, op: Operator, value: &ScalarValue) {
        if name == DEVICE && op == Operator::Eq {
            if let Some(Some(device)) = value.try_as_str() {
                self.only([device.to_owned()].into());
            }
            return;
        }
        let Some(time) = (name == TIME).then(|| time_of(value)).flatten() else { return };
        match op {
            Operator::Gt | Operator::GtEq => self.first = self.first.max(time),
            Operator::Lt | Operator::LtEq => self.last = self.last.min(time),
            Operator::Eq => {
                self.first = self.first.max(time);
                self.last = self.last.min(time);
            }
            _ => {}
        }
    }

    fn only(&mut self, devices: BTreeSet<String>) {
        self.devices = Some(match self.devices.take() {
            Some(before) => before.intersection(&devices).cloned().collect(),
            None => devices,
        });
    }
}

pub(super) fn name_of(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Column(Column { name, .. }) => Some(name),
        _ => None,
    }
}

fn text_of(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Literal(value, _) => value.try_as_str().flatten().map(Into::into),
        _ => None,
    }
}

/// An instant near enough: bounds are inclusive, so a finer unit is cut to its microsecond.
fn time_of(value: &ScalarValue) -> Option<Timestamp> {
    match value {
        ScalarValue::TimestampMicrosecond(Some(v), Some(_)) => Some(Timestamp::from_micros(*v)),
        ScalarValue::TimestampMillisecond(Some(v), Some(_)) => Timestamp::from_millis(*v),
        ScalarValue::TimestampSecond(Some(v), Some(_)) => {
            Some(Timestamp::from_micros(v.checked_mul(1_000_000)?))
        }
        ScalarValue::TimestampNanosecond(Some(v), Some(_)) => {
            Some(Timestamp::from_micros(v.div_euclid(1_000)))
        }
        _ => None,
    }
}
