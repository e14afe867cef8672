use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// A step in the life of an alert, as the `alerts` topic carries it.
///
/// The id is a function of the rule, the device and the event time alone: a replay of the journal says the same
/// transitions with the same ids, and whoever consumes them twice acts once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AlertTransition {
    pub id: TransitionId,
    pub fingerprint: Fingerprint,
    pub tenant: String,
    pub device: String,
    pub rule: String,
    pub severity: Severity,
    pub phase: AlertPhase,
    /// Event time: the end of the window, or the time of the record, that brought the step.
    pub at: Timestamp,
    /// Since when the condition holds: names the episode. All transitions of one episode share it.
    pub since: Timestamp,
    /// What was compared with the threshold.
    pub value: f64,
    /// The rule in its own words: `avg(temperature) over 1m > 80 for 2m, clear below 75`.
    pub condition: String,
}

/// One alert per rule and device: transitions with the same fingerprint belong together.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub i64);

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TransitionId(pub i64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertPhase {
    /// The condition holds, but not yet for as long as the rule asks.
    Pending,
    Firing,
    Resolved,
    /// Was pending and never fired.
    Cancelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Info,
    #[default]
    Warning,
    Critical,
}

impl Fingerprint {
    pub fn of(tenant: &str, rule: &str, device: &str) -> Self {
        Self(hash(&[tenant.as_bytes(), rule.as_bytes(), device.as_bytes()]))
    }
}

impl TransitionId {
    pub fn of(fingerprint: Fingerprint, phase: AlertPhase, since: Timestamp) -> Self {
        let phase = phase as u8;
        Self(hash(&[&fingerprint.0.to_le_bytes(), &[phase], &since.as_micros().to_le_bytes()]))
    }

    /// Of an alert that goes on firing, with another severity from `at` on.
    pub fn of_change(fingerprint: Fingerprint, severity: Severity, at: Timestamp) -> Self {
        let severity = severity as u8;
        Self(hash(&[b"severity", &fingerprint.0.to_le_bytes(), &[severity], &at.as_micros().to_le_bytes()]))
    }
}

/// Parts are length-prefixed, so that ("a", "bc") and ("ab", "c") differ.
fn hash(parts: &[&[u8]]) -> i64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.digest() as i64
}

macro_rules! shown_as_hex {
    ($type:ident) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}
shown_as_hex!(Fingerprint);
shown_as_hex!(TransitionId);
