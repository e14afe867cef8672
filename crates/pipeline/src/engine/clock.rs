//! How far a device's clock is from the server's, from what the device says and when it arrives.
//!
//! A message is never received before it was sent, so the greatest difference between the time it says and the time
//! it came is the nearest to the clock's own error: a clock that is ahead shows at once, and by at least what it says.
//! A clock that is behind cannot be told from a slow way, nor from data that were kept; it is shown, once messages
//! have come at the pace of the clock for a while, and not corrected.

use std::time::Duration;

use dunlin_model::{Record, TimeSource, Timestamp};
use serde::{Deserialize, Serialize};

/// A clock this much ahead is taken as it is: about what the way of a message varies by.
const AHEAD_IGNORED: Duration = Duration::from_secs(1);
/// Messages with the same difference, within `STEADY_BAND`, for so long and so many of them, came as they were made.
const STEADY_FOR: Duration = Duration::from_secs(10);
const STEADY_MESSAGES: u32 = 5;
const STEADY_BAND_MICROS: i64 = 2_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct DeviceClock {
    /// Device time less receive time, in microseconds.
    ahead: Option<i64>,
    /// The least and the greatest difference of the messages since `steady_since`.
    least: i64,
    greatest: i64,
    steady_since: Timestamp,
    steady_messages: u32,
}

impl DeviceClock {
    /// Takes in a record; the time to file it under, by a clock that is right.
    pub(super) fn correct(&mut self, record: &Record<'_>) -> Timestamp {
        let (Some(device_time), false) =
            (record.device_time, record.time_source == TimeSource::ServerAsTooOld)
        else {
            return record.time;
        };
        let ahead = device_time.as_micros().saturating_sub(record.received_at.as_micros());
        self.note(ahead, record.received_at);
        let too_much = self.ahead.unwrap_or(0).saturating_sub(AHEAD_IGNORED.as_micros() as i64);
        if too_much > 0 { device_time - Duration::from_micros(too_much as u64) } else { record.time }
    }

    fn note(&mut self, ahead: i64, received_at: Timestamp) {
        self.ahead = Some(self.ahead.map_or(ahead, |before| before.max(ahead)));
        let (least, greatest) = (self.least.min(ahead), self.greatest.max(ahead));
        if self.steady_messages > 0 && greatest.saturating_sub(least) <= STEADY_BAND_MICROS {
            (self.least, self.greatest) = (least, greatest);
            self.steady_messages = self.steady_messages.saturating_add(1);
        } else {
            (self.least, self.greatest) = (ahead, ahead);
            (self.steady_since, self.steady_messages) = (received_at, 1);
        }
        if self.steady_messages >= STEADY_MESSAGES && received_at.since(self.steady_since) >= STEADY_FOR {
            self.ahead = Some(self.greatest);
            // Begun anew, so that a clock that drifts slowly is followed.
            (self.least, self.greatest) = (ahead, ahead);
            (self.steady_since, self.steady_messages) = (received_at, 1);
        }
    }

    /// Whether the device has said a time.
    pub(super) fn is_known(&self) -> bool {
        self.ahead.is_some()
    }

    /// How far the device's clock is ahead of the server's, in microseconds; below zero, behind.
    pub(super) fn ahead_micros(&self) -> Option<i64> {
        self.ahead
    }
}

#[cfg(test)]
mod tests {
    use dunlin_model::{MessageId, Readings, TimePolicy};

    use super::*;

    const HOUR: i64 = 3_600;

    /// The times a device's records are filed under, in seconds, of (device time, receive time) in seconds.
    fn filed(said: impl IntoIterator<Item = (i64, i64)>) -> (Vec<i64>, DeviceClock) {
        let mut clock = DeviceClock::default();
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let times = said.into_iter().map(|(device_time, received_at)| {
            let (time, time_source) = TimePolicy::default().judge(Some(at(device_time)), at(received_at));
            let record = Record {
                tenant: "t",
                device: "d",
                device_type: "default",
                message_id: MessageId::None,
                received_at: at(received_at),
                device_time: Some(at(device_time)),
                time,
                time_source,
                readings: Readings::new(),
            };
            clock.correct(&record).as_micros() / 1_000_000
        });
        (times.collect(), clock)
    }

    const NOW: i64 = 1_700_000_000;

    #[test]
    fn a_clock_that_is_right_or_behind_is_believed() {
        let right: Vec<_> = (0..100).map(|n| (NOW + n, NOW + n)).collect();
        assert_eq!(filed(right.clone()).0, right.iter().map(|(time, _)| *time).collect::<Vec<_>>());
        let behind: Vec<_> = (0..100).map(|n| (NOW + n - HOUR, NOW + n)).collect();
        let (times, clock) = filed(behind.clone());
        assert_eq!(times, behind.iter().map(|(time, _)| *time).collect::<Vec<_>>());
        assert_eq!(clock.ahead_micros(), Some(-HOUR * 1_000_000));
    }

    #[test]
    fn a_clock_that_is_ahead_is_set_right_also_for_what_was_kept() {
        let ahead = 3 * HOUR;
        let live = (0..20).map(|n| (NOW + n + ahead, NOW + n));
        let kept = (0..50).map(|n| (NOW - HOUR + n + ahead, NOW + 20));
        let (times, clock) = filed(live.chain(kept));
        assert!((0..20).all(|n| (times[n as usize] - (NOW + n)).abs() <= 1), "{times:?}");
        assert!((0..50).all(|n| (times[20 + n as usize] - (NOW - HOUR + n)).abs() <= 1), "{times:?}");
        assert_eq!(clock.ahead_micros(), Some(ahead * 1_000_000));
    }

    #[test]
    fn a_clock_that_drifts_is_followed_without_a_step() {
        let (times, _) = filed((0..36_000).map(|n| (NOW + n + n / 60, NOW + n)));
        assert!(times.iter().zip(0..).all(|(time, n)| (time - (NOW + n)).abs() <= 1));
        assert!(times.is_sorted());
    }

    #[test]
    fn a_clock_that_was_reset_or_set_right_is_believed_soon() {
        let ahead = (0..60).map(|n| (NOW + n + 2 * HOUR, NOW + n));
        let in_1970 = (60..120).map(|n| (n, NOW + n));
        let right = (120..180).map(|n| (NOW + n, NOW + n));
        let (times, _) = filed(ahead.chain(in_1970).chain(right));
        assert!((0..120).all(|n| (times[n as usize] - (NOW + n)).abs() <= 1), "{times:?}");
        assert!((132..180).all(|n| times[n as usize] == NOW + n), "{times:?}");
    }

    #[test]
    fn a_file_of_years_ago_keeps_its_times() {
        let times: Vec<_> = (0..1_000).map(|n| (1_400_000_000 + n * 300, NOW + n / 100)).collect();
        assert_eq!(filed(times.clone()).0, times.iter().map(|(time, _)| *time).collect::<Vec<_>>());
    }
}
