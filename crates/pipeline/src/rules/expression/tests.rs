use expect_test::expect_file;
use proptest::prelude::*;

use super::*;

/// `temperature` is 80.5, `count` is 7, `mode` is 'run', `door` is true, `missing` was never read.
fn holds(text: &str) -> Option<bool> {
    let expression = Expression::parse(text).unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
    let value = |metric: &str| match metric {
        "temperature" => Some(Scalar::F64(80.5)),
        "count" => Some(Scalar::I64(7)),
        "mode" => Some(Scalar::Text("run".into())),
        "door" => Some(Scalar::Bool(true)),
        _ => None,
    };
    let values: Vec<_> = expression.metrics().iter().map(|metric| value(metric)).collect();
    expression.holds(&values)
}

#[test]
fn says_what_sql_says() {
    for text in [
        "temperature > 80 AND mode = 'run'",
        "temperature BETWEEN 80 AND 81 OR missing > 3",
        "Temperature NOT BETWEEN 1 AND 2",
        "count / 2 = 3 AND count % 4 = 3 AND -count < 0",
        "count / 2.0 = 3.5 AND CAST(count AS DOUBLE) / 2 = 3.5",
        "mode IN ('stop', 'run') AND mode NOT IN ('idle')",
        "mode LIKE 'r%n' AND mode LIKE '_un' AND mode NOT LIKE 'r_'",
        "door AND NOT door = FALSE AND door IS TRUE",
        "missing IS NULL AND temperature IS NOT NULL AND (missing > 3) IS NOT TRUE",
        "CASE WHEN temperature > 90 THEN 'hot' WHEN temperature > 70 THEN 'warm' ELSE 'cold' END = 'warm'",
        "CASE mode WHEN 'run' THEN 1 ELSE 0 END = 1",
        "abs(temperature - 90) < 10 AND round(temperature) = 81 AND round(temperature / 3, 1) = 26.8",
        "ceil(temperature) = 81 AND floor(temperature) = 80 AND sqrt(count + 2) = 3 AND power(count, 2) = 49",
        "greatest(temperature, count, 3) = temperature AND least(temperature, count) = 7",
        "coalesce(missing, count) = 7 AND nullif(count, 7) IS NULL",
        "upper(mode) = 'RUN' AND char_length(mode) = 3 AND mode || '!' = 'run!' AND substring(mode, 2) = 'un'",
        "trim(' ' || mode) = 'run' AND CAST('12' AS BIGINT) + count = 19 AND CAST(count AS VARCHAR) = '7'",
        "ln(exp(temperature)) > 80 AND atan2(count, count) < 1",
    ] {
        assert_eq!(holds(text), Some(true), "{text}");
    }
}

/// DataFusion and Flink are asked the same of this file elsewhere.
#[test]
fn says_what_the_file_of_what_is_alike_says() {
    let file = include_str!("alike.tsv");
    let mut rows = Vec::<Vec<Option<Scalar>>>::new();
    let mut said = String::new();
    for line in file.lines() {
        if let Some(row) = line.strip_prefix("> ") {
            let values = row.split('\t').zip("xyijbcst".chars());
            rows.push(values.map(|(text, of)| (text != "NULL").then(|| value_of(of, text))).collect());
        }
        let is_expression = !line.starts_with(['>', '#']);
        let text = line.split('\t').next().unwrap_or_default();
        said.push_str(if is_expression { text } else { line });
        if is_expression {
            let expression = Expression::parse(text).unwrap_or_else(|wrong| panic!("{text}: {wrong}"));
            let verdict = |row: &Vec<Option<Scalar>>| {
                let value = |metric: &str| row["xyijbcst".find(metric)?].clone();
                let values: Vec<_> = expression.metrics().iter().map(|metric| value(metric)).collect();
                expression.holds(&values).map_or('N', |holds| if holds { 'T' } else { 'F' })
            };
            said.push('\t');
            said.extend(rows.iter().map(verdict));
        }
        said.push('\n');
    }
    expect_file!["alike.tsv"].assert_eq(&said);
}

fn value_of(metric: char, text: &str) -> Scalar {
    match metric {
        'x' | 'y' => Scalar::F64(text.parse().unwrap()),
        'i' | 'j' => Scalar::I64(text.parse().unwrap()),
        'b' | 'c' => Scalar::Bool(text.parse().unwrap()),
        _ => Scalar::Text(text.into()),
    }
}

#[test]
fn what_is_not_known_is_neither_true_nor_false() {
    for text in [
        "missing > 3",
        "NOT missing > 3",
        "missing > 3 AND temperature > 1",
        "count / 0 = 1",
        "CAST(mode AS DOUBLE) > 1",
        "mode > 3 OR missing = 1",
        "mode IN ('stop', missing)",
    ] {
        assert_eq!(holds(text), None, "{text}");
    }
    assert_eq!(holds("missing > 3 AND temperature < 1"), Some(false));
}

#[test]
fn is_checked_before_it_runs() {
    let wrong = |text: &str| Expression::parse(text).unwrap_err();
    assert_eq!(wrong("temperature + 1"), "an expression is true or false; this one is a BIGINT");
    assert_eq!(wrong("1 = 1"), "the expression names no metric");
    assert_eq!(wrong("temperature > 'hot' + 1"), "`'hot'` is a VARCHAR, and a number is needed");
    assert!(wrong("abs(temperature) = 'a' || 3").contains("VARCHAR"));
    assert!(wrong("sinus(temperature) > 1").starts_with("there is no function \"sinus\"; there are abs"));
    assert_eq!(wrong("power(temperature) > 1"), "power takes 2 to 2 arguments, not 1");
    assert!(wrong("temperature > (SELECT 1)").contains("no part of the rules' expressions"));
    assert!(wrong("temperature > ").contains("Expected"));
    assert!(wrong("temperature > 1 temperature").contains("cannot read"));
    assert!(wrong("avg(temperature) OVER () > 1").contains("more than a scalar function"));
    for deep in ["NOT ", "(", "-(", "CASE WHEN "] {
        wrong(&format!("{}temperature > 1", deep.repeat(200)));
    }
    assert!(wrong(&vec!["temperature > 1"; 100].join(" AND ")).contains("deep"));
    assert_eq!(holds(&vec!["temperature > 1"; 40].join(" AND ")), Some(true));
    assert!(wrong(&"a".repeat(5_000)).contains("4096 bytes"));
    assert!(wrong("CAST(temperature AS DATE) = 1").starts_with("cast to DOUBLE"));
}

#[test]
fn names_metrics_in_their_order_and_quotes_keep_the_case() {
    let expression = Expression::parse("\"battery.Voltage\" < 3 AND Temp > 1 AND temp < 9").unwrap();
    let names: Vec<&str> = expression.metrics().iter().map(|m| &**m).collect();
    assert_eq!(names, ["battery.Voltage", "temp"]);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused_and_any_value_judged(
        text in "[a-z0-9 ()<>=+*/%'.,-]{0,60}", v in prop::num::f64::ANY, n in any::<i64>(),
    ) {
        if let Ok(expression) = Expression::parse(&text) {
            let of = |n: usize, i| if n.is_multiple_of(2) { Scalar::F64(v) } else { Scalar::I64(i) };
            let values: Vec<_> = (0..expression.metrics().len()).map(|m| Some(of(m, n))).collect();
            let _ = expression.holds(&values);
        }
    }

    #[test]
    fn what_is_said_can_be_read_again(a in -1e6..1e6f64, b in any::<i32>()) {
        let text = format!("(x > {a} OR y <= {b}) AND NOT x * 2 + y / 3 = {a}");
        let first = Expression::parse(&text).unwrap();
        prop_assert_eq!(Expression::parse(&first.to_string()).unwrap(), first);
    }
}
