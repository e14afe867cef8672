//! PUBLISH, its acknowledgements and its properties.

use std::thread::sleep;
use std::time::Duration;

use super::Table;
use crate::check::{Ctx, Outcome, Stop, ensure, fail, not_applicable};
use crate::connection::Connection;
use crate::wire::{self, Publish, Value, Version, frame, kind, pair, property, put_bytes, text};

pub(super) fn list(t: &mut Table) {
    // Fixed header.
    t.both(
        "MQTT-3.3.1-2",
        "MQTT-3.3.1-2",
        "a QoS 1 message sent with DUP comes to a QoS 0 subscriber with DUP 0",
        |ctx| dup_is_not_passed_on(ctx, 0),
    );
    t.both("MQTT-3.3.1-3", "MQTT-3.3.1-3", "DUP of the publisher is not passed on at QoS 1", |ctx| {
        dup_is_not_passed_on(ctx, 1)
    });
    t.both("MQTT-3.3.1-3", "MQTT-3.3.1-3", "DUP of the publisher is not passed on at QoS 2", |ctx| {
        dup_is_not_passed_on(ctx, 2)
    });
    t.both("MQTT-3.3.1-4", "MQTT-3.3.1-4", "PUBLISH with QoS 3 closes the connection", |ctx| {
        ctx.refused(&Publish::new(ctx.topic("a"), b"x", 3).id(1).bytes(ctx.version), "QoS 3")
    });

    // Topic.
    t.both("MQTT-3.3.2-1", "MQTT-3.3.2-1", "topic name that is not UTF-8 closes the connection", |ctx| {
        let topic = [ctx.topic("a").as_bytes(), b"\xff"].concat();
        ctx.refused(&Publish::new(topic, b"x", 1).id(1).bytes(ctx.version), "topic is not UTF-8")
    });
    t.both("MQTT-3.3.2-2", "MQTT-3.3.2-2", "topic name with + closes the connection", |ctx| {
        ctx.refused(&Publish::new(ctx.topic("a/+"), b"x", 0).bytes(ctx.version), "wildcard in a topic name")
    });
    t.both("MQTT-3.3.2-2", "MQTT-3.3.2-2", "topic name with # closes the connection", |ctx| {
        ctx.refused(&Publish::new(ctx.topic("a/#"), b"x", 0).bytes(ctx.version), "wildcard in a topic name")
    });
    t.both("MQTT-4.7.1-1", "MQTT-4.7.0-1", "topic name with + within a level closes the connection", |ctx| {
        ctx.refused(
            &Publish::new(ctx.topic("a+b"), b"x", 1).id(1).bytes(ctx.version),
            "wildcard in a topic name",
        )
    });
    t.both("MQTT-4.7.3-1", "MQTT-4.7.3-1", "empty topic name closes the connection", |ctx| {
        ctx.refused(&Publish::new("", b"x", 0).bytes(ctx.version), "empty topic name")
    });
    t.both("MQTT-4.7.3-2", "MQTT-4.7.3-2", "U+0000 within a topic name closes the connection", |ctx| {
        ctx.refused(
            &Publish::new(ctx.topic("a\0b"), b"x", 1).id(1).bytes(ctx.version),
            "U+0000 in a topic name",
        )
    });
    t.both("MQTT-3.3.2-3", "MQTT-3.3.2-3", "a message comes with the topic it was sent to", |ctx| {
        let topic = ctx.topic("a/ä 温度/b");
        let mut client = ctx.subscriber('a', &ctx.topic("a/+/b"), 0)?;
        client.publish(&topic, b"x", 0)?;
        let message = client.receive_payload(b"x")?;
        ensure(message.topic == topic.as_bytes(), topic, client.shown(&message))
    });

    // What each QoS is answered with.
    t.both("MQTT-3.3.4-1", "MQTT-3.3.4-1", "QoS 0 is not answered", |ctx| {
        let mut client = ctx.connect('a')?;
        client.publish(&ctx.topic("a"), b"x", 0)?;
        client.send(&wire::PINGREQ)?;
        let came = client.next("PINGRESP")?;
        ensure(came.packet == wire::Packet::PingResp, "PINGRESP", came.to_string())
    });
    t.both(
        "MQTT-3.3.4-1",
        "MQTT-3.3.4-1",
        "QoS 1 is answered with PUBACK, with subscribers and without",
        |ctx| answered(ctx, 1),
    );
    t.both(
        "MQTT-3.3.4-1",
        "MQTT-3.3.4-1",
        "QoS 2 is answered with PUBREC, with subscribers and without",
        |ctx| answered(ctx, 2),
    );
    t.both("MQTT-4.3.1-1", "MQTT-4.3.1-1", "QoS 0 is delivered with QoS 0 and DUP 0", |ctx| {
        delivered(ctx, 0)
    });
    t.both("MQTT-4.3.2-1", "MQTT-4.3.2-2", "QoS 1 is delivered with QoS 1 and DUP 0", |ctx| {
        delivered(ctx, 1)
    });
    t.v5("MQTT-4.3.2-1", "a new QoS 1 message has a packet identifier not in use", |ctx| {
        fresh_identifier(ctx, 1)
    });
    t.both("MQTT-4.3.3-1", "MQTT-4.3.3-2", "QoS 2 is delivered with QoS 2 and DUP 0", |ctx| {
        delivered(ctx, 2)
    });
    t.v5("MQTT-4.3.3-1", "a new QoS 2 message has a packet identifier not in use", |ctx| {
        fresh_identifier(ctx, 2)
    });
    t.both(
        "MQTT-4.3.2-2",
        "MQTT-4.3.2-5",
        "after PUBACK the same identifier is a new QoS 1 message",
        |ctx| {
            let (mut subscriber, mut publisher, topic) = two(ctx, 1)?;
            for _ in 0..2 {
                publisher.publish_as(Publish::new(&topic, b"again", 1).id(7))?;
                subscriber.receive_payload(b"again")?;
            }
            Ok(())
        },
    );
    t.v5("MQTT-4.3.2-4", "PUBACK comes for each of many QoS 1 messages", |ctx| {
        let mut client = ctx.connect('a')?;
        let count = client.server_limit(property::RECEIVE_MAXIMUM).min(20) as u16;
        for id in 1..=count {
            client.send(&Publish::new(ctx.topic("a"), b"x", 1).id(id).bytes(Version::V5))?;
        }
        (1..=count).try_for_each(|id| client.acknowledged(kind::PUBACK, id).map(drop))
    });
    t.both("MQTT-4.3.3-2", "MQTT-4.3.3-8", "QoS 2 is answered with PUBREC, PUBREL with PUBCOMP", |ctx| {
        ctx.connect('a')?.publish(&ctx.topic("a"), b"x", 2)
    });
    t.both(
        "MQTT-4.3.3-2",
        "MQTT-4.3.3-10",
        "a QoS 2 PUBLISH sent twice before PUBREL is delivered once",
        |ctx| replayed(ctx, 1),
    );
    t.both(
        "MQTT-4.3.3-2",
        "MQTT-4.3.3-10",
        "a QoS 2 PUBLISH sent four times before PUBREL is delivered once",
        |ctx| replayed(ctx, 3),
    );
    t.both(
        "MQTT-4.3.3-2",
        "MQTT-4.3.3-12",
        "after PUBCOMP the same identifier is a new QoS 2 message",
        |ctx| {
            let (mut subscriber, mut publisher, topic) = two(ctx, 2)?;
            for _ in 0..2 {
                publisher.publish_as(Publish::new(&topic, b"again", 2).id(7))?;
                subscriber.receive_payload(b"again")?;
            }
            Ok(())
        },
    );
    t.both(
        "MQTT-4.3.3-2",
        "MQTT-4.3.3-11",
        "a repeated PUBREL is answered with PUBCOMP again, and delivers nothing",
        |ctx| {
            let (mut subscriber, mut publisher, topic) = two(ctx, 2)?;
            publisher.publish_as(Publish::new(&topic, b"once", 2).id(7))?;
            subscriber.receive_payload(b"once")?;
            publisher.send(&wire::ack(kind::PUBREL, 7))?;
            publisher.acknowledged(kind::PUBCOMP, 7)?;
            ctx.silent(&mut subscriber, &mut publisher, "second copy of a QoS 2 message")
        },
    );
    t.both(
        "MQTT-4.3.3-2",
        "MQTT-4.3.3-11",
        "PUBREL of an unknown identifier is answered with PUBCOMP",
        |ctx| {
            let mut client = ctx.connect('a')?;
            client.send(&wire::ack(kind::PUBREL, 4_242))?;
            client.acknowledged(kind::PUBCOMP, 4_242).map(drop)
        },
    );
    t.both(
        "MQTT-3.6.1-1",
        "MQTT-3.6.1-1",
        "PUBREL with fixed header flags 0000 closes the connection",
        |ctx| {
            let mut client = ctx.connect('a')?;
            client.send(&Publish::new(ctx.topic("a"), b"x", 2).id(1).bytes(ctx.version))?;
            client.acknowledged(kind::PUBREC, 1)?;
            client.send_unchecked(&[0x60, 2, 0, 1]);
            client.closed("flags of PUBREL").map(drop)
        },
    );
    t.v5("MQTT-3.4.2-1", "PUBACK has a reason code of its own with subscribers and without", |ctx| {
        answered(ctx, 1)
    });
    t.v5("MQTT-3.5.2-1", "PUBREC has a reason code of its own with subscribers and without", |ctx| {
        answered(ctx, 2)
    });
    t.v5("MQTT-3.7.2-1", "PUBCOMP for an unknown identifier has reason code 0x00 or 0x92", |ctx| {
        let mut client = ctx.connect('a')?;
        client.send(&wire::ack_with(kind::PUBREL, 4_242, 0))?;
        client.acknowledged(kind::PUBCOMP, 4_242).map(drop)
    });
    t.v5("MQTT-3.6.2-1", "PUBREL has reason code 0x00 for a message that was received", |ctx| {
        let (mut subscriber, message) = received(ctx, 2)?;
        subscriber.send(&wire::ack_with(kind::PUBREC, message.id, 0x10))?;
        let code = subscriber.acknowledged(kind::PUBREL, message.id)?;
        ensure(code == 0, "PUBREL with reason 0x00", format!("{code:#04x}"))
    });

    // The server as the sender.
    t.both("MQTT-4.3.3-1", "MQTT-4.3.3-4", "PUBREC is answered with PUBREL of the same identifier", |ctx| {
        let (mut subscriber, message) = received(ctx, 2)?;
        subscriber.send(&wire::ack(kind::PUBREC, message.id))?;
        subscriber.acknowledged(kind::PUBREL, message.id).map(drop)
    });
    t.both("MQTT-4.3.3-1", "MQTT-4.3.3-4", "a repeated PUBREC is answered with PUBREL again", |ctx| {
        let (mut subscriber, message) = received(ctx, 2)?;
        for _ in 0..2 {
            subscriber.send(&wire::ack(kind::PUBREC, message.id))?;
            subscriber.acknowledged(kind::PUBREL, message.id)?;
        }
        Ok(())
    });
    t.both("MQTT-4.3.3-1", "MQTT-4.3.3-5", "the identifier is in use until PUBCOMP", |ctx| {
        let (mut subscriber, mut publisher, topic) = two(ctx, 2)?;
        publisher.publish(&topic, b"first", 2)?;
        let first = subscriber.message("first")?;
        subscriber.send(&wire::ack(kind::PUBREC, first.id))?;
        subscriber.acknowledged(kind::PUBREL, first.id)?;
        publisher.publish(&topic, b"second", 2)?;
        let second = subscriber.message("second")?;
        ensure(
            second.id != first.id,
            format!("an identifier other than {}", first.id),
            subscriber.shown(&second),
        )
    });
    t.v5("MQTT-4.4.0-2", "PUBREC with reason 0x80 ends a message: no PUBREL, nothing again", |ctx| {
        let (mut subscriber, message) = received(ctx, 2)?;
        subscriber.send(&wire::ack_with(kind::PUBREC, message.id, 0x80))?;
        subscriber.send(&wire::PINGREQ)?;
        let came = subscriber.next("PINGRESP")?;
        ensure(came.packet == wire::Packet::PingResp, "PINGRESP", came.to_string())
    });
    t.both("MQTT-4.5.0-1", "MQTT-4.5.0-1", "every matching subscriber gets a message", |ctx| {
        let topic = ctx.topic("a");
        let mut all = Vec::new();
        for role in ['a', 'b', 'c'] {
            all.push(ctx.subscriber(role, &topic, 1)?);
        }
        ctx.connect('d')?.publish(&topic, b"all", 1)?;
        all.iter_mut().try_for_each(|subscriber| subscriber.receive_payload(b"all").map(drop))
    });

    // Properties.
    t.v5("MQTT-3.3.2-4", "Payload Format Indicator 1 is passed on", |ctx| {
        passed_on(ctx, &[(property::PAYLOAD_FORMAT, Value::Byte(1))])
    });
    t.v5("MQTT-3.3.2-15", "Response Topic is passed on", |ctx| {
        let response = ctx.topic("response");
        passed_on(ctx, &[(property::RESPONSE_TOPIC, text(&response))])
    });
    t.v5("MQTT-3.3.2-16", "Correlation Data is passed on", |ctx| {
        passed_on(ctx, &[(property::CORRELATION_DATA, Value::Bytes(vec![0, 255, 0, 1]))])
    });
    t.v5("MQTT-3.3.2-17", "User Properties are passed on, empty ones too", |ctx| {
        passed_on(ctx, &[(property::USER_PROPERTY, pair("ä", "ö")), (property::USER_PROPERTY, pair("", ""))])
    });
    t.v5("MQTT-3.3.2-18", "User Properties keep their order, and names may repeat", |ctx| {
        let order = ["b", "a", "b", "c", "a"];
        let properties: Vec<_> = order
            .iter()
            .zip(["1", "2", "3", "4", "5"])
            .map(|(name, value)| (property::USER_PROPERTY, pair(name, value)))
            .collect();
        passed_on(ctx, &properties)
    });
    t.v5("MQTT-3.3.2-20", "Content Type is passed on", |ctx| {
        passed_on(ctx, &[(property::CONTENT_TYPE, text("application/x-温度"))])
    });
    t.v5("MQTT-3.3.2-13", "Response Topic that is not UTF-8 closes the connection", |ctx| {
        bad_text(ctx, property::RESPONSE_TOPIC)
    });
    t.v5("MQTT-3.3.2-14", "Response Topic with # closes the connection", |ctx| {
        let publish = Publish::new(ctx.topic("a"), b"x", 1).id(1).with(property::RESPONSE_TOPIC, text("a/#"));
        ctx.refused(&publish.bytes(Version::V5), "wildcard in the response topic")
    });
    t.v5("MQTT-3.3.2-14", "Response Topic with + closes the connection", |ctx| {
        let publish =
            Publish::new(ctx.topic("a"), b"x", 1).id(1).with(property::RESPONSE_TOPIC, text("a/+/b"));
        ctx.refused(&publish.bytes(Version::V5), "wildcard in the response topic")
    });
    t.v5("MQTT-3.3.2-19", "Content Type that is not UTF-8 closes the connection", |ctx| {
        bad_text(ctx, property::CONTENT_TYPE)
    });
    t.v5("MQTT-3.3.2-6", "Message Expiry Interval is passed on, and not longer", |ctx| {
        let (mut subscriber, mut publisher, topic) = two(ctx, 1)?;
        publisher
            .publish_as(Publish::new(&topic, b"x", 1).with(property::MESSAGE_EXPIRY, Value::Long(100)))?;
        let message = subscriber.receive_payload(b"x")?;
        match message.properties.number(property::MESSAGE_EXPIRY) {
            Some(98..=100) => Ok(()),
            _ => fail("Message Expiry Interval of 98 to 100", subscriber.shown(&message)),
        }
    });
    t.v5("MQTT-3.3.2-6", "time in the queue is taken off the Message Expiry Interval", |ctx| {
        let (lasting, topic) = left(ctx)?;
        let publish = Publish::new(&topic, b"x", 1).with(property::MESSAGE_EXPIRY, Value::Long(100));
        ctx.connect('b')?.publish_as(publish)?;
        sleep(Duration::from_millis(2_100));
        let mut subscriber = ctx.connect_with(&lasting)?;
        let message = subscriber.receive_payload(b"x")?;
        match message.properties.number(property::MESSAGE_EXPIRY) {
            Some(90..=98) => Ok(()),
            _ => fail("Message Expiry Interval of 98 or little less", subscriber.shown(&message)),
        }
    });
    t.v5("MQTT-3.3.2-5", "a message that expired in the queue is not delivered", |ctx| {
        let (lasting, topic) = left(ctx)?;
        let mut publisher = ctx.connect('b')?;
        let publish = |payload: &[u8]| Publish::new(&topic, payload, 1);
        publisher.publish_as(publish(b"short").with(property::MESSAGE_EXPIRY, Value::Long(1)))?;
        publisher.publish_as(publish(b"long"))?;
        sleep(Duration::from_millis(2_100));
        ctx.connect_with(&lasting)?.receive_payload(b"long").map(drop)
    });

    // Subscription identifiers.
    t.v5("MQTT-3.3.4-3", "a message bears the Subscription Identifier of its subscription", |ctx| {
        let topic = ctx.topic("a");
        let mut client = ctx.connect('a')?;
        for id in [1, 127, 128, 268_435_455] {
            identified(&mut client, &topic, id)?;
            client.publish(&topic, b"x", 1)?;
            let message = client.receive_payload(b"x")?;
            ensure(
                message.properties.subscription_ids() == [id],
                format!("identifier {id}"),
                client.shown(&message),
            )?;
        }
        Ok(())
    });
    t.v5("MQTT-3.3.4-3", "a subscription renewed without identifier has none", |ctx| {
        let topic = ctx.topic("a");
        let mut client = ctx.connect('a')?;
        identified(&mut client, &topic, 5)?;
        client.subscribe(&topic, 1)?;
        client.publish(&topic, b"x", 1)?;
        let message = client.receive_payload(b"x")?;
        ensure(message.properties.subscription_ids().is_empty(), "no identifier", client.shown(&message))
    });
    t.v5("MQTT-3.3.4-4", "one copy for two subscriptions bears both identifiers", |ctx| {
        overlapping(ctx, Copies::One)
    });
    t.v5("MQTT-3.3.4-5", "of two copies, each bears the identifier of its subscription", |ctx| {
        overlapping(ctx, Copies::Each)
    });
    t.v5("MQTT-3.3.4-2", "overlapping subscriptions deliver at the highest of their QoS", |ctx| {
        overlapping_qos(ctx)
    });
    t.v4("MQTT-3.3.5-1", "overlapping subscriptions deliver at the highest of their QoS", |ctx| {
        overlapping_qos(ctx)
    });
    t.v5("MQTT-3.3.4-6", "Subscription Identifier in a client's PUBLISH closes the connection", |ctx| {
        let publish =
            Publish::new(ctx.topic("a"), b"x", 0).with(property::SUBSCRIPTION_ID, Value::Variable(1));
        ctx.refused(&publish.bytes(Version::V5), "Subscription Identifier from a client")
    });
    t.v5("MQTT-4.13.1-1", "Subscription Identifier 0 closes the connection", |ctx| {
        let body = wire::subscribe_body(
            Version::V5,
            1,
            &[(ctx.topic("a"), 0)],
            &[(property::SUBSCRIPTION_ID, Value::Variable(0))],
        );
        ctx.refused(&frame(0x82, &body), "Subscription Identifier 0")
    });
}

/// A subscriber of a topic of the check's own, and a publisher.
fn two(ctx: &Ctx<'_>, qos: u8) -> Result<(Connection, Connection, String), Stop> {
    let topic = ctx.topic("a");
    Ok((ctx.subscriber('a', &topic, qos)?, ctx.connect('b')?, topic))
}

/// A subscriber, and the message it has not acknowledged.
fn received(ctx: &Ctx<'_>, qos: u8) -> Result<(Connection, Publish), Stop> {
    let (mut subscriber, mut publisher, topic) = two(ctx, qos)?;
    publisher.publish(&topic, b"x", qos)?;
    let message = subscriber.message("not acknowledged")?;
    Ok((subscriber, message))
}

/// A subscriber's session that waits for it.
fn left(ctx: &mut Ctx<'_>) -> Result<(wire::Connect, String), Stop> {
    let topic = ctx.topic("a");
    let lasting = ctx.lasting('a');
    let mut subscriber = ctx.connect_with(&lasting)?;
    subscriber.subscribe(&topic, 1)?;
    subscriber.disconnect();
    Ok((lasting, topic))
}

fn dup_is_not_passed_on(ctx: &mut Ctx<'_>, granted: u8) -> Outcome {
    let (mut subscriber, mut publisher, topic) = two(ctx, granted)?;
    publisher.publish_as(Publish::new(&topic, b"x", granted.max(1)).dup())?;
    let message = subscriber.receive_payload(b"x")?;
    ensure(
        !message.dup && message.qos == granted,
        format!("DUP 0, QoS {granted}"),
        subscriber.shown(&message),
    )
}

fn answered(ctx: &mut Ctx<'_>, qos: u8) -> Outcome {
    let (mut subscriber, mut publisher, topic) = two(ctx, 2)?;
    for topic in [topic, ctx.topic("nobody")] {
        let code = publisher.publish_as(Publish::new(topic, b"x", qos))?;
        ensure(code < 0x80, "accepted", format!("reason {code:#04x}"))?;
    }
    subscriber.receive_payload(b"x").map(drop)
}

fn delivered(ctx: &mut Ctx<'_>, qos: u8) -> Outcome {
    let (mut subscriber, mut publisher, topic) = two(ctx, 2)?;
    publisher.publish(&topic, b"x", qos)?;
    let message = subscriber.receive_payload(b"x")?;
    ensure(message.qos == qos && !message.dup, format!("QoS {qos}, DUP 0"), subscriber.shown(&message))
}

fn replayed(ctx: &mut Ctx<'_>, replays: usize) -> Outcome {
    let (mut subscriber, mut publisher, topic) = two(ctx, 2)?;
    let mut publish = Publish::new(&topic, b"once", 2).id(7);
    for _ in 0..=replays {
        publisher.send(&publish.bytes(ctx.version))?;
        publisher.acknowledged(kind::PUBREC, 7)?;
        publish.dup = true;
    }
    publisher.send(&wire::ack(kind::PUBREL, 7))?;
    publisher.acknowledged(kind::PUBCOMP, 7)?;
    subscriber.receive_payload(b"once")?;
    ctx.silent(&mut subscriber, &mut publisher, "second copy of a QoS 2 message")
}

fn fresh_identifier(ctx: &mut Ctx<'_>, qos: u8) -> Outcome {
    let (mut subscriber, mut publisher, topic) = two(ctx, qos)?;
    publisher.publish(&topic, b"1", qos)?;
    publisher.publish(&topic, b"2", qos)?;
    let (first, second) = (subscriber.message("first")?, subscriber.message("second")?);
    ensure(first.id != second.id, "two identifiers", subscriber.shown(&second))
}

fn passed_on(ctx: &mut Ctx<'_>, properties: &[(u8, Value)]) -> Outcome {
    let (mut subscriber, mut publisher, topic) = two(ctx, 1)?;
    let mut publish = Publish::new(&topic, b"x", 1);
    publish.properties.0.extend_from_slice(properties);
    publisher.publish_as(publish)?;
    let message = subscriber.receive_payload(b"x")?;
    ensure(
        message.properties.0 == properties,
        format!("{properties:?}"),
        format!("{:?}", message.properties.0),
    )
}

fn bad_text(ctx: &mut Ctx<'_>, id: u8) -> Outcome {
    let mut body = Vec::new();
    put_bytes(&mut body, ctx.topic("a").as_bytes());
    body.extend_from_slice(&[4, id, 0, 1, 0xff]);
    ctx.refused(&frame(0x30, &body), "text is not UTF-8")
}

/// Subscribes at QoS 1 with an identifier, or finds that the server does not do that.
fn identified(client: &mut Connection, filter: &str, id: u32) -> Outcome {
    identified_at(client, filter, id, 1)
}

fn identified_at(client: &mut Connection, filter: &str, id: u32, qos: u8) -> Outcome {
    if client.server_limit(property::SUBSCRIPTION_ID_AVAILABLE) == 0 {
        return not_applicable("the server announced Subscription Identifier Available=0");
    }
    let packet = client.next_id();
    let properties = [(property::SUBSCRIPTION_ID, Value::Variable(id))];
    client.send(&frame(0x82, &wire::subscribe_body(Version::V5, packet, &[(filter, qos)], &properties)))?;
    let codes = client.subscribed(packet, 1)?;
    ensure(codes[0] <= 2, "subscription granted", wire::hex(&codes))
}

/// A server may send one copy of a message, or one for each subscription; each has a rule of its own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copies {
    One,
    Each,
}

fn overlapping(ctx: &mut Ctx<'_>, rule: Copies) -> Outcome {
    let topic = ctx.topic("a/b");
    let mut client = ctx.connect('a')?;
    identified(&mut client, &topic, 3)?;
    identified(&mut client, &ctx.topic("a/+"), 4)?;
    client.publish(&topic, b"x", 1)?;
    let first = client.receive_payload(b"x")?;
    let mut found = first.properties.subscription_ids();
    let one_copy = found.len() == 2;
    if !one_copy {
        found.extend(client.receive_payload(b"x")?.properties.subscription_ids());
        found.sort_unstable();
    }
    ensure(found == [3, 4], "identifiers 3 and 4, each once", format!("{found:?}"))?;
    client.silent("further copy")?;
    match (rule, one_copy) {
        (Copies::One, false) => not_applicable("the server sends a copy for each subscription"),
        (Copies::Each, true) => not_applicable("the server sends one copy for all subscriptions"),
        _ => Ok(()),
    }
}

fn overlapping_qos(ctx: &mut Ctx<'_>) -> Outcome {
    let topic = ctx.topic("a/b");
    let mut client = ctx.connect('a')?;
    let filters = [(ctx.topic("a/#"), 0), (ctx.topic("a/b"), 2), (ctx.topic("a/+"), 1)];
    client.subscribe_all(&filters)?;
    client.publish(&topic, b"x", 2)?;
    client.publish(&ctx.topic("a/end"), b"end", 0)?;
    let mut highest = 0;
    loop {
        let message = client.receive("copies, then the end")?;
        if message.payload == b"x" {
            highest = highest.max(message.qos);
        } else if message.payload == b"end" {
            return ensure(highest == 2, "a copy with QoS 2", format!("QoS {highest} at most"));
        }
    }
}
