//! Rules as data: TOML files, checked whole before any of them is used.

mod condition; // the language of `when`

use std::{
    collections::HashSet,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use dunlin_model::Severity;
use serde::Deserialize;
use toml::Spanned;
use wildmatch::WildMatch;
use xxhash_rust::xxh3::Xxh3;

pub use condition::{Aggregate, Comparator, Condition, Over};

/// Rules in one set, over all files.
pub const RULES_MAX: usize = 100_000;

/// One rule. Its name is unique within the set.
#[derive(Debug, Clone)]
pub struct Rule {
    pub name: Arc<str>,
    pub condition: Condition,
    /// The condition in its canonical words.
    pub words: Arc<str>,
    /// A glob over device names.
    pub devices: WildMatch,
    /// All types if `None`.
    pub device_type: Option<Box<str>>,
    /// All tenants if `None`.
    pub tenant: Option<Box<str>>,
    pub severity: Severity,
    pub description: String,
    /// Of all that decides when the rule fires: state survives a change of anything else.
    pub content_hash: u64,
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
    when: Spanned<String>,
    devices: Option<String>,
    device_type: Option<String>,
    tenant: Option<String>,
    #[serde(default)]
    severity: Severity,
    #[serde(default)]
    description: String,
}

#[derive(Default)]
struct Reader {
    names: HashSet<Box<str>>,
    rules: Vec<Arc<Rule>>,
    problems: Vec<RuleProblem>,
}

impl Reader {
    fn read(&mut self, text: &str, file: &Path) {
        let at = |byte: usize, rule: Option<&str>, message: String| {
            let (line, column) = line_and_column(text, byte);
            RuleProblem { file: file.into(), line, column, rule: rule.map(Into::into), message }
        };
        let parsed: FileToml = match toml::from_str(text) {
            Ok(parsed) => parsed,
            Err(error) => {
                let byte = error.span().map_or(0, |s| s.start);
                return self.problems.push(at(byte, None, error.message().to_owned()));
            }
        };
        for rule in parsed.rule {
            let name = rule.name.get_ref().as_str();
            if name.is_empty() || name.len() > dunlin_model::limits::NAME_BYTES_MAX {
                let message = "a rule's name has 1 to 128 bytes".to_owned();
                self.problems.push(at(rule.name.span().start, Some(name), message));
                continue;
            }
            if !self.names.insert(name.into()) {
                let message = "the name is taken by another rule; names are unique over all files".to_owned();
                self.problems.push(at(rule.name.span().start, Some(name), message));
                continue;
            }
            if self.rules.len() == RULES_MAX {
                let message = format!("more than {RULES_MAX} rules; remove some");
                return self.problems.push(at(rule.name.span().start, Some(name), message));
            }
            match Condition::parse(rule.when.get_ref()) {
                Ok(condition) => self.rules.push(Arc::new(rule.checked(condition))),
                Err(wrong) => {
                    // Behind the opening quote; right for strings without escapes, near it for others.
                    let byte = rule.when.span().start + 1 + wrong.at_byte;
                    self.problems.push(at(byte, Some(name), wrong.message));
                }
            }
        }
    }

    fn finish(self) -> Result<RuleSet, Vec<RuleProblem>> {
        if self.problems.is_empty() { Ok(RuleSet { rules: self.rules }) } else { Err(self.problems) }
    }
}

impl RuleToml {
    fn checked(self, condition: Condition) -> Rule {
        let words = condition.to_string();
        let devices = self.devices.as_deref().unwrap_or("*");
        let mut hash = Xxh3::new();
        for part in [
            self.name.get_ref(),
            &words,
            devices,
            self.device_type.as_deref().unwrap_or(""),
            self.tenant.as_deref().unwrap_or(""),
        ] {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        Rule {
            name: self.name.into_inner().into(),
            condition,
            words: words.into(),
            devices: WildMatch::new(devices),
            device_type: self.device_type.map(Into::into),
            tenant: self.tenant.map(Into::into),
            severity: self.severity,
            description: self.description,
            content_hash: hash.digest(),
        }
    }
}

fn line_and_column(text: &str, byte: usize) -> (usize, usize) {
    let before = text.get(..byte.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests;
