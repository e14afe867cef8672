use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::frame::HEADER_BYTES;

/// Partitions of telemetry a directory can be made with; each costs 8 bytes in a segment's one-page header.
pub(crate) const TELEMETRY_PARTITIONS_MAX: u16 = 256;
/// A linger beyond this would stand in every acknowledgement.
const LINGER_MICROS_MAX: u64 = 5_000;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the log lives. One process at a time opens it.
    pub dir: PathBuf,
    /// Fixed when the directory is made.
    pub telemetry_partitions: u16,
    /// A segment is closed when the next group of batches would make it larger than this.
    pub segment_bytes: u64,
    /// Space is taken from the file system in steps of this size, ahead of need.
    pub preallocate_bytes: u64,
    /// Batches under way; beyond it appends wait.
    pub inflight_bytes_max: usize,
    /// The newest batches, kept in memory for consumers that are near the end.
    pub tail_cache_bytes: usize,
    /// How long a commit that is not alone waits for company, at most 5,000. It trades latency for fewer syncs.
    pub linger_micros: u64,
    /// The oldest segments go when there is more than this, and every consumer has passed them.
    pub retention_bytes: u64,
    /// Segments whose newest record is older than this go, if every consumer has passed them.
    pub retention_seconds: u64,
    /// How much of the log, from its end, is read and checked at start. What is older is checked when it is read.
    pub verify_at_start_bytes_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            dir: "journal".into(),
            telemetry_partitions: 4,
            segment_bytes: 64 << 20,
            preallocate_bytes: 8 << 20,
            inflight_bytes_max: 128 << 20,
            tail_cache_bytes: 64 << 20,
            linger_micros: 0,
            retention_bytes: 16 << 30,
            retention_seconds: 7 * 24 * 3600,
            verify_at_start_bytes_max: 8 << 30,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("journal.{field} must be {expected}, not {found}")]
pub struct InvalidConfig {
    pub field: &'static str,
    pub expected: String,
    pub found: u64,
}

impl Config {
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let within = |field, found: u64, least: u64, most: u64| {
            if (least..=most).contains(&found) {
                return Ok(());
            }
            Err(InvalidConfig { field, expected: format!("from {least} to {most}"), found })
        };
        let partitions_max = u64::from(TELEMETRY_PARTITIONS_MAX);
        within("telemetry_partitions", u64::from(self.telemetry_partitions), 1, partitions_max)?;
        within("segment_bytes", self.segment_bytes, 2 * HEADER_BYTES, 16 << 30)?;
        within("preallocate_bytes", self.preallocate_bytes, HEADER_BYTES, 1 << 30)?;
        within("inflight_bytes_max", self.inflight_bytes_max as u64, 1 << 10, 1 << 40)?;
        within("linger_micros", self.linger_micros, 0, LINGER_MICROS_MAX)
    }
}
