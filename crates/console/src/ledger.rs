use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State};
use dunlin_registry::Scope;
use serde::{Serialize, Serializer};

use crate::{Console, ask::Asker};

/// The account of every message. The unit is the record: one device message, or one element of an array payload.
///
/// It balances when, for every tenant, `accepted = stored + duplicate + expired + sampled + in_flight`, and when the
/// counters of the gateway, the offsets of the journal and the counters of the store agree with each other.
#[derive(Debug, Clone, Default, Serialize)]
pub struct LedgerView {
    pub balanced: bool,
    /// What does not agree; empty when balanced.
    pub problems: Vec<Disagreement>,
    /// Records that the journal had let go when the store came to read it again, of all tenants together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone: Option<u64>,
    pub tenants: BTreeMap<String, TenantLedger>,
}

/// Counters that do not agree. Clients see the words.
#[derive(Debug, Clone)]
pub struct Disagreement {
    /// Whose records they count; the platform's as a whole if `None`.
    pub tenant: Option<String>,
    pub words: String,
}

impl Serialize for Disagreement {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.words)
    }
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct TenantLedger {
    /// Durable in the journal, since its first record.
    pub accepted: u64,
    pub stored: u64,
    pub duplicate: u64,
    pub expired: u64,
    /// Left out, as others stand for them.
    pub sampled: u64,
    /// Accepted and not yet seen by the store.
    pub in_flight: u64,
    /// Refused and kept with the reason on the `rejected` topic.
    pub rejected: BTreeMap<String, u64>,
    /// Readings in the stored records.
    pub readings_stored: u64,
    /// Since this process started.
    pub gateway: GatewayAccount,
    pub rules: RulesAccount,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct GatewayAccount {
    pub received: u64,
    pub accepted: u64,
    /// Events that devices sent.
    pub events: u64,
    /// Replies to commands.
    pub replies: u64,
    pub rejected: BTreeMap<String, u64>,
    /// Not acknowledged because the journal could not take it.
    pub failed: u64,
    pub in_flight: u64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct RulesAccount {
    pub read: u64,
    pub evaluated: u64,
    pub late: u64,
    pub duplicate: u64,
    /// A rule broke on it.
    pub failed: u64,
}

impl LedgerView {
    /// What the users of a tenant may see. Whether the platform as a whole balances is not theirs to know: the words
    /// would tell of others.
    fn of(mut self, tenant: &str) -> Self {
        self.tenants.retain(|name, _| name == tenant);
        self.problems.retain(|problem| problem.tenant.as_deref() == Some(tenant));
        self.balanced = self.problems.is_empty();
        self.gone = None;
        self
    }
}

pub(crate) async fn show(Asker(user): Asker, State(console): State<Arc<Console>>) -> Json<LedgerView> {
    let ledger = console.platform.ledger();
    Json(match user.scope {
        Scope::Platform => ledger,
        Scope::Tenant => ledger.of(&user.tenant),
    })
}
