//! Consumers of the journal: rules over event-time windows, the writer of the time-series store, and the count of
//! what was refused.

mod pipeline; // the rules, running: one thread a partition
mod rejected;
mod store; // telemetry into the store // refused messages, counted

pub mod engine;
pub mod rules; // rules as data // what the rules say of a partition

mod checkpoint; // an engine's state and position on disk
mod consumer;
mod copies; // which messages came before // reading a partition, waiting, trying again

pub use copies::RecentIds;
pub use engine::{Account, Limits};
pub use pipeline::{Config, PartitionStatus, Pipeline, PipelineView, StartError, Status};
pub use rejected::{RejectedCounter, RejectedCounts, RejectedView};
pub use rules::{RuleProblem, RuleSet};
pub use store::{StoreConfig, StorePartition, StoreStatus, StoreView, StoreWriter};
