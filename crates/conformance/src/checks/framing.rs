//! Fixed header, remaining length, text and packet identifiers.

use std::collections::HashSet;
use std::thread::sleep;
use std::time::Duration;

use super::Table;
use crate::check::{Ctx, Outcome, ensure, fail};
use crate::wire::{self, Connect, Publish, Version, frame, kind, pair, property, put_bytes};

pub(super) fn list(t: &mut Table) {
    t.both("MQTT-1.5.3-1", "MQTT-1.5.4-1", "surrogate U+D800 in a topic name closes the connection", |ctx| {
        refused_topic(ctx, b"\xed\xa0\x80")
    });
    t.both("MQTT-1.5.3-1", "MQTT-1.5.4-1", "overlong UTF-8 in a topic name closes the connection", |ctx| {
        refused_topic(ctx, b"\xc0\xaf")
    });
    t.both("MQTT-1.5.3-1", "MQTT-1.5.4-1", "truncated UTF-8 in a topic name closes the connection", |ctx| {
        refused_topic(ctx, b"\xe2\x82")
    });
    t.both("MQTT-1.5.3-2", "MQTT-1.5.4-2", "U+0000 in a topic name closes the connection", |ctx| {
        refused_topic(ctx, b"\0")
    });
    t.both("MQTT-1.5.3-2", "MQTT-1.5.4-2", "U+0000 in a topic filter closes the connection", |ctx| {
        let filter = [ctx.topic("a").as_bytes(), b"\0"].concat();
        ctx.refused(&wire::subscribe(ctx.version, 1, &[(filter, 0)]), "U+0000 in a filter")
    });
    t.both("MQTT-1.5.3-2", "MQTT-1.5.4-2", "U+0000 in a client id closes the connection", |ctx| {
        let mut connect = ctx.hello('a');
        connect.client.push(0);
        ctx.refused_first(&connect.bytes(), "U+0000 in the client id")
    });
    t.both(
        "MQTT-1.5.3-3",
        "MQTT-1.5.4-3",
        "U+FEFF in a topic is neither skipped nor stripped",
        byte_order_mark,
    );
    t.v5(
        "MQTT-1.5.5-1",
        "a message of 127 and one of 128 bytes come with the shortest remaining length",
        lengths,
    );
    t.v5("MQTT-1.5.7-1", "ill-formed UTF-8 in a user property's value closes the connection", |ctx| {
        let topic = ctx.topic("a");
        let mut body = Vec::new();
        put_bytes(&mut body, topic.as_bytes());
        body.extend_from_slice(&[7, property::USER_PROPERTY, 0, 1, b'k', 0, 1, 0xff]);
        ctx.refused(&frame(0x30, &body), "user property is not UTF-8")
    });
    t.v5("MQTT-1.5.7-1", "U+0000 in a user property's name closes the connection", |ctx| {
        let publish = Publish::new(ctx.topic("a"), b"x", 0).with(property::USER_PROPERTY, pair("\0", "v"));
        ctx.refused(&publish.bytes(Version::V5), "U+0000 in a user property")
    });

    t.both("MQTT-2.2.2-2", "MQTT-2.1.3-1", "CONNECT with fixed header flags 0001 is refused", |ctx| {
        let body = ctx.hello('a').body();
        ctx.refused_first(&frame(0x11, &body), "flags of CONNECT")
    });
    t.both(
        "MQTT-2.2.2-2",
        "MQTT-2.1.3-1",
        "PINGREQ with fixed header flags 0001 closes the connection",
        |ctx| ctx.refused(&[0xc1, 0], "flags of PINGREQ"),
    );
    t.both(
        "MQTT-2.2.2-2",
        "MQTT-2.1.3-1",
        "PUBACK with fixed header flags 0010 closes the connection",
        |ctx| bad_ack_flags(ctx, 1, 0x42),
    );
    t.both(
        "MQTT-2.2.2-2",
        "MQTT-2.1.3-1",
        "PUBREC with fixed header flags 0010 closes the connection",
        |ctx| bad_ack_flags(ctx, 2, 0x52),
    );
    t.both(
        "MQTT-2.2.2-2",
        "MQTT-2.1.3-1",
        "PUBCOMP with fixed header flags 0010 closes the connection",
        |ctx| {
            let (mut subscriber, message) = unacknowledged(ctx, 2)?;
            subscriber.send(&wire::ack(kind::PUBREC, message.id))?;
            subscriber.acknowledged(kind::PUBREL, message.id)?;
            let [high, low] = message.id.to_be_bytes();
            subscriber.send_unchecked(&[0x72, 2, high, low]);
            subscriber.closed("flags of PUBCOMP").map(drop)
        },
    );
    t.both(
        "MQTT-2.2.2-1",
        "MQTT-2.1.3-1",
        "what the server sends has the reserved flags of the table",
        |ctx| {
            // The reader refuses anything else; this makes the server send one of each kind.
            let mut client = ctx.connect('a')?;
            let topic = ctx.topic("a");
            client.subscribe(&topic, 2)?;
            for qos in 0..=2 {
                client.publish(&topic, b"x", qos)?;
                client.receive("own message")?;
            }
            client.unsubscribe(&[&topic])?;
            client.ping()
        },
    );

    t.both(
        "MQTT-2.3.1-1",
        "MQTT-2.2.1-3",
        "PUBLISH QoS 1 with packet identifier 0 closes the connection",
        |ctx| {
            let publish = Publish::new(ctx.topic("a"), b"x", 1);
            ctx.refused(&publish.bytes(ctx.version), "packet identifier 0")
        },
    );
    t.both(
        "MQTT-2.3.1-1",
        "MQTT-2.2.1-3",
        "PUBLISH QoS 2 with packet identifier 0 closes the connection",
        |ctx| {
            let publish = Publish::new(ctx.topic("a"), b"x", 2);
            ctx.refused(&publish.bytes(ctx.version), "packet identifier 0")
        },
    );
    t.both(
        "MQTT-2.3.1-1",
        "MQTT-2.2.1-3",
        "SUBSCRIBE with packet identifier 0 closes the connection",
        |ctx| ctx.refused(&wire::subscribe(ctx.version, 0, &[(ctx.topic("a"), 0)]), "packet identifier 0"),
    );
    t.both(
        "MQTT-2.3.1-1",
        "MQTT-2.2.1-3",
        "UNSUBSCRIBE with packet identifier 0 closes the connection",
        |ctx| ctx.refused(&wire::unsubscribe(ctx.version, 0, &[ctx.topic("a")]), "packet identifier 0"),
    );
    t.both(
        "MQTT-2.3.1-4",
        "MQTT-2.2.1-4",
        "unacknowledged messages have packet identifiers of their own",
        identifiers,
    );
    t.both("MQTT-2.3.1-5", "MQTT-2.2.1-2", "a QoS 0 message comes without packet identifier", |ctx| {
        let topic = ctx.topic("a");
        let mut subscriber = ctx.subscriber('a', &topic, 2)?;
        ctx.connect('b')?.publish(&topic, b"exact", 0)?;
        subscriber.receive_payload(b"exact").map(drop)
    });
    t.both(
        "MQTT-2.3.1-6",
        "MQTT-2.2.1-5",
        "PUBACK, PUBREC and PUBCOMP bear the identifier of the PUBLISH",
        |ctx| {
            let topic = ctx.topic("a");
            let mut client = ctx.connect('a')?;
            for id in [1, 255, 256, 0x8000, 65_535] {
                client.publish_as(Publish::new(&topic, b"x", 1).id(id))?;
                client.publish_as(Publish::new(&topic, b"x", 2).id(id))?;
            }
            Ok(())
        },
    );
    t.both(
        "MQTT-2.3.1-7",
        "MQTT-2.2.1-6",
        "SUBACK and UNSUBACK bear the identifier of what they answer",
        |ctx| {
            let topic = ctx.topic("a");
            let mut client = ctx.connect('a')?;
            for id in [1, 256, 65_535] {
                client.send(&wire::subscribe(ctx.version, id, &[(&topic, 0)]))?;
                client.subscribed(id, 1)?;
                client.send(&wire::unsubscribe(ctx.version, id, &[&topic]))?;
                client.unsubscribed(id)?;
            }
            Ok(())
        },
    );
    t.v5("MQTT-2.2.2-1", "a message without properties comes with property length 0", |ctx| {
        let topic = ctx.topic("a");
        let mut client = ctx.subscriber('a', &topic, 0)?;
        client.publish(&topic, b"x", 0)?;
        let message = client.receive("own message")?;
        let text = format!("{:?}", message.properties);
        ensure(message.properties.0.is_empty() && message.payload == b"x", "no properties, payload x", text)
    });

    t.both("MQTT-4.8.0-1", "MQTT-4.13.1-1", "remaining length of five bytes closes the connection", |ctx| {
        ctx.refused(&[0x30, 0x80, 0x80, 0x80, 0x80, 0x01], "remaining length too long")
    });
    t.both("MQTT-4.8.0-1", "MQTT-4.13.1-1", "packet type 0 closes the connection", |ctx| {
        ctx.refused(&[0x00, 0x00], "packet type 0 is reserved")
    });
    t.v4("MQTT-4.8.0-1", "packet type 15 closes the connection", |ctx| {
        ctx.refused(&[0xf0, 0x00], "packet type 15 is reserved")
    });
    t.both("MQTT-4.8.0-1", "MQTT-4.13.1-1", "CONNACK from a client closes the connection", |ctx| {
        let body: &[u8] = if ctx.is_v5() { &[0, 0, 0] } else { &[0, 0] };
        ctx.refused(&frame(0x20, body), "only servers send CONNACK")
    });
    t.both("MQTT-4.8.0-1", "MQTT-4.13.1-1", "SUBACK from a client closes the connection", |ctx| {
        let body: &[u8] = if ctx.is_v5() { &[0, 1, 0, 0] } else { &[0, 1, 0] };
        ctx.refused(&frame(0x90, body), "only servers send SUBACK")
    });
    t.both("MQTT-4.8.0-1", "MQTT-4.13.1-1", "UNSUBACK from a client closes the connection", |ctx| {
        let body: &[u8] = if ctx.is_v5() { &[0, 1, 0, 0] } else { &[0, 1] };
        ctx.refused(&frame(0xb0, body), "only servers send UNSUBACK")
    });
    t.both("MQTT-4.8.0-1", "MQTT-4.13.1-1", "PINGRESP from a client closes the connection", |ctx| {
        ctx.refused(&[0xd0, 0x00], "only servers send PINGRESP")
    });
    t.both("MQTT-4.8.0-1", "MQTT-4.13.1-1", "topic longer than its packet closes the connection", |ctx| {
        ctx.refused(&[0x30, 0x05, 0x00, 0x40, b'a', b'b', b'c'], "topic ends after the packet")
    });
    t.both("MQTT-4.8.0-1", "MQTT-4.13.1-1", "filter longer than its packet closes the connection", |ctx| {
        let body: &[u8] = if ctx.is_v5() { &[0, 1, 0, 0, 9, b'a', 0] } else { &[0, 1, 0, 9, b'a', 0] };
        ctx.refused(&frame(0x82, body), "filter ends after the packet")
    });
    t.both("MQTT-4.8.0-1", "MQTT-4.13.1-1", "PUBACK of one byte closes the connection", |ctx| {
        ctx.refused(&[0x40, 0x01, 0x00], "no whole packet identifier")
    });
    t.both(
        "MQTT-4.8.0-1",
        "MQTT-4.13.1-1",
        "PUBLISH QoS 1 without room for an identifier closes the connection",
        |ctx| ctx.refused(&[0x32, 0x03, 0x00, 0x01, b'a'], "no packet identifier"),
    );
    t.v5("MQTT-4.2.0-1", "CONNECT, SUBSCRIBE and PINGREQ byte by byte are three packets", byte_by_byte);
    t.v5("MQTT-4.2.0-1", "CONNECT, SUBSCRIBE, PUBLISH and PINGREQ at once are four packets", all_at_once);

    t.both("MQTT-3.1.0-1", "MQTT-3.1.0-1", "PUBLISH as first packet is refused", |ctx| {
        ctx.refused_first(&Publish::new(ctx.topic("a"), b"x", 0).bytes(ctx.version), "no CONNECT yet")
    });
    t.both("MQTT-3.1.0-1", "MQTT-3.1.0-1", "SUBSCRIBE as first packet is refused", |ctx| {
        ctx.refused_first(&wire::subscribe(ctx.version, 1, &[(ctx.topic("a"), 0)]), "no CONNECT yet")
    });
    t.both("MQTT-3.1.0-1", "MQTT-3.1.0-1", "PINGREQ as first packet is refused", |ctx| {
        ctx.refused_first(&wire::PINGREQ, "no CONNECT yet")
    });
    t.both("MQTT-3.1.0-1", "MQTT-3.1.0-1", "DISCONNECT as first packet is refused", |ctx| {
        ctx.refused_first(&wire::DISCONNECT, "no CONNECT yet")
    });
    t.both("MQTT-3.1.0-2", "MQTT-3.1.0-2", "a second CONNECT closes the connection", |ctx| {
        let connect = ctx.hello('a').bytes();
        ctx.refused(&connect, "second CONNECT")
    });
    t.both(
        "MQTT-3.1.0-2",
        "MQTT-3.1.0-2",
        "a second CONNECT right behind the first closes the connection",
        |ctx| {
            let connect = ctx.hello('a').bytes();
            let mut client = ctx.open()?;
            client.send(&[connect.clone(), connect].concat())?;
            client.welcome()?;
            client.closed("second CONNECT").map(drop)
        },
    );
}

fn refused_topic(ctx: &mut Ctx<'_>, ending: &[u8]) -> Outcome {
    let topic = [ctx.topic("a").as_bytes(), ending].concat();
    ctx.refused(&Publish::new(topic, b"x", 0).bytes(ctx.version), "topic is not well-formed text")
}

fn byte_order_mark(ctx: &mut Ctx<'_>) -> Outcome {
    let (with, without) = (ctx.topic("\u{feff}a"), ctx.topic("a"));
    let mut client = ctx.subscriber('a', &with, 0)?;
    client.subscribe(&without, 0)?;
    client.publish(&with, b"marked", 0)?;
    let message = client.receive_payload(b"marked")?;
    ensure(message.topic == with.as_bytes(), "topic with U+FEFF", client.shown(&message))?;
    client.silent("second copy")
}

fn lengths(ctx: &mut Ctx<'_>) -> Outcome {
    let topic = ctx.topic("a");
    let mut client = ctx.subscriber('a', &topic, 0)?;
    let around = topic.len() + 3;
    for remaining in [127, 128, 16_383, 16_384] {
        let payload = vec![b'x'; remaining - around];
        client.publish(&topic, &payload, 0)?;
        client.receive_payload(&payload)?;
    }
    Ok(())
}

/// A subscriber that owes an acknowledgement for the message that comes with it.
fn unacknowledged(
    ctx: &Ctx<'_>,
    qos: u8,
) -> Result<(crate::connection::Connection, Publish), crate::check::Stop> {
    let topic = ctx.topic("a");
    let mut subscriber = ctx.subscriber('a', &topic, 2)?;
    ctx.connect('b')?.publish(&topic, b"x", qos)?;
    let message = subscriber.message("to acknowledge")?;
    Ok((subscriber, message))
}

fn bad_ack_flags(ctx: &mut Ctx<'_>, qos: u8, first: u8) -> Outcome {
    let (mut subscriber, message) = unacknowledged(ctx, qos)?;
    let [high, low] = message.id.to_be_bytes();
    subscriber.send_unchecked(&[first, 2, high, low]);
    subscriber.closed("flags of an acknowledgement").map(drop)
}

fn identifiers(ctx: &mut Ctx<'_>) -> Outcome {
    const MESSAGES: usize = 10;
    let topic = ctx.topic("a");
    let mut subscriber = ctx.subscriber('a', &topic, 2)?;
    let mut publisher = ctx.connect('b')?;
    for index in 0..MESSAGES {
        publisher.publish(&topic, b"x", 1 + (index % 2) as u8)?;
    }
    let mut seen = HashSet::new();
    for _ in 0..MESSAGES {
        let message = subscriber.message("not acknowledged")?;
        if !seen.insert(message.id) {
            return fail("a packet identifier not in use", subscriber.shown(&message));
        }
    }
    Ok(())
}

fn byte_by_byte(ctx: &mut Ctx<'_>) -> Outcome {
    let mut client = ctx.open()?;
    let subscribe = wire::subscribe(ctx.version, 1, &[(ctx.topic("a"), 0)]);
    for byte in [ctx.hello('a').bytes(), subscribe, wire::PINGREQ.to_vec()].concat() {
        client.send(&[byte])?;
        sleep(Duration::from_millis(1)); // So that each byte travels alone.
    }
    client.welcome()?;
    client.subscribed(1, 1)?;
    client.take("PINGRESP", |packet| matches!(packet, wire::Packet::PingResp)).map(drop)
}

fn all_at_once(ctx: &mut Ctx<'_>) -> Outcome {
    let topic = ctx.topic("a");
    let connect: Connect = ctx.hello('a');
    let subscribe = wire::subscribe(ctx.version, 1, &[(&topic, 0)]);
    let publish = Publish::new(&topic, b"x", 1).id(2).bytes(ctx.version);
    let mut client = ctx.open()?;
    client.send(&[connect.bytes(), subscribe, publish, wire::PINGREQ.to_vec()].concat())?;
    client.welcome()?;
    client.subscribed(1, 1)?;
    client.acknowledged(kind::PUBACK, 2)?;
    client.receive_payload(b"x")?;
    client.take("PINGRESP", |packet| matches!(packet, wire::Packet::PingResp)).map(drop)
}
