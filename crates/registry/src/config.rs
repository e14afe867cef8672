use std::{
    fmt, fs,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// Which database, and how long to wait for it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `sqlite:FILE`, or `postgres://USER@HOST:PORT/DATABASE`. Beyond this machine PostgreSQL has to prove who it is by a
    /// certificate, unless the url says another `sslmode`; `sslrootcert`, `sslcert` and `sslkey` name files.
    pub url: String,
    /// A file with the password for PostgreSQL.
    pub password_file: Option<PathBuf>,
    /// Connections of this process to PostgreSQL.
    pub connections_max: u32,
    /// How long to wait for a connection to PostgreSQL before it counts as down.
    pub connect_millis_max: u64,
    /// How long PostgreSQL may take to answer a statement. Its sessions are given up by the server, and what they
    /// hold with them, when they say nothing for as long within a transaction.
    pub answer_millis_max: u64,
    /// How long a start waits for a PostgreSQL that is not there.
    pub start_seconds_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: "sqlite:registry.db".into(),
            password_file: None,
            connections_max: 10,
            connect_millis_max: 3_000,
            answer_millis_max: 5_000,
            start_seconds_max: 60,
        }
    }
}

/// The url may hold a password.
impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("url", &format_args!("…"))
            .field("password_file", &self.password_file)
            .field("connections_max", &self.connections_max)
            .field("connect_millis_max", &self.connect_millis_max)
            .field("answer_millis_max", &self.answer_millis_max)
            .field("start_seconds_max", &self.start_seconds_max)
            .finish()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    #[error("registry.url must be sqlite:FILE or postgres://USER@HOST/DATABASE")]
    Scheme,
    #[error("registry.url")]
    Postgres(#[source] sqlx::Error),
    #[error("registry.password_file {file}")]
    Password { file: PathBuf, source: std::io::Error },
}

/// Where a url leads.
#[derive(Debug)]
pub(crate) enum Location {
    File(PathBuf),
    Postgres(Box<PgConnectOptions>),
}

impl Config {
    pub(crate) fn file(file: &Path) -> Self {
        Self { url: format!("sqlite:{}", file.display()), ..Self::default() }
    }

    pub fn check(&self) -> Result<(), InvalidConfig> {
        self.location().map(|_| ())
    }

    /// Relative files are below `data`.
    pub fn located(mut self, data: &Path) -> Self {
        self.password_file = self.password_file.map(|file| data.join(file));
        if let Ok(Location::File(file)) = self.location() {
            self.url = format!("sqlite:{}", data.join(file).display());
        }
        self
    }

    pub(crate) fn location(&self) -> Result<Location, InvalidConfig> {
        if let Some(file) = self.url.strip_prefix("sqlite:").filter(|file| !file.is_empty()) {
            return Ok(Location::File(file.strip_prefix("//").unwrap_or(file).into()));
        }
        if self.url.starts_with("postgres://") || self.url.starts_with("postgresql://") {
            let options: PgConnectOptions = self.url.parse().map_err(InvalidConfig::Postgres)?;
            let is_said = ["sslmode=", "ssl-mode="].iter().any(|name| self.url.contains(name));
            let options = match is_said || is_this_machine(&options) {
                true => options,
                false => options.ssl_mode(PgSslMode::VerifyFull),
            };
            return Ok(Location::Postgres(Box::new(options)));
        }
        Err(InvalidConfig::Scheme)
    }

    /// What the file says, without the end of its line.
    pub(crate) fn password(&self) -> Result<Option<String>, InvalidConfig> {
        let Some(file) = &self.password_file else { return Ok(None) };
        let text = fs::read_to_string(file)
            .map_err(|source| InvalidConfig::Password { file: file.clone(), source })?;
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
    }

    pub(crate) fn connect_max(&self) -> Duration {
        Duration::from_millis(self.connect_millis_max)
    }

    pub(crate) fn answer_max(&self) -> Duration {
        Duration::from_millis(self.answer_millis_max)
    }

    pub(crate) fn start_max(&self) -> Duration {
        Duration::from_secs(self.start_seconds_max)
    }
}

fn is_this_machine(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    options.get_socket().is_some()
        || host == "localhost"
        || host.starts_with('/')
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(url: &str) -> Config {
        Config { url: url.into(), ..Config::default() }
    }

    #[test]
    fn a_file_is_below_the_data_and_a_database_is_where_its_url_says() {
        let data = Path::new("/var/lib/dunlin");
        assert_eq!(Config::default().located(data).url, "sqlite:/var/lib/dunlin/registry.db");
        assert_eq!(at("sqlite:/mnt/r.db").located(data).url, "sqlite:/mnt/r.db");
        assert_eq!(at("sqlite:///mnt/r.db").located(data).url, "sqlite:/mnt/r.db");
        let url = "postgres://dunlin@db:6432/dunlin?sslmode=verify-full";
        assert_eq!(at(url).located(data).url, url);
        let Location::Postgres(options) = at(url).location().unwrap() else { panic!("PostgreSQL") };
        assert_eq!((options.get_host(), options.get_port()), ("db", 6_432));
    }

    #[test]
    fn a_server_elsewhere_has_to_prove_who_it_is_unless_it_is_said() {
        let mode = |url: &str| match at(url).location().unwrap() {
            Location::Postgres(options) => format!("{:?}", options.get_ssl_mode()),
            Location::File(_) => panic!("PostgreSQL"),
        };
        assert_eq!(mode("postgres://dunlin@db.example.com/dunlin"), "VerifyFull");
        assert_eq!(mode("postgres://dunlin@db.example.com/dunlin?sslmode=require"), "Require");
        assert_eq!(mode("postgres://dunlin@127.0.0.1/dunlin"), "Prefer");
        assert_eq!(mode("postgres:///dunlin?host=/run/postgresql"), "Prefer");
    }

    #[test]
    fn what_is_no_database_is_refused_and_no_password_is_shown() {
        for wrong in ["", "registry.db", "sqlite:", "mysql://db/dunlin", "postgres://db:port/dunlin"] {
            let said = dunlin_model::chain(&at(wrong).check().unwrap_err());
            assert!(said.starts_with("registry.url"), "{said}");
        }
        let secret = at("postgres://dunlin:hunter2@db:port/dunlin");
        let said = format!("{} {secret:?}", dunlin_model::chain(&secret.check().unwrap_err()));
        assert!(!said.contains("hunter2"), "{said}");
    }
}
