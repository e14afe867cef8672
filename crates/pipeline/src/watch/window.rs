//! Readings of one metric of one device, taken together over time. They come in the order of their times.

use std::{collections::VecDeque, time::Duration};

use dunlin_model::Timestamp;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::Stretch;
use crate::rules::Aggregate;

/// Readings that a sliding window keeps; of more, the newest.
const SLIDING_READINGS_MAX: usize = 4_096;

/// What readings amount to. As many numbers as the aggregates need, and no more.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Pane {
    start: Timestamp,
    count: u64,
    /// Sum, least, first or last value, as the aggregate asks.
    value: f64,
    /// Greatest or last value, of the aggregates that need two.
    other: f64,
}

impl Pane {
    fn new(start: Timestamp, value: f64) -> Self {
        Self { start, count: 1, value, other: value }
    }

    /// Takes in what comes later.
    fn take_in(&mut self, later: &Self, aggregate: Aggregate) {
        self.count += later.count;
        match aggregate {
            // Held within the finite: beyond it a sum would end as NaN, about which nothing can be said.
            Aggregate::Avg | Aggregate::Sum => {
                self.value = (self.value + later.value).clamp(f64::MIN, f64::MAX)
            }
            Aggregate::Min => self.value = self.value.min(later.value),
            Aggregate::Max => self.value = self.value.max(later.value),
            Aggregate::Last => self.value = later.value,
            Aggregate::First | Aggregate::Count => {}
            Aggregate::Range => {
                self.value = self.value.min(later.value);
                self.other = self.other.max(later.other);
            }
            Aggregate::Change => self.other = later.other,
        }
    }

    fn result(&self, aggregate: Aggregate) -> f64 {
        match aggregate {
            Aggregate::Avg => self.value / self.count as f64,
            Aggregate::Count => self.count as f64,
            Aggregate::Range | Aggregate::Change => (self.other - self.value).clamp(f64::MIN, f64::MAX),
            Aggregate::Sum | Aggregate::Min | Aggregate::Max | Aggregate::First | Aggregate::Last => {
                self.value
            }
        }
    }
}

/// Windows aligned to 1970. Gathered in panes as long as the step of the window; a window is made of the panes it
/// covers, so that hopping windows keep every reading once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fixed {
    panes: SmallVec<[Pane; 2]>,
    /// The end of the last window that was closed.
    closed: Timestamp,
}

impl Default for Fixed {
    fn default() -> Self {
        Self { panes: SmallVec::new(), closed: Timestamp::MIN }
    }
}

impl Fixed {
    pub(super) fn len(&self) -> usize {
        self.panes.len()
    }

    pub(super) fn touch(&self) -> u64 {
        self.closed.as_micros() as u64 ^ self.panes.last().map_or(0, |last| last.count)
    }

    pub(super) fn add(&mut self, every: Duration, aggregate: Aggregate, time: Timestamp, value: f64) {
        // Readings come in order, so most belong into the last pane; a division costs more than the rest.
        if let Some(last) = self.panes.last_mut()
            && time < last.start + every
        {
            return last.take_in(&Pane::new(last.start, value), aggregate);
        }
        self.panes.push(Pane::new(time.window_start(every), value));
    }

    /// The end of the next window to close, if there is anything in it.
    pub(super) fn next_end(&self, every: Duration) -> Option<Timestamp> {
        self.panes.first().map(|first| (first.start + every).max(self.closed + every))
    }

    /// The end of the window after the last one that was closed, if there was one.
    pub(super) fn following_end(&self, every: Duration) -> Option<Timestamp> {
        (self.closed != Timestamp::MIN).then(|| self.closed + every)
    }

    /// Closes the next window: its stretch of time and its value.
    pub(super) fn close(
        &mut self,
        size: Duration,
        every: Duration,
        aggregate: Aggregate,
    ) -> Option<(Stretch, f64)> {
        let end = self.next_end(every)?;
        let start = end - size;
        let mut whole: Option<Pane> = None;
        for pane in self.panes.iter().take_while(|p| p.start < end) {
            match &mut whole {
                None => whole = Some(*pane),
                Some(whole) => whole.take_in(pane, aggregate),
            }
        }
        self.closed = end;
        let still_needed = start + every;
        let done = self.panes.iter().take_while(|p| p.start < still_needed).count();
        self.panes.drain(..done);
        if self.panes.is_empty() {
            self.panes.shrink_to_fit();
        }
        whole.map(|whole| (Stretch { start, end }, whole.result(aggregate)))
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
        let mut panes = self.0.iter().map(|(time, value)| Pane::new(*time, *value));
        let Some(mut whole) = panes.next() else { return value };
        panes.for_each(|pane| whole.take_in(&pane, aggregate));
        whole.result(aggregate)
    }
}

/// Readings with less than a gap between them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Session(Option<(Pane, Timestamp)>);

impl Session {
    pub(super) fn len(&self) -> usize {
        usize::from(self.0.is_some())
    }

    pub(super) fn add(&mut self, aggregate: Aggregate, time: Timestamp, value: f64) {
        let one = Pane::new(time, value);
        match &mut self.0 {
            Some((whole, last)) => {
                whole.take_in(&one, aggregate);
                *last = time;
            }
            None => self.0 = Some((one, time)),
        }
    }

    pub(super) fn next_end(&self, gap: Duration) -> Option<Timestamp> {
        self.0.as_ref().map(|(_, last)| *last + gap)
    }

    pub(super) fn close(&mut self, gap: Duration, aggregate: Aggregate) -> Option<(Stretch, f64)> {
        let (whole, last) = self.0.take()?;
        Some((Stretch { start: whole.start, end: last + gap }, whole.result(aggregate)))
    }
}
