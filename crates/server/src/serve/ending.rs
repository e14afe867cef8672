//! A stop has an end, whatever hangs: parts get until a moment, and those that come after them get their turn.

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, timeout_at};

/// What a supervisor has to wait for: nothing runs any more after this long.
pub(super) const STOPPED_BY: Duration = Duration::from_secs(20);
/// The doors are given up after this long, and the consumers. What they leave is in the journal.
pub(super) const DOORS_CLOSED_BY: Duration = Duration::from_secs(10);
pub(super) const CONSUMERS_ENDED_BY: Duration = Duration::from_secs(14);
/// The rest is the journal's and the registry's.
pub(super) const FLUSHED_BY: Duration = Duration::from_secs(18);

#[derive(Debug, Clone, Copy)]
pub(super) struct Ending {
    begun: Instant,
}

impl Ending {
    pub(super) fn begin() -> Self {
        Self { begun: Instant::now() }
    }

    /// Waits for a part until `by` after the begin; one that is late is named and left behind.
    pub(super) async fn of<T>(self, part: &str, by: Duration, ends: impl Future<Output = T>) -> Option<T> {
        let ended = timeout_at(self.begun + by, pin!(ends)).await.ok();
        if ended.is_none() {
            tracing::error!(part, after_seconds = by.as_secs(), "did not end in time and is left behind");
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_hangs_is_left_behind_and_the_others_get_their_turn() {
        let ending = Ending::begin();
        let soon = Duration::from_millis(20);
        assert_eq!(ending.of("hung", soon, std::future::pending::<()>()).await, None);
        // Its time is over, but it has nothing to wait for.
        assert_eq!(ending.of("quick", soon, async { 7 }).await, Some(7));
        assert_eq!(ending.of("later", STOPPED_BY, tokio::time::sleep(soon)).await, Some(()));
    }

    #[test]
    fn each_part_has_time_before_the_next() {
        let moments = [DOORS_CLOSED_BY, CONSUMERS_ENDED_BY, FLUSHED_BY, STOPPED_BY];
        assert!(moments.is_sorted_by(|a, b| a < b));
    }
}
