//! The senders against a server that loses answers and connections when it is told to.

mod broker; // that server
mod fleet;
mod load;
mod publisher;
mod replay;
