use std::net::{SocketAddr, TcpListener};

use clap::Parser;

/// Acknowledge every MQTT 3.1.1 publish at once and keep nothing.
#[derive(Debug, Parser)]
#[command(name = "dunlin-nullsink", version)]
struct Arguments {
    /// Where to listen.
    #[arg(long, default_value = "127.0.0.1:1884")]
    listen: SocketAddr,
    /// Threads that serve connections.
    #[arg(long, default_value_t = 2)]
    workers: usize,
}

fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    dunlin_sim::nullsink::run(TcpListener::bind(arguments.listen)?, arguments.workers)
}
