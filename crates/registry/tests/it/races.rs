use dunlin_model::{AlertPhase, AlertTransition, DeviceId, Fingerprint, TenantId, Timestamp, TransitionId};
use dunlin_registry::{AppliedAlerts, Registry, RegistryError};
use futures::future::join_all;

use crate::{Lab, alerts::transition, devices::named};

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
    let channels = ["w".to_owned()];
    let apply = |process: Registry| {
        let (history, channels) = (history.clone(), channels.clone());
        async move { process.apply_alerts("alerting", 0, &history, 20, &channels, |_| String::new()).await }
    };
    let applied = join_all(processes.into_iter().map(apply)).await;
    let mut applied: Vec<AppliedAlerts> = applied.into_iter().map(Result::unwrap).collect();
    applied.sort_by_key(|applied| applied.transitions);
    assert_eq!(applied.pop(), Some(AppliedAlerts { transitions: 20, notifications: 20 }));
    assert!(applied.iter().all(|applied| *applied == AppliedAlerts::default()), "{applied:?}");
}

/// What is made 'held' behind one that is just being sent must be released, and nothing may go out before its turn.
pub(crate) async fn everything_is_told_in_order_while_many_write(lab: &Lab) {
    const EPISODES: i64 = 10;
    let processes = lab.processes(2 * PROCESSES).await;
    let (writers, senders) = processes.split_at(PROCESSES);
    let channels: Vec<String> = (0..PROCESSES).map(|n| format!("channel-{n}")).collect();

    let write = writers.iter().enumerate().map(async |(n, process)| {
        for (step, transition) in history(&format!("pump-{n}"), EPISODES).iter().enumerate() {
            let (stretch, next) = (std::slice::from_ref(transition), step as u64 + 1);
            let body = |t: &AlertTransition| format!("{} {}", t.device, t.at.as_micros());
            process.apply_alerts("alerting", n as u16, stretch, next, &channels, body).await.unwrap();
        }
    });
    let all = PROCESSES * EPISODES as usize * 2;
    let send = senders.iter().zip(&channels).map(async |(process, channel)| {
        let mut told = Vec::new();
        while told.len() < all {
            for due in process.due_notifications(channel, 10).await.unwrap() {
                process.notification_sent(&due.idempotency_key).await.unwrap();
                told.push(due.body);
            }
        }
        told
    });
    let (told, _) = futures::join!(join_all(send), join_all(write));

    for told in told {
        for n in 0..PROCESSES {
            let of_device: Vec<&String> =
                told.iter().filter(|body| body.starts_with(&format!("pump-{n} "))).collect();
            let expected: Vec<String> = history(&format!("pump-{n}"), EPISODES)
                .iter()
                .map(|t| format!("{} {}", t.device, t.at.as_micros()))
                .collect();
            assert_eq!(of_device, expected.iter().collect::<Vec<_>>());
        }
    }
    for (n, process) in writers.iter().enumerate() {
        assert_eq!(process.position("alerting", n as u16).await.unwrap(), Some(2 * EPISODES as u64));
    }
}
