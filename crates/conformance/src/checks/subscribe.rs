//! SUBSCRIBE and UNSUBSCRIBE, and which filter matches which topic.

use super::Table;
use crate::check::{Ctx, Outcome, ensure, not_applicable};
use crate::connection::Connection;
use crate::wire::{self, Publish, frame, kind, property};

const NO_LOCAL: u8 = 0x04;
const RETAIN_AS_PUBLISHED: u8 = 0x08;

pub(super) fn list(t: &mut Table) {
    // SUBSCRIBE that is none.
    t.both(
        "MQTT-3.8.1-1",
        "MQTT-3.8.1-1",
        "SUBSCRIBE with fixed header flags 0000 closes the connection",
        |ctx| {
            let body = wire::subscribe_body(ctx.version, 1, &[(ctx.topic("a"), 0)], &[]);
            ctx.refused(&frame(0x80, &body), "flags of SUBSCRIBE")
        },
    );
    t.both("MQTT-3.8.3-1", "MQTT-3.8.3-1", "filter that is not UTF-8 closes the connection", |ctx| {
        let filter = [ctx.topic("a").as_bytes(), b"\xff"].concat();
        ctx.refused(&wire::subscribe(ctx.version, 1, &[(filter, 0)]), "filter is not UTF-8")
    });
    t.both("MQTT-3.8.3-3", "MQTT-3.8.3-2", "SUBSCRIBE without filters closes the connection", |ctx| {
        ctx.refused(&wire::subscribe::<&str>(ctx.version, 1, &[]), "no filter")
    });
    t.both(
        "MQTT-3.8.3-4",
        "MQTT-3.8.3-5",
        "reserved bits in the options of a filter close the connection",
        |ctx| {
            let options = if ctx.is_v5() { 0x40 } else { 0x04 };
            ctx.refused(
                &wire::subscribe(ctx.version, 1, &[(ctx.topic("a"), options)]),
                "reserved option bits",
            )
        },
    );
    t.both(
        "MQTT-3.8.3-4",
        "MQTT-3.8.3-5",
        "the highest reserved bit in the options closes the connection",
        |ctx| {
            ctx.refused(&wire::subscribe(ctx.version, 1, &[(ctx.topic("a"), 0x80)]), "reserved option bits")
        },
    );
    t.both("MQTT-3.8.3-4", "MQTT-4.13.1-1", "SUBSCRIBE with QoS 3 closes the connection", |ctx| {
        ctx.refused(&wire::subscribe(ctx.version, 1, &[(ctx.topic("a"), 3)]), "QoS 3")
    });
    t.v5("MQTT-4.13.1-1", "Retain Handling 3 closes the connection", |ctx| {
        ctx.refused(&wire::subscribe(ctx.version, 1, &[(ctx.topic("a"), 0x30)]), "Retain Handling 3")
    });
    t.both("MQTT-4.7.3-1", "MQTT-4.7.3-1", "empty filter is not granted", |ctx| not_granted(ctx, ""));
    t.both("MQTT-4.7.1-2", "MQTT-4.7.1-1", "# before the end of a filter is not granted", |ctx| {
        let filter = ctx.topic("a/#/b");
        not_granted(ctx, &filter)
    });
    t.both("MQTT-4.7.1-2", "MQTT-4.7.1-1", "# that shares its level is not granted", |ctx| {
        let filter = ctx.topic("a#");
        not_granted(ctx, &filter)
    });
    t.both("MQTT-4.7.1-3", "MQTT-4.7.1-2", "+ that shares its level is not granted", |ctx| {
        let filter = ctx.topic("a+/b");
        not_granted(ctx, &filter)
    });
    t.both("MQTT-4.7.1-3", "MQTT-4.7.1-2", "+ behind a character of its level is not granted", |ctx| {
        let filter = ctx.topic("a/b+");
        not_granted(ctx, &filter)
    });

    // SUBACK.
    t.both("MQTT-3.8.4-1", "MQTT-3.8.4-1", "SUBSCRIBE is answered with SUBACK", |ctx| {
        ctx.subscriber('a', &ctx.topic("a"), 0).map(drop)
    });
    t.both("MQTT-3.8.4-2", "MQTT-3.8.4-2", "SUBACK bears the identifier of the SUBSCRIBE", |ctx| {
        let mut client = ctx.connect('a')?;
        client.send(&wire::subscribe(ctx.version, 0xfffe, &[(ctx.topic("a"), 0)]))?;
        client.send(&wire::subscribe(ctx.version, 3, &[(ctx.topic("b"), 0)]))?;
        client.subscribed(0xfffe, 1)?;
        client.subscribed(3, 1).map(drop)
    });
    t.both("MQTT-3.8.4-5", "MQTT-3.8.4-6", "SUBACK has a code for each filter", |ctx| {
        let filters: Vec<_> = (0..20).map(|index| (ctx.topic(&index.to_string()), 1)).collect();
        ctx.connect('a')?.subscribe_all(&filters).map(drop)
    });
    t.both("MQTT-3.9.3-1", "MQTT-3.9.3-1", "SUBACK's codes are in the order of the filters", |ctx| {
        let filters = [(ctx.topic("2"), 2), (ctx.topic("0"), 0), (ctx.topic("1"), 1)];
        let mut client = ctx.connect('a')?;
        let highest = if ctx.is_v5() { client.server_limit(property::MAXIMUM_QOS) as u8 } else { 2 };
        let codes = client.subscribe_all(&filters)?;
        if !ctx.is_v5() && codes.iter().any(|code| *code != 0) && codes[0] < 2 {
            return not_applicable("the server grants less than QoS 2");
        }
        let due = filters.map(|(_, qos)| qos.min(highest));
        ensure(codes == due, wire::hex(&due), wire::hex(&codes))
    });
    t.both(
        "MQTT-3.9.3-2",
        "MQTT-3.9.3-2",
        "SUBACK has codes of its own for good filters and for bad ones",
        |ctx| {
            ctx.subscriber('a', &ctx.topic("a"), 2)?;
            not_granted(ctx, "#/#")
        },
    );
    t.both("MQTT-3.8.4-4", "MQTT-3.8.4-5", "one SUBSCRIBE with several filters subscribes to each", |ctx| {
        let filters = [(ctx.topic("a"), 0), (ctx.topic("b"), 1), (ctx.topic("c/+"), 2)];
        let mut client = ctx.connect('a')?;
        client.subscribe_all(&filters)?;
        for name in ["a", "b", "c/d"] {
            client.publish(&ctx.topic(name), name.as_bytes(), 0)?;
            client.receive_payload(name.as_bytes())?;
        }
        Ok(())
    });
    t.both(
        "MQTT-3.8.4-4",
        "MQTT-3.8.4-5",
        "the same filter twice in one SUBSCRIBE: the last QoS counts",
        |ctx| {
            let topic = ctx.topic("a");
            let mut client = ctx.connect('a')?;
            client.subscribe_all(&[(&topic, 2), (&topic, 0)])?;
            client.publish(&topic, b"x", 1)?;
            let message = client.receive_payload(b"x")?;
            ensure(message.qos == 0, "QoS 0", client.shown(&message))?;
            client.silent("second copy")
        },
    );
    t.both(
        "MQTT-3.8.4-6",
        "MQTT-3.8.4-8",
        "each QoS sent to each QoS granted arrives with the lower one",
        qos_matrix,
    );
    t.v5("MQTT-3.8.4-7", "SUBACK shows the QoS granted, within the Maximum QoS", |ctx| {
        let mut client = ctx.connect('a')?;
        let maximum = client.server_limit(property::MAXIMUM_QOS) as u8;
        for qos in 0..=2 {
            let granted = client.subscribe(&ctx.topic(&qos.to_string()), qos)?;
            ensure(
                granted <= qos.min(maximum),
                format!("at most {}", qos.min(maximum)),
                granted.to_string(),
            )?;
        }
        Ok(())
    });

    // Replacing.
    t.both("MQTT-3.8.4-3", "MQTT-3.8.4-3", "the same filter again replaces the subscription", |ctx| {
        let topic = ctx.topic("a");
        let mut client = ctx.subscriber('a', &topic, 2)?;
        client.subscribe(&topic, 0)?;
        client.publish(&topic, b"x", 2)?;
        let message = client.receive_payload(b"x")?;
        ensure(message.qos == 0, "QoS 0", client.shown(&message))?;
        client.silent("second copy")
    });
    t.v4("MQTT-3.8.4-3", "replacing a subscription sends retained messages again", |ctx| {
        let topic = ctx.retained_topic("a");
        ctx.connect('b')?.publish_as(Publish::new(&topic, b"kept", 1).retained())?;
        let mut client = ctx.subscriber('a', &topic, 1)?;
        client.receive_payload(b"kept")?;
        client.subscribe(&topic, 1)?;
        client.receive_payload(b"kept").map(drop)
    });
    t.both("MQTT-3.8.4-3", "MQTT-3.8.4-4", "replacing a subscription loses no messages", |ctx| {
        const MESSAGES: u8 = 60;
        let topic = ctx.topic("a");
        let mut subscriber = ctx.subscriber('a', &topic, 1)?;
        let mut publisher = ctx.connect('b')?;
        for index in 0..MESSAGES {
            let id = publisher.next_id();
            publisher.send(&Publish::new(&topic, [index], 1).id(id).bytes(ctx.version))?;
            if index % 10 == 0 {
                subscriber.subscribe(&topic, 1)?;
            }
            publisher.acknowledged(kind::PUBACK, id)?;
            subscriber.receive_payload(&[index])?;
        }
        Ok(())
    });

    // Options of 5.0.
    t.v5("MQTT-3.8.3-3", "No Local keeps a client's own messages from it, and only those", |ctx| {
        let topic = ctx.topic("a");
        let mut client = ctx.subscriber('a', &topic, 1 | NO_LOCAL)?;
        let mut other = ctx.connect('b')?;
        client.publish(&topic, b"own", 1)?;
        other.publish(&topic, b"other's", 1)?;
        client.receive_payload(b"other's")?;
        ctx.silent(&mut client, &mut other, "own message")
    });
    t.v5("MQTT-3.8.3-3", "without No Local a client gets its own messages", |ctx| {
        let topic = ctx.topic("a");
        let mut client = ctx.subscriber('a', &topic, 1)?;
        client.publish(&topic, b"own", 1)?;
        client.receive_payload(b"own").map(drop)
    });
    t.v5("MQTT-3.3.1-12", "Retain As Published 0: RETAIN is 0 for an established subscription", |ctx| {
        retain_as_published(ctx, 0, true)
    });
    t.v5("MQTT-3.3.1-13", "Retain As Published 1: RETAIN 1 stays 1", |ctx| {
        retain_as_published(ctx, RETAIN_AS_PUBLISHED, true)
    });
    t.v5("MQTT-3.3.1-13", "Retain As Published 1: RETAIN 0 stays 0", |ctx| {
        retain_as_published(ctx, RETAIN_AS_PUBLISHED, false)
    });

    // Matching.
    t.both("MQTT-4.7.1-2", "MQTT-4.7.1-1", "# matches its parent and everything below", |ctx| {
        matching(ctx, "a/#", &["a", "a/b", "a/b/c", "a/"], &["ab", "b", "A", "A/b"])
    });
    t.both("MQTT-4.7.1-3", "MQTT-4.7.1-2", "+ matches exactly one level, also an empty one", |ctx| {
        matching(ctx, "a/+", &["a/b", "a/", "a/温"], &["a", "a/b/c", "b/a", "a//"])
    });
    t.both("MQTT-4.7.1-3", "MQTT-4.7.1-2", "+ works in the middle and together with #", |ctx| {
        matching(ctx, "+/b/#", &["a/b", "c/b/d", "/b"], &["a/c", "b", "a/a/b"])
    });
    t.both(
        "MQTT-4.7.3-4",
        "MQTT-4.7.3-4",
        "topics are compared byte by byte: case, blanks, slashes, composition",
        |ctx| {
            matching(
                ctx,
                "a/\u{e9}",
                &["a/\u{e9}"],
                &["A/\u{e9}", "a/e\u{301}", "a/\u{e9} ", "a//\u{e9}", "a/\u{e9}/", "/a/\u{e9}"],
            )
        },
    );
    t.both("MQTT-4.7.2-1", "MQTT-4.7.2-1", "# and +/… do not match topics that begin with $", dollar);

    // UNSUBSCRIBE.
    t.both(
        "MQTT-3.10.1-1",
        "MQTT-3.10.1-1",
        "UNSUBSCRIBE with fixed header flags 0000 closes the connection",
        |ctx| {
            let body = wire::unsubscribe_body(ctx.version, 1, &[ctx.topic("a")]);
            ctx.refused(&frame(0xa0, &body), "flags of UNSUBSCRIBE")
        },
    );
    t.both(
        "MQTT-3.10.3-1",
        "MQTT-3.10.3-1",
        "UNSUBSCRIBE with a filter that is not UTF-8 closes the connection",
        |ctx| {
            let filter = [ctx.topic("a").as_bytes(), b"\xff"].concat();
            ctx.refused(&wire::unsubscribe(ctx.version, 1, &[filter]), "filter is not UTF-8")
        },
    );
    t.both("MQTT-3.10.3-2", "MQTT-3.10.3-2", "UNSUBSCRIBE without filters closes the connection", |ctx| {
        ctx.refused(&wire::unsubscribe::<&str>(ctx.version, 1, &[]), "no filter")
    });
    t.both(
        "MQTT-3.10.4-1",
        "MQTT-3.10.4-1",
        "only the filter that is the same byte by byte is deleted",
        |ctx| {
            let (kept, topic) = (ctx.topic("a/+"), ctx.topic("a/b"));
            let mut client = ctx.subscriber('a', &kept, 0)?;
            client.unsubscribe(&[&topic, &ctx.topic("a/#"), &ctx.topic("A/+")])?;
            client.publish(&topic, b"still", 0)?;
            client.receive_payload(b"still").map(drop)
        },
    );
    t.both("MQTT-3.10.4-2", "MQTT-3.10.4-2", "after UNSUBACK nothing new comes", |ctx| {
        let topic = ctx.topic("a");
        let mut client = ctx.subscriber('a', &topic, 1)?;
        client.unsubscribe(&[&topic])?;
        let mut publisher = ctx.connect('b')?;
        publisher.publish(&topic, b"late", 1)?;
        ctx.silent(&mut client, &mut publisher, "message of a deleted subscription")
    });
    t.both(
        "MQTT-3.10.4-3",
        "MQTT-3.10.4-3",
        "a QoS 2 delivery that has begun is completed after UNSUBSCRIBE",
        |ctx| {
            let topic = ctx.topic("a");
            let mut client = ctx.subscriber('a', &topic, 2)?;
            ctx.connect('b')?.publish(&topic, b"begun", 2)?;
            let message = client.message("begun")?;
            client.unsubscribe(&[&topic])?;
            client.send(&wire::ack(kind::PUBREC, message.id))?;
            client.acknowledged(kind::PUBREL, message.id)?;
            client.send(&wire::ack(kind::PUBCOMP, message.id))?;
            client.ping()
        },
    );
    t.both("MQTT-3.10.4-4", "MQTT-3.10.4-4", "UNSUBACK bears the identifier of the UNSUBSCRIBE", |ctx| {
        let topic = ctx.topic("a");
        let mut client = ctx.subscriber('a', &topic, 0)?;
        client.send(&wire::unsubscribe(ctx.version, 0xabcd, &[&topic]))?;
        client.unsubscribed(0xabcd).map(drop)
    });
    t.both("MQTT-3.10.4-5", "MQTT-3.10.4-5", "UNSUBSCRIBE of nothing is answered with UNSUBACK", |ctx| {
        ctx.connect('a')?.unsubscribe(&[ctx.topic("never")]).map(drop)
    });
    t.both("MQTT-3.10.4-6", "MQTT-3.10.4-6", "one UNSUBSCRIBE with several filters deletes each", |ctx| {
        let topics = ["a", "b", "c"].map(|name| ctx.topic(name));
        let mut client = ctx.connect('a')?;
        client.subscribe_all(&topics.each_ref().map(|topic| (topic, 0)))?;
        client.unsubscribe(&[&topics[0], &topics[2]])?;
        for topic in &topics {
            client.publish(topic, topic.as_bytes(), 0)?;
        }
        client.receive_payload(topics[1].as_bytes())?;
        client.silent("message of a deleted subscription")
    });
    t.v5("MQTT-3.11.3-1", "UNSUBACK has a code for each filter, in their order", |ctx| {
        let topics = ["a", "b", "c"].map(|name| ctx.topic(name));
        let mut client = ctx.subscriber('a', &topics[1], 0)?;
        let codes = client.unsubscribe(&topics)?;
        ensure(codes == [0x11, 0, 0x11], "11 00 11", wire::hex(&codes))
    });
    t.v5("MQTT-3.11.3-2", "UNSUBACK has reason codes of its own", |ctx| {
        let topic = ctx.topic("a");
        let codes = ctx.subscriber('a', &topic, 0)?.unsubscribe(&[&topic])?;
        ensure(codes == [0], "00", wire::hex(&codes))
    });
}

/// Closing the connection and a SUBACK with a failure both keep the rule.
fn not_granted(ctx: &mut Ctx<'_>, filter: &str) -> Outcome {
    let mut client = ctx.connect('a')?;
    client.send_unchecked(&wire::subscribe(ctx.version, 1, &[(filter, 0)]));
    match client.next("a refusal") {
        Ok(came) => match &came.packet {
            wire::Packet::SubAck { codes, .. } => {
                ensure(codes.len() == 1 && codes[0] >= 0x80, "subscription refused", came.to_string())
            }
            wire::Packet::Disconnect { code, .. } => ensure(*code >= 0x80, "an error", came.to_string()),
            _ => ensure(false, "subscription refused", came.to_string()),
        },
        Err(_) => client.closed("filter is not valid").map(drop),
    }
}

fn qos_matrix(ctx: &mut Ctx<'_>) -> Outcome {
    let mut publisher = ctx.connect('z')?;
    for (granted, role) in [(0, 'a'), (1, 'b'), (2, 'c')] {
        let topic = ctx.topic(&granted.to_string());
        let mut subscriber: Connection = ctx.connect(role)?;
        let granted = subscriber.subscribe(&topic, granted)?;
        for sent in 0..=2_u8 {
            publisher.publish(&topic, b"x", sent)?;
            let message = subscriber.receive_payload(b"x")?;
            let due = sent.min(granted);
            ensure(
                message.qos == due,
                format!("QoS {due} of {sent} to {granted}"),
                subscriber.shown(&message),
            )?;
        }
    }
    Ok(())
}

fn retain_as_published(ctx: &mut Ctx<'_>, options: u8, retain: bool) -> Outcome {
    let topic = ctx.retained_topic("a");
    let mut subscriber = ctx.subscriber('a', &topic, 1 | options)?;
    let publish = Publish { retain, ..Publish::new(&topic, b"x", 1) };
    ctx.connect('b')?.publish_as(publish)?;
    let message = subscriber.receive_payload(b"x")?;
    let due = retain && options == RETAIN_AS_PUBLISHED;
    ensure(message.retain == due, format!("RETAIN {}", u8::from(due)), subscriber.shown(&message))
}

fn matching(ctx: &mut Ctx<'_>, filter: &str, matches: &[&str], others: &[&str]) -> Outcome {
    let mut client = ctx.subscriber('a', &ctx.topic(filter), 0)?;
    for name in others.iter().chain(matches) {
        client.publish(&ctx.topic(name), name.as_bytes(), 0)?;
    }
    for name in matches {
        client.receive_payload(name.as_bytes())?;
    }
    client.silent("message of another topic")
}

/// Others' messages may come to these filters, so only the topics of our own making are looked at.
fn dollar(ctx: &mut Ctx<'_>) -> Outcome {
    let topic = format!("${}", ctx.topic("a"));
    let marker = ctx.topic("a");
    let depth = vec!["+"; topic.split('/').count()].join("/");
    let mut client = ctx.connect('a')?;
    let codes = client.subscribe_all(&[("#".to_owned(), 0), (depth, 0)])?;
    if codes.iter().any(|code| *code > 2) {
        return not_applicable("the server does not let this user subscribe to #");
    }
    let mut publisher = ctx.connect('b')?;
    publisher.send(&Publish::new(&topic, b"hidden", 0).bytes(ctx.version))?;
    if publisher.publish(&marker, b"marker", 1).is_err() {
        return not_applicable("the server takes no messages for topics that begin with $");
    }
    loop {
        let message = client.receive("the marker")?;
        if message.topic == marker.as_bytes() {
            return Ok(());
        }
        ensure(!message.topic.starts_with(b"$"), "no topic that begins with $", client.shown(&message))?;
    }
}
