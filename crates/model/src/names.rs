use std::{fmt, ops::Deref, str::FromStr, sync::Arc};

use crate::limits::NAME_BYTES_MAX;

/// Why a name was refused. The message says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("a {kind} must not be empty")]
    Empty { kind: &'static str },
    #[error("a {kind} has at most {NAME_BYTES_MAX} bytes, this one has {bytes}")]
    TooLong { kind: &'static str, bytes: usize },
    #[error("a {kind} must not contain {character:?}")]
    Character { kind: &'static str, character: char },
}

/// What MQTT filters, file paths and line protocols give a meaning to must not be part of a name.
fn check(kind: &'static str, name: &str, forbidden: &[char]) -> Result<(), InvalidName> {
    if name.is_empty() {
        return Err(InvalidName::Empty { kind });
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(InvalidName::TooLong { kind, bytes: name.len() });
    }
    match name.chars().find(|c| c.is_control() || forbidden.contains(c)) {
        Some(character) => Err(InvalidName::Character { kind, character }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $forbidden:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type(Arc<str>);

        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Checks without allocating, for the hot path.
            pub fn check(name: &str) -> Result<(), InvalidName> {
                check($kind, name, $forbidden)
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;
            fn from_str(name: &str) -> Result<Self, InvalidName> {
                Self::check(name)?;
                Ok(Self(name.into()))
            }
        }

        impl Deref for $type {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name!(
    /// Whose data it is. Comes from a credential, never from a payload.
    TenantId, "tenant", &['/', '+', '#', '\\', '%', '"', '\'']
);
name!(
    /// One device of a tenant.
    DeviceId, "device", &['/', '+', '#', '\\', '%', '"', '\'']
);
name!(
    /// Devices of one type share a table.
    DeviceType, "device type", &['/', '+', '#', '\\', '%', '"', '\'']
);
name!(
    /// What a reading measures: `temperature`, `battery.voltage`.
    MetricName, "metric", &['"']
);

impl DeviceType {
    /// The type of a device that was added without one.
    pub fn default_type() -> Self {
        Self("default".into())
    }
}

impl TenantId {
    /// The tenant that the first start creates.
    pub fn default_tenant() -> Self {
        Self("default".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_is_wrong_with_them() {
        assert_eq!("".parse::<DeviceId>().unwrap_err().to_string(), "a device must not be empty");
        assert_eq!("a/b".parse::<DeviceId>().unwrap_err().to_string(), "a device must not contain '/'");
        assert_eq!(
            "x".repeat(129).parse::<MetricName>().unwrap_err().to_string(),
            "a metric has at most 128 bytes, this one has 129"
        );
        assert!("rack/fan".parse::<MetricName>().is_ok());
        assert!("käfer-7".parse::<DeviceId>().is_ok());
    }
}
