//! Scalar expressions of SQL over the last readings of a device: the text that a query would have in its WHERE.
//!
//! The same text runs in DataFusion and in Flink: operators, functions and types are those on which both agree, and
//! docs/rules.md lists them. Where SQL would end the whole query (an integer divided by zero, a text cast that fails)
//! the value is NULL here: one reading must not stop a rule.

mod compile; // from text to a checked tree
mod evaluate; // from values to a value

use std::fmt;

use crate::rules::Scalar;

/// Bytes of one expression.
pub const EXPRESSION_BYTES_MAX: usize = 4 << 10;

/// A boolean expression, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Expression {
    text: Box<str>,
    metrics: Vec<Box<str>>,
    root: Node,
}

impl Expression {
    pub fn parse(text: &str) -> Result<Self, String> {
        compile::expression(text)
    }

    /// The metrics that it names, in the order of `values`.
    pub fn metrics(&self) -> &[Box<str>] {
        &self.metrics
    }

    /// `None`: unknown, as when a metric has not been read yet. `values` are the last readings, by `metrics`.
    pub fn holds(&self, values: &[Option<Scalar>]) -> Option<bool> {
        match self.root.value(values)? {
            Scalar::Bool(holds) => Some(holds),
            _ => None,
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Metric(usize),
    /// `None` is NULL.
    Literal(Option<Scalar>),
    Not(Box<Node>),
    Negative(Box<Node>),
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Arithmetic(Arithmetic, Box<Node>, Box<Node>),
    Compare(Compare, Box<Node>, Box<Node>),
    Concat(Box<Node>, Box<Node>),
    /// Whether it is `value`, or with `negated` is not; NULL is neither true nor false.
    Is {
        of: Box<Node>,
        value: Option<bool>,
        negated: bool,
    },
    In {
        of: Box<Node>,
        list: Vec<Node>,
        negated: bool,
    },
    Like {
        of: Box<Node>,
        pattern: Box<str>,
        negated: bool,
    },
    Case {
        arms: Vec<(Node, Node)>,
        otherwise: Box<Node>,
    },
    Cast(Type, Box<Node>),
    Call(Function, Vec<Node>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// What is known of a value before there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    /// A metric's, or NULL's: of whatever is read.
    Any,
    Boolean,
    Bigint,
    Double,
    Text,
}

impl Type {
    fn is_number(self) -> bool {
        matches!(self, Self::Any | Self::Bigint | Self::Double)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Any => "any type",
            Self::Boolean => "BOOLEAN",
            Self::Bigint => "BIGINT",
            Self::Double => "DOUBLE",
            Self::Text => "VARCHAR",
        }
    }
}

/// Functions that DataFusion and Flink have under one name with one meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Function {
    Abs,
    Ceil,
    Floor,
    Round,
    Sqrt,
    Power,
    Exp,
    Ln,
    Log10,
    Sin,
    Cos,
    Tan,
    Asin,
    Acos,
    Atan,
    Atan2,
    Greatest,
    Least,
    Coalesce,
    NullIf,
    Upper,
    Lower,
    CharLength,
    Trim,
    Substring,
}

/// Name, how many arguments at least and at most, their type, its type.
#[rustfmt::skip]
const FUNCTIONS: [(&str, Function, usize, usize, Type, Type); 25] = [
    ("abs", Function::Abs, 1, 1, Type::Double, Type::Any),
    ("ceil", Function::Ceil, 1, 1, Type::Double, Type::Double),
    ("floor", Function::Floor, 1, 1, Type::Double, Type::Double),
    ("round", Function::Round, 1, 2, Type::Double, Type::Double),
    ("sqrt", Function::Sqrt, 1, 1, Type::Double, Type::Double),
    ("power", Function::Power, 2, 2, Type::Double, Type::Double),
    ("exp", Function::Exp, 1, 1, Type::Double, Type::Double),
    ("ln", Function::Ln, 1, 1, Type::Double, Type::Double),
    ("log10", Function::Log10, 1, 1, Type::Double, Type::Double),
    ("sin", Function::Sin, 1, 1, Type::Double, Type::Double),
    ("cos", Function::Cos, 1, 1, Type::Double, Type::Double),
    ("tan", Function::Tan, 1, 1, Type::Double, Type::Double),
    ("asin", Function::Asin, 1, 1, Type::Double, Type::Double),
    ("acos", Function::Acos, 1, 1, Type::Double, Type::Double),
    ("atan", Function::Atan, 1, 1, Type::Double, Type::Double),
    ("atan2", Function::Atan2, 2, 2, Type::Double, Type::Double),
    ("greatest", Function::Greatest, 1, 16, Type::Any, Type::Any),
    ("least", Function::Least, 1, 16, Type::Any, Type::Any),
    ("coalesce", Function::Coalesce, 1, 16, Type::Any, Type::Any),
    ("nullif", Function::NullIf, 2, 2, Type::Any, Type::Any),
    ("upper", Function::Upper, 1, 1, Type::Text, Type::Text),
    ("lower", Function::Lower, 1, 1, Type::Text, Type::Text),
    ("char_length", Function::CharLength, 1, 1, Type::Text, Type::Bigint),
    ("trim", Function::Trim, 1, 1, Type::Text, Type::Text),
    ("substring", Function::Substring, 2, 3, Type::Any, Type::Text),
];

#[cfg(test)]
mod tests;
