use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use dunlin_journal::Topic;
use rdkafka::{ClientConfig, config::RDKafkaLogLevel};
use serde::{Deserialize, Serialize};

const SECONDS_MAX: u64 = 3_600;
const YEAR_SECONDS: u64 = 365 * 24 * 3_600;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Some of the brokers, `HOST:PORT,HOST:PORT`; they name the others.
    pub brokers: String,
    /// Before the name of every topic and consumer group.
    pub prefix: String,
    /// How the brokers call this process, in their logs and quotas.
    pub client_id: String,
    /// Who this process is among those that share partitions: a name of its own, by which it keeps them over a restart
    /// shorter than a session. Empty: somebody new with every start, who gives them back when it stops.
    pub member: String,
    /// A process that is not heard of for so long has lost its partitions. The brokers bound it (6 s to 30 min).
    pub session_seconds_max: u64,
    /// How long a partition that is to move may take to be released.
    pub handover_seconds_max: u64,

    /// Topics that are missing are made with the next three; those that are there must have so many partitions.
    pub create_topics: bool,
    pub telemetry_partitions: u16,
    pub replication_factor: u16,
    /// An append is acknowledged when so many replicas have it, and refused while fewer are there.
    pub min_insync_replicas: u16,

    /// Records under way to the brokers; beyond it appends wait.
    pub inflight_bytes_max: usize,
    pub inflight_records_max: usize,
    /// How long a record waits for company on its way to its partition, at most. It trades latency for fewer requests.
    pub linger_micros: u64,
    pub compression: Compression,
    /// After this long without an answer an append has failed. What has become of it is not known.
    pub delivery_seconds_max: u64,
    /// The oldest append under way is older than this: the journal says that it does not get on.
    pub stalled_seconds: u64,

    /// Topics that this process follows as they grow. Others are read from the brokers when somebody asks, who may hear a few
    /// seconds late that something came.
    #[serde(skip)]
    pub follows: Vec<Topic>,
    /// The newest records, kept in memory for consumers that are near the end.
    pub tail_cache_bytes: usize,
    /// Reads of older records at the same time, each with a client of its own of up to 8 MiB.
    pub cold_readers_max: usize,
    /// How long the brokers may take to answer a question, or a read.
    pub request_seconds_max: u64,
    /// How long a start waits for brokers that do not answer.
    pub connect_seconds_max: u64,

    /// Records older than this go, if every consumer has passed them.
    pub retention_seconds: u64,

    pub tls: Tls,
    pub sasl: Option<Sasl>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    Lz4,
    Zstd,
}

impl Compression {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

/// Encryption on the way to the brokers, and who they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    pub enabled: bool,
    /// Whom to believe that a broker is one; the system's authorities if nothing is said.
    pub ca_file: Option<PathBuf>,
    /// This process's own certificate and key, for brokers that ask.
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    pub key_password_file: Option<PathBuf>,
}

/// Who this process is, to the brokers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sasl {
    pub mechanism: Mechanism,
    pub username: String,
    /// Read when the journal is opened; white space around it is not part of it.
    pub password_file: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mechanism {
    #[serde(rename = "PLAIN")]
    Plain,
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".into(),
            prefix: "dunlin.".into(),
            client_id: "dunlin".into(),
            member: "dunlin".into(),
            session_seconds_max: 10,
            handover_seconds_max: 30,
            create_topics: true,
            telemetry_partitions: 6,
            replication_factor: 3,
            min_insync_replicas: 2,
            inflight_bytes_max: 128 << 20,
            inflight_records_max: 1 << 20,
            linger_micros: 1_000,
            compression: Compression::Lz4,
            delivery_seconds_max: 30,
            stalled_seconds: 10,
            follows: Topic::ALL.into(),
            tail_cache_bytes: 64 << 20,
            cold_readers_max: 16,
            request_seconds_max: 10,
            connect_seconds_max: 60,
            retention_seconds: 7 * 24 * 3600,
            tls: Tls::default(),
            sasl: None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("journal.{field} must be {expected}, not {found}")]
pub struct InvalidConfig {
    pub field: &'static str,
    pub expected: String,
    pub found: String,
}

impl Config {
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let address = |a: &str| {
            a.trim().rsplit_once(':').is_some_and(|(h, p)| !h.is_empty() && p.parse::<u16>().is_ok())
        };
        if !self.brokers.split(',').all(address) {
            return Err(invalid("brokers", "HOST:PORT,HOST:PORT,...", &self.brokers));
        }
        // What Kafka takes in the name of a topic.
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if self.prefix.len() > 200 || !self.prefix.chars().all(legal) {
            return Err(invalid("prefix", "up to 200 of a-z A-Z 0-9 . _ -", &self.prefix));
        }
        if self.member.len() > 200 || !self.member.chars().all(legal) {
            return Err(invalid("member", "up to 200 of a-z A-Z 0-9 . _ -", &self.member));
        }
        let within = |field, found: u64, least: u64, most: u64| match found {
            _ if (least..=most).contains(&found) => Ok(()),
            _ => Err(invalid(field, &format!("from {least} to {most}"), &found.to_string())),
        };
        let replicas = u64::from(self.replication_factor);
        within("telemetry_partitions", u64::from(self.telemetry_partitions), 1, 4_096)?;
        within("replication_factor", replicas, 1, 15)?;
        within("min_insync_replicas", u64::from(self.min_insync_replicas), 1, replicas)?;
        within("session_seconds_max", self.session_seconds_max, 1, 1_800)?;
        within("handover_seconds_max", self.handover_seconds_max, 1, 240)?;
        within("inflight_bytes_max", self.inflight_bytes_max as u64, 1 << 10, 1 << 40)?;
        within("inflight_records_max", self.inflight_records_max as u64, 1, 1 << 30)?;
        within("linger_micros", self.linger_micros, 0, 1_000_000)?;
        within("delivery_seconds_max", self.delivery_seconds_max, 1, SECONDS_MAX)?;
        within("stalled_seconds", self.stalled_seconds, 1, SECONDS_MAX)?;
        within("tail_cache_bytes", self.tail_cache_bytes as u64, 0, 1 << 40)?;
        within("cold_readers_max", self.cold_readers_max as u64, 1, 1_024)?;
        within("request_seconds_max", self.request_seconds_max, 1, SECONDS_MAX)?;
        within("connect_seconds_max", self.connect_seconds_max, 0, SECONDS_MAX)?;
        within("retention_seconds", self.retention_seconds, 0, 1_000 * YEAR_SECONDS)
    }

    pub(crate) fn topic_name(&self, topic: Topic) -> String {
        format!("{}{}", self.prefix, topic.name())
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_seconds_max)
    }

    /// What all clients of the brokers share.
    pub(crate) fn client(&self) -> io::Result<ClientConfig> {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.brokers).set("client.id", &self.client_id);
        // A broker that is gone is asked again soon; one that does not answer is given up before devices do.
        client.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
        client.set("socket.timeout.ms", (self.request_seconds_max * 1000).to_string());
        client.set("socket.keepalive.enable", "true").set("socket.nagle.disable", "true");
        client.set("topic.metadata.refresh.interval.ms", "30000");
        // Told through the log, once a broker; the rest is what this crate says.
        client.set("log.connection.close", "false").set_log_level(RDKafkaLogLevel::Warning);
        self.secure(&mut client)?;
        Ok(client)
    }

    fn secure(&self, client: &mut ClientConfig) -> io::Result<()> {
        let protocol = match (self.tls.enabled, self.sasl.is_some()) {
            (false, false) => "plaintext",
            (true, false) => "ssl",
            (false, true) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        };
        client.set("security.protocol", protocol);
        if self.tls.enabled {
            let files = [
                ("ssl.ca.location", &self.tls.ca_file),
                ("ssl.certificate.location", &self.tls.certificate_file),
                ("ssl.key.location", &self.tls.key_file),
            ];
            for (setting, file) in files {
                if let Some(file) = file {
                    client.set(setting, file.to_string_lossy());
                }
            }
            if let Some(file) = &self.tls.key_password_file {
                client.set("ssl.key.password", secret(file)?);
            }
        }
        if let Some(sasl) = &self.sasl {
            let mechanism = match sasl.mechanism {
                Mechanism::Plain => "PLAIN",
                Mechanism::ScramSha256 => "SCRAM-SHA-256",
                Mechanism::ScramSha512 => "SCRAM-SHA-512",
            };
            client.set("sasl.mechanism", mechanism).set("sasl.username", &sasl.username);
            client.set("sasl.password", secret(&sasl.password_file)?);
        }
        Ok(())
    }
}

fn secret(file: &Path) -> io::Result<String> {
    let text = fs::read_to_string(file)
        .map_err(|error| io::Error::new(error.kind(), format!("read {}: {error}", file.display())))?;
    Ok(text.trim().to_owned())
}

fn invalid(field: &'static str, expected: &str, found: &str) -> InvalidConfig {
    InvalidConfig { field, expected: expected.into(), found: found.into() }
}
