//! The binary `dunlin`: configuration, choosing backends, wiring, shutdown; and the commands that talk to it.

mod cli; // what one can type
mod config; // what one can write down
mod exit; // what a script is told

mod serve; // the platform

mod commands; // its clients

use clap::Parser;
use cli::{Cli, Command};
use exit::Failure;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(args),
        Command::Check(args) => commands::check::run(&args),
        Command::Migrate(args) => commands::run(commands::migrate::run(args)),
        Command::Completions { shell } => commands::completions(shell),
        Command::Device { command, server } => commands::run(commands::device::run(command, server)),
        Command::Command { command, server } => commands::run(commands::command::run(command, server)),
        Command::Tenant { command, server } => commands::run(commands::tenant::run(command, server)),
        Command::Rule { command, server } => commands::run(commands::rule::run(command, server)),
        Command::Query { sql, format, server } => commands::run(commands::query::run(sql, format, server)),
        Command::Ledger { server } => commands::run(commands::show::ledger(server)),
        Command::Alerts(args) => commands::run(commands::alerts::run(args)),
        Command::Silence { command, server } => commands::run(commands::silence::run(command, server)),
        Command::Simulate(args) => commands::run(commands::simulate::run(args)),
        Command::Replay(args) => commands::run(commands::replay::run(args)),
        Command::Top { server } => commands::run(commands::top::run(server)),
    }
}
