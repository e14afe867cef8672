use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// Which clock `Record::time` was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeSource {
    /// The device's clock, found plausible.
    Device,
    /// The server's: the device sent no time.
    Server,
    /// The server's: the device's time was in the future beyond the tolerance.
    ServerAsFuture,
    /// The server's: the device's time was older than the backfill limit.
    ServerAsTooOld,
}

/// When a device's clock is believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TimePolicy {
    /// A device's clock may be ahead of the server's by this much.
    pub future_tolerance_seconds: u64,
    /// A device's time before this is a clock that was never set, in seconds since 1970.
    /// The default is 2000-01-01: every clock chip that lost its power says something earlier.
    pub backfill_oldest_unix_seconds: i64,
}

impl Default for TimePolicy {
    fn default() -> Self {
        Self { future_tolerance_seconds: 300, backfill_oldest_unix_seconds: 946_684_800 }
    }
}

impl TimePolicy {
    /// The time to file a record under.
    pub fn judge(&self, device_time: Option<Timestamp>, received_at: Timestamp) -> (Timestamp, TimeSource) {
        let tolerance = Duration::from_secs(self.future_tolerance_seconds);
        let oldest = Timestamp::from_micros(self.backfill_oldest_unix_seconds.saturating_mul(1_000_000));
        match device_time {
            None => (received_at, TimeSource::Server),
            Some(t) if t > received_at + tolerance => (received_at, TimeSource::ServerAsFuture),
            Some(t) if t < oldest => (received_at, TimeSource::ServerAsTooOld),
            Some(t) => (t, TimeSource::Device),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_implausible_clock_is_not_believed() {
        let policy = TimePolicy::default();
        let now = Timestamp::from_millis(1_700_000_000_000).unwrap();
        let at = |ms| Timestamp::from_millis(ms);
        assert_eq!(policy.judge(None, now), (now, TimeSource::Server));
        assert_eq!(policy.judge(at(86_400_000), now), (now, TimeSource::ServerAsTooOld));
        assert_eq!(policy.judge(at(4_300_000_000_000), now), (now, TimeSource::ServerAsFuture));
        let an_hour_ago = at(1_699_996_400_000);
        assert_eq!(policy.judge(an_hour_ago, now), (an_hour_ago.unwrap(), TimeSource::Device));
    }
}
