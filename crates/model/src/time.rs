use std::{
    fmt,
    ops::{Add, Sub},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Microseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    pub const MIN: Self = Self(i64::MIN);
    pub const MAX: Self = Self(i64::MAX);

    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// `None` when the instant is outside what microseconds can say (about the year ±292,000).
    pub const fn from_millis(millis: i64) -> Option<Self> {
        match millis.checked_mul(1_000) {
            Some(micros) => Some(Self(micros)),
            None => None,
        }
    }

    pub const fn as_micros(self) -> i64 {
        self.0
    }

    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// How long after `earlier`; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0).max(0) as u64)
    }

    /// The start of the window of `size` that holds this instant. Windows are aligned to 1970.
    pub fn window_start(self, size: Duration) -> Self {
        let size = (size.as_micros() as i64).max(1);
        Self(self.0.div_euclid(size).saturating_mul(size))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(d.as_micros()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(d.as_micros()).unwrap_or(i64::MAX)))
    }
}

/// The civil date of a count of days since 1970-01-01.
/// Source: H. Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn civil(days: i64) -> (i64, u32, u32) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = (doy - (153 * mp + 2) / 5 + 1) as u32;
    let month = if mp < 10 { mp + 3 } else { mp - 9 } as u32;
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

/// RFC 3339 in UTC, with as many decimals as are needed: 0, 3 or 6.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.0.div_euclid(86_400_000_000));
        let of_day = self.0.rem_euclid(86_400_000_000);
        let (s, us) = (of_day / 1_000_000, of_day % 1_000_000);
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)?;
        match us {
            0 => {}
            us if us % 1_000 == 0 => write!(f, ".{:03}", us / 1_000)?,
            us => write!(f, ".{us:06}")?,
        }
        f.write_str("Z")
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_rfc_3339() {
        let print = |us| Timestamp::from_micros(us).to_string();
        assert_eq!(print(0), "1970-01-01T00:00:00Z");
        assert_eq!(print(1_709_209_599_123_000), "2024-02-29T12:26:39.123Z");
        assert_eq!(print(-1), "1969-12-31T23:59:59.999999Z");
        assert_eq!(print(951_782_400_000_000), "2000-02-29T00:00:00Z");
    }

    #[test]
    fn windows_are_aligned_to_1970_on_both_sides_of_it() {
        let minute = Duration::from_secs(60);
        assert_eq!(Timestamp::from_micros(61_000_000).window_start(minute).as_micros(), 60_000_000);
        assert_eq!(Timestamp::from_micros(-1).window_start(minute).as_micros(), -60_000_000);
    }
}
