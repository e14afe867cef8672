use std::{
    path::Path,
    sync::atomic::{AtomicI64, Ordering},
};

use dunlin_model::{AlertPhase, Slot};
use dunlin_pipeline::{Config, Limits, Pipeline, RuleSet};
use prometheus_client::registry::Registry;

use super::*;

pub(super) const PARTITIONS: u16 = 3;
pub(super) const PARTIALS: Partition = Partition { topic: Topic::Partials, index: 0 };

pub(super) fn many_hot() -> RuleSet {
    let text = "[[rule]]\nname = \"many-hot\"\nwhen = \"temperature > 80\"\ngroup = \"share > 5%\"\ndevices = \"press-*\"\n";
    RuleSet::parse(text, "many.toml").unwrap()
}

fn start(journal: &Arc<MemoryJournal>, dir: &Path, clock: &Arc<AtomicI64>) -> Pipeline {
    let limits = Limits { lateness_millis: 0, ..Limits::default() };
    let config = Config { gather_millis: 1, limits, checkpoint_seconds: 0, ..Config::default() };
    let now = clock.clone();
    let clock = Clock::new(move || at(now.load(Ordering::SeqCst)));
    let (kept, metrics) = (checkpoints(dir), &mut Registry::default());
    Pipeline::start(config, journal.clone(), nothing(), many_hot(), kept, dir, clock, metrics).unwrap()
}

pub(super) async fn append_all(journal: &MemoryJournal, second: i64, hot: std::ops::Range<u32>) {
    for n in 0..40 {
        let device = format!("press-{n}");
        let record = reading(&device, second, if hot.contains(&n) { 90.0 } else { 20.0 });
        let mut batch = Batch::default();
        batch.push_with(|out| avro::encode(&record, out));
        let partition = Slot::of("default", &device).partition(PARTITIONS);
        journal.append(Partition::new(Topic::Telemetry, partition), batch).await.unwrap();
    }
}

/// Time goes on until groups are judged so far.
pub(super) async fn judged(pipeline: &Pipeline, clock: &AtomicI64, second: i64) {
    clock.fetch_max(second + 5, Ordering::SeqCst);
    let view = pipeline.view();
    until("groups are judged", || view.status().groups.judged_up_to.is_some_and(|up_to| up_to >= at(second)))
        .await;
}

#[tokio::test]
async fn more_than_five_percent_of_a_group_over_all_partitions_and_restarts() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), Arc::new(MemoryJournal::new(PARTITIONS)));
    let clock = Arc::new(AtomicI64::new(10));
    // 2 of 40 are 5 %, 3 are more.
    for (second, hot) in
        [(10, 0..0), (20, 0..2), (30, 0..3), (40, 10..13), (50, 0..2), (60, 0..40), (70, 0..1)]
    {
        // Each stretch in a run of its own.
        let pipeline = start(&journal, dir.path(), &clock);
        append_all(&journal, second, hot).await;
        judged(&pipeline, &clock, second).await;
        pipeline.stop().await;
    }
    let said: Vec<_> = alerts(&journal).await;
    let told: Vec<_> = said.iter().map(|t| (t.phase, t.at, t.value, &*t.device)).collect();
    use AlertPhase::{Firing, Resolved};
    assert_eq!(
        told,
        [
            (Firing, at(30), 7.5, "press-*"),
            (Resolved, at(50), 5.0, "press-*"),
            (Firing, at(60), 100.0, "press-*"),
            (Resolved, at(70), 2.5, "press-*"),
        ]
    );

    // All that was derived is lost: the same is said again, under the same ids.
    let other = tempfile::tempdir().unwrap();
    let partials = journal.extent(PARTIALS).next;
    let pipeline = start(&journal, other.path(), &clock);
    judged(&pipeline, &clock, 75).await;
    until("the partitions have counted again", || journal.extent(PARTIALS).next > partials).await;
    pipeline.stop().await;
    let mut again: Vec<_> = alerts(&journal).await.split_off(said.len());
    again.dedup_by_key(|t| t.id);
    assert_eq!(again, said);
}

#[tokio::test]
async fn devices_of_a_group_are_no_alerts_of_their_own() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), Arc::new(MemoryJournal::new(PARTITIONS)));
    let clock = Arc::new(AtomicI64::new(10));
    let pipeline = start(&journal, dir.path(), &clock);
    append_all(&journal, 10, 0..1).await;
    judged(&pipeline, &clock, 10).await;
    assert!(pipeline.view().status().partitions.iter().all(|p| p.watermark >= Some(at(10))));
    pipeline.stop().await;
    assert_eq!(alerts(&journal).await, []);
}
