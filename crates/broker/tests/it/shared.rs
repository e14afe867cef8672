use std::collections::BTreeMap;

use dunlin_broker::{Published, Qos::AtLeastOnce, Session};

use crate::world::{World, lasting, message, seconds, sent, subscription, will, with_will};

const SHARED: &str = "$share/g/a";

fn counts(sessions: &[&Session]) -> Vec<usize> {
    sessions.iter().map(|session| sent(session, seconds(0)).len()).collect()
}

#[test]
fn each_message_goes_to_one_member_and_all_get_their_part() {
    let mut world = World::new();
    let members: Vec<_> = (0..3).map(|n| world.live(&n.to_string())).collect();
    for member in &members {
        world.subscribe(member, SHARED, subscription(AtLeastOnce));
    }
    for n in 0..300 {
        world.publish(message("a", &n.to_string(), AtLeastOnce));
    }
    let mut all: BTreeMap<String, usize> = BTreeMap::new();
    for member in &members {
        let got = sent(member, world.now);
        assert_eq!(got.len(), 100);
        got.into_iter().for_each(|message| *all.entry(message).or_default() += 1);
    }
    assert_eq!((all.len(), all.values().max()), (300, Some(&1)));
}

#[test]
fn groups_and_plain_subscriptions_each_get_their_own_copy() {
    let mut world = World::new();
    let session = world.live("client");
    for filter in ["a", SHARED, "$share/h/a", "$share/g/+"] {
        world.subscribe(&session, filter, subscription(AtLeastOnce));
    }
    world.publish(message("a", "x", AtLeastOnce));
    assert_eq!(sent(&session, world.now).len(), 4);
}

#[test]
fn members_that_are_there_are_preferred() {
    let mut world = World::new();
    let (here, away) = (world.open("here", lasting(100)), world.open("away", lasting(100)));
    for member in [&here, &away] {
        world.subscribe(member, SHARED, subscription(AtLeastOnce));
    }
    world.close(&away, false);
    for n in 0..10 {
        world.publish(message("a", &n.to_string(), AtLeastOnce));
    }
    assert_eq!(counts(&[&here, &away]), [10, 0]);
    world.close(&here, false);
    for n in 0..10 {
        world.publish(message("a", &n.to_string(), AtLeastOnce));
    }
    world.attach(&away);
    world.attach(&here);
    let got = counts(&[&here, &away]);
    assert_eq!(got.iter().sum::<usize>(), 20, "nobody was there, and nothing is lost: {got:?}");
}

#[test]
fn who_was_chosen_gets_the_message_also_after_a_restart() {
    let mut world = World::new();
    let members = [world.open("0", lasting(100)), world.open("1", lasting(100)), world.live("2")];
    for member in &members {
        world.subscribe(member, SHARED, subscription(AtLeastOnce));
    }
    for n in 0..9 {
        // Retained, so that all of them go by the log.
        let published = world
            .publish(dunlin_broker::Message { retain: true, ..message("a", &n.to_string(), AtLeastOnce) });
        assert!(matches!(published, Published::Log { .. }));
    }
    let expected: Vec<_> = members[..2].iter().map(|member| sent(member, world.now)).collect();
    assert_eq!((expected[0].len(), expected[1].len()), (3, 3));
    let replayed = world.replayed();
    for (client, expected) in ["0", "1"].into_iter().zip(expected) {
        assert_eq!(sent(&replayed.session(client).unwrap(), world.now), expected);
    }
}

/// Who gets it must not depend on which connections there were: numbers, and with them packet ids, would differ.
#[test]
fn a_will_goes_to_the_same_member_after_a_restart() {
    for n in 0..20 {
        let mut world = World::new();
        let members = [world.open("0", lasting(100)), world.open("1", lasting(100)), world.live("2")];
        for member in &members {
            world.subscribe(member, SHARED, subscription(AtLeastOnce));
        }
        if n % 3 == 0 {
            world.close(&members[0], false);
        }
        world.now = seconds(n);
        let dying = world.open("dying", with_will(0, will("a", 0)));
        world.close(&dying, true);
        world.attach(&members[0]);
        let got = counts(&[&members[0], &members[1]]);
        assert_eq!(got.iter().sum::<usize>(), 1, "one of those that outlive their connections");
        assert!(n % 3 != 0 || got[1] == 1, "one that is there is preferred");
        let replayed = world.replayed();
        let again = [replayed.session("0").unwrap(), replayed.session("1").unwrap()];
        assert_eq!(counts(&[&again[0], &again[1]]), got, "at {n}");
    }
}

/// Each copy has a number, and an acknowledgement in the log names it.
#[test]
fn copies_for_one_member_of_several_groups_come_in_one_order() {
    for groups in [["g", "h", "i"], ["i", "h", "g"], ["h", "i", "g"]] {
        let mut world = World::new();
        let session = world.open("client", lasting(100));
        for (id, group) in (1..).zip(groups) {
            let wanted = dunlin_broker::Subscription { id: Some(id), ..subscription(AtLeastOnce) };
            world.subscribe(&session, &format!("$share/{group}/a"), wanted);
        }
        world.publish(message("a", "x", AtLeastOnce));
        let order = session.look(|outbox| {
            let mut order = Vec::new();
            while let Some(dunlin_broker::Outgoing::Publish(copy)) = outbox.next(9, seconds(0)) {
                order.push(groups[copy.subscription_ids[0] as usize - 1]);
            }
            order
        });
        assert_eq!(order, ["g", "h", "i"]);
    }
}

#[test]
fn a_member_that_leaves_gets_nothing_more() {
    let mut world = World::new();
    let (stays, leaves) = (world.live("stays"), world.live("leaves"));
    for member in [&stays, &leaves] {
        world.subscribe(member, SHARED, subscription(AtLeastOnce));
    }
    world.unsubscribe(&leaves, SHARED);
    for n in 0..4 {
        world.publish(message("a", &n.to_string(), AtLeastOnce));
    }
    assert_eq!(counts(&[&stays, &leaves]), [4, 0]);
    world.unsubscribe(&stays, SHARED);
    assert_eq!(world.publish(message("a", "x", AtLeastOnce)), Published::Delivered(0));
    assert_eq!(world.counts().subscriptions, 0);
}
