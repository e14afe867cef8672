//! Who is told, by which way, how often and how stubbornly.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::matchers::{InvalidMatcher, Matchers};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where people reach this server's HTTP API: begins the links in messages. Without it there are none.
    pub public_url: Option<String>,
    /// How long a link to acknowledge works.
    pub link_seconds: u64,
    /// How long alerts that are over are remembered, with what was told of them. Longer than the journal keeps its
    /// records: a replay of what is forgotten tells people again.
    pub kept_seconds: u64,
    /// How long a digest gathers what is beyond a budget.
    pub digest_seconds: u64,
    /// Alerts of one digest; the next begins with the one after them.
    pub digest_alerts_max: u64,
    pub retry: Retry,
    pub flapping: Flapping,
    pub dependencies: Dependencies,
    /// The ways to tell people. Without a route that says otherwise all of them hear of every alert.
    pub channel: Vec<ChannelConfig>,
    pub person: Vec<Person>,
    pub policy: Vec<PolicyConfig>,
    /// The first that matches an alert says who is told of it; one that none matches is told to every channel.
    pub route: Vec<RouteConfig>,
}

/// An alert that fires too often is told once, and again when it has been quiet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flapping {
    /// Flapping is to fire so often, of 1 to 1,000 times; with any other number nothing flaps ...
    pub firings: u64,
    /// ... within this time ...
    pub within_seconds: u64,
    /// ... until nothing happened for so long.
    pub quiet_seconds: u64,
}

/// A gateway device that is down silences its children.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dependencies {
    /// Rules, as globs, whose alerts say that a device is down.
    pub down_rules: Vec<String>,
    /// How long an alert of a child waits to see whether its gateway is down.
    pub wait_seconds: u64,
}

/// A bucket of tokens, one a message. What is beyond it is told in a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    pub burst: u32,
    pub per_hour: u32,
}

/// Somebody with addresses of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Person {
    pub name: String,
    pub reach: Vec<Reach>,
    /// Of all ways together.
    #[serde(default = "person_budget")]
    pub budget: Budget,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reach {
    pub channel: String,
    /// Of an e-mail channel: the address.
    #[serde(default)]
    pub to: String,
}

/// Who is told, and who next if nobody acknowledges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    pub name: String,
    /// So often it begins again after its last step.
    #[serde(default)]
    pub repeat_times: u32,
    pub step: Vec<StepConfig>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepConfig {
    /// Persons and channels.
    pub tell: Vec<String>,
    /// How long this step has before the next.
    #[serde(default = "step_wait_seconds")]
    pub wait_seconds: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// `severity="critical"`, `device=~"press-.*"`, `rule!="noise"`, as in Alertmanager. All must match.
    #[serde(default, rename = "match")]
    pub matchers: Vec<String>,
    /// Of every tenant if absent.
    pub tenant: Option<String>,
    /// A policy by its name, or `tell`.
    pub policy: Option<String>,
    /// Persons and channels.
    #[serde(default)]
    pub tell: Vec<String>,
    /// `rule`, `device`, `severity`: alerts alike in these are told together.
    #[serde(default)]
    pub group_by: Vec<String>,
    /// How long a group gathers. 0: every alert by itself.
    #[serde(default)]
    pub group_seconds: u64,
}

/// Alerts that are over are remembered for 400 days, unless `kept_seconds` says otherwise.
pub const ALERTS_KEPT_DEFAULT: Duration = Duration::from_secs(400 * 86_400);
const ALERTS_KEPT_MIN: Duration = Duration::from_secs(86_400);
const STEPS_MAX: usize = 100;

/// A channel; its name is unique.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ChannelConfig {
    /// A line in the server's log.
    Log(LogConfig),
    /// `POST` of a JSON object; any 2xx is success. Repetitions carry the same `Idempotency-Key`.
    Webhook(WebhookConfig),
    Email(EmailConfig),
    /// Incoming webhooks of Slack, and what is made like them: Mattermost, Rocket.Chat, Zulip.
    Slack(SlackConfig),
    /// Events API v2 of PagerDuty, and what is made like it.
    #[serde(rename = "pagerduty")]
    PagerDuty(PagerDutyConfig),
    /// The tenant's own publish and subscribe.
    Mqtt(MqttConfig),
    /// API v2 of Prometheus Alertmanager.
    Alertmanager(AlertmanagerConfig),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    pub name: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    pub name: String,
    pub url: String,
    #[serde(default = "http_timeout_seconds")]
    pub timeout_seconds: u64,
    /// File with the secret that bodies are signed with, as Standard Webhooks says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// Whether the receiver may have an address that is not of the public internet.
    #[serde(default)]
    pub private_network: bool,
    #[serde(default = "webhook_budget")]
    pub budget: Budget,
    /// The body, instead of the JSON object of docs/alerting.md.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmailConfig {
    pub name: String,
    /// `HOST:PORT`.
    pub server: String,
    #[serde(default)]
    pub tls: SmtpTls,
    /// Certificates that are trusted beside the system's, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    pub from: String,
    /// Who hears of what is told to the channel itself. Each has a message of their own.
    #[serde(default)]
    pub to: Vec<String>,
    #[serde(default = "smtp_timeout_seconds")]
    pub timeout_seconds: u64,
    /// Of each address.
    #[serde(default = "people_budget")]
    pub budget: Budget,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SmtpTls {
    /// STARTTLS, and nothing without it.
    #[default]
    Starttls,
    /// TLS from the first byte.
    Tls,
    /// In the clear: on the same machine.
    None,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlackConfig {
    pub name: String,
    /// File with the address, which is a secret.
    pub url_file: PathBuf,
    #[serde(default = "http_timeout_seconds")]
    pub timeout_seconds: u64,
    #[serde(default)]
    pub private_network: bool,
    #[serde(default = "people_budget")]
    pub budget: Budget,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagerDutyConfig {
    pub name: String,
    pub routing_key_file: PathBuf,
    #[serde(default = "pagerduty_url")]
    pub url: String,
    #[serde(default = "http_timeout_seconds")]
    pub timeout_seconds: u64,
    #[serde(default)]
    pub private_network: bool,
    #[serde(default = "people_budget")]
    pub budget: Budget,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MqttConfig {
    pub name: String,
    /// `{rule}`, `{device}`, `{severity}` and `{state}` stand for the alert's.
    #[serde(default = "mqtt_topic")]
    pub topic: String,
    /// Whoever subscribes later hears how the alert stands.
    #[serde(default)]
    pub retain: bool,
    #[serde(default = "machine_budget")]
    pub budget: Budget,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlertmanagerConfig {
    pub name: String,
    /// Where it is; `/api/v2/alerts` is added.
    pub url: String,
    #[serde(default = "http_timeout_seconds")]
    pub timeout_seconds: u64,
    /// What fires is said again so often, as Prometheus does; an Alertmanager that hears nothing for five times that
    /// takes it for resolved.
    #[serde(default = "refresh_seconds")]
    pub refresh_seconds: u64,
    /// An Alertmanager is usually in the own network.
    #[serde(default = "yes")]
    pub private_network: bool,
}

impl ChannelConfig {
    pub fn name(&self) -> &str {
        match self {
            Self::Log(c) => &c.name,
            Self::Webhook(c) => &c.name,
            Self::Email(c) => &c.name,
            Self::Slack(c) => &c.name,
            Self::PagerDuty(c) => &c.name,
            Self::Mqtt(c) => &c.name,
            Self::Alertmanager(c) => &c.name,
        }
    }

    /// `None`: as much as there is.
    pub fn budget(&self) -> Option<Budget> {
        match self {
            Self::Log(_) | Self::Alertmanager(_) => None,
            Self::Webhook(c) => Some(c.budget),
            Self::Email(c) => Some(c.budget),
            Self::Slack(c) => Some(c.budget),
            Self::PagerDuty(c) => Some(c.budget),
            Self::Mqtt(c) => Some(c.budget),
        }
    }

    pub fn timeout_seconds(&self) -> Option<u64> {
        match self {
            Self::Log(_) | Self::Mqtt(_) => None,
            Self::Webhook(c) => Some(c.timeout_seconds),
            Self::Email(c) => Some(c.timeout_seconds),
            Self::Slack(c) => Some(c.timeout_seconds),
            Self::PagerDuty(c) => Some(c.timeout_seconds),
            Self::Alertmanager(c) => Some(c.timeout_seconds),
        }
    }

    /// Whether somebody acknowledged is said here, too: it stops what pages others.
    pub(crate) fn hears_acknowledged(&self) -> bool {
        matches!(self, Self::PagerDuty(_) | Self::Webhook(_) | Self::Mqtt(_))
    }

    fn url(&self) -> Option<&str> {
        match self {
            Self::Webhook(c) => Some(&c.url),
            Self::PagerDuty(c) => Some(&c.url),
            Self::Alertmanager(c) => Some(&c.url),
            Self::Log(_) | Self::Email(_) | Self::Slack(_) | Self::Mqtt(_) => None,
        }
    }
}

fn http_timeout_seconds() -> u64 {
    10
}
fn smtp_timeout_seconds() -> u64 {
    30
}
fn refresh_seconds() -> u64 {
    60
}
fn step_wait_seconds() -> u64 {
    900
}
fn yes() -> bool {
    true
}
fn pagerduty_url() -> String {
    "https://events.pagerduty.com/v2/enqueue".into()
}
fn mqtt_topic() -> String {
    "alerts/{rule}/{device}".into()
}
fn person_budget() -> Budget {
    Budget { burst: 20, per_hour: 60 }
}
fn people_budget() -> Budget {
    Budget { burst: 10, per_hour: 30 }
}
fn webhook_budget() -> Budget {
    Budget { burst: 1_000, per_hour: 36_000 }
}
fn machine_budget() -> Budget {
    Budget { burst: 10_000, per_hour: 360_000 }
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
        Self {
            public_url: None,
            link_seconds: 86_400,
            kept_seconds: ALERTS_KEPT_DEFAULT.as_secs(),
            digest_seconds: 300,
            digest_alerts_max: 200_000,
            retry: Retry::default(),
            flapping: Flapping::default(),
            dependencies: Dependencies::default(),
            channel: vec![ChannelConfig::Log(LogConfig { name: "log".into() })],
            person: Vec::new(),
            policy: Vec::new(),
            route: Vec::new(),
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts_max: 200, pause_first_ms: 1_000, pause_longest_ms: 300_000 }
    }
}

impl Default for Flapping {
    fn default() -> Self {
        Self { firings: 6, within_seconds: 900, quiet_seconds: 600 }
    }
}

impl Default for Dependencies {
    fn default() -> Self {
        Self { down_rules: vec!["*-down".into(), "*-offline".into()], wait_seconds: 0 }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    #[error("alerting has two channels, persons or policies named {0:?}; give one another name")]
    SameName(String),
    #[error("alerting: {0:?} is no name; use letters, digits, - and _")]
    Name(String),
    #[error("alerting channel {channel:?}: {url:?} is not an http or https address")]
    Url { channel: String, url: String },
    #[error("alerting.public_url {0:?} is not an http or https address")]
    PublicUrl(String),
    #[error("alerting channel {channel:?}: {why}")]
    Email { channel: String, why: String },
    #[error("alerting channel {channel:?}: template: {why}")]
    Template { channel: String, why: String },
    #[error("alerting channel {0:?}: the topic has wildcards or is empty")]
    Topic(String),
    #[error("alerting {whose}: a budget has a burst and a rate of at least 1")]
    Budget { whose: String },
    #[error("alerting {whose}: there is no {what} named {name:?}")]
    Unknown { whose: String, what: &'static str, name: String },
    #[error("alerting policy {0:?} must have from 1 to {STEPS_MAX} steps, each of which tells somebody")]
    Steps(String),
    #[error("alerting route {0}: say either `policy` or `tell`")]
    RouteTells(usize),
    #[error("alerting route {route}: {source}")]
    Matcher { route: usize, source: InvalidMatcher },
    #[error("alerting route {route}: {label:?} cannot be grouped by; rule, device and severity can")]
    GroupBy { route: usize, label: String },
    #[error("alerting person {person:?}: channel {channel:?} needs an address, `to`")]
    NoAddress { person: String, channel: String },
    #[error("alerting.retry.attempts_max must be at least 1")]
    NoAttempts,
    #[error("alerting.kept_seconds must be at least {}", ALERTS_KEPT_MIN.as_secs())]
    KeptTooShort,
}

impl Config {
    pub fn check(&self) -> Result<(), InvalidConfig> {
        self.check_names()?;
        for channel in &self.channel {
            check_channel(channel)?;
        }
        if let Some(url) = &self.public_url
            && !is_http(url)
        {
            return Err(InvalidConfig::PublicUrl(url.clone()));
        }
        self.check_people()?;
        if self.kept_seconds < ALERTS_KEPT_MIN.as_secs() {
            return Err(InvalidConfig::KeptTooShort);
        }
        match self.retry.attempts_max {
            0 => Err(InvalidConfig::NoAttempts),
            _ => Ok(()),
        }
    }

    fn check_names(&self) -> Result<(), InvalidConfig> {
        let mut names = BTreeSet::new();
        let channels = self.channel.iter().map(ChannelConfig::name);
        let told = channels.chain(self.person.iter().map(|p| p.name.as_str()));
        for name in told.clone() {
            let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            if name.is_empty() || !name.bytes().all(is_name) {
                return Err(InvalidConfig::Name(name.to_owned()));
            }
            if !names.insert(name) {
                return Err(InvalidConfig::SameName(name.to_owned()));
            }
        }
        let mut policies = BTreeSet::new();
        match self.policy.iter().find(|p| !policies.insert(&p.name)) {
            Some(twice) => Err(InvalidConfig::SameName(twice.name.clone())),
            None => Ok(()),
        }
    }

    fn check_people(&self) -> Result<(), InvalidConfig> {
        let channels: BTreeMap<&str, &ChannelConfig> = self.channel.iter().map(|c| (c.name(), c)).collect();
        for person in &self.person {
            let whose = || format!("person {:?}", person.name);
            check_budget(person.budget, &whose())?;
            for reach in &person.reach {
                let channel = channels.get(reach.channel.as_str()).ok_or_else(|| InvalidConfig::Unknown {
                    whose: whose(),
                    what: "channel",
                    name: reach.channel.clone(),
                })?;
                if let ChannelConfig::Email(email) = channel {
                    if reach.to.is_empty() {
                        return Err(InvalidConfig::NoAddress {
                            person: person.name.clone(),
                            channel: email.name.clone(),
                        });
                    }
                    check_address(&email.name, &reach.to)?;
                }
            }
        }
        for policy in &self.policy {
            if policy.step.is_empty()
                || policy.step.len() > STEPS_MAX
                || policy.step.iter().any(|step| step.tell.is_empty())
            {
                return Err(InvalidConfig::Steps(policy.name.clone()));
            }
            for name in policy.step.iter().flat_map(|step| &step.tell) {
                self.check_told(name, &format!("policy {:?}", policy.name))?;
            }
        }
        self.route.iter().enumerate().try_for_each(|(n, route)| self.check_route(n + 1, route))
    }

    fn check_route(&self, n: usize, route: &RouteConfig) -> Result<(), InvalidConfig> {
        let whose = format!("route {n}");
        if route.policy.is_some() != route.tell.is_empty() {
            return Err(InvalidConfig::RouteTells(n));
        }
        if let Some(name) = &route.policy
            && !self.policy.iter().any(|p| p.name == *name)
        {
            return Err(InvalidConfig::Unknown { whose, what: "policy", name: name.clone() });
        }
        route.tell.iter().try_for_each(|name| self.check_told(name, &whose))?;
        Matchers::parse(&route.matchers).map_err(|source| InvalidConfig::Matcher { route: n, source })?;
        match route.group_by.iter().find(|l| !matches!(l.as_str(), "rule" | "device" | "severity")) {
            Some(label) => Err(InvalidConfig::GroupBy { route: n, label: label.clone() }),
            None => Ok(()),
        }
    }

    fn check_told(&self, name: &str, whose: &str) -> Result<(), InvalidConfig> {
        let known =
            self.channel.iter().any(|c| c.name() == name) || self.person.iter().any(|p| p.name == name);
        match known {
            true => Ok(()),
            false => Err(InvalidConfig::Unknown {
                whose: whose.to_owned(),
                what: "person or channel",
                name: name.to_owned(),
            }),
        }
    }
}

fn check_channel(channel: &ChannelConfig) -> Result<(), InvalidConfig> {
    let name = || channel.name().to_owned();
    if let Some(url) = channel.url().filter(|url| !is_http(url)) {
        return Err(InvalidConfig::Url { channel: name(), url: url.to_owned() });
    }
    if let Some(budget) = channel.budget() {
        check_budget(budget, &format!("channel {:?}", channel.name()))?;
    }
    match channel {
        ChannelConfig::Email(email) => {
            check_address(&email.name, &email.from)?;
            email.to.iter().try_for_each(|to| check_address(&email.name, to))?;
            if email.server.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
                let why = format!("server must be HOST:PORT, not {:?}", email.server);
                return Err(InvalidConfig::Email { channel: name(), why });
            }
            if email.username.is_some() != email.password_file.is_some() {
                let why = "username and password_file belong together".to_owned();
                return Err(InvalidConfig::Email { channel: name(), why });
            }
        }
        ChannelConfig::Mqtt(mqtt) if mqtt.topic.is_empty() || mqtt.topic.contains(['+', '#', '\0']) => {
            return Err(InvalidConfig::Topic(name()));
        }
        _ => {}
    }
    crate::templates::Templates::of(channel)
        .map(|_| ())
        .map_err(|error| InvalidConfig::Template { channel: name(), why: error.to_string() })
}

fn check_address(channel: &str, address: &str) -> Result<(), InvalidConfig> {
    match address.parse::<lettre::message::Mailbox>() {
        Ok(_) => Ok(()),
        Err(_) => Err(InvalidConfig::Email {
            channel: channel.to_owned(),
            why: format!("{address:?} is not an e-mail address"),
        }),
    }
}

fn check_budget(budget: Budget, whose: &str) -> Result<(), InvalidConfig> {
    match budget.burst.min(budget.per_hour) {
        0 => Err(InvalidConfig::Budget { whose: whose.to_owned() }),
        _ => Ok(()),
    }
}

fn is_http(url: &str) -> bool {
    url.parse::<reqwest::Url>().is_ok_and(|u| matches!(u.scheme(), "http" | "https") && u.host().is_some())
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
