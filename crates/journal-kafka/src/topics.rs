//! The topics as the journal needs them: made where they are missing, refused where they would break a promise.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use dunlin_journal::Topic;
use dunlin_model::limits::BATCH_BYTES_MAX;
use futures::executor::block_on;
use rdkafka::{
    admin::{
        AdminClient, AdminOptions, ConfigResource, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
        TopicReplication,
    },
    client::DefaultClientContext,
    consumer::Consumer as _,
    error::{KafkaError, RDKafkaErrorCode},
};

use crate::{
    Config, OpenError,
    client::{Consumer, patiently, words},
    places::Places,
};

pub(crate) type Admin = AdminClient<DefaultClientContext>;

/// What stands around a record in Kafka: headers of the batch and of the record, key, labels.
const RECORD_OVERHEAD_BYTES: usize = 2 << 10;
/// The largest message that this journal sends.
pub(crate) const MESSAGE_BYTES_MAX: usize = BATCH_BYTES_MAX + RECORD_OVERHEAD_BYTES;
const SEGMENT_BYTES: usize = 256 << 20;
const PAUSE: Duration = Duration::from_millis(100);

/// What a topic was found to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    pub(crate) record_bytes_max: usize,
    pub(crate) min_insync_replicas: usize,
}

/// By topic.
pub(crate) type AllFacts = BTreeMap<Topic, Facts>;

/// Makes what is missing and checks what is there.
pub(crate) fn prepare(
    asker: &Consumer,
    admin: &Admin,
    config: &Config,
    places: &Places,
    deadline: Instant,
) -> Result<AllFacts, OpenError> {
    let mut is_created = false;
    loop {
        let missing = missing(asker, config, places, deadline)?;
        if missing.is_empty() {
            break;
        }
        let name = missing[0].topic.to_string();
        if !config.create_topics {
            return Err(OpenError::NoTopic { topic: name });
        }
        if is_created && Instant::now() >= deadline {
            return Err(OpenError::Kafka {
                operation: "create topics",
                reason: format!("{name} has no leader"),
            });
        }
        if is_created {
            thread::sleep(PAUSE); // The brokers tell each other.
        } else {
            again_until(deadline, || create(admin, config, &missing))?;
            is_created = true;
        }
    }
    check(admin, config, places, deadline)
}

/// A busy controller, one that has just changed, and a broker that has not heard of a topic yet give errors that pass.
fn again_until<T>(deadline: Instant, ask: impl Fn() -> Result<T, OpenError>) -> Result<T, OpenError> {
    let mut is_told = false;
    loop {
        match ask() {
            Err(OpenError::Kafka { operation, reason }) if Instant::now() < deadline => {
                if !is_told {
                    tracing::info!(operation, reason, "waiting for the brokers");
                    is_told = true;
                }
                thread::sleep(PAUSE);
            }
            answer => return answer,
        }
    }
}

#[derive(Debug)]
struct Missing {
    topic: String,
    partitions: u16,
}

fn missing(
    asker: &Consumer,
    config: &Config,
    places: &Places,
    deadline: Instant,
) -> Result<Vec<Missing>, OpenError> {
    let mut missing = Vec::new();
    for topic in Topic::ALL {
        let name = config.topic_name(topic);
        let asked = places.of(topic);
        let ask = || asker.fetch_metadata(Some(&name), config.request_timeout());
        let metadata = patiently(asker, deadline, ask).map_err(|error| OpenError::Unreachable {
            brokers: config.brokers.clone(),
            reason: words(&error, asker.context()),
        })?;
        let found = metadata.topics().iter().find(|t| t.name() == name);
        let partitions = found.map_or(&[][..], |t| t.partitions());
        let error = found.and_then(|t| t.error()).map(RDKafkaErrorCode::from);
        match error {
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)
            | Some(RDKafkaErrorCode::LeaderNotAvailable)
            | None
                if partitions.is_empty() =>
            {
                missing.push(Missing { topic: name, partitions: asked });
            }
            Some(code) => {
                return Err(OpenError::Kafka {
                    operation: "look up topics",
                    reason: format!("{name}: {code}"),
                });
            }
            None if partitions.len() != usize::from(asked) => {
                return Err(OpenError::Partitions { topic: name, found: partitions.len(), asked });
            }
            None => {
                let asked = usize::from(config.min_insync_replicas);
                let found = partitions.iter().map(|partition| partition.replicas().len()).min();
                // Brokers from 4.0 on are content with as many as there are.
                if let Some(found) = found.filter(|found| *found < asked) {
                    return Err(OpenError::Insync { topic: name, found, asked });
                }
            }
        }
    }
    Ok(missing)
}

fn create(admin: &Admin, config: &Config, missing: &[Missing]) -> Result<(), OpenError> {
    let replicas = i32::from(config.replication_factor);
    let min_insync = config.min_insync_replicas.to_string();
    let message_bytes = MESSAGE_BYTES_MAX.to_string();
    let segment_bytes = SEGMENT_BYTES.to_string();
    let new = missing.iter().map(|missing| {
        NewTopic::new(&missing.topic, i32::from(missing.partitions), TopicReplication::Fixed(replicas))
            .set("cleanup.policy", "delete")
            // Records are deleted from here, when every consumer has passed them.
            .set("retention.ms", "-1")
            .set("retention.bytes", "-1")
            .set("min.insync.replicas", &min_insync)
            .set("unclean.leader.election.enable", "false")
            .set("max.message.bytes", &message_bytes)
            .set("segment.bytes", &segment_bytes)
            // When the log took it, by the log's own clock.
            .set("message.timestamp.type", "LogAppendTime")
    });
    let new: Vec<_> = new.collect();
    let timeout = Some(config.request_timeout());
    let options = AdminOptions::new().request_timeout(timeout).operation_timeout(timeout);
    let created = block_on(admin.create_topics(&new, &options)).map_err(failed("create topics"))?;
    for topic in created {
        match topic {
            // Somebody else may start at the same time.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => {
                return Err(OpenError::Kafka {
                    operation: "create topics",
                    reason: format!("{name}: {code}"),
                });
            }
        }
    }
    Ok(())
}

fn check(admin: &Admin, config: &Config, places: &Places, deadline: Instant) -> Result<AllFacts, OpenError> {
    let names: Vec<(Topic, String)> = Topic::ALL.iter().map(|t| (*t, config.topic_name(*t))).collect();
    let described = again_until(deadline, || describe(admin, config, &names))?;
    let mut facts = AllFacts::new();
    for (described, (topic, name)) in described.iter().zip(&names) {
        facts.insert(*topic, judge(described, config, name)?);
    }
    debug_assert!(places.row().iter().all(|place| facts.contains_key(&place.at.topic)));
    Ok(facts)
}

/// In the order of the names.
fn describe(
    admin: &Admin,
    config: &Config,
    names: &[(Topic, String)],
) -> Result<Vec<ConfigResource>, OpenError> {
    let of_topics: Vec<_> = names.iter().map(|(_, name)| ResourceSpecifier::Topic(name)).collect();
    let options = AdminOptions::new().request_timeout(Some(config.request_timeout()));
    let described =
        block_on(admin.describe_configs(&of_topics, &options)).map_err(failed("describe topics"))?;
    let named = described.into_iter().zip(names).map(|(described, (_, name))| {
        let wrong = |reason| OpenError::Kafka { operation: "describe topics", reason };
        let described = described.map_err(|code| wrong(format!("{name}: {code}")))?;
        debug_assert_eq!(described.specifier, OwnedResourceSpecifier::Topic(name.clone()));
        // rdkafka drops the error of a broker that has not heard of the topic yet, or does not show it.
        if described.entries.is_empty() {
            return Err(wrong(format!(
                "a broker says nothing of {name}; it is new, or not shown to this user"
            )));
        }
        Ok(described)
    });
    named.collect()
}

fn judge(described: &ConfigResource, config: &Config, name: &str) -> Result<Facts, OpenError> {
    let said =
        |setting: &str| described.get(setting).and_then(|entry| entry.value.clone()).unwrap_or_default();
    if said("cleanup.policy").contains("compact") {
        return Err(OpenError::Compacted { topic: name.to_owned() });
    }
    let min_insync_replicas = said("min.insync.replicas").parse().unwrap_or(1);
    let asked = usize::from(config.min_insync_replicas);
    if min_insync_replicas < asked {
        let (topic, found) = (name.to_owned(), min_insync_replicas);
        return Err(OpenError::Insync { topic, found, asked });
    }
    let (millis, bytes) = (said("retention.ms"), said("retention.bytes"));
    if millis != "-1" || bytes != "-1" {
        tracing::warn!(
            topic = name,
            retention_ms = millis,
            retention_bytes = bytes,
            "Kafka's own retention is set for this topic and takes records whether they were read or not; \
             set both to -1 to leave it to dunlin"
        );
    }
    let message_bytes = said("max.message.bytes").parse().unwrap_or(1_000_000_usize);
    Ok(Facts { record_bytes_max: message_bytes.saturating_sub(RECORD_OVERHEAD_BYTES), min_insync_replicas })
}

fn failed(operation: &'static str) -> impl Fn(KafkaError) -> OpenError {
    move |error| OpenError::Kafka { operation, reason: error.to_string() }
}
