//! The files that a start reads, so that it need not read the log from its beginning.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use dunlin_broker::GatewayNumber;

use super::RecoverError;

/// Snapshots that are looked for when the newest is replaced meanwhile.
const SNAPSHOT_TRIES: usize = 10;

/// The snapshots of a partition, each with the offset up to which it goes, the newest first. Nobody replaces another's: a
/// gateway that was taken for gone, and writes one all the same, writes an older one.
fn snapshots(directory: &Path, index: u16) -> io::Result<Vec<(u64, PathBuf)>> {
    let files = match std::fs::read_dir(directory) {
        Ok(files) => files.collect::<Result<Vec<_>, _>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let prefix = format!("{index}-");
    let next = |name: &str| name.strip_prefix(&prefix)?.strip_suffix(".snapshot")?.parse().ok();
    let named = files.iter().filter_map(|file| Some((next(file.file_name().to_str()?)?, file.path())));
    let mut all: Vec<_> = named.collect();
    all.sort_by(|one, other| other.cmp(one));
    Ok(all)
}

pub(super) struct Snapshot {
    pub(super) next: u64,
    pub(super) path: PathBuf,
    pub(super) bytes: Vec<u8>,
}

pub(super) fn newest(directory: &Path, index: u16) -> Result<Option<Snapshot>, RecoverError> {
    let in_directory = |source| RecoverError::Io { path: directory.to_owned(), source };
    for _ in 0..SNAPSHOT_TRIES {
        let Some((next, path)) = snapshots(directory, index).map_err(in_directory)?.into_iter().next() else {
            return Ok(None);
        };
        match std::fs::read(&path) {
            Ok(bytes) => return Ok(Some(Snapshot { next, path, bytes })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {} // There is a newer one by now.
            Err(source) => return Err(RecoverError::Io { path, source }),
        }
    }
    Err(in_directory(io::ErrorKind::NotFound.into()))
}

/// It is whole or not there, also after a power cut; then the older ones go, and what was left half written.
pub(super) fn write(
    directory: &Path,
    index: u16,
    next: u64,
    writer: Option<GatewayNumber>,
    bytes: &[u8],
) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let path = directory.join(format!("{index}-{next}.snapshot"));
    let number = writer.map(|writer| writer.to_string()).unwrap_or_default();
    let fresh = directory.join(format!("{index}-{next}-{number}.fresh"));
    let mut file = std::fs::File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, &path)?;
    std::fs::File::open(directory)?.sync_all()?;
    let older = snapshots(directory, index)?.into_iter().filter(|(other, _)| *other < next);
    let is_fresh = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "fresh");
    let half = std::fs::read_dir(directory)?.filter_map(|file| Some(file.ok()?.path())).filter(is_fresh);
    for file in older.map(|(_, path)| path).chain(half) {
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}
