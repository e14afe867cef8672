use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use dunlin_model::{Clock, Timestamp};
use dunlin_registry::{Config, Registry};
use sqlx::{AssertSqlSafe, PgPool, SqlitePool, sqlite::SqliteConnectOptions};

use crate::server;

/// A database of one's own, and what stands in it.
pub(crate) struct Lab {
    pub(crate) config: Config,
    beside: Beside,
}

/// A look at the tables past the registry.
enum Beside {
    Sqlite { pool: SqlitePool, _dir: tempfile::TempDir },
    Postgres(PgPool, String),
}

impl Lab {
    pub(crate) async fn sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("registry.db");
        let options = SqliteConnectOptions::new().filename(&file).create_if_missing(true);
        let beside = SqlitePool::connect_with(options).await.unwrap();
        Self {
            config: Config { url: format!("sqlite:{}", file.display()), ..Config::default() },
            beside: Beside::Sqlite { pool: beside, _dir: dir },
        }
    }

    pub(crate) async fn postgres() -> Self {
        Self::postgres_at(server::url()).await
    }

    pub(crate) async fn postgres_at(url: &str) -> Self {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let schema = format!("dunlin_{}_{}", std::process::id(), LABS.fetch_add(1, Relaxed));
        let url = format!("{url}{}options[search_path]={schema}", if url.contains('?') { '&' } else { '?' });
        let beside = PgPool::connect(&url).await.unwrap();
        let lab = Self {
            config: Config { url, start_seconds_max: 20, ..Config::default() },
            beside: Beside::Postgres(beside, schema.clone()),
        };
        lab.run(&format!("CREATE SCHEMA {schema}")).await;
        lab
    }

    pub(crate) async fn open(&self) -> Registry {
        self.open_at(Clock::new(|| Timestamp::from_micros(1_700_000_000_000_000))).await
    }

    pub(crate) async fn open_at(&self, clock: Clock) -> Registry {
        Registry::open(&self.config, clock).await.unwrap()
    }

    /// As many as may write at the same time: a file belongs to one process.
    pub(crate) async fn processes(&self, count: usize) -> Vec<Registry> {
        let mut all = vec![self.open().await];
        while all.len() < count {
            all.push(match self.beside {
                Beside::Sqlite { .. } => all[0].clone(),
                Beside::Postgres(..) => self.open().await,
            });
        }
        all
    }

    pub(crate) async fn run(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        match &self.beside {
            Beside::Sqlite { pool, .. } => drop(sqlx::query(sql).execute(pool).await.unwrap()),
            Beside::Postgres(pool, _) => drop(sqlx::query(sql).execute(pool).await.unwrap()),
        }
    }

    /// The texts of the only column.
    pub(crate) async fn column(&self, sql: &str) -> Vec<String> {
        let sql = AssertSqlSafe(sql.to_owned());
        let rows: Vec<(String,)> = match &self.beside {
            Beside::Sqlite { pool, .. } => sqlx::query_as(sql).fetch_all(pool).await.unwrap(),
            Beside::Postgres(pool, _) => sqlx::query_as(sql).fetch_all(pool).await.unwrap(),
        };
        rows.into_iter().map(|(text,)| text).collect()
    }

    pub(crate) async fn drop_schema(&self) {
        if let Beside::Postgres(_, schema) = &self.beside {
            self.run(&format!("DROP SCHEMA {schema} CASCADE")).await;
        }
    }
}
