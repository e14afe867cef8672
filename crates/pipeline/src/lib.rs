//! Consumers of the journal: rules over event-time windows, the writer of the time-series store, and the count of
//! what was refused.

mod pipeline; // the rules, running: one thread a partition

mod store; // telemetry into the store

mod sampling; // of it, what need not all be stored

mod rejected; // refused messages, counted

pub mod rules; // rules as data

mod watch; // one rule on one device

pub mod engine; // what the rules say of a partition

mod groups; // what they say of groups of devices, over all partitions

pub mod proof; // a rule's own tests

pub mod backtest; // a rule over stored history

mod checkpoints; // engines' states and positions in an object store

mod checkpoint; // a small state and its position in one file

mod consumer; // reading a partition, waiting, trying again

mod copies; // which messages came before

pub use copies::{RecentIds, RecentIdsLimits};
pub use engine::{Account, Limits};
pub use pipeline::{
    CONSUMER as PIPELINE, CheckpointError, CheckpointStatus, CheckpointStore, Config, GROUPS, GroupsStatus,
    Inflow, PartitionStatus, Pipeline, PipelineView, RulesInForce, StartError, Status,
};
pub use rejected::{RejectedCounter, RejectedCounts, RejectedView};
pub use rules::{RuleProblem, RuleSet};
pub use sampling::{NotCritical, SamplingConfig};
pub use store::{CONSUMER as STORE, StoreConfig, StoreStatus, StoreView, StoreWriter};
