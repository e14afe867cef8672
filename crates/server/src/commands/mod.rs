//! Clients of a running server: they speak to its API as anybody could. `check` and `migrate` work on files.

pub(crate) mod alerts;
pub(crate) mod check;
pub(crate) mod command;
pub(crate) mod device;
pub(crate) mod migrate;
pub(crate) mod query;
pub(crate) mod replay;
pub(crate) mod rule;
pub(crate) mod show;
pub(crate) mod silence;
pub(crate) mod simulate;
pub(crate) mod tenant;
pub(crate) mod top;

mod client; // the HTTP API

mod out; // what a command prints

use std::future::Future;

use clap::CommandFactory;

pub(crate) use out::{print_bytes, say};

use crate::{cli::Cli, exit::Failure};

/// Runs a client command to its end.
pub(crate) fn run(command: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(command)
}

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "dunlin", &mut script);
    print_bytes(&script)
}
