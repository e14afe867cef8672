use futures::TryStreamExt;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row as _, postgres::PgConnectOptions};

use super::{
    CopyError, CopyStep, Progress, TABLES,
    original::Original,
    rows::{Kind, Row, Table, Value, row_of},
};
use crate::{config::Config, database::postgres};

/// What is sent at a time.
const COPY_BYTES: usize = 256 * 1_024;
const PROGRESS_ROWS: u64 = 50_000;

/// A database in the middle of one transaction: nobody sees anything before `keep`.
#[derive(Debug)]
pub(super) struct Target {
    connection: PgConnection,
}

impl Target {
    pub(super) async fn open(options: PgConnectOptions, config: &Config) -> Result<Self, CopyError> {
        Ok(Self { connection: postgres::connect_patiently(options, config).await? })
    }

    /// Empties it, if it is ours to empty.
    pub(super) async fn take(&mut self, registry: i64) -> Result<(), CopyError> {
        self.run("BEGIN".into()).await?;
        // A server that starts takes it, too.
        self.run("LOCK TABLE copied_from IN ACCESS EXCLUSIVE MODE".into()).await?;
        let copied: Option<(i64,)> = sqlx::query_as("SELECT registry FROM copied_from")
            .fetch_optional(&mut self.connection)
            .await
            .map_err(CopyError::Target)?;
        match copied {
            Some((other,)) if other != registry => return Err(CopyError::TargetOfOther),
            Some(_) => {}
            None => self.expect_nothing().await?,
        }
        self.run(format!("TRUNCATE {}, copied_from", TABLES.join(", "))).await
    }

    async fn expect_nothing(&mut self) -> Result<(), CopyError> {
        for table in TABLES {
            let count = AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
            let (rows,): (i64,) =
                sqlx::query_as(count).fetch_one(&mut self.connection).await.map_err(CopyError::Target)?;
            if rows > 0 {
                return Err(CopyError::TargetNotEmpty { table, rows: rows.unsigned_abs() });
            }
        }
        Ok(())
    }

    pub(super) async fn fill(
        &mut self,
        table: &Table,
        original: &mut Original,
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), CopyError> {
        let statement = format!("COPY {} ({}) FROM STDIN", table.name, table.column_list());
        let mut copy = self.connection.copy_in_raw(&statement).await.map_err(CopyError::Target)?;
        let mut tell = table.progress(CopyStep::Copying, progress);
        let mut lines = String::with_capacity(2 * COPY_BYTES);
        let mut rows = original.rows(table);
        while let Some(row) = rows.try_next().await? {
            table.write_line(&row, &mut lines)?;
            if lines.len() >= COPY_BYTES {
                copy.send(lines.as_bytes()).await.map_err(CopyError::Target)?;
                lines.clear();
            }
            tell(false);
        }
        copy.send(lines.as_bytes()).await.map_err(CopyError::Target)?;
        copy.finish().await.map_err(CopyError::Target)?;
        tell(true);
        Ok(())
    }

    /// Row by row, to the last bit.
    pub(super) async fn compare(
        &mut self,
        table: &Table,
        original: &mut Original,
        progress: &mut impl FnMut(Progress),
    ) -> Result<(), CopyError> {
        let mut tell = table.progress(CopyStep::Comparing, progress);
        let mut copied = sqlx::query(AssertSqlSafe(table.select())).fetch(&mut self.connection);
        let mut rows = original.rows(table);
        loop {
            let copy = copied.try_next().await.map_err(CopyError::Target)?;
            let copy = copy.map(|row| row_of!(&row, table)).transpose().map_err(CopyError::Target)?;
            match (rows.try_next().await?, copy) {
                (None, None) => break,
                (Some(row), Some(copy)) if row == copy => tell(false),
                (Some(row), _) | (None, Some(row)) => {
                    return Err(CopyError::Differs { table: table.name, key: table.key_of(&row) });
                }
            }
        }
        tell(true);
        Ok(())
    }

    /// From here on it is there.
    pub(super) async fn keep(mut self, registry: i64, is_whole: bool) -> Result<(), CopyError> {
        sqlx::query("INSERT INTO copied_from (registry, is_whole) VALUES ($1, $2)")
            .bind(registry)
            .bind(is_whole)
            .execute(&mut self.connection)
            .await
            .map_err(CopyError::Target)?;
        self.run(format!("ANALYZE {}", TABLES.join(", "))).await?;
        self.run("COMMIT".into()).await?;
        self.connection.close().await.map_err(CopyError::Target)
    }

    async fn run(&mut self, statement: String) -> Result<(), CopyError> {
        match sqlx::query(AssertSqlSafe(statement)).execute(&mut self.connection).await {
            Ok(_) => Ok(()),
            Err(error) if postgres::is_locked(&error) => Err(CopyError::TargetBusy),
            Err(error) => Err(CopyError::Target(error)),
        }
    }
}

impl Table {
    /// To be called for every row, and at the end; tells now and then.
    fn progress(&self, step: CopyStep, progress: &mut impl FnMut(Progress)) -> impl FnMut(bool) {
        let (table, of, mut rows) = (self.name, self.rows, 0);
        move |is_end: bool| {
            rows += u64::from(!is_end);
            if is_end || rows.is_multiple_of(PROGRESS_ROWS) {
                progress(Progress { step, table, rows, of });
            }
        }
    }
}
