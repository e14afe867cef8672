use std::error::Error;

use clap::Args;
use dunlin_sim::fan_out;

use crate::server::{Server, Times, print_latency};

/// A few publishers, many subscribers, every message to all of them at QoS 0: deliveries a second, losses, delays.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    times: Times,
    #[arg(long, default_value_t = 1_000)]
    subscribers: usize,
    #[arg(long, default_value_t = 5)]
    publishers: usize,
    /// Messages of one publisher that have not reached all subscribers.
    #[arg(long, short = 'w', default_value_t = 8)]
    window: u64,
    /// Messages per second over all publishers, whatever has arrived; without it, by the window.
    #[arg(long)]
    rate: Option<f64>,
    /// Publisher n publishes to TOPIC/n, subscribers subscribe to TOPIC/+.
    #[arg(long, default_value = "fan-out")]
    topic: String,
    /// Length of a payload.
    #[arg(long, default_value_t = 128)]
    payload_bytes: usize,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let report = fan_out::run(&fan_out::Config {
        target: arguments.server.address()?,
        version: arguments.server.version(),
        topic: arguments.topic.clone(),
        payload_bytes: arguments.payload_bytes,
        identities: arguments.server.identities()?,
        subscribers: arguments.subscribers,
        publishers: arguments.publishers,
        window: arguments.window,
        messages_per_second: arguments.rate,
        warm_up: arguments.times.warm_up,
        measured: arguments.times.duration,
        drain: arguments.times.drain,
        tls: arguments.server.tls()?,
    })?;
    eprintln!(
        "{} publishers x window {} to {} subscribers, packets of {} bytes",
        report.publishers, report.window, report.subscribers, report.packet_bytes
    );
    eprintln!("delivered      {:>12.0} messages/s", report.deliveries_per_second);
    eprintln!(
        "published {}, delivered {}, lost {}, late {}",
        report.published, report.delivered, report.lost, report.late
    );
    print_latency(&report.latency_micros);
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
