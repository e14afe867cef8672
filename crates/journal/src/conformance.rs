//! What every journal must do. A backend brings a `Lab` and runs the whole list:
//!
//! ```text
//! dunlin_journal::conformance::tests!(MemoryLab::new());
//! ```

use std::sync::Arc;

use futures::{StreamExt, future, future::BoxFuture, stream::FuturesUnordered};

use crate::{
    AppendError, Appended, Batch, Entries, Extent, Health, Journal, Offset, Partition, ReadError, Topic,
};

/// Where a backend is tried out. It has at least two partitions of telemetry.
pub trait Lab: Send + Sync {
    /// Opens the journal. Once the last one was closed and dropped, this finds what that one left.
    fn open(&self) -> BoxFuture<'_, Arc<dyn Journal>>;

    /// Makes the retention take something from `at`. It may append records of its own.
    fn make_gone<'a>(&'a self, journal: &'a Arc<dyn Journal>, at: Partition) -> BoxFuture<'a, ()>;
}

/// One `#[tokio::test]` for every promise, each in a lab of its own.
#[macro_export]
macro_rules! journal_conformance_tests {
    ($lab:expr) => {
        $crate::journal_conformance_tests! { $lab =>
            an_empty_partition_has_an_extent_and_no_records
            an_acked_batch_is_read_by_every_later_reader
            offsets_count_records_without_gaps
            offsets_follow_the_order_of_append_calls
            appends_at_once_are_as_many_appends
            appends_of_many_tasks_each_get_offsets_of_their_own
            a_reader_starts_in_the_middle_of_a_batch
            a_read_is_about_as_large_as_asked
            records_of_a_batch_stand_together
            readers_at_different_places_do_not_disturb_each_other
            what_there_is_no_room_for_waits_and_keeps_its_order
            partitions_do_not_mix
            an_empty_batch_takes_no_offset
            large_and_tiny_batches_come_back_as_they_were
            a_batch_that_is_too_large_is_refused_and_not_kept
            an_unknown_partition_is_refused
            reading_beyond_the_end_says_where_the_end_is
            a_waiting_reader_is_woken
            a_dropped_append_that_had_room_is_written
            an_acked_batch_survives_reopen
            positions_survive_reopen
            a_slow_reader_learns_what_is_gone
            retention_never_takes_what_a_consumer_has_not_passed
            a_closed_journal_refuses_and_still_reads
        }
    };
    ($lab:expr => $($name:ident)*) => {
        $(
            #[tokio::test]
            async fn $name() {
                $crate::conformance::$name(&$lab).await;
            }
        )*
    };
}
pub use journal_conformance_tests as tests;

const T0: Partition = Partition { topic: Topic::Telemetry, index: 0 };
const T1: Partition = Partition { topic: Topic::Telemetry, index: 1 };
const ALERTS: Partition = Partition { topic: Topic::Alerts, index: 0 };

pub async fn an_empty_partition_has_an_extent_and_no_records(lab: &impl Lab) {
    let journal = lab.open().await;
    assert_eq!(journal.extent(T0), Extent { oldest: Offset::ZERO, next: Offset::ZERO });
    assert!(journal.read(T0, Offset::ZERO, 1 << 20).await.unwrap().is_empty());
    assert_eq!(journal.health(), Health::Writable);
    assert!(journal.partitions(Topic::Telemetry) >= 2 && journal.partitions(Topic::Events) >= 1);
}

pub async fn an_acked_batch_is_read_by_every_later_reader(lab: &impl Lab) {
    let journal = lab.open().await;
    let appended = journal.append(T0, batch(["a", "b", "c"])).await.unwrap();
    assert_eq!(appended, Appended { first: Offset::ZERO, records: 3 });
    assert_eq!(journal.extent(T0).next, Offset(3));
    for _ in 0..2 {
        assert_eq!(texts(&journal, T0, Offset::ZERO).await, ["a", "b", "c"]);
    }
}

pub async fn offsets_count_records_without_gaps(lab: &impl Lab) {
    let journal = lab.open().await;
    let mut next = Offset::ZERO;
    for records in [1, 100, 3, 1, 7] {
        let appended = journal.append(T0, numbered(next.0, records)).await.unwrap();
        assert_eq!(appended, Appended { first: next, records });
        next = next.after(u64::from(records));
    }
    let all = read_all(&journal, T0, Offset::ZERO).await;
    let offsets: Vec<u64> =
        all.iter().flat_map(|e| e.iter().map(|r| r.offset.0).collect::<Vec<_>>()).collect();
    assert_eq!(offsets, (0..next.0).collect::<Vec<_>>());
    assert_eq!(
        texts(&journal, T0, Offset::ZERO).await,
        (0..next.0).map(|n| n.to_string()).collect::<Vec<_>>()
    );
}

pub async fn offsets_follow_the_order_of_append_calls(lab: &impl Lab) {
    let journal = lab.open().await;
    // Called in one order and waited for in the other.
    let mut appends: Vec<_> = (0..50).map(|n| journal.append(T0, numbered(n, 1))).collect();
    appends.reverse();
    let appended = future::try_join_all(appends).await.unwrap();
    assert!(appended.iter().rev().map(|a| a.first.0).eq(0..50));
    assert_eq!(texts(&journal, T0, Offset::ZERO).await, (0..50).map(|n| n.to_string()).collect::<Vec<_>>());
}

pub async fn appends_at_once_are_as_many_appends(lab: &impl Lab) {
    let journal = lab.open().await;
    let partitions = [T0, T1, T0];
    let batches = partitions.iter().enumerate().map(|(n, at)| (*at, numbered(2 * n as u64, 2))).collect();
    let appended = future::try_join_all(journal.append_all(batches)).await.unwrap();
    assert!(appended.iter().map(|a| (a.first.0, a.records)).eq([(0, 2), (0, 2), (2, 2)]));
    assert_eq!(texts(&journal, T0, Offset::ZERO).await, ["0", "1", "4", "5"]);
    assert_eq!(texts(&journal, T1, Offset::ZERO).await, ["2", "3"]);

    let nowhere = Partition::new(Topic::Telemetry, u16::MAX);
    let batches = vec![(T0, numbered(6, 1)), (nowhere, numbered(7, 1)), (T0, numbered(8, 1))];
    let answers = future::join_all(journal.append_all(batches)).await;
    assert!(matches!(answers[1], Err(AppendError::NoPartition(at)) if at == nowhere), "{:?}", answers[1]);
    assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
    assert_eq!(texts(&journal, T0, Offset(4)).await, ["6", "8"]);
}

pub async fn appends_of_many_tasks_each_get_offsets_of_their_own(lab: &impl Lab) {
    let journal = lab.open().await;
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let journal = Arc::clone(&journal);
            tokio::spawn(async move {
                let mut mine = Vec::new();
                for n in 0..50 {
                    let at = if n % 2 == 0 { T0 } else { T1 };
                    let text = format!("{task}/{n}");
                    let appended = journal.append(at, batch([text.as_str()])).await.unwrap();
                    mine.push((at, appended.first, text));
                }
                mine
            })
        })
        .collect();
    let mut acked = Vec::new();
    for task in tasks {
        acked.extend(task.await.unwrap());
    }
    for at in [T0, T1] {
        let stored = texts(&journal, at, Offset::ZERO).await;
        assert_eq!(stored.len(), 400);
        for (_, offset, text) in acked.iter().filter(|(p, ..)| *p == at) {
            assert_eq!(&stored[offset.0 as usize], text);
        }
    }
}

pub async fn a_reader_starts_in_the_middle_of_a_batch(lab: &impl Lab) {
    let journal = lab.open().await;
    journal.append(T0, batch(["a", "b"])).await.unwrap();
    journal.append(T0, batch(["c", "d", "e"])).await.unwrap();
    let read = journal.read(T0, Offset(3), 1 << 20).await.unwrap();
    assert_eq!(read[0].first(), Offset(3));
    assert_eq!(texts(&journal, T0, Offset(3)).await, ["d", "e"]);
    assert_eq!(texts(&journal, T0, Offset(5)).await, [""; 0]);
}

pub async fn a_read_is_about_as_large_as_asked(lab: &impl Lab) {
    let journal = lab.open().await;
    for n in 0..20 {
        journal.append(T0, numbered(n * 10, 10)).await.unwrap();
    }
    let records = |read: Vec<Entries>| read.iter().map(Entries::len).sum::<u32>();
    let one = records(journal.read(T0, Offset::ZERO, 1).await.unwrap());
    assert!((1..=10).contains(&one), "{one}: something, and no more than the batch where it starts");
    let batch_bytes = numbered(100, 10).size_bytes();
    let some = records(journal.read(T0, Offset::ZERO, batch_bytes * 5).await.unwrap());
    assert!((20..=70).contains(&some), "{some}: about five batches");
}

pub async fn records_of_a_batch_stand_together(lab: &impl Lab) {
    let journal = lab.open().await;
    let tasks: Vec<_> = (0..8)
        .map(|task| {
            let journal = Arc::clone(&journal);
            tokio::spawn(async move {
                let mut mine = Vec::new();
                for n in 0..10 {
                    let texts: Vec<String> = (0..30).map(|i| format!("{task}/{n}/{i}")).collect();
                    let appended = journal.append(T0, batch(texts.iter().map(String::as_str))).await.unwrap();
                    assert_eq!(appended.records, 30);
                    mine.push((appended.first, texts));
                }
                mine
            })
        })
        .collect();
    let mut acked = Vec::new();
    for task in tasks {
        acked.extend(task.await.unwrap());
    }
    let stored = texts(&journal, T0, Offset::ZERO).await;
    assert_eq!(stored.len(), 2400);
    for (first, texts) in acked {
        assert_eq!(stored[first.0 as usize..][..30], texts);
    }
}

pub async fn readers_at_different_places_do_not_disturb_each_other(lab: &impl Lab) {
    let journal = lab.open().await;
    for n in 0..40 {
        journal.append(T0, numbered(n * 25, 25)).await.unwrap();
        journal.append(T1, numbered(n * 25, 25)).await.unwrap();
    }
    let readers: Vec<_> = [(T0, 0, 100), (T0, 333, 700), (T1, 0, 5_000), (T0, 999, 10), (T1, 500, 1)]
        .into_iter()
        .map(|(at, from, bytes_max)| {
            let journal = Arc::clone(&journal);
            tokio::spawn(async move {
                let mut next = Offset(from);
                while next < Offset(1000) {
                    let read = journal.read(at, next, bytes_max).await.unwrap();
                    assert_eq!(read[0].first(), next);
                    for entry in read.iter().flat_map(Entries::iter) {
                        assert_eq!((entry.offset, entry.bytes), (next, next.0.to_string().as_bytes()));
                        next = next.after(1);
                    }
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
}

pub async fn what_there_is_no_room_for_waits_and_keeps_its_order(lab: &impl Lab) {
    let journal = lab.open().await;
    let text = |n: usize| format!("{n:05}{}", "x".repeat(20_000));
    let all: Vec<String> = (0..200).map(text).collect();
    let appends: Vec<_> = all
        .iter()
        .enumerate()
        .map(|(n, text)| journal.append(if n % 3 == 0 { T1 } else { T0 }, batch([text.as_str()])))
        .collect();
    future::try_join_all(appends).await.unwrap();
    for at in [T0, T1] {
        let mine = all.iter().enumerate().filter(|(n, _)| (n % 3 == 0) == (at == T1)).map(|(_, text)| text);
        assert!(texts(&journal, at, Offset::ZERO).await.iter().eq(mine), "{at}");
    }
}

pub async fn partitions_do_not_mix(lab: &impl Lab) {
    let journal = lab.open().await;
    journal.append(T0, batch(["zero"])).await.unwrap();
    journal.append(ALERTS, batch(["alert"])).await.unwrap();
    journal.append(T1, batch(["one"])).await.unwrap();
    journal.append(T0, batch(["zero again"])).await.unwrap();
    assert_eq!(texts(&journal, T0, Offset::ZERO).await, ["zero", "zero again"]);
    assert_eq!(texts(&journal, T1, Offset::ZERO).await, ["one"]);
    assert_eq!(texts(&journal, ALERTS, Offset::ZERO).await, ["alert"]);
}

pub async fn an_empty_batch_takes_no_offset(lab: &impl Lab) {
    let journal = lab.open().await;
    assert_eq!(journal.append(T0, Batch::default()).await.unwrap().records, 0);
    assert_eq!(journal.extent(T0).next, Offset::ZERO);
}

pub async fn large_and_tiny_batches_come_back_as_they_were(lab: &impl Lab) {
    let journal = lab.open().await;
    let large: Vec<u8> = (0..3_000_001_u32).map(|n| (n % 251) as u8).collect();
    for record in [&b""[..], &large, b"x"] {
        let mut batch = Batch::default();
        batch.push(record);
        journal.append(T0, batch).await.unwrap();
    }
    let all = read_all(&journal, T0, Offset::ZERO).await;
    let records: Vec<&[u8]> =
        all.iter().flat_map(|e| e.iter().map(|r| r.bytes).collect::<Vec<_>>()).collect();
    assert!(records == [&b""[..], &large, b"x"]);
}

pub async fn a_batch_that_is_too_large_is_refused_and_not_kept(lab: &impl Lab) {
    let journal = lab.open().await;
    let mut batch = Batch::default();
    batch.push(&vec![7; dunlin_model::limits::BATCH_BYTES_MAX]);
    let error = journal.append(T0, batch).await.unwrap_err();
    assert!(matches!(error, AppendError::TooLarge { .. }) && !error.is_transient(), "{error}");
    assert_eq!(journal.extent(T0).next, Offset::ZERO);
}

pub async fn an_unknown_partition_is_refused(lab: &impl Lab) {
    let journal = lab.open().await;
    let nowhere = Partition::new(Topic::Telemetry, journal.partitions(Topic::Telemetry));
    assert!(matches!(journal.append(nowhere, batch(["a"])).await, Err(AppendError::NoPartition(_))));
    assert!(matches!(journal.read(nowhere, Offset::ZERO, 1).await, Err(ReadError::NoPartition(_))));
}

pub async fn reading_beyond_the_end_says_where_the_end_is(lab: &impl Lab) {
    let journal = lab.open().await;
    journal.append(T0, batch(["a"])).await.unwrap();
    match journal.read(T0, Offset(2), 1).await {
        Err(ReadError::BeyondEnd { asked: Offset(2), next: Offset(1), .. }) => {}
        other => panic!("{other:?}"),
    }
}

pub async fn a_waiting_reader_is_woken(lab: &impl Lab) {
    let journal = lab.open().await;
    let mut progress = journal.progress();
    let reader = {
        let journal = Arc::clone(&journal);
        tokio::spawn(async move {
            while journal.extent(T0).next == Offset::ZERO {
                progress.changed().await.unwrap();
            }
            texts(&journal, T0, Offset::ZERO).await
        })
    };
    tokio::task::yield_now().await;
    journal.append(T0, batch(["a"])).await.unwrap();
    assert_eq!(reader.await.unwrap(), ["a"]);
}

pub async fn a_dropped_append_that_had_room_is_written(lab: &impl Lab) {
    let journal = lab.open().await;
    drop(journal.append(T0, batch(["dropped"])));
    journal.append(T0, batch(["kept"])).await.unwrap();
    assert_eq!(texts(&journal, T0, Offset::ZERO).await, ["dropped", "kept"]);
}

pub async fn an_acked_batch_survives_reopen(lab: &impl Lab) {
    for round in 0..3_u64 {
        let journal = lab.open().await;
        assert_eq!(journal.extent(T0).next, Offset(round * 20));
        assert_eq!(
            texts(&journal, T0, Offset::ZERO).await,
            (0..round * 20).map(|n| n.to_string()).collect::<Vec<_>>()
        );
        let first = journal.append(T0, numbered(round * 20, 20)).await.unwrap().first;
        assert_eq!(first, Offset(round * 20));
        journal.append(ALERTS, batch(["alert"])).await.unwrap();
        journal.close().await;
    }
    assert_eq!(lab.open().await.extent(ALERTS).next, Offset(3));
}

pub async fn positions_survive_reopen(lab: &impl Lab) {
    let journal = lab.open().await;
    journal.append(T0, batch(["a", "b"])).await.unwrap();
    assert_eq!(journal.position("store", T0), None);
    journal.commit("store", T0, Offset(1)).await.unwrap();
    journal.commit("store", T0, Offset(2)).await.unwrap();
    journal.commit("rules", T0, Offset(1)).await.unwrap();
    assert_eq!(journal.position("store", T0), Some(Offset(2)));
    journal.close().await;
    drop(journal);
    let journal = lab.open().await;
    assert_eq!(journal.position("store", T0), Some(Offset(2)));
    assert_eq!(journal.position("rules", T0), Some(Offset(1)));
    assert_eq!(journal.position("store", T1), None);
}

pub async fn a_slow_reader_learns_what_is_gone(lab: &impl Lab) {
    let journal = lab.open().await;
    journal.append(T0, numbered(0, 10)).await.unwrap();
    lab.make_gone(&journal, T0).await;
    let oldest = journal.extent(T0).oldest;
    assert!(oldest > Offset::ZERO);
    match journal.read(T0, Offset::ZERO, 1).await {
        Err(ReadError::Gone { partition: T0, oldest: told }) => assert_eq!(told, oldest),
        other => panic!("{other:?}"),
    }
    journal.read(T0, oldest, 1).await.unwrap();
    // Offsets go on where they were, also when everything is gone.
    let next = journal.extent(T0).next;
    journal.close().await;
    drop(journal);
    let journal = lab.open().await;
    assert_eq!(journal.extent(T0), Extent { oldest, next });
    assert_eq!(journal.append(T0, batch(["more"])).await.unwrap().first, next);
}

pub async fn retention_never_takes_what_a_consumer_has_not_passed(lab: &impl Lab) {
    let journal = lab.open().await;
    journal.append(T0, numbered(0, 10)).await.unwrap();
    journal.commit("slow", T0, Offset(0)).await.unwrap();
    lab.make_gone(&journal, T1).await;
    assert_eq!(
        texts(&journal, T0, Offset::ZERO).await[..10],
        (0..10).map(|n| n.to_string()).collect::<Vec<_>>()
    );
}

pub async fn a_closed_journal_refuses_and_still_reads(lab: &impl Lab) {
    let journal = lab.open().await;
    let under_way: FuturesUnordered<_> = (0..20).map(|n| journal.append(T0, numbered(n, 1))).collect();
    journal.close().await;
    assert_eq!(
        under_way.filter(|r| future::ready(r.is_ok())).count().await,
        20,
        "what was under way ends well"
    );
    assert!(matches!(journal.append(T0, batch(["late"])).await, Err(AppendError::Closed)));
    assert_eq!(journal.health(), Health::Closed);
    assert_eq!(texts(&journal, T0, Offset::ZERO).await.len(), 20);
    journal.close().await;
}

fn batch<'a>(records: impl IntoIterator<Item = &'a str>) -> Batch {
    let mut batch = Batch::default();
    records.into_iter().for_each(|r| batch.push(r.as_bytes()));
    batch
}

/// Records that say their own offset.
fn numbered(first: u64, records: u32) -> Batch {
    let mut batch = Batch::default();
    (first..first + u64::from(records)).for_each(|n| batch.push(n.to_string().as_bytes()));
    batch
}

async fn read_all(journal: &Arc<dyn Journal>, at: Partition, from: Offset) -> Vec<Entries> {
    let (mut all, mut from) = (Vec::new(), from);
    loop {
        let read = journal.read(at, from, 1 << 16).await.unwrap();
        let Some(last) = read.last() else { return all };
        assert_eq!(read[0].first(), from);
        from = last.next();
        all.extend(read);
    }
}

async fn texts(journal: &Arc<dyn Journal>, at: Partition, from: Offset) -> Vec<String> {
    let all = read_all(journal, at, from).await;
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    all.iter().flat_map(|e| e.iter().map(|r| text(r.bytes)).collect::<Vec<_>>()).collect()
}
