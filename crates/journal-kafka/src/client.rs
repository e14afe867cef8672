use std::{
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext},
    error::{KafkaError, KafkaResult},
};

const PAUSE: Duration = Duration::from_millis(50);

/// Passes on what librdkafka says, and remembers the last of its complaints.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    complaint: Arc<Mutex<Option<String>>>,
}

pub(crate) type Consumer = BaseConsumer<Told>;

impl Told {
    pub(crate) fn complaint(&self) -> Option<String> {
        held(&self.complaint).clone()
    }
}

impl ClientContext for Told {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error => {
                tracing::warn!(facility, message, "librdkafka");
                // The only place where it says what is wrong with a certificate.
                *held(&self.complaint) = Some(message.to_owned());
            }
            _ => tracing::debug!(facility, message, "librdkafka"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
        *held(&self.complaint) = Some(reason.to_owned());
    }
}

impl ConsumerContext for Told {}

/// A consumer that is told what to read; it joins no group and commits nothing by itself.
pub(crate) fn consumer(client: &ClientConfig, group: &str) -> KafkaResult<Consumer> {
    let mut client = client.clone();
    client.set("group.id", group);
    client.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    client.set("allow.auto.create.topics", "false");
    client.set("auto.offset.reset", "error");
    // An open transaction of somebody else's must not hold up a partition.
    client.set("isolation.level", "read_uncommitted");
    client.set("check.crcs", "true");
    client.set("fetch.wait.max.ms", "500").set("fetch.error.backoff.ms", "50");
    client.set("fetch.queue.backoff.ms", "5");
    client.set("queued.max.messages.kbytes", "8192").set("queued.min.messages", "100000");
    client.create_with_context(Told::default())
}

/// Asks again and again, as brokers that start or have just been told of a topic answer late.
pub(crate) fn patiently<T>(
    asker: &Consumer,
    deadline: Instant,
    mut ask: impl FnMut() -> KafkaResult<T>,
) -> KafkaResult<T> {
    let mut is_told = false;
    loop {
        match ask() {
            Err(error) if Instant::now() < deadline => {
                hear_out(asker);
                if !is_told {
                    tracing::info!(error = words(&error, asker.context()), "waiting for the brokers");
                    is_told = true;
                }
                thread::sleep(PAUSE);
            }
            answer => {
                hear_out(asker);
                return answer;
            }
        }
    }
}

/// What went wrong on the way to a broker is told to whoever polls. Nothing is assigned yet, so there is nothing else.
fn hear_out(asker: &Consumer) {
    while let Some(polled) = asker.poll(Duration::ZERO) {
        if let Err(error) = polled {
            *held(&asker.context().complaint) = Some(error.to_string());
        }
    }
}

/// What an error of librdkafka's is, and what was said about it.
pub(crate) fn words(error: &KafkaError, told: &Told) -> String {
    match told.complaint() {
        Some(complaint) => format!("{error}; the last complaint: {complaint}"),
        None => error.to_string(),
    }
}

pub(crate) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
