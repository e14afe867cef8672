//! The gateways that share the log: who is there, how far each has applied it, and what the clients of each want to hear
//! whose sessions are in no log.
//!
//! Each gateway knows what the clients of the others want as it knows it of its own: a session that stands for all of
//! them. What it is given is not queued; it means that the message goes by the log, which the others apply.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, OnceLock},
};

use serde::{Deserialize, Serialize};

use crate::session::{Session, SessionId, SessionKey};

/// One run of a gateway, unique among all that have shared the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GatewayNumber(u32);

/// How many bits of a connection's number its gateway counts itself; those above are the gateway's.
const CONNECTION_BITS: u32 = 40;
/// One bit of a session's id says that it is in no log.
const NUMBER_MAX: u32 = (1 << (63 - CONNECTION_BITS)) - 1;

impl GatewayNumber {
    /// Of a connection, that is unique among those of all gateways.
    pub fn of(connection: u64) -> Self {
        Self((connection >> CONNECTION_BITS) as u32 & NUMBER_MAX)
    }

    /// The `nth` of its connections, from 1 on.
    pub fn connection(self, nth: u64) -> u64 {
        u64::from(self.0) << CONNECTION_BITS | nth
    }

    /// For all its clients whose sessions are in no log.
    pub(crate) fn clients(self) -> SessionId {
        SessionId::live(self.connection(0))
    }

    fn after(self) -> Self {
        Self((self.0 + 1).min(NUMBER_MAX))
    }
}

impl fmt::Display for GatewayNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which gateway this is; unknown until it has joined.
pub(crate) type Me = Arc<OnceLock<GatewayNumber>>;

/// As one partition of the log has it.
#[derive(Debug)]
pub(crate) struct Gateways {
    /// The highest number that was ever given.
    last: GatewayNumber,
    present: BTreeMap<GatewayNumber, Present>,
}

/// A gateway that has joined and is not gone.
#[derive(Debug)]
struct Present {
    name: Box<str>,
    applied: u64,
    wanted: BTreeMap<Box<str>, Wanted>,
}

/// What the clients of one gateway in one tenant want.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) clients: Arc<Session>,
    pub(crate) filters: BTreeSet<Box<str>>,
}

/// One gateway in a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct GatewayState {
    number: GatewayNumber,
    name: String,
    applied: u64,
    pub(crate) wanted: Vec<(String, Vec<String>)>,
}

impl Default for Gateways {
    fn default() -> Self {
        Self { last: GatewayNumber(0), present: BTreeMap::new() }
    }
}

impl Gateways {
    /// For the next one that joins.
    pub(crate) fn next_number(&self) -> GatewayNumber {
        self.last.after()
    }

    /// False if another was given that number before.
    pub(crate) fn join(&mut self, number: GatewayNumber, name: &str) -> bool {
        if number <= self.last {
            return false;
        }
        self.last = number;
        self.present.insert(number, Present { name: name.into(), applied: 0, wanted: BTreeMap::new() });
        true
    }

    /// Takes a gateway out; for every tenant, what its clients wanted there.
    pub(crate) fn leave(&mut self, number: GatewayNumber) -> Option<BTreeMap<Box<str>, Wanted>> {
        Some(self.present.remove(&number)?.wanted)
    }

    pub(crate) fn has(&self, number: GatewayNumber) -> bool {
        self.present.contains_key(&number)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = GatewayNumber> {
        self.present.keys().copied()
    }

    pub(crate) fn name_of(&self, number: GatewayNumber) -> Option<&str> {
        self.present.get(&number).map(|present| &*present.name)
    }

    /// Those that are gone when one of that name comes. One without a name has the log for itself.
    pub(crate) fn replaced_by(&self, name: &str) -> Vec<GatewayNumber> {
        let is_replaced =
            |present: &Present| *present.name == *name || name.is_empty() || present.name.is_empty();
        self.present.iter().filter(|(_, present)| is_replaced(present)).map(|(number, _)| *number).collect()
    }

    pub(crate) fn heard(&mut self, number: GatewayNumber, applied: u64) {
        if let Some(present) = self.present.get_mut(&number) {
            present.applied = present.applied.max(applied);
        }
    }

    /// Up to where all but `but` have applied the log; without an end if there is no other.
    pub(crate) fn applied(&self, but: Option<GatewayNumber>) -> u64 {
        let others = self.present.iter().filter(|(number, _)| Some(**number) != but);
        others.map(|(_, present)| present.applied).min().unwrap_or(u64::MAX)
    }

    /// Who stands for the clients of a gateway that want this, too, from here on.
    pub(crate) fn want(&mut self, number: GatewayNumber, tenant: &str, filter: &str) -> Option<Arc<Session>> {
        let present = self.present.get_mut(&number)?;
        let wanted = present
            .wanted
            .entry(tenant.into())
            .or_insert_with(|| Wanted { clients: clients(number, tenant), filters: BTreeSet::new() });
        wanted.filters.insert(filter.into());
        Some(wanted.clients.clone())
    }

    /// Who stands for the clients of a gateway that do not want this any more.
    pub(crate) fn unwant(
        &mut self,
        number: GatewayNumber,
        tenant: &str,
        filter: &str,
    ) -> Option<Arc<Session>> {
        let all = &mut self.present.get_mut(&number)?.wanted;
        let wanted = all.get_mut(tenant)?;
        let clients = wanted.filters.remove(filter).then(|| wanted.clients.clone());
        if wanted.filters.is_empty() {
            all.remove(tenant);
        }
        clients
    }

    pub(crate) fn states(&self) -> (GatewayNumber, Vec<GatewayState>) {
        let filters = |wanted: &Wanted| wanted.filters.iter().map(|filter| filter.to_string()).collect();
        let states = self.present.iter().map(|(number, present)| GatewayState {
            number: *number,
            name: present.name.to_string(),
            applied: present.applied,
            wanted: present.wanted.iter().map(|(tenant, w)| (tenant.to_string(), filters(w))).collect(),
        });
        (self.last, states.collect())
    }

    /// Brings back who was there; what they want is brought back one by one.
    pub(crate) fn restore(&mut self, last: GatewayNumber, states: &[GatewayState]) {
        self.last = last;
        let present = states.iter().map(|state| {
            let (name, wanted) = (state.name.as_str().into(), BTreeMap::new());
            (state.number, Present { name, applied: state.applied, wanted })
        });
        self.present = present.collect();
    }
}

impl GatewayState {
    pub(crate) fn number(&self) -> GatewayNumber {
        self.number
    }
}

fn clients(number: GatewayNumber, tenant: &str) -> Arc<Session> {
    let nobody = Box::default();
    let key = SessionKey { tenant: tenant.into(), device: nobody, client_id: number.to_string().into() };
    Session::elsewhere(number.clients(), key)
}
