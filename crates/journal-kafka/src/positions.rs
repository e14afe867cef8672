//! How far each consumer has got: the committed offsets of a consumer group of its name, so that Kafka's own tools and
//! those that watch lag show it. A commit changes what this process knows; the thread that watches saves it.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use dunlin_journal::Offset;
use rdkafka::{
    ClientConfig, Offset as KafkaOffset, TopicPartitionList,
    consumer::{CommitMode, Consumer as _},
    error::KafkaResult,
};

use crate::{
    client::{self, Consumer, held},
    places::Places,
};

/// Kafka forgets the offsets of a group that commits nothing for a week; all are committed anew more often.
const ANEW_EVERY: Duration = Duration::from_secs(3600);

#[derive(Debug)]
pub(crate) struct Positions {
    places: Arc<Places>,
    client: ClientConfig,
    /// Before the names of groups.
    prefix: String,
    now: Mutex<Now>,
    /// What Kafka has; locked while it is told.
    saved: Mutex<Saved>,
}

#[derive(Debug, Default)]
struct Now {
    by_consumer: ByConsumer,
}

type ByConsumer = BTreeMap<String, HashMap<usize, Offset>>;

struct Saved {
    by_consumer: ByConsumer,
    groups: HashMap<String, Consumer>,
    anew: Instant,
}

impl std::fmt::Debug for Saved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saved").field("by_consumer", &self.by_consumer).finish_non_exhaustive()
    }
}

impl Positions {
    /// What all groups of this prefix have committed.
    pub(crate) fn load(
        asker: &Consumer,
        places: Arc<Places>,
        client: ClientConfig,
        prefix: String,
        timeout: Duration,
    ) -> KafkaResult<Self> {
        let positions = Self {
            places,
            client,
            prefix,
            now: Mutex::default(),
            saved: Mutex::new(Saved {
                by_consumer: ByConsumer::new(),
                groups: HashMap::new(),
                anew: Instant::now(),
            }),
        };
        let listed = asker.fetch_group_list(None, timeout)?;
        let consumers =
            listed.groups().iter().filter_map(|group| group.name().strip_prefix(&positions.prefix));
        let mut saved = held(&positions.saved);
        for consumer in consumers {
            let group = client::consumer(&positions.client, &format!("{}{consumer}", positions.prefix))?;
            let mut asked = TopicPartitionList::new();
            for place in positions.places.row() {
                asked.add_partition(&place.topic, place.partition());
            }
            let committed = group.committed_offsets(asked, timeout)?;
            let of = committed.elements().into_iter().filter_map(|element| {
                let KafkaOffset::Offset(offset) = element.offset() else { return None };
                let place = positions.places.find_named(element.topic(), element.partition())?;
                Some((place, Offset(u64::try_from(offset).ok()?)))
            });
            let of: HashMap<usize, Offset> = of.collect();
            if !of.is_empty() {
                saved.by_consumer.insert(consumer.to_owned(), of);
                saved.groups.insert(consumer.to_owned(), group);
            }
        }
        held(&positions.now).by_consumer = saved.by_consumer.clone();
        drop(saved);
        Ok(positions)
    }

    pub(crate) fn get(&self, consumer: &str, place: usize) -> Option<Offset> {
        held(&self.now).by_consumer.get(consumer)?.get(&place).copied()
    }

    pub(crate) fn set(&self, consumer: &str, place: usize, position: Offset) {
        let mut now = held(&self.now);
        if !now.by_consumer.contains_key(consumer) {
            now.by_consumer.insert(consumer.to_owned(), HashMap::new());
        }
        if let Some(places) = now.by_consumer.get_mut(consumer) {
            places.insert(place, position);
        }
    }

    /// Tells Kafka what has changed. Every consumer gets its turn, whatever becomes of the others.
    pub(crate) fn save(&self) -> KafkaResult<()> {
        let mut saved = held(&self.saved);
        let now = held(&self.now).by_consumer.clone();
        let is_anew = saved.anew.elapsed() >= ANEW_EVERY;
        let mut outcome = Ok(());
        for (consumer, places) in now {
            let known = saved.by_consumer.get(&consumer);
            let is_new = |(place, position): &(&usize, &Offset)| {
                is_anew || known.and_then(|known| known.get(*place)) != Some(*position)
            };
            let changed: Vec<(usize, Offset)> =
                places.iter().filter(is_new).map(|(place, position)| (*place, *position)).collect();
            if changed.is_empty() {
                continue;
            }
            match self.commit(&mut saved, &consumer, &changed) {
                Ok(()) => saved.by_consumer.entry(consumer).or_default().extend(changed),
                Err(error) => outcome = Err(error),
            }
        }
        if is_anew && outcome.is_ok() {
            saved.anew = Instant::now();
        }
        outcome
    }

    fn commit(&self, saved: &mut Saved, consumer: &str, changed: &[(usize, Offset)]) -> KafkaResult<()> {
        let mut offsets = TopicPartitionList::new();
        for (place, position) in changed {
            let place = &self.places.row()[*place];
            let offset = KafkaOffset::Offset(i64::try_from(position.0).unwrap_or(i64::MAX));
            offsets.add_partition_offset(&place.topic, place.partition(), offset)?;
        }
        if !saved.groups.contains_key(consumer) {
            let group = client::consumer(&self.client, &format!("{}{consumer}", self.prefix))?;
            saved.groups.insert(consumer.to_owned(), group);
        }
        let Some(group) = saved.groups.get(consumer) else { return Ok(()) };
        group.commit(&offsets, CommitMode::Sync)
    }

    /// The smallest saved position in each partition that any consumer has committed in.
    pub(crate) fn least(&self) -> HashMap<usize, Offset> {
        let saved = held(&self.saved);
        let now = held(&self.now);
        let mut least = HashMap::new();
        for (consumer, places) in &now.by_consumer {
            for place in places.keys() {
                // A first commit that Kafka does not have yet holds everything back until it has.
                let position = saved.by_consumer.get(consumer).and_then(|p| p.get(place)).copied();
                let position = position.unwrap_or(Offset::ZERO);
                least.entry(*place).and_modify(|p: &mut Offset| *p = (*p).min(position)).or_insert(position);
            }
        }
        least
    }

    /// Every consumer, place and position.
    pub(crate) fn all(&self) -> Vec<(String, usize, Offset)> {
        let now = held(&self.now);
        let of = |(consumer, places): (&String, &HashMap<usize, Offset>)| {
            places.iter().map(|(place, position)| (consumer.clone(), *place, *position)).collect::<Vec<_>>()
        };
        now.by_consumer.iter().flat_map(of).collect()
    }
}
