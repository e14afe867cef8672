use std::time::Duration;

use dunlin_model::Timestamp;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::problem::Problem;

/// RFC 3339.
pub(crate) fn time(field: &'static str, text: &str) -> Result<Timestamp, Problem> {
    let time = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        Problem::invalid(field, format!("{text:?} is no time; write for example 2026-01-31T08:00:00Z"))
    })?;
    let micros = i64::try_from(time.unix_timestamp_nanos() / 1_000)
        .map_err(|_| Problem::invalid(field, format!("{text:?} is out of range")))?;
    Ok(Timestamp::from_micros(micros))
}

/// `90s`, `2h`, `1day 12h`.
pub(crate) fn span(field: &'static str, text: &str) -> Result<Duration, Problem> {
    match humantime::parse_duration(text) {
        Ok(span) if (Duration::from_secs(1)..=SPAN_MAX).contains(&span) => Ok(span),
        Ok(_) => Err(Problem::invalid(field, "from 1s to 5 years")),
        Err(_) => {
            Err(Problem::invalid(field, format!("{text:?} is no duration; write for example 30m, 2h or 1d")))
        }
    }
}

pub(crate) const SPAN_MAX: Duration = Duration::from_secs(5 * 365 * 86_400);
