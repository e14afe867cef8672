use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use dunlin_journal::{Batch, Journal, Partition, Topic};
use dunlin_journal_kafka::{Config, KafkaJournal, Labels, OpenError};
use futures::executor::block_on;
use prometheus_client::registry::Registry;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};

pub(crate) const T0: Partition = Partition { topic: Topic::Telemetry, index: 0 };

/// Brokers of one's own, which end with this process however it ends.
pub(crate) struct Brokers {
    pub(crate) bootstrap: String,
    /// Where they listen with TLS and ask who is there.
    pub(crate) bootstrap_secure: String,
    pub(crate) dir: PathBuf,
    _lent: Option<(Child, ChildStdin)>,
}

/// One broker for all tests of this process, or the one that the environment names.
pub(crate) fn broker() -> &'static Brokers {
    static BROKER: OnceLock<Brokers> = OnceLock::new();
    BROKER.get_or_init(|| match env::var("DUNLIN_TEST_KAFKA") {
        Ok(bootstrap) => {
            Brokers { bootstrap, bootstrap_secure: String::new(), dir: PathBuf::new(), _lent: None }
        }
        Err(_) => Brokers::lend(false),
    })
}

impl Brokers {
    pub(crate) fn lend(secure: bool) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../dev/services/kafka.sh");
        let dir: PathBuf = tempfile::Builder::new().prefix("dunlin-kafka-").tempdir().unwrap().keep();
        let mut lent = Command::new(script)
            .args(["lend", "1"])
            .arg(&dir)
            .env("SECURE", if secure { "1" } else { "" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("dev/services/kafka.sh starts");
        let mut said = String::new();
        BufReader::new(lent.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n", "dev/services/kafka.sh says why");
        let read = |file| fs::read_to_string(dir.join(file)).unwrap().trim().to_owned();
        let (bootstrap, bootstrap_secure) = (read("bootstrap"), read("bootstrap-secure"));
        let until_this_ends = lent.stdin.take().unwrap();
        Self { bootstrap, bootstrap_secure, dir, _lent: Some((lent, until_this_ends)) }
    }
}

/// Topics of one's own, which go with this.
pub(crate) struct Bench {
    pub(crate) config: Config,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut config = Config {
            brokers: broker().bootstrap.clone(),
            prefix: format!("dunlin-test-{process}-{number}."),
            telemetry_partitions: 2,
            replication_factor: 1,
            min_insync_replicas: 1,
            ..Config::default()
        };
        change(&mut config);
        Self { config }
    }

    pub(crate) async fn open(&self) -> Arc<KafkaJournal> {
        self.try_open().await.unwrap_or_else(|error| panic!("{error}"))
    }

    pub(crate) async fn try_open(&self) -> Result<Arc<KafkaJournal>, OpenError> {
        let config = self.config.clone();
        let open = move || KafkaJournal::open(config, describe, &mut Registry::default());
        tokio::task::spawn_blocking(open).await.unwrap()
    }

    pub(crate) fn topic(&self, topic: Topic) -> String {
        format!("{}{}", self.config.prefix, topic.name())
    }

    pub(crate) fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", &self.config.brokers);
        client
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().unwrap();
        let names: Vec<String> = Topic::ALL.iter().map(|topic| self.topic(*topic)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        // What a test did not make is not there.
        let _ = block_on(admin.delete_topics(&names, &AdminOptions::new()));
    }
}

/// A record is its own key, up to a colon.
pub(crate) fn describe(topic: Topic, record: &[u8]) -> Option<Labels<'_>> {
    let (device, _) = str::from_utf8(record).ok()?.split_once(':')?;
    let tenant = "default";
    Some(Labels { tenant, device, content_type: "text/plain", schema: topic.name() })
}

pub(crate) fn batch<'a>(records: impl IntoIterator<Item = &'a str>) -> Batch {
    let mut batch = Batch::default();
    records.into_iter().for_each(|r| batch.push(r.as_bytes()));
    batch
}

/// Appends records that fill the partition, until the retention may take some.
pub(crate) async fn fill(journal: &KafkaJournal, at: Partition) {
    for _ in 0..3 {
        journal.append(at, batch(["filled"; 10])).await.unwrap();
        // Kafka tells times by the millisecond.
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}
