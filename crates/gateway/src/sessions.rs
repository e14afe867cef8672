//! Which connection holds a client id, over all workers: the newer one wins, and all of a device's end when its
//! access is taken back.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dunlin_model::{DeviceId, TenantId};
use tokio::sync::{mpsc, oneshot};

use crate::{account::Accounts, directory::Admitted, wire::Code};

/// What one worker tells another, or the gateway tells all of them.
#[derive(Debug)]
pub(crate) enum Order {
    /// Say why, and close.
    Finish { connection: u64, code: Code, why: &'static str },
    /// Answer what is under way, say goodbye, close; then say so.
    Leave { left: oneshot::Sender<()> },
}

/// A worker's mailbox. At most one order per connection waits in it.
pub(crate) type Orders = mpsc::UnboundedSender<Order>;

/// Whose client id: a device owns its own, so a stranger cannot take it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SessionKey(Box<str>);

impl SessionKey {
    /// No tenant or device name holds the separator.
    pub(crate) fn new(who: &Admitted, client_id: &str) -> Self {
        Self::of(&who.tenant, &who.device, client_id)
    }

    fn of(tenant: &TenantId, device: &DeviceId, client_id: &str) -> Self {
        Self(format!("{tenant}/{device}/{client_id}").into())
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<Homes>>);

#[derive(Debug, Default)]
struct Homes {
    /// In order, so that a device's are together.
    of: BTreeMap<SessionKey, Home>,
    revocations: u64,
}

#[derive(Debug)]
struct Home {
    connection: u64,
    worker: Orders,
}

impl Sessions {
    /// How often access was taken from a device, of all.
    pub(crate) fn revocations(&self) -> u64 {
        self.lock().revocations
    }

    /// Gives the client id to `connection`; whoever had it is told. False if access was taken from a device since
    /// there were `revocations`: the client is not in, and is to be asked about again.
    pub(crate) fn enter(&self, key: SessionKey, connection: u64, worker: Orders, revocations: u64) -> bool {
        let mut homes = self.lock();
        if homes.revocations != revocations {
            return false;
        }
        if let Some(before) = homes.of.insert(key, Home { connection, worker }) {
            before.finish(Code::TakenOver, "another connection has this client id now");
        }
        true
    }

    /// Ends every connection of the device; who is on the way in is asked about again.
    fn revoke(&self, tenant: &TenantId, device: &DeviceId, code: Code, why: &'static str) {
        let mut homes = self.lock();
        homes.revocations += 1;
        let first = SessionKey::of(tenant, device, "");
        let of_the_device: Vec<SessionKey> = homes
            .of
            .range(first.clone()..)
            .map(|(key, _)| key.clone())
            .take_while(|key| key.0.starts_with(&*first.0))
            .collect();
        for home in of_the_device.iter().filter_map(|key| homes.of.remove(key)) {
            home.finish(code, why);
        }
    }

    /// Forgets the client id, unless another connection has it by now.
    pub(crate) fn leave(&self, key: &SessionKey, connection: u64) {
        let homes = &mut self.lock().of;
        if homes.get(key).is_some_and(|home| home.connection == connection) {
            homes.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Homes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Home {
    fn finish(self, code: Code, why: &'static str) {
        // A worker that has stopped has no connections left.
        let _stopped = self.worker.send(Order::Finish { connection: self.connection, code, why });
    }
}

/// Takes access back that the directory gave, for whoever keeps the devices. To be told once the directory says no.
#[derive(Debug, Clone)]
pub struct Access {
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
    /// Ends the device's connections, and lets those that speak for it ask again whether they may.
    pub fn revoke(&self, tenant: &TenantId, device: &DeviceId, what: Revoked) {
        self.accounts.of(tenant).revoked();
        let (code, why) = match what {
            Revoked::Token => (Code::NotAuthorized, "the token is not valid any more"),
            Revoked::Device => (Code::Administrative, "the device is disabled"),
        };
        self.sessions.revoke(tenant, device, code, why);
    }
}
