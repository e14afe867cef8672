use std::{
    net::TcpListener,
    sync::{Arc, Mutex},
    time::Instant,
};

use dunlin_alerting::Alerting;
use dunlin_console::Console;
use dunlin_gateway::{Door, Gateway, Tls};
use dunlin_journal::Journal;
use dunlin_model::{Clock, chain};
use dunlin_pipeline::{Pipeline, RejectedCounter, StoreWriter};
use dunlin_registry::Registry;
use dunlin_tsdb_parquet::ParquetTsdb;
use prometheus_client::registry::Registry as Metrics;
use tokio::{runtime::Handle, task::JoinHandle};

use super::{
    checkpoints,
    directory::RegistryDirectory,
    ending::{CONSUMERS_ENDED_BY, DOORS_CLOSED_BY, Ending, FLUSHED_BY, STOPPED_BY},
    first_start,
    http::{self, Handshake, Http},
    inflow::GatewayInflow,
    journal::ChosenJournal,
    ledger::Ledger,
    platform::ServerPlatform,
    publisher::GatewayPublisher,
    registry_watch::RegistryWatch,
    rules::{self, ServerRules},
};
use crate::{config::Config, exit::Failure};

/// Where clients come in. Taken before anything is opened, served after everything is.
pub(crate) struct Doors {
    pub(crate) mqtt: Vec<Door>,
    pub(crate) http: TcpListener,
    pub(crate) https: Option<TcpListener>,
}

/// What keeps the data.
struct Stores {
    journal: ChosenJournal,
    tsdb: Arc<ParquetTsdb>,
    registry: Registry,
}

/// Everything that runs, in the order in which it was started.
pub(crate) struct Running {
    stores: Stores,
    rejected: RejectedCounter,
    writer: StoreWriter,
    pipeline: Pipeline,
    rules: Arc<ServerRules>,
    alerting: Alerting,
    gateway: Gateway,
    http: Http,
    https: Option<Http>,
    tls: Option<Tls>,
    /// Looks after the certificates.
    renewal: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) async fn start(config: Config, doors: Doors, clock: Clock) -> Result<Self, Failure> {
        let started = Instant::now();
        let rules = rules::load(&config.rules);
        let tls = config.load_tls(clock.clone())?;
        let mut metrics = Metrics::default();
        let stores = Stores::open(&config, &clock, &mut metrics).await?;
        first_start::prepare(&config.data, &config.rules, &stores.registry).await?;
        let rules = match rules {
            Ok(rules) if rules.is_empty() => rules::load(&config.rules)?, // The first start writes an example.
            rules => rules?,
        };
        let journal: Arc<dyn Journal> = stores.journal.handle();
        let (registry, tsdb) = (stores.registry.clone(), stores.tsdb.clone());

        let registry_watch = RegistryWatch::start(registry.clone(), &mut metrics);
        let tenants = registry.tenants().await?;
        let ledger = Ledger::open(&config.data, &*journal, &*stores.tsdb, &tenants)?;
        let rejected = RejectedCounter::start(journal.clone(), &config.data)?;
        let writer = StoreWriter::start(
            config.store.clone(),
            journal.clone(),
            tsdb.clone(),
            &config.data,
            clock.clone(),
            &mut metrics,
        )?;
        let all_rules = rules::together(rules.clone(), &registry).await?;
        let rule_count = all_rules.len();
        let inflow = Arc::new(GatewayInflow::default());
        let pipeline = Pipeline::start(
            config.pipeline.clone(),
            journal.clone(),
            inflow.clone(),
            all_rules,
            checkpoints::open(&config.pipeline.checkpoints, &config.data, environment())?,
            &config.data,
            clock.clone(),
            &mut metrics,
        )?;
        let publisher = Arc::new(GatewayPublisher::default());
        let alerting = Alerting::start(
            &config.alerting,
            journal.clone(),
            registry.clone(),
            clock.clone(),
            Some(publisher.clone()),
            &mut metrics,
        )
        .await?;
        let directory = Arc::new(RegistryDirectory {
            registry: registry.clone(),
            children_max: config.gateway.device_children_max,
            runtime: Handle::current(),
        });
        let gateway = Gateway::start(
            config.gateway.clone(),
            doors.mqtt,
            tls.as_ref(),
            journal.clone(),
            directory,
            clock.clone(),
            config.data.join("sessions"),
            &mut metrics,
        )?;
        inflow.is_through(gateway.view());
        publisher.is_through(gateway.announcer());
        let platform = Arc::new(ServerPlatform {
            started,
            mqtt: gateway.mqtt_addresses()[0],
            journal,
            tsdb: tsdb.clone(),
            store: writer.view(),
            rules: pipeline.view(),
            rejected: rejected.view(),
            gateway: gateway.view(),
            access: gateway.access(),
            registry: registry_watch,
            ledger,
            metrics: Mutex::new(metrics),
        });
        let rules = Arc::new(ServerRules::new(
            config.rules.clone(),
            rules,
            registry.clone(),
            tsdb.clone(),
            pipeline.rules(),
        ));
        let console = Console {
            config: config.console,
            registry,
            tsdb: tsdb.clone(),
            sql: tsdb,
            platform,
            desk: alerting.desk(),
            rules: rules.clone(),
        };
        let routes = gateway.http_routes().merge(dunlin_console::routes(console));
        let limits = http::Limits::new(config.http_connections_max);
        let https = match (doors.https, &tls) {
            (Some(socket), Some(tls)) => {
                let shakes_hands = Handshake { tls: tls.clone(), asked: config.https.client_certificates };
                Some(Http::serve(socket, Some(shakes_hands), routes.clone(), limits.clone())?)
            }
            _ => None,
        };
        let http = Http::serve(doors.http, None, routes, limits)?;
        let renewal = tls.clone().map(|tls| tokio::spawn(keep_certificates(tls)));
        tracing::info!(
            mqtt = config.mqtt,
            http = config.http,
            data = %config.data.display(),
            rules = rule_count,
            opened_in_ms = started.elapsed().as_millis(),
            "ready"
        );
        for (door, address) in config.gateway.listener.iter().zip(&gateway.mqtt_addresses()[1..]) {
            tracing::info!(%address, transport = ?door.transport, tls = door.tls, "MQTT listener");
        }
        Ok(Self { stores, rejected, writer, pipeline, rules, alerting, gateway, http, https, tls, renewal })
    }

    /// Takes the rules as they are on disk now; if one is wrong, those in force stay.
    pub(crate) async fn reload_rules(&self) {
        self.rules.reload_files().await;
    }

    /// Takes the certificates as they are on disk now.
    pub(crate) fn renew_certificates(&self) {
        if let Some(tls) = self.tls.clone() {
            tokio::task::spawn_blocking(move || tls.renew());
        }
    }

    /// Comes back, with the reason, when a part broke that cannot be begun anew beside the others.
    pub(crate) async fn broken(&self) -> String {
        tokio::select! {
            reason = self.stores.journal.broken() => format!("journal: {reason}"),
            reason = self.stores.tsdb.broken() => format!("store: {reason}"),
        }
    }

    /// Leaves everything as it is, as a power cut would: what a broken part knows must not be written, and what was
    /// acknowledged is in the journal.
    pub(crate) fn abandon(self, reason: String) -> Failure {
        std::mem::forget(self);
        Failure::Broken(format!("{reason}; the next start goes on from what is on disk"))
    }

    /// Closes the doors, drains the acknowledgements, ends the consumers, flushes the store, closes the journal.
    /// What fails or hangs on the way does not keep the rest from its turn.
    pub(crate) async fn stop(self) -> Result<(), Failure> {
        let ending = Ending::begin();
        if let Some(renewal) = self.renewal {
            renewal.abort();
        }
        let closing = async {
            let closing_https = async {
                match self.https {
                    Some(https) => https.stop().await,
                    None => Ok(()),
                }
            };
            let (http, https) = tokio::join!(self.http.stop(), closing_https);
            http.and(https)
        };
        let http = ending.of("HTTP", DOORS_CLOSED_BY, closing).await.unwrap_or(Ok(()));
        if let Err(failure) = &http {
            tracing::error!(%failure, "HTTP door");
        }
        ending.of("gateway", DOORS_CLOSED_BY, self.gateway.stop()).await;
        // Only the store writer still has something to say to another: the counter of what was rejected.
        let written = async {
            ending.of("store writer", CONSUMERS_ENDED_BY, self.writer.stop()).await;
            ending.of("count of rejected", CONSUMERS_ENDED_BY, self.rejected.stop()).await;
        };
        tokio::join!(
            ending.of("alerting", CONSUMERS_ENDED_BY, self.alerting.stop()),
            ending.of("rules", CONSUMERS_ENDED_BY, self.pipeline.stop()),
            written,
        );
        let closed = self.stores.close(ending).await;
        http.and(closed)
    }
}

impl Stores {
    async fn open(config: &Config, clock: &Clock, metrics: &mut Metrics) -> Result<Self, Failure> {
        first_start::make_data_directory(&config.data)
            .map_err(|error| Failure::Failed(format!("create {}: {error}", config.data.display())))?;
        let journal = ChosenJournal::open(&config.journal, clock, metrics)?;
        let tsdb = ParquetTsdb::open(config.tsdb.clone(), clock.clone(), metrics)?;
        let registry = Registry::open(&config.registry, clock.clone()).await?;
        Ok(Self { journal, tsdb, registry })
    }

    async fn close(self, ending: Ending) -> Result<(), Failure> {
        let flushed = ending.of("flush", FLUSHED_BY, self.tsdb.close()).await;
        let journal = ending.of("journal", STOPPED_BY, self.journal.handle().close()).await;
        ending.of("registry", STOPPED_BY, self.registry.close()).await;
        if flushed.is_none() || journal.is_none() {
            // Dropped, they would wait for their threads, and those for the disk.
            std::mem::forget((self.tsdb, self.journal));
            return Err(Failure::Failed(
                "not all was written in time; the next start reads the journal".into(),
            ));
        }
        let failed = |error| Failure::Failed(format!("flush the store: {}", chain(&error)));
        flushed.unwrap_or(Ok(())).map_err(failed)
    }
}

/// What can be read of the environment.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Looks at the files of the certificates from time to time.
async fn keep_certificates(tls: Tls) {
    loop {
        let checked = tls.clone();
        let _panicked = tokio::task::spawn_blocking(move || checked.renew()).await;
        tokio::time::sleep(tls.check_every()).await;
    }
}
