//! Publish and subscribe inside a tenant, as MQTT 3.1.1 and 5 mean it: subscriptions, retained messages, wills, and
//! sessions that outlive their connections.
//!
//! What must survive a crash changes by [`Change`]s alone. They are written to a log first and then applied, in the
//! order of the log, live and at a start alike: so the state is a function of the log. What lives only as long as a
//! connection (its subscriptions, what it has been sent) is changed directly. No IO here, no clock, no threads.

mod topic; // names and filters
mod tree; // who wants a topic

mod message; // what is published
mod retained; // the last message of a topic

mod outbox; // what a session has not had, or not acknowledged
mod session;

mod commands; // what devices are asked to do

mod gateways; // who shares the log

mod change; // what the log carries
mod snapshot; // the state at an offset of the log
mod tenant; // one tenant's topics and sessions

mod broker; // all tenants

#[cfg(any(test, fuzzing))]
pub mod fuzzing; // what must hold for any bytes

pub use broker::{Broker, Counts, News, partition_of};
pub use change::{Change, NotAChange, Publication};
pub use commands::{Command, command_filter, command_of, is_of_commands};
pub use gateways::GatewayNumber;
pub use message::{Message, Properties, Qos};
pub use outbox::{Acknowledged, Delivery, Outbox, Outgoing};
pub use session::{Home, RetainHandling, Session, SessionId, SessionKey, Subscription, UNDER_WAY_MAX, Will};
pub use snapshot::DamagedSnapshot;
pub use tenant::{Limits, Published, Subscribing, Tenant};
pub use topic::{Filter, TopicFault, check_topic};
