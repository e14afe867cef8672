use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sqlx::postgres::PgConnectOptions;

/// Which database, and how long to wait for it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `sqlite:FILE`, or `postgres://USER@HOST:PORT/DATABASE?sslmode=verify-full`.
    pub url: String,
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
}

/// Where a url leads.
#[derive(Debug)]
pub(crate) enum Location {
    File(PathBuf),
    Postgres(Box<PgConnectOptions>),
}

impl Config {
    pub fn file(file: &Path) -> Self {
        Self { url: format!("sqlite:{}", file.display()), ..Self::default() }
    }

    pub fn check(&self) -> Result<(), InvalidConfig> {
        self.location().map(|_| ())
    }

    /// A relative file is one below `data`.
    pub fn located(self, data: &Path) -> Self {
        match self.location() {
            Ok(Location::File(file)) => Self { url: format!("sqlite:{}", data.join(file).display()), ..self },
            _ => self,
        }
    }

    pub(crate) fn location(&self) -> Result<Location, InvalidConfig> {
        if let Some(file) = self.url.strip_prefix("sqlite:").filter(|file| !file.is_empty()) {
            return Ok(Location::File(file.strip_prefix("//").unwrap_or(file).into()));
        }
        if self.url.starts_with("postgres://") || self.url.starts_with("postgresql://") {
            let options = self.url.parse().map_err(InvalidConfig::Postgres)?;
            return Ok(Location::Postgres(Box::new(options)));
        }
        Err(InvalidConfig::Scheme)
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
