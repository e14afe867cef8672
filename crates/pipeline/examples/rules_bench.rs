//! Records per second and core through the rules: one 1-minute window and one rule a device, three readings.
//! `cargo run --release -p dunlin-pipeline --example rules_bench [records] [devices]`

use std::{env, time::Instant};

use dunlin_journal::Offset;
use dunlin_model::{MessageId, Reading, Readings, Record, TimeSource, Timestamp, ValueRef, avro};
use dunlin_pipeline::{Limits, RuleSet, engine::Engine};

fn main() {
    let mut arguments = env::args().skip(1).map(|a| a.parse::<u64>().expect("a number"));
    let records = arguments.next().unwrap_or(3_000_000);
    let devices = arguments.next().unwrap_or(10_000).max(1);
    let names: Vec<String> = (0..devices).map(|n| format!("device-{n:06}")).collect();
    let rules = "[[rule]]\nname = \"hot\"\nwhen = \"avg(temperature) over 1m > 80 for 2m, clear below 75\"\n";
    let rules = RuleSet::parse(rules, "bench").expect("a rule");

    let (mut bytes, mut ends) = (Vec::new(), Vec::new());
    for n in 0..records {
        let time = Timestamp::from_micros((1_700_000_000 + n / devices) as i64 * 1_000_000);
        let reading = |metric, value| Reading { metric, value: ValueRef::F64(value) };
        let record = Record {
            tenant: "default",
            device: &names[(n % devices) as usize],
            device_type: "default",
            message_id: MessageId::First(n),
            received_at: time,
            device_time: None,
            time,
            time_source: TimeSource::Server,
            readings: Readings::from_iter([
                reading("temperature", 60.0 + (n % 30) as f64),
                reading("humidity", 40.0),
                reading("battery", 3.7),
            ]),
        };
        avro::encode(&record, &mut bytes);
        ends.push(bytes.len());
    }
    let each = |mut work: Box<dyn FnMut(Record<'_>, Offset) + '_>| {
        let (started, mut start) = (Instant::now(), 0);
        for (end, offset) in ends.iter().zip(0..) {
            let record = avro::decode(&bytes[start..*end]).expect("a record");
            work(record, Offset(offset));
            start = *end;
        }
        started.elapsed().as_secs_f64()
    };
    let mut readings = 0;
    let decoding = each(Box::new(|record, _| readings += record.readings.len()));
    let (mut engine, mut out) = (Engine::new(Limits::default(), &rules), Vec::new());
    let both = each(Box::new(|record, offset| {
        engine.evaluate(&record, offset, &mut out);
    }));
    let rate = |seconds: f64| records as f64 / seconds / 1e6;
    println!("decode only        {:.2} M records/s ({readings} readings)", rate(decoding));
    println!("decode and rules   {:.2} M records/s", rate(both));
    println!("rules only         {:.2} M records/s", rate((both - decoding).max(1e-9)));
    println!("{} devices, {} transitions", engine.device_count(), out.len());
}
