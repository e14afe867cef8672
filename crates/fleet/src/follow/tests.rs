use dunlin_journal::{Batch, MemoryJournal, Topic};
use dunlin_model::{Clock, CommandState, CommandStep, DeviceType, TenantId, Timestamp};
use dunlin_registry::{NewCommand, NewDevice, StoredCommand};

use super::*;

pub(crate) const REPLIES: Partition = Partition { topic: Topic::CommandReplies, index: 0 };
const NOW: i64 = 1_700_000_000_000_000;

pub(crate) fn clock() -> Clock {
    Clock::new(|| Timestamp::from_micros(NOW))
}

/// With a device.
pub(crate) async fn registry_at(dir: &tempfile::TempDir, clock: Clock) -> Registry {
    let registry = Registry::open_file(&dir.path().join("registry.db"), clock).await.unwrap();
    let tenant = TenantId::default_tenant();
    if registry.tenants().await.unwrap().is_empty() {
        registry.add_tenant(&tenant).await.unwrap();
        let device_type = DeviceType::default_type();
        let device = NewDevice { name: "pump-1".parse().unwrap(), device_type, is_gateway: false };
        registry.add_device(&tenant, &device).await.unwrap();
    }
    registry
}

pub(crate) async fn send(registry: &Registry) -> StoredCommand {
    let new = NewCommand {
        device: "pump-1".parse().unwrap(),
        method: "reboot".into(),
        params: "{}".into(),
        lifetime: Duration::from_secs(60),
    };
    registry.add_command(&TenantId::default_tenant(), &new).await.unwrap()
}

pub(crate) fn step(command: &StoredCommand, step: CommandStep, reply: &str) -> Vec<u8> {
    let reply = CommandReply {
        tenant: command.tenant.to_string(),
        device: command.device.to_string(),
        id: command.id.to_string(),
        at: Timestamp::from_micros(NOW + 1),
        step,
        reply: reply.into(),
    };
    reply.encode()
}

pub(crate) async fn say(journal: &MemoryJournal, records: &[Vec<u8>]) {
    let mut batch = Batch::default();
    records.iter().for_each(|record| batch.push(record));
    journal.append(REPLIES, batch).await.unwrap();
}

async fn follower(journal: &Arc<MemoryJournal>, registry: &Registry) -> Follower {
    let mut follower = Follower {
        at: REPLIES,
        journal: journal.clone(),
        registry: registry.clone(),
        metrics: Metrics::register(&mut Default::default()),
        position: None,
    };
    follower.take_up(Duration::ZERO).await;
    follower
}

async fn found(registry: &Registry, command: &StoredCommand) -> StoredCommand {
    registry.command(&command.tenant, &command.id).await.unwrap().unwrap()
}

pub(crate) async fn state(registry: &Registry, command: &StoredCommand) -> CommandState {
    found(registry, command).await.state(Timestamp::from_micros(NOW))
}

#[tokio::test]
async fn replies_are_recorded_once_however_often_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, registry) = (Arc::new(MemoryJournal::new(1)), registry_at(&dir, clock()).await);
    let sent = send(&registry).await;
    say(&journal, &[step(&sent, CommandStep::Delivered, ""), step(&sent, CommandStep::Replied, "1")]).await;
    let mut first = follower(&journal, &registry).await;
    assert!(first.step().await.unwrap());
    assert!(!first.step().await.unwrap());
    let recorded = found(&registry, &sent).await;
    assert_eq!(
        (recorded.reply.as_deref(), state(&registry, &sent).await),
        (Some("1"), CommandState::Replied)
    );
    assert_eq!((first.metrics.replies("delivered"), first.metrics.replies("replied")), (1, 1));
    assert_eq!(journal.position(CONSUMER, REPLIES), Some(Offset(2)));

    // One that does not know what the first has committed.
    journal.commit(CONSUMER, REPLIES, Offset::ZERO).await.unwrap();
    let mut again = follower(&journal, &registry).await;
    assert!(again.step().await.unwrap());
    assert_eq!(found(&registry, &sent).await, recorded);
}

#[tokio::test]
async fn what_is_no_reply_stops_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, registry) = (Arc::new(MemoryJournal::new(1)), registry_at(&dir, clock()).await);
    let sent = send(&registry).await;
    let whole = step(&sent, CommandStep::Delivered, "");
    let torn = whole[..whole.len() / 2].to_vec();
    let strangers =
        step(&StoredCommand { device: "pump-2".parse().unwrap(), ..sent.clone() }, CommandStep::Replied, "1");
    say(&journal, &[torn.clone(), strangers, b"not avro".to_vec(), whole, torn]).await;
    let mut follower = follower(&journal, &registry).await;
    while follower.step().await.unwrap() {}
    assert_eq!(state(&registry, &sent).await, CommandState::Delivered);
    assert_eq!((follower.metrics.skipped.get(), follower.metrics.unknown.get()), (3, 1));
    assert_eq!(journal.position(CONSUMER, REPLIES), Some(Offset(5)));
    assert_eq!(follower.lag(), 0);
}

#[tokio::test]
async fn a_registry_that_fails_is_asked_again_with_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, registry) = (Arc::new(MemoryJournal::new(1)), registry_at(&dir, clock()).await);
    let sent = [send(&registry).await, send(&registry).await];
    say(&journal, &sent.each_ref().map(|sent| step(sent, CommandStep::Replied, "1"))).await;
    let mut follower = follower(&journal, &registry).await;
    registry.close().await;
    assert!(matches!(follower.step().await, Err(FollowError::Record(_))));
    assert_eq!((follower.position, follower.lag()), (Some(Offset::ZERO), 2));
    assert_eq!(journal.position(CONSUMER, REPLIES), Some(Offset::ZERO), "nothing is skipped");

    follower.registry = registry_at(&dir, clock()).await;
    assert!(follower.step().await.unwrap());
    for sent in &sent {
        assert_eq!(state(&follower.registry, sent).await, CommandState::Replied);
    }
}

#[tokio::test]
async fn a_long_stretch_is_recorded_in_portions() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, registry) = (Arc::new(MemoryJournal::new(1)), registry_at(&dir, clock()).await);
    let sent = send(&registry).await;
    let mut records = vec![step(&sent, CommandStep::Delivered, ""); 2 * REPLIES_MAX];
    records.push(step(&sent, CommandStep::Replied, "1"));
    say(&journal, &records).await;
    let mut follower = follower(&journal, &registry).await;
    assert!(follower.step().await.unwrap());
    assert_eq!(state(&registry, &sent).await, CommandState::Replied);
    assert_eq!(follower.metrics.replies("delivered"), 2 * REPLIES_MAX as u64);
    assert_eq!(journal.position(CONSUMER, REPLIES), Some(Offset(records.len() as u64)));
}

#[tokio::test]
async fn retention_waits_from_the_start_on_and_what_it_took_before_is_passed() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, registry) = (Arc::new(MemoryJournal::new(1)), registry_at(&dir, clock()).await);
    let mut follower = follower(&journal, &registry).await;
    assert_eq!(journal.position(CONSUMER, REPLIES), Some(Offset::ZERO));
    let sent = send(&registry).await;
    say(&journal, &[step(&sent, CommandStep::Delivered, "")]).await;
    say(&journal, &[step(&sent, CommandStep::Replied, "1")]).await;
    journal.trim(REPLIES, Offset(1));
    while follower.step().await.unwrap() {}
    assert_eq!(state(&registry, &sent).await, CommandState::Replied);
}

#[tokio::test]
async fn a_journal_that_ends_before_the_position_is_followed_from_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, registry) = (Arc::new(MemoryJournal::new(1)), registry_at(&dir, clock()).await);
    journal.commit(CONSUMER, REPLIES, Offset(1_000)).await.unwrap();
    let follower = follower(&journal, &registry).await;
    assert_eq!((follower.position, follower.lag()), (Some(Offset::ZERO), 0));
    assert_eq!(journal.position(CONSUMER, REPLIES), Some(Offset::ZERO), "a later start knows, too");
}

#[tokio::test]
async fn a_fleet_follows_what_comes_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, registry) = (Arc::new(MemoryJournal::new(1)), registry_at(&dir, clock()).await);
    let mut metrics = Default::default();
    let fleet = crate::Fleet::start(journal.clone(), registry.clone(), clock(), &mut metrics);
    for _ in 0..3 {
        let sent = send(&registry).await;
        say(&journal, &[step(&sent, CommandStep::Replied, "1")]).await;
        while state(&registry, &sent).await != CommandState::Replied {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    fleet.stop().await;
    assert_eq!(journal.position(CONSUMER, REPLIES), Some(Offset(3)));
}
