//! What Kafka and others that use it see of the journal, and what it makes of what they do.

use std::time::Duration;

use dunlin_journal::{AppendError, Batch, Entries, Journal, Offset, Topic};
use dunlin_journal_kafka::OpenError;
use futures::executor::block_on;
use rdkafka::{
    Message, Offset as KafkaOffset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
    producer::{BaseProducer, BaseRecord, Producer},
};

use crate::support::{Bench, T0, batch, fill};

const SOON: Duration = Duration::from_secs(20);

impl Bench {
    /// A topic that somebody else has made.
    fn made(&self, topic: Topic, partitions: i32, settings: &[(&'static str, &'static str)]) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let name = self.topic(topic);
        let mut new = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        for (setting, value) in settings {
            new = new.set(setting, value);
        }
        block_on(admin.create_topics(&[new], &AdminOptions::new())).unwrap().remove(0).unwrap();
        // The brokers tell each other.
        let asker = self.stranger("asker");
        while asker.fetch_metadata(Some(&name), SOON).unwrap().topics()[0].partitions().len()
            != partitions as usize
        {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn stranger(&self, group: &str) -> BaseConsumer {
        let mut client = self.client();
        client.set("group.id", group).set("auto.offset.reset", "earliest").create().unwrap()
    }
}

#[tokio::test]
async fn a_record_is_a_message_with_a_key_and_headers() {
    let bench = Bench::new();
    let journal = bench.open().await;
    journal.append(T0, batch(["pump: 21.5", "unlabelled"])).await.unwrap();

    let stranger = bench.stranger("stranger");
    let mut all = TopicPartitionList::new();
    all.add_partition_offset(&bench.topic(Topic::Telemetry), 0, KafkaOffset::Beginning).unwrap();
    stranger.assign(&all).unwrap();
    let first = stranger.poll(SOON).unwrap().unwrap();
    assert_eq!((first.key().unwrap(), first.payload().unwrap()), (&b"default/pump"[..], &b"pump: 21.5"[..]));
    let headers: Vec<_> =
        first.headers().unwrap().iter().map(|h| (h.key, str::from_utf8(h.value.unwrap()).unwrap())).collect();
    assert_eq!(headers, [("content-type", "text/plain"), ("schema", "telemetry")]);
    let second = stranger.poll(SOON).unwrap().unwrap();
    assert_eq!((second.key(), second.payload(), second.offset()), (None, Some(&b"unlabelled"[..]), 1));
    assert!(second.headers().is_none());
}

#[tokio::test]
async fn what_others_write_is_read_and_the_marks_of_their_transactions_are_empty_records() {
    let bench = Bench::new();
    let journal = bench.open().await;
    journal.append(T0, batch(["ours"])).await.unwrap();
    let mut client = bench.client();
    let stranger: BaseProducer = client.set("transactional.id", &bench.config.prefix).create().unwrap();
    let topic = bench.topic(Topic::Telemetry);
    stranger.init_transactions(SOON).unwrap();
    stranger.begin_transaction().unwrap();
    stranger.send(BaseRecord::<(), _>::to(&topic).partition(0).payload("theirs")).unwrap();
    stranger.commit_transaction(SOON).unwrap();
    let mut appended = journal.append(T0, batch(["ours again"])).await.unwrap();
    // The mark may come after the answer to the commit; then it stands before a later one.
    let mut next = Offset(2);
    while appended.first == next {
        next = next.after(1);
        appended = journal.append(T0, batch(["ours again"])).await.unwrap();
    }
    assert_eq!(appended.first, next.after(1));
    let expected = |entries: &[Entries]| {
        let all: Vec<_> =
            entries.iter().flat_map(Entries::iter).map(|e| (e.offset.0, e.bytes.to_vec())).collect();
        assert!(all.iter().map(|(offset, _)| *offset).eq(0..all.len() as u64), "{all:?}");
        let texts = all.iter().filter(|(_, bytes)| !bytes.is_empty()).map(|(_, bytes)| bytes.as_slice());
        assert_eq!(texts.take(3).collect::<Vec<_>>(), [&b"ours"[..], b"theirs", b"ours again"]);
        assert_eq!(all.iter().filter(|(_, bytes)| bytes.is_empty()).count(), 1, "{all:?}");
        all.len() as u64
    };
    let mut all = Vec::new();
    while all.last().map_or(0, |e: &Entries| e.next().0) < appended.first.0 + 1 {
        let from = all.last().map_or(Offset::ZERO, Entries::next);
        all.extend(journal.read(T0, from, 1 << 20).await.unwrap());
    }
    let records = expected(&all);
    // And to one that reads it later.
    journal.close().await;
    drop(journal);
    let journal = bench.open().await;
    assert_eq!(journal.extent(T0).next, Offset(records));
    let mut all = Vec::new();
    while all.last().map_or(0, |e: &Entries| e.next().0) < records {
        let from = all.last().map_or(Offset::ZERO, Entries::next);
        all.extend(journal.read(T0, from, 1 << 20).await.unwrap());
    }
    expected(&all);
}

#[tokio::test]
async fn positions_are_the_offsets_of_consumer_groups() {
    let bench = Bench::new();
    let journal = bench.open().await;
    fill(&journal, T0).await;
    journal.commit("store", T0, Offset(7)).await.unwrap();
    journal.close().await;
    let stranger = bench.stranger(&format!("{}consumer.store", bench.config.prefix));
    let mut asked = TopicPartitionList::new();
    asked.add_partition(&bench.topic(Topic::Telemetry), 0);
    let committed = stranger.committed_offsets(asked, SOON).unwrap();
    assert_eq!(committed.elements()[0].offset(), KafkaOffset::Offset(7));
}

#[tokio::test]
async fn what_is_young_is_kept() {
    let bench = Bench::with(|config| config.retention_seconds = 3600);
    let journal = bench.open().await;
    fill(&journal, T0).await;
    journal.read(T0, Offset(29), 1).await.unwrap();
    let trimming = journal.clone();
    assert_eq!(tokio::task::spawn_blocking(move || trimming.trim_once()).await.unwrap().unwrap(), 0);
    assert_eq!(journal.extent(T0).oldest, Offset::ZERO);
}

#[tokio::test]
async fn a_record_that_the_topic_does_not_take_is_refused_and_not_kept() {
    let bench = Bench::new();
    bench.made(Topic::Telemetry, 2, &[("max.message.bytes", "100000")]);
    let journal = bench.open().await;
    let mut large = Batch::default();
    large.push(&[7; 200_000]);
    let error = journal.append(T0, large).await.unwrap_err();
    assert!(matches!(error, AppendError::TooLarge { bytes: 200_000, max } if max < 100_000), "{error}");
    let mut many = Batch::default();
    (0..10).for_each(|_| many.push(&[7; 50_000]));
    assert_eq!(journal.append(T0, many).await.unwrap().first, Offset::ZERO);
}

#[tokio::test]
async fn topics_that_would_break_a_promise_are_refused() {
    let bench = Bench::new();
    bench.made(Topic::Alerts, 1, &[("cleanup.policy", "compact")]);
    assert!(
        matches!(bench.try_open().await, Err(OpenError::Compacted { topic }) if topic.ends_with("alerts"))
    );

    let bench = Bench::new();
    bench.made(Topic::Telemetry, 3, &[]);
    let error = bench.try_open().await.unwrap_err();
    assert!(matches!(error, OpenError::Partitions { found: 3, asked: 2, .. }), "{error}");
    assert!(error.to_string().contains("set journal.telemetry_partitions to 3"));

    // Brokers from 4.0 on would acknowledge with the one replica there is.
    let bench = Bench::with(|config| (config.replication_factor, config.min_insync_replicas) = (2, 2));
    bench.made(Topic::Telemetry, 2, &[("min.insync.replicas", "2")]);
    assert!(matches!(bench.try_open().await, Err(OpenError::Insync { found: 1, asked: 2, .. })));

    let bench = Bench::with(|config| config.create_topics = false);
    assert!(matches!(bench.try_open().await, Err(OpenError::NoTopic { .. })));
}

#[tokio::test]
async fn a_start_without_brokers_says_so() {
    let bench = Bench::new();
    let mut config = bench.config.clone();
    (config.brokers, config.connect_seconds_max, config.request_seconds_max) = ("127.0.0.1:9".into(), 0, 1);
    let nowhere = Bench { config };
    let error = nowhere.try_open().await.unwrap_err();
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
    std::mem::forget(nowhere); // It has nothing to clean up.
}
