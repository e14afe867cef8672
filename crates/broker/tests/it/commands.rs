//! Commands: each device its own, until it has them.

use dunlin_broker::{Broker, Change, Command, Limits, Qos, Session, command_filter};
use dunlin_model::Timestamp;

use crate::world::{LIMITS, TENANT, World, lasting, message, seconds, sent, subscription};

pub(crate) fn command<'c>(device: &'c str, id: &'c str, offset: u64, expires_at: Timestamp) -> Change<'c> {
    command_behind(0, device, id, offset, expires_at)
}

pub(crate) fn command_behind<'c>(
    follows: u64,
    device: &'c str,
    id: &'c str,
    offset: u64,
    expires_at: Timestamp,
) -> Change<'c> {
    Change::Commanded(Command {
        partition: 0,
        offset,
        follows,
        at: seconds(0),
        tenant: TENANT.into(),
        device: device.into(),
        id: id.into(),
        payload: b"{}",
        expires_at,
    })
}

fn taken(device: &'static str, id: &'static str) -> Change<'static> {
    Change::Taken { tenant: TENANT.into(), device: device.into(), id: id.into() }
}

fn follow(world: &mut World, session: &std::sync::Arc<Session>, device: &str) {
    world.subscribe(session, &command_filter(device), subscription(Qos::ExactlyOnce));
}

/// All clients are of the device `d`.
#[test]
fn a_command_is_for_its_device_alone() {
    let mut world = World::new();
    let (pump, nosy) = (world.live("pump"), world.live("nosy"));
    follow(&mut world, &pump, "d");
    for filter in ["#", "+/+/+", "+/d/#"] {
        world.subscribe(&nosy, filter, subscription(Qos::AtLeastOnce));
    }
    world.log(&command("d", "1", 0, seconds(60)));
    world.log(&command("e", "2", 1, seconds(60)));
    assert_eq!(sent(&pump, world.now), ["$commands/d/1 {}"]);
    assert_eq!(sent(&nosy, world.now), [""; 0]);
}

#[test]
fn a_command_waits_until_its_device_has_it_or_its_time_is_over() {
    let mut world = World::new();
    for (offset, id) in [(0, "taken"), (1, "waits"), (2, "late")] {
        world.log(&command("d", id, offset, seconds(if id == "late" { 10 } else { 60 })));
    }
    world.log(&taken("d", "taken"));
    assert_eq!(world.counts().commands, 2);
    world.pass(seconds(20));
    let pump = world.live("pump");
    follow(&mut world, &pump, "d");
    assert_eq!(sent(&pump, world.now), ["$commands/d/waits {}"]);
    world.log(&Change::Passed { at: seconds(600) });
    assert_eq!(world.counts().commands, 0, "what is long over is forgotten");
}

#[test]
fn a_command_that_is_found_twice_in_its_log_is_brought_once() {
    let mut world = World::new();
    let pump = world.live("pump");
    follow(&mut world, &pump, "d");
    for offset in [0, 1, 0, 1, 2] {
        world.log(&command("d", &offset.to_string(), offset, seconds(60)));
    }
    assert_eq!(sent(&pump, world.now), ["$commands/d/0 {}", "$commands/d/1 {}", "$commands/d/2 {}"]);
    assert_eq!(world.broker.next_command(0, 0), 3);
}

#[test]
fn what_an_append_has_left_out_is_not_passed_over() {
    let mut world = World::new();
    let pump = world.live("pump");
    follow(&mut world, &pump, "d");
    world.log(&command("d", "0", 0, seconds(60)));
    // Of three that came together the log holds the last two; then all three again.
    for offset in [2, 3, 1, 2, 3] {
        world.log(&command_behind(offset, "d", &offset.to_string(), offset, seconds(60)));
    }
    let expected: Vec<String> = (0..4).map(|id| format!("$commands/d/{id} {{}}")).collect();
    assert_eq!(sent(&pump, world.now), expected);
}

#[test]
fn a_command_finds_room_where_other_messages_do_not() {
    let mut world = World::with(Limits { queue_messages_max: 2, ..LIMITS });
    let pump = world.open("pump", lasting(1_000));
    follow(&mut world, &pump, "d");
    world.subscribe(&pump, "a", subscription(Qos::AtLeastOnce));
    world.close(&pump, false);
    for payload in ["1", "2", "3"] {
        world.publish(message("a", payload, Qos::AtLeastOnce));
    }
    world.log(&command("d", "1", 0, seconds(60)));
    world.attach(&pump);
    assert_eq!(sent(&pump, world.now), ["a 1", "a 2", "$commands/d/1 {}"]);
}

#[test]
fn commands_whose_time_is_over_do_not_pile_up_for_a_device_that_is_away() {
    let mut world = World::new();
    let pump = world.open("pump", lasting(100_000));
    follow(&mut world, &pump, "d");
    world.close(&pump, false);
    for offset in 0..1_000 {
        world.log(&Change::Commanded(Command {
            partition: 0,
            offset,
            follows: offset,
            tenant: TENANT.into(),
            device: "d".into(),
            id: offset.to_string().into(),
            payload: b"{}",
            at: seconds(offset as i64),
            expires_at: seconds(offset as i64 + 10),
        }));
    }
    world.log(&Change::Passed { at: seconds(1_000) });
    world.log(&Change::Subscribed {
        session: pump.id,
        subscriptions: vec![("a".into(), subscription(Qos::AtLeastOnce))],
        at: seconds(1_000),
    });
    let snapshot = world.broker.snapshot(0, world.log.len() as u64);
    let waiting = snapshot.windows(b"$commands/d/".len()).filter(|w| w == b"$commands/d/").count();
    assert!(waiting < 100, "{waiting} still wait, in the queue and for who comes");
}

#[test]
fn a_subscription_to_the_commands_of_others_brings_nothing() {
    let mut world = World::new();
    let nosy = world.open("nosy", lasting(1_000));
    for filter in ["$commands/#", "$commands/+/+", "$commands/e/+", "$share/g/$commands/d/+"] {
        world.subscribe(&nosy, filter, subscription(Qos::AtLeastOnce));
    }
    world.log(&command("e", "1", 0, seconds(60)));
    world.log(&command("d", "2", 1, seconds(60)));
    assert_eq!(sent(&nosy, world.now), [""; 0]);
}

#[test]
fn a_topic_of_commands_that_was_replaced_is_read_from_its_beginning() {
    let mut world = World::new();
    let pump = world.live("pump");
    follow(&mut world, &pump, "d");
    world.log(&command("d", "1", 700, seconds(60)));
    world.log(&Change::CommandsReplaced { partition: 0, next: 0 });
    world.log(&command("d", "2", 0, seconds(60)));
    assert_eq!(sent(&pump, world.now), ["$commands/d/1 {}", "$commands/d/2 {}"]);
}

#[test]
fn what_waits_for_a_device_that_is_away_is_not_queued_again_when_it_subscribes_again() {
    let mut world = World::new();
    let pump = world.open("pump", lasting(1_000));
    follow(&mut world, &pump, "d");
    world.close(&pump, false);
    world.log(&command("d", "1", 0, seconds(60)));
    let pump = world.open("pump", lasting(1_000));
    follow(&mut world, &pump, "d");
    assert_eq!(sent(&pump, world.now), ["$commands/d/1 {}"]);
}

#[test]
fn commands_and_how_far_they_were_read_survive_a_start() {
    let mut world = World::new();
    for (offset, id) in [(4, "1"), (5, "2")] {
        world.log(&command("d", id, offset, seconds(60)));
    }
    world.log(&taken("d", "1"));
    let end = world.log.len() as u64;
    let snapshot = world.broker.snapshot(0, end);
    let from_snapshot = Broker::new(1, LIMITS);
    from_snapshot.restore(0, &snapshot).unwrap();
    for broker in [&world.replayed().broker, &from_snapshot] {
        assert_eq!(broker.snapshot(0, end), snapshot);
        assert_eq!((broker.next_command(0, 0), broker.counts()[TENANT].commands), (6, 1));
    }
}
