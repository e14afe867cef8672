use std::fmt::Write;

use super::CopyError;

/// A table as it is in the original; the copy has the same columns.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: Vec<(String, Kind)>,
    /// The columns of its primary key, by their places.
    pub(super) key: Vec<usize>,
    pub(super) rows: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Integer,
    Real,
    Truth,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Null,
    Text(String),
    Integer(i64),
    Real(f64),
    Truth(bool),
}

pub(super) type Row = Vec<Value>;

/// A row of either database. A macro, as the bounds of a function would be longer than it.
macro_rules! row_of {
    ($row:expr, $table:expr) => {{
        let row = $row;
        let values = $table.columns.iter().enumerate().map(|(n, (_, kind))| {
            Ok(match kind {
                Kind::Text => row.try_get::<Option<String>, _>(n)?.map_or(Value::Null, Value::Text),
                Kind::Integer => row.try_get::<Option<i64>, _>(n)?.map_or(Value::Null, Value::Integer),
                Kind::Real => row.try_get::<Option<f64>, _>(n)?.map_or(Value::Null, Value::Real),
                Kind::Truth => row.try_get::<Option<bool>, _>(n)?.map_or(Value::Null, Value::Truth),
            })
        });
        values.collect::<Result<Row, sqlx::Error>>()
    }};
}
pub(super) use row_of;

impl Kind {
    /// Of a column's declared type: there are four.
    pub(super) fn of(declared: &str) -> Option<Self> {
        Some(match declared {
            "TEXT" => Self::Text,
            "BIGINT" => Self::Integer,
            "DOUBLE PRECISION" => Self::Real,
            "BOOLEAN" => Self::Truth,
            _ => return None,
        })
    }
}

/// To the last bit.
impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Integer(a), Self::Integer(b)) => a == b,
            (Self::Real(a), Self::Real(b)) => a.to_bits() == b.to_bits(),
            (Self::Truth(a), Self::Truth(b)) => a == b,
            _ => false,
        }
    }
}

impl Table {
    pub(super) fn column_list(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| name.as_str()).collect();
        names.join(", ")
    }

    /// In the order of the primary key, which is the same in both: text is compared by its bytes.
    pub(super) fn select(&self) -> String {
        let key: Vec<&str> = self.key.iter().map(|n| self.columns[*n].0.as_str()).collect();
        format!("SELECT {} FROM {} ORDER BY {}", self.column_list(), self.name, key.join(", "))
    }

    /// For people.
    pub(super) fn key_of(&self, row: &Row) -> String {
        let parts: Vec<String> = self
            .key
            .iter()
            .map(|n| match &row[*n] {
                Value::Text(text) => format!("{text:?}"),
                Value::Integer(integer) => integer.to_string(),
                other => format!("{other:?}"),
            })
            .collect();
        parts.join(", ")
    }

    /// A line of PostgreSQL's COPY, in its text format.
    pub(super) fn write_line(&self, row: &Row, out: &mut String) -> Result<(), CopyError> {
        for (n, value) in row.iter().enumerate() {
            if n > 0 {
                out.push('\t');
            }
            // Writing into a String does not fail.
            let _ = match value {
                Value::Null => out.write_str("\\N"),
                Value::Text(text) if text.contains('\0') => {
                    return Err(CopyError::Nul { table: self.name, key: self.key_of(row) });
                }
                Value::Text(text) => {
                    escape(text, out);
                    Ok(())
                }
                Value::Integer(integer) => write!(out, "{integer}"),
                Value::Real(real) => write!(out, "{real:?}"),
                Value::Truth(truth) => out.write_str(if *truth { "t" } else { "f" }),
            };
        }
        out.push('\n');
        Ok(())
    }
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_what_copy_takes_for_its_own() {
        let table = Table {
            name: "t",
            columns: ["a", "b", "c", "d", "e"].map(|name| (name.to_owned(), Kind::Text)).into(),
            key: vec![0],
            rows: 1,
        };
        let row = vec![
            Value::Text("a\tb\n\\N\\.\r".into()),
            Value::Null,
            Value::Integer(-5),
            Value::Real(0.1),
            Value::Truth(true),
        ];
        let mut line = String::new();
        table.write_line(&row, &mut line).unwrap();
        assert_eq!(line, "a\\tb\\n\\\\N\\\\.\\r\t\\N\t-5\t0.1\tt\n");
        let row = vec![Value::Text("a\0".into())];
        let said = table.write_line(&row, &mut line).unwrap_err().to_string();
        assert!(said.contains(r#"row "a\0""#), "{said}");
    }
}
