//! Wills.

use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Table;
use crate::check::{CLOCK_SLACK, Ctx, Stop, ensure};
use crate::connection::Connection;
use crate::wire::{Connect, Publish, Value, Will, frame, pair, property, text};

pub(super) fn list(t: &mut Table) {
    t.both("MQTT-3.1.2-8", "MQTT-3.1.2-8", "the will is published when the connection breaks", |ctx| {
        let (client, mut watcher) = willing(ctx, &plain(ctx))?;
        client.drop_dead();
        watcher.receive_payload(b"gone").map(drop)
    });
    t.both(
        "MQTT-3.1.2-8",
        "MQTT-3.1.2-8",
        "the will is published when the server closes the connection for an error",
        |ctx| {
            let (mut client, mut watcher) = willing(ctx, &plain(ctx))?;
            client.send_unchecked(&[0x36, 0x05, 0x00, 0x01, b'a', 0x00, 0x01]);
            client.closed("QoS 3")?;
            watcher.receive_payload(b"gone").map(drop)
        },
    );
    t.both("MQTT-3.1.2-8", "MQTT-3.1.2-8", "the will is published when the keep alive runs out", |ctx| {
        let will = plain(ctx);
        let mut watcher = ctx.subscriber('b', &ctx.topic("will"), 2)?;
        let hello = Connect { keep_alive_seconds: 1, will: Some(will), ..ctx.hello('a') };
        let client = ctx.connect_with(&hello)?;
        let seconds = client.server.number(property::SERVER_KEEP_ALIVE).unwrap_or(1);
        watcher.wait_for(Duration::from_millis(u64::from(seconds) * 1_500) + CLOCK_SLACK);
        watcher.receive_payload(b"gone").map(drop)
    });
    t.both(
        "MQTT-3.1.2-8",
        "MQTT-3.1.2-8",
        "the will is published when the connection is taken over",
        |ctx| {
            let (mut client, mut watcher) = willing(ctx, &plain(ctx))?;
            let _second = ctx.connect('a')?;
            client.closed("taken over")?;
            watcher.receive_payload(b"gone").map(drop)
        },
    );
    t.both("MQTT-3.1.2-10", "MQTT-3.1.2-10", "the will is published once", |ctx| {
        let (client, mut watcher) = willing(ctx, &plain(ctx))?;
        client.drop_dead();
        watcher.receive_payload(b"gone")?;
        ctx.connect('a')?.drop_dead();
        let mut other = ctx.connect('c')?;
        ctx.silent(&mut watcher, &mut other, "second will")
    });
    t.both("MQTT-3.14.4-3", "MQTT-3.14.4-3", "after DISCONNECT the will is not published", |ctx| {
        let (client, mut watcher) = willing(ctx, &plain(ctx))?;
        client.disconnect();
        let mut other = ctx.connect('c')?;
        ctx.silent(&mut watcher, &mut other, "will")
    });
    t.both(
        "MQTT-3.1.2-10",
        "MQTT-3.1.2-10",
        "a will ended by DISCONNECT is not published after a later connection, either",
        |ctx| {
            let (client, mut watcher) = willing(ctx, &plain(ctx))?;
            client.disconnect();
            ctx.connect('a')?.drop_dead();
            let mut other = ctx.connect('c')?;
            ctx.silent(&mut watcher, &mut other, "will of an earlier connection")
        },
    );
    t.v4("MQTT-3.1.2-12", "without will flag nothing is published", |ctx| {
        let mut watcher = ctx.subscriber('b', &ctx.topic("#"), 0)?;
        ctx.connect('a')?.drop_dead();
        let mut other = ctx.connect('c')?;
        ctx.silent(&mut watcher, &mut other, "will")
    });
    t.v5(
        "MQTT-3.1.2-7",
        "the will stands ready while the connection lasts, and is not published then",
        |ctx| {
            let (mut client, mut watcher) = willing(ctx, &plain(ctx))?;
            client.ping()?;
            ctx.silent(&mut watcher, &mut client, "will")?;
            client.drop_dead();
            watcher.receive_payload(b"gone").map(drop)
        },
    );
    t.both("MQTT-3.1.2-9", "MQTT-3.1.2-9", "wills of QoS 0, 1 and 2 come with their QoS", |ctx| {
        for qos in 0..=2 {
            let (client, mut watcher) = willing(ctx, &Will { qos, ..plain(ctx) })?;
            client.drop_dead();
            let message = watcher.receive_payload(b"gone")?;
            ensure(message.qos == qos, format!("QoS {qos}"), watcher.shown(&message))?;
        }
        Ok(())
    });
    t.both("MQTT-3.1.2-16", "MQTT-3.1.2-14", "a will with retain 0 is not retained", |ctx| {
        let (client, mut watcher) = willing(ctx, &plain(ctx))?;
        client.drop_dead();
        watcher.receive_payload(b"gone")?;
        let mut late = ctx.subscriber('c', &ctx.topic("will"), 0)?;
        ctx.silent(&mut late, &mut watcher, "retained will")
    });
    t.both("MQTT-3.1.2-17", "MQTT-3.1.2-15", "a will with retain 1 is retained", |ctx| {
        let topic = ctx.retained_topic("will");
        let (client, mut watcher) = willing(ctx, &Will { retain: true, ..plain(ctx) })?;
        client.drop_dead();
        watcher.receive_payload(b"gone")?;
        let mut late = ctx.subscriber('c', &topic, 0)?;
        let message = late.receive_payload(b"gone")?;
        ensure(message.retain, "RETAIN 1", late.shown(&message))
    });
    t.both("MQTT-3.1.2-8", "MQTT-3.1.2-8", "a will with an empty payload is published", |ctx| {
        let (client, mut watcher) = willing(ctx, &Will { payload: Vec::new(), ..plain(ctx) })?;
        client.drop_dead();
        watcher.receive_payload(b"").map(drop)
    });

    t.v5("MQTT-3.1.2-8", "DISCONNECT 0x04 publishes the will", |ctx| {
        let (mut client, mut watcher) = willing(ctx, &plain(ctx))?;
        client.send(&[0xe0, 0x01, 0x04])?;
        client.drop_dead();
        watcher.receive_payload(b"gone").map(drop)
    });
    t.v5("MQTT-3.1.2-8", "the will is published after Will Delay Interval, not before", |ctx| {
        let (client, mut watcher) = lasting(ctx, 120, 2)?;
        client.drop_dead();
        let since = Instant::now();
        watcher.wait_for(Duration::from_secs(2) + CLOCK_SLACK);
        watcher.receive_payload(b"gone")?;
        let took = since.elapsed();
        ensure(took >= Duration::from_millis(900), "the will after 2 s", format!("the will after {took:?}"))
    });
    t.v5(
        "MQTT-3.1.2-8",
        "the will is published at the end of the session, if that is before Will Delay Interval",
        |ctx| {
            let (client, mut watcher) = lasting(ctx, 1, 60)?;
            client.drop_dead();
            watcher.wait_for(Duration::from_secs(2) + CLOCK_SLACK);
            watcher.receive_payload(b"gone").map(drop)
        },
    );
    t.v5("MQTT-3.1.3-9", "back before Will Delay Interval has passed, the will is not published", |ctx| {
        let (client, mut watcher) = lasting(ctx, 120, 2)?;
        client.drop_dead();
        let hello = ctx.lasting('a');
        let mut back = ctx.connect_with(&hello)?;
        sleep(Duration::from_millis(3_500));
        ctx.silent(&mut watcher, &mut back, "will")
    });
    t.v5("MQTT-3.1.3-10", "a will keeps its user properties in order", |ctx| {
        let order = [("b", "1"), ("a", "2"), ("b", "3")];
        let properties = order.map(|(name, value)| (property::USER_PROPERTY, pair(name, value))).to_vec();
        let (client, mut watcher) = willing(ctx, &Will { properties, ..plain(ctx) })?;
        client.drop_dead();
        let message = watcher.receive_payload(b"gone")?;
        ensure(message.properties.user() == order, format!("{order:?}"), watcher.shown(&message))
    });
    t.v5(
        "MQTT-3.3.2-4",
        "a will keeps its payload format, content type, response topic and correlation data",
        |ctx| {
            let properties = vec![
                (property::PAYLOAD_FORMAT, Value::Byte(1)),
                (property::CONTENT_TYPE, text("type")),
                (property::RESPONSE_TOPIC, text("response")),
                (property::CORRELATION_DATA, Value::Bytes(vec![0, 255])),
            ];
            let will = Will { properties: properties.clone(), ..plain(ctx) };
            let (client, mut watcher) = willing(ctx, &will)?;
            client.drop_dead();
            let message = watcher.receive_payload(b"gone")?;
            let mut have = message.properties.0.clone();
            have.sort_by_key(|(id, _)| *id);
            ensure(have == properties, format!("{properties:?}"), watcher.shown(&message))
        },
    );
    t.v5("MQTT-3.3.2-6", "a will keeps its message expiry interval", |ctx| {
        let properties = vec![(property::MESSAGE_EXPIRY, Value::Long(100))];
        let (client, mut watcher) = willing(ctx, &Will { properties, ..plain(ctx) })?;
        client.drop_dead();
        let message = watcher.receive_payload(b"gone")?;
        let left = message.properties.number(property::MESSAGE_EXPIRY);
        ensure(left.is_some_and(|left| (98..=100).contains(&left)), "98 to 100", watcher.shown(&message))
    });
    t.v5("MQTT-3.14.4-3", "DISCONNECT 0x00 with properties ends the will, too", |ctx| {
        let (mut client, mut watcher) = willing(ctx, &plain(ctx))?;
        client.send(&frame(0xe0, &[0, 0]))?;
        client.drop_dead();
        let mut other = ctx.connect('c')?;
        ctx.silent(&mut watcher, &mut other, "will")
    });
    t.v5("MQTT-3.14.4-3", "DISCONNECT ends a delayed will", |ctx| {
        let (client, mut watcher) = lasting(ctx, 120, 1)?;
        client.disconnect();
        sleep(Duration::from_millis(2_500));
        let mut other = ctx.connect('c')?;
        ctx.silent(&mut watcher, &mut other, "will")
    });
    t.both("MQTT-4.7.1-1", "MQTT-4.7.0-1", "a will with a wildcard in its topic is refused", |ctx| {
        let will = Will { topic: ctx.topic("a/#").into_bytes(), ..plain(ctx) };
        let connect = Connect { will: Some(will), ..ctx.hello('a') };
        ctx.refused_first(&connect.bytes(), "wildcard in the will topic")
    });
    t.v5("MQTT-3.3.1-13", "a retained will comes with RETAIN 1 where Retain As Published is 1", |ctx| {
        let topic = ctx.retained_topic("will");
        let mut watcher = ctx.subscriber('b', &topic, 0x08)?;
        let will = Will { retain: true, ..plain(ctx) };
        ctx.connect_with(&Connect { will: Some(will), ..ctx.hello('a') })?.drop_dead();
        let message: Publish = watcher.receive_payload(b"gone")?;
        ensure(message.retain, "RETAIN 1", watcher.shown(&message))
    });
    t.v5("MQTT-3.1.2-8", "DISCONNECT with an error reason publishes the will", |ctx| {
        let (mut client, mut watcher) = willing(ctx, &plain(ctx))?;
        client.send(&[0xe0, 0x01, 0x80])?;
        client.drop_dead();
        watcher.receive_payload(b"gone").map(drop)
    });
    t.v5("MQTT-3.1.4-3", "a takeover publishes the will unless it is delayed beyond it", |ctx| {
        let (mut client, mut watcher) = lasting(ctx, 120, 60)?;
        let hello = ctx.lasting('a');
        let mut second = ctx.connect_with(&hello)?;
        client.closed("taken over")?;
        ctx.silent(&mut watcher, &mut second, "will whose delay has not passed")
    });
}

fn plain(ctx: &Ctx<'_>) -> Will {
    Will { topic: ctx.topic("will").into_bytes(), payload: b"gone".to_vec(), ..Will::default() }
}

/// A client with a will, and a subscriber of the will's topic.
fn willing(ctx: &Ctx<'_>, will: &Will) -> Result<(Connection, Connection), Stop> {
    let watcher = ctx.subscriber('b', &ctx.topic("will"), 2)?;
    let client = ctx.connect_with(&Connect { will: Some(will.clone()), ..ctx.hello('a') })?;
    Ok((client, watcher))
}

/// A client with a delayed will in a session that lasts, and a subscriber of the will's topic.
fn lasting(
    ctx: &mut Ctx<'_>,
    session_seconds: u32,
    delay_seconds: u32,
) -> Result<(Connection, Connection), Stop> {
    let watcher = ctx.subscriber('b', &ctx.topic("will"), 2)?;
    let properties = vec![(property::WILL_DELAY, Value::Long(delay_seconds))];
    let will = Will { properties, ..plain(ctx) };
    let mut hello = Connect { will: Some(will), ..ctx.lasting('a') };
    hello.properties = vec![(property::SESSION_EXPIRY, Value::Long(session_seconds))];
    Ok((ctx.connect_with(&hello)?, watcher))
}
