use std::error::Error;

use clap::Args;
use dunlin_sim::{
    http,
    payload::{Payload, SEQ_FIRST},
};

use crate::server::{Clients, Server, Times, print_exchanges};

/// Send readings over HTTP, one request at a time for each client: how many a second, and how long each takes.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    clients: Clients,
    #[command(flatten)]
    times: Times,
    #[arg(long, default_value = "/v1/telemetry")]
    path: String,
    /// Records of one request.
    #[arg(long, default_value_t = 1)]
    records: usize,
    /// Length of a record.
    #[arg(long, default_value_t = 128)]
    record_bytes: usize,
    /// Put the time of sending into each record.
    #[arg(long)]
    stamped: bool,
    /// Connect anew for every request.
    #[arg(long)]
    close: bool,
    /// Sequence number of the first record.
    #[arg(long, default_value_t = SEQ_FIRST)]
    seq_first: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let report = http::run(&http::Config {
        exchanges: arguments.clients.config(&arguments.server, &arguments.times)?,
        host: arguments.server.target.clone(),
        path: arguments.path.clone(),
        identities: arguments.server.identities()?,
        records: arguments.records,
        payload: Payload::Telemetry { bytes: arguments.record_bytes, stamped: arguments.stamped },
        keep_alive: !arguments.close,
        seq_first: arguments.seq_first,
    })?;
    Ok(print_exchanges("requests", &report)?)
}
