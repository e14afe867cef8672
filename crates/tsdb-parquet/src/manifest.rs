//! The manifest: magic "DNLNTSDB", version (1 byte), length of the body (u32, little endian), CRC-32C of the body
//! (u32, little endian), body (postcard). Replaced as a whole: written beside, synced, renamed.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use dunlin_journal::{Offset, Partition as JournalPartition, Topic};
use dunlin_model::TenantId;
use dunlin_tsdb::{Counts, StoreError};
use serde::{Deserialize, Serialize};

use crate::{
    columns::Column,
    files::{FileEntry, sync_dir},
};

const MAGIC: &[u8; 8] = b"DNLNTSDB";
const VERSION: u8 = 2;
/// Knew nothing of records that were left out.
const VERSION_BEFORE: u8 = 1;
const NAME: &str = "manifest";

/// The tenant and the device type.
pub(crate) type TableKey = (Arc<str>, Arc<str>);

/// What is committed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Manifest {
    pub(crate) next_file: u64,
    pub(crate) positions: BTreeMap<JournalPartition, Offset>,
    pub(crate) counts: BTreeMap<TenantId, Counts>,
    pub(crate) tables: BTreeMap<TableKey, TableEntry>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TableEntry {
    pub(crate) columns: Vec<Column>,
    pub(crate) other: bool,
    pub(crate) files: Vec<FileEntry>,
}

#[derive(Serialize, Deserialize)]
struct Body {
    next_file: u64,
    positions: Vec<(u8, u16, u64)>,
    counts: Vec<(String, [u64; 4])>,
    tables: Vec<(Arc<str>, Arc<str>, TableEntry)>,
    /// Records left out, by tenant.
    sampled: Vec<(String, u64)>,
}

impl Manifest {
    /// The manifest of a directory; an empty one if it has none.
    pub(crate) fn read(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(NAME);
        match fs::read(&path) {
            Ok(bytes) => decode(&bytes).map_err(|reason| StoreError::Corrupt { path, reason }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(StoreError::Read { path, source }),
        }
    }

    pub(crate) fn write(&self, dir: &Path) -> Result<(), StoreError> {
        let (path, beside) = (dir.join(NAME), dir.join("manifest.new"));
        let replace = || {
            let mut file = fs::File::create(&beside)?;
            io::Write::write_all(&mut file, &encode(self)?)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            sync_dir(dir)
        };
        replace().map_err(|source| StoreError::Write { path: path.clone(), source })
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &FileEntry> {
        self.tables.values().flat_map(|table| &table.files)
    }

    /// Deletes the data files that no manifest names.
    pub(crate) fn remove_orphans(&self, dir: &Path) -> Result<u64, StoreError> {
        let live: std::collections::HashSet<PathBuf> =
            self.files().map(|file| dir.join(&file.path)).collect();
        let mut removed = 0;
        remove_orphans_below(dir, &live, &mut removed)
            .map_err(|source| StoreError::Read { path: dir.into(), source })?;
        Ok(removed)
    }
}

fn remove_orphans_below(
    dir: &Path,
    live: &std::collections::HashSet<PathBuf>,
    removed: &mut u64,
) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            remove_orphans_below(&path, live, removed)?;
            // Stays if it holds anything.
            let _ = fs::remove_dir(&path);
        } else if path.extension().is_some_and(|e| e == "parquet") && !live.contains(&path) {
            fs::remove_file(&path)?;
            *removed += 1;
        }
    }
    Ok(())
}

fn encode(manifest: &Manifest) -> io::Result<Vec<u8>> {
    let body = Body {
        next_file: manifest.next_file,
        positions: manifest.positions.iter().map(|(p, o)| (p.topic as u8, p.index, o.0)).collect(),
        counts: manifest
            .counts
            .iter()
            .map(|(tenant, c)| (tenant.to_string(), [c.stored, c.duplicate, c.expired, c.readings]))
            .collect(),
        tables: manifest
            .tables
            .iter()
            .map(|((tenant, device_type), table)| (tenant.clone(), device_type.clone(), table.clone()))
            .collect(),
        sampled: manifest.counts.iter().map(|(tenant, c)| (tenant.to_string(), c.sampled)).collect(),
    };
    let body = postcard::to_stdvec(&body).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(body.len() + 17);
    bytes.extend_from_slice(MAGIC);
    bytes.push(VERSION);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&checksum(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<Manifest, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it is not a manifest")?;
    let (version, rest) = rest.split_first().ok_or("it ends early")?;
    if ![VERSION, VERSION_BEFORE].contains(version) {
        return Err(format!("it has version {version}, this program reads {VERSION}"));
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or("it ends early")?;
    let (sum, body) = rest.split_first_chunk::<4>().ok_or("it ends early")?;
    if body.len() != u32::from_le_bytes(*length) as usize {
        return Err(format!("its body has {} bytes and not {}", body.len(), u32::from_le_bytes(*length)));
    }
    if checksum(body) != u32::from_le_bytes(*sum) {
        return Err("its checksum is wrong".into());
    }
    let mut body = body.to_vec();
    if *version == VERSION_BEFORE {
        // An empty list.
        body.push(0);
    }
    let body: Body = postcard::from_bytes(&body).map_err(|e| e.to_string())?;
    let sampled: BTreeMap<String, u64> = body.sampled.into_iter().collect();
    let position = |(topic, index, offset)| {
        let topic = Topic::from_ordinal(topic).ok_or_else(|| format!("there is no topic {topic}"))?;
        Ok((JournalPartition::new(topic, index), Offset(offset)))
    };
    let count = |(tenant, [stored, duplicate, expired, readings]): (String, [u64; 4])| {
        let sampled = sampled.get(&tenant).copied().unwrap_or(0);
        let tenant = tenant.parse::<TenantId>().map_err(|e| e.to_string())?;
        Ok((tenant, Counts { stored, duplicate, expired, sampled, readings }))
    };
    Ok(Manifest {
        next_file: body.next_file,
        positions: body.positions.into_iter().map(position).collect::<Result<_, String>>()?,
        counts: body.counts.into_iter().map(count).collect::<Result<_, String>>()?,
        tables: body.tables.into_iter().map(|(tenant, kind, table)| ((tenant, kind), table)).collect(),
    })
}

fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

#[cfg(test)]
mod tests;
