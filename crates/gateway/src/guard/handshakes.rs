use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hashbrown::HashMap;
use ntex::time::{Millis, timeout_checked};
use tokio::sync::oneshot;

use super::{Address, TurnedAway};
use crate::config::GuardConfig;

/// How many shake hands at once. Addresses take turns, so that nobody waits behind a crowd from elsewhere.
#[derive(Debug, Clone)]
pub(super) struct Handshakes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    under_way_max: usize,
    waiting_max: usize,
    wait_max: Duration,
    turns: Mutex<Turns>,
}

#[derive(Debug, Default)]
struct Turns {
    under_way: HashMap<Address, usize>,
    under_way_count: usize,
    waiting: HashMap<Address, VecDeque<Waiting>>,
    waiting_count: usize,
    /// Each address that waits, once: whose turn is next.
    order: VecDeque<Address>,
    tickets: u64,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    turn: oneshot::Sender<()>,
}

impl Handshakes {
    pub(super) fn new(config: &GuardConfig) -> Self {
        Self(Arc::new(Inner {
            under_way_max: config.tls_handshakes_max,
            waiting_max: config.tls_handshakes_waiting_max,
            wait_max: Duration::from_millis(config.tls_handshake_wait_millis_max.into()),
            turns: Mutex::default(),
        }))
    }

    /// Waits in the order of the addresses; not at all if too many wait, and not longer than it may.
    pub(super) async fn turn(&self, address: Address) -> Result<HandshakePermit, TurnedAway> {
        let mut place = {
            let mut turns = self.turns();
            if turns.may_begin(address, self.0.under_way_max) {
                turns.begins(address);
                return Ok(HandshakePermit { handshakes: self.clone(), address });
            }
            let (ticket, turn) = turns.waits(address, self.0.waiting_max)?;
            Place { handshakes: self, address, ticket, turn, is_taken: false }
        };
        let millis = u32::try_from(self.0.wait_max.as_millis()).unwrap_or(u32::MAX);
        match timeout_checked(Millis(millis), &mut place.turn).await {
            Ok(Ok(())) => {
                place.is_taken = true;
                Ok(HandshakePermit { handshakes: self.clone(), address })
            }
            Ok(Err(_)) | Err(()) => Err(TurnedAway::Busy),
        }
    }

    /// Under way, and waiting.
    pub(super) fn counts(&self) -> (usize, usize) {
        let turns = self.turns();
        (turns.under_way_count, turns.waiting_count)
    }

    fn ended(&self, address: Address) {
        self.turns().ended(address, self.0.under_way_max);
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.0.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turns {
    /// One address has at most half, so that a slow crowd from one place does not keep all others out.
    fn may_begin(&self, address: Address, max: usize) -> bool {
        let mine = self.under_way.get(&address).copied().unwrap_or(0);
        self.under_way_count < max && mine < max.div_ceil(2)
    }

    fn begins(&mut self, address: Address) {
        *self.under_way.entry(address).or_default() += 1;
        self.under_way_count += 1;
    }

    /// A place in the queue. As with half-open connections, nobody takes more places than are left to all others.
    fn waits(&mut self, address: Address, max: usize) -> Result<(u64, oneshot::Receiver<()>), TurnedAway> {
        let mine = self.waiting.get(&address).map_or(0, VecDeque::len);
        if mine >= max - self.waiting_count {
            return Err(TurnedAway::Busy);
        }
        if mine == 0 {
            self.order.push_back(address);
        }
        let ticket = self.tickets;
        self.tickets += 1;
        let (turn, its_turn) = oneshot::channel();
        self.waiting.entry(address).or_default().push_back(Waiting { ticket, turn });
        self.waiting_count += 1;
        Ok((ticket, its_turn))
    }

    fn ended(&mut self, address: Address, max: usize) {
        self.under_way_count -= 1;
        if let Some(mine) = self.under_way.get_mut(&address) {
            *mine -= 1;
            if *mine == 0 {
                self.under_way.remove(&address);
            }
        }
        self.call_next(max);
    }

    /// Gives free turns to those who may take one; at most two addresses have their half already.
    fn call_next(&mut self, max: usize) {
        let mut passed_over = 0;
        while self.under_way_count < max
            && passed_over < self.order.len()
            && let Some(address) = self.order.pop_front()
        {
            if !self.may_begin(address, max) {
                self.order.push_back(address);
                passed_over += 1;
                continue;
            }
            passed_over = 0;
            let Some(queue) = self.waiting.get_mut(&address) else { continue };
            let next = queue.pop_front();
            if queue.is_empty() {
                self.waiting.remove(&address);
            } else {
                self.order.push_back(address);
            }
            if let Some(next) = next {
                self.waiting_count -= 1;
                if next.turn.send(()).is_ok() {
                    self.begins(address);
                }
            }
        }
    }

    fn gives_up(&mut self, address: Address, ticket: u64) {
        let Some(queue) = self.waiting.get_mut(&address) else { return };
        if let Ok(place) = queue.binary_search_by_key(&ticket, |waiting| waiting.ticket) {
            queue.remove(place);
            self.waiting_count -= 1;
        }
        if queue.is_empty() {
            self.waiting.remove(&address);
            self.order.retain(|waits| *waits != address);
        }
    }
}

/// A place in the queue, given back if its turn is not taken.
struct Place<'a> {
    handshakes: &'a Handshakes,
    address: Address,
    ticket: u64,
    turn: oneshot::Receiver<()>,
    is_taken: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.is_taken {
            return;
        }
        self.turn.close();
        match self.turn.try_recv() {
            Ok(()) => self.handshakes.ended(self.address), // Called while it was leaving.
            Err(_) => self.handshakes.turns().gives_up(self.address, self.ticket),
        }
    }
}

/// The right to shake hands, until it is dropped.
#[derive(Debug)]
pub(crate) struct HandshakePermit {
    handshakes: Handshakes,
    address: Address,
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        self.handshakes.ended(self.address);
    }
}

#[cfg(test)]
impl Handshakes {
    /// Whether nothing is kept of anybody.
    pub(super) fn is_empty(&self) -> bool {
        let turns = self.turns();
        turns.under_way.is_empty() && turns.waiting.is_empty() && turns.order.is_empty()
    }
}
