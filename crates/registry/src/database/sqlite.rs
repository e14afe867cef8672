use std::{path::Path, time::Duration};

use sqlx::{
    ConnectOptions, SqliteConnection,
    migrate::Migrator,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::Database;
use crate::RegistryError;

const READERS_MAX: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/sqlite");

pub(super) async fn open(file: &Path) -> Result<Database, RegistryError> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        // A slow statement is no news that anybody needs in full.
        .disable_statement_logging();
    let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
    MIGRATIONS.run(&writer).await?;
    let readers =
        SqlitePoolOptions::new().max_connections(READERS_MAX).connect_with(options.read_only(true)).await?;
    Ok(Database::Sqlite { writer, readers })
}

/// Whether a file has the schema that `open` would make.
pub(crate) async fn is_of_this_version(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let there: Vec<(i64, Vec<u8>)> =
        sqlx::query_as("SELECT version, checksum FROM _sqlx_migrations ORDER BY version")
            .fetch_all(connection)
            .await?;
    let ours = MIGRATIONS.iter().map(|m| (m.version, m.checksum.to_vec()));
    Ok(there.into_iter().eq(ours))
}
