use std::fmt::{self, Write};

use sha2::{Digest, Sha256};

use crate::RegistryError;

/// A secret that is shown once. 128 random bits: a plain hash is enough to keep it, and guessing is hopeless.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// `prefix` tells a found token's kind: `dnd` a device's, `dnu` a person's.
    pub(crate) fn random(prefix: &str) -> Result<Self, RegistryError> {
        Ok(Self(format!("{prefix}_{}", random_hex::<16>()?)))
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }

    pub(crate) fn hash(&self) -> String {
        hash(&self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What is stored instead of a token.
pub(crate) fn hash(token: &str) -> String {
    hex(&Sha256::digest(token.as_bytes()))
}

/// So many random bytes.
pub(crate) fn random_hex<const BYTES: usize>() -> Result<String, RegistryError> {
    let mut random = [0u8; BYTES];
    getrandom::fill(&mut random).map_err(|_| RegistryError::NoRandomness)?;
    Ok(hex(&random))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}
