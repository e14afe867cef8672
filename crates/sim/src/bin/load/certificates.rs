use std::{error::Error, path::PathBuf};

use clap::Args;

/// Make an authority, a certificate of a server on loopback, and devices' certificates signed by it, for tests.
///
/// Writes ca.pem, server.pem, server.key, and NAME.pem and NAME.key for each device. The keys are ECDSA P-256.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Directory to write to.
    directory: PathBuf,
    /// Names of devices.
    devices: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    Ok(dunlin_sim::certificates::write(&arguments.directory, &arguments.devices)?)
}
