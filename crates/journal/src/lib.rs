//! The durable log that feeds every stage: its contract, the suite that every backend runs, and a memory journal.

mod contract;
mod membership;
mod memory;

pub mod conformance;

pub use contract::{
    AppendError, Appended, Batch, Entries, Entry, Extent, Health, Journal, Offset, Partition, ReadError,
    Recovery, Topic, until_grown,
};
pub use membership::{Caller, Membership, Turn};
pub use memory::MemoryJournal;
