//! From a reading to the rules that look at it, without going through all rules.
//!
//! Rules are looked up by metric, tenant and device type, and only when a device first sends a metric: after that the
//! device knows its own. So the cost of a reading is that of the rules on it, however many rules and devices there are.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::{name::is_same, plan::Plans};
use crate::rules::{Rule, RuleSet, Test};

type Words<V> = HashMap<Box<str>, V, foldhash::fast::RandomState>;
type Shared = Option<Arc<str>>;

/// So many metrics are looked through one by one.
const METRICS_FEW: usize = 4;

/// Stands for every record, whatever is in it.
pub(super) const ANY: u32 = 0;

#[derive(Debug)]
pub(super) struct Index {
    rules: Vec<Arc<Rule>>,
    /// Metrics that some rule names, numbered; `ANY` is none of them.
    metrics: Words<u32>,
    /// The same, if they are few.
    few_metrics: Vec<(Box<str>, u32)>,
    by_key: HashMap<(u32, Shared, Shared), ByDevice, foldhash::fast::RandomState>,
    by_content: HashMap<u64, u32>,
    /// Tenants and device types, each kept once.
    words: HashSet<Arc<str>, foldhash::fast::RandomState>,
    has_any: bool,
    has_groups: bool,
    pub(super) plans: Plans,
}

/// The rules on one metric for one tenant and device type, or for all.
#[derive(Debug, Default)]
struct ByDevice {
    /// Those that name one device.
    exact: Words<Vec<u32>>,
    globs: Vec<u32>,
}

impl Index {
    pub(super) fn new(set: &RuleSet) -> Self {
        let mut index = Self {
            rules: Vec::with_capacity(set.len()),
            metrics: Words::default(),
            few_metrics: Vec::new(),
            by_key: HashMap::default(),
            by_content: HashMap::new(),
            words: HashSet::default(),
            has_any: false,
            has_groups: set.rules().iter().any(|rule| rule.group.is_some()),
            plans: Plans::default(),
        };
        for (number, rule) in (0u32..).zip(set.rules()) {
            index.by_content.insert(rule.content_hash, number);
            let metrics = index.metrics_of(rule);
            let (tenant, device_type) = (rule.tenant.as_deref(), rule.device_type.as_deref());
            let (tenant, device_type) = (tenant.map(|w| index.word(w)), device_type.map(|w| index.word(w)));
            let devices = rule.devices.to_string();
            for metric in metrics {
                index.has_any |= metric == ANY;
                let on_metric =
                    index.by_key.entry((metric, tenant.clone(), device_type.clone())).or_default();
                match devices.contains(['*', '?']) {
                    true => on_metric.globs.push(number),
                    false => on_metric.exact.entry_ref(&*devices).or_default().push(number),
                }
            }
            index.rules.push(rule.clone());
        }
        if index.metrics.len() <= METRICS_FEW {
            index.few_metrics = index.metrics.iter().map(|(name, number)| (name.clone(), *number)).collect();
        }
        index
    }

    /// Sorted.
    fn metrics_of(&mut self, rule: &Rule) -> Vec<u32> {
        let number = |input: Option<&str>| match input {
            None => ANY,
            Some(name) => {
                let fresh = self.metrics.len() as u32 + 1;
                *self.metrics.entry_ref(name).or_insert(fresh)
            }
        };
        let mut metrics: Vec<u32> = rule.inputs().map(number).collect();
        metrics.sort_unstable();
        metrics.dedup();
        metrics
    }

    /// The metrics whose readings a test wants, in order.
    pub(super) fn inputs(&self, test: &Test) -> Vec<u32> {
        let number = |input: Option<&str>| input.map_or(Some(ANY), |name| self.metric(name));
        test.inputs().into_iter().filter_map(number).collect()
    }

    pub(super) fn rule(&self, number: u32) -> &Rule {
        &self.rules[number as usize]
    }

    pub(super) fn get(&self, number: u32) -> Option<&Rule> {
        self.rules.get(number as usize).map(|rule| &**rule)
    }

    /// Whether some rule is over a group.
    pub(super) fn has_groups(&self) -> bool {
        self.has_groups
    }

    /// The number of a metric that some rule names.
    pub(super) fn metric(&self, name: &str) -> Option<u32> {
        if self.metrics.len() > METRICS_FEW {
            return self.metrics.get(name).copied();
        }
        // A hash costs more than to look at a few.
        let is_it = |(of, _): &&(Box<str>, u32)| is_same(of.as_bytes(), name.as_bytes());
        self.few_metrics.iter().find(is_it).map(|(_, number)| *number)
    }

    /// Whether some rule looks at every record.
    pub(super) fn has_any(&self) -> bool {
        self.has_any
    }

    /// The names of the metrics, by number.
    pub(super) fn metric_names(&self) -> Vec<&str> {
        let mut names = vec![""; self.metrics.len() + 1];
        self.metrics.iter().for_each(|(name, number)| names[*number as usize] = name);
        names
    }

    /// The number under which this set has the same rule.
    pub(super) fn same_rule(&self, rule: &Rule) -> Option<u32> {
        self.by_content(rule.content_hash)
    }

    pub(super) fn by_content(&self, content_hash: u64) -> Option<u32> {
        self.by_content.get(&content_hash).copied()
    }

    pub(super) fn rules_for(
        &self,
        metric: u32,
        tenant: &Arc<str>,
        device_type: &Arc<str>,
        device: &str,
    ) -> Vec<u32> {
        let mut found = Vec::new();
        for tenant in [Some(tenant), None] {
            for device_type in [Some(device_type), None] {
                let key = (metric, tenant.cloned(), device_type.cloned());
                let Some(on_metric) = self.by_key.get(&key) else { continue };
                found.extend(on_metric.exact.get(device).into_iter().flatten());
                found.extend(on_metric.globs.iter().filter(|n| self.rule(**n).devices.matches(device)));
            }
        }
        found.sort_unstable();
        found
    }

    /// The shared copy of a tenant's or a type's name.
    pub(super) fn word(&mut self, word: &str) -> Arc<str> {
        match self.words.get(word) {
            Some(known) => known.clone(),
            None => {
                let fresh: Arc<str> = word.into();
                self.words.insert(fresh.clone());
                fresh
            }
        }
    }
}
