//! When messages are due, whatever the server does: waiting for a slow answer must not make the next message later,
//! or the waiting would be left out of the latencies.

use std::time::Duration;

/// Messages are released in steps of this length: one wake-up for each message would cost more than the message.
const STEP_NANOS_MIN: u64 = 100_000;

/// A constant rate from time zero on, spread over `lanes` connections in turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    messages_per_second: f64,
    step_nanos: u64,
    lanes: u64,
}

impl Schedule {
    pub(crate) fn new(messages_per_second: f64, lanes: usize) -> Self {
        let interval_nanos = (1e9 / messages_per_second) as u64;
        Self { messages_per_second, step_nanos: interval_nanos.max(STEP_NANOS_MIN), lanes: lanes as u64 }
    }

    /// How many messages are due, over all lanes.
    pub(crate) fn due(&self, now_nanos: u64) -> u64 {
        let step = now_nanos / self.step_nanos * self.step_nanos;
        (step as f64 / 1e9 * self.messages_per_second) as u64
    }

    /// When message number `n` of `lane` is due, in nanoseconds from the start.
    #[inline]
    pub(crate) fn due_at(&self, lane: u64, n: u64) -> u64 {
        let nth = n * self.lanes + lane + 1;
        let exact = (nth as f64 / self.messages_per_second * 1e9) as u64;
        exact.div_ceil(self.step_nanos) * self.step_nanos
    }

    /// How long until the next step.
    pub(crate) fn pause(&self, now_nanos: u64) -> Duration {
        Duration::from_nanos(self.step_nanos - now_nanos % self.step_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_due_when_it_is_counted_as_due() {
        for rate in [3.0, 1_000.0, 150_000.0, 1_234_567.0] {
            let schedule = Schedule::new(rate, 7);
            for nth in [0, 1, 6, 7, 1_000, 99_999] {
                let at = schedule.due_at(nth % 7, nth / 7);
                assert!(schedule.due(at + schedule.step_nanos) > nth, "rate {rate} message {nth}");
                assert!(schedule.due(at - schedule.step_nanos) <= nth, "rate {rate} message {nth}");
            }
        }
    }

    #[test]
    fn the_rate_is_kept() {
        let schedule = Schedule::new(150_000.0, 100);
        assert_eq!(schedule.due(1_000_000_000), 150_000);
        assert_eq!(schedule.pause(1_000_000_000 + 40_000), Duration::from_micros(60));
    }
}
