//! Devices' front door: listen, authenticate, admit, decode, append, acknowledge.
//!
//! A message is acknowledged only after the journal said that it is durable. Tenant and device come from the
//! credential. Nothing here decides about the data. What outlives a connection is the broker's, and in the log.

mod config; // limits and times
mod directory; // who may come in: asked here, answered elsewhere
mod gateway; // start and stop

mod admissions; // who was let in lately
mod guard; // who comes too often, or with credentials that are none
mod listen; // from a socket to the bytes of MQTT
mod proxy; // where the client is, if a load balancer is between
mod table; // what is remembered of many
mod tls; // certificates, the server's and the devices'
mod websocket; // MQTT in frames

mod company; // other gateways on the same journal

mod announce; // what the server itself publishes
mod connection; // what one device has not been told yet
mod delivery; // from a session to its connection
mod mqtt; // the path of an MQTT reading
mod pubsub; // subscriptions and sessions, and their log
mod sessions; // one connection per client id, none without access
mod share; // one tenant's part of a worker
mod statistics; // what clients may know of the server
mod strict; // what the codec lets pass
mod topic; // where devices publish
mod wire; // both protocol versions as one
mod worker; // one thread's share of it all
mod workers; // their threads, and how connections come to them

mod http; // the path of an HTTP reading
mod line_protocol; // InfluxDB's way to write readings

mod source; // from brokers of others, which devices speak to

mod append; // many messages, one commit
mod decode; // JSON to readings
mod part; // records that came together
mod record; // readings to what the journal carries

mod account; // what became of every record
mod arrivals; // since when something is under way
mod logs;
mod metrics;

#[cfg(any(test, fuzzing))]
pub mod fuzzing; // what must hold for any bytes

pub use account::{Account, Accounts};
pub use announce::{AnnounceError, Announcer};
pub use company::Company;
pub use config::{
    AdmissionConfig, Config, GuardConfig, InvalidConfig, ListenerConfig, PubSubConfig, Transport,
};
pub use decode::{Entries, Entry, Fault, decode};
pub use directory::{Admitted, ChildAnswer, Denied, Directory};
pub use gateway::{Door, Gateway, GatewayView, StartError};
pub use listen::NoCertificate;
pub use pubsub::RecoverError;
pub use record::{Arrival, Delivery, Origin, append_telemetry};
pub use sessions::{Access, Revoked, revoke_everywhere};
pub use source::{SourceConfig, SourceTlsConfig};
pub use tls::{
    Certified, ClientCaConfig, ClientCertificates, NotCertified, RenewalConfig, Tls, TlsConfig, TlsError,
    TlsInForce,
};
