//! Since when telemetry is on its way into the journal: what was received earlier is there already, or never comes.
//! Kept by batch and by request, not by message.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dunlin_model::Timestamp;

/// What is under way, counted by when it began. Clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Arrivals(Arc<Mutex<BTreeMap<Timestamp, usize>>>);

/// Records that were received at `since` or later. Dropped once they are durable or will never be.
#[derive(Debug)]
pub(crate) struct Arriving {
    of: Arrivals,
    since: Timestamp,
}

impl Arrivals {
    pub(crate) fn begin(&self, since: Timestamp) -> Arriving {
        *self.lock().entry(since).or_default() += 1;
        Arriving { of: self.clone(), since }
    }

    /// When the oldest of it was received.
    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        self.lock().first_key_value().map(|(since, _)| *since)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Timestamp, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let mut arrivals = self.of.lock();
        if let Some(count) = arrivals.get_mut(&self.since) {
            *count -= 1;
            if *count == 0 {
                arrivals.remove(&self.since);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_the_oldest_that_has_not_ended() {
        let at = Timestamp::from_micros;
        let arrivals = Arrivals::default();
        let (later, first, same) = (arrivals.begin(at(5)), arrivals.begin(at(3)), arrivals.begin(at(3)));
        assert_eq!(arrivals.oldest(), Some(at(3)));
        drop(first);
        assert_eq!(arrivals.oldest(), Some(at(3)));
        drop(same);
        assert_eq!(arrivals.oldest(), Some(at(5)));
        drop(later);
        assert_eq!(arrivals.oldest(), None);
    }
}
