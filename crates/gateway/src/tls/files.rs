use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use dunlin_model::{Clock, TenantId, Timestamp};
use rustls::{
    InconsistentKeys, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    time_provider::TimeProvider,
};
use x509_parser::{parse_x509_certificate, prelude::X509Certificate};

use super::{TlsConfig, owner::Authority};

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("tls: read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("tls: {path} holds no certificate in PEM")]
    NoCertificate { path: PathBuf },
    #[error("tls: {path} holds no private key in PEM")]
    NoKey { path: PathBuf },
    #[error("tls: {path} holds no revocation list in PEM")]
    NoRevocationList { path: PathBuf },
    #[error("tls: {path}: {what}")]
    Unusable { path: PathBuf, what: String },
    #[error("tls: the key in {key} is not the one of the certificate in {certificate}")]
    WrongKey { certificate: PathBuf, key: PathBuf },
    #[error("tls.client_ca: {file}: {source}")]
    Tenant { file: PathBuf, source: dunlin_model::InvalidName },
    #[error("tls")]
    Library(#[from] rustls::Error),
}

/// The bytes of all files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    /// Certificates of an authority, and what it has revoked.
    client_ca: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// What is made of the files.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) files: Files,
    pub(super) no_client: Arc<ServerConfig>,
    pub(super) optional_client: Arc<ServerConfig>,
    pub(super) required_client: Arc<ServerConfig>,
    pub(super) authorities: Vec<Authority>,
    pub(super) certificates: Vec<Certificate>,
}

/// What a person wants to know of a certificate.
#[derive(Debug)]
pub(super) struct Certificate {
    pub(super) file: PathBuf,
    pub(super) subject: String,
    pub(super) ends_at: Timestamp,
}

impl Files {
    pub(super) fn read(config: &TlsConfig) -> Result<Self, TlsError> {
        let read =
            |path: &Path| std::fs::read(path).map_err(|source| TlsError::Read { path: path.into(), source });
        let of_authority = |ca: &super::ClientCaConfig| {
            let crl = ca.crl.as_deref().map(read).transpose()?;
            Ok((read(&ca.file)?, crl))
        };
        Ok(Self {
            certificate: read(&config.certificate)?,
            key: read(&config.key)?,
            client_ca: config.client_ca.iter().map(of_authority).collect::<Result<_, TlsError>>()?,
        })
    }

    pub(super) fn load(self, config: &TlsConfig, clock: &Clock) -> Result<Loaded, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let chain = certificates(&config.certificate, &self.certificate)?;
        let mut known = vec![Certificate::of(&config.certificate, &chain[0])?];
        let mut all_roots = RootCertStore::empty();
        let mut all_revoked = Vec::new();
        let mut authorities = Vec::new();
        for (ca, (pem, crl)) in config.client_ca.iter().zip(&self.client_ca) {
            let roots = certificates(&ca.file, pem)?;
            for root in &roots {
                known.push(Certificate::of(&ca.file, root)?);
            }
            let revoked = match (&ca.crl, crl) {
                (Some(path), Some(pem)) => revocation_lists(path, pem)?,
                _ => Vec::new(),
            };
            let tenant = ca.tenant.as_deref().map(str::parse::<TenantId>).transpose();
            let tenant = tenant.map_err(|source| TlsError::Tenant { file: ca.file.clone(), source })?;
            let own_roots = root_store(&ca.file, &roots)?;
            all_roots.extend(own_roots.roots.iter().cloned());
            all_revoked.extend(revoked.iter().cloned());
            let verifier = verifier(&provider, own_roots, revoked, true, &ca.file)?;
            authorities.push(Authority { tenant, verifier, clock: clock.clone() });
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| TlsError::NoKey { path: config.key.clone() })?;
        let server_config = |verifier: Option<Arc<dyn ClientCertVerifier>>| {
            let builder =
                ServerConfig::builder_with_details(provider.clone(), Arc::new(TlsTime(clock.clone())))
                    .with_safe_default_protocol_versions()?;
            let builder = match verifier {
                Some(verifier) => builder.with_client_cert_verifier(verifier),
                None => builder.with_no_client_auth(),
            };
            let mut server =
                builder.with_single_cert(chain.clone(), key.clone_key()).map_err(|error| match error {
                    rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsError::WrongKey {
                        certificate: config.certificate.clone(),
                        key: config.key.clone(),
                    },
                    error => error.into(),
                })?;
            // A fleet that comes back shakes hands with what it was given before, and nothing is kept of it here.
            server.ticketer = aws_lc_rs::Ticketer::new()?;
            server.send_tls13_tickets = 1;
            Ok::<_, TlsError>(Arc::new(server))
        };
        let no_client = server_config(None)?;
        let (optional_client, required_client) = match authorities.is_empty() {
            true => (no_client.clone(), no_client.clone()),
            false => {
                let file = &config.client_ca[0].file;
                let of =
                    |required| verifier(&provider, all_roots.clone(), all_revoked.clone(), required, file);
                (server_config(Some(of(false)?))?, server_config(Some(of(true)?))?)
            }
        };
        Ok(Loaded {
            files: self,
            no_client,
            optional_client,
            required_client,
            authorities,
            certificates: known,
        })
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(TlsError::NoCertificate { path: path.into() }),
    }
}

fn revocation_lists(path: &Path, pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(TlsError::NoRevocationList { path: path.into() }),
    }
}

fn root_store(path: &Path, roots: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(root.clone())
            .map_err(|error| TlsError::Unusable { path: path.into(), what: error.to_string() })?;
    }
    Ok(store)
}

/// A revocation list speaks for its own authority; one that has none has revoked nothing.
fn verifier(
    provider: &Arc<CryptoProvider>,
    roots: RootCertStore,
    revoked: Vec<CertificateRevocationListDer<'static>>,
    required: bool,
    file: &Path,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .with_crls(revoked)
        .allow_unknown_revocation_status();
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| TlsError::Unusable { path: file.into(), what: error.to_string() })
}

impl Certificate {
    fn of(file: &Path, der: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let unusable = |what: String| TlsError::Unusable { path: file.into(), what };
        let (_, parsed) = parse_x509_certificate(der).map_err(|error| unusable(error.to_string()))?;
        let ends_at = parsed.validity().not_after.timestamp();
        let ends_at = Timestamp::from_millis(ends_at.saturating_mul(1_000))
            .ok_or_else(|| unusable(format!("ends at {ends_at} s since 1970, which is no time")))?;
        Ok(Self { file: file.into(), subject: parsed.subject().to_string(), ends_at })
    }
}

/// The subject's common name, if it has just one.
pub(super) fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?;
    names.next().is_none().then_some(name)
}

/// Certificates are judged by the platform's clock.
#[derive(Debug)]
struct TlsTime(Clock);

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(&self.0))
    }
}

pub(super) fn unix_time(clock: &Clock) -> UnixTime {
    let micros = u64::try_from(clock.now().as_micros()).unwrap_or(0);
    UnixTime::since_unix_epoch(Duration::from_micros(micros))
}
