//! Processes that share partitions, as two journals on one broker.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use dunlin_journal::{Journal, Membership, Offset, Partition, Topic, Turn};
use dunlin_journal_kafka::KafkaJournal;

use crate::support::Bench;

const PATIENCE: Duration = Duration::from_secs(40);
/// The least that brokers allow.
const SESSION_SECONDS: u64 = 12;

fn bench() -> Bench {
    Bench::with(|config| {
        config.telemetry_partitions = 4;
        config.session_seconds_max = SESSION_SECONDS;
    })
}

async fn open(bench: &mut Bench, member: &str) -> Arc<KafkaJournal> {
    bench.config.member = member.into();
    bench.open().await
}

fn join(journal: &KafkaJournal) -> Membership {
    journal.join("rules", Topic::Telemetry)
}

async fn turn(member: &mut Membership) -> Turn {
    tokio::time::timeout(PATIENCE, member.next()).await.expect("a turn")
}

async fn given(member: &mut Membership, count: usize) -> BTreeSet<Partition> {
    let mut given = BTreeSet::new();
    while given.len() < count {
        match turn(member).await {
            Turn::Given(at) => assert!(given.insert(at), "{at} is given twice"),
            other => panic!("{other:?}, having been given {given:?}"),
        }
    }
    given
}

async fn hears_nothing(member: &mut Membership, within: Duration) {
    if let Ok(turn) = tokio::time::timeout(within, member.next()).await {
        panic!("{turn:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_is_given_on_when_its_holder_has_released_it() {
    let mut bench = bench();
    let (first, second) = (open(&mut bench, "").await, open(&mut bench, "").await);
    let mut a = join(&first);
    let all = given(&mut a, 4).await;
    assert_eq!(all.len(), 4);

    let mut b = join(&second);
    let mut asked = BTreeSet::new();
    for _ in 0..2 {
        let Turn::Asked(at) = turn(&mut a).await else { panic!("asked for two") };
        asked.insert(at);
    }
    hears_nothing(&mut b, Duration::from_millis(500)).await;
    for (n, at) in asked.iter().enumerate() {
        first.commit("rules", *at, Offset(n as u64)).await.unwrap();
        a.release(*at);
    }
    assert_eq!(given(&mut b, 2).await, asked);

    // The fence: positions are the holder's.
    for at in &all {
        let (holder, other) = if asked.contains(at) { (&second, &first) } else { (&first, &second) };
        other.commit("rules", *at, Offset(100)).await.unwrap_err();
        holder.commit("rules", *at, Offset(7)).await.unwrap();
    }
    let seen_by_all = async {
        while !all.iter().all(|at| {
            [&first, &second].iter().all(|journal| journal.position("rules", *at) == Some(Offset(7)))
        }) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, seen_by_all).await.expect("each sees how far the other is");

    // One without a name gives back what it has when it leaves.
    drop(b);
    assert_eq!(given(&mut a, 2).await, asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_name_keeps_its_partitions_over_a_restart_and_no_longer_than_a_session() {
    let mut bench = bench();
    let first = open(&mut bench, "m1").await;
    let mut a = join(&first);
    given(&mut a, 4).await;
    let second = open(&mut bench, "m2").await;
    let mut b = join(&second);
    for _ in 0..2 {
        let Turn::Asked(at) = turn(&mut a).await else { panic!("asked for two") };
        a.release(at);
    }
    let of_b = given(&mut b, 2).await;

    let gone = std::time::Instant::now();
    drop((a, first));
    let first = open(&mut bench, "m1").await;
    let mut a = join(&first);
    let of_a = given(&mut a, 2).await;
    assert!(of_a.is_disjoint(&of_b), "{of_a:?} {of_b:?}");
    assert!(gone.elapsed() < Duration::from_secs(SESSION_SECONDS), "{:?}", gone.elapsed());
    hears_nothing(&mut b, Duration::from_secs(1)).await;

    drop((a, first));
    assert_eq!(given(&mut b, 2).await, of_a);
}
