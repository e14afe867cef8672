use dunlin_model::{
    AlertPhase, AlertTransition, Clock, DeviceId, DeviceType, Fingerprint, Severity, TenantId, Timestamp,
    TransitionId,
};

use super::*;

async fn registry(dir: &tempfile::TempDir) -> Registry {
    let clock = Clock::new(|| Timestamp::from_micros(1_700_000_000_000_000));
    Registry::open(&dir.path().join("registry.db"), clock).await.unwrap()
}

fn named(name: &str, is_gateway: bool) -> NewDevice {
    NewDevice { name: name.parse().unwrap(), device_type: DeviceType::default_type(), is_gateway }
}

#[tokio::test]
async fn a_device_is_known_by_its_tokens_and_across_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let tenant = TenantId::default_tenant();
    let first = {
        let registry = registry(&dir).await;
        registry.add_tenant(&tenant).await.unwrap();
        let token = registry.add_device(&tenant, &named("pump-1", false)).await.unwrap();
        registry.close().await;
        token
    };
    let registry = registry(&dir).await;
    let device = registry.device_by_token(first.reveal()).await.unwrap().unwrap();
    assert_eq!((device.name.as_str(), device.tenant.as_str()), ("pump-1", "default"));
    assert!(registry.device_by_token("dnd_0").await.unwrap().is_none());

    let second = registry.add_device_token(&tenant, &device.name, true).await.unwrap();
    assert!(registry.device_by_token(first.reveal()).await.unwrap().is_none(), "revoked");
    assert!(registry.device_by_token(second.reveal()).await.unwrap().unwrap().enabled);

    registry.set_device_enabled(&tenant, &device.name, false).await.unwrap();
    assert!(!registry.device_by_token(second.reveal()).await.unwrap().unwrap().enabled);
    let nobody = registry.set_device_enabled(&tenant, &"nobody".parse().unwrap(), false).await;
    assert!(matches!(nobody, Err(RegistryError::NotFound { .. })));
}

#[tokio::test]
async fn names_are_unique_within_a_tenant_only() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let (a, b): (TenantId, TenantId) = ("a".parse().unwrap(), "b".parse().unwrap());
    registry.add_tenant(&a).await.unwrap();
    registry.add_tenant(&b).await.unwrap();
    registry.add_device(&a, &named("x", false)).await.unwrap();
    registry.add_device(&b, &named("x", false)).await.unwrap();
    let again = registry.add_device(&a, &named("x", false)).await.unwrap_err();
    assert_eq!(again.to_string(), r#"device "x" exists already"#);
    assert!(matches!(registry.add_tenant(&a).await, Err(RegistryError::Exists { .. })));
    assert_eq!(registry.devices(&a, None, 10).await.unwrap().len(), 1);
    assert!(registry.devices(&a, Some("x"), 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_gateway_speaks_for_its_own_children_only() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let tenant = TenantId::default_tenant();
    registry.add_tenant(&tenant).await.unwrap();
    registry.add_device(&tenant, &named("gw-1", true)).await.unwrap();
    registry.add_device(&tenant, &named("stranger", false)).await.unwrap();
    let gateway = registry.device(&tenant, &"gw-1".parse().unwrap()).await.unwrap().unwrap();

    let names = ["meter-1", "stranger"].map(|name| name.parse().unwrap());
    let found = registry.children_of(&gateway, &names, 10).await.unwrap();
    let child = found[0].clone().unwrap();
    assert_eq!((child.name.as_str(), child.parent.as_deref()), ("meter-1", Some("gw-1")));
    assert_eq!(found[1], Err(NoChild::NotOfThisParent));
    assert_eq!(registry.children_of(&gateway, &names, 10).await.unwrap(), found, "and made once");
}

#[tokio::test]
async fn a_gateway_has_so_many_children_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let tenant = TenantId::default_tenant();
    registry.add_tenant(&tenant).await.unwrap();
    let mut parents = Vec::new();
    for name in ["gw-1", "gw-2"] {
        registry.add_device(&tenant, &named(name, true)).await.unwrap();
        parents.push(registry.device(&tenant, &name.parse().unwrap()).await.unwrap().unwrap());
    }
    // More than one question, and every name twice.
    let names: Vec<DeviceId> = (0..1_400).map(|n| format!("meter-{}", n % 700).parse().unwrap()).collect();
    let found = registry.children_of(&parents[0], &names, 600).await.unwrap();
    assert_eq!(found.iter().filter(|child| child.is_ok()).count(), 1_200);
    let refused: Vec<_> = found.iter().filter_map(|child| child.as_ref().err()).collect();
    assert_eq!(refused, vec![&NoChild::TooMany { children_max: 600 }; 200]);
    assert_eq!(registry.devices(&tenant, None, 1_000).await.unwrap().len(), 602);

    let known = names.iter().zip(&found).find(|(_, child)| child.is_ok()).unwrap().0.clone();
    let others = ["other".parse().unwrap()];
    assert!(registry.children_of(&parents[0], &[known], 600).await.unwrap()[0].is_ok(), "those it has stay");
    assert!(registry.children_of(&parents[0], &others, 600).await.unwrap()[0].is_err());
    assert!(registry.children_of(&parents[1], &others, 600).await.unwrap()[0].is_ok(), "to each its own");
}

#[tokio::test]
async fn a_persons_token_says_tenant_and_scope() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let tenant = TenantId::default_tenant();
    registry.add_tenant(&tenant).await.unwrap();
    let token = registry.add_user_token(&tenant, Scope::Platform).await.unwrap();
    let user = registry.user_by_token(token.reveal()).await.unwrap();
    assert_eq!(user, Some(User { tenant, scope: Scope::Platform }));
    assert_eq!(registry.user_by_token("dnu_0").await.unwrap(), None);
    assert!(!format!("{token:?}").contains(token.reveal()), "a token does not reach a log");
}

fn transition(phase: AlertPhase, since: i64, at: i64) -> AlertTransition {
    let fingerprint = Fingerprint::of("default", "hot", "pump-1");
    let since = Timestamp::from_micros(since);
    AlertTransition {
        id: TransitionId::of(fingerprint, phase, since),
        fingerprint,
        tenant: "default".into(),
        device: "pump-1".into(),
        rule: "hot".into(),
        severity: Severity::Critical,
        phase,
        at: Timestamp::from_micros(at),
        since,
        value: 81.0,
        condition: "temperature > 80".into(),
    }
}

#[tokio::test]
async fn a_replayed_alert_changes_nothing_and_tells_nobody_again() {
    use AlertPhase::*;
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let channels = ["log".to_owned(), "webhook".to_owned()];
    let history = [transition(Pending, 1, 1), transition(Firing, 1, 5), transition(Resolved, 1, 9)];
    let apply = async |transitions: &[AlertTransition], next| {
        registry
            .apply_alerts("alerting", 0, transitions, next, &channels, |t| t.id.to_string())
            .await
            .unwrap()
    };

    assert_eq!(apply(&history[..2], 2).await, AppliedAlerts { transitions: 2, notifications: 2 });
    assert_eq!(registry.alerts_firing(&TenantId::default_tenant()).await.unwrap(), 1);
    assert_eq!(apply(&history, 3).await, AppliedAlerts { transitions: 1, notifications: 2 });
    assert_eq!(apply(&history, 3).await, AppliedAlerts::default());
    assert_eq!(registry.position("alerting", 0).await.unwrap(), Some(3));

    let alerts =
        registry.alerts(&TenantId::default_tenant(), AlertFilter { phase: None, limit: 10 }).await.unwrap();
    assert_eq!(alerts.len(), 1);
    assert_eq!(
        (alerts[0].phase, alerts[0].fired_at, alerts[0].resolved_at),
        (Resolved, Some(Timestamp::from_micros(5)), Some(Timestamp::from_micros(9)))
    );
    for told in [&history[1], &history[2]] {
        let due = registry.due_notifications("webhook", 10).await.unwrap();
        assert_eq!(due.iter().map(|n| &n.body).collect::<Vec<_>>(), [&told.id.to_string()]);
        registry.notification_sent(&due[0].idempotency_key).await.unwrap();
    }
    assert_eq!(apply(&history, 3).await, AppliedAlerts::default(), "and not when they are sent either");
    assert_eq!(registry.next_notification("webhook").await.unwrap(), None);
}

#[tokio::test]
async fn an_alert_that_never_fired_is_cancelled_in_silence_and_each_episode_is_its_own() {
    use AlertPhase::*;
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let channels = ["log".to_owned()];
    let history = [
        transition(Pending, 1, 1),
        transition(Cancelled, 1, 2),
        transition(Firing, 10, 10),
        transition(Firing, 11, 11), // Never resolved the first: still one open alert.
        transition(Resolved, 11, 12),
    ];
    let applied =
        registry.apply_alerts("alerting", 0, &history, 5, &channels, |_| String::new()).await.unwrap();
    assert_eq!(applied, AppliedAlerts { transitions: 5, notifications: 2 });
    let all = AlertFilter { phase: None, limit: 10 };
    let alerts = registry.alerts(&TenantId::default_tenant(), all).await.unwrap();
    assert_eq!(alerts.iter().map(|a| a.phase).collect::<Vec<_>>(), [Resolved, Cancelled]);
}

/// Of a channel's notifications, in the order of their making.
async fn states(registry: &Registry, channel: &str) -> Vec<String> {
    let rows: Vec<(String,)> =
        sqlx::query_as("SELECT state FROM notifications WHERE channel = $1 ORDER BY created_seq")
            .bind(channel)
            .fetch_all(&registry.readers)
            .await
            .unwrap();
    rows.into_iter().map(|(state,)| state).collect()
}

fn other_transition(phase: AlertPhase, since: i64, at: i64) -> AlertTransition {
    let fingerprint = Fingerprint::of("default", "hot", "pump-2");
    let id = TransitionId::of(fingerprint, phase, Timestamp::from_micros(since));
    AlertTransition { id, fingerprint, device: "pump-2".into(), ..transition(phase, since, at) }
}

#[tokio::test]
async fn a_channel_hears_of_an_alert_in_order_and_of_others_meanwhile() {
    use AlertPhase::*;
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let say = |t: &AlertTransition| format!("{} {:?} {}", t.device, t.phase, t.since.as_micros());
    let due = async || -> Vec<(String, String)> {
        let due = registry.due_notifications("w", 10).await.unwrap();
        due.into_iter().map(|n| (n.idempotency_key, n.body)).collect()
    };
    let channels = ["w".to_owned(), "other".to_owned()];
    let first = [transition(Firing, 1, 1), transition(Resolved, 1, 2), other_transition(Firing, 1, 3)];
    registry.apply_alerts("alerting", 0, &first, 3, &channels, say).await.unwrap();
    let second = [transition(Firing, 5, 5), transition(Resolved, 5, 6)];
    registry.apply_alerts("alerting", 0, &second, 5, &channels, say).await.unwrap();

    let now = due().await;
    assert_eq!([&now[0].1, &now[1].1], ["pump-1 Firing 1", "pump-2 Firing 1"], "one of each alert");
    assert_eq!(now.len(), 2);
    registry.notification_sent(&now[1].0).await.unwrap();

    // The first is refused and waits: what comes after it waits, too, and nobody need look before.
    let later = Timestamp::from_micros(1_800_000_000_000_000);
    registry.notification_failed(&now[0].0, "503", Some(later)).await.unwrap();
    assert_eq!(due().await, []);
    assert_eq!(registry.next_notification("w").await.unwrap(), Some(later));
    assert_eq!(states(&registry, "w").await, ["due", "held", "sent", "held", "held"]);
    assert_eq!(states(&registry, "other").await, ["due", "held", "due", "held", "held"]);

    registry.notification_failed(&now[0].0, "503", None).await.unwrap(); // Given up: the next one's turn.
    for expected in ["pump-1 Resolved 1", "pump-1 Firing 5", "pump-1 Resolved 5"] {
        let now = due().await;
        assert_eq!(now.iter().map(|(_, body)| body).collect::<Vec<_>>(), [expected]);
        registry.notification_sent(&now[0].0).await.unwrap();
    }
    assert_eq!(registry.next_notification("w").await.unwrap(), None);
}

#[tokio::test]
async fn notifications_of_an_older_version_go_out_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("registry.db");
    let old = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&file).create_if_missing(true))
        .await
        .unwrap();
    let mut before = sqlx::migrate!("./migrations");
    before.migrations.to_mut().retain(|m| m.version <= 2);
    before.run(&old).await.unwrap();
    let history = [transition(AlertPhase::Firing, 1, 1), transition(AlertPhase::Resolved, 1, 2)];
    for (t, phase, next_at) in [(&history[1], "resolved", 8), (&history[0], "firing", 9)] {
        sqlx::query("INSERT INTO alert_transitions VALUES ($1, 'default', $2, $3, $4, 81.0, 7)")
            .bind(t.id.to_string())
            .bind(t.fingerprint.to_string())
            .bind(phase)
            .bind(t.at.as_micros())
            .execute(&old)
            .await
            .unwrap();
        sqlx::query("INSERT INTO notifications VALUES ($1, 'the-w', $2, 'due', 1, $3, NULL, 7)")
            .bind(format!("{}-the-w", t.id))
            .bind(phase)
            .bind(next_at)
            .execute(&old)
            .await
            .unwrap();
    }
    old.close().await;

    let registry = registry(&dir).await;
    for expected in ["firing", "resolved"] {
        let due = registry.due_notifications("the-w", 10).await.unwrap();
        assert_eq!(due.iter().map(|n| n.body.as_str()).collect::<Vec<_>>(), [expected]);
        registry.notification_sent(&due[0].idempotency_key).await.unwrap();
    }
}

#[tokio::test]
async fn a_notification_waits_for_its_retry_and_is_given_up_with_its_error() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let firing = [transition(AlertPhase::Firing, 1, 1)];
    registry.apply_alerts("alerting", 0, &firing, 1, &["w".to_owned()], |_| "b".into()).await.unwrap();
    let due = registry.due_notifications("w", 10).await.unwrap();
    assert_eq!((due.len(), due[0].attempts), (1, 0));

    let later = Timestamp::from_micros(1_800_000_000_000_000);
    registry.notification_failed(&due[0].idempotency_key, "503", Some(later)).await.unwrap();
    assert!(registry.due_notifications("w", 10).await.unwrap().is_empty());
    assert_eq!(registry.next_notification("w").await.unwrap(), Some(later));

    registry.notification_failed(&due[0].idempotency_key, "503", None).await.unwrap();
    assert_eq!(states(&registry, "w").await, ["dead"]);
}

#[tokio::test]
async fn what_is_refused_is_told_from_what_fails() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let apply = async |value| {
        let transition = AlertTransition { value, ..transition(AlertPhase::Firing, 1, 1) };
        registry.apply_alerts("alerting", 0, &[transition], 1, &[], |_| String::new()).await
    };
    // SQLite has no NaN: it is NULL there, and no value may be.
    assert!(apply(f64::NAN).await.unwrap_err().is_refusal());
    assert_eq!(registry.position("alerting", 0).await.unwrap(), None, "nothing of it is left");

    let other =
        sqlx::SqlitePool::connect_with(SqliteConnectOptions::new().filename(dir.path().join("registry.db")))
            .await
            .unwrap();
    sqlx::query("ALTER TABLE positions RENAME TO elsewhere").execute(&other).await.unwrap();
    assert!(!apply(81.0).await.unwrap_err().is_refusal(), "a table that is not there may come back");
    sqlx::query("ALTER TABLE elsewhere RENAME TO positions").execute(&other).await.unwrap();
    assert_eq!(apply(81.0).await.unwrap().transitions, 1);
    registry.close().await;
    assert!(!apply(81.0).await.unwrap_err().is_refusal());
}

#[tokio::test]
async fn what_is_over_is_forgotten_by_age_and_what_is_open_stays() {
    use AlertPhase::*;
    const AN_HOUR: i64 = 3_600_000_000;
    let dir = tempfile::tempdir().unwrap();
    let now = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(0));
    let hands = now.clone();
    let clock = Clock::new(move || Timestamp::from_micros(hands.load(std::sync::atomic::Ordering::SeqCst)));
    let registry = Registry::open(&dir.path().join("registry.db"), clock).await.unwrap();
    let channels = ["w".to_owned()];
    let over: Vec<_> =
        (1..=1_200).flat_map(|n| [transition(Pending, n, n), transition(Cancelled, n, n)]).collect();
    let told = [transition(Firing, 2_000, 2_000), transition(Resolved, 2_000, 2_001)];
    let open = [other_transition(Firing, 1, 1)];
    let fresh = [transition(Firing, 3_000, 3_000), transition(Resolved, 3_000, 3_001)];
    for (at, history) in [(0, &over[..]), (0, &told), (0, &open), (AN_HOUR, &fresh)] {
        now.store(at, std::sync::atomic::Ordering::SeqCst);
        registry.apply_alerts("alerting", 0, history, 1, &channels, |_| String::new()).await.unwrap();
    }
    // One is sent, and its end is due; the open one's is sent; the fresh ones are held.
    for n in registry.due_notifications("w", 10).await.unwrap() {
        registry.notification_sent(&n.idempotency_key).await.unwrap();
    }
    assert_eq!(states(&registry, "w").await, ["sent", "due", "sent", "held", "held"]);

    let trimmed = registry.trim_alerts(Timestamp::from_micros(AN_HOUR)).await.unwrap();
    assert_eq!(trimmed, TrimmedAlerts { transitions: 2_403, alerts: 1_201, notifications: 2 });
    assert_eq!(states(&registry, "w").await, ["due", "held", "held"]);
    let all = AlertFilter { phase: None, limit: 9 };
    let alerts = registry.alerts(&TenantId::default_tenant(), all).await.unwrap();
    assert_eq!(
        alerts.iter().map(|a| (a.device.as_str(), a.phase)).collect::<Vec<_>>(),
        [("pump-1", Resolved), ("pump-2", Firing)]
    );
    assert_eq!(
        registry.trim_alerts(Timestamp::from_micros(AN_HOUR)).await.unwrap(),
        TrimmedAlerts::default()
    );

    let again = registry.apply_alerts("alerting", 0, &open, 1, &channels, |_| String::new()).await.unwrap();
    assert_eq!(again.notifications, 0, "an alert that is open is not told again");
}

#[tokio::test]
async fn a_rule_has_versions_and_one_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let (a, b): (TenantId, TenantId) = ("a".parse().unwrap(), "b".parse().unwrap());
    registry.add_tenant(&a).await.unwrap();
    registry.add_tenant(&b).await.unwrap();
    assert_eq!(registry.put_rule(&a, "hot", "one", true).await.unwrap(), 1);
    assert_eq!(registry.put_rule(&a, "hot", "one", true).await.unwrap(), 1, "nothing new");
    assert_eq!(registry.put_rule(&a, "hot", "two", true).await.unwrap(), 2);
    assert_eq!(registry.put_rule(&b, "hot", "other", true).await.unwrap(), 1);
    let in_force = async || -> Vec<_> {
        let rules = registry.enabled_rules().await.unwrap();
        rules.into_iter().map(|rule| (rule.tenant.to_string(), rule.version, rule.text)).collect()
    };
    let two = ("a".to_owned(), 2, "two".to_owned());
    let other = ("b".to_owned(), 1, "other".to_owned());
    assert_eq!(in_force().await, [two, other.clone()]);

    registry.set_rule_version(&a, "hot", 1).await.unwrap();
    assert_eq!(registry.rule(&a, "hot").await.unwrap().unwrap().text, "one");
    assert!(matches!(registry.set_rule_version(&a, "hot", 3).await, Err(RegistryError::NotFound { .. })));
    registry.set_rule_enabled(&a, "hot", false).await.unwrap();
    assert_eq!(in_force().await, [other]);
    assert_eq!(registry.rules(&a).await.unwrap().len(), 1);
    registry.delete_rule(&a, "hot").await.unwrap();
    assert!(registry.rule(&a, "hot").await.unwrap().is_none());
    assert!(matches!(registry.delete_rule(&a, "hot").await, Err(RegistryError::NotFound { .. })));
    let versions: Vec<_> =
        registry.rule_versions(&a, "hot").await.unwrap().into_iter().map(|v| v.version).collect();
    assert_eq!(versions, [2, 1]);
    assert_eq!(registry.put_rule(&a, "hot", "three", true).await.unwrap(), 3);
}

#[tokio::test]
async fn a_rule_carries_what_people_say_and_what_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let tenant = TenantId::default_tenant();
    let at = Timestamp::from_micros;
    let mark = |is_false| RuleMark { device: "d".into(), from: at(1), to: at(2), is_false };
    registry.mark_rule(&tenant, "hot", &mark(true)).await.unwrap();
    registry.mark_rule(&tenant, "hot", &mark(false)).await.unwrap();
    assert_eq!(registry.rule_marks(&tenant, "hot").await.unwrap(), [mark(false)]);
    let measure = RuleMeasure {
        version: 2,
        from: at(0),
        to: at(9),
        fired: 10,
        right_count: 3,
        false_count: 1,
        measured_at: at(1_700_000_000_000_000),
    };
    registry.set_rule_measure(&tenant, "hot", &RuleMeasure { fired: 3, ..measure }).await.unwrap();
    registry.set_rule_measure(&tenant, "hot", &measure).await.unwrap();
    assert_eq!(registry.rule_measures(&tenant).await.unwrap(), [("hot".to_owned(), measure)]);
    assert_eq!(
        (measure.precision(), RuleMeasure { right_count: 0, false_count: 0, ..measure }.precision()),
        (Some(0.75), None)
    );
}

#[tokio::test]
async fn an_alert_that_gets_worse_goes_on_and_people_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let firing = AlertTransition { severity: Severity::Warning, ..transition(AlertPhase::Firing, 1, 5) };
    let worse = AlertTransition {
        id: TransitionId::of_change(firing.fingerprint, Severity::Critical, Timestamp::from_micros(7)),
        severity: Severity::Critical,
        at: Timestamp::from_micros(7),
        ..firing.clone()
    };
    let apply = async |history: &[AlertTransition], next| {
        let channels = ["w".to_owned()];
        registry.apply_alerts("alerting", 0, history, next, &channels, |_| String::new()).await.unwrap()
    };
    assert_eq!(apply(&[firing.clone(), worse.clone()], 2).await.notifications, 2);
    assert_eq!(apply(&[firing, worse], 2).await.notifications, 0, "a replay");
    let tenant = TenantId::default_tenant();
    let alerts = registry.alerts(&tenant, AlertFilter { phase: None, limit: 10 }).await.unwrap();
    assert_eq!((alerts.len(), alerts[0].severity), (1, Severity::Critical));
    assert_eq!(alerts[0].fired_at, Some(Timestamp::from_micros(5)));
}
