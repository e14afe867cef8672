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
    /// Behind the command that was brought before it: one that comes without that one is left to be brought again.
    pub follows: u64,
    pub tenant: Cow<'a, str>,
    pub device: Cow<'a, str>,
    pub id: Cow<'a, str>,
    /// What the device is sent.
    pub payload: &'a [u8],
    /// When it was brought.
    pub at: Timestamp,
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

    /// Whether this one is new, and none is missing between; then it has been there.
    pub(crate) fn pass(&mut self, command: &Command<'_>) -> bool {
        let next = self.next(command.partition);
        let is_next = command.follows <= next && next <= command.offset;
        if is_next {
            self.0.insert(command.partition, command.offset.saturating_add(1));
        }
        is_next
    }

    /// The partition is another one from here on.
    pub(crate) fn begin(&mut self, partition: u16, next: u64) {
        self.0.insert(partition, next);
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
    fn a_command_passes_once_and_behind_the_one_before_it() {
        let mut progress = Progress::default();
        let mut pass = |partition, follows, offset| {
            let (at, expires_at) = (Timestamp::MIN, Timestamp::MAX);
            let (tenant, device, id) = ("t".into(), "d".into(), "1".into());
            progress.pass(&Command {
                partition,
                offset,
                follows,
                tenant,
                device,
                id,
                payload: b"",
                at,
                expires_at,
            })
        };
        assert!(pass(3, 0, 7) && pass(3, 8, 9) && pass(4, 0, 7));
        assert!(!pass(3, 0, 7) && !pass(3, 8, 9), "it has been there");
        assert!(!pass(3, 12, 13), "the one at 11 is not there");
        assert!(pass(3, 10, 11) && pass(3, 12, 13));
        assert_eq!((progress.next(3), progress.next(5)), (14, 0));
        progress.begin(3, 2);
        assert_eq!(progress.next(3), 2);
    }
}
