use dunlin_broker::{
    Limits, Outgoing, Published,
    Qos::{AtLeastOnce, AtMostOnce, ExactlyOnce},
    Subscribing, Subscription,
};

use crate::world::{Changed, LIMITS, WINDOW, World, lasting, message, seconds, sent, subscription};

#[test]
fn overlapping_subscriptions_bring_one_copy_with_the_highest_qos_and_all_ids() {
    for logged in [false, true] {
        let mut world = World::new();
        let session = if logged { world.open("client", lasting(100)) } else { world.live("client") };
        for (id, (filter, qos)) in
            (1..).zip([("a/+", AtMostOnce), ("a/#", ExactlyOnce), ("+/b", AtLeastOnce), ("c", ExactlyOnce)])
        {
            world.subscribe(&session, filter, Subscription { id: Some(id), ..subscription(qos) });
        }
        world.publish(message("a/b", "x", ExactlyOnce));
        session.look(|outbox| {
            let Some(Outgoing::Publish(delivery)) = outbox.next(WINDOW, seconds(0)) else { panic!() };
            let mut ids = delivery.subscription_ids.to_vec();
            ids.sort_unstable();
            assert_eq!((delivery.qos, &ids[..]), (ExactlyOnce, &[1, 2, 3][..]));
            assert!(outbox.next(WINDOW, seconds(0)).is_none(), "one copy");
        });
    }
}

#[test]
fn the_qos_is_the_lower_one_of_message_and_subscription() {
    let mut world = World::new();
    let session = world.live("client");
    for (granted, published) in
        [(AtMostOnce, ExactlyOnce), (ExactlyOnce, AtMostOnce), (AtLeastOnce, ExactlyOnce)]
    {
        world.subscribe(&session, "a", subscription(granted));
        world.publish(message("a", "x", published));
        session.look(|outbox| {
            let Some(Outgoing::Publish(delivery)) = outbox.next(WINDOW, seconds(0)) else { panic!() };
            assert_eq!(delivery.qos, granted.min(published));
            assert_eq!(delivery.packet_id.is_some(), delivery.qos != AtMostOnce);
        });
    }
}

#[test]
fn no_local_keeps_ones_own_messages_away_and_no_others() {
    let mut world = World::new();
    let (own, other) = (world.live("own"), world.live("other"));
    let no_local = Subscription { no_local: true, ..subscription(AtLeastOnce) };
    world.subscribe(&own, "a/#", no_local);
    world.publish(message("a/1", "own", AtLeastOnce).by(&own));
    world.publish(message("a/1", "other", AtLeastOnce).by(&other));
    assert_eq!(sent(&own, world.now), ["a/1 other"]);
    // Another subscription wants them.
    world.subscribe(&own, "a/1", subscription(AtLeastOnce));
    world.publish(message("a/1", "own", AtLeastOnce).by(&own));
    assert_eq!(sent(&own, world.now).last().unwrap(), "a/1 own");
}

#[test]
fn retain_is_shown_as_published_to_those_who_ask_for_it() {
    let mut world = World::new();
    for (asked, shown) in [(false, false), (true, true)] {
        let session = world.live("client");
        let wanted = Subscription { retain_as_published: asked, ..subscription(AtLeastOnce) };
        world.subscribe(&session, "a", wanted);
        sent(&session, world.now);
        world.publish(message("a", "x", AtMostOnce).retained());
        session.look(|outbox| {
            let Some(Outgoing::Publish(delivery)) = outbox.next(WINDOW, seconds(0)) else { panic!() };
            assert_eq!(delivery.retain, shown);
        });
        world.tenant().end(&session);
    }
}

#[test]
fn only_what_must_survive_goes_by_the_log() {
    let mut world = World::new();
    let live = world.live("live");
    world.subscribe(&live, "#", subscription(ExactlyOnce));
    let will_only = world.open("will", lasting(0));
    world.subscribe(&will_only, "#", subscription(ExactlyOnce));
    assert_eq!(world.publish(message("a", "x", ExactlyOnce)), Published::Delivered(2));
    let lasting = world.open("lasting", lasting(100));
    world.subscribe(&lasting, "a", subscription(ExactlyOnce));
    assert_eq!(world.publish(message("a", "x", AtMostOnce)), Published::Delivered(3));
    let by_log = |published| matches!(published, Published::Log { .. });
    assert!(by_log(world.publish(message("a", "x", AtLeastOnce))));
    assert!(by_log(world.publish(message("b", "x", AtMostOnce).retained())));
    assert_eq!(world.publish(message("c", "x", ExactlyOnce)), Published::Delivered(2));
}

#[test]
fn a_queue_is_bounded_and_what_is_dropped_is_counted() {
    let mut world = World::with(Limits { queue_messages_max: 3, ..LIMITS });
    let (slow, quick) = (world.open("slow", lasting(100)), world.live("quick"));
    world.subscribe(&slow, "a", subscription(AtLeastOnce));
    world.subscribe(&quick, "a", subscription(AtLeastOnce));
    for n in 0..5 {
        world.publish(message("a", &n.to_string(), AtLeastOnce));
        assert_eq!(sent(&quick, world.now), [format!("a {n}")]);
    }
    let counts = world.counts();
    assert_eq!((counts.published, counts.delivered, counts.dropped), (5, 8, 2));
    assert_eq!(sent(&slow, world.now), ["a 0", "a 1", "a 2"]);
}

#[test]
fn a_home_is_woken_once_until_it_looks() {
    let mut world = World::new();
    let session = world.live("client");
    world.subscribe(&session, "a", subscription(AtMostOnce));
    let wakes = world.attach(&session);
    world.publish(message("a", "1", AtMostOnce));
    world.publish(message("a", "2", AtMostOnce));
    assert_eq!(wakes.count(), 1);
    sent(&session, world.now);
    world.publish(message("a", "3", AtMostOnce));
    assert_eq!(wakes.count(), 2);
}

#[test]
fn a_session_has_a_bounded_number_of_subscriptions() {
    let world = &mut World::with(Limits { session_subscriptions_max: 2, ..LIMITS });
    let session = world.live("client");
    let tenant = world.tenant();
    let grants = |filter: &str| {
        tenant.subscribe(&session, [(filter, subscription(AtLeastOnce))], seconds(0))
            == [Subscribing::Granted(AtLeastOnce)]
    };
    assert!(grants("a") && grants("b"));
    assert!(!grants("c"));
    assert!(grants("a"), "one in the place of another one");
    tenant.unsubscribe(&session, ["a"]);
    assert_eq!(tenant.subscriptions_left(&session), 1);
    assert!(grants("c"));
}

#[test]
fn an_ended_session_leaves_no_subscriptions() {
    let mut world = World::new();
    let (live, logged) = (world.live("live"), world.open("logged", lasting(100)));
    for n in 0..50 {
        world.subscribe(&live, &format!("a/{n}/+/#"), subscription(AtLeastOnce));
        world.subscribe(&logged, &format!("$share/g/a/{n}"), subscription(AtLeastOnce));
    }
    assert_eq!(world.counts().subscriptions, 100);
    world.tenant().end(&live);
    world.close(&logged, false);
    world.pass(seconds(100));
    let counts = world.counts();
    assert_eq!((counts.subscriptions, counts.sessions), (0, 0));
    assert_eq!(world.publish(message("a/1", "x", AtLeastOnce)), Published::Delivered(0));
}

/// The bound was lowered between two runs.
#[test]
fn a_start_keeps_subscriptions_beyond_the_bound() {
    let mut world = World::new();
    let session = world.open("client", lasting(100));
    for filter in ["a", "b", "c"] {
        world.subscribe(&session, filter, subscription(AtLeastOnce));
    }
    let lower = Limits { session_subscriptions_max: 1, ..LIMITS };
    let mut replayed = World::with(lower);
    for (offset, bytes) in (0..).zip(&world.log) {
        replayed.broker.apply(0, offset, bytes, false).unwrap();
    }
    let mut restored = World::with(lower);
    let snapshot = world.broker.snapshot(0, world.log.len() as u64);
    restored.broker.restore(0, &snapshot).unwrap();
    for world in [&mut replayed, &mut restored] {
        assert_eq!(world.counts().subscriptions, 3);
        world.publish(message("c", "x", AtLeastOnce));
        assert_eq!(sent(&world.session("client").unwrap(), seconds(0)), ["c x"]);
    }
}
