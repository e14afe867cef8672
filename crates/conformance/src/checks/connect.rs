//! CONNECT and CONNACK.

use std::time::{Duration, Instant};

use super::Table;
use crate::check::{CLOCK_SLACK, Ctx, Outcome, Stop, ensure, fail, not_applicable};
use crate::connection::Connection;
use crate::wire::{
    self, Connect, Packet, Publish, Value, Version, Will, frame, kind, property, put_bytes, text,
};

pub(super) fn list(t: &mut Table) {
    t.both("MQTT-3.1.2-1", "MQTT-3.1.2-1", "protocol name MQTX is refused", |ctx| {
        let connect = Connect { name: b"MQTX".to_vec(), ..ctx.hello('a') };
        ctx.refused_first(&connect.bytes(), "protocol name")
    });
    t.both("MQTT-3.1.2-1", "MQTT-3.1.2-1", "protocol name mqtt in small letters is refused", |ctx| {
        let connect = Connect { name: b"mqtt".to_vec(), ..ctx.hello('a') };
        ctx.refused_first(&connect.bytes(), "protocol name")
    });
    t.v4("MQTT-3.1.2-2", "protocol level 99 is answered with 0x01 (or 5.0's 0x84), then closed", |ctx| {
        let connect = Connect { level: 99, ..ctx.hello('a') };
        let mut client = ctx.open()?;
        client.send_unchecked(&connect.bytes());
        match client.refused("protocol level 99")? {
            Some(1 | 0x84) => Ok(()),
            said => fail("CONNACK 0x01", format!("{said:?}, then closed")),
        }
    });
    t.v5("MQTT-3.1.2-2", "protocol level 99 is refused", |ctx| {
        let connect = Connect { level: 99, ..ctx.hello('a') };
        ctx.refused_first(&connect.bytes(), "protocol level 99")
    });
    t.both("MQTT-3.1.2-3", "MQTT-3.1.2-3", "reserved connect flag 1 is refused", |ctx| {
        flipped(ctx, 0x01, None)
    });

    // Flags and the payload they promise.
    t.both("MQTT-3.1.2-13", "MQTT-3.1.2-11", "will QoS 1 without will flag is refused", |ctx| {
        flipped(ctx, 0x08, None)
    });
    t.both("MQTT-3.1.2-15", "MQTT-3.1.2-13", "will retain without will flag is refused", |ctx| {
        flipped(ctx, 0x20, None)
    });
    t.both("MQTT-3.1.2-14", "MQTT-3.1.2-12", "will QoS 3 is refused", |ctx| {
        let will = will(ctx, 3);
        flipped(ctx, 0, Some(will))
    });
    t.both("MQTT-3.1.2-9", "MQTT-3.1.2-9", "will flag without will topic and payload is refused", |ctx| {
        let connect = Connect { user: None, password: None, flags_flipped: 0x04, ..ctx.hello('a') };
        ctx.refused_first(&connect.bytes(), "will fields missing")
    });
    t.v4("MQTT-3.1.2-11", "will fields without will flag are refused", |ctx| {
        let will = will(ctx, 0);
        flipped(ctx, 0x04, Some(will))
    });
    t.both("MQTT-3.1.2-18", "MQTT-3.1.2-16", "user name without its flag is refused", |ctx| {
        let connect =
            Connect { user: Some(b"u".to_vec()), password: None, flags_flipped: 0x80, ..ctx.hello('a') };
        ctx.refused_first(&connect.bytes(), "user name not announced")
    });
    t.both("MQTT-3.1.2-19", "MQTT-3.1.2-17", "user name flag without user name is refused", |ctx| {
        let connect = Connect { user: None, password: None, flags_flipped: 0x80, ..ctx.hello('a') };
        ctx.refused_first(&connect.bytes(), "user name missing")
    });
    t.both("MQTT-3.1.2-20", "MQTT-3.1.2-18", "password without its flag is refused", |ctx| {
        let mut connect = Connect { password: Some(b"p".to_vec()), flags_flipped: 0x40, ..ctx.hello('a') };
        connect.user.get_or_insert_with(|| b"u".to_vec());
        ctx.refused_first(&connect.bytes(), "password not announced")
    });
    t.both("MQTT-3.1.2-21", "MQTT-3.1.2-19", "password flag without password is refused", |ctx| {
        let mut connect = Connect { password: None, flags_flipped: 0x40, ..ctx.hello('a') };
        connect.user.get_or_insert_with(|| b"u".to_vec());
        ctx.refused_first(&connect.bytes(), "password missing")
    });
    t.v4("MQTT-3.1.2-22", "password flag without user name flag is refused", |ctx| {
        let connect = Connect { user: None, password: Some(b"p".to_vec()), ..ctx.hello('a') };
        ctx.refused_first(&connect.bytes(), "password without user name")
    });

    // Keep alive.
    t.both(
        "MQTT-3.1.2-24",
        "MQTT-3.1.2-22",
        "silence of 1.5 times the keep alive closes the connection",
        keep_alive,
    );
    t.both(
        "MQTT-3.1.2-24",
        "MQTT-3.1.2-22",
        "PINGREQs within the keep alive keep the connection open",
        |ctx| {
            let mut client = ctx.connect_with(&Connect { keep_alive_seconds: 1, ..ctx.hello('a') })?;
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(600));
                client.ping()?;
            }
            Ok(())
        },
    );
    t.v5("MQTT-3.2.2-22", "without Server Keep Alive, the client's own keep alive counts", |ctx| {
        let client = ctx.connect_with(&Connect { keep_alive_seconds: 2, ..ctx.hello('a') })?;
        match client.server.number(property::SERVER_KEEP_ALIVE) {
            Some(seconds) => not_applicable(format!("the server announced Server Keep Alive {seconds}")),
            None => keep_alive(ctx),
        }
    });

    // Requests.
    t.v5("MQTT-3.1.2-28", "without Request Response Information none comes", |ctx| {
        let plain = ctx.connect('a')?;
        let zero = ctx.hello('b').with(property::REQUEST_RESPONSE, Value::Byte(0));
        let asked = ctx.connect_with(&zero)?;
        for client in [plain, asked] {
            let has = client.server.get(property::RESPONSE_INFORMATION).is_some();
            ensure(!has, "no Response Information", format!("{:?}", client.server))?;
        }
        Ok(())
    });
    t.v5(
        "MQTT-3.1.2-29",
        "with Request Problem Information 0, acknowledgements bear no reason strings",
        problem_info,
    );

    // The payload.
    t.both(
        "MQTT-3.1.3-1",
        "MQTT-3.1.3-1",
        "client id, will, user name and password in their order are understood",
        |ctx| {
            let topic = ctx.topic("will");
            let mut watcher = ctx.subscriber('b', &topic, 0)?;
            let will =
                Will { topic: topic.clone().into_bytes(), payload: b"gone".to_vec(), ..Will::default() };
            let client = ctx.connect_with(&Connect { will: Some(will), ..ctx.hello('a') })?;
            client.drop_dead();
            watcher.receive_payload(b"gone").map(drop)
        },
    );
    t.both("MQTT-3.1.3-2", "MQTT-3.1.3-2", "sessions of different client ids are apart", |ctx| {
        let topic = ctx.topic("a");
        let mut first = ctx.connect_with(&ctx.hello('a'))?;
        first.subscribe(&topic, 0)?;
        let mut second = ctx.connect('b')?;
        ctx.connect('c')?.publish(&topic, b"x", 1)?;
        first.receive_payload(b"x")?;
        let mut third = ctx.connect('d')?;
        ctx.silent(&mut second, &mut third, "message for somebody else's subscription")
    });
    t.both("MQTT-3.1.3-3", "MQTT-3.1.3-3", "CONNECT without client id field is refused", |ctx| {
        let mut body = Vec::new();
        put_bytes(&mut body, b"MQTT");
        body.extend_from_slice(&[if ctx.is_v5() { 5 } else { 4 }, 2, 0, 60]);
        if ctx.is_v5() {
            body.push(0);
        }
        ctx.refused_first(&frame(0x10, &body), "no client id")
    });
    t.both("MQTT-3.1.3-4", "MQTT-3.1.3-4", "client id that is not UTF-8 is refused", |ctx| {
        let mut connect = ctx.hello('a');
        connect.client.push(0xff);
        ctx.refused_first(&connect.bytes(), "client id is not UTF-8")
    });
    t.both("MQTT-3.1.3-10", "MQTT-3.1.3-11", "will topic that is not UTF-8 is refused", |ctx| {
        let mut will = will(ctx, 0);
        will.topic.push(0xff);
        flipped(ctx, 0, Some(will))
    });
    t.both("MQTT-3.1.3-11", "MQTT-3.1.3-12", "user name that is not UTF-8 is refused", |ctx| {
        let connect = Connect { user: Some(vec![b'u', 0xff]), ..ctx.hello('a') };
        ctx.refused_first(&connect.bytes(), "user name is not UTF-8")
    });
    t.both("MQTT-3.1.3-5", "MQTT-3.1.3-5", "client ids of 23 letters and digits are accepted", |ctx| {
        // A run's own beginning keeps two runs from taking each other's connection over.
        let own: String = ctx.client('a').chars().skip(6).collect();
        for rest in ["0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ0123456"] {
            let client: String = own.chars().chain(rest.chars()).take(23).collect();
            ctx.connect_with(&Connect { client: client.into_bytes(), ..ctx.hello('a') })?.disconnect();
            let client: String = own.chars().chain(rest.chars().rev()).take(23).collect();
            ctx.connect_with(&Connect { client: client.into_bytes(), ..ctx.hello('a') })?.disconnect();
        }
        Ok(())
    });
    t.both("MQTT-3.1.3-5", "MQTT-3.1.3-5", "a client id of one character is accepted", |ctx| {
        // Clean, and gone at once: nobody else's session is likely to bear this name.
        ctx.connect_with(&Connect { client: b"Q".to_vec(), ..ctx.hello('a') })?.disconnect();
        Ok(())
    });
    t.both("MQTT-3.1.3-6", "MQTT-3.1.3-6", "two clients with empty ids are two clients", |ctx| {
        let anonymous = Connect { client: Vec::new(), ..ctx.hello('a') };
        let mut first = match ctx.connect_with(&anonymous) {
            Ok(first) => first,
            Err(_) => return not_applicable("the server takes no empty client ids"),
        };
        let mut second = ctx.connect_with(&anonymous)?;
        first.ping()?;
        second.ping()
    });
    t.v4("MQTT-3.1.3-8", "empty client id with CleanSession 0 is answered with 0x02, then closed", |ctx| {
        let connect = Connect { client: Vec::new(), clean: false, ..ctx.hello('a') };
        let mut client = ctx.open()?;
        client.send_unchecked(&connect.bytes());
        match client.refused("empty client id with CleanSession 0")? {
            Some(2) => Ok(()),
            said => fail("CONNACK 0x02", format!("{said:?}, then closed")),
        }
    });
    t.v4("MQTT-3.1.3-9", "a client id that is rejected gets 0x02, and no other code", |ctx| {
        let connect = Connect { client: Vec::new(), clean: false, ..ctx.hello('a') };
        let mut client = ctx.open()?;
        client.send_unchecked(&connect.bytes());
        let said = client.refused("rejected client id")?;
        ensure(said == Some(2), "CONNACK 0x02", format!("{said:?}, then closed"))
    });
    t.v5("MQTT-3.1.3-7", "a client without id is told the one assigned to it", |ctx| {
        let client = nameless(ctx, &ctx.hello('a'))?;
        match client.server.get(property::ASSIGNED_CLIENT_ID) {
            Some(Value::Text(id)) if !id.is_empty() => Ok(()),
            _ => fail("Assigned Client Identifier", format!("{:?}", client.server)),
        }
    });
    t.v5("MQTT-3.1.3-6", "the assigned client id resumes its session", assigned_resumes);
    t.v5("MQTT-3.2.2-16", "assigned client ids differ", |ctx| {
        let (first, second) = (nameless(ctx, &ctx.hello('a'))?, nameless(ctx, &ctx.hello('a'))?);
        let ids = [&first, &second].map(|client| client.server.get(property::ASSIGNED_CLIENT_ID).cloned());
        ensure(ids[0].is_some() && ids[0] != ids[1], "two different ids", format!("{ids:?}"))
    });

    // Taking and refusing.
    t.both("MQTT-3.1.4-1", "MQTT-3.1.4-1", "CONNECT with bytes behind its payload is refused", |ctx| {
        let mut body = ctx.hello('a').body();
        body.extend_from_slice(b"more");
        nonconforming(ctx, &frame(0x10, &body))
    });
    t.both("MQTT-3.1.4-1", "MQTT-3.1.4-1", "CONNECT that ends in its variable header is refused", |ctx| {
        nonconforming(ctx, &[0x10, 0x08, 0, 4, b'M', b'Q', b'T', b'T', if ctx.is_v5() { 5 } else { 4 }, 2])
    });
    t.both("MQTT-3.1.4-4", "MQTT-3.1.4-5", "a valid CONNECT is answered with CONNACK 0", |ctx| {
        ctx.connect('a').map(drop)
    });
    t.both("MQTT-3.1.4-5", "MQTT-3.1.4-6", "what follows a refused CONNECT is not processed", |ctx| {
        let topic = ctx.retained_topic("a");
        let mut watcher = ctx.subscriber('b', &topic, 0)?;
        let mut refused = ctx.open()?;
        let connect = Connect { level: 99, ..ctx.hello('a') };
        let publish = Publish::new(&topic, b"smuggled", 0).retained().bytes(ctx.version);
        refused.send_unchecked(&[connect.bytes(), publish].concat());
        refused.refused("protocol level 99")?;
        let mut other = ctx.connect('c')?;
        ctx.silent(&mut watcher, &mut other, "message from a refused client")
    });
    t.both("MQTT-3.2.0-1", "MQTT-3.2.0-1", "CONNACK comes before queued messages", |ctx| {
        let topic = ctx.topic("a");
        let lasting = ctx.lasting('a');
        let mut client = ctx.connect_with(&lasting)?;
        client.subscribe(&topic, 1)?;
        client.disconnect();
        ctx.connect('b')?.publish(&topic, b"queued", 1)?;
        ctx.connect_with(&lasting)?.receive_payload(b"queued").map(drop)
    });
    t.v5("MQTT-3.2.0-2", "a connection has one CONNACK", |ctx| {
        let mut client = ctx.connect('a')?;
        client.subscribe(&ctx.topic("a"), 0)?;
        client.send(&wire::PINGREQ)?;
        let came = client.next("PINGRESP")?;
        ensure(came.packet == Packet::PingResp, "PINGRESP", came.to_string())
    });
    t.v5("MQTT-3.2.2-1", "CONNACK flags other than Session Present are 0", |ctx| {
        ctx.connect_with(&ctx.hello('a'))?;
        let lasting = ctx.lasting('a');
        ctx.connect_with(&lasting)?.disconnect();
        ctx.connect_with(&lasting).map(drop)
    });
    t.both(
        "MQTT-3.2.2-1",
        "MQTT-3.2.2-2",
        "clean start gets Session Present 0 though there was a session",
        |ctx| {
            let lasting = ctx.lasting('a');
            ctx.connect_with(&lasting)?.disconnect();
            let client = ctx.connect('a')?;
            ensure(!client.session_present, "Session Present 0", "Session Present 1")
        },
    );
    t.both("MQTT-3.2.2-2", "MQTT-3.2.2-3", "resuming a stored session gets Session Present 1", |ctx| {
        let lasting = ctx.lasting('a');
        ctx.connect_with(&lasting)?.disconnect();
        let client = ctx.connect_with(&lasting)?;
        ensure(client.session_present, "Session Present 1", "Session Present 0")
    });
    t.both(
        "MQTT-3.2.2-3",
        "MQTT-3.2.2-3",
        "resuming where nothing is stored gets Session Present 0",
        |ctx| {
            let lasting = ctx.lasting('a');
            let client = ctx.connect_with(&lasting)?;
            ensure(!client.session_present, "Session Present 0", "Session Present 1")
        },
    );
    t.both("MQTT-3.2.2-4", "MQTT-3.2.2-6", "a refusing CONNACK has Session Present 0", |ctx| {
        let lasting = ctx.lasting('a');
        ctx.connect_with(&lasting)?.disconnect();
        ctx.refused_first(&Connect { level: 99, ..lasting }.bytes(), "protocol level 99")
    });
    t.both("MQTT-3.2.2-5", "MQTT-3.2.2-7", "after a refusing CONNACK the connection is closed", |ctx| {
        let mut client = ctx.open()?;
        client.send_unchecked(&Connect { level: 99, ..ctx.hello('a') }.bytes());
        match client.refused("protocol level 99")? {
            Some(_) => Ok(()),
            None => not_applicable("the server closes without a CONNACK"),
        }
    });
    t.both("MQTT-3.2.2-5", "MQTT-3.1.4-2", "a client that may not come in is turned away", |ctx| {
        let stranger = Connect {
            user: Some(b"nobody-of-this-name".to_vec()),
            password: Some(b"nor-this-password".to_vec()),
            ..ctx.hello('a')
        };
        if ctx.connect_with(&stranger).is_ok() {
            return not_applicable("the server takes any user name");
        }
        ctx.refused_first(&stranger.bytes(), "unknown user name")
    });
    t.v5("MQTT-3.2.2-9", "a server that announces no Maximum QoS serves QoS 2", |ctx| {
        let mut client = ctx.connect('a')?;
        match client.server_limit(property::MAXIMUM_QOS) {
            2 => client.publish(&ctx.topic("a"), b"x", 2),
            _ if client.server.number(property::MAXIMUM_QOS) > Some(1) => {
                fail("Maximum QoS 0 or 1", format!("{:?}", client.server))
            }
            qos => not_applicable(format!("the server announced Maximum QoS {qos}")),
        }
    });
    t.v5("MQTT-3.2.2-10", "SUBSCRIBE with QoS 0, 1 and 2 is accepted whatever the Maximum QoS", |ctx| {
        let filters = [(ctx.topic("0"), 0), (ctx.topic("1"), 1), (ctx.topic("2"), 2)];
        let codes = ctx.connect('a')?.subscribe_all(&filters)?;
        ensure(codes.iter().all(|code| *code <= 2), "three granted", wire::hex(&codes))
    });
    t.v5("MQTT-3.2.2-12", "a will above the Maximum QoS is refused", |ctx| {
        let maximum = ctx.connect('a')?.server_limit(property::MAXIMUM_QOS);
        if maximum == 2 {
            return not_applicable("the server announced no Maximum QoS");
        }
        let will = will(ctx, 2);
        flipped(ctx, 0, Some(will))
    });
    t.v5("MQTT-3.2.2-13", "a retained will without Retain Available is refused", |ctx| {
        if ctx.connect('a')?.server_limit(property::RETAIN_AVAILABLE) == 1 {
            return not_applicable("the server announced no Retain Available=0");
        }
        let will = Will { retain: true, ..will(ctx, 0) };
        flipped(ctx, 0, Some(will))
    });
    t.v5("MQTT-3.2.2-8", "what CONNACK announces has values that exist", |ctx| {
        let client = ctx.connect('a')?;
        for (id, value) in &client.server.0 {
            let good = match id {
                &property::RECEIVE_MAXIMUM | &property::MAXIMUM_PACKET_SIZE => client.server_limit(*id) > 0,
                &property::MAXIMUM_QOS
                | &property::RETAIN_AVAILABLE
                | &property::WILDCARD_AVAILABLE
                | &property::SUBSCRIPTION_ID_AVAILABLE
                | &property::SHARED_AVAILABLE => client.server_limit(*id) <= 1,
                _ => true,
            };
            ensure(good, "a value of the specification", format!("property {id:#04x} = {value:?}"))?;
        }
        Ok(())
    });
    t.v5("MQTT-4.12.0-1", "an unknown authentication method is refused", |ctx| {
        let connect = ctx.hello('a').with(property::AUTH_METHOD, text("no-such-method"));
        ctx.refused_first(&connect.bytes(), "authentication method")
    });
    t.v5("MQTT-4.12.0-6", "without authentication method there is none in CONNACK", |ctx| {
        let client = ctx.connect('a')?;
        let none = client.server.get(property::AUTH_METHOD).is_none();
        ensure(none, "no Authentication Method", format!("{:?}", client.server))
    });
}

fn will(ctx: &Ctx<'_>, qos: u8) -> Will {
    Will { topic: ctx.topic("will").into_bytes(), payload: b"gone".to_vec(), qos, ..Will::default() }
}

fn flipped(ctx: &mut Ctx<'_>, flags: u8, will: Option<Will>) -> Outcome {
    let connect = Connect { flags_flipped: flags, will, ..ctx.hello('a') };
    ctx.refused_first(&connect.bytes(), &format!("flags flipped {flags:#04x}"))
}

/// 3.1.1 wants no CONNACK for what is not a CONNECT at all; 5.0 allows one with an error.
fn nonconforming(ctx: &mut Ctx<'_>, bytes: &[u8]) -> Outcome {
    let mut client = ctx.open()?;
    client.send_unchecked(bytes);
    match client.refused("CONNECT does not conform")? {
        Some(code) if !ctx.is_v5() => {
            fail("closed without CONNACK", format!("CONNACK {code:#04x}, then closed"))
        }
        _ => Ok(()),
    }
}

fn keep_alive(ctx: &mut Ctx<'_>) -> Outcome {
    let mut client = ctx.connect_with(&Connect { keep_alive_seconds: 2, ..ctx.hello('a') })?;
    let seconds = client.server.number(property::SERVER_KEEP_ALIVE).unwrap_or(2);
    if seconds > 10 {
        return not_applicable(format!("the server announced Server Keep Alive {seconds}"));
    }
    let since = Instant::now();
    client.wait_for(Duration::from_millis(u64::from(seconds) * 1_500) + CLOCK_SLACK);
    client.closed("no packet within 1.5 times the keep alive")?;
    let took = since.elapsed();
    let early = took < Duration::from_secs(u64::from(seconds));
    ensure(!early, "closed after the keep alive", format!("closed after {took:?}"))
}

fn problem_info(ctx: &mut Ctx<'_>) -> Outcome {
    let hello = ctx.hello('a').with(property::REQUEST_PROBLEM, Value::Byte(0));
    let mut client = ctx.connect_with(&hello)?;
    let topic = ctx.topic("a");
    if client.server_limit(property::MAXIMUM_QOS) < 2 {
        return not_applicable("the server announced Maximum QoS below 2");
    }
    client.send(&Publish::new(&topic, b"x", 1).id(1).bytes(Version::V5))?;
    client.send(&Publish::new(&topic, b"x", 2).id(2).bytes(Version::V5))?;
    client.send(&wire::subscribe(Version::V5, 3, &[(&topic, 0)]))?;
    client.send(&wire::unsubscribe(Version::V5, 4, &[ctx.topic("none")]))?;
    client.send(&wire::ack(kind::PUBREL, 99))?;
    for _ in 0..5 {
        let came = client.next("an acknowledgement")?;
        let properties = match &came.packet {
            Packet::Ack { properties, .. }
            | Packet::SubAck { properties, .. }
            | Packet::UnsubAck { properties, .. } => properties,
            _ => continue,
        };
        ensure(properties.0.is_empty(), "no reason string or user property", came.to_string())?;
    }
    Ok(())
}

/// A client without id of its own, which a server need not take.
fn nameless(ctx: &Ctx<'_>, hello: &Connect) -> Result<Connection, Stop> {
    match ctx.connect_with(&Connect { client: Vec::new(), ..hello.clone() }) {
        Err(Stop::Fail { .. }) => not_applicable("the server takes no empty client ids"),
        taken => taken,
    }
}

fn assigned_resumes(ctx: &mut Ctx<'_>) -> Outcome {
    let first = nameless(ctx, &ctx.hello('a').with(property::SESSION_EXPIRY, Value::Long(60)))?;
    let Some(Value::Text(id)) = first.server.get(property::ASSIGNED_CLIENT_ID).cloned() else {
        return fail("Assigned Client Identifier", format!("{:?}", first.server));
    };
    first.disconnect();
    let known = Connect { client: id.into_bytes(), clean: false, ..ctx.hello('a') };
    let second = ctx.connect_with(&known)?; // Without expiry, so that nothing is left behind.
    ensure(second.session_present, "Session Present 1", "Session Present 0")
}
