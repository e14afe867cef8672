use std::path::{Path, PathBuf};

use dunlin_pipeline::rules::RuleSet;

use crate::{cli::CheckArgs, config::Config, exit::Failure};

/// Says all that is wrong at once, not only the first.
pub(crate) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let config = match &args.config {
        Some(file) => Config::read(file)?,
        None => Config::default(),
    };
    config.check()?;
    let rules = config.located().rules;
    let places: Vec<PathBuf> = if args.rules.is_empty() { vec![rules] } else { args.rules.clone() };

    let mut count = 0;
    let mut problems = Vec::new();
    for place in &places {
        match load(place)? {
            Ok(rules) => count += rules.len(),
            Err(found) => problems.extend(found),
        }
    }
    if problems.is_empty() {
        println!("configuration is valid, {count} rules are valid");
        return Ok(());
    }
    Err(Failure::Invalid(problems.join("\ndunlin: ")))
}

fn load(place: &Path) -> Result<Result<RuleSet, Vec<String>>, Failure> {
    let loaded = if place.is_dir() || !place.exists() {
        RuleSet::load(place)
    } else {
        let text = std::fs::read_to_string(place)
            .map_err(|error| Failure::Invalid(format!("read {}: {error}", place.display())))?;
        RuleSet::parse(&text, &place.display().to_string())
    };
    Ok(loaded.map_err(|problems| problems.iter().map(ToString::to_string).collect()))
}
