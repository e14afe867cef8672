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

/// Where an alert is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    /// The condition holds, but not yet for as long as the rule asks.
    Pending,
    Firing,
    /// Somebody looks after it.
    Acknowledged,
    Resolved,
    /// Was pending and never fired.
    Cancelled,
}

/// What happens to an alert: by its rule (`Fired` to `Cancelled`) or by a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AlertStep {
    Fired,
    /// It has become more severe: whoever looks after it said so of something less.
    Raised,
    /// It has become less severe: no news to whoever heard of more.
    Lowered,
    Resolved,
    Cancelled,
    Acknowledged,
    Unacknowledged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an alert that is {state} cannot be {step}")]
pub struct IllegalStep {
    pub state: AlertState,
    pub step: AlertStep,
}

impl AlertState {
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Firing, Self::Acknowledged, Self::Resolved, Self::Cancelled];

    /// The legal steps; every other is refused.
    pub fn on(self, step: AlertStep) -> Result<Self, IllegalStep> {
        use {AlertState as S, AlertStep as Step};
        Ok(match (self, step) {
            (S::Pending, Step::Fired) => S::Firing,
            // A rule's end of what never fired is no news to anybody.
            (S::Pending, Step::Cancelled | Step::Resolved) => S::Cancelled,
            (S::Firing, Step::Acknowledged) => S::Acknowledged,
            (S::Acknowledged, Step::Unacknowledged) => S::Firing,
            (S::Firing | S::Acknowledged, Step::Raised) => S::Firing,
            (state @ (S::Firing | S::Acknowledged), Step::Lowered) => state,
            (S::Firing | S::Acknowledged, Step::Resolved) => S::Resolved,
            (state, step) => return Err(IllegalStep { state, step }),
        })
    }

    /// Not over yet. At most one alert of a fingerprint is.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Firing | Self::Acknowledged)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Firing => "firing",
            Self::Acknowledged => "acknowledged",
            Self::Resolved => "resolved",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for AlertState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for AlertStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fired => "fired",
            Self::Raised => "raised",
            Self::Lowered => "lowered",
            Self::Resolved => "resolved",
            Self::Cancelled => "cancelled",
            Self::Acknowledged => "acknowledged",
            Self::Unacknowledged => "unacknowledged",
        })
    }
}

/// One episode of a rule on a device: the public id of an alert, `FINGERPRINT-SINCE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AlertId {
    pub fingerprint: Fingerprint,
    /// Event time at which the condition began to hold.
    pub since: Timestamp,
}

impl fmt::Display for AlertId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.fingerprint, self.since.as_micros())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an alert's id is FINGERPRINT-SINCE, or its fingerprint alone: 16 hexadecimal digits")]
pub struct InvalidAlertId;

impl std::str::FromStr for AlertId {
    type Err = InvalidAlertId;
    fn from_str(text: &str) -> Result<Self, InvalidAlertId> {
        let (fingerprint, since) = text.split_once('-').ok_or(InvalidAlertId)?;
        let since = since.parse().map_err(|_| InvalidAlertId)?;
        Ok(Self { fingerprint: fingerprint.parse()?, since: Timestamp::from_micros(since) })
    }
}

impl std::str::FromStr for Fingerprint {
    type Err = InvalidAlertId;
    fn from_str(text: &str) -> Result<Self, InvalidAlertId> {
        let is_hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let bits = u64::from_str_radix(text, 16).ok().filter(|_| is_hex).ok_or(InvalidAlertId)?;
        Ok(Self(bits as i64))
    }
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl AlertTransition {
    pub fn alert(&self) -> AlertId {
        AlertId { fingerprint: self.fingerprint, since: self.since }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_stays_over_and_only_what_fires_is_acknowledged() {
        use AlertStep::*;
        let steps = [Fired, Raised, Lowered, Resolved, Cancelled, Acknowledged, Unacknowledged];
        for state in AlertState::ALL {
            for step in steps {
                let next = state.on(step);
                assert!(state.is_open() || next.is_err(), "{state} {step}");
                if next == Ok(AlertState::Acknowledged) && step != Lowered {
                    assert_eq!((state, step), (AlertState::Firing, Acknowledged));
                }
            }
        }
        let refused = AlertState::Resolved.on(Acknowledged).unwrap_err();
        assert_eq!(refused.to_string(), "an alert that is resolved cannot be acknowledged");
    }

    #[test]
    fn an_id_is_read_as_it_is_written() {
        for fingerprint in [0, -1, i64::MIN, 0x0123_4567_89ab_cdef] {
            for since in [0, -5, 1_700_000_000_000_000] {
                let id =
                    AlertId { fingerprint: Fingerprint(fingerprint), since: Timestamp::from_micros(since) };
                assert_eq!(id.to_string().parse(), Ok(id));
            }
        }
        for wrong in
            ["", "-", "0123456789abcdef", "0123456789abcde-1", "+123456789abcdef-1", "0123456789abcdef-x"]
        {
            assert_eq!(wrong.parse::<AlertId>(), Err(InvalidAlertId), "{wrong}");
        }
    }
}
