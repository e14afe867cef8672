use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// A message that was refused, as the `rejected` topic keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    pub tenant: String,
    pub device: String,
    pub received_at: Timestamp,
    /// One word from a closed list: what the ledger counts by.
    pub reason: RejectReason,
    /// What is wrong, in words: names the field.
    pub detail: String,
    /// `mqtt:v1/telemetry`, `http:/v1/telemetry`.
    pub source: String,
    /// The message as it came, cut after `limits::REJECTED_BYTES_MAX`.
    #[serde(with = "serde_bytes_vec")]
    pub payload: Vec<u8>,
}

/// Why a message was refused. The names are stored, shown and counted: they stay what they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// Not the format that the topic or endpoint takes.
    PayloadFormat,
    /// A value or name that cannot be stored: NaN, too long, too many.
    InvalidValue,
    TooLarge,
    UnknownTopic,
    NotAuthorized,
    QuotaExceeded,
    /// Accepted, and then a stage behind the journal could not read it or broke on it.
    Unprocessable,
}

impl RejectReason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::PayloadFormat,
        Self::InvalidValue,
        Self::TooLarge,
        Self::UnknownTopic,
        Self::NotAuthorized,
        Self::QuotaExceeded,
        Self::Unprocessable,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::PayloadFormat => "payload_format",
            Self::InvalidValue => "invalid_value",
            Self::TooLarge => "too_large",
            Self::UnknownTopic => "unknown_topic",
            Self::NotAuthorized => "not_authorized",
            Self::QuotaExceeded => "quota_exceeded",
            Self::Unprocessable => "unprocessable",
        }
    }
}

/// Who counts by reason takes a reason's number for its place.
const _: () = {
    let mut n = 0;
    while n < RejectReason::ALL.len() {
        assert!(RejectReason::ALL[n] as usize == n);
        n += 1;
    }
    assert!(RejectReason::Unprocessable as usize == RejectReason::ALL.len() - 1, "the last one");
};

mod serde_bytes_vec {
    use serde::{Deserializer, Serializer, de::Visitor};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl Visitor<'_> for Bytes {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        d.deserialize_byte_buf(Bytes)
    }
}
