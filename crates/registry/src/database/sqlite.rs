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
const ROWS_BUFFERED: usize = 1_024;
/// As far as it is used. What one transaction changes should fit: what does not is written twice.
const WRITER_CACHE_KIB: u32 = 64 << 10;
/// 64 MiB of the write-ahead log.
const CHECKPOINT_PAGES: &str = "16384";

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/sqlite");

pub(super) async fn open(file: &Path) -> Result<Database, RegistryError> {
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
