//! What must hold for any bytes that a device sends.

mod legal; // what the specifications let a client send

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use base64::Engine;
use bumpalo::Bump;
use dunlin_broker::{Delivery, Message, Will, check_topic};
use dunlin_journal::{Batch, Entries as Stored, Offset};
use dunlin_model::{
    MetricName, RejectReason, TimePolicy, Timestamp, ValueRef,
    avro::{self, Datum},
    limits::{MESSAGE_BYTES_MAX, MESSAGE_RECORDS_MAX, RECORD_READINGS_MAX, TEXT_BYTES_MAX},
};
use ntex::{
    codec::Decoder,
    util::{BytePages, Bytes, BytesMut},
};
use serde_json::Value;

use crate::{
    decode::{Entries, Entry, Fault, decode},
    http, line_protocol,
    line_protocol::{Precision, Reader},
    proxy,
    record::{self, Arrival, Origin, append_entries, append_telemetry},
    topic::Route,
    websocket,
    wire::{Connect, Greeting, Inbound, Publish, Version, Wire, broker_qos},
};

const NOW: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);
const CONNECT_BYTES_MAX: u32 = 16 << 10;
const PACKET_BYTES_MAX: u32 = MESSAGE_BYTES_MAX as u32 + (4 << 10);
/// A refusal is kept with its words: they do not grow with what is refused.
const FAULT_BYTES_MAX: usize = 2 << 10;

/// All that a client says, from its CONNECT on. The first byte counts the bytes behind it that say how the rest is cut
/// into pieces. What is understood does not depend on the pieces and was legal, and what is passed on to subscribers is
/// understood by them as it was meant.
pub fn mqtt(data: &[u8]) {
    let Some((count, rest)) = data.split_first() else { return };
    let (sizes, stream) = rest.split_at(rest.len().min(usize::from(*count)));
    let whole = Heard::of([stream]);
    assert_eq!(Heard::of(pieces(stream, sizes)).words(), whole.words());
    assert_eq!(Heard::of(stream.chunks(1)).words(), whole.words());
    is_refused_for_a_reason(&whole, stream);
    let version = whole.version.unwrap_or(Version::V5);
    for (packet, (first, body)) in whole.packets.iter().zip(legal::packets(stream)) {
        let is_legal = legal::is_legal(first, body, version);
        assert!(is_legal || matches!(packet, Inbound::Unexpected), "{first:#x} {body:02x?} is {packet:?}");
        match packet {
            Inbound::Connect(Connect { will: Some(will), .. }) => {
                assert!(!will.properties.texts().any(|text| text.contains('\0')));
                passes_on(&of_will(will));
            }
            Inbound::Publish(publish, payload) => {
                leads_where_it_says(&publish.topic);
                passes_on(&of_publish(publish, payload));
            }
            _ => {}
        }
    }
}

/// What ends a connection is not legal, comes in the wrong place, is too large, or is a will that nobody is to get.
fn is_refused_for_a_reason(whole: &Heard, stream: &[u8]) {
    let (Some(error), Some(version)) = (&whole.end, whole.version) else { return };
    if error == OUT_OF_PLACE {
        return;
    }
    let Some((first, body)) = legal::packets(stream).nth(whole.packets.len()) else { return };
    let is_connect = first == 0x10;
    if is_connect == whole.packets.is_empty()
        && !(is_connect && body.get(7).is_some_and(|flags| flags & 4 != 0))
    {
        assert!(!legal::is_legal(first, body, version), "{error}: {first:#x} {body:02x?}");
    }
}

fn pieces<'a>(mut stream: &'a [u8], sizes: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for size in sizes {
        let (piece, rest) = stream.split_at(stream.len().min(usize::from(*size)));
        pieces.push(piece);
        stream = rest;
    }
    pieces.push(stream);
    pieces
}

const OUT_OF_PLACE: &str = "CONNECT comes first, and once";

/// What the gateway makes of a connection.
#[derive(Default)]
struct Heard {
    version: Option<Version>,
    packets: Vec<Inbound>,
    /// Why it hears nothing more.
    end: Option<String>,
}

impl Heard {
    fn of<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut heard = Self::default();
        let mut source = BytesMut::new();
        let mut wire = None;
        for piece in pieces {
            source.extend_from_slice(piece);
            while heard.end.is_none() && heard.step(&mut wire, &mut source) {}
        }
        heard
    }

    /// False if more must come first.
    fn step(&mut self, wire: &mut Option<Wire>, source: &mut BytesMut) -> bool {
        let wire = match wire {
            Some(wire) => wire,
            none => match Greeting.decode(source) {
                Ok(Some(version)) => {
                    self.version = Some(version);
                    none.insert(Wire::new(version, CONNECT_BYTES_MAX))
                }
                Ok(None) => return false,
                Err(error) => {
                    self.end = Some(error.to_string());
                    return true;
                }
            },
        };
        match wire.decode(source) {
            Ok(None) => return false,
            Ok(Some(packet)) => {
                let is_connect = matches!(packet, Inbound::Connect(_));
                if is_connect != self.packets.is_empty() {
                    self.end = Some(OUT_OF_PLACE.into());
                }
                wire.set_packet_bytes_max(PACKET_BYTES_MAX);
                self.packets.push(packet);
            }
            Err(error) => self.end = Some(error.to_string()),
        }
        true
    }

    fn words(&self) -> String {
        format!("{:?} {:?}", self.packets, self.end)
    }
}

fn of_will(will: &Will) -> Delivery {
    delivery(Message {
        topic: will.topic.clone(),
        payload: will.payload.clone().into(),
        qos: will.qos,
        retain: will.retain,
        expires_at: will.expiry_seconds.map(expires_at),
        properties: will.properties.clone().boxed(),
        publisher: None,
        packets: Default::default(),
    })
}

fn of_publish(publish: &Publish, payload: &[u8]) -> Delivery {
    delivery(Message {
        topic: publish.topic.as_str().into(),
        payload: payload.to_vec().into(),
        qos: broker_qos(publish.qos),
        retain: publish.retain,
        expires_at: publish.expiry_seconds.map(expires_at),
        properties: publish.properties.clone(),
        publisher: None,
        packets: Default::default(),
    })
}

fn expires_at(seconds: u32) -> Timestamp {
    NOW + std::time::Duration::from_secs(seconds.into())
}

fn delivery(message: Message) -> Delivery {
    let (qos, retain) = (message.qos, message.retain);
    let packet_id = (qos != dunlin_broker::Qos::AtMostOnce).then_some(std::num::NonZeroU16::MAX);
    Delivery {
        message: Arc::new(message),
        qos,
        retain,
        duplicate: packet_id.is_some(),
        packet_id,
        number: 1,
        subscription_ids: Default::default(),
    }
}

/// Written for a subscriber of either version, and read again.
fn passes_on(delivery: &Delivery) {
    let message = &delivery.message;
    if check_topic(&message.topic).is_err() {
        return;
    }
    for version in [Version::V3, Version::V5] {
        let mut out = BytePages::default();
        assert!(Wire::new(version, 0).publish(delivery, NOW, &mut out));
        let mut written = BytesMut::new();
        written.extend_from_slice(&bytes_of(out));
        let read = Wire::new(version, u32::MAX).decode(&mut written).expect("a packet of ours");
        let Some(Inbound::Publish(publish, payload)) = read else { panic!("{read:?}") };
        assert!(written.is_empty());
        assert_eq!((&*publish.topic, &payload[..]), (&*message.topic, &message.payload[..]));
        assert_eq!((broker_qos(publish.qos), publish.retain), (delivery.qos, delivery.retain));
        assert_eq!((publish.packet_id, publish.duplicate), (delivery.packet_id, delivery.duplicate));
        if version == Version::V5 {
            assert_eq!(publish.properties, message.properties);
            assert_eq!(publish.expiry_seconds.map(expires_at), message.expires_at);
        }
    }
}

fn bytes_of(mut out: BytePages) -> Bytes {
    out.freeze()
}

/// A message to `v1/telemetry` or `v1/events`.
pub fn json(data: &[u8]) {
    telemetry(data);
    event(data);
}

/// What is understood is what any JSON reader finds in it, is stored as it is, and says
/// the same when it is written again; of what is refused nothing is stored.
fn telemetry(data: &[u8]) {
    let arena = Bump::new();
    let mut batch = Batch::default();
    let appended = append_telemetry(data, ORIGIN, record::Delivery::Plain, arrival(), &arena, &mut batch);
    let entries = match decode(data, &arena) {
        Ok(entries) => entries,
        Err(fault) => {
            assert_eq!(appended.expect_err("what cannot be decoded is not stored"), fault);
            check_fault(&fault);
            return assert!(batch.is_empty() && batch.size_bytes() == 0);
        }
    };
    assert_eq!(appended.expect("what is understood is stored"), entries.len());
    check_entries(&entries);
    check_stored(batch, &entries);
    let value: Value = serde_json::from_slice(data).expect("it is JSON");
    let values = value.as_array().map_or(std::slice::from_ref(&value), |all| all);
    assert_eq!(values.len(), entries.len());
    for (value, entry) in values.iter().zip(&entries) {
        let readings = value.get("values").unwrap_or(value).as_object().expect("an object");
        let is_reading = |name: &str| value.get("values").is_some() || name != "ts";
        let found: BTreeMap<&str, String> = readings
            .iter()
            .filter(|(name, _)| is_reading(name))
            .map(|(n, v)| (n.as_str(), words_of(v)))
            .collect();
        let told = entry.readings.iter().map(|r| (r.metric, words(r.value))).collect();
        assert_eq!(found, told);
        assert_eq!(value.get("ts").is_some(), entry.device_time.is_some());
    }
    let written = written(&entries);
    let again = decode(written.as_bytes(), &arena).expect("what was written is read");
    for (one, other) in entries.iter().zip(&again) {
        assert_eq!(one.device_time, other.device_time, "{written}");
        assert!(one.readings.iter().eq(other.readings.iter()), "{written}");
    }
}

/// Any JSON, kept as it came.
fn event(data: &[u8]) {
    match record::check_event(data) {
        Err(fault) => check_fault(&fault),
        Ok(detail) => {
            assert_eq!(detail.as_bytes(), data);
            let kind = dunlin_model::EventKind::Reported;
            let stored = record::event(ORIGIN, kind, detail.to_owned(), NOW);
            let event = dunlin_model::Event::decode(&stored).expect("what was written is read");
            assert_eq!((event.detail.as_bytes(), event.time), (data, NOW));
        }
    }
}

/// Lines as InfluxDB's clients write them. The first byte says their precision and whether they may name children.
pub fn lines(data: &[u8]) {
    const PRECISIONS: [&str; 8] = ["", "ns", "us", "ms", "s", "m", "h", "µs"];
    let Some((first, text)) = data.split_first() else { return };
    let Ok(text) = str::from_utf8(text) else { return };
    let arena = Bump::new();
    let precision = Precision::of(PRECISIONS[usize::from(first % 8)]).expect("one of them");
    let speaks_for_children = first & 8 != 0;
    let reader = Reader { device_type: "pump", speaks_for_children, precision, arena: &arena };
    let read: Vec<_> = reader.lines(text).collect();
    assert!(read.len() <= text.lines().count(), "the bound on lines bounds the records");
    for (raw, line) in read {
        assert!(text.contains(raw));
        match line {
            Err(fault) => check_fault(&fault),
            Ok(line_protocol::Line { child, entry }) => {
                assert!(child.is_none() || speaks_for_children);
                assert_eq!(entry.id.is_some(), entry.device_time.is_some());
                let mut batch = Batch::default();
                let entries: Entries<'_> = std::iter::once(entry).collect();
                check_entries(&entries);
                append_entries(
                    entries.clone(),
                    raw.as_bytes(),
                    ORIGIN,
                    record::Delivery::Plain,
                    arrival(),
                    &mut batch,
                );
                check_stored(batch, &entries);
            }
        }
    }
}

/// The head of a request: the first line is the address, the others are headers. Whoever shows a credential is taken
/// for who it says, and for nobody else.
pub fn head(data: &[u8]) {
    let mut lines = data.split(|b| *b == b'\n');
    let address = lines.next().unwrap_or_default();
    let mut headers = HeaderMap::new();
    for line in lines.take(100) {
        let colon = line.iter().position(|b| *b == b':').unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let value = HeaderValue::from_bytes(value.get(1..).unwrap_or_default());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value) {
            headers.append(name, value);
        }
    }
    http::content_bytes(&headers);
    http::key_of(&headers);
    if let Ok(address) = Uri::try_from(address)
        && let Some(token) = http::shown_token(&headers, &address)
    {
        assert!(!token.is_empty());
        assert!(
            !headers.contains_key(header::AUTHORIZATION) || is_in(&token, &headers[header::AUTHORIZATION])
        );
    }
    let Ok(secret) = str::from_utf8(address) else { return };
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("user:{secret}"));
    headers.insert(header::AUTHORIZATION, HeaderValue::try_from(format!("Basic {pair}")).expect("visible"));
    let shown = http::shown_token(&headers, &Uri::from_static("/v1/telemetry?u=other&p=other"));
    assert_eq!(shown.as_deref(), Some(if secret.is_empty() { "user" } else { secret }));
}

/// Whether the token stands in the header, as it is or encoded.
fn is_in(token: &str, header: &HeaderValue) -> bool {
    let plain = header.to_str().expect("a token was found in it");
    let encoded = plain.split_once(' ').map_or(plain, |(_, rest)| rest.trim());
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap_or_default();
    plain.contains(token) || String::from_utf8_lossy(&decoded).contains(token)
}

/// What may be around MQTT: the header of a load balancer, a request for a WebSocket, frames. Cut as for `mqtt`; what is
/// understood does not depend on the pieces, and frames hold no more than they are.
pub fn wrapping(data: &[u8]) {
    let Some((count, rest)) = data.split_first() else { return };
    let (sizes, stream) = rest.split_at(rest.len().min(usize::from(*count)));
    let header = |src: &mut BytesMut| proxy::Header.decode(src).transpose();
    for pieces in [pieces(stream, sizes), stream.chunks(1).collect()] {
        assert_eq!(first_of(&pieces, header), first_of(&[stream], header));
        assert_eq!(first_of(&pieces, websocket::request), first_of(&[stream], websocket::request));
        assert_eq!(websocket::unframe(pieces), websocket::unframe([stream]));
    }
    assert!(websocket::unframe([stream]).0.len() <= stream.len());
}

/// The first thing that is understood, and how many bytes it took.
fn first_of<T>(pieces: &[&[u8]], decode: impl Fn(&mut BytesMut) -> Option<T>) -> Option<(T, Option<usize>)>
where
    T: IsRefusal,
{
    let mut src = BytesMut::new();
    let mut came = 0;
    for piece in pieces {
        src.extend_from_slice(piece);
        came += piece.len();
        if let Some(first) = decode(&mut src) {
            let took = (!first.is_refusal()).then(|| came - src.len());
            return Some((first, took));
        }
    }
    None
}

/// How much came before something is refused is nobody's business.
trait IsRefusal {
    fn is_refusal(&self) -> bool;
}

impl<T, E> IsRefusal for Result<T, E> {
    fn is_refusal(&self) -> bool {
        self.is_err()
    }
}

/// Where a topic leads: nothing of the platform's is somebody's message.
fn leads_where_it_says(topic: &str) {
    match Route::of(topic) {
        Route::Message => {
            let first = topic.split('/').next().unwrap_or_default();
            assert!(first != "v1" && !first.starts_with('$'), "{topic:?}");
        }
        Route::Child(name) => assert_eq!(format!("v1/d/{name}/telemetry"), topic),
        Route::Reply(id) => assert_eq!(format!("v1/commands/{id}/reply"), topic),
        Route::Telemetry | Route::Events | Route::Reserved => {}
    }
}

const ORIGIN: Origin<'_> = Origin { tenant: "default", device: "pump-7", device_type: "pump" };

fn arrival() -> Arrival<'static> {
    static POLICY: std::sync::LazyLock<TimePolicy> = std::sync::LazyLock::new(TimePolicy::default);
    Arrival { received_at: NOW, policy: &POLICY }
}

fn check_fault(fault: &Fault) {
    assert!(fault.detail.len() + fault.field.len() <= FAULT_BYTES_MAX, "{} bytes", fault.detail.len());
    assert!(!fault.detail.is_empty());
    assert!(matches!(fault.reason, RejectReason::PayloadFormat | RejectReason::InvalidValue));
}

/// The bounds hold, and no name stands twice.
fn check_entries(entries: &[Entry<'_>]) {
    assert!((1..=MESSAGE_RECORDS_MAX).contains(&entries.len()));
    for Entry { readings, .. } in entries {
        assert!((1..=RECORD_READINGS_MAX).contains(&readings.len()));
        let mut names: Vec<&str> = readings.iter().map(|reading| reading.metric).collect();
        names.sort_unstable();
        assert!(names.is_sorted_by(|one, next| one < next), "a name stands twice: {names:?}");
        for reading in readings {
            MetricName::check(reading.metric).expect("a name");
            match reading.value {
                ValueRef::F64(v) => assert!(v.is_finite()),
                ValueRef::Text(v) => assert!(v.len() <= TEXT_BYTES_MAX),
                ValueRef::I64(_) | ValueRef::Bool(_) => {}
            }
        }
    }
}

/// The journal carries one record for each entry, with all its readings.
fn check_stored(batch: Batch, entries: &[Entry<'_>]) {
    let stored = Stored::new(Offset::ZERO, batch.len(), NOW, batch.into_bytes(), Offset::ZERO);
    assert_eq!(stored.len() as usize, entries.len());
    for (stored, entry) in stored.iter().zip(entries) {
        let record = avro::decode(stored.bytes).expect("what was written is read");
        assert_eq!((record.tenant, record.device), (ORIGIN.tenant, ORIGIN.device));
        assert_eq!(record.device_time, entry.device_time);
        assert!(record.readings.iter().eq(entry.readings.iter()));
    }
}

fn words_of(value: &Value) -> String {
    match value {
        Value::Bool(v) => words(ValueRef::Bool(*v)),
        Value::String(v) => words(ValueRef::Text(v)),
        Value::Number(v) => match v.as_i64() {
            Some(v) => words(ValueRef::I64(v)),
            None => words(ValueRef::F64(v.as_f64().expect("a number"))),
        },
        other => panic!("{other} is no value"),
    }
}

/// With the sign of zero.
fn words(value: ValueRef<'_>) -> String {
    format!("{value:?}")
}

fn written(entries: &[Entry<'_>]) -> String {
    let mut out = String::from("[");
    for (n, Entry { device_time, readings, .. }) in entries.iter().enumerate() {
        out.push_str(if n == 0 { "{" } else { ",{" });
        if let Some(time) = device_time {
            let (whole, part) = (time.as_micros() / 1_000, time.as_micros() % 1_000);
            match part {
                0 => write!(out, "\"ts\":{whole},"),
                _ => write!(out, "\"ts\":{:?},", time.as_micros() as f64 / 1_000.0),
            }
            .expect("a String takes all");
        }
        out.push_str("\"values\":{");
        for (n, reading) in readings.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            let value = match reading.value {
                ValueRef::F64(v) => serde_json::json!(v),
                ValueRef::I64(v) => v.into(),
                ValueRef::Bool(v) => v.into(),
                ValueRef::Text(v) => v.into(),
            };
            write!(out, "{comma}{}:{value}", Value::from(reading.metric)).expect("a String takes all");
        }
        out.push_str("}}");
    }
    out + "]"
}

#[cfg(test)]
#[path = "../../../fuzz/replay.rs"]
mod replay;

#[test]
fn what_the_fuzzer_found_holds() {
    replay::replay("mqtt", mqtt);
    replay::replay("json", json);
    replay::replay("lines", lines);
    replay::replay("head", head);
    replay::replay("wrapping", wrapping);
}
