use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};

/// Who is told, and how stubbornly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub retry: Retry,
    /// How long alerts that are over are remembered, with what was told of them. Longer than the journal keeps its
    /// records: a replay of what is forgotten tells people again.
    pub kept_seconds: u64,
    /// Everybody in this list hears of every alert that fires or resolves.
    pub channel: Vec<ChannelConfig>,
}

/// Alerts that are over are remembered for 400 days, unless `kept_seconds` says otherwise.
pub const ALERTS_KEPT_DEFAULT: Duration = Duration::from_secs(400 * 86_400);
const ALERTS_KEPT_MIN: Duration = Duration::from_secs(86_400);

/// A channel; its name is unique.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ChannelConfig {
    /// A line in the server's log.
    Log { name: String },
    /// `POST` of a JSON object; any 2xx is success. Repetitions carry the same `Idempotency-Key`.
    Webhook {
        name: String,
        url: String,
        #[serde(default = "webhook_timeout_seconds")]
        timeout_seconds: u64,
    },
}

impl ChannelConfig {
    pub fn name(&self) -> &str {
        match self {
            Self::Log { name } | Self::Webhook { name, .. } => name,
        }
    }
}

fn webhook_timeout_seconds() -> u64 {
    10
}

/// How often a notification is tried again. The pause doubles from the first to the longest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    pub attempts_max: u32,
    pub pause_first_ms: u64,
    pub pause_longest_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        let log = ChannelConfig::Log { name: "log".into() };
        Self { retry: Retry::default(), kept_seconds: ALERTS_KEPT_DEFAULT.as_secs(), channel: vec![log] }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts_max: 200, pause_first_ms: 1_000, pause_longest_ms: 300_000 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    #[error("alerting has two channels named {0:?}; give one another name")]
    SameName(String),
    #[error("alerting channel {channel:?}: {url:?} is not an http or https address")]
    Url { channel: String, url: String },
    #[error("alerting.retry.attempts_max must be at least 1")]
    NoAttempts,
    #[error("alerting.kept_seconds must be at least {}", ALERTS_KEPT_MIN.as_secs())]
    KeptTooShort,
}

impl Config {
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let mut names = BTreeSet::new();
        for channel in &self.channel {
            if !names.insert(channel.name()) {
                return Err(InvalidConfig::SameName(channel.name().to_owned()));
            }
            if let ChannelConfig::Webhook { name, url, .. } = channel
                && !url.parse::<reqwest::Url>().is_ok_and(|u| matches!(u.scheme(), "http" | "https"))
            {
                return Err(InvalidConfig::Url { channel: name.clone(), url: url.clone() });
            }
        }
        if self.kept_seconds < ALERTS_KEPT_MIN.as_secs() {
            return Err(InvalidConfig::KeptTooShort);
        }
        match self.retry.attempts_max {
            0 => Err(InvalidConfig::NoAttempts),
            _ => Ok(()),
        }
    }
}

impl Retry {
    /// The pause before the next try after `attempts` failures; `None` gives up. `spread` (0 to 1) keeps receivers
    /// that came back from being met by everybody at once: it shortens the pause by up to a half.
    pub(crate) fn pause(&self, attempts: u32, spread: f64) -> Option<Duration> {
        if attempts >= self.attempts_max {
            return None;
        }
        let doubled = self.pause_first_ms.saturating_mul(1 << attempts.saturating_sub(1).min(30));
        let pause = doubled.min(self.pause_longest_ms) as f64 * (1.0 - spread.clamp(0.0, 1.0) / 2.0);
        Some(Duration::from_millis(pause as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_are_kept_for_a_day_at_least() {
        assert_eq!(Config::default().check(), Ok(()));
        let short = Config { kept_seconds: ALERTS_KEPT_MIN.as_secs() - 1, ..Config::default() };
        assert_eq!(short.check(), Err(InvalidConfig::KeptTooShort));
    }

    #[test]
    fn pauses_double_up_to_the_longest_and_then_it_is_given_up() {
        let retry = Retry { attempts_max: 4, pause_first_ms: 100, pause_longest_ms: 250 };
        let pauses: Vec<_> = (1..=4).map(|n| retry.pause(n, 0.0).map(|p| p.as_millis())).collect();
        assert_eq!(pauses, [Some(100), Some(200), Some(250), None]);
        assert_eq!(retry.pause(1, 1.0), Some(Duration::from_millis(50)));
    }
}
