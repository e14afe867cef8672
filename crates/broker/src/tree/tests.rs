use std::collections::BTreeSet;

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::{
    fuzzing::matches,
    message::Qos,
    session::{RetainHandling, SessionKey},
};

pub(crate) fn topic() -> impl Strategy<Value = String> {
    let level = select(vec!["", "a", "b", "$s"]);
    vec(level, 1..5).prop_map(|levels| levels.join("/")).prop_filter("not empty", |topic| !topic.is_empty())
}

pub(crate) fn filter() -> impl Strategy<Value = String> {
    let level = select(vec!["", "a", "b", "$s", "+"]);
    let path = (vec(level, 0..4), select(vec!["", "a", "+", "#", "#"]));
    path.prop_map(|(mut levels, last)| {
        levels.push(last);
        levels.join("/")
    })
    .prop_filter("not empty", |filter| !filter.is_empty())
}

fn session(number: u64) -> Arc<Session> {
    let key = SessionKey { tenant: "t".into(), device: "d".into(), client_id: number.to_string().into() };
    Session::live(SessionId::live(number), key)
}

fn subscription(id: u32) -> Subscription {
    Subscription {
        qos: Qos::AtMostOnce,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Never,
        id: Some(id),
    }
}

/// Everybody that `topic` reaches, with the id of the subscription.
fn reached(tree: &Tree, topic: &str) -> BTreeSet<(SessionId, u32)> {
    let mut all = BTreeSet::new();
    tree.visit(topic, &mut |leaf| {
        let members = leaf.groups().iter().flat_map(|group| group.members.values());
        for subscriber in leaf.subscribers.values().chain(members) {
            let id = subscriber.subscription.id.expect("every test subscription has one");
            assert!(all.insert((subscriber.session.id, id)), "shown twice for {topic}");
        }
    });
    all
}

fn has_no_empty_nodes(node: &Node) -> bool {
    let children = node.children.values().chain(&node.any_level);
    children.fold(true, |good, child| good && !child.is_empty() && has_no_empty_nodes(child))
}

#[derive(Debug, Clone)]
enum Step {
    Insert { filter: String, group: Option<&'static str>, session: u64 },
    Remove { filter: String, group: Option<&'static str>, session: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = (filter(), prop::option::of(select(vec!["g", "h"])), 0..3u64);
    let step = (who, prop::bool::weighted(0.7)).prop_map(|((filter, group, session), insert)| match insert {
        true => Step::Insert { filter, group, session },
        false => Step::Remove { filter, group, session },
    });
    vec(step, 1..60)
}

proptest! {
    #[test]
    fn a_topic_reaches_those_whose_filter_matches(steps in steps(), topics in vec(topic(), 1..20)) {
        let mut tree = Tree::default();
        let mut model: Vec<(String, Option<&str>, u64, u32)> = Vec::new();
        for (id, step) in (0u32..).zip(steps) {
            match step {
                Step::Insert { filter, group, session: n } => {
                    let known = model.iter().position(|(f, g, s, _)| (f, *g, *s) == (&filter, group, n));
                    let is_new =
                        tree.insert(Filter { group, path: &filter }, session(n), subscription(id));
                    prop_assert_eq!(is_new, known.is_none());
                    known.map(|at| model.remove(at));
                    model.push((filter, group, n, id));
                }
                Step::Remove { filter, group, session: n } => {
                    let known = model.iter().position(|(f, g, s, _)| (f, *g, *s) == (&filter, group, n));
                    let was_there = tree.remove(Filter { group, path: &filter }, SessionId::live(n));
                    prop_assert_eq!(was_there, known.is_some());
                    known.map(|at| model.remove(at));
                }
            }
            prop_assert!(has_no_empty_nodes(&tree.root));
        }
        for topic in &topics {
            let expected: BTreeSet<_> = model
                .iter()
                .filter(|(filter, ..)| matches(filter, topic))
                .map(|(_, _, session, id)| (SessionId::live(*session), *id))
                .collect();
            prop_assert_eq!(reached(&tree, topic), expected, "{}", topic);
        }
        for (filter, group, n, _) in &model {
            let removed = tree.remove(Filter { group: *group, path: filter }, SessionId::live(*n));
            prop_assert!(removed);
        }
        prop_assert!(tree.root.is_empty());
    }
}

#[test]
fn the_examples_of_the_specification() {
    let cases = [
        ("sport/tennis/player1/#", "sport/tennis/player1", true),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
        ("sport/#", "sport", true),
        ("sport/tennis/+", "sport/tennis/player1/ranking", false),
        ("sport/+", "sport", false),
        ("sport/+", "sport/", true),
        ("+/+", "/finance", true),
        ("/+", "/finance", true),
        ("+", "/finance", false),
        ("#", "$SYS/monitor", false),
        ("+/monitor/Clients", "$SYS/monitor/Clients", false),
        ("$SYS/#", "$SYS/monitor/Clients", true),
        ("$SYS/monitor/+", "$SYS/monitor/Clients", true),
        ("ACCOUNTS", "Accounts", false),
    ];
    for (filter, topic, expected) in cases {
        let mut tree = Tree::default();
        tree.insert(Filter { group: None, path: filter }, session(1), subscription(1));
        assert_eq!(!reached(&tree, topic).is_empty(), expected, "{filter} and {topic}");
        assert_eq!(matches(filter, topic), expected, "the naive matcher: {filter} and {topic}");
    }
}

#[test]
fn ten_thousand_subscriptions_leave_nothing() {
    let mut tree = Tree::default();
    let filters: Vec<String> = (0..10_000).map(|n| format!("a/{}/+/{n}/#", n % 100)).collect();
    for path in &filters {
        assert!(tree.insert(Filter { group: None, path }, session(1), subscription(1)));
    }
    for path in &filters {
        assert!(tree.remove(Filter { group: None, path }, SessionId::live(1)));
    }
    assert!(tree.root.is_empty());
}
