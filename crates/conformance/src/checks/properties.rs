//! Where properties may stand, how often, and with which values. A packet that breaks these rules is malformed or a
//! protocol error, and 4.13.1 says what follows: the connection is closed.

use super::Table;
use crate::check::{Ctx, Outcome, Stop};
use crate::wire::{
    self, Connect, Publish, Value, Version, Will, frame, kind, pair, property, put_properties, text,
};

const STATEMENT: &str = "MQTT-4.13.1-1";

pub(super) fn list(t: &mut Table) {
    // CONNECT.
    t.v5(STATEMENT, "Session Expiry Interval twice in CONNECT is refused", |ctx| {
        connect_twice(ctx, property::SESSION_EXPIRY, Value::Long(0))
    });
    t.v5(STATEMENT, "Receive Maximum twice in CONNECT is refused", |ctx| {
        connect_twice(ctx, property::RECEIVE_MAXIMUM, Value::Short(9))
    });
    t.v5(STATEMENT, "Maximum Packet Size twice in CONNECT is refused", |ctx| {
        connect_twice(ctx, property::MAXIMUM_PACKET_SIZE, Value::Long(9_999))
    });
    t.v5(STATEMENT, "Topic Alias Maximum twice in CONNECT is refused", |ctx| {
        connect_twice(ctx, property::TOPIC_ALIAS_MAXIMUM, Value::Short(9))
    });
    t.v5(STATEMENT, "Request Response Information twice in CONNECT is refused", |ctx| {
        connect_twice(ctx, property::REQUEST_RESPONSE, Value::Byte(0))
    });
    t.v5(STATEMENT, "Request Problem Information twice in CONNECT is refused", |ctx| {
        connect_twice(ctx, property::REQUEST_PROBLEM, Value::Byte(1))
    });
    t.v5(STATEMENT, "Receive Maximum 0 is refused", |ctx| {
        connect_once(ctx, property::RECEIVE_MAXIMUM, Value::Short(0))
    });
    t.v5(STATEMENT, "Maximum Packet Size 0 is refused", |ctx| {
        connect_once(ctx, property::MAXIMUM_PACKET_SIZE, Value::Long(0))
    });
    t.v5(STATEMENT, "Request Response Information 2 is refused", |ctx| {
        connect_once(ctx, property::REQUEST_RESPONSE, Value::Byte(2))
    });
    t.v5(STATEMENT, "Request Problem Information 2 is refused", |ctx| {
        connect_once(ctx, property::REQUEST_PROBLEM, Value::Byte(2))
    });
    t.v5(STATEMENT, "Authentication Data without method is refused", |ctx| {
        connect_once(ctx, property::AUTH_DATA, Value::Bytes(vec![1]))
    });
    t.v5(STATEMENT, "Topic Alias in CONNECT is refused", |ctx| {
        connect_once(ctx, property::TOPIC_ALIAS, Value::Short(1))
    });
    t.v5(STATEMENT, "Will Delay Interval among the properties of CONNECT itself is refused", |ctx| {
        connect_once(ctx, property::WILL_DELAY, Value::Long(1))
    });
    t.v5(STATEMENT, "Server Keep Alive in CONNECT is refused", |ctx| {
        connect_once(ctx, property::SERVER_KEEP_ALIVE, Value::Short(1))
    });
    t.v5(STATEMENT, "Reason String in CONNECT is refused", |ctx| {
        connect_once(ctx, property::REASON_STRING, text("x"))
    });
    t.v5(STATEMENT, "an unknown property in CONNECT is refused", |ctx| {
        connect_once(ctx, 0x7e, Value::Byte(0))
    });
    t.v5(STATEMENT, "CONNECT whose property length exceeds the packet is refused", |ctx| {
        ctx.refused_first(
            &frame(0x10, &[0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 100, 0, 0]),
            "property length",
        )
    });
    t.v5(STATEMENT, "CONNECT without property length is refused", |ctx| {
        // The client id's length is read as the length of the properties then.
        ctx.refused_first(&frame(0x10, &[0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60]), "no property length")
    });

    // Will.
    t.v5(STATEMENT, "Will Delay Interval twice is refused", |ctx| {
        will(ctx, &[(property::WILL_DELAY, Value::Long(1)), (property::WILL_DELAY, Value::Long(1))])
    });
    t.v5(STATEMENT, "Topic Alias of a will is refused", |ctx| {
        will(ctx, &[(property::TOPIC_ALIAS, Value::Short(1))])
    });
    t.v5(STATEMENT, "Session Expiry Interval of a will is refused", |ctx| {
        will(ctx, &[(property::SESSION_EXPIRY, Value::Long(1))])
    });

    // PUBLISH.
    t.v5(STATEMENT, "Payload Format Indicator twice closes the connection", |ctx| {
        publish_twice(ctx, property::PAYLOAD_FORMAT, Value::Byte(1))
    });
    t.v5(STATEMENT, "Message Expiry Interval twice closes the connection", |ctx| {
        publish_twice(ctx, property::MESSAGE_EXPIRY, Value::Long(9))
    });
    t.v5(STATEMENT, "Content Type twice closes the connection", |ctx| {
        publish_twice(ctx, property::CONTENT_TYPE, text("x"))
    });
    t.v5(STATEMENT, "Response Topic twice closes the connection", |ctx| {
        publish_twice(ctx, property::RESPONSE_TOPIC, text("x"))
    });
    t.v5(STATEMENT, "Correlation Data twice closes the connection", |ctx| {
        publish_twice(ctx, property::CORRELATION_DATA, Value::Bytes(vec![1]))
    });
    t.v5(STATEMENT, "Topic Alias twice closes the connection", |ctx| {
        publish_twice(ctx, property::TOPIC_ALIAS, Value::Short(1))
    });
    t.v5(STATEMENT, "Session Expiry Interval in PUBLISH closes the connection", |ctx| {
        publish(ctx, &[(property::SESSION_EXPIRY, Value::Long(1))])
    });
    t.v5(STATEMENT, "Reason String in PUBLISH closes the connection", |ctx| {
        publish(ctx, &[(property::REASON_STRING, text("x"))])
    });
    t.v5(STATEMENT, "an unknown property in PUBLISH closes the connection", |ctx| {
        publish(ctx, &[(0x7e, Value::Byte(0))])
    });
    t.v5(STATEMENT, "a property that exceeds the property length closes the connection", |ctx| {
        ctx.refused(&frame(0x30, &[0, 1, b'a', 2, property::MESSAGE_EXPIRY, 0, 0, 0, 1]), "property cut off")
    });

    // The others.
    t.v5(STATEMENT, "Message Expiry Interval in SUBSCRIBE closes the connection", |ctx| {
        let properties = [(property::MESSAGE_EXPIRY, Value::Long(1))];
        let body = wire::subscribe_body(Version::V5, 1, &[(ctx.topic("a"), 0)], &properties);
        ctx.refused(&frame(0x82, &body), "property of another packet")
    });
    t.v5(STATEMENT, "Subscription Identifier twice in SUBSCRIBE closes the connection", |ctx| {
        let id = (property::SUBSCRIPTION_ID, Value::Variable(1));
        let body = wire::subscribe_body(Version::V5, 1, &[(ctx.topic("a"), 0)], &[id.clone(), id]);
        ctx.refused(&frame(0x82, &body), "property twice")
    });
    t.v5(STATEMENT, "Subscription Identifier in UNSUBSCRIBE closes the connection", |ctx| {
        let mut body = vec![0, 1];
        put_properties(&mut body, &[(property::SUBSCRIPTION_ID, Value::Variable(1))]);
        wire::put_bytes(&mut body, b"a");
        ctx.refused(&frame(0xa2, &body), "property of another packet")
    });
    t.v5(STATEMENT, "Topic Alias in PUBACK closes the connection", |ctx| {
        acknowledge(ctx, 1, kind::PUBACK, 0, &[(property::TOPIC_ALIAS, Value::Short(1))])
    });
    t.v5(STATEMENT, "Reason String twice in PUBACK closes the connection", |ctx| {
        let reason = (property::REASON_STRING, text("x"));
        acknowledge(ctx, 1, kind::PUBACK, 0, &[reason.clone(), reason])
    });
    t.v5(STATEMENT, "a reason code that PUBACK does not have closes the connection", |ctx| {
        acknowledge(ctx, 1, kind::PUBACK, 0x55, &[])
    });
    t.v5(STATEMENT, "a reason code that PUBREC does not have closes the connection", |ctx| {
        acknowledge(ctx, 2, kind::PUBREC, 0x92, &[])
    });
    t.v5(STATEMENT, "a reason code that PUBREL does not have closes the connection", |ctx| {
        let mut client = ctx.connect('a')?;
        client.send(&Publish::new(ctx.topic("a"), b"x", 2).id(1).bytes(Version::V5))?;
        client.acknowledged(kind::PUBREC, 1)?;
        client.send_unchecked(&wire::ack_with(kind::PUBREL, 1, 0x10));
        client.closed("reason code").map(drop)
    });
    t.v5(STATEMENT, "Reason String and User Property in PUBACK are taken", |ctx| {
        let properties = [(property::REASON_STRING, text("fine")), (property::USER_PROPERTY, pair("k", "v"))];
        let mut client = acknowledging(ctx, 1, kind::PUBACK, 0, &properties)?;
        client.ping()
    });
    t.v5(STATEMENT, "Receive Maximum in DISCONNECT closes the connection as an error", |ctx| {
        let mut body = vec![0];
        put_properties(&mut body, &[(property::RECEIVE_MAXIMUM, Value::Short(1))]);
        ctx.refused(&frame(0xe0, &body), "property of another packet")
    });
}

fn connect_once(ctx: &mut Ctx<'_>, id: u8, value: Value) -> Outcome {
    let connect = ctx.hello('a').with(id, value);
    ctx.refused_first(&connect.bytes(), &format!("property {id:#04x}"))
}

fn connect_twice(ctx: &mut Ctx<'_>, id: u8, value: Value) -> Outcome {
    let connect = ctx.hello('a').with(id, value.clone()).with(id, value);
    ctx.refused_first(&connect.bytes(), &format!("property {id:#04x} twice"))
}

fn will(ctx: &mut Ctx<'_>, properties: &[(u8, Value)]) -> Outcome {
    let will = Will {
        topic: ctx.topic("will").into_bytes(),
        payload: b"x".to_vec(),
        properties: properties.to_vec(),
        ..Will::default()
    };
    let connect = Connect { will: Some(will), ..ctx.hello('a') };
    ctx.refused_first(&connect.bytes(), "properties of the will")
}

fn publish(ctx: &mut Ctx<'_>, properties: &[(u8, Value)]) -> Outcome {
    let mut publish = Publish::new(ctx.topic("a"), b"x", 1).id(1);
    publish.properties.0.extend_from_slice(properties);
    ctx.refused(&publish.bytes(Version::V5), "properties of PUBLISH")
}

fn publish_twice(ctx: &mut Ctx<'_>, id: u8, value: Value) -> Outcome {
    publish(ctx, &[(id, value.clone()), (id, value)])
}

fn acknowledge(ctx: &mut Ctx<'_>, qos: u8, kind: u8, reason: u8, properties: &[(u8, Value)]) -> Outcome {
    let mut client = acknowledging(ctx, qos, kind, reason, properties)?;
    client.closed(&format!("{} with reason {reason:#04x}, {properties:?}", wire::name(kind))).map(drop)
}

/// A client that has just sent this acknowledgement for a message it got.
fn acknowledging(
    ctx: &mut Ctx<'_>,
    qos: u8,
    kind: u8,
    reason: u8,
    properties: &[(u8, Value)],
) -> Result<crate::connection::Connection, Stop> {
    let topic = ctx.topic("a");
    let mut client = ctx.subscriber('a', &topic, 2)?;
    ctx.connect('b')?.publish(&topic, b"x", qos)?;
    let message = client.message("to acknowledge")?;
    let mut body = message.id.to_be_bytes().to_vec();
    body.push(reason);
    put_properties(&mut body, properties);
    client.send_unchecked(&frame(kind << 4, &body));
    Ok(client)
}
