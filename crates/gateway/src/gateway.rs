use std::{
    collections::BTreeMap,
    io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use dunlin_journal::Journal;
use dunlin_model::{Clock, TenantId, Timestamp};
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;

use crate::{
    account::{Account, Accounts},
    announce::Announcer,
    arrivals::Arrivals,
    company::Company,
    config::{Config, InvalidConfig, ListenerConfig},
    directory::Directory,
    http,
    listen::{Listener, NoCertificate},
    metrics::{Books, Metrics},
    pubsub::{Follower, PubSub, RecoverError},
    sessions::{Access, Order},
    source::Sources,
    statistics::Statistics,
    tls::Tls,
    worker::Shared,
    workers::Workers,
};

/// The devices' front door, open.
#[derive(Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
    workers: Workers,
    sessions: Follower,
    sources: Sources,
    access: Access,
    addresses: Vec<SocketAddr>,
}

/// A door for MQTT: a socket that is bound, and how it is served.
#[derive(Debug)]
pub struct Door {
    pub socket: TcpListener,
    pub config: ListenerConfig,
}

/// Shows how the gateway stands.
#[derive(Debug, Clone)]
pub struct GatewayView {
    books: Books,
    pubsub: Arc<PubSub>,
}

impl GatewayView {
    /// What became of every record since the start, by tenant.
    pub fn accounts(&self) -> BTreeMap<TenantId, Account> {
        self.books.accounts.snapshot()
    }

    /// When the oldest telemetry was received that the journal has not answered for: all that was received before is
    /// in the journal, or never will be.
    pub fn oldest_under_way(&self) -> Option<Timestamp> {
        self.books.arrivals.oldest()
    }

    /// MQTT connections that are open.
    pub fn connections(&self) -> u64 {
        self.books.metrics.connections.get().max(0) as u64
    }

    /// To be told after an append to the topic of commands: a gateway that is alone does not look all the time.
    pub fn commanded(&self) {
        self.pubsub.appended();
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    #[error("prepare the MQTT listeners")]
    Listener(#[source] io::Error),
    #[error(transparent)]
    NoCertificate(#[from] NoCertificate),
    #[error("start the MQTT workers")]
    Workers(#[source] io::Error),
    #[error("bring back the sessions of MQTT clients")]
    Sessions(#[from] RecoverError),
}

impl Gateway {
    /// Opens the doors for MQTT, of which there is at least one; sessions that outlive their connections have their
    /// snapshots in `snapshots`. Its workers have threads of their own; HTTP runs where
    /// [`http_routes`](Self::http_routes) is served, and sources in the tokio runtime that this is called in.
    #[expect(clippy::too_many_arguments, reason = "a start needs all of them, once")]
    pub fn start(
        config: Config,
        doors: Vec<Door>,
        tls: Option<&Tls>,
        journal: Arc<dyn Journal>,
        directory: Arc<dyn Directory>,
        clock: Clock,
        snapshots: PathBuf,
        company: &Company,
        registry: &mut Registry,
    ) -> Result<Self, StartError> {
        config.check()?;
        let addresses = doors.iter().map(|door| door.socket.local_addr()).collect::<Result<_, _>>();
        let addresses = addresses.map_err(StartError::Listener)?;
        let opened = |door: Door| Ok((door.socket, Listener::new(door.config, tls)?));
        let doors = doors.into_iter().map(opened).collect::<Result<Vec<_>, NoCertificate>>()?;
        let accounts = Accounts::default();
        let sessions = Follower::start(
            journal.clone(),
            clock.clone(),
            snapshots,
            config.pubsub.limits(),
            company,
            Statistics::new(accounts.clone(), &config.pubsub),
        )?;
        let metrics = Arc::new(Metrics::new(registry, &accounts, sessions.pubsub()));
        let books = Books { accounts, arrivals: Arrivals::default(), metrics };
        let shared = Arc::new(Shared::new(config, journal, sessions.pubsub(), directory, clock, books));
        let access = Access {
            admissions: shared.admissions.clone(),
            sessions: shared.sessions.clone(),
            accounts: shared.books.accounts.clone(),
        };
        shared.pubsub.takes_back(access.clone());
        shared.guard.register(registry);
        if let Some(tls) = tls {
            tls.register(registry);
        }

        let workers = match Workers::start(&shared, doors) {
            Ok(workers) => workers,
            Err(error) => {
                sessions.stop(); // The other gateways are not to wait for this one.
                return Err(StartError::Workers(error));
            }
        };
        let sources = Sources::start(&shared, company, registry)?;
        Ok(Self { shared, workers, sessions, sources, access, addresses })
    }

    /// Where MQTT is spoken, door by door.
    pub fn mqtt_addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// `POST /v1/telemetry`, `/v1/events`, `/v1/d/{device}/telemetry`, and what InfluxDB's clients ask for.
    pub fn http_routes(&self) -> axum::Router {
        http::routes(self.shared.clone())
    }

    /// What became of every record since the start.
    pub fn accounts(&self) -> Accounts {
        self.shared.books.accounts.clone()
    }

    /// To take back the access that the directory gave.
    pub fn access(&self) -> Access {
        self.access.clone()
    }

    /// Comes back when the other gateways on the journal have gone on without this one: they did not hear of it for too
    /// long, or another process has its name.
    pub async fn left_behind(&self) {
        self.shared.pubsub.left_behind().await;
    }

    /// To publish in a tenant as the server.
    pub fn announcer(&self) -> Announcer {
        Announcer::of_gateway(self.shared.pubsub.clone(), self.shared.clock.clone())
    }

    /// How the gateway stands, also while somebody else stops it.
    pub fn view(&self) -> GatewayView {
        GatewayView { books: self.shared.books.clone(), pubsub: self.shared.pubsub.clone() }
    }

    /// Closes the doors, lets what was appended be acknowledged, says goodbye, and ends the workers. HTTP is ended
    /// by whoever serves it, before.
    pub async fn stop(self) {
        let Self { shared, workers, sessions, sources, .. } = self;
        sources.stop().await;
        let patience = Duration::from_secs(shared.config.drain_seconds_max.into());
        if tokio::time::timeout(patience, workers_leave(&shared)).await.is_err() {
            tracing::warn!("stopped with publishes unanswered: the journal did not answer in time");
        }
        let _panicked = tokio::task::spawn_blocking(move || {
            workers.end();
            sessions.stop();
        })
        .await;
    }
}

async fn workers_leave(shared: &Shared) {
    let left: Vec<_> = {
        let workers = shared.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers
            .values()
            .filter_map(|orders| {
                let (left, leaving) = oneshot::channel();
                orders.send(Order::Leave { left }).is_ok().then_some(leaving)
            })
            .collect()
    };
    futures::future::join_all(left).await;
}
