//! The front door on real sockets, with a memory journal behind it.

mod lab; // a gateway, a gate before its journal, raw clients

mod accounts;
mod doors;
mod guard;
mod http;
mod malformed;
mod mqtt;
mod pubsub;
mod revoke;
mod shares;
mod statistics;
