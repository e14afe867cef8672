use dunlin_broker::{Change, Limits, Published, Qos::AtLeastOnce, RetainHandling, Subscription};

use crate::world::{Changed, LIMITS, World, lasting, message, seconds, sent, subscription, will, with_will};

#[test]
fn a_new_subscription_brings_the_last_message_of_each_topic() {
    let mut world = World::new();
    world.publish(message("a/1", "old", AtLeastOnce).retained());
    world.publish(message("a/1", "new", AtLeastOnce).retained());
    world.publish(message("a/2", "gone", AtLeastOnce).retained());
    world.publish(message("a/2", "", AtLeastOnce).retained());
    world.publish(message("a/3", "late", AtLeastOnce).retained().expires_at(seconds(5)));
    world.publish(message("a/4", "passing", AtLeastOnce));
    world.now = seconds(5);
    let session = world.live("live");
    world.subscribe(&session, "a/#", subscription(AtLeastOnce));
    assert_eq!(sent(&session, world.now), ["a/1 new"]);
}

#[test]
fn retain_handling_and_shares_decide_what_a_subscription_brings() {
    let mut world = World::new();
    world.publish(message("a", "kept", AtLeastOnce).retained());
    let session = world.open("client", lasting(100));
    let with = |retain_handling| Subscription { retain_handling, ..subscription(AtLeastOnce) };
    let mut brings = |filter: &str, handling| {
        world.subscribe(&session, filter, with(handling));
        sent(&session, seconds(0)).len()
    };
    assert_eq!(brings("a", RetainHandling::Never), 0);
    assert_eq!(brings("a", RetainHandling::IfNew), 0);
    assert_eq!(brings("a", RetainHandling::Always), 1);
    assert_eq!(brings("+", RetainHandling::IfNew), 1);
    assert_eq!(brings("$share/g/a", RetainHandling::Always), 0);
}

#[test]
fn the_bounds_hold_for_new_topics_and_for_larger_messages() {
    let one = message("a", &"x".repeat(100), AtLeastOnce).retained_bytes();
    let limits = Limits { retained_messages_max: 3, retained_bytes_max: 2 * one, ..LIMITS };
    let mut world = World::with(limits);
    let mut takes = |topic: &str, bytes: usize| {
        world.publish(message(topic, &"x".repeat(bytes), AtLeastOnce).retained()) != Published::RetainedFull
    };
    assert!(takes("a", 100) && takes("b", 100));
    assert!(!takes("c", 1), "the bytes are used up");
    assert!(!takes("a", 101), "a larger message in the place of another one");
    assert!(takes("a", 50));
    assert!(takes("a", 100));
    assert!(takes("a", 0) && takes("b", 0), "what frees is always taken");
    let small = message("a", "", AtLeastOnce).retained_bytes();
    assert!(2 * small < 2 * one);
    assert!(takes("a", 1) && takes("b", 1));
}

#[test]
fn a_deep_topic_takes_more_of_the_bound_than_a_shallow_one() {
    let shallow = message("a", "x", AtLeastOnce).retained_bytes();
    let deep = "/".repeat(60);
    let takes = |bytes: usize, topic: &str| {
        let mut world = World::with(Limits { retained_bytes_max: bytes, ..LIMITS });
        world.publish(message(topic, "x", AtLeastOnce).retained()) != Published::RetainedFull
    };
    assert!(takes(shallow, "a") && !takes(10 * shallow, &deep) && takes(100 * shallow, &deep));
}

#[test]
fn the_number_of_topics_is_bounded() {
    let mut world = World::with(Limits { retained_messages_max: 2, ..LIMITS });
    let mut takes =
        |topic: &str| world.publish(message(topic, "x", AtLeastOnce).retained()) != Published::RetainedFull;
    assert!(takes("a") && takes("b"));
    assert!(!takes("c"));
    assert!(takes("b"), "one in the place of another one");
}

#[test]
fn a_will_that_finds_no_room_is_given_out_and_not_retained() {
    let mut world = World::with(Limits { retained_messages_max: 1, ..LIMITS });
    world.publish(message("a", "kept", AtLeastOnce).retained());
    let listener = world.live("listener");
    world.subscribe(&listener, "gone", subscription(AtLeastOnce));
    let retained = dunlin_broker::Will { retain: true, ..will("gone", 0) };
    let session = world.open("client", with_will(0, retained));
    world.close(&session, true);
    assert_eq!(sent(&listener, world.now), ["gone will"]);
    assert_eq!(world.counts().retained, 1);
}

/// The change was on its way to the log when expired messages were forgotten.
#[test]
fn what_has_just_expired_is_there_for_an_older_subscription() {
    let mut world = World::new();
    world.publish(message("a", "short", AtLeastOnce).retained().expires_at(seconds(10)));
    world.log(&Change::Passed { at: seconds(11) });
    world.now = seconds(9);
    let session = world.open("client", lasting(100));
    world.subscribe(&session, "a", subscription(AtLeastOnce));
    assert_eq!(sent(&session, world.now), ["a short"]);
    world.log(&Change::Passed { at: seconds(100) });
    assert_eq!(world.counts().retained, 0, "what is long expired is forgotten");
}
