//! Holds out against clients that come too often, too many at once, or with credentials that are none.
//!
//! An address is an IPv4 address or the /64 of an IPv6 one. What is remembered is bounded, and who was not seen for
//! longest is forgotten first. Nobody pays for a stranger at the same address as long as the guard can tell them
//! apart: clients that were let in before go on while somebody tries out credentials beside them.

mod handshakes; // how many shake hands for TLS at once
mod pace; // how often is too often

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use dunlin_model::{Clock, Timestamp};
use hashbrown::HashMap;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use crate::{config::GuardConfig, directory::Credential, table::Table};
use handshakes::{HandshakePermit, Handshakes};
use pace::{Bucket, Failures, Rate, Window};

/// Where clients come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Address(IpAddr);

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => {
                let network = v6.to_bits() & !u128::from(u64::MAX);
                IpAddr::V6(Ipv6Addr::from_bits(network))
            }
            v4 => v4,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => v4.fmt(f),
            IpAddr::V6(network) => write!(f, "{network}/64"),
        }
    }
}

/// Why somebody is not listened to now. All of it passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TurnedAway {
    #[error("too many connections have not said who they are")]
    HalfOpen,
    #[error("too many connects from this address")]
    AddressRate,
    #[error("too many connects")]
    Busy,
    #[error("this client connects again and again")]
    Banned,
    #[error("too many credentials failed")]
    BackOff,
}

impl TurnedAway {
    /// One word for the metrics.
    pub(crate) fn outcome(self) -> &'static str {
        match self {
            Self::HalfOpen => "half_open",
            Self::AddressRate => "address_rate",
            Self::Busy => "busy",
            Self::Banned => "banned",
            Self::BackOff => "back_off",
        }
    }
}

/// Shared by all that listens.
#[derive(Debug, Clone)]
pub(crate) struct Guard(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: GuardConfig,
    clock: Clock,
    /// Of this process alone, so that nobody can choose what meets whom.
    hasher: RandomState,
    state: Mutex<State>,
    handshakes: Handshakes,
}

#[derive(Debug)]
struct State {
    half_open: HalfOpen,
    pace: Bucket,
    addresses: Table<Address, Visits>,
    clients: Table<(Address, u64), Known>,
    credentials: Table<(Address, u64), Failures>,
    bans: u64,
}

/// Connections of which nobody knows yet whose they are.
#[derive(Debug, Default)]
struct HalfOpen {
    all: usize,
    by_address: HashMap<Address, usize>,
}

/// What is remembered of an address.
#[derive(Debug, Default)]
struct Visits {
    connects: Bucket,
    failures: Failures,
}

/// What is remembered of a client that was let in: an id and a credential at an address.
#[derive(Debug, Default)]
struct Known {
    connects: Window,
    banned_at: Option<Timestamp>,
}

impl Guard {
    pub(crate) fn new(config: GuardConfig, clock: Clock) -> Self {
        let state = State {
            half_open: HalfOpen::default(),
            pace: Bucket::default(),
            addresses: Table::new(config.addresses_max),
            clients: Table::new(config.clients_max),
            credentials: Table::new(config.addresses_max),
            bans: 0,
        };
        let handshakes = Handshakes::new(&config);
        let hasher = RandomState::new();
        Self(Arc::new(Inner { config, clock, hasher, state: Mutex::new(state), handshakes }))
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(GuardCollector(self.clone())));
    }

    /// Somebody connects. An address holds no more half-open connections than are left to all others: one alone gets
    /// half of them, and however many addresses there are, a newcomer finds room.
    pub(crate) fn arrive(&self, address: IpAddr) -> Result<Arrival, TurnedAway> {
        let address = Address::from(address);
        let now = self.0.clock.now();
        let config = &self.0.config;
        let mut state = self.state();
        let rate = Rate::new(config.address_connects_per_second_max, config.address_connects_burst_max);
        let keeps_rate = state.addresses.entry(address).connects.take(now, &rate, Duration::ZERO).is_some();
        let HalfOpen { all, by_address } = &mut state.half_open;
        let left = config.half_open_max - *all;
        if by_address.get(&address).copied().unwrap_or(0) >= left {
            return Err(TurnedAway::HalfOpen);
        }
        *by_address.entry(address).or_default() += 1;
        *all += 1;
        drop(state);
        Ok(Arrival { guard: self.clone(), address, keeps_rate })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection whose client is not known yet; half-open until this is dropped.
#[derive(Debug)]
pub(crate) struct Arrival {
    guard: Guard,
    address: Address,
    keeps_rate: bool,
}

impl Arrival {
    pub(crate) fn address(&self) -> Address {
        self.address
    }

    /// A turn to shake hands for TLS, to be held until that is done. Ask for it when the client's first bytes are
    /// there: who sends nothing takes no turn. Addresses take turns, and none has more than half of them.
    pub(crate) async fn handshake(&self) -> Result<HandshakePermit, TurnedAway> {
        if !self.keeps_rate {
            return Err(TurnedAway::AddressRate);
        }
        self.guard.0.handshakes.turn(self.address).await
    }

    /// The client says who it is; nobody has looked at the credential yet.
    pub(crate) fn introduce(&self, client_id: &str, credential: &Credential) -> Result<Visitor, TurnedAway> {
        if !self.keeps_rate {
            return Err(TurnedAway::AddressRate);
        }
        let Inner { config, clock, hasher, .. } = &*self.guard.0;
        let now = clock.now();
        let client = (self.address, hasher.hash_one((client_id, credential)));
        let credential = (self.address, hasher.hash_one(credential));
        let mut state = self.guard.state();

        let known = state.clients.get(&client);
        if known.is_some_and(|known| known.is_banned(now, config)) {
            return Err(TurnedAway::Banned);
        }
        let is_known = known.is_some();
        let is_paused = |failures: Option<&Failures>, free| {
            failures.is_some_and(|failures| failures.pause_at(now, free, config) > Duration::ZERO)
        };
        let guesses = state.addresses.get(&self.address).map(|visits| &visits.failures);
        if is_paused(state.credentials.get(&credential), config.credential_failures_free)
            || (!is_known && is_paused(guesses, config.address_failures_free))
        {
            return Err(TurnedAway::BackOff);
        }

        let rate = Rate::new(config.connects_per_second_max, config.connects_burst_max);
        let patience = Duration::from_millis(config.connect_wait_millis_max.into());
        let wait = state.pace.take(now, &rate, patience).ok_or(TurnedAway::Busy)?;
        drop(state);
        let is_named = !client_id.is_empty();
        Ok(Visitor { guard: self.guard.clone(), client, credential, is_named, wait })
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut state = self.guard.state();
        let HalfOpen { all, by_address } = &mut state.half_open;
        *all -= 1;
        if let Some(mine) = by_address.get_mut(&self.address) {
            *mine -= 1;
            if *mine == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

/// A client that may show its credential.
#[derive(Debug)]
pub(crate) struct Visitor {
    guard: Guard,
    client: (Address, u64),
    credential: (Address, u64),
    is_named: bool,
    wait: Duration,
}

impl Visitor {
    /// Until its turn has come.
    pub(crate) fn wait(&self) -> Duration {
        self.wait
    }

    /// It was let in. If that was once too often, this was the last time for a while.
    pub(crate) fn admitted(&self) {
        let Inner { config, clock, .. } = &*self.guard.0;
        let now = clock.now();
        let mut state = self.guard.state();
        state.credentials.remove(&self.credential);
        let known = state.clients.entry(self.client);
        let connects = known.connects.count(now);
        // Without a client id each connect is another client.
        if self.is_named && connects > config.client_connects_per_minute_max {
            known.banned_at = Some(now);
            known.connects = Window::default();
            state.bans += 1;
        }
    }

    /// The credential is none. An address pays for each credential once: what one broken device repeats is its own.
    pub(crate) fn failed(&self) {
        let Inner { config, clock, .. } = &*self.guard.0;
        let now = clock.now();
        let mut state = self.guard.state();
        state.clients.remove(&self.client);
        if state.credentials.entry(self.credential).add(now, config) == 1 {
            let (address, _) = self.credential;
            state.addresses.entry(address).failures.add(now, config);
        }
    }
}

impl Known {
    fn is_banned(&self, now: Timestamp, config: &GuardConfig) -> bool {
        let ban = Duration::from_secs(config.client_ban_seconds.into());
        self.banned_at.is_some_and(|at| now >= at && now.since(at) < ban)
    }
}

/// Shows how the guard stands when it is asked for.
#[derive(Debug)]
struct GuardCollector(Guard);

impl Collector for GuardCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Inner { handshakes, .. } = &*self.0.0;
        let (under_way, waiting) = handshakes.counts();
        let (half_open, bans, tables) = {
            let state = self.0.state();
            let tables = [
                ("addresses", state.addresses.len()),
                ("clients", state.clients.len()),
                ("credentials", state.credentials.len()),
            ];
            (state.half_open.all, state.bans, tables)
        };
        let gauges = [
            ("dunlin_gateway_half_open", "Connections that have not said who they are", half_open),
            ("dunlin_gateway_tls_handshakes", "TLS handshakes under way", under_way),
            ("dunlin_gateway_tls_handshakes_waiting", "TLS handshakes that wait for their turn", waiting),
        ];
        for (name, help, count) in gauges {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(count as i64).encode(metric)?;
        }
        let help = "Clients banned for a while for connecting again and again";
        let metric = encoder.encode_descriptor("dunlin_gateway_bans", help, None, MetricType::Counter)?;
        ConstCounter::new(bans).encode(metric)?;
        let help = "What the guard remembers";
        let mut family =
            encoder.encode_descriptor("dunlin_gateway_guard_entries", help, None, MetricType::Gauge)?;
        for (table, entries) in tables {
            ConstGauge::new(entries as i64).encode(family.encode_family(&[("table", table)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
