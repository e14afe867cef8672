//! All checks, some at a time; results in the order of the list.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::check::{Check, Ctx, Outcome, Stop, Target};
use crate::wire::Version;

pub(crate) enum Verdict {
    Pass,
    Fail { expected: String, came: String },
    NotApplicable(String),
}

impl Verdict {
    pub(crate) fn is_pass(&self) -> bool {
        matches!(self, Self::Pass)
    }

    pub(crate) fn is_fail(&self) -> bool {
        matches!(self, Self::Fail { .. })
    }
}

pub(crate) struct Checked<'a> {
    pub(crate) check: &'a Check,
    pub(crate) verdict: Verdict,
}

pub(crate) fn all<'a>(checks: &'a [Check], target: &Target, jobs: usize) -> Vec<Checked<'a>> {
    let refusals = [Version::V4, Version::V5].map(|version| (version, target.takes(version).err()));
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, checks.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(check) = checks.get(index) else { return };
                    let refusal = refusals.iter().find(|(version, _)| *version == check.version);
                    let verdict = match refusal {
                        Some((_, Some(stop))) => refused(check.version, stop),
                        _ => one(check, target, index),
                    };
                    if let Ok(mut done) = done.lock() {
                        done.push((index, Checked { check, verdict }));
                    }
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, checked)| checked).collect()
}

fn refused(version: Version, stop: &Stop) -> Verdict {
    let came = match stop {
        Stop::Fail { came, .. } => came,
        Stop::NotApplicable(reason) => reason,
    };
    Verdict::NotApplicable(format!("the server takes no plain CONNECT of MQTT {}: {came}", version.name()))
}

fn one(check: &Check, target: &Target, index: usize) -> Verdict {
    let mut ctx = Ctx::new(target, index, check.version);
    // A broker's strange answer must not take the other checks down with this one.
    let outcome: Outcome = catch_unwind(AssertUnwindSafe(|| (check.run)(&mut ctx))).unwrap_or_else(|_| {
        Err(Stop::Fail { expected: "the check to run through".into(), came: "a panic of the check".into() })
    });
    ctx.clean_up();
    match outcome {
        Ok(()) => Verdict::Pass,
        Err(Stop::Fail { expected, came }) => Verdict::Fail { expected, came },
        Err(Stop::NotApplicable(reason)) => Verdict::NotApplicable(reason),
    }
}
