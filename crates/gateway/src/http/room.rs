use std::sync::{Arc, Mutex, PoisonError};

use dunlin_model::TenantId;
use hashbrown::HashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{config::Config, share::TENANT_PARTS};

/// Bytes that requests may still bring: all together, and each tenant's.
#[derive(Debug)]
pub(crate) struct HttpRoom {
    all: Arc<Semaphore>,
    tenant_bytes_max: usize,
    of: Mutex<HashMap<TenantId, Arc<Semaphore>>>,
}

/// Held until all that a request brought is durable or refused.
#[derive(Debug)]
pub(crate) struct Room {
    _of_all: OwnedSemaphorePermit,
    _of_the_tenant: OwnedSemaphorePermit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRoom {
    #[error("too many requests are under way")]
    OfAll,
    #[error("too many requests of this tenant are under way")]
    OfTheTenant,
}

impl HttpRoom {
    pub(crate) fn new(config: &Config) -> Self {
        let bytes_max = config.http_inflight_bytes_max;
        Self {
            all: Arc::new(Semaphore::new(bytes_max)),
            tenant_bytes_max: (bytes_max / TENANT_PARTS).max(config.message_bytes_max),
            of: Mutex::default(),
        }
    }

    pub(super) fn take(&self, tenant: &TenantId, bytes: u32) -> Result<Room, NoRoom> {
        let own = self.of(tenant).try_acquire_many_owned(bytes).map_err(|_| NoRoom::OfTheTenant)?;
        let all = self.all.clone().try_acquire_many_owned(bytes).map_err(|_| NoRoom::OfAll)?;
        Ok(Room { _of_all: all, _of_the_tenant: own })
    }

    fn of(&self, tenant: &TenantId) -> Arc<Semaphore> {
        let mut rooms = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.entry(tenant.clone()).or_insert_with(|| Arc::new(Semaphore::new(self.tenant_bytes_max))).clone()
    }
}
