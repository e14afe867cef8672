use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    fuzzing::matches,
    message::Qos,
    tree::tests::{filter, topic},
};

fn message(topic: &str, payload: usize, expires_at: Option<i64>) -> Arc<Message> {
    Arc::new(Message {
        topic: topic.into(),
        payload: Bytes::from(vec![b'x'; payload]),
        qos: Qos::AtMostOnce,
        retain: true,
        expires_at: expires_at.map(Timestamp::from_micros),
        properties: None,
        publisher: None,
        packets: Default::default(),
    })
}

#[derive(Debug, Clone)]
enum Step {
    Set { topic: String, payload: usize, expires_at: Option<i64> },
    Clear { topic: String },
    Expire { now: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (topic(), 1..9usize, prop::option::of(1..20i64))
            .prop_map(|(topic, payload, expires_at)| Step::Set { topic, payload, expires_at }),
        2 => topic().prop_map(|topic| Step::Clear { topic }),
        1 => (0..20i64).prop_map(|now| Step::Expire { now }),
    ]
}

proptest! {
    #[test]
    fn a_filter_finds_the_last_message_of_each_topic(
        steps in vec(step(), 1..60),
        filters in vec(filter(), 1..20),
    ) {
        let mut retained = Retained::default();
        let mut model: BTreeMap<String, Arc<Message>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Set { topic, payload, expires_at } => {
                    let message = message(&topic, payload, expires_at);
                    retained.set(message.clone());
                    model.insert(topic, message);
                }
                Step::Clear { topic } => {
                    retained.clear(&topic);
                    model.remove(&topic);
                }
                Step::Expire { now } => {
                    let now = Timestamp::from_micros(now);
                    retained.expire(now);
                    model.retain(|_, message| !message.is_expired(now));
                }
            }
            prop_assert_eq!(retained.len(), model.len());
            let bytes: usize = model.values().map(|message| message.retained_bytes()).sum();
            prop_assert_eq!(retained.size_bytes(), bytes);
        }
        for filter in &filters {
            let mut found: Vec<&Arc<Message>> = Vec::new();
            retained.matching(filter, &mut |message| found.push(message));
            found.sort_by(|a, b| a.topic.cmp(&b.topic));
            let expected: Vec<_> = model.values().filter(|m| matches(filter, &m.topic)).collect();
            prop_assert_eq!(found.len(), expected.len(), "{}", filter);
            for (found, expected) in found.iter().zip(expected) {
                prop_assert!(Arc::ptr_eq(found, expected));
            }
        }
        for topic in model.keys() {
            retained.clear(topic);
        }
        prop_assert!(retained.root.children.is_empty() && retained.root.message.is_none());
        prop_assert_eq!((retained.len(), retained.size_bytes()), (0, 0));
    }
}
