use std::{
    error::Error,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use dunlin_sim::{
    exchanges,
    latency::Latency,
    load::Identity,
    tls::{Tls, TlsFiles},
    wire::Version,
};

#[derive(Debug, Args)]
pub(crate) struct Server {
    /// Where the server listens, HOST:PORT.
    #[arg(long, default_value = "127.0.0.1:1883")]
    pub(crate) target: String,
    /// Speak MQTT 5, where a server can refuse a single message.
    #[arg(long)]
    v5: bool,
    /// Access token of the device: the user name of MQTT, the bearer token of HTTP.
    #[arg(long, conflicts_with = "tokens")]
    token: Option<String>,
    /// File with an access token a line, optionally followed by a blank and the device's name.
    #[arg(long)]
    tokens: Option<PathBuf>,
    /// Speak TLS, with a server whose certificate is signed by one of those in this file.
    #[arg(long)]
    tls_authority: Option<PathBuf>,
    /// The device's certificate, for mutual TLS.
    #[arg(long, requires = "tls_authority", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The key of the device's certificate.
    #[arg(long, requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// The name in the server's certificate.
    #[arg(long, default_value = "localhost")]
    tls_server_name: String,
    /// Go on from the TLS session of the connection before.
    #[arg(long, requires = "tls_authority")]
    tls_resume: bool,
}

impl Server {
    pub(crate) fn address(&self) -> Result<SocketAddr, String> {
        self.target
            .to_socket_addrs()
            .map_err(|error| format!("look up {}: {error}", self.target))?
            .next()
            .ok_or_else(|| format!("{} has no address", self.target))
    }

    pub(crate) fn version(&self) -> Version {
        if self.v5 { Version::V5 } else { Version::V311 }
    }

    pub(crate) fn identities(&self) -> Result<Vec<Identity>, String> {
        let Some(path) = &self.tokens else {
            return Ok(vec![Identity { token: self.token.clone(), device: "device-0".into() }]);
        };
        let text =
            std::fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
        let identities: Vec<_> =
            text.lines().filter(|line| !line.is_empty()).enumerate().map(identity).collect();
        if identities.is_empty() { Err(format!("{} holds no token", path.display())) } else { Ok(identities) }
    }

    pub(crate) fn tls(&self) -> Result<Option<Tls>, Box<dyn Error>> {
        let Some(authority) = self.tls_authority.clone() else { return Ok(None) };
        let identity = self.tls_certificate.clone().zip(self.tls_key.clone());
        Ok(Some(Tls::new(&TlsFiles { authority, identity }, &self.tls_server_name, self.tls_resume)?))
    }
}

fn identity((index, line): (usize, &str)) -> Identity {
    let (token, device) = match line.split_once(' ') {
        Some((token, device)) => (token, device.trim().to_owned()),
        None => (line, format!("device-{index}")),
    };
    Identity { token: Some(token.to_owned()), device }
}

/// How long to measure.
#[derive(Debug, Args)]
pub(crate) struct Times {
    /// What is due in this time is not measured.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    pub(crate) warm_up: Duration,
    /// How long to measure.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) duration: Duration,
    /// How long to wait for the last answers.
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub(crate) drain: Duration,
}

/// Clients that wait for each answer.
#[derive(Debug, Args)]
pub(crate) struct Clients {
    /// Clients at the same time.
    #[arg(long, short = 'c', default_value_t = 100)]
    clients: usize,
    /// Begin so many a second over all clients; without it, the next one with the answer to the one before.
    #[arg(long)]
    rate: Option<f64>,
    /// Loopback addresses that connections come from in turn.
    #[arg(long, default_value_t = 50)]
    sources: u16,
}

impl Clients {
    pub(crate) fn config(&self, server: &Server, times: &Times) -> Result<exchanges::Config, Box<dyn Error>> {
        Ok(exchanges::Config {
            target: server.address()?,
            clients: self.clients,
            sources: self.sources,
            tls: server.tls()?,
            per_second: self.rate,
            warm_up: times.warm_up,
            measured: times.duration,
            drain: times.drain,
        })
    }
}

pub(crate) fn print_exchanges(what: &str, report: &exchanges::Report) -> Result<(), serde_json::Error> {
    eprintln!("{} clients", report.clients);
    eprintln!("{what:<14} {:>12.0} /s", report.accepted_per_second);
    let refused: u64 = report.refused.values().sum();
    eprintln!(
        "begun {}, accepted {}, refused {refused}, failed {}{}, connections {}, of which resumed {}",
        report.begun,
        report.accepted,
        report.failed,
        report.failure.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default(),
        report.connections,
        report.resumed
    );
    print_latency(&report.latency_micros);
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

pub(crate) fn print_latency(latency: &Latency) {
    eprintln!("latency (us)   {:>10} {:>10} {:>10} {:>10} {:>10}", "p50", "p90", "p99", "p99.9", "max");
    eprintln!(
        "               {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>10.1}",
        latency.p50, latency.p90, latency.p99, latency.p999, latency.max
    );
}
