use std::{fmt, fs::File, io, os::unix::fs::FileExt};

use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};

/// The calls that put records on the disk: the seam where faults are injected. Everything else about files is plain
/// `std::fs`. Calls go through libc, so that a preloaded library sees them too.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Makes sure that writes up to `bytes` find space.
    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()>;

    fn write(&self, file: &File, bytes: &[u8], position: u64) -> io::Result<()>;

    /// Returns once everything that was written is durable.
    fn sync(&self, file: &File) -> io::Result<()>;
}

/// The disk that the operating system has.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn allocate(&self, file: &File, bytes: u64) -> io::Result<()> {
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            // The file system cannot; then a full disk shows at the write.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn write(&self, file: &File, bytes: &[u8], position: u64) -> io::Result<()> {
        file.write_all_at(bytes, position)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }
}

pub(crate) fn is_out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
