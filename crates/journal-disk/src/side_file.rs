//! Small files that are replaced whole: what they say ends in a checksum, and a crash leaves the old or the new one.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

use crate::frame::crc32c;

/// `None` if there is no such file; `Some(None)` if it is damaged.
pub(crate) fn load(path: &Path) -> io::Result<Option<Option<Vec<u8>>>> {
    let mut bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some((said, crc)) = bytes.split_last_chunk::<10>() else { return Ok(Some(None)) };
    if *crc != trailer(said) {
        return Ok(Some(None));
    }
    bytes.truncate(bytes.len() - 10);
    Ok(Some(Some(bytes)))
}

/// Replaces the file and makes it durable.
pub(crate) fn store(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.write_all(&trailer(bytes))?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A line of its own, so that a text file stays one.
fn trailer(bytes: &[u8]) -> [u8; 10] {
    let mut out = *b"\n00000000\n";
    for (n, digit) in out[1..9].iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(crc32c(bytes) >> (28 - 4 * n) & 0xF) as usize];
    }
    out
}
