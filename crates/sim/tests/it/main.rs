//! The senders against a server that loses answers and connections when it is told to.

mod broker; // that server
mod connects;
mod fan_out;
mod fleet;
mod http;
mod idle;
mod load;
mod publisher;
mod replay;
