//! A small state in one file, with the journal position it belongs to. What the rules know is in `checkpoints`.
//!
//! `DLCK` | version u8 | xxh3 of the rest, u64 LE | postcard of (position, state)
//!
//! Replaced as a whole: written beside, synced, renamed, directory synced. A crash leaves the old or the new one.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use dunlin_journal::Offset;
use serde::{Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: &[u8; 4] = b"DLCK";
const VERSION: u8 = 2;
const HEAD_BYTES: usize = 13;

/// Why a checkpoint cannot be used. The caller replays instead.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not a checkpoint of version {VERSION}")]
    Foreign { path: PathBuf },
    #[error("{path} is damaged")]
    Damaged { path: PathBuf },
}

pub(crate) fn save(path: &Path, position: Offset, state: &impl Serialize) -> io::Result<()> {
    let mut bytes = vec![0; HEAD_BYTES];
    bytes = postcard::to_extend(&(position.0, state), bytes).map_err(io::Error::other)?;
    let sum = xxh3_64(&bytes[HEAD_BYTES..]);
    bytes[..4].copy_from_slice(MAGIC);
    bytes[4] = VERSION;
    bytes[5..HEAD_BYTES].copy_from_slice(&sum.to_le_bytes());
    replace(path, &beside(path), &bytes)
}

/// Another for each process: who had the role before may still write, for a moment.
fn beside(path: &Path) -> PathBuf {
    path.with_extension(format!("{}.tmp", std::process::id()))
}

/// `None`: there is no checkpoint yet.
pub(crate) fn load<S: DeserializeOwned>(path: &Path) -> Result<Option<(Offset, S)>, Broken> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Broken::Read { path: path.into(), source }),
    };
    let Some((head, body)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
        return Err(Broken::Damaged { path: path.into() });
    };
    if head[..4] != *MAGIC || head[4] != VERSION {
        return Err(Broken::Foreign { path: path.into() });
    }
    if head[5..] != xxh3_64(body).to_le_bytes() {
        return Err(Broken::Damaged { path: path.into() });
    }
    match postcard::from_bytes::<(u64, S)>(body) {
        Ok((position, state)) => Ok(Some((Offset(position), state))),
        Err(_) => Err(Broken::Damaged { path: path.into() }),
    }
}

/// Writes `beside` and makes it `path`.
pub(crate) fn replace(path: &Path, beside: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(beside, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_was_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.ckpt");
        assert!(load::<Vec<u8>>(&path).unwrap().is_none());
        save(&path, Offset(7), &vec![1u8, 2, 3]).unwrap();
        assert_eq!(load::<Vec<u8>>(&path).unwrap(), Some((Offset(7), vec![1, 2, 3])));

        let good = fs::read(&path).unwrap();
        for byte in 0..good.len() {
            let mut bad = good.clone();
            bad[byte] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(load::<Vec<u8>>(&path).is_err(), "byte {byte}");
            fs::write(&path, &good[..byte]).unwrap();
            assert!(load::<Vec<u8>>(&path).is_err(), "cut at {byte}");
        }
    }
}
