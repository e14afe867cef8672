use dunlin_broker::Limits;
use dunlin_model::{TimePolicy, limits::MESSAGE_BYTES_MAX};
use serde::{Deserialize, Serialize};

/// How the front door behaves. Every limit has a default that fits a small machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Threads that serve MQTT connections; 0 is one per core.
    pub workers: usize,
    /// MQTT connections at the same time; more are closed when they arrive.
    pub connections_max: usize,
    /// Publishes of one connection that wait for their acknowledgement (MQTT 5 receive maximum).
    pub connection_inflight_max: u16,
    /// Bytes of one connection, decoded and not yet durable; above it the connection is not read.
    pub connection_inflight_bytes_max: usize,
    /// Bytes of one message, over MQTT or HTTP.
    pub message_bytes_max: usize,
    /// Bytes decoded and not yet durable, of all workers together; above it connections are not read. Those of one
    /// tenant are not read above half of it, if other tenants are connected to the same worker.
    pub inflight_bytes_max: usize,
    /// Bytes of HTTP requests that are being read or not yet durable; above it requests are refused with 503, and
    /// those of one tenant above half of it.
    pub http_inflight_bytes_max: usize,
    /// How long a client may take for its CONNECT, and for the rest of a packet it has begun.
    pub handshake_seconds_max: u16,
    /// The longest keep-alive; also holds for clients that ask for none.
    pub keepalive_seconds_max: u16,
    /// How long an HTTP request may take.
    pub http_request_seconds_max: u16,
    /// Children that one connection speaks for and that are remembered with it.
    pub connection_children_max: usize,
    /// Children that one device may have; the name of one more is refused.
    pub device_children_max: u64,
    /// How long a stop waits for what was appended to become durable.
    pub drain_seconds_max: u16,
    /// When a device's clock is believed.
    pub time: TimePolicy,
    /// Subscriptions, retained messages and sessions.
    pub pubsub: PubSubConfig,
}

/// What pub/sub may take, tenant by tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PubSubConfig {
    /// Subscriptions of one client.
    pub session_subscriptions_max: usize,
    /// Messages that wait for one client; what is more is dropped and counted.
    pub queue_messages_max: usize,
    /// Bytes that wait for one client; what is more is dropped and counted.
    pub queue_bytes_max: usize,
    /// Sessions of one tenant that outlive their connections.
    pub sessions_max: usize,
    /// The longest that a session outlives its connection; MQTT 3.1.1 clients get this.
    pub session_expiry_seconds_max: u32,
    /// Retained messages of one tenant.
    pub retained_messages_max: usize,
    /// Bytes of one tenant's retained messages.
    pub retained_bytes_max: usize,
    /// How often `$SYS/broker/…` is looked at; 0 is never.
    pub statistics_seconds: u32,
}

impl Default for PubSubConfig {
    fn default() -> Self {
        Self {
            session_subscriptions_max: 1_000,
            queue_messages_max: 10_000,
            queue_bytes_max: 8 << 20,
            sessions_max: 1_000_000,
            session_expiry_seconds_max: 7 * 24 * 3_600,
            retained_messages_max: 100_000,
            retained_bytes_max: 256 << 20,
            statistics_seconds: 10,
        }
    }
}

impl PubSubConfig {
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            session_subscriptions_max: self.session_subscriptions_max,
            queue_messages_max: self.queue_messages_max,
            queue_bytes_max: self.queue_bytes_max,
            sessions_max: self.sessions_max,
            retained_messages_max: self.retained_messages_max,
            retained_bytes_max: self.retained_bytes_max,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 0,
            connections_max: 100_000,
            connection_inflight_max: 256,
            connection_inflight_bytes_max: 4 << 20,
            message_bytes_max: MESSAGE_BYTES_MAX,
            inflight_bytes_max: 64 << 20,
            http_inflight_bytes_max: 64 << 20,
            handshake_seconds_max: 10,
            keepalive_seconds_max: 3_600,
            http_request_seconds_max: 30,
            connection_children_max: 1_000,
            device_children_max: 10_000,
            drain_seconds_max: 10,
            time: TimePolicy::default(),
            pubsub: PubSubConfig::default(),
        }
    }
}

/// More is a mistake.
const HTTP_INFLIGHT_BYTES_MAX: usize = 1 << 40;

/// A configuration that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("gateway.{field} must be {must}")]
pub struct InvalidConfig {
    pub field: &'static str,
    pub must: String,
}

impl Config {
    /// Checks what the types do not.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let wrong = |field, must: &str| Err(InvalidConfig { field, must: must.into() });
        match self {
            Self { connections_max: 0, .. } => wrong("connections_max", "at least 1"),
            Self { connection_inflight_max: 0, .. } => wrong("connection_inflight_max", "at least 1"),
            Self { handshake_seconds_max: 0, .. } => wrong("handshake_seconds_max", "at least 1"),
            Self { keepalive_seconds_max: 0, .. } => wrong("keepalive_seconds_max", "at least 1"),
            Self { http_request_seconds_max: 0, .. } => wrong("http_request_seconds_max", "at least 1"),
            Self { inflight_bytes_max: 0, .. } => wrong("inflight_bytes_max", "at least 1"),
            Self { message_bytes_max, http_inflight_bytes_max, .. }
                if !(*message_bytes_max..=HTTP_INFLIGHT_BYTES_MAX).contains(http_inflight_bytes_max) =>
            {
                let must = format!("between message_bytes_max and {HTTP_INFLIGHT_BYTES_MAX}");
                wrong("http_inflight_bytes_max", &must)
            }
            Self { message_bytes_max, connection_inflight_bytes_max, .. }
                if connection_inflight_bytes_max < message_bytes_max =>
            {
                wrong("connection_inflight_bytes_max", "at least message_bytes_max")
            }
            Self { message_bytes_max, .. } if !(1..=MESSAGE_BYTES_MAX).contains(message_bytes_max) => {
                wrong("message_bytes_max", &format!("between 1 and {MESSAGE_BYTES_MAX}"))
            }
            _ => Ok(()),
        }
    }

    /// What an HTTP request takes of `http_inflight_bytes_max`: its body, or the largest if it does not say.
    pub(crate) fn room_of(&self, content_bytes: Option<usize>) -> u32 {
        content_bytes.unwrap_or(self.message_bytes_max).min(self.message_bytes_max) as u32
    }

    pub(crate) fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, Into::into),
            n => n,
        }
    }
}
