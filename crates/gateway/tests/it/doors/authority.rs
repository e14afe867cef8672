use std::{path::PathBuf, time::SystemTime};

use dunlin_gateway::{ClientCaConfig, RenewalConfig, TlsConfig};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
};

/// Signs certificates, and keeps the files of a server that it has signed for.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
    pub(super) files: tempfile::TempDir,
}

/// A certificate with its key.
pub(super) struct Identity {
    pub(super) certificate: String,
    pub(super) key: String,
    chain: Vec<CertificateDer<'static>>,
    der: PrivateKeyDer<'static>,
    pub(super) serial: SerialNumber,
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        let authority =
            Self { issuer: Issuer::new(params, key), pem, der, files: tempfile::tempdir().unwrap() };
        authority.serves(&authority.signs_server());
        authority.writes("ca.pem", &authority.pem);
        authority
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub(super) fn writes(&self, name: &str, content: &str) {
        std::fs::write(self.file(name), content).unwrap();
    }

    /// What the server shows from the next look at the files on.
    pub(super) fn serves(&self, identity: &Identity) {
        self.writes("server.pem", &identity.certificate);
        self.writes("server.key", &identity.key);
    }

    /// This authority's server, which believes these for these tenants.
    pub(super) fn tls(&self, clients: &[(&Self, Option<&str>)]) -> TlsConfig {
        let client_ca = clients.iter().map(|(authority, tenant)| ClientCaConfig {
            file: authority.file("ca.pem"),
            tenant: tenant.map(str::to_owned),
            crl: authority.file("crl.pem").exists().then(|| authority.file("crl.pem")),
        });
        TlsConfig {
            certificate: self.file("server.pem"),
            key: self.file("server.key"),
            client_ca: client_ca.collect(),
            renewal: RenewalConfig::default(),
        }
    }

    pub(super) fn signs_server(&self) -> Identity {
        let params = CertificateParams::new(vec!["localhost".into()]).unwrap();
        self.signs(params)
    }

    pub(super) fn signs_device(&self, common_name: &str) -> Identity {
        self.signs_with(|params| params.distinguished_name.push(DnType::CommonName, common_name))
    }

    pub(super) fn signs_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        self.signs(params)
    }

    fn signs(&self, mut params: CertificateParams) -> Identity {
        let serial = SerialNumber::from(rand::random::<u64>() >> 1);
        params.serial_number = Some(serial.clone());
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            chain: vec![certificate.der().clone()],
            der: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            serial,
        }
    }

    /// What the authority takes back, in its file.
    pub(super) fn revokes(&self, revoked: &[&Identity]) {
        let now = SystemTime::now();
        let revoked_certs = revoked.iter().map(|identity| RevokedCertParams {
            serial_number: identity.serial.clone(),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + std::time::Duration::from_secs(3_600)).into(),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        self.writes("crl.pem", &params.signed_by(&self.issuer).unwrap().pem().unwrap());
    }

    pub(super) fn client_config(&self, shows: Option<&Identity>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match shows {
            Some(Identity { chain, der, .. }) => {
                builder.with_client_auth_cert(chain.clone(), der.clone_key()).unwrap()
            }
            None => builder.with_no_client_auth(),
        }
    }
}

impl Identity {
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.chain.clone()
    }

    /// The same, with certificates of others behind its own.
    pub(super) fn followed_by(mut self, others: &[&Authority]) -> Self {
        self.chain.extend(others.iter().map(|other| other.der.clone()));
        self
    }
}
