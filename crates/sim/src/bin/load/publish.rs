use std::{
    error::Error,
    fs::File,
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use dunlin_sim::{
    backoff::Backoff,
    load::{self, Report},
    payload::{Payload, SEQ_FIRST},
};

use crate::server::{Server, Times, print_latency};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    times: Times,
    #[arg(long, short = 'c', default_value_t = 100)]
    connections: usize,
    /// Unacknowledged messages per connection.
    #[arg(long, short = 'w', default_value_t = 50)]
    window: u16,
    /// Messages per second over all connections; without it, as many as are acknowledged.
    #[arg(long)]
    rate: Option<f64>,
    #[arg(long, default_value = "v1/telemetry")]
    topic: String,
    /// `telemetry` (three readings with a sequence number) or `fixed` (bytes without meaning).
    #[arg(long, default_value = "telemetry")]
    payload: Shape,
    /// Length of a payload.
    #[arg(long, default_value_t = 128)]
    payload_bytes: usize,
    /// Put the time of sending into each message.
    #[arg(long)]
    stamped: bool,
    /// First sequence number of every connection.
    #[arg(long, default_value_t = SEQ_FIRST)]
    seq_first: u64,
    /// Write lines `device,first,last,outcome` here at the end.
    #[arg(long)]
    record: Option<PathBuf>,
    /// Try lost connections again for this long; by default a lost connection ends the run.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    reconnect_for: Duration,
    /// The first wait before a lost connection is tried again; doubled with every failure, and by chance up to half less.
    #[arg(long, default_value = "50ms", value_parser = humantime::parse_duration)]
    backoff_first: Duration,
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    backoff_max: Duration,
    /// Of the waits.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Ask for sessions that end with their connection, also with --reconnect-for.
    #[arg(long)]
    clean_sessions: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Shape {
    Telemetry,
    Fixed,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let report = load::run(&load::Config {
        target: arguments.server.address()?,
        version: arguments.server.version(),
        topic: arguments.topic.clone(),
        payload: match arguments.payload {
            Shape::Telemetry => {
                Payload::Telemetry { bytes: arguments.payload_bytes, stamped: arguments.stamped }
            }
            Shape::Fixed => Payload::Fixed { bytes: arguments.payload_bytes },
        },
        identities: arguments.server.identities()?,
        connections: arguments.connections,
        window: arguments.window,
        messages_per_second: arguments.rate,
        warm_up: arguments.times.warm_up,
        measured: arguments.times.duration,
        drain: arguments.times.drain,
        seq_first: arguments.seq_first,
        record: arguments.record.is_some(),
        reconnect_for: arguments.reconnect_for,
        backoff: Backoff { first: arguments.backoff_first, max: arguments.backoff_max },
        seed: arguments.seed,
        clean_sessions: arguments.clean_sessions,
        tls: arguments.server.tls()?,
    })?;
    if let Some(path) = &arguments.record {
        write_record(path, &report)
            .map_err(|error| format!("write the record {}: {error}", path.display()))?;
    }
    print_table(&report);
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn write_record(path: &Path, report: &Report) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    writeln!(out, "device,first,last,outcome")?;
    for (device, outcomes) in &report.record {
        outcomes.write_csv(device, &mut out)?;
    }
    out.flush()
}

fn print_table(report: &Report) {
    eprintln!(
        "{} connections x window {}, packets of {} bytes",
        report.connections, report.window, report.packet_bytes
    );
    eprintln!("acknowledged   {:>12.0} messages/s", report.acked_per_second);
    eprintln!(
        "sent {}, acked {}, refused {}, unknown {}, unsent {}, reconnects {}",
        report.sent, report.acked, report.refused, report.unknown, report.unsent, report.reconnects
    );
    print_latency(&report.latency_micros);
}
