//! A server that is gone, frozen or cut off is an error within a known time, and holds no connection of the pool: sqlx
//! itself waits for an answer for as long as TCP does, a quarter of an hour, also when a connection goes back.

use std::{io, time::Duration};

use sqlx::{
    Connection, PgConnection, PgPool, Postgres, SqlSafeStr, Transaction,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::time::{Instant, sleep, timeout};

use super::Database;
use crate::{RegistryError, config::Config};

/// A connection that lay unused for longer is asked whether it lives before it is used.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// What a server that has nothing to do may take to say that it lives.
const ALIVE_MAX: Duration = Duration::from_secs(1);
/// The server gives up first, and says why.
const GRACE: Duration = Duration::from_secs(1);
const START_PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn open(options: PgConnectOptions, config: &Config) -> Result<Database, RegistryError> {
    migrate_when_there(&options, config).await?;
    let answer_max = config.answer_max();
    let limit = format!("{}ms", config.answer_millis_max);
    let session = options.options([
        ("statement_timeout", &limit),
        // Or a client that froze or was cut off would hold its locks for hours.
        ("idle_in_transaction_session_timeout", &limit),
    ]);
    let pool = PgPoolOptions::new()
        .max_connections(config.connections_max)
        .acquire_timeout(config.connect_max())
        .test_before_acquire(false)
        .before_acquire(|connection, usage| {
            Box::pin(async move { Ok(usage.idle_for < TRUSTED_FOR || is_alive(connection).await?) })
        })
        // After the end of a statement that was given up, and of a transaction that was undone.
        .after_release(|connection, _| Box::pin(is_alive(connection)))
        .connect_lazy_with(session);
    Ok(Database::Postgres { pool, answer_max })
}

/// Decides from what is committed whatever the server's default is.
pub(super) async fn begin(
    pool: &PgPool,
    answer_max: Duration,
) -> Result<Transaction<'static, Postgres>, sqlx::Error> {
    let connection = pool.acquire().await?;
    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED".into_sql_str();
    within(answer_max, Transaction::begin(connection, Some(begin))).await
}

/// An answer, or the error that there is none.
pub(super) async fn within<T>(
    answer_max: Duration,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    match timeout(answer_max + GRACE, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(no_answer(answer_max + GRACE)),
    }
}

async fn is_alive(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    match timeout(ALIVE_MAX, connection.ping()).await {
        Ok(answer) => answer.map(|()| true),
        Err(_) => Err(no_answer(ALIVE_MAX)),
    }
}

fn no_answer(after: Duration) -> sqlx::Error {
    let message = format!("PostgreSQL gave no answer within {} ms", after.as_millis());
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, message))
}

/// Brings the database to this version's schema. Waits for one that cannot be reached, as both are often started at the
/// same time; not for one that refuses.
async fn migrate_when_there(options: &PgConnectOptions, config: &Config) -> Result<(), RegistryError> {
    let until = Instant::now() + config.start_max();
    loop {
        match connect(options, config.connect_max()).await {
            Ok(connection) => return migrate(connection).await,
            Err(error) if is_unreachable(&error) && Instant::now() < until => {
                tracing::warn!(
                    host = options.get_host(),
                    port = options.get_port(),
                    error = dunlin_model::chain(&error),
                    "PostgreSQL is not there yet"
                );
                sleep(START_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn connect(options: &PgConnectOptions, connect_max: Duration) -> Result<PgConnection, sqlx::Error> {
    match timeout(connect_max, PgConnection::connect_with(options)).await {
        Ok(connected) => connected,
        Err(_) => Err(no_answer(connect_max)),
    }
}

/// Processes that start together do it one after the other: sqlx takes a lock.
async fn migrate(mut connection: PgConnection) -> Result<(), RegistryError> {
    let (encoding,): (String,) = sqlx::query_as("SHOW server_encoding").fetch_one(&mut connection).await?;
    if encoding != "UTF8" {
        return Err(RegistryError::Encoding(encoding));
    }
    sqlx::migrate!("./migrations/postgres").run(&mut connection).await?;
    Ok(connection.close().await?)
}

fn is_unreachable(error: &sqlx::Error) -> bool {
    match error {
        // What is read and not understood, as a certificate, is no matter of time.
        sqlx::Error::Io(error) => error.kind() != io::ErrorKind::InvalidData,
        // It starts, stops, recovers, or has too many connections.
        sqlx::Error::Database(error) => {
            error.code().is_some_and(|code| code.starts_with("57P") || code == "53300")
        }
        _ => false,
    }
}
