use proptest::prelude::*;

use super::*;

#[track_caller]
fn check(json: &str, expect: &str) {
    let arena = Bump::new();
    let shown = match decode(json.as_bytes(), &arena) {
        Err(fault) => format!("{}: {fault}", fault.reason.as_str()),
        Ok(entries) => entries.iter().map(show).collect::<Vec<_>>().join(" | "),
    };
    assert_eq!(shown, expect, "{json}");
}

fn show(entry: &Entry<'_>) -> String {
    let readings: Vec<String> =
        entry.readings.iter().map(|r| format!("{}={:?}", r.metric, r.value)).collect();
    let time = entry.device_time.map(|t| format!("@{} ", t.as_micros())).unwrap_or_default();
    let id = if entry.id.is_some() { "#" } else { "" };
    format!("{id}{time}{}", readings.join(","))
}

#[test]
fn plain_readings() {
    check(r#"{"temperature": 21.5, "n": 40}"#, "temperature=F64(21.5),n=I64(40)");
    check(r#"{"on": true, "state": "open"}"#, r#"on=Bool(true),state=Text("open")"#);
    check(r#"{"ts": 1700000000000, "a": 1}"#, "@1700000000000000 a=I64(1)");
    check(r#"{"a": 1, "ts": 1.5}"#, "@1500 a=I64(1)");
    check(
        r#"{"big": 18446744073709551615, "min": -9223372036854775808}"#,
        "big=F64(1.8446744073709552e19),min=I64(-9223372036854775808)",
    );
    check(r#"{"sp\u0061ced name": "q\"\u00e9"}"#, r#"spaced name=Text("q\"é")"#);
    check(r#"{"id": 7, "a": 1}"#, "a=I64(1),id=I64(7)");
    check(
        r#"{"x": 73.96732207278498, "y": 2.7170580802059014e-110}"#,
        "x=F64(73.96732207278498),y=F64(2.7170580802059014e-110)",
    );
}

#[test]
fn wrapped_readings() {
    check(r#"{"ts": 1, "values": {"a": 1}}"#, "@1000 a=I64(1)");
    check(r#"{"values": {"a": 1}, "id": "x"}"#, "#a=I64(1)");
    check(r#"{"id": 9, "ts": 5, "values": {"id": 1, "ts": 2}}"#, "#@5000 id=I64(1),ts=I64(2)");
    check(
        r#"{"values": 7}"#,
        "invalid_value: values: invalid type: integer `7`, expected an object of metric and value at line 1 column 12",
    );
    check(r#"{"values": {"a": 1}, "values": {"b": 1}}"#, "invalid_value: values: given twice");
    check(r#"{"values": {"a": 1}, "b": 2}"#, "invalid_value: b: beside `values`; put it inside");
    check(r#"{"b": 2, "values": {"a": 1}}"#, "invalid_value: values: an object beside plain readings");
    check(r#"{"values": {"a": 1}, "id": true}"#, "invalid_value: id: a message id is a text or an integer");
    check(
        r#"{"ts": "now", "values": {"a": 1}}"#,
        "invalid_value: ts: a time is a number of milliseconds since 1970",
    );
    check(r#"{"ts": 1e300, "a": 1}"#, "invalid_value: ts: a time is a number of milliseconds since 1970");
}

#[test]
fn arrays_are_taken_whole() {
    check(r#"[{"a": 1}, {"ts": 2, "values": {"b": 2}}]"#, "a=I64(1) | @2000 b=I64(2)");
    check(r#"[{"a": 1}, {"b": null}]"#, "invalid_value: [1].b: null is no value; leave the reading out");
    check("[]", "payload_format: an empty array");
}

#[test]
fn what_cannot_be_stored_is_named() {
    check(
        r#"{"values": {"temperature": 1e999}}"#,
        "invalid_value: values.temperature: a number that is not finite",
    );
    check(r#"{"a": {"b": 1}}"#, "invalid_value: a: an object is no value");
    check(r#"{"a": [1]}"#, "invalid_value: a: an array is no value");
    check(r#"{"a": 1, "a": 2}"#, "invalid_value: a: given twice");
    check(r#"{"": 1}"#, "invalid_value: a metric must not be empty");
    check(r#"{"a\"b": 1}"#, r#"invalid_value: a"b: a metric must not contain '"'"#);
    check("{}", "payload_format: no reading in it");
    check(r#"{"ts": 1}"#, "payload_format: no reading in it");
    check(r#"{"a": 1} x"#, "payload_format: trailing characters at line 1 column 10");
    check(r#"{"a": NaN}"#, "payload_format: expected value at line 1 column 7");
    check(
        "7",
        "payload_format: invalid type: integer `7`, expected an object or an array of objects at line 1 column 1",
    );
    let many: Vec<String> = (0..1_001).map(|n| format!("\"m{n}\":1")).collect();
    check(&format!("{{{}}}", many.join(",")), "invalid_value: m1000: a record has at most 1000 readings");
    check(
        &format!("{{\"a\": \"{}\"}}", "x".repeat(16_385)),
        "invalid_value: a: a text has at most 16384 bytes",
    );
}

#[test]
fn a_refusal_does_not_repeat_what_it_refuses() {
    let long = "é".repeat(100_000);
    for json in [format!("\"{long}\""), format!("{{\"{long}\":1}}"), format!("{{\"values\":\"{long}\"}}")] {
        let arena = Bump::new();
        let fault = decode(json.as_bytes(), &arena).unwrap_err();
        assert!(fault.detail.len() <= 1 << 10 && fault.field.len() <= 512, "{} bytes", fault.detail.len());
        assert!(fault.detail.ends_with(|c: char| c == '…' || c.is_ascii()), "{fault}");
    }
}

#[test]
fn depth_is_refused_before_it_hurts() {
    for open in ["[", "{\"a\":"] {
        let arena = Bump::new();
        assert!(decode(open.repeat(500_000).as_bytes(), &arena).is_err());
    }
}

#[test]
fn a_name_given_twice_is_found_among_many() {
    let mut many: Vec<String> = (0..100).map(|n| format!("\"m{n}\":1")).collect();
    many.push("\"m50\":2".into());
    check(&format!("{{{}}}", many.join(",")), "invalid_value: m50: given twice");
}

fn any_value() -> impl Strategy<Value = serde_json::Value> {
    prop_oneof![
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_filter("finite", |f| f.is_finite()).prop_map(Into::into),
        ".{0,20}".prop_map(Into::into),
    ]
}

proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let arena = Bump::new();
        let _any = decode(&bytes, &arena);
    }

    #[test]
    fn never_panics_near_json(text in r#"[\[\]{}":,0-9eE.+\-a-c \\untrfals]{0,80}"#) {
        let arena = Bump::new();
        let _any = decode(text.as_bytes(), &arena);
    }

    #[test]
    fn takes_what_it_was_given(values in proptest::collection::btree_map("[a-z]{1,8}!", any_value(), 1..20)) {
        let json = serde_json::to_vec(&values).unwrap();
        let arena = Bump::new();
        let entries = decode(&json, &arena).unwrap();
        prop_assert_eq!(entries[0].readings.len(), values.len());
        for (reading, (metric, value)) in entries[0].readings.iter().zip(&values) {
            prop_assert_eq!(reading.metric, metric);
            let same = match reading.value {
                ValueRef::Bool(v) => value.as_bool() == Some(v),
                ValueRef::I64(v) => value.as_i64() == Some(v),
                ValueRef::F64(v) => value.as_f64() == Some(v),
                ValueRef::Text(v) => value.as_str() == Some(v),
            };
            prop_assert!(same, "{:?} is not {}", reading, value);
        }
    }
}
