use std::{path::PathBuf, time::Duration};

use futures::{Stream, TryStreamExt};
use sqlx::{AssertSqlSafe, Connection, Row as _, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{
    CopyError,
    rows::{Kind, Row, Table, Value, row_of},
};
use crate::database::sqlite;

/// A server that is just writing is one that uses the file.
const BUSY_TIMEOUT: Duration = Duration::from_millis(100);

/// What a file held when it was opened, whatever others write into it meanwhile.
#[derive(Debug)]
pub(super) struct Original {
    connection: SqliteConnection,
    /// When its first tenant was added.
    pub(super) registry: i64,
    /// Nobody else has it open, and nobody else can until this is closed.
    pub(super) is_alone: bool,
}

impl Original {
    pub(super) async fn open(file: PathBuf) -> Result<Self, CopyError> {
        if !file.exists() {
            return Err(CopyError::NotThere(file));
        }
        let options =
            SqliteConnectOptions::new().filename(&file).create_if_missing(false).busy_timeout(BUSY_TIMEOUT);
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(CopyError::Original)?;
        let is_alone = keep_others_out(&mut connection).await.map_err(CopyError::Original)?;
        if !sqlite::is_of_this_version(&mut connection).await.map_err(CopyError::Original)? {
            return Err(CopyError::OtherVersion(file));
        }
        let first = sqlx::query_as("SELECT MIN(created_at) FROM tenants").fetch_one(&mut connection);
        let (registry,): (Option<i64>,) = first.await.map_err(CopyError::Original)?;
        let registry = registry.ok_or(CopyError::Nothing(file))?;
        Ok(Self { connection, registry, is_alone })
    }

    pub(super) async fn table(&mut self, name: &'static str) -> Result<Table, CopyError> {
        let columns: Vec<(String, String, i64)> =
            sqlx::query_as("SELECT name, type, pk FROM pragma_table_info($1) ORDER BY cid")
                .bind(name)
                .fetch_all(&mut self.connection)
                .await
                .map_err(CopyError::Original)?;
        let count = AssertSqlSafe(format!("SELECT COUNT(*) FROM {name}"));
        let (rows,): (i64,) =
            sqlx::query_as(count).fetch_one(&mut self.connection).await.map_err(CopyError::Original)?;
        let mut key: Vec<(i64, usize)> =
            columns.iter().enumerate().filter(|(_, c)| c.2 > 0).map(|(n, c)| (c.2, n)).collect();
        key.sort_unstable();
        let kind = |declared: &str| {
            let unknown = || sqlx::Error::TypeNotFound { type_name: format!("{declared} of table {name}") };
            Kind::of(declared).ok_or_else(|| CopyError::Original(unknown()))
        };
        let columns = columns.into_iter().map(|(name, declared, _)| kind(&declared).map(|kind| (name, kind)));
        Ok(Table {
            name,
            columns: columns.collect::<Result<_, _>>()?,
            key: key.into_iter().map(|(_, n)| n).collect(),
            rows: rows.unsigned_abs(),
        })
    }

    /// All rows, by primary key.
    pub(super) fn rows<'a>(
        &'a mut self,
        table: &'a Table,
    ) -> impl Stream<Item = Result<Row, CopyError>> + Unpin + 'a {
        let rows = sqlx::query(AssertSqlSafe(table.select())).fetch(&mut self.connection);
        rows.and_then(move |row| std::future::ready(row_of!(&row, table))).map_err(CopyError::Original)
    }

    pub(super) async fn close(mut self) -> Result<(), CopyError> {
        let end = async {
            sqlx::query("ROLLBACK").execute(&mut self.connection).await?;
            self.connection.close().await
        };
        end.await.map_err(CopyError::Original)
    }
}

/// Begins a transaction that sees one state of the file, alone if that can be had. Only who is alone can take SQLite out of
/// its WAL mode; the next server puts it back.
async fn keep_others_out(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    for statement in ["PRAGMA journal_mode = DELETE", "BEGIN EXCLUSIVE"] {
        match sqlx::query(statement).execute(&mut *connection).await {
            Ok(_) => {}
            Err(error) if is_locked(&error) => {
                sqlx::query("BEGIN").execute(&mut *connection).await?;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
    }
    let (mode,): (String,) = sqlx::query_as("PRAGMA journal_mode").fetch_one(&mut *connection).await?;
    if mode == "delete" {
        return Ok(true);
    }
    // Somebody came between the two.
    sqlx::query("ROLLBACK").execute(&mut *connection).await?;
    sqlx::query("BEGIN").execute(&mut *connection).await?;
    Ok(false)
}

fn is_locked(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code()).and_then(|code| code.parse::<u32>().ok());
    // SQLITE_BUSY and SQLITE_LOCKED, whatever they say beside it.
    code.is_some_and(|code| matches!(code & 0xff, 5 | 6))
}
