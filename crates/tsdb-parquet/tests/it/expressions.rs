//! A rule's expression and a query's WHERE are one text: the rules' evaluator and DataFusion say the same of it.
//!
//! Left out is what docs/rules.md leaves out: what is no number (NaN, and zero with a sign), `greatest` and `least` of
//! NULLs, `IN` lists that are not of constants, and where DataFusion ends the query and a rule goes on with NULL.

use std::sync::{Arc, LazyLock};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use datafusion::{
    execution::session_state::{SessionState, SessionStateBuilder},
    prelude::{SessionConfig, SessionContext},
};
use dunlin_pipeline::rules::{Scalar, expression::Expression};
use proptest::prelude::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Boolean,
    Bigint,
    Double,
    Text,
}

/// The last readings of a device: `x`, `y` (DOUBLE), `i`, `j` (BIGINT), `b`, `c` (BOOLEAN), `s`, `t` (VARCHAR).
#[derive(Debug, Clone)]
struct Row {
    doubles: [Option<f64>; 2],
    integers: [Option<i64>; 2],
    booleans: [Option<bool>; 2],
    texts: [Option<String>; 2],
}

impl Row {
    fn value(&self, metric: &str) -> Option<Scalar> {
        match metric {
            "x" => self.doubles[0].map(Scalar::F64),
            "y" => self.doubles[1].map(Scalar::F64),
            "i" => self.integers[0].map(Scalar::I64),
            "j" => self.integers[1].map(Scalar::I64),
            "b" => self.booleans[0].map(Scalar::Bool),
            "c" => self.booleans[1].map(Scalar::Bool),
            "s" => self.texts[0].clone().map(|text| Scalar::Text(text.into())),
            "t" => self.texts[1].clone().map(|text| Scalar::Text(text.into())),
            other => unreachable!("{other}"),
        }
    }

    fn batch(&self) -> RecordBatch {
        let mut columns: Vec<(&str, DataType, ArrayRef)> = Vec::new();
        for (name, value) in ["x", "y"].into_iter().zip(self.doubles) {
            columns.push((name, DataType::Float64, Arc::new(Float64Array::from(vec![value]))));
        }
        for (name, value) in ["i", "j"].into_iter().zip(self.integers) {
            columns.push((name, DataType::Int64, Arc::new(Int64Array::from(vec![value]))));
        }
        for (name, value) in ["b", "c"].into_iter().zip(self.booleans) {
            columns.push((name, DataType::Boolean, Arc::new(BooleanArray::from(vec![value]))));
        }
        for (name, value) in ["s", "t"].into_iter().zip(&self.texts) {
            columns.push((name, DataType::Utf8, Arc::new(StringArray::from(vec![value.as_deref()]))));
        }
        let fields: Vec<_> =
            columns.iter().map(|(name, data_type, _)| Field::new(*name, data_type.clone(), true)).collect();
        let arrays = columns.into_iter().map(|(.., array)| array).collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
    }
}

fn row() -> impl Strategy<Value = Row> {
    let double =
        prop::option::weighted(0.85, prop::sample::select(vec![-3.5, -1.0, 0.0, 0.25, 1.0, 2.0, 80.5, 1e6]));
    let integer = prop::option::weighted(0.85, prop::sample::select(vec![-7i64, -1, 0, 1, 2, 3, 12, 1_000]));
    let boolean = prop::option::weighted(0.85, any::<bool>());
    let texts = ["", "run", "Run", "start", " x ", "12", "-3.5", "käfer", "a_b%"].map(String::from);
    let text = prop::option::weighted(0.85, prop::sample::select(texts.to_vec()));
    let two = |a, b| [a, b];
    (
        (double.clone(), double).prop_map(move |(a, b)| two(a, b)),
        (integer.clone(), integer).prop_map(|(a, b)| [a, b]),
        (boolean.clone(), boolean).prop_map(|(a, b)| [a, b]),
        (text.clone(), text).prop_map(|(a, b)| [a, b]),
    )
        .prop_map(|(doubles, integers, booleans, texts)| Row { doubles, integers, booleans, texts })
}

/// SQL of a type, so deep at the most. Texts are made, not trees: it is the text that both read.
fn sql(of: Of, depth: u32) -> BoxedStrategy<String> {
    let select =
        |texts: &[&str]| prop::sample::select(texts.iter().map(|t| t.to_string()).collect::<Vec<_>>());
    let leaf = match of {
        Of::Boolean => select(&["b", "c", "TRUE", "FALSE"]),
        Of::Bigint => select(&["i", "j", "0", "1", "-2", "7"]),
        Of::Double => select(&["x", "y", "0.5", "2.0", "-1.25", "80.5"]),
        Of::Text => select(&["s", "t", "'run'", "'it''s'", "''", "'käfer'"]),
    };
    if depth == 0 {
        return leaf.boxed();
    }
    let part = |of: Of| sql(of, depth - 1);
    let number = || prop_oneof![part(Of::Bigint), part(Of::Double)];
    // Without the sign of a zero.
    let compared = || {
        prop_oneof![
            (number(), number()).prop_map(|(a, b)| (format!("({a} + 0.0)"), format!("({b} + 0.0)"))),
            (part(Of::Bigint), part(Of::Bigint)),
            (part(Of::Text), part(Of::Text)),
            (part(Of::Boolean), part(Of::Boolean)),
        ]
    };
    let comparator = select(&["=", "<>", "<", "<=", ">", ">="]);
    let case =
        (part(Of::Boolean), part(of), part(of), any::<bool>()).prop_map(|(when, then, other, has_else)| {
            match has_else {
                true => format!("CASE WHEN {when} THEN {then} ELSE {other} END"),
                false => format!("CASE WHEN {when} THEN {then} END"),
            }
        });
    let coalesce = (part(of), part(of)).prop_map(|(a, b)| format!("coalesce({a}, {b})"));
    let made = match of {
        Of::Boolean => prop_oneof![
            3 => (compared(), comparator).prop_map(|((a, b), by)| format!("({a} {by} {b})")),
            2 => (part(Of::Boolean), select(&["AND", "OR"]), part(Of::Boolean))
                .prop_map(|(a, by, b)| format!("({a} {by} {b})")),
            1 => part(Of::Boolean).prop_map(|a| format!("(NOT {a})")),
            1 => (part(Of::Boolean), select(&["IS NULL", "IS NOT NULL", "IS TRUE", "IS NOT TRUE", "IS FALSE", "IS NOT FALSE"]))
                .prop_map(|(a, is)| format!("({a} {is})")),
            1 => (number(), select(&["IS NULL", "IS NOT NULL"])).prop_map(|(a, is)| format!("({a} {is})")),
            1 => (part(Of::Bigint), select(&["", "NOT "]), part(Of::Bigint), part(Of::Bigint))
                .prop_map(|(a, not, low, high)| format!("({a} {not}BETWEEN {low} AND {high})")),
            // Of constants: among others, DataFusion takes a NULL for something else.
            1 => (part(Of::Text), select(&["", "NOT "]), select(&["'run'", "''", "'käfer'"]))
                .prop_map(|(a, not, one)| format!("({a} {not}IN ({one}, 'start'))")),
            1 => (part(Of::Bigint), select(&["", "NOT "]), select(&["0", "1", "-2"]))
                .prop_map(|(a, not, one)| format!("({a} {not}IN ({one}, 3))")),
            1 => (part(Of::Text), select(&["", "NOT "]), select(&["r%", "%n", "_un", "%", "", "k_fer", "%a%"]))
                .prop_map(|(a, not, pattern)| format!("({a} {not}LIKE '{pattern}')")),
            1 => prop_oneof![case, coalesce],
        ]
        .boxed(),
        Of::Bigint => prop_oneof![
            3 => (part(Of::Bigint), select(&["+", "-", "*"]), part(Of::Bigint))
                .prop_map(|(a, by, b)| format!("({a} {by} {b})")),
            1 => (part(Of::Bigint), select(&["/", "%"]), part(Of::Bigint))
                .prop_map(|(a, by, b)| format!("({a} {by} (abs({b}) + 1))")),
            // May be divided by zero.
            1 => (part(Of::Bigint), part(Of::Bigint)).prop_map(|(a, b)| format!("({a} / {b})")),
            1 => part(Of::Bigint).prop_map(|a| format!("abs({a})")),
            1 => part(Of::Text).prop_map(|a| format!("char_length({a})")),
            1 => part(Of::Double).prop_map(|a| format!("CAST({a} AS BIGINT)")),
            1 => part(Of::Boolean).prop_map(|a| format!("CAST({a} AS BIGINT)")),
            1 => part(Of::Text).prop_map(|a| format!("CAST({a} AS BIGINT)")),
            1 => (part(Of::Bigint), part(Of::Bigint)).prop_map(|(a, b)| format!("nullif({a}, {b})")),
            1 => (part(Of::Bigint), part(Of::Bigint), select(&["greatest", "least"]))
                .prop_map(|(a, b, name)| format!("{name}(coalesce({a}, 1), coalesce({b}, 2))")),
            1 => prop_oneof![case, coalesce],
        ]
        .boxed(),
        Of::Double => prop_oneof![
            3 => (number(), select(&["+", "-", "*"]), part(Of::Double))
                .prop_map(|(a, by, b)| format!("({a} {by} {b})")),
            1 => (number(), select(&["/", "%"]), part(Of::Double))
                .prop_map(|(a, by, b)| format!("({a} {by} (abs({b}) + 1.0))")),
            2 => (part(Of::Double), select(&["abs", "ceil", "floor", "round", "sin", "cos", "atan"]))
                .prop_map(|(a, name)| format!("{name}({a})")),
            1 => part(Of::Double).prop_map(|a| format!("sqrt(abs({a}))")),
            1 => (part(Of::Double), select(&["ln", "log10"])).prop_map(|(a, name)| format!("{name}(abs({a}) + 1.0)")),
            1 => (part(Of::Double), select(&["asin", "acos", "exp", "tan"]))
                .prop_map(|(a, name)| format!("{name}(sin({a}))")),
            1 => part(Of::Double).prop_map(|a| format!("power(sin({a}), 2)")),
            1 => (part(Of::Double), part(Of::Double)).prop_map(|(a, b)| format!("atan2({a} + 0.0, {b} + 0.0)")),
            1 => (part(Of::Double), 0..4).prop_map(|(a, digits)| format!("round({a}, {digits})")),
            1 => part(Of::Bigint).prop_map(|a| format!("CAST({a} AS DOUBLE)")),
            1 => part(Of::Text).prop_map(|a| format!("CAST({a} AS DOUBLE)")),
            1 => prop_oneof![case, coalesce],
        ]
        .boxed(),
        Of::Text => prop_oneof![
            2 => (part(Of::Text), part(Of::Text)).prop_map(|(a, b)| format!("({a} || {b})")),
            2 => (part(Of::Text), select(&["upper", "lower", "trim"])).prop_map(|(a, name)| format!("{name}({a})")),
            1 => (part(Of::Text), 0..4).prop_map(|(a, first)| format!("substring({a}, {first})")),
            1 => (part(Of::Text), -1..4, 0..4).prop_map(|(a, first, length)| format!("substring({a}, {first}, {length})")),
            1 => part(Of::Bigint).prop_map(|a| format!("CAST({a} AS VARCHAR)")),
            1 => part(Of::Boolean).prop_map(|a| format!("CAST({a} AS VARCHAR)")),
            1 => (part(Of::Text), part(Of::Text)).prop_map(|(a, b)| format!("nullif({a}, {b})")),
            1 => prop_oneof![case, coalesce],
        ]
        .boxed(),
    };
    prop_oneof![1 => leaf, 4 => made].boxed()
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());

/// What a query says of the row; an error where it would end.
fn queried(text: &str, row: &Row) -> Result<Option<bool>, String> {
    queried_in(session().build(), text, row)
}

/// The same, with nothing left out that need not be looked at: an error where anything in it would end a query.
fn queried_as_it_stands(text: &str, row: &Row) -> Result<Option<bool>, String> {
    queried_in(session().with_optimizer_rules(Vec::new()).build(), text, row)
}

fn session() -> SessionStateBuilder {
    let config = SessionConfig::new().with_target_partitions(1);
    SessionStateBuilder::new().with_config(config).with_default_features()
}

fn queried_in(session: SessionState, text: &str, row: &Row) -> Result<Option<bool>, String> {
    RUNTIME.block_on(async {
        let context = SessionContext::new_with_state(session);
        context.register_batch("readings", row.batch()).map_err(|error| error.to_string())?;
        let frame = context.sql(&format!("SELECT ({text}) AS holds FROM readings")).await;
        let batches = frame.map_err(|e| e.to_string())?.collect().await.map_err(|e| e.to_string())?;
        let holds = batches[0].column(0).as_boolean_opt().ok_or("no boolean")?.clone();
        Ok((!holds.is_null(0)).then(|| holds.value(0)))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, max_global_rejects: 20_000, ..ProptestConfig::default() })]
    #[test]
    fn the_rules_and_the_queries_say_the_same(text in sql(Of::Boolean, 3), row in row()) {
        let expression = match Expression::parse(&text) {
            Ok(expression) => expression,
            // Of constants alone, or too deep: for a reason that is said, and not because it cannot be read.
            Err(wrong) => {
                prop_assert!(wrong.contains("names no metric") || wrong.contains("nested too deep"), "{text}: {wrong}");
                return Ok(());
            }
        };
        let values: Vec<_> = expression.metrics().iter().map(|metric| row.value(metric)).collect();
        let here = expression.holds(&values);
        // Where a query ends, a rule goes on.
        if let Ok(there) = queried(&text, &row)
            && here != there
        {
            prop_assert!(queried_as_it_stands(&text, &row).is_err(), "{here:?}, {there:?}: {text}");
        }
    }
}

#[test]
fn where_a_query_ends_a_rule_goes_on_with_null() {
    let row = Row {
        doubles: [None; 2],
        integers: [Some(1), Some(0)],
        booleans: [None; 2],
        texts: [Some("run".into()), None],
    };
    for text in ["i / j = 1", "CAST(s AS BIGINT) = 1"] {
        let expression = Expression::parse(text).unwrap();
        let values: Vec<_> = expression.metrics().iter().map(|metric| row.value(metric)).collect();
        assert_eq!(expression.holds(&values), None, "{text}");
        assert!(queried(text, &row).is_err(), "{text}");
    }
    // Of what can only end it and is never NULL, the planner knows the answer without looking.
    let text = "CAST(CASE WHEN b THEN 'run' ELSE 'it' END AS DOUBLE) IS NULL";
    assert_eq!(Expression::parse(text).unwrap().holds(&[None]), Some(true));
    assert_eq!(queried(text, &row), Ok(Some(false)));
    assert!(queried_as_it_stands(text, &row).is_err());
}

#[test]
fn queries_say_what_the_file_of_what_is_alike_says() {
    fn read<T: std::str::FromStr>(text: &str) -> Option<T> {
        (text != "NULL").then(|| text.parse().unwrap_or_else(|_| panic!("{text}")))
    }
    let mut rows = Vec::new();
    for line in include_str!("../../../pipeline/src/rules/expression/alike.tsv").lines() {
        if let Some(row) = line.strip_prefix("> ") {
            let [x, y, i, j, b, c, s, t] = row.split('\t').collect::<Vec<_>>().try_into().unwrap();
            rows.push(Row {
                doubles: [read(x), read(y)],
                integers: [read(i), read(j)],
                booleans: [read(b), read(c)],
                texts: [read(s), read(t)],
            });
        } else if let Some((text, verdicts)) = line.split_once('\t') {
            assert_eq!(verdicts.len(), rows.len(), "{text}");
            for (row, verdict) in rows.iter().zip(verdicts.chars()) {
                let said = match queried(text, row) {
                    Ok(holds) => holds.map_or('N', |holds| if holds { 'T' } else { 'F' }),
                    // A query ends where a rule goes on with NULL.
                    Err(_) => 'N',
                };
                assert_eq!(said, verdict, "{text} of {row:?}");
            }
        }
    }
}
