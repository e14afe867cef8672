//! The durable log on a local disk.
//!
//! All topics and partitions share one segmented log, so that one fdatasync commits everything that waits. One
//! thread owns the newest segment: it takes what is queued, writes it, syncs once, publishes it to readers and only
//! then answers the callers; while it syncs, the next group gathers. A second thread keeps house: it allocates space
//! ahead, prepares the next segment, seals, trims and saves positions, so that none of that is on the way of an
//! acknowledgement.
//!
//! Deliberately absent: an fdatasync is never repeated after it failed (see `commit`), and a damaged record that was
//! acknowledged is never skipped (see `recovery`).

mod config;
mod journal; // the handle, and what it promises

mod commit; // the thread that writes and syncs
mod housekeeping; // space ahead, sealing, retention
mod queue; // batches on their way to the disk, bounded
mod recovery; // what is on the disk after a crash

mod catalog; // what can be read, and the newest of it in memory
mod positions;
mod read; // what the catalog does not have in memory // how far each consumer has got

mod frame; // the stored format
mod partitions;
mod scan; // frame by frame through a segment
mod segment; // one file of the log
mod side_file; // small files that are replaced whole // partitions in one row

mod disk; // the calls that put bytes on the disk
mod metrics;

#[cfg(any(test, fuzzing))]
pub mod fuzzing; // what must hold for any bytes

pub use config::{Config, InvalidConfig};
pub use disk::{Disk, SystemDisk};
pub use journal::{DiskJournal, OpenError};
