//! Shared subscriptions.

use super::Table;
use crate::check::{Ctx, Outcome, Stop, ensure, fail, not_applicable};
use crate::connection::Connection;
use crate::wire::{self, Connect, Packet, Publish, Value, Version, kind, property};

pub(super) fn list(t: &mut Table) {
    t.v5("MQTT-4.8.2-1", "an empty share name is not granted", |ctx| {
        let filter = format!("$share//{}", ctx.topic("a"));
        not_granted(ctx, &filter)
    });
    t.v5("MQTT-4.8.2-2", "+ in a share name is not granted", |ctx| {
        let filter = format!("$share/g+/{}", ctx.topic("a"));
        not_granted(ctx, &filter)
    });
    t.v5("MQTT-4.8.2-2", "# in a share name is not granted", |ctx| {
        let filter = format!("$share/g#/{}", ctx.topic("a"));
        not_granted(ctx, &filter)
    });
    t.v5("MQTT-4.8.2-2", "a share name without filter is not granted", |ctx| not_granted(ctx, "$share/g"));
    t.v5("MQTT-4.8.2-2", "a share name with an empty filter is not granted", |ctx| {
        not_granted(ctx, "$share/g/")
    });
    t.v5("MQTT-3.8.3-4", "No Local on a shared subscription closes the connection", |ctx| {
        available(ctx)?;
        let filter = format!("$share/g/{}", ctx.topic("a"));
        ctx.refused(&wire::subscribe(Version::V5, 1, &[(filter, 0x04)]), "No Local on a shared subscription")
    });
    t.v5("MQTT-4.8.2-3", "a message goes to one client of the group, with the QoS granted to it", |ctx| {
        let mut group = group(ctx, &[('a', 1), ('b', 1)])?;
        let mut publisher = ctx.connect('z')?;
        for index in 0_u8..10 {
            publisher.publish(&ctx.topic("a"), &[index], 2)?;
        }
        let mut payloads = Vec::new();
        for client in &mut group {
            for message in drain(ctx, client, &mut publisher)? {
                ensure(message.qos == 1, "QoS 1", client.shown(&message))?;
                payloads.extend(message.payload);
            }
        }
        payloads.sort_unstable();
        let due: Vec<u8> = (0..10).collect();
        ensure(payloads == due, "each of 10 messages once", wire::hex(&payloads))
    });
    t.v5("MQTT-4.8.2-3", "a client granted QoS 0 gets a QoS 1 message with QoS 0", |ctx| {
        let mut group = group(ctx, &[('a', 0)])?;
        ctx.connect('z')?.publish(&ctx.topic("a"), b"x", 1)?;
        let message = group[0].receive_payload(b"x")?;
        ensure(message.qos == 0, "QoS 0", group[0].shown(&message))
    });
    t.v5("MQTT-4.5.0-1", "two groups and an ordinary subscriber each get a copy", |ctx| {
        let topic = ctx.topic("a");
        let mut group = group(ctx, &[('a', 1)])?;
        group.push(ctx.subscriber('b', &format!("$share/other/{topic}"), 1)?);
        group.push(ctx.subscriber('c', &topic, 1)?);
        ctx.connect('z')?.publish(&topic, b"all", 1)?;
        group.iter_mut().try_for_each(|client| client.receive_payload(b"all").map(drop))
    });
    t.v5("4.8.2, no number", "a shared subscription gets no retained messages", |ctx| {
        available(ctx)?;
        let topic = ctx.retained_topic("a");
        let mut publisher = ctx.connect('z')?;
        publisher.publish_as(Publish::new(&topic, b"kept", 1).retained())?;
        let mut client = ctx.subscriber('a', &format!("$share/g/{topic}"), 1)?;
        ctx.silent(&mut client, &mut publisher, "retained message")
    });
    t.v5("MQTT-4.8.2-4", "a QoS 2 delivery that has begun is completed to the same client", |ctx| {
        available(ctx)?;
        let topic = ctx.topic("a");
        let filter = format!("$share/g/{topic}");
        let lasting = ctx.lasting('a');
        let mut first = ctx.connect_with(&lasting)?;
        first.subscribe(&filter, 2)?;
        let mut publisher = ctx.connect('z')?;
        publisher.publish(&topic, b"begun", 2)?;
        let message = first.message("begun")?;
        first.send(&wire::ack(kind::PUBREC, message.id))?;
        first.acknowledged(kind::PUBREL, message.id)?;
        first.drop_dead();
        let mut second = ctx.subscriber('b', &filter, 2)?;
        let mut first = ctx.connect_with(&lasting)?;
        first.acknowledged(kind::PUBREL, message.id)?;
        first.send(&wire::ack(kind::PUBCOMP, message.id))?;
        ctx.silent(&mut second, &mut publisher, "message of another client")
    });
    t.v5("MQTT-4.8.2-5", "a QoS 2 message sent to a session that ends goes to no other client", |ctx| {
        available(ctx)?;
        let filter = format!("$share/g/{}", ctx.topic("a"));
        let mut first = ctx.subscriber('a', &filter, 2)?;
        let mut publisher = ctx.connect('z')?;
        publisher.publish(&ctx.topic("a"), b"begun", 2)?;
        first.message("begun")?;
        let mut second = ctx.subscriber('b', &filter, 2)?;
        first.drop_dead();
        ctx.silent(&mut second, &mut publisher, "message sent to another client")
    });
    t.v5("MQTT-4.8.2-6", "a message refused by PUBACK 0x80 goes to no other client", |ctx| {
        refused_once(ctx, 1)
    });
    t.v5("MQTT-4.8.2-6", "a message refused by PUBREC 0x80 goes to no other client", |ctx| {
        refused_once(ctx, 2)
    });
    t.v5("MQTT-3.10.4-1", "UNSUBSCRIBE takes a client out of its group", |ctx| {
        let mut group = group(ctx, &[('a', 1), ('b', 1)])?;
        let code = group[0].unsubscribe(&[format!("$share/g/{}", ctx.topic("a"))])?;
        ensure(code == [0], "00", wire::hex(&code))?;
        let mut publisher = ctx.connect('z')?;
        for index in 0_u8..6 {
            publisher.publish(&ctx.topic("a"), &[index], 1)?;
            group[1].receive_payload(&[index])?;
        }
        ctx.silent(&mut group[0], &mut publisher, "message of a deleted subscription")
    });
}

fn available(ctx: &Ctx<'_>) -> Outcome {
    match ctx.connect('z')?.server_limit(property::SHARED_AVAILABLE) {
        0 => not_applicable("the server announced Shared Subscription Available=0"),
        _ => Ok(()),
    }
}

fn not_granted(ctx: &mut Ctx<'_>, filter: &str) -> Outcome {
    available(ctx)?;
    let mut client = ctx.connect('a')?;
    client.send_unchecked(&wire::subscribe(Version::V5, 1, &[(filter, 0)]));
    match client.next("a refusal") {
        Ok(came) => match &came.packet {
            Packet::SubAck { codes, .. } => {
                ensure(codes.len() == 1 && codes[0] >= 0x80, "subscription refused", came.to_string())
            }
            Packet::Disconnect { code, .. } => ensure(*code >= 0x80, "an error", came.to_string()),
            _ => fail("subscription refused", came.to_string()),
        },
        Err(_) => client.closed("filter is not valid").map(drop),
    }
}

fn group(ctx: &Ctx<'_>, members: &[(char, u8)]) -> Result<Vec<Connection>, Stop> {
    available(ctx)?;
    let filter = format!("$share/g/{}", ctx.topic("a"));
    members.iter().map(|(role, qos)| ctx.subscriber(*role, &filter, *qos)).collect()
}

/// What has come to a client, up to a message sent now.
fn drain(ctx: &Ctx<'_>, client: &mut Connection, publisher: &mut Connection) -> Result<Vec<Publish>, Stop> {
    let end = ctx.topic("end");
    client.subscribe(&end, 0)?;
    publisher.publish(&end, b"end", 1)?;
    let mut messages = Vec::new();
    loop {
        let message = client.receive("messages, then the end")?;
        if message.topic == end.as_bytes() {
            return Ok(messages);
        }
        messages.push(message);
    }
}

/// Receive Maximum 1 keeps the second client out until the first has refused.
fn refused_once(ctx: &mut Ctx<'_>, qos: u8) -> Outcome {
    available(ctx)?;
    let filter = format!("$share/g/{}", ctx.topic("a"));
    let hello: Connect = ctx.hello('a').with(property::RECEIVE_MAXIMUM, Value::Short(1));
    let mut first = ctx.connect_with(&hello)?;
    first.subscribe(&filter, qos)?;
    let mut publisher = ctx.connect('z')?;
    publisher.publish(&ctx.topic("a"), b"refused", qos)?;
    let message = first.message("to refuse")?;
    let mut second = ctx.subscriber('b', &filter, qos)?;
    let ack = if qos == 1 { kind::PUBACK } else { kind::PUBREC };
    first.send(&wire::ack_with(ack, message.id, 0x80))?;
    first.ping()?;
    ctx.silent(&mut second, &mut publisher, "message refused by another client")
}
