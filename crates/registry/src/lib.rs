//! Tenants, devices, credentials, rules and alerts: the only door to SQL. One SQL text for SQLite and PostgreSQL: ids are
//! TEXT, times are microseconds in BIGINT, parameters are `$1`.

mod devices; // who may send
mod tenants; // whose data it is
mod tokens; // what proves it
mod users; // who may ask

mod rules; // what is watched for

mod alerts; // what is wrong, and who has been told

use std::{path::Path, time::Duration};

pub use alerts::{
    Act, ActError, Alert, AlertFilter, AlertWork, Carried, Gathering, NOTIFICATIONS_DUE_MAX, NewNotification,
    NewSilence, Note, Notification, NotificationFilter, NotificationState, Silence, Timer, TimerKind, Told,
    TrimmedAlerts,
};
pub use devices::{Device, NewDevice, NoChild};
use dunlin_model::Clock;
pub use rules::{RuleMark, RuleMeasure, RuleVersion, StoredRule};
use sqlx::{
    ConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous},
};
pub use tokens::Token;
pub use users::{Scope, User};

/// A handle; clones share the connections.
#[derive(Debug, Clone)]
pub struct Registry {
    /// SQLite takes one writer at a time: waiting here is cheaper than being told "busy" there.
    writer: SqlitePool,
    readers: SqlitePool,
    clock: Clock,
}

#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{what} {name:?} exists already")]
    Exists { what: &'static str, name: String },
    #[error("there is no {what} {name:?}")]
    NotFound { what: &'static str, name: String },
    #[error("registry database")]
    Database(#[from] sqlx::Error),
    #[error("registry migration")]
    Migration(#[from] sqlx::migrate::MigrateError),
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
                // "Other" is what the disk and the locks say; of it only "too big" and "mismatch" are about the data.
                error.kind() != sqlx::error::ErrorKind::Other
                    || error.code().is_some_and(|code| matches!(code.as_ref(), "18" | "20"))
            }
            Self::Database(_) | Self::Migration(_) | Self::NoRandomness => false,
        }
    }
}

const READERS_MAX: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const ROWS_BUFFERED: usize = 1_024;
/// As far as it is used. What one transaction changes should fit: what does not is written twice.
const WRITER_CACHE_KIB: u32 = 64 << 10;
/// 64 MiB of the write-ahead log.
const CHECKPOINT_PAGES: &str = "16384";

impl Registry {
    /// Opens or creates the database file and brings it to this version's schema.
    pub async fn open(file: &Path, clock: Clock) -> Result<Self, RegistryError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            // As many as any question of a busy writer has: a full buffer costs two changes of thread a row.
            .row_buffer_size(ROWS_BUFFERED)
            // A slow statement is no news that anybody needs in full.
            .disable_statement_logging();
        let of_writer = options
            .clone()
            .pragma("cache_size", format!("-{WRITER_CACHE_KIB}"))
            // What a statement of many rows might have to take back.
            .pragma("temp_store", "memory")
            // More rarely: what many transactions change goes into the file once.
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES);
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(of_writer).await?;
        sqlx::migrate!("./migrations").run(&writer).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .connect_with(options.read_only(true))
            .await?;
        Ok(Self { writer, readers, clock })
    }

    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

fn is_unique_violation(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|e| e.is_unique_violation())
}

#[cfg(test)]
mod tests;
