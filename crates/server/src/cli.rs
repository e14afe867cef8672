use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dunlin_sim::replay::Speed;
use serde_json::value::RawValue;

pub(crate) const DATA_DEFAULT: &str = "dunlin-data";
pub(crate) const MQTT_DEFAULT: &str = "127.0.0.1:1883";
pub(crate) const HTTP_DEFAULT: &str = "127.0.0.1:8080";

#[derive(Debug, Parser)]
#[command(
    name = "dunlin",
    version,
    about = "IoT telemetry and fleet platform: measurements in over MQTT and HTTP, durable before they are acknowledged,\nstored for years, watched by rules, asked for by SQL.",
    after_help = "\
Start here:
  dunlin serve                                   the whole platform, data in ./dunlin-data
  export DUNLIN_TOKEN=$(cat dunlin-data/admin.token)
  TOKEN=$(dunlin device add pump-1)              a device and its access token
  mosquitto_pub -u $TOKEN -t v1/telemetry -q 1 -m '{\"temperature\": 21.5}'
  dunlin query 'SELECT * FROM readings' --format table

Exit codes:
  0  done
  1  could not be done; standard error says why
  2  the command line is not understood
  3  the configuration or a rule is not valid
  4  the server cannot be reached, or does not know the token
  5  a part of the server broke (a bug); start it again, nothing acknowledged is lost"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::enum_variant_names, reason = "one of the commands is `dunlin command`")]
pub(crate) enum Command {
    /// Run the platform: gateway, journal, store, rules, alerting, API
    Serve(ServeArgs),
    /// Add and list devices, give them tokens
    Device {
        #[command(subcommand)]
        command: DeviceCommand,
        #[command(flatten)]
        server: Server,
    },
    /// Send commands to devices, and see what came of them
    #[command(after_help = "\
Examples:
  dunlin command send pump-1 reboot
  dunlin command send pump-1 set-interval '{\"seconds\": 10}' --expires-in 3600 --wait
  dunlin command list pump-1")]
    Command {
        #[command(subcommand)]
        command: CommandCommand,
        #[command(flatten)]
        server: Server,
    },
    /// Add and list tenants (platform administrator)
    Tenant {
        #[command(subcommand)]
        command: TenantCommand,
        #[command(flatten)]
        server: Server,
    },
    /// Ask by SQL: every device type is a table, `readings` is the long view over all
    #[command(after_help = "\
Examples:
  dunlin query 'SELECT * FROM readings ORDER BY time DESC LIMIT 10' --format table
  dunlin query 'SELECT device, max(temperature) FROM default GROUP BY device'
  dunlin query \"SELECT date_trunc('hour', time) AS hour, avg(value) FROM readings WHERE metric = 'temperature' GROUP BY 1 ORDER BY 1\"")]
    Query {
        /// The statement
        sql: String,
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
        #[command(flatten)]
        server: Server,
    },
    /// Show the account of every message: accepted = stored + duplicate + expired + sampled + in flight
    Ledger {
        #[command(flatten)]
        server: Server,
    },
    /// List alerts, the newest first; acknowledge, comment, assign, snooze them
    #[command(after_help = "\
Examples:
  dunlin alerts --state open
  dunlin alerts show 6b1c3f0a9d2e4875
  dunlin alerts ack 6b1c3f0a9d2e4875 --comment 'on my way'
  dunlin alerts snooze 6b1c3f0a9d2e4875 --for 2h")]
    Alerts(AlertsArgs),
    /// Silence alerts for a time: add, list, expire
    #[command(after_help = "\
Examples:
  dunlin silence add rule=too-hot 'device=~press-.*' --duration 2h --comment 'new sensors'
  dunlin silence add device=press-7 --start 2026-02-01T02:00:00Z --duration 1h --every 7d
  dunlin silence expire sil_0c9e...")]
    Silence {
        #[command(subcommand)]
        command: SilenceCommand,
        #[command(flatten)]
        server: Server,
    },
    /// Test rules, prove them on stored history, put them in force
    Rule {
        #[command(subcommand)]
        command: RuleCommand,
        #[command(flatten)]
        server: Server,
    },
    /// Connect a fleet of simulated devices over real MQTT connections
    Simulate(SimulateArgs),
    /// Publish a CSV file (header `timestamp,value`) as a device, keeping the file's times
    Replay(ReplayArgs),
    /// Watch rates, latencies, ledger, alerts and lag live
    Top {
        #[command(flatten)]
        server: Server,
    },
    /// Validate the configuration and the rules without starting anything
    Check(CheckArgs),
    /// Copy the registry from its file into a PostgreSQL database, and compare the two
    #[command(after_help = "\
Examples:
  dunlin migrate --to postgres://dunlin@db.example.com/dunlin --password-file db.password
The server may run: that tells how long it takes. Then stop it and do it again; only a copy that was made
while nobody used the original is one that a server starts on.")]
    Migrate(MigrateArgs),
    /// Print a completion script: `dunlin completions bash > /etc/bash_completion.d/dunlin`
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AlertsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<AlertCommand>,
    /// Only those in these states, by comma: pending, firing, acknowledged, resolved, cancelled; `open` is the first three
    #[arg(long)]
    pub(crate) state: Option<String>,
    /// Only those of this device
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Only those of this rule
    #[arg(long)]
    pub(crate) rule: Option<String>,
    #[command(flatten)]
    pub(crate) server: Server,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AlertCommand {
    /// All about one alert: what happened, who did what, who was told and who was not and why
    Show {
        /// Its id, or the fingerprint for the newest
        alert: String,
    },
    /// Say that you look after them: nobody else is told
    Ack {
        #[arg(required = true)]
        alerts: Vec<String>,
        #[arg(long, default_value = "")]
        comment: String,
        /// Who you are [default: what the token is]
        #[arg(long)]
        by: Option<String>,
    },
    /// Take it back: others are told again
    Unack {
        #[arg(required = true)]
        alerts: Vec<String>,
        #[arg(long, default_value = "")]
        comment: String,
        #[arg(long)]
        by: Option<String>,
    },
    /// Say something of an alert
    Comment {
        alert: String,
        comment: String,
        #[arg(long)]
        by: Option<String>,
    },
    /// Give an alert to somebody; to nobody without a name
    Assign {
        alert: String,
        to: Option<String>,
        #[arg(long)]
        by: Option<String>,
    },
    /// Hear no more of an alert for a time
    Snooze {
        alert: String,
        /// 30m, 2h, 1d
        #[arg(long = "for", value_name = "DURATION")]
        span: String,
        #[arg(long, default_value = "")]
        comment: String,
        #[arg(long)]
        by: Option<String>,
    },
    /// What a channel would say, without sending it
    Preview {
        #[arg(long)]
        channel: String,
        /// Of this alert [default: an example]
        #[arg(long)]
        alert: Option<String>,
        /// A file with a template to try instead of the channel's
        #[arg(long, value_name = "FILE")]
        template: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SilenceCommand {
    /// Add a silence; prints its id
    Add {
        /// rule=too-hot, device=~press-.*, severity!=critical: all must match
        #[arg(required = true)]
        matchers: Vec<String>,
        /// 30m, 2h, 1d
        #[arg(long, default_value = "1h")]
        duration: String,
        /// RFC 3339 [default: now]
        #[arg(long)]
        start: Option<String>,
        /// A maintenance window: again after this time, 1d or 7d
        #[arg(long)]
        every: Option<String>,
        /// The end of a maintenance window's repetitions, RFC 3339
        #[arg(long, requires = "every")]
        until: Option<String>,
        #[arg(long, default_value = "")]
        comment: String,
        #[arg(long)]
        by: Option<String>,
    },
    /// List silences
    List {
        /// pending, active, expired [default: all]
        #[arg(long)]
        state: Option<String>,
    },
    /// End silences now
    Expire {
        #[arg(required = true)]
        silences: Vec<String>,
    },
}

/// How a client command finds the server.
#[derive(Debug, Clone, Args)]
pub(crate) struct Server {
    /// Where the server's API is
    #[arg(long, env = "DUNLIN_URL", default_value = "http://127.0.0.1:8080", global = true)]
    pub(crate) url: String,
    /// Certificates of an authority to believe beside those of the system, PEM, for an https URL
    #[arg(long, env = "DUNLIN_CA", value_name = "FILE", global = true)]
    pub(crate) ca: Option<PathBuf>,
    /// File with a user's token [default: the environment variable DUNLIN_TOKEN, then ./dunlin-data/admin.token]
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Run some of the roles only, several with commas; the others are other processes on the same Kafka [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ROLE")]
    pub(crate) role: Vec<crate::config::Role>,
    /// Where everything is kept [default: ./dunlin-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Where devices connect by MQTT [default: 127.0.0.1:1883]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) mqtt: Option<String>,
    /// Where devices and people connect by HTTP [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) http: Option<String>,
    /// Configuration, TOML; none is needed
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print the whole configuration, with every default, and stop
    #[arg(long)]
    pub(crate) print_config: bool,
    /// Log for people or as JSON lines
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    pub(crate) log_format: LogFormat,
    /// What to log: `info`, `debug`, `dunlin_gateway=debug,info`
    #[arg(long, env = "DUNLIN_LOG", default_value = "info,ntex_server=warn,ntex_service=warn,ntex_rt=warn")]
    pub(crate) log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Human,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Add a device; prints its access token, which is not shown again
    Add {
        name: String,
        /// Devices of one type share a table
        #[arg(long = "type", value_name = "TYPE", default_value = "default")]
        device_type: String,
        /// May speak for children: v1/d/{device}/telemetry
        #[arg(long)]
        gateway: bool,
    },
    /// List the devices
    List,
    /// Make a further token for a device; prints it
    Token {
        name: String,
        /// Make all tokens it had before invalid
        #[arg(long)]
        revoke_others: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CommandCommand {
    /// Send a command; prints its id
    Send {
        device: String,
        /// What to do, in words that the device knows
        method: String,
        /// JSON for the method [default: null]
        #[arg(value_parser = parse_json, allow_negative_numbers = true)]
        params: Option<Box<RawValue>>,
        /// The device is not asked any more after this time
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        expires_in: u64,
        /// Wait for the reply and print it instead; exit code 1 if the command expires
        #[arg(long)]
        wait: bool,
    },
    /// List the commands of a device, the newest first
    List { device: String },
    /// All about one command
    Show {
        /// Its id
        command: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Add a tenant; prints its user token, which is not shown again
    Add { name: String },
    /// List the tenants
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RuleCommand {
    /// Run the tests that stand beside the rules of files or directories; needs no server
    Test {
        #[arg(required = true, value_name = "FILE")]
        places: Vec<PathBuf>,
    },
    /// Say how often, where and when a rule would have fired
    #[command(after_help = "\
Examples:
  dunlin rule backtest machine-temperature-low --since 90d
  dunlin rule backtest too-hot --file new-rule.toml --since 2026-01-01T00:00:00Z
  dunlin rule backtest machine-temperature-low --since 2013-12-01T00:00:00Z --labels windows.json")]
    Backtest(BacktestArgs),
    /// List the rules, of files and of the API, with what was measured
    List,
    /// Show every version of a rule of the API
    Show {
        name: String,
    },
    /// Put the [[rule]] of a file in force, as the next version of the rule of its name
    Put {
        file: PathBuf,
        /// Keep it, but not in force
        #[arg(long)]
        disabled: bool,
    },
    Enable {
        name: String,
    },
    Disable {
        name: String,
    },
    /// Put an earlier version in force again
    Rollback {
        name: String,
        version: u64,
    },
    Delete {
        name: String,
    },
    /// Say that a rule is right to fire on a device in a stretch of time, or that it is not
    Mark {
        name: String,
        device: String,
        from: String,
        to: String,
        /// It was a false alarm
        #[arg(long = "false")]
        wrong: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BacktestArgs {
    /// The rule's name
    pub(crate) rule: String,
    /// How far back, or from when: `90d`, `2026-01-01T00:00:00Z`
    #[arg(long, default_value = "30d")]
    pub(crate) since: String,
    /// Until when [default: now]
    #[arg(long)]
    pub(crate) until: Option<String>,
    /// Take the rule out of this file, as it stands there
    #[arg(long)]
    pub(crate) file: Option<PathBuf>,
    /// Known failures, JSON: a list of [start, end]; the firings are shown beside them
    #[arg(long, value_name = "FILE")]
    pub(crate) labels: Option<PathBuf>,
    /// Print the server's answer as it is
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Format {
    Table,
    Csv,
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// How many devices
    #[arg(long, default_value_t = 1_000)]
    pub(crate) devices: u32,
    /// Messages of each device: `1/s`, `10/s`, `6/m`
    #[arg(long, default_value = "1/s", value_parser = parse_rate)]
    pub(crate) rate: f64,
    /// Stop after this many seconds [default: when interrupted]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) duration: Option<u64>,
    /// The same seed gives the same measurements
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Names are PREFIX-00001 and so on; devices that exist get a token in place of those they had
    #[arg(long, default_value = "sim")]
    pub(crate) prefix: String,
    /// Where the server takes MQTT [default: what the server says]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) mqtt: Option<String>,
    #[command(flatten)]
    pub(crate) server: Server,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// CSV with the header `timestamp,value`
    pub(crate) file: PathBuf,
    /// The device to publish as; added if it does not exist, given a further token if it does
    #[arg(long)]
    pub(crate) device: String,
    /// The metric of the values
    #[arg(long)]
    pub(crate) metric: String,
    /// `max`, or a multiple of the file's own pace: `1x`, `3600x`
    #[arg(long, default_value = "max")]
    pub(crate) speed: Speed,
    /// Where the server takes MQTT [default: what the server says]
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) mqtt: Option<String>,
    #[command(flatten)]
    pub(crate) server: Server,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Configuration to check [default: the defaults]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Rule files or directories to check [default: the configuration's rules directory]
    pub(crate) rules: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// An empty database, or one with such a copy: postgres://USER@HOST/DATABASE
    #[arg(long, value_name = "URL")]
    pub(crate) to: String,
    /// A file with the password for it [default: that of the URL, PGPASSWORD or ~/.pgpass]
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Where the server keeps everything [default: ./dunlin-data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// The server's configuration
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

fn parse_json(text: &str) -> Result<Box<RawValue>, String> {
    RawValue::from_string(text.to_owned()).map_err(|error| format!("not JSON: {error}"))
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let problem = || format!("{text:?} is not a rate; write for example 1/s, 10/s or 6/m");
    let (count, unit) = text.split_once('/').ok_or_else(problem)?;
    let count: f64 = count.parse().map_err(|_| problem())?;
    let seconds = match unit {
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        _ => return Err(problem()),
    };
    if count > 0.0 && count.is_finite() { Ok(count / seconds) } else { Err(problem()) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_has_parameters_in_json_or_none() {
        let sent = |line: &[&str]| match Cli::try_parse_from(line) {
            Ok(Cli { command: Command::Command { command: CommandCommand::Send { params, .. }, .. } }) => {
                Some(params.map(|params| params.get().to_owned()))
            }
            _ => None,
        };
        assert_eq!(sent(&["dunlin", "command", "send", "pump-1", "reboot"]), Some(None));
        for params in [r#"{"b": [1.50], "a": 12345678901234567890123}"#, "-5"] {
            let with = ["dunlin", "command", "send", "pump-1", "m", params, "--wait"];
            assert_eq!(sent(&with), Some(Some(params.to_owned())), "as it was written");
        }
        assert_eq!(sent(&["dunlin", "command", "send", "pump-1", "m", "{a}"]), None);
    }

    #[test]
    fn rates_are_read_or_explained() {
        assert_eq!(parse_rate("10/s"), Ok(10.0));
        assert_eq!(parse_rate("6/m"), Ok(0.1));
        assert!(parse_rate("fast").unwrap_err().contains("1/s"));
        assert!(parse_rate("-1/s").is_err());
    }
}
