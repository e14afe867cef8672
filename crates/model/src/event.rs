use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// Something that happened to a device, as the `events` topic carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub tenant: String,
    pub device: String,
    pub time: Timestamp,
    pub kind: EventKind,
    /// JSON: what the device sent, or what the platform knows (the reason of a disconnect).
    pub detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    Connected,
    Disconnected,
    /// Sent by the device itself to `v1/events`.
    Reported,
}
