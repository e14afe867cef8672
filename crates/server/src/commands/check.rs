use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use dunlin_pipeline::rules::{RULES_MAX, RuleSet};

use super::say;
use crate::{cli::CheckArgs, config::Config, exit::Failure, serve::system_clock};

/// Says all that is wrong at once, not only the first.
pub(crate) fn run(args: &CheckArgs) -> Result<(), Failure> {
    let config = match &args.config {
        Some(file) => Config::read(file)?,
        None => Config::default(),
    };
    config.check()?;
    let config = config.located();
    config.load_tls(system_clock())?;
    let count = if args.rules.is_empty() {
        // The first start makes this one.
        check_together(&[config.rules.as_path()])
    } else {
        check_together(&named(&args.rules)?)
    };
    match count {
        Ok(count) => {
            say!("configuration is valid, {count} rules are valid")?;
            Ok(())
        }
        Err(problems) => Err(Failure::Invalid(problems.join("\ndunlin: "))),
    }
}

/// What was typed, without files of directories that were typed as well.
fn named(places: &[PathBuf]) -> Result<Vec<&Path>, Failure> {
    let found = |place: &PathBuf| {
        place.canonicalize().map_err(|error| Failure::Invalid(format!("{}: {error}", place.display())))
    };
    let real = places.iter().map(found).collect::<Result<Vec<_>, _>>()?;
    let dirs: HashSet<&Path> = real.iter().filter(|place| place.is_dir()).map(PathBuf::as_path).collect();
    let mut seen = HashSet::new();
    let once = places.iter().zip(&real).filter(|(_, real)| {
        let with_its_directory = real.is_file() && real.parent().is_some_and(|dir| dirs.contains(dir));
        !with_its_directory && seen.insert(*real)
    });
    Ok(once.map(|(place, _)| place.as_path()).collect())
}

/// How many rules there are, or what is wrong, as one server would see them: names are unique over all places.
fn check_together(places: &[&Path]) -> Result<usize, Vec<String>> {
    let mut count = 0;
    let mut names = HashMap::<Arc<str>, &Path>::new();
    let mut problems = Vec::new();
    for &place in places {
        match load(place) {
            Ok(rules) => {
                count += rules.len();
                for rule in rules.rules() {
                    if let Some(other) = names.insert(rule.name.clone(), place) {
                        let (place, other) = (place.display(), other.display());
                        problems.push(format!("{place}: rule {:?}: {other} has one of that name", rule.name));
                    }
                }
            }
            Err(found) => problems.extend(found),
        }
    }
    if count > RULES_MAX {
        problems.push(format!("{count} rules, and there may be {RULES_MAX}; remove some"));
    }
    if problems.is_empty() { Ok(count) } else { Err(problems) }
}

fn load(place: &Path) -> Result<RuleSet, Vec<String>> {
    let loaded = if place.is_file() {
        let text =
            std::fs::read_to_string(place).map_err(|error| vec![format!("{}: {error}", place.display())])?;
        RuleSet::parse(&text, &place.display().to_string())
    } else {
        RuleSet::load(place)
    };
    loaded.map_err(|problems| problems.iter().map(ToString::to_string).collect())
}
