use std::time::Instant;

use dunlin_registry::{Config as RegistryConfig, CopyStep, Progress, copy};

use super::say;
use crate::{cli::MigrateArgs, config::Config, exit::Failure};

pub(crate) async fn run(args: MigrateArgs) -> Result<(), Failure> {
    let mut config = match &args.config {
        Some(file) => Config::read(file)?,
        None => Config::default(),
    };
    config.data = args.data.unwrap_or(config.data);
    config.check()?;
    let from = config.located().registry;
    // A typing error must not be waited for.
    let to = RegistryConfig {
        url: args.to,
        password_file: args.password_file,
        start_seconds_max: 0,
        ..RegistryConfig::default()
    };
    to.check()
        .map_err(|error| Failure::Invalid(dunlin_model::chain(&error).replace("registry.url", "--to")))?;

    let began = Instant::now();
    let copied = copy(&from, &to, tell).await?;
    say!(
        "{} rows of {} tables copied and compared in {:.1} s",
        copied.rows,
        copied.tables,
        began.elapsed().as_secs_f64()
    )?;
    if copied.is_whole {
        say!("Say url = \"postgres://...\" in [registry] and start the server. Its file is left as it is.")?;
    } else {
        say!("A server uses the original, so this copy is of now and no server starts on it.")?;
        say!("To move, stop that server and run this again.")?;
    }
    Ok(())
}

fn tell(Progress { step, table, rows, of }: Progress) {
    let done = match step {
        CopyStep::Copying => "copied",
        CopyStep::Comparing => "compared",
    };
    eprintln!("{done} {rows} of {of} {table}");
}
