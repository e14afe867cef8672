//! What one tenant may have under way on a worker, so that none keeps the others from the door.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use dunlin_model::TenantId;
use hashbrown::HashMap;
use ntex::channel::condition::Condition;

/// One of so many parts is what a tenant may take while others are there.
pub(crate) const TENANT_PARTS: usize = 2;

/// The tenants of one worker.
pub(crate) struct Shares {
    common: Rc<Common>,
    /// A tenant stays when its last connection goes: what that brought may still be under way.
    of: RefCell<HashMap<TenantId, Rc<Share>>>,
}

struct Common {
    bytes_max: usize,
    /// Tenants with a connection.
    tenants: Cell<usize>,
}

/// What one tenant has under way.
pub(crate) struct Share {
    common: Rc<Common>,
    connections: Cell<usize>,
    inflight_bytes: Cell<usize>,
    room: Condition<()>,
}

impl Shares {
    /// `bytes_max` is the whole worker's.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { common: Rc::new(Common { bytes_max, tenants: Cell::new(0) }), of: RefCell::default() }
    }

    /// For a connection more of the tenant.
    pub(crate) fn enter(&self, tenant: &TenantId) -> Rc<Share> {
        let mut shares = self.of.borrow_mut();
        let share = shares.entry(tenant.clone()).or_insert_with(|| Rc::new(Share::new(self.common.clone())));
        if share.connections.replace(share.connections.get() + 1) == 0 {
            self.common.tenants.set(self.common.tenants.get() + 1);
        }
        share.clone()
    }

    /// For a connection less.
    pub(crate) fn leave(&self, share: &Share) {
        share.connections.set(share.connections.get() - 1);
        if share.connections.get() == 0 {
            self.common.tenants.set(self.common.tenants.get() - 1);
            // Who is left alone may take more.
            self.of.borrow().values().filter(|left| left.has_room()).for_each(|left| left.room.notify());
        }
    }
}

impl Share {
    fn new(common: Rc<Common>) -> Self {
        Self { common, connections: Cell::new(0), inflight_bytes: Cell::new(0), room: Condition::new() }
    }

    /// Whether the tenant's connections may be read.
    pub(crate) fn has_room(&self) -> bool {
        let Common { bytes_max, tenants } = &*self.common;
        let own_max = if tenants.get() > 1 { (bytes_max / TENANT_PARTS).max(1) } else { *bytes_max };
        self.inflight_bytes.get() < own_max
    }

    pub(crate) async fn room(&self) {
        while !self.has_room() {
            self.room.wait().await;
        }
    }

    pub(crate) fn took(&self, bytes: usize) {
        self.inflight_bytes.set(self.inflight_bytes.get() + bytes);
    }

    pub(crate) fn landed(&self, bytes: usize) {
        let had_room = self.has_room();
        self.inflight_bytes.set(self.inflight_bytes.get() - bytes);
        if !had_room && self.has_room() {
            self.room.notify();
        }
    }
}
