use std::error::Error;

use clap::Args;
use dunlin_sim::{
    connects,
    payload::{Payload, SEQ_FIRST},
};

use crate::server::{Clients, Server, Times, print_exchanges};

/// Connect over MQTT, be let in, leave, and again: how many times a second, and how long each takes.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    server: Server,
    #[command(flatten)]
    clients: Clients,
    #[command(flatten)]
    times: Times,
    /// Publish one message of so many bytes at QoS 1 on each connection, and leave when it is acknowledged.
    #[arg(long)]
    publish_bytes: Option<usize>,
    #[arg(long, default_value = "v1/telemetry")]
    topic: String,
    /// Sequence number of the first message.
    #[arg(long, default_value_t = SEQ_FIRST)]
    seq_first: u64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let message = arguments.publish_bytes.map(|bytes| Payload::Telemetry { bytes, stamped: false });
    let report = connects::run(&connects::Config {
        exchanges: arguments.clients.config(&arguments.server, &arguments.times)?,
        version: arguments.server.version(),
        identities: arguments.server.identities()?,
        message: message.map(|payload| (arguments.topic.clone(), payload)),
        seq_first: arguments.seq_first,
    })?;
    Ok(print_exchanges("connects", &report)?)
}
