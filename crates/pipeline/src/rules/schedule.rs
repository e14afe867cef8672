//! `Mon-Fri 08:00-18:00 Europe/Berlin`: hours of the week at a place.
//!
//! ```text
//! schedule = span { "," span } [ time zone ]     the zone is UTC if absent
//! span     = days [ hours ] | hours              all day, every day if absent
//! days     = day [ "-" day ]                     Mon Tue Wed Thu Fri Sat Sun
//! hours    = HH:MM "-" HH:MM                     up to 24:00; past midnight if the end is not after the start
//! ```

use std::{fmt, str::FromStr};

use chrono::{DateTime, Datelike, Days, NaiveDate, NaiveTime, TimeZone, Timelike};
use chrono_tz::Tz;
use dunlin_model::Timestamp;

const DAY_NAMES: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const DAY_MINUTES: u16 = 24 * 60;
/// No schedule has a boundary further away; one without any has none.
const BOUNDARY_DAYS_MAX: u64 = 9;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    spans: Vec<Span>,
    zone: Tz,
}

/// Minutes of the local day, on some days of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    first_day: u8,
    last_day: u8,
    from: u16,
    /// Not after `from`: on the next day.
    to: u16,
}

impl Span {
    fn is_on(&self, day: u8) -> bool {
        match self.first_day <= self.last_day {
            true => (self.first_day..=self.last_day).contains(&day),
            false => day >= self.first_day || day <= self.last_day,
        }
    }

    fn holds(&self, day: u8, minute: u16) -> bool {
        if self.from < self.to {
            return self.is_on(day) && (self.from..self.to).contains(&minute);
        }
        let day_before = (day + 6) % 7;
        (self.is_on(day) && minute >= self.from) || (self.is_on(day_before) && minute < self.to)
    }
}

impl Schedule {
    pub fn holds(&self, at: Timestamp) -> bool {
        let Some(local) = self.local(at) else { return false };
        let day = local.weekday().num_days_from_monday() as u8;
        let minute = (local.hour() * 60 + local.minute()) as u16;
        self.spans.iter().any(|span| span.holds(day, minute))
    }

    /// When it next begins or ends after `at`.
    pub fn next_change(&self, at: Timestamp) -> Option<Timestamp> {
        let held = self.holds(at);
        let first_day = self.local(at)?.date_naive();
        let days = (0..BOUNDARY_DAYS_MAX).filter_map(|n| first_day.checked_add_days(Days::new(n)));
        let edges = days.flat_map(|day| self.edges(day));
        edges.filter(|edge| *edge > at && self.holds(*edge) != held).min()
    }

    /// The instants of a local day at which a span could begin or end.
    fn edges(&self, day: NaiveDate) -> impl Iterator<Item = Timestamp> {
        let minutes = self.spans.iter().flat_map(|span| [0, span.from, span.to % DAY_MINUTES]);
        minutes.filter_map(move |minute| {
            let time = NaiveTime::from_num_seconds_from_midnight_opt(u32::from(minute) * 60, 0)?;
            let local = self.zone.from_local_datetime(&day.and_time(time));
            // An hour that the clocks skip begins when they have skipped it.
            let instant = local.earliest().or_else(|| {
                let later = day.and_time(time) + chrono::TimeDelta::hours(1);
                self.zone.from_local_datetime(&later).earliest()
            })?;
            Some(Timestamp::from_micros(instant.timestamp_micros()))
        })
    }

    fn local(&self, at: Timestamp) -> Option<DateTime<Tz>> {
        Some(DateTime::from_timestamp_micros(at.as_micros())?.with_timezone(&self.zone))
    }
}

impl FromStr for Schedule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (spans, zone) = match text.rsplit_once(char::is_whitespace) {
            Some((spans, zone)) if is_zone(zone) => {
                let named = zone.parse();
                (
                    spans,
                    named
                        .map_err(|_| format!("{zone:?} is no time zone; write for example Europe/Berlin"))?,
                )
            }
            _ => (text, Tz::UTC),
        };
        let spans = spans.split(',').map(|span| span_of(span.trim())).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { spans, zone })
    }
}

fn is_zone(word: &str) -> bool {
    word.starts_with(char::is_alphabetic) && !word.split('-').all(|part| day_of(part).is_some())
}

fn day_of(name: &str) -> Option<u8> {
    DAY_NAMES.iter().position(|day| day.eq_ignore_ascii_case(name)).map(|n| n as u8)
}

fn span_of(text: &str) -> Result<Span, String> {
    let wrong = || format!("{text:?} is no span of a schedule; write for example Mon-Fri 08:00-18:00");
    let (days, hours) = match text.split_once(char::is_whitespace) {
        Some((days, hours)) => (Some(days), Some(hours.trim())),
        None if text.contains(':') => (None, Some(text)),
        None => (Some(text), None),
    };
    let (first_day, last_day) = match days {
        None => (0, 6),
        Some(days) => {
            let (first, last) = days.split_once('-').unwrap_or((days, days));
            (day_of(first).ok_or_else(wrong)?, day_of(last).ok_or_else(wrong)?)
        }
    };
    let (from, to) = match hours {
        None => (0, DAY_MINUTES),
        Some(hours) => {
            let (from, to) = hours.split_once('-').ok_or_else(wrong)?;
            (minute_of(from).ok_or_else(wrong)?, minute_of(to).ok_or_else(wrong)?)
        }
    };
    if from == DAY_MINUTES || from == to {
        return Err(wrong());
    }
    Ok(Span { first_day, last_day, from, to })
}

fn minute_of(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
    let of_day = hour.checked_mul(60)?.checked_add(minute)?;
    (minute < 60 && of_day <= DAY_MINUTES).then_some(of_day)
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, span) in self.spans.iter().enumerate() {
            let name = |day: u8| DAY_NAMES[usize::from(day)];
            let separator = if n == 0 { "" } else { ", " };
            write!(f, "{separator}{}", name(span.first_day))?;
            if span.first_day != span.last_day {
                write!(f, "-{}", name(span.last_day))?;
            }
            let (from, to) = (span.from, span.to);
            write!(f, " {:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)?;
        }
        write!(f, " {}", self.zone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        let utc = DateTime::parse_from_rfc3339(text).unwrap();
        Timestamp::from_micros(utc.timestamp_micros())
    }

    #[track_caller]
    fn check(schedule: &str, said: &str, holds: &[&str], not: &[&str]) {
        let schedule: Schedule = schedule.parse().unwrap();
        assert_eq!(schedule.to_string(), said);
        assert_eq!(said.parse::<Schedule>().unwrap(), schedule);
        holds.iter().for_each(|time| assert!(schedule.holds(at(time)), "{time}"));
        not.iter().for_each(|time| assert!(!schedule.holds(at(time)), "{time}"));
    }

    #[test]
    fn hours_are_those_of_the_place_in_summer_and_in_winter() {
        check(
            "Mon-Fri 08:00-18:00 Europe/Berlin",
            "Mon-Fri 08:00-18:00 Europe/Berlin",
            &["2026-07-01T06:00:00Z", "2026-07-01T15:59:59Z", "2026-01-07T07:00:00Z"],
            &["2026-07-01T05:59:59Z", "2026-07-01T16:00:00Z", "2026-01-07T06:30:00Z", "2026-07-04T10:00:00Z"],
        );
    }

    #[test]
    fn a_night_goes_over_midnight_and_a_week_over_sunday() {
        check(
            "fri 22:00-06:00",
            "Fri 22:00-06:00 UTC",
            &["2026-07-03T22:00:00Z", "2026-07-04T05:59:00Z"],
            &["2026-07-03T05:00:00Z", "2026-07-04T22:30:00Z"],
        );
        check("Sat-Sun", "Sat-Sun 00:00-24:00 UTC", &["2026-07-05T23:59:00Z"], &["2026-07-06T00:00:00Z"]);
        check(
            "06:00-07:00, Sun-Mon 20:00-24:00",
            "Mon-Sun 06:00-07:00, Sun-Mon 20:00-24:00 UTC",
            &["2026-07-01T06:30:00Z", "2026-07-06T23:00:00Z"],
            &["2026-07-07T23:00:00Z"],
        );
    }

    #[test]
    fn knows_when_it_changes() {
        let schedule: Schedule = "Mon-Fri 08:00-18:00 Europe/Berlin".parse().unwrap();
        let next = |time| schedule.next_change(at(time)).unwrap();
        assert_eq!(next("2026-07-01T05:00:00Z"), at("2026-07-01T06:00:00Z"));
        assert_eq!(next("2026-07-01T06:00:00Z"), at("2026-07-01T16:00:00Z"));
        assert_eq!(next("2026-07-03T16:00:00Z"), at("2026-07-06T06:00:00Z"));
        // The clocks skip from 02:00 to 03:00.
        let night: Schedule = "02:30-04:00 Europe/Berlin".parse().unwrap();
        assert_eq!(night.next_change(at("2026-03-29T00:00:00Z")), Some(at("2026-03-29T01:30:00Z")));
        let always: Schedule = "00:00-24:00".parse().unwrap();
        assert_eq!(always.next_change(at("2026-07-01T05:00:00Z")), None);
    }

    #[test]
    fn says_what_to_change() {
        let wrong = |text: &str| text.parse::<Schedule>().unwrap_err();
        assert!(wrong("Mon-Fri 08:00-18:00 Europe/Nowhere").contains("Europe/Nowhere"));
        assert!(wrong("Mon-Fry 08:00-18:00").contains("Mon-Fri"));
        assert!(wrong("08:00-25:00").contains("25:00"));
        assert!(wrong("").contains("span"));
    }
}
