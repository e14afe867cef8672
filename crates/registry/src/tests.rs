use std::{collections::BTreeSet, time::Duration};

use dunlin_model::{
    AlertId, AlertPhase, AlertState, AlertTransition, Clock, DeviceId, DeviceType, Fingerprint, Severity,
    TenantId, Timestamp, TransitionId,
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

fn alert(device: &str, since: i64, state: AlertState) -> Alert {
    Alert {
        tenant: "default".into(),
        id: AlertId {
            fingerprint: Fingerprint::of("default", "hot", device),
            since: Timestamp::from_micros(since),
        },
        rule: "hot".into(),
        device: device.into(),
        severity: Severity::Critical,
        state,
        fired_at: None,
        resolved_at: None,
        acknowledged_at: None,
        acknowledged_by: None,
        assignee: None,
        snoozed_until: None,
        value: 81.0,
        condition: "temperature > 80".into(),
        told: Some(vec!["mail/a@x".into(), "log".into()]),
    }
}

async fn put(registry: &Registry, alerts: &[Alert]) {
    let mut work = registry.alert_work().await.unwrap();
    work.put_alerts(alerts).await.unwrap();
    work.commit().await.unwrap();
}

fn told(key: &str, device: &str, channel: &str, state: NotificationState) -> NewNotification {
    NewNotification {
        idempotency_key: format!("{key}-{channel}"),
        tenant: "default".into(),
        alert: Some(alert(device, 1, AlertState::Firing).id),
        channel: channel.into(),
        recipient: String::new(),
        what: "fired".into(),
        body: key.into(),
        group_key: String::new(),
        state,
    }
}

async fn tell(registry: &Registry, new: &[NewNotification]) -> u64 {
    let mut work = registry.alert_work().await.unwrap();
    let to_send = work.put_notifications(new).await.unwrap();
    work.commit().await.unwrap();
    to_send
}

async fn due(registry: &Registry, channel: &str) -> Vec<String> {
    registry.due_notifications(channel, 10).await.unwrap().into_iter().map(|n| n.body).collect()
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

#[tokio::test]
async fn an_alert_comes_back_as_it_was_put_and_a_fingerprint_has_one_that_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let tenant = TenantId::default_tenant();
    let first = alert("pump-1", 1, AlertState::Firing);
    put(&registry, &[first.clone(), alert("pump-2", 7, AlertState::Pending)]).await;
    assert_eq!(registry.alert(&tenant, first.id).await.unwrap(), Some(first.clone()));
    assert_eq!(registry.alerts_firing(&tenant).await.unwrap(), 1);

    let mut work = registry.alert_work().await.unwrap();
    let second = work.put_alerts(&[alert("pump-1", 2, AlertState::Firing)]).await.unwrap_err();
    assert!(second.is_refusal(), "{second}");
    drop(work);
    let over = Alert { state: AlertState::Resolved, ..first };
    put(&registry, &[over, alert("pump-1", 2, AlertState::Acknowledged)]).await;

    let mut filter = AlertFilter { limit: 10, ..AlertFilter::default() };
    let list = async |filter: &AlertFilter| -> Vec<(String, AlertState)> {
        let alerts = registry.alerts(&tenant, filter).await.unwrap();
        alerts.into_iter().map(|a| (a.device, a.state)).collect()
    };
    let (p1, p2) = ("pump-1".to_owned(), "pump-2".to_owned());
    let all = [
        (p2.clone(), AlertState::Pending),
        (p1.clone(), AlertState::Acknowledged),
        (p1.clone(), AlertState::Resolved),
    ];
    assert_eq!(list(&filter).await, all);
    filter.after = Some(alert("pump-2", 7, AlertState::Pending).id);
    assert_eq!(list(&filter).await, all[1..]);
    filter.after = None;
    filter.states = vec![AlertState::Acknowledged, AlertState::Pending];
    assert_eq!(list(&filter).await, all[..2]);
    filter.device = Some(p1);
    assert_eq!(list(&filter).await, all[1..2]);
    assert!(registry.alerts(&"other".parse().unwrap(), &filter).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_people_do_is_legal_or_refused_and_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let tenant = TenantId::default_tenant();
    let id = alert("pump-1", 1, AlertState::Firing).id;
    put(&registry, &[alert("pump-1", 1, AlertState::Firing)]).await;
    let act = async |act: Act, link| registry.act_on_alert(&tenant, id, &act, "ada", "why", link).await;

    let acknowledged = act(Act::Acknowledge, Some("m1")).await.unwrap().unwrap();
    assert_eq!(
        (acknowledged.state, acknowledged.acknowledged_by.as_deref()),
        (AlertState::Acknowledged, Some("ada"))
    );
    let again = act(Act::Acknowledge, None).await.unwrap_err();
    assert_eq!(again.to_string(), "an alert that is acknowledged cannot be acknowledged");
    assert!(matches!(act(Act::Comment, Some("m1")).await, Err(ActError::LinkUsed)));
    assert!(registry.link_is_used("m1").await.unwrap());
    // A link that came to nothing is not used up.
    assert!(act(Act::Acknowledge, Some("m2")).await.is_err());
    assert!(!registry.link_is_used("m2").await.unwrap());

    act(Act::Comment, None).await.unwrap();
    act(Act::Assign(Some("grace".into())), None).await.unwrap();
    act(Act::Unacknowledge, None).await.unwrap();
    let until = Timestamp::from_micros(1_700_000_001_000_000);
    let snoozed = act(Act::Snooze(until), None).await.unwrap().unwrap();
    assert_eq!((snoozed.state, snoozed.snoozed_until), (AlertState::Firing, Some(until)));
    assert_eq!((snoozed.assignee.as_deref(), snoozed.acknowledged_by), (Some("grace"), None));
    let notes = registry.alert_notes(&tenant, id, 10).await.unwrap();
    let said: BTreeSet<_> = notes.iter().map(|n| n.what.as_str()).collect();
    assert_eq!(said, ["acknowledged", "assigned", "commented", "snoozed", "unacknowledged"].into());
    assert!(notes.iter().all(|n| n.who == "ada" && n.words == "why"));

    let elsewhere: TenantId = "other".parse().unwrap();
    let nobody = registry.act_on_alert(&elsewhere, id, &Act::Acknowledge, "eve", "", None).await.unwrap();
    assert_eq!(nobody, None, "another tenant's");
    put(&registry, &[alert("pump-1", 1, AlertState::Resolved)]).await;
    assert!(matches!(act(Act::Snooze(until), None).await, Err(ActError::Over(AlertState::Resolved))));
    assert!(act(Act::Acknowledge, None).await.is_err());
}

#[tokio::test]
async fn a_channel_hears_of_an_alert_in_order_and_of_others_meanwhile() {
    use NotificationState::Due;
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let first = [
        told("fired", "pump-1", "w", Due),
        told("over", "pump-1", "w", Due),
        told("other", "pump-2", "w", Due),
    ];
    assert_eq!(tell(&registry, &first).await, 2);
    tell(&registry, &first).await; // Said again: nothing.
    tell(&registry, &[told("again", "pump-1", "w", Due), told("fired", "pump-1", "x", Due)]).await;
    assert_eq!(due(&registry, "w").await, ["fired", "other"], "one of each alert");
    let first = registry.due_notifications("w", 10).await.unwrap();
    for (limit, behind) in [(10, &["over", "again"][..]), (1, &["over"])] {
        let held = registry.held_notifications("w", &first, limit).await.unwrap();
        assert!(
            held.iter().all(|n| n.is_held) && held.iter().map(|n| n.body.as_str()).eq(behind.iter().copied())
        );
    }
    registry.notifications_sent(&["other-w"]).await.unwrap();

    // The first is refused and waits: what comes after it waits, too, and nobody need look before.
    let later = Timestamp::from_micros(1_800_000_000_000_000);
    registry.notification_failed("fired-w", "503", Some(later)).await.unwrap();
    assert!(due(&registry, "w").await.is_empty());
    assert_eq!(registry.next_notification("w").await.unwrap(), Some(later));
    assert_eq!(states(&registry, "w").await, ["due", "held", "sent", "held"]);
    assert_eq!(states(&registry, "x").await, ["due"]);

    registry.notification_failed("fired-w", "503", None).await.unwrap(); // Given up: the next one's turn.
    for expected in ["over", "again"] {
        assert_eq!(due(&registry, "w").await, [expected]);
        registry.notifications_sent(&[&format!("{expected}-w")]).await.unwrap();
    }
    assert_eq!(registry.next_notification("w").await.unwrap(), None);

    let tenant = TenantId::default_tenant();
    let dead = NotificationFilter { state: Some("dead".into()), limit: 10, ..NotificationFilter::default() };
    let dead = registry.notifications(&tenant, &dead).await.unwrap();
    assert_eq!(dead.iter().map(|n| n.last_error.as_deref()).collect::<Vec<_>>(), [Some("503")]);
    assert!(!registry.revive_notification(&"other".parse().unwrap(), "fired-w").await.unwrap());
    assert!(registry.revive_notification(&tenant, "fired-w").await.unwrap());
    assert_eq!(due(&registry, "w").await, ["fired"]);
}

#[tokio::test]
async fn a_message_of_many_has_what_it_had_when_it_closed() {
    let dir = tempfile::tempdir().unwrap();
    let now = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(1_000_000));
    let hands = now.clone();
    let clock = Clock::new(move || Timestamp::from_micros(hands.load(std::sync::atomic::Ordering::SeqCst)));
    let registry = Registry::open(&dir.path().join("registry.db"), clock).await.unwrap();
    put(&registry, &[alert("pump-1", 1, AlertState::Firing), alert("pump-2", 1, AlertState::Firing)]).await;
    let closes_at = Timestamp::from_micros(5_000_000);
    let carried = || NotificationState::Carried { carrier: "digest-w".into(), reason: "budget".into() };
    let digest = NewNotification {
        alert: None,
        what: "digest".into(),
        ..told("digest", "", "w", NotificationState::Gathering { members: 2, closes_at })
    };
    tell(&registry, &[digest, told("a", "pump-1", "w", carried()), told("b", "pump-2", "w", carried())])
        .await;
    assert!(due(&registry, "w").await.is_empty());
    assert_eq!(registry.next_notification("w").await.unwrap(), Some(closes_at));
    let mut work = registry.alert_work().await.unwrap();
    let open = work.gatherings().await.unwrap();
    assert_eq!((open[0].key.as_str(), open[0].members), ("digest-w", 2));
    drop(work);

    now.store(5_000_000, std::sync::atomic::Ordering::SeqCst);
    let found = registry.due_notifications("w", 10).await.unwrap();
    assert!(found[0].is_gathering);
    assert_eq!(registry.close_gathering("digest-w").await.unwrap(), 2);
    assert!(registry.alert_work().await.unwrap().gatherings().await.unwrap().is_empty());
    let first = registry.carried("digest-w", 0, 1).await.unwrap();
    let second = registry.carried("digest-w", first[0].seq, 10).await.unwrap();
    assert_eq!((first[0].device.as_str(), second[0].device.as_str(), second.len()), ("pump-1", "pump-2", 1));
    let counts = registry.carried_counts("digest-w").await.unwrap();
    assert_eq!(counts.into_values().collect::<Vec<_>>(), [2]);
}

/// A message of many that is still open, and what it carries.
fn digest(key: &str, devices: &[&str]) -> Vec<NewNotification> {
    let carrier = format!("{key}-w");
    let members = devices.len() as u64;
    let closes_at = Timestamp::from_micros(1_600_000_000_000_000);
    let open = NewNotification {
        alert: None,
        what: "digest".into(),
        ..told(key, "", "w", NotificationState::Gathering { members, closes_at })
    };
    let carried = |device: &&str| {
        let state = NotificationState::Carried { carrier: carrier.clone(), reason: "many".into() };
        told(&format!("{key}-{device}"), device, "w", state)
    };
    std::iter::once(open).chain(devices.iter().map(carried)).collect()
}

#[tokio::test]
async fn what_follows_a_message_of_many_waits_for_it_and_others_do_not() {
    use NotificationState::Due;
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let mut all = digest("d1", &["pump-1", "pump-2"]);
    all.push(told("over", "pump-1", "w", Due));
    tell(&registry, &all).await;
    tell(&registry, &[told("again", "pump-1", "w", Due), told("other", "pump-3", "w", Due)]).await;
    let elsewhere = NewNotification { recipient: "eve".into(), ..told("eve", "pump-1", "w", Due) };
    tell(&registry, &[elsewhere, told("end", "pump-2", "w", Due)]).await;
    assert_eq!(due(&registry, "w").await, ["d1", "other", "eve"]);

    assert_eq!(registry.close_gathering("d1-w").await.unwrap(), 2);
    let later = Timestamp::from_micros(1_800_000_000_000_000);
    registry.notification_failed("d1-w", "503", Some(later)).await.unwrap();
    tell(&registry, &[told("late", "pump-2", "w", Due)]).await;
    assert_eq!(due(&registry, "w").await, ["other", "eve"], "also while it is tried again");
    // A younger one that tells of the same alert does not let go of what the older one holds up.
    tell(&registry, &digest("d2", &["pump-2"])).await;
    registry.notifications_sent(&["other-w", "eve-w", "d2-w"]).await.unwrap();
    assert!(due(&registry, "w").await.is_empty());

    registry.notifications_sent(&["d1-w"]).await.unwrap();
    assert_eq!(due(&registry, "w").await, ["over", "end"], "one of each alert");
    registry.notifications_sent(&["over-w"]).await.unwrap();
    assert_eq!(due(&registry, "w").await, ["again", "end"]);
}

#[tokio::test]
async fn a_message_of_many_lets_what_its_alerts_said_before_it_go_first() {
    use NotificationState::Due;
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    tell(&registry, &[told("fired", "pump-1", "w", Due), told("fired", "pump-9", "x", Due)]).await;
    tell(&registry, &digest("d1", &["pump-1"])).await;
    let before = async |key| registry.due_before(key).await.unwrap();
    let now = Timestamp::from_micros(1_700_000_000_000_000);
    assert_eq!(before("d1-w").await, Some((now, 0)));
    let later = Timestamp::from_micros(1_800_000_000_000_000);
    registry.notification_failed("fired-w", "503", Some(later)).await.unwrap();
    assert_eq!(before("d1-w").await, Some((later, 1)));
    registry.close_gathering("d1-w").await.unwrap();
    registry.postpone_notification("d1-w", later).await.unwrap();
    assert!(due(&registry, "w").await.is_empty());
    assert_eq!(registry.due_notifications("x", 10).await.unwrap().len(), 1);

    // Of other alerts it does not wait for anybody but an older one of its kind.
    registry.notifications_sent(&["fired-w"]).await.unwrap();
    tell(&registry, &digest("d2", &["pump-2"])).await;
    assert_eq!((before("d1-w").await, before("d2-w").await), (None, Some((later, 0))));
}

#[tokio::test]
async fn a_silence_is_in_force_in_its_time_and_wakes_what_waits_for_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let (tenant, now) = (TenantId::default_tenant(), Timestamp::from_micros(1_700_000_000_000_000));
    let hour = Duration::from_secs(3_600);
    let new = NewSilence {
        matchers: "[]".into(),
        starts_at: now,
        ends_at: now + hour,
        every_seconds: None,
        until: now + hour,
        comment: "pump works".into(),
        created_by: "ada".into(),
    };
    let silence = registry.add_silence(&tenant, &new).await.unwrap();
    assert_eq!(registry.silence(&tenant, &silence.id).await.unwrap().as_ref(), Some(&silence));
    assert_eq!(silence.in_force_until(now), Some(now + hour));
    assert_eq!((silence.in_force_until(now - hour), silence.in_force_until(now + hour)), (None, None));

    let window = Silence { every_seconds: Some(86_400), until: now + 48 * hour, ..silence.clone() };
    assert_eq!(window.in_force_until(now + 24 * hour), Some(now + 25 * hour), "again a day later");
    assert_eq!(window.in_force_until(now + 26 * hour), None);
    assert_eq!(window.in_force_until(now + 48 * hour), None, "and then no more");

    let id = alert("pump-1", 1, AlertState::Firing).id;
    let timer = Timer {
        tenant: "default".into(),
        alert: id,
        kind: TimerKind::Look,
        at: now + hour,
        waits_for: Some(silence.id.clone()),
        targets: vec!["a".into()],
    };
    let mut work = registry.alert_work().await.unwrap();
    work.put_timers(&[timer.clone(), timer.clone()]).await.unwrap();
    work.commit().await.unwrap();
    assert_eq!(registry.next_alert_timer().await.unwrap(), Some(now + hour));
    assert!(!registry.expire_silence(&"other".parse().unwrap(), &silence.id).await.unwrap());
    assert!(registry.expire_silence(&tenant, &silence.id).await.unwrap());
    assert!(!registry.expire_silence(&tenant, &silence.id).await.unwrap(), "it has ended");
    let mut work = registry.alert_work().await.unwrap();
    assert_eq!(work.take_due_timers(10).await.unwrap(), [Timer { at: now, ..timer }]);
    assert!(work.take_due_timers(10).await.unwrap().is_empty());
    assert!(work.silences().await.unwrap().is_empty());
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
        registry.notifications_sent(&[&due[0].idempotency_key]).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_refused_is_told_from_what_fails() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let apply = async |value| {
        let transition = AlertTransition { value, ..transition(AlertPhase::Firing, 1, 1) };
        let mut work = registry.alert_work().await?;
        let fresh = work.remember(&[transition.clone(), transition]).await?;
        work.move_position("alerting", 0, 1).await?;
        work.commit().await?;
        Ok::<_, RegistryError>(fresh.len())
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
    assert_eq!(apply(81.0).await.unwrap(), 1);
    assert_eq!(apply(81.0).await.unwrap(), 0, "a replay");
    registry.close().await;
    assert!(!apply(81.0).await.unwrap_err().is_refusal());
}

#[tokio::test]
async fn what_is_over_is_forgotten_by_age_and_what_is_open_stays() {
    use NotificationState::{Due, Suppressed};
    const AN_HOUR: i64 = 3_600_000_000;
    let dir = tempfile::tempdir().unwrap();
    let now = std::sync::Arc::new(std::sync::atomic::AtomicI64::new(0));
    let hands = now.clone();
    let clock = Clock::new(move || Timestamp::from_micros(hands.load(std::sync::atomic::Ordering::SeqCst)));
    let registry = Registry::open(&dir.path().join("registry.db"), clock).await.unwrap();
    let transitions: Vec<_> = (1..=1_200).map(|n| transition(AlertPhase::Pending, n, n)).collect();
    let over: Vec<_> = (1..=1_200).map(|n| alert("pump-1", n, AlertState::Cancelled)).collect();
    let mut work = registry.alert_work().await.unwrap();
    assert_eq!(work.remember(&transitions).await.unwrap().len(), 1_200);
    work.put_alerts(&over).await.unwrap();
    work.put_alerts(&[alert("pump-2", 1, AlertState::Firing)]).await.unwrap();
    work.put_notifications(&[told("sent", "pump-2", "w", Due), told("due", "pump-2", "w", Due)])
        .await
        .unwrap();
    let why = Suppressed { reason: "silence".into() };
    work.put_notifications(&[told("not", "pump-1", "w", why)]).await.unwrap();
    work.commit().await.unwrap();
    registry.notifications_sent(&["sent-w"]).await.unwrap();
    now.store(AN_HOUR, std::sync::atomic::Ordering::SeqCst);
    put(&registry, &[alert("pump-1", 3_000, AlertState::Resolved)]).await;

    let trimmed = registry.trim_alerts(Timestamp::from_micros(AN_HOUR)).await.unwrap();
    assert_eq!(trimmed, TrimmedAlerts { transitions: 1_200, alerts: 1_200, notifications: 2 });
    assert_eq!(states(&registry, "w").await, ["due"]);
    let all = AlertFilter { limit: 9, ..AlertFilter::default() };
    let alerts = registry.alerts(&TenantId::default_tenant(), &all).await.unwrap();
    let left: Vec<_> = alerts.iter().map(|a| (a.device.as_str(), a.state)).collect();
    assert_eq!(left, [("pump-1", AlertState::Resolved), ("pump-2", AlertState::Firing)]);
    let again = registry.trim_alerts(Timestamp::from_micros(AN_HOUR)).await.unwrap();
    assert_eq!(again, TrimmedAlerts::default());
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
