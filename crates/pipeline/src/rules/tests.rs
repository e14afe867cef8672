use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::{condition::Condition, *};

#[track_caller]
fn check(when: &str, expect: Expect) {
    let text = format!("[[rule]]\nname = \"r\"\nwhen = '''{when}'''\n");
    let said = match RuleSet::parse(&text, "r.toml") {
        Ok(set) => set.rules()[0].words().to_string(),
        Err(problems) => problems[0].message.clone(),
    };
    expect.assert_eq(&said);
}

#[test]
fn reads_conditions() {
    check("temperature>80", expect!["temperature > 80"]);
    check("temperature > 80 for 30s, clear below 75", expect!["temperature > 80 for 30s, clear below 75"]);
    check(
        "avg(temperature) over 1m > 80 for 2m, clear below 75",
        expect!["avg(temperature) over 1m > 80 for 2m, clear below 75"],
    );
    check("max( x ) over 5m every 1m >= 3", expect!["max(x) over 5m every 1m >= 3"]);
    check(
        r#"last("battery.voltage") over 90s <= -3.5e-1"#,
        expect![[r#"last("battery.voltage") over 90s <= -0.35"#]],
    );
    check("avg < 3 clear above 3.5", expect!["avg < 3, clear above 3.5"]);
    check("count(door-open) over 1d every 1h == 0", expect!["count(door-open) over 1d every 1h == 0"]);
}

#[test]
fn reads_joined_tests() {
    check("a > 1 and b < 2 or not c == 3 for 5m", expect!["(a > 1 and b < 2) or not c == 3 for 5m"]);
    check(
        "(a > 1 clear below 0.5 or b < 2) and max(c) over sliding 5m > 3",
        expect!["(a > 1 clear below 0.5 or b < 2) and max(c) over sliding 5m > 3"],
    );
    check("no data for 10m", expect!["no data for 10m"]);
    check(
        "no data(t) for 1h or stuck('a.b') for 30m",
        expect![[r#"no data(t) for 1h or stuck("a.b") for 30m"#]],
    );
    check("rate(t) > 5", expect!["rate(t) per 1s > 5"]);
    check(
        "position(lat, lon) inside polygon(0 0, 0 1, 1 1)",
        expect!["position(lat, lon) inside polygon(0 0, 0 1, 1 1)"],
    );
    check(
        "position(lat,lon) outside circle(52.52 13.405, 500m) for 1m",
        expect!["position(lat, lon) outside circle(52.52 13.405, 500m) for 1m"],
    );
    check("\"or\" > 3 and no > 1", expect![[r#""or" > 3 and no > 1"#]]);
}

#[test]
fn says_what_to_change_in_joined_tests() {
    check("a > 1 and", expect!["expected a metric, as in temperature or 'battery.voltage', found the end"]);
    check("(a > 1 or b > 2", expect!["expected `)`, found the end"]);
    check("no data", expect!["expected `for` and a duration, as in `for 10m`, found the end"]);
    check("stuck(a)", expect!["expected `for` and a duration, as in `for 10m`, found the end"]);
    check(
        "position(a, b) near circle(1 2, 3m)",
        expect![[r#"expected `inside` or `outside`, found "near circle(1 2, 3m)""#]],
    );
    check(
        "position(a, b) inside circle(100 2, 3m)",
        expect!["a circle has a centre on earth (latitude longitude) and a radius"],
    );
    check("position(a, b) inside polygon(1 2, 3 4)", expect!["a polygon has 3 to 256 corners"]);
    check(
        "avg(a) over session 1s500ms > 3",
        expect![[r#"expected one of > >= < <= == !=, found "500ms > 3""#]],
    );
    check(
        &vec!["a > 1"; 40].join(" and "),
        expect![[r#"expected fewer tests: a condition has at most 32, found "and a > 1 and a > 1 ""#]],
    );
    check(
        &format!("{}a > 1", "not ".repeat(40)),
        expect![[r#"expected less nesting: a condition is at most 16 deep, found "not not not not not ""#]],
    );
}

#[test]
fn rules_have_expressions_levels_hours_and_tests() {
    let check = |rule: &str, expect: Expect| {
        let text = format!("[[rule]]\nname = \"r\"\n{rule}\n");
        let said = match RuleSet::parse(&text, "r.toml") {
            Ok(set) => {
                let levels = set.rules()[0].levels.iter().map(|l| format!("{:?}: {}", l.severity, l.words));
                levels.collect::<Vec<_>>().join("; ")
            }
            Err(problems) => problems[0].to_string(),
        };
        expect.assert_eq(&said);
    };
    check("expression = \"a > 1 AND b < 2\"\nfor = \"2m\"", expect!["Warning: a > 1 AND b < 2 for 2m"]);
    check(
        "when = \"a > 1\"\n[[rule.level]]\nseverity = \"critical\"\nwhen = \"a > 5 for 1m\"",
        expect!["Warning: a > 1; Critical: a > 5 for 1m"],
    );
    check(
        "when = \"a > 1\"\nactive = \"Mon-Fri 08:00-18:00 Europe/Berlin\"",
        expect!["Warning: a > 1 and during Mon-Fri 08:00-18:00 Europe/Berlin"],
    );
    check(
        "when = \"a > 1\"\nactive = \"weekdays\"",
        expect![[
            r#"r.toml:4:10: rule "r": "weekdays" is no span of a schedule; write for example Mon-Fri 08:00-18:00"#
        ]],
    );
    check(
        "when = \"a > 1\"\nexpression = \"a > 1\"",
        expect![[r#"r.toml:4:14: rule "r": a rule has `when` or `expression`, not both"#]],
    );
    check(
        "expression = \"a + 1\"",
        expect![[r#"r.toml:3:14: rule "r": an expression is true or false; this one is a BIGINT"#]],
    );
    check("", expect![[r#"r.toml:2:8: rule "r": say `when`, or `expression`"#]]);
    check(
        "when = \"a > 1\"\nfor = \"2m\"",
        expect![[
            r#"r.toml:4:7: rule "r": `for` goes with `expression`; in `when` it is a part of the text"#
        ]],
    );
    check(
        "when = \"a > 1\"\n[[rule.test]]\nname = \"t\"\nreadings = \"soon 5\"",
        expect![[
            r#"r.toml:4:1: rule "r": "soon" is no time from the start; write for example 0s, 90s, 10m or 2h30m"#
        ]],
    );
    check(
        "when = \"a > 1\"\n[[rule.test]]\nname = \"t\"\nreadings = \"0s 5\"\nexpect = \"0s fires\"",
        expect![[r#"r.toml:4:1: rule "r": "0s fires": write for example 120s firing, or 300s resolved"#]],
    );
}

#[test]
fn a_tenants_rule_is_that_tenants_alone() {
    let own = |text: &str| RuleSet::parse_own(text, "acme").map_err(|problems| problems[0].message.clone());
    let rule = "[[rule]]\nname = \"a\"\nwhen = \"t > 1\"\n";
    assert_eq!(own(rule).unwrap().tenant.as_deref(), Some("acme"));
    assert!(own(&format!("{rule}tenant = \"other\"\n")).unwrap_err().contains("acme"));
    assert!(own("").unwrap_err().contains("has 0"));

    let files = RuleSet::parse(rule, "f.toml").unwrap();
    let named = |name: &str| own(&rule.replace("\"a\"", &format!("{name:?}"))).unwrap();
    let (all, left) = files.and([named("a"), named("b"), named("b")]);
    let names = |rules: &[Arc<Rule>]| rules.iter().map(|r| r.name.to_string()).collect::<Vec<_>>();
    assert_eq!(
        (names(all.rules()), names(&left)),
        (vec!["a".into(), "b".into()], vec!["a".into(), "b".into()])
    );
}

#[test]
fn says_what_to_change() {
    check("temperature", expect!["expected one of > >= < <= == !=, found the end"]);
    check("temperature = 3", expect![[r#"expected one of > >= < <= == !=, found "= 3""#]]);
    check(
        "avg(temperature) > 3",
        expect![[r#"expected `over` and a duration, as in `over 1m`, found "> 3""#]],
    );
    check("temperature > warm", expect![[r#"expected a number, found "warm""#]]);
    check(
        "avg(t) over 5 > 3",
        expect![[
            r#"expected a duration of at most 366d, as in 500ms, 30s, 5m, 2h or 1d, `over` and a duration, as in `over 1m`, found "> 3""#
        ]],
    );
    check(
        "t > 3 for ever",
        expect![[r#"expected a duration of at most 366d, as in 500ms, 30s, 5m, 2h or 1d, found "ever""#]],
    );
    check("t > 3 clear above 5", expect![[r#"expected `below`, found "above 5""#]]);
    check(
        "t > 3 clear below 5",
        expect!["it would clear while it still holds: `clear below` must not exceed the threshold"],
    );
    check("t == 3 clear below 5", expect!["`clear` goes with >, >=, < and <= only"]);
    check("avg(t) over 5m every 2m > 3", expect!["`over` must be a multiple of `every`"]);
    check("avg(t) over 1d every 1s > 3", expect!["`over` has at most 1440 times the length of `every`"]);
    check("avg(t) over 500ms > 3", expect!["a window is at least 1s long, and so is its step"]);
    check(
        "t > 3 xor x > 4",
        expect![[r#"expected `and`, `or`, `for`, `clear` or the end, found "xor x > 4""#]],
    );
    check("", expect!["expected a metric, as in temperature or 'battery.voltage', found the end"]);
}

#[test]
fn a_problem_says_file_line_and_column() {
    let text = "[[rule]]\nname = \"hot\"\nwhen = \"temperature > warm\"\n\n[[rule]]\nname = \"hot2\"\nwhen = \"t >\"\n";
    let problems = RuleSet::parse(text, "rules/hot.toml").unwrap_err();
    let said: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            r#"rules/hot.toml:3:23: rule "hot": expected a number, found "warm""#,
            r#"rules/hot.toml:7:12: rule "hot2": expected a number, found the end"#,
        ]
    );
    let problems = RuleSet::parse("[[rule]]\nname = \"a\"\nwen = \"t > 1\"\n", "f.toml").unwrap_err();
    assert_eq!((problems[0].line, problems[0].column), (3, 1), "{}", problems[0]);
    let twice = "[[rule]]\nname = \"a\"\nwhen = \"t > 1\"\n".repeat(2);
    assert!(RuleSet::parse(&twice, "f.toml").unwrap_err()[0].message.contains("taken"));
}

#[test]
fn only_what_decides_counts_as_a_change() {
    let rule = |more: &str| {
        let text = format!("[[rule]]\nname = \"a\"\nwhen = \"t > 1\"\n{more}");
        RuleSet::parse(&text, "f.toml").unwrap().rules()[0].content_hash
    };
    assert_eq!(rule(""), rule("severity = \"critical\"\ndescription = \"x\"\n"));
    assert_ne!(rule(""), rule("devices = \"pump-*\"\n"));
}

#[test]
fn a_missing_directory_holds_no_rules() {
    let dir = tempfile::tempdir().unwrap();
    assert!(RuleSet::load(&dir.path().join("none")).unwrap().is_empty());
    std::fs::write(dir.path().join("a.toml"), "[[rule]]\nname = \"a\"\nwhen = \"t > 1\"\n").unwrap();
    std::fs::write(dir.path().join("b.toml"), "[[rule]]\nname = \"b\"\nwhen = \"t > 1\"\n").unwrap();
    std::fs::write(dir.path().join("readme.md"), "not a rule").unwrap();
    assert_eq!(RuleSet::load(dir.path()).unwrap().len(), 2);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,60}") {
        let _ = Condition::parse(&text);
    }

    #[test]
    fn what_is_said_can_be_read_again(
        metric in "[a-z][a-z.]{0,8}", size in 1u64..60, threshold in -1e6..1e6f64, hold in 0u64..100,
    ) {
        let text = format!("avg(\"{metric}\") over {size}m >= {threshold} for 1{hold}s, clear below {threshold}");
        let first = Condition::parse(&text).unwrap();
        prop_assert_eq!(Condition::parse(&first.to_string()).unwrap(), first);
    }
}
