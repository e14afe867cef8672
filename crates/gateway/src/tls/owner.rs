use std::sync::Arc;

use dunlin_model::{Clock, DeviceId, TenantId};
use rustls::{pki_types::CertificateDer, server::danger::ClientCertVerifier};
use x509_parser::{parse_x509_certificate, prelude::X509Certificate, time::ASN1Time};

use super::{
    TlsInForce,
    files::{common_name, unix_time},
};

/// Who a certificate says it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Certified {
    pub tenant: TenantId,
    pub device: DeviceId,
}

/// Why nobody can be told by a certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotCertified {
    #[error("no authority has signed the certificate, or not for now, or it has taken that back")]
    Unknown,
    #[error("the subject of the certificate has no common name, or more than one")]
    Nameless,
    #[error("the common name of the certificate is no device's: {0}")]
    Name(#[from] dunlin_model::InvalidName),
}

/// Who signs certificates, and for whom.
#[derive(Debug)]
pub(super) struct Authority {
    pub(super) tenant: Option<TenantId>,
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    pub(super) clock: Clock,
}

impl TlsInForce {
    /// The device that has shown these certificates, its own first, in a handshake by this; `None` if its authority
    /// speaks for no tenant.
    pub fn owner(&self, chain: &[CertificateDer<'_>]) -> Result<Option<Certified>, NotCertified> {
        let (own, others) = chain.split_first().ok_or(NotCertified::Unknown)?;
        let (_, parsed) = parse_x509_certificate(own).map_err(|_| NotCertified::Unknown)?;
        let authority = match &self.0.authorities[..] {
            // The handshake has verified it; one that goes on from an earlier one has done so before.
            [only] => only.is_in_time(&parsed).then_some(only),
            // Which of them it has believed is not told, and a chain may name others than the one that counts.
            several => several.iter().find(|authority| authority.has_signed(own, others)),
        };
        let Some(tenant) = authority.ok_or(NotCertified::Unknown)?.tenant.clone() else { return Ok(None) };
        let device = common_name(&parsed).ok_or(NotCertified::Nameless)?.parse()?;
        Ok(Some(Certified { tenant, device }))
    }
}

impl Authority {
    fn is_in_time(&self, certificate: &X509Certificate<'_>) -> bool {
        let seconds = self.clock.now().as_micros() / 1_000_000;
        ASN1Time::from_timestamp(seconds).is_ok_and(|now| certificate.validity().is_valid_at(now))
    }

    fn has_signed(&self, own: &CertificateDer<'_>, others: &[CertificateDer<'_>]) -> bool {
        self.verifier.verify_client_cert(own, others, unix_time(&self.clock)).is_ok()
    }
}
