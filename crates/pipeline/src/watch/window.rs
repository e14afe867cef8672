//! Readings of one metric of one device, taken together over time. They come in the order of their times.

use std::{collections::VecDeque, time::Duration};

use dunlin_model::Timestamp;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::Stretch;
use crate::rules::Aggregate;

/// Readings that a sliding window keeps; of more, the newest.
const SLIDING_READINGS_MAX: usize = 4_096;

/// What readings amount to, for every aggregate: rules that differ in nothing else share a window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Totals {
    count: u64,
    sum: f64,
    least: f64,
    greatest: f64,
    first: f64,
    last: f64,
}

impl Totals {
    fn new(value: f64) -> Self {
        Self { count: 1, sum: value, least: value, greatest: value, first: value, last: value }
    }

    /// Takes in what comes later.
    fn take_in(&mut self, later: &Self) {
        self.count += later.count;
        // Held within the finite: beyond it a sum would end as NaN, about which nothing can be said.
        self.sum = (self.sum + later.sum).clamp(f64::MIN, f64::MAX);
        self.least = self.least.min(later.least);
        self.greatest = self.greatest.max(later.greatest);
        self.last = later.last;
    }

    pub(crate) fn result(&self, aggregate: Aggregate) -> f64 {
        match aggregate {
            Aggregate::Avg => self.sum / self.count as f64,
            Aggregate::Count => self.count as f64,
            Aggregate::Sum => self.sum,
            Aggregate::Min => self.least,
            Aggregate::Max => self.greatest,
            Aggregate::First => self.first,
            Aggregate::Last => self.last,
            Aggregate::Range => (self.greatest - self.least).clamp(f64::MIN, f64::MAX),
            Aggregate::Change => (self.last - self.first).clamp(f64::MIN, f64::MAX),
        }
    }
}

/// How long windows aligned to 1970 are, and from the start of one to that of the next, in microseconds: they are added
/// for every reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Lengths {
    size: i64,
    every: i64,
}

impl Lengths {
    pub(crate) fn new(size: Duration, every: Duration) -> Self {
        let micros = |length: Duration| i64::try_from(length.as_micros()).unwrap_or(i64::MAX).max(1);
        Self { size: micros(size), every: micros(every) }
    }

    /// The start of the next one.
    fn after(self, start: Timestamp) -> Timestamp {
        Timestamp::from_micros(start.as_micros().saturating_add(self.every))
    }

    fn start_of(self, time: Timestamp) -> Timestamp {
        Timestamp::from_micros(time.as_micros().div_euclid(self.every).saturating_mul(self.every))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Pane {
    start: Timestamp,
    totals: Totals,
}

/// A window that has ended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Ended {
    pub(crate) stretch: Stretch,
    pub(crate) totals: Totals,
}

/// Windows aligned to 1970. Gathered in panes as long as the step of the window; a window is made of the panes it
/// covers, so that hopping windows keep every reading once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fixed {
    panes: SmallVec<[Pane; 1]>,
    /// The end of the last window that was closed.
    closed: Timestamp,
}

impl Default for Fixed {
    fn default() -> Self {
        Self { panes: SmallVec::new(), closed: Timestamp::MIN }
    }
}

impl Fixed {
    pub(crate) fn len(&self) -> usize {
        self.panes.len()
    }

    /// Reads what the next reading needs.
    pub(crate) fn touch(&self) -> u64 {
        self.closed.as_micros() as u64 ^ self.panes.last().map_or(0, |last| last.totals.count)
    }

    /// True if it was empty.
    #[inline]
    pub(crate) fn add(&mut self, of: Lengths, time: Timestamp, value: f64) -> bool {
        let totals = Totals::new(value);
        // Readings come in order, so most belong into the last pane; a division costs more than the rest.
        if let Some(last) = self.panes.last_mut()
            && time < of.after(last.start)
        {
            last.totals.take_in(&totals);
            return false;
        }
        self.panes.push(Pane { start: of.start_of(time), totals });
        self.panes.len() == 1
    }

    /// The end of the next window to close, if there is anything in it.
    pub(crate) fn next_end(&self, of: Lengths) -> Option<Timestamp> {
        self.panes.first().map(|first| of.after(first.start.max(self.closed)))
    }

    /// The end of the window after the last one that was closed, if there was one and nothing came since.
    pub(crate) fn empty_end(&self, of: Lengths) -> Option<Timestamp> {
        (self.panes.is_empty() && self.closed != Timestamp::MIN).then(|| of.after(self.closed))
    }

    /// Closes the next window, if there is anything in it.
    pub(crate) fn close(&mut self, of: Lengths) -> Option<Ended> {
        let end = self.next_end(of)?;
        let start = Timestamp::from_micros(end.as_micros().saturating_sub(of.size));
        let mut covered = self.panes.iter().take_while(|p| p.start < end);
        let mut totals = covered.next()?.totals;
        covered.for_each(|pane| totals.take_in(&pane.totals));
        self.closed = end;
        let still_needed = of.after(start);
        let done = self.panes.iter().take_while(|p| p.start < still_needed).count();
        self.panes.drain(..done);
        if self.panes.is_empty() && self.panes.spilled() {
            self.panes.shrink_to_fit();
        }
        Some(Ended { stretch: Stretch { start, end }, totals })
    }
}

/// The readings of the last `size`, up to and with the newest.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Sliding(VecDeque<(Timestamp, f64)>);

impl Sliding {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn add(&mut self, size: Duration, aggregate: Aggregate, time: Timestamp, value: f64) -> f64 {
        let gone = |(at, _): &(Timestamp, f64)| *at + size <= time;
        while self.0.len() >= SLIDING_READINGS_MAX || self.0.front().is_some_and(gone) {
            self.0.pop_front();
        }
        self.0.push_back((time, value));
        let mut values = self.0.iter().map(|(_, value)| Totals::new(*value));
        let Some(mut totals) = values.next() else { return value };
        values.for_each(|value| totals.take_in(&value));
        totals.result(aggregate)
    }
}

/// Readings with less than a gap between them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Session(Option<(Pane, Timestamp)>);

impl Session {
    pub(super) fn len(&self) -> usize {
        usize::from(self.0.is_some())
    }

    pub(super) fn add(&mut self, time: Timestamp, value: f64) {
        let totals = Totals::new(value);
        match &mut self.0 {
            Some((whole, last)) => {
                whole.totals.take_in(&totals);
                *last = time;
            }
            None => self.0 = Some((Pane { start: time, totals }, time)),
        }
    }

    pub(super) fn next_end(&self, gap: Duration) -> Option<Timestamp> {
        self.0.as_ref().map(|(_, last)| *last + gap)
    }

    pub(super) fn close(&mut self, gap: Duration) -> Option<Ended> {
        let (whole, last) = self.0.take()?;
        Some(Ended { stretch: Stretch { start: whole.start, end: last + gap }, totals: whole.totals })
    }
}
