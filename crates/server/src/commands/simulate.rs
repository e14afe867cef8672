use std::{sync::Arc, time::Duration};

use dunlin_sim::fleet::{Config, FleetFigures, FleetStats, Provision, ProvisionError, simulate};
use futures::{FutureExt, future::BoxFuture};
use indicatif::{ProgressBar, ProgressStyle};

use super::{client::Client, say};
use crate::{cli::SimulateArgs, exit::Failure, serve::system_clock};

/// The type, and so the table, of simulated devices.
const DEVICE_TYPE: &str = "sensor";
/// For how long a simulated device tries to come back.
const RECONNECT_FOR: Duration = Duration::from_secs(600);
const FIGURES_EVERY: Duration = Duration::from_millis(500);

/// Devices are made known by the API, as a person would.
struct ByApi(Client);

impl Provision for ByApi {
    fn provision<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<String, ProvisionError>> {
        self.0
            .device_token(name, DEVICE_TYPE, true)
            .map(|token| token.map_err(|f| ProvisionError(f.to_string())))
            .boxed()
    }
}

pub(crate) async fn run(args: SimulateArgs) -> Result<(), Failure> {
    let client = Client::new(&args.server)?;
    let mqtt = client.mqtt(args.mqtt).await?;
    let provision = ByApi(client);
    let config = Config {
        target: mqtt,
        topic: "v1/telemetry".to_owned(),
        devices: args.devices as usize,
        name_prefix: args.prefix,
        messages_per_second: args.rate,
        duration: args.duration.map(Duration::from_secs),
        seed: args.seed,
        reconnect_for: RECONNECT_FOR,
    };
    let bar = bar(args.duration);
    let stats = Arc::new(FleetStats::default());
    let drawing = tokio::spawn(draw(bar.clone(), stats.clone(), args.devices));
    let stop = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    let ended = simulate(config, &provision, system_clock(), stats, stop).await;
    drawing.abort();
    bar.finish_and_clear();
    let figures = ended?;
    say!(
        "{} messages sent, {} acknowledged, {} reconnects, {} devices gave up",
        figures.sent,
        figures.acked,
        figures.reconnects,
        figures.gave_up
    )?;
    match figures.sent.saturating_sub(figures.acked) {
        0 => Ok(()),
        open => Err(Failure::Failed(format!("{open} messages were not acknowledged"))),
    }
}

/// With a duration a bar that fills; without one a line of figures.
fn bar(duration: Option<u64>) -> ProgressBar {
    let (bar, style) = match duration {
        Some(seconds) => (ProgressBar::new(seconds), "{bar:30} {pos}/{len} s  {msg}"),
        None => (ProgressBar::new_spinner(), "{spinner} {elapsed}  {msg}"),
    };
    bar.with_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

async fn draw(bar: ProgressBar, stats: Arc<FleetStats>, devices: u32) {
    let mut before = FleetFigures::default();
    let mut every = tokio::time::interval(FIGURES_EVERY);
    loop {
        every.tick().await;
        let now = stats.figures();
        let rate = now.acked.saturating_sub(before.acked) as f64 / FIGURES_EVERY.as_secs_f64();
        bar.set_position(bar.elapsed().as_secs());
        bar.set_message(format!(
            "{}/{devices} connected  {} acked  {rate:.0}/s  {} in flight  {} too hot  {} reconnects",
            now.connected,
            now.acked,
            now.sent.saturating_sub(now.acked),
            now.overheated,
            now.reconnects,
        ));
        bar.tick();
        before = now;
    }
}
