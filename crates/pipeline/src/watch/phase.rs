//! The life of one level of a rule on one device, as a table.

use dunlin_model::AlertPhase;
use serde::{Deserialize, Serialize};

use crate::rules::Threshold;

/// Where a condition stands on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Phase {
    #[default]
    Inactive,
    /// Holds, but not yet for as long as the rule asks.
    Pending,
    Firing,
}

/// What the readings say about a condition. `and` is the least of its parts and `or` the greatest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Verdict {
    Clear,
    /// Nothing was read yet, or a window was empty.
    Unknown,
    /// No longer over the threshold, not yet under the clearing one.
    Between,
    Holds,
}

impl Verdict {
    /// What a comparison says of a value.
    pub(crate) fn of(threshold: &Threshold, value: f64) -> Self {
        match () {
            () if threshold.holds(value) => Self::Holds,
            () if threshold.clears(value) => Self::Clear,
            () => Self::Between,
        }
    }

    pub(crate) fn negated(self) -> Self {
        match self {
            Self::Holds => Self::Clear,
            Self::Clear => Self::Holds,
            Self::Unknown | Self::Between => self,
        }
    }
}

impl Phase {
    /// The next phase. `held`: the condition has held for as long as the rule asks.
    pub(crate) fn on(self, verdict: Verdict, held: bool) -> Self {
        use {Phase::*, Verdict::*};
        match (self, verdict, held) {
            (Inactive | Pending, Holds, false) => Pending,
            (Inactive | Pending, Holds, true) => Firing,
            // Nobody knows that it held meanwhile.
            (Inactive | Pending, Unknown | Between | Clear, _) => Inactive,
            (Firing, Holds | Between | Unknown, _) => Firing,
            (Firing, Clear, _) => Inactive,
        }
    }

    /// What is said when the rule or the device is forgotten.
    pub(crate) fn on_forgotten(self) -> Option<AlertPhase> {
        match self {
            Self::Inactive => None,
            Self::Pending => Some(AlertPhase::Cancelled),
            Self::Firing => Some(AlertPhase::Resolved),
        }
    }
}
