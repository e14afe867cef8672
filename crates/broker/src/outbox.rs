//! What one client has not had, or not acknowledged, in the order it is sent.
//!
//! A message of QoS 1 or 2 gets a number when it is queued, and the number decides its packet id. So a session that
//! comes back from the log sends its messages under the packet ids it used before, with nothing more written down.

use std::{collections::VecDeque, num::NonZeroU16, sync::Arc};

use dunlin_model::Timestamp;
use smallvec::SmallVec;

use crate::{
    commands::is_of_commands,
    message::{Message, Qos},
    session::{Queued, Room},
};

#[derive(Debug, Default)]
pub struct Outbox {
    next_number: u64,
    /// Sent and not acknowledged, by number.
    inflight: VecDeque<Inflight>,
    /// How many of `inflight` this connection has been sent.
    sent: usize,
    /// Of QoS 1 and 2, not sent yet.
    waiting: VecDeque<Entry>,
    /// Of QoS 0; they pass those that wait for an acknowledgement (MQTT 5, 4.9).
    unreliable: VecDeque<Entry>,
    waiting_bytes: usize,
    next_turn: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) message: Arc<Message>,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// Queued by an earlier run, or while another gateway had the client: nobody here knows whether it was sent.
    pub(crate) restored: bool,
    /// Of QoS 1 and 2; 0 for the others.
    pub(crate) number: u64,
    /// The order in which messages were queued, whatever their QoS.
    pub(crate) turn: u64,
    pub(crate) subscription_ids: SmallVec<[u32; 1]>,
}

#[derive(Debug)]
struct Inflight {
    entry: Entry,
    /// PUBREC has come: the client has the message.
    received: bool,
}

/// What to send next.
#[derive(Debug)]
pub enum Outgoing {
    Publish(Delivery),
    /// PUBREL.
    Release(NonZeroU16),
    /// Nothing: the message of this number was too old, and is done with.
    Expired(u64),
}

#[derive(Debug)]
pub struct Delivery {
    pub message: Arc<Message>,
    pub qos: Qos,
    pub retain: bool,
    pub duplicate: bool,
    /// For QoS 1 and 2.
    pub packet_id: Option<NonZeroU16>,
    pub number: u64,
    pub subscription_ids: SmallVec<[u32; 1]>,
}

/// What an acknowledgement meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledged {
    /// The message of this number.
    Message(u64),
    /// Nothing that is under way.
    Unknown,
}

/// Packet ids are 1 to 65,535.
const PACKET_IDS: u64 = 65_535;

fn packet_id(number: u64) -> NonZeroU16 {
    NonZeroU16::MIN.saturating_add((number % PACKET_IDS) as u16)
}

impl Outbox {
    /// Queues a message; false if there is no room. Its number is used up all the same, so that numbers do not
    /// depend on how fast a client was. `restored` if nobody here knows whether the client was sent it.
    pub(crate) fn push(&mut self, queued: Queued, room: Option<Room>, restored: bool) -> bool {
        let Queued { message, qos, retain, subscription_ids } = queued;
        let number = match qos {
            Qos::AtMostOnce => 0,
            _ => {
                self.next_number += 1;
                self.next_number
            }
        };
        let bytes = message.size_bytes();
        let queued = self.waiting.len() + self.unreliable.len();
        let full =
            |room: Room| queued >= room.messages || self.waiting_bytes.saturating_add(bytes) > room.bytes;
        // One message always fits, whatever its size.
        if queued > 0 && room.is_some_and(full) {
            return false;
        }
        self.waiting_bytes += bytes;
        self.next_turn += 1;
        let turn = self.next_turn;
        let entry = Entry { message, qos, retain, restored, number, turn, subscription_ids };
        match qos {
            Qos::AtMostOnce => self.unreliable.push_back(entry),
            _ => self.waiting.push_back(entry),
        }
        true
    }

    /// The next packet, if the client may be sent one: `window` is how many messages it takes before it has
    /// acknowledged the first.
    pub fn next(&mut self, window: usize, now: Timestamp) -> Option<Outgoing> {
        if self.sent < self.inflight.len() {
            return self.send_again(window);
        }
        let reliable = self.waiting.front().filter(|e| self.may_send(e, window, now)).map(|e| e.turn);
        let unreliable = self.unreliable.front().map(|e| e.turn);
        let queue = match (reliable, unreliable) {
            (None, None) => return None,
            (Some(reliable), unreliable) if unreliable.is_none_or(|turn| reliable < turn) => {
                &mut self.waiting
            }
            _ => &mut self.unreliable,
        };
        let entry = queue.pop_front()?;
        if queue.is_empty() && queue.capacity() > CAPACITY_KEPT_MAX {
            *queue = VecDeque::new();
        }
        self.waiting_bytes -= entry.message.size_bytes();
        if entry.message.is_expired(now) {
            return Some(Outgoing::Expired(entry.number));
        }
        if entry.qos == Qos::AtMostOnce {
            return Some(Outgoing::Publish(entry.delivery(false)));
        }
        let delivery = entry.delivery(entry.restored);
        self.insert_inflight(entry, false);
        self.sent += 1;
        Some(Outgoing::Publish(delivery))
    }

    fn may_send(&self, entry: &Entry, window: usize, now: Timestamp) -> bool {
        let oldest = self.inflight.front().map_or(entry.number, |oldest| oldest.entry.number);
        let is_free = self.inflight.len() < window && entry.number.abs_diff(oldest) < PACKET_IDS;
        is_free || entry.message.is_expired(now)
    }

    fn send_again(&mut self, window: usize) -> Option<Outgoing> {
        if self.sent >= window {
            return None;
        }
        let Inflight { entry, received } = &self.inflight[self.sent];
        self.sent += 1;
        Some(match received {
            true => Outgoing::Release(packet_id(entry.number)),
            false => Outgoing::Publish(entry.delivery(true)),
        })
    }

    /// PUBACK, PUBCOMP, or a PUBREC that refuses: the message is done with.
    pub fn acknowledge(&mut self, packet: NonZeroU16) -> Acknowledged {
        match self.inflight.iter().position(|i| packet_id(i.entry.number) == packet) {
            None => Acknowledged::Unknown,
            Some(place) => Acknowledged::Message(self.remove_inflight(place)),
        }
    }

    /// The message that is under way with this packet id.
    pub fn message(&self, packet: NonZeroU16) -> Option<&Arc<Message>> {
        self.inflight.iter().find(|i| packet_id(i.entry.number) == packet).map(|i| &i.entry.message)
    }

    /// PUBREC: the client has the message, and will not take it again. Of a session that is in the log, the log says so.
    pub fn received(&mut self, packet: NonZeroU16) -> Acknowledged {
        match self.exactly_once(packet) {
            None => Acknowledged::Unknown,
            Some(place) => {
                self.inflight[place].received = true;
                Acknowledged::Message(self.inflight[place].entry.number)
            }
        }
    }

    /// The message of QoS 2 that is under way with this packet id.
    pub fn under_way(&self, packet: NonZeroU16) -> Acknowledged {
        let place = self.exactly_once(packet);
        place.map_or(Acknowledged::Unknown, |at| Acknowledged::Message(self.inflight[at].entry.number))
    }

    fn exactly_once(&self, packet: NonZeroU16) -> Option<usize> {
        let has_it = |i: &Inflight| packet_id(i.entry.number) == packet && i.entry.qos == Qos::ExactlyOnce;
        self.inflight.iter().position(has_it)
    }

    /// Whether nothing waits to be sent or acknowledged.
    pub fn is_empty(&self) -> bool {
        self.inflight.is_empty() && self.waiting.is_empty() && self.unreliable.is_empty()
    }

    fn remove_inflight(&mut self, place: usize) -> u64 {
        let removed = self.inflight.remove(place);
        if place < self.sent {
            self.sent -= 1;
        }
        removed.map_or(0, |i| i.entry.number)
    }

    /// The log says that the message of this number is done with.
    pub(crate) fn apply_acknowledged(&mut self, number: u64) {
        if let Some(place) = self.inflight.iter().position(|i| i.entry.number >= number)
            && self.inflight[place].entry.number == number
        {
            self.remove_inflight(place);
        } else {
            self.take_waiting(number);
        }
    }

    /// The log says that the client has the message of this number.
    pub(crate) fn apply_received(&mut self, number: u64) {
        if let Some(inflight) = self.inflight.iter_mut().find(|i| i.entry.number == number) {
            inflight.received = true;
        } else if let Some(entry) = self.take_waiting(number) {
            self.insert_inflight(entry, true);
        }
    }

    fn take_waiting(&mut self, number: u64) -> Option<Entry> {
        let place = self.waiting.iter().position(|e| e.number >= number)?;
        if self.waiting[place].number != number {
            return None;
        }
        let entry = self.waiting.remove(place)?;
        self.waiting_bytes -= entry.message.size_bytes();
        Some(entry)
    }

    fn insert_inflight(&mut self, entry: Entry, received: bool) {
        let place = self.inflight.partition_point(|i| i.entry.number < entry.number);
        self.inflight.insert(place, Inflight { entry, received });
    }

    /// A new connection has been sent nothing.
    pub(crate) fn begin_again(&mut self) {
        self.sent = 0;
    }

    /// Messages of QoS 0 do not wait for a client that is away.
    pub(crate) fn forget_unreliable(&mut self) {
        self.unreliable = VecDeque::new();
        self.waiting_bytes = self.waiting.iter().map(|e| e.message.size_bytes()).sum();
    }

    /// Of those that were not sent yet.
    pub(crate) fn forget_commands(&mut self, now: Timestamp) {
        let waiting_bytes = &mut self.waiting_bytes;
        self.waiting.retain(|Entry { message, .. }| {
            let is_over = message.is_expired(now) && is_of_commands(&message.topic);
            if is_over {
                *waiting_bytes -= message.size_bytes();
            }
            !is_over
        });
    }

    /// All that must come back after a restart: whether the client has it, and what it is.
    pub(crate) fn reliable(&self) -> impl Iterator<Item = (bool, &Entry)> {
        let inflight = self.inflight.iter().map(|i| (i.received, &i.entry));
        inflight.chain(self.waiting.iter().map(|e| (false, e)))
    }

    pub(crate) fn restore(next_number: u64, entries: impl IntoIterator<Item = (bool, Entry)>) -> Self {
        let mut outbox = Self { next_number, ..Self::default() };
        for (received, entry) in entries {
            if received {
                outbox.insert_inflight(entry, true);
            } else {
                outbox.waiting_bytes += entry.message.size_bytes();
                outbox.waiting.push_back(entry);
            }
        }
        outbox
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.next_number
    }
}

/// Queues above this many entries give their memory back when they are empty.
const CAPACITY_KEPT_MAX: usize = 32;

impl Entry {
    fn delivery(&self, duplicate: bool) -> Delivery {
        Delivery {
            message: self.message.clone(),
            qos: self.qos,
            retain: self.retain,
            duplicate,
            packet_id: (self.qos != Qos::AtMostOnce).then(|| packet_id(self.number)),
            number: self.number,
            subscription_ids: self.subscription_ids.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
