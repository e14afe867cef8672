//! Which alerts: `rule="too-hot"`, `device=~"press-.*"`, as Alertmanager writes them.

use std::fmt;

use dunlin_registry::Alert;
use regex::Regex;
use serde::{Deserialize, Serialize};

pub const MATCHERS_MAX: usize = 32;
const VALUE_BYTES_MAX: usize = 1_024;
/// Of one compiled expression: people write these.
const REGEX_BYTES_MAX: usize = 1 << 18;

/// All of them must match.
#[derive(Debug, Clone)]
pub struct Matchers(Vec<Matcher>);

#[derive(Debug, Clone)]
struct Matcher {
    label: Label,
    value: String,
    is_equal: bool,
    /// If it is an expression; anchored at both ends.
    regex: Option<Regex>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    Rule,
    Device,
    Severity,
}

/// As JSON has it: what Alertmanager calls `name`, `value`, `isRegex`, `isEqual`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatcherDto {
    pub name: String,
    pub value: String,
    #[serde(default, rename = "isRegex")]
    pub is_regex: bool,
    #[serde(default = "equal", rename = "isEqual")]
    pub is_equal: bool,
}

fn equal() -> bool {
    true
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMatcher {
    #[error("{0:?} is no matcher; write for example rule=\"too-hot\" or device=~\"press-.*\"")]
    Form(String),
    #[error("alerts have no label {0:?}; they have rule, device and severity")]
    Label(String),
    #[error("{value:?} is no regular expression: {why}")]
    Regex { value: String, why: String },
    #[error("a value has at most {VALUE_BYTES_MAX} bytes")]
    TooLong,
    #[error("at least one matcher and at most {MATCHERS_MAX}")]
    Count,
}

impl Matchers {
    pub fn new(dtos: &[MatcherDto]) -> Result<Self, InvalidMatcher> {
        if dtos.len() > MATCHERS_MAX {
            return Err(InvalidMatcher::Count);
        }
        dtos.iter().map(Matcher::new).collect::<Result<_, _>>().map(Self)
    }

    /// Each as people write it.
    pub fn parse(texts: &[String]) -> Result<Self, InvalidMatcher> {
        let dtos = texts.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
        Self::new(&dtos)
    }

    /// As it is kept: JSON.
    pub fn restore(kept: &str) -> Result<Self, InvalidMatcher> {
        let dtos: Vec<MatcherDto> =
            serde_json::from_str(kept).map_err(|_| InvalidMatcher::Form(kept.to_owned()))?;
        Self::new(&dtos)
    }

    pub fn keep(&self) -> String {
        serde_json::to_string(&self.dtos()).unwrap_or_default()
    }

    pub fn dtos(&self) -> Vec<MatcherDto> {
        let dto = |m: &Matcher| MatcherDto {
            name: m.label.name().to_owned(),
            value: m.value.clone(),
            is_regex: m.regex.is_some(),
            is_equal: m.is_equal,
        };
        self.0.iter().map(dto).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn matches(&self, alert: &Alert) -> bool {
        self.0.iter().all(|matcher| matcher.matches(alert))
    }
}

impl fmt::Display for Matchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, m) in self.0.iter().enumerate() {
            let sign = match (m.is_equal, &m.regex) {
                (true, None) => "=",
                (false, None) => "!=",
                (true, Some(_)) => "=~",
                (false, Some(_)) => "!~",
            };
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{}{sign}{:?}", m.label.name(), m.value)?;
        }
        Ok(())
    }
}

impl Label {
    fn name(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Device => "device",
            Self::Severity => "severity",
        }
    }

    pub(crate) fn of(self, alert: &Alert) -> &str {
        match self {
            Self::Rule => &alert.rule,
            Self::Device => &alert.device,
            Self::Severity => alert.severity.as_str(),
        }
    }
}

impl Matcher {
    fn new(dto: &MatcherDto) -> Result<Self, InvalidMatcher> {
        let label = match dto.name.as_str() {
            // What Prometheus calls the rule.
            "rule" | "alertname" => Label::Rule,
            "device" | "instance" => Label::Device,
            "severity" => Label::Severity,
            other => return Err(InvalidMatcher::Label(other.to_owned())),
        };
        if dto.value.len() > VALUE_BYTES_MAX {
            return Err(InvalidMatcher::TooLong);
        }
        let regex = dto.is_regex.then(|| {
            regex::RegexBuilder::new(&format!("^(?:{})$", dto.value)).size_limit(REGEX_BYTES_MAX).build()
        });
        let regex = regex
            .transpose()
            .map_err(|error| InvalidMatcher::Regex { value: dto.value.clone(), why: error.to_string() })?;
        Ok(Self { label, value: dto.value.clone(), is_equal: dto.is_equal, regex })
    }

    fn matches(&self, alert: &Alert) -> bool {
        let found = self.label.of(alert);
        let is_it = match &self.regex {
            Some(regex) => regex.is_match(found),
            None => found == self.value,
        };
        is_it == self.is_equal
    }
}

fn parse(text: &str) -> Result<MatcherDto, InvalidMatcher> {
    let problem = || InvalidMatcher::Form(text.to_owned());
    let at = text.find(['=', '!']).ok_or_else(problem)?;
    let (name, rest) = text.split_at(at);
    let signs = [("=~", true, true), ("!~", true, false), ("!=", false, false), ("=", false, true)];
    let (sign, is_regex, is_equal) =
        signs.into_iter().find(|(sign, ..)| rest.starts_with(sign)).ok_or_else(problem)?;
    let value = rest[sign.len()..].trim();
    let value = match value.strip_prefix('"') {
        Some(quoted) => {
            let inner = quoted.strip_suffix('"').ok_or_else(problem)?;
            inner.replace("\\\"", "\"").replace("\\\\", "\\")
        }
        None => value.to_owned(),
    };
    Ok(MatcherDto { name: name.trim().to_owned(), value, is_regex, is_equal })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::alert;

    fn matches(texts: &[&str]) -> bool {
        let texts: Vec<String> = texts.iter().map(|t| (*t).to_owned()).collect();
        let matchers = Matchers::parse(&texts).unwrap();
        let kept = Matchers::restore(&matchers.keep()).unwrap();
        assert_eq!(kept.to_string(), matchers.to_string());
        matchers.matches(&alert("press-7", "too-hot"))
    }

    #[test]
    fn matchers_are_those_of_alertmanager() {
        assert!(matches(&["rule=too-hot"]));
        assert!(matches(&["rule=\"too-hot\"", "device =~ \"press-[0-9]\""]));
        assert!(matches(&["alertname=too-hot", "severity!=info", "device!~pump.*"]));
        assert!(!matches(&["rule=too-hot", "device=~press"]), "anchored");
        assert!(!matches(&["rule=hot"]));
    }

    #[test]
    fn what_is_no_matcher_is_explained() {
        let wrong = |text: &str| Matchers::parse(&[text.to_owned()]).unwrap_err().to_string();
        assert!(wrong("rule").contains("write for example"));
        assert!(wrong("colour=red").contains("no label \"colour\""));
        assert!(wrong("rule=~(").contains("no regular expression"));
        assert!(wrong("rule=\"half").contains("no matcher"));
        assert!(wrong("rule=~((a{1000}){1000}){1000}").contains("no regular expression"));
    }
}
