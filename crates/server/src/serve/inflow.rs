//! The rules' question "what is still to come?", answered by the gateway; or by a bound, if gateways are elsewhere.

use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use dunlin_gateway::GatewayView;
use dunlin_model::{Clock, Timestamp};
use dunlin_pipeline::Inflow;

/// Before there is a gateway, nothing comes.
#[derive(Debug, Default)]
pub(crate) struct GatewayInflow(OnceLock<GatewayView>);

impl GatewayInflow {
    /// Telemetry comes through this gateway from now on.
    pub(crate) fn is_through(&self, gateway: GatewayView) {
        // There is one gateway in a process.
        let _ = self.0.set(gateway);
    }
}

impl Inflow for GatewayInflow {
    fn oldest_under_way(&self) -> Option<Timestamp> {
        self.0.get()?.oldest_under_way()
    }
}

/// Whoever stood still does not know what came meanwhile: for so long it waits until the journal has told.
const STOOD_STILL: Duration = Duration::from_secs(3);

/// Gateways are other processes: what they received longer ago than the bound is in the journal.
///
/// A process that stood still lets no time pass until it has seen the journal's end again. One whose clock is ahead goes by the
/// journal's: what comes says how late it is there.
#[derive(Debug)]
pub(crate) struct FarInflow {
    bound: Duration,
    clock: Clock,
    begun: Instant,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    asked: Instant,
    /// What was told last.
    told: Timestamp,
    held_until: Option<Instant>,
    /// When it was `begun` by the journal's clock, at the latest: what came fastest says it best.
    begun_there: Option<Timestamp>,
}

impl FarInflow {
    pub(crate) fn new(seconds_max: u64, clock: Clock) -> Self {
        let (begun, bound) = (Instant::now(), Duration::from_secs(seconds_max));
        let known = Known { asked: begun, told: clock.now() - bound, held_until: None, begun_there: None };
        Self { bound, clock, begun, known: Mutex::new(known) }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settled(&self, now: Timestamp, at: Instant) -> Timestamp {
        let mut known = self.known();
        if at.duration_since(known.asked) > STOOD_STILL {
            known.held_until = Some(at + STOOD_STILL + self.bound);
        }
        known.asked = at;
        if known.held_until.is_some_and(|until| at >= until) {
            known.held_until = None;
        }
        if known.held_until.is_none() {
            let there = known.begun_there.map(|begun| begun + at.duration_since(self.begun));
            known.told = there.map_or(now, |there| there.min(now)) - self.bound;
        }
        known.told
    }
}

impl Inflow for FarInflow {
    fn oldest_under_way(&self) -> Option<Timestamp> {
        Some(self.settled(self.clock.now(), Instant::now()))
    }

    fn came(&self, appended_at: Timestamp) {
        let begun = appended_at - self.begun.elapsed();
        let mut known = self.known();
        known.begun_there = Some(known.begun_there.map_or(begun, |before| before.max(begun)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn inflow() -> (FarInflow, Timestamp) {
        let now = Timestamp::from_millis(1_700_000_000_000).unwrap();
        (FarInflow::new(2, Clock::new(move || now)), now)
    }

    #[test]
    fn who_stood_still_lets_no_time_pass_for_a_while() {
        let (inflow, now) = inflow();
        let at = |seconds: u32| inflow.settled(now + SECOND * seconds, inflow.begun + SECOND * seconds);
        assert_eq!(at(1), now - SECOND);
        assert_eq!(at(3), now + SECOND);
        assert_eq!(at(60), now + SECOND, "what came in a minute is not known");
        for second in 61..65 {
            assert_eq!(at(second), now + SECOND);
        }
        assert_eq!(at(65), now + SECOND * 63);
    }

    #[test]
    fn a_clock_that_is_ahead_is_held_to_the_journals() {
        let (inflow, now) = inflow();
        let hour = SECOND * 3_600;
        inflow.known().begun_there = Some(now);
        assert_eq!(inflow.settled(now + hour, inflow.begun + SECOND), now - SECOND);
        // And one that is behind is waited for.
        assert_eq!(inflow.settled(now - hour, inflow.begun + SECOND), now - hour - SECOND * 2);
        inflow.came(now - hour);
        assert_eq!(inflow.known().begun_there, Some(now), "what was late says nothing");
    }
}
