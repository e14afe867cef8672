//! The front door on real sockets, with a memory journal behind it.

mod lab; // a gateway, a gate before its journal, raw clients

mod accounts;
mod doors;
mod grammar;
mod guard;
mod http;
mod malformed;
mod mqtt;
mod permissions;
mod pubsub;
mod revoke;
mod sequences;
mod shares;
mod source;
mod statistics;
