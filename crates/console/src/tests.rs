use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use arrow::{
    array::{Float64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema},
};
use axum::{
    body::Body,
    http::{Request, StatusCode},
    response::Response,
};
use dunlin_model::{Clock, CommandReply, CommandStep, Severity, TenantId, Timestamp};
use dunlin_registry::{COMMANDS_OPEN_MAX, Scope};
use dunlin_tsdb::{MemoryTsdb, QueryError, SqlLimits, SqlResult};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::oneshot;
use tower::ServiceExt;

use super::{ask::PlatformAsker, status::Readers, *};

#[derive(Debug, Default)]
struct QuietPlatform {
    revoked: Mutex<Vec<(String, Revoked)>>,
    sent: Mutex<Vec<Command>>,
    /// What becomes of the next command.
    next: Mutex<Option<NotSent>>,
    /// Until which it is on its way into the journal.
    held: Mutex<Option<oneshot::Receiver<()>>>,
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
            stages: vec![StageStatus {
                stage: "store",
                lag: 5,
                problems: Vec::new(),
                partitions: Vec::new(),
            }],
        }
    }
    fn readiness(&self) -> Readiness {
        Readiness::NotReady(vec!["the journal has no space left".into()])
    }
    fn revoked<'a>(
        &'a self,
        tenant: &'a TenantId,
        device: &'a DeviceId,
        what: Revoked,
    ) -> BoxFuture<'a, Result<(), String>> {
        self.revoked.lock().unwrap().push((format!("{tenant}/{device}"), what));
        std::future::ready(Ok(())).boxed()
    }
    fn send<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Result<(), NotSent>> {
        let not_sent = self.next.lock().unwrap().take();
        let held = self.held.lock().unwrap().take();
        self.sent.lock().unwrap().push(command.clone());
        async move {
            if let Some(held) = held {
                held.await.unwrap();
            }
            not_sent.map_or(Ok(()), Err)
        }
        .boxed()
    }
    fn clock_ahead_micros<'a>(&'a self, _: &'a TenantId, device: &'a DeviceId) -> BoxFuture<'a, Option<i64>> {
        let ahead = (device.as_str() == "pump-1").then_some(-1_500_000);
        std::future::ready(ahead).boxed()
    }
    fn metrics(&self) -> String {
        "# EOF\n".into()
    }
}

/// Takes the first line of a text for the rule's name, and says of every rule that it fired twice.
#[derive(Debug, Default)]
struct PlainRules {
    taken_up: Mutex<u32>,
}

impl PlainRules {
    fn summary(name: &str) -> RuleSummary {
        RuleSummary {
            name: name.into(),
            severity: Severity::Warning,
            condition: "t > 1".into(),
            levels: Vec::new(),
            devices: "*".into(),
            device_type: None,
            description: String::new(),
        }
    }
}

impl Rules for PlainRules {
    fn read(&self, _: &TenantId, text: &str) -> Result<RuleSummary, String> {
        match text.lines().next() {
            Some("wrong") | None => Err("expected a rule".into()),
            Some(name) => Ok(Self::summary(name)),
        }
    }

    fn in_files(&self, _: &TenantId) -> Vec<RuleSummary> {
        vec![Self::summary("from-file")]
    }

    fn take_up(&self) -> BoxFuture<'_, Result<(), String>> {
        *self.taken_up.lock().unwrap() += 1;
        std::future::ready(Ok(())).boxed()
    }

    fn backtest<'a>(
        &'a self,
        _: &'a TenantId,
        _: RuleToTest<'a>,
        from: Timestamp,
        to: Timestamp,
    ) -> BoxFuture<'a, Result<Backtest, BacktestError>> {
        let firing = |since: Timestamp, resolved_at| Firing {
            device: "d".into(),
            severity: Severity::Critical,
            since,
            fired_at: since,
            resolved_at,
            value: 5.0,
        };
        let firings = vec![firing(from, Some(from)), firing(to, None)];
        let found =
            Backtest { fired: 2, firings, fired_by_device: vec![("d".into(), 2)], ..Backtest::default() };
        std::future::ready(Ok(found)).boxed()
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
    registry: Registry,
    rules: Arc<PlainRules>,
    _dir: tempfile::TempDir,
}

impl Api {
    async fn new() -> Self {
        Self::with(Config::default()).await
    }

    async fn with(config: Config) -> Self {
        let tsdb = Arc::new(MemoryTsdb::open(Default::default(), None));
        Self::asking(config, Store::Here { tsdb, sql: Arc::new(CannedSql) }).await
    }

    /// Without a store.
    async fn beside(url: &str) -> Self {
        let config = Config { store_url: Some(url.to_owned()), ..Config::default() };
        let there = Elsewhere::new(&config).unwrap();
        Self::asking(config, Store::Elsewhere(there)).await
    }

    async fn asking(config: Config, store: Store) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::new(|| Timestamp::from_micros(1_700_000_000_000_000));
        let registry = Registry::open_file(&dir.path().join("registry.db"), clock.clone()).await.unwrap();
        let (default, other) = (TenantId::default_tenant(), "other".parse().unwrap());
        registry.add_tenant(&default).await.unwrap();
        registry.add_tenant(&other).await.unwrap();
        let platform = registry.add_user_token(&default, Scope::Platform).await.unwrap();
        let tenant = registry.add_user_token(&other, Scope::Tenant).await.unwrap();
        let quiet = Arc::new(QuietPlatform::default());
        let rules = Arc::new(PlainRules::default());
        let routes = routes(Console {
            config,
            registry: registry.clone(),
            store,
            platform: quiet.clone(),
            desk: Desk::new(&Default::default(), clock, "secret"),
            rules: rules.clone(),
        });
        let (platform, tenant) = (platform.reveal().to_owned(), tenant.reveal().to_owned());
        Self { routes, platform, tenant, quiet, registry, rules, _dir: dir }
    }

    async fn ask(&self, token: &str, method: &str, path: &str, body: &str) -> (StatusCode, String) {
        self.send(token, method, path, Body::from(body.to_owned())).await
    }

    async fn send(&self, token: &str, method: &str, path: &str, body: Body) -> (StatusCode, String) {
        let response = self.respond(token, method, path, body).await;
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn respond(&self, token: &str, method: &str, path: &str, body: Body) -> Response {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .body(body)
            .unwrap();
        self.routes.clone().oneshot(request).await.unwrap()
    }
}

#[tokio::test]
async fn nothing_of_a_tenant_is_shown_without_a_token() {
    let api = Api::new().await;
    for path in [
        "/v1/tenants",
        "/v1/devices",
        "/v1/devices/pump-1/commands",
        "/v1/commands/1",
        "/v1/query?sql=1",
        "/v1/readings",
        "/v1/latest",
        "/v1/alerts",
        "/v1/alerts/0123456789abcdef",
        "/v1/silences",
        "/v1/silences/sil_1",
        "/v1/notifications",
        "/v1/notifications/k/alerts",
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

const COMMANDS: &str = "/v1/devices/pump-1/commands";

async fn with_device() -> Api {
    let api = Api::new().await;
    api.ask(&api.platform, "POST", "/v1/devices", r#"{"name":"pump-1"}"#).await;
    api
}

/// Of the command that was sent last.
async fn record(api: &Api, step: CommandStep, reply: &str) {
    let Command { tenant, device, id, .. } = api.quiet.sent.lock().unwrap().last().unwrap().clone();
    let at = Timestamp::from_micros(1_700_000_001_000_000);
    let reply = CommandReply { tenant, device, id, at, step, reply: reply.into() };
    assert_eq!(api.registry.record_replies(&[reply]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_command_is_written_down_and_sent_and_shows_what_came_of_it() {
    let api = with_device().await;
    let body = r#"{"method":"reboot","params":{"in": 1.50},"expires_in_seconds":5}"#;
    let response = api.respond(&api.platform, "POST", COMMANDS, Body::from(body)).await;
    assert_eq!(response.status(), StatusCode::ACCEPTED);
    let path = response.headers()["location"].to_str().unwrap().to_owned();
    let sent = api.quiet.sent.lock().unwrap().clone();
    let [command] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(path, format!("/v1/commands/{}", command.id));
    assert_eq!((&*command.tenant, &*command.device, &*command.method), ("default", "pump-1", "reboot"));
    assert_eq!(command.params, r#"{"in": 1.50}"#, "as it was said");

    let shown = async || api.ask(&api.platform, "GET", &path, "").await.1;
    let id = &command.id;
    let queued = format!(
        r#"{{"id":"{id}","device":"pump-1","method":"reboot","params":{{"in": 1.50}},"state":"queued","sent_at":"2023-11-14T22:13:20Z","expires_at":"2023-11-14T22:13:25Z","delivered_at":null,"replied_at":null,"reply":null}}"#
    );
    assert_eq!(shown().await, queued);
    let told = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(String::from_utf8(told.to_vec()).unwrap(), queued);

    let state = async || serde_json::from_str::<Value>(&shown().await).unwrap()["state"].clone();
    record(&api, CommandStep::Delivered, "").await;
    assert_eq!(state().await, "delivered");
    record(&api, CommandStep::Replied, r#"{"ok":[1]}"#).await;
    assert_eq!(state().await, "replied");
    assert!(shown().await.ends_with(r#""replied_at":"2023-11-14T22:13:21Z","reply":{"ok":[1]}}"#));

    assert_eq!(api.ask(&api.tenant, "GET", &path, "").await.0, StatusCode::NOT_FOUND, "another tenant's");
    assert_eq!(api.ask(&api.tenant, "GET", COMMANDS, "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(api.ask(&api.tenant, "POST", COMMANDS, body).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_command_needs_a_method_and_nothing_else_and_keeps_to_its_limits() {
    let api = with_device().await;
    let (status, body) = api.ask(&api.platform, "POST", COMMANDS, r#"{"method":"reboot"}"#).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["params"], &body["expires_at"]), (&Value::Null, &"2023-11-14T22:14:20Z".into()));

    let with = |field: &str| format!(r#"{{"method":"m",{field}}}"#);
    let text = |characters| format!(r#""params":"{}""#, "x".repeat(characters));
    for legal in [
        with(r#""expires_in_seconds":2592000"#),
        with(&text((64 << 10) - 2)),
        format!(r#"{{"method":"{}"}}"#, "é".repeat(128)),
    ] {
        let (status, body) = api.ask(&api.platform, "POST", COMMANDS, &legal).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
    }
    let sent = api.quiet.sent.lock().unwrap().len();
    for (body, field) in [
        (r#"{"method":""}"#.to_owned(), "method"),
        (r#"{"method":"a\u0000"}"#.to_owned(), "method"),
        (format!(r#"{{"method":"{}"}}"#, "a".repeat(129)), "method"),
        (with(&text((64 << 10) - 1)), "params"),
        (with(r#""expires_in_seconds":0"#), "expires_in_seconds"),
        (with(r#""expires_in_seconds":2592001"#), "expires_in_seconds"),
    ] {
        let (status, problem) = api.ask(&api.platform, "POST", COMMANDS, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{problem}");
        assert!(problem.contains(&format!("\"field\":\"{field}\"")), "{problem}");
    }
    let (status, _) = api.ask(&api.platform, "POST", COMMANDS, &with(r#""colour":1"#)).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    for path in ["/v1/commands/a%2Fb", "/v1/devices/pump-1/commands?after=a%00"] {
        assert_eq!(api.ask(&api.platform, "GET", path, "").await.0, StatusCode::BAD_REQUEST);
    }
    assert_eq!(api.quiet.sent.lock().unwrap().len(), sent, "nothing of it was sent");
}

#[tokio::test]
async fn a_command_that_was_not_sent_is_forgotten_and_one_that_may_be_stays() {
    let api = with_device().await;
    let send = async |next: NotSent, expected: StatusCode| {
        *api.quiet.next.lock().unwrap() = Some(next);
        let (status, body) = api.ask(&api.platform, "POST", COMMANDS, r#"{"method":"m"}"#).await;
        assert_eq!(status, expected, "{body}");
        body
    };
    let listed = async || {
        let (_, body) = api.ask(&api.platform, "GET", COMMANDS, "").await;
        serde_json::from_str::<Value>(&body).unwrap()["commands"].as_array().unwrap().clone()
    };
    let refused = NotSent::Refused("the journal has no space left".into());
    let said = send(refused, StatusCode::SERVICE_UNAVAILABLE).await;
    assert!(
        said.contains("was not sent, and will not be carried out: the journal has no space left"),
        "{said}"
    );
    assert_eq!(listed().await, Vec::<Value>::new());

    // Not 503, after which clients try again.
    let said = send(NotSent::Unknown("the journal is fenced".into()), StatusCode::GATEWAY_TIMEOUT).await;
    let kept = listed().await;
    let path = format!("ask /v1/commands/{} until it is replied or expired", kept[0]["id"].as_str().unwrap());
    assert!(said.contains("may still be carried out") && said.contains(&path), "{said}");
}

#[tokio::test]
async fn a_client_that_leaves_changes_nothing_of_what_becomes_of_its_command() {
    let api = with_device().await;
    let (release, held) = oneshot::channel();
    *api.quiet.held.lock().unwrap() = Some(held);
    *api.quiet.next.lock().unwrap() = Some(NotSent::Refused("no space".into()));
    let until_sent = async {
        while api.quiet.sent.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        _ = api.ask(&api.platform, "POST", COMMANDS, r#"{"method":"m"}"#) => panic!("it is held"),
        () = until_sent => {}
    }
    let nothing = r#"{"commands":[],"next":null}"#;
    assert_ne!(api.ask(&api.platform, "GET", COMMANDS, "").await.1, nothing);
    release.send(()).unwrap();
    while api.ask(&api.platform, "GET", COMMANDS, "").await.1 != nothing {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_device_has_so_many_open_commands_and_they_are_listed_by_pages() {
    let api = with_device().await;
    let send = async || api.ask(&api.platform, "POST", COMMANDS, r#"{"method":"m"}"#).await;
    for _ in 0..COMMANDS_OPEN_MAX {
        assert_eq!(send().await.0, StatusCode::ACCEPTED);
    }
    let (status, body) = send().await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(body.contains("device pump-1 has 100 commands that it has not replied to"), "{body}");

    let (mut ids, mut next) = (Vec::new(), Some(String::new()));
    while let Some(after) = next {
        let after = if after.is_empty() { after } else { format!("&after={after}") };
        let (_, page) = api.ask(&api.platform, "GET", &format!("{COMMANDS}?limit=30{after}"), "").await;
        let page: Value = serde_json::from_str(&page).unwrap();
        let of_page = page["commands"].as_array().unwrap();
        ids.extend(of_page.iter().map(|command| command["id"].as_str().unwrap().to_owned()));
        next = page["next"].as_str().map(str::to_owned);
    }
    assert_eq!(ids.len() as u64, COMMANDS_OPEN_MAX);
    assert!(ids.is_sorted_by(|a, b| a > b), "the newest first");
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
    let mut without_console = Api::new().await;
    without_console.routes = vitals(Vitals {
        config: Config::default(),
        registry: without_console.registry.clone(),
        platform: without_console.quiet.clone(),
    });
    let statuses = async |api: &Api| {
        let mut statuses = Vec::new();
        for token in [&api.platform, &api.tenant, "guess"] {
            statuses.push(api.ask(token, "GET", "/metrics", "").await.0.as_u16());
        }
        statuses
    };
    for api in [&api, &without_console] {
        assert_eq!(statuses(api).await, [200, 403, 401]);
    }
    let open = Api::with(Config { metrics_open: true, ..Config::default() }).await;
    assert_eq!(statuses(&open).await, [200, 200, 200]);

    // Who has read them reads on what is wrong.
    for api in [&api, &without_console] {
        api.registry.close().await;
        assert_eq!(statuses(api).await, [200, 503, 503]);
    }
    assert_eq!(api.ask(&api.platform, "GET", "/v1/devices", "").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn who_has_read_metrics_does_not_wait_for_a_registry_that_says_nothing() {
    let readers = Readers::default();
    assert!(readers.admit("known", std::future::ready(Ok(PlatformAsker))).await.is_ok());
    assert!(readers.admit("known", std::future::pending()).await.is_ok());
    let unknown = readers.admit("unknown", std::future::pending());
    assert!(tokio::time::timeout(Duration::from_secs(1), unknown).await.is_err(), "nobody says that it may");
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

async fn firing(api: &Api, tenant: &str) -> String {
    let alert = dunlin_registry::Alert {
        tenant: tenant.into(),
        id: "0123456789abcdef-1700000000000000".parse().unwrap(),
        rule: "hot".into(),
        device: "<b>pump</b>".into(),
        severity: dunlin_model::Severity::Critical,
        state: dunlin_model::AlertState::Firing,
        fired_at: Some(Timestamp::from_micros(1_700_000_000_000_000)),
        resolved_at: None,
        acknowledged_at: None,
        acknowledged_by: None,
        assignee: None,
        snoozed_until: None,
        value: 81.0,
        condition: "temperature > 80".into(),
        told: Some(Vec::new()),
    };
    let id = alert.id.to_string();
    let mut work = api.registry.alert_work().await.unwrap();
    work.put_alerts(&[alert]).await.unwrap();
    work.commit().await.unwrap();
    id
}

#[tokio::test]
async fn an_alert_is_acknowledged_commented_and_snoozed_by_its_tenant_alone() {
    let api = Api::new().await;
    let id = firing(&api, "default").await;
    let post = async |what: &str, body: &str| {
        let (status, body) = api.ask(&api.platform, "POST", &format!("/v1/alerts/{id}/{what}"), body).await;
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    let (status, _) = api.ask(&api.tenant, "POST", &format!("/v1/alerts/{id}/ack"), "{}").await;
    assert_eq!(status, StatusCode::NOT_FOUND, "another tenant's");
    let (status, alert) = post("ack", r#"{"by":"ada","comment":"on my way"}"#).await;
    assert_eq!(
        (status, alert["state"].as_str(), alert["acknowledged_by"].as_str()),
        (StatusCode::OK, Some("acknowledged"), Some("ada"))
    );
    let (status, problem) = post("ack", "{}").await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(problem["detail"], "an alert that is acknowledged cannot be acknowledged");
    assert_eq!(post("comments", "{}").await.1["field"], "comment");
    assert_eq!(post("comments", r#"{"comment":"fan stuck"}"#).await.0, StatusCode::OK);
    assert_eq!(post("assign", r#"{"to":"grace"}"#).await.1["assignee"], "grace");
    assert_eq!(post("snooze", r#"{"for":"2 parsecs"}"#).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(post("snooze", r#"{"for":"2h"}"#).await.1["snoozed_until"], "2023-11-15T00:13:20Z");
    assert_eq!(post("snooze", r#"{"until":"2000-01-01T00:00:00Z"}"#).await.1["field"], "until");

    let (_, shown) = api.ask(&api.platform, "GET", "/v1/alerts/0123456789abcdef", "").await;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["id"], id.as_str(), "by its fingerprint");
    assert_eq!(shown["notes"].as_array().unwrap().len(), 4);
    for (state, count) in [("open", 1), ("acknowledged", 1), ("firing", 0), ("firing,acknowledged", 1)] {
        let (_, list) = api.ask(&api.platform, "GET", &format!("/v1/alerts?state={state}"), "").await;
        let list: Value = serde_json::from_str(&list).unwrap();
        assert_eq!(list["alerts"].as_array().unwrap().len(), count, "{state}");
    }
    let (status, _) = api.ask(&api.platform, "GET", "/v1/alerts?state=angry", "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_silence_is_added_as_alertmanager_would_and_expired() {
    let api = Api::new().await;
    let theirs = r#"{"matchers":[{"name":"alertname","value":"hot","isRegex":false,"isEqual":true}],
        "startsAt":"2023-11-14T22:00:00Z","endsAt":"2023-11-14T23:00:00Z","createdBy":"ada","comment":"works"}"#;
    let ours = r#"{"matchers":["device=~\"pump-.*\""],"duration":"2h","every":"1d"}"#;
    let mut ids = Vec::new();
    for (body, state) in [(theirs, "active"), (ours, "active")] {
        let (status, view) = api.ask(&api.tenant, "POST", "/v1/silences", body).await;
        assert_eq!(status, StatusCode::CREATED, "{view}");
        let view: Value = serde_json::from_str(&view).unwrap();
        assert_eq!(view["state"], state);
        ids.push(view["id"].as_str().unwrap().to_owned());
    }
    for (body, field) in [
        (r#"{"matchers":[]}"#, "matchers"),
        (r#"{"matchers":["colour=red"]}"#, "matchers"),
        (r#"{"matchers":["rule=x"],"duration":"2h","every":"1h"}"#, "every"),
        (r#"{"matchers":["rule=x"],"ends_at":"2000-01-01T00:00:00Z"}"#, "ends_at"),
        (r#"{"matchers":["rule=x"],"until":"2030-01-01T00:00:00Z"}"#, "until"),
    ] {
        let (status, problem) = api.ask(&api.tenant, "POST", "/v1/silences", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}");
        assert!(problem.contains(&format!("\"field\":\"{field}\"")), "{problem}");
    }
    let path = format!("/v1/silences/{}", ids[0]);
    assert_eq!(
        api.ask(&api.platform, "DELETE", &path, "").await.0,
        StatusCode::NOT_FOUND,
        "another tenant's"
    );
    assert_eq!(api.ask(&api.tenant, "DELETE", &path, "").await.0, StatusCode::NO_CONTENT);
    let (_, list) = api.ask(&api.tenant, "GET", "/v1/silences?state=expired", "").await;
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["silences"].as_array().unwrap().len(), 1);
    assert_eq!(list["silences"][0]["matching"], "rule=\"hot\"");
}

#[tokio::test]
async fn a_preview_says_what_a_channel_would() {
    let api = Api::new().await;
    let ask = async |body: &str| {
        let (status, body) = api.ask(&api.tenant, "POST", "/v1/alerts/preview", body).await;
        (status, serde_json::from_str::<Value>(&body).unwrap())
    };
    let (_, preview) = ask(r#"{"channel":"log"}"#).await;
    assert_eq!(preview["subject"], "[critical] too-hot on press-7 fires");
    assert!(preview["text"].as_str().unwrap().contains("avg(temperature) over 1m > 80"), "{preview}");
    let own = r#"{"channel":"log","template":"{{ alert.device }} is {{ alert.value }}","subject":"a\nb"}"#;
    let (_, preview) = ask(own).await;
    assert_eq!(
        (preview["text"].as_str(), preview["subject"].as_str()),
        (Some("press-7 is 83.5"), Some("a b"))
    );
    for (body, field) in [
        (r#"{"channel":"nobody"}"#, "channel"),
        (r#"{"channel":"log","template":"{% if %}"}"#, "template"),
        (
            r#"{"channel":"log","template":"{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}"}"#,
            "template",
        ),
    ] {
        let (status, problem) = ask(body).await;
        assert_eq!((status, problem["field"].as_str()), (StatusCode::BAD_REQUEST, Some(field)), "{problem}");
    }
}

#[tokio::test]
async fn a_device_shows_how_far_its_clock_is_off() {
    let api = Api::new().await;
    api.ask(&api.platform, "POST", "/v1/devices", r#"{"name":"pump-1"}"#).await;
    let (status, body) = api.ask(&api.platform, "GET", "/v1/devices/pump-1", "").await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["clock_ahead_ms"], -1_500);
    assert_eq!(api.ask(&api.tenant, "GET", "/v1/devices/pump-1", "").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn rules_are_put_changed_and_gone_by_api_and_every_tenant_has_its_own() {
    let api = Api::new().await;
    let json = async |token: &str, method: &str, path: &str, body: &str| {
        let (status, body) = api.ask(token, method, path, body).await;
        (status.as_u16(), serde_json::from_str::<Value>(&body).unwrap_or_default())
    };
    let (status, put) = json(&api.platform, "PUT", "/v1/rules", "hot").await;
    assert_eq!((status, put["version"].as_u64()), (200, Some(1)));
    assert_eq!(json(&api.platform, "PUT", "/v1/rules", "hot\nmore").await.1["version"], 2);
    let (status, refused) = json(&api.platform, "PUT", "/v1/rules", "wrong").await;
    assert_eq!((status, refused["detail"].as_str()), (400, Some("expected a rule")));
    let (status, _) = json(&api.platform, "PUT", "/v1/rules", "from-file").await;
    assert_eq!(status, 400, "a file has it");

    let (_, list) = json(&api.platform, "GET", "/v1/rules", "").await;
    let names: Vec<_> =
        list["rules"].as_array().unwrap().iter().map(|r| (&r["name"], &r["source"])).collect();
    assert_eq!(names, [(&"from-file".into(), &"file".into()), (&"hot".into(), &"api".into())]);
    assert_eq!(
        json(&api.platform, "PATCH", "/v1/rules/hot", r#"{"version":1,"enabled":false}"#).await.0,
        204
    );
    let (_, shown) = json(&api.platform, "GET", "/v1/rules/hot", "").await;
    assert_eq!((&shown["text"], &shown["enabled"]), (&"hot".into(), &false.into()));
    assert_eq!(shown["versions"].as_array().unwrap().len(), 2);
    assert_eq!(json(&api.tenant, "GET", "/v1/rules/hot", "").await.0, 404);
    assert_eq!(json(&api.tenant, "DELETE", "/v1/rules/hot", "").await.0, 404);
    assert_eq!(json(&api.platform, "DELETE", "/v1/rules/hot", "").await.0, 204);
    assert_eq!(*api.rules.taken_up.lock().unwrap(), 4);
}

#[tokio::test]
async fn a_backtest_is_held_against_what_people_said_and_stays_with_the_rule() {
    let api = Api::new().await;
    let json = async |method: &str, path: &str, body: &str| {
        let (status, body) = api.ask(&api.platform, method, path, body).await;
        (status.as_u16(), serde_json::from_str::<Value>(&body).unwrap_or_default())
    };
    let mark =
        |from: u64, wrong: bool| format!(r#"{{"device":"d","from":{from},"to":{from},"false":{wrong}}}"#);
    assert_eq!(json("POST", "/v1/rules/from-file/marks", &mark(1_000, true)).await.0, 204);
    assert_eq!(json("POST", "/v1/rules/from-file/marks", &mark(9_500, false)).await.0, 204);
    let (status, found) = json("POST", "/v1/rules/from-file/backtest?from=1000&to=9000", "").await;
    assert_eq!(status, 200, "{found}");
    assert_eq!((&found["fired"], &found["right"], &found["false"]), (&2.into(), &1.into(), &1.into()));
    let said: Vec<_> = found["firings"].as_array().unwrap().iter().map(|f| f["is_false"].clone()).collect();
    assert_eq!(said, [Value::from(true), false.into()]);
    let (_, list) = json("GET", "/v1/rules", "").await;
    let measured = &list["rules"][0]["measured"];
    assert_eq!((&measured["precision"], &measured["fired"]), (&0.5.into(), &2.into()));

    assert_eq!(json("POST", "/v1/rules/nobodys/backtest?from=1&to=2", "").await.0, 404);
    assert_eq!(json("POST", "/v1/rules/from-file/backtest?from=2&to=1", "").await.0, 400);
    assert_eq!(json("POST", "/v1/rules:backtest?from=1&to=2", "new").await.1["fired"], 2);
}

#[tokio::test]
async fn a_store_that_is_elsewhere_is_asked_there_and_not_in_a_circle() {
    let store = Api::new().await;
    let door = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", door.local_addr().unwrap());
    let routes = store.routes.clone();
    tokio::spawn(async move { axum::serve(door, routes).await });
    let front = Api::beside(&url).await;
    // The store has users of its own here; processes share a registry.
    let (status, body) = front.ask(&front.platform, "GET", "/v1/latest", "").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{body}");
    let (status, _) = front.ask(&store.platform, "GET", "/v1/latest", "").await;
    assert_eq!(status, StatusCode::OK);
    let (status, csv) = front.ask(&store.platform, "POST", "/v1/query?format=csv", "2").await;
    assert_eq!((status, csv.lines().count() > 0), (StatusCode::OK, true), "{csv}");
    let (status, _) = front.ask(&front.platform, "GET", "/v1/devices", "").await;
    assert_eq!(status, StatusCode::OK, "what needs no store is answered here");

    let door = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let circle = Api::beside(&format!("http://{}", door.local_addr().unwrap())).await;
    let routes = circle.routes.clone();
    tokio::spawn(async move { axum::serve(door, routes).await });
    let (status, body) = circle.ask(&circle.platform, "GET", "/v1/latest", "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("names a process that has no store itself"), "{body}");

    let nowhere = Api::beside("http://127.0.0.1:9").await;
    let (status, body) = nowhere.ask(&nowhere.platform, "GET", "/v1/latest", "").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body.contains("the process with the store does not answer"), "{body}");
}
