//! The configuration, ready to decide by.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use dunlin_registry::Alert;
use wildmatch::WildMatch;

use crate::{
    config::{Budget, ChannelConfig, Config, InvalidConfig},
    matchers::Matchers,
};

#[derive(Debug)]
pub(crate) struct Policy {
    /// `None`: nothing flaps.
    pub(crate) flap_firings: Option<u32>,
    pub(crate) flap_within: Duration,
    pub(crate) flap_quiet: Duration,
    pub(crate) down_rules: Vec<WildMatch>,
    pub(crate) dependency_wait: Duration,
    pub(crate) digest: Duration,
    pub(crate) digest_alerts_max: u64,
    routes: Vec<Route>,
    everybody: Route,
    /// By `Target::id`.
    targets: BTreeMap<String, Arc<Target>>,
}

/// A way to one person or place.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Channel, or channel and recipient.
    pub(crate) id: String,
    pub(crate) channel: String,
    pub(crate) recipient: String,
    pub(crate) hears_acknowledged: bool,
    /// Whether a message may tell many; an Alertmanager makes such messages itself.
    pub(crate) takes_many: bool,
    /// What a message takes a token from: names and budgets.
    pub(crate) budgets: Vec<(String, Budget)>,
}

#[derive(Debug)]
pub(crate) struct Route {
    tenant: Option<String>,
    matchers: Matchers,
    pub(crate) steps: Vec<Step>,
    pub(crate) repeat_times: u32,
    pub(crate) group_by: Vec<String>,
    pub(crate) group: Duration,
}

#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) targets: Vec<Arc<Target>>,
    pub(crate) wait: Duration,
}

/// Firings of one alert that are counted.
const FLAP_FIRINGS_MAX: u32 = 1_000;

impl Policy {
    pub(crate) fn new(config: &Config) -> Result<Self, InvalidConfig> {
        config.check()?;
        let mut targets = Targets { config, by_id: BTreeMap::new() };
        let everybody: Vec<String> = config.channel.iter().map(|c| c.name().to_owned()).collect();
        let everybody = Route {
            tenant: None,
            matchers: Matchers::parse(&[]).map_err(|source| InvalidConfig::Matcher { route: 0, source })?,
            steps: vec![Step { targets: targets.of(&everybody), wait: Duration::ZERO }],
            repeat_times: 0,
            group_by: Vec::new(),
            group: Duration::ZERO,
        };
        let mut routes = Vec::new();
        for (n, route) in config.route.iter().enumerate() {
            let policy = config.policy.iter().find(|p| route.policy.as_deref() == Some(p.name.as_str()));
            let steps = match policy {
                Some(policy) => policy
                    .step
                    .iter()
                    .map(|step| Step {
                        targets: targets.of(&step.tell),
                        wait: Duration::from_secs(step.wait_seconds),
                    })
                    .collect(),
                None => vec![Step { targets: targets.of(&route.tell), wait: Duration::ZERO }],
            };
            routes.push(Route {
                tenant: route.tenant.clone(),
                matchers: Matchers::parse(&route.matchers)
                    .map_err(|source| InvalidConfig::Matcher { route: n + 1, source })?,
                steps,
                repeat_times: policy.map_or(0, |p| p.repeat_times),
                group_by: route.group_by.clone(),
                group: Duration::from_secs(route.group_seconds),
            });
        }
        Ok(Self {
            flap_firings: u32::try_from(config.flapping.firings)
                .ok()
                .filter(|firings| (1..=FLAP_FIRINGS_MAX).contains(firings)),
            flap_within: Duration::from_secs(config.flapping.within_seconds),
            flap_quiet: Duration::from_secs(config.flapping.quiet_seconds),
            down_rules: config.dependencies.down_rules.iter().map(|glob| WildMatch::new(glob)).collect(),
            dependency_wait: Duration::from_secs(config.dependencies.wait_seconds),
            digest: Duration::from_secs(config.digest_seconds),
            digest_alerts_max: config.digest_alerts_max,
            targets: targets.by_id,
            routes,
            everybody,
        })
    }

    pub(crate) fn route(&self, alert: &Alert) -> &Route {
        let is_for = |route: &&Route| {
            route.tenant.as_ref().is_none_or(|tenant| *tenant == alert.tenant)
                && route.matchers.matches(alert)
        };
        self.routes.iter().find(is_for).unwrap_or(&self.everybody)
    }

    /// `None`: it is no longer in the configuration.
    pub(crate) fn target(&self, id: &str) -> Option<&Arc<Target>> {
        self.targets.get(id)
    }

    pub(crate) fn says_down(&self, rule: &str) -> bool {
        self.down_rules.iter().any(|glob| glob.matches(rule))
    }
}

impl Route {
    /// The step that is the `n`th in time, counted through repetitions.
    pub(crate) fn step(&self, n: u32) -> Option<&Step> {
        let count = self.steps.len() as u32;
        let is_within = u64::from(n) < u64::from(count) * (u64::from(self.repeat_times) + 1);
        is_within.then(|| &self.steps[(n % count) as usize])
    }
}

struct Targets<'a> {
    config: &'a Config,
    by_id: BTreeMap<String, Arc<Target>>,
}

impl Targets<'_> {
    /// Of persons and channels; each once.
    fn of(&mut self, names: &[String]) -> Vec<Arc<Target>> {
        let mut found: Vec<Arc<Target>> = Vec::new();
        let config = self.config;
        for name in names {
            if let Some(channel) = config.channel.iter().find(|c| c.name() == name) {
                let recipients = match channel {
                    ChannelConfig::Email(email) => email.to.clone(),
                    _ => vec![String::new()],
                };
                found.extend(recipients.iter().map(|to| self.one(channel, to, None)));
            }
            for person in config.person.iter().filter(|p| p.name == *name) {
                for reach in &person.reach {
                    if let Some(channel) = config.channel.iter().find(|c| c.name() == reach.channel) {
                        let owner = Some((person.name.as_str(), person.budget));
                        found.push(self.one(channel, &reach.to, owner));
                    }
                }
            }
        }
        let mut seen = std::collections::BTreeSet::new();
        found.retain(|target| seen.insert(target.id.clone()));
        found
    }

    fn one(
        &mut self,
        channel: &ChannelConfig,
        recipient: &str,
        owner: Option<(&str, Budget)>,
    ) -> Arc<Target> {
        let id = match recipient {
            "" => channel.name().to_owned(),
            recipient => format!("{}/{recipient}", channel.name()),
        };
        let mut budgets: Vec<(String, Budget)> = Vec::new();
        budgets.extend(channel.budget().map(|budget| (id.clone(), budget)));
        let takes_many = !matches!(channel, ChannelConfig::Alertmanager(_));
        budgets.extend(owner.filter(|_| takes_many).map(|(name, budget)| (name.to_owned(), budget)));
        let target = Arc::new(Target {
            id: id.clone(),
            channel: channel.name().to_owned(),
            recipient: recipient.to_owned(),
            hears_acknowledged: channel.hears_acknowledged(),
            takes_many,
            budgets,
        });
        self.by_id.insert(id, target.clone());
        target
    }
}
