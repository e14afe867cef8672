//! What the log carries: every change of state that must survive a crash.

use std::borrow::Cow;

use dunlin_model::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    commands::Command,
    gateways::GatewayNumber,
    message::{Message, Properties, Qos},
    session::{SessionId, SessionKey, Subscription, Will},
};

/// The first byte of every record; a change of the format is a new version.
const VERSION: u8 = 2;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Change<'a> {
    /// A client connected with a session that outlives the connection, or with a will. The offset of this change is
    /// the id of the session, unless it takes up one that is there.
    Opened {
        key: SessionKey,
        /// Nothing of an earlier session is kept.
        clean: bool,
        expiry_seconds: u32,
        will: Option<Will>,
        connection: u64,
        at: Timestamp,
    },
    /// The connection ended. That says nothing of a session that another one has opened since.
    Closed {
        session: SessionId,
        connection: u64,
        at: Timestamp,
        /// It ended without a word, or the client asked for its will.
        with_will: bool,
        /// The client changed its mind with its DISCONNECT.
        expiry_seconds: Option<u32>,
    },
    /// The time of the will has come. It stays unsaid if its client came back before this was logged.
    WillDue {
        session: SessionId,
        at: Timestamp,
    },
    /// The session is over.
    Ended {
        session: SessionId,
        at: Timestamp,
    },
    Subscribed {
        session: SessionId,
        subscriptions: Vec<(Cow<'a, str>, Subscription)>,
        at: Timestamp,
    },
    Unsubscribed {
        session: SessionId,
        filters: Vec<Cow<'a, str>>,
    },
    #[serde(borrow)]
    Published(Publication<'a>),
    /// The client has acknowledged, for good, the message of this number.
    Acknowledged {
        session: SessionId,
        number: u64,
    },
    /// The client has said PUBREC for the message of this number.
    Received {
        session: SessionId,
        number: u64,
    },
    /// The client has said PUBREL for its own message.
    Released {
        session: SessionId,
        packet_id: u16,
    },
    /// The time has come that the session was kept for. It goes on if its client came back before this was logged.
    Expired {
        session: SessionId,
        at: Timestamp,
    },
    /// Its device may not publish any more: the will stays unsaid.
    Silenced {
        session: SessionId,
    },
    /// A gateway shares the log from here on. One of the same name that was there before is gone.
    Joined {
        gateway: GatewayNumber,
        name: Cow<'a, str>,
        at: Timestamp,
    },
    /// A gateway is there, and has applied all before `applied`. `sent` is when it said so, in microseconds of its own
    /// count.
    Heard {
        gateway: GatewayNumber,
        applied: u64,
        sent: u64,
    },
    /// A gateway has left, or was not heard of for too long: none of its connections is there any more.
    Gone {
        gateway: GatewayNumber,
        at: Timestamp,
    },
    /// Clients of a gateway, whose sessions are in no log, want what these filters match.
    Wanted {
        gateway: GatewayNumber,
        tenant: Cow<'a, str>,
        filters: Vec<Cow<'a, str>>,
    },
    /// None of them wants it any more.
    Unwanted {
        gateway: GatewayNumber,
        tenant: Cow<'a, str>,
        filters: Vec<Cow<'a, str>>,
    },
    /// A connection has the client id, and its session is in no log: an earlier one that was in it is over.
    Seated {
        key: SessionKey,
        connection: u64,
        at: Timestamp,
    },
    /// A connection wants the client id: whoever has it is to let it go.
    Claimed {
        key: SessionKey,
        connection: u64,
    },
    /// What has expired by then may be forgotten.
    Passed {
        at: Timestamp,
    },
    /// Access was taken back from a device: all of it, and its wills stay unsaid, or that of a credential.
    Revoked {
        tenant: Cow<'a, str>,
        device: Cow<'a, str>,
        is_disabled: bool,
    },
    /// A device is sent a command.
    Commanded(Command<'a>),
    /// A partition of the topic of commands is another one, or lost what it had: it begins here.
    CommandsReplaced {
        partition: u16,
        next: u64,
    },
    /// The device has the command, so that it is not sent again.
    Taken {
        tenant: Cow<'a, str>,
        device: Cow<'a, str>,
        id: Cow<'a, str>,
    },
}

/// A message, who it is from, and who gets it of those that share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Publication<'a> {
    pub tenant: Cow<'a, str>,
    pub topic: Cow<'a, str>,
    pub payload: &'a [u8],
    pub qos: Qos,
    pub retain: bool,
    pub at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub properties: Option<Box<Properties>>,
    pub publisher: Option<SessionId>,
    /// QoS 2 of a logged session: the packet id, by which a repetition is known.
    pub packet_id: Option<u16>,
    /// For each shared subscription that matched, by group and filter: the member whose turn it was, if whoever published
    /// knew of it.
    pub chosen: Vec<(Cow<'a, str>, SessionId)>,
}

/// Bytes that are no change, or one of a version that is not known here.
#[derive(Debug, thiserror::Error)]
pub enum NotAChange {
    #[error("a change of version {0}, not {VERSION}")]
    Version(u8),
    #[error("not a change: {0}")]
    Format(#[from] postcard::Error),
    #[error("not a change: it is empty")]
    Empty,
}

impl<'a> Change<'a> {
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        let taken = std::mem::take(out);
        *out = postcard::to_extend(self, taken).expect("a Vec takes all that is written to it");
    }

    pub fn decode(bytes: &'a [u8]) -> Result<Self, NotAChange> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => Ok(postcard::from_bytes(rest)?),
            Some((version, _)) => Err(NotAChange::Version(*version)),
            None => Err(NotAChange::Empty),
        }
    }
}

impl Publication<'_> {
    pub(crate) fn message(&self) -> Message {
        Message {
            topic: self.topic.as_ref().into(),
            payload: bytes::Bytes::copy_from_slice(self.payload),
            qos: self.qos,
            retain: self.retain,
            expires_at: self.expires_at,
            properties: self.properties.clone(),
            publisher: self.publisher,
            packets: Default::default(),
        }
    }
}
