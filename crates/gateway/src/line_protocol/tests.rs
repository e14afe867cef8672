use super::*;

#[track_caller]
fn check(text: &str, precision: &str, expect: &[&str]) {
    let arena = Bump::new();
    let reader = Reader {
        device_type: "pump",
        speaks_for_children: true,
        precision: Precision::of(precision).expect("a precision"),
        arena: &arena,
    };
    let shown: Vec<String> = reader
        .lines(text)
        .map(|(_, line)| match line {
            Err(fault) => format!("{}: {fault}", fault.reason.as_str()),
            Ok(line) => {
                let readings: Vec<String> =
                    line.entry.readings.iter().map(|r| format!("{}={:?}", r.metric, r.value)).collect();
                let time = line.entry.device_time.map(|t| t.to_string()).unwrap_or_default();
                format!("{}|{}|{time}", line.child.as_deref().unwrap_or_default(), readings.join(","))
            }
        })
        .collect();
    assert_eq!(shown, expect);
}

#[test]
fn fields_and_tags_become_readings() {
    check(
        "cpu,host=a usage=1.5,on=t,n=3i,s=\"x y\" 1700000000000000000",
        "ns",
        &[
            r#"|cpu.host=Text("a"),cpu.usage=F64(1.5),cpu.on=Bool(true),cpu.n=I64(3),cpu.s=Text("x y")|2023-11-14T22:13:20Z"#,
        ],
    );
}

#[test]
fn the_type_of_the_device_is_no_prefix_and_device_names_a_child() {
    check("pump,device=p-7 rpm=3u 1700000000", "s", &["p-7|rpm=I64(3)|2023-11-14T22:13:20Z"]);
    check("telemetry t=1", "ms", &["|t=F64(1.0)|"]);
}

#[test]
fn a_bad_line_does_not_spoil_the_others() {
    check(
        "# comment\n\npump a=1\npump a=,b\npump b=2\n",
        "s",
        &["|a=F64(1.0)|", "payload_format: No fields were provided", "|b=F64(2.0)|"],
    );
    check("pump a=1 9223372036854775807", "h", &["invalid_value: timestamp: beyond what a time can be"]);
    check("pump,device=a/b a=1", "s", &["invalid_value: device: a device must not contain '/'"]);
    check("pump a=1,a=2", "s", &["invalid_value: a: given twice"]);
}

#[test]
fn the_same_point_has_the_same_identity_whatever_the_precision() {
    let arena = Bump::new();
    let id = |text: &str, precision| {
        let reader = Reader { device_type: "pump", speaks_for_children: false, precision, arena: &arena };
        let (_, line) = reader.lines(&text.to_owned().leak()[..]).next().expect("a line");
        line.expect("a good line").entry.id
    };
    assert_eq!(id("pump a=1 5", Precision::Nanoseconds), id("pump a=1 5\n", Precision::Nanoseconds));
    assert_ne!(
        id("pump a=1 5", Precision::Microseconds(1)),
        id("pump a=1 5", Precision::Microseconds(1_000))
    );
    assert_eq!(id("pump a=1", Precision::Nanoseconds), None);
}
