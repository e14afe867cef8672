use std::{io, path::PathBuf, sync::Arc};

use dunlin_model::{DeviceId, InvalidName, TenantId};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde::{Deserialize, Serialize};

use super::mapping::Mapping;
use crate::config::InvalidConfig;

/// A broker of somebody else's, from which telemetry is taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// How it is called in metrics, logs and rejected messages.
    pub name: String,
    /// HOST:PORT of a broker that speaks MQTT 5.
    pub address: String,
    /// Whose devices are behind the broker.
    pub tenant: String,
    /// The device that speaks for them: a gateway of the tenant. They are its children.
    pub device: String,
    /// What to subscribe to. A level may have a place for a name, `{line}` or `press-{number}`; `+` and `#` are what they
    /// are in MQTT.
    pub topics: Vec<String>,
    /// The device that a topic speaks of, made of its names.
    #[serde(default = "default_child")]
    pub child: String,
    /// Of the shared subscription. Processes with the same group share what comes.
    #[serde(default = "default_group")]
    pub group: String,
    /// Each process needs one of its own, and keeps it: the broker keeps messages for it. Empty: `dunlin-` and the name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub client_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Read for every connection; white space around the password is not part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    #[serde(default)]
    pub tls: SourceTlsConfig,
    /// Messages that are not acknowledged yet (receive maximum). More do not help to recognise copies.
    #[serde(default = "default_inflight_max")]
    pub inflight_max: u16,
    #[serde(default = "default_keepalive_seconds")]
    pub keepalive_seconds: u16,
    /// How long the broker keeps messages for a process that is away.
    #[serde(default = "default_session_expiry_seconds")]
    pub session_expiry_seconds: u32,
    /// How long a connection may take to be made.
    #[serde(default = "default_connect_seconds_max")]
    pub connect_seconds_max: u64,
    /// After an interruption; doubled from one to the next, up to the longest.
    #[serde(default = "default_pause_first_millis")]
    pub pause_first_millis: u64,
    #[serde(default = "default_pause_longest_seconds")]
    pub pause_longest_seconds: u64,
    /// Topics that are remembered with their devices; when there are more, all are forgotten and asked for again.
    #[serde(default = "default_topics_remembered_max")]
    pub topics_remembered_max: usize,
}

/// Encryption on the way to the broker, and who it is. The files are read for every connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceTlsConfig {
    pub enabled: bool,
    /// Whom to believe that a broker is one, PEM; the system's authorities if nothing is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// This process's own certificate and key, PEM, for brokers that ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

fn default_child() -> String {
    "{device}".into()
}

fn default_group() -> String {
    "dunlin".into()
}

fn default_inflight_max() -> u16 {
    INFLIGHT_MAX
}

fn default_keepalive_seconds() -> u16 {
    30
}

fn default_session_expiry_seconds() -> u32 {
    24 * 3_600
}

fn default_connect_seconds_max() -> u64 {
    10
}

fn default_pause_first_millis() -> u64 {
    200
}

fn default_pause_longest_seconds() -> u64 {
    30
}

fn default_topics_remembered_max() -> usize {
    100_000
}

/// Of one device the store recognises so many packets that come again.
const INFLIGHT_MAX: u16 = 256;
/// Client ids of this length are taken by brokers.
const CLIENT_ID_BYTES_MAX: usize = 128;

impl SourceConfig {
    pub(crate) fn check(&self) -> Result<(), InvalidConfig> {
        let wrong = |field, must: String| Err(InvalidConfig { field, must });
        // In the names of metrics' labels, of clients and of shared subscriptions.
        let is_plain = |name: &str| {
            !name.is_empty()
                && name.len() <= CLIENT_ID_BYTES_MAX
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        for (field, name) in [
            ("source.name", &self.name),
            ("source.group", &self.group),
            ("source.client_id", &self.client_id()),
        ] {
            if !is_plain(name) {
                return wrong(
                    field,
                    format!("up to {CLIENT_ID_BYTES_MAX} of a-z A-Z 0-9 . _ -, not {name:?}"),
                );
            }
        }
        if self.host_and_port().is_none() {
            return wrong("source.address", format!("HOST:PORT, not {:?}", self.address));
        }
        if let Err(invalid) = self.speaker() {
            return wrong("source.tenant and source.device", format!("names: {invalid}"));
        }
        self.mapping()?;
        if self.tls.certificate_file.is_some() != self.tls.key_file.is_some() {
            return wrong("source.tls.key_file", "there if and only if certificate_file is".into());
        }
        if !self.tls.enabled && self.tls != SourceTlsConfig::default() {
            return wrong("source.tls.enabled", "true where files are named".into());
        }
        if self.password_file.is_some() && self.username.is_none() {
            return wrong("source.username", "there where password_file is".into());
        }
        let bounds = [
            ("source.inflight_max", u64::from(self.inflight_max), 1, u64::from(INFLIGHT_MAX)),
            ("source.keepalive_seconds", self.keepalive_seconds.into(), 5, 3_600),
            ("source.session_expiry_seconds", self.session_expiry_seconds.into(), 1, u64::from(u32::MAX)),
            ("source.connect_seconds_max", self.connect_seconds_max, 1, 600),
            ("source.pause_first_millis", self.pause_first_millis, 1, 600_000),
            ("source.pause_longest_seconds", self.pause_longest_seconds, 1, 3_600),
            (
                "source.topics_remembered_max",
                self.topics_remembered_max as u64,
                INFLIGHT_MAX.into(),
                100_000_000,
            ),
        ];
        match bounds.into_iter().find(|(_, found, least, most)| !(least..=most).contains(&found)) {
            None => Ok(()),
            Some((field, found, least, most)) => wrong(field, format!("from {least} to {most}, not {found}")),
        }
    }

    pub(super) fn mapping(&self) -> Result<Mapping, InvalidConfig> {
        Mapping::parse(&self.topics, &self.child)
            .map_err(|must| InvalidConfig { field: "source.topics", must })
    }

    /// Each of several processes is another client of the broker.
    pub(super) fn of_process(&self, name: &str) -> Self {
        let client_id = match (self.client_id.as_str(), name) {
            ("", "") => String::new(),
            ("", name) => format!("{}-{name}", self.client_id()),
            (said, _) => said.to_owned(),
        };
        Self { client_id, ..self.clone() }
    }

    pub(super) fn client_id(&self) -> String {
        match self.client_id.as_str() {
            "" => format!("dunlin-{}", self.name),
            said => said.to_owned(),
        }
    }

    pub(super) fn host_and_port(&self) -> Option<(&str, u16)> {
        let (host, port) = self.address.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        Some((host, port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
    }

    pub(super) fn speaker(&self) -> Result<(TenantId, DeviceId), SourceConfigError> {
        Ok((self.tenant.parse()?, self.device.parse()?))
    }

    pub(super) fn password(&self) -> Result<Option<String>, SourceConfigError> {
        let Some(path) = &self.password_file else { return Ok(None) };
        let password = std::fs::read_to_string(path)
            .map_err(|source| SourceConfigError::Read { path: path.clone(), source })?;
        Ok(Some(password.trim().to_owned()))
    }

    #[cfg(test)]
    pub(crate) fn example() -> Self {
        let text = r#"{
            "name": "plant", "address": "localhost:1883", "tenant": "default", "device": "gw-plant",
            "topics": ["plant/{device}/data"]
        }"#;
        serde_json::from_str(text).expect("what has no default is said")
    }
}

/// What a source needs and does not find, or cannot use.
#[derive(Debug, thiserror::Error)]
pub(super) enum SourceConfigError {
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} holds no certificate in PEM")]
    NoCertificate { path: PathBuf },
    #[error("{path} holds no private key in PEM")]
    NoKey { path: PathBuf },
    #[error("the system has no authorities; say source.tls.ca_file")]
    NoAuthorities,
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

impl SourceTlsConfig {
    /// Blocks while the files are read.
    pub(super) fn client_config(&self) -> Result<Arc<ClientConfig>, SourceConfigError> {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?);
        let config = match (&self.certificate_file, &self.key_file) {
            (Some(certificate), Some(path)) => {
                let key = PrivateKeyDer::from_pem_slice(&read(path)?)
                    .map_err(|_| SourceConfigError::NoKey { path: path.clone() })?;
                builder.with_client_auth_cert(certificates(certificate)?, key)?
            }
            _ => builder.with_no_client_auth(),
        };
        Ok(Arc::new(config))
    }

    fn roots(&self) -> Result<RootCertStore, SourceConfigError> {
        let mut roots = RootCertStore::empty();
        match &self.ca_file {
            Some(path) => {
                for root in certificates(path)? {
                    roots.add(root)?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                if roots.is_empty() {
                    return Err(SourceConfigError::NoAuthorities);
                }
            }
        }
        Ok(roots)
    }
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, SourceConfigError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(SourceConfigError::NoCertificate { path: path.clone() }),
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, SourceConfigError> {
    std::fs::read(path).map_err(|source| SourceConfigError::Read { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_source_is_named() {
        SourceConfig::example().check().unwrap();
        let said = |change: fn(&mut SourceConfig)| {
            let mut config = SourceConfig::example();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert_eq!(
            said(|c| c.address = "plant".into()),
            "gateway.source.address must be HOST:PORT, not \"plant\""
        );
        assert_eq!(
            said(|c| c.inflight_max = 300),
            "gateway.source.inflight_max must be from 1 to 256, not 300"
        );
        assert!(said(|c| c.name = "a/b".into()).starts_with("gateway.source.name must be"));
        assert!(said(|c| c.group = "a+b".into()).starts_with("gateway.source.group must be"));
        assert!(said(|c| c.device = "a/b".into()).contains("source.device must be names"));
        assert!(said(|c| c.topics.clear()).starts_with("gateway.source.topics must be"));
        assert!(
            said(|c| c.tls.ca_file = Some("ca.pem".into())).starts_with("gateway.source.tls.enabled must be")
        );
    }

    #[test]
    fn an_address_may_be_of_ipv6() {
        let config = SourceConfig { address: "[::1]:1883".into(), ..SourceConfig::example() };
        assert_eq!(config.host_and_port(), Some(("::1", 1883)));
    }
}
