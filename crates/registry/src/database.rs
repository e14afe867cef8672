//! One SQL text on two databases: ids are TEXT, times are microseconds in BIGINT, parameters are `$1`. sqlx's own
//! `Any` is not used, as it takes no options of SQLite and types no NULL for PostgreSQL.
//!
//! SQLite has one writer, so a transaction there is alone. In PostgreSQL others write at the same time, in this process
//! and in others: a transaction that decides from what it reads takes a lock first (`Transaction::lock`), and every
//! statement sees what was committed before it (READ COMMITTED).

pub(crate) mod postgres;
pub(crate) mod sqlite;
mod statement;

use std::{sync::Arc, time::Duration};

use sqlx::{PgConnection, PgPool, Sqlite, SqliteConnection, SqlitePool};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::postgres::PgTransaction;
pub(crate) use self::statement::sql;
use crate::{
    RegistryError,
    config::{Config, Location},
};

/// The connections.
#[derive(Debug, Clone)]
pub(crate) enum Database {
    /// One writer at a time: waiting here is cheaper than being told "busy" there.
    Sqlite { writer: SqlitePool, readers: SqlitePool },
    Postgres {
        pool: PgPool,
        /// For half of the connections: transactions wait for each other's locks, and who only asks does not wait for them.
        writing: Arc<Semaphore>,
        answer_max: Duration,
    },
}

/// Where a statement runs.
#[derive(Debug)]
pub(crate) enum Executor<'a> {
    SqlitePool(&'a SqlitePool),
    SqliteTransaction(&'a mut SqliteConnection),
    PostgresPool(&'a PgPool, Duration),
    PostgresTransaction(&'a mut PgConnection, Duration),
}

/// Undone when it is dropped, unless it is committed.
#[derive(Debug)]
pub(crate) enum Transaction {
    Sqlite(sqlx::Transaction<'static, Sqlite>),
    Postgres { transaction: PgTransaction, answer_max: Duration, _turn: OwnedSemaphorePermit },
}

impl Database {
    /// Opens the database, makes it if it is a file that is not there, and brings it to this version's schema.
    pub(crate) async fn open(config: &Config) -> Result<Self, RegistryError> {
        match config.location()? {
            Location::File(file) => sqlite::open(&file).await,
            Location::Postgres(options) => postgres::open(*options, config).await,
        }
    }

    /// For one statement that changes nothing.
    pub(crate) fn reader(&self) -> Executor<'_> {
        match self {
            Self::Sqlite { readers, .. } => Executor::SqlitePool(readers),
            Self::Postgres { pool, answer_max, .. } => Executor::PostgresPool(pool, *answer_max),
        }
    }

    /// For one statement that is its own transaction.
    pub(crate) fn writer(&self) -> Executor<'_> {
        match self {
            Self::Sqlite { writer, .. } => Executor::SqlitePool(writer),
            Self::Postgres { pool, answer_max, .. } => Executor::PostgresPool(pool, *answer_max),
        }
    }

    pub(crate) async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        match self {
            // It writes, and must not be told so late that another process does.
            Self::Sqlite { writer, .. } => {
                writer.begin_with("BEGIN IMMEDIATE").await.map(Transaction::Sqlite)
            }
            Self::Postgres { pool, writing, answer_max } => {
                let _turn = postgres::turn(pool, writing).await?;
                let transaction = PgTransaction::begin(pool, *answer_max).await?;
                Ok(Transaction::Postgres { transaction, answer_max: *answer_max, _turn })
            }
        }
    }

    /// Whether it answers and takes what is written.
    pub(crate) async fn check(&self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite { readers, .. } => {
                let (_,): (i64,) = sqlx::query_as("SELECT 1").fetch_one(readers).await?;
                Ok(())
            }
            Self::Postgres { pool, .. } => postgres::check(pool).await,
        }
    }

    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite { writer, readers } => {
                readers.close().await;
                writer.close().await;
            }
            Self::Postgres { pool, .. } => postgres::close(pool).await,
        }
    }
}

impl Transaction {
    /// Nobody else has the lock of this name until this transaction ends.
    pub(crate) async fn lock(&mut self, name: &str) -> Result<(), sqlx::Error> {
        if let Self::Postgres { .. } = self {
            sql("SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || '/' || $1, 0))")
                .bind(name)
                .execute(self)
                .await?;
        }
        Ok(())
    }

    pub(crate) async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await,
            Self::Postgres { transaction, answer_max, _turn } => transaction.commit(answer_max).await,
        }
    }
}

impl<'a> From<&'a mut Transaction> for Executor<'a> {
    fn from(transaction: &'a mut Transaction) -> Self {
        match transaction {
            Transaction::Sqlite(transaction) => Self::SqliteTransaction(transaction),
            Transaction::Postgres { transaction, answer_max, .. } => {
                Self::PostgresTransaction(transaction.connection(), *answer_max)
            }
        }
    }
}
