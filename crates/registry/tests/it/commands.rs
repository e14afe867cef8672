use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

use dunlin_model::{Clock, CommandReply, CommandState, CommandStep, DeviceId, TenantId, Timestamp};
use dunlin_registry::{
    AddCommandError, COMMANDS_OPEN_MAX, NewCommand, Registry, RegistryError, StoredCommand,
};

use crate::{Lab, devices::named};

const NOW: i64 = 1_700_000_000_000_000;
const MINUTE: Duration = Duration::from_secs(60);

/// A registry with a device, and the hands of its clock.
async fn with_device(lab: &Lab) -> (Registry, TenantId, DeviceId, Arc<AtomicI64>) {
    let hands = Arc::new(AtomicI64::new(NOW));
    let seen = hands.clone();
    let registry = lab.open_at(Clock::new(move || Timestamp::from_micros(seen.load(SeqCst)))).await;
    let tenant = TenantId::default_tenant();
    registry.add_tenant(&tenant).await.unwrap();
    registry.add_device(&tenant, &named("pump-1", false)).await.unwrap();
    (registry, tenant, "pump-1".parse().unwrap(), hands)
}

pub(crate) fn reboot(device: &DeviceId) -> NewCommand {
    let params = r#"{"in": 1.50, "why": "\u0000 é"}"#.to_owned();
    NewCommand { device: device.clone(), method: "reboot".into(), params, lifetime: MINUTE }
}

pub(crate) fn step(command: &StoredCommand, step: CommandStep, at: i64, reply: &str) -> CommandReply {
    CommandReply {
        tenant: command.tenant.to_string(),
        device: command.device.to_string(),
        id: command.id.to_string(),
        at: Timestamp::from_micros(NOW + at),
        step,
        reply: reply.into(),
    }
}

pub(crate) async fn a_command_is_kept_as_it_was_sent_and_expires(lab: &Lab) {
    let (registry, tenant, device, _) = with_device(lab).await;
    let sent = registry.add_command(&tenant, &reboot(&device)).await.unwrap();
    let found = registry.command(&tenant, &sent.id).await.unwrap().unwrap();
    assert_eq!(found, sent);
    assert_eq!((&*found.method, &found.params), ("reboot", &reboot(&device).params));
    let now = Timestamp::from_micros(NOW);
    assert_eq!((found.sent_at, found.expires_at), (now, now + MINUTE));
    assert_eq!(found.state(now), CommandState::Queued);
    assert_eq!(found.state(now + MINUTE), CommandState::Expired);

    assert!(registry.command(&"other".parse().unwrap(), &sent.id).await.unwrap().is_none());
    registry.forget_command(&"other".parse().unwrap(), &sent.id).await.unwrap();
    assert!(registry.command(&tenant, &sent.id).await.unwrap().is_some());
    registry.forget_command(&tenant, &sent.id).await.unwrap();
    assert!(registry.command(&tenant, &sent.id).await.unwrap().is_none());
}

pub(crate) async fn a_device_that_is_not_there_gets_no_command(lab: &Lab) {
    let (registry, tenant, _, _) = with_device(lab).await;
    let nobody = registry.add_command(&tenant, &reboot(&"nobody".parse().unwrap())).await.unwrap_err();
    assert!(matches!(nobody, AddCommandError::Registry(RegistryError::NotFound { .. })), "{nobody}");

    registry.add_device(&tenant, &named("gateway-1", true)).await.unwrap();
    let gateway = registry.device(&tenant, &"gateway-1".parse().unwrap()).await.unwrap().unwrap();
    let child: DeviceId = "child-1".parse().unwrap();
    registry.children_of(&gateway, std::slice::from_ref(&child), 10).await.unwrap()[0].as_ref().unwrap();
    let refused = registry.add_command(&tenant, &reboot(&child)).await.unwrap_err();
    assert_eq!(refused.to_string(), "device child-1 is a child of gateway-1, and children get no commands");
}

pub(crate) async fn a_device_has_so_many_open_commands_and_no_more(lab: &Lab) {
    let (registry, tenant, device, hands) = with_device(lab).await;
    registry.add_device(&tenant, &named("pump-2", false)).await.unwrap();
    let send = async || registry.add_command(&tenant, &reboot(&device)).await;
    let first = send().await.unwrap();
    for _ in 1..COMMANDS_OPEN_MAX {
        hands.fetch_add(1, SeqCst);
        send().await.unwrap();
    }
    let refused = send().await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "device pump-1 has 100 commands that it has not replied to; wait until they expire"
    );
    assert!(matches!(refused, AddCommandError::TooMany(_)));
    registry.add_command(&tenant, &reboot(&"pump-2".parse().unwrap())).await.unwrap();

    // A reply makes room, and so does time.
    registry.record_replies(&[step(&first, CommandStep::Delivered, 1, "")]).await.unwrap();
    send().await.unwrap_err();
    registry.record_replies(&[step(&first, CommandStep::Replied, 2, "1")]).await.unwrap();
    send().await.unwrap();
    send().await.unwrap_err();
    hands.store((first.expires_at + MINUTE).as_micros(), SeqCst);
    send().await.unwrap();
}

pub(crate) async fn replies_come_to_the_same_however_often_and_in_whatever_order(lab: &Lab) {
    let (registry, tenant, device, _) = with_device(lab).await;
    let steps = |c: &StoredCommand| {
        [step(c, CommandStep::Delivered, 1, ""), step(c, CommandStep::Replied, 2, r#"{"ok":true}"#)]
    };
    let forwards = registry.add_command(&tenant, &reboot(&device)).await.unwrap();
    let backwards = registry.add_command(&tenant, &reboot(&device)).await.unwrap();
    let mut reversed = steps(&backwards);
    reversed.reverse();
    assert_eq!(registry.record_replies(&steps(&forwards)).await.unwrap(), 0);
    assert_eq!(registry.record_replies(&reversed).await.unwrap(), 0);
    // Once more, and a reply that is too late to count.
    assert_eq!(registry.record_replies(&steps(&forwards)).await.unwrap(), 0);
    assert_eq!(registry.record_replies(&[step(&backwards, CommandStep::Replied, 9, "2")]).await.unwrap(), 0);
    for sent in [&forwards, &backwards] {
        let found = registry.command(&tenant, &sent.id).await.unwrap().unwrap();
        let at = |micros| Some(Timestamp::from_micros(NOW + micros));
        assert_eq!((found.delivered_at, found.replied_at), (at(1), at(2)));
        assert_eq!(found.reply.as_deref(), Some(r#"{"ok":true}"#));
        assert_eq!(found.state(sent.expires_at), CommandState::Replied);
    }

    // Who replies has the command, whether it said so or not.
    let silent = registry.add_command(&tenant, &reboot(&device)).await.unwrap();
    registry.record_replies(&[step(&silent, CommandStep::Replied, 5, "null")]).await.unwrap();
    let found = registry.command(&tenant, &silent.id).await.unwrap().unwrap();
    assert_eq!((found.delivered_at, found.replied_at), (found.replied_at, found.delivered_at));
    assert!(found.replied_at.is_some());
}

pub(crate) async fn what_names_no_command_of_its_device_is_counted_and_changes_nothing(lab: &Lab) {
    let (registry, tenant, device, _) = with_device(lab).await;
    let sent = registry.add_command(&tenant, &reboot(&device)).await.unwrap();
    let known = step(&sent, CommandStep::Delivered, 1, "");
    let replied = step(&sent, CommandStep::Replied, 1, "1");
    let unknown = [
        CommandReply { id: "0".into(), ..replied.clone() },
        CommandReply { device: "pump-2".into(), ..replied.clone() },
        CommandReply { tenant: "other".into(), ..replied },
    ];
    let all: Vec<_> = unknown.into_iter().chain([known]).collect();
    assert_eq!(registry.record_replies(&all).await.unwrap(), 3);
    assert_eq!(registry.record_replies(&[]).await.unwrap(), 0);
    let found = registry.command(&tenant, &sent.id).await.unwrap().unwrap();
    assert_eq!(found.state(found.sent_at), CommandState::Delivered);
}

pub(crate) async fn commands_are_listed_from_the_newest_on(lab: &Lab) {
    let (registry, tenant, device, hands) = with_device(lab).await;
    registry.add_device(&tenant, &named("pump-2", false)).await.unwrap();
    let mut sent = Vec::new();
    for _ in 0..5 {
        hands.fetch_add(1, SeqCst);
        sent.push(registry.add_command(&tenant, &reboot(&device)).await.unwrap());
    }
    registry.add_command(&tenant, &reboot(&"pump-2".parse().unwrap())).await.unwrap();
    sent.reverse();
    let mut listed: Vec<StoredCommand> = Vec::new();
    loop {
        let before = listed.last().map(|last| &last.id);
        let page = registry.commands(&tenant, &device, before, 2).await.unwrap();
        if page.is_empty() {
            break;
        }
        listed.extend(page);
    }
    assert_eq!(listed, sent);
}

pub(crate) async fn old_commands_are_forgotten_in_portions(lab: &Lab) {
    let (registry, tenant, device, _) = with_device(lab).await;
    let old = registry.add_command(&tenant, &reboot(&device)).await.unwrap();
    let longer = NewCommand { lifetime: 2 * MINUTE, ..reboot(&device) };
    let younger = registry.add_command(&tenant, &longer).await.unwrap();
    // More than one portion.
    lab.run(&format!(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 2500)
         INSERT INTO commands (tenant, id, device, method, params, sent_at, expires_at)
         SELECT tenant, 'old-' || n, device, method, params, sent_at, expires_at FROM commands, n WHERE id = '{}'",
        old.id
    ))
    .await;
    assert_eq!(registry.trim_commands(old.expires_at).await.unwrap(), 0);
    assert_eq!(registry.trim_commands(old.expires_at + MINUTE).await.unwrap(), 2_501);
    assert_eq!(registry.commands(&tenant, &device, None, 10).await.unwrap(), [younger]);
}
