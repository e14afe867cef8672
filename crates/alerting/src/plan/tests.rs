use dunlin_model::Severity;
use dunlin_registry::NotificationState as State;

use proptest::prelude::*;

use super::*;
use crate::{Config, matchers::MatcherDto};

pub(crate) fn alert(device: &str, rule: &str) -> Alert {
    Alert {
        tenant: "default".into(),
        id: AlertId {
            fingerprint: Fingerprint::of("default", rule, device),
            since: Timestamp::from_micros(1),
        },
        rule: rule.into(),
        device: device.into(),
        severity: Severity::Critical,
        state: AlertState::Firing,
        fired_at: Some(Timestamp::from_micros(1)),
        resolved_at: None,
        acknowledged_at: None,
        acknowledged_by: None,
        assignee: None,
        snoozed_until: None,
        value: 81.0,
        condition: "temperature > 80".into(),
        told: Some(Vec::new()),
    }
}

const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

fn policy(toml: &str) -> Policy {
    let config: Config = toml::from_str(toml).unwrap();
    Policy::new(&config).unwrap()
}

/// A channel `hook` with a budget of two at once, and what else is said.
fn small(more: &str) -> Policy {
    policy(&format!(
        "{more}\n[[channel]]\nkind = \"webhook\"\nname = \"hook\"\nurl = \"https://example.com\"\n\
         budget = {{ burst = 2, per_hour = 60 }}\n"
    ))
}

fn matter(alert: Alert, what: What) -> Matter {
    let cause = format!("{}-{what:?}", alert.id);
    Matter { alert, what, cause, at: NOW }
}

fn fired(device: &str) -> Matter {
    matter(alert(device, "too-hot"), What::Fired)
}

fn told(device: &str, targets: &[&str]) -> Alert {
    let told = Some(targets.iter().map(|t| (*t).to_owned()).collect());
    Alert { told, ..alert(device, "too-hot") }
}

fn world() -> World {
    World { now: NOW, ..World::default() }
}

/// What becomes of everything, a line each.
fn outcome(plan: &Plan) -> Vec<String> {
    let line = |n: &NewNotification| {
        let to = [n.channel.as_str(), n.recipient.as_str()].join(" ");
        let state = match &n.state {
            State::Due => "told".to_owned(),
            State::Gathering { members, .. } => format!("gathers {members}"),
            State::Carried { carrier, .. } => format!("in the {}", carrier.split('-').next().unwrap()),
            State::Suppressed { reason } => format!("not told: {reason}"),
        };
        format!("{} {}: {state}", to.trim(), n.what)
    };
    plan.notifications.iter().map(line).collect()
}

#[test]
fn everybody_is_told_once_that_it_fires_and_that_it_is_over() {
    let policy = policy("");
    let plan = super::plan(&policy, world(), &[fired("a"), matter(told("a", &["log"]), What::Resolved)]);
    assert_eq!(outcome(&plan), ["log fired: told", "log resolved: told"]);
    let again = matter(told("a", &["log"]), What::Look);
    assert!(super::plan(&policy, world(), &[again]).notifications.is_empty());
}

#[test]
fn who_was_not_told_of_the_beginning_is_not_told_of_the_end() {
    let over = Alert { state: AlertState::Resolved, ..alert("a", "too-hot") };
    let plan = super::plan(&policy(""), world(), &[matter(over, What::Resolved)]);
    assert_eq!(outcome(&plan), ["log resolved: not told: was not told that it fires"]);
}

fn silence(device: &str, every_seconds: Option<u64>) -> (Silence, Matchers) {
    let until = NOW + Duration::from_secs(60);
    let silence = Silence {
        id: "sil_1".into(),
        tenant: "default".into(),
        matchers: String::new(),
        starts_at: NOW,
        ends_at: until,
        every_seconds,
        until: if every_seconds.is_some() { Timestamp::MAX } else { until },
        comment: String::new(),
        created_by: "ada".into(),
        created_at: NOW,
    };
    let name = "device".to_owned();
    let matcher = MatcherDto { name, value: device.into(), is_regex: false, is_equal: true };
    (silence, Matchers::new(&[matcher]).unwrap())
}

#[test]
fn a_silence_keeps_back_and_is_looked_at_when_it_ends() {
    let silenced = World { silences: vec![silence("a", None)], ..world() };
    let plan = super::plan(&policy(""), silenced, &[fired("a"), fired("b")]);
    let why = "log fired: not told: silence sil_1 of ada until 2023-11-14T22:14:20Z";
    assert_eq!(outcome(&plan), [why, "log fired: told"]);
    assert_eq!(plan.timers.len(), 1);
    let timer = &plan.timers[0];
    assert_eq!((timer.kind, timer.waits_for.as_deref()), (TimerKind::Look, Some("sil_1")));
    assert_eq!(timer.at, NOW + Duration::from_secs(60));
    assert!(!plan.told.contains_key(&fired("a").alert.id));

    let window = World { silences: vec![silence("a", Some(3_600))], ..world() };
    let plan = super::plan(&policy(""), window, &[fired("a")]);
    assert!(outcome(&plan)[0].contains("maintenance window sil_1"));
}

#[test]
fn a_gateway_that_is_down_silences_its_children_and_nobody_else() {
    let down = alert("gw", "gateway-down");
    let mut gone = world();
    for child in ["a", "gw-2"] {
        gone.parents
            .insert(("default".into(), child.into()), if child == "a" { "gw" } else { "root" }.into());
    }
    gone.down.insert(("default".into(), "gw".into()), down.id);
    let matters = [fired("a"), fired("gw-2"), matter(down.clone(), What::Fired)];
    let plan = super::plan(&policy(""), gone, &matters);
    let why = format!("log fired: not told: its gateway gw is down: alert {}", down.id);
    assert_eq!(outcome(&plan), [why.as_str(), "log fired: told", "log fired: told"]);
    assert_eq!(plan.timers[0].waits_for, Some(down.id.to_string()));
}

#[test]
fn what_snoozes_is_told_again_afterwards_unless_somebody_looks_after_it() {
    let snoozed = Alert { snoozed_until: Some(NOW + Duration::from_secs(5)), ..told("a", &["log"]) };
    let plan = super::plan(&policy(""), world(), &[matter(snoozed.clone(), What::Raised)]);
    assert_eq!(outcome(&plan), ["log raised: not told: snoozed until 2023-11-14T22:13:25Z"]);
    let later = || World { now: NOW + Duration::from_secs(5), ..World::default() };
    let plan = super::plan(&policy(""), later(), &[matter(snoozed.clone(), What::Unsnooze)]);
    assert_eq!(outcome(&plan), ["log reminded: told"]);
    let kept = Alert { state: AlertState::Acknowledged, acknowledged_by: Some("ada".into()), ..snoozed };
    let plan = super::plan(&policy(""), later(), &[matter(kept, What::Unsnooze)]);
    assert_eq!(outcome(&plan), ["log reminded: not told: acknowledged by ada"]);
}

const ON_CALL: &str = r#"
[[person]]
name = "ada"
reach = [{ channel = "mail", to = "ada@example.com" }]
[[person]]
name = "bob"
reach = [{ channel = "mail", to = "bob@example.com" }, { channel = "log" }]
[[policy]]
name = "on-call"
repeat_times = 1
step = [{ tell = ["ada"], wait_seconds = 300 }, { tell = ["bob"], wait_seconds = 600 }]
[[route]]
match = ["severity=critical"]
policy = "on-call"
[[route]]
tell = ["log"]
[[channel]]
kind = "email"
name = "mail"
server = "127.0.0.1:25"
tls = "none"
from = "dunlin@example.com"
[[channel]]
kind = "log"
name = "log"
"#;

#[test]
fn an_escalation_goes_on_until_somebody_looks_after_it() {
    let policy = policy(ON_CALL);
    let plan = super::plan(&policy, world(), &[fired("a")]);
    assert_eq!(outcome(&plan), ["mail ada@example.com fired: told"]);
    let mut steps = vec![(plan.timers[0].kind, plan.timers[0].at.since(NOW).as_secs())];
    for n in 1..4 {
        let plan = super::plan(&policy, world(), &[matter(alert("a", "too-hot"), What::Step(n))]);
        let ada = "mail ada@example.com escalated: told".to_owned();
        let bob = ["mail bob@example.com escalated: told".to_owned(), "log escalated: told".to_owned()];
        assert_eq!(outcome(&plan), if n % 2 == 0 { vec![ada] } else { bob.to_vec() });
        steps.extend(plan.timers.iter().map(|t| (t.kind, t.at.since(NOW).as_secs())));
    }
    let expected = [(TimerKind::Step(1), 300), (TimerKind::Step(2), 600), (TimerKind::Step(3), 300)];
    assert_eq!(steps, expected, "ada, bob, ada, bob, and no more");

    let acknowledged = Alert {
        state: AlertState::Acknowledged,
        acknowledged_by: Some("ada".into()),
        ..alert("a", "too-hot")
    };
    let plan = super::plan(&policy, world(), &[matter(acknowledged, What::Step(1))]);
    assert!(outcome(&plan).iter().all(|line| line.ends_with("not told: acknowledged by ada")));
    assert!(plan.timers.is_empty());

    let lesser = Alert { severity: Severity::Info, ..alert("a", "too-hot") };
    let plan = super::plan(&policy, world(), &[matter(lesser, What::Fired)]);
    assert_eq!(outcome(&plan), ["log fired: told"]);
}

#[test]
fn what_is_beyond_the_budget_goes_into_one_digest() {
    let policy = small("digest_seconds = 60");
    let matters: Vec<Matter> = (0..5).map(|n| fired(&format!("d{n}"))).collect();
    let plan = super::plan(&policy, world(), &matters);
    let carried = "hook fired: in the digest";
    let expected =
        ["hook fired: told", "hook fired: told", "hook digest: gathers 3", carried, carried, carried];
    assert_eq!(outcome(&plan), expected);
    assert_eq!(plan.told.len(), 5, "a digest tells, too");

    // The next stretch finds the digest open, even if the bucket has a token again.
    let gathering = Gathering {
        key: "digest-1".into(),
        tenant: "default".into(),
        channel: "hook".into(),
        recipient: String::new(),
        what: "digest".into(),
        group_key: String::new(),
        members: 3,
        closes_at: NOW + Duration::from_secs(60),
    };
    let open = World { gatherings: vec![gathering.clone()], ..world() };
    let plan = super::plan(&policy, open, &[fired("e")]);
    assert_eq!(outcome(&plan), [carried]);
    assert_eq!((plan.gatherings.len(), plan.gatherings[0].members), (1, 4));
    // Another tenant's is its own.
    let mut other = fired("f");
    other.alert.tenant = "other".into();
    let plan = super::plan(&policy, World { gatherings: vec![gathering], ..world() }, &[other]);
    assert_eq!(outcome(&plan), ["hook fired: told"]);
}

#[test]
fn a_group_is_told_together() {
    let policy = small("[[route]]\ntell = [\"hook\"]\ngroup_by = [\"rule\"]\ngroup_seconds = 30");
    let mut matters = vec![fired("a"), fired("b")];
    matters.push(matter(alert("a", "too-cold"), What::Fired));
    let plan = super::plan(&policy, world(), &matters);
    let carried = "hook fired: in the group";
    let expected = ["hook group: gathers 2", carried, carried, "hook group: gathers 1", carried];
    assert_eq!(outcome(&plan), expected);
    assert_eq!(plan.budgets.len(), 1, "two messages of one budget");
}

#[test]
fn flapping_is_told_once_and_its_end_once() {
    let policy = policy("[flapping]\nfirings = 3\nwithin_seconds = 600\nquiet_seconds = 60");
    let fingerprint = alert("a", "too-hot").id.fingerprint;
    let with = |count: usize, flapping| {
        let firings = vec![NOW; count];
        let mut world = world();
        world.flaps.insert(fingerprint, Flap { firings, flapping });
        world
    };
    let over = || matter(Alert { state: AlertState::Resolved, ..told("a", &["log"]) }, What::Resolved);
    let plan = super::plan(&policy, with(2, None), &[fired("a"), over(), fired("a")]);
    let why = "not told: it flaps: it fired 3 times within 600 s, and is told again after 60 s of quiet";
    let (end, beginning) = (format!("log resolved: {why}"), format!("log fired: {why}"));
    assert_eq!(outcome(&plan), ["log flapping: told", end.as_str(), beginning.as_str()]);
    assert!(plan.timers.iter().all(|t| t.kind == TimerKind::Calm && t.targets == ["log"]));

    let calm = |alert| matter(alert, What::Calm(vec!["log".into()]));
    let flapping = || with(9, Some(vec!["log".into()]));
    let plan = super::plan(&policy, flapping(), &[calm(alert("a", "too-hot"))]);
    assert_eq!(outcome(&plan), ["log calmed: told"]);
    let over = Alert { state: AlertState::Resolved, ..alert("a", "too-hot") };
    assert_eq!(outcome(&super::plan(&policy, flapping(), &[calm(over)])), ["log resolved: told"]);
}

#[test]
fn an_acknowledgement_is_told_where_it_stops_something() {
    let policy = small("[[route]]\ntell = [\"hook\", \"log\"]\n[[channel]]\nkind = \"log\"\nname = \"log\"");
    let alert = Alert { state: AlertState::Acknowledged, ..told("a", &["hook", "log"]) };
    let plan = super::plan(&policy, world(), &[matter(alert, What::Acknowledged)]);
    assert_eq!(outcome(&plan), ["hook acknowledged: told"]);
}

proptest! {
    /// Whatever comes: each matter has one outcome for each target, all that is not told says why, what is carried
    /// has its carrier, and the messages stay within the budget.
    #[test]
    fn everything_has_one_outcome_and_budgets_hold(
        burst in 1u32..5,
        devices in prop::collection::vec((0u8..30, 0u8..3, any::<bool>()), 1..120),
        silenced in 0u8..30,
        limit in 1u64..20,
    ) {
        let policy = policy(&format!(
            "digest_alerts_max = {limit}\n[[channel]]\nkind = \"webhook\"\nname = \"hook\"\n\
             url = \"https://example.com\"\nbudget = {{ burst = {burst}, per_hour = 1 }}\n\
             [[channel]]\nkind = \"log\"\nname = \"log\"\n"
        ));
        let mut matters = Vec::new();
        for (n, (device, rule, ends)) in devices.iter().enumerate() {
            let alert = alert(&format!("d{device}"), ["x", "y", "z"][usize::from(*rule)]);
            let what = if *ends { What::Resolved } else { What::Fired };
            let state = if *ends { AlertState::Resolved } else { AlertState::Firing };
            matters.push(Matter { alert: Alert { state, ..alert }, what, cause: n.to_string(), at: NOW });
        }
        let world = World { silences: vec![silence(&format!("d{silenced}"), None)], ..world() };
        let plan = super::plan(&policy, world, &matters);
        for (n, matter) in matters.iter().enumerate() {
            for target in ["hook", "log"] {
                let key = format!("{n}-{target}");
                let outcomes = plan.notifications.iter().filter(|o| o.idempotency_key == key).count();
                // One that was told already is not told again that it fires.
                let known = plan.notifications.iter().any(|o| {
                    o.alert == Some(matter.alert.id) && o.channel == target && o.what == "fired"
                });
                prop_assert!(outcomes == 1 || (outcomes == 0 && known && matter.what == What::Fired), "{key}");
            }
        }
        let mut members = std::collections::BTreeMap::<&str, u64>::new();
        for n in &plan.notifications {
            match &n.state {
                State::Suppressed { reason } => prop_assert!(!reason.is_empty()),
                State::Carried { carrier, reason } => {
                    prop_assert!(!reason.is_empty());
                    *members.entry(carrier).or_default() += 1;
                }
                State::Due | State::Gathering { .. } => {}
            }
        }
        for n in &plan.notifications {
            if let State::Gathering { members: said, .. } = n.state {
                prop_assert_eq!(members.remove(n.idempotency_key.as_str()), Some(said));
                prop_assert!(said <= limit);
            }
        }
        prop_assert!(members.is_empty(), "a carrier that is not there: {members:?}");
        let told = plan.notifications.iter().filter(|n| n.channel == "hook" && n.state == State::Due).count();
        prop_assert!(told <= burst as usize);
    }

    /// A bucket gives its burst at once and its rate from then on, and never more.
    #[test]
    fn a_bucket_never_gives_more_than_it_has(
        burst in 1u32..20,
        per_hour in 1u32..7_200,
        gaps in prop::collection::vec(0u64..600, 1..300),
    ) {
        let budget = Budget { burst, per_hour };
        let (mut now, mut paid, mut given) = (NOW, None, 0u64);
        for gap in gaps {
            now = now + Duration::from_secs(gap);
            if let Some(until) = take(budget, paid, now) {
                (paid, given) = (Some(until), given + 1);
            }
            let earned = now.since(NOW).as_secs_f64() * f64::from(per_hour) / 3_600.0;
            prop_assert!(given as f64 <= f64::from(burst) + earned + 1e-6);
        }
    }
}
