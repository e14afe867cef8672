use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    net::{SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use dunlin_sim::{
    idle::Idle,
    load::{self, Identity, Payload, Report, SEQ_FIRST},
    wire::Version,
};

/// Publish over MQTT as fast as the server acknowledges, or at a fixed rate, and measure.
///
/// Prints a table for people on standard error and one JSON object on standard output.
#[derive(Debug, Parser)]
#[command(name = "dunlin-load", version)]
struct Arguments {
    /// Where the server listens, HOST:PORT.
    #[arg(long, default_value = "127.0.0.1:1883")]
    target: String,
    #[arg(long, short = 'c', default_value_t = 100)]
    connections: usize,
    /// Unacknowledged messages per connection.
    #[arg(long, short = 'w', default_value_t = 50)]
    window: u16,
    /// Messages per second over all connections; without it, as many as are acknowledged.
    #[arg(long)]
    rate: Option<f64>,
    /// Messages in this time are not measured.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// How long to measure.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// How long to wait for the last answers.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    drain: Duration,
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
    /// Speak MQTT 5, where a server can refuse a single message.
    #[arg(long)]
    v5: bool,
    /// Access token of the device, sent as user name.
    #[arg(long, conflicts_with = "tokens")]
    token: Option<String>,
    /// File with an access token a line, optionally followed by a blank and the device's name.
    #[arg(long)]
    tokens: Option<PathBuf>,
    /// First sequence number of every connection.
    #[arg(long, default_value_t = SEQ_FIRST)]
    seq_first: u64,
    /// Write lines `device,first,last,outcome` here at the end.
    #[arg(long)]
    record: Option<PathBuf>,
    /// Try lost connections again for this long; by default a lost connection ends the run.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    reconnect_for: Duration,
    /// Ask for sessions that end with their connection, also with --reconnect-for.
    #[arg(long)]
    clean_sessions: bool,
    /// Open this many connections and hold them for the duration, sending nothing.
    #[arg(long)]
    idle: Option<usize>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Shape {
    Telemetry,
    Fixed,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dunlin-load: {}", dunlin_model::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let target = resolve(&arguments.target)?;
    let identities = identities(arguments)?;
    let version = if arguments.v5 { Version::V5 } else { Version::V311 };
    if let Some(count) = arguments.idle {
        return hold(target, version, &identities, count, arguments.duration);
    }
    let report = load::run(&load::Config {
        target,
        version,
        topic: arguments.topic.clone(),
        payload: match arguments.payload {
            Shape::Telemetry => {
                Payload::Telemetry { bytes: arguments.payload_bytes, stamped: arguments.stamped }
            }
            Shape::Fixed => Payload::Fixed { bytes: arguments.payload_bytes },
        },
        identities,
        connections: arguments.connections,
        window: arguments.window,
        messages_per_second: arguments.rate,
        warm_up: arguments.warm_up,
        measured: arguments.duration,
        drain: arguments.drain,
        seq_first: arguments.seq_first,
        record: arguments.record.is_some(),
        reconnect_for: arguments.reconnect_for,
        clean_sessions: arguments.clean_sessions,
    })?;
    if let Some(path) = &arguments.record {
        write_record(path, &report)
            .map_err(|error| format!("write the record {}: {error}", path.display()))?;
    }
    print_table(&report);
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn hold(
    target: SocketAddr,
    version: Version,
    identities: &[Identity],
    count: usize,
    duration: Duration,
) -> Result<(), Box<dyn std::error::Error>> {
    let idle = Idle::open(target, version, identities, count)?;
    println!("{}", serde_json::json!({ "holding": count }));
    io::stdout().flush()?;
    std::thread::sleep(duration);
    println!("{}", serde_json::json!({ "held": count, "closed_by_server": idle.closed() }));
    Ok(())
}

fn resolve(target: &str) -> Result<SocketAddr, String> {
    target
        .to_socket_addrs()
        .map_err(|error| format!("look up {target}: {error}"))?
        .next()
        .ok_or_else(|| format!("{target} has no address"))
}

fn identities(arguments: &Arguments) -> Result<Vec<Identity>, String> {
    let Some(path) = &arguments.tokens else {
        return Ok(vec![Identity { token: arguments.token.clone(), device: "device-0".into() }]);
    };
    let text = std::fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let identities: Vec<_> = text.lines().filter(|line| !line.is_empty()).enumerate().map(identity).collect();
    if identities.is_empty() { Err(format!("{} holds no token", path.display())) } else { Ok(identities) }
}

fn identity((index, line): (usize, &str)) -> Identity {
    let (token, device) = match line.split_once(' ') {
        Some((token, device)) => (token, device.trim().to_owned()),
        None => (line, format!("device-{index}")),
    };
    Identity { token: Some(token.to_owned()), device }
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
    let latency = &report.latency_micros;
    eprintln!(
        "{} connections x window {}, packets of {} bytes",
        report.connections, report.window, report.packet_bytes
    );
    eprintln!("acknowledged   {:>12.0} messages/s", report.acked_per_second);
    eprintln!(
        "sent {}, acked {}, refused {}, unknown {}, unsent {}, reconnects {}",
        report.sent, report.acked, report.refused, report.unknown, report.unsent, report.reconnects
    );
    eprintln!("latency (us)   {:>10} {:>10} {:>10} {:>10} {:>10}", "p50", "p90", "p99", "p99.9", "max");
    eprintln!(
        "               {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>10.1}",
        latency.p50, latency.p90, latency.p99, latency.p999, latency.max
    );
}
