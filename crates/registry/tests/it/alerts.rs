use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

use dunlin_model::{
    AlertId, AlertPhase, AlertState, AlertTransition, Clock, Fingerprint, Severity, TenantId, Timestamp,
    TransitionId,
};
use dunlin_registry::{
    Act, ActError, Alert, AlertFilter, NewNotification, NewSilence, NotificationFilter, NotificationState,
    Registry, RegistryError, Silence, Timer, TimerKind, TrimmedAlerts,
};

use crate::Lab;

pub(crate) fn transition(phase: AlertPhase, since: i64, at: i64) -> AlertTransition {
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

pub(crate) fn alert(device: &str, since: i64, state: AlertState) -> Alert {
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

pub(crate) async fn put(registry: &Registry, alerts: &[Alert]) {
    let mut work = registry.alert_work().await.unwrap();
    work.put_alerts(alerts).await.unwrap();
    work.commit().await.unwrap();
}

pub(crate) fn told(key: &str, device: &str, channel: &str, state: NotificationState) -> NewNotification {
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

pub(crate) async fn tell(registry: &Registry, new: &[NewNotification]) -> u64 {
    let mut work = registry.alert_work().await.unwrap();
    let to_send = work.put_notifications(new).await.unwrap();
    work.commit().await.unwrap();
    to_send
}

pub(crate) async fn due(registry: &Registry, channel: &str) -> Vec<String> {
    registry.due_notifications(channel, 10).await.unwrap().into_iter().map(|n| n.body).collect()
}

/// Of a channel's notifications, in the order of their making.
pub(crate) async fn states(lab: &Lab, channel: &str) -> Vec<String> {
    lab.column(&format!("SELECT state FROM notifications WHERE channel = '{channel}' ORDER BY created_seq"))
        .await
}

pub(crate) async fn an_alert_comes_back_as_it_was_put_and_a_fingerprint_has_one_that_is_open(lab: &Lab) {
    let registry = lab.open().await;
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
    put(&registry, &[alert("pump-1", 2, AlertState::Acknowledged), over]).await;

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

pub(crate) async fn what_people_do_is_legal_or_refused_and_written_down(lab: &Lab) {
    let registry = lab.open().await;
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

pub(crate) async fn a_channel_hears_of_an_alert_in_order_and_of_others_meanwhile(lab: &Lab) {
    use NotificationState::Due;
    let registry = lab.open().await;
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
    assert_eq!(states(lab, "w").await, ["due", "held", "sent", "held"]);
    assert_eq!(states(lab, "x").await, ["due"]);

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

pub(crate) async fn a_message_of_many_has_what_it_had_when_it_closed(lab: &Lab) {
    let now = Arc::new(AtomicI64::new(1_000_000));
    let hands = now.clone();
    let clock = Clock::new(move || Timestamp::from_micros(hands.load(SeqCst)));
    let registry = lab.open_at(clock).await;
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

    now.store(5_000_000, SeqCst);
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

pub(crate) async fn what_follows_a_message_of_many_waits_for_it_and_others_do_not(lab: &Lab) {
    use NotificationState::Due;
    let registry = lab.open().await;
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

pub(crate) async fn a_message_of_many_lets_what_its_alerts_said_before_it_go_first(lab: &Lab) {
    use NotificationState::Due;
    let registry = lab.open().await;
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

pub(crate) async fn a_silence_is_in_force_in_its_time_and_wakes_what_waits_for_its_end(lab: &Lab) {
    let registry = lab.open().await;
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

pub(crate) async fn what_is_refused_is_told_from_what_fails(lab: &Lab) {
    let registry = lab.open().await;
    let apply = async |value| {
        let transition = AlertTransition { value, ..transition(AlertPhase::Firing, 1, 1) };
        let mut work = registry.alert_work().await?;
        let fresh = work.remember(&[transition.clone(), transition]).await?;
        work.move_position("alerting", 0, 1).await?;
        work.commit().await?;
        Ok::<_, RegistryError>(fresh.len())
    };
    // SQLite has no NaN: it is NULL there, and no value may be.
    let refused = apply(f64::NAN).await.unwrap_err();
    assert!(refused.is_refusal() && !refused.is_unavailable());
    assert_eq!(registry.position("alerting", 0).await.unwrap(), None, "nothing of it is left");

    lab.run("ALTER TABLE positions RENAME TO elsewhere").await;
    let failed = apply(81.0).await.unwrap_err();
    assert!(!failed.is_refusal() && failed.is_unavailable(), "a table that is not there may come back");
    lab.run("ALTER TABLE elsewhere RENAME TO positions").await;
    assert_eq!(apply(81.0).await.unwrap(), 1);
    assert_eq!(apply(81.0).await.unwrap(), 0, "a replay");
    registry.close().await;
    assert!(!apply(81.0).await.unwrap_err().is_refusal());
}

pub(crate) async fn what_is_over_is_forgotten_by_age_and_what_is_open_stays(lab: &Lab) {
    use NotificationState::{Due, Suppressed};
    const AN_HOUR: i64 = 3_600_000_000;
    let now = Arc::new(AtomicI64::new(0));
    let hands = now.clone();
    let clock = Clock::new(move || Timestamp::from_micros(hands.load(SeqCst)));
    let registry = lab.open_at(clock).await;
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
    now.store(AN_HOUR, SeqCst);
    put(&registry, &[alert("pump-1", 3_000, AlertState::Resolved)]).await;

    let trimmed = registry.trim_alerts(Timestamp::from_micros(AN_HOUR)).await.unwrap();
    assert_eq!(trimmed, TrimmedAlerts { transitions: 1_200, alerts: 1_200, notifications: 2 });
    assert_eq!(states(lab, "w").await, ["due"]);
    let all = AlertFilter { limit: 9, ..AlertFilter::default() };
    let alerts = registry.alerts(&TenantId::default_tenant(), &all).await.unwrap();
    let left: Vec<_> = alerts.iter().map(|a| (a.device.as_str(), a.state)).collect();
    assert_eq!(left, [("pump-1", AlertState::Resolved), ("pump-2", AlertState::Firing)]);
    let again = registry.trim_alerts(Timestamp::from_micros(AN_HOUR)).await.unwrap();
    assert_eq!(again, TrimmedAlerts::default());
}
