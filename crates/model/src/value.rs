use serde::{Deserialize, Serialize};

/// The value of one reading, borrowed from the message it came in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ValueRef<'a> {
    F64(f64),
    I64(i64),
    Bool(bool),
    Text(&'a str),
}

/// The value of one reading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    Bool(bool),
    I64(i64),
    F64(f64),
    Text(Box<str>),
}

impl ValueRef<'_> {
    /// What arithmetic sees: numbers as they are, a bool as 0 or 1, a text not at all.
    pub fn as_number(self) -> Option<f64> {
        match self {
            Self::F64(v) => Some(v),
            Self::I64(v) => Some(v as f64),
            Self::Bool(v) => Some(f64::from(u8::from(v))),
            Self::Text(_) => None,
        }
    }

    pub fn to_owned(self) -> Value {
        match self {
            Self::F64(v) => Value::F64(v),
            Self::I64(v) => Value::I64(v),
            Self::Bool(v) => Value::Bool(v),
            Self::Text(v) => Value::Text(v.into()),
        }
    }
}

impl Value {
    pub fn borrowed(&self) -> ValueRef<'_> {
        match self {
            Self::F64(v) => ValueRef::F64(*v),
            Self::I64(v) => ValueRef::I64(*v),
            Self::Bool(v) => ValueRef::Bool(*v),
            Self::Text(v) => ValueRef::Text(v),
        }
    }
}
