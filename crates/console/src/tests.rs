use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use arrow::{
    array::{Float64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use dunlin_model::{Clock, TenantId, Timestamp};
use dunlin_registry::Scope;
use dunlin_tsdb::{MemoryTsdb, QueryError, SqlLimits, SqlResult};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::*;

#[derive(Debug, Default)]
struct QuietPlatform {
    revoked: Mutex<Vec<(String, Revoked)>>,
}

impl Platform for QuietPlatform {
    fn ledger(&self) -> LedgerView {
        let tenants = ["default", "other"].map(|t| (t.to_owned(), TenantLedger::default()));
        let problem = |tenant: Option<&str>, words: &str| Disagreement {
            tenant: tenant.map(str::to_owned),
            words: words.to_owned(),
        };
        let problems = vec![problem(None, "the journal took 8"), problem(Some("default"), "default: 7 lost")];
        LedgerView { balanced: false, problems, gone: Some(9), tenants: BTreeMap::from(tenants) }
    }
    fn status(&self) -> StatusView {
        StatusView {
            version: "0",
            uptime_seconds: 0,
            mqtt: "127.0.0.1:1883".into(),
            connections: 3,
            stages: vec![StageStatus { stage: "store", lag: 5, partitions: Vec::new() }],
        }
    }
    fn readiness(&self) -> Readiness {
        Readiness::NotReady(vec!["the journal has no space left".into()])
    }
    fn revoked(&self, tenant: &TenantId, device: &DeviceId, what: Revoked) {
        self.revoked.lock().unwrap().push((format!("{tenant}/{device}"), what));
    }
    fn metrics(&self) -> String {
        "# EOF\n".into()
    }
}

/// Answers every statement with as many batches of two rows as the statement says.
#[derive(Debug)]
struct CannedSql;

impl Sql for CannedSql {
    fn sql<'a>(
        &'a self,
        _: &'a TenantId,
        text: &'a str,
        _: SqlLimits,
    ) -> BoxFuture<'a, Result<SqlResult, QueryError>> {
        let schema = Arc::new(Schema::new(vec![
            Field::new("device", DataType::Utf8, false),
            Field::new("value", DataType::Float64, true),
        ]));
        let columns = vec![
            Arc::new(StringArray::from(vec!["a", "b, \"c\""])) as _,
            Arc::new(Float64Array::from(vec![Some(1.5), None])) as _,
        ];
        async move {
            let batches: usize =
                text.parse().map_err(|_| QueryError::Invalid("not a number of batches".into()))?;
            let batch = RecordBatch::try_new(schema.clone(), columns).expect("columns fit");
            Ok(SqlResult {
                schema,
                batches: stream::iter(std::iter::repeat_n(batch, batches).map(Ok)).boxed(),
            })
        }
        .boxed()
    }
}

struct Api {
    routes: Router,
    platform: String,
    tenant: String,
    quiet: Arc<QuietPlatform>,
    _dir: tempfile::TempDir,
}

impl Api {
    async fn new() -> Self {
        Self::with(Config::default()).await
    }

    async fn with(config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::new(|| Timestamp::from_micros(1_700_000_000_000_000));
        let registry =
            Registry::open(&dunlin_registry::Config::file(&dir.path().join("registry.db")), clock.clone())
                .await
                .unwrap();
        let (default, other) = (TenantId::default_tenant(), "other".parse().unwrap());
        registry.add_tenant(&default).await.unwrap();
        registry.add_tenant(&other).await.unwrap();
        let platform = registry.add_user_token(&default, Scope::Platform).await.unwrap();
        let tenant = registry.add_user_token(&other, Scope::Tenant).await.unwrap();
        let quiet = Arc::new(QuietPlatform::default());
        let routes = routes(Console {
            config,
            registry,
            tsdb: Arc::new(MemoryTsdb::open(Default::default(), None)),
            sql: Arc::new(CannedSql),
            platform: quiet.clone(),
        });
        let (platform, tenant) = (platform.reveal().to_owned(), tenant.reveal().to_owned());
        Self { routes, platform, tenant, quiet, _dir: dir }
    }

    async fn ask(&self, token: &str, method: &str, path: &str, body: &str) -> (StatusCode, String) {
        self.send(token, method, path, Body::from(body.to_owned())).await
    }

    async fn send(&self, token: &str, method: &str, path: &str, body: Body) -> (StatusCode, String) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .body(body)
            .unwrap();
        let response = self.routes.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

#[tokio::test]
async fn nothing_of_a_tenant_is_shown_without_a_token() {
    let api = Api::new().await;
    for path in [
        "/v1/tenants",
        "/v1/devices",
        "/v1/query?sql=1",
        "/v1/readings",
        "/v1/latest",
        "/v1/alerts",
        "/v1/ledger",
        "/v1/status",
        "/metrics",
    ] {
        let (status, body) = api.ask("guess", "GET", path, "").await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{path}");
        assert!(body.contains("no user's token"), "{body}");
    }
}

#[tokio::test]
async fn a_device_is_added_once_and_belongs_to_its_tenant() {
    let api = Api::new().await;
    let (status, body) = api.ask(&api.platform, "POST", "/v1/devices", r#"{"name":"pump-1"}"#).await;
    assert_eq!(status, StatusCode::CREATED);
    assert!(serde_json::from_str::<Value>(&body).unwrap()["token"].as_str().unwrap().starts_with("dnd_"));

    let (status, body) = api.ask(&api.platform, "POST", "/v1/devices", r#"{"name":"pump-1"}"#).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(body.contains(r#"device \"pump-1\" exists already"#), "{body}");

    let (_, listed) = api.ask(&api.tenant, "GET", "/v1/devices", "").await;
    assert_eq!(serde_json::from_str::<Value>(&listed).unwrap()["devices"], serde_json::json!([]));

    let (status, body) = api.ask(&api.platform, "POST", "/v1/devices", r#"{"name":"a/b"}"#).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["field"], "name");
}

#[tokio::test]
async fn the_platform_learns_what_was_taken_from_a_device() {
    let api = Api::new().await;
    let change = async |token: &str, method, path, body| api.ask(token, method, path, body).await.0;
    change(&api.platform, "POST", "/v1/devices", r#"{"name":"pump-1"}"#).await;
    let tokens = "/v1/devices/pump-1/tokens";
    assert_eq!(change(&api.platform, "POST", tokens, "").await, StatusCode::CREATED);
    let (off, on) = (r#"{"enabled":false}"#, r#"{"enabled":true}"#);
    assert_eq!(change(&api.tenant, "PATCH", "/v1/devices/pump-1", off).await, StatusCode::NOT_FOUND);
    assert_eq!(change(&api.platform, "PATCH", "/v1/devices/pump-1", on).await, StatusCode::NO_CONTENT);
    assert_eq!(*api.quiet.revoked.lock().unwrap(), []);

    let others = "/v1/devices/pump-1/tokens?revoke_others=true";
    assert_eq!(change(&api.platform, "POST", others, "").await, StatusCode::CREATED);
    assert_eq!(change(&api.platform, "PATCH", "/v1/devices/pump-1", off).await, StatusCode::NO_CONTENT);
    let expected = [Revoked::Token, Revoked::Device].map(|what| ("default/pump-1".to_owned(), what));
    assert_eq!(*api.quiet.revoked.lock().unwrap(), expected);
    let (_, listed) = api.ask(&api.platform, "GET", "/v1/devices", "").await;
    assert_eq!(serde_json::from_str::<Value>(&listed).unwrap()["devices"][0]["enabled"], false);
}

#[tokio::test]
async fn a_tenants_user_sees_its_own_ledger_and_adds_no_tenants() {
    let api = Api::new().await;
    let tenants = |body: String| {
        let ledger: Value = serde_json::from_str(&body).unwrap();
        ledger["tenants"].as_object().unwrap().keys().cloned().collect::<Vec<_>>()
    };
    let (_, body) = api.ask(&api.tenant, "GET", "/v1/ledger", "").await;
    assert!(body.starts_with(r#"{"balanced":true,"problems":[],"tenants":"#), "{body}");
    assert_eq!(tenants(body), ["other"]);
    let (_, body) = api.ask(&api.platform, "GET", "/v1/ledger", "").await;
    let head = r#"{"balanced":false,"problems":["the journal took 8","default: 7 lost"],"gone":9,"#;
    assert!(body.starts_with(head), "{body}");
    assert_eq!(tenants(body), ["default", "other"]);

    let (status, _) = api.ask(&api.tenant, "POST", "/v1/tenants", r#"{"name":"x"}"#).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let (status, _) = api.ask(&api.platform, "POST", "/v1/tenants", r#"{"name":"x"}"#).await;
    assert_eq!(status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_tenants_user_sees_nothing_of_the_others_load() {
    let api = Api::new().await;
    let (_, body) = api.ask(&api.tenant, "GET", "/v1/status", "").await;
    let common = r#"{"version":"0","uptime_seconds":0,"mqtt":"127.0.0.1:1883","alerts_firing":0"#;
    assert_eq!(body, format!("{common}}}"));
    let (_, body) = api.ask(&api.platform, "GET", "/v1/status", "").await;
    let load = r#","connections":3,"stages":[{"stage":"store","lag":5,"partitions":[]}]}"#;
    assert_eq!(body, format!("{common}{load}"));
}

#[tokio::test]
async fn metrics_are_for_platform_administrators_unless_they_are_open() {
    let api = Api::new().await;
    let statuses = async |api: &Api| {
        let mut statuses = Vec::new();
        for token in [&api.platform, &api.tenant, "guess"] {
            statuses.push(api.ask(token, "GET", "/metrics", "").await.0.as_u16());
        }
        statuses
    };
    assert_eq!(statuses(&api).await, [200, 403, 401]);
    let open = Api::with(Config { metrics_open: true, ..Config::default() }).await;
    assert_eq!(statuses(&open).await, [200, 200, 200]);
}

#[tokio::test]
async fn answers_have_one_header_and_are_whole_however_many_batches_they_come_in() {
    let api = Api::new().await;
    let csv = api.ask(&api.platform, "POST", "/v1/query?format=csv", "2").await.1;
    assert_eq!(csv, "device,value\na,1.5\n\"b, \"\"c\"\"\",\na,1.5\n\"b, \"\"c\"\"\",\n");
    assert_eq!(api.ask(&api.platform, "POST", "/v1/query?format=csv", "0").await.1, "device,value\n");

    for (batches, rows) in [("0", 0), ("1", 2), ("3", 6)] {
        let json = api.ask(&api.platform, "POST", "/v1/query?format=json", batches).await.1;
        assert_eq!(serde_json::from_str::<Vec<Value>>(&json).unwrap().len(), rows, "{json}");
    }
    let table = api.ask(&api.platform, "POST", "/v1/query?format=table", "1").await.1;
    assert!(table.contains("| device "), "{table}");

    let (status, body) = api.ask(&api.platform, "POST", "/v1/query", "nonsense").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(body.contains("not a number of batches"), "{body}");
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_not_waited_for() {
    let api = Api::with(Config { request_body_seconds_max: 0, ..Config::default() }).await;
    for (path, begun) in [("/v1/query", "1"), ("/v1/devices", r#"{"name":"pump-1"}"#)] {
        let begun = stream::iter([Ok::<_, std::io::Error>(begun)]).chain(stream::pending());
        let (status, said) = api.send(&api.platform, "POST", path, Body::from_stream(begun)).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        assert!(said.contains("did not arrive within 0 s"), "{said}");
    }
    // What is there at once is in time.
    let whole = stream::iter([Ok::<_, std::io::Error>("1")]);
    let (status, _) = api.send(&api.platform, "POST", "/v1/query", Body::from_stream(whole)).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn readiness_says_why_not() {
    let api = Api::new().await;
    let (status, body) = api.ask("", "GET", "/readyz", "").await;
    assert_eq!((status, body.as_str()), (StatusCode::SERVICE_UNAVAILABLE, "the journal has no space left\n"));
    assert_eq!(api.ask("", "GET", "/healthz", "").await.0, StatusCode::OK);
}
