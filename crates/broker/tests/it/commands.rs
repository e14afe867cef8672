//! Commands: each device its own, until it has them.

use dunlin_broker::{Broker, Change, Command, Qos, Session, command_filter};
use dunlin_model::Timestamp;

use crate::world::{LIMITS, TENANT, World, lasting, seconds, sent, subscription};

pub(crate) fn command<'c>(device: &'c str, id: &'c str, offset: u64, expires_at: Timestamp) -> Change<'c> {
    Change::Commanded(Command {
        partition: 0,
        offset,
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

#[test]
fn a_command_is_for_its_device_alone() {
    let mut world = World::new();
    let (pump, valve, nosy) = (world.live("pump"), world.live("valve"), world.live("nosy"));
    follow(&mut world, &pump, "pump");
    follow(&mut world, &valve, "valve");
    for filter in ["#", "+/+/+", "+/pump/#"] {
        world.subscribe(&nosy, filter, subscription(Qos::AtLeastOnce));
    }
    world.log(&command("pump", "1", 0, seconds(60)));
    assert_eq!(sent(&pump, world.now), ["$commands/pump/1 {}"]);
    assert_eq!((sent(&valve, world.now).len(), sent(&nosy, world.now).len()), (0, 0));
}

#[test]
fn a_command_waits_until_its_device_has_it_or_its_time_is_over() {
    let mut world = World::new();
    for (offset, id) in [(0, "taken"), (1, "waits"), (2, "late")] {
        world.log(&command("pump", id, offset, seconds(if id == "late" { 10 } else { 60 })));
    }
    world.log(&taken("pump", "taken"));
    assert_eq!(world.counts().commands, 2);
    world.pass(seconds(20));
    let pump = world.live("pump");
    follow(&mut world, &pump, "pump");
    assert_eq!(sent(&pump, world.now), ["$commands/pump/waits {}"]);
    world.log(&Change::Passed { at: seconds(600) });
    assert_eq!(world.counts().commands, 0, "what is long over is forgotten");
}

#[test]
fn a_command_that_is_found_twice_in_its_log_is_brought_once() {
    let mut world = World::new();
    let pump = world.live("pump");
    follow(&mut world, &pump, "pump");
    for offset in [0, 1, 0, 1, 2] {
        world.log(&command("pump", &offset.to_string(), offset, seconds(60)));
    }
    assert_eq!(sent(&pump, world.now), ["$commands/pump/0 {}", "$commands/pump/1 {}", "$commands/pump/2 {}"]);
    assert_eq!(world.broker.next_command(0, 0), 3);
}

#[test]
fn what_waits_for_a_device_that_is_away_is_not_queued_again_when_it_subscribes_again() {
    let mut world = World::new();
    let pump = world.open("pump", lasting(1_000));
    follow(&mut world, &pump, "pump");
    world.close(&pump, false);
    world.log(&command("pump", "1", 0, seconds(60)));
    let pump = world.open("pump", lasting(1_000));
    follow(&mut world, &pump, "pump");
    assert_eq!(sent(&pump, world.now), ["$commands/pump/1 {}"]);
}

#[test]
fn commands_and_how_far_they_were_read_survive_a_start() {
    let mut world = World::new();
    for (offset, id) in [(4, "1"), (5, "2")] {
        world.log(&command("pump", id, offset, seconds(60)));
    }
    world.log(&taken("pump", "1"));
    let end = world.log.len() as u64;
    let snapshot = world.broker.snapshot(0, end);
    let from_snapshot = Broker::new(1, LIMITS);
    from_snapshot.restore(0, &snapshot).unwrap();
    for broker in [&world.replayed().broker, &from_snapshot] {
        assert_eq!(broker.snapshot(0, end), snapshot);
        assert_eq!((broker.next_command(0, 0), broker.counts()[TENANT].commands), (6, 1));
    }
}
