//! Retained messages.

use std::thread::sleep;
use std::time::Duration;

use super::Table;
use crate::check::{Ctx, Outcome, Stop, ensure, not_applicable};
use crate::connection::Connection;
use crate::wire::{Publish, Value, pair, property, text};

const RETAIN_AS_PUBLISHED: u8 = 0x08;
const ONLY_IF_NEW: u8 = 0x10;
const NEVER: u8 = 0x20;

pub(super) fn list(t: &mut Table) {
    for_each_qos(t);
    t.both("MQTT-3.3.1-5", "MQTT-3.3.1-5", "a newer retained message replaces the older", |ctx| {
        let (topic, mut publisher) = retained(ctx, b"old", 1)?;
        publisher.publish_as(Publish::new(&topic, b"new", 1).retained())?;
        let mut client = ctx.subscriber('a', &topic, 1)?;
        client.receive_payload(b"new")?;
        client.silent("older retained message")
    });
    t.v4("MQTT-3.3.1-7", "a QoS 0 retained message ends the one before", |ctx| {
        let (topic, mut publisher) = retained(ctx, b"old", 1)?;
        publisher.publish_as(Publish::new(&topic, b"new", 0).retained())?;
        publisher.publish(&ctx.topic("behind"), b"it has come", 1)?;
        let mut client = ctx.subscriber('a', &topic, 1)?;
        client.publish(&topic, b"live", 1)?;
        let first = client.receive("the new message, or none")?;
        ensure(first.payload != b"old", "not the old message", client.shown(&first))
    });
    t.both(
        "MQTT-3.3.1-6",
        "MQTT-3.3.1-9",
        "a new wildcard subscription gets each matching retained message",
        |ctx| {
            let topics = [ctx.retained_topic("a/1"), ctx.retained_topic("a/2/3"), ctx.retained_topic("b")];
            let mut publisher = publisher(ctx)?;
            for topic in &topics {
                publisher.publish_as(Publish::new(topic, topic, 1).retained())?;
            }
            let mut client = ctx.subscriber('a', &ctx.topic("a/#"), 1)?;
            let mut got = [client.receive("first")?.payload, client.receive("second")?.payload];
            got.sort_unstable();
            ensure(
                got[0] == topics[0].as_bytes() && got[1] == topics[1].as_bytes(),
                "a/1 and a/2/3",
                format!("{got:?}"),
            )?;
            client.silent("retained message of another topic")
        },
    );
    t.both("MQTT-3.3.1-8", "MQTT-3.3.1-9", "sent for a new subscription, RETAIN is 1", |ctx| {
        let (topic, _) = retained(ctx, b"kept", 1)?;
        let mut client = ctx.subscriber('a', &topic, 1)?;
        let message = client.receive_payload(b"kept")?;
        ensure(message.retain && !message.dup, "RETAIN 1, DUP 0", client.shown(&message))
    });
    t.v4("MQTT-3.3.1-9", "sent to an established subscription, RETAIN is 0", |ctx| {
        let topic = ctx.retained_topic("a");
        let mut client = ctx.subscriber('a', &topic, 1)?;
        publisher(ctx)?.publish_as(Publish::new(&topic, b"live", 1).retained())?;
        let message = client.receive_payload(b"live")?;
        ensure(!message.retain, "RETAIN 0", client.shown(&message))
    });
    t.both(
        "MQTT-3.3.1-10",
        "MQTT-3.3.1-6",
        "an empty retained message removes the retained message",
        |ctx| {
            let (topic, mut publisher) = retained(ctx, b"kept", 1)?;
            publisher.publish_as(Publish::new(&topic, b"", 1).retained())?;
            let mut client = ctx.subscriber('a', &topic, 1)?;
            ctx.silent(&mut client, &mut publisher, "retained message")
        },
    );
    t.both(
        "MQTT-3.3.1-10",
        "MQTT-3.3.1-6",
        "an empty retained message goes to subscribers like any other",
        |ctx| {
            let (topic, mut publisher) = retained(ctx, b"kept", 1)?;
            let mut client = ctx.subscriber('a', &topic, 1)?;
            client.receive_payload(b"kept")?;
            publisher.publish_as(Publish::new(&topic, b"", 1).retained())?;
            client.receive_payload(b"").map(drop)
        },
    );
    t.both("MQTT-3.3.1-11", "MQTT-3.3.1-7", "an empty retained message is not retained itself", |ctx| {
        let topic = ctx.retained_topic("a");
        let mut publisher = publisher(ctx)?;
        publisher.publish_as(Publish::new(&topic, b"", 1).retained())?;
        let mut client = ctx.subscriber('a', &topic, 1)?;
        ctx.silent(&mut client, &mut publisher, "empty retained message")
    });
    t.both(
        "MQTT-3.3.1-12",
        "MQTT-3.3.1-8",
        "a message with RETAIN 0 neither stores, replaces nor removes",
        |ctx| {
            let (topic, mut publisher) = retained(ctx, b"kept", 1)?;
            publisher.publish(&topic, b"live", 1)?;
            publisher.publish(&topic, b"", 1)?;
            ctx.subscriber('a', &topic, 1)?.receive_payload(b"kept")?;
            let other = ctx.topic("other");
            publisher.publish(&other, b"live", 1)?;
            let mut client = ctx.subscriber('b', &other, 1)?;
            ctx.silent(&mut client, &mut publisher, "message that was not retained")
        },
    );
    t.v4("MQTT-3.1.2-7", "a retained message outlives the session of its publisher", |ctx| {
        let (topic, publisher) = retained(ctx, b"kept", 1)?;
        publisher.disconnect();
        ctx.connect('r')?.disconnect();
        ctx.subscriber('a', &topic, 1)?.receive_payload(b"kept").map(drop)
    });
    t.both("MQTT-3.8.4-6", "MQTT-3.8.4-8", "a retained QoS 2 message comes at the QoS granted", |ctx| {
        let (topic, _) = retained(ctx, b"kept", 2)?;
        for (role, qos) in [('a', 0), ('b', 1), ('c', 2)] {
            let mut client = ctx.subscriber(role, &topic, qos)?;
            let message = client.receive_payload(b"kept")?;
            ensure(message.qos == qos, format!("QoS {qos}"), client.shown(&message))?;
        }
        Ok(())
    });
    t.v5("MQTT-3.8.4-4", "Retain Handling 0: a renewed subscription gets retained messages again", |ctx| {
        handling(ctx, 0, true, true)
    });
    t.v5(
        "MQTT-3.3.1-10",
        "Retain Handling 1: a new subscription gets retained messages, a renewed one none",
        |ctx| handling(ctx, ONLY_IF_NEW, true, false),
    );
    t.v5("MQTT-3.3.1-11", "Retain Handling 2: no subscription gets retained messages", |ctx| {
        handling(ctx, NEVER, false, false)
    });
    t.v5("MQTT-3.3.1-13", "Retain As Published 1: a retained message comes with RETAIN 1", |ctx| {
        let (topic, _) = retained(ctx, b"kept", 1)?;
        let mut client = ctx.subscriber('a', &topic, 1 | RETAIN_AS_PUBLISHED)?;
        let message = client.receive_payload(b"kept")?;
        ensure(message.retain, "RETAIN 1", client.shown(&message))
    });
    t.v5("MQTT-3.3.2-17", "a retained message keeps its properties", |ctx| {
        let topic = ctx.retained_topic("a");
        let publish = Publish::new(&topic, b"kept", 1)
            .retained()
            .with(property::CONTENT_TYPE, text("type"))
            .with(property::USER_PROPERTY, pair("k", "v"));
        publisher(ctx)?.publish_as(publish)?;
        let mut client = ctx.subscriber('a', &topic, 1)?;
        let message = client.receive_payload(b"kept")?;
        let same = message.properties.get(property::CONTENT_TYPE) == Some(&text("type"))
            && message.properties.user() == [("k", "v")];
        ensure(same, "content type and user property", client.shown(&message))
    });
    t.v5("MQTT-3.3.2-5", "an expired retained message is not sent to new subscriptions", |ctx| {
        let topic = ctx.retained_topic("a");
        let mut publisher = publisher(ctx)?;
        let publish = Publish::new(&topic, b"short", 1).retained();
        publisher.publish_as(publish.with(property::MESSAGE_EXPIRY, Value::Long(1)))?;
        sleep(Duration::from_millis(2_100));
        let mut client = ctx.subscriber('a', &topic, 1)?;
        ctx.silent(&mut client, &mut publisher, "expired retained message")
    });
    t.v5("MQTT-3.3.2-6", "time as a retained message is taken off the Message Expiry Interval", |ctx| {
        let topic = ctx.retained_topic("a");
        let publish = Publish::new(&topic, b"kept", 1).retained();
        publisher(ctx)?.publish_as(publish.with(property::MESSAGE_EXPIRY, Value::Long(100)))?;
        sleep(Duration::from_millis(2_100));
        let mut client = ctx.subscriber('a', &topic, 1)?;
        let message = client.receive_payload(b"kept")?;
        let left = message.properties.number(property::MESSAGE_EXPIRY);
        ensure(
            left.is_some_and(|left| (90..=98).contains(&left)),
            "98 or little less",
            client.shown(&message),
        )
    });
}

fn for_each_qos(t: &mut Table) {
    t.both("MQTT-3.3.1-5", "MQTT-3.3.1-5", "a retained QoS 1 message is stored with its QoS", |ctx| {
        stored(ctx, 1)
    });
    t.both("MQTT-3.3.1-5", "MQTT-3.3.1-5", "a retained QoS 2 message is stored with its QoS", |ctx| {
        stored(ctx, 2)
    });
}

fn publisher(ctx: &Ctx<'_>) -> Result<Connection, Stop> {
    let publisher = ctx.connect('r')?;
    if ctx.is_v5() && publisher.server_limit(property::RETAIN_AVAILABLE) == 0 {
        return not_applicable("the server announced Retain Available=0");
    }
    Ok(publisher)
}

fn retained(ctx: &mut Ctx<'_>, payload: &[u8], qos: u8) -> Result<(String, Connection), Stop> {
    let topic = ctx.retained_topic("a");
    let mut publisher = publisher(ctx)?;
    publisher.publish_as(Publish::new(&topic, payload, qos).retained())?;
    Ok((topic, publisher))
}

fn stored(ctx: &mut Ctx<'_>, qos: u8) -> Outcome {
    let (topic, _) = retained(ctx, b"kept", qos)?;
    let mut client = ctx.subscriber('a', &topic, 2)?;
    let message = client.receive_payload(b"kept")?;
    ensure(message.qos == qos, format!("QoS {qos}"), client.shown(&message))
}

fn handling(ctx: &mut Ctx<'_>, options: u8, at_first: bool, again: bool) -> Outcome {
    let (topic, mut publisher) = retained(ctx, b"kept", 1)?;
    let mut client = ctx.connect('a')?;
    for due in [at_first, again] {
        client.subscribe(&topic, 1 | options)?;
        if due {
            client.receive_payload(b"kept")?;
        } else {
            ctx.silent(&mut client, &mut publisher, "retained message")?;
        }
    }
    Ok(())
}
