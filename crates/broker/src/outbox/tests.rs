use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};

use super::*;

const NOW: Timestamp = Timestamp::from_micros(0);

fn message(payload: u64, bytes: usize, expires_at: Option<i64>) -> Arc<Message> {
    let mut text = payload.to_string().into_bytes();
    text.resize(text.len().max(bytes), b' ');
    Arc::new(Message {
        topic: "t".into(),
        payload: Bytes::from(text),
        qos: Qos::ExactlyOnce,
        retain: false,
        expires_at: expires_at.map(Timestamp::from_micros),
        properties: None,
        publisher: None,
        packets: Default::default(),
    })
}

fn queued(payload: u64, qos: Qos) -> Queued {
    Queued { message: message(payload, 0, None), qos, retain: false, subscription_ids: SmallVec::new() }
}

fn payload_of(message: &Message) -> u64 {
    std::str::from_utf8(&message.payload).unwrap().trim().parse().unwrap()
}

const ROOM: Option<Room> = Some(Room { messages: usize::MAX, bytes: usize::MAX });

/// What one client knows, and what it must not see.
#[derive(Debug, Default)]
struct Client {
    /// Sent on this connection and not acknowledged, in the order it came.
    under_way: Vec<(NonZeroU16, u64, Qos)>,
    /// By packet id, whatever the connection: the message that holds it.
    holders: BTreeMap<NonZeroU16, u64>,
    /// PUBREC was said.
    received: BTreeSet<NonZeroU16>,
    /// Sent on some connection, of QoS 1 and 2, and not acknowledged.
    seen: BTreeSet<u64>,
    last_new: u64,
    last_unreliable: u64,
}

impl Client {
    fn gets(&mut self, outgoing: Outgoing, window: usize, restored: bool) {
        match outgoing {
            Outgoing::Expired(number) => panic!("{number} does not expire"),
            Outgoing::Release(packet) => {
                assert!(self.received.contains(&packet), "PUBREL without PUBREC");
                self.under_way.push((packet, self.holders[&packet], Qos::ExactlyOnce));
            }
            Outgoing::Publish(delivery) if delivery.qos == Qos::AtMostOnce => {
                let payload = payload_of(&delivery.message);
                assert!(payload > self.last_unreliable, "QoS 0 out of order");
                assert!(!delivery.duplicate && delivery.packet_id.is_none());
                self.last_unreliable = payload;
                return;
            }
            Outgoing::Publish(delivery) => {
                let payload = payload_of(&delivery.message);
                let packet = delivery.packet_id.expect("QoS 1 and 2 have one");
                let holder = *self.holders.entry(packet).or_insert(payload);
                assert_eq!(holder, payload, "packet id {packet} of an unacknowledged message is used again");
                assert!(!self.received.contains(&packet), "sent again after PUBREC");
                assert!(self.under_way.iter().all(|(_, other, _)| *other != payload), "sent twice");
                let is_new = self.seen.insert(payload);
                assert!(is_new || delivery.duplicate, "a repetition without DUP");
                assert!(!is_new || restored || !delivery.duplicate, "DUP on what was never sent");
                if is_new {
                    assert!(payload > self.last_new, "out of order");
                    self.last_new = payload;
                }
                self.under_way.push((packet, payload, delivery.qos));
            }
        }
        assert!(self.under_way.len() <= window, "more than the window");
    }

    fn forget(&mut self, packet: NonZeroU16) {
        self.under_way.retain(|(other, ..)| *other != packet);
        self.received.remove(&packet);
        let payload = self.holders.remove(&packet).expect("it was under way");
        self.seen.remove(&payload);
    }

    fn reconnects(&mut self) {
        self.under_way.clear();
    }
}

#[derive(Debug, Clone)]
enum Step {
    Push(Qos),
    Send,
    /// The client is done with one of those under way.
    Acknowledge(prop::sample::Index),
    /// The client says PUBREC for one of those under way.
    Receive(prop::sample::Index),
    Reconnect,
    /// The server starts anew from what the snapshot holds.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let qos = prop_oneof![Just(Qos::AtMostOnce), Just(Qos::AtLeastOnce), Just(Qos::ExactlyOnce)];
    prop_oneof![
        6 => qos.prop_map(Step::Push),
        6 => Just(Step::Send),
        3 => any::<prop::sample::Index>().prop_map(Step::Acknowledge),
        2 => any::<prop::sample::Index>().prop_map(Step::Receive),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Restart),
    ]
}

fn restarted(outbox: &Outbox) -> Outbox {
    let entries = outbox
        .reliable()
        .map(|(received, entry)| (received, Entry { restored: true, turn: 0, ..entry.clone() }));
    Outbox::restore(outbox.next_number(), entries.collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_is_lost_doubled_or_out_of_order(
        steps in vec(step(), 1..200),
        window in 1..6usize,
        // Also where packet ids begin again.
        first in prop_oneof![Just(0u64), PACKET_IDS - 40..PACKET_IDS + 2],
    ) {
        let mut outbox = Outbox::restore(first, []);
        let mut client = Client { last_new: 0, ..Client::default() };
        let mut unacknowledged = BTreeSet::new();
        let mut restored = false;
        let mut payload = 0;
        for step in steps {
            match step {
                Step::Push(qos) => {
                    payload += 1;
                    prop_assert!(outbox.push(queued(payload, qos), ROOM, false));
                    if qos != Qos::AtMostOnce {
                        unacknowledged.insert(payload);
                    }
                }
                Step::Send => {
                    if let Some(outgoing) = outbox.next(window, NOW) {
                        client.gets(outgoing, window, restored);
                    }
                }
                Step::Acknowledge(_) | Step::Receive(_) if client.under_way.is_empty() => {}
                Step::Acknowledge(which) => {
                    let (packet, payload, _) = *which.get(&client.under_way);
                    let acknowledged = outbox.acknowledge(packet);
                    prop_assert!(matches!(acknowledged, Acknowledged::Message(_)));
                    prop_assert_eq!(outbox.acknowledge(packet), Acknowledged::Unknown);
                    client.forget(packet);
                    unacknowledged.remove(&payload);
                }
                Step::Receive(which) => {
                    let (packet, _, qos) = *which.get(&client.under_way);
                    let is_known = outbox.received(packet) != Acknowledged::Unknown;
                    prop_assert_eq!(is_known, qos == Qos::ExactlyOnce);
                    if is_known {
                        client.received.insert(packet);
                    }
                }
                Step::Reconnect => {
                    outbox.forget_unreliable();
                    outbox.begin_again();
                    client.reconnects();
                }
                Step::Restart => {
                    outbox = restarted(&outbox);
                    client.reconnects();
                    restored = true;
                }
            }
            let held: BTreeSet<u64> =
                outbox.reliable().map(|(_, entry)| payload_of(&entry.message)).collect();
            prop_assert_eq!(&held, &unacknowledged);
        }
        // A client that acknowledges everything gets everything, and nothing remains.
        outbox.begin_again();
        client.reconnects();
        while let Some(outgoing) = outbox.next(window, NOW) {
            client.gets(outgoing, window, restored);
            for (packet, payload, _) in client.under_way.clone() {
                outbox.acknowledge(packet);
                client.forget(packet);
                unacknowledged.remove(&payload);
            }
        }
        prop_assert!(unacknowledged.is_empty());
        prop_assert!(outbox.is_empty());
        prop_assert_eq!(outbox.waiting_bytes, 0);
    }
}

fn publish(outgoing: Option<Outgoing>) -> Delivery {
    match outgoing {
        Some(Outgoing::Publish(delivery)) => delivery,
        other => panic!("{other:?}"),
    }
}

/// One message stays unacknowledged while all packet ids go round.
#[test]
fn a_packet_id_is_not_given_away_while_its_message_is_under_way() {
    let mut outbox = Outbox::default();
    assert!(outbox.push(queued(1, Qos::AtLeastOnce), ROOM, false));
    let first = publish(outbox.next(10, NOW)).packet_id.unwrap();
    for payload in 2..=PACKET_IDS {
        assert!(outbox.push(queued(payload, Qos::AtLeastOnce), ROOM, false));
        let packet = publish(outbox.next(10, NOW)).packet_id.unwrap();
        assert_ne!(packet, first);
        outbox.acknowledge(packet);
    }
    assert!(outbox.push(queued(PACKET_IDS + 1, Qos::AtLeastOnce), ROOM, false));
    assert!(outbox.next(10, NOW).is_none(), "its packet id is taken");
    outbox.acknowledge(first);
    assert_eq!(publish(outbox.next(10, NOW)).packet_id, Some(first));
}

#[test]
fn room_is_counted_in_messages_and_bytes() {
    let of = |bytes| Queued { message: message(1, bytes, None), ..queued(1, Qos::AtLeastOnce) };
    let room = |messages, bytes| Some(Room { messages, bytes });
    let mut outbox = Outbox::default();
    assert!(outbox.push(of(1_000), room(1, 10), false), "one message always fits");
    assert!(!outbox.push(of(1), room(1, 1 << 20), false), "no second message");
    assert!(!outbox.push(of(1_000), room(9, 2_000), false), "no more bytes");
    assert!(outbox.push(of(1_000), room(9, 3_000), false));
    assert_eq!(outbox.next_number(), 4, "what was dropped has had its number");
    let numbers: Vec<u64> = outbox.reliable().map(|(_, entry)| entry.number).collect();
    assert_eq!(numbers, [1, 4]);
}

#[test]
fn what_is_too_old_is_not_sent_and_does_not_wait_for_the_window() {
    let mut outbox = Outbox::default();
    let old = Queued { message: message(2, 0, Some(5)), ..queued(2, Qos::AtLeastOnce) };
    assert!(outbox.push(queued(1, Qos::AtLeastOnce), ROOM, false) && outbox.push(old, ROOM, false));
    publish(outbox.next(1, NOW));
    assert!(outbox.next(1, Timestamp::from_micros(4)).is_none(), "the window is full");
    let late = outbox.next(1, Timestamp::from_micros(5));
    assert!(matches!(late, Some(Outgoing::Expired(2))), "{late:?}");
    assert_eq!(outbox.waiting_bytes, 0);
}

#[test]
fn the_log_ends_messages_by_their_number() {
    let mut outbox = Outbox::default();
    for payload in 1..=4 {
        assert!(outbox.push(queued(payload, Qos::ExactlyOnce), None, true));
    }
    outbox.apply_acknowledged(2);
    outbox.apply_received(3);
    outbox.apply_acknowledged(9);
    outbox.apply_received(9);
    outbox.apply_acknowledged(2);
    let left: Vec<(bool, u64)> = outbox.reliable().map(|(received, e)| (received, e.number)).collect();
    assert_eq!(left, [(true, 3), (false, 1), (false, 4)]);
    outbox.begin_again();
    assert!(matches!(outbox.next(9, NOW), Some(Outgoing::Release(packet)) if packet == packet_id(3)));
    let numbers: Vec<u64> = (0..2).map(|_| publish(outbox.next(9, NOW)).number).collect();
    assert_eq!(numbers, [1, 4]);
}

/// So that a PUBREC that the log did not take has changed nothing.
#[test]
fn a_message_is_received_when_the_log_says_so() {
    let mut outbox = Outbox::default();
    assert!(outbox.push(queued(1, Qos::ExactlyOnce), ROOM, false));
    assert!(outbox.push(queued(2, Qos::AtLeastOnce), ROOM, false));
    let packet = publish(outbox.next(9, NOW)).packet_id.unwrap();
    let other = publish(outbox.next(9, NOW)).packet_id.unwrap();
    assert_eq!(outbox.under_way(packet), Acknowledged::Message(1));
    assert_eq!(outbox.under_way(other), Acknowledged::Unknown, "of QoS 1");
    outbox.begin_again();
    let again = publish(outbox.next(9, NOW));
    assert!(again.duplicate && again.packet_id == Some(packet));
    outbox.apply_received(1);
    outbox.begin_again();
    assert!(matches!(outbox.next(9, NOW), Some(Outgoing::Release(released)) if released == packet));
}
