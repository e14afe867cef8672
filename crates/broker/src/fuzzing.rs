//! What must hold for any topics and filters, and for any bytes that are read as a log or a snapshot.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;

use crate::{
    broker::Broker,
    change::Change,
    commands::command_topic,
    message::{Message, Qos},
    retained::Retained,
    session::{RetainHandling, Session, SessionId, SessionKey, Subscription},
    snapshot,
    tenant::Limits,
    topic::{Filter, check_topic},
    tree::Tree,
};

/// Whether a filter matches, as MQTT 5, 4.7 says it, level by level.
pub(crate) fn matches(filter: &str, topic: &str) -> bool {
    fn levels_match(filter: &[&str], topic: &[&str]) -> bool {
        match (filter, topic) {
            (["#"], _) | ([], []) => true,
            ([first, filter @ ..], [level, topic @ ..]) => {
                (*first == "+" || first == level) && levels_match(filter, topic)
            }
            _ => false,
        }
    }
    let of_the_server = topic.starts_with('$') && filter.starts_with(['+', '#']);
    let (filter, topic): (Vec<_>, Vec<_>) = (filter.split('/').collect(), topic.split('/').collect());
    !of_the_server && levels_match(&filter, &topic)
}

/// A line that begins with `>` is a topic, any other a filter: subscriptions and retained messages find each other
/// exactly where the specification says so, and leave nothing.
pub fn topics(data: &[u8]) {
    const LINES_MAX: usize = 64;
    let Ok(text) = str::from_utf8(data) else { return };
    let lines = || text.split('\n').take(LINES_MAX);
    let topics: BTreeSet<&str> = lines()
        .filter_map(|line| line.strip_prefix('>'))
        .filter(|topic| check_topic(topic).is_ok())
        .collect();
    let filters: Vec<Filter<'_>> =
        lines().filter(|line| !line.starts_with('>')).filter_map(|line| Filter::parse(line).ok()).collect();

    let mut tree = Tree::default();
    for (n, filter) in (0..).zip(&filters) {
        tree.insert(*filter, session(n), subscription());
    }
    let mut retained = Retained::default();
    topics.iter().for_each(|topic| retained.set(message(topic)));
    for topic in &topics {
        let expected = (0..).zip(&filters).filter(|(_, filter)| matches(filter.path, topic));
        assert_eq!(reached(&tree, topic), expected.map(|(n, _)| SessionId::live(n)).collect(), "{topic:?}");
    }
    for filter in &filters {
        let mut found = BTreeSet::new();
        retained.matching(filter.path, &mut |message| assert!(found.insert(message.topic.to_string())));
        let expected =
            topics.iter().filter(|topic| matches(filter.path, topic)).map(|topic| topic.to_string());
        assert_eq!(found, expected.collect(), "{filter:?}");
    }
    for (n, filter) in (0..).zip(&filters) {
        assert!(tree.remove(*filter, SessionId::live(n)), "{filter:?}");
    }
    for topic in &topics {
        assert!(reached(&tree, topic).is_empty());
        retained.clear(topic);
    }
    assert_eq!((retained.len(), retained.size_bytes()), (0, 0));
}

fn reached(tree: &Tree, topic: &str) -> BTreeSet<SessionId> {
    let mut all = BTreeSet::new();
    tree.visit(topic, &mut |leaf| {
        let members = leaf.groups().iter().flat_map(|group| group.members.keys());
        leaf.subscribers
            .keys()
            .chain(members)
            .for_each(|id| assert!(all.insert(*id), "shown twice: {topic:?}"));
    });
    all
}

fn session(number: u64) -> Arc<Session> {
    let key = SessionKey { tenant: "t".into(), device: "d".into(), client_id: number.to_string().into() };
    Session::live(SessionId::live(number), key)
}

fn subscription() -> Subscription {
    Subscription {
        qos: Qos::AtMostOnce,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Never,
        id: None,
    }
}

fn message(topic: &str) -> Arc<Message> {
    Arc::new(Message {
        topic: topic.into(),
        payload: Bytes::from_static(b"x"),
        qos: Qos::AtMostOnce,
        retain: true,
        expires_at: None,
        properties: None,
        publisher: None,
        packets: Default::default(),
    })
}

pub(crate) const LIMITS: Limits = Limits {
    session_subscriptions_max: 10,
    queue_messages_max: 10,
    queue_bytes_max: 10_000,
    sessions_max: 10,
    retained_messages_max: 10,
    retained_bytes_max: 10_000,
};

/// The first byte says whether the rest is a log or a snapshot.
pub fn sessions(data: &[u8]) {
    match data.split_first() {
        Some((kind, log)) if kind % 2 == 0 => changes(log),
        Some((_, inside)) => snapshot_of(inside),
        None => {}
    }
}

/// Changes, each behind its length in two bytes. What is understood means the same once it is written and read again;
/// the log is applied without a panic, and a snapshot of what comes of it brings back exactly that.
fn changes(data: &[u8]) {
    let broker = Broker::new(1, LIMITS);
    let (mut rest, mut offset) = (data, 0);
    while let Some((length, behind)) = rest.split_first_chunk::<2>() {
        let (bytes, behind) = behind.split_at(behind.len().min(u16::from_le_bytes(*length).into()));
        rest = behind;
        let Ok(change) = Change::decode(bytes) else { continue };
        let (mut once, mut twice) = (Vec::new(), Vec::new());
        change.encode(&mut once);
        let again = Change::decode(&once).expect("what was written is read");
        assert_eq!(format!("{again:?}"), format!("{change:?}"));
        again.encode(&mut twice);
        assert_eq!(once, twice);
        if passes_the_door(&change) {
            broker.apply(0, offset, bytes, offset % 2 == 0).expect("it was read before");
            offset += 1;
        }
    }
    brings_back(&broker.snapshot(0, offset));
}

/// The gateway logs no topic that cannot be published to.
fn passes_the_door(change: &Change<'_>) -> bool {
    match change {
        Change::Published(publication) => check_topic(&publication.topic).is_ok(),
        Change::Opened { will: Some(will), .. } => check_topic(&will.topic).is_ok(),
        Change::Commanded(command) => check_topic(&command_topic(&command.device, &command.id)).is_ok(),
        _ => true,
    }
}

/// The inside of a snapshot, with the checksum that no random bytes have: refused, or a state like any other.
fn snapshot_of(inside: &[u8]) {
    let broker = Broker::new(1, LIMITS);
    if let Ok(next) = broker.restore(0, &snapshot::around(inside)) {
        let taken = broker.snapshot(0, next);
        assert_eq!(
            Broker::new(1, LIMITS).restore(0, &taken).expect("a snapshot that was taken can be used"),
            next
        );
    }
}

fn brings_back(snapshot: &[u8]) {
    let broker = Broker::new(1, LIMITS);
    let next = broker.restore(0, snapshot).expect("a snapshot that was taken can be used");
    assert_eq!(broker.snapshot(0, next), snapshot);
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[test]
fn what_the_fuzzer_found_holds() {
    replay::replay("topics", topics);
    replay::replay("sessions", sessions);
}
