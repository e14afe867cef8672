//! Partitions that processes share: a consumer group of Kafka's, joined for its membership alone. Records are read as
//! always, so a partition that moves takes nothing with it that was fetched. Commits go through the member, whose
//! generation is the fence: what one commits that the group has gone on without is refused by the broker.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dunlin_journal::{Caller, Offset, Partition, Turn};
use rdkafka::{
    ClientConfig, ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext},
    error::{KafkaError, KafkaResult, RDKafkaErrorCode},
    types::RDKafkaRespErr,
};

use crate::{
    Config,
    client::{Told, held, words},
    places::Places,
    positions::Positions,
};

const POLL: Duration = Duration::from_millis(100);
/// How often and how long a broker is asked how far a partition goes that was given.
const ASKS_MAX: usize = 5;
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// A member hears at its heartbeats that others have come: they wait for it.
const HEARTBEAT_MILLIS_MAX: u64 = 3_000;
const POLL_MILLIS_MAX: u64 = 300_000;

pub(crate) type Member = BaseConsumer<Group>;

/// What a member knows of its group.
pub(crate) struct Group {
    told: Told,
    consumer: String,
    places: Arc<Places>,
    positions: Arc<Positions>,
    caller: Mutex<Caller>,
    /// How long a partition that is to move may take to be released.
    patience: Duration,
}

/// Joins the group in which `consumer` commits its positions.
pub(crate) fn join(
    client: &ClientConfig,
    config: &Config,
    consumer: &str,
    topic: &str,
    places: Arc<Places>,
    positions: Arc<Positions>,
    caller: Caller,
) -> KafkaResult<Member> {
    let patience = Duration::from_secs(config.handover_seconds_max);
    let group = Group {
        told: Told::default(),
        consumer: consumer.to_owned(),
        places,
        positions,
        caller: Mutex::new(caller),
        patience,
    };
    let member: Member = settings(client, config, consumer).create_with_context(group)?;
    member.subscribe(&[topic])?;
    Ok(member)
}

fn settings(client: &ClientConfig, config: &Config, consumer: &str) -> ClientConfig {
    let mut client = client.clone();
    client.set("group.id", format!("{}consumer.{consumer}", config.prefix));
    if !config.member.is_empty() {
        client.set("group.instance.id", &config.member);
    }
    client.set("partition.assignment.strategy", "cooperative-sticky");
    let session_millis = config.session_seconds_max * 1_000;
    client.set("session.timeout.ms", session_millis.to_string());
    client.set("heartbeat.interval.ms", (session_millis / 4).min(HEARTBEAT_MILLIS_MAX).to_string());
    // librdkafka wants it to be no less than a session.
    client.set("max.poll.interval.ms", session_millis.max(POLL_MILLIS_MAX).to_string());
    client.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    client.set("allow.auto.create.topics", "false").set("auto.offset.reset", "latest");
    client.set("queued.min.messages", "1").set("queued.max.messages.kbytes", "64");
    client
}

/// The thread of a member: until it has left, or the journal ends.
pub(crate) fn run(member: Arc<Member>, stop: &AtomicBool) {
    let group = member.context().clone();
    while !stop.load(Ordering::Acquire) && !held(&group.caller).has_left() {
        // Nothing is fetched, as what is given is paused; what goes wrong heals, or is told by the metrics.
        if let Some(Err(error)) = member.poll(POLL) {
            tracing::debug!(consumer = group.consumer, %error, "membership");
        }
        if let Some((error, reason)) = member.client().fatal_error() {
            // Mostly another process of the same name, for whom the group has given this one up.
            tracing::error!(consumer = group.consumer, %error, reason, "thrown out of the group; journal.member is for one process");
            let places = group.positions.held_by(&group.consumer);
            group.tell_lost(&places);
            break;
        }
    }
    if let Err(error) = group.positions.save() {
        tracing::warn!(consumer = group.consumer, %error, "positions are not saved before leaving");
    }
    group.positions.leave(&group.consumer);
    // The last handle closes the client, which gives back what a member without a name of its own holds.
    drop(member);
}

impl Group {
    fn places_of(&self, partitions: &TopicPartitionList) -> Vec<usize> {
        let found = |(topic, partition): &(String, i32)| self.places.find_named(topic, *partition);
        partitions.to_topic_map().keys().filter_map(found).collect()
    }

    fn partitions_of(&self, places: &[usize]) -> Vec<Partition> {
        places.iter().map(|place| self.places.row()[*place].at).collect()
    }

    fn given(&self, member: &Member, partitions: &TopicPartitionList) -> KafkaResult<()> {
        member.incremental_assign(partitions)?;
        // Records are read elsewhere.
        member.pause(partitions)?;
        let places = self.places_of(partitions);
        for place in &places {
            self.come_up(member, *place);
        }
        self.positions.hold(&self.consumer, &places);
        let caller = held(&self.caller);
        for at in self.partitions_of(&places) {
            tracing::info!(consumer = self.consumer, partition = %at, "given");
            caller.call(Turn::Given(at));
        }
        Ok(())
    }

    /// Whoever had the partition before may have written what this process has not heard of yet: it goes on after that.
    fn come_up(&self, member: &Member, place: usize) {
        let place = &self.places.row()[place];
        for _ in 0..ASKS_MAX {
            match member.fetch_watermarks(&place.topic, place.partition(), ASK_TIMEOUT) {
                Ok((_, high)) => {
                    place.reaches(Offset(high.max(0) as u64));
                    return;
                }
                Err(error) => {
                    tracing::warn!(consumer = self.consumer, partition = %place.at, %error, "how far it goes is not known yet");
                }
            }
        }
    }

    /// What is not released in time is given away all the same: its holder hears that it was lost.
    fn asked(&self, member: &Member, partitions: &TopicPartitionList) -> KafkaResult<()> {
        let places = self.places_of(partitions);
        let asked = self.partitions_of(&places);
        let caller = held(&self.caller);
        if !caller.ask(&asked, self.patience) {
            tracing::error!(consumer = self.consumer, ?asked, "not released in time");
            asked.iter().for_each(|at| caller.call(Turn::Lost(*at)));
        }
        drop(caller);
        let commit = |offsets: &TopicPartitionList| member.commit(offsets, CommitMode::Sync);
        if let Err(error) = self.positions.save_of(&self.consumer, commit) {
            tracing::warn!(consumer = self.consumer, %error, "positions are not saved before a partition moves");
        }
        self.positions.let_go(&self.consumer, &places);
        for at in &asked {
            tracing::info!(consumer = self.consumer, partition = %at, "released");
        }
        member.incremental_unassign(partitions)
    }

    fn lost(&self, member: &Member, partitions: &TopicPartitionList) -> KafkaResult<()> {
        self.tell_lost(&self.places_of(partitions));
        member.incremental_unassign(partitions)
    }

    fn tell_lost(&self, places: &[usize]) {
        self.positions.let_go(&self.consumer, places);
        let caller = held(&self.caller);
        for at in self.partitions_of(places) {
            tracing::warn!(consumer = self.consumer, partition = %at, "lost: the group has gone on without this process");
            caller.call(Turn::Lost(at));
        }
    }
}

impl ClientContext for Group {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.told.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.told.error(error, reason);
    }
}

impl ConsumerContext for Group {
    fn rebalance(
        &self,
        member: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        let done = match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.given(member, partitions),
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS if !member.assignment_lost() => {
                self.asked(member, partitions)
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => self.lost(member, partitions),
            error => {
                let error: RDKafkaErrorCode = error.into();
                tracing::error!(consumer = self.consumer, %error, "the group could not divide its partitions");
                self.lost(member, partitions)
            }
        };
        if let Err(error) = done {
            let error = words(&error, &self.told);
            tracing::error!(consumer = self.consumer, error, "the group's division was not taken up");
        }
    }
}

/// What members hold, by consumer. Nobody commits for a partition that it does not hold.
#[derive(Debug, Default)]
pub(crate) struct Holdings(std::collections::HashMap<String, BTreeSet<usize>>);

impl Holdings {
    pub(crate) fn join(&mut self, consumer: &str) {
        self.0.entry(consumer.to_owned()).or_default();
    }

    pub(crate) fn hold(&mut self, consumer: &str, places: &[usize]) {
        self.0.entry(consumer.to_owned()).or_default().extend(places);
    }

    pub(crate) fn let_go(&mut self, consumer: &str, places: &[usize]) {
        if let Some(held) = self.0.get_mut(consumer) {
            places.iter().for_each(|place| _ = held.remove(place));
        }
    }

    pub(crate) fn of(&self, consumer: &str) -> Vec<usize> {
        self.0.get(consumer).into_iter().flatten().copied().collect()
    }

    pub(crate) fn leave(&mut self, consumer: &str) {
        self.0.remove(consumer);
    }

    /// Whoever has not joined holds everything.
    pub(crate) fn permit(&self, consumer: &str, place: usize) -> bool {
        self.0.get(consumer).is_none_or(|held| held.contains(&place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_can_be_made_with_every_session_that_a_configuration_may_have() {
        for session_seconds_max in [1, 6, 10, 300, 301, 1_800] {
            let config = Config { session_seconds_max, ..Config::default() };
            config.check().unwrap();
            let made = settings(&ClientConfig::new(), &config, "pipeline").create::<BaseConsumer>();
            assert!(made.is_ok(), "{session_seconds_max} s: {:?}", made.err());
        }
    }
}
