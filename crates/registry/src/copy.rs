//! From SQLite into PostgreSQL, all of it or nothing: one transaction empties the tables, fills them, and reads them back
//! beside the original. It is repeated as often as one likes, until a server has used the copy.

mod original; // what is read, and whether somebody uses it
mod rows; // a row that comes from either
mod target; // what is written

use std::path::PathBuf;

use self::{original::Original, target::Target};
use crate::{
    RegistryError,
    config::{Config, Location},
};

/// Every table, those first that others refer to.
const TABLES: [&str; 19] = [
    "tenants",
    "devices",
    "device_tokens",
    "commands",
    "user_tokens",
    "rule_versions",
    "rules",
    "rule_marks",
    "rule_measures",
    "alerts",
    "alert_transitions",
    "alert_notes",
    "silences",
    "notifications",
    "alert_timers",
    "alert_budgets",
    "used_links",
    "secrets",
    "positions",
];

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub step: CopyStep,
    pub table: &'static str,
    pub rows: u64,
    pub of: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyStep {
    Copying,
    /// Reading the copy and the original beside each other.
    Comparing,
}

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    pub tables: usize,
    pub rows: u64,
    /// Nobody used the original meanwhile, so that nothing can be missing.
    pub is_whole: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("the original is not in a file: nothing else can be copied")]
    NoFile,
    #[error("the target is not postgres://USER@HOST/DATABASE: nothing is copied elsewhere")]
    NoPostgres,
    #[error("there is no registry {}", .0.display())]
    NotThere(PathBuf),
    #[error("{} is of another version of Dunlin; let this version of the server open it once", .0.display())]
    OtherVersion(PathBuf),
    #[error("{} has no tenant: there is nothing to copy", .0.display())]
    Nothing(PathBuf),
    #[error("the target is in use or being copied to")]
    TargetBusy,
    #[error(
        "the target is not empty: its table {table} has {rows} rows, and they are not of a copy that waits for its server"
    )]
    TargetNotEmpty { table: &'static str, rows: u64 },
    #[error("the target holds a copy of another registry")]
    TargetOfOther,
    #[error("table {table}, row {key}: PostgreSQL keeps no text with the character U+0000")]
    Nul { table: &'static str, key: String },
    #[error("table {table}: the copy differs from the original at row {key}; nothing was kept")]
    Differs { table: &'static str, key: String },
    #[error("the original")]
    Original(#[source] sqlx::Error),
    #[error("the target")]
    Target(#[source] sqlx::Error),
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Copies the registry in the file `from` into the PostgreSQL database `to`, which is empty or holds such a copy. A server
/// may use the original meanwhile: what is copied is what it held at the beginning.
pub async fn copy(
    from: &Config,
    to: &Config,
    mut progress: impl FnMut(Progress),
) -> Result<Copied, CopyError> {
    let Location::File(file) = from.location().map_err(RegistryError::from)? else {
        return Err(CopyError::NoFile);
    };
    let Location::Postgres(options) = to.location().map_err(RegistryError::from)? else {
        return Err(CopyError::NoPostgres);
    };
    let mut original = Original::open(file).await?;
    let mut target = Target::open(*options, to).await?;
    target.take(original.registry).await?;
    let mut rows = 0;
    for name in TABLES {
        let table = original.table(name).await?;
        target.fill(&table, &mut original, &mut progress).await?;
        rows += table.rows;
    }
    for name in TABLES {
        let table = original.table(name).await?;
        target.compare(&table, &mut original, &mut progress).await?;
    }
    target.keep(original.registry, original.is_alone).await?;
    let is_whole = original.is_alone;
    original.close().await?;
    Ok(Copied { tables: TABLES.len(), rows, is_whole })
}
