use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

#[track_caller]
fn check(when: &str, expect: Expect) {
    let text = format!("[[rule]]\nname = \"r\"\nwhen = '''{when}'''\n");
    let said = match RuleSet::parse(&text, "r.toml") {
        Ok(set) => set.rules()[0].words.to_string(),
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
    check("t > 3 or x > 4", expect![[r#"expected `for`, `clear` or the end, found "or x > 4""#]]);
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
