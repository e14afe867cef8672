//! The words of the house: ids, records, readings, time, limits. No IO, no clock, no randomness.

mod alert; // a step in the life of an alert
mod command; // what a device is asked to do
mod event; // something that happened to a device
mod record; // one device message
mod rejected; // a message that was refused
mod value; // what a reading holds

mod names; // tenants, devices, device types, metrics
mod time; // microseconds since 1970, UTC

mod clock; // where the time comes from
mod event_time; // which clock a record is filed under
mod slot; // device -> slot -> partition

mod cause; // an error in words

pub mod avro; // all of these on the wire and on disk
pub mod limits;

#[cfg(any(test, fuzzing))]
pub mod fuzzing; // what must hold for any bytes

pub use alert::{
    AlertId, AlertPhase, AlertState, AlertStep, AlertTransition, Fingerprint, IllegalStep, InvalidAlertId,
    Severity, TransitionId,
};
pub use cause::{chain, panic_words};
pub use clock::Clock;
pub use command::{Command, CommandId, CommandReply, CommandState, CommandStep, InvalidCommandId};
pub use event::{Event, EventKind};
pub use event_time::{TimePolicy, TimeSource};
pub use names::{DeviceId, DeviceType, InvalidName, MetricName, TenantId};
pub use record::{MessageId, Reading, Readings, Record};
pub use rejected::{RejectReason, Rejected};
pub use slot::{SLOTS, Slot};
pub use time::Timestamp;
pub use value::{Value, ValueRef};
