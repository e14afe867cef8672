//! Which connection holds a client id, over all workers: the newer one wins.

use std::{
    collections::VecDeque,
    hash::BuildHasher,
    sync::{Arc, Mutex, PoisonError},
};

use dunlin_broker::SessionKey;
use hashbrown::{HashMap, HashSet};
use tokio::sync::{mpsc, oneshot};

/// What one worker tells another, or the gateway tells all of them.
#[derive(Debug)]
pub(crate) enum Order {
    /// Another connection has this client id now.
    TakenOver { connection: u64 },
    /// Answer what is under way, say goodbye, close; then say so.
    Leave { left: oneshot::Sender<()> },
}

/// A worker's mailbox. At most one order per connection waits in it.
pub(crate) type Orders = mpsc::UnboundedSender<Order>;

#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    homes: HashMap<SessionKey, Home>,
    settled: Settled,
}

#[derive(Debug)]
struct Home {
    connection: u64,
    worker: Orders,
    /// The connection that takes over, once this one has left.
    next: Option<oneshot::Sender<()>>,
}

/// How a connection that wants a client id stands.
#[derive(Debug)]
pub(crate) enum Entry {
    /// It has it. `settled` if the client has nothing to repeat: see [`Settled`].
    In { settled: bool },
    /// Another one has it, and was told. To be asked again when it has left; an error means that a still newer one
    /// came.
    Wait(oneshot::Receiver<()>),
}

impl Sessions {
    /// Asks for the client id, for `connection`.
    pub(crate) fn enter(&self, key: &SessionKey, connection: u64, worker: &Orders) -> Entry {
        let state = &mut *self.lock();
        match state.homes.get_mut(key) {
            None => {
                let home = Home { connection, worker: worker.clone(), next: None };
                state.homes.insert(key.clone(), home);
                Entry::In { settled: state.settled.contains(key) }
            }
            Some(home) => {
                // A worker that has stopped has no connections left.
                let _stopped = home.worker.send(Order::TakenOver { connection: home.connection });
                let (next, turn) = oneshot::channel();
                home.next = Some(next);
                Entry::Wait(turn)
            }
        }
    }

    /// Gives the client id back. To be called when all that came over the connection has its place in the log, so
    /// that what the client sends next comes after it.
    pub(crate) fn leave(&self, key: &SessionKey, connection: u64, last: Last) {
        let state = &mut *self.lock();
        if state.homes.get(key).is_none_or(|home| home.connection != connection) {
            return;
        }
        match last {
            Last::Settled => state.settled.insert(key),
            Last::Unsettled => state.settled.remove(key),
            Last::Nothing => {}
        }
        if let Some(Home { next: Some(next), .. }) = state.homes.remove(key) {
            let _gone = next.send(());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a connection left its client, as far as repetitions go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    /// The client said goodbye, and everything it had sent was acknowledged.
    Settled,
    /// It may repeat what it has sent.
    Unsettled,
    /// It has sent nothing that it could repeat.
    Nothing,
}

/// Clients that have nothing to repeat: what such a client marks as a repetition (DUP) was lost on its way the first
/// time, and is no copy of an older message with the same packet id and payload.
#[derive(Debug, Default)]
struct Settled {
    keys: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Settled {
    /// The oldest are forgotten; then a repetition is judged by the log alone.
    const MAX: usize = 1 << 17;

    fn hash(key: &SessionKey) -> u64 {
        foldhash::fast::FixedState::default().hash_one(key)
    }

    fn contains(&self, key: &SessionKey) -> bool {
        self.keys.contains(&Self::hash(key))
    }

    fn insert(&mut self, key: &SessionKey) {
        let hash = Self::hash(key);
        if self.keys.insert(hash) {
            self.order.push_back(hash);
        }
        if self.order.len() > Self::MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &SessionKey) {
        // Its place in the order stays until its turn; it may then forget a newer entry, which is the safe side.
        self.keys.remove(&Self::hash(key));
    }
}
