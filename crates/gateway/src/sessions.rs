//! Which connection holds a client id, over all workers: the newer one wins, and all of a device's end when its
//! access is taken back.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::BuildHasher,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dunlin_broker::{Change, GatewayNumber, SessionKey};
use dunlin_journal::{AppendError, Journal};
use dunlin_model::{DeviceId, TenantId};
use hashbrown::HashSet;
use tokio::sync::{mpsc, oneshot};

use crate::{account::Accounts, admissions::Admissions, announce, wire::Code};

/// What one worker tells another, or the gateway tells all of them.
#[derive(Debug)]
pub(crate) enum Order {
    /// Say why, and close.
    Finish { connection: u64, ending: Ending },
    /// Answer what is under way, say goodbye, close; then say so.
    Leave { left: oneshot::Sender<()> },
}

/// Why a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) code: Code,
    pub(crate) why: &'static str,
}

/// A worker's mailbox. At most one order per connection waits in it.
pub(crate) type Orders = mpsc::UnboundedSender<Order>;

#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// In order, so that a device's are together.
    homes: BTreeMap<SessionKey, Home>,
    settled: Settled,
    revocations: u64,
    /// Devices that may not publish any more, and whose wills do not know it yet.
    disowned: Vec<SessionKey>,
}

#[derive(Debug)]
struct Home {
    connection: u64,
    worker: Orders,
    /// Its session is in no log.
    is_live: bool,
    /// The log says that it has the client id.
    is_logged: bool,
    /// It is to end: its worker was told.
    ending: Option<Ending>,
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
    /// Access was taken from a device since the client was let in: whether it still may is to be asked again.
    Stale,
}

impl Sessions {
    /// How often access was taken from a device, of all.
    pub(crate) fn revocations(&self) -> u64 {
        self.lock().revocations
    }

    /// Asks for the client id, for `connection`, whose client was let in when there were so many revocations.
    pub(crate) fn enter(
        &self,
        key: &SessionKey,
        connection: u64,
        worker: &Orders,
        revocations: u64,
    ) -> Entry {
        let state = &mut *self.lock();
        if state.revocations != revocations {
            return Entry::Stale;
        }
        match state.homes.get_mut(key) {
            None => {
                state.homes.insert(key.clone(), Home::new(connection, worker.clone()));
                Entry::In { settled: state.settled.contains(key) }
            }
            Some(home) => {
                home.finish(TAKEN_OVER);
                let (next, turn) = oneshot::channel();
                home.next = Some(next);
                Entry::Wait(turn)
            }
        }
    }

    /// Holds the client id if no connection has it; one that asks meanwhile waits.
    pub(crate) fn hold(&self, key: &SessionKey) -> Option<Held> {
        let homes = &mut self.lock().homes;
        if homes.contains_key(key) {
            return None;
        }
        let (worker, _nobody) = mpsc::unbounded_channel();
        homes.insert(key.clone(), Home::new(Held::CONNECTION, worker));
        Some(Held { sessions: self.clone(), key: key.clone() })
    }

    /// The log says that the connection has the client id. One that had it before, elsewhere, ends.
    pub(crate) fn seated(&self, key: &SessionKey, connection: u64, me: GatewayNumber) {
        let state = &mut *self.lock();
        let is_elsewhere = GatewayNumber::of(connection) != me;
        if is_elsewhere {
            state.settled.remove(key); // What it sends there it may repeat here.
        }
        let Some(home) = state.homes.get_mut(key) else { return };
        if home.connection == connection {
            home.is_logged = true;
        } else if home.is_logged && is_elsewhere {
            home.finish(TAKEN_OVER);
        }
    }

    /// A connection of another gateway wants the client id. Whoever is on the way in is not meant: the log does not have it.
    pub(crate) fn claimed(&self, key: &SessionKey, connection: u64, me: GatewayNumber) {
        if GatewayNumber::of(connection) != me
            && let Some(home) = self.lock().homes.get_mut(key)
            && home.is_logged
        {
            home.finish(TAKEN_OVER);
        }
    }

    /// The session of the connection is in no log, so that its client id is to be logged by itself.
    pub(crate) fn is_live(&self, key: &SessionKey, connection: u64) {
        if let Some(home) = self.lock().homes.get_mut(key).filter(|home| home.connection == connection) {
            home.is_live = true;
        }
    }

    /// Connections with such sessions whose client ids the log does not have.
    pub(crate) fn unlogged(&self) -> Vec<(SessionKey, u64)> {
        let state = self.lock();
        let unlogged = state.homes.iter().filter(|(_, home)| home.is_live && !home.is_logged);
        unlogged.map(|(key, home)| (key.clone(), home.connection)).collect()
    }

    /// Why the connection is to end, if it is: its worker may have been told before it knew the connection.
    pub(crate) fn ending(&self, key: &SessionKey, connection: u64) -> Option<Ending> {
        let state = self.lock();
        state.homes.get(key).filter(|home| home.connection == connection).and_then(|home| home.ending)
    }

    /// Ends every connection of the device; who is on the way in is asked about again.
    pub(crate) fn revoke(&self, tenant: &TenantId, device: &DeviceId, ending: Ending) {
        let state = &mut *self.lock();
        state.revocations += 1;
        let first =
            SessionKey { tenant: (**tenant).into(), device: (**device).into(), client_id: Box::default() };
        let is_of_the_device = |key: &SessionKey| key.tenant == first.tenant && key.device == first.device;
        for (_, home) in state.homes.range_mut(first.clone()..).take_while(|(key, _)| is_of_the_device(key)) {
            home.finish(ending);
        }
    }

    /// The device's wills are to stay unsaid.
    fn disown(&self, tenant: &TenantId, device: &DeviceId) {
        let (tenant, device) = ((**tenant).into(), (**device).into());
        self.lock().disowned.push(SessionKey { tenant, device, client_id: Box::default() });
    }

    /// The devices, with no client id, that were disabled since this was asked before.
    pub(crate) fn take_disowned(&self) -> Vec<SessionKey> {
        std::mem::take(&mut self.lock().disowned)
    }

    /// For whoever could not do what `take_disowned` asks for.
    pub(crate) fn still_disowned(&self, devices: Vec<SessionKey>) {
        self.lock().disowned.extend(devices);
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

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const TAKEN_OVER: Ending = Ending { code: Code::TakenOver, why: "another connection has this client id now" };

impl Home {
    fn new(connection: u64, worker: Orders) -> Self {
        Self { connection, worker, is_live: false, is_logged: false, ending: None, next: None }
    }

    fn finish(&mut self, ending: Ending) {
        if self.ending.replace(ending).is_none() {
            // A worker that has stopped has no connections left.
            let _stopped = self.worker.send(Order::Finish { connection: self.connection, ending });
        }
    }
}

/// A client id that no connection has; given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    sessions: Sessions,
    key: SessionKey,
}

impl Held {
    /// The ids of connections begin at 1.
    const CONNECTION: u64 = 0;
}

impl Drop for Held {
    fn drop(&mut self) {
        self.sessions.leave(&self.key, Self::CONNECTION, Last::Nothing);
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

/// Takes access back that the directory gave, for whoever keeps the devices. To be told once the directory says no.
#[derive(Debug, Clone)]
pub struct Access {
    pub(crate) admissions: Admissions,
    pub(crate) sessions: Sessions,
    pub(crate) accounts: Accounts,
}

/// What is no longer good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revoked {
    /// A credential that the device may have come in with.
    Token,
    /// The device itself.
    Device,
}

impl Access {
    /// Ends the device's connections to this gateway, and lets those that speak for it ask again whether they may.
    pub fn revoke_here(&self, tenant: &TenantId, device: &DeviceId, what: Revoked) {
        self.is_revoked(tenant, device, what);
        if what == Revoked::Device {
            self.sessions.disown(tenant, device);
        }
    }

    /// The same when the log has said it, which knows what becomes of wills.
    pub(crate) fn is_revoked(&self, tenant: &TenantId, device: &DeviceId, what: Revoked) {
        self.admissions.forget_all(); // First: whoever is asked about again is asked about there.
        self.accounts.of(tenant).revoked();
        let (code, why) = match what {
            Revoked::Token => (Code::NotAuthorized, "the token is not valid any more"),
            Revoked::Device => (Code::Administrative, "the device is disabled"),
        };
        self.sessions.revoke(tenant, device, Ending { code, why });
    }
}

/// The same in all gateways that share the journal. It is done when each has read it there.
pub async fn revoke_everywhere(
    journal: &dyn Journal,
    tenant: &TenantId,
    device: &DeviceId,
    what: Revoked,
) -> Result<(), AppendError> {
    let is_disabled = what == Revoked::Device;
    let revoked = Change::Revoked { tenant: (**tenant).into(), device: (**device).into(), is_disabled };
    announce::log(journal, tenant, &revoked).await
}
