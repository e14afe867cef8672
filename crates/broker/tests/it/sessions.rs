use dunlin_broker::{Change, Qos::AtLeastOnce, Qos::AtMostOnce, Qos::ExactlyOnce};

use crate::world::{Open, World, key, lasting, message, seconds, sent, subscription, will, with_will};

/// A world, and a client that hears of all wills.
fn with_a_listener() -> (World, std::sync::Arc<dunlin_broker::Session>) {
    let mut world = World::new();
    let listener = world.live("listener");
    world.subscribe(&listener, "gone", subscription(AtLeastOnce));
    (world, listener)
}

const WILL: [&str; 1] = ["gone will"];
const NOTHING: [&str; 0] = [];

#[test]
fn a_session_gets_what_came_while_its_client_was_away() {
    let mut world = World::new();
    let session = world.open("client", lasting(100));
    world.subscribe(&session, "a", subscription(ExactlyOnce));
    world.close(&session, false);
    for (payload, qos) in [("1", AtLeastOnce), ("2", AtMostOnce), ("3", ExactlyOnce)] {
        world.publish(message("a", payload, qos));
    }
    world.now = seconds(99);
    let again = world.open("client", lasting(100));
    assert_eq!(again.id, session.id);
    assert_eq!(sent(&again, world.now), ["a 1", "a 3"], "QoS 0 does not wait");
}

#[test]
fn a_session_is_over_when_its_time_has_come() {
    let mut world = World::new();
    let session = world.open("client", lasting(100));
    world.subscribe(&session, "a", subscription(AtLeastOnce));
    world.close(&session, false);
    world.pass(seconds(99));
    assert!(world.session("client").is_some());
    world.pass(seconds(100));
    assert!(world.session("client").is_none());
    let again = world.open("client", lasting(100));
    assert_ne!(again.id, session.id);
    assert!(!world.tenant().is_subscribed(&again, "a"));
}

#[test]
fn a_clean_start_ends_the_session_before_and_says_its_will() {
    let (mut world, listener) = with_a_listener();
    let session = world.open("client", with_will(100, will("gone", 50)));
    world.subscribe(&session, "a", subscription(AtLeastOnce));
    world.close(&session, true);
    assert_eq!(sent(&listener, world.now), NOTHING);
    let fresh = world.open("client", Open { clean: true, ..lasting(100) });
    assert_ne!(fresh.id, session.id);
    assert_eq!(sent(&listener, world.now), WILL);
    assert_eq!(world.counts().subscriptions, 1, "only the listener's");
}

#[test]
fn a_will_waits_for_its_delay_and_no_longer_than_the_session() {
    for (expiry, delay, said_at) in [(100, 0, 0), (100, 30, 30), (30, 100, 30), (0, 100, 0)] {
        let (mut world, listener) = with_a_listener();
        let session = world.open("client", with_will(expiry, will("gone", delay)));
        world.close(&session, true);
        if said_at > 0 {
            world.pass(seconds(said_at - 1));
            assert_eq!(sent(&listener, world.now), NOTHING, "expiry {expiry}, delay {delay}");
        }
        world.pass(seconds(said_at));
        assert_eq!(sent(&listener, world.now), WILL, "expiry {expiry}, delay {delay}");
        world.pass(seconds(1_000));
        assert_eq!(sent(&listener, world.now), NOTHING, "said once");
        assert!(world.session("client").is_none());
    }
}

#[test]
fn a_will_is_not_said_after_a_goodbye_or_when_the_client_comes_back() {
    let (mut world, listener) = with_a_listener();
    let session = world.open("client", with_will(100, will("gone", 10)));
    world.close(&session, false);
    world.pass(seconds(50));
    let session = world.open("client", with_will(100, will("gone", 10)));
    world.close(&session, true);
    world.pass(seconds(55));
    world.open("client", lasting(100));
    world.pass(seconds(1_000));
    assert_eq!(sent(&listener, world.now), NOTHING);
    assert!(world.session("client").is_some(), "it is connected");
}

#[test]
fn a_device_that_may_not_publish_any_more_leaves_no_will() {
    for is_there in [true, false] {
        let (mut world, listener) = with_a_listener();
        let session = world.open("client", with_will(100, will("gone", 10)));
        if !is_there {
            world.close(&session, true);
        }
        let key = key("client");
        assert!(world.broker.silence(&key.tenant, "other").is_empty());
        for change in world.broker.silence(&key.tenant, &key.device) {
            world.log(&change);
        }
        if is_there {
            world.close(&session, true);
        }
        world.pass(seconds(1_000));
        assert_eq!(sent(&listener, world.now), NOTHING);
        assert!(world.session("client").is_none(), "it ends as it would have");
    }
}

/// Its client came back while the server was writing down that it had not.
#[test]
fn what_time_brought_too_late_does_not_touch_a_client_that_is_back() {
    let (mut world, listener) = with_a_listener();
    let session = world.open("client", with_will(100, will("gone", 10)));
    world.close(&session, true);
    for late in [seconds(10), seconds(100)] {
        let due = world.broker.due(0, late);
        assert!(!due.is_empty());
        world.now = late;
        world.open("client", with_will(100, will("gone", 10)));
        for change in &due {
            world.log(change);
        }
        assert_eq!(sent(&listener, world.now), NOTHING);
        assert_eq!(world.session("client").map(|s| s.id), Some(session.id));
        if late == seconds(10) {
            world.now = seconds(0);
            world.close(&session, true);
        }
    }
}

#[test]
fn the_first_word_about_the_end_of_a_connection_counts() {
    let (mut world, listener) = with_a_listener();
    let session = world.open("client", with_will(100, will("gone", 0)));
    world.close(&session, false);
    world.now = seconds(60);
    world.close(&session, true);
    assert_eq!(sent(&listener, world.now), NOTHING);
    world.pass(seconds(100));
    assert!(world.session("client").is_none(), "it expires as the first word said");
}

#[test]
fn a_disconnect_may_change_how_long_the_session_lasts() {
    for (expiry_seconds, is_there) in [(Some(0), false), (Some(10), true), (None, true)] {
        let mut world = World::new();
        let session = world.open("client", lasting(100));
        let at = world.now;
        world.log(&Change::Closed {
            session: session.id,
            connection: session.opened_by(),
            at,
            with_will: false,
            expiry_seconds,
        });
        assert_eq!(world.session("client").is_some(), is_there);
        world.pass(seconds(11));
        assert_eq!(world.session("client").is_some(), expiry_seconds.is_none());
    }
}

#[test]
fn sessions_that_a_run_left_open_are_known() {
    let mut world = World::new();
    let (open, closed) = (world.open("open", lasting(100)), world.open("closed", lasting(100)));
    world.close(&closed, false);
    assert!(world.broker.abandoned(0).is_empty(), "one is connected, one is closed");
    let replayed = world.replayed();
    let abandoned: Vec<_> = replayed.broker.abandoned(0).iter().map(|session| session.id).collect();
    assert_eq!(abandoned, [open.id]);
}

#[test]
fn a_repetition_is_known_by_its_packet_id_until_it_is_released() {
    let mut world = World::new();
    let (publisher, listener) = (world.open("publisher", lasting(100)), world.open("listener", lasting(100)));
    world.subscribe(&listener, "a", subscription(ExactlyOnce));
    let mut publish = |payload: &str, packet_id, publisher| {
        let message =
            dunlin_broker::Message { publisher: Some(publisher), ..message("a", payload, ExactlyOnce) };
        world.log_publish(&message, Some(packet_id), &[]);
    };
    publish("1", 7, publisher.id);
    publish("1", 7, publisher.id);
    publish("2", 8, publisher.id);
    publish("other", 7, listener.id);
    assert_eq!(sent(&listener, seconds(0)), ["a 1", "a 2", "a other"]);
    assert_eq!(publisher.held(), 2);
    world.log(&Change::Released { session: publisher.id, packet_id: 7 });
    // Across a restart too.
    let mut world = world.replayed();
    for (payload, packet_id) in [("3", 7), ("2", 8)] {
        let message =
            dunlin_broker::Message { publisher: Some(publisher.id), ..message("a", payload, ExactlyOnce) };
        world.log_publish(&message, Some(packet_id), &[]);
    }
    let all = sent(&world.session("listener").unwrap(), seconds(0));
    assert_eq!(all, ["a 1", "a 2", "a other", "a 3"]);
}

#[test]
fn a_message_that_is_too_old_is_not_sent() {
    let mut world = World::new();
    let session = world.open("client", lasting(100));
    world.subscribe(&session, "a", subscription(AtLeastOnce));
    world.close(&session, false);
    for (payload, expires_at) in [("early", 5), ("late", 50)] {
        let expires_at = Some(seconds(expires_at));
        world.publish(dunlin_broker::Message { expires_at, ..message("a", payload, AtLeastOnce) });
    }
    world.now = seconds(10);
    let session = world.open("client", lasting(100));
    assert_eq!(sent(&session, world.now), ["expired 1", "a late"]);
}

#[test]
fn bytes_that_are_no_change_are_told_apart() {
    for (bytes, says) in [
        (&[][..], "not a change: it is empty"),
        (&[9, 0][..], "a change of version 9, not 2"),
        (&[2, 99][..], "not a change"),
    ] {
        let error = World::new().broker.apply(0, 0, bytes, false).unwrap_err();
        assert!(error.to_string().starts_with(says), "{error}");
    }
}

#[test]
fn a_damaged_snapshot_changes_nothing() {
    let mut world = World::new();
    let session = world.open("client", lasting(100));
    world.subscribe(&session, "a", subscription(AtLeastOnce));
    let good = world.broker.snapshot(0, 2);
    for cut in 0..good.len() {
        let target = World::new();
        assert!(target.broker.restore(0, &good[..cut]).is_err());
        assert_eq!(target.counts().sessions, 0);
    }
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 1;
        assert!(World::new().broker.restore(0, &flipped).is_err(), "byte {at}");
    }
    assert_eq!(World::new().broker.restore(0, &good).unwrap(), 2);
}
