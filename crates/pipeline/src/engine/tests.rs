use dunlin_model::{AlertPhase, MessageId, Reading, Readings, TimeSource, ValueRef};
use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// One record of a story: device, event second, receive second, value.
#[derive(Debug, Clone)]
struct Told {
    device: String,
    time: f64,
    received: f64,
    value: f64,
}

/// `60s 82`, with a device (`b: 60s 82`) and a receive time (`60s 82 @90s`) where they matter. The receive time is
/// the event time unless said.
fn told(story: &str) -> Vec<Told> {
    let seconds = |text: &str| text.trim().trim_end_matches('s').parse::<f64>().unwrap();
    let one = |part: &str| {
        let (device, rest) = part.split_once(':').unwrap_or(("d", part));
        let (said, received) = rest.split_once('@').unwrap_or((rest, ""));
        let mut words = said.split_whitespace();
        let time = seconds(words.next().unwrap());
        let value = words.next().unwrap().parse().unwrap();
        let received = if received.is_empty() { time } else { seconds(received) };
        Told { device: device.trim().into(), time, received, value }
    };
    story.split('|').map(one).collect()
}

fn at(seconds: f64) -> Timestamp {
    Timestamp::from_micros((seconds * 1e6) as i64)
}

fn record(told: &Told) -> Record<'_> {
    Record {
        tenant: "default",
        device: &told.device,
        device_type: "default",
        message_id: MessageId::None,
        received_at: at(told.received),
        device_time: None,
        time: at(told.time),
        // Without a device's clock to be set right: the story's times are what they are.
        time_source: TimeSource::Device,
        readings: Readings::from_iter([Reading { metric: "temperature", value: ValueRef::F64(told.value) }]),
    }
}

/// As of a device that says no times.
fn without_time(told: &Told) -> Record<'_> {
    Record { time: at(told.received), time_source: TimeSource::Server, ..record(told) }
}

/// As of a device that says the times.
fn with_time(told: &Told) -> Record<'_> {
    Record { device_time: Some(at(told.time)), ..record(told) }
}

fn rules(when: &str) -> RuleSet {
    RuleSet::parse(&format!("[[rule]]\nname = \"r\"\nwhen = '''{when}'''\n"), "r.toml").unwrap()
}

fn limits() -> Limits {
    Limits { lateness_millis: 0, ..Limits::default() }
}

fn restarted(engine: &Engine, limits: &Limits, rules: &RuleSet, out: &mut Vec<AlertTransition>) -> Engine {
    let bytes = postcard::to_stdvec(&engine.state()).unwrap();
    Engine::restore(limits.clone(), rules, vec![postcard::from_bytes(&bytes).unwrap()], out).unwrap()
}

/// The transitions of a story, cut and taken up again before each of `cuts`.
fn run(limits: &Limits, rules: &RuleSet, story: &[Told], cuts: &[usize]) -> Vec<AlertTransition> {
    let mut out = Vec::new();
    let mut engine = Engine::new(limits.clone(), rules);
    for (n, told) in story.iter().enumerate() {
        if cuts.contains(&n) {
            engine = restarted(&engine, limits, rules, &mut out);
            for (m, earlier) in story[..n].iter().enumerate() {
                engine.remember(&record(earlier), Offset(m as u64));
            }
        }
        engine.evaluate(&record(told), Offset(n as u64), &mut out);
    }
    out
}

#[track_caller]
fn check_with(limits: &Limits, rule: &str, story: &str, expect: Expect) {
    let (rules, story) = (rules(rule), told(story));
    let whole = run(limits, &rules, &story, &[]);
    let many = story.iter().any(|t| t.device != "d");
    let said = whole.iter().map(|t| {
        let device = if many { format!("{}: ", t.device) } else { String::new() };
        let phase = format!("{:?}", t.phase).to_lowercase();
        format!("{device}{}s {phase} {}", t.at.as_micros() as f64 / 1e6, t.value)
    });
    expect.assert_eq(&said.collect::<Vec<_>>().join(" | "));
    for cut in 0..story.len() {
        assert_eq!(run(limits, &rules, &story, &[cut]), whole, "restarted before record {cut}");
    }
    assert_eq!(run(limits, &rules, &story, &(0..story.len()).collect::<Vec<_>>()), whole, "restarted always");
}

#[track_caller]
fn check(rule: &str, story: &str, expect: Expect) {
    check_with(&limits(), rule, story, expect);
}

#[test]
fn a_plain_threshold_fires_at_once_and_clears_when_it_is_false() {
    check(
        "temperature > 80",
        "0s 79 | 1s 81 | 2s 90 | 3s 80 | 4s 99",
        expect!["1s firing 81 | 3s resolved 80 | 4s firing 99"],
    );
}

#[test]
fn fires_after_hold_time() {
    check("temperature > 80 for 2m", "0s 81 | 60s 82 | 120s 83", expect!["0s pending 81 | 120s firing 83"]);
    check(
        "temperature > 80 for 2m",
        "0s 81 | 60s 79 | 120s 83 | 239s 84",
        expect!["0s pending 81 | 60s cancelled 79 | 120s pending 83"],
    );
}

#[test]
fn stays_firing_between_threshold_and_clear() {
    check(
        "temperature > 80, clear below 75",
        "0s 81 | 1s 78 | 2s 75 | 3s 81 | 4s 74.9 | 5s 78",
        expect!["0s firing 81 | 4s resolved 74.9"],
    );
    check(
        "temperature > 80 for 10s, clear below 75",
        "0s 81 | 5s 78 | 12s 81",
        expect!["0s pending 81 | 5s cancelled 78 | 12s pending 81"],
    );
    check("temperature < 5, clear above 8", "0s 4 | 1s 7 | 2s 8.1", expect!["0s firing 4 | 2s resolved 8.1"]);
}

#[test]
fn a_window_is_judged_when_the_watermark_passes_its_end() {
    check(
        "avg(temperature) over 1m > 80",
        "0s 70 | 30s 100 | 59s 79 | 60s 10 | 119s 10 | 120s 0",
        expect!["60s firing 83 | 120s resolved 10"],
    );
}

#[test]
fn windows_hold_until_the_span_is_long_enough() {
    check(
        "avg(temperature) over 1m > 80 for 2m, clear below 75",
        "0s 81 | 60s 82 | 120s 78 | 180s 74 | 240s 0",
        expect!["60s pending 81 | 120s firing 82 | 240s resolved 74"],
    );
    check(
        "avg(temperature) over 1m > 80 for 2m",
        "0s 81 | 120s 82 | 180s 83 | 240s 0",
        expect!["60s pending 81 | 120s cancelled 81 | 180s pending 82 | 240s firing 83"],
    );
}

#[test]
fn hopping_windows_overlap() {
    check(
        "max(temperature) over 3m every 1m >= 3",
        "0s 1 | 60s 3 | 120s 1 | 180s 1 | 240s 1 | 300s 1",
        expect!["120s firing 3 | 300s resolved 1"],
    );
    check(
        "sum(temperature) over 2m every 1m > 3",
        "0s 2 | 60s 2 | 120s 1 | 180s 0",
        expect!["120s firing 4 | 180s resolved 3"],
    );
    check(
        "last(temperature) over 1m != 5",
        "0s 1 | 10s 5 | 60s 4 | 120s 5 | 180s 0",
        expect!["120s firing 4 | 180s resolved 5"],
    );
    check(
        "count(temperature) over 1m >= 3",
        "0s 1 | 1s 1 | 2s 1 | 60s 0 | 120s 0",
        expect!["60s firing 3 | 120s resolved 1"],
    );
    check("min(temperature) over 1m < 3", "0s 9 | 1s 2 | 60s 0", expect!["60s firing 2"]);
}

#[test]
fn late_records_change_nothing_and_early_enough_ones_count() {
    check("max(temperature) over 1m > 80", "0s 1 | 70s 1 | 50s 99 | 130s 1", expect![""]);
    let lenient = Limits { lateness_millis: 30_000, ..limits() };
    check_with(
        &lenient,
        "max(temperature) over 1m > 80",
        "0s 1 | 70s 1 | 50s 99 | 150s 1",
        expect!["60s firing 99 | 120s resolved 1"],
    );
    check("temperature > 80", "10s 1 | 5s 99 | 11s 1", expect![""]);
}

#[test]
fn a_replay_of_old_data_beside_live_data_is_judged_by_its_own_time() {
    check(
        "avg(temperature) over 1m > 80",
        "a: 1000000s 1 | b: 0s 90 @1000000s | b: 60s 90 @1000000s | a: 1000060s 99 @1000060s | a: 1000120s 1 @1000120s",
        expect!["b: 60s firing 90 | a: 1000080s firing 99"],
    );
}

#[test]
fn a_silent_device_closes_its_window_at_the_pace_of_the_others() {
    check(
        "avg(temperature) over 1m > 80",
        "b: 30s 99 | a: 31s 1 | a: 69s 1 | a: 70s 1 | a: 71s 1",
        expect!["b: 60s firing 99"],
    );
}

#[test]
fn a_tick_closes_windows_when_nobody_speaks() {
    let rules = rules("avg(temperature) over 1m > 80");
    let mut engine = Engine::new(limits(), &rules);
    let mut out = Vec::new();
    engine.evaluate(&record(&told("30s 99")[0]), Offset(0), &mut out);
    engine.tick(at(69.0), at(69.0), &mut out);
    assert!(out.is_empty());
    engine.tick(at(70.0), at(70.0), &mut out);
    assert_eq!(out.len(), 1);
    assert_eq!((out[0].at, engine.window_count()), (at(60.0), 0));
}

#[test]
fn a_tick_goes_no_further_than_what_is_settled() {
    let rules = rules("avg(temperature) over 1m > 80");
    let mut engine = Engine::new(limits(), &rules);
    let mut out = Vec::new();
    engine.evaluate(&record(&told("30s 99")[0]), Offset(0), &mut out);
    // Far behind the clock, which is no clock set back.
    engine.evaluate(&record(&told("b: 50s 1 @69s")[0]), Offset(1), &mut out);
    engine.tick(at(500.0), at(5.0), &mut out);
    engine.tick(at(500.0), at(69.0), &mut out);
    assert_eq!(engine.evaluate(&record(&told("35s 1 @35s")[0]), Offset(2), &mut out), Fate::Evaluated);
    engine.tick(at(500.0), at(500.0), &mut out);
    assert_eq!(out, [], "the average was closed with the record that came late into the journal");
}

#[test]
fn a_device_is_forgotten_after_its_time_and_what_it_fired_is_resolved() {
    let limits = Limits { device_ttl_seconds: 100, ..limits() };
    check_with(
        &limits,
        "temperature > 80",
        "b: 0s 99 | a: 50s 1 | a: 100s 1 | b: 101s 99",
        expect!["b: 0s firing 99 | b: 0s resolved 80 | b: 101s firing 99"],
    );
}

#[test]
fn devices_have_a_ceiling() {
    let limits = Limits { devices_max: 3, ..limits() };
    let story: Vec<_> = (0..50)
        .map(|n| Told {
            device: format!("d{}", n % 10),
            time: f64::from(n),
            received: f64::from(n),
            value: 99.0,
        })
        .collect();
    let rules = rules("temperature > 80");
    let mut engine = Engine::new(limits.clone(), &rules);
    let mut out = Vec::new();
    for (told, n) in story.iter().zip(0..) {
        engine.evaluate(&record(told), Offset(n), &mut out);
        assert!(engine.device_count() <= 3);
    }
    assert_eq!((engine.evicted_count(), engine.forgotten_count()), (47, 0));
    let cuts: Vec<_> = (0..50).collect();
    assert_eq!(run(&limits, &rules, &story, &cuts), out);
}

#[test]
fn copies_are_not_evaluated() {
    let rules = rules("sum(temperature) over 1m > 3");
    let mut engine = Engine::new(limits(), &rules);
    let mut out = Vec::new();
    let told = told("0s 2 | 0s 2 | 60s 0");
    let fates: Vec<_> = (0..)
        .zip(&told)
        .map(|(n, told)| {
            let record = Record { message_id: MessageId::Given(told.value as u64), ..record(told) };
            engine.evaluate(&record, Offset(n), &mut out)
        })
        .collect();
    assert_eq!(fates, [Fate::Evaluated, Fate::Copy, Fate::Evaluated]);
    assert!(out.is_empty());
    assert_eq!(
        engine.accounts()["default"],
        Account { read: 3, evaluated: 2, copies: 1, ..Account::default() }
    );
}

#[test]
fn reloading_keeps_what_unchanged_rules_know() {
    let both = RuleSet::parse(
        "[[rule]]\nname=\"a\"\nwhen=\"temperature > 80 for 10s\"\n[[rule]]\nname=\"b\"\nwhen=\"temperature > 70\"\n",
        "r.toml",
    ).unwrap();
    let one = RuleSet::parse(
        "[[rule]]\nname=\"c\"\nwhen=\"temperature > 60\"\n[[rule]]\nname=\"a\"\nwhen=\"temperature > 80 for 10s\"\nseverity=\"critical\"\n",
        "r.toml",
    ).unwrap();
    let story = told("0s 90 | 10s 90");
    let names = |out: &[AlertTransition]| -> Vec<String> {
        out.iter().map(|t| format!("{} {:?}", t.rule, t.phase)).collect()
    };
    for restart in [false, true] {
        let mut out = Vec::new();
        let mut engine = Engine::new(limits(), &both);
        engine.evaluate(&record(&story[0]), Offset(0), &mut out);
        assert_eq!(names(&out), ["a Pending", "b Firing"]);
        out.clear();
        match restart {
            true => engine = restarted(&engine, &limits(), &one, &mut out),
            false => engine.reload(&one, &mut out),
        }
        assert_eq!(names(&out), ["b Resolved"]);
        out.clear();
        engine.evaluate(&record(&story[1]), Offset(1), &mut out);
        assert_eq!(names(&out), ["a Firing", "c Firing"]);
    }
}

#[test]
fn rules_choose_devices_types_and_tenants() {
    let text = r#"
        [[rule]]
        name = "pumps"
        when = "temperature > 1"
        devices = "pump-*"
        [[rule]]
        name = "one"
        when = "temperature > 1"
        devices = "pump-7"
        [[rule]]
        name = "type"
        when = "temperature > 1"
        device_type = "boiler"
        [[rule]]
        name = "tenant"
        when = "temperature > 1"
        tenant = "acme"
    "#;
    let rules = RuleSet::parse(text, "r.toml").unwrap();
    let who = |tenant, device, device_type| {
        let told = &told("0s 2")[0];
        let mut out = Vec::new();
        let record = Record { tenant, device, device_type, ..record(told) };
        Engine::new(limits(), &rules).evaluate(&record, Offset(0), &mut out);
        let mut names: Vec<_> = out.into_iter().map(|t| t.rule).collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(who("default", "pump-1", "default"), "pumps");
    assert_eq!(who("default", "pump-7", "boiler"), "one pumps type");
    assert_eq!(who("acme", "fan", "default"), "tenant");
    assert_eq!(who("default", "fan", "default"), "");
}

#[test]
fn what_breaks_on_a_record_costs_its_device_only() {
    let rules = rules("sum(temperature) over 1m > 3");
    let mut engine = Engine::new(limits(), &rules);
    let mut out = Vec::new();
    let story = told("a: 0s 1 | b: 0s 1 | a: 1s 1");
    engine.evaluate(&without_time(&story[0]), Offset(0), &mut out);
    engine.evaluate(&without_time(&story[1]), Offset(1), &mut out);
    // A rule without its window: what a bug would leave behind.
    let slot = engine.find("default", "a", device_hash("default", "a")).unwrap();
    engine.devices[slot as usize].as_mut().unwrap().windows.clear();
    assert_eq!(engine.evaluate(&without_time(&story[2]), Offset(2), &mut out), Fate::Failed);
    assert_eq!(engine.device_count(), 1);
    assert_eq!(engine.evaluate(&without_time(&story[2]), Offset(3), &mut out), Fate::Evaluated);
}

#[test]
fn a_rule_that_breaks_on_a_silent_device_costs_that_device_alone() {
    let rules = rules("avg(temperature) over 1m > 80");
    let mut engine = Engine::new(limits(), &rules);
    let mut out = Vec::new();
    let story = told("a: 0s 90 | b: 0s 90");
    engine.evaluate(&record(&story[0]), Offset(0), &mut out);
    engine.evaluate(&record(&story[1]), Offset(1), &mut out);
    let slot = engine.find("default", "a", device_hash("default", "a")).unwrap();
    engine.devices[slot as usize].as_mut().unwrap().cells[0].rule = 77;

    engine.tick(at(200.0), at(200.0), &mut out);
    let fired: Vec<_> = out.iter().map(|t| (t.device.as_str(), t.phase)).collect();
    assert_eq!(fired, [("b", AlertPhase::Firing)]);
    let broken = Broken { tenant: "default".into(), device: "a".into() };
    assert_eq!((engine.take_broken(), engine.take_broken()), (vec![broken], vec![]));
    let again = &told("a: 210s 90")[0];
    assert_eq!(engine.evaluate(&record(again), Offset(2), &mut out), Fate::Evaluated);
}

/// What the records of one device bring about up to a time, as `at phase value`.
fn said_of(rule: &str, records: &[Record<'_>], until: f64) -> String {
    let (rules, mut out) = (rules(rule), Vec::new());
    let mut engine = Engine::new(Limits::default(), &rules);
    for (record, n) in records.iter().zip(0..) {
        engine.evaluate(record, Offset(n), &mut out);
    }
    engine.tick(at(until), at(until), &mut out);
    let line = |t: &AlertTransition| {
        format!("{}s {:?} {}", t.at.as_micros() as f64 / 1e6, t.phase, t.value).to_lowercase()
    };
    out.iter().map(line).collect::<Vec<_>>().join(" | ")
}

#[test]
fn a_device_that_says_no_times_is_judged_at_once_in_the_order_of_arrival() {
    // Also those of one moment, and those that another thread stamped a little earlier.
    let story = told("10s 90 | 10s 20 | 10s 91 | 9.9s 21 | 12s 92");
    let story: Vec<_> = story.into_iter().map(|told| Told { received: told.time, ..told }).collect();
    let records: Vec<_> = story.iter().map(without_time).collect();
    let said = said_of("temperature > 80", &records, 12.0);
    let expected =
        "10s firing 90 | 10s resolved 20 | 10.000001s firing 91 | 10.000001s resolved 21 | 12s firing 92";
    assert_eq!(said, expected);
}

#[test]
fn once_a_device_has_said_a_time_its_records_wait_for_those_before_them() {
    let story = told("10s 20 @10s | 11s 90 @11s | 10.5s 30 @11.1s | 11.5s 91 @11.5s | 13s 20 @13s");
    let mut records: Vec<_> = story.iter().map(with_time).collect();
    records[3] = without_time(&story[3]);
    assert_eq!(said_of("temperature > 80", &records, 13.0), "11s firing 90", "the last may not be the last");
}

proptest! {
    /// What is decided at once is what is decided when everything is known.
    #[test]
    fn not_to_wait_for_who_says_no_times_changes_nothing(
        steps in prop::collection::vec((0u8..3, 60f64..100.0), 1..80),
        rule in prop::sample::select(vec![
            "temperature > 80",
            "temperature > 80 for 3s, clear below 75",
            "avg(temperature) over 5s > 80",
            "rate(temperature) > 2",
            "no data for 2s",
        ]),
    ) {
        let mut now = 1_000.0;
        let story: Vec<_> = steps.into_iter().map(|(step, value)| {
            // Never two at one moment: those with a time are put in the order of what is in them.
            now += f64::from(step) + 0.001;
            Told { device: "d".into(), time: now, received: now, value }
        }).collect();
        let at_once: Vec<_> = story.iter().map(without_time).collect();
        let waiting: Vec<_> = story.iter().map(record).collect();
        prop_assert_eq!(said_of(rule, &at_once, 9_000.0), said_of(rule, &waiting, 9_000.0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_run_cut_anywhere_says_the_same(
        readings in prop::collection::vec((0u8..5, -20i32..40, 0u32..30, 60f64..100.0), 1..120),
        cuts in prop::collection::vec(0usize..120, 0..6),
        rule in prop::sample::select(vec![
            "temperature > 80 for 20s, clear below 75",
            "avg(temperature) over 1m > 80, clear below 78",
            "max(temperature) over 1m every 20s > 90 for 1m",
            "last(temperature) over 30s every 10s < 70",
            "avg(temperature) over sliding 40s > 80",
            "range(temperature) over session 15s > 20",
            "rate(temperature) > 2 for 5s",
            "no data for 20s",
            "stuck(temperature) for 10s or no data(temperature) for 40s",
            "temperature > 75 and not max(temperature) over 20s < 90 for 10s",
        ]),
        lateness_millis in prop::sample::select(vec![0u64, 5_000, 30_000]),
        devices_max in 2usize..6,
    ) {
        let limits = Limits {
            lateness_millis, devices_max, device_ttl_seconds: 120, ..Limits::default()
        };
        let mut now = 1_000.0;
        let story: Vec<_> = readings.into_iter().map(|(device, skew, step, value)| {
            now += f64::from(step);
            Told { device: format!("d{device}"), time: now + f64::from(skew), received: now, value }
        }).collect();
        let rules = rules(rule);
        let whole = run(&limits, &rules, &story, &[]);
        prop_assert_eq!(run(&limits, &rules, &story, &cuts), whole);
    }

    #[test]
    fn an_episode_is_named_once(values in prop::collection::vec((0u8..3, 70f64..90.0), 1..80)) {
        let mut now = 0.0;
        let story: Vec<_> = values.into_iter().map(|(step, value)| {
            now += f64::from(step);
            Told { device: "d".into(), time: now, received: now, value }
        }).collect();
        let said = run(&limits(), &rules("temperature > 80 for 1s"), &story, &[]);
        let ids: std::collections::HashSet<_> = said.iter().map(|t| t.id).collect();
        prop_assert_eq!(ids.len(), said.len());
    }
}

#[test]
fn a_window_of_huge_values_has_a_value() {
    let rules = rules("avg(temperature) over 4s every 2s > 80");
    let story = told("0s 1e308 | 1s 1e308 | 2s -1e308 | 3s -1e308 | 4s 0 | 6s 0 | 8s 0 | 10s 0");
    let said = run(&limits(), &rules, &story, &[]);
    assert!(!said.is_empty() && said.iter().all(|t| t.value.is_finite()), "{said:?}");
}

#[test]
fn a_server_clock_that_was_ahead_is_forgotten_when_it_is_right_again() {
    for ahead in [3_600.0, 400.0 * 86_400.0] {
        let rules = rules("avg(temperature) over 10s > 80");
        let mut engine = Engine::new(limits(), &rules);
        let mut out = Vec::new();
        let mut offset = 0;
        let mut say = |engine: &mut Engine, at: f64, value: u32, out: &mut Vec<AlertTransition>| {
            offset += 1;
            engine.evaluate(&without_time(&told(&format!("{at}s {value}"))[0]), Offset(offset), out)
        };
        for second in 0..20 {
            say(&mut engine, f64::from(second), 1, &mut out);
        }
        engine.tick(at(20.0 + ahead), at(20.0 + ahead), &mut out);
        say(&mut engine, 21.0 + ahead, 1, &mut out);
        for second in 22..60 {
            let fate = say(&mut engine, f64::from(second), 99, &mut out);
            assert_eq!(fate, Fate::Evaluated, "at {second} s after {ahead} s ahead");
            engine.tick(at(f64::from(second) - 2.0), at(f64::from(second) - 2.0), &mut out);
        }
        let said: Vec<_> = out.iter().map(|t| (t.phase, t.at)).collect();
        assert_eq!(said, [(AlertPhase::Firing, at(30.0))]);
    }
}

#[test]
fn checkpoints_of_changes_go_on_after_other_rules_came() {
    let (before, after) = (rules("temperature > 80 for 1m"), rules("temperature > 70 for 1m"));
    let (mut engine, mut out) = (Engine::new(limits(), &before), Vec::new());
    let story = told("a: 0s 90 | a: 10s 90 | a: 20s 90");
    let mut records = story.iter().map(record).zip((0..).map(Offset));
    let mut next = |engine: &mut Engine| {
        let (record, offset) = records.next().unwrap();
        engine.evaluate(&record, offset, &mut out);
    };
    next(&mut engine);
    engine.changes(true);
    next(&mut engine);
    engine.reload(&after, &mut Vec::new());
    let base = engine.changes(true);
    next(&mut engine);
    let changed = engine.changes(false);
    let restored = Engine::restore(limits(), &after, vec![base, changed], &mut Vec::new()).unwrap();
    let bytes = |engine: &Engine| postcard::to_stdvec(&engine.state()).unwrap();
    assert_eq!(bytes(&restored), bytes(&engine));
}

#[test]
fn sliding_windows_are_judged_at_every_reading() {
    check(
        "avg(temperature) over sliding 1m > 80",
        "0s 70 | 30s 100 | 59s 80 | 61s 60 | 95s 60",
        expect!["30s firing 85 | 61s resolved 80"],
    );
}

#[test]
fn sessions_end_with_a_gap() {
    check(
        "count(temperature) over session 1m >= 3",
        "0s 1 | 50s 1 | 100s 1 | 200s 1 | 300s 1",
        expect!["160s firing 3 | 260s resolved 1"],
    );
    check("range(temperature) over session 30s > 10", "0s 1 | 20s 15 | 60s 1", expect!["50s firing 14"]);
    check("change(temperature) over 1m < -5", "0s 9 | 30s 20 | 59s 3 | 60s 0", expect!["60s firing -6"]);
    check("first(temperature) over 1m == 9", "0s 9 | 30s 20 | 60s 0", expect!["60s firing 9"]);
}

#[test]
fn a_rate_is_the_change_by_time() {
    check(
        "rate(temperature) per 1m > 5, clear below 2",
        "0s 20 | 60s 24 | 120s 30 | 180s 34 | 240s 35 | 300s 45",
        expect!["120s firing 6 | 240s resolved 1 | 300s firing 10"],
    );
}

#[test]
fn silence_is_noticed_when_it_is_due() {
    check(
        "no data for 1m",
        "a: 0s 1 | b: 0s 1 | b: 30s 1 | b: 60s 1 | b: 61s 1 | a: 90s 1",
        expect!["a: 60s firing 60 | a: 90s resolved 0"],
    );
    check("no data for 1m for 30s", "a: 0s 1 | b: 80s 1 | b: 89s 1 | b: 91s 1", expect!["a: 60s firing 60"]);
}

#[test]
fn a_wait_that_a_reading_has_put_off_makes_nothing_late() {
    let rules = rules("no data for 20s");
    let mut engine = Engine::new(limits(), &rules);
    let mut out = Vec::new();
    let story = told("0s 1 | 10s 1 @16s | b: 26.5s 1 | 19s 1 @27s");
    let fates: Vec<_> =
        story.iter().zip(0..).map(|(told, n)| engine.evaluate(&record(told), Offset(n), &mut out)).collect();
    assert_eq!(fates, [Fate::Evaluated; 4]);
    assert_eq!(out, []);
}

#[test]
fn what_is_due_comes_in_its_order_also_after_a_wait_was_put_off() {
    check(
        "no data for 20s",
        "a: 0s 1 | b: 5s 1 | a: 10s 1 | c: 60s 1",
        expect!["b: 25s firing 20 | a: 30s firing 20"],
    );
}

#[test]
fn a_hold_is_over_when_it_is_due() {
    check(
        "temperature > 80 for 1m",
        "a: 0s 90 | b: 59s 1 | b: 61s 1 | a: 70s 90",
        expect!["a: 0s pending 90 | a: 60s firing 90"],
    );
}

#[test]
fn a_window_that_is_missing_ends_what_is_pending() {
    check(
        "avg(temperature) over 1m > 80 for 3m",
        "0s 90 | 60s 90 | 190s 90 | 250s 90 | 310s 90 | 380s 90",
        expect!["60s pending 90 | 180s cancelled 90 | 240s pending 90 | 360s firing 90"],
    );
}

#[test]
fn a_value_that_does_not_change_is_stuck_while_it_comes() {
    check(
        "stuck(temperature) for 1m",
        "0s 5 | 30s 5 | 60s 5 | 90s 6 | 300s 6",
        expect!["60s firing 60 | 90s resolved 0 | 300s firing 210"],
    );
}

#[test]
fn tests_are_joined() {
    check(
        "temperature > 80 and max(temperature) over 1m > 90 for 1m",
        "0s 95 | 61s 85 | 100s 95 | 121s 85 | 130s 95 | 150s 70",
        expect!["60s firing 95 | 150s resolved 70"],
    );
    check(
        "temperature > 80 or temperature < 10",
        "0s 50 | 1s 90 | 2s 5 | 3s 50",
        expect!["1s firing 90 | 3s resolved 50"],
    );
    check("not temperature > 80", "0s 90 | 1s 50 | 2s 90", expect!["1s firing 50 | 2s resolved 90"]);
    check(
        "temperature > 80 clear below 70 and not no data for 10m",
        "0s 90 | 1s 75 | 2s 60",
        expect!["0s firing 90 | 2s resolved 60"],
    );
}

/// The transitions of a rule over records with several metrics, written as in a rule's own tests.
#[track_caller]
fn check_rule(rule: &str, expect: Expect) {
    let text = format!("[[rule]]\nname = \"r\"\n{rule}");
    let rules = RuleSet::parse(&text, "r.toml").unwrap();
    let rule = rules.rules()[0].clone();
    let said = crate::proof::run(&rule, &rule.tests[0]);
    let said = said.iter().map(|t| {
        let after = t.at.since(rule.tests[0].start).as_secs_f64();
        format!("{after}s {} {:?}", format!("{:?}", t.phase).to_lowercase(), t.severity)
    });
    expect.assert_eq(&said.collect::<Vec<_>>().join(" | "));
}

#[test]
fn several_metrics_of_a_record_are_seen_together() {
    check_rule(
        r#"when = "temperature > 80 and fan < 10"
        [[rule.test]]
        name = "t"
        readings = "0s temperature=90 fan=20 | 1s fan=5 temperature=70 | 2s temperature=90 | 3s fan=15""#,
        expect!["2s firing Warning | 3s resolved Warning"],
    );
    check_rule(
        r#"expression = "temperature > 3 * ambient AND mode = 'run'"
        for = "10s"
        [[rule.test]]
        name = "t"
        readings = "0s temperature=90 ambient=20 mode='idle' | 1s mode='run' | 12s ambient=20 | 13s ambient=40""#,
        expect!["1s pending Warning | 11s firing Warning | 13s resolved Warning"],
    );
}

#[test]
fn a_fence_is_crossed() {
    check_rule(
        r#"when = "position(lat, lon) outside circle(52.52 13.405, 500m)"
        [[rule.test]]
        name = "t"
        readings = "0s lat=52.52 lon=13.405 | 1s lat=52.53 lon=13.405 | 2s lat=52.521 lon=13.405""#,
        expect!["1s firing Warning | 2s resolved Warning"],
    );
}

#[test]
fn an_alert_escalates_and_deescalates() {
    check_rule(
        r#"when = "temperature > 80, clear below 75"
        severity = "warning"
        [[rule.level]]
        when = "temperature > 90 for 10s"
        severity = "critical"
        [[rule.test]]
        name = "t"
        readings = "0s 85 | 5s 95 | 16s 95 | 20s 85 | 30s 99 | 41s 70""#,
        expect![
            "0s firing Warning | 15s firing Critical | 20s firing Warning | 40s firing Critical | 41s resolved Critical"
        ],
    );
    check_rule(
        r#"when = "temperature > 80 for 1m"
        severity = "warning"
        [[rule.level]]
        when = "temperature > 90"
        severity = "critical"
        [[rule.test]]
        name = "t"
        readings = "0s 95 | 5s 85 | 70s 85 | 71s 70""#,
        expect![
            "0s firing Critical | 5s resolved Critical | 5s pending Warning | 60s firing Warning | 71s resolved Warning"
        ],
    );
}

#[test]
fn a_rule_counts_in_its_hours_only() {
    check_rule(
        r#"when = "temperature > 80"
        active = "Mon-Fri 08:00-18:00 Europe/Berlin"
        [[rule.test]]
        name = "t"
        start = "2026-07-01T05:00:00Z"
        readings = "0s 90 | 2h 91 | 12h 92"
        until = "26h""#,
        expect!["3600s firing Warning | 39600s resolved Warning | 90000s firing Warning"],
    );
}

#[test]
fn the_end_of_a_window_is_not_missed_beside_a_longer_wait() {
    check_rule(
        r#"when = "no data for 1h"
        severity = "info"
        [[rule.level]]
        when = "max(temperature) over 10s > 90"
        severity = "critical"
        [[rule.test]]
        name = "t"
        readings = "0s temperature=95 | 5s temperature=95 | 12s temperature=20 | 14s temperature=20 | 31s temperature=20""#,
        expect!["10s firing Critical | 20s resolved Critical"],
    );
    check_rule(
        r#"when = "no data for 1h"
        severity = "info"
        [[rule.level]]
        when = "count(temperature) over session 10s >= 2"
        severity = "critical"
        [[rule.test]]
        name = "t"
        readings = "0s temperature=1 | 5s temperature=1 | 20s temperature=1 | 40s temperature=1""#,
        expect!["15s firing Critical | 30s resolved Critical"],
    );
}

#[test]
fn rules_over_the_same_window_share_it_until_one_comes_later() {
    let rule = |name: &str, aggregate: &str| {
        format!("[[rule]]\nname = \"{name}\"\nwhen = \"{aggregate}(temperature) over 1m > 2\"\n")
    };
    let set = |text: String| RuleSet::parse(&text, "r.toml").unwrap();
    let two = set(rule("most", "max") + &rule("sum", "sum"));
    let three = set(rule("most", "max") + &rule("count", "count") + &rule("sum", "sum"));
    let story = told("0s 1 | 10s 2 | 20s 2 | 60s 0");
    for restart in [false, true] {
        let (mut engine, mut out) = (Engine::new(limits(), &two), Vec::new());
        engine.evaluate(&record(&story[0]), Offset(0), &mut out);
        assert_eq!(engine.window_count(), 1);
        match restart {
            true => engine = restarted(&engine, &limits(), &three, &mut out),
            false => engine.reload(&three, &mut out),
        }
        for (told, n) in story[1..].iter().zip(1..) {
            engine.evaluate(&record(told), Offset(n), &mut out);
        }
        // What came before it, the rule that is new has not seen.
        let said: Vec<_> = out.iter().map(|t| format!("{} {}", t.rule, t.value)).collect();
        assert_eq!(said, ["sum 5"]);
        assert_eq!(engine.window_count(), 2);
    }
}

proptest! {
    #[test]
    fn rules_together_say_what_each_says_alone(
        readings in prop::collection::vec((0u8..4, 0u32..30, 60f64..100.0), 1..120),
        cuts in prop::collection::vec(0usize..120, 0..4),
        chosen in prop::sample::subsequence(vec![
            "temperature > 80",
            "temperature > 80 for 20s, clear below 75",
            "not temperature > 85",
            "avg(temperature) over 20s > 80, clear below 78",
            "max(temperature) over 20s > 90",
            "max(temperature) over 20s > 90 for 1m",
            "count(temperature) over 20s > 2 or temperature > 95",
            "min(temperature) over 1m every 20s < 70",
            "change(temperature) over 1m every 20s > 0 for 1m",
            "not avg(temperature) over 20s > 80",
            "no data for 30s",
        ], 2..8),
    ) {
        let mut now = 1_000.0;
        let end = (0..4).map(|device| (device, 1_000, 75.0));
        let story: Vec<_> = readings.into_iter().chain(end).map(|(device, step, value)| {
            now += f64::from(step);
            Told { device: format!("d{device}"), time: now, received: now, value }
        }).collect();
        let text = |n: usize, when: &str| format!("[[rule]]\nname = \"r{n}\"\nwhen = \"{when}\"\n");
        let each: Vec<_> = chosen.iter().enumerate().map(|(n, when)| text(n, when)).collect();
        let set = |text: &str| RuleSet::parse(text, "r.toml").unwrap();
        // When something is noticed, and so the order of devices, may be another.
        let by_device = |mut said: Vec<AlertTransition>| {
            said.sort_by(|a, b| a.device.cmp(&b.device));
            said
        };
        let together = by_device(run(&limits(), &set(&each.concat()), &story, &cuts));
        for (n, rule) in each.iter().enumerate() {
            let name = format!("r{n}");
            let of_rule: Vec<_> = together.iter().filter(|t| t.rule == name).cloned().collect();
            prop_assert_eq!(of_rule, by_device(run(&limits(), &set(rule), &story, &[])));
        }
    }
}

/// Records of one device, in the order of time, and an order of arrival in which none is overtaken by one that is
/// later by the lateness or more.
fn shuffled(lateness: f64) -> impl Strategy<Value = (Vec<Told>, Vec<Told>)> {
    let one = (0u32..8, 60f64..100.0, 0.0..lateness);
    prop::collection::vec(one, 1..80).prop_map(|steps| {
        let mut time = 1_000.0;
        let mut told: Vec<(f64, Told)> = Vec::new();
        for (step, value, delay) in steps {
            time += f64::from(step);
            told.push((time + delay, Told { device: "d".into(), time, received: 0.0, value }));
        }
        let in_order = told.iter().map(|(_, told)| told.clone()).collect();
        told.sort_by(|a, b| a.0.total_cmp(&b.0));
        (in_order, told.into_iter().map(|(_, told)| told).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn the_order_of_arrival_does_not_matter_within_the_lateness(
        (in_order, arrived) in shuffled(10.0),
        rule in prop::sample::select(vec![
            "temperature > 80 for 20s, clear below 75",
            "temperature > 80",
            "avg(temperature) over 20s > 80, clear below 78",
            "sum(temperature) over sliding 15s > 300",
            "last(temperature) over session 6s > 90",
            "rate(temperature) > 2",
            "no data for 6s",
            "stuck(temperature) for 3s",
            "temperature > 75 and max(temperature) over 20s > 90 or no data for 7s",
        ]),
    ) {
        let limits = Limits { lateness_millis: 10_000, ..Limits::default() };
        let rules = rules(rule);
        let end = Told { device: "d".into(), time: 5_000.0, received: 0.0, value: 50.0 };
        let run = |mut story: Vec<Told>| {
            story.push(end.clone());
            run(&limits, &rules, &story, &[])
        };
        prop_assert_eq!(run(arrived), run(in_order));
    }
}
