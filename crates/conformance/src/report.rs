//! What people and programs get to see: a table, JSON lines, or the Markdown table of docs/mqtt-conformance.md.

use std::fmt::Write as _;

use clap::ValueEnum;
use serde::Serialize;

use crate::check::Check;
use crate::run::{Checked, Verdict};
use crate::wire::Version;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    /// One object a line, the score last.
    Json,
    Markdown,
}

#[derive(Serialize)]
struct Line<'a> {
    statement: &'a str,
    version: &'a str,
    what: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    came: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

#[derive(Default, Serialize)]
struct Score {
    version: &'static str,
    checks: usize,
    statements: usize,
    pass: usize,
    fail: usize,
    not_applicable: usize,
}

pub(crate) fn list(checks: &[Check], format: Format) -> String {
    let mut out = String::new();
    if format == Format::Markdown {
        out.push_str("| statement | version | what |\n|---|---|---|\n");
    }
    for check in checks {
        let (statement, version, what) = (check.statement, check.version.name(), check.what);
        let _ = match format {
            Format::Table => writeln!(out, "{statement:<18} {version:<5} {what}"),
            Format::Json => writeln!(out, "{}", json(&line(check))),
            Format::Markdown => writeln!(out, "| {statement} | {version} | {what} |"),
        };
    }
    out
}

pub(crate) fn results(results: &[Checked<'_>], format: Format) -> String {
    match format {
        Format::Table => table(results),
        Format::Json => json_lines(results),
        Format::Markdown => markdown(results),
    }
}

fn table(results: &[Checked<'_>]) -> String {
    let mut out = String::new();
    for Checked { check, verdict } in results {
        let (statement, version) = (check.statement, check.version.name());
        // Failures must catch the eye in some hundred lines.
        let result = if verdict.is_fail() { "FAIL" } else { word(verdict) };
        let _ = writeln!(out, "{result:<4} {statement:<18} {version:<5} {}", check.what);
        let _ = match verdict {
            Verdict::Pass => Ok(()),
            Verdict::Fail { expected, came } => {
                writeln!(out, "       expected  {expected}\n       came      {came}")
            }
            Verdict::NotApplicable(reason) => writeln!(out, "       because   {reason}"),
        };
    }
    out.push('\n');
    for score in scores(results) {
        let _ = writeln!(out, "{}", sentence(&score));
    }
    out
}

fn json_lines(results: &[Checked<'_>]) -> String {
    let mut out = String::new();
    for Checked { check, verdict } in results {
        let mut line = Line { result: Some(word(verdict)), ..line(check) };
        match verdict {
            Verdict::Pass => {}
            Verdict::Fail { expected, came } => {
                line.expected = Some(expected);
                line.came = Some(came);
            }
            Verdict::NotApplicable(reason) => line.reason = Some(reason),
        }
        let _ = writeln!(out, "{}", json(&line));
    }
    let _ = writeln!(out, "{}", json(&serde_json::json!({ "score": scores(results) })));
    out
}

fn markdown(results: &[Checked<'_>]) -> String {
    let mut out = String::from("| statement | version | what | result |\n|---|---|---|---|\n");
    for Checked { check, verdict } in results {
        let result = match verdict {
            Verdict::Pass => "pass".into(),
            Verdict::Fail { expected, came } => format!("**fail**: expected {expected}; came {came}"),
            Verdict::NotApplicable(reason) => format!("n/a: {reason}"),
        };
        let (statement, version, what) = (check.statement, check.version.name(), check.what);
        let cells = format!("| {statement} | {version} | {what} | {} |", result.replace('|', "\\|"));
        let _ = writeln!(out, "{cells}");
    }
    out.push('\n');
    for score in scores(results) {
        let _ = writeln!(out, "* {}", sentence(&score));
    }
    out
}

fn sentence(score: &Score) -> String {
    format!(
        "MQTT {}: {} checks of {} statements: {} pass, {} fail, {} not applicable.",
        score.version, score.checks, score.statements, score.pass, score.fail, score.not_applicable
    )
}

fn scores(results: &[Checked<'_>]) -> Vec<Score> {
    [Version::V4, Version::V5]
        .into_iter()
        .map(|version| {
            let of: Vec<_> = results.iter().filter(|checked| checked.check.version == version).collect();
            let mut statements: Vec<_> = of.iter().map(|checked| checked.check.statement).collect();
            statements.sort_unstable();
            statements.dedup();
            let count = |result: &str| of.iter().filter(|checked| word(&checked.verdict) == result).count();
            Score {
                version: version.name(),
                checks: of.len(),
                statements: statements.len(),
                pass: count("pass"),
                fail: count("fail"),
                not_applicable: count("n/a"),
            }
        })
        .filter(|score| score.checks > 0)
        .collect()
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "pass",
        Verdict::Fail { .. } => "fail",
        Verdict::NotApplicable(_) => "n/a",
    }
}

fn line(check: &Check) -> Line<'_> {
    Line {
        statement: check.statement,
        version: check.version.name(),
        what: check.what,
        result: None,
        expected: None,
        came: None,
        reason: None,
    }
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}
