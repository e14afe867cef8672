//! The platform in one process: open the stores, start what works on them, open the doors; and the same backwards.

mod checkpoints; // of the rules
mod directory; // the gateway's "who is this?"
mod ending; // that a stop has an end
mod first_start; // what a new data directory is given
mod http; // one of the doors
mod inflow; // the rules' question "what is still to come?"
mod journal; // the one that was chosen
mod ledger; // the account of every message
mod platform; // what the console shows
mod publisher; // alerting's way into publish and subscribe
mod registry_watch; // that the registry answers
mod rules; // those in force, and what they would have found
mod running; // start and stop
mod turns; // roles that one process has at a time

use std::net::{TcpListener, ToSocketAddrs};

use dunlin_gateway::{Door, ListenerConfig};
use dunlin_model::{Clock, Timestamp};
use running::{Doors, Running};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    cli::{LogFormat, ServeArgs},
    config::{Config, Role},
    exit::Failure,
};

pub(crate) fn run(args: ServeArgs) -> Result<(), Failure> {
    let config = Config::load(&args)?;
    if args.print_config {
        print!("{}", config.to_toml()?);
        return Ok(());
    }
    log(&args)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let served = runtime.block_on(serve(config.located()));
    runtime.shutdown_background();
    served
}

async fn serve(config: Config) -> Result<(), Failure> {
    // Held from here on: a port that is taken is told before anything is opened.
    let doors = Doors::take(&config)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;

    // What a start waits for may not answer. Nothing was acknowledged yet, so there is nothing to end in order.
    let started = tokio::select! {
        started = Running::start(config, doors, system_clock()) => started?,
        _ = terminate.recv() => std::process::exit(0),
        _ = interrupt.recv() => std::process::exit(0),
    };
    let Some(mut running) = started else { return Ok(()) };
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hang_up.recv() => {
                running.reload_rules().await;
                running.renew_certificates();
            }
            reason = running.broken() => return Err(running.abandon(reason)),
        }
    }
    tracing::info!("stopping");
    running.stop().await
}

impl Doors {
    fn take(config: &Config) -> Result<Self, Failure> {
        let plain = ListenerConfig::plain(&config.mqtt);
        let of_mqtt =
            |door: ListenerConfig| Ok(Door { socket: listen("mqtt", &door.address)?, config: door });
        let mqtt = std::iter::once(plain).chain(config.gateway.listener.clone());
        let mqtt = mqtt.filter(|_| config.roles.has(Role::Gateway)).map(of_mqtt);
        let https = match config.https.address.as_str() {
            "" => None,
            address => Some(listen("https", address)?),
        };
        Ok(Self { mqtt: mqtt.collect::<Result<_, Failure>>()?, http: listen("http", &config.http)?, https })
    }
}

fn listen(door: &str, address: &str) -> Result<TcpListener, Failure> {
    let problem = |error: std::io::Error| Failure::Failed(format!("listen for {door} on {address}: {error}"));
    let resolved: Vec<_> = address.to_socket_addrs().map_err(problem)?.collect();
    let listener = TcpListener::bind(&resolved[..]).map_err(problem)?;
    listener.set_nonblocking(true).map_err(problem)?;
    Ok(listener)
}

pub(crate) fn system_clock() -> Clock {
    Clock::new(|| {
        let since_1970 = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        Timestamp::from_micros(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX))
    })
}

fn log(args: &ServeArgs) -> Result<(), Failure> {
    use std::io::{self, IsTerminal};
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log)
        .map_err(|error| Failure::Invalid(format!("--log {:?}: {error}", args.log)))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match args.log_format {
        LogFormat::Human => log.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}
