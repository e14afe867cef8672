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
        Encoder::default().encode(&record, &mut datum);
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
    Encoder::default().encode(&record, &mut datum);
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
    use crate::{AlertPhase, EventKind, Fingerprint, RejectReason, Severity, TransitionId};

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
