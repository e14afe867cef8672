//! One rule on one device: what its conditions know and where its alert stands.
//!
//! A function of readings and moments in the order of event time, and of nothing else: the live engine, a rule's own
//! tests and a back-test all call this. No clock, no IO.

mod phase; // the life of a condition
mod test; // what one test remembers
mod window; // readings over time

use std::time::Duration;

use dunlin_model::{AlertPhase, Severity, Timestamp, ValueRef};
use phase::Phase;
pub(crate) use phase::Verdict;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use test::TestState;
pub(crate) use window::{Ended, Fixed, Lengths};

use crate::rules::{Level, Over, Rule, Subject, Test, Tree};

/// When something is to be looked at. At one time windows end first, then come the readings, then what waits in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Moment {
    pub(crate) time: Timestamp,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// The end of a window, or of hours: what is at that time no longer belongs to it.
    Close,
    Reading,
    /// The end of a wait: a reading at that time still comes in time.
    Timer,
}

impl Moment {
    pub(crate) const NEVER: Self = Self { time: Timestamp::MAX, kind: Kind::Timer };

    pub(crate) fn new(time: Option<Timestamp>, kind: Kind) -> Self {
        time.map_or(Self::NEVER, |time| Self { time, kind })
    }

    pub(crate) fn is_never(self) -> bool {
        self.time == Timestamp::MAX
    }
}

/// A stretch of event time that a value speaks for: a window, or an instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) start: Timestamp,
    pub(crate) end: Timestamp,
}

impl Stretch {
    fn at(time: Timestamp) -> Self {
        Self { start: time, end: time }
    }

    fn with(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

/// The windows of the device, and those that have just ended, by their numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends<'a> {
    pub(crate) windows: &'a [Fixed],
    pub(crate) ended: &'a [(u32, Ended)],
}

impl Ends<'_> {
    fn of(&self, window: u32) -> Option<Ended> {
        let at = self.ended.binary_search_by_key(&window, |(number, _)| *number).ok()?;
        Some(self.ended[at].1)
    }
}

/// A step in the life of the alert.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Step {
    pub(crate) phase: AlertPhase,
    pub(crate) severity: Severity,
    pub(crate) at: Timestamp,
    /// Names the episode.
    pub(crate) since: Timestamp,
    pub(crate) value: f64,
    /// It was firing, and goes on with another severity.
    pub(crate) is_change: bool,
}

pub(crate) type Steps = SmallVec<[Step; 2]>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Watch {
    levels: SmallVec<[LevelState; 1]>,
    phase: Phase,
    /// The level that the alert fires with.
    top: u8,
    /// Names the episode, so it is never used twice. Of the last episode while inactive.
    since: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct LevelState {
    phase: Phase,
    /// Since when the condition holds.
    since: Timestamp,
    tests: SmallVec<[TestState; 1]>,
    /// What has been said about and not been judged yet.
    #[serde(skip)]
    open: Option<Stretch>,
}

/// What a test reads from a window that the device keeps, of a metric and so long.
pub(crate) fn window_of(test: &Test) -> Option<(&str, Lengths)> {
    match test {
        Test::Compare {
            subject: Subject::Window { metric, over: Over::Fixed { size, every }, .. }, ..
        } => Some((metric, Lengths::new(*size, *every))),
        _ => None,
    }
}

impl Watch {
    /// `window` gives the number of a window of the device.
    pub(crate) fn new(rule: &Rule, mut window: impl FnMut(&str, Lengths) -> u32) -> Self {
        let mut test = |test: &Test| {
            let number = window_of(test).map_or(0, |(metric, of)| window(metric, of));
            TestState::new(test, number)
        };
        let level = |level: &Level| LevelState {
            phase: Phase::Inactive,
            since: Timestamp::MIN,
            tests: level.condition.tests.iter().map(&mut test).collect(),
            open: None,
        };
        Self {
            levels: rule.levels.iter().map(level).collect(),
            phase: Phase::Inactive,
            top: 0,
            since: Timestamp::MIN,
        }
    }

    /// Whether it can have been made for this rule.
    pub(crate) fn is_of(&self, rule: &Rule) -> bool {
        self.levels.len() == rule.levels.len()
            && self.levels.iter().zip(&rule.levels).all(|(state, level)| {
                let tests = &level.condition.tests;
                state.tests.len() == tests.len() && state.tests.iter().zip(tests).all(|(s, t)| s.is_of(t))
            })
    }

    /// The numbers of the windows that it reads, in the order of its tests.
    pub(crate) fn windows(&self) -> impl Iterator<Item = u32> {
        self.levels.iter().flat_map(|level| &level.tests).filter_map(TestState::window)
    }

    pub(crate) fn windows_mut(&mut self) -> impl Iterator<Item = &mut u32> {
        self.levels.iter_mut().flat_map(|level| &mut level.tests).filter_map(TestState::window_mut)
    }

    /// Of a rule that is a single comparison, what it last said, if nothing comes of saying it again.
    pub(crate) fn settled(&self) -> Option<Verdict> {
        match &self.levels[..] {
            [level] if level.phase != Phase::Pending && level.open.is_none() => match &level.tests[..] {
                [test] => Some(test.verdict),
                _ => None,
            },
            _ => None,
        }
    }

    /// Takes in one reading for one test; true if `settle` has something to do.
    pub(crate) fn take(
        &mut self,
        rule: &Rule,
        feed: Feed,
        time: Timestamp,
        value: Option<ValueRef<'_>>,
    ) -> bool {
        let (level, test) = (usize::from(feed.level), usize::from(feed.test));
        let state = &mut self.levels[level];
        let test_state = &mut state.tests[test];
        let was = test_state.verdict;
        let condition = &rule.levels[level].condition;
        let said = test_state.take(&condition.tests[test], usize::from(feed.input), time, value);
        let Some(stretch) = said else { return state.open.is_some() };
        // What is said again changes nothing, unless somebody waits for how long.
        let is_news = test_state.verdict != was
            || state.phase == Phase::Pending
            || condition.tests.len() > 1
            || condition.settles;
        if is_news {
            state.open = Some(state.open.map_or(stretch, |open| open.with(stretch)));
        }
        state.open.is_some()
    }

    /// After all readings of one record.
    pub(crate) fn settle(&mut self, rule: &Rule, time: Timestamp) -> Steps {
        for (state, level) in self.levels.iter_mut().zip(&rule.levels) {
            let Some(stretch) = state.open.take() else { continue };
            if level.condition.settles {
                let tests = state.tests.iter_mut().zip(&level.condition.tests);
                tests.for_each(|(state, test)| state.settle(test, time));
            }
            state.judge(level, stretch);
        }
        self.say(rule, time)
    }

    /// When it next has to be looked at without a reading, and without the end of a window of the device that has
    /// something in it.
    pub(crate) fn next(&self, rule: &Rule, windows: &[Fixed]) -> Moment {
        let of = |(state, level): (&LevelState, &Level)| state.next(level, windows);
        self.levels.iter().zip(&rule.levels).map(of).min().unwrap_or(Moment::NEVER)
    }

    /// At the moment that `next` named, or that windows of the device ended.
    pub(crate) fn pass(&mut self, rule: &Rule, moment: Moment, ends: Ends<'_>) -> Steps {
        for (state, level) in self.levels.iter_mut().zip(&rule.levels) {
            state.pass(level, moment, ends);
        }
        self.say(rule, moment.time)
    }

    /// What is said when the rule or the device is gone.
    pub(crate) fn on_forgotten(&self) -> Option<(AlertPhase, Timestamp)> {
        self.phase.on_forgotten().map(|phase| (phase, self.since))
    }

    /// Forgets the readings, as after a time that was wrong; the alert stands as it stood.
    pub(crate) fn forget_readings(&mut self, rule: &Rule) {
        for (state, level) in self.levels.iter_mut().zip(&rule.levels) {
            for (state, test) in state.tests.iter_mut().zip(&level.condition.tests) {
                *state = TestState::new(test, state.window().unwrap_or(0));
            }
            state.open = None;
        }
    }

    pub(crate) fn is_firing(&self) -> bool {
        self.phase == Phase::Firing
    }

    /// Readings that it keeps, and sessions.
    pub(crate) fn kept(&self) -> usize {
        self.levels.iter().flat_map(|level| &level.tests).map(TestState::kept).sum()
    }

    /// The alert follows its levels.
    fn say(&mut self, rule: &Rule, at: Timestamp) -> Steps {
        let mut steps = Steps::new();
        let firing = (0..self.levels.len())
            .filter(|n| self.levels[*n].phase == Phase::Firing)
            .max_by_key(|n| (rule.levels[*n].severity, *n));
        let pending = self.levels.iter().position(|level| level.phase == Phase::Pending);
        if self.phase == Phase::Firing && firing.is_none() {
            steps.push(self.step(rule, AlertPhase::Resolved, at));
            self.phase = Phase::Inactive;
        }
        if self.phase == Phase::Inactive
            && let Some(level) = firing.or(pending)
        {
            self.since = self.levels[level].since.max(self.since + Duration::from_micros(1));
        }
        match (self.phase, firing, pending) {
            (Phase::Firing, Some(level), _) => {
                let was = rule.levels[usize::from(self.top)].severity;
                self.top = level as u8;
                if rule.levels[level].severity != was {
                    steps.push(Step { is_change: true, ..self.step(rule, AlertPhase::Firing, at) });
                }
            }
            (_, Some(level), _) => {
                (self.phase, self.top) = (Phase::Firing, level as u8);
                steps.push(self.step(rule, AlertPhase::Firing, at));
            }
            (Phase::Inactive, None, Some(level)) => {
                (self.phase, self.top) = (Phase::Pending, level as u8);
                steps.push(self.step(rule, AlertPhase::Pending, at));
            }
            (Phase::Pending, None, None) => {
                steps.push(self.step(rule, AlertPhase::Cancelled, at));
                self.phase = Phase::Inactive;
            }
            (_, None, _) => {}
        }
        steps
    }

    fn step(&self, rule: &Rule, phase: AlertPhase, at: Timestamp) -> Step {
        let top = usize::from(self.top);
        let value = self.levels[top].value(&rule.levels[top]);
        let severity = rule.levels[top].severity;
        // Of several episodes at one time the later ones are named as if they began a moment later.
        let at = at.max(self.since);
        Step { phase, severity, at, since: self.since, value, is_change: false }
    }
}

/// Where a reading goes: to which input of which test of which level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Feed {
    pub(crate) level: u8,
    pub(crate) test: u8,
    pub(crate) input: u8,
    /// It is gathered, and judged at an end.
    pub(crate) is_window: bool,
}

impl LevelState {
    fn judge(&mut self, level: &Level, at: Stretch) {
        let verdict = verdict(&level.condition.tree, &self.tests);
        if verdict == Verdict::Holds && self.phase == Phase::Inactive {
            self.since = at.start;
        }
        let held = at.end.since(self.since) >= level.condition.hold;
        self.phase = self.phase.on(verdict, held);
    }

    fn next(&self, level: &Level, windows: &[Fixed]) -> Moment {
        let condition = &level.condition;
        let is_awaited = self.phase == Phase::Pending || condition.tests.len() > 1;
        let tests = self.tests.iter().zip(&condition.tests);
        let of_tests = tests.map(|(state, test)| state.next(test, is_awaited, windows)).min();
        of_tests.unwrap_or(Moment::NEVER).min(self.hold_ends(level))
    }

    /// A window speaks for its stretch alone, so where there are windows they say when it has held for long enough.
    fn hold_ends(&self, level: &Level) -> Moment {
        match self.phase == Phase::Pending && !level.condition.has_windows {
            true => Moment::new(Some(self.since + level.condition.hold), Kind::Timer),
            false => Moment::NEVER,
        }
    }

    fn pass(&mut self, level: &Level, moment: Moment, ends: Ends<'_>) {
        let condition = &level.condition;
        let is_awaited = self.phase == Phase::Pending || condition.tests.len() > 1;
        let mut said = (self.hold_ends(level) <= moment).then(|| Stretch::at(moment.time));
        for (state, test) in self.tests.iter_mut().zip(&condition.tests) {
            let has_ended = state.window().is_some_and(|window| ends.of(window).is_some());
            if (has_ended || state.next(test, is_awaited, ends.windows) <= moment)
                && let Some(stretch) = state.pass(test, moment, ends)
            {
                said = Some(said.map_or(stretch, |said| said.with(stretch)));
            }
        }
        if let Some(stretch) = said {
            self.judge(level, stretch);
        }
    }

    /// What the alert shows: of the first test that says what the whole says.
    fn value(&self, level: &Level) -> f64 {
        let verdict = verdict(&level.condition.tree, &self.tests);
        let reason = self.tests.iter().find(|test| test.verdict == verdict).or(self.tests.first());
        reason.map_or(0.0, |test| test.value)
    }
}

fn verdict(tree: &Tree, tests: &[TestState]) -> Verdict {
    match tree {
        Tree::Test(n) => tests.get(usize::from(*n)).map_or(Verdict::Unknown, |test| test.verdict),
        Tree::All(of) => of.iter().map(|tree| verdict(tree, tests)).min().unwrap_or(Verdict::Unknown),
        Tree::Any(of) => of.iter().map(|tree| verdict(tree, tests)).max().unwrap_or(Verdict::Unknown),
        Tree::Not(of) => verdict(of, tests).negated(),
    }
}
