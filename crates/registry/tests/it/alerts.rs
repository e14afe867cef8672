use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering::SeqCst},
};

use dunlin_model::{
    AlertPhase, AlertTransition, Clock, Fingerprint, Severity, TenantId, Timestamp, TransitionId,
};
use dunlin_registry::{AlertFilter, AppliedAlerts, TrimmedAlerts};

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

fn other_transition(phase: AlertPhase, since: i64, at: i64) -> AlertTransition {
    let fingerprint = Fingerprint::of("default", "hot", "pump-2");
    let id = TransitionId::of(fingerprint, phase, Timestamp::from_micros(since));
    AlertTransition { id, fingerprint, device: "pump-2".into(), ..transition(phase, since, at) }
}

/// Of a channel's notifications, in the order of their making.
pub(crate) async fn states(lab: &Lab, channel: &str) -> Vec<String> {
    lab.column(&format!("SELECT state FROM notifications WHERE channel = '{channel}' ORDER BY created_seq"))
        .await
}

pub(crate) async fn a_replayed_alert_changes_nothing_and_tells_nobody_again(lab: &Lab) {
    use AlertPhase::*;
    let registry = lab.open().await;
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

pub(crate) async fn an_alert_that_never_fired_is_cancelled_in_silence_and_each_episode_is_its_own(lab: &Lab) {
    use AlertPhase::*;
    let registry = lab.open().await;
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

pub(crate) async fn a_channel_hears_of_an_alert_in_order_and_of_others_meanwhile(lab: &Lab) {
    use AlertPhase::*;
    let registry = lab.open().await;
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
    assert_eq!(states(lab, "w").await, ["due", "held", "sent", "held", "held"]);
    assert_eq!(states(lab, "other").await, ["due", "held", "due", "held", "held"]);

    registry.notification_failed(&now[0].0, "503", None).await.unwrap(); // Given up: the next one's turn.
    for expected in ["pump-1 Resolved 1", "pump-1 Firing 5", "pump-1 Resolved 5"] {
        let now = due().await;
        assert_eq!(now.iter().map(|(_, body)| body).collect::<Vec<_>>(), [expected]);
        registry.notification_sent(&now[0].0).await.unwrap();
    }
    assert_eq!(registry.next_notification("w").await.unwrap(), None);
}

pub(crate) async fn a_notification_waits_for_its_retry_and_is_given_up_with_its_error(lab: &Lab) {
    let registry = lab.open().await;
    let firing = [transition(AlertPhase::Firing, 1, 1)];
    registry.apply_alerts("alerting", 0, &firing, 1, &["w".to_owned()], |_| "b".into()).await.unwrap();
    let due = registry.due_notifications("w", 10).await.unwrap();
    assert_eq!((due.len(), due[0].attempts), (1, 0));

    let later = Timestamp::from_micros(1_800_000_000_000_000);
    registry.notification_failed(&due[0].idempotency_key, "503", Some(later)).await.unwrap();
    assert!(registry.due_notifications("w", 10).await.unwrap().is_empty());
    assert_eq!(registry.next_notification("w").await.unwrap(), Some(later));

    registry.notification_failed(&due[0].idempotency_key, "503", None).await.unwrap();
    assert_eq!(states(lab, "w").await, ["dead"]);
}

pub(crate) async fn what_is_refused_is_told_from_what_fails(lab: &Lab) {
    let registry = lab.open().await;
    let apply = async |value| {
        let transition = AlertTransition { value, ..transition(AlertPhase::Firing, 1, 1) };
        registry.apply_alerts("alerting", 0, &[transition], 1, &[], |_| String::new()).await
    };
    // SQLite has no NaN: it is NULL there, and no value may be.
    let refused = apply(f64::NAN).await.unwrap_err();
    assert!(refused.is_refusal() && !refused.is_unavailable());
    assert_eq!(registry.position("alerting", 0).await.unwrap(), None, "nothing of it is left");

    lab.run("ALTER TABLE positions RENAME TO elsewhere").await;
    let failed = apply(81.0).await.unwrap_err();
    assert!(!failed.is_refusal() && failed.is_unavailable(), "a table that is not there may come back");
    lab.run("ALTER TABLE elsewhere RENAME TO positions").await;
    assert_eq!(apply(81.0).await.unwrap().transitions, 1);
    registry.close().await;
    assert!(!apply(81.0).await.unwrap_err().is_refusal());
}

pub(crate) async fn alerts_are_listed_by_phase(lab: &Lab) {
    use AlertPhase::*;
    let registry = lab.open().await;
    let history = [transition(Firing, 1, 1), transition(Resolved, 1, 2), other_transition(Firing, 5, 5)];
    registry.apply_alerts("alerting", 0, &history, 3, &[], |_| String::new()).await.unwrap();
    let tenant = TenantId::default_tenant();
    let listed = async |phase, limit| -> Vec<String> {
        let alerts = registry.alerts(&tenant, AlertFilter { phase, limit }).await.unwrap();
        alerts.into_iter().map(|alert| alert.device).collect()
    };
    assert_eq!(listed(None, 10).await, ["pump-2", "pump-1"], "the newest first");
    assert_eq!(listed(None, 1).await, ["pump-2"]);
    assert_eq!(listed(Some(Resolved), 10).await, ["pump-1"]);
    assert_eq!(listed(Some(Pending), 10).await, [""; 0]);
}

pub(crate) async fn what_is_over_is_forgotten_by_age_and_what_is_open_stays(lab: &Lab) {
    use AlertPhase::*;
    const AN_HOUR: i64 = 3_600_000_000;
    let now = Arc::new(AtomicI64::new(0));
    let hands = now.clone();
    let clock = Clock::new(move || Timestamp::from_micros(hands.load(SeqCst)));
    let registry = lab.open_at(clock).await;
    let channels = ["w".to_owned()];
    let over: Vec<_> =
        (1..=1_200).flat_map(|n| [transition(Pending, n, n), transition(Cancelled, n, n)]).collect();
    let told = [transition(Firing, 2_000, 2_000), transition(Resolved, 2_000, 2_001)];
    let open = [other_transition(Firing, 1, 1)];
    let fresh = [transition(Firing, 3_000, 3_000), transition(Resolved, 3_000, 3_001)];
    for (at, history) in [(0, &over[..]), (0, &told), (0, &open), (AN_HOUR, &fresh)] {
        now.store(at, SeqCst);
        registry.apply_alerts("alerting", 0, history, 1, &channels, |_| String::new()).await.unwrap();
    }
    // One is sent, and its end is due; the open one's is sent; the fresh ones are held.
    for n in registry.due_notifications("w", 10).await.unwrap() {
        registry.notification_sent(&n.idempotency_key).await.unwrap();
    }
    assert_eq!(states(lab, "w").await, ["sent", "due", "sent", "held", "held"]);

    let trimmed = registry.trim_alerts(Timestamp::from_micros(AN_HOUR)).await.unwrap();
    assert_eq!(trimmed, TrimmedAlerts { transitions: 2_403, alerts: 1_201, notifications: 2 });
    assert_eq!(states(lab, "w").await, ["due", "held", "held"]);
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
