use proptest::prelude::*;
use smallvec::smallvec;

use super::*;

fn value() -> impl Strategy<Value = crate::Value> {
    use crate::Value;
    prop_oneof![
        any::<f64>().prop_filter("NaN is refused at the door", |v| !v.is_nan()).prop_map(Value::F64),
        any::<i64>().prop_map(Value::I64),
        any::<bool>().prop_map(Value::Bool),
        ".{0,40}".prop_map(|s| Value::Text(s.into())),
    ]
}

proptest! {
    #[test]
    fn round_trips(
        device in "[a-z0-9-]{1,20}", id: u64, kind in 0..4, received: i64, device_time: Option<i64>,
        readings in proptest::collection::vec(("[a-z]{1,12}", value()), 0..20),
    ) {
        let mut datum = Vec::new();
        let record = Record {
            tenant: "default", device: &device, device_type: "default",
            message_id: match kind {
                0 => MessageId::None, 1 => MessageId::First(id), 2 => MessageId::Retry(id), _ => MessageId::Given(id),
            },
            received_at: Timestamp::from_micros(received),
            device_time: device_time.map(Timestamp::from_micros),
            time: Timestamp::from_micros(received), time_source: TimeSource::Server,
            readings: readings.iter().map(|(m, v)| Reading { metric: m, value: v.borrowed() }).collect(),
        };
        encode(&record, &mut datum);
        prop_assert_eq!(&datum, &by_the_schema(&record));
        prop_assert_eq!(decode(&datum).unwrap(), record);
    }

    #[test]
    fn any_bytes_are_a_record_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&bytes);
    }
}

#[test]
fn the_bytes_of_version_1_stay_what_they_are() {
    let record = Record {
        tenant: "t",
        device: "d",
        device_type: "default",
        message_id: MessageId::First(7),
        received_at: Timestamp::from_micros(1),
        device_time: None,
        time: Timestamp::from_micros(1),
        time_source: TimeSource::Server,
        readings: smallvec![Reading { metric: "m", value: ValueRef::I64(3) }],
    };
    let mut datum = Vec::new();
    encode(&record, &mut datum);
    let expected: &[u8] = &[
        2, b't', 2, b'd', 14, b'd', b'e', b'f', b'a', b'u', b'l', b't', // names
        2, 14, 2, 0, 2, 2, // message id 7 (first), received 1, no device time, time 1, server
        0, 0, 0, // no content type, schema, version
        2, 2, b'm', 0, 2, 6, 0, 0, 0, // one reading: i64 3
        0, // not encrypted
    ];
    assert_eq!(datum, expected);
}

#[test]
fn rare_topics_round_trip() {
    use crate::{
        AlertPhase, Command, CommandReply, CommandStep, EventKind, Fingerprint, RejectReason, Severity,
        TransitionId,
    };

    let now = Timestamp::from_micros(1_700_000_000_000_000);
    let rejected = Rejected {
        tenant: "default".into(),
        device: "d".into(),
        received_at: now,
        reason: RejectReason::InvalidValue,
        detail: "temperature is NaN".into(),
        source: "mqtt:v1/telemetry".into(),
        payload: vec![0, 255, 1],
    };
    assert_eq!(Rejected::decode(&rejected.encode()).unwrap(), rejected);

    let event = Event {
        tenant: "default".into(),
        device: "d".into(),
        time: now,
        kind: EventKind::Reported,
        detail: "{}".into(),
    };
    assert_eq!(Event::decode(&event.encode()).unwrap(), event);

    let command = Command {
        tenant: "default".into(),
        device: "d".into(),
        id: "7".into(),
        method: "reboot".into(),
        params: "{}".into(),
        sent_at: now,
        expires_at: now,
    };
    assert_eq!(Command::decode(&command.encode()).unwrap(), command);

    let reply = CommandReply {
        tenant: "default".into(),
        device: "d".into(),
        id: "7".into(),
        at: now,
        step: CommandStep::Replied,
        reply: "{}".into(),
    };
    assert_eq!(CommandReply::decode(&reply.encode()).unwrap(), reply);

    let fingerprint = Fingerprint::of("default", "hot", "d");
    let alert = AlertTransition {
        id: TransitionId::of(fingerprint, AlertPhase::Firing, now),
        fingerprint,
        tenant: "default".into(),
        device: "d".into(),
        rule: "hot".into(),
        severity: Severity::Critical,
        phase: AlertPhase::Firing,
        at: now,
        since: now,
        value: 81.5,
        condition: "temperature > 80".into(),
    };
    assert_eq!(AlertTransition::decode(&alert.encode()).unwrap(), alert);
}

/// What a serializer that walks `record.avsc` makes of a record.
fn by_the_schema(record: &Record<'_>) -> Vec<u8> {
    let schema: Schema = SCHEMA_JSON.parse().unwrap();
    serde_avro_fast::to_datum(&Wire::from(record), Vec::new(), &mut SerializerConfig::new(&schema)).unwrap()
}

#[derive(Serialize)]
struct Wire<'a> {
    tenant: &'a str,
    device: &'a str,
    device_type: &'a str,
    message_id_kind: i32,
    message_id: i64,
    received_at: i64,
    device_time: Option<i64>,
    time: i64,
    time_source: i32,
    content_type: Option<&'a str>,
    schema_id: Option<&'a str>,
    schema_version: Option<i32>,
    readings: Vec<WireReading<'a>>,
    ciphertext: Option<&'a [u8]>,
}

#[derive(Serialize)]
struct WireReading<'a> {
    metric: &'a str,
    f64: Option<f64>,
    i64: Option<i64>,
    bool: Option<bool>,
    text: Option<&'a str>,
}

impl<'a> From<&Record<'a>> for Wire<'a> {
    fn from(r: &Record<'a>) -> Self {
        let (message_id_kind, message_id) = match r.message_id {
            MessageId::None => (0, 0),
            MessageId::First(id) => (1, id),
            MessageId::Retry(id) => (2, id),
            MessageId::Given(id) => (3, id),
        };
        Self {
            tenant: r.tenant,
            device: r.device,
            device_type: r.device_type,
            message_id_kind,
            message_id: message_id as i64,
            received_at: r.received_at.as_micros(),
            device_time: r.device_time.map(Timestamp::as_micros),
            time: r.time.as_micros(),
            time_source: match r.time_source {
                TimeSource::Device => 0,
                TimeSource::Server => 1,
                TimeSource::ServerAsFuture => 2,
                TimeSource::ServerAsTooOld => 3,
            },
            content_type: None,
            schema_id: None,
            schema_version: None,
            readings: r.readings.iter().map(WireReading::from).collect(),
            ciphertext: None,
        }
    }
}

impl<'a> From<&Reading<'a>> for WireReading<'a> {
    fn from(r: &Reading<'a>) -> Self {
        let mut wire = Self { metric: r.metric, f64: None, i64: None, bool: None, text: None };
        match r.value {
            ValueRef::F64(v) => wire.f64 = Some(v),
            ValueRef::I64(v) => wire.i64 = Some(v),
            ValueRef::Bool(v) => wire.bool = Some(v),
            ValueRef::Text(v) => wire.text = Some(v),
        }
        wire
    }
}
