use std::cmp::Ordering;

use crate::rules::Scalar;

use super::{Arithmetic, Compare, Function, Node, Type};

impl Node {
    /// `None` is NULL.
    pub(super) fn value(&self, values: &[Option<Scalar>]) -> Option<Scalar> {
        let boolean = |holds: Option<bool>| holds.map(Scalar::Bool);
        match self {
            Self::Metric(n) => values.get(*n)?.clone(),
            Self::Literal(value) => value.clone(),
            Self::Not(of) => boolean(of.truth(values).map(|holds| !holds)),
            Self::Negative(of) => match of.value(values)? {
                Scalar::I64(v) => Some(Scalar::I64(v.wrapping_neg())),
                Scalar::F64(v) => Some(Scalar::F64(-v)),
                _ => None,
            },
            Self::And(a, b) => boolean(match (a.truth(values), b.truth(values)) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (Some(true), Some(true)) => Some(true),
                _ => None,
            }),
            Self::Or(a, b) => boolean(match (a.truth(values), b.truth(values)) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (Some(false), Some(false)) => Some(false),
                _ => None,
            }),
            Self::Arithmetic(by, a, b) => by.of(a.value(values)?, b.value(values)?),
            Self::Compare(by, a, b) => {
                boolean(order(&a.value(values)?, &b.value(values)?).map(|order| by.holds(order)))
            }
            Self::Concat(a, b) => match (a.value(values)?, b.value(values)?) {
                (Scalar::Text(a), Scalar::Text(b)) => Some(Scalar::Text(format!("{a}{b}").into())),
                _ => None,
            },
            Self::Is { of, value: None, negated } => {
                Some(Scalar::Bool(of.value(values).is_none() != *negated))
            }
            Self::Is { of, value, negated } => Some(Scalar::Bool((of.truth(values) == *value) != *negated)),
            Self::In { of, list, negated } => {
                let of = of.value(values)?;
                let mut found = Some(false);
                for item in list {
                    match item.value(values).map(|item| order(&of, &item)) {
                        Some(Some(Ordering::Equal)) => return Some(Scalar::Bool(!*negated)),
                        Some(Some(_)) => {}
                        Some(None) | None => found = None,
                    }
                }
                boolean(found.map(|found| found != *negated))
            }
            Self::Like { of, pattern, negated } => match of.value(values)? {
                Scalar::Text(text) => Some(Scalar::Bool(is_like(&text, pattern) != *negated)),
                _ => None,
            },
            Self::Case { arms, otherwise } => {
                let arm = arms.iter().find(|(when, _)| when.truth(values) == Some(true));
                arm.map_or(&**otherwise, |(_, then)| then).value(values)
            }
            Self::Cast(to, of) => cast(of.value(values)?, *to),
            Self::Call(function, arguments) => call(*function, arguments, values),
        }
    }

    fn truth(&self, values: &[Option<Scalar>]) -> Option<bool> {
        match self.value(values)? {
            Scalar::Bool(holds) => Some(holds),
            _ => None,
        }
    }
}

impl Arithmetic {
    fn of(self, a: Scalar, b: Scalar) -> Option<Scalar> {
        if let (Scalar::I64(a), Scalar::I64(b)) = (&a, &b) {
            return Some(Scalar::I64(match self {
                Self::Add => a.wrapping_add(*b),
                Self::Subtract => a.wrapping_sub(*b),
                Self::Multiply => a.wrapping_mul(*b),
                Self::Divide => a.checked_div(*b)?,
                Self::Modulo => a.checked_rem(*b)?,
            }));
        }
        let (a, b) = (number(&a)?, number(&b)?);
        Some(Scalar::F64(match self {
            Self::Add => a + b,
            Self::Subtract => a - b,
            Self::Multiply => a * b,
            Self::Divide => a / b,
            Self::Modulo => a % b,
        }))
    }
}

impl Compare {
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::NotEqual => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::LessOrEqual => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::GreaterOrEqual => order.is_ge(),
        }
    }
}

/// A boolean is no number here, as in SQL.
fn number(value: &Scalar) -> Option<f64> {
    match value {
        Scalar::F64(v) => Some(*v),
        Scalar::I64(v) => Some(*v as f64),
        Scalar::Bool(_) | Scalar::Text(_) => None,
    }
}

fn order(a: &Scalar, b: &Scalar) -> Option<Ordering> {
    match (a, b) {
        (Scalar::I64(a), Scalar::I64(b)) => Some(a.cmp(b)),
        (Scalar::Bool(a), Scalar::Bool(b)) => Some(a.cmp(b)),
        (Scalar::Text(a), Scalar::Text(b)) => Some(a.cmp(b)),
        (a, b) => number(a)?.partial_cmp(&number(b)?),
    }
}

/// `%` stands for any characters, `_` for one.
fn is_like(text: &str, pattern: &str) -> bool {
    let (text, pattern): (Vec<char>, Vec<char>) = (text.chars().collect(), pattern.chars().collect());
    let (mut t, mut p) = (0, 0);
    // Where the last `%` is, and how much of the text it has taken.
    let mut back: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('%') => {
                back = Some((p, t));
                p += 1;
            }
            Some(c) if *c == '_' || *c == text[t] => (t, p) = (t + 1, p + 1),
            _ => match &mut back {
                Some((at, taken)) => {
                    *taken += 1;
                    (t, p) = (*taken, *at + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '%')
}

fn cast(value: Scalar, to: Type) -> Option<Scalar> {
    match (to, value) {
        (Type::Any, value) => Some(value),
        (Type::Double, Scalar::Text(text)) => text.trim().parse().ok().map(Scalar::F64),
        (Type::Double, value) => number(&value).map(Scalar::F64),
        (Type::Bigint, Scalar::I64(v)) => Some(Scalar::I64(v)),
        // 2^63 itself does not fit.
        (Type::Bigint, Scalar::F64(v)) => (v.abs() < 9.223372036854775e18).then_some(Scalar::I64(v as i64)),
        (Type::Bigint, Scalar::Bool(v)) => Some(Scalar::I64(i64::from(v))),
        (Type::Bigint, Scalar::Text(text)) => text.trim().parse().ok().map(Scalar::I64),
        (Type::Boolean, Scalar::Bool(v)) => Some(Scalar::Bool(v)),
        (Type::Boolean, Scalar::I64(v)) => Some(Scalar::Bool(v != 0)),
        (Type::Boolean, Scalar::F64(v)) => Some(Scalar::Bool(v != 0.0)),
        (Type::Boolean, Scalar::Text(text)) => match text.trim().to_ascii_lowercase().as_str() {
            "true" => Some(Scalar::Bool(true)),
            "false" => Some(Scalar::Bool(false)),
            _ => None,
        },
        (Type::Text, Scalar::Text(text)) => Some(Scalar::Text(text)),
        (Type::Text, Scalar::I64(v)) => Some(Scalar::Text(v.to_string().into())),
        (Type::Text, Scalar::F64(v)) => Some(Scalar::Text(format!("{v:?}").into())),
        (Type::Text, Scalar::Bool(v)) => Some(Scalar::Text(v.to_string().into())),
    }
}

fn call(function: Function, arguments: &[Node], values: &[Option<Scalar>]) -> Option<Scalar> {
    let value = |n: usize| arguments.get(n)?.value(values);
    let real = |n: usize| number(&value(n)?);
    let text = |n: usize| match value(n)? {
        Scalar::Text(text) => Some(text),
        _ => None,
    };
    let of_real = |f: fn(f64) -> f64| real(0).map(f).map(Scalar::F64);
    match function {
        Function::Abs => match value(0)? {
            Scalar::I64(v) => Some(Scalar::I64(v.wrapping_abs())),
            v => number(&v).map(|v| Scalar::F64(v.abs())),
        },
        Function::Ceil => of_real(f64::ceil),
        Function::Floor => of_real(f64::floor),
        Function::Round => {
            let digits = if arguments.len() > 1 { real(1)? } else { 0.0 };
            let scale = 10f64.powi(digits.clamp(-300.0, 300.0) as i32);
            Some(Scalar::F64((real(0)? * scale).round() / scale))
        }
        Function::Sqrt => of_real(f64::sqrt),
        Function::Power => Some(Scalar::F64(real(0)?.powf(real(1)?))),
        Function::Exp => of_real(f64::exp),
        Function::Ln => of_real(f64::ln),
        Function::Log10 => of_real(f64::log10),
        Function::Sin => of_real(f64::sin),
        Function::Cos => of_real(f64::cos),
        Function::Tan => of_real(f64::tan),
        Function::Asin => of_real(f64::asin),
        Function::Acos => of_real(f64::acos),
        Function::Atan => of_real(f64::atan),
        Function::Atan2 => Some(Scalar::F64(real(0)?.atan2(real(1)?))),
        Function::Greatest | Function::Least => {
            // Flink says NULL if one is NULL, DataFusion leaves NULLs out; with readings of all, both say the same.
            let wanted = if function == Function::Greatest { Ordering::Greater } else { Ordering::Less };
            let mut best = value(0)?;
            for n in 1..arguments.len() {
                let next = value(n)?;
                if order(&next, &best)? == wanted {
                    best = next;
                }
            }
            Some(best)
        }
        Function::Coalesce => arguments.iter().find_map(|argument| argument.value(values)),
        Function::NullIf => {
            let first = value(0)?;
            let same = value(1).is_some_and(|second| order(&first, &second) == Some(Ordering::Equal));
            (!same).then_some(first)
        }
        Function::Upper => Some(Scalar::Text(text(0)?.to_uppercase().into())),
        Function::Lower => Some(Scalar::Text(text(0)?.to_lowercase().into())),
        Function::CharLength => Some(Scalar::I64(text(0)?.chars().count() as i64)),
        Function::Trim => Some(Scalar::Text(text(0)?.trim_matches(' ').into())),
        Function::Substring => {
            let first = real(1)? as i64;
            let end = match arguments.len() {
                0..=2 => i64::MAX,
                _ => first.saturating_add(real(2)?.max(0.0) as i64),
            };
            let numbered = (1i64..).zip(text(0)?.chars().collect::<Vec<_>>());
            let kept: String = numbered.filter(|(n, _)| (first..end).contains(n)).map(|(_, c)| c).collect();
            Some(Scalar::Text(kept.into()))
        }
    }
}
