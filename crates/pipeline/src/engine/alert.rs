//! The life of one rule on one device, as a table.

use std::time::Duration;

use dunlin_model::{AlertPhase, Timestamp};
use serde::{Deserialize, Serialize};

/// Where a rule stands on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) enum Phase {
    #[default]
    Inactive,
    /// Holds, but not yet for as long as the rule asks.
    Pending,
    Firing,
}

/// What a value says about a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Holds,
    /// No longer over the threshold, not yet under the clearing one.
    Between,
    Clear,
}

impl Phase {
    /// The next phase, and what is said about it. `held`: the condition has held for as long as the rule asks.
    pub(super) fn on(self, verdict: Verdict, held: bool) -> (Self, Option<AlertPhase>) {
        use {AlertPhase as Say, Phase::*, Verdict::*};
        match (self, verdict, held) {
            (Inactive, Holds, false) => (Pending, Some(Say::Pending)),
            (Inactive, Holds, true) => (Firing, Some(Say::Firing)),
            (Inactive, Between | Clear, _) => (Inactive, None),

            (Pending, Holds, false) => (Pending, None),
            (Pending, Holds, true) => (Firing, Some(Say::Firing)),
            (Pending, Between | Clear, _) => (Inactive, Some(Say::Cancelled)),

            (Firing, Holds | Between, _) => (Firing, None),
            (Firing, Clear, _) => (Inactive, Some(Say::Resolved)),
        }
    }

    /// What is said when the rule or the device is forgotten.
    pub(super) fn on_forgotten(self) -> Option<AlertPhase> {
        match self {
            Self::Inactive => None,
            Self::Pending => Some(AlertPhase::Cancelled),
            Self::Firing => Some(AlertPhase::Resolved),
        }
    }
}

/// A phase and its episode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Episode {
    pub(super) phase: Phase,
    /// Names the episode, so it is never used twice. Of the last episode while inactive.
    since: Timestamp,
    /// Up to where the condition was last seen to hold.
    until: Timestamp,
}

/// A stretch of event time that a value speaks for: a window, or an instant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    pub(super) start: Timestamp,
    pub(super) end: Timestamp,
}

/// What happened, in an episode that began at `since`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) phase: AlertPhase,
    pub(super) since: Timestamp,
}

impl Default for Episode {
    fn default() -> Self {
        Self { phase: Phase::Inactive, since: Timestamp::MIN, until: Timestamp::MIN }
    }
}

impl Episode {
    pub(super) fn since(&self) -> Timestamp {
        self.since
    }

    /// A window that is missing breaks what is pending: nobody knows that the condition held meanwhile.
    pub(super) fn on_gap(&mut self, next: Stretch) -> Option<Step> {
        if self.phase != Phase::Pending || next.start <= self.until {
            return None;
        }
        self.phase = Phase::Inactive;
        Some(Step { phase: AlertPhase::Cancelled, since: self.since })
    }

    pub(super) fn on(&mut self, verdict: Verdict, at: Stretch, hold: Duration) -> Option<Step> {
        if verdict == Verdict::Holds {
            if self.phase == Phase::Inactive {
                self.since = at.start.max(self.since + Duration::from_micros(1));
            }
            self.until = at.end;
        }
        let held = at.end.since(self.since) >= hold;
        let (phase, say) = self.phase.on(verdict, held);
        self.phase = phase;
        say.map(|phase| Step { phase, since: self.since })
    }
}
