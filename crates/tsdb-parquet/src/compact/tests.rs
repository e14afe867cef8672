use super::*;
use crate::manifest::TableEntry;

const DAY: i64 = 86_400_000_000;

fn at(day: i64) -> Timestamp {
    Timestamp::from_micros(day * DAY)
}

fn file(id: u64, day: i64, rows: u64, level: u8) -> FileEntry {
    FileEntry {
        id,
        path: format!("{id}.parquet"),
        partition: Partition::day_of(at(day)),
        run: id,
        level,
        rows,
        bytes: rows,
        time_min: at(day),
        time_max: at(day),
        device_min: "a".into(),
        device_max: "a".into(),
        written_at: at(day),
    }
}

/// The files of each merge, its level, and whether it goes to a wide partition.
fn planned(files: Vec<FileEntry>, now: Timestamp) -> Vec<(Vec<u64>, u8, bool)> {
    let table = TableEntry { files, ..TableEntry::default() };
    let manifest = Manifest { tables: [(("t".into(), "d".into()), table)].into(), ..Manifest::default() };
    plan(&manifest, now, &Config::default())
        .into_iter()
        .map(|merge| {
            let mut ids: Vec<u64> = merge.inputs.iter().map(|file| file.id).collect();
            ids.sort_unstable();
            (ids, merge.level, merge.partition.is_wide())
        })
        .collect()
}

#[test]
fn today_is_merged_level_by_level() {
    let fresh = |count: u64| (0..count).map(|id| file(id, 100, 5_000_000, 0)).collect::<Vec<_>>();
    assert!(planned(fresh(7), at(100)).is_empty());
    assert_eq!(planned(fresh(8), at(100)), [((0..8).collect(), 1, false)]);
    let mut mixed = fresh(3);
    mixed.extend((10..18).map(|id| file(id, 100, 40_000_000, 1)));
    assert_eq!(planned(mixed, at(100)), [((10..18).collect(), 2, false)]);
}

#[test]
fn a_day_that_is_over_is_packed_once() {
    let files = vec![file(1, 100, 5_000_000, 0), file(2, 100, 5_000_000, 2)];
    assert_eq!(planned(files, at(102)), [(vec![1, 2], PACKED, false)]);
    assert!(planned(vec![file(3, 100, 10_000_000, PACKED)], at(102)).is_empty());
    let with_few_late = vec![file(3, 100, 10_000_000, PACKED), file(4, 100, 1_000, 0)];
    assert!(planned(with_few_late, at(102)).is_empty());
    let with_many_late = vec![file(3, 100, 10_000_000, PACKED), file(4, 100, 2_000_000, 0)];
    assert_eq!(planned(with_many_late, at(102)), [(vec![3, 4], PACKED, false)]);
}

#[test]
fn what_was_just_written_is_waited_for() {
    let mut files = vec![file(1, 100, 5_000_000, 0), file(2, 100, 5_000_000, 0)];
    files[1].written_at = at(102);
    assert!(planned(files, at(102)).is_empty());
}

#[test]
fn thin_old_days_share_their_files() {
    let files: Vec<_> = (0..40).map(|n| file(n as u64, 96 + n, 288, 0)).collect();
    let merges = planned(files, at(1_000));
    assert_eq!(merges, [((0..32).collect(), PACKED, true), ((32..40).collect(), PACKED, true)]);
}
