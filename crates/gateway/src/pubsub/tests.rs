use dunlin_broker::{GatewayNumber, Qos, SessionKey, Will};
use dunlin_journal::MemoryJournal;
use dunlin_model::Timestamp;
use tokio::sync::mpsc;

use super::*;
use crate::{
    config::PubSubConfig,
    sessions::{Entry, Last},
};

const TENANT: &str = "default";
const AT: Timestamp = Timestamp::from_micros(1_000_000);

fn clock() -> Clock {
    Clock::new(|| AT)
}

fn key() -> SessionKey {
    SessionKey { tenant: TENANT.into(), device: "probe".into(), client_id: "probe".into() }
}

/// The place of a tenant one of whose clients has opened a session and was not heard of again.
struct Lab {
    pubsub: PubSub,
    place: Place,
    _directory: tempfile::TempDir,
}

impl Lab {
    async fn with_an_open_session() -> Self {
        let journal = Arc::new(MemoryJournal::with_clock(1, clock()));
        let pubsub = PubSub::new(journal, PubSubConfig::default().limits(), &Company::Alone);
        let directory = tempfile::tempdir().unwrap();
        let index = pubsub.partition_of(TENANT).index;
        let mut place = Place::recover(&pubsub, index, directory.path()).await.unwrap();
        place.join(&pubsub, &clock()).await.unwrap();
        let mut lab = Self { pubsub, place, _directory: directory };
        lab.opens().await;
        lab
    }

    async fn opens(&mut self) {
        let will = Will {
            topic: "gone".into(),
            payload: b"probe".to_vec(),
            qos: Qos::AtLeastOnce,
            retain: true,
            delay_seconds: 0,
            expiry_seconds: None,
            properties: Default::default(),
        };
        let (will, connection) = (Some(will), self.pubsub.first_connection());
        let opened =
            Change::Opened { key: key(), clean: false, expiry_seconds: 100, will, connection, at: AT };
        self.place.log(&self.pubsub, vec![opened]).await;
        self.catch_up().await;
    }

    async fn catch_up(&mut self) {
        while self.place.read(&self.pubsub, true).await.unwrap() {}
    }

    /// Sweeps, and says how many changes that has brought.
    async fn sweeps(&mut self) -> u64 {
        let before = self.place.position;
        self.place.sweep(&self.pubsub, &clock()).await;
        self.catch_up().await;
        self.place.position - before
    }

    fn wills(&self) -> usize {
        self.pubsub.broker.counts()[TENANT].retained
    }
}

#[tokio::test]
async fn a_session_without_a_connection_is_closed_at_the_second_sweep() {
    let mut lab = Lab::with_an_open_session().await;
    assert_eq!(lab.sweeps().await, 0);
    assert_eq!((lab.wills(), lab.pubsub.broker.abandoned(0).len()), (0, 1));
    assert_eq!(lab.sweeps().await, 1);
    assert_eq!((lab.wills(), lab.pubsub.broker.abandoned(0).len()), (1, 0));
    assert_eq!(lab.pubsub.broker.counts()[TENANT].sessions, 1, "its client may come back");
    assert_eq!((lab.sweeps().await, lab.sweeps().await), (0, 0));
}

#[tokio::test]
async fn a_session_whose_client_id_is_taken_is_left_alone() {
    let mut lab = Lab::with_an_open_session().await;
    let (orders, mut mailbox) = mpsc::unbounded_channel();
    assert_eq!(lab.sweeps().await, 0);
    assert!(matches!(lab.pubsub.seats.enter(&key(), 1, &orders, 0), Entry::In { .. }));
    assert_eq!((lab.sweeps().await, lab.sweeps().await), (0, 0));
    assert!(mailbox.try_recv().is_err(), "a sweep takes nothing over");
    // What was found before the connection came does not count.
    lab.pubsub.seats.leave(&key(), 1, Last::Nothing);
    assert_eq!((lab.sweeps().await, lab.sweeps().await), (0, 1));
}

/// The word of a connection is late, but its place in the log is before that of the sweep.
#[tokio::test]
async fn a_late_goodbye_counts_and_the_sweep_does_not() {
    let mut lab = Lab::with_an_open_session().await;
    lab.sweeps().await;
    let (session, connection) = (lab.pubsub.broker.abandoned(0)[0].id, lab.pubsub.first_connection());
    let goodbye = Change::Closed { session, connection, at: AT, with_will: false, expiry_seconds: None };
    lab.place.log(&lab.pubsub, vec![goodbye]).await; // It is not applied yet.
    lab.place.sweep(&lab.pubsub, &clock()).await;
    lab.catch_up().await;
    assert_eq!((lab.wills(), lab.pubsub.broker.abandoned(0).len()), (0, 0));
}

#[tokio::test]
async fn a_connection_waits_while_its_client_id_is_held() {
    let seats = Sessions::default();
    let (orders, _mailbox) = mpsc::unbounded_channel();
    let held = seats.hold(&key()).unwrap();
    assert!(seats.hold(&key()).is_none());
    let Entry::Wait(turn) = seats.enter(&key(), 1, &orders, 0) else { panic!("it is held") };
    drop(held);
    turn.await.unwrap();
    assert!(matches!(seats.enter(&key(), 1, &orders, 0), Entry::In { .. }));
    assert!(seats.hold(&key()).is_none());
}

fn connections() -> (GatewayNumber, u64, u64) {
    let [here, there] = [1, 2].map(|nth| GatewayNumber::of(nth << 40));
    (here, here.connection(1), there.connection(1))
}

#[test]
fn of_connections_at_two_gateways_the_later_in_the_log_has_the_client() {
    let (me, own, foreign) = connections();
    for (log, stays) in [([foreign, own], true), ([own, foreign], false)] {
        let seats = Sessions::default();
        let (orders, mut mailbox) = mpsc::unbounded_channel();
        assert!(matches!(seats.enter(&key(), own, &orders, 0), Entry::In { .. }));
        log.iter().for_each(|connection| seats.seated(&key(), *connection, me));
        assert_eq!((seats.ending(&key(), own).is_none(), mailbox.try_recv().is_err()), (stays, stays));
    }
}

#[test]
fn what_a_client_has_sent_to_another_gateway_it_may_repeat_here() {
    let (me, own, foreign) = connections();
    let seats = Sessions::default();
    let (orders, _mailbox) = mpsc::unbounded_channel();
    let enters = || match seats.enter(&key(), own, &orders, 0) {
        Entry::In { settled } => settled,
        other => panic!("{other:?}"),
    };
    enters();
    seats.leave(&key(), own, Last::Settled);
    assert!(enters());
    seats.leave(&key(), own, Last::Nothing);
    seats.seated(&key(), foreign, me);
    assert!(!enters());
}
