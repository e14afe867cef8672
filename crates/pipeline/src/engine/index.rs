//! From a reading to the rules that look at it, without going through all rules.

use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::rules::{Rule, RuleSet};

type Words<V> = HashMap<Box<str>, V, foldhash::fast::RandomState>;

#[derive(Debug)]
pub(super) struct Index {
    rules: Vec<Arc<Rule>>,
    /// Metrics that some rule names, numbered.
    metrics: Words<u32>,
    by_metric: Vec<ByDevice>,
    by_content: HashMap<u64, u32>,
    /// Tenants and device types, each kept once.
    words: HashSet<Arc<str>, foldhash::fast::RandomState>,
}

/// The rules on one metric.
#[derive(Debug, Default)]
struct ByDevice {
    /// Those that name one device.
    exact: Words<Vec<u32>>,
    globs: Vec<u32>,
}

impl Index {
    pub(super) fn new(set: &RuleSet) -> Self {
        let mut index = Self {
            rules: set.rules().to_vec(),
            metrics: Words::default(),
            by_metric: Vec::new(),
            by_content: HashMap::new(),
            words: HashSet::default(),
        };
        for (number, rule) in (0u32..).zip(set.rules()) {
            let fresh = index.by_metric.len() as u32;
            let metric = *index.metrics.entry_ref(&*rule.condition.metric).or_insert(fresh);
            if metric == fresh {
                index.by_metric.push(ByDevice::default());
            }
            let on_metric = &mut index.by_metric[metric as usize];
            let devices = rule.devices.to_string();
            match devices.contains(['*', '?']) {
                true => on_metric.globs.push(number),
                false => on_metric.exact.entry(devices.into()).or_default().push(number),
            }
            index.by_content.insert(rule.content_hash, number);
        }
        index
    }

    pub(super) fn rule(&self, number: u32) -> &Rule {
        &self.rules[number as usize]
    }

    /// The number of a metric that some rule names.
    pub(super) fn metric(&self, name: &str) -> Option<u32> {
        self.metrics.get(name).copied()
    }

    /// The metric and the number under which this set has the same rule.
    pub(super) fn same_rule(&self, rule: &Rule) -> Option<(u32, u32)> {
        self.by_content(rule.content_hash)
    }

    pub(super) fn by_content(&self, content_hash: u64) -> Option<(u32, u32)> {
        let number = *self.by_content.get(&content_hash)?;
        Some((self.metric(&self.rule(number).condition.metric)?, number))
    }

    pub(super) fn rules_for(&self, metric: u32, tenant: &str, device_type: &str, device: &str) -> Vec<u32> {
        let on_metric = &self.by_metric[metric as usize];
        let exact = on_metric.exact.get(device).into_iter().flatten();
        let globs = on_metric.globs.iter().filter(|n| self.rule(**n).devices.matches(device));
        let of_this = |rule: &Rule| {
            rule.tenant.as_deref().is_none_or(|t| t == tenant)
                && rule.device_type.as_deref().is_none_or(|t| t == device_type)
        };
        exact.chain(globs).copied().filter(|n| of_this(self.rule(*n))).collect()
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
