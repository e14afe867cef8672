//! How the senders speak TLS.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, pem, pem::PemObject},
};

/// Sessions that one device remembers to go on from.
const SESSIONS_MAX: usize = 8;

/// Where the certificates are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Who signed the server's certificate.
    pub authority: PathBuf,
    /// The device's own certificate and its key, for mutual TLS.
    pub identity: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read {path}")]
    File { path: PathBuf, source: pem::Error },
    #[error("{path} holds no certificate")]
    Empty { path: PathBuf },
    #[error("the certificates cannot be used")]
    Certificate(#[from] rustls::Error),
    #[error("{name} is not the name of a server")]
    Name { name: String, source: InvalidDnsNameError },
}

/// What a device needs to speak TLS with one server.
#[derive(Debug, Clone)]
pub struct Tls {
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
    resume: bool,
}

impl Tls {
    /// With `resume` each device goes on from its last TLS session when it connects again.
    pub fn new(files: &TlsFiles, server_name: &str, resume: bool) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.authority)? {
            roots.add(certificate)?;
        }
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match &files.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::from_pem_file(key)
                    .map_err(|source| TlsError::File { path: key.clone(), source })?;
                builder.with_client_auth_cert(certificates(certificate)?, key)?
            }
        };
        config.resumption = Resumption::disabled();
        let server_name = ServerName::try_from(server_name.to_owned())
            .map_err(|source| TlsError::Name { name: server_name.to_owned(), source })?;
        Ok(Self { config: Arc::new(config), server_name, resume })
    }

    /// For one more device: it remembers its own sessions alone.
    pub(crate) fn of_device(&self) -> Self {
        if !self.resume {
            return self.clone();
        }
        let mut config = ClientConfig::clone(&self.config);
        config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        Self { config: Arc::new(config), ..self.clone() }
    }

    pub(crate) fn connection(&self) -> io::Result<ClientConnection> {
        ClientConnection::new(self.config.clone(), self.server_name.clone()).map_err(io::Error::other)
    }
}

/// Keys are agreed on by X25519 alone, as devices do: what a post-quantum group adds is not theirs.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..aws_lc_rs::default_provider() })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::File { path: path.to_owned(), source };
    let all = CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    if all.is_empty() { Err(TlsError::Empty { path: path.to_owned() }) } else { Ok(all) }
}
