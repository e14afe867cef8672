use object_store::memory::InMemory;

use super::*;

type Numbers = Vec<u64>;

fn chain(store: &CheckpointStore) -> Chain {
    Chain::of(store, 1, 0)
}

async fn loaded(store: &CheckpointStore) -> Option<(u64, Vec<Numbers>)> {
    let (found, _) = chain(store).load::<Numbers>().await.unwrap();
    found.map(|found| (found.position.0, found.states))
}

async fn sequences(store: &CheckpointStore) -> Vec<u64> {
    chain(store).names().await.unwrap().iter().map(|name| name.sequence).collect()
}

async fn write(writer: &mut Writer, position: u64, is_whole: bool) {
    writer.begin(Offset(position), is_whole, &vec![position]);
    writer.finished().await.unwrap().unwrap();
    if let Some(deleting) = writer.deleting.take() {
        deleting.await.unwrap();
    }
}

#[tokio::test]
async fn a_start_finds_the_newest_base_and_what_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    for store in [CheckpointStore::on(Arc::new(InMemory::new())), CheckpointStore::local(dir.path()).unwrap()]
    {
        assert_eq!(loaded(&store).await, None);
        let (_, mut writer) = chain(&store).load::<Numbers>().await.unwrap();
        assert!(writer.is_whole_due());
        write(&mut writer, 10, true).await;
        assert_eq!(loaded(&store).await, Some((10, vec![vec![10]])));
        write(&mut writer, 20, false).await;
        write(&mut writer, 30, false).await;
        assert_eq!(loaded(&store).await, Some((30, vec![vec![10], vec![20], vec![30]])));
        write(&mut writer, 40, true).await;
        assert_eq!(loaded(&store).await, Some((40, vec![vec![40]])));
        // The chain before is kept to go back to, and no other.
        write(&mut writer, 50, true).await;
        assert_eq!(sequences(&store).await, [3, 4]);
        // Who starts again goes on behind what is there.
        let (_, mut writer) = chain(&store).load::<Numbers>().await.unwrap();
        assert!(writer.is_whole_due());
        write(&mut writer, 60, true).await;
        assert_eq!(loaded(&store).await, Some((60, vec![vec![60]])));
        // However short the runs are, what is older than the last chain goes.
        for position in 70..80 {
            let (_, mut writer) = chain(&store).load::<Numbers>().await.unwrap();
            write(&mut writer, position, true).await;
        }
        assert_eq!(sequences(&store).await.len(), 2);
    }
}

#[tokio::test]
async fn who_has_lost_its_partition_spoils_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for store in [CheckpointStore::on(Arc::new(InMemory::new())), CheckpointStore::local(dir.path()).unwrap()]
    {
        let (_, mut lost) = chain(&store).load::<Numbers>().await.unwrap();
        write(&mut lost, 10, true).await;
        let (_, mut next) = chain(&store).load::<Numbers>().await.unwrap();
        write(&mut next, 20, true).await;
        // The one before goes on, and deletes what it takes for old.
        for (position, is_whole) in [(30, false), (40, true), (50, true)] {
            write(&mut lost, position, is_whole).await;
            assert_eq!(loaded(&store).await, Some((20, vec![vec![20]])));
        }
        write(&mut next, 60, false).await;
        assert_eq!(loaded(&store).await, Some((60, vec![vec![20], vec![60]])));

        // Two that went on from the same: no chain is of both, and what one takes for old is not the other's.
        let (_, mut one) = chain(&store).load::<Numbers>().await.unwrap();
        let (_, mut other) = chain(&store).load::<Numbers>().await.unwrap();
        write(&mut one, 70, true).await;
        write(&mut other, 80, true).await;
        write(&mut one, 90, false).await;
        assert_eq!(loaded(&store).await, Some((90, vec![vec![70], vec![90]])));
        write(&mut other, 100, false).await;
        write(&mut other, 110, false).await;
        assert_eq!(loaded(&store).await, Some((110, vec![vec![80], vec![100], vec![110]])));
        write(&mut one, 120, true).await;
        write(&mut one, 130, true).await;
        assert_eq!(loaded(&store).await, Some((130, vec![vec![130]])));
        write(&mut other, 140, false).await;
        write(&mut other, 150, false).await;
        let (position, states) = loaded(&store).await.unwrap();
        assert_eq!((position, states.concat()), (150, vec![80, 100, 110, 140, 150]));
        // Nobody's is left over when the next has two of its own.
        let (_, mut next) = chain(&store).load::<Numbers>().await.unwrap();
        for position in [160, 170, 180] {
            write(&mut next, position, true).await;
        }
        assert_eq!(sequences(&store).await.len(), 2);
    }
}

#[tokio::test]
async fn changes_of_another_chain_are_no_base() {
    let store = CheckpointStore::on(Arc::new(InMemory::new()));
    for (sequence, base) in [(0, 0), (1, 1), (2, 0), (3, 2)] {
        let bytes = encode(base, Offset(sequence), &vec![sequence]);
        let name = Name { sequence, run: String::new() };
        store.put(&chain(&store).object(&name), bytes).await.unwrap();
    }
    assert_eq!(loaded(&store).await, Some((1, vec![vec![1]])));
}

#[tokio::test]
async fn changes_that_outgrow_the_base_ask_for_a_new_one() {
    let store = CheckpointStore::on(Arc::new(InMemory::new()));
    let (_, mut writer) = chain(&store).load::<Numbers>().await.unwrap();
    writer.begin(Offset(1), true, &vec![7u64; 1_000]);
    writer.finished().await.unwrap().unwrap();
    let mut changes = 0;
    while !writer.is_whole_due() {
        writer.begin(Offset(2 + changes), false, &vec![7u64; 100]);
        writer.finished().await.unwrap().unwrap();
        changes += 1;
    }
    assert!((8..12).contains(&changes), "{changes}");
}

#[tokio::test]
async fn what_is_damaged_or_missing_ends_the_chain_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::local(dir.path()).unwrap();
    let (_, mut writer) = chain(&store).load::<Numbers>().await.unwrap();
    for (position, is_whole) in [(10, true), (20, false), (30, true), (40, false), (50, false)] {
        write(&mut writer, position, is_whole).await;
    }
    let file = |sequence: u64| dir.path().join(chain(&store).object(&writer.name(sequence)));
    let whole = std::fs::read(file(4)).unwrap();
    for byte in 0..whole.len() {
        let mut bad = whole.clone();
        bad[byte] ^= 1;
        std::fs::write(file(4), bad).unwrap();
        assert_eq!(loaded(&store).await.unwrap().0, 40, "byte {byte}");
        std::fs::write(file(4), &whole[..byte]).unwrap();
        assert_eq!(loaded(&store).await.unwrap().0, 40, "cut at {byte}");
    }
    std::fs::write(file(4), &whole).unwrap();
    std::fs::remove_file(file(3)).unwrap();
    assert_eq!(loaded(&store).await, Some((30, vec![vec![30]])));
    std::fs::write(file(2), b"garbage").unwrap();
    assert_eq!(loaded(&store).await, Some((20, vec![vec![10], vec![20]])));
}

#[tokio::test]
async fn after_a_failed_write_the_next_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = CheckpointStore::local(dir.path()).unwrap();
    let (_, mut writer) = chain(&store).load::<Numbers>().await.unwrap();
    write(&mut writer, 10, true).await;
    // A file where the directory was: nothing can be put there.
    let (place, aside) = (dir.path().join("1-0"), dir.path().join("aside"));
    std::fs::rename(&place, &aside).unwrap();
    std::fs::write(&place, b"").unwrap();
    writer.begin(Offset(20), false, &vec![20u64]);
    assert!(writer.finished().await.unwrap().is_err());
    std::fs::remove_file(&place).unwrap();
    std::fs::rename(&aside, &place).unwrap();
    assert_eq!(loaded(&store).await, Some((10, vec![vec![10]])), "the last good one holds");
    assert!(writer.is_whole_due());
    write(&mut writer, 30, true).await;
    assert_eq!(loaded(&store).await, Some((30, vec![vec![30]])));
}

#[test]
fn a_place_is_a_directory_or_a_bucket() {
    for wrong in ["nowhere", "ftp://a/b", "s3:"] {
        assert!(CheckpointStore::at(wrong, []).is_err(), "{wrong}");
    }
}
