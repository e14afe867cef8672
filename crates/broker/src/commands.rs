//! Commands on their way to devices.
//!
//! A command is a message on a topic that no client can name: its device subscribes to it by another name, which the
//! gateway translates. It is kept, like a retained message, for whoever subscribes later, until the device has taken it
//! or its time is over. The log of commands is another than this one, so the place in that one is a part of the state:
//! a command that is found there twice is brought once.

use std::{borrow::Cow, collections::BTreeMap};

use dunlin_model::Timestamp;
use serde::{Deserialize, Serialize};

use crate::message::{Message, Qos};

/// Clients may not subscribe to anything below it.
const ROOT: &str = "$commands";

/// A command, and where it stands in the log of commands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Command<'a> {
    /// Of the topic of commands.
    pub partition: u16,
    pub offset: u64,
    pub tenant: Cow<'a, str>,
    pub device: Cow<'a, str>,
    pub id: Cow<'a, str>,
    /// What the device is sent.
    pub payload: &'a [u8],
    pub expires_at: Timestamp,
}

impl Command<'_> {
    pub(crate) fn message(&self) -> Message {
        Message {
            topic: command_topic(&self.device, &self.id).into(),
            payload: bytes::Bytes::copy_from_slice(self.payload),
            qos: Qos::AtLeastOnce,
            retain: false,
            expires_at: Some(self.expires_at),
            properties: None,
            publisher: None,
            packets: Default::default(),
        }
    }
}

pub(crate) fn command_topic(device: &str, id: &str) -> String {
    format!("{ROOT}/{device}/{id}")
}

/// The filter that brings a device its commands.
pub fn command_filter(device: &str) -> String {
    format!("{ROOT}/{device}/+")
}

/// Whether a filter, or a topic, is about commands.
pub fn is_of_commands(path: &str) -> bool {
    path.strip_prefix(ROOT).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The device and the id in the topic of a command.
pub fn command_of(topic: &str) -> Option<(&str, &str)> {
    topic.strip_prefix(ROOT)?.strip_prefix('/')?.split_once('/')
}

/// Up to where each partition of the log of commands is in this log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Progress(BTreeMap<u16, u64>);

impl Progress {
    pub(crate) fn next(&self, partition: u16) -> u64 {
        self.0.get(&partition).copied().unwrap_or(0)
    }

    /// Whether this one had not been there; now it has.
    pub(crate) fn pass(&mut self, partition: u16, offset: u64) -> bool {
        let is_new = offset >= self.next(partition);
        if is_new {
            self.0.insert(partition, offset + 1);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_is_in_the_topic_of_its_commands() {
        assert_eq!(command_filter("pump-7"), "$commands/pump-7/+");
        assert_eq!(command_of("$commands/pump-7/c1"), Some(("pump-7", "c1")));
        assert_eq!((command_of("commands/pump-7/c1"), command_of("$commands")), (None, None));
        for of in ["$commands", "$commands/#", "$commands/+/+"] {
            assert!(is_of_commands(of), "{of}");
        }
        for other in ["$commandsx/a", "commands/a", "$SYS/commands", "v1/commands/+"] {
            assert!(!is_of_commands(other), "{other}");
        }
    }

    #[test]
    fn a_command_passes_once() {
        let mut progress = Progress::default();
        assert!(progress.pass(3, 7) && progress.pass(3, 9) && progress.pass(4, 7));
        assert!(!progress.pass(3, 7) && !progress.pass(3, 8), "the partition is further");
        assert_eq!((progress.next(3), progress.next(5)), (10, 0));
    }
}
