//! The time-series store: its contract, the suite that every backend runs, and a memory store.

mod contract;

mod gather; // rows into series, raw or by step: the same for every backend
mod memory;

pub mod conformance;

pub use contract::{
    Aggregate, Counts, Latest, Outcome, Query, QueryError, Series, Sql, SqlLimits, SqlResult, StoreError,
    StoredRecord, Tsdb, WEIGHT_SUFFIX, Write,
};
pub use gather::{Gather, SeriesKey};
pub use memory::{MemoryDisk, MemoryTsdb};
