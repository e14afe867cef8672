//! Readings of one metric of one device, gathered in panes as long as the step of the window; a window is made of
//! the panes it covers, so that hopping windows keep every reading once.

use std::time::Duration;

use dunlin_model::Timestamp;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::alert::Stretch;
use crate::rules::{Aggregate, Over};

/// Panes by start. Two suffice for a tumbling window that is longer than the allowed lateness.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Windows {
    panes: SmallVec<[Pane; 2]>,
    /// The end of the last window that was closed.
    closed: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Pane {
    start: Timestamp,
    count: u64,
    /// Sum, minimum, maximum or last value, as the aggregate asks.
    value: f64,
    /// The time of the newest reading, for `last`.
    newest: Timestamp,
}

impl Default for Windows {
    fn default() -> Self {
        Self { panes: SmallVec::new(), closed: Timestamp::MIN }
    }
}

impl Windows {
    /// Forgets what was gathered by a clock that was ahead.
    pub(super) fn restart(&mut self) {
        *self = Self::default();
    }

    pub(super) fn len(&self) -> usize {
        self.panes.len()
    }

    pub(super) fn add(&mut self, over: &Over, time: Timestamp, value: f64) {
        let start = time.window_start(over.every);
        let one = Pane { start, count: 1, value, newest: time };
        // Nearly always the last pane.
        let at = self.panes.iter().rposition(|p| p.start <= start);
        match at {
            Some(n) if self.panes[n].start == start => self.panes[n].take_in(&one, over.aggregate),
            Some(n) => self.panes.insert(n + 1, one),
            None => self.panes.insert(0, one),
        }
    }

    /// The end of the next window to close, if there is anything in it.
    pub(super) fn next_end(&self, over: &Over) -> Option<Timestamp> {
        self.panes.first().map(|first| (first.start + over.every).max(self.closed + over.every))
    }

    /// Closes the next window if it ends at `now` or before: its stretch of time and its value.
    pub(super) fn close(&mut self, over: &Over, now: Timestamp) -> Option<(Stretch, f64)> {
        let end = self.next_end(over).filter(|end| *end <= now)?;
        let start = end - over.size;
        let mut whole: Option<Pane> = None;
        for pane in self.panes.iter().take_while(|p| p.start < end) {
            match &mut whole {
                None => whole = Some(*pane),
                Some(whole) => whole.take_in(pane, over.aggregate),
            }
        }
        self.closed = end;
        let still_needed = start + over.every;
        let done = self.panes.iter().take_while(|p| p.start < still_needed).count();
        self.panes.drain(..done);
        if self.panes.is_empty() {
            self.panes.shrink_to_fit();
        }
        whole.map(|whole| (Stretch { start, end }, whole.result(over.aggregate)))
    }
}

impl Pane {
    fn take_in(&mut self, other: &Self, aggregate: Aggregate) {
        self.count += other.count;
        match aggregate {
            // Held within the finite: beyond it a sum would end as NaN, about which nothing can be said.
            Aggregate::Avg | Aggregate::Sum => {
                self.value = (self.value + other.value).clamp(f64::MIN, f64::MAX)
            }
            Aggregate::Min => self.value = self.value.min(other.value),
            Aggregate::Max => self.value = self.value.max(other.value),
            Aggregate::Last if other.newest >= self.newest => self.value = other.value,
            Aggregate::Last | Aggregate::Count => {}
        }
        self.newest = self.newest.max(other.newest);
    }

    fn result(&self, aggregate: Aggregate) -> f64 {
        match aggregate {
            Aggregate::Avg => self.value / self.count as f64,
            Aggregate::Count => self.count as f64,
            Aggregate::Sum | Aggregate::Min | Aggregate::Max | Aggregate::Last => self.value,
        }
    }
}

/// The first whole second at or after `at + wait`: deadlines are kept in seconds.
pub(super) fn second_after(at: Timestamp, wait: Duration) -> i64 {
    let micros = (at + wait).as_micros();
    micros.div_euclid(1_000_000) + i64::from(micros.rem_euclid(1_000_000) > 0)
}
