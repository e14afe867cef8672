//! PINGREQ and DISCONNECT.

use super::Table;
use crate::check::ensure;
use crate::wire::{self, Connect, Packet, Publish, Value, Version, frame, property};

pub(super) fn list(t: &mut Table) {
    t.both("MQTT-3.12.4-1", "MQTT-3.12.4-1", "PINGREQ is answered with PINGRESP", |ctx| {
        ctx.connect('a')?.ping()
    });
    t.both("MQTT-3.12.4-1", "MQTT-3.12.4-1", "each of ten PINGREQs is answered", |ctx| {
        let mut client = ctx.connect('a')?;
        client.send(&wire::PINGREQ.repeat(10))?;
        for _ in 0..10 {
            let came = client.next("PINGRESP")?;
            ensure(came.packet == Packet::PingResp, "PINGRESP", came.to_string())?;
        }
        Ok(())
    });
    t.both(
        "MQTT-3.14.1-1",
        "MQTT-3.14.1-1",
        "DISCONNECT with fixed header flags 0001 closes the connection as an error",
        |ctx| {
            let topic = ctx.topic("will");
            let mut watcher = ctx.subscriber('b', &topic, 0)?;
            let will =
                wire::Will { topic: topic.into_bytes(), payload: b"gone".to_vec(), ..wire::Will::default() };
            let mut client = ctx.connect_with(&Connect { will: Some(will), ..ctx.hello('a') })?;
            client.send_unchecked(&[0xe1, 0x00]);
            client.closed("flags of DISCONNECT")?;
            watcher.receive_payload(b"gone").map(drop)
        },
    );
    t.v5(
        "MQTT-3.14.2-1",
        "DISCONNECT with a reason code that does not exist closes the connection as an error",
        |ctx| ctx.refused(&[0xe0, 0x01, 0x55], "reason code 0x55"),
    );
    t.both("MQTT-3.14.4-2", "MQTT-3.14.4-2", "after DISCONNECT the connection is closed", |ctx| {
        let mut client = ctx.connect('a')?;
        client.send_unchecked(&wire::DISCONNECT);
        client.closed("the client said DISCONNECT").map(drop)
    });
    t.both(
        "MQTT-3.14.4-1",
        "MQTT-3.14.4-1",
        "what a client sends behind DISCONNECT is not processed",
        |ctx| {
            let topic = ctx.topic("a");
            let mut watcher = ctx.subscriber('b', &topic, 0)?;
            let mut client = ctx.connect('a')?;
            let late = Publish::new(&topic, b"late", 0).bytes(ctx.version);
            client.send_unchecked(&[wire::DISCONNECT.to_vec(), late].concat());
            client.closed("the client said DISCONNECT")?;
            let mut other = ctx.connect('c')?;
            ctx.silent(&mut watcher, &mut other, "message behind a DISCONNECT")
        },
    );
    t.v5("MQTT-3.14.0-1", "before CONNACK the server sends no DISCONNECT", |ctx| {
        ctx.refused_first(&Connect { level: 99, ..ctx.hello('a') }.bytes(), "protocol level")?;
        ctx.refused_first(&frame(0x11, &ctx.hello('a').body()), "flags of CONNECT")?;
        ctx.refused_first(&wire::PINGREQ, "no CONNECT yet")
    });
    t.v5("MQTT-3.14.2-2", "the server's DISCONNECT has no session expiry", |ctx| {
        let lasting = ctx.lasting('a');
        let mut client = ctx.connect_with(&lasting)?;
        client.send_unchecked(&frame(0x36, &[0, 1, b'a', 0, 1, 0]));
        client.closed("QoS 3").map(drop)
    });
    t.v5("MQTT-4.13.1-1", "DISCONNECT with session expiry after CONNECT without closes as an error", |ctx| {
        let mut client = ctx.connect('a')?;
        client.send_unchecked(&frame(0xe0, &[0, 5, property::SESSION_EXPIRY, 0, 0, 0, 9]));
        client.closed("session expiry cannot begin at DISCONNECT")?;
        // The client must not have got a session out of it.
        let again = ctx.connect_with(&Connect { clean: false, ..ctx.hello('a') })?;
        ensure(!again.session_present, "Session Present 0", "Session Present 1")
    });
    t.v5("MQTT-3.15.1-1", "AUTH with fixed header flags 0001 closes the connection", |ctx| {
        ctx.refused(&[0xf1, 0x00], "flags of AUTH")
    });
    t.v5("MQTT-4.13.1-1", "AUTH of a client without authentication method closes the connection", |ctx| {
        ctx.refused(&[0xf0, 0x02, 0x19, 0x00], "no authentication method")
    });
    t.v5("MQTT-4.13.2-1", "a reason code of 0x80 or more ends the connection", |ctx| {
        let mut client = ctx.connect('a')?;
        let twice = Publish::new(ctx.topic("a"), b"x", 0)
            .with(property::PAYLOAD_FORMAT, Value::Byte(0))
            .with(property::PAYLOAD_FORMAT, Value::Byte(0));
        client.send_unchecked(&twice.bytes(Version::V5));
        client.closed("property twice").map(drop)
    });
}
