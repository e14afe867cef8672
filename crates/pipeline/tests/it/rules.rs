use std::{
    path::Path,
    sync::atomic::{AtomicI64, AtomicU32, Ordering},
};

use dunlin_pipeline::{Config, Limits, Pipeline, RuleSet};
use prometheus_client::registry::Registry;

use super::*;

fn hot() -> RuleSet {
    let text = "[[rule]]\nname = \"hot\"\nwhen = \"avg(temperature) over 1m > 80 for 2m, clear below 75\"\n";
    RuleSet::parse(text, "hot.toml").unwrap()
}

fn start(journal: &Arc<MemoryJournal>, dir: &Path, rules: RuleSet) -> Pipeline {
    let limits = Limits { lateness_millis: 0, ..Limits::default() };
    let config = Config { gather_millis: 1, limits, ..Config::default() };
    let (kept, metrics) = (checkpoints(dir), &mut Registry::default());
    Pipeline::start(config, journal.clone(), nothing(), rules, kept, dir, still(), metrics).unwrap()
}

async fn caught_up(journal: &MemoryJournal, pipeline: &Pipeline) {
    let end = journal.extent(TELEMETRY).next;
    until("the rules caught up", || pipeline.view().position(0) == Some(end)).await;
}

fn hot_minutes() -> Vec<Record<'static>> {
    let values = [70.0, 85.0, 86.0, 87.0, 78.0, 74.0, 74.0, 90.0, 91.0, 92.0, 60.0, 60.0];
    (0..).zip(values).map(|(minute, value)| reading("pump", minute * 60, value)).collect()
}

#[tokio::test]
async fn says_what_happened_and_takes_up_where_it_stopped() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), journal());
    for record in hot_minutes() {
        let pipeline = start(&journal, dir.path(), hot());
        append(&journal, &[record]).await;
        caught_up(&journal, &pipeline).await;
        pipeline.stop().await;
    }
    let restarted = alerts(&journal).await;

    let (dir, journal) = (tempfile::tempdir().unwrap(), self::journal());
    let pipeline = start(&journal, dir.path(), hot());
    append(&journal, &hot_minutes()).await;
    caught_up(&journal, &pipeline).await;
    pipeline.stop().await;
    let whole = alerts(&journal).await;
    assert_eq!(whole.len(), 6, "{whole:?}");
    assert_eq!(restarted, whole);
}

#[tokio::test]
async fn a_lost_or_broken_checkpoint_is_replayed_under_the_same_ids() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), journal());
    append(&journal, &hot_minutes()).await;
    let run = async |journal: &Arc<MemoryJournal>| {
        let pipeline = start(journal, dir.path(), hot());
        caught_up(journal, &pipeline).await;
        let account = pipeline.view().status().accounts["default"];
        pipeline.stop().await;
        account
    };
    let first_account = run(&journal).await;
    let first = alerts(&journal).await;
    let chain = dir.path().join("pipeline/1-0");
    for file in std::fs::read_dir(&chain).unwrap() {
        std::fs::write(file.unwrap().path(), b"garbage").unwrap();
    }
    assert_eq!(run(&journal).await, first_account);
    let both = alerts(&journal).await;
    assert_eq!(both[first.len()..], first);
    std::fs::remove_dir_all(&chain).unwrap();
    assert_eq!(run(&journal).await, first_account);
}

#[tokio::test]
async fn an_unreadable_record_stops_nobody() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), journal());
    let pipeline = start(&journal, dir.path(), hot());
    append_bytes(&journal, TELEMETRY, b"\xff\xfe not a record").await;
    append(&journal, &hot_minutes()).await;
    caught_up(&journal, &pipeline).await;
    pipeline.stop().await;
    assert_eq!(alerts(&journal).await.len(), 6);
}

#[tokio::test]
async fn a_replay_of_the_same_data_tells_nobody_again() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), journal());
    let pipeline = start(&journal, dir.path(), hot());
    append(&journal, &hot_minutes()).await;
    append(&journal, &hot_minutes()).await;
    caught_up(&journal, &pipeline).await;
    let account = pipeline.view().status().accounts["default"];
    pipeline.stop().await;
    assert_eq!(alerts(&journal).await.len(), 6);
    assert_eq!((account.read, account.evaluated, account.copies), (24, 12, 12));
}

#[tokio::test]
async fn reloaded_rules_hold_from_then_on() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), journal());
    let pipeline = start(&journal, dir.path(), hot());
    append(&journal, &hot_minutes()[..5]).await;
    caught_up(&journal, &pipeline).await;
    pipeline.rules().set(RuleSet::default());
    until("the change is said", || journal.extent(ALERTS).next == Offset(3)).await;
    pipeline.stop().await;
    let phases: Vec<_> = alerts(&journal).await.into_iter().map(|t| format!("{:?}", t.phase)).collect();
    assert_eq!(phases, ["Pending", "Firing", "Resolved"]);
}

#[tokio::test]
async fn silence_closes_windows_by_itself_but_not_before_what_is_still_to_come() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), journal());
    let (now, looked) = (Arc::new(AtomicI64::new(10)), Arc::new(AtomicU32::new(0)));
    let clock = {
        let (now, looked) = (now.clone(), looked.clone());
        Clock::new(move || {
            looked.fetch_add(1, Ordering::SeqCst);
            super::at(now.load(Ordering::SeqCst))
        })
    };
    let under_way = nothing();
    let rules = "[[rule]]\nname = \"hot\"\nwhen = \"avg(temperature) over 1m > 80\"\n";
    let rules = RuleSet::parse(rules, "hot.toml").unwrap();
    let limits = Limits { lateness_millis: 0, ..Limits::default() };
    let config = Config { gather_millis: 1, limits, ..Config::default() };
    let (inflow, metrics, kept) = (under_way.clone(), &mut Registry::default(), checkpoints(dir.path()));
    let pipeline =
        Pipeline::start(config, journal.clone(), inflow, rules, kept, dir.path(), clock, metrics).unwrap();

    // The second record was received in time and takes minutes into the journal.
    append(&journal, &[reading("pump", 10, 99.0)]).await;
    *under_way.0.lock().unwrap() = Some(super::at(20));
    caught_up(&journal, &pipeline).await;
    now.store(500, Ordering::SeqCst);
    // Looked at once per tick: when the second begins, the first is over.
    let before = looked.load(Ordering::SeqCst);
    until("time went on", || looked.load(Ordering::SeqCst) >= before + 2).await;
    append(&journal, &[reading("pump", 20, 1.0)]).await;
    *under_way.0.lock().unwrap() = None;
    caught_up(&journal, &pipeline).await;
    append(&journal, &[reading("other", 490, 99.0)]).await;
    until("the other's window closed in silence", || {
        now.fetch_add(100, Ordering::SeqCst);
        journal.extent(ALERTS).next > Offset::ZERO
    })
    .await;
    pipeline.stop().await;
    let fired: Vec<_> = alerts(&journal).await.into_iter().map(|t| t.device).collect();
    assert_eq!(fired, ["other"]);
}

#[tokio::test]
async fn the_journal_knows_of_the_rules_before_their_first_checkpoint() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), journal());
    append(&journal, &hot_minutes()).await;
    let pipeline = start(&journal, dir.path(), hot());
    caught_up(&journal, &pipeline).await;
    assert_eq!(journal.position("pipeline", TELEMETRY), Some(Offset(0)));
    pipeline.stop().await;
    assert_eq!(journal.position("pipeline", TELEMETRY), Some(Offset(12)));
}
