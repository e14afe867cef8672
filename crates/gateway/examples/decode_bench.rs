//! What decoding and encoding one message costs: `cargo run --release -p dunlin-gateway --example decode_bench`.

use std::{hint::black_box, time::Instant};

use bumpalo::Bump;
use dunlin_gateway::{Arrival, Delivery, Origin, append_telemetry, decode};
use dunlin_journal::Batch;
use dunlin_model::{TimePolicy, Timestamp};

const PAYLOAD: &[u8] =
    br#"{"ts":1700000000000,"values":{"temperature":21.53125,"humidity":40,"supply_voltage":3.297,"pad":"xxxxxxxxxxxxxxxxxxxxxxxxxx"}}"#;
const PLAIN: &[u8] = br#"{"temperature":21.53125,"humidity":40,"supply_voltage":3.297}"#;
const ROUNDS: u32 = 2_000_000;
const BATCH_MESSAGES: u32 = 1_000;

fn main() {
    for payload in [PAYLOAD, PLAIN] {
        println!("{} bytes", payload.len());
        measure("  decode", |_, arena| {
            black_box(decode(black_box(payload), arena).is_ok());
        });
        let policy = TimePolicy::default();
        let arrival = Arrival { received_at: Timestamp::from_micros(1_700_000_000_000_000), policy: &policy };
        let origin = Origin { tenant: "default", device: "sensor-000123", device_type: "default" };
        measure("  decode and encode", |batch, arena| {
            let delivery = Delivery::Packet { packet_id: 7, duplicate: false };
            let taken = append_telemetry(black_box(payload), origin, delivery, arrival, arena, batch);
            black_box(taken.is_ok());
        });
    }
}

fn measure(what: &str, mut once: impl FnMut(&mut Batch, &Bump)) {
    let arena = Bump::new();
    let mut batch = Batch::default();
    let began = Instant::now();
    for round in 0..ROUNDS {
        if round % BATCH_MESSAGES == 0 {
            batch = Batch::with_capacity(batch.size_bytes());
        }
        once(&mut batch, &arena);
    }
    println!("{what}: {:.0} ns", began.elapsed().as_nanos() as f64 / f64::from(ROUNDS));
}
