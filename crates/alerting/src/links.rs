//! Signed links: whoever has one may acknowledge one alert, once, for a time.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use dunlin_model::{AlertId, Timestamp};
use hmac::{Hmac, KeyInit, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// Makes links and reads them.
#[derive(Clone)]
pub(crate) struct Links {
    base: String,
    secret: Vec<u8>,
    valid: Duration,
}

/// What a link permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permit {
    /// Names the link: it is used once.
    pub id: String,
    pub tenant: String,
    pub alert: AlertId,
    /// To whom it was sent.
    pub who: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadLink {
    #[error("this link is not valid")]
    Forged,
    #[error("this link has expired")]
    Expired,
}

/// Short names: it stands in an address.
#[derive(Serialize, Deserialize)]
struct Claims {
    /// The message it was sent in.
    m: String,
    t: String,
    a: String,
    w: String,
    /// Seconds since 1970.
    e: i64,
}

const TOKEN_BYTES_MAX: usize = 2_048;
const SIGNATURE_BYTES: usize = 32;

impl Links {
    pub(crate) fn new(public_url: &str, secret: &str, valid: Duration) -> Self {
        let base = public_url.trim_end_matches('/').to_owned();
        Self { base, secret: secret.as_bytes().to_vec(), valid }
    }

    pub(crate) fn acknowledge(
        &self,
        tenant: &str,
        alert: AlertId,
        message: &str,
        who: &str,
        now: Timestamp,
    ) -> String {
        let claims = Claims {
            m: message.to_owned(),
            t: tenant.to_owned(),
            a: alert.to_string(),
            w: who.to_owned(),
            e: (now + self.valid).as_millis() / 1_000,
        };
        format!("{}/v1/ack/{}", self.base, self.sign(&claims))
    }

    /// Where all that a message of many tells is listed. It is no secret: it asks for a token.
    pub(crate) fn list(&self, message: &str) -> String {
        format!("{}/v1/notifications/{}/alerts", self.base, escaped(message))
    }

    pub(crate) fn read(&self, token: &str, now: Timestamp) -> Result<Permit, BadLink> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(BadLink::Forged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| BadLink::Forged)?;
        let (signature, claims) = bytes.split_at_checked(SIGNATURE_BYTES).ok_or(BadLink::Forged)?;
        self.mac(claims).verify_slice(signature).map_err(|_| BadLink::Forged)?;
        let claims: Claims = serde_json::from_slice(claims).map_err(|_| BadLink::Forged)?;
        if now.as_millis() / 1_000 >= claims.e {
            return Err(BadLink::Expired);
        }
        let alert = claims.a.parse().map_err(|_| BadLink::Forged)?;
        Ok(Permit { id: claims.m, tenant: claims.t, alert, who: claims.w })
    }

    fn sign(&self, claims: &Claims) -> String {
        let claims = serde_json::to_vec(claims).unwrap_or_default();
        let mut token = self.mac(&claims).finalize().into_bytes().to_vec();
        token.extend_from_slice(&claims);
        URL_SAFE_NO_PAD.encode(token)
    }

    fn mac(&self, claims: &[u8]) -> Hmac<Sha256> {
        keyed(&self.secret, &[b"dunlin acknowledge link v1\n", claims])
    }
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").field("base", &self.base).finish_non_exhaustive()
    }
}

/// HMAC-SHA256 of the parts, one after the other.
pub(crate) fn keyed(secret: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of every length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

fn escaped(name: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    name.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn links() -> Links {
        Links::new("https://dunlin.example/", "key_1", Duration::from_secs(60))
    }

    fn link(now: Timestamp) -> String {
        let alert: AlertId = "0123456789abcdef-5".parse().unwrap();
        let url = links().acknowledge("acme", alert, "m1-mail", "ada@example.com", now);
        url.strip_prefix("https://dunlin.example/v1/ack/").unwrap().to_owned()
    }

    #[test]
    fn a_link_is_read_as_it_was_made_until_it_expires() {
        let now = Timestamp::from_micros(1_700_000_000_000_000);
        let permit = links().read(&link(now), now + Duration::from_secs(59)).unwrap();
        assert_eq!((permit.tenant.as_str(), permit.id.as_str()), ("acme", "m1-mail"));
        assert_eq!(permit.who, "ada@example.com");
        assert_eq!(links().read(&link(now), now + Duration::from_secs(60)), Err(BadLink::Expired));
        let others = Links::new("https://dunlin.example", "key_2", Duration::from_secs(60));
        assert_eq!(others.read(&link(now), now), Err(BadLink::Forged));
    }

    proptest! {
        #[test]
        fn a_link_with_another_byte_is_forged(at in 0usize..200, bit in 0u8..6, junk in "[A-Za-z0-9_-]{0,300}") {
            let now = Timestamp::from_micros(1_700_000_000_000_000);
            let mut bytes = URL_SAFE_NO_PAD.decode(link(now)).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(links().read(&URL_SAFE_NO_PAD.encode(bytes), now), Err(BadLink::Forged));
            prop_assert_eq!(links().read(&junk, now), Err(BadLink::Forged));
        }
    }
}
