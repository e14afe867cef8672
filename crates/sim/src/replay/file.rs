use std::{fs::File, io, path::PathBuf};

use time::{
    OffsetDateTime, PrimitiveDateTime, format_description::BorrowedFormatItem,
    format_description::well_known::Rfc3339, macros::format_description,
};

const NAIVE: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second][optional [.[subsecond]]]");

/// One line of the file. Times finer than a millisecond are cut: the wire has no more.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    pub unix_milliseconds: i64,
    /// The number as the file writes it, so that no digit changes on the way.
    pub value: String,
}

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path} line {line}: {problem}")]
    Line { path: PathBuf, line: u64, problem: String },
}

/// The readings of a CSV file with the header `timestamp,value`, in the file's order. Times are
/// `YYYY-MM-DD HH:MM:SS[.ffffff]` in UTC, RFC 3339, or milliseconds since 1970.
#[derive(Debug)]
pub struct Readings {
    path: PathBuf,
    lines: csv::Reader<File>,
    line: csv::StringRecord,
}

impl Readings {
    pub fn open(path: &std::path::Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(|source| FileError::Open { path: path.to_owned(), source })?;
        let mut lines = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file);
        let path = path.to_owned();
        let wrong = |problem| FileError::Line { path: path.clone(), line: 1, problem };
        let header = lines.headers().map_err(|error| wrong(error.to_string()))?;
        if !header.iter().map(|name| name.trim_start_matches('\u{feff}')).eq(["timestamp", "value"]) {
            let found = header.iter().collect::<Vec<_>>().join(",");
            return Err(wrong(format!("the header must be timestamp,value, not {found:?}")));
        }
        Ok(Self { path, lines, line: csv::StringRecord::new() })
    }

    fn wrong(&self, line: u64, problem: String) -> FileError {
        FileError::Line { path: self.path.clone(), line, problem }
    }
}

impl Iterator for Readings {
    type Item = Result<Reading, FileError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.lines.read_record(&mut self.line) {
            Ok(false) => None,
            Ok(true) => {
                let line = self.line.position().map_or(0, csv::Position::line);
                let [timestamp, value] = [0, 1].map(|field| self.line.get(field).unwrap_or_default());
                Some(match (unix_milliseconds(timestamp), json_number(value)) {
                    (Some(unix_milliseconds), Some(value)) => Ok(Reading { unix_milliseconds, value }),
                    (None, _) => Err(self.wrong(line, format!("{timestamp:?} is not a time"))),
                    (_, None) => Err(self.wrong(line, format!("{value:?} is not a finite number"))),
                })
            }
            Err(error) => {
                let line = error.position().map_or_else(|| self.lines.position().line(), csv::Position::line);
                Some(Err(self.wrong(line, error.to_string())))
            }
        }
    }
}

fn unix_milliseconds(text: &str) -> Option<i64> {
    if let Ok(milliseconds) = text.parse() {
        return Some(milliseconds);
    }
    let time = PrimitiveDateTime::parse(text, NAIVE)
        .map(PrimitiveDateTime::assume_utc)
        .or_else(|_| OffsetDateTime::parse(text, &Rfc3339))
        .ok()?;
    i64::try_from(time.unix_timestamp_nanos().div_euclid(1_000_000)).ok()
}

/// The number as JSON: as it stands if JSON allows that, else (`+1`, `.5`) in its shortest form.
fn json_number(text: &str) -> Option<String> {
    let number: f64 = text.parse().ok()?;
    if !number.is_finite() {
        return None;
    }
    Some(match serde_json::from_str::<serde_json::Number>(text) {
        Ok(_) => text.to_owned(),
        Err(_) => number.to_string(),
    })
}
