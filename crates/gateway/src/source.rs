//! Telemetry from brokers of others: devices stay with the broker that they know, and Dunlin is one of its clients.
//!
//! A source has a shared subscription, so any number of processes may take from it. What it takes is acknowledged to
//! the broker when the journal has it, in the order in which it came; what is not acknowledged stays with the broker and
//! comes again. After any fault the connection is given up with all that was not acknowledged on it: an acknowledgement
//! never goes out on another connection than the message came by, where its packet id may stand for something else.

mod config; // which broker, and what its topics mean
mod intake; // messages to records, records to the journal
mod link; // one connection to the broker
mod mapping; // from a topic to a device
mod metrics;

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use config::SourceConfigError;
pub use config::{SourceConfig, SourceTlsConfig};
use dunlin_model::Timestamp;
use futures::future::join_all;
use intake::Intake;
use link::Link;
use mapping::Mapping;
use metrics::{Metrics, OfSource};
use prometheus_client::registry::Registry;
use tokio::{sync::watch, task::JoinHandle};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{
    company::Company,
    config::InvalidConfig,
    directory::{Admitted, Denied},
    tls::Certified,
    worker::Shared,
};

/// All sources, running.
#[derive(Debug)]
pub(crate) struct Sources {
    stop: watch::Sender<bool>,
    running: Vec<JoinHandle<()>>,
}

impl Sources {
    /// Within a tokio runtime, if there is any source.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        company: &Company,
        registry: &mut Registry,
    ) -> Result<Self, InvalidConfig> {
        let stop = watch::Sender::new(false);
        let configs = &shared.config.source;
        if configs.is_empty() {
            return Ok(Self { stop, running: Vec::new() });
        }
        let metrics = Metrics::new(registry);
        let of = |config: &SourceConfig| {
            let source = Source {
                shared: shared.clone(),
                config: config.of_process(company.name()),
                mapping: config.mapping()?,
                metrics: metrics.of(&config.name),
            };
            Ok(tokio::spawn(source.run(stop.subscribe())))
        };
        let running = configs.iter().map(of).collect::<Result<_, InvalidConfig>>()?;
        Ok(Self { stop, running })
    }

    /// Takes nothing more, acknowledges what is durable, and leaves the brokers in an orderly way.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        let _panicked = join_all(self.running).await;
    }
}

struct Source {
    shared: Arc<Shared>,
    config: SourceConfig,
    mapping: Mapping,
    metrics: OfSource,
}

/// How taking from a broker ended.
#[derive(Debug)]
enum Ended {
    Stopped,
    Interrupted(Interruption),
}

/// Why taking from a broker ended before its time. It is begun again.
#[derive(Debug, thiserror::Error)]
enum Interruption {
    #[error(
        "the device {device} of {tenant}, which speaks for those behind the broker, is not admitted: {denied}"
    )]
    NotAdmitted { tenant: String, device: String, denied: Denied },
    #[error("the device {device} of {tenant} does not speak for others; it was not added as a gateway")]
    NoGateway { tenant: String, device: String },
    #[error("the directory is unavailable: {0}")]
    Directory(String),
    #[error(transparent)]
    Config(#[from] SourceConfigError),
    #[error("{0}")]
    Broker(Box<rumqttc::v5::ConnectionError>),
    #[error(
        "another client of the name {client_id} has taken over; each process needs a client_id of its own"
    )]
    TakenOver { client_id: String },
    #[error("the broker refused the subscription: {0}")]
    Subscription(String),
    #[error("the journal has not taken what came: {0}")]
    Journal(#[from] dunlin_journal::AppendError),
}

impl Interruption {
    /// In the metrics.
    fn name(&self) -> &'static str {
        match self {
            Self::NotAdmitted { .. } | Self::NoGateway { .. } => "not_admitted",
            Self::Directory(_) => "directory",
            Self::Config(_) => "configuration",
            Self::Broker(_) => "broker",
            Self::TakenOver { .. } => "taken_over",
            Self::Subscription(_) => "subscription",
            Self::Journal(_) => "journal",
        }
    }
}

impl Source {
    async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut pause = Pause::new(&self.config);
        let had_session = Arc::new(AtomicBool::new(false));
        loop {
            let before = self.metrics.acknowledged.get();
            let ended = self.take(&had_session, &mut stop).await;
            self.metrics.connected.set(0);
            self.metrics.unacknowledged.set(0);
            let Ended::Interrupted(why) = ended else { return };
            self.metrics.interrupted(why.name());
            if self.metrics.acknowledged.get() > before {
                pause = Pause::new(&self.config);
            }
            let pause = pause.next(self.shared.clock.now());
            tracing::warn!(source = self.config.name, %why, ?pause, "nothing is taken from the broker");
            tokio::select! {
                () = asked(&mut stop) => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One connection, from its begin to its end.
    async fn take(&self, had_session: &Arc<AtomicBool>, stop: &mut watch::Receiver<bool>) -> Ended {
        let begun = async {
            let who = self.admitted().await?;
            let link = Link::open(&self.config, &self.mapping, had_session, &self.metrics).await?;
            Ok::<_, Interruption>((who, link))
        };
        let (who, mut link) = tokio::select! {
            () = asked(stop) => return Ended::Stopped,
            begun = begun => match begun {
                Ok(begun) => begun,
                Err(why) => return Ended::Interrupted(why),
            },
        };
        let intake = Intake::new(&self.shared, &self.config, &self.mapping, &self.metrics, who);
        match intake.run(&mut link, stop).await {
            Ok(()) => {
                let patience = Duration::from_secs(self.shared.config.drain_seconds_max.into());
                link.close(patience).await;
                Ended::Stopped
            }
            Err(why) => Ended::Interrupted(why),
        }
    }

    /// The device that speaks for those behind the broker.
    async fn admitted(&self) -> Result<Admitted, Interruption> {
        let (tenant, device) = self.config.speaker()?;
        let named = Certified { tenant, device };
        let admitted = self.shared.directory.admit_certified(&named).await;
        let (tenant, device) = (named.tenant.to_string(), named.device.to_string());
        match admitted {
            Ok(who) if who.speaks_for_children => Ok(who),
            Ok(_) => Err(Interruption::NoGateway { tenant, device }),
            Err(Denied::Unavailable(reason)) => Err(Interruption::Directory(reason)),
            Err(denied) => Err(Interruption::NotAdmitted { tenant, device, denied }),
        }
    }
}

/// A sender that is gone has asked, too.
async fn asked(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Grows from one to the next, and differs between those who wait for the same broker.
#[derive(Debug)]
struct Pause {
    next: Duration,
    longest: Duration,
    seed: u64,
}

impl Pause {
    fn new(config: &SourceConfig) -> Self {
        let seed = xxh3_64_with_seed(config.client_id().as_bytes(), u64::from(std::process::id()));
        Self {
            next: Duration::from_millis(config.pause_first_millis),
            longest: Duration::from_secs(config.pause_longest_seconds),
            seed,
        }
    }

    /// From half of it to the whole.
    fn next(&mut self, now: Timestamp) -> Duration {
        let whole = self.next.min(self.longest);
        self.next = (whole * 2).min(self.longest);
        let chance = xxh3_64_with_seed(&now.as_micros().to_le_bytes(), self.seed) % 1_024;
        whole / 2 + whole / 2 * chance as u32 / 1_024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_differ() {
        let config =
            SourceConfig { pause_first_millis: 100, pause_longest_seconds: 1, ..SourceConfig::example() };
        let mut pause = Pause::new(&config);
        let at = |n: i64| Timestamp::from_micros(1_700_000_000_000_000 + n);
        let pauses: Vec<Duration> = (0..40).map(|n| pause.next(at(n))).collect();
        for (n, pause) in pauses.iter().enumerate() {
            let whole = Duration::from_millis(100 << n.min(4)).min(Duration::from_secs(1));
            assert!(*pause >= whole / 2 && *pause <= whole, "{n}: {pause:?}");
        }
        let later: std::collections::BTreeSet<_> = pauses[4..].iter().collect();
        assert!(later.len() > 20, "{pauses:?}");
    }
}
