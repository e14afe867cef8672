use std::time::Duration;

use dunlin_model::{DeviceId, MetricName};
use dunlin_sim::replay::{Config, replay};
use indicatif::{ProgressBar, ProgressStyle};

use super::{client::Client, say};
use crate::{cli::ReplayArgs, exit::Failure};

/// For how long a lost connection is tried again.
const RECONNECT_FOR: Duration = Duration::from_secs(120);

pub(crate) async fn run(args: ReplayArgs) -> Result<(), Failure> {
    DeviceId::check(&args.device)?;
    MetricName::check(&args.metric)?;
    if !args.file.is_file() {
        return Err(Failure::Failed(format!("there is no file {}", args.file.display())));
    }
    let client = Client::new(&args.server)?;
    let mqtt = client.mqtt(args.mqtt).await?;
    let token = client.device_token(&args.device, "default", false).await?;
    let config = Config {
        file: args.file,
        metric: args.metric,
        target: mqtt,
        client_id: format!("replay-{}", args.device),
        token,
        topic: "v1/telemetry".to_owned(),
        speed: args.speed,
        reconnect_for: RECONNECT_FOR,
    };
    let style = ProgressStyle::with_template("{spinner} {elapsed}  {pos} readings  {per_sec}  {msg}");
    let bar =
        ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    let ended = replay(&config, |so_far| {
        bar.set_position(so_far.readings);
        bar.set_message(format!("{} of {} messages acknowledged", so_far.acked, so_far.messages));
    })
    .await;
    bar.finish_and_clear();
    let done = ended?;
    say!(
        "{} readings in {} messages, all acknowledged, {} reconnects",
        done.readings,
        done.messages,
        done.reconnects
    )?;
    Ok(())
}
