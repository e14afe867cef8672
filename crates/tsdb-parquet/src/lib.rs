//! The embedded time-series store. Records go into a memtable per tenant and device type (wide rows, a column per
//! metric), from there into Parquet files sorted by device and time, and compaction makes few well-packed files of
//! many fresh ones. Queries see memtable and files as one table. The only crate that sees DataFusion.
//!
//! What a manifest commits at once: the live files, the tables' columns, the positions in the journal and the
//! tenants' counts. A file that no manifest names is an orphan and goes when the store is opened.

mod config;
mod store; // open, write, close

mod state; // what is known in memory: tenants, tables, devices

mod columns; // which metric lives in which column, and how types widen
mod identity; // what makes two rows copies of each other
mod latest; // the newest value per device and metric
mod memtable; // rows that are not in files yet

mod flush; // fresh rows into files, and the commit

mod compact; // many files into few
mod encode; // Parquet: the sort order and the encodings
mod files; // data files, their partitions of time and their life
mod manifest; // the format of the manifest
mod seek; // is this row in a file

mod engine; // DataFusion: tables, `readings`, limits
mod metrics;

pub use compact::Compacted;
pub use config::Config;
pub use store::{OpenError, ParquetTsdb};
