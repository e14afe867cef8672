//! Receive maximum, topic aliases, and the order of messages.

use super::Table;
use crate::check::{Ctx, Outcome, Stop, ensure, not_applicable};
use crate::connection::Connection;
use crate::wire::{self, Packet, Publish, Value, Version, kind, property};

pub(super) fn list(t: &mut Table) {
    // Receive maximum.
    t.v5("MQTT-3.3.4-9", "no more than Receive Maximum messages are unacknowledged", |ctx| {
        let (mut subscriber, mut publisher, topic) = slow_subscriber(ctx, 2)?;
        for payload in ["1", "2", "3", "4"] {
            publisher.publish(&topic, payload.as_bytes(), 1)?;
        }
        subscriber.message("first")?;
        subscriber.message("second")?;
        ctx.silent(&mut subscriber, &mut publisher, "third message")
    });
    t.v5("MQTT-4.9.0-1", "Receive Maximum counts QoS 1 and 2 together", |ctx| {
        let (mut subscriber, mut publisher, topic) = slow_subscriber(ctx, 2)?;
        for (payload, qos) in [("1", 1), ("2", 2), ("3", 1), ("4", 2)] {
            publisher.publish(&topic, payload.as_bytes(), qos)?;
        }
        subscriber.message("first")?;
        subscriber.message("second")?;
        ctx.silent(&mut subscriber, &mut publisher, "third message")
    });
    t.v5("MQTT-4.9.0-2", "each PUBACK lets the next message through", |ctx| {
        let (mut subscriber, mut publisher, topic) = slow_subscriber(ctx, 1)?;
        let payloads = ["1", "2", "3", "4", "5"];
        for payload in payloads {
            publisher.publish(&topic, payload.as_bytes(), 1)?;
        }
        for payload in payloads {
            let message = subscriber.message(payload)?;
            ensure(message.payload == payload.as_bytes(), payload, subscriber.shown(&message))?;
            subscriber.silent("message before PUBACK")?;
            subscriber.send(&wire::ack(kind::PUBACK, message.id))?;
        }
        Ok(())
    });
    t.v5("MQTT-4.9.0-2", "PUBREC does not let the next QoS 2 message through, PUBCOMP does", |ctx| {
        let (mut subscriber, mut publisher, topic) = slow_subscriber(ctx, 1)?;
        publisher.publish(&topic, b"1", 2)?;
        publisher.publish(&topic, b"2", 2)?;
        let first = subscriber.message("first")?;
        subscriber.send(&wire::ack(kind::PUBREC, first.id))?;
        subscriber.acknowledged(kind::PUBREL, first.id)?;
        ctx.silent(&mut subscriber, &mut publisher, "message before PUBCOMP")?;
        subscriber.send(&wire::ack(kind::PUBCOMP, first.id))?;
        subscriber.receive_payload(b"2").map(drop)
    });
    t.v5("MQTT-4.9.0-2", "PUBREC with reason 0x80 lets the next QoS 2 message through", |ctx| {
        let (mut subscriber, mut publisher, topic) = slow_subscriber(ctx, 1)?;
        publisher.publish(&topic, b"1", 2)?;
        publisher.publish(&topic, b"2", 2)?;
        let first = subscriber.message("first")?;
        subscriber.send(&wire::ack_with(kind::PUBREC, first.id, 0x80))?;
        subscriber.receive_payload(b"2").map(drop)
    });
    t.v5("MQTT-3.3.4-10", "answers other than PUBLISH do not wait for Receive Maximum", |ctx| {
        let (mut subscriber, mut publisher, topic) = slow_subscriber(ctx, 1)?;
        publisher.publish(&topic, b"1", 1)?;
        publisher.publish(&topic, b"2", 1)?;
        subscriber.message("first")?;
        subscriber.ping()?;
        subscriber.subscribe(&ctx.topic("b"), 0)?;
        subscriber.publish(&ctx.topic("c"), b"x", 2)
    });
    t.v5("MQTT-4.9.0-3", "what the client sends is processed while its Receive Maximum is used up", |ctx| {
        let (mut subscriber, mut publisher, topic) = slow_subscriber(ctx, 1)?;
        publisher.publish(&topic, b"1", 1)?;
        publisher.publish(&topic, b"2", 1)?;
        subscriber.message("first")?;
        let other = ctx.topic("other");
        publisher.subscribe(&other, 1)?;
        subscriber.publish(&other, b"through", 1)?;
        publisher.receive_payload(b"through").map(drop)
    });
    t.v5(
        "MQTT-4.13.1-1",
        "more QoS 2 messages than the server's Receive Maximum close the connection",
        |ctx| {
            let mut client = ctx.connect('a')?;
            let maximum = client.server_limit(property::RECEIVE_MAXIMUM);
            if maximum > 5_000 {
                return not_applicable(format!("the server's Receive Maximum is {maximum}"));
            }
            for id in 1..=maximum as u16 + 1 {
                client.send_unchecked(&Publish::new(ctx.topic("a"), b"x", 2).id(id).bytes(Version::V5));
            }
            for id in 1..=maximum as u16 {
                client.acknowledged(kind::PUBREC, id)?;
            }
            client.closed("Receive Maximum exceeded").map(drop)
        },
    );

    // Topic aliases.
    t.v5("MQTT-3.3.2-12", "aliases 1 and Topic Alias Maximum stand for their topics", |ctx| {
        let (mut subscriber, mut publisher, maximum) = aliasing(ctx)?;
        for alias in [1, maximum] {
            let topic = ctx.topic(&format!("a/{alias}"));
            publisher.publish_as(aliased(&topic, alias))?;
            publisher.publish_as(aliased("", alias))?;
            for _ in 0..2 {
                let message = subscriber.receive("with the topic of the alias")?;
                ensure(message.topic == topic.as_bytes(), &topic, subscriber.shown(&message))?;
            }
        }
        Ok(())
    });
    t.v5("MQTT-3.3.2-12", "an alias can be given to another topic", |ctx| {
        let (mut subscriber, mut publisher, _) = aliasing(ctx)?;
        let topics = [ctx.topic("a/1"), ctx.topic("a/2")];
        for topic in &topics {
            publisher.publish_as(aliased(topic, 1))?;
        }
        publisher.publish_as(aliased("", 1))?;
        for topic in [&topics[0], &topics[1], &topics[1]] {
            let message = subscriber.receive("with the newest topic of the alias")?;
            ensure(message.topic == topic.as_bytes(), topic, subscriber.shown(&message))?;
        }
        Ok(())
    });
    t.v5("MQTT-3.3.2-8", "Topic Alias 0 closes the connection", |ctx| {
        ctx.refused(&aliased(&ctx.topic("a"), 0).id(1).bytes(Version::V5), "Topic Alias 0")
    });
    t.v5("MQTT-3.3.2-9", "an alias above the server's maximum closes the connection", |ctx| {
        let maximum = ctx.connect('a')?.server_limit(property::TOPIC_ALIAS_MAXIMUM) as u16;
        match maximum.checked_add(1) {
            Some(alias) => {
                ctx.refused(&aliased(&ctx.topic("a"), alias).id(1).bytes(Version::V5), "alias above maximum")
            }
            None => not_applicable("the server takes every alias"),
        }
    });
    t.v5("MQTT-3.3.2-7", "aliases end with their connection", |ctx| {
        let lasting = ctx.lasting('a');
        let mut client = ctx.connect_with(&lasting)?;
        if client.server_limit(property::TOPIC_ALIAS_MAXIMUM) == 0 {
            return not_applicable("the server announced Topic Alias Maximum 0");
        }
        client.publish_as(aliased(&ctx.topic("a"), 1))?;
        client.disconnect();
        let mut client = ctx.connect_with(&lasting)?;
        client.send_unchecked(&aliased("", 1).id(9).bytes(Version::V5));
        client.closed("alias of an earlier connection").map(drop)
    });
    t.v5("MQTT-4.13.1-1", "an alias that stands for nothing closes the connection", |ctx| {
        ctx.refused(&aliased("", 1).id(1).bytes(Version::V5), "unknown alias")
    });
    t.v5("MQTT-3.1.2-27", "without Topic Alias Maximum the server sends no aliases", |ctx| {
        server_aliases(ctx, None)
    });
    t.v5("MQTT-3.1.2-26", "the server's aliases stay within the client's Topic Alias Maximum", |ctx| {
        server_aliases(ctx, Some(2))
    });
    t.v5("MQTT-3.3.2-11", "a publisher's alias is not passed on to subscribers", |ctx| {
        let (mut subscriber, mut publisher, _) = aliasing(ctx)?;
        let topic = ctx.topic("a/1");
        publisher.publish_as(aliased(&topic, 1))?;
        let message = subscriber.receive("without alias")?;
        let plain = message.properties.get(property::TOPIC_ALIAS).is_none();
        ensure(plain && message.topic == topic.as_bytes(), "topic and no alias", subscriber.shown(&message))
    });

    // Order.
    t.both("MQTT-4.6.0-6", "MQTT-4.6.0-5", "100 QoS 0 messages arrive in order", |ctx| in_order(ctx, 0));
    t.both("MQTT-4.6.0-6", "MQTT-4.6.0-5", "100 QoS 1 messages arrive in order", |ctx| in_order(ctx, 1));
    t.both("MQTT-4.6.0-6", "MQTT-4.6.0-5", "100 QoS 2 messages arrive in order", |ctx| in_order(ctx, 2));
    t.both(
        "MQTT-4.6.0-5",
        "MQTT-4.6.0-6",
        "messages of two topics under one wildcard keep each topic's order",
        |ctx| {
            let mut subscriber = ctx.subscriber('a', &ctx.topic("a/+"), 1)?;
            let mut publisher = ctx.connect('b')?;
            for index in 0_u8..20 {
                publisher.publish(&ctx.topic(&format!("a/{}", index % 2)), &[index], 1)?;
            }
            let mut last: [Option<u8>; 2] = [None, None];
            for _ in 0..20 {
                let message = subscriber.receive("20 messages")?;
                let [index] = message.payload[..] else {
                    return ensure(false, "one byte", subscriber.shown(&message));
                };
                let slot = &mut last[usize::from(index % 2)];
                ensure(slot.is_none_or(|before| before < index), "ascending", subscriber.shown(&message))?;
                *slot = Some(index);
            }
            Ok(())
        },
    );
    t.v4("MQTT-4.6.0-1", "QoS 2 messages come again in the order in which they came first", |ctx| {
        let lasting = ctx.lasting('a');
        let mut client = ctx.connect_with(&lasting)?;
        client.subscribe(&ctx.topic("a"), 2)?;
        let mut publisher = ctx.connect('b')?;
        let mut first = Vec::new();
        for index in 0_u8..5 {
            publisher.publish(&ctx.topic("a"), &[index], 2)?;
            first.push(client.message("not acknowledged")?.payload);
        }
        client.drop_dead();
        let mut client = ctx.connect_with(&lasting)?;
        first.iter().try_for_each(|payload| client.receive_payload(payload).map(drop))
    });
    t.v4("MQTT-4.6.0-4", "PUBRELs come in the order of the PUBRECs", |ctx| {
        let mut client = ctx.subscriber('a', &ctx.topic("a"), 2)?;
        let mut publisher = ctx.connect('b')?;
        let mut ids = Vec::new();
        for index in 0_u8..5 {
            publisher.publish(&ctx.topic("a"), &[index], 2)?;
            ids.push(client.message("not acknowledged")?.id);
        }
        let pubrecs: Vec<u8> = ids.iter().flat_map(|id| wire::ack(kind::PUBREC, *id)).collect();
        client.send(&pubrecs)?;
        for due in ids {
            let came = client.next("PUBREL")?;
            let good = matches!(came.packet, Packet::Ack { kind: kind::PUBREL, id, .. } if id == due);
            ensure(good, format!("PUBREL {due}"), came.to_string())?;
        }
        Ok(())
    });
    t.v4("MQTT-4.6.0-2", "PUBACKs come in the order of the PUBLISHes", |ctx| {
        acks_in_order(ctx, 1, kind::PUBACK)
    });
    t.v4("MQTT-4.6.0-3", "PUBRECs come in the order of the PUBLISHes", |ctx| {
        acks_in_order(ctx, 2, kind::PUBREC)
    });
}

/// A subscriber with a Receive Maximum, a publisher, and the topic between them.
fn slow_subscriber(ctx: &Ctx<'_>, maximum: u16) -> Result<(Connection, Connection, String), Stop> {
    let topic = ctx.topic("a");
    let hello = ctx.hello('a').with(property::RECEIVE_MAXIMUM, Value::Short(maximum));
    let mut subscriber = ctx.connect_with(&hello)?;
    subscriber.subscribe(&topic, 2)?;
    Ok((subscriber, ctx.connect('b')?, topic))
}

/// A subscriber of a/+ and a publisher that may use aliases up to the number that comes with them.
fn aliasing(ctx: &Ctx<'_>) -> Result<(Connection, Connection, u16), Stop> {
    let subscriber = ctx.subscriber('a', &ctx.topic("a/+"), 1)?;
    let publisher = ctx.connect('b')?;
    match publisher.server_limit(property::TOPIC_ALIAS_MAXIMUM) as u16 {
        0 => not_applicable("the server announced Topic Alias Maximum 0"),
        maximum => Ok((subscriber, publisher, maximum)),
    }
}

fn aliased(topic: &str, alias: u16) -> Publish {
    Publish::new(topic, b"x", 1).with(property::TOPIC_ALIAS, Value::Short(alias))
}

fn server_aliases(ctx: &mut Ctx<'_>, maximum: Option<u16>) -> Outcome {
    let mut hello = ctx.hello('a');
    if let Some(maximum) = maximum {
        hello = hello.with(property::TOPIC_ALIAS_MAXIMUM, Value::Short(maximum));
    }
    let mut subscriber = ctx.connect_with(&hello)?;
    subscriber.subscribe(&ctx.topic("a/+"), 0)?;
    let mut publisher = ctx.connect('b')?;
    for index in 0..12 {
        publisher.publish(&ctx.topic(&format!("a/{}", index % 4)), b"x", 0)?;
    }
    for _ in 0..12 {
        let message = subscriber.receive("12 messages")?;
        let alias = message.properties.number(property::TOPIC_ALIAS);
        let within = alias.is_none_or(|alias| (1..=u32::from(maximum.unwrap_or(0))).contains(&alias));
        ensure(within, format!("alias within {maximum:?}"), subscriber.shown(&message))?;
    }
    Ok(())
}

fn in_order(ctx: &mut Ctx<'_>, qos: u8) -> Outcome {
    let topic = ctx.topic("a");
    let mut subscriber = ctx.subscriber('a', &topic, qos)?;
    let mut publisher = ctx.connect('b')?;
    // Before the next is sent, the last is received: a broker may drop QoS 0, or what exceeds its queues.
    for block in 0_u8..10 {
        for index in 0_u8..10 {
            publisher.publish(&topic, &[block * 10 + index], qos)?;
        }
        for index in 0_u8..10 {
            subscriber.receive_payload(&[block * 10 + index])?;
        }
    }
    Ok(())
}

fn acks_in_order(ctx: &mut Ctx<'_>, qos: u8, kind: u8) -> Outcome {
    let mut client = ctx.connect('a')?;
    let ids = [5_u16, 3, 9, 1, 7, 2];
    let packets: Vec<u8> = ids
        .iter()
        .flat_map(|id| Publish::new(ctx.topic("a"), b"x", qos).id(*id).bytes(ctx.version))
        .collect();
    client.send(&packets)?;
    for due in ids {
        let came = client.next("an acknowledgement")?;
        let good = matches!(came.packet, Packet::Ack { kind: have, id, .. } if have == kind && id == due);
        ensure(good, format!("{} {due}", wire::name(kind)), came.to_string())?;
    }
    Ok(())
}
