//! Sessions: resuming, redelivery, what is queued while the client is away, takeover, expiry.

use std::thread::sleep;
use std::time::Duration;

use super::Table;
use crate::check::{Ctx, Outcome, Stop, ensure, fail};
use crate::connection::Connection;
use crate::wire::{self, Connect, Publish, Value, Version, frame, kind, property};

pub(super) fn list(t: &mut Table) {
    // Clean start and resuming.
    t.both("MQTT-3.1.2-6", "MQTT-3.1.2-4", "clean start discards subscriptions and queued messages", |ctx| {
        let (_, topic, mut publisher) = away(ctx, 1)?;
        publisher.publish(&topic, b"queued", 1)?;
        let mut client = ctx.connect('a')?;
        publisher.publish(&topic, b"live", 1)?;
        ctx.silent(&mut client, &mut publisher, "message of the session before")
    });
    t.both("MQTT-3.1.2-6", "MQTT-3.1.2-4", "after a clean session nothing is left to resume", |ctx| {
        let topic = ctx.topic("a");
        ctx.subscriber('a', &topic, 1)?.disconnect();
        let lasting = ctx.lasting('a');
        let mut client = ctx.connect_with(&lasting)?;
        ensure(!client.session_present, "Session Present 0", "Session Present 1")?;
        let mut publisher = ctx.connect('b')?;
        publisher.publish(&topic, b"x", 1)?;
        ctx.silent(&mut client, &mut publisher, "message of the session before")
    });
    t.both(
        "MQTT-3.1.4-3",
        "MQTT-3.1.4-4",
        "clean start takes away the session of a connected client, too",
        |ctx| {
            let topic = ctx.topic("a");
            let lasting = ctx.lasting('a');
            ctx.connect_with(&lasting)?.subscribe(&topic, 1)?;
            let mut second = ctx.connect('a')?;
            ensure(!second.session_present, "Session Present 0", "Session Present 1")?;
            let mut publisher = ctx.connect('b')?;
            publisher.publish(&topic, b"x", 1)?;
            ctx.silent(&mut second, &mut publisher, "message of the session before")
        },
    );
    t.both("MQTT-3.1.2-4", "MQTT-3.1.2-5", "a resumed session has its subscriptions", |ctx| {
        let (lasting, topic, mut publisher) = away(ctx, 1)?;
        let mut client = ctx.connect_with(&lasting)?;
        publisher.publish(&topic, b"live", 1)?;
        client.receive_payload(b"live").map(drop)
    });
    t.both("MQTT-3.1.2-4", "MQTT-3.1.2-6", "without a session to resume there is a new one", |ctx| {
        let topic = ctx.topic("a");
        let lasting = ctx.lasting('a');
        let mut client = ctx.connect_with(&lasting)?;
        ensure(!client.session_present, "Session Present 0", "Session Present 1")?;
        client.subscribe(&topic, 1)?;
        client.publish(&topic, b"x", 1)?;
        client.receive_payload(b"x").map(drop)
    });
    t.both(
        "MQTT-3.1.2-4",
        "MQTT-3.1.2-5",
        "an unsubscribed filter stays unsubscribed over a reconnect",
        |ctx| {
            let (lasting, topic, mut publisher) = away(ctx, 1)?;
            let mut client = ctx.connect_with(&lasting)?;
            client.unsubscribe(&[&topic])?;
            client.drop_dead();
            let mut client = ctx.connect_with(&lasting)?;
            publisher.publish(&topic, b"x", 1)?;
            ctx.silent(&mut client, &mut publisher, "message of a deleted subscription")
        },
    );

    // Queued while away.
    t.both(
        "MQTT-3.1.2-5",
        "MQTT-3.1.2-23",
        "QoS 1 and 2 messages are kept while the client is away, in order",
        |ctx| {
            let (lasting, topic, mut publisher) = away(ctx, 2)?;
            for (payload, qos) in [("1", 1), ("2", 2), ("3", 1), ("4", 2)] {
                publisher.publish(&topic, payload.as_bytes(), qos)?;
            }
            let mut client = ctx.connect_with(&lasting)?;
            // Each QoS has its own order.
            let mut got = Vec::new();
            for _ in 0..4 {
                let message = client.receive("queued")?;
                got.push((message.qos, message.payload));
            }
            got.sort_by_key(|(qos, _)| *qos);
            let due = [(1, b"1".to_vec()), (1, b"3".to_vec()), (2, b"2".to_vec()), (2, b"4".to_vec())];
            ensure(got == due, format!("{due:?}"), format!("{got:?}"))?;
            ctx.silent(&mut client, &mut publisher, "fifth message")
        },
    );
    t.both(
        "MQTT-3.1.2-5",
        "MQTT-3.1.2-23",
        "messages are kept after a connection that just broke, too",
        |ctx| {
            let topic = ctx.topic("a");
            let lasting = ctx.lasting('a');
            let mut client = ctx.connect_with(&lasting)?;
            client.subscribe(&topic, 1)?;
            client.drop_dead();
            ctx.connect('b')?.publish(&topic, b"queued", 1)?;
            ctx.connect_with(&lasting)?.receive_payload(b"queued").map(drop)
        },
    );
    t.both(
        "MQTT-4.1.0-1",
        "MQTT-4.1.0-1",
        "what was queued is delivered after the third reconnect, too",
        |ctx| {
            let (lasting, topic, mut publisher) = away(ctx, 1)?;
            publisher.publish(&topic, b"queued", 1)?;
            for _ in 0..3 {
                let mut client = ctx.connect_with(&lasting)?;
                client.message("not acknowledged")?;
                client.drop_dead();
            }
            let mut client = ctx.connect_with(&lasting)?;
            client.receive_payload(b"queued")?;
            ctx.silent(&mut client, &mut publisher, "second copy")
        },
    );
    t.v4("MQTT-4.1.0-2", "a session lasts as long as its connection", session_lasts);

    // Redelivery.
    t.both("MQTT-3.3.1-1", "MQTT-3.3.1-1", "an unacknowledged QoS 1 message comes again with DUP 1", |ctx| {
        again(ctx, 1)
    });
    t.both("MQTT-3.3.1-1", "MQTT-3.3.1-1", "an unacknowledged QoS 2 message comes again with DUP 1", |ctx| {
        again(ctx, 2)
    });
    t.both(
        "MQTT-4.4.0-1",
        "MQTT-4.4.0-1",
        "several unacknowledged messages come again in order, with the same identifiers",
        |ctx| {
            let (lasting, topic, mut publisher) = away(ctx, 1)?;
            let mut client = ctx.connect_with(&lasting)?;
            let mut sent = Vec::new();
            for index in 0_u8..5 {
                publisher.publish(&topic, &[index], 1)?;
                sent.push(client.message("not acknowledged")?);
            }
            client.drop_dead();
            let mut client = ctx.connect_with(&lasting)?;
            for first in sent {
                let second = client.receive_payload(&first.payload)?;
                ensure(
                    second.id == first.id && second.dup,
                    format!("identifier {}, DUP 1", first.id),
                    client.shown(&second),
                )?;
            }
            ctx.silent(&mut client, &mut publisher, "sixth message")
        },
    );
    t.both(
        "MQTT-4.4.0-1",
        "MQTT-4.4.0-1",
        "after PUBREC it is PUBREL that comes again, with the same identifier",
        |ctx| {
            let (mut client, lasting, message, mut publisher) = in_flight(ctx, 2)?;
            client.send(&wire::ack(kind::PUBREC, message.id))?;
            client.acknowledged(kind::PUBREL, message.id)?;
            client.drop_dead();
            let mut client = ctx.connect_with(&lasting)?;
            client.acknowledged(kind::PUBREL, message.id)?;
            client.send(&wire::ack(kind::PUBCOMP, message.id))?;
            ctx.silent(&mut client, &mut publisher, "message after its PUBREC")
        },
    );
    t.v5("MQTT-4.3.3-6", "after PUBREL the PUBLISH does not come again", |ctx| {
        let (mut client, lasting, message, mut publisher) = in_flight(ctx, 2)?;
        client.send(&wire::ack(kind::PUBREC, message.id))?;
        client.acknowledged(kind::PUBREL, message.id)?;
        client.drop_dead();
        let mut client = ctx.connect_with(&lasting)?;
        ctx.silent(&mut client, &mut publisher, "message after its PUBREC")
    });
    t.both(
        "MQTT-2.3.1-4",
        "MQTT-2.2.1-4",
        "after PUBREL was repeated, new messages have other identifiers",
        |ctx| {
            let (mut client, lasting, message, mut publisher) = in_flight(ctx, 2)?;
            client.send(&wire::ack(kind::PUBREC, message.id))?;
            client.acknowledged(kind::PUBREL, message.id)?;
            client.drop_dead();
            let mut client = ctx.connect_with(&lasting)?;
            client.acknowledged(kind::PUBREL, message.id)?;
            publisher.publish(&ctx.topic("a"), b"new", 2)?;
            let new = client.message("new")?;
            ensure(
                new.id != message.id,
                format!("an identifier other than {}", message.id),
                client.shown(&new),
            )
        },
    );
    t.both(
        "MQTT-2.3.1-4",
        "MQTT-2.2.1-4",
        "new messages after a resume take no identifier that is in use",
        |ctx| {
            let (client, lasting, message, mut publisher) = in_flight(ctx, 1)?;
            client.drop_dead();
            let mut client = ctx.connect_with(&lasting)?;
            let old = client.message("again")?;
            ensure(old.id == message.id, format!("identifier {}", message.id), client.shown(&old))?;
            for _ in 0..3 {
                publisher.publish(&ctx.topic("a"), b"new", 1)?;
                let new = client.message("new")?;
                ensure(new.id != old.id, format!("an identifier other than {}", old.id), client.shown(&new))?;
            }
            Ok(())
        },
    );
    t.v5("MQTT-4.3.2-3", "a QoS 1 message counts as unacknowledged until PUBACK", |ctx| again(ctx, 1));
    t.v5("MQTT-4.3.3-3", "a QoS 2 message counts as unacknowledged until PUBREC", |ctx| again(ctx, 2));
    t.v4("MQTT-4.3.2-1", "an acknowledged QoS 1 message does not come again", |ctx| {
        acknowledged_is_over(ctx, 1)
    });
    t.v5("MQTT-4.4.0-1", "an acknowledged QoS 1 message does not come again", |ctx| {
        acknowledged_is_over(ctx, 1)
    });
    t.both("MQTT-4.3.3-1", "MQTT-4.4.0-1", "a completed QoS 2 message does not come again", |ctx| {
        acknowledged_is_over(ctx, 2)
    });
    t.v5("MQTT-4.4.0-2", "a QoS 1 message refused by PUBACK 0x80 does not come again", |ctx| refused(ctx, 1));
    t.v5("MQTT-4.4.0-2", "a QoS 2 message refused by PUBREC 0x80 does not come again", |ctx| refused(ctx, 2));
    t.v5("MQTT-4.4.0-1", "an unacknowledged message does not come again on the same connection", |ctx| {
        let (mut client, _, _, mut publisher) = in_flight(ctx, 1)?;
        sleep(ctx.limit());
        ctx.silent(&mut client, &mut publisher, "second copy")
    });
    t.v5("MQTT-4.3.3-7", "a message whose sending has begun comes again though it expired", |ctx| {
        let (client, lasting, _) = expiring(ctx)?;
        client.drop_dead();
        sleep(Duration::from_millis(2_100));
        ctx.connect_with(&lasting)?.receive_payload(b"short").map(drop)
    });
    t.v5("MQTT-4.3.3-13", "a QoS 2 handshake is completed though the message expired", |ctx| {
        let (mut client, _, message) = expiring(ctx)?;
        sleep(Duration::from_millis(2_100));
        client.send(&wire::ack(kind::PUBREC, message.id))?;
        client.acknowledged(kind::PUBREL, message.id)?;
        client.send(&wire::ack(kind::PUBCOMP, message.id))?;
        client.ping()
    });

    // The server as the receiver, over a reconnect.
    t.both(
        "MQTT-4.3.3-2",
        "MQTT-4.3.3-10",
        "a QoS 2 PUBLISH repeated after a reconnect is delivered once",
        |ctx| {
            let topic = ctx.topic("a");
            let mut subscriber = ctx.subscriber('b', &topic, 2)?;
            let lasting = ctx.lasting('a');
            let publish = Publish::new(&topic, b"once", 2).id(77);
            let mut client = ctx.connect_with(&lasting)?;
            client.send(&publish.bytes(ctx.version))?;
            client.acknowledged(kind::PUBREC, 77)?;
            client.drop_dead();
            let mut client = ctx.connect_with(&lasting)?;
            client.send(&publish.dup().bytes(ctx.version))?;
            client.acknowledged(kind::PUBREC, 77)?;
            client.send(&wire::ack(kind::PUBREL, 77))?;
            client.acknowledged(kind::PUBCOMP, 77)?;
            subscriber.receive_payload(b"once")?;
            ctx.silent(&mut subscriber, &mut client, "second copy of a QoS 2 message")
        },
    );
    t.both("MQTT-4.3.3-2", "MQTT-4.3.3-11", "PUBREL after a reconnect completes the message, once", |ctx| {
        let topic = ctx.topic("a");
        let mut subscriber = ctx.subscriber('b', &topic, 2)?;
        let lasting = ctx.lasting('a');
        let mut client = ctx.connect_with(&lasting)?;
        client.send(&Publish::new(&topic, b"once", 2).id(77).bytes(ctx.version))?;
        client.acknowledged(kind::PUBREC, 77)?;
        client.drop_dead();
        let mut client = ctx.connect_with(&lasting)?;
        for _ in 0..2 {
            client.send(&wire::ack(kind::PUBREL, 77))?;
            client.acknowledged(kind::PUBCOMP, 77)?;
        }
        subscriber.receive_payload(b"once")?;
        ctx.silent(&mut subscriber, &mut client, "second copy of a QoS 2 message")
    });
    t.both(
        "MQTT-3.1.2-6",
        "MQTT-3.1.2-4",
        "clean start ends half-received QoS 2 messages: the identifier is new",
        |ctx| {
            let topic = ctx.topic("a");
            let mut subscriber = ctx.subscriber('b', &topic, 2)?;
            let lasting = ctx.lasting('a');
            let mut client = ctx.connect_with(&lasting)?;
            client.send(&Publish::new(ctx.topic("other"), b"old", 2).id(77).bytes(ctx.version))?;
            client.acknowledged(kind::PUBREC, 77)?;
            client.drop_dead();
            let mut client = ctx.connect('a')?;
            client.publish_as(Publish::new(&topic, b"new", 2).id(77))?;
            subscriber.receive_payload(b"new").map(drop)
        },
    );

    // Takeover.
    t.both(
        "MQTT-3.1.4-2",
        "MQTT-3.1.4-3",
        "a second connection with the same client id ends the first",
        |ctx| {
            let mut first = ctx.connect('a')?;
            let mut second = ctx.connect('a')?;
            first.closed("taken over")?;
            second.ping()
        },
    );
    t.v5("MQTT-3.1.4-3", "before a takeover closes it, the first connection gets DISCONNECT 0x8E", |ctx| {
        let mut first = ctx.connect('a')?;
        let mut second = ctx.connect('a')?;
        let said = first.closed("taken over")?;
        second.ping()?;
        match said {
            Some(0x8e) => Ok(()),
            said => fail("DISCONNECT 0x8e", format!("{said:02x?}, then closed")),
        }
    });
    t.both(
        "MQTT-3.1.2-4",
        "MQTT-3.1.2-5",
        "a taken over session goes on with what was unacknowledged",
        |ctx| {
            let (_first, lasting, message, _) = in_flight(ctx, 1)?;
            let mut second = ctx.connect_with(&lasting)?;
            ensure(second.session_present, "Session Present 1", "Session Present 0")?;
            let again = second.receive_payload(b"x")?;
            ensure(
                again.id == message.id && again.dup,
                format!("identifier {}, DUP 1", message.id),
                second.shown(&again),
            )
        },
    );

    // Expiry.
    t.v5("MQTT-4.1.0-2", "a session ends when its expiry interval has passed", |ctx| {
        let mut hello = ctx.lasting('a');
        hello.properties = vec![(property::SESSION_EXPIRY, Value::Long(1))];
        ctx.connect_with(&hello)?.disconnect();
        sleep(Duration::from_millis(3_000));
        let client = ctx.connect_with(&hello)?;
        ensure(!client.session_present, "Session Present 0", "Session Present 1")
    });
    t.v5("MQTT-4.1.0-2", "a session without expiry interval ends with its connection", |ctx| {
        let hello = Connect { properties: Vec::new(), ..ctx.lasting('a') };
        ctx.connect_with(&hello)?.disconnect();
        let client = ctx.connect_with(&hello)?;
        ensure(!client.session_present, "Session Present 0", "Session Present 1")
    });
    t.v5("MQTT-4.1.0-1", "a session outlives its expiry interval while connected", session_lasts);
    t.v5("MQTT-3.1.2-23", "session expiry 0xFFFFFFFF is accepted, and the session resumed", |ctx| {
        let mut hello = ctx.lasting('a');
        hello.properties = vec![(property::SESSION_EXPIRY, Value::Long(u32::MAX))];
        ctx.connect_with(&hello)?.disconnect();
        let client = ctx.connect_with(&hello)?;
        ensure(client.session_present, "Session Present 1", "Session Present 0")
    });
    t.v5("MQTT-4.1.0-2", "DISCONNECT with session expiry 0 ends the session", |ctx| {
        let lasting = ctx.lasting('a');
        let mut client = ctx.connect_with(&lasting)?;
        client.send(&frame(0xe0, &[0, 5, property::SESSION_EXPIRY, 0, 0, 0, 0]))?;
        client.drop_dead();
        let client = ctx.connect_with(&lasting)?;
        ensure(!client.session_present, "Session Present 0", "Session Present 1")
    });
    t.v5("MQTT-3.1.2-23", "DISCONNECT with a session expiry replaces the one of CONNECT", |ctx| {
        let mut hello = ctx.lasting('a');
        hello.properties = vec![(property::SESSION_EXPIRY, Value::Long(1))];
        let mut client = ctx.connect_with(&hello)?;
        client.send(&frame(0xe0, &[0, 5, property::SESSION_EXPIRY, 0, 0, 0, 100]))?;
        client.drop_dead();
        sleep(Duration::from_millis(3_000));
        let client = ctx.connect_with(&hello)?;
        ensure(client.session_present, "Session Present 1", "Session Present 0")
    });
}

/// A session with a subscription, whose client is away, and a publisher.
fn away(ctx: &mut Ctx<'_>, qos: u8) -> Result<(Connect, String, Connection), Stop> {
    let topic = ctx.topic("a");
    let lasting = ctx.lasting('a');
    let mut client = ctx.connect_with(&lasting)?;
    client.subscribe(&topic, qos)?;
    client.disconnect();
    Ok((lasting, topic, ctx.connect('b')?))
}

/// A client with a lasting session and a message it has not acknowledged.
fn in_flight(ctx: &mut Ctx<'_>, qos: u8) -> Result<(Connection, Connect, Publish, Connection), Stop> {
    let (lasting, topic, mut publisher) = away(ctx, qos)?;
    let mut client = ctx.connect_with(&lasting)?;
    publisher.publish(&topic, b"x", qos)?;
    let message = client.message("not acknowledged")?;
    Ok((client, lasting, message, publisher))
}

fn again(ctx: &mut Ctx<'_>, qos: u8) -> Outcome {
    let (client, lasting, first, _) = in_flight(ctx, qos)?;
    ensure(!first.dup, "DUP 0 at first", client.shown(&first))?;
    client.drop_dead();
    let mut client = ctx.connect_with(&lasting)?;
    let second = client.receive_payload(b"x")?;
    let same = second.dup && second.id == first.id && second.qos == qos;
    ensure(same, format!("QoS {qos}, DUP 1, identifier {}", first.id), client.shown(&second))
}

fn acknowledged_is_over(ctx: &mut Ctx<'_>, qos: u8) -> Outcome {
    let (lasting, topic, mut publisher) = away(ctx, qos)?;
    let mut client = ctx.connect_with(&lasting)?;
    publisher.publish(&topic, b"x", qos)?;
    client.receive_payload(b"x")?;
    client.disconnect();
    let mut client = ctx.connect_with(&lasting)?;
    ctx.silent(&mut client, &mut publisher, "acknowledged message")
}

fn refused(ctx: &mut Ctx<'_>, qos: u8) -> Outcome {
    let (mut client, lasting, message, mut publisher) = in_flight(ctx, qos)?;
    let ack = if qos == 1 { kind::PUBACK } else { kind::PUBREC };
    client.send(&wire::ack_with(ack, message.id, 0x80))?;
    client.ping()?;
    client.drop_dead();
    let mut client = ctx.connect_with(&lasting)?;
    ctx.silent(&mut client, &mut publisher, "refused message")
}

/// A client in the middle of a QoS 2 message that lives for a second.
fn expiring(ctx: &mut Ctx<'_>) -> Result<(Connection, Connect, Publish), Stop> {
    let (lasting, topic, mut publisher) = away(ctx, 2)?;
    let mut client = ctx.connect_with(&lasting)?;
    publisher.publish_as(Publish::new(&topic, b"short", 2).with(property::MESSAGE_EXPIRY, Value::Long(1)))?;
    let message = client.message("not acknowledged")?;
    Ok((client, lasting, message))
}

fn session_lasts(ctx: &mut Ctx<'_>) -> Outcome {
    let topic = ctx.topic("a");
    let mut hello = ctx.hello('a');
    if ctx.version == Version::V5 {
        hello = hello.with(property::SESSION_EXPIRY, Value::Long(1));
    }
    let mut client = ctx.connect_with(&hello)?;
    client.subscribe(&topic, 1)?;
    sleep(Duration::from_millis(2_100));
    client.publish(&topic, b"x", 1)?;
    client.receive_payload(b"x").map(drop)
}
