//! The durable log on Apache Kafka.
//!
//! A record is one Kafka message, in the partition that the caller named, so that Kafka's and Flink's own tools read
//! it. The producer is idempotent and waits for all in-sync replicas: an append returns when the last of its records is
//! on as many of them as the topic asks for. What is newest is kept in memory by a consumer that follows every
//! partition; what is older is read by a few more, each of which goes on where it was.
//!
//! Deliberately absent: transactions (their marks take offsets, and a batch need not be one), compaction, and Kafka's
//! own retention: it knows nothing of who has read what. Records are deleted from here (see `retention`).

mod config;
mod journal; // the handle, and what it promises
mod labels; // what stands beside a record, for others' tools

mod append; // records on their way to Kafka, bounded
mod cold; // what the tail does not have in memory
mod members; // partitions that processes share
mod positions; // how far each consumer has got
mod retention;
mod tail; // the newest records, in memory
mod watch; // what can be read and whether it can be written, asked again and again

mod client; // librdkafka's side
mod places; // partitions in one row
mod topics; // made, or found as they must be

mod metrics;

pub use config::{Compression, Config, InvalidConfig, Mechanism, Sasl, Tls};
pub use journal::{KafkaJournal, OpenError};
pub use labels::{Describe, Labels};
