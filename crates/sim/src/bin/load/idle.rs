use std::{
    error::Error,
    io::{self, Write as _},
    time::Duration,
};

use clap::Args;
use dunlin_sim::{
    backoff::Backoff,
    idle::{self, News},
};

use crate::server::Server;

/// Open connections and hold them, sending nothing.
///
/// Prints `holding` when all are in, `back` whenever all are in again after some were lost, and at the end what became of
/// them.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    #[arg(long, short = 'c', default_value_t = 10_000)]
    connections: usize,
    /// Number of the first connection, to tell several processes apart; every 20,000 numbers have a source address.
    #[arg(long, default_value_t = 0)]
    first: usize,
    /// Ask for sessions that outlive their connections.
    #[arg(long)]
    lasting: bool,
    /// How long to hold.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Try lost connections again for this long; by default they stay lost.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    reconnect_for: Duration,
    /// The first wait before a lost connection is tried again; doubled with every failure, and by chance up to half less.
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    backoff_first: Duration,
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    backoff_max: Duration,
    /// Of the waits.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let config = idle::Config {
        target: arguments.server.address()?,
        version: arguments.server.version(),
        identities: arguments.server.identities()?,
        connections: arguments.connections,
        first: arguments.first,
        lasting: arguments.lasting,
        tls: arguments.server.tls()?,
        reconnect_for: arguments.reconnect_for,
        backoff: Backoff { first: arguments.backoff_first, max: arguments.backoff_max },
        seed: arguments.seed,
        duration: arguments.duration,
    };
    let report = idle::hold(&config, |news| say(&news))?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn say(news: &News) {
    // An onlooker that is gone needs no news.
    if let Ok(line) = serde_json::to_string(news) {
        let _gone = writeln!(io::stdout(), "{line}");
    }
}
