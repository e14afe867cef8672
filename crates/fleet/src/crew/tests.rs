use std::{io, sync::Mutex, time::Duration};

use dunlin_journal::{
    AppendError, Appended, Batch, Caller, Entries, Extent, Health, Membership, MemoryJournal, Offset,
    ReadError,
};
use dunlin_model::{CommandState, CommandStep};
use futures::future::BoxFuture;

use super::*;
use crate::follow::tests::{REPLIES, clock, registry_at, say, send, state, step};

/// A journal that is shared, and of which somebody says who has what.
#[derive(Debug)]
struct Shared {
    journal: MemoryJournal,
    membership: Mutex<Option<Membership>>,
}

impl Shared {
    fn new() -> (Arc<Self>, Caller) {
        let (membership, caller) = Membership::new();
        let membership = Mutex::new(Some(membership));
        (Arc::new(Self { journal: MemoryJournal::new(1), membership }), caller)
    }
}

impl Journal for Shared {
    fn partitions(&self, topic: Topic) -> u16 {
        self.journal.partitions(topic)
    }
    fn append(&self, at: Partition, batch: Batch) -> BoxFuture<'static, Result<Appended, AppendError>> {
        self.journal.append(at, batch)
    }
    fn read(
        &self,
        at: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Entries>, ReadError>> {
        self.journal.read(at, from, bytes_max)
    }
    fn extent(&self, at: Partition) -> Extent {
        self.journal.extent(at)
    }
    fn progress(&self) -> watch::Receiver<u64> {
        self.journal.progress()
    }
    fn position(&self, consumer: &str, at: Partition) -> Option<Offset> {
        self.journal.position(consumer, at)
    }
    fn join(&self, consumer: &str, topic: Topic) -> Membership {
        assert_eq!((consumer, topic), (CONSUMER, Topic::CommandReplies));
        self.membership.lock().unwrap().take().expect("joined once")
    }
    fn commit(&self, consumer: &str, at: Partition, position: Offset) -> BoxFuture<'static, io::Result<()>> {
        self.journal.commit(consumer, at, position)
    }
    fn health(&self) -> Health {
        self.journal.health()
    }
    fn close(&self) -> BoxFuture<'static, ()> {
        self.journal.close()
    }
}

/// Longer than anything takes here.
const SOON: Duration = Duration::from_secs(20);
/// In which nothing happens.
const A_MOMENT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_partition_is_followed_while_it_is_held_and_let_go_when_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let ((journal, caller), registry) = (Shared::new(), registry_at(&dir, clock()).await);
    let metrics = Metrics::register(&mut Default::default());
    let crew = Crew { journal: journal.clone(), registry: registry.clone(), metrics: metrics.clone() };
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(crew.run(stopped));
    let recorded = async |reply: &str| {
        let sent = send(&registry).await;
        say(&journal.journal, &[step(&sent, CommandStep::Replied, reply)]).await;
        let is_recorded = async {
            while state(&registry, &sent).await != CommandState::Replied {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(A_MOMENT, is_recorded).await.is_ok()
    };

    assert!(!recorded("1").await, "another process has it");
    caller.call(Turn::Given(REPLIES));
    let gets_on = async { while !recorded("2").await {} };
    tokio::time::timeout(SOON, gets_on).await.unwrap();
    assert_eq!(metrics.partitions_held.get(), 1);

    let asking = tokio::task::spawn_blocking(move || (caller.ask(&[REPLIES], SOON), caller));
    let (is_released, caller) = asking.await.unwrap();
    assert!(is_released);
    let end = journal.extent(REPLIES).next;
    assert_eq!(journal.position(CONSUMER, REPLIES), Some(end), "the next one finds what is recorded");
    assert!(!recorded("3").await);

    caller.call(Turn::Given(REPLIES));
    let gets_on = async { while !recorded("4").await {} };
    tokio::time::timeout(SOON, gets_on).await.unwrap();
    caller.call(Turn::Lost(REPLIES));
    tokio::time::timeout(SOON, async { while recorded("5").await {} }).await.unwrap();
    assert_eq!(metrics.partitions_held.get(), 0);
    stop.send(true).unwrap();
    running.await.unwrap();
}
