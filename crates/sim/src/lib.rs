//! Devices that are not there: fleets, loaders, replays, and the record of what was acknowledged to them.

pub mod fleet; // many devices with realistic sensors
pub mod replay; // a file of readings as one device

pub mod idle; // connections that only stand there
pub mod load; // as much as the server takes, measured
pub mod nullsink; // a server that only acknowledges

pub mod publisher; // one connection that repeats what was not acknowledged
pub mod wire; // MQTT packets

mod sockets; // connecting from several addresses
