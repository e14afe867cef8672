//! The state of a partition at an offset of its log, so that a start need not read the log from its beginning.

use std::sync::Arc;

use dunlin_model::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    broker::Broker,
    commands::Progress,
    gateways::{GatewayNumber, GatewayState},
    message::{Message, Properties, Qos},
    outbox::{Entry, Outbox},
    session::{Life, Session, SessionId, SessionKey, State, Subscription},
    tenant::Tenant,
};

const MAGIC: &[u8; 8] = b"dunlinS2";

/// A snapshot that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DamagedSnapshot {
    #[error("the snapshot is damaged: {0}")]
    Damaged(&'static str),
    #[error("the snapshot is damaged")]
    Format(#[from] postcard::Error),
}

#[derive(Serialize, Deserialize)]
struct Snapshot {
    next: u64,
    last_gateway: GatewayNumber,
    gateways: Vec<GatewayState>,
    sessions: Vec<SessionState>,
    retained: Vec<(String, MessageState)>,
}

/// Stands behind the snapshot; those of earlier versions end before it.
#[derive(Default, Serialize, Deserialize)]
struct Commands {
    progress: Progress,
    waiting: Vec<(String, MessageState)>,
}

#[derive(Serialize, Deserialize)]
struct SessionState {
    id: SessionId,
    key: SessionKey,
    subscriptions: Vec<(String, Subscription)>,
    life: Life,
    held: Vec<u16>,
    next_number: u64,
    queue: Vec<QueueState>,
}

#[derive(Serialize, Deserialize)]
struct QueueState {
    number: u64,
    received: bool,
    qos: Qos,
    retain: bool,
    subscription_ids: Vec<u32>,
    message: MessageState,
}

#[derive(Serialize, Deserialize)]
struct MessageState {
    topic: String,
    payload: Vec<u8>,
    qos: Qos,
    retain: bool,
    expires_at: Option<Timestamp>,
    properties: Option<Box<Properties>>,
    publisher: Option<SessionId>,
}

impl Broker {
    /// The state of a partition of which all before `next` was applied, and nothing more. The same state is the same bytes.
    pub fn snapshot(&self, partition: u16, next: u64) -> Vec<u8> {
        let tenants = self.tenants_of(partition);
        let sessions = tenants.iter().flat_map(|t| t.all_sessions()).map(|s| SessionState::of(&s)).collect();
        let all = |of: fn(&Tenant) -> Vec<Arc<Message>>| {
            let named = tenants.iter().flat_map(|t| {
                let name = t.name.to_string();
                of(t).into_iter().map(move |m| (name.clone(), MessageState::of(&m)))
            });
            named.collect()
        };
        let (retained, waiting) = (all(Tenant::all_retained), all(Tenant::all_commands));
        let (last_gateway, gateways, progress) = {
            let state = self.partition(partition);
            let (last_gateway, gateways) = state.gateways.states();
            (last_gateway, gateways, state.commands.clone())
        };
        let snapshot = Snapshot { next, last_gateway, gateways, sessions, retained };
        let written = postcard::to_extend(&(snapshot, Commands { progress, waiting }), MAGIC.to_vec());
        closed(written.expect("a Vec takes all that is written"))
    }

    /// Brings a partition to where the snapshot was taken, and returns the offset to go on from.
    pub fn restore(&self, partition: u16, bytes: &[u8]) -> Result<u64, DamagedSnapshot> {
        use DamagedSnapshot::Damaged;
        let (body, sum) = bytes.split_last_chunk::<8>().ok_or(Damaged("it is cut short"))?;
        let body_of = body.strip_prefix(MAGIC).ok_or(Damaged("it does not begin as one"))?;
        if checksum(body) != u64::from_le_bytes(*sum) {
            return Err(Damaged("its checksum does not match"));
        }
        let (snapshot, rest): (Snapshot, _) = postcard::take_from_bytes(body_of)?;
        let commands = if rest.is_empty() { Commands::default() } else { postcard::from_bytes(rest)? };
        self.restore_gateways(partition, snapshot.last_gateway, &snapshot.gateways);
        for state in snapshot.sessions {
            self.restore_session(partition, state);
        }
        for (tenant, message) in snapshot.retained {
            self.tenant(&tenant).restore_retained(Arc::new(message.into()));
        }
        self.partition(partition).commands = commands.progress;
        for (tenant, message) in commands.waiting {
            self.tenant(&tenant).restore_command(Arc::new(message.into()));
        }
        Ok(snapshot.next)
    }

    fn restore_gateways(&self, partition: u16, last: GatewayNumber, states: &[GatewayState]) {
        let mut partition = self.partition(partition);
        partition.gateways.restore(last, states);
        for state in states {
            for (tenant, filters) in &state.wanted {
                self.want(&mut partition, state.number(), tenant, filters.iter().map(String::as_str));
            }
        }
    }

    fn restore_session(&self, partition: u16, state: SessionState) {
        let tenant = self.tenant(&state.key.tenant);
        let entries = state.queue.into_iter().map(|q| (q.received, q.into()));
        let restored = State {
            outbox: Outbox::restore(state.next_number, entries),
            held: state.held.into_iter().collect(),
            life: state.life,
            ..State::default()
        };
        let session = Session::new(state.id, state.key, restored);
        session.set_elsewhere(session.is_open());
        tenant.insert_session(session.clone());
        for (filter, subscription) in state.subscriptions {
            tenant.restore_subscription(&session, &filter, subscription);
        }
        let mut partition = self.partition(partition);
        partition.remember_deadlines(&session);
        partition.sessions.insert(session.id, (tenant, session));
    }
}

/// With its checksum at the end.
fn closed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend_from_slice(&checksum(&bytes).to_le_bytes());
    bytes
}

/// Whatever is `inside`, as a snapshot that nothing damaged.
#[cfg(any(test, fuzzing))]
pub(crate) fn around(inside: &[u8]) -> Vec<u8> {
    closed([MAGIC, inside].concat())
}

fn checksum(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

impl SessionState {
    fn of(session: &Session) -> Self {
        let state = session.lock();
        let mut held: Vec<u16> = state.held.iter().copied().collect();
        held.sort_unstable();
        let queue = state.outbox.reliable().map(|(received, entry)| QueueState::of(received, entry));
        let mut queue: Vec<_> = queue.collect();
        queue.sort_by_key(|queued| queued.number);
        Self {
            id: session.id,
            key: session.key.clone(),
            subscriptions: state.subscriptions.iter().map(|(f, s)| (f.to_string(), *s)).collect(),
            life: state.life.clone(),
            held,
            next_number: state.outbox.next_number(),
            queue,
        }
    }
}

impl QueueState {
    fn of(received: bool, entry: &Entry) -> Self {
        Self {
            number: entry.number,
            received,
            qos: entry.qos,
            retain: entry.retain,
            subscription_ids: entry.subscription_ids.to_vec(),
            message: MessageState::of(&entry.message),
        }
    }
}

impl From<QueueState> for Entry {
    fn from(state: QueueState) -> Self {
        Self {
            message: Arc::new(state.message.into()),
            qos: state.qos,
            retain: state.retain,
            restored: true,
            number: state.number,
            turn: 0,
            subscription_ids: state.subscription_ids.into(),
        }
    }
}

impl MessageState {
    fn of(message: &Message) -> Self {
        Self {
            topic: message.topic.to_string(),
            payload: message.payload.to_vec(),
            qos: message.qos,
            retain: message.retain,
            expires_at: message.expires_at,
            properties: message.properties.clone(),
            publisher: message.publisher,
        }
    }
}

impl From<MessageState> for Message {
    fn from(state: MessageState) -> Self {
        Self {
            topic: state.topic.into(),
            payload: state.payload.into(),
            qos: state.qos,
            retain: state.retain,
            expires_at: state.expires_at,
            properties: state.properties,
            publisher: state.publisher,
            packets: Default::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::LIMITS;

    #[test]
    fn a_snapshot_from_before_there_were_commands_is_taken() {
        const NO_COMMANDS: usize = 2;
        let broker = Broker::new(1, LIMITS);
        let snapshot = broker.snapshot(0, 7);
        let inside = &snapshot[MAGIC.len()..snapshot.len() - 8];
        let before = around(&inside[..inside.len() - NO_COMMANDS]);
        assert_eq!(Broker::new(1, LIMITS).restore(0, &before).unwrap(), 7);
    }
}
