use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Settings of the embedded store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the files are.
    pub dir: PathBuf,
    /// Rows older than this are not stored, and whole files of them are dropped. Unset: everything is kept.
    pub retention_seconds: Option<u64>,
    /// Fresh rows in memory, over all tables, before they are written to files. Twice this while a flush runs; then
    /// writes wait.
    pub memtable_bytes_max: usize,
    /// Fresh rows are written to files after this time at the latest.
    pub flush_after_seconds: u64,
    /// Devices whose newest values are kept in memory; of others they are looked up.
    pub latest_devices_max: usize,
    /// Row fingerprints of files, kept in memory to recognise late duplicates.
    pub fingerprint_bytes_max: usize,
    /// Memory of all queries together.
    pub query_memory_bytes_max: usize,
    /// Queries at the same time; more wait, within their own timeout.
    pub queries_max: usize,
    /// Of these, those of one tenant.
    pub queries_per_tenant_max: usize,
    /// Time of a query of points or newest values, its wait included. SQL brings a limit of its own.
    pub query_seconds_max: u64,
    /// Cores for queries.
    pub query_threads: usize,
    /// Pause between two looks for files to compact.
    pub compact_every_seconds: u64,
    /// Disk space that compaction leaves to the journal and to flushes.
    pub disk_reserve_bytes: u64,
    /// A day that is over is packed for good when nothing was added to it for this long.
    pub compact_quiet_seconds: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: "tsdb".into(),
            retention_seconds: None,
            memtable_bytes_max: 64 << 20,
            flush_after_seconds: 30,
            latest_devices_max: 1_000_000,
            fingerprint_bytes_max: 128 << 20,
            query_memory_bytes_max: 512 << 20,
            queries_max: 8,
            queries_per_tenant_max: 4,
            query_seconds_max: 60,
            query_threads: 2,
            compact_every_seconds: 60,
            disk_reserve_bytes: 512 << 20,
            compact_quiet_seconds: 600,
        }
    }
}
