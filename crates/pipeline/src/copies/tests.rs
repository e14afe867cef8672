use dunlin_journal::{Partition, Topic};
use dunlin_model::{Reading, Readings, Timestamp};
use proptest::prelude::*;

use super::{
    snapshot::{Unusable, decode, encode, seal},
    *,
};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;

fn record(id: MessageId, received: i64, value: f64) -> Record<'static> {
    Record {
        tenant: "default",
        device: "d",
        device_type: "default",
        message_id: id,
        received_at: Timestamp::from_micros(received * 1_000_000),
        device_time: None,
        time: Timestamp::from_micros(received * 1_000_000),
        time_source: TimeSource::Server,
        readings: Readings::from_iter([Reading { metric: "t", value: ValueRef::F64(value) }]),
    }
}

fn limits(recent_ids_max: u64) -> RecentIdsLimits {
    RecentIdsLimits { recent_ids_max, ..RecentIdsLimits::default() }
}

fn answers(records: &[Record<'_>]) -> Vec<bool> {
    let mut ids = RecentIds::new(RecentIdsLimits::default());
    records.iter().zip(0..).map(|(r, n)| ids.observe(r, device_hash(r.tenant, r.device), Offset(n))).collect()
}

/// A memory to which each call is the next record of the journal.
struct Told(RecentIds, u64);

impl Told {
    fn new(recent_ids_max: u64) -> Self {
        Self(RecentIds::new(limits(recent_ids_max)), 0)
    }

    fn tell(&mut self, device: u64, id: MessageId, received: i64) -> bool {
        self.1 += 1;
        self.0.observe(&record(id, received, 0.0), device, Offset(self.1 - 1))
    }
}

#[test]
fn a_retry_is_a_copy_of_its_first_delivery() {
    use MessageId::*;
    let r = |id| record(id, 0, 1.0);
    assert_eq!(
        answers(&[r(First(7)), r(Retry(7)), r(Retry(7)), r(Retry(8)), r(Retry(8))]),
        [false, true, true, false, true]
    );
    assert_eq!(
        answers(&[r(First(7)), r(First(7)), r(None), r(None)]),
        [false; 4],
        "packet ids are used again"
    );
    assert_eq!(answers(&[r(Given(7)), r(Retry(7)), r(Given(7))]), [false, false, true], "ids of two kinds");
}

#[test]
fn the_same_reading_of_the_same_instant_is_a_copy() {
    let at = |value| Record { time_source: TimeSource::Device, ..record(MessageId::First(1), 0, value) };
    assert_eq!(answers(&[at(1.0), at(2.0), at(1.0)]), [false, false, true]);
    assert_eq!(answers(&[record(MessageId::None, 0, 1.0), record(MessageId::None, 0, 1.0)]), [false, false]);
}

#[test]
fn a_device_that_was_away_for_hours_repeats_and_is_recognised() {
    use MessageId::*;
    let stories = [
        (11 * MINUTE, First(7), Retry(7)),
        (HOUR, First(7), Retry(7)),
        (5 * HOUR, Given(7), Given(7)),
        (24 * HOUR, Given(7), Given(7)),
    ];
    for (away, first, again) in stories {
        let mut told = Told::new(3_500_000);
        assert!(!told.tell(1, first, 0));
        // Two million records of others, as in seconds of a busy partition.
        for n in 0..2_000_000u64 {
            told.0.observe(&record(First(n), 1, 0.0), 2 + n % 5_000, Offset(10 + n));
        }
        told.1 = 3_000_000;
        assert!(told.tell(1, again, away), "{away} s");
    }
    let mut told = Told::new(3_500_000);
    assert!(!told.tell(1, Given(7), 0) && !told.tell(1, Given(7), 24 * HOUR + 1));
    // By then the client may well use its packet ids for the second time.
    assert!(!told.tell(1, First(7), 0) && !told.tell(1, Retry(7), HOUR + 1));
}

#[test]
fn a_chatty_device_pushes_out_nothing_of_another_s() {
    use MessageId::*;
    let mut told = Told::new(1 << 16);
    for id in 0..PACKETS_MAX as u64 {
        told.tell(1, First(id), 0);
        told.tell(1, Given(id), 0);
    }
    for id in 0..1_000_000 {
        told.tell(2, First(id), 1);
        told.tell(2, Given(id), 1);
    }
    assert_eq!(told.0.len(), 2 * PACKETS_MAX + PACKETS_MAX + GIVEN_MAX);
    assert!((0..PACKETS_MAX as u64).all(|id| told.tell(1, Given(id), 2)));
    assert!(told.tell(1, Retry(0), 2));
}

#[test]
fn a_device_is_remembered_by_its_last_ids() {
    use MessageId::*;
    let mut told = Told::new(1 << 20);
    for id in 0..=PACKETS_MAX as u64 {
        told.tell(1, First(id), 0);
    }
    assert!(told.tell(1, Retry(PACKETS_MAX as u64), 1) && !told.tell(1, Retry(0), 1));
    for id in 0..=GIVEN_MAX as u64 {
        told.tell(1, Given(id), 0);
    }
    assert!(told.tell(1, Given(1 + 1), 1) && !told.tell(1, Given(0), 1));
}

#[test]
fn all_devices_together_are_bounded_and_the_oldest_go_first() {
    let mut told = Told::new(10_000);
    for n in 0..100_000 {
        told.tell(n % 3_000, MessageId::Given(n), 0);
        let charged = told.0.len + told.0.devices.len() as u64 * DEVICE_IDS;
        assert!(charged <= 10_000, "{charged} at {n}");
    }
    let kept = told.0.len;
    assert!(kept > 500, "{kept}");
    let newest = 100_000 - kept / 2;
    assert!((newest..100_000).all(|n| told.tell(n % 3_000, MessageId::Given(n), 0)));
    assert!(!told.tell(1, MessageId::Given(1), 0));
    assert_eq!(told.0.stretches.iter().map(|n| u64::from(*n)).sum::<u64>(), told.0.len);
}

#[test]
fn a_gap_in_the_journal_takes_no_more_memory_than_the_stretches_there_may_be() {
    let mut told = Told::new(1 << 16);
    told.tell(1, MessageId::Given(1), 0);
    told.1 = u64::MAX / 2;
    assert!(!told.tell(1, MessageId::Given(1), 0), "too far back");
    assert!(told.tell(1, MessageId::Given(1), 0));
    assert!(told.0.stretches.len() as u64 <= STRETCHES_MAX);
}

#[test]
fn a_delivery_that_its_own_repetition_overtook_is_a_copy() {
    use MessageId::*;
    let tell = |story: &[(MessageId, i64)]| {
        let mut told = Told::new(1 << 20);
        story.iter().map(|(id, received)| told.tell(1, *id, *received)).collect::<Vec<_>>()
    };
    assert_eq!(tell(&[(Retry(7), 30), (First(7), 0)]), [false, true]);
    assert_eq!(tell(&[(Retry(7), 30), (First(7), 30)]), [false, true]);
    assert_eq!(tell(&[(Retry(7), 30), (First(7), 31)]), [false, false], "the packet id, used again");
    assert_eq!(tell(&[(Retry(7), 61), (First(7), 0)]), [false, false], "too far apart");
    assert_eq!(tell(&[(Retry(7), 30), (First(7), 0), (First(7), 0)]), [false, true, false], "once");
    assert_eq!(tell(&[(Retry(7), 30), (First(8), 0)]), [false, false]);
    assert_eq!(tell(&[(Retry(7), 30), (Retry(7), 40), (First(7), 0)]), [false, true, true]);
    assert_eq!(tell(&[(First(7), 0), (Retry(7), 30), (First(7), 30)]), [false, true, false], "it had come");
}

/// Restored from its own bytes.
fn taken_up(ids: &RecentIds, position: u64) -> RecentIds {
    let mut bytes = encode(ids, Offset(position));
    seal(&mut bytes);
    let (found, ids) = decode(&bytes, ids.limits).unwrap();
    assert_eq!(found, Offset(position));
    ids
}

#[test]
fn a_damaged_snapshot_is_told() {
    let mut told = Told::new(1 << 16);
    (0..40).for_each(|n| assert!(!told.tell(n % 3, MessageId::Given(n), 0)));
    let mut good = encode(&told.0, Offset(40));
    seal(&mut good);
    for byte in 0..good.len() {
        let mut bad = good.clone();
        bad[byte] ^= 1;
        assert!(decode(&bad, told.0.limits).is_err(), "byte {byte}");
        assert!(decode(&good[..byte], told.0.limits).is_err(), "cut at {byte}");
    }
    assert!(matches!(decode(&good, limits(77_777)), Err(Unusable::OtherLimits(65_536))));
}

#[tokio::test]
async fn the_snapshots_that_a_consumer_could_start_from_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(Snapshots::dir(dir.path())).unwrap();
    let snapshots = Snapshots::new(dir.path(), Partition::new(Topic::Telemetry, 1), limits(1 << 16));
    let mut keeper = Keeper::new(snapshots.clone(), Offset::ZERO);
    let mut told = Told::new(1 << 16);
    for n in 1..=20 {
        told.tell(1, MessageId::Given(n), 0);
        keeper.finish(&told.0, Offset(n), vec![Offset(n.min(5)), Offset(n.min(9))]).await;
    }
    assert!(!keeper.is_due(&told.0, Offset(20)) && keeper.is_due(&told.0, Offset(600_000)));
    let files = || std::fs::read_dir(Snapshots::dir(dir.path())).unwrap().count();
    assert_eq!(files(), 5);
    let from = |position| snapshots.load(Offset(position), Offset::ZERO).1;
    assert_eq!([from(5), from(8), from(9), from(17), from(18), from(99)].map(|o| o.0), [5, 5, 9, 9, 18, 20]);
    assert_eq!(from(4), Offset(0), "none is at or before it");

    // What cannot be read is gone, and the one before it counts.
    let path = Snapshots::dir(dir.path()).join("1-00000000000000000020.ids");
    std::fs::write(path, b"DLID garbage").unwrap();
    assert_eq!((from(99), files()), (Offset(19), 4));
    let (mut ids, _) = snapshots.load(Offset(19), Offset::ZERO);
    assert!(ids.observe(&record(MessageId::Given(19), 1, 0.0), 1, Offset(19)));
    assert!(!ids.observe(&record(MessageId::Given(20), 1, 0.0), 1, Offset(20)));

    // Of records that the journal has lost nothing is known.
    snapshots.forget_after(Offset(18));
    assert_eq!((from(99), files()), (Offset(18), 3));
}

fn any_story() -> impl Strategy<Value = Vec<(u64, Record<'static>)>> {
    let id = prop_oneof![
        Just(MessageId::None),
        (0u64..40).prop_map(MessageId::First),
        (0u64..40).prop_map(MessageId::Retry),
        (0u64..40).prop_map(MessageId::Given),
    ];
    // Times that grow, go back, and come again.
    let own_time = prop::option::of(prop_oneof![0i64..8, 0i64..2_000]);
    let told = (0u64..30, id, -100i64..40_000, own_time, 0u8..4).prop_map(
        |(device, id, received, own_time, value)| {
            let record = record(id, received, f64::from(value));
            match own_time.map(|seconds| Timestamp::from_micros(seconds * 1_000_000)) {
                Some(time) => (device, Record { time_source: TimeSource::Device, time, ..record }),
                None => (device, record),
            }
        },
    );
    prop::collection::vec(told, 1..700)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_start_from_a_snapshot_answers_as_the_uninterrupted_run(
        story in any_story(),
        snapshot in 0usize..700,
        shown in 0usize..300,
        recent_ids_max in prop::sample::select(vec![100u64, 300, 600, 100_000]),
    ) {
        let snapshot = snapshot.min(story.len());
        let cut = (snapshot + shown).min(story.len());
        let run = |ids: &mut RecentIds, from: usize, to: usize| -> Vec<bool> {
            (from..to).map(|n| ids.observe(&story[n].1, story[n].0, Offset(n as u64))).collect()
        };
        let mut whole = RecentIds::new(limits(recent_ids_max));
        run(&mut whole, 0, snapshot);
        let mut other = taken_up(&whole, snapshot as u64);
        run(&mut whole, snapshot, cut);
        run(&mut other, snapshot, cut);
        prop_assert_eq!(run(&mut other, cut, story.len()), run(&mut whole, cut, story.len()));
        prop_assert_eq!(other.len, whole.len);
    }

    /// Against the simplest that does the same: a list, searched from its end.
    #[test]
    fn a_ring_holds_the_last_and_finds_the_newest(
        story in prop::collection::vec((0u64..50, any::<bool>()), 1..400),
        len_max in prop::sample::select(vec![4usize, 32, 64, 256]),
    ) {
        let (mut ring, mut list) = (Ring::default(), VecDeque::new());
        for (n, (key, is_pop)) in story.into_iter().enumerate() {
            // Alike in the 16 bits by which they are looked for first.
            let key = key << 14;
            let sighting = Sighting::new(0, n as i64 * 64);
            if is_pop && n % 3 == 0 {
                prop_assert_eq!(ring.pop(), list.pop_front().map(|(_, s)| s));
                ring.shrink();
            }
            list.push_back((key, sighting));
            let gone = (list.len() > len_max).then(|| list.pop_front().unwrap().1);
            prop_assert_eq!(ring.push(key, sighting, len_max), gone);
            prop_assert!(ring.iter().eq(list.iter().copied()));
            for key in (0..50u64).map(|key| key << 14) {
                let newest = list.iter().rev().find(|(k, _)| *k == key).map(|(_, s)| *s);
                prop_assert_eq!(ring.newest(key), newest);
            }
        }
    }
}
