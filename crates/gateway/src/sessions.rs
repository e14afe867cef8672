//! Which connection holds a client id, over all workers: the newer one wins.

use std::sync::{Arc, Mutex, PoisonError};

use hashbrown::HashMap;
use tokio::sync::{mpsc, oneshot};

use crate::directory::Admitted;

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

/// Whose client id: a device owns its own, so a stranger cannot take it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct SessionKey(Box<str>);

impl SessionKey {
    /// No tenant or device name holds the separator.
    pub(crate) fn new(who: &Admitted, client_id: &str) -> Self {
        Self(format!("{}/{}/{client_id}", who.tenant, who.device).into())
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<HashMap<SessionKey, Home>>>);

#[derive(Debug)]
struct Home {
    connection: u64,
    worker: Orders,
}

impl Sessions {
    /// Gives the client id to `connection`; whoever had it is told.
    pub(crate) fn enter(&self, key: SessionKey, connection: u64, worker: Orders) {
        let before = self.lock().insert(key, Home { connection, worker });
        if let Some(Home { connection, worker }) = before {
            // A worker that has stopped has no connections left.
            let _stopped = worker.send(Order::TakenOver { connection });
        }
    }

    /// Forgets the client id, unless another connection has it by now.
    pub(crate) fn leave(&self, key: &SessionKey, connection: u64) {
        let mut homes = self.lock();
        if homes.get(key).is_some_and(|home| home.connection == connection) {
            homes.remove(key);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SessionKey, Home>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
