//! What nobody waits for: whether the brokers can take records, from where they can be read, positions on their way to
//! Kafka, retention. Each step looks at what is, and may be run again.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use dunlin_journal::{Health, Offset, Recovery, Topic};
use rdkafka::consumer::Consumer as _;
use tokio::sync::watch;

use crate::{
    append::Appender,
    client::{Consumer, held, words},
    cold::Cold,
    metrics::Metrics,
    places::Places,
    positions::Positions,
    retention::Retention,
    tail::Tail,
    topics::AllFacts,
};

const LOOK_EVERY: Duration = Duration::from_secs(1);
const OLDEST_EVERY: Duration = Duration::from_secs(5);
const TRIM_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(crate) struct Watch {
    pub(crate) places: Arc<Places>,
    pub(crate) topics: Vec<(Topic, String)>,
    pub(crate) facts: AllFacts,
    pub(crate) appender: Arc<Appender>,
    pub(crate) cold: Arc<Cold>,
    pub(crate) tail: Arc<Tail>,
    pub(crate) progress: watch::Sender<u64>,
    pub(crate) positions: Arc<Positions>,
    pub(crate) retention: Arc<Retention>,
    pub(crate) stalled_after: Duration,
    pub(crate) timeout: Duration,
    /// Why appends cannot succeed, as far as the brokers say.
    pub(crate) trouble: Mutex<Option<String>>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Watch {
    /// Until it is told to stop, or the journal was closed and everything is done. Then the last positions are saved.
    pub(crate) fn run(&self, asker: &Consumer, stop: &AtomicBool) {
        let (mut oldest_looked, mut trimmed) = (Instant::now(), Instant::now());
        let is_over = &|| stop.load(Ordering::Acquire) || self.appender.is_closed();
        while !is_over() {
            self.look(asker);
            self.save();
            if oldest_looked.elapsed() >= OLDEST_EVERY {
                oldest_looked = Instant::now();
                self.find_oldest(asker, is_over);
                if let Err(error) = self.positions.look(asker, self.timeout) {
                    tracing::debug!(%error, "how far others are is not known");
                }
                self.cold.forget_idle();
            }
            if trimmed.elapsed() >= TRIM_EVERY {
                trimmed = Instant::now();
                if let Err(error) = self.retention.trim() {
                    tracing::warn!(
                        error = words(&error, asker.context()),
                        "the journal's oldest records were not deleted"
                    );
                }
            }
            self.show_lag();
            if !is_over() {
                thread::park_timeout(LOOK_EVERY);
            }
        }
        // Every append has an end, as each fails after a while.
        while !stop.load(Ordering::Acquire) && !self.appender.emptied(LOOK_EVERY) {}
        self.save();
    }

    pub(crate) fn health(&self) -> Health {
        if self.appender.is_closed() {
            return Health::Closed;
        }
        let stuck = self.appender.stuck_for();
        let is_stuck = (stuck >= self.stalled_after)
            .then(|| format!("the brokers have acknowledged nothing for {} s", stuck.as_secs()));
        match held(&self.trouble).clone().or(is_stuck) {
            Some(reason) => Health::Refusing { reason, recovery: Recovery::Reopen },
            None => Health::Writable,
        }
    }

    /// Leaders and replicas of every partition.
    fn look(&self, asker: &Consumer) {
        let (mut leaderless, mut below, mut behind) = (0, 0, 0);
        let mut trouble = None;
        for (topic, name) in &self.topics {
            let metadata = match asker.fetch_metadata(Some(name), self.timeout) {
                Ok(metadata) => metadata,
                Err(error) => {
                    trouble = Some(format!("no broker answers: {}", words(&error, asker.context())));
                    break;
                }
            };
            let needed = self.facts.get(topic).map_or(1, |facts| facts.min_insync_replicas);
            let partitions = metadata.topics().iter().flat_map(|t| t.partitions());
            for partition in partitions {
                let (insync, replicas) = (partition.isr().len(), partition.replicas().len());
                behind += i64::from(insync < replicas);
                if partition.leader() < 0 {
                    leaderless += 1;
                    trouble.get_or_insert(format!("{name}/{} has no leader", partition.id()));
                } else if insync < needed {
                    below += 1;
                    trouble.get_or_insert(format!(
                        "{name}/{} has {insync} replicas in sync, and acknowledges with {needed}",
                        partition.id()
                    ));
                }
            }
        }
        self.metrics.partitions_without_leader.set(leaderless);
        self.metrics.partitions_below_min_isr.set(below);
        self.metrics.partitions_under_replicated.set(behind);
        self.metrics.stuck_seconds.set(self.appender.stuck_for().as_secs() as i64);
        let mut known = held(&self.trouble);
        if *known != trouble {
            match &trouble {
                Some(reason) => tracing::error!(reason, "Kafka takes no records"),
                None => tracing::info!("Kafka takes records again"),
            }
            *known = trouble;
        }
        drop(known);
        self.metrics.writable.set(i64::from(self.health() == Health::Writable));
    }

    fn find_oldest(&self, asker: &Consumer, is_over: impl Fn() -> bool) {
        for (n, place) in self.places.row().iter().enumerate().take_while(|_| !is_over()) {
            match asker.fetch_watermarks(&place.topic, place.partition(), self.timeout) {
                Ok((low, high)) => {
                    // Where the end is followed, that says how far it is.
                    if !self.tail.follows(n) && place.reaches(Offset(high.max(0) as u64)) {
                        self.progress.send_modify(|n| *n += 1);
                    }
                    place.starts_at(Offset(low.max(0) as u64));
                }
                Err(_) => return, // `look` says it.
            }
        }
    }

    fn save(&self) {
        if let Err(error) = self.positions.save() {
            tracing::warn!(%error, "consumers' positions are not saved");
        }
    }

    fn show_lag(&self) {
        for (consumer, place, position) in self.positions.all() {
            let place = &self.places.row()[place];
            let lag = place.extent().next.0.saturating_sub(position.0);
            self.metrics.lag(consumer, place.at.to_string(), lag);
        }
    }
}
