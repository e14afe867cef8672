use std::{
    net::TcpListener,
    sync::{Arc, Mutex},
    time::Instant,
};

use dunlin_alerting::{Alerting, Desk, Publisher};
use dunlin_console::{Console, Elsewhere, Store, Vitals};
use dunlin_fleet::Fleet;
use dunlin_gateway::{Announcer, Door, Gateway, Tls};
use dunlin_journal::Journal;
use dunlin_model::{Clock, chain};
use dunlin_pipeline::{Inflow, Pipeline, RejectedCounter, StoreWriter};
use dunlin_registry::Registry;
use dunlin_tsdb::Tsdb;
use dunlin_tsdb_parquet::ParquetTsdb;
use prometheus_client::registry::Registry as Metrics;
use tokio::{runtime::Handle, task::JoinHandle};

use super::{
    checkpoints,
    directory::RegistryDirectory,
    ending::{CONSUMERS_ENDED_BY, DOORS_CLOSED_BY, Ending, FLUSHED_BY, STOPPED_BY},
    first_start,
    http::{self, Handshake, Http},
    inflow::{FarInflow, GatewayInflow},
    journal::ChosenJournal,
    ledger::Ledger,
    platform::ServerPlatform,
    publisher::GatewayPublisher,
    registry_watch::RegistryWatch,
    rules::{self, ServerRules},
    turns::Turns,
};
use crate::{
    config::{Config, Role},
    exit::Failure,
};

/// Where clients come in. Taken before anything is opened, served after everything is.
pub(crate) struct Doors {
    pub(crate) mqtt: Vec<Door>,
    pub(crate) http: TcpListener,
    pub(crate) https: Option<TcpListener>,
}

/// What keeps the data.
struct Stores {
    journal: ChosenJournal,
    /// Of a process with the role.
    tsdb: Option<Arc<ParquetTsdb>>,
    registry: Registry,
}

/// Everything that runs, in the order in which it was started.
pub(crate) struct Running {
    stores: Stores,
    turns: Turns,
    store: Option<Storing>,
    pipeline: Option<Pipeline>,
    rules: Option<Arc<ServerRules>>,
    /// Looks after the rules of others.
    following: Option<JoinHandle<()>>,
    alerting: Option<Alerting>,
    fleet: Option<Fleet>,
    gateway: Option<Gateway>,
    http: Http,
    https: Option<Http>,
    tls: Option<Tls>,
    /// Looks after the certificates.
    renewal: Option<JoinHandle<()>>,
}

/// What the role store does.
struct Storing {
    rejected: RejectedCounter,
    writer: StoreWriter,
}

impl Running {
    /// `None` if it was told to end before it had its turn.
    pub(crate) async fn start(
        config: Config,
        mut doors: Doors,
        clock: Clock,
    ) -> Result<Option<Self>, Failure> {
        let mut started = Instant::now();
        let has = |role| config.roles.has(role);
        let tls = config.load_tls(clock.clone())?;
        let mut metrics = Metrics::default();
        let rules = rules::load(&config.rules);
        first_start::make_data_directory(&config.data)
            .map_err(|error| Failure::Failed(format!("create {}: {error}", config.data.display())))?;
        let journal = ChosenJournal::open(&config.journal, &clock, &mut metrics)?;
        let mut turns = Turns::default();
        if !config.roles.are_all() {
            // Whoever comes meanwhile is not to wait at a door that nobody is behind.
            drop(doors);
            match Turns::wait(&*journal.handle(), &config.roles).await? {
                Some(had) => turns = had,
                None => return Ok(None),
            }
            doors = Doors::take(&config)?;
            started = Instant::now();
        }
        let stores = Stores::open(&config, journal, &clock, &mut metrics).await?;
        if has(Role::Console) {
            first_start::prepare(&config.data, &config.rules, &stores.registry).await?;
        }
        let rules = match rules {
            Ok(rules) if rules.is_empty() => rules::load(&config.rules)?, // The first start writes an example.
            rules => rules?,
        };
        let journal: Arc<dyn Journal> = stores.journal.handle();
        let registry = stores.registry.clone();

        let registry_watch = RegistryWatch::start(registry.clone(), &mut metrics);
        let mut ledger = None;
        let mut store = None;
        if let Some(tsdb) = &stores.tsdb {
            let tenants = registry.tenants().await?;
            ledger = Some(Ledger::open(&config.data, &*journal, &**tsdb, &tenants)?);
            let rejected = RejectedCounter::start(journal.clone(), &config.data)?;
            let writer = StoreWriter::start(
                config.store.clone(),
                journal.clone(),
                tsdb.clone(),
                &config.data,
                clock.clone(),
                &mut metrics,
            )?;
            store = Some(Storing { rejected, writer });
        }
        let mut pipeline = None;
        let (near, mut rule_count) = (Arc::new(GatewayInflow::default()), 0);
        if has(Role::Pipeline) {
            let all_rules = rules::together(rules.clone(), &registry).await?;
            rule_count = all_rules.len();
            let inflow: Arc<dyn Inflow> = match config.roles.are_all() {
                true => near.clone(),
                false => Arc::new(FarInflow::new(config.pipeline.inflow_seconds_max, clock.clone())),
            };
            let checkpoints = checkpoints::open(&config.pipeline.checkpoints, &config.data, environment())?;
            let checkpoints = if config.roles.are_all() { checkpoints } else { checkpoints.shared() };
            pipeline = Some(Pipeline::start(
                config.pipeline.clone(),
                journal.clone(),
                inflow,
                all_rules,
                checkpoints,
                &config.data,
                clock.clone(),
                &mut metrics,
            )?);
        }
        let publisher = Arc::new(GatewayPublisher::default());
        let mut alerting = None;
        if has(Role::Alerting) {
            if !has(Role::Gateway) {
                publisher.is_through(Announcer::by_log(journal.clone(), clock.clone()));
            }
            let publisher = Some(publisher.clone() as Arc<dyn Publisher>);
            let (journal, registry) = (journal.clone(), registry.clone());
            let started =
                Alerting::start(&config.alerting, journal, registry, clock.clone(), publisher, &mut metrics);
            alerting = Some(started.await?);
        }
        let fleet = has(Role::Fleet)
            .then(|| Fleet::start(journal.clone(), registry.clone(), clock.clone(), &mut metrics));
        let mut gateway = None;
        if has(Role::Gateway) {
            let directory = Arc::new(RegistryDirectory {
                registry: registry.clone(),
                children_max: config.gateway.device_children_max,
                runtime: Handle::current(),
            });
            let started = Gateway::start(
                config.gateway.clone(),
                doors.mqtt,
                tls.as_ref(),
                journal.clone(),
                directory,
                clock.clone(),
                config.data.join("sessions"),
                &config.company(),
                &mut metrics,
            )?;
            near.is_through(started.view());
            publisher.is_through(started.announcer());
            gateway = Some(started);
        }
        let platform = Arc::new(ServerPlatform {
            started,
            mqtt: gateway.as_ref().map(|gateway| gateway.mqtt_addresses()[0]),
            journal,
            registry: registry_watch,
            tsdb: stores.tsdb.clone().map(|tsdb| tsdb as Arc<dyn Tsdb>),
            store: store.as_ref().map(|store| store.writer.view()),
            rejected: store.as_ref().map(|store| store.rejected.view()),
            rules: pipeline.as_ref().map(Pipeline::view),
            gateway: gateway.as_ref().map(Gateway::view),
            access: gateway.as_ref().map(Gateway::access),
            has_company: !config.roles.are_all(),
            ledger,
            clock: clock.clone(),
            metrics: Mutex::new(metrics),
        });
        let in_force = pipeline.as_ref().map(Pipeline::rules);
        let mut in_console = None;
        let mut following = None;
        // Another process may have a console, too, and change rules there.
        if let Some(in_force) = in_force.clone().filter(|_| !config.roles.are_all()) {
            let following_rules = rules::follow(config.rules.clone(), registry.clone(), in_force);
            following = Some(tokio::spawn(following_rules));
        }
        let mut routes = match has(Role::Console) {
            true => {
                let tsdb = stores.tsdb.clone().map(|tsdb| tsdb as Arc<dyn Tsdb>);
                let (dir, of_rules) = (config.rules.clone(), registry.clone());
                let rules = Arc::new(ServerRules::new(dir, rules, of_rules, tsdb, in_force));
                in_console = Some(rules.clone());
                let store = match stores.tsdb.clone() {
                    Some(tsdb) => Store::Here { tsdb: tsdb.clone(), sql: tsdb },
                    None => Store::Elsewhere(
                        Elsewhere::new(&config.console).map_err(|error| Failure::Invalid(chain(&error)))?,
                    ),
                };
                let desk = match &alerting {
                    Some(alerting) => alerting.desk(),
                    None => Desk::of_another(&config.alerting, &registry, clock.clone()).await?,
                };
                dunlin_console::routes(Console {
                    config: config.console,
                    registry,
                    store,
                    platform,
                    desk,
                    rules,
                })
            }
            false => dunlin_console::vitals(Vitals { config: config.console, registry, platform }),
        };
        if let Some(gateway) = &gateway {
            routes = gateway.http_routes().merge(routes);
        }
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
            roles = ?config.roles.0,
            mqtt = config.mqtt,
            http = config.http,
            data = %config.data.display(),
            rules = rule_count,
            opened_in_ms = started.elapsed().as_millis(),
            "ready"
        );
        let further = gateway.as_ref().map_or(&[][..], |gateway| &gateway.mqtt_addresses()[1..]);
        for (door, address) in config.gateway.listener.iter().zip(further) {
            tracing::info!(%address, transport = ?door.transport, tls = door.tls, "MQTT listener");
        }
        let rules = in_console;
        Ok(Some(Self {
            stores,
            turns,
            store,
            pipeline,
            rules,
            following,
            alerting,
            fleet,
            gateway,
            http,
            https,
            tls,
            renewal,
        }))
    }

    /// Takes the rules as they are on disk now; if one is wrong, those in force stay.
    pub(crate) async fn reload_rules(&self) {
        if let Some(rules) = &self.rules {
            rules.reload_files().await;
        }
    }

    /// Takes the certificates as they are on disk now.
    pub(crate) fn renew_certificates(&self) {
        if let Some(tls) = self.tls.clone() {
            tokio::task::spawn_blocking(move || tls.renew());
        }
    }

    /// Comes back, with the reason, when a part broke that cannot be begun anew beside the others.
    pub(crate) async fn broken(&mut self) -> String {
        let store_broken = async {
            match &self.stores.tsdb {
                Some(tsdb) => tsdb.broken().await,
                None => std::future::pending().await,
            }
        };
        let left_behind = async {
            match &self.gateway {
                Some(gateway) => gateway.left_behind().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = left_behind => "gateway: the others go on without this one: it was not heard of, or its name is another's".into(),
            reason = self.stores.journal.broken() => format!("journal: {reason}"),
            reason = store_broken => format!("store: {reason}"),
            role = self.turns.over() => format!("the role {role:?} is another process's: this one was not heard of"),
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
        self.renewal.into_iter().chain(self.following).for_each(|task| task.abort());
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
        if let Some(gateway) = self.gateway {
            ending.of("gateway", DOORS_CLOSED_BY, gateway.stop()).await;
        }
        // Only the store writer still has something to say to another: the counter of what was rejected.
        let written = async {
            let Some(Storing { rejected, writer }) = self.store else { return };
            ending.of("store writer", CONSUMERS_ENDED_BY, writer.stop()).await;
            ending.of("count of rejected", CONSUMERS_ENDED_BY, rejected.stop()).await;
        };
        let told = async {
            if let Some(alerting) = self.alerting {
                ending.of("alerting", CONSUMERS_ENDED_BY, alerting.stop()).await;
            }
        };
        let recorded = async {
            if let Some(fleet) = self.fleet {
                ending.of("fleet", CONSUMERS_ENDED_BY, fleet.stop()).await;
            }
        };
        let evaluated = async {
            if let Some(pipeline) = self.pipeline {
                ending.of("rules", CONSUMERS_ENDED_BY, pipeline.stop()).await;
            }
        };
        tokio::join!(told, recorded, evaluated, written);
        drop(self.turns);
        let closed = self.stores.close(ending).await;
        http.and(closed)
    }
}

impl Stores {
    async fn open(
        config: &Config,
        journal: ChosenJournal,
        clock: &Clock,
        metrics: &mut Metrics,
    ) -> Result<Self, Failure> {
        let tsdb = match config.roles.has(Role::Store) {
            true => Some(ParquetTsdb::open(config.tsdb.clone(), clock.clone(), metrics)?),
            false => None,
        };
        let registry = Registry::open(&config.registry, clock.clone()).await?;
        Ok(Self { journal, tsdb, registry })
    }

    async fn close(self, ending: Ending) -> Result<(), Failure> {
        let flushed = match &self.tsdb {
            Some(tsdb) => ending.of("flush", FLUSHED_BY, tsdb.close()).await,
            None => Some(Ok(())),
        };
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
