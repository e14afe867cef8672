use dunlin_model::ValueRef;
use serde::{Deserialize, Serialize};

/// The value of a reading as the rules keep it, in memory and in checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Scalar {
    F64(f64),
    I64(i64),
    Bool(bool),
    Text(Box<str>),
}

impl Scalar {
    pub fn borrowed(&self) -> ValueRef<'_> {
        match self {
            Self::F64(v) => ValueRef::F64(*v),
            Self::I64(v) => ValueRef::I64(*v),
            Self::Bool(v) => ValueRef::Bool(*v),
            Self::Text(v) => ValueRef::Text(v),
        }
    }

    pub fn number(&self) -> Option<f64> {
        number(self.borrowed())
    }
}

/// What comparisons see; `None` for texts and for what no finite number is.
pub(crate) fn number(value: ValueRef<'_>) -> Option<f64> {
    value.as_number().filter(|v| v.is_finite())
}

impl From<ValueRef<'_>> for Scalar {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::F64(v) => Self::F64(v),
            ValueRef::I64(v) => Self::I64(v),
            ValueRef::Bool(v) => Self::Bool(v),
            ValueRef::Text(v) => Self::Text(v.into()),
        }
    }
}
