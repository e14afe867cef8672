//! Which journal it is: `kind` says so, and without it the one on disk.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, de::Error};

#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum JournalChoice {
    /// In this process, on a local disk.
    Disk(dunlin_journal_disk::Config),
    /// Apache Kafka.
    Kafka(Box<dunlin_journal_kafka::Config>),
}

impl Default for JournalChoice {
    fn default() -> Self {
        Self::Disk(dunlin_journal_disk::Config::default())
    }
}

impl JournalChoice {
    /// With its directory where it is in the file system.
    pub(crate) fn located(self, data: &Path) -> Self {
        match self {
            Self::Disk(config) => {
                let dir = data.join(&config.dir);
                Self::Disk(dunlin_journal_disk::Config { dir, ..config })
            }
            kafka @ Self::Kafka(_) => kafka,
        }
    }
}

impl<'de> Deserialize<'de> for JournalChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut section = toml::Table::deserialize(deserializer)?;
        let kind = section.remove("kind").unwrap_or_else(|| "disk".into());
        match kind.as_str() {
            Some("disk") => section.try_into().map(Self::Disk).map_err(D::Error::custom),
            Some("kafka") => section.try_into().map(Self::Kafka).map_err(D::Error::custom),
            _ => Err(D::Error::custom(format!("journal.kind must be disk or kafka, not {kind}"))),
        }
    }
}
