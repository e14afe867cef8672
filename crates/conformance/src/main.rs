//! `dunlin-mqtt-conformance`: what the normative statements of MQTT 3.1.1 and 5.0 ask of a server, tried on any broker.

mod check; // what a check is, and what it may use
mod checks; // the statements, by packet type
mod connection; // one raw connection
mod report; // table, JSON, Markdown
mod run; // all checks, some at a time
mod wire; // packets as bytes

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::check::Target;
use crate::report::Format;

/// Tries every normative statement about servers on an MQTT broker, with raw packets over plain TCP.
///
/// Exits with 0 when nothing failed, 1 when something did, 2 when the broker cannot be reached or takes nobody.
#[derive(Debug, Parser)]
#[command(name = "dunlin-mqtt-conformance", version)]
struct Options {
    /// The broker.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:1883")]
    target: String,
    /// User name to send. Given several times, the clients of a check take them in turn; a client id
    /// always comes with the same one.
    #[arg(long = "username", visible_alias = "username-v", value_name = "NAME")]
    usernames: Vec<String>,
    /// Password to send with every user name.
    #[arg(long, value_name = "PASSWORD", requires = "usernames")]
    password: Option<String>,
    /// What every topic begins with.
    #[arg(long, value_name = "TOPIC", default_value = "conformance")]
    topic_prefix: String,
    /// Only statements that begin so, for example `MQTT-3.8` or `5.0:MQTT-3.3.2-6`.
    #[arg(long, value_name = "PREFIX")]
    only: Option<String>,
    /// Checks at a time.
    #[arg(long, value_name = "N", default_value_t = 8)]
    jobs: usize,
    /// How long an answer may take.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 2_000)]
    limit_milliseconds: u64,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Show what would be checked.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let checks = checks::all(options.only.as_deref());
    if options.list {
        return print(&report::list(&checks, options.format), ExitCode::SUCCESS);
    }
    let limit = Duration::from_millis(options.limit_milliseconds);
    let target = match Target::resolve(
        &options.target,
        options.usernames,
        options.password,
        options.topic_prefix,
        limit,
    ) {
        Ok(target) => target,
        Err(error) => {
            eprintln!("dunlin-mqtt-conformance: {error}");
            return ExitCode::from(2);
        }
    };
    let results = run::all(&checks, &target, options.jobs);
    let code = match &results {
        results if results.iter().any(|result| result.verdict.is_fail()) => ExitCode::FAILURE,
        results if results.iter().any(|result| result.verdict.is_pass()) => ExitCode::SUCCESS,
        _ => ExitCode::from(2),
    };
    print(&report::results(&results, options.format), code)
}

/// A reader that has gone away, such as `head`, is no failure.
fn print(text: &str, code: ExitCode) -> ExitCode {
    let _ = std::io::stdout().write_all(text.as_bytes());
    code
}
