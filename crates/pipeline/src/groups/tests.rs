use dunlin_model::{AlertPhase, Slot};
use proptest::prelude::*;

use super::*;

fn at(millis: i64) -> Timestamp {
    Timestamp::from_micros(millis * 1_000)
}

/// One record of a story: device, event and receive time in milliseconds, value.
#[derive(Debug, Clone)]
struct Told {
    device: String,
    time: i64,
    received: i64,
    value: f64,
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
        time_source: TimeSource::Server,
        readings: Readings::from_iter([Reading { metric: "temperature", value: ValueRef::F64(told.value) }]),
    }
}

fn rules(when: &str, group: &str) -> RuleSet {
    let text = format!(
        "[[rule]]\nname = \"r\"\nwhen = \"{when}\"\ngroup = \"{group}\"\ndevices = \"d*\"\n\
         [[rule.level]]\nseverity = \"critical\"\ngroup = \"share > 60%\"\n"
    );
    RuleSet::parse(&text, "r.toml").unwrap()
}

/// What a story comes to, with the devices in so many partitions. At the records of `cuts` every engine begins anew from
/// what it kept, at those of `ticks` time passes for all. `order` says whose turn it is when the counts come in.
fn run(
    rules: &RuleSet,
    story: &[Told],
    partitions: u16,
    cuts: &[usize],
    ticks: &[usize],
    order: &[usize],
) -> Vec<AlertTransition> {
    let limits = Limits { lateness_millis: 0, device_ttl_seconds: 300, ..Limits::default() };
    let (mut said, mut out) = (Vec::new(), Vec::new());
    let mut engines: Vec<_> = (0..partitions).map(|_| Engine::new(limits.clone(), rules)).collect();
    let mut partials: Vec<VecDeque<Partial>> = vec![VecDeque::new(); usize::from(partitions)];
    let end = story.last().map_or(0, |told| told.received) + 100_000;
    let mut pass = |engines: &mut Vec<Engine>, now: i64, partials: &mut Vec<VecDeque<Partial>>| {
        for engine in engines.iter_mut() {
            engine.tick(at(now), at(now), &mut said);
        }
        take(engines, partials, partitions);
    };
    for (n, told) in story.iter().enumerate() {
        if cuts.contains(&n) {
            for engine in &mut engines {
                let kept = postcard::to_stdvec(&engine.state()).unwrap();
                let state = postcard::from_bytes(&kept).unwrap();
                *engine = Engine::restore(limits.clone(), rules, vec![state], &mut Vec::new()).unwrap();
            }
        }
        if ticks.contains(&n) {
            pass(&mut engines, told.received, &mut partials);
        }
        let partition = usize::from(Slot::of("default", &told.device).partition(partitions));
        engines[partition].evaluate(&record(told), Offset(n as u64), &mut Vec::new());
        take(&mut engines, &mut partials, partitions);
    }
    pass(&mut engines, end, &mut partials);
    assert!(said.is_empty(), "nobody is told of a device of a group: {said:?}");

    let mut merge = Merge::new(rules);
    let mut turns = order.iter().cycle();
    while partials.iter().any(|waiting| !waiting.is_empty()) {
        let turn = turns.next().copied().unwrap_or(0) % partials.len();
        let next = (turn..partials.len()).chain(0..turn).find_map(|n| partials[n].pop_front());
        let partial = Partial::decode(&next.unwrap().encode()).unwrap();
        merge.take(partial, at(0), &mut out);
    }
    out
}

fn take(engines: &mut [Engine], partials: &mut [VecDeque<Partial>], of: u16) {
    for ((engine, partials), partition) in engines.iter_mut().zip(partials).zip(0..) {
        let counted = engine.take_counted().into_iter();
        partials.extend(counted.map(|counted| Partial { partition, of, counted }));
    }
}

fn told(device: u32, seconds: i64, value: f64) -> Told {
    Told { device: format!("d{device}"), time: seconds * 1_000, received: seconds * 1_000, value }
}

fn words(said: &[AlertTransition]) -> Vec<String> {
    let word = |t: &AlertTransition| {
        let seconds = t.at.as_micros() / 1_000_000;
        format!("{seconds}s {:?} {:?} {:.0} of {}", t.phase, t.severity, t.value, t.device)
    };
    said.iter().map(word).collect()
}

#[test]
fn fires_when_more_than_a_share_of_the_devices_do() {
    let rules = rules("temperature > 80", "share > 30% for 10s, clear below 20%");
    let mut story = Vec::new();
    for second in 0..120 {
        for device in 0..10 {
            let is_hot = match second {
                20..40 => device < 4,
                40..50 => device < 7,
                50..60 => device < 3,
                _ => device == 0,
            };
            story.push(told(device, second, if is_hot { 90.0 } else { 20.0 }));
        }
    }
    let said = run(&rules, &story, 3, &[], &[], &[0]);
    assert_eq!(
        words(&said),
        [
            "20s Pending Warning 40 of d*",
            "30s Firing Warning 40 of d*",
            "40s Firing Critical 70 of d*",
            "50s Firing Warning 30 of d*",
            "60s Resolved Warning 10 of d*",
        ]
    );
}

#[test]
fn devices_that_fall_silent_together_are_missed_together() {
    let rules = rules("no data for 30s", "count >= 3");
    let mut story = Vec::new();
    for second in (0..200).step_by(5) {
        for device in 0..5 {
            if device < 2 || second < 60 {
                story.push(told(device, second, 1.0));
            }
        }
    }
    let said = run(&rules, &story, 4, &[], &[], &[0]);
    assert_eq!(words(&said)[0], "85s Firing Warning 3 of d*", "{said:?}");
}

#[test]
fn a_partition_that_says_nothing_any_more_is_not_waited_for() {
    let rules = rules("temperature > 80", "count >= 1");
    let mut engine = Engine::new(Limits::default(), &rules);
    let mut merge = Merge::new(&rules);
    let mut out = Vec::new();
    let say = |engine: &mut Engine, merge: &mut Merge, second: i64, out: &mut Vec<_>| {
        engine.tick(at(second * 1_000), at(second * 1_000), out);
        for counted in engine.take_counted() {
            merge.take(Partial { partition: 0, of: 2, counted }, at(second * 1_000), out);
        }
    };
    say(&mut engine, &mut merge, 1, &mut out);
    engine.evaluate(&record(&told(0, 2, 90.0)), Offset(0), &mut out);
    for second in 3..62 {
        say(&mut engine, &mut merge, second, &mut out);
        assert!(out.is_empty(), "the other may still have something to say: {out:?}");
    }
    say(&mut engine, &mut merge, 62, &mut out);
    assert_eq!(words(&out), ["2s Firing Critical 100 of d*"]);
}

#[test]
fn a_rule_that_goes_takes_its_alert_with_it_and_what_is_left_counts_on() {
    let both = "[[rule]]\nname = \"a\"\nwhen = \"temperature > 80\"\ngroup = \"count >= 1\"\n\
                [[rule]]\nname = \"b\"\nwhen = \"temperature > 80\"\ngroup = \"count >= 2\"\n";
    let rules = |text: &str| RuleSet::parse(text, "r.toml").unwrap();
    let only_b = rules(&both[both.rfind("[[rule]]").unwrap()..]);
    let limits = Limits { lateness_millis: 0, group_wait_millis: 0, ..Limits::default() };
    let mut alone = Alone::new(limits, &rules(both));
    let mut out = Vec::new();
    alone.evaluate(&record(&told(0, 1, 90.0)), Offset(0), &mut out);
    alone.tick(at(3_000), &mut out);
    assert_eq!(words(&out), ["1s Firing Warning 1 of *"]);
    out.clear();
    alone.engine.reload(&only_b, &mut out);
    alone.merge.reload(&only_b, &mut out);
    assert_eq!(out.iter().map(|t| (&*t.rule, t.phase)).collect::<Vec<_>>(), [("a", AlertPhase::Resolved)]);
    out.clear();
    alone.evaluate(&record(&told(1, 5, 90.0)), Offset(1), &mut out);
    alone.tick(at(7_000), &mut out);
    assert_eq!(out.iter().map(|t| (&*t.rule, t.phase)).collect::<Vec<_>>(), [("b", AlertPhase::Firing)]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn partitions_restarts_and_the_order_of_counts_change_nothing(
        readings in prop::collection::vec((0u32..9, 0i64..4_000, 0i64..6_000, 60f64..100.0), 1..150),
        partitions in 1u16..6,
        cuts in prop::collection::vec(0usize..150, 0..4),
        ticks in prop::collection::vec(0usize..150, 0..20),
        order in prop::collection::vec(0usize..6, 1..30),
        rule in prop::sample::select(vec![
            ("temperature > 80", "share > 30%, clear below 20%"),
            ("temperature > 80 for 5s", "share > 40% for 10s"),
            ("avg(temperature) over 10s > 80", "count >= 3 and members > 4"),
            ("no data for 20s", "share >= 50%"),
        ]),
    ) {
        let mut now = 1_000_000;
        let story: Vec<_> = readings.into_iter().map(|(device, step, behind, value)| {
            now += step;
            Told { device: format!("d{device}"), time: now - behind, received: now, value }
        }).collect();
        let rules = rules(rule.0, rule.1);
        let whole = run(&rules, &story, 1, &[], &[], &[0]);
        prop_assert_eq!(run(&rules, &story, partitions, &cuts, &ticks, &order), whole);
    }
}

#[test]
fn after_a_time_without_anybody_all_are_waited_for_again() {
    let (mut merge, mut out) = (Merge::new(&rules("temperature > 80", "count > 1")), Vec::new());
    let mut say = |merge: &mut Merge, partition: u16, seconds: i64| {
        let counted = Counted { era: 0, up_to: at(seconds * 1_000), is_whole: true, counts: Vec::new() };
        merge.take(Partial { partition, of: 2, counted }, at(seconds * 1_000 + 2_000), &mut out);
    };
    say(&mut merge, 0, 100);
    say(&mut merge, 1, 100);
    // All were away. Whoever speaks first does not speak for the other.
    say(&mut merge, 0, 1_000);
    assert_eq!(merge.judged_up_to(), at(100_000));
    say(&mut merge, 1, 900);
    assert_eq!(merge.judged_up_to(), at(900_000));
    // One that stays away while others speak is not waited for.
    for seconds in 1_001..1_100 {
        say(&mut merge, 0, seconds);
    }
    assert!(merge.judged_up_to() > at(1_050_000));
}
