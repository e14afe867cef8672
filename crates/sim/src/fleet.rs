//! A fleet: every device a real MQTT connection with sensors that wander, and now and then one that overheats.

mod sensors; // what a device measures

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use dunlin_model::Clock;
use futures::{StreamExt, future::BoxFuture, stream};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use self::sensors::Sensors;
use crate::publisher::{self, PublishError, Publisher};

/// Devices whose tokens are asked for at the same time.
const PROVISIONING_MAX: usize = 16;
/// Messages of a device in flight.
const WINDOW: u16 = 16;
/// How long a stopping fleet waits for its last answers.
const DRAIN: Duration = Duration::from_secs(10);

/// Makes a device known to the platform. The fleet does not know how.
pub trait Provision: Send + Sync {
    /// The access token of the device called `name`, which is created if there is none.
    fn provision<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<String, ProvisionError>>;
}

/// Why a device could not be made known.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ProvisionError(pub String);

#[derive(Debug, Clone)]
pub struct Config {
    /// `HOST:PORT` of the server's MQTT door.
    pub target: String,
    pub topic: String,
    pub devices: usize,
    /// Devices are called PREFIX-00001 and so on.
    pub name_prefix: String,
    /// Of each device.
    pub messages_per_second: f64,
    /// Without one the fleet runs until it is stopped.
    pub duration: Option<Duration>,
    /// The same seed gives the same devices and the same values.
    pub seed: u64,
    /// For how long a device tries a lost connection again before it gives up.
    pub reconnect_for: Duration,
}

/// Live figures, for whoever draws them.
#[derive(Debug, Default)]
pub struct FleetStats {
    provisioned: AtomicU64,
    connected: AtomicU64,
    sent: AtomicU64,
    acked: AtomicU64,
    reconnects: AtomicU64,
    overheated: AtomicU64,
    gave_up: AtomicU64,
}

/// The figures at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FleetFigures {
    pub provisioned: u64,
    /// Devices with a connection now.
    pub connected: u64,
    /// Messages.
    pub sent: u64,
    pub acked: u64,
    pub reconnects: u64,
    /// Devices that are too hot now.
    pub overheated: u64,
    /// Devices that stopped on an error.
    pub gave_up: u64,
}

impl FleetStats {
    pub fn figures(&self) -> FleetFigures {
        FleetFigures {
            provisioned: self.provisioned.load(Relaxed),
            connected: self.connected.load(Relaxed),
            // In this order no more are acknowledged than were sent.
            acked: self.acked.load(Relaxed),
            sent: self.sent.load(Relaxed),
            reconnects: self.reconnects.load(Relaxed),
            overheated: self.overheated.load(Relaxed),
            gave_up: self.gave_up.load(Relaxed),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error("a fleet needs devices, and a rate above 0 messages per second")]
    Empty,
    #[error("device {name}: {source}")]
    Provision { name: String, source: ProvisionError },
    /// All of them stopped; this is the last one's reason.
    #[error("every device gave up, {name} because {source}")]
    AllGaveUp { name: String, source: PublishError },
}

/// Runs the fleet until `stop` is done or its duration is over, waits for the last answers, and returns the final
/// figures. Devices begin as soon as they are provisioned, at random moments of their interval.
pub async fn simulate(
    config: Config,
    provision: &dyn Provision,
    clock: Clock,
    stats: Arc<FleetStats>,
    stop: impl Future<Output = ()>,
) -> Result<FleetFigures, FleetError> {
    if config.devices == 0 || !config.messages_per_second.is_finite() || config.messages_per_second <= 0.0 {
        return Err(FleetError::Empty);
    }
    let (stopping, stopped) = watch::channel(false);
    let mut devices = JoinSet::new();
    let ended = tokio::select! {
        biased;
        () = stop => Ok(()),
        () = after(config.duration) => Ok(()),
        ended = run(&config, provision, clock, &stats, stopped, &mut devices) => ended,
    };
    // Receivers may be gone already.
    let _ = stopping.send(true);
    while devices.join_next().await.is_some() {}
    ended.map(|()| stats.figures())
}

async fn after(duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

/// Ends only with an error.
async fn run(
    config: &Config,
    provision: &dyn Provision,
    clock: Clock,
    stats: &Arc<FleetStats>,
    stopped: watch::Receiver<bool>,
    devices: &mut JoinSet<Result<(), (String, PublishError)>>,
) -> Result<(), FleetError> {
    let mut tokens = stream::iter(0..config.devices)
        .map(|index| async move {
            let name = format!("{}-{:05}", config.name_prefix, index + 1);
            match provision.provision(&name).await {
                Ok(token) => Ok((index, name, token)),
                Err(source) => Err(FleetError::Provision { name, source }),
            }
        })
        .buffered(PROVISIONING_MAX);
    while let Some(provisioned) = tokens.next().await {
        let (index, name, token) = provisioned?;
        stats.provisioned.fetch_add(1, Relaxed);
        let device = Device {
            sensors: Sensors::new(config.seed, index as u64, config.devices as u64),
            interval: Duration::from_secs_f64((1.0 / config.messages_per_second).min(1e9)),
            publisher: Publisher::new(publisher::Config {
                target: config.target.clone(),
                client_id: name.clone(),
                token,
                topic: config.topic.clone(),
                window: WINDOW,
                reconnect_for: config.reconnect_for,
            }),
            clock: clock.clone(),
            stats: stats.clone(),
            told: Told::default(),
        };
        let stopped = stopped.clone();
        devices.spawn(async move { device.live(stopped).await.map_err(|source| (name, source)) });
    }
    drop(tokens);
    let mut running = devices.len();
    loop {
        match devices.join_next().await {
            Some(Ok(Err((name, source)))) => {
                running -= 1;
                if running == 0 {
                    return Err(FleetError::AllGaveUp { name, source });
                }
                tracing::warn!(device = %name, error = %source, "simulated device gave up");
            }
            Some(_) => running -= 1,
            None => std::future::pending().await,
        }
    }
}

struct Device {
    sensors: Sensors,
    interval: Duration,
    publisher: Publisher,
    clock: Clock,
    stats: Arc<FleetStats>,
    told: Told,
}

/// What this device has added to the fleet's figures.
#[derive(Default)]
struct Told {
    sent: u64,
    acked: u64,
    reconnects: u64,
    connected: bool,
    overheated: bool,
}

impl Device {
    async fn live(mut self, mut stopped: watch::Receiver<bool>) -> Result<(), PublishError> {
        let ended = tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => Ok(()),
            ended = self.measure_on() => ended,
        };
        if ended.is_ok() {
            // What is not answered by now was counted as sent and not as acknowledged.
            let _ = tokio::time::timeout(DRAIN, self.publisher.drain()).await;
        }
        self.tell();
        self.leave(ended.is_err());
        self.publisher.close().await;
        ended
    }

    /// Ends only with an error.
    async fn measure_on(&mut self) -> Result<(), PublishError> {
        let mut due = Instant::now() + self.interval.mul_f64(self.sensors.phase());
        let mut before = None;
        loop {
            self.publisher.pause(due.saturating_duration_since(Instant::now())).await?;
            self.tell();
            let now = self.clock.now();
            let passed = before.map_or(0.0, |before| (now.as_micros() - before) as f64 / 1e6);
            before = Some(now.as_micros());
            let payload = self.sensors.measure(passed.max(0.0), now.as_micros().div_euclid(1_000));
            self.publisher.publish(payload.as_bytes()).await?;
            self.tell();
            due += self.interval;
        }
    }

    fn tell(&mut self) {
        let Told { sent, acked, reconnects, connected, overheated } = &mut self.told;
        raise(&self.stats.sent, sent, self.publisher.sent());
        raise(&self.stats.acked, acked, self.publisher.acked());
        raise(&self.stats.reconnects, reconnects, self.publisher.reconnects());
        turn(&self.stats.connected, connected, self.publisher.is_connected());
        turn(&self.stats.overheated, overheated, self.sensors.is_overheated());
    }

    fn leave(&mut self, gave_up: bool) {
        turn(&self.stats.connected, &mut self.told.connected, false);
        turn(&self.stats.overheated, &mut self.told.overheated, false);
        self.stats.gave_up.fetch_add(u64::from(gave_up), Relaxed);
    }
}

fn raise(total: &AtomicU64, told: &mut u64, now: u64) {
    total.fetch_add(now - *told, Relaxed);
    *told = now;
}

fn turn(total: &AtomicU64, told: &mut bool, now: bool) {
    match (*told, now) {
        (false, true) => _ = total.fetch_add(1, Relaxed),
        (true, false) => _ = total.fetch_sub(1, Relaxed),
        _ => {}
    }
    *told = now;
}
