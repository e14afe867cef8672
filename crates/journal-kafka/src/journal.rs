use std::{
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use dunlin_journal::{
    AppendError, Appended, Batch, Entries, Extent, Health, Journal, Membership, Offset, Partition, ReadError,
    Topic,
};
use dunlin_model::{chain, limits::BATCH_BYTES_MAX, panic_words};
use futures::future::{self, BoxFuture, FutureExt};
use prometheus_client::registry::Registry;
use rdkafka::{
    ClientConfig,
    admin::AdminClient,
    client::DefaultClientContext,
    config::FromClientConfigAndContext,
    consumer::Consumer as _,
    error::{KafkaError, KafkaResult},
};
use tokio::sync::watch;

use crate::{
    Config, Describe, InvalidConfig,
    append::{self, Appender},
    client::{self, held, patiently},
    cold::Cold,
    members,
    metrics::Metrics,
    places::Places,
    positions::Positions,
    retention::Retention,
    tail::{Looked, Tail},
    topics::{self, AllFacts},
    watch::Watch,
};

/// The journal on Kafka. Dropping it ends it at once; `close` first for what is under way.
pub struct KafkaJournal {
    brokers: String,
    places: Arc<Places>,
    facts: AllFacts,
    appender: Arc<Appender>,
    tail: Arc<Tail>,
    cold: Arc<Cold>,
    positions: Arc<Positions>,
    retention: Arc<Retention>,
    watch: Arc<Watch>,
    timeout: Duration,
    progress: watch::Sender<u64>,
    /// What members of groups are made of.
    client: ClientConfig,
    config: Config,
    /// Whether the thread that watches has ended, and all is saved.
    ended: watch::Receiver<bool>,
    threads: Threads,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    #[error("the credentials for the brokers")]
    Credentials(#[source] io::Error),
    #[error("no broker of {brokers} answers: {reason}")]
    Unreachable { brokers: String, reason: String },
    #[error("{topic} does not exist, and journal.create_topics is off")]
    NoTopic { topic: String },
    #[error(
        "{topic} has {found} partitions and cannot be opened with {asked}; set journal.telemetry_partitions to {found}, \
         or another journal.prefix"
    )]
    Partitions { topic: String, found: usize, asked: u16 },
    #[error(
        "{topic} acknowledges with {found} replicas in sync, fewer than journal.min_insync_replicas, which is {asked}"
    )]
    Insync { topic: String, found: usize, asked: usize },
    #[error(
        "{topic} is compacted, which would take records that nobody has read; set its cleanup.policy to delete"
    )]
    Compacted { topic: String },
    #[error("{operation}: {reason}")]
    Kafka { operation: &'static str, reason: String },
    #[error("start the thread {thread}")]
    Thread { thread: &'static str, source: io::Error },
}

impl KafkaJournal {
    /// Opens the journal on `config.brokers`; topics that are missing are made. Blocks, for as long as
    /// `config.connect_seconds_max` if no broker answers. `describe` labels records for those who read Kafka itself.
    pub fn open(config: Config, describe: Describe, registry: &mut Registry) -> Result<Arc<Self>, OpenError> {
        config.check()?;
        let client = config.client().map_err(OpenError::Credentials)?;
        let failed =
            |operation| move |error: KafkaError| OpenError::Kafka { operation, reason: error.to_string() };
        let (timeout, brokers) = (config.request_timeout(), config.brokers.clone());
        let readers = format!("{}journal", config.prefix);
        let asker = client::consumer(&client, &readers).map_err(failed("make a consumer"))?;
        // With connections of its own: a question waits behind the fetches of the one that asks it.
        let follower = client::consumer(&client, &readers).map_err(failed("make a consumer"))?;
        let admin = AdminClient::from_config_and_context(&client, DefaultClientContext)
            .map_err(failed("make an admin client"))?;

        let places = Arc::new(Places::new(config.telemetry_partitions, |topic| config.topic_name(topic)));
        let deadline = Instant::now() + Duration::from_secs(config.connect_seconds_max);
        let facts = topics::prepare(&asker, &admin, &config, &places, deadline)?;
        for place in places.row() {
            let ask = || asker.fetch_watermarks(&place.topic, place.partition(), timeout);
            let marks = patiently(&asker, deadline, ask);
            let (low, high) = marks.map_err(failed("look up offsets"))?;
            place.reaches(Offset(high.max(0) as u64));
            place.starts_at(Offset(low.max(0) as u64));
        }
        let asker = Arc::new(asker);
        let groups = format!("{}consumer.", config.prefix);
        let load = || Positions::load(&asker, places.clone(), client.clone(), groups.clone(), timeout);
        let positions = patiently(&asker, deadline, load);
        let positions = positions.map_err(failed("look up consumers' positions"))?;
        let positions = Arc::new(positions);

        let progress = watch::Sender::new(0);
        let metrics = Arc::new(Metrics::new(registry));
        let appender = Appender::new(&config, describe, places.clone(), progress.clone(), metrics.clone());
        let tail = Arc::new(Tail::new(
            places.clone(),
            &config.follows,
            config.tail_cache_bytes,
            progress.clone(),
            metrics.clone(),
        ));
        let cold = Arc::new(Cold::new(
            places.clone(),
            client.clone(),
            readers,
            config.cold_readers_max,
            timeout,
            metrics.clone(),
        ));
        let retention = Arc::new(Retention {
            places: places.clone(),
            positions: positions.clone(),
            asker: asker.clone(),
            admin,
            tail: tail.clone(),
            keeps: Duration::from_secs(config.retention_seconds),
            timeout,
            now_millis: Mutex::default(),
            metrics: metrics.clone(),
        });
        let watch = Arc::new(Watch {
            places: places.clone(),
            topics: Topic::ALL.iter().map(|topic| (*topic, config.topic_name(*topic))).collect(),
            facts: facts.clone(),
            appender: appender.clone(),
            cold: cold.clone(),
            tail: tail.clone(),
            progress: progress.clone(),
            positions: positions.clone(),
            retention: retention.clone(),
            stalled_after: Duration::from_secs(config.stalled_seconds),
            timeout,
            trouble: Mutex::default(),
            metrics,
        });

        let of_producer = (client.clone(), config.clone());
        let make = move || append::producer(&of_producer.0, &of_producer.1, topics::MESSAGE_BYTES_MAX);
        let first = make().map_err(failed("make a producer"))?;
        let threads = Threads::new(appender.clone());
        let (ended, when_ended) = watch::channel(false);
        threads.spawn("journal-acks", {
            let appender = appender.clone();
            move |stop| appender.run(make, first, stop)
        })?;
        threads.spawn("journal-tail", {
            let tail = tail.clone();
            move |stop| tail.run(&follower, stop)
        })?;
        threads.spawn("journal-watch", {
            let watch = watch.clone();
            move |stop| {
                watch.run(&asker, stop);
                ended.send_replace(true);
            }
        })?;
        Ok(Arc::new(Self {
            brokers,
            places,
            facts,
            appender,
            tail,
            cold,
            positions,
            retention,
            watch,
            timeout,
            progress,
            client,
            config,
            ended: when_ended,
            threads,
        }))
    }

    /// Deletes the records that the retention gives up, and returns how many. Runs by itself every minute; blocks.
    pub fn trim_once(&self) -> KafkaResult<u64> {
        self.retention.trim()
    }

    /// Comes back, with the reason, once a thread of the journal has panicked. From then on it takes nothing.
    pub fn broken(&self) -> BoxFuture<'static, String> {
        let mut broken = self.threads.broken.subscribe();
        async move {
            let reason = broken.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
            match reason {
                Some(reason) => reason,
                // Closed before it could break.
                None => future::pending().await,
            }
        }
        .boxed()
    }
}

impl Journal for KafkaJournal {
    fn partitions(&self, topic: Topic) -> u16 {
        self.places.of(topic)
    }

    fn append(&self, at: Partition, batch: Batch) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let refused = |error| future::ready(Err(error)).boxed();
        let Some(place) = self.places.find(at) else { return refused(AppendError::NoPartition(at)) };
        if batch.size_bytes() > BATCH_BYTES_MAX {
            return refused(AppendError::TooLarge { bytes: batch.size_bytes(), max: BATCH_BYTES_MAX });
        }
        if batch.is_empty() {
            return future::ready(Ok(Appended { first: self.extent(at).next, records: 0 })).boxed();
        }
        let (records, bytes) = (batch.len(), batch.into_bytes());
        let max = self.facts.get(&at.topic).map_or(BATCH_BYTES_MAX, |facts| facts.record_bytes_max);
        if let Some(bytes) = append::too_large(&bytes, max) {
            return refused(AppendError::TooLarge { bytes, max });
        }
        let answer = self.appender.append(place, records, bytes);
        // Only the end of the thread that hears of deliveries leaves something unanswered.
        answer.map(|answer| answer.unwrap_or(Err(AppendError::Closed))).boxed()
    }

    fn read(
        &self,
        at: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Entries>, ReadError>> {
        let Some(place) = self.places.find(at) else {
            return future::ready(Err(ReadError::NoPartition(at))).boxed();
        };
        let Extent { oldest, next } = self.extent(at);
        if from < oldest {
            return future::ready(Err(ReadError::Gone { partition: at, oldest })).boxed();
        }
        if from > next {
            return future::ready(Err(ReadError::BeyondEnd { partition: at, asked: from, next })).boxed();
        }
        if from == next {
            return future::ready(Ok(Vec::new())).boxed();
        }
        match self.tail.look(place, from, bytes_max) {
            Looked::Found(found) => future::ready(Ok(found)).boxed(),
            Looked::Older => self.cold.clone().read(place, from, bytes_max).boxed(),
            Looked::Soon => {
                let soon = soon(
                    self.tail.clone(),
                    self.cold.clone(),
                    self.progress.subscribe(),
                    place,
                    from,
                    bytes_max,
                );
                let timeout = self.timeout;
                async move {
                    let late = |_| {
                        Err(ReadError::Unreachable { reason: format!("{at} is not fetched up to {from}") })
                    };
                    tokio::time::timeout(timeout, soon).await.unwrap_or_else(late)
                }
                .boxed()
            }
        }
    }

    fn extent(&self, at: Partition) -> Extent {
        let none = Extent { oldest: Offset::ZERO, next: Offset::ZERO };
        self.places.find(at).map_or(none, |place| self.places.row()[place].extent())
    }

    fn progress(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    fn position(&self, consumer: &str, at: Partition) -> Option<Offset> {
        self.positions.get(consumer, self.places.find(at)?)
    }

    /// Without a member, if none can be made: then the others have everything.
    fn join(&self, consumer: &str, topic: Topic) -> Membership {
        let (membership, caller) = Membership::new();
        let (places, positions) = (self.places.clone(), self.positions.clone());
        let name = self.config.topic_name(topic);
        positions.expect(consumer);
        let member = members::join(&self.client, &self.config, consumer, &name, places, positions, caller);
        let started = member.map_err(|error| error.to_string()).and_then(|member| {
            let member = Arc::new(member);
            self.positions.join(consumer, member.clone());
            let work = move |stop: &AtomicBool| members::run(member, stop);
            self.threads.spawn("journal-member", work).map_err(|error| chain(&error))
        });
        if let Err(error) = started {
            tracing::error!(consumer, error, "this process takes no part in the work");
        }
        membership
    }

    fn commit(&self, consumer: &str, at: Partition, position: Offset) -> BoxFuture<'static, io::Result<()>> {
        let committed = match self.places.find(at) {
            Some(place) if self.positions.set(consumer, place, position) => Ok(()),
            Some(_) => Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{at} is another's"))),
            None => Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no partition {at}"))),
        };
        future::ready(committed).boxed()
    }

    fn health(&self) -> Health {
        self.watch.health()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.appender.close();
        self.threads.wake();
        let mut ended = self.ended.clone();
        async move {
            // An error means that the thread is gone, which is what is waited for.
            let _ = ended.wait_for(|ended| *ended).await;
        }
        .boxed()
    }
}

/// What is durable and not in memory yet comes with the next fetch.
async fn soon(
    tail: Arc<Tail>,
    cold: Arc<Cold>,
    mut progress: watch::Receiver<u64>,
    place: usize,
    from: Offset,
    bytes_max: usize,
) -> Result<Vec<Entries>, ReadError> {
    loop {
        progress.mark_unchanged();
        match tail.look(place, from, bytes_max) {
            Looked::Found(found) => return Ok(found),
            Looked::Older => return cold.read(place, from, bytes_max).await,
            Looked::Soon => {}
        }
        if progress.changed().await.is_err() {
            return Err(ReadError::Unreachable { reason: "the journal has ended".into() });
        }
    }
}

impl fmt::Debug for KafkaJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaJournal").field("brokers", &self.brokers).finish_non_exhaustive()
    }
}

/// Those that run as long as the journal does.
#[derive(Debug)]
struct Threads {
    stop: Arc<AtomicBool>,
    /// Why one of them is no more.
    broken: watch::Sender<Option<String>>,
    appender: Arc<Appender>,
    running: Mutex<Vec<JoinHandle<()>>>,
}

impl Threads {
    fn new(appender: Arc<Appender>) -> Self {
        Self { stop: Arc::default(), broken: watch::Sender::new(None), appender, running: Mutex::default() }
    }

    /// A thread that panics takes the journal with it: an append must not wait for somebody who is no more.
    fn spawn(
        &self,
        name: &'static str,
        work: impl FnOnce(&AtomicBool) + Send + 'static,
    ) -> Result<(), OpenError> {
        let (stop, broken, appender) = (self.stop.clone(), self.broken.clone(), self.appender.clone());
        let run = move || {
            let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(&stop))) else { return };
            let reason = format!("{name} panicked: {}", panic_words(&*panic));
            tracing::error!(reason, "the journal takes nothing any more");
            appender.close();
            broken.send_replace(Some(reason));
        };
        let thread = thread::Builder::new().name(name.into()).spawn(run);
        held(&self.running).push(thread.map_err(|source| OpenError::Thread { thread: name, source })?);
        Ok(())
    }

    fn wake(&self) {
        held(&self.running).iter().for_each(|thread| thread.thread().unpark());
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
        for thread in held(&self.running).drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}
