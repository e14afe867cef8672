//! What became of every record, per tenant: the gateway's line of the ledger.
//!
//! Counted per batch: a record counts as received when its batch goes to the journal. A refused message is one
//! record, whatever stood in it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release},
    },
};

use dunlin_model::{RejectReason, TenantId};

/// `received = accepted + events + replies + rejected + failed + in_flight`, in records since the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Account {
    pub received: u64,
    /// Telemetry records that are durable.
    pub accepted: u64,
    /// Events, sent by devices, that are durable.
    pub events: u64,
    /// Replies to commands, sent by devices, that are durable.
    pub replies: u64,
    /// Refused messages whose original bytes are durable.
    pub rejected: BTreeMap<RejectReason, u64>,
    /// The journal failed: never acknowledged, and not known to be in the log.
    pub failed: u64,
    /// With the journal now.
    pub in_flight: u64,
}

/// What a record counts as once it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Telemetry,
    Event,
    Reply,
    Rejected(RejectReason),
}

/// One tenant's counters.
#[derive(Debug, Default)]
pub(crate) struct TenantAccount {
    received: AtomicU64,
    accepted: AtomicU64,
    events: AtomicU64,
    replies: AtomicU64,
    rejected: [AtomicU64; RejectReason::ALL.len()],
    failed: AtomicU64,
    /// How often access was taken from one of its devices.
    revocations: AtomicU64,
    connections: AtomicU64,
}

impl TenantAccount {
    pub(crate) fn received(&self, records: u64) {
        self.received.fetch_add(records, Relaxed);
    }

    pub(crate) fn durable(&self, class: Class, records: u64) {
        let counter = match class {
            Class::Telemetry => &self.accepted,
            Class::Event => &self.events,
            Class::Reply => &self.replies,
            Class::Rejected(reason) => &self.rejected[reason as usize],
        };
        counter.fetch_add(records, Release);
    }

    pub(crate) fn failed(&self, records: u64) {
        self.failed.fetch_add(records, Release);
    }

    /// MQTT connections that are open.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    pub(crate) fn enters(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    pub(crate) fn leaves(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    pub(crate) fn revoked(&self) {
        self.revocations.fetch_add(1, Release);
    }

    pub(crate) fn revocations(&self) -> u64 {
        self.revocations.load(Acquire)
    }

    /// `received` is read last: what has ended was received before, so nothing is ever in flight below zero.
    fn snapshot(&self) -> Account {
        let (accepted, events) = (self.accepted.load(Acquire), self.events.load(Acquire));
        let replies = self.replies.load(Acquire);
        let rejected: BTreeMap<_, _> = RejectReason::ALL
            .into_iter()
            .map(|reason| (reason, self.rejected[reason as usize].load(Acquire)))
            .filter(|(_, records)| *records > 0)
            .collect();
        let failed = self.failed.load(Acquire);
        let received = self.received.load(Relaxed);
        let ended = accepted + events + replies + failed + rejected.values().sum::<u64>();
        let in_flight = received.saturating_sub(ended);
        Account { received, accepted, events, replies, rejected, failed, in_flight }
    }
}

/// All tenants' counters. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Accounts(Arc<RwLock<BTreeMap<TenantId, Arc<TenantAccount>>>>);

impl Accounts {
    /// How every tenant stands now.
    pub fn snapshot(&self) -> BTreeMap<TenantId, Account> {
        let tenants = self.0.read().unwrap_or_else(PoisonError::into_inner);
        tenants.iter().map(|(tenant, account)| (tenant.clone(), account.snapshot())).collect()
    }

    pub(crate) fn of(&self, tenant: &TenantId) -> Arc<TenantAccount> {
        if let Some(account) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(tenant) {
            return account.clone();
        }
        let mut tenants = self.0.write().unwrap_or_else(PoisonError::into_inner);
        tenants.entry(tenant.clone()).or_default().clone()
    }
}
