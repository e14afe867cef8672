use std::io::Write;

use super::*;

fn read(text: &str) -> Result<Vec<(i64, String)>, String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let readings = Readings::open(file.path()).map_err(|e| e.to_string())?;
    readings
        .map(|reading| reading.map(|r| (r.unix_milliseconds, r.value)).map_err(|e| e.to_string()))
        .collect::<Result<_, _>>()
        .map_err(|e| e.rsplit_once("line ").map_or(e.clone(), |(_, rest)| rest.to_owned()))
}

#[test]
fn times_come_in_three_forms() {
    let text = "timestamp,value\n\
        2013-12-02 21:15:00,73.96732207\n\
        2013-12-02 21:15:00.123999,1\n\
        2013-12-02T22:15:00+01:00, -2.5e3\n\
        1386018900001,+.5\n";
    assert_eq!(
        read(text).unwrap(),
        [
            (1_386_018_900_000, "73.96732207".into()),
            (1_386_018_900_123, "1".into()),
            (1_386_018_900_000, "-2.5e3".into()),
            (1_386_018_900_001, "0.5".into()),
        ]
    );
}

#[test]
fn a_bad_line_is_named() {
    assert_eq!(read("timestamp,value\n1,2\nnoon,3\n").unwrap_err(), "3: \"noon\" is not a time");
    assert_eq!(read("timestamp,value\n1,NaN\n").unwrap_err(), "2: \"NaN\" is not a finite number");
    assert!(read("timestamp,value\n1,2\n1,2,3\n").unwrap_err().starts_with("3: "));
    assert!(read("time,value\n").unwrap_err().contains("must be timestamp,value, not \"time,value\""));
}

#[test]
fn a_message_is_one_reading_or_an_array() {
    let reading = |unix_milliseconds, value: &str| Reading { unix_milliseconds, value: value.into() };
    assert_eq!(message("t\"", &[reading(1, "2.0")]), r#"{"ts":1,"values":{"t\"":2.0}}"#);
    assert_eq!(
        message("t", &[reading(1, "2"), reading(3, "4")]),
        r#"[{"ts":1,"values":{"t":2}},{"ts":3,"values":{"t":4}}]"#
    );
}

#[test]
fn speeds_are_max_or_a_factor() {
    assert_eq!("max".parse(), Ok(Speed::Max));
    assert_eq!("60x".parse(), Ok(Speed::Times(60.0)));
    assert_eq!("0.5".parse(), Ok(Speed::Times(0.5)));
    assert!("0x".parse::<Speed>().is_err() && "fast".parse::<Speed>().is_err());
}
