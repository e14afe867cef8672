//! Devices that are not there: fleets, loaders, replays, and the record of what was acknowledged to them.

pub mod fleet; // many devices with realistic sensors
pub mod replay; // a file of readings as one device

pub mod connects; // clients that come and go
pub mod fan_out; // a few publishers, many subscribers
pub mod http; // readings in requests
pub mod idle; // connections that only stand there
pub mod load; // as much as the server takes, measured
pub mod nullsink; // a server that only acknowledges

pub mod certificates; // an authority, a server, devices
pub mod exchanges; // one thing after the other, each with its answer
pub mod payload; // what is sent
pub mod publisher; // one connection that repeats what was not acknowledged
pub mod tls; // how it is encrypted
pub mod wire; // MQTT packets

pub mod backoff; // when to try again
pub mod latency; // how long it took
mod poll; // which sockets have news
mod schedule; // when messages are due
mod sockets; // connecting from several addresses
mod stream; // with TLS and without
