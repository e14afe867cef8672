//! How far each consumer has got: the committed offsets of a consumer group of its name, so that Kafka's own tools and
//! those that watch lag show it. A commit changes what this process knows; the thread that watches saves it, and looks
//! at what other processes have committed.

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
    members::{Holdings, Member},
    places::Places,
};

/// Kafka forgets the offsets of a group that commits nothing for a week; all are committed anew more often.
const ANEW_EVERY: Duration = Duration::from_secs(3600);

/// Begins the names of groups that are there for their membership alone.
const MEMBERS_ALONE: &str = "role.";

#[derive(Debug)]
pub(crate) struct Positions {
    places: Arc<Places>,
    client: ClientConfig,
    /// Before the names of groups.
    prefix: String,
    /// Of this process.
    own: Mutex<Own>,
    /// What Kafka has; locked while it is told or asked.
    saved: Mutex<Saved>,
}

#[derive(Debug, Default)]
struct Own {
    by_consumer: ByConsumer,
    holdings: Holdings,
}

type ByConsumer = BTreeMap<String, HashMap<usize, Offset>>;

struct Saved {
    by_consumer: ByConsumer,
    /// To ask how far a consumer is, and to commit for one that this process has for itself.
    groups: HashMap<String, Arc<Consumer>>,
    /// To commit for one whose partitions are shared.
    members: HashMap<String, Arc<Member>>,
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
        let saved = Saved {
            by_consumer: ByConsumer::new(),
            groups: HashMap::new(),
            members: HashMap::new(),
            anew: Instant::now(),
        };
        let positions = Self { places, client, prefix, own: Mutex::default(), saved: Mutex::new(saved) };
        positions.look(asker, timeout)?;
        Ok(positions)
    }

    /// What all groups of this prefix have committed by now, whoever works for them.
    pub(crate) fn look(&self, asker: &Consumer, timeout: Duration) -> KafkaResult<()> {
        let listed = asker.fetch_group_list(None, timeout)?;
        let consumers = listed.groups().iter().filter_map(|group| group.name().strip_prefix(&self.prefix));
        // Groups of those who commit nothing.
        let consumers = consumers.filter(|consumer| !consumer.starts_with(MEMBERS_ALONE));
        for consumer in consumers {
            let mut asked = TopicPartitionList::new();
            for place in self.places.row() {
                asked.add_partition(&place.topic, place.partition());
            }
            let committed = self.group(consumer)?.committed_offsets(asked, timeout)?;
            let of = committed.elements().into_iter().filter_map(|element| {
                let KafkaOffset::Offset(offset) = element.offset() else { return None };
                let place = self.places.find_named(element.topic(), element.partition())?;
                Some((place, Offset(u64::try_from(offset).ok()?)))
            });
            let of: HashMap<usize, Offset> = of.collect();
            if !of.is_empty() {
                held(&self.saved).by_consumer.insert(consumer.to_owned(), of);
            }
        }
        Ok(())
    }

    fn group(&self, consumer: &str) -> KafkaResult<Arc<Consumer>> {
        if let Some(group) = held(&self.saved).groups.get(consumer) {
            return Ok(group.clone());
        }
        let group = Arc::new(client::consumer(&self.client, &format!("{}{consumer}", self.prefix))?);
        held(&self.saved).groups.insert(consumer.to_owned(), group.clone());
        Ok(group)
    }

    pub(crate) fn get(&self, consumer: &str, place: usize) -> Option<Offset> {
        let of = |by: &ByConsumer| by.get(consumer)?.get(&place).copied();
        // One after the other: the lock of what Kafka has is held while it is asked, and that of our own is not.
        let own = of(&held(&self.own).by_consumer);
        own.or_else(|| of(&held(&self.saved).by_consumer))
    }

    /// False if the partition is another's.
    pub(crate) fn set(&self, consumer: &str, place: usize, position: Offset) -> bool {
        let own = &mut *held(&self.own);
        if !own.holdings.permit(consumer, place) {
            return false;
        }
        match own.by_consumer.get_mut(consumer) {
            Some(places) => _ = places.insert(place, position),
            None => _ = own.by_consumer.insert(consumer.to_owned(), HashMap::from([(place, position)])),
        }
        true
    }

    /// From here on the consumer holds what it is given, and commits as this member.
    pub(crate) fn join(&self, consumer: &str, member: Arc<Member>) {
        held(&self.saved).members.insert(consumer.to_owned(), member);
    }

    /// Before a member is made, which may be given something at once.
    pub(crate) fn expect(&self, consumer: &str) {
        held(&self.own).holdings.join(consumer);
    }

    pub(crate) fn hold(&self, consumer: &str, places: &[usize]) {
        held(&self.own).holdings.hold(consumer, places);
    }

    pub(crate) fn held_by(&self, consumer: &str) -> Vec<usize> {
        held(&self.own).holdings.of(consumer)
    }

    pub(crate) fn let_go(&self, consumer: &str, places: &[usize]) {
        let own = &mut *held(&self.own);
        own.holdings.let_go(consumer, places);
        if let Some(of) = own.by_consumer.get_mut(consumer) {
            places.iter().for_each(|place| _ = of.remove(place));
        }
    }

    pub(crate) fn leave(&self, consumer: &str) {
        let own = &mut *held(&self.own);
        own.holdings.leave(consumer);
        own.by_consumer.remove(consumer);
        held(&self.saved).members.remove(consumer);
    }

    /// Tells Kafka what has changed. Every consumer gets its turn, whatever becomes of the others.
    pub(crate) fn save(&self) -> KafkaResult<()> {
        let mut outcome = Ok(());
        let is_anew = held(&self.saved).anew.elapsed() >= ANEW_EVERY;
        let consumers: Vec<String> = held(&self.own).by_consumer.keys().cloned().collect();
        for consumer in consumers {
            let member = held(&self.saved).members.get(&consumer).cloned();
            let saved = match member {
                Some(member) => {
                    self.save_changed(&consumer, is_anew, |offsets| member.commit(offsets, CommitMode::Sync))
                }
                None => self.group(&consumer).and_then(|group| {
                    self.save_changed(&consumer, is_anew, |offsets| group.commit(offsets, CommitMode::Sync))
                }),
            };
            outcome = outcome.and(saved);
        }
        if is_anew && outcome.is_ok() {
            held(&self.saved).anew = Instant::now();
        }
        outcome
    }

    /// Tells Kafka what has changed of one consumer.
    pub(crate) fn save_of(
        &self,
        consumer: &str,
        commit: impl FnOnce(&TopicPartitionList) -> KafkaResult<()>,
    ) -> KafkaResult<()> {
        self.save_changed(consumer, false, commit)
    }

    fn save_changed(
        &self,
        consumer: &str,
        is_anew: bool,
        commit: impl FnOnce(&TopicPartitionList) -> KafkaResult<()>,
    ) -> KafkaResult<()> {
        let own = held(&self.own).by_consumer.get(consumer).cloned().unwrap_or_default();
        let changed: Vec<(usize, Offset)> = {
            let saved = held(&self.saved);
            let known = saved.by_consumer.get(consumer);
            let is_new = |(place, position): &(usize, Offset)| {
                is_anew || known.and_then(|known| known.get(place)) != Some(position)
            };
            own.into_iter().filter(is_new).collect()
        };
        if changed.is_empty() {
            return Ok(());
        }
        let mut offsets = TopicPartitionList::new();
        for (place, position) in &changed {
            let place = &self.places.row()[*place];
            let offset = KafkaOffset::Offset(i64::try_from(position.0).unwrap_or(i64::MAX));
            offsets.add_partition_offset(&place.topic, place.partition(), offset)?;
        }
        commit(&offsets)?;
        held(&self.saved).by_consumer.entry(consumer.to_owned()).or_default().extend(changed);
        Ok(())
    }

    /// The smallest saved position in each partition that any consumer has committed in.
    pub(crate) fn least(&self) -> HashMap<usize, Offset> {
        let own: Vec<(String, usize)> = {
            let own = held(&self.own);
            let of = |(consumer, places): (&String, &HashMap<usize, Offset>)| {
                places.keys().map(|place| (consumer.clone(), *place)).collect::<Vec<_>>()
            };
            own.by_consumer.iter().flat_map(of).collect()
        };
        let saved = held(&self.saved);
        let mut least = HashMap::new();
        let mut hold_back = |place: usize, position: Offset| {
            least.entry(place).and_modify(|p: &mut Offset| *p = (*p).min(position)).or_insert(position);
        };
        for (place, position) in saved.by_consumer.values().flatten() {
            hold_back(*place, *position);
        }
        for (consumer, place) in own {
            // A first commit that Kafka does not have yet holds everything back until it has.
            if saved.by_consumer.get(&consumer).is_none_or(|places| !places.contains_key(&place)) {
                hold_back(place, Offset::ZERO);
            }
        }
        least
    }

    /// Every consumer, place and position.
    pub(crate) fn all(&self) -> Vec<(String, usize, Offset)> {
        let mut all = held(&self.saved).by_consumer.clone();
        for (consumer, places) in &held(&self.own).by_consumer {
            all.entry(consumer.clone()).or_default().extend(places);
        }
        let of = |(consumer, places): (String, HashMap<usize, Offset>)| {
            places.into_iter().map(move |(place, position)| (consumer.clone(), place, position))
        };
        all.into_iter().flat_map(of).collect()
    }
}
