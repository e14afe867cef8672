//! A server that is gone, frozen or cut off is an error within a known time, and holds no connection of the pool: sqlx
//! itself waits for an answer for as long as TCP does, a quarter of an hour, also when a connection goes back.

use std::{
    io,
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, Connection, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};

use super::Database;
use crate::{RegistryError, config::Config};

/// A connection that lay unused for longer is asked whether it lives before it is used.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// What a server that has nothing to do may take to say that it lives.
const ALIVE_MAX: Duration = Duration::from_secs(1);
/// The server gives up first, and says why.
const GRACE: Duration = Duration::from_secs(1);
/// How long a farewell may take; nothing depends on it.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);
const START_PAUSE: Duration = Duration::from_secs(1);

pub(super) async fn open(options: PgConnectOptions, config: &Config) -> Result<Database, RegistryError> {
    let options = with_password(options, config)?;
    let mut connection = migrate_when_there(&options, config).await?;
    claim(&mut connection).await?;
    connection.close().await?;
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
        .after_connect(|connection, _| {
            Box::pin(async move {
                match takes_writes(connection).await? {
                    true => Ok(()),
                    false => Err(read_only()),
                }
            })
        })
        .before_acquire(|connection, usage| {
            Box::pin(async move { Ok(usage.idle_for < TRUSTED_FOR || takes_writes(connection).await?) })
        })
        // After the end of a statement that was given up.
        .after_release(|connection, _| Box::pin(takes_writes(connection)))
        .connect_lazy_with(session);
    let writing = Arc::new(Semaphore::new((config.connections_max as usize).div_ceil(2)));
    Ok(Database::Postgres { pool, writing, answer_max })
}

/// As long to wait for as for a connection.
pub(super) async fn turn(
    pool: &PgPool,
    writing: &Arc<Semaphore>,
) -> Result<OwnedSemaphorePermit, sqlx::Error> {
    let turn = timeout(pool.options().get_acquire_timeout(), writing.clone().acquire_owned()).await;
    turn.map_err(|_| sqlx::Error::PoolTimedOut)?.map_err(|_| sqlx::Error::PoolClosed)
}

/// A connection of the pool's, on loan. It goes back within a known time or is gone: sqlx waits for what it says last, also
/// to one that has been silent, and counts it as lent meanwhile.
#[derive(Debug)]
pub(crate) struct Lent(PoolConnection<Postgres>);

impl Lent {
    pub(super) async fn of(pool: &PgPool) -> Result<Self, sqlx::Error> {
        pool.acquire().await.map(Self)
    }
}

impl Deref for Lent {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let returns = self.0.return_to_pool();
        // Dropped without having come to its end, it closes the connection.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async { timeout(CLOSED_WITHIN, returns).await });
        }
    }
}

/// Its connection goes back to the pool once it is committed, and is closed otherwise: sqlx would give one back whose BEGIN
/// was given up, and what is written there next would be part of a transaction that nobody ends.
#[derive(Debug)]
pub(crate) struct PgTransaction(Option<PoolConnection<Postgres>>);

impl PgTransaction {
    /// Decides from what is committed whatever the server's default is.
    pub(super) async fn begin(pool: &PgPool, answer_max: Duration) -> Result<Self, sqlx::Error> {
        let mut begun = Self(Some(pool.acquire().await?));
        let begin = sqlx::query("BEGIN ISOLATION LEVEL READ COMMITTED");
        within(answer_max, begin.execute(begun.connection())).await?;
        Ok(begun)
    }

    pub(super) fn connection(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("taken by commit alone, which consumes it")
    }

    pub(super) async fn commit(mut self, answer_max: Duration) -> Result<(), sqlx::Error> {
        within(answer_max, sqlx::query("COMMIT").execute(self.connection())).await?;
        drop(self.0.take().map(Lent));
        Ok(())
    }
}

impl Drop for PgTransaction {
    fn drop(&mut self) {
        drop(self.0.take().map(PoolConnection::detach));
    }
}

pub(super) async fn close(pool: &PgPool) {
    if timeout(CLOSED_WITHIN, pool.close()).await.is_err() {
        tracing::warn!("PostgreSQL does not answer; its connections are left to themselves");
    }
}

pub(super) async fn check(pool: &PgPool) -> Result<(), sqlx::Error> {
    match takes_writes(&mut *Lent::of(pool).await?).await? {
        true => Ok(()),
        false => Err(read_only()),
    }
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

/// Whether it lives and is not, or no longer, a copy that others are to read from.
async fn takes_writes(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let answer = sqlx::query_as("SHOW transaction_read_only").fetch_one(connection);
    match timeout(ALIVE_MAX, answer).await {
        Ok(answer) => answer.map(|(is_read_only,): (String,)| is_read_only == "off"),
        Err(_) => Err(no_answer(ALIVE_MAX)),
    }
}

fn with_password(options: PgConnectOptions, config: &Config) -> Result<PgConnectOptions, RegistryError> {
    Ok(match config.password()? {
        Some(password) => options.password(&password),
        None => options,
    })
}

fn read_only() -> sqlx::Error {
    sqlx::Error::Io(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "PostgreSQL is read-only there"))
}

fn no_answer(after: Duration) -> sqlx::Error {
    let message = format!("PostgreSQL gave no answer within {} ms", after.as_millis());
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, message))
}

/// Brings the database to this version's schema. Waits for one that cannot be reached, as both are often started at the
/// same time; not for one that refuses.
async fn migrate_when_there(
    options: &PgConnectOptions,
    config: &Config,
) -> Result<PgConnection, RegistryError> {
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
    let connect = async {
        let mut connection = PgConnection::connect_with(options).await?;
        match takes_writes(&mut connection).await? {
            true => Ok(connection),
            false => Err(read_only()),
        }
    };
    match timeout(connect_max, connect).await {
        Ok(connected) => connected,
        Err(_) => Err(no_answer(connect_max)),
    }
}

/// Processes that start together do it one after the other: sqlx takes a lock.
async fn migrate(mut connection: PgConnection) -> Result<PgConnection, RegistryError> {
    let (encoding,): (String,) = sqlx::query_as("SHOW server_encoding").fetch_one(&mut connection).await?;
    if encoding != "UTF8" {
        return Err(RegistryError::Encoding(encoding));
    }
    sqlx::migrate!("./migrations/postgres").run(&mut connection).await?;
    Ok(connection)
}

/// From here on the database is a server's, and nothing is copied into it.
async fn claim(connection: &mut PgConnection) -> Result<(), RegistryError> {
    let mut tx = connection.begin().await?;
    sqlx::query("SET LOCAL lock_timeout = '3s'").execute(&mut *tx).await?;
    match sqlx::query("LOCK TABLE copied_from IN EXCLUSIVE MODE").execute(&mut *tx).await {
        Err(error) if is_locked(&error) => return Err(RegistryError::BeingCopied),
        locked => locked?,
    };
    let parts = sqlx::query_as("SELECT COUNT(*) FROM copied_from WHERE NOT is_whole");
    let (parts,): (i64,) = parts.fetch_one(&mut *tx).await?;
    if parts > 0 {
        return Err(RegistryError::PartCopied);
    }
    sqlx::query("DELETE FROM copied_from").execute(&mut *tx).await?;
    Ok(tx.commit().await?)
}

/// To a database of this version. Waits for answers for as long as they take, and for others' locks a moment.
pub(crate) async fn connect_patiently(
    options: PgConnectOptions,
    config: &Config,
) -> Result<PgConnection, RegistryError> {
    let options = with_password(options, config)?;
    let mut connection = migrate_when_there(&options, config).await?;
    for setting in ["statement_timeout = 0", "idle_in_transaction_session_timeout = 0", "lock_timeout = '3s'"]
    {
        sqlx::query(AssertSqlSafe(format!("SET {setting}"))).execute(&mut connection).await?;
    }
    Ok(connection)
}

pub(crate) fn is_locked(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|e| e.code()).is_some_and(|code| code == "55P03")
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
