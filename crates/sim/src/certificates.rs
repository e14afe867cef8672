//! An authority for tests and measurements, a server's certificate and devices'. All keys are ECDSA P-256.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

/// The files in a directory of certificates: these, and NAME.pem and NAME.key of every device.
pub const AUTHORITY: &str = "ca.pem";
pub const SERVER: &str = "server.pem";
pub const SERVER_KEY: &str = "server.key";

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("make a certificate for {name}")]
    Make { name: String, source: rcgen::Error },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
}

/// Makes an authority and what it signs: a certificate of a server called localhost on loopback, and one for each
/// device whose common name is the device's.
pub fn write(directory: &Path, devices: &[String]) -> Result<(), CertificateError> {
    fs::create_dir_all(directory)
        .map_err(|source| CertificateError::Write { path: directory.to_owned(), source })?;
    let authority = authority().map_err(|source| failed("the authority", source))?;
    store(directory.join(AUTHORITY), &authority.pem())?;
    let (certificate, key) = server(&authority).map_err(|source| failed("the server", source))?;
    store(directory.join(SERVER), &certificate)?;
    store(directory.join(SERVER_KEY), &key)?;
    for name in devices {
        let (certificate, key) = device(&authority, name).map_err(|source| failed(name, source))?;
        store(directory.join(format!("{name}.pem")), &certificate)?;
        store(directory.join(format!("{name}.key")), &key)?;
    }
    Ok(())
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    let mut params = CertificateParams::new([])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "test authority");
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

fn server(authority: &CertifiedIssuer<'_, KeyPair>) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new(["localhost".to_owned()])?;
    params.subject_alt_names.push(SanType::IpAddress([127, 0, 0, 1].into()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    signed(params, "localhost", authority)
}

fn device(authority: &CertifiedIssuer<'_, KeyPair>, name: &str) -> Result<(String, String), rcgen::Error> {
    let mut params = CertificateParams::new([])?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    signed(params, name, authority)
}

fn signed(
    mut params: CertificateParams,
    name: &str,
    authority: &CertifiedIssuer<'_, KeyPair>,
) -> Result<(String, String), rcgen::Error> {
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, authority)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

fn failed(name: &str, source: rcgen::Error) -> CertificateError {
    CertificateError::Make { name: name.to_owned(), source }
}

fn store(path: PathBuf, text: &str) -> Result<(), CertificateError> {
    fs::write(&path, text).map_err(|source| CertificateError::Write { path, source })
}
