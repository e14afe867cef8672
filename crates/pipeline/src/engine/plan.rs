//! Where a reading goes, and who hears of the end of a window: what devices with the same rules have in common, kept
//! once for all of them. A device is only what it has come to know.

use std::sync::Arc;

use hashbrown::HashMap;

use super::index::Index;
use crate::{
    rules::{Aggregate, Rule, Subject, Test, Threshold},
    watch::{Feed, Lengths, Watch, window_of},
};

/// Steps from one plan to another that are remembered, at the most; then all are forgotten.
const STEPS_MAX: usize = 4_096;

/// What devices with the same rules have in common. Cells and windows are numbered, in the order in which they were made.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// By metric.
    ways: Vec<(u32, Arc<Ways>)>,
    windows: Vec<Arc<Window>>,
    /// Rules that have a cell, sorted.
    rules: Vec<u32>,
}

/// Where the readings of a metric go.
#[derive(Debug, Clone, Default)]
pub(super) struct Ways {
    /// All rules on it were looked up. Before, there are only those of rules on several metrics.
    is_complete: bool,
    pub(super) windows: Vec<(u32, Lengths)>,
    pub(super) singles: Vec<Single>,
    pub(super) others: Vec<(u32, Feed)>,
}

/// Windows of one metric, one after the other.
#[derive(Debug, Clone)]
pub(super) struct Window {
    pub(super) of: Lengths,
    pub(super) singles: Vec<(Aggregate, Single)>,
    /// Other cells that read it.
    pub(super) others: Vec<u32>,
}

/// The cell of a rule that is a single comparison: as long as it says the same, there is nothing to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Single {
    pub(super) cell: u32,
    pub(super) threshold: Threshold,
}

impl Plan {
    pub(super) fn windows(&self) -> &[Arc<Window>] {
        &self.windows
    }

    /// The place of a metric, once all rules on it were looked up.
    #[inline]
    pub(super) fn find(&self, metric: u32) -> Option<usize> {
        let at = self.ways.binary_search_by_key(&metric, |(of, _)| *of).ok()?;
        self.ways[at].1.is_complete.then_some(at)
    }

    #[inline]
    pub(super) fn ways(&self, at: usize) -> &Ways {
        &self.ways[at].1
    }

    pub(super) fn has_rule(&self, rule: u32) -> bool {
        self.rules.binary_search(&rule).is_ok()
    }

    fn ways_mut(&mut self, metric: u32) -> &mut Ways {
        let at = match self.ways.binary_search_by_key(&metric, |(of, _)| *of) {
            Ok(at) => at,
            Err(at) => {
                self.ways.insert(at, (metric, Arc::default()));
                at
            }
        };
        Arc::make_mut(&mut self.ways[at].1)
    }

    /// With more cells, after all rules on a metric were looked up, if it is because of that.
    fn with<'a>(
        &self,
        index: &Index,
        looked_up: Option<u32>,
        added: impl Iterator<Item = (u32, &'a Watch)>,
    ) -> Self {
        let (ways, windows, rules) = (self.ways.clone(), self.windows.clone(), self.rules.clone());
        let mut plan = Self { ways, windows, rules };
        for ((rule, watch), cell) in added.zip(self.rules.len() as u32..) {
            plan.rules.push(rule);
            plan.add(index, index.rule(rule), cell, watch);
        }
        plan.rules.sort_unstable();
        if let Some(metric) = looked_up {
            plan.ways_mut(metric).is_complete = true;
        }
        plan
    }

    fn add(&mut self, index: &Index, rule: &Rule, cell: u32, watch: &Watch) {
        let single = single(rule).map(|threshold| Single { cell, threshold });
        let mut windows = watch.windows();
        for (level, of) in (0u8..).zip(&rule.levels) {
            for (number, test) in (0u8..).zip(&of.condition.tests) {
                if let Test::Compare { subject: Subject::Window { metric, aggregate, .. }, .. } = test
                    && let Some((_, lengths)) = window_of(test)
                    && let (Some(metric), Some(window)) = (index.metric(metric), windows.next())
                {
                    let reader =
                        single.map_or(Reader::Other(cell), |single| Reader::Single(*aggregate, single));
                    self.add_reader(metric, window, lengths, reader);
                    continue;
                }
                for (input, metric) in (0u8..).zip(index.inputs(test)) {
                    let ways = self.ways_mut(metric);
                    match single {
                        Some(single) => ways.singles.push(single),
                        None => {
                            let feed = Feed { level, test: number, input, is_window: test.is_window() };
                            ways.others.push((cell, feed));
                        }
                    }
                }
            }
        }
    }

    fn add_reader(&mut self, metric: u32, window: u32, of: Lengths, reader: Reader) {
        // Windows are numbered as they come.
        if window as usize == self.windows.len() {
            self.windows.push(Arc::new(Window { of, singles: Vec::new(), others: Vec::new() }));
            self.ways_mut(metric).windows.push((window, of));
        }
        let read = Arc::make_mut(&mut self.windows[window as usize]);
        match reader {
            Reader::Single(aggregate, single) => read.singles.push((aggregate, single)),
            Reader::Other(cell) => read.others.push(cell),
        }
    }
}

/// Who hears of the end of a window.
enum Reader {
    Single(Aggregate, Single),
    Other(u32),
}

/// The threshold of a rule that is a single comparison, of readings or of windows.
fn single(rule: &Rule) -> Option<Threshold> {
    let [level] = &rule.levels[..] else { return None };
    match &level.condition.tests[..] {
        [Test::Compare { subject: Subject::Reading { .. }, threshold }] => Some(*threshold),
        [test @ Test::Compare { threshold, .. }] if window_of(test).is_some() => Some(*threshold),
        _ => None,
    }
}

/// The address of a plan, which is kept, and what was added to it.
type Step = (usize, Box<[u32]>);

/// Plans that were made before, so that devices with the same rules share one.
#[derive(Debug, Default)]
pub(super) struct Plans {
    /// Of a device without rules.
    none: Arc<Plan>,
    /// From which plan to which.
    steps: HashMap<Step, [Arc<Plan>; 2], foldhash::fast::RandomState>,
}

impl Plans {
    pub(super) fn none(&self) -> &Arc<Plan> {
        &self.none
    }
}

impl Index {
    /// The plan with cells of these rules, too, and with all rules on a metric, if they are those.
    pub(super) fn plan_with<'a>(
        &mut self,
        plan: &Arc<Plan>,
        looked_up: Option<u32>,
        added: impl Iterator<Item = (u32, &'a Watch)> + Clone,
    ) -> Arc<Plan> {
        let rules = added.clone().flat_map(|(rule, watch)| std::iter::once(rule).chain(watch.windows()));
        let step = looked_up.map_or(0, |metric| metric + 1);
        let key = (Arc::as_ptr(plan) as usize, std::iter::once(step).chain(rules).collect());
        if let Some([_, known]) = self.plans.steps.get(&key) {
            return known.clone();
        }
        let fresh = Arc::new(plan.with(self, looked_up, added));
        if self.plans.steps.len() >= STEPS_MAX {
            self.plans.steps.clear();
        }
        self.plans.steps.insert(key, [plan.clone(), fresh.clone()]);
        fresh
    }
}
