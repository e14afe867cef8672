use std::time::Duration;

use dunlin_model::Timestamp;

use crate::config::GuardConfig;

/// The first pause after one failure too many; each further failure doubles it.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// So many at once, and so many a second in the long run.
#[derive(Debug)]
pub(super) struct Rate {
    interval_nanos: u64,
    burst_nanos: u64,
}

impl Rate {
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        let interval_nanos = 1_000_000_000 / u64::from(per_second);
        Self { interval_nanos, burst_nanos: interval_nanos * u64::from(burst) }
    }
}

/// Keeps to a `Rate`: a token bucket, kept as the time it takes until it is full again.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    debt_nanos: u64,
    at: Timestamp,
}

impl Bucket {
    /// How long to wait for one token, which is taken; `None` if that is longer than `wait_max`, and then it is not.
    pub(super) fn take(&mut self, now: Timestamp, rate: &Rate, wait_max: Duration) -> Option<Duration> {
        let passed = u64::try_from(now.since(self.at).as_nanos()).unwrap_or(u64::MAX);
        self.at = now; // Also if the clock was set back: then time goes on from there.
        self.debt_nanos = self.debt_nanos.saturating_sub(passed);
        let debt_nanos = self.debt_nanos + rate.interval_nanos;
        let wait = Duration::from_nanos(debt_nanos.saturating_sub(rate.burst_nanos));
        (wait <= wait_max).then(|| {
            self.debt_nanos = debt_nanos;
            wait
        })
    }
}

/// What happened within a minute.
#[derive(Debug, Default)]
pub(super) struct Window {
    since: Timestamp,
    count: u32,
}

impl Window {
    /// One more; how many that makes.
    pub(super) fn count(&mut self, now: Timestamp) -> u32 {
        if now < self.since || now.since(self.since) >= MINUTE {
            *self = Self { since: now, count: 0 };
        }
        self.count = self.count.saturating_add(1);
        self.count
    }
}

/// Failures, and the pause that they bring. Half of them are forgotten at a time.
#[derive(Debug, Default)]
pub(super) struct Failures {
    count: u32,
    since: Timestamp,
    last: Timestamp,
}

impl Failures {
    /// One more; how many that makes.
    pub(super) fn add(&mut self, now: Timestamp, config: &GuardConfig) -> u32 {
        let half_life = Duration::from_secs(config.failures_half_life_seconds.into());
        let halvings = now.since(self.since).as_nanos() / half_life.as_nanos();
        if now < self.since || halvings > 0 {
            self.count = self.count.checked_shr(u32::try_from(halvings).unwrap_or(u32::MAX)).unwrap_or(0);
            self.since = now;
        }
        self.count = self.count.saturating_add(1);
        self.last = now;
        self.count
    }

    /// What is left of the pause after more than `free` failures.
    pub(super) fn pause_at(&self, now: Timestamp, free: u32, config: &GuardConfig) -> Duration {
        let Some(doublings) = self.count.checked_sub(free + 1) else { return Duration::ZERO };
        if now < self.last {
            return Duration::ZERO; // The clock was set back: nobody can tell.
        }
        let pause_max = Duration::from_secs(config.failure_pause_seconds_max.into());
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        let pause = PAUSE_FIRST.saturating_mul(factor).min(pause_max);
        pause.saturating_sub(now.since(self.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(1_700_000_000_000 + millis).unwrap()
    }

    #[test]
    fn a_bucket_gives_its_burst_at_once_and_then_its_rate() {
        let rate = Rate::new(10, 3);
        let mut bucket = Bucket::default();
        let mut take = |millis| bucket.take(at(millis), &rate, Duration::ZERO).is_some();
        assert_eq!([0; 4].map(&mut take), [true, true, true, false]);
        assert!(!take(99), "a refusal takes nothing and 99 ms bring nothing");
        assert_eq!([100, 100].map(&mut take), [true, false]);
        assert_eq!([60_000; 4].map(take), [true, true, true, false], "it overflows at its burst");
    }

    #[test]
    fn who_waits_has_a_place_and_the_queue_ends() {
        let rate = Rate::new(10, 1);
        let mut bucket = Bucket::default();
        let mut take = || bucket.take(at(0), &rate, Duration::from_millis(250)).map(|wait| wait.as_millis());
        assert_eq!([take(), take(), take(), take()], [Some(0), Some(100), Some(200), None]);
    }

    #[test]
    fn a_clock_that_is_set_back_holds_nobody_for_long() {
        let rate = Rate::new(10, 1);
        let mut bucket = Bucket::default();
        let mut take = |millis| bucket.take(at(millis), &rate, Duration::ZERO).is_some();
        assert!(take(3_600_000));
        assert!(!take(0));
        assert!(take(100));

        let config = GuardConfig::default();
        let mut failures = Failures::default();
        failures.add(at(3_600_000), &config);
        assert!(failures.pause_at(at(3_600_000), 0, &config) > Duration::ZERO);
        assert_eq!(failures.pause_at(at(0), 0, &config), Duration::ZERO);
    }

    #[test]
    fn a_pause_doubles_up_to_its_longest_and_failures_are_halved() {
        let config =
            GuardConfig { failure_pause_seconds_max: 10, failures_half_life_seconds: 600, ..<_>::default() };
        let mut failures = Failures::default();
        let mut pauses = Vec::new();
        for _ in 0..40 {
            failures.add(at(0), &config);
            pauses.push(failures.pause_at(at(0), 2, &config).as_secs());
        }
        assert_eq!(pauses[..8], [0, 0, 1, 2, 4, 8, 10, 10]);
        assert_eq!(pauses[39], 10);
        assert_eq!(failures.pause_at(at(9_999), 2, &config), Duration::from_millis(1));
        assert_eq!(failures.pause_at(at(10_000), 2, &config), Duration::ZERO);
        assert_eq!(failures.add(at(600_000), &config), 21);
        assert_eq!(failures.add(at(1_800_000), &config), 6);
        assert_eq!(failures.add(at(600_000_000), &config), 1);
    }

    #[test]
    fn a_minute_counts_from_its_first() {
        let mut window = Window::default();
        assert_eq!([0, 1, 59_999, 60_000, 60_001].map(|millis| window.count(at(millis))), [1, 2, 3, 1, 2]);
    }
}
