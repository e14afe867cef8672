use dunlin_broker::Limits;
use dunlin_model::{TimePolicy, limits::MESSAGE_BYTES_MAX};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{source::SourceConfig, tls::ClientCertificates};

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
    /// How long a client may take for its CONNECT, and for the rest of a packet it has begun; over
    /// HTTP, for the next part of a body.
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
    /// What clients may do before they are let in.
    pub guard: GuardConfig,
    /// For how long a device that was let in comes in again unasked.
    pub admission: AdmissionConfig,
    /// Further doors for MQTT.
    pub listener: Vec<ListenerConfig>,
    /// Brokers of others from which telemetry is taken.
    pub source: Vec<SourceConfig>,
}

/// What is remembered of devices that were let in. A token that is revoked and a device that is disabled are forgotten at
/// once by all gateways on the same journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdmissionConfig {
    /// Credentials that are remembered; those that were asked about longest ago are forgotten.
    pub credentials_max: usize,
    /// 0: the registry is asked at every connect and every request over HTTP.
    pub valid_seconds: u32,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self { credentials_max: 100_000, valid_seconds: 30 }
    }
}

/// A door for MQTT.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// HOST:PORT
    pub address: String,
    #[serde(default)]
    pub transport: Transport,
    /// With the certificate of `[tls]`.
    #[serde(default)]
    pub tls: bool,
    /// Whether clients show a certificate that an authority of `[[tls.client_ca]]` has signed.
    #[serde(default)]
    pub client_certificates: ClientCertificates,
    /// Every connection begins with a header of the PROXY protocol, version 2, that says where its client is.
    #[serde(default)]
    pub proxy_protocol: bool,
    /// From where such connections may come. Empty: from everywhere, so nobody but the proxy may reach the address.
    #[serde(default)]
    pub proxies: Vec<IpNet>,
}

/// How MQTT comes over a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    #[default]
    Tcp,
    /// In the frames of a WebSocket, whatever path it asks for.
    WebSocket,
}

impl ListenerConfig {
    /// MQTT as it is.
    pub fn plain(address: impl Into<String>) -> Self {
        Self {
            address: address.into(),
            transport: Transport::Tcp,
            tls: false,
            client_certificates: ClientCertificates::None,
            proxy_protocol: false,
            proxies: Vec::new(),
        }
    }

    /// As an event says it.
    pub(crate) fn name(&self) -> &'static str {
        match (self.transport, self.tls) {
            (Transport::Tcp, false) => "mqtt",
            (Transport::Tcp, true) => "mqtts",
            (Transport::WebSocket, false) => "ws",
            (Transport::WebSocket, true) => "wss",
        }
    }

    fn check(&self) -> Result<(), InvalidConfig> {
        let wrong = |field, must: &str| Err(InvalidConfig { field, must: must.into() });
        if self.address.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            return wrong("listener.address", &format!("HOST:PORT, not {:?}", self.address));
        }
        if self.client_certificates != ClientCertificates::None && !self.tls {
            return wrong("listener.tls", "true where client_certificates are asked for");
        }
        if !self.proxies.is_empty() && !self.proxy_protocol {
            return wrong("listener.proxy_protocol", "true where proxies are named");
        }
        Ok(())
    }
}

/// What clients may do before they are let in. An address is an IPv4 address or the /64 of an IPv6 one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GuardConfig {
    /// Addresses that are remembered, and credentials that failed; those not seen for longest are forgotten.
    pub addresses_max: usize,
    /// Clients that were let in and are remembered; those not seen for longest are forgotten.
    pub clients_max: usize,
    /// Connections of which nobody knows yet whose they are. One address holds at most as many as are left.
    pub half_open_max: usize,
    /// Connects a second of one address, after a burst.
    pub address_connects_per_second_max: u32,
    pub address_connects_burst_max: u32,
    /// Connects a second of all clients, after a burst. The surplus waits or is told to come back.
    pub connects_per_second_max: u32,
    pub connects_burst_max: u32,
    /// How long a connect may wait for its turn; never more than half of `handshake_seconds_max`.
    pub connect_wait_millis_max: u32,
    /// A client (id and credential at an address) that connects more often is banned for a while.
    pub client_connects_per_minute_max: u32,
    pub client_ban_seconds: u32,
    /// How often one credential may fail at an address before there is a pause after each failure.
    pub credential_failures_free: u32,
    /// How many credentials may fail at an address before there is a pause for clients that were never let in there.
    pub address_failures_free: u32,
    /// Pauses begin at a second and double up to this.
    pub failure_pause_seconds_max: u32,
    /// In this time half of the failures are forgotten.
    pub failures_half_life_seconds: u32,
    /// TLS handshakes at the same time; half of them for one address.
    pub tls_handshakes_max: usize,
    /// TLS handshakes that wait for their turn. One address holds at most as many places as are left.
    pub tls_handshakes_waiting_max: usize,
    /// How long a TLS handshake may wait for its turn; never more than half of `handshake_seconds_max`.
    pub tls_handshake_wait_millis_max: u32,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self {
            addresses_max: 100_000,
            clients_max: 200_000,
            half_open_max: 32_000,
            address_connects_per_second_max: 5_000,
            address_connects_burst_max: 20_000,
            connects_per_second_max: 10_000,
            connects_burst_max: 20_000,
            connect_wait_millis_max: 2_000,
            client_connects_per_minute_max: 100,
            client_ban_seconds: 60,
            credential_failures_free: 5,
            address_failures_free: 100,
            failure_pause_seconds_max: 60,
            failures_half_life_seconds: 600,
            tls_handshakes_max: 1_024,
            tls_handshakes_waiting_max: 16_000,
            tls_handshake_wait_millis_max: 5_000,
        }
    }
}

/// More is a mistake.
const GUARD_COUNT_MAX: u64 = 100_000_000;
/// A second has so many microseconds, and a clock nothing finer.
const CONNECTS_PER_SECOND_MAX: u64 = 1_000_000;
const GUARD_WAIT_MILLIS_MAX: u64 = 3_600_000;
const GUARD_SECONDS_MAX: u64 = 7 * 24 * 3_600;

impl GuardConfig {
    /// With waits that leave half of the time that a handshake may take.
    pub(crate) fn within(&self, handshake_seconds_max: u16) -> Self {
        let most = u32::from(handshake_seconds_max) * 500;
        Self {
            connect_wait_millis_max: self.connect_wait_millis_max.min(most),
            tls_handshake_wait_millis_max: self.tls_handshake_wait_millis_max.min(most),
            ..self.clone()
        }
    }

    fn check(&self) -> Result<(), InvalidConfig> {
        #[rustfmt::skip]
        let bounds = [
            ("guard.addresses_max", self.addresses_max as u64, 2, GUARD_COUNT_MAX),
            ("guard.clients_max", self.clients_max as u64, 2, GUARD_COUNT_MAX),
            ("guard.half_open_max", self.half_open_max as u64, 2, GUARD_COUNT_MAX),
            ("guard.address_connects_per_second_max", self.address_connects_per_second_max.into(), 1, CONNECTS_PER_SECOND_MAX),
            ("guard.address_connects_burst_max", self.address_connects_burst_max.into(), 1, GUARD_COUNT_MAX),
            ("guard.connects_per_second_max", self.connects_per_second_max.into(), 1, CONNECTS_PER_SECOND_MAX),
            ("guard.connects_burst_max", self.connects_burst_max.into(), 1, GUARD_COUNT_MAX),
            ("guard.connect_wait_millis_max", self.connect_wait_millis_max.into(), 0, GUARD_WAIT_MILLIS_MAX),
            ("guard.client_connects_per_minute_max", self.client_connects_per_minute_max.into(), 1, GUARD_COUNT_MAX),
            ("guard.client_ban_seconds", self.client_ban_seconds.into(), 0, GUARD_SECONDS_MAX),
            ("guard.credential_failures_free", self.credential_failures_free.into(), 0, GUARD_COUNT_MAX),
            ("guard.address_failures_free", self.address_failures_free.into(), 0, GUARD_COUNT_MAX),
            ("guard.failure_pause_seconds_max", self.failure_pause_seconds_max.into(), 0, GUARD_SECONDS_MAX),
            ("guard.failures_half_life_seconds", self.failures_half_life_seconds.into(), 1, GUARD_SECONDS_MAX),
            ("guard.tls_handshakes_max", self.tls_handshakes_max as u64, 1, GUARD_COUNT_MAX),
            ("guard.tls_handshakes_waiting_max", self.tls_handshakes_waiting_max as u64, 0, GUARD_COUNT_MAX),
            ("guard.tls_handshake_wait_millis_max", self.tls_handshake_wait_millis_max.into(), 0, GUARD_WAIT_MILLIS_MAX),
        ];
        match bounds.into_iter().find(|(_, found, least, most)| !(least..=most).contains(&found)) {
            None => Ok(()),
            Some((field, found, least, most)) => {
                Err(InvalidConfig { field, must: format!("from {least} to {most}, not {found}") })
            }
        }
    }
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
            guard: GuardConfig::default(),
            admission: AdmissionConfig::default(),
            listener: Vec::new(),
            source: Vec::new(),
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
            Self { guard, listener, source, .. } => {
                guard.check()?;
                listener.iter().try_for_each(ListenerConfig::check)?;
                source.iter().try_for_each(SourceConfig::check)?;
                let is_again = |n: usize| source[..n].iter().any(|other| other.name == source[n].name);
                match (0..source.len()).find(|n| is_again(*n)) {
                    Some(n) => wrong(
                        "source.name",
                        &format!("another for each; {:?} is there twice", source[n].name),
                    ),
                    None => Ok(()),
                }
            }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guard_without_sense_is_named() {
        Config::default().check().unwrap();
        let guards = [
            GuardConfig { connects_per_second_max: 0, ..<_>::default() },
            GuardConfig { address_connects_burst_max: 0, ..<_>::default() },
            GuardConfig { half_open_max: 1, ..<_>::default() },
            GuardConfig { failures_half_life_seconds: 0, ..<_>::default() },
            GuardConfig { client_ban_seconds: u32::MAX, ..<_>::default() },
        ];
        let said = guards.map(|guard| Config { guard, ..Config::default() }.check().unwrap_err().to_string());
        assert_eq!(said[0], "gateway.guard.connects_per_second_max must be from 1 to 1000000, not 0");
        assert_eq!(said[2], "gateway.guard.half_open_max must be from 2 to 100000000, not 1");
        assert!(said.iter().all(|said| said.starts_with("gateway.guard.")), "{said:?}");
    }

    #[test]
    fn waits_end_before_the_handshake_does() {
        let guard = GuardConfig::default().within(1);
        assert_eq!((guard.connect_wait_millis_max, guard.tls_handshake_wait_millis_max), (500, 500));
        assert_eq!(GuardConfig::default().within(10), GuardConfig::default());
    }
}
