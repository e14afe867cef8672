//! Tenants, devices, credentials, commands, rules and alerts: the only door to SQL, in SQLite or in PostgreSQL.

mod config; // which database

mod devices; // who may send
mod tenants; // whose data it is
mod tokens; // what proves it
mod users; // who may ask

mod commands; // what devices are asked to do

mod rules; // what is watched for

mod alerts; // what is wrong, and who has been told

mod trim; // what is forgotten, and when

mod copy; // from a file into PostgreSQL

mod database; // one SQL text on two databases

use std::path::Path;

pub use alerts::{
    Act, ActError, Alert, AlertFilter, AlertWork, Carried, Gathering, NOTIFICATIONS_DUE_MAX, NewNotification,
    NewSilence, Note, Notification, NotificationFilter, NotificationState, Silence, Timer, TimerKind, Told,
    TrimmedAlerts,
};
pub use commands::{AddCommandError, COMMANDS_OPEN_MAX, NewCommand, StoredCommand};
pub use config::{Config, InvalidConfig};
pub use copy::{Copied, CopyError, CopyStep, Progress, copy};
use database::Database;
pub use devices::{Device, NewDevice, NoChild};
use dunlin_model::Clock;
pub use rules::{RuleMark, RuleMeasure, RuleVersion, StoredRule};
pub use tokens::Token;
pub use trim::trim_hourly;
pub use users::{Scope, User};

/// A handle; clones share the connections.
#[derive(Debug, Clone)]
pub struct Registry {
    database: Database,
    clock: Clock,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{what} {name:?} exists already")]
    Exists { what: &'static str, name: String },
    #[error("there is no {what} {name:?}")]
    NotFound { what: &'static str, name: String },
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    #[error("registry database")]
    Database(#[from] sqlx::Error),
    #[error("registry migration")]
    Migration(#[from] sqlx::migrate::MigrateError),
    #[error("the registry's PostgreSQL database is encoded in {0}; it must be UTF8")]
    Encoding(String),
    #[error("dunlin migrate is copying into the registry's database; start when it is through")]
    BeingCopied,
    #[error(
        "the registry's database is a copy that was made while its original was in use; stop the server that uses it and run dunlin migrate again"
    )]
    PartCopied,
    #[error("registry: {what} {value:?} as stored is not valid")]
    Damaged { what: &'static str, value: String },
    #[error("the system gives no random numbers")]
    NoRandomness,
}

impl RegistryError {
    /// Whether the database works and refuses what it was given: it will refuse the same again.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Exists { .. } | Self::NotFound { .. } | Self::Damaged { .. } => true,
            Self::Database(sqlx::Error::Encode(_)) => true,
            Self::Database(sqlx::Error::Database(error)) => {
                error.kind() != sqlx::error::ErrorKind::Other
                    || error.code().is_some_and(|code| is_about_data(&code))
            }
            Self::Config(_)
            | Self::Database(_)
            | Self::Migration(_)
            | Self::Encoding(_)
            | Self::BeingCopied
            | Self::PartCopied
            | Self::NoRandomness => false,
        }
    }

    /// Whether it is the database that does not work now, and not what was asked.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Database(_)) && !self.is_refusal()
    }
}

/// What has no kind of its own is mostly what disks, locks and connections say. Of it these are about the data: SQLite's
/// "too big" and "mismatch", PostgreSQL's classes of data exceptions and of exceeded limits.
fn is_about_data(code: &str) -> bool {
    matches!(code, "18" | "20") || (code.len() == 5 && (code.starts_with("22") || code.starts_with("54")))
}

impl Registry {
    /// Opens the database and brings it to this version's schema. A file that is not there is made; a server that is
    /// not there is waited for.
    pub async fn open(config: &Config, clock: Clock) -> Result<Self, RegistryError> {
        Ok(Self { database: Database::open(config).await?, clock })
    }

    /// Opens a file, or makes it.
    pub async fn open_file(file: &Path, clock: Clock) -> Result<Self, RegistryError> {
        Self::open(&Config::file(file), clock).await
    }

    /// Asks the database whether it works, and takes what is written.
    pub async fn check(&self) -> Result<(), RegistryError> {
        self.database.check().await?;
        Ok(())
    }

    pub async fn close(&self) {
        self.database.close().await;
    }
}

fn is_unique_violation(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|e| e.is_unique_violation())
}
