use std::{fmt, ops::Deref, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// What a device is asked to do, as the `commands` topic carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub tenant: String,
    pub device: String,
    pub id: String,
    pub method: String,
    /// JSON.
    pub params: String,
    pub sent_at: Timestamp,
    /// From then on it is not brought to the device any more.
    pub expires_at: Timestamp,
}

/// A step that the device has taken, as the `command-replies` topic carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandReply {
    pub tenant: String,
    pub device: String,
    /// Of the command.
    pub id: String,
    pub at: Timestamp,
    pub step: CommandStep,
    /// JSON that the device sent; empty unless it replied.
    pub reply: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandStep {
    /// The device has acknowledged the command.
    Delivered,
    Replied,
}

/// Where a command stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CommandState {
    /// It is in the journal, and the device has not acknowledged it.
    Queued,
    Delivered,
    Replied,
    /// Its time was over before the device replied.
    Expired,
}

impl CommandState {
    /// The state that steps have led to, in whatever order they became known. A reply that comes late counts: the
    /// device has done it.
    ///
    /// | delivered | replied | its time is over | state |
    /// |---|---|---|---|
    /// | any | yes | any | replied |
    /// | any | no | yes | expired |
    /// | yes | no | no | delivered |
    /// | no | no | no | queued |
    pub fn of(is_delivered: bool, is_replied: bool, is_over: bool) -> Self {
        match (is_replied, is_over, is_delivered) {
            (true, ..) => Self::Replied,
            (_, true, _) => Self::Expired,
            (.., true) => Self::Delivered,
            _ => Self::Queued,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Delivered => "delivered",
            Self::Replied => "replied",
            Self::Expired => "expired",
        }
    }
}

/// Names a command within its tenant; a part of an MQTT topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandId(Arc<str>);

/// Characters of a command's id.
const ID_CHARACTERS_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id of a command is 1 to {ID_CHARACTERS_MAX} of the characters a-z, A-Z, 0-9, - and _")]
pub struct InvalidCommandId;

impl FromStr for CommandId {
    type Err = InvalidCommandId;
    fn from_str(id: &str) -> Result<Self, InvalidCommandId> {
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        match (1..=ID_CHARACTERS_MAX).contains(&id.len()) && id.bytes().all(is_legal) {
            true => Ok(Self(id.into())),
            false => Err(InvalidCommandId),
        }
    }
}

impl Deref for CommandId {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_counts_whenever_it_comes() {
        use CommandState::*;
        let of = CommandState::of;
        assert_eq!((of(false, false, false), of(true, false, false)), (Queued, Delivered));
        assert_eq!((of(false, false, true), of(true, false, true)), (Expired, Expired));
        for delivered in [false, true] {
            assert_eq!((of(delivered, true, false), of(delivered, true, true)), (Replied, Replied));
        }
    }

    #[test]
    fn an_id_can_stand_in_a_topic() {
        for id in ["7", "01JE-x_y", &"a".repeat(64)] {
            assert_eq!(&*id.parse::<CommandId>().unwrap(), id);
        }
        for id in ["", "a/b", "+", "#", "a b", "ä", &"a".repeat(65)] {
            assert_eq!(id.parse::<CommandId>(), Err(InvalidCommandId), "{id:?}");
        }
    }
}
