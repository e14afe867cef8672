use std::{path::PathBuf, time::Duration};

use dunlin_model::{AlertPhase, AlertState, Clock, CommandStep, TenantId, Timestamp};
use dunlin_registry::{
    Act, Alert, AlertFilter, Config, CopyError, CopyStep, NewSilence, NotificationFilter, NotificationState,
    Registry, RegistryError, RuleMark, RuleMeasure, Scope, Timer, TimerKind, Token, copy,
};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::{
    Lab,
    alerts::{alert, due, put, tell, told, transition},
    commands::{reboot, step},
    devices::named,
};

const NOW: i64 = 1_700_000_000_000_000;

fn clock() -> Clock {
    Clock::new(|| Timestamp::from_micros(NOW))
}

/// A registry in a file, with something of everything.
struct Original {
    dir: tempfile::TempDir,
    registry: Registry,
    device: Token,
    user: Token,
    secret: String,
}

impl Original {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open_file(&dir.path().join("registry.db"), clock()).await.unwrap();
        let tenant = TenantId::default_tenant();
        registry.add_tenant(&tenant).await.unwrap();
        registry.add_tenant(&"other".parse().unwrap()).await.unwrap();
        let device = registry.add_device(&tenant, &named("gw-1", true)).await.unwrap();
        let gateway = registry.device(&tenant, &"gw-1".parse().unwrap()).await.unwrap().unwrap();
        // Longer than what is sent at a time.
        let children: Vec<_> = (0..3_000).map(|n| format!("meter-{n}").parse().unwrap()).collect();
        registry.children_of(&gateway, &children, 10_000).await.unwrap();
        let user = registry.add_user_token(&tenant, Scope::Platform).await.unwrap();
        for text in ["one", "when = 'a' \n\t\\\\N \\. é ☃"] {
            registry.put_rule(&tenant, "hot", text, true).await.unwrap();
        }
        let at = Timestamp::from_micros;
        let mark = RuleMark { device: "meter-1".into(), from: at(1), to: at(2), is_false: true };
        registry.mark_rule(&tenant, "hot", &mark).await.unwrap();
        let measure = RuleMeasure {
            version: 2,
            from: at(0),
            to: at(9),
            fired: 10,
            right_count: 3,
            false_count: 1,
            measured_at: at(NOW),
        };
        registry.set_rule_measure(&tenant, "hot", &measure).await.unwrap();
        let sent = registry.add_command(&tenant, &reboot(&gateway.name)).await.unwrap();
        registry.add_command(&tenant, &reboot(&gateway.name)).await.unwrap();
        registry.record_replies(&[step(&sent, CommandStep::Replied, 1, "\"\\n\"")]).await.unwrap();
        Self::alerts(&registry).await;
        let secret = registry.secret("links").await.unwrap();
        Self { dir, registry, device, user, secret }
    }

    async fn alerts(registry: &Registry) {
        let tenant = TenantId::default_tenant();
        let (at, hour) = (Timestamp::from_micros, Duration::from_secs(3_600));
        let firing = Alert { value: 0.1 + 0.2, ..alert("pump-1", 1, AlertState::Firing) };
        put(registry, &[firing.clone(), Alert { told: None, ..alert("pump-2", 7, AlertState::Resolved) }])
            .await;
        registry
            .act_on_alert(&tenant, firing.id, &Act::Acknowledge, "ada", "ok\r\n", Some("m1"))
            .await
            .unwrap();
        let silence = NewSilence {
            matchers: r#"[{"label":"device"}]"#.into(),
            starts_at: at(NOW),
            ends_at: at(NOW) + hour,
            every_seconds: Some(86_400),
            until: at(NOW) + 48 * hour,
            comment: String::new(),
            created_by: "ada".into(),
        };
        let silence = registry.add_silence(&tenant, &silence).await.unwrap();
        let suppressed = NotificationState::Suppressed { reason: "silence".into() };
        let new = [
            told("fired", "pump-1", "w", NotificationState::Due),
            told("over", "pump-1", "w", NotificationState::Due),
            told("not", "pump-2", "w", suppressed),
        ];
        tell(registry, &new).await;
        let mut work = registry.alert_work().await.unwrap();
        work.remember(&[transition(AlertPhase::Firing, 1, 1)]).await.unwrap();
        work.put_timers(&[Timer {
            tenant: "default".into(),
            alert: firing.id,
            kind: TimerKind::Step(3),
            at: at(NOW) + hour,
            waits_for: Some(silence.id),
            targets: vec!["a".into(), "b".into()],
        }])
        .await
        .unwrap();
        work.put_budgets(&[("mail".into(), at(NOW) + hour)]).await.unwrap();
        work.move_position("alerting", 0, 42).await.unwrap();
        work.commit().await.unwrap();
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("registry.db")
    }

    fn config(&self) -> Config {
        Config { url: format!("sqlite:{}", self.file().display()), ..Config::default() }
    }

    async fn run(&self, sql: &'static str) {
        let options = SqliteConnectOptions::new().filename(self.file());
        let mut beside = SqliteConnection::connect_with(&options).await.unwrap();
        sqlx::query(sql).execute(&mut beside).await.unwrap();
        beside.close().await.unwrap();
    }
}

/// Of the default tenant, all that can be asked for.
async fn all_of(registry: &Registry) -> String {
    let tenant = TenantId::default_tenant();
    let alerts = AlertFilter { limit: 100, ..AlertFilter::default() };
    let alerts = registry.alerts(&tenant, &alerts).await.unwrap();
    let mut all = format!("{:?}", registry.tenants().await.unwrap());
    all += &format!("{:?}", registry.devices(&tenant, None, 10_000).await.unwrap());
    let gateway = "gw-1".parse().unwrap();
    all += &format!("{:?}", registry.commands(&tenant, &gateway, None, 100).await.unwrap());
    all += &format!("{:?}", registry.rules(&tenant).await.unwrap());
    all += &format!("{:?}", registry.rule_versions(&tenant, "hot").await.unwrap());
    all += &format!("{:?}", registry.rule_marks(&tenant, "hot").await.unwrap());
    all += &format!("{:?}", registry.rule_measures(&tenant).await.unwrap());
    for alert in &alerts {
        all += &format!("{:?}", registry.alert_notes(&tenant, alert.id, 100).await.unwrap());
    }
    let notifications = NotificationFilter { limit: 100, ..NotificationFilter::default() };
    all += &format!("{:?}", registry.notifications(&tenant, &notifications).await.unwrap());
    all += &format!("{:?}", registry.silences(&tenant, 100).await.unwrap());
    all += &format!("{:?}", registry.next_alert_timer().await.unwrap());
    all += &format!("{:?}", registry.link_is_used("m1").await.unwrap());
    all += &format!("{:?}", registry.position("alerting", 0).await.unwrap());
    all + &format!("{alerts:?}")
}

#[tokio::test]
async fn a_registry_moves_with_all_it_knows() {
    let original = Original::new().await;
    let lab = Lab::postgres().await;
    // While a server uses it, and once more: no server starts on that.
    for _ in 0..2 {
        let copied = copy(&original.config(), &lab.config, |_| {}).await.unwrap();
        assert!(!copied.is_whole);
    }
    let refused = Registry::open(&lab.config, clock()).await.unwrap_err();
    assert!(matches!(refused, RegistryError::PartCopied), "{refused}");

    // What has changed since is copied, too.
    let tenant = TenantId::default_tenant();
    let late = original.registry.add_device(&tenant, &named("late", false)).await.unwrap();
    original.registry.close().await;
    let mut steps = Vec::new();
    let copied = copy(&original.config(), &lab.config, |p| steps.push(p)).await.unwrap();
    assert!(copied.is_whole && copied.rows > 3_000, "{copied:?}");
    assert!(steps.iter().all(|p| p.rows == p.of || p.rows % 50_000 == 0));
    let ended = |step| steps.iter().filter(|p| p.step == step && p.rows == p.of).map(|p| p.of).sum::<u64>();
    assert_eq!((ended(CopyStep::Copying), ended(CopyStep::Comparing)), (copied.rows, copied.rows));

    let moved = Registry::open(&lab.config, clock()).await.unwrap();
    let again = Registry::open_file(&original.file(), clock()).await.unwrap();
    let found = all_of(&moved).await;
    assert_eq!(found, all_of(&again).await);
    again.close().await;

    // And it works.
    for token in [&original.device, &late] {
        assert!(moved.device_by_token(token.reveal()).await.unwrap().unwrap().enabled);
    }
    let user = moved.user_by_token(original.user.reveal()).await.unwrap().unwrap();
    assert_eq!(user.scope, Scope::Platform);
    assert_eq!(moved.secret("links").await.unwrap(), original.secret);
    assert_eq!(due(&moved, "w").await, ["fired"]);
    moved.notifications_sent(&["fired-w"]).await.unwrap();
    assert_eq!(due(&moved, "w").await, ["over"]);
    assert_eq!(moved.put_rule(&tenant, "hot", "three", true).await.unwrap(), 3);

    // A server has used it: it is nobody's copy any more.
    let refused = copy(&original.config(), &lab.config, |_| {}).await.unwrap_err();
    assert!(
        refused.to_string().starts_with("the target is not empty: its table tenants has 2 rows"),
        "{refused}"
    );
    assert_eq!(due(&moved, "w").await, ["over"], "and nothing of it was touched");
    lab.drop_schema().await;
}

#[tokio::test]
async fn a_copy_of_another_is_not_overwritten() {
    let (one, other) = (Original::new().await, Original::new().await);
    other.run("UPDATE tenants SET created_at = created_at + 1").await;
    let lab = Lab::postgres().await;
    copy(&one.config(), &lab.config, |_| {}).await.unwrap();
    let refused = copy(&other.config(), &lab.config, |_| {}).await.unwrap_err();
    assert!(matches!(refused, CopyError::TargetOfOther), "{refused}");
    lab.drop_schema().await;
}

#[tokio::test]
async fn what_cannot_be_copied_leaves_the_target_as_it_was() {
    let original = Original::new().await;
    let lab = Lab::postgres().await;
    let try_to = async || copy(&original.config(), &lab.config, |_| {}).await.unwrap_err().to_string();

    original.run("UPDATE alert_notes SET words = 'a' || char(0)").await;
    let said = try_to().await;
    assert!(said.starts_with("table alert_notes, row \"note_"), "{said}");
    assert_eq!(lab.column("SELECT name FROM tenants").await, [""; 0]);
    original.run("UPDATE alert_notes SET words = ''").await;

    original.run("DELETE FROM _sqlx_migrations WHERE version = 40").await;
    let said = try_to().await;
    assert!(said.contains("is of another version of Dunlin"), "{said}");

    let nothing = Config { url: "sqlite:/nowhere/registry.db".into(), ..Config::default() };
    let said = copy(&nothing, &lab.config, |_| {}).await.unwrap_err().to_string();
    assert_eq!(said, "there is no registry /nowhere/registry.db");
    let said = copy(&original.config(), &original.config(), |_| {}).await.unwrap_err().to_string();
    assert!(said.starts_with("the target is not postgres://"), "{said}");
    lab.drop_schema().await;
}

#[tokio::test]
async fn both_databases_have_the_same_tables_and_all_of_them_are_copied() {
    let original = Original::new().await;
    original.registry.close().await;
    let (file, postgres) = (Lab::sqlite().await, Lab::postgres().await);
    file.open().await;
    postgres.open().await;
    let in_file = file
        .column(
            "SELECT t.name || '.' || c.name || ' ' || c.type || CASE c.\"notnull\" WHEN 1 THEN '' ELSE ' NULL' END
             FROM sqlite_master AS t, pragma_table_info(t.name) AS c
             WHERE t.type = 'table' AND t.name <> '_sqlx_migrations' ORDER BY 1",
        )
        .await;
    let in_postgres = postgres
        .column(
            "SELECT table_name || '.' || column_name || ' ' || upper(data_type)
                    || CASE is_nullable WHEN 'NO' THEN '' ELSE ' NULL' END COLLATE \"C\"
             FROM information_schema.columns WHERE table_schema = current_schema()
               AND table_name NOT IN ('_sqlx_migrations', 'copied_from') ORDER BY 1",
        )
        .await;
    assert_eq!(in_file, in_postgres);

    let not_by_bytes = postgres
        .column(
            "SELECT table_name || '.' || column_name FROM information_schema.columns
             WHERE table_schema = current_schema() AND table_name <> '_sqlx_migrations'
               AND data_type = 'text' AND collation_name IS DISTINCT FROM 'C'",
        )
        .await;
    assert_eq!(not_by_bytes, [""; 0], "text is ordered by its bytes");

    let target = Lab::postgres().await;
    let copied = copy(&original.config(), &target.config, |_| {}).await.unwrap();
    let tables: std::collections::BTreeSet<&str> =
        in_file.iter().filter_map(|column| column.split('.').next()).collect();
    assert_eq!(copied.tables, tables.len());
    postgres.drop_schema().await;
    target.drop_schema().await;
}

#[tokio::test]
async fn nobody_starts_in_the_middle_of_a_copy() {
    let original = Original::new().await;
    let lab = Lab::postgres().await;
    copy(&original.config(), &lab.config, |_| {}).await.unwrap();
    let mut beside = sqlx::PgConnection::connect(&lab.config.url).await.unwrap();
    let mut tx = beside.begin().await.unwrap();
    sqlx::query("LOCK TABLE copied_from IN ACCESS EXCLUSIVE MODE").execute(&mut *tx).await.unwrap();
    let from = original.config();
    let started = Registry::open(&lab.config, clock());
    let (started, copied) = futures::join!(started, copy(&from, &lab.config, |_| {}));
    assert!(matches!(started, Err(RegistryError::BeingCopied)), "{started:?}");
    assert!(matches!(copied, Err(CopyError::TargetBusy)), "{copied:?}");
    tx.rollback().await.unwrap();
    lab.drop_schema().await;
}
