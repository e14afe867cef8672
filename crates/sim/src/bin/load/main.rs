//! Without a command: publish. The commands measure other things.

mod certificates; // make some
mod connects; // come and go
mod fan_out; // few to many
mod http; // requests
mod idle; // stand there
mod publish; // as much as is acknowledged

mod server; // where, as whom, how encrypted

use std::{error::Error, process::ExitCode};

use clap::{Parser, Subcommand};

/// Load a server as devices do, and measure.
///
/// Without a command it publishes over MQTT as fast as the server acknowledges, or at a fixed rate. Prints a table for
/// people on standard error and JSON objects on standard output, one a line.
#[derive(Debug, Parser)]
#[command(name = "dunlin-load", version, args_conflicts_with_subcommands = true)]
struct Load {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    publish: publish::Arguments,
}

#[derive(Debug, Subcommand)]
enum Command {
    Connects(connects::Arguments),
    FanOut(fan_out::Arguments),
    Http(http::Arguments),
    Idle(idle::Arguments),
    Certificates(certificates::Arguments),
}

fn main() -> ExitCode {
    match run(Load::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dunlin-load: {}", dunlin_model::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Load) -> Result<(), Box<dyn Error>> {
    match arguments.command {
        None => publish::run(&arguments.publish),
        Some(Command::Connects(arguments)) => connects::run(&arguments),
        Some(Command::FanOut(arguments)) => fan_out::run(&arguments),
        Some(Command::Http(arguments)) => http::run(&arguments),
        Some(Command::Idle(arguments)) => idle::run(&arguments),
        Some(Command::Certificates(arguments)) => certificates::run(&arguments),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Load::command().debug_assert();
        Load::try_parse_from(["dunlin-load", "-c", "3", "--rate", "10"]).unwrap();
        let both = ["dunlin-load", "--rate", "10", "connects", "-c", "3"];
        Load::try_parse_from(both).unwrap_err();
    }
}
