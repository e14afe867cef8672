//! Rules as data: TOML files, checked whole before any of them is used.

mod condition; // the language of `when`
pub mod expression; // the language of `expression`
pub mod fence; // places on the earth
mod scalar; // the value of a reading
mod schedule; // hours of the week

mod given; // a rule's own tests

use std::{
    collections::HashSet,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use condition::{Aggregate, Comparator, Condition, Over, Subject, Test, Threshold, Tree, duration};
use dunlin_model::Severity;
use expression::Expression;
pub use given::{Expected, Given, RuleTest, instant};
pub use scalar::Scalar;
pub(crate) use scalar::number;
pub use schedule::Schedule;
use serde::Deserialize;
use toml::Spanned;
use wildmatch::WildMatch;
use xxhash_rust::xxh3::Xxh3;

/// Rules in one set, over all files.
pub const RULES_MAX: usize = 100_000;
/// Levels of one rule.
pub const LEVELS_MAX: usize = 8;
/// What is known of a group: on how many percent of its members the condition holds, on how many, how many there are.
pub(crate) const GROUP_METRICS: [&str; 3] = ["share", "count", "members"];

/// One rule. Its name is unique within the set and its tenant.
#[derive(Debug, Clone)]
pub struct Rule {
    pub name: Arc<str>,
    /// The rule itself, and then what it escalates to: the worst level whose condition fires is the alert's severity.
    pub levels: Vec<Level>,
    /// A glob over device names.
    pub devices: WildMatch,
    /// All types if `None`.
    pub device_type: Option<Box<str>>,
    /// All tenants if `None`.
    pub tenant: Option<Box<str>>,
    pub description: String,
    pub tests: Vec<RuleTest>,
    /// Of a rule over a group of devices: what is asked of the counts, as a rule on them. The levels of this rule then
    /// say when a device counts, and nobody is told of it.
    pub group: Option<Arc<Rule>>,
    /// What alerts name instead of a device: the group.
    pub subject: Option<Box<str>>,
    /// Of all that decides when the rule fires: state survives a change of anything else.
    pub content_hash: u64,
}

#[derive(Debug, Clone)]
pub struct Level {
    pub severity: Severity,
    pub condition: Condition,
    /// The condition in its canonical words.
    pub words: Arc<str>,
}

impl Rule {
    pub fn severity(&self) -> Severity {
        self.levels[0].severity
    }

    /// The conditions in their canonical words.
    pub fn words(&self) -> &Arc<str> {
        &self.levels[0].words
    }

    /// The rule that people are told of: of a rule over a group the one on its counts.
    pub fn told(&self) -> &Rule {
        self.group.as_deref().unwrap_or(self)
    }

    /// Whether it also says something of a device that says nothing.
    pub fn watches_silence(&self) -> bool {
        self.levels.iter().any(|level| level.condition.watches_silence())
    }

    /// Metrics that it names; `None` stands for every record.
    pub fn inputs(&self) -> impl Iterator<Item = Option<&str>> {
        self.levels.iter().flat_map(|level| level.condition.inputs())
    }
}

/// The rules in force.
#[derive(Debug, Clone, Default)]
pub struct RuleSet {
    rules: Vec<Arc<Rule>>,
}

/// What is wrong with a rule file, where, and what to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleProblem {
    pub file: PathBuf,
    /// From 1; 0 if the file could not be read at all.
    pub line: usize,
    pub column: usize,
    pub rule: Option<String>,
    pub message: String,
}

impl fmt::Display for RuleProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        if let Some(rule) = &self.rule {
            write!(f, " rule {rule:?}:")?;
        }
        write!(f, " {}", self.message)
    }
}

impl RuleSet {
    /// All `*.toml` of a directory, by name. A directory that does not exist holds no rules.
    pub fn load(dir: &Path) -> Result<Self, Vec<RuleProblem>> {
        let problem = |file: &Path, error: &io::Error| RuleProblem {
            file: file.into(),
            line: 0,
            column: 0,
            rule: None,
            message: format!("cannot be read: {error}"),
        };
        let mut files = match std::fs::read_dir(dir).and_then(|entries| {
            entries.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<PathBuf>>>()
        }) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(vec![problem(dir, &error)]),
        };
        files.retain(|file| file.extension().is_some_and(|e| e == "toml"));
        files.sort();

        let mut reader = Reader::default();
        for file in files {
            match std::fs::read_to_string(&file) {
                Ok(text) => reader.read(&text, &file),
                Err(error) => reader.problems.push(problem(&file, &error)),
            }
        }
        reader.finish()
    }

    /// The rules of one file's text.
    pub fn parse(text: &str, file: &str) -> Result<Self, Vec<RuleProblem>> {
        let mut reader = Reader::default();
        reader.read(text, Path::new(file));
        reader.finish()
    }

    /// The one rule of a text, as somebody of a tenant wrote it: for that tenant alone.
    pub fn parse_own(text: &str, tenant: &str) -> Result<Arc<Rule>, Vec<RuleProblem>> {
        let mut reader = Reader { only_tenant: Some(tenant.into()), ..Reader::default() };
        reader.read(text, Path::new("rule"));
        let problem = |message: String| {
            vec![RuleProblem { file: "rule".into(), line: 1, column: 1, rule: None, message }]
        };
        let rules = reader.finish()?.rules;
        match <[Arc<Rule>; 1]>::try_from(rules) {
            Ok([rule]) => Ok(rule),
            Err(rules) => Err(problem(format!("the text has to be one [[rule]], and has {}", rules.len()))),
        }
    }

    /// These rules and more. A name that is taken, for all tenants or for the same one, keeps its first meaning; the
    /// others are given back.
    pub fn and(mut self, more: impl IntoIterator<Item = Arc<Rule>>) -> (Self, Vec<Arc<Rule>>) {
        let mut taken: HashSet<(Arc<str>, Option<Box<str>>)> =
            self.rules.iter().map(|rule| (rule.name.clone(), None)).collect();
        let mut left = Vec::new();
        for rule in more {
            let is_free = !taken.contains(&(rule.name.clone(), None))
                && self.rules.len() < RULES_MAX
                && taken.insert((rule.name.clone(), rule.tenant.clone()));
            if is_free { self.rules.push(rule) } else { left.push(rule) }
        }
        (self, left)
    }

    pub fn of(rules: Vec<Arc<Rule>>) -> Self {
        Self { rules }
    }

    /// What is asked of the counts of groups.
    pub(crate) fn groups(&self) -> Self {
        Self { rules: self.rules.iter().filter_map(|rule| rule.group.clone()).collect() }
    }

    pub fn rules(&self) -> &[Arc<Rule>] {
        &self.rules
    }

    pub fn len(&self) -> usize {
        self.rules.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileToml {
    #[serde(default)]
    rule: Vec<RuleToml>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleToml {
    name: Spanned<String>,
    when: Option<Spanned<String>>,
    expression: Option<Spanned<String>>,
    /// How long an expression must hold; of `when` it is a part.
    r#for: Option<Spanned<String>>,
    /// The hours in which it counts.
    active: Option<Spanned<String>>,
    /// The rule is over all its devices together; this is asked of how many the condition holds on.
    group: Option<Spanned<String>>,
    devices: Option<String>,
    device_type: Option<String>,
    tenant: Option<Spanned<String>>,
    #[serde(default)]
    severity: Severity,
    #[serde(default)]
    description: String,
    #[serde(default)]
    level: Vec<LevelToml>,
    #[serde(default)]
    test: Vec<Spanned<given::TestToml>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LevelToml {
    severity: Spanned<Severity>,
    when: Option<Spanned<String>>,
    expression: Option<Spanned<String>>,
    r#for: Option<Spanned<String>>,
    group: Option<Spanned<String>>,
}

#[derive(Default)]
struct Reader {
    names: HashSet<Box<str>>,
    rules: Vec<Arc<Rule>>,
    problems: Vec<RuleProblem>,
    /// Every rule is this tenant's.
    only_tenant: Option<Box<str>>,
}

/// What is wrong, and at which byte of the file.
struct At {
    byte: usize,
    message: String,
}

fn at<T>(of: &Spanned<T>, message: impl Into<String>) -> At {
    At { byte: of.span().start, message: message.into() }
}

impl Reader {
    fn read(&mut self, text: &str, file: &Path) {
        let problem = |byte: usize, rule: Option<&str>, message: String| {
            let (line, column) = line_and_column(text, byte);
            RuleProblem { file: file.into(), line, column, rule: rule.map(Into::into), message }
        };
        let parsed: FileToml = match toml::from_str(text) {
            Ok(parsed) => parsed,
            Err(error) => {
                let byte = error.span().map_or(0, |s| s.start);
                return self.problems.push(problem(byte, None, error.message().to_owned()));
            }
        };
        for rule in parsed.rule {
            let name = rule.name.get_ref().clone();
            if let Err(At { byte, message }) = self.take(rule) {
                self.problems.push(problem(byte, Some(&name), message));
            }
        }
    }

    fn take(&mut self, rule: RuleToml) -> Result<(), At> {
        let name = rule.name.get_ref().as_str();
        if name.is_empty() || name.len() > dunlin_model::limits::NAME_BYTES_MAX {
            return Err(at(&rule.name, "a rule's name has 1 to 128 bytes"));
        }
        if !self.names.insert(name.into()) {
            let message = "the name is taken by another rule; names are unique over all files";
            return Err(at(&rule.name, message));
        }
        if self.rules.len() == RULES_MAX {
            return Err(at(&rule.name, format!("more than {RULES_MAX} rules; remove some")));
        }
        let rule = rule.checked(self.only_tenant.as_deref())?;
        self.rules.push(Arc::new(rule));
        Ok(())
    }

    fn finish(self) -> Result<RuleSet, Vec<RuleProblem>> {
        if self.problems.is_empty() { Ok(RuleSet { rules: self.rules }) } else { Err(self.problems) }
    }
}

impl RuleToml {
    fn checked(self, only_tenant: Option<&str>) -> Result<Rule, At> {
        let (when, hold) = (self.when.as_ref(), self.r#for.as_ref());
        let base = condition(&self.name, when, self.expression.as_ref(), hold)?;
        let mut levels = vec![(self.severity, base)];
        let mut group: Vec<(Severity, Condition)> = Vec::new();
        if let Some(text) = &self.group {
            group.push((self.severity, condition_of_group(text)?));
        }
        if self.level.len() >= LEVELS_MAX {
            return Err(at(&self.name, format!("a rule has at most {LEVELS_MAX} levels")));
        }
        for level in &self.level {
            let severity = *level.severity.get_ref();
            match (&self.group, &level.group) {
                (None, None) => {
                    let (when, hold) = (level.when.as_ref(), level.r#for.as_ref());
                    levels
                        .push((severity, condition(&level.severity, when, level.expression.as_ref(), hold)?));
                }
                (Some(_), Some(text)) if level.when.is_none() && level.expression.is_none() => {
                    group.push((severity, condition_of_group(text)?));
                }
                (Some(_), _) => {
                    let message = "a level of a rule over a group says `group`, and nothing of a device";
                    return Err(at(&level.severity, message));
                }
                (None, Some(text)) => return Err(at(text, "the rule itself says no `group`")),
            }
        }
        if let Some(active) = &self.active {
            let schedule: Schedule = active.get_ref().parse().map_err(|wrong: String| at(active, wrong))?;
            let told = if group.is_empty() { &mut levels } else { &mut group };
            *told = std::mem::take(told)
                .into_iter()
                .map(|(severity, condition)| (severity, condition.during(schedule.clone())))
                .collect();
        }
        let tenant: Option<Box<str>> = match (&self.tenant, only_tenant) {
            (Some(tenant), Some(own)) if tenant.get_ref() != own => {
                return Err(at(tenant, format!("this rule is {own}'s alone; leave `tenant` out")));
            }
            (_, Some(own)) => Some(own.into()),
            (Some(tenant), None) => Some(tenant.get_ref().as_str().into()),
            (None, None) => None,
        };
        let devices = self.devices.as_deref().unwrap_or("*");
        let device_type = self.device_type.as_deref();
        let mut hash = Xxh3::new();
        let mut part = |part: &str| {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        };
        part(self.name.get_ref());
        part(&levels[0].1.to_string());
        [devices, device_type.unwrap_or(""), tenant.as_deref().unwrap_or("")].into_iter().for_each(&mut part);
        for (severity, condition) in &levels[1..] {
            part(&condition.to_string());
            part(&format!("{severity:?}"));
        }
        if levels.len() > 1 {
            part(&format!("{:?}", self.severity));
        }
        for (severity, condition) in &group {
            part("group");
            part(&condition.to_string());
            part(&format!("{severity:?}"));
        }
        let content_hash = hash.digest();
        let of_device = levels[0].1.to_string();
        let name: Arc<str> = self.name.into_inner().into();
        let group = (!group.is_empty()).then(|| {
            let level = |(severity, condition): (Severity, Condition)| Level {
                severity,
                words: format!("{condition} with {of_device}").into(),
                condition,
            };
            Arc::new(Rule {
                name: name.clone(),
                levels: group.into_iter().map(level).collect(),
                // The counts of no other rule.
                devices: WildMatch::new(&group_key(content_hash)),
                device_type: None,
                tenant: tenant.clone(),
                description: self.description.clone(),
                tests: Vec::new(),
                group: None,
                subject: Some(match device_type {
                    None => devices.into(),
                    Some(device_type) => format!("{devices} of {device_type}").into(),
                }),
                content_hash: content_hash.rotate_left(1),
            })
        });
        let level = |(severity, condition): (Severity, Condition)| Level {
            severity,
            words: condition.to_string().into(),
            condition,
        };
        let mut rule = Rule {
            name,
            levels: levels.into_iter().map(level).collect(),
            devices: WildMatch::new(devices),
            device_type: device_type.map(Into::into),
            tenant,
            description: self.description,
            tests: Vec::new(),
            group,
            subject: None,
            content_hash,
        };
        for test in self.test {
            let byte = test.span().start;
            let read = test.into_inner().read(&rule).map_err(|message| At { byte, message })?;
            rule.tests.push(read);
        }
        Ok(rule)
    }
}

/// What stands for the device where the counts of a group are readings.
pub(crate) fn group_key(content_hash: u64) -> String {
    format!("{content_hash:016x}")
}

/// `share > 5% for 2m, clear below 3%`: a condition on the counts of a group, whose values come when they change.
fn condition_of_group(text: &Spanned<String>) -> Result<Condition, At> {
    // A share is in percent whether or not it is said.
    let plain = text.get_ref().replace('%', " ");
    let condition = Condition::parse(&plain)
        .map_err(|wrong| At { byte: text.span().start + 1 + wrong.at_byte, message: wrong.message })?;
    let is_plain = |test: &Test| match test {
        Test::Compare { subject: Subject::Reading { metric }, .. } => GROUP_METRICS.contains(&&**metric),
        _ => false,
    };
    match condition.tests.iter().all(is_plain) {
        true => Ok(condition),
        false => Err(at(text, "a group has `share` (in percent), `count` and `members`, and no windows")),
    }
}

fn condition<T>(
    of: &Spanned<T>,
    when: Option<&Spanned<String>>,
    expression: Option<&Spanned<String>>,
    hold: Option<&Spanned<String>>,
) -> Result<Condition, At> {
    match (when, expression) {
        (Some(when), None) => match hold {
            Some(hold) => Err(at(hold, "`for` goes with `expression`; in `when` it is a part of the text")),
            // Behind the opening quote; right for strings without escapes, near it for others.
            None => Condition::parse(when.get_ref())
                .map_err(|wrong| At { byte: when.span().start + 1 + wrong.at_byte, message: wrong.message }),
        },
        (None, Some(text)) => {
            let expression = Expression::parse(text.get_ref()).map_err(|wrong| at(text, wrong))?;
            let hold = match hold {
                None => Duration::ZERO,
                Some(text) => duration(text.get_ref())
                    .ok_or_else(|| at(text, "a duration of at most 366d, as in 500ms, 30s, 5m, 2h or 1d"))?,
            };
            Ok(Condition::of_expression(expression, hold))
        }
        (Some(_), Some(text)) => Err(at(text, "a rule has `when` or `expression`, not both")),
        (None, None) => Err(at(of, "say `when`, or `expression`")),
    }
}

fn line_and_column(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests;
