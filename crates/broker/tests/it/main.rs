//! The state machine from outside: changes in, deliveries out.

mod world; // a broker, its log, its clients

mod commands; // what devices are asked to do
mod gateways; // several on one log
mod replay; // the log alone brings everything back
mod retained;
mod sessions; // openings, ends, wills, repetitions
mod shared;
mod subscriptions;
