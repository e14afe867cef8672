use std::{collections::BTreeMap, io::Write, time::Duration};

use dunlin_gateway::Config;
use dunlin_journal::AppendError;
use dunlin_model::{EventKind, MessageId, RejectReason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::lab::{Gate, Lab};

#[tokio::test(flavor = "multi_thread")]
async fn a_reading_is_taken_and_durable() {
    let lab = Lab::start().await;
    let (status, body) =
        lab.http("POST /v1/telemetry HTTP/1.1\nAuthorization: Bearer probe", br#"[{"a":1},{"a":2}]"#).await;
    assert_eq!(status, 200, "{body}");
    assert!(body.ends_with(r#"{"accepted":2}"#), "{body}");
    let (status, _) =
        lab.http("POST /v1/d/pump/telemetry HTTP/1.1\nAuthorization: Bearer gw-1", br#"{"a":3}"#).await;
    assert_eq!(status, 200);
    let (status, _) = lab.http("POST /v1/events HTTP/1.1\nAuthorization: Bearer probe", br#"{"x":1}"#).await;
    assert_eq!(status, 200);
    let mut telemetry = lab.telemetry().await;
    telemetry.sort();
    assert_eq!(telemetry, ["child/pump: a=I64(3)", "default/probe: a=I64(1)", "default/probe: a=I64(2)"]);
    assert_eq!(lab.events().await[0].kind, EventKind::Reported);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_the_field() {
    let lab = Lab::start().await;
    let (status, body) = lab
        .http("POST /v1/telemetry HTTP/1.1\nAuthorization: Bearer probe", br#"{"values":{"t":null}}"#)
        .await;
    assert_eq!(status, 400);
    assert!(body.contains("application/problem+json") && body.contains(r#""field":"values.t""#), "{body}");
    let (status, _) =
        lab.http("POST /v1/d/x/telemetry HTTP/1.1\nAuthorization: Bearer probe", b"{\"a\":1}").await;
    assert_eq!(status, 403);
    for head in ["POST /v1/telemetry HTTP/1.1", "POST /v1/telemetry HTTP/1.1\nAuthorization: Bearer unknown"]
    {
        assert_eq!(lab.http(head, b"{}").await.0, 401);
    }
    let (status, body) = lab.http("POST /v1/telemetry HTTP/1.1\nAuthorization: Bearer down", b"{}").await;
    assert!(status == 503 && body.to_lowercase().contains("retry-after: 1"), "{body}");
    let reasons: Vec<RejectReason> = lab.rejected().await.iter().map(|r| r.reason).collect();
    assert_eq!(reasons, [RejectReason::InvalidValue, RejectReason::NotAuthorized]);
    assert_eq!(lab.rejected().await[0].source, "http:/v1/telemetry");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_makes_a_request_repeatable() {
    let lab = Lab::start().await;
    for _ in 0..2 {
        let head = "POST /v1/telemetry HTTP/1.1\nAuthorization: Bearer probe\nIdempotency-Key: abc";
        assert_eq!(lab.http(head, br#"[{"a":1},{"a":2}]"#).await.0, 200);
    }
    let records = lab.raw(dunlin_journal::Topic::Telemetry).await;
    let ids: Vec<MessageId> =
        records.iter().map(|r| dunlin_model::avro::decode(r).unwrap().message_id).collect();
    assert_eq!((ids[0], ids[1]), (ids[2], ids[3]));
    assert_ne!(ids[0], ids[1]);
    assert!(matches!(ids[0], MessageId::Given(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_cannot_write_is_no_success() {
    let lab = Lab::start().await;
    lab.gate(Gate::Failing(AppendError::Full { reason: "disk".into() }));
    for (head, body) in [("POST /v1/telemetry", &b"{\"a\":1}"[..]), ("POST /api/v2/write", b"m a=1")] {
        let head = format!("{head} HTTP/1.1\nAuthorization: Token probe");
        let (status, answer) = lab.http(&head, body).await;
        assert!(status == 503 && answer.to_lowercase().contains("retry-after"), "{answer}");
    }
    let account = lab.account();
    assert_eq!((account.received, account.failed, account.accepted), (2, 2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn influx_clients_write_as_they_are_used_to() {
    let lab = Lab::start().await;
    let heads = [
        "POST /api/v2/write?org=o&bucket=b&precision=s HTTP/1.1\nAuthorization: Token probe",
        "POST /write?db=d&precision=s HTTP/1.1\nAuthorization: Basic dXNlcjpwcm9iZQ==",
        "POST /write?db=d&precision=s&u=user&p=probe HTTP/1.1",
    ];
    for head in heads {
        assert_eq!(lab.http(head, b"cpu,host=a usage=0.5 1700000000\n").await.0, 204, "{head}");
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"telemetry t=1i").unwrap();
    let head = "POST /api/v2/write HTTP/1.1\nAuthorization: Token probe\nContent-Encoding: gzip";
    assert_eq!(lab.http(head, &gzip.finish().unwrap()).await.0, 204);
    let point = "default/probe: cpu.host=Text(\"a\"),cpu.usage=F64(0.5)";
    assert_eq!(lab.telemetry().await, [point, point, point, "default/probe: t=I64(1)"]);

    assert_eq!(lab.http("GET /ping HTTP/1.1", b"").await.0, 204);
    let (status, body) = lab.http("POST /query?q=CREATE%20DATABASE%20%22telegraf%22 HTTP/1.1", b"").await;
    assert!(status == 200 && body.ends_with(r#"{"results":[{"statement_id":0}]}"#), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partly_bad_batch_keeps_its_good_lines() {
    let lab = Lab::start().await;
    let head = "POST /api/v2/write HTTP/1.1\nAuthorization: Token gw-1";
    assert_eq!(lab.http(head, b"m a=1\nbroken\nm,device=pump b=2\nm,device=off c=3").await.0, 204);
    let mut telemetry = lab.telemetry().await;
    telemetry.sort();
    assert_eq!(telemetry, ["child/pump: m.b=F64(2.0)", "default/gw-1: m.a=F64(1.0)"]);
    let mut kept: Vec<String> =
        lab.rejected().await.into_iter().map(|r| String::from_utf8(r.payload).unwrap()).collect();
    kept.sort();
    assert_eq!(kept, ["broken", "m,device=off c=3"]);
    assert_eq!(lab.http(head, b"broken\nbroken too").await.0, 400);
    let account = lab.account();
    assert_eq!((account.received, account.accepted), (6, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_beyond_the_limit_is_said_to_be() {
    let lab = Lab::with(Config { workers: 1, message_bytes_max: 1_000, ..Config::default() }).await;
    let head = "POST /v1/telemetry HTTP/1.1\nAuthorization: Bearer probe";
    assert_eq!(lab.http(head, &[b' '; 1_001]).await.0, 413);
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(&[b' '; 100_000]).unwrap();
    let gzip = format!("{head}\nContent-Encoding: gzip");
    assert_eq!(lab.http(&gzip, &bomb.finish().unwrap()).await.0, 413);
    assert_eq!(lab.http(&gzip, b"no gzip").await.0, 400);
    let lines = "POST /write HTTP/1.1\nAuthorization: Token probe";
    assert_eq!(lab.http(lines, &[b'\n'; 1_001]).await.0, 413);
    let (too_large, format) = (RejectReason::TooLarge, RejectReason::PayloadFormat);
    assert_eq!(lab.account().rejected, BTreeMap::from([(too_large, 3), (format, 1)]));
    assert!(lab.rejected().await.iter().all(|r| r.payload.is_empty() && r.source.starts_with("http:/")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_on_its_way_is_none_that_was_refused() {
    let lab = Lab::start().await;
    let mut half = lab.http_connection().await;
    let head =
        "POST /v1/telemetry HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer probe\r\nContent-Length: 9\r\n\r\n";
    half.write_all(head.as_bytes()).await.unwrap();
    half.write_all(b"{\"a\"").await.unwrap();
    half.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _closed = half.read_to_end(&mut answer).await;
    assert_eq!(lab.account().rejected, BTreeMap::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_go_on_is_not_waited_for() {
    let lab = Lab::with(Config { workers: 1, handshake_seconds_max: 3, ..Config::default() }).await;
    let mut stalled = lab.http_connection().await;
    let head = "POST /v1/telemetry HTTP/1.1\r\nhost: x\r\nauthorization: Bearer probe\r\ncontent-length: 100\r\n\r\n{";
    stalled.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stalled.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    assert!(lab.rejected().await.is_empty(), "it was not sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_lines_are_one_refusal() {
    let lab = Lab::start().await;
    let head = "POST /write HTTP/1.1\nAuthorization: Token probe";
    assert_eq!(lab.http(head, "m a=1\n".repeat(10_001).as_bytes()).await.0, 413);
    assert_eq!(lab.account().rejected, BTreeMap::from([(RejectReason::TooLarge, 1)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_another_one_from_another_source() {
    let lab = Lab::start().await;
    let head = "POST /v1/telemetry HTTP/1.1\nAuthorization: Bearer probe";
    assert_eq!(lab.http(head, br#"{"values":{"a":1},"id":"7"}"#).await.0, 200);
    assert_eq!(lab.http(head, br#"{"values":{"a":1},"id":7}"#).await.0, 200);
    assert_eq!(lab.http(&format!("{head}\nIdempotency-Key: 7"), br#"{"a":1}"#).await.0, 200);
    assert_eq!(lab.http(head, br#"{"values":{"a":1},"id":"7"}"#).await.0, 200);
    let records = lab.raw(dunlin_journal::Topic::Telemetry).await;
    let ids: Vec<MessageId> =
        records.iter().map(|r| dunlin_model::avro::decode(r).unwrap().message_id).collect();
    assert_eq!(ids[0], ids[3]);
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_room_are_refused_and_room_comes_back() {
    let config =
        Config { workers: 1, message_bytes_max: 64, http_inflight_bytes_max: 64, ..Config::default() };
    let lab = Lab::with(config).await;
    let head = "POST /v1/telemetry HTTP/1.1\nAuthorization: Bearer probe";
    let large = br#"{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7}"#;
    lab.gate(Gate::Closed);
    let ((), refused) = tokio::join!(
        async {
            let held = lab.http(head, large).await;
            assert_eq!(held.0, 200, "{}", held.1);
        },
        async {
            lab.arrivals(1).await;
            let refused = lab.http(head, large).await;
            lab.journal.open();
            refused
        }
    );
    assert!(refused.0 == 503 && refused.1.to_lowercase().contains("retry-after"), "{}", refused.1);
    assert_eq!(lab.http(head, large).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_is_refused_before_its_body_is_read() {
    let lab = Lab::start().await;
    let mut stranger = lab.http_connection().await;
    stranger
        .write_all(b"POST /v1/telemetry HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        .await
        .unwrap();
    let mut answer = [0; 12];
    stranger.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 401");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_makes_lines_repeatable() {
    let lab = Lab::start().await;
    for _ in 0..2 {
        let head = "POST /write HTTP/1.1\nAuthorization: Token probe\nIdempotency-Key: abc";
        assert_eq!(lab.http(head, b"m a=1\nm a=2").await.0, 204);
    }
    let records = lab.raw(dunlin_journal::Topic::Telemetry).await;
    let ids: Vec<MessageId> =
        records.iter().map(|r| dunlin_model::avro::decode(r).unwrap().message_id).collect();
    assert_eq!((ids[0], ids[1]), (ids[2], ids[3]));
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_children_of_a_request_are_asked_for_together() {
    let lab = Lab::start().await;
    let head = "POST /write HTTP/1.1\nAuthorization: Token gw-1";
    let lines: String = (0..50).map(|n| format!("m,device=meter-{} a={n}\n", n % 25)).collect();
    assert_eq!(lab.http(head, lines.as_bytes()).await.0, 204);
    assert_eq!((lab.telemetry().await.len(), lab.directory.asked()), (50, 1));

    let head = "POST /v1/d/beyond/telemetry HTTP/1.1\nAuthorization: Bearer gw-1";
    let (status, body) = lab.http(head, b"{\"a\":1}").await;
    assert!(status == 403 && body.contains("beyond: a device has at most 3 children"), "{body}");
    assert!(body.contains("application/problem+json") && !body.contains("retry-after"), "{body}");
    assert_eq!(lab.rejected().await[0].reason, RejectReason::QuotaExceeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenants_requests_take_half_of_the_room() {
    let config =
        Config { workers: 1, message_bytes_max: 64, http_inflight_bytes_max: 128, ..Config::default() };
    let lab = Lab::with(config).await;
    let head = |token: &str| format!("POST /v1/telemetry HTTP/1.1\nAuthorization: Bearer {token}");
    let large = br#"{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7}"#;
    lab.gate(Gate::Closed);
    let (own, others) = (head("probe"), head("probe@other"));
    let (first, other, ()) = tokio::join!(lab.http(&own, large), lab.http(&others, large), async {
        lab.arrivals(2).await;
        for token in ["probe", "pump"] {
            let (status, body) = lab.http(&head(token), large).await;
            assert!(status == 503 && body.to_lowercase().contains("retry-after"), "{body}");
            assert!(body.contains("of this tenant"), "{body}");
        }
        lab.journal.open();
    });
    assert_eq!((first.0, other.0), (200, 200));
    assert_eq!(lab.http(&head("pump"), large).await.0, 200, "room comes back");
}
