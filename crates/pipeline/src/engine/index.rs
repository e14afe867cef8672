//! From a reading to the rules that look at it, without going through all rules.
//!
//! Rules are looked up by metric, tenant and device type, and only when a device first sends a metric: after that the
//! device knows its own. So the cost of a reading is that of the rules on it, however many rules and devices there are.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::{
    rules::{Rule, RuleSet},
    watch::Feed,
};

type Words<V> = HashMap<Box<str>, V, foldhash::fast::RandomState>;
type Shared = Option<Arc<str>>;

/// Stands for every record, whatever is in it.
pub(super) const ANY: u32 = 0;

#[derive(Debug)]
pub(super) struct Index {
    rules: Vec<Indexed>,
    /// Metrics that some rule names, numbered; `ANY` is none of them.
    metrics: Words<u32>,
    by_key: HashMap<(u32, Shared, Shared), ByDevice, foldhash::fast::RandomState>,
    by_content: HashMap<u64, u32>,
    /// Tenants and device types, each kept once.
    words: HashSet<Arc<str>, foldhash::fast::RandomState>,
    has_any: bool,
    has_groups: bool,
}

#[derive(Debug)]
struct Indexed {
    rule: Arc<Rule>,
    /// Where its metrics go.
    feeds: Vec<(u32, Feed)>,
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
            by_key: HashMap::default(),
            by_content: HashMap::new(),
            words: HashSet::default(),
            has_any: false,
            has_groups: set.rules().iter().any(|rule| rule.group.is_some()),
        };
        for (number, rule) in (0u32..).zip(set.rules()) {
            index.by_content.insert(rule.content_hash, number);
            let feeds = index.feeds_of(rule);
            let (tenant, device_type) = (rule.tenant.as_deref(), rule.device_type.as_deref());
            let (tenant, device_type) = (tenant.map(|w| index.word(w)), device_type.map(|w| index.word(w)));
            let devices = rule.devices.to_string();
            let mut metrics: Vec<u32> = feeds.iter().map(|(metric, _)| *metric).collect();
            metrics.dedup();
            for metric in metrics {
                index.has_any |= metric == ANY;
                let on_metric =
                    index.by_key.entry((metric, tenant.clone(), device_type.clone())).or_default();
                match devices.contains(['*', '?']) {
                    true => on_metric.globs.push(number),
                    false => on_metric.exact.entry_ref(&*devices).or_default().push(number),
                }
            }
            index.rules.push(Indexed { rule: rule.clone(), feeds });
        }
        index
    }

    /// Sorted by metric.
    fn feeds_of(&mut self, rule: &Rule) -> Vec<(u32, Feed)> {
        let mut feeds = Vec::new();
        for (level, of) in (0u8..).zip(&rule.levels) {
            for (test, of) in (0u8..).zip(&of.condition.tests) {
                let is_window = of.is_window();
                for (input, metric) in (0u8..).zip(of.inputs()) {
                    let metric = metric.map_or(ANY, |name| {
                        let fresh = self.metrics.len() as u32 + 1;
                        *self.metrics.entry_ref(name).or_insert(fresh)
                    });
                    feeds.push((metric, Feed { level, test, input, is_window }));
                }
            }
        }
        feeds.sort_by_key(|(metric, _)| *metric);
        feeds
    }

    pub(super) fn rule(&self, number: u32) -> &Rule {
        &self.rules[number as usize].rule
    }

    pub(super) fn get(&self, number: u32) -> Option<&Rule> {
        self.rules.get(number as usize).map(|indexed| &*indexed.rule)
    }

    /// Whether some rule is over a group.
    pub(super) fn has_groups(&self) -> bool {
        self.has_groups
    }

    pub(super) fn feeds(&self, number: u32) -> &[(u32, Feed)] {
        &self.rules[number as usize].feeds
    }

    /// The number of a metric that some rule names.
    pub(super) fn metric(&self, name: &str) -> Option<u32> {
        self.metrics.get(name).copied()
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
