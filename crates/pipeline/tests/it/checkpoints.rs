use std::{
    fmt,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use dunlin_model::Slot;
use dunlin_pipeline::{Config, Limits, Pipeline, RuleSet};
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, memory::InMemory, path::Path as Key,
};
use prometheus_client::registry::Registry;

use super::*;

pub(super) fn rules() -> RuleSet {
    let text = "[[rule]]\nname = \"hot\"\nwhen = \"avg(temperature) over 1m > 80 for 2m, clear below 75\"\n\
                [[rule]]\nname = \"peak\"\nwhen = \"temperature > 85 for 90s\"\n\
                [[rule]]\nname = \"sliding\"\nwhen = \"max(temperature) over sliding 3m > 90\"\n";
    RuleSet::parse(text, "rules.toml").unwrap()
}

fn start(journal: &Arc<MemoryJournal>, kept: &CheckpointStore, data: &Path) -> Pipeline {
    let limits = Limits { lateness_millis: 0, ..Limits::default() };
    let config = Config { gather_millis: 1, limits, checkpoint_seconds: 0, ..Config::default() };
    let (kept, metrics) = (kept.clone(), &mut Registry::default());
    Pipeline::start(config, journal.clone(), nothing(), rules(), kept, data, still(), metrics).unwrap()
}

async fn caught_up(journal: &MemoryJournal, pipeline: &Pipeline) {
    let view = pipeline.view();
    let ends = |n: u16| journal.extent(Partition::new(Topic::Telemetry, n)).next;
    until("the rules caught up", || {
        (0..journal.partitions(Topic::Telemetry)).all(|n| view.position(n) == Some(ends(n)))
    })
    .await;
}

/// What forty devices say in the minutes of a story.
pub(super) fn said_in(minutes: std::ops::Range<i64>) -> Vec<(String, i64, f64)> {
    let value = |n: i64, minute: i64| 60.0 + ((n * 7 + minute * 11) % 40) as f64;
    minutes
        .flat_map(|minute| (0..40).map(move |n| (format!("d{n}"), minute * 60, value(n, minute))))
        .collect()
}

pub(super) async fn append_to(journal: &MemoryJournal, partitions: u16, said: &[(String, i64, f64)]) {
    for (device, second, value) in said {
        let mut batch = Batch::default();
        batch.push_with(|out| avro::encode(&reading(device, *second, *value), out));
        let partition = Slot::of("default", device).partition(partitions);
        journal.append(Partition::new(Topic::Telemetry, partition), batch).await.unwrap();
    }
}

/// All alerts, by device and time, without those that were said again.
pub(super) async fn history(journal: &MemoryJournal) -> Vec<AlertTransition> {
    let mut all = alerts(journal).await;
    all.sort_by(|a, b| {
        (&a.device, a.at, &a.rule, a.phase as u8).cmp(&(&b.device, b.at, &b.rule, b.phase as u8))
    });
    all.dedup_by_key(|t| t.id);
    all
}

pub(super) async fn unbroken(minutes: i64) -> Vec<AlertTransition> {
    let (dir, journal) = (tempfile::tempdir().unwrap(), journal());
    let pipeline = start(&journal, &checkpoints(dir.path()), dir.path());
    append_to(&journal, 1, &said_in(0..minutes)).await;
    caught_up(&journal, &pipeline).await;
    pipeline.stop().await;
    history(&journal).await
}

#[tokio::test]
async fn another_number_of_partitions_takes_the_state_of_its_slots_along() {
    let whole = unbroken(40).await;
    assert!(whole.len() > 100, "{}", whole.len());
    for (before, after) in [(1, 4), (2, 5), (3, 8)] {
        let dir = tempfile::tempdir().unwrap();
        let kept = checkpoints(dir.path());
        let old = Arc::new(MemoryJournal::new(before));
        let pipeline = start(&old, &kept, dir.path());
        append_to(&old, before, &said_in(0..20)).await;
        caught_up(&old, &pipeline).await;
        pipeline.stop().await;

        // As Kafka adds partitions: the old ones keep what they have. More has come than the rules have read.
        let new = Arc::new(MemoryJournal::new(after));
        append_to(&new, before, &said_in(0..23)).await;
        for transition in alerts(&old).await {
            append_bytes(&new, ALERTS, &transition.encode()).await;
        }
        let pipeline = start(&new, &kept, dir.path());
        append_to(&new, after, &said_in(23..30)).await;
        caught_up(&new, &pipeline).await;
        let accounts = pipeline.view().status().accounts["default"];
        assert_eq!(accounts.evaluated, 40 * 30, "what was counted moves too");
        pipeline.stop().await;
        // And a restart in between.
        let pipeline = start(&new, &kept, dir.path());
        append_to(&new, after, &said_in(30..40)).await;
        caught_up(&new, &pipeline).await;
        pipeline.stop().await;
        assert_eq!(history(&new).await, whole, "from {before} to {after}");
    }
}

#[tokio::test]
async fn nothing_moves_where_others_may_be_at_work() {
    let dir = tempfile::tempdir().unwrap();
    let kept = checkpoints(dir.path()).shared();
    start(&Arc::new(MemoryJournal::new(2)), &kept, dir.path()).stop().await;
    let journal = Arc::new(MemoryJournal::new(3));
    let refused = Pipeline::start(
        Config::default(),
        journal.clone(),
        nothing(),
        rules(),
        kept.clone(),
        dir.path(),
        still(),
        &mut Registry::default(),
    )
    .unwrap_err();
    assert!(refused.to_string().contains("one with all roles"), "{refused}");
    // One that is alone moves it, and then it fits.
    start(&journal, &checkpoints(dir.path()), dir.path()).stop().await;
    start(&journal, &kept, dir.path()).stop().await;
}

/// An object store that refuses while it is told to.
#[derive(Debug)]
struct Refusing {
    inner: InMemory,
    refuses: AtomicBool,
}

impl fmt::Display for Refusing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("refusing")
    }
}

type Result<T> = object_store::Result<T>;

#[async_trait::async_trait]
impl ObjectStore for Refusing {
    async fn put_opts(&self, to: &Key, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(object_store::Error::Generic { store: "refusing", source: "503 slow down".into() });
        }
        self.inner.put_opts(to, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        to: &Key,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(to, options).await
    }

    async fn get_opts(&self, from: &Key, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(from, options).await
    }

    fn delete_stream(&self, keys: BoxStream<'static, Result<Key>>) -> BoxStream<'static, Result<Key>> {
        self.inner.delete_stream(keys)
    }

    fn list(&self, prefix: Option<&Key>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[tokio::test]
async fn a_checkpoint_that_fails_is_seen_and_the_last_good_one_holds() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), journal());
    let refusing = Arc::new(Refusing { inner: InMemory::new(), refuses: AtomicBool::new(false) });
    let kept = CheckpointStore::on(refusing.clone());
    let pipeline = start(&journal, &kept, dir.path());
    let view = pipeline.view();
    append_to(&journal, 1, &said_in(0..10)).await;
    until("a checkpoint", || view.status().partitions[0].checkpoint.position == Some(Offset(400))).await;

    refusing.refuses.store(true, Ordering::SeqCst);
    append_to(&journal, 1, &said_in(10..20)).await;
    caught_up(&journal, &pipeline).await;
    until("the failure is seen", || {
        let checkpoint = &view.status().partitions[0].checkpoint;
        checkpoint.problem.as_ref().is_some_and(|problem| problem.contains("503 slow down"))
            && checkpoint.position == Some(Offset(400))
    })
    .await;
    assert_eq!(journal.position("pipeline", TELEMETRY), Some(Offset(400)), "retention spares the rest");
    assert!(view.stalled().is_empty(), "the rules go on meanwhile");
    pipeline.stop().await;

    // As after a crash: from the last good one, which says again what it said.
    let pipeline = start(&journal, &kept, dir.path());
    append_to(&journal, 1, &said_in(20..30)).await;
    caught_up(&journal, &pipeline).await;
    refusing.refuses.store(false, Ordering::SeqCst);
    let view = pipeline.view();
    until("it is written at last", || {
        append_soon(&journal);
        let checkpoint = view.status().partitions[0].checkpoint.clone();
        checkpoint.problem.is_none() && checkpoint.position >= Some(Offset(1_200))
    })
    .await;
    pipeline.stop().await;
    let (said, mut once) = (alerts(&journal).await, unbroken(30).await);
    let in_story = |t: &AlertTransition| t.device != "other";
    assert!(said.len() > once.len(), "some were said twice, under the same ids");
    let mut history: Vec<_> = history(&journal).await.into_iter().filter(in_story).collect();
    history.sort_by_key(|t| t.id);
    once.sort_by_key(|t| t.id);
    assert_eq!(history, once);
}

/// Nothing that a rule looks at, so that there is a reason for the next checkpoint.
fn append_soon(journal: &Arc<MemoryJournal>) {
    let journal = journal.clone();
    tokio::spawn(async move { append(&journal, &[reading("other", 1, 1.0)]).await });
}
