use std::sync::OnceLock;

use bytes::Bytes;
use dunlin_model::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{retained, session::SessionId};

/// How surely a message arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Qos {
    AtMostOnce,
    AtLeastOnce,
    ExactlyOnce,
}

/// One published message, shared by all who get it.
#[derive(Debug)]
pub struct Message {
    pub topic: Box<str>,
    pub payload: Bytes,
    pub qos: Qos,
    /// As its publisher set it.
    pub retain: bool,
    pub expires_at: Option<Timestamp>,
    /// What MQTT 5 clients are shown besides; `None` is nothing.
    pub properties: Option<Box<Properties>>,
    /// The session that published it, for subscriptions that do not want their own; `None` is the server.
    pub publisher: Option<SessionId>,
    /// The packet as most subscribers get it, once per protocol version; made by whoever writes it.
    pub packets: [OnceLock<Bytes>; 2],
}

/// What a publisher adds for its subscribers (MQTT 5, 3.3.2.3), passed through as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Properties {
    pub utf8_payload: bool,
    pub content_type: Option<String>,
    pub response_topic: Option<String>,
    pub correlation_data: Option<Vec<u8>>,
    pub user: Vec<(String, String)>,
}

impl Properties {
    /// Nothing at all is `None`, so that most messages carry no box.
    pub fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }

    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let single = [&self.content_type, &self.response_topic].into_iter().flatten();
        single.chain(self.user.iter().flat_map(|(name, value)| [name, value])).map(String::as_str)
    }

    fn size_bytes(&self) -> usize {
        const USER_OVERHEAD: usize = 48;
        let texts: usize = self.texts().map(str::len).sum();
        texts + self.user.len() * USER_OVERHEAD + self.correlation_data.as_ref().map_or(0, Vec::len)
    }
}

impl Message {
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// What it takes of the bound on retained messages: the levels of its topic too, as if no other had them.
    pub fn retained_bytes(&self) -> usize {
        let levels = 1 + self.topic.bytes().filter(|byte| *byte == b'/').count();
        self.size_bytes() + levels * retained::LEVEL_BYTES
    }

    /// What it takes of a bound in bytes.
    pub fn size_bytes(&self) -> usize {
        const OVERHEAD: usize = 128;
        self.topic.len()
            + self.payload.len()
            + self.properties.as_ref().map_or(0, |p| p.size_bytes())
            + OVERHEAD
    }
}
