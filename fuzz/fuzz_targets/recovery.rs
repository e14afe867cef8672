#![no_main]

use std::sync::LazyLock;

use tempfile::TempDir;

/// In memory where there is such a place: nothing is written that must last.
static DIR: LazyLock<TempDir> = LazyLock::new(|| {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    dunlin_fuzz::bounded(4 << 20, data, |data| dunlin_journal_disk::fuzzing::recovery(data, DIR.path()))
});
