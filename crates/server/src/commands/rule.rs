use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dunlin_pipeline::{RuleSet, proof, rules};
use serde_json::{Value, json};

use super::{
    client::{Client, escaped},
    say,
};
use crate::{
    cli::{BacktestArgs, RuleCommand, Server},
    exit::Failure,
};

pub(crate) async fn run(command: RuleCommand, server: Server) -> Result<(), Failure> {
    match command {
        RuleCommand::Test { places } => test(&places),
        RuleCommand::List => list(&Client::new(&server)?).await,
        RuleCommand::Show { name } => show(&Client::new(&server)?, &name).await,
        RuleCommand::Put { file, disabled } => put(&Client::new(&server)?, &file, disabled).await,
        RuleCommand::Enable { name } => change(&server, &name, json!({ "enabled": true })).await,
        RuleCommand::Disable { name } => change(&server, &name, json!({ "enabled": false })).await,
        RuleCommand::Rollback { name, version } => {
            change(&server, &name, json!({ "version": version })).await
        }
        RuleCommand::Delete { name } => Client::new(&server)?.delete(&path(&name)).await,
        RuleCommand::Backtest(args) => backtest(&Client::new(&server)?, args).await,
        RuleCommand::Mark { name, device, from, to, wrong } => {
            let (from, to) = (instant(&from)?, instant(&to)?);
            let body = json!({ "device": device, "from": from, "to": to, "false": wrong });
            Client::new(&server)?.post_nothing(&format!("{}/marks", path(&name)), &body).await
        }
    }
}

fn path(name: &str) -> String {
    format!("/v1/rules/{}", escaped(name))
}

/// Runs the tests that stand beside the rules; no server is asked.
fn test(places: &[PathBuf]) -> Result<(), Failure> {
    let (mut count, mut failures) = (0, Vec::new());
    for place in places {
        for rule in load(place)?.rules() {
            count += rule.tests.len();
            let failed = proof::check(rule);
            failures.extend(failed.iter().map(|failed| format!("rule {:?}: {failed}", rule.name)));
        }
    }
    match failures.len() {
        0 if count == 0 => {
            Err(Failure::Failed("there are no tests: write [[rule.test]] below a rule".into()))
        }
        0 => say!("{count} tests passed"),
        failed => {
            failures.push(format!("{failed} of {count} tests failed"));
            Err(Failure::Failed(failures.join("\ndunlin: ")))
        }
    }
}

fn load(place: &Path) -> Result<RuleSet, Failure> {
    let rules = match place.is_dir() {
        true => RuleSet::load(place),
        false => {
            let text = std::fs::read_to_string(place)
                .map_err(|error| Failure::Invalid(format!("{}: {error}", place.display())))?;
            RuleSet::parse(&text, &place.display().to_string())
        }
    };
    rules.map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Failure::Invalid(lines.join("\ndunlin: "))
    })
}

async fn list(client: &Client) -> Result<(), Failure> {
    let answer = client.get("/v1/rules").await?;
    say!(
        "{:<28} {:<6} {:>7} {:<8} {:<9} {:>6} {:>9}  CONDITION",
        "RULE",
        "FROM",
        "VERSION",
        "ENABLED",
        "SEVERITY",
        "FIRED",
        "PRECISION"
    )?;
    for rule in answer["rules"].as_array().into_iter().flatten() {
        let text = |name: &str| rule[name].as_str().unwrap_or("-").to_owned();
        let version = rule["version"].as_u64().map_or("-".to_owned(), |v| v.to_string());
        let measured = &rule["measured"];
        let fired = measured["fired"].as_u64().map_or("-".to_owned(), |n| n.to_string());
        let precision =
            measured["precision"].as_f64().map_or("-".to_owned(), |p| format!("{:.0} %", p * 100.0));
        let enabled = if rule["enabled"] == true { "yes" } else { "no" };
        say!(
            "{:<28} {:<6} {version:>7} {enabled:<8} {:<9} {fired:>6} {precision:>9}  {}",
            text("name"),
            text("source"),
            text("severity"),
            text("condition")
        )?;
    }
    Ok(())
}

async fn show(client: &Client, name: &str) -> Result<(), Failure> {
    let rule = client.get(&path(name)).await?;
    for version in rule["versions"].as_array().into_iter().flatten() {
        let mark = if version["version"] == rule["version"] { ", in force" } else { "" };
        say!("# version {}, {}{mark}", version["version"], version["created_at"].as_str().unwrap_or("-"))?;
        say!("{}", version["text"].as_str().unwrap_or("").trim_end())?;
    }
    Ok(())
}

async fn put(client: &Client, file: &Path, disabled: bool) -> Result<(), Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))?;
    let put = client.put_text(&format!("/v1/rules?enabled={}", !disabled), text).await?;
    say!("{} version {}", put["name"].as_str().unwrap_or("-"), put["version"])
}

async fn change(server: &Server, name: &str, body: Value) -> Result<(), Failure> {
    Client::new(server)?.patch(&path(name), &body).await
}

async fn backtest(client: &Client, args: BacktestArgs) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let to = args.until.as_deref().map(instant).transpose()?.unwrap_or(now.as_millis() as i64);
    let from = match rules::duration(&args.since) {
        Some(before) => to - before.as_millis() as i64,
        None => instant(&args.since)?,
    };
    let labels = args.labels.as_deref().map(read_labels).transpose()?;
    let query = format!("?from={from}&to={to}");
    let found = match &args.file {
        None => client.post(&format!("{}/backtest{query}", path(&args.rule)), &json!({})).await?,
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))?;
            let text = only_rule(&text, &args.rule)?;
            client.post_text(&format!("/v1/rules:backtest{query}"), text).await?.json().await?
        }
    };
    if args.json {
        return say!("{found}");
    }
    say!(
        "{:<24} {:<9} {:<22} {:<22} {:>12}  {}",
        "DEVICE",
        "SEVERITY",
        "FIRED",
        "RESOLVED",
        "VALUE",
        "SAID"
    )?;
    let mut hits = Hits::new(labels.as_deref().unwrap_or_default());
    for firing in found["firings"].as_array().into_iter().flatten() {
        let field = |name: &str| firing[name].as_str().unwrap_or("-").to_owned();
        let said = match (&labels, firing["is_false"].as_bool()) {
            (Some(_), _) => hits.note(&field("since"), firing["resolved_at"].as_str()),
            (None, Some(true)) => "false",
            (None, Some(false)) => "right",
            (None, None) => "-",
        };
        say!(
            "{:<24} {:<9} {:<22} {:<22} {:>12.4}  {said}",
            field("device"),
            field("severity"),
            field("fired_at"),
            field("resolved_at"),
            firing["value"].as_f64().unwrap_or_default()
        )?;
    }
    let count = |name: &str| found[name].as_u64().unwrap_or(0);
    say!(
        "fired {} times on {} of {} devices; {} readings from {} to {}",
        count("fired"),
        found["fired_by_device"].as_array().map_or(0, Vec::len),
        count("devices"),
        count("readings"),
        found["from"].as_str().unwrap_or("-"),
        found["to"].as_str().unwrap_or("-")
    )?;
    match (&labels, found["precision"].as_f64()) {
        (Some(labels), _) => say!(
            "{} of {} labelled windows noticed; {} firings inside, {} outside",
            hits.noticed.iter().filter(|noticed| **noticed).count(),
            labels.len(),
            hits.inside,
            hits.outside
        ),
        (None, Some(precision)) => say!(
            "marked right {}, marked false {}: precision {:.0} %",
            count("right"),
            count("false"),
            precision * 100.0
        ),
        (None, None) => Ok(()),
    }
}

/// The text of one rule, out of a file that may have more.
fn only_rule(text: &str, name: &str) -> Result<String, Failure> {
    let invalid = |error: &dyn std::error::Error| Failure::Invalid(dunlin_model::chain(error));
    let mut file: toml::Table = toml::from_str(text).map_err(|e| invalid(&e))?;
    let Some(toml::Value::Array(rules)) = file.get_mut("rule") else {
        return Err(Failure::Invalid("the file has no [[rule]]".into()));
    };
    rules.retain(|rule| rule.get("name").and_then(toml::Value::as_str) == Some(name));
    if rules.is_empty() {
        return Err(Failure::Failed(format!("the file has no rule {name:?}")));
    }
    toml::to_string(&file).map_err(|e| invalid(&e))
}

/// Stretches of time in which something is known to have been wrong, in milliseconds.
type Label = (i64, i64);

/// `[["2013-12-10 06:25:00", "2013-12-12 05:35:00"], ...]`, in UTC.
fn read_labels(file: &Path) -> Result<Vec<Label>, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::Failed(format!("{}: {error}", file.display())))?;
    let pairs: Vec<(String, String)> = serde_json::from_str(&text).map_err(|error| {
        Failure::Invalid(format!("{}: not a list of [start, end]: {error}", file.display()))
    })?;
    pairs.iter().map(|(start, end)| Ok((instant(start)?, instant(end)?))).collect()
}

/// Which labelled windows the firings fall into.
struct Hits<'a> {
    labels: &'a [Label],
    noticed: Vec<bool>,
    inside: u32,
    outside: u32,
}

impl<'a> Hits<'a> {
    fn new(labels: &'a [Label]) -> Self {
        Self { labels, noticed: vec![false; labels.len()], inside: 0, outside: 0 }
    }

    fn note(&mut self, since: &str, resolved_at: Option<&str>) -> &'static str {
        let since = instant(since).unwrap_or(i64::MAX);
        let until = resolved_at.and_then(|text| instant(text).ok()).unwrap_or(i64::MAX);
        let mut is_inside = false;
        for ((start, end), noticed) in self.labels.iter().zip(&mut self.noticed) {
            if since <= *end && until >= *start {
                (is_inside, *noticed) = (true, true);
            }
        }
        match is_inside {
            true => self.inside += 1,
            false => self.outside += 1,
        }
        if is_inside { "labelled" } else { "-" }
    }
}

/// Milliseconds since 1970 of a time in RFC 3339, or in UTC without a zone.
fn instant(text: &str) -> Result<i64, Failure> {
    rules::instant(text).map(|time| time.as_millis()).ok_or_else(|| {
        Failure::Failed(format!("{text:?} is no time; write for example 2026-07-01T08:00:00Z, or 90d"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firings_are_held_against_labelled_windows() {
        let labels = [(1_000, 2_000), (5_000, 6_000)];
        let mut hits = Hits::new(&labels);
        assert_eq!(hits.note("1970-01-01T00:00:01.500Z", Some("1970-01-01T00:00:03Z")), "labelled");
        assert_eq!(hits.note("1970-01-01T00:00:03Z", Some("1970-01-01T00:00:04Z")), "-");
        assert_eq!((hits.inside, hits.outside, hits.noticed), (1, 1, vec![true, false]));
    }

    #[test]
    fn one_rule_is_taken_out_of_a_file() {
        let file = "[[rule]]\nname = \"a\"\nwhen = \"x > 1\"\n[[rule]]\nname = \"b\"\nwhen = \"y > 1\"\n[[rule.test]]\nname = \"t\"\nreadings = \"0s 1\"\n";
        let text = only_rule(file, "b").unwrap();
        assert_eq!(RuleSet::parse(&text, "b").unwrap().rules()[0].tests.len(), 1);
        assert!(only_rule(file, "c").is_err());
    }
}
