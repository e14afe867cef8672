use std::{collections::BTreeSet, time::Duration};

use dunlin_model::{
    AlertPhase, AlertState, AlertTransition, Clock, CommandStep, DeviceId, Fingerprint, TenantId, Timestamp,
    TransitionId,
};
use dunlin_registry::{
    Act, ActError, COMMANDS_OPEN_MAX, Config, NotificationState, Registry, RegistryError, Timer, TimerKind,
};
use futures::future::join_all;
use tokio::{task::yield_now, time::sleep};

use crate::{
    Lab,
    alerts::{alert, put, tell, told, transition},
    commands::{reboot, step},
    devices::named,
};

const PROCESSES: usize = 6;

async fn with_tenant(lab: &Lab) -> (Vec<Registry>, TenantId) {
    let processes = lab.processes(PROCESSES).await;
    let tenant = TenantId::default_tenant();
    processes[0].add_tenant(&tenant).await.unwrap();
    (processes, tenant)
}

pub(crate) async fn a_name_is_given_once(lab: &Lab) {
    let (processes, tenant) = with_tenant(lab).await;
    for round in 0..10 {
        let device = named(&format!("pump-{round}"), false);
        let added = join_all(processes.iter().map(|p| p.add_device(&tenant, &device))).await;
        let tokens: Vec<_> = added.iter().flatten().collect();
        assert_eq!(tokens.len(), 1);
        assert!(processes[0].device_by_token(tokens[0].reveal()).await.unwrap().is_some());
        for refused in added.iter().filter_map(|added| added.as_ref().err()) {
            assert!(matches!(refused, RegistryError::Exists { .. }), "{refused:?}");
        }
    }
}

pub(crate) async fn children_keep_to_their_bound(lab: &Lab) {
    const CHILDREN_MAX: u64 = 25;
    let (processes, tenant) = with_tenant(lab).await;
    processes[0].add_device(&tenant, &named("gw-1", true)).await.unwrap();
    let gateway = processes[0].device(&tenant, &"gw-1".parse().unwrap()).await.unwrap().unwrap();
    // Ten each, of which neighbours have five in common.
    let asked = processes.iter().enumerate().map(async |(n, process)| {
        let names: Vec<DeviceId> =
            (n * 5..n * 5 + 10).map(|child| format!("meter-{child}").parse().unwrap()).collect();
        process.children_of(&gateway, &names, CHILDREN_MAX).await.unwrap()
    });
    let told: Vec<_> = join_all(asked).await.into_iter().flatten().flatten().map(|d| d.name).collect();
    let made = processes[0].devices(&tenant, None, 100).await.unwrap();
    let made: Vec<_> = made.into_iter().filter(|d| d.parent.is_some()).map(|d| d.name).collect();
    assert_eq!(made.len() as u64, CHILDREN_MAX);
    assert!(told.iter().all(|name| made.contains(name)), "nobody was promised a child that is not there");
}

pub(crate) async fn open_commands_keep_to_their_bound(lab: &Lab) {
    let (processes, tenant) = with_tenant(lab).await;
    processes[0].add_device(&tenant, &named("pump-1", false)).await.unwrap();
    let command = reboot(&"pump-1".parse().unwrap());
    let sent = processes.iter().map(async |process| {
        let mut sent = 0;
        while process.add_command(&tenant, &command).await.is_ok() {
            sent += 1;
        }
        sent
    });
    assert_eq!(join_all(sent).await.iter().sum::<u64>(), COMMANDS_OPEN_MAX);
}

pub(crate) async fn two_who_record_the_same_replies_do_not_wait_for_each_other_for_ever(lab: &Lab) {
    let (processes, tenant) = with_tenant(lab).await;
    processes[0].add_device(&tenant, &named("pump-1", false)).await.unwrap();
    let command = reboot(&"pump-1".parse().unwrap());
    let mut replies = Vec::new();
    for _ in 0..20 {
        let sent = processes[0].add_command(&tenant, &command).await.unwrap();
        replies.push(step(&sent, CommandStep::Replied, 1, "1"));
    }
    let recorded = processes.iter().enumerate().map(async |(n, process)| {
        let mut replies = replies.clone();
        replies.rotate_left(3 * n);
        process.record_replies(&replies).await
    });
    assert!(join_all(recorded).await.into_iter().all(|unknown| unknown.unwrap() == 0));
}

pub(crate) async fn of_those_who_revoke_one_token_is_left(lab: &Lab) {
    let (processes, tenant) = with_tenant(lab).await;
    let device = named("pump-1", false);
    processes[0].add_device(&tenant, &device).await.unwrap();
    for _ in 0..10 {
        let made = join_all(processes.iter().map(|p| p.add_device_token(&tenant, &device.name, true))).await;
        let mut valid = 0;
        for token in made {
            let token = token.unwrap();
            valid += usize::from(processes[0].device_by_token(token.reveal()).await.unwrap().is_some());
        }
        assert_eq!(valid, 1);
    }
}

pub(crate) async fn every_text_of_a_rule_gets_a_version(lab: &Lab) {
    let (processes, tenant) = with_tenant(lab).await;
    let texts: Vec<String> = (0..PROCESSES).map(|n| format!("text {n}")).collect();
    let put = processes.iter().zip(&texts).map(|(p, text)| p.put_rule(&tenant, "hot", text, true));
    let versions: BTreeSet<u64> = join_all(put).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(versions, (1..=PROCESSES as u64).collect());
    let kept = processes[0].rule_versions(&tenant, "hot").await.unwrap();
    assert_eq!(kept.into_iter().map(|v| v.text).collect::<BTreeSet<_>>(), texts.into_iter().collect());
    // Who came last is in force.
    let in_force = processes[0].rule(&tenant, "hot").await.unwrap().unwrap();
    assert_eq!(in_force.version, PROCESSES as u64);
}

pub(crate) async fn a_link_works_once_and_one_acknowledges(lab: &Lab) {
    let (processes, tenant) = with_tenant(lab).await;
    let hot = alert("pump-1", 1, AlertState::Firing);
    put(&processes[0], std::slice::from_ref(&hot)).await;
    let act = |link| {
        let (tenant, id, act) = (&tenant, hot.id, &Act::Acknowledge);
        processes.iter().map(move |p| p.act_on_alert(tenant, id, act, "ada", "", link))
    };
    let acted = join_all(act(Some("m1"))).await;
    assert_eq!(acted.iter().filter(|acted| acted.is_ok()).count(), 1);
    assert_eq!(acted.iter().filter(|acted| matches!(acted, Err(ActError::LinkUsed))).count(), PROCESSES - 1);
    assert!(join_all(act(None)).await.iter().all(|acted| matches!(acted, Err(ActError::Illegal(_)))));
    assert_eq!(processes[0].alert_notes(&tenant, hot.id, 10).await.unwrap().len(), 1);
}

pub(crate) async fn all_have_one_secret(lab: &Lab) {
    let processes = lab.processes(PROCESSES).await;
    let secrets = join_all(processes.iter().map(|p| p.secret("links"))).await;
    let secrets: BTreeSet<String> = secrets.into_iter().map(Result::unwrap).collect();
    assert_eq!(secrets.len(), 1);
}

pub(crate) async fn a_timer_is_taken_once(lab: &Lab) {
    let processes = lab.processes(PROCESSES).await;
    let timers: Vec<Timer> = (0..100)
        .map(|n| Timer {
            tenant: "default".into(),
            alert: alert(&format!("pump-{n}"), 1, AlertState::Firing).id,
            kind: TimerKind::Look,
            at: Timestamp::from_micros(n),
            waits_for: None,
            targets: Vec::new(),
        })
        .collect();
    let mut work = processes[0].alert_work().await.unwrap();
    work.put_timers(&timers).await.unwrap();
    work.commit().await.unwrap();
    let take = processes.iter().map(async |process| {
        let mut taken = Vec::new();
        loop {
            let mut work = process.alert_work().await.unwrap();
            let due = work.take_due_timers(7).await.unwrap();
            work.commit().await.unwrap();
            if due.is_empty() {
                return taken;
            }
            taken.extend(due);
        }
    });
    let mut taken: Vec<Timer> = join_all(take).await.into_iter().flatten().collect();
    taken.sort_by_key(|timer| timer.at);
    assert_eq!(taken, timers);
}

/// Of an alert that fires and is resolved, again and again.
fn history(device: &str, episodes: i64) -> Vec<AlertTransition> {
    let fingerprint = Fingerprint::of("default", "hot", device);
    let moved = |phase, since, at| AlertTransition {
        id: TransitionId::of(fingerprint, phase, Timestamp::from_micros(since)),
        fingerprint,
        device: device.to_owned(),
        ..transition(phase, since, at)
    };
    (1..=episodes)
        .flat_map(|n| {
            let since = 10 * n;
            [moved(AlertPhase::Firing, since, since), moved(AlertPhase::Resolved, since, since + 5)]
        })
        .collect()
}

pub(crate) async fn a_stretch_that_two_apply_is_told_once(lab: &Lab) {
    let processes = lab.processes(PROCESSES).await;
    let history = history("pump-1", 10);
    let apply = processes.iter().map(async |process| {
        let mut work = process.alert_work().await.unwrap();
        let fresh = work.remember(&history).await.unwrap();
        let new: Vec<_> = history.iter().filter(|t| fresh.contains(&t.id)).collect();
        let new: Vec<_> =
            new.iter().map(|t| told(&t.id.to_string(), "pump-1", "w", NotificationState::Due)).collect();
        work.put_notifications(&new).await.unwrap();
        work.move_position("alerting", 0, 20).await.unwrap();
        work.commit().await.unwrap();
        fresh.len()
    });
    let mut applied = join_all(apply).await;
    applied.sort_unstable();
    assert_eq!(applied.pop(), Some(20));
    assert!(applied.iter().all(|fresh| *fresh == 0), "{applied:?}");
    assert_eq!(crate::alerts::states(lab, "w").await.len(), 20);
}

/// What is made 'held' behind one that is just being sent must be released, and nothing may go out before its turn.
pub(crate) async fn everything_is_told_in_order_while_many_write(lab: &Lab) {
    const STEPS: usize = 20;
    let processes = lab.processes(2 * PROCESSES).await;
    let (writers, senders) = processes.split_at(PROCESSES);
    let channels: Vec<String> = (0..PROCESSES).map(|n| format!("channel-{n}")).collect();
    let device = |n| format!("pump-{n}");

    let write = writers.iter().enumerate().map(async |(n, process)| {
        for step in 0..STEPS {
            let key = format!("{} {step}", device(n));
            let new: Vec<_> = channels
                .iter()
                .map(|channel| told(&key, &device(n), channel, NotificationState::Due))
                .collect();
            tell(process, &new).await;
        }
    });
    let all = PROCESSES * STEPS;
    let send = senders.iter().zip(&channels).map(async |(process, channel)| {
        let mut told = Vec::new();
        while told.len() < all {
            for due in process.due_notifications(channel, 10).await.unwrap() {
                process.notifications_sent(&[&due.idempotency_key]).await.unwrap();
                told.push(due.body);
            }
        }
        told
    });
    let (told, _) = futures::join!(join_all(send), join_all(write));

    for told in told {
        for n in 0..PROCESSES {
            let of_device: Vec<&String> =
                told.iter().filter(|body| body.starts_with(&format!("{} ", device(n)))).collect();
            let expected: Vec<String> = (0..STEPS).map(|step| format!("{} {step}", device(n))).collect();
            assert_eq!(of_device, expected.iter().collect::<Vec<_>>());
        }
    }
}

/// Given up anywhere on the way to a transaction: what its connection would write next must not become part of it.
pub(crate) async fn who_gives_up_leaves_no_transaction_behind(lab: &Lab) {
    const STEPS: usize = 60;
    let config = Config { connections_max: 1, ..lab.config.clone() };
    let registry = Registry::open(&config, Clock::new(|| Timestamp::from_micros(1))).await.unwrap();
    for steps in 0..STEPS {
        // By then the connection is back, and it is BEGIN that is given up first.
        sleep(Duration::from_millis(2)).await;
        let patience = async {
            for _ in 0..steps {
                yield_now().await;
            }
        };
        tokio::select! {
            biased;
            _ = registry.alert_work() => {}
            () = patience => {}
        }
        let tenant: TenantId = format!("tenant-{steps}").parse().unwrap();
        registry.add_tenant(&tenant).await.unwrap();
        let committed = lab.column(&format!("SELECT name FROM tenants WHERE name = '{tenant}'")).await;
        assert_eq!(committed, [tenant.to_string()], "acknowledged, and so seen by others");
    }
    registry.close().await;
}
