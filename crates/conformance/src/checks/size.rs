//! Maximum packet size, both ways.

use super::Table;
use crate::check::{Ctx, Outcome, Stop, not_applicable};
use crate::connection::Connection;
use crate::wire::{self, Connect, Publish, Value, Version, kind, pair, property};

const SMALL: u32 = 200;

pub(super) fn list(t: &mut Table) {
    t.v5(
        "MQTT-3.1.2-24",
        "a QoS 0 message above the client's Maximum Packet Size is not sent to it",
        |ctx| too_large(ctx, 0),
    );
    t.v5(
        "MQTT-3.1.2-24",
        "a QoS 1 message above the client's Maximum Packet Size is not sent to it",
        |ctx| too_large(ctx, 1),
    );
    t.v5(
        "MQTT-3.1.2-24",
        "a QoS 2 message above the client's Maximum Packet Size is not sent to it",
        |ctx| too_large(ctx, 2),
    );
    t.v5("MQTT-3.1.2-24", "user properties count towards the client's Maximum Packet Size", |ctx| {
        let (mut client, mut publisher, topic) = small(ctx)?;
        let value = "v".repeat(SMALL as usize);
        publisher
            .publish_as(Publish::new(&topic, b"x", 1).with(property::USER_PROPERTY, pair("k", &value)))?;
        ctx.silent(&mut client, &mut publisher, "message above the maximum")
    });
    t.v5("MQTT-3.1.2-24", "a message of just the client's Maximum Packet Size is sent to it", |ctx| {
        let (mut client, mut publisher, topic) = small(ctx)?;
        // Fixed header of three bytes, topic with its length, property length, payload.
        let payload = vec![b'x'; SMALL as usize - 3 - 2 - topic.len() - 1];
        publisher.publish(&topic, &payload, 0)?;
        client.receive_payload(&payload).map(drop)
    });
    t.v5(
        "MQTT-3.1.2-25",
        "what is too large counts as sent: later messages come, nothing is left in flight",
        |ctx| {
            let topic = ctx.topic("a");
            let hello = ctx
                .hello('a')
                .with(property::MAXIMUM_PACKET_SIZE, Value::Long(SMALL))
                .with(property::RECEIVE_MAXIMUM, Value::Short(2));
            let mut client = ctx.connect_with(&hello)?;
            client.subscribe(&topic, 2)?;
            let mut publisher = ctx.connect('b')?;
            for qos in [1, 2, 1, 2] {
                publisher.publish(&topic, &vec![b'x'; SMALL as usize], qos)?;
            }
            publisher.publish(&topic, b"small", 1)?;
            client.receive_payload(b"small").map(drop)
        },
    );
    t.v5("MQTT-3.1.2-25", "what is too large for one subscriber comes to the others", |ctx| {
        let (_client, mut publisher, topic) = small(ctx)?;
        let mut other = ctx.subscriber('c', &topic, 1)?;
        let payload = vec![b'x'; SMALL as usize];
        publisher.publish(&topic, &payload, 1)?;
        other.receive_payload(&payload).map(drop)
    });
    t.v5(
        "MQTT-3.1.2-25",
        "a retained message above the maximum is not sent, and the subscription works",
        |ctx| {
            let topic = ctx.retained_topic("a");
            let mut publisher = ctx.connect('b')?;
            publisher.publish_as(Publish::new(&topic, vec![b'x'; SMALL as usize], 1).retained())?;
            let hello = ctx.hello('a').with(property::MAXIMUM_PACKET_SIZE, Value::Long(SMALL));
            let mut client = ctx.connect_with(&hello)?;
            client.subscribe(&topic, 1)?;
            publisher.publish(&topic, b"small", 1)?;
            client.receive_payload(b"small").map(drop)
        },
    );
    // Each packet has one statement about its Reason String and one about its User Properties.
    for statement in ["MQTT-3.2.2-19", "MQTT-3.2.2-20"] {
        t.v5(statement, "CONNACK stays within the client's Maximum Packet Size", connack_within);
    }
    for statement in ["MQTT-3.4.2-2", "MQTT-3.4.2-3"] {
        t.v5(statement, "PUBACK stays within the client's Maximum Packet Size", |ctx| {
            answers_within(ctx, kind::PUBACK)
        });
    }
    for statement in ["MQTT-3.5.2-2", "MQTT-3.5.2-3"] {
        t.v5(statement, "PUBREC stays within the client's Maximum Packet Size", |ctx| {
            answers_within(ctx, kind::PUBREC)
        });
    }
    for statement in ["MQTT-3.6.2-2", "MQTT-3.6.2-3"] {
        t.v5(statement, "PUBREL stays within the client's Maximum Packet Size", pubrel_within);
    }
    for statement in ["MQTT-3.7.2-2", "MQTT-3.7.2-3"] {
        t.v5(statement, "PUBCOMP stays within the client's Maximum Packet Size", |ctx| {
            answers_within(ctx, kind::PUBCOMP)
        });
    }
    for statement in ["MQTT-3.9.2-1", "MQTT-3.9.2-2"] {
        t.v5(statement, "SUBACK stays within the client's Maximum Packet Size", |ctx| {
            answers_within(ctx, kind::SUBACK)
        });
    }
    for statement in ["MQTT-3.11.2-1", "MQTT-3.11.2-2"] {
        t.v5(statement, "UNSUBACK stays within the client's Maximum Packet Size", |ctx| {
            answers_within(ctx, kind::UNSUBACK)
        });
    }
    for statement in ["MQTT-3.14.2-3", "MQTT-3.14.2-4"] {
        t.v5(statement, "DISCONNECT stays within the client's Maximum Packet Size", disconnect_within);
    }
    t.v5("MQTT-4.13.1-1", "a packet above the server's Maximum Packet Size closes the connection", |ctx| {
        const AFFORDED: u32 = 64 << 20;
        let mut client = ctx.connect('a')?;
        let maximum = client.server_limit(property::MAXIMUM_PACKET_SIZE);
        if maximum > AFFORDED {
            return not_applicable("the server announced no Maximum Packet Size, or a huge one");
        }
        let payload = vec![0; maximum as usize];
        client.send_unchecked(&Publish::new(ctx.topic("a"), payload, 0).bytes(Version::V5));
        client.closed("packet too large").map(drop)
    });
}

/// A subscriber that takes packets of up to `SMALL` bytes, a publisher, and the topic between them.
fn small(ctx: &Ctx<'_>) -> Result<(Connection, Connection, String), Stop> {
    let topic = ctx.topic("a");
    let hello: Connect = ctx.hello('a').with(property::MAXIMUM_PACKET_SIZE, Value::Long(SMALL));
    let mut client = ctx.connect_with(&hello)?;
    client.subscribe(&topic, 2)?;
    Ok((client, ctx.connect('b')?, topic))
}

fn too_large(ctx: &mut Ctx<'_>, qos: u8) -> Outcome {
    let (mut client, mut publisher, topic) = small(ctx)?;
    publisher.publish(&topic, &vec![b'x'; SMALL as usize], qos)?;
    ctx.silent(&mut client, &mut publisher, "message above the maximum")
}

fn connack_within(ctx: &mut Ctx<'_>) -> Outcome {
    const ENOUGH_FOR_LIMITS: u32 = 64;
    let hello = ctx.hello('a').with(property::MAXIMUM_PACKET_SIZE, Value::Long(ENOUGH_FOR_LIMITS));
    let mut client = ctx.open()?;
    client.send(&hello.bytes())?;
    within(&mut client, ENOUGH_FOR_LIMITS, "CONNACK")
}

fn pubrel_within(ctx: &mut Ctx<'_>) -> Outcome {
    let (mut client, mut publisher, topic) = small(ctx)?;
    publisher.publish(&topic, b"x", 2)?;
    let message = client.message("to acknowledge")?;
    client.send(&wire::ack(kind::PUBREC, message.id))?;
    within(&mut client, SMALL, "PUBREL")
}

fn disconnect_within(ctx: &mut Ctx<'_>) -> Outcome {
    const MAXIMUM: u32 = 30;
    let hello = ctx.hello('a').with(property::MAXIMUM_PACKET_SIZE, Value::Long(MAXIMUM));
    let mut client = ctx.connect_with(&hello)?;
    client.send_unchecked(&Publish::new("a/+", b"x", 0).bytes(Version::V5));
    within(&mut client, MAXIMUM, "DISCONNECT, or the end")
}

fn answers_within(ctx: &mut Ctx<'_>, kind: u8) -> Outcome {
    const MAXIMUM: u32 = 40;
    let hello = ctx.hello('a').with(property::MAXIMUM_PACKET_SIZE, Value::Long(MAXIMUM));
    let mut client = ctx.connect_with(&hello)?;
    client.send(&match kind {
        // Nothing to find: the answers have something to explain.
        kind::SUBACK => wire::subscribe(Version::V5, 1, &[("$share/g/#/#", 0)]),
        kind::UNSUBACK => wire::unsubscribe(Version::V5, 1, &["never"]),
        kind::PUBCOMP => wire::ack(kind::PUBREL, 4_242),
        kind::PUBACK => Publish::new(ctx.topic("nobody"), b"x", 1).id(1).bytes(Version::V5),
        _ => Publish::new(ctx.topic("nobody"), b"x", 2).id(1).bytes(Version::V5),
    })?;
    within(&mut client, MAXIMUM, wire::name(kind))
}

fn within(client: &mut Connection, maximum: u32, expected: &str) -> Outcome {
    match client.next(expected) {
        Ok(came) if came.raw.len() <= maximum as usize => Ok(()),
        Ok(came) => Err(Stop::Fail {
            expected: format!("{expected} of at most {maximum} bytes"),
            came: format!("{} bytes: {came}", came.raw.len()),
        }),
        // Closing without a word keeps within any maximum.
        Err(_) => client.closed(expected).map(drop),
    }
}
