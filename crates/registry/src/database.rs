//! One SQL text on two databases: ids are TEXT, times are microseconds in BIGINT, parameters are `$1`. sqlx's own
//! `Any` is not used, as it takes no options of SQLite and types no NULL for PostgreSQL.
//!
//! SQLite has one writer, so a transaction there is alone. In PostgreSQL others write at the same time, in this process
//! and in others: a transaction that decides from what it reads takes a lock first (`Transaction::lock`), and every
//! statement sees what was committed before it (READ COMMITTED).

mod postgres;
mod sqlite;
mod statement;

use std::time::Duration;

use sqlx::{PgConnection, PgPool, Postgres, Sqlite, SqliteConnection, SqlitePool};

pub(crate) use self::statement::sql;
use crate::{
    RegistryError,
    config::{Config, Location},
};

/// The connections.
#[derive(Debug, Clone)]
pub(crate) enum Database {
    /// One writer at a time: waiting here is cheaper than being told "busy" there.
    Sqlite {
        writer: SqlitePool,
        readers: SqlitePool,
    },
    Postgres {
        pool: PgPool,
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
    Postgres(sqlx::Transaction<'static, Postgres>, Duration),
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
            Self::Postgres { pool, answer_max } => Executor::PostgresPool(pool, *answer_max),
        }
    }

    /// For one statement that is its own transaction.
    pub(crate) fn writer(&self) -> Executor<'_> {
        match self {
            Self::Sqlite { writer, .. } => Executor::SqlitePool(writer),
            Self::Postgres { pool, answer_max } => Executor::PostgresPool(pool, *answer_max),
        }
    }

    pub(crate) async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        match self {
            Self::Sqlite { writer, .. } => writer.begin().await.map(Transaction::Sqlite),
            Self::Postgres { pool, answer_max } => {
                Ok(Transaction::Postgres(postgres::begin(pool, *answer_max).await?, *answer_max))
            }
        }
    }

    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite { writer, readers } => {
                readers.close().await;
                writer.close().await;
            }
            Self::Postgres { pool, .. } => pool.close().await,
        }
    }
}

impl Transaction {
    /// Nobody else has the lock of this name until this transaction ends.
    pub(crate) async fn lock(&mut self, name: &str) -> Result<(), sqlx::Error> {
        if let Self::Postgres(..) = self {
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
            Self::Postgres(transaction, answer_max) => {
                postgres::within(answer_max, transaction.commit()).await
            }
        }
    }
}

impl<'a> From<&'a mut Transaction> for Executor<'a> {
    fn from(transaction: &'a mut Transaction) -> Self {
        match transaction {
            Transaction::Sqlite(transaction) => Self::SqliteTransaction(transaction),
            Transaction::Postgres(transaction, answer_max) => {
                Self::PostgresTransaction(transaction, *answer_max)
            }
        }
    }
}
