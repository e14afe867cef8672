//! TLS of all doors: the certificate that this server shows, and whose certificates it believes.
//!
//! The files are taken anew while the server runs. What is wrong then leaves in force what was: a certificate that is
//! half copied must not close the doors. A connection goes on with what it began with.

mod files; // what is on disk, and what is made of it
mod owner; // whose certificate it is

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use dunlin_model::{Clock, Timestamp, chain};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};

pub use files::TlsError;
use files::{Files, Loaded};
pub use owner::{Certified, NotCertified};

/// The certificate that this server shows, and whose certificates it believes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// The server's certificate and after it those up to its root, PEM. Without one no listener can have TLS.
    pub certificate: PathBuf,
    /// The key of the certificate, PEM.
    pub key: PathBuf,
    /// Who signs certificates of devices.
    pub client_ca: Vec<ClientCaConfig>,
    pub renewal: RenewalConfig,
}

/// Who signs certificates of devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientCaConfig {
    /// Certificates of the authority, PEM.
    pub file: PathBuf,
    /// Whoever shows a certificate of this authority is the device of this tenant that the subject's common name says,
    /// and needs no token. Without a tenant the token says who it is, and the certificate is needed as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// What the authority has revoked, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crl: Option<PathBuf>,
}

/// How the files are looked after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RenewalConfig {
    /// How often the files are looked at; SIGHUP does so at once.
    pub check_seconds: u32,
    /// From when on a certificate that ends is warned of, once a day.
    pub warn_days: u32,
}

impl Default for RenewalConfig {
    fn default() -> Self {
        Self { check_seconds: 60, warn_days: 21 }
    }
}

/// Whether a client is asked for a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    #[default]
    None,
    /// Who shows none needs a token.
    Optional,
    Required,
}

/// What is in force. Clones share it.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    config: TlsConfig,
    clock: Clock,
    current: RwLock<Arc<Loaded>>,
    /// What was found last, so that the same fault is told once.
    looked: Mutex<Looked>,
    taken: AtomicU64,
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct Looked {
    refused: Option<Files>,
    warned: Option<Timestamp>,
}

/// TLS as it was when a connection began.
#[derive(Debug, Clone)]
pub struct TlsInForce(Arc<Loaded>);

impl Tls {
    /// Reads all files. Whatever is wrong with one of them is said here, before any door opens.
    pub fn load(config: TlsConfig, clock: Clock) -> Result<Self, TlsError> {
        let loaded = Files::read(&config)?.load(&config, &clock)?;
        Ok(Self(Arc::new(Inner {
            config,
            clock,
            current: RwLock::new(Arc::new(loaded)),
            looked: Mutex::default(),
            taken: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })))
    }

    pub fn in_force(&self) -> TlsInForce {
        TlsInForce(self.0.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    pub fn check_every(&self) -> Duration {
        Duration::from_secs(self.0.config.renewal.check_seconds.max(1).into())
    }

    /// Takes the files if they have changed, and warns of what ends soon. May be called at any time, by anybody.
    pub fn renew(&self) {
        let Inner { config, clock, current, looked, taken, refused } = &*self.0;
        let mut looked = looked.lock().unwrap_or_else(PoisonError::into_inner);
        match Files::read(config) {
            Ok(files) if files == self.in_force().0.files || looked.refused.as_ref() == Some(&files) => {}
            Ok(files) => match files.clone().load(config, clock) {
                Ok(loaded) => {
                    tracing::info!(certificate = %config.certificate.display(), "certificates taken anew");
                    *current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
                    *looked = Looked::default();
                    taken.fetch_add(1, Relaxed);
                }
                Err(error) => {
                    tracing::error!(error = chain(&error), "certificates not taken; those in force stay");
                    looked.refused = Some(files);
                    refused.fetch_add(1, Relaxed);
                }
            },
            Err(error) => {
                tracing::error!(error = chain(&error), "certificates not read; those in force stay");
                refused.fetch_add(1, Relaxed);
            }
        }
        self.warn(&mut looked);
    }

    fn warn(&self, looked: &mut Looked) {
        const DAY: Duration = Duration::from_secs(24 * 3_600);
        let now = self.0.clock.now();
        if looked.warned.is_some_and(|at| now >= at && now.since(at) < DAY) {
            return;
        }
        let soon = now + DAY * self.0.config.renewal.warn_days;
        for certificate in self.in_force().0.certificates.iter().filter(|c| c.ends_at <= soon) {
            let (file, ends_at) = (certificate.file.display(), certificate.ends_at);
            tracing::warn!(%file, %ends_at, "a certificate ends soon, or has ended");
            looked.warned = Some(now);
        }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(TlsCollector(self.clone())));
    }
}

impl TlsInForce {
    /// For a door that asks clients for certificates like this.
    pub fn server_config(&self, asked: ClientCertificates) -> Arc<ServerConfig> {
        let Loaded { no_client, optional_client, required_client, .. } = &*self.0;
        match asked {
            ClientCertificates::None => no_client,
            ClientCertificates::Optional => optional_client,
            ClientCertificates::Required => required_client,
        }
        .clone()
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.0.config).finish()
    }
}

/// Shows the certificates when they are asked for.
#[derive(Debug)]
struct TlsCollector(Tls);

impl Collector for TlsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Inner { taken, refused, .. } = &*self.0.0;
        let help = "When a certificate ends, in seconds since 1970";
        let name = "dunlin_tls_certificate_end_timestamp_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for certificate in &self.0.in_force().0.certificates {
            let file = certificate.file.display().to_string();
            let labels = [("file", file.as_str()), ("subject", certificate.subject.as_str())];
            let ends_at = certificate.ends_at.as_micros() / 1_000_000;
            ConstGauge::new(ends_at).encode(family.encode_family(&labels)?)?;
        }
        let help = "Changed certificate files, by whether they were taken";
        let mut family = encoder.encode_descriptor("dunlin_tls_renewals", help, None, MetricType::Counter)?;
        for (outcome, count) in [("taken", taken), ("refused", refused)] {
            ConstCounter::new(count.load(Relaxed)).encode(family.encode_family(&[("outcome", outcome)])?)?;
        }
        Ok(())
    }
}
