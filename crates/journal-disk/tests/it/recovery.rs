use std::fs;

use dunlin_journal::{Journal, Offset};
use dunlin_journal_disk::OpenError;
use proptest::prelude::*;

use crate::support::{Bench, T0, T1, check_numbered, fill, flip, frames, numbered, write_at};

/// A journal that crashed: two groups that were acknowledged, one after the other, and where their frames are.
async fn crashed(first: usize, last: u64) -> (Bench, Vec<u64>) {
    let bench = Bench::new();
    let journal = bench.open();
    fill(&journal, T0, first, 2, 100).await;
    fill(&journal, T0, 1, last, 300).await;
    let image = bench.image();
    let path = &image.files("seg")[0];
    let frames = frames(path)[..=first].to_vec();
    // A mark may have been written since, and would prove the last group.
    write_at(path, frames[first] + stored_bytes(last, 300), &[0; 64]);
    (image, frames)
}

fn stored_bytes(records: u64, bytes: u64) -> u64 {
    (56 + records * (4 + bytes)).next_multiple_of(8)
}

async fn expect_records(bench: &Bench, records: u64) {
    for _ in 0..2 {
        let journal = bench.open();
        assert_eq!(check_numbered(&journal, T0, Offset::ZERO).await, records);
    }
    let journal = bench.open();
    fill(&journal, T0, 3, 5, 50).await;
    drop(journal);
    assert_eq!(check_numbered(&bench.open(), T0, Offset::ZERO).await, records + 15);
}

fn expect_refusal(bench: &Bench, position: u64) {
    match bench.try_open() {
        Err(OpenError::Corrupt { path, position: told, .. }) => {
            assert_eq!((path, told), (bench.files("seg")[0].clone(), position));
        }
        other => panic!("{other:?}"),
    }
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_crash_at_any_time() {
    let bench = Bench::new();
    let journal = bench.open();
    for n in 0..40 {
        fill(&journal, T0, 1, 3, 1_000).await;
        fill(&journal, T1, 1, 1, 20_000).await;
        let image = bench.image();
        let reopened = image.open();
        assert_eq!(check_numbered(&reopened, T0, Offset::ZERO).await, (n + 1) * 3);
        assert_eq!(check_numbered(&reopened, T1, Offset::ZERO).await, n + 1);
    }
    assert!(bench.files("seg").len() > 3);
}

#[tokio::test]
async fn crashes_upon_crashes_lose_nothing() {
    let mut bench = Bench::new();
    for n in 0..10 {
        let journal = bench.open();
        assert_eq!(check_numbered(&journal, T0, Offset::ZERO).await, n * 20);
        fill(&journal, T0, 10, 2, 500).await;
        let image = bench.image();
        drop(journal);
        bench = image;
    }
}

/// The last group is torn at every byte: whatever is before it stays.
#[tokio::test]
async fn a_torn_last_group_is_cut_wherever_it_is_torn() {
    let (image, frames) = crashed(4, 1).await;
    let last = frames[4];
    let end = last + stored_bytes(1, 300);
    for torn_at in last..=end {
        let image = image.image();
        let path = &image.files("seg")[0];
        write_at(path, torn_at, &vec![0; (end - torn_at + 64) as usize]);
        // The last bytes of a frame may be zeros themselves: padding.
        let whole = torn_at + 4 >= end;
        let records = check_numbered(&image.open(), T0, Offset::ZERO).await;
        assert!(records == 8 || (whole && records == 9), "torn at {torn_at} of {end}: {records}");
    }
    expect_records(&image, 9).await;
}

#[tokio::test]
async fn a_torn_group_whose_later_frames_arrived_is_cut() {
    let bench = Bench::new();
    let journal = bench.open();
    fill(&journal, T0, 2, 2, 100).await;
    // One group of many batches, because they are queued while the group before is synced.
    let appends: Vec<_> = (0..50).map(|n| journal.append(T0, numbered(4 + n, 1, 100))).collect();
    futures::future::try_join_all(appends).await.unwrap();
    let image = bench.image();
    let path = &image.files("seg")[0];
    let frames: Vec<u64> = frames(path).into_iter().filter(|at| !is_mark(path, *at)).collect();
    assert_eq!(frames.len(), 52);
    let durable_up_to = |at: u64| u64_at(path, at + 40);
    let last_group = durable_up_to(frames[51]);
    let in_last_group: Vec<u64> = frames.iter().copied().filter(|at| *at >= last_group).collect();
    write_at(path, frames[51] + stored_bytes(1, 100), &[0; 64]);

    for torn in &in_last_group {
        let image = image.image();
        let path = &image.files("seg")[0];
        write_at(path, *torn, &[0; 60]);
        let whole = frames.iter().filter(|at| *at < torn).count() as u64;
        expect_records(&image, whole + 2).await; // The first two frames hold two records each.
    }
    if last_group > frames[0] {
        flip(path, last_group - 30);
        expect_refusal(&image, *frames.iter().rfind(|at| **at < last_group).unwrap());
    }
}

#[tokio::test]
async fn remains_of_a_torn_group_never_come_back() {
    let (image, frames) = crashed(4, 1).await;
    let path = image.files("seg")[0].clone();
    let whole = fs::read(&path).unwrap();
    write_at(&path, frames[4], &[0; 8]);
    expect_records(&image, 8).await;
    // The disk gets the lost sector right after all.
    write_at(&path, frames[4], &whole[frames[4] as usize..frames[4] as usize + 8]);
    let journal = image.open();
    assert_eq!(check_numbered(&journal, T0, Offset::ZERO).await, 23);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn damage_to_acknowledged_records_is_refused(at in 0.0..1.0_f64) {
        wait(async {
            let (image, frames) = crashed(6, 1).await;
            let path = &image.files("seg")[0];
            // Everything before the last group is proven durable by it. Padding does not count.
            let position = frames[0] + ((frames[6] - frames[0]) as f64 * at) as u64;
            let frame = *frames.iter().rfind(|f| **f <= position).unwrap();
            let is_padding = position >= frame + 56 + 2 * 104;
            flip(path, position);
            if is_padding {
                expect_records(&image, 13).await;
            } else {
                expect_refusal(&image, frame);
            }
        });
    }

    #[test]
    fn garbage_after_the_end_is_cut(garbage in prop::collection::vec(any::<u8>(), 1..5_000), gap in 0_u64..2_000) {
        wait(async {
            let (image, frames) = crashed(3, 2).await;
            write_at(&image.files("seg")[0], frames[3] + stored_bytes(2, 300) + gap, &garbage);
            expect_records(&image, 8).await;
        });
    }

    #[test]
    fn garbage_over_the_unproven_group_is_cut(garbage in prop::collection::vec(1_u8.., 1..800), at in 0_u64..600) {
        wait(async {
            let (image, frames) = crashed(3, 2).await;
            let path = &image.files("seg")[0];
            write_at(path, frames[3] + stored_bytes(2, 300), &[0; 64]);
            write_at(path, frames[3] + at, &garbage);
            expect_records(&image, 6).await;
        });
    }
}

#[tokio::test]
async fn a_mark_proves_the_last_group() {
    let bench = Bench::new();
    let journal = bench.open();
    fill(&journal, T0, 4, 2, 100).await;
    drop(journal);
    let path = bench.files("seg")[0].clone();
    let frames = frames(&path);
    assert!(is_mark(&path, frames[4]));
    flip(&path, frames[3] + 60);
    expect_refusal(&bench, frames[3]);
}

#[tokio::test]
async fn a_payload_that_looks_like_a_frame_proves_nothing() {
    let (image, frames) = crashed(30, 1).await;
    // It says that far more is durable than the segment it will be in has.
    let stolen = fs::read(&image.files("seg")[0]).unwrap()[frames[30] as usize..][..56].to_vec();
    let journal = image.open();
    let mut batch = dunlin_journal::Batch::default();
    // At a multiple of 8 bytes, as a frame would be.
    batch.push(&[&[0; 4][..], &stolen, &[b'x'; 16_000], &stolen].concat());
    journal.append(T1, batch).await.unwrap();
    let torn = image.image();
    let path = torn.files("seg").last().unwrap().clone();
    let found = crate::support::frames(&path);
    let carrier =
        found[found.iter().rposition(|at| fs::read(&path).unwrap()[*at as usize + 18] == 1).unwrap()];
    write_at(&path, carrier, &[0; 8]);
    write_at(&path, (carrier + 56 + 4 + 4 + 16_112).next_multiple_of(8), &[0; 64]);
    assert_eq!(check_numbered(&torn.open(), T0, Offset::ZERO).await, 61);
}

#[tokio::test]
async fn damage_in_an_older_segment_is_refused_at_start_or_at_the_read() {
    let bench = Bench::with(|c| c.tail_cache_bytes = 0);
    let journal = bench.open();
    fill(&journal, T0, 60, 1, 10_000).await;
    drop(journal);
    drop(bench.open());
    let first = bench.files("seg")[0].clone();
    assert!(first.with_extension("idx").exists());
    let damaged = frames(&first)[5];
    flip(&first, damaged + 100);
    expect_refusal(&bench, damaged);

    let unverified = Bench { config: bench.config.clone(), ..bench };
    let unverified = Bench {
        config: dunlin_journal_disk::Config { verify_at_start_bytes_max: 0, ..unverified.config.clone() },
        ..unverified
    };
    let journal = unverified.open();
    assert!(journal.read(T0, Offset(4), 1).await.is_ok());
    match journal.read(T0, Offset(5), 1).await {
        Err(dunlin_journal::ReadError::Corrupt { position, .. }) => assert_eq!(position, damaged),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_lost_index_is_made_again() {
    let bench = Bench::with(|c| c.verify_at_start_bytes_max = 0);
    let journal = bench.open();
    fill(&journal, T0, 60, 1, 10_000).await;
    drop(journal);
    drop(bench.open());
    let indexes = bench.files("idx");
    assert!(indexes.len() > 1);
    fs::remove_file(&indexes[0]).unwrap();
    flip(&indexes[1], 9);
    let journal = bench.open();
    assert_eq!(check_numbered(&journal, T0, Offset::ZERO).await, 60);
    drop(journal);
    assert_eq!(bench.files("idx").len(), indexes.len());
}

#[tokio::test]
async fn a_missing_segment_is_refused() {
    let bench = Bench::new();
    let journal = bench.open();
    fill(&journal, T0, 100, 1, 10_000).await;
    drop(journal);
    let second = bench.files("seg")[1].clone();
    fs::remove_file(&second).unwrap();
    match bench.try_open() {
        Err(OpenError::Missing { path, .. }) => assert_eq!(path, second),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn damaged_side_files_are_refused_and_named() {
    let bench = Bench::new();
    let journal = bench.open();
    journal.commit("store", T0, Offset(0)).await.unwrap();
    drop(journal);
    let dir = &bench.config.dir;
    flip(&dir.join("positions.json"), 20);
    assert!(matches!(bench.try_open(), Err(OpenError::Positions { .. })));
    flip(&dir.join("positions.json"), 20);
    flip(&dir.join("meta.json"), 20);
    assert!(matches!(bench.try_open(), Err(OpenError::Meta { .. })));
    flip(&dir.join("meta.json"), 20);
    bench.open();
}

fn u64_at(path: &std::path::Path, at: u64) -> u64 {
    let bytes = fs::read(path).unwrap();
    u64::from_le_bytes(bytes[at as usize..at as usize + 8].try_into().unwrap())
}

fn is_mark(path: &std::path::Path, at: u64) -> bool {
    fs::read(path).unwrap()[at as usize + 20..][..4] == [0; 4]
}

#[tokio::test]
async fn a_damaged_segment_header_is_refused_and_nothing_is_deleted() {
    let bench = Bench::new();
    let journal = bench.open();
    fill(&journal, T0, 60, 1, 10_000).await;
    drop(journal);
    for segment in 0..3 {
        let image = bench.image();
        let files = image.files("seg");
        flip(&files[segment], 30);
        match image.try_open() {
            Err(OpenError::Corrupt { path, position: 0, .. }) => assert_eq!(path, files[segment]),
            other => panic!("{other:?}"),
        }
        assert_eq!(image.files("seg"), files);
    }
}
