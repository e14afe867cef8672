use std::{
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};

use dunlin_journal::{Offset, Partition, Topic};
use serde::{Deserialize, Serialize};

use crate::{partitions::Partitions, side_file};

/// How far each consumer has got. Saved by the housekeeper, not by the commit.
#[derive(Debug)]
pub(crate) struct Positions {
    path: PathBuf,
    partitions: Partitions,
    now: Mutex<Now>,
    /// What is in the file; locked while it is written, so that an older state never replaces a newer one.
    saved: Mutex<ByConsumer>,
}

#[derive(Debug)]
struct Now {
    by_consumer: ByConsumer,
    is_saved: bool,
}

pub(crate) type ByConsumer = BTreeMap<String, HashMap<usize, Offset>>;

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    format: u32,
    positions: BTreeMap<String, BTreeMap<String, u64>>,
}

const FORMAT: u32 = 1;

impl Positions {
    /// `Ok(Err(_))` says why the file cannot be used.
    pub(crate) fn load(path: &Path, partitions: Partitions) -> io::Result<Result<Self, String>> {
        let by_consumer = match side_file::load(path)? {
            None => ByConsumer::new(),
            Some(None) => return Ok(Err("its checksum does not match".into())),
            Some(Some(bytes)) => match decode(&bytes, partitions) {
                Ok(by_consumer) => by_consumer,
                Err(reason) => return Ok(Err(reason)),
            },
        };
        let now = Mutex::new(Now { by_consumer: by_consumer.clone(), is_saved: true });
        Ok(Ok(Self { path: path.to_owned(), partitions, now, saved: Mutex::new(by_consumer) }))
    }

    pub(crate) fn get(&self, consumer: &str, place: usize) -> Option<Offset> {
        lock(&self.now).by_consumer.get(consumer)?.get(&place).copied()
    }

    pub(crate) fn set(&self, consumer: &str, place: usize, position: Offset) {
        let mut now = lock(&self.now);
        if !now.by_consumer.contains_key(consumer) {
            now.by_consumer.insert(consumer.to_owned(), HashMap::new());
        }
        if let Some(places) = now.by_consumer.get_mut(consumer) {
            places.insert(place, position);
        }
        now.is_saved = false;
    }

    pub(crate) fn save(&self) -> io::Result<()> {
        let mut saved = lock(&self.saved);
        let by_consumer = {
            let mut now = lock(&self.now);
            if now.is_saved {
                return Ok(());
            }
            now.is_saved = true;
            now.by_consumer.clone()
        };
        if let Err(error) = side_file::store(&self.path, &encode(&by_consumer, self.partitions)) {
            lock(&self.now).is_saved = false;
            return Err(error);
        }
        *saved = by_consumer;
        Ok(())
    }

    /// The smallest saved position in each partition that any consumer has committed in.
    pub(crate) fn least(&self) -> HashMap<usize, Offset> {
        let saved = lock(&self.saved);
        let now = lock(&self.now);
        let mut least = HashMap::new();
        for (consumer, places) in &now.by_consumer {
            for place in places.keys() {
                // A first commit that is not saved yet holds everything back until it is.
                let position =
                    saved.get(consumer).and_then(|p| p.get(place)).copied().unwrap_or(Offset::ZERO);
                least.entry(*place).and_modify(|p: &mut Offset| *p = (*p).min(position)).or_insert(position);
            }
        }
        least
    }
}

pub(crate) fn encode(by_consumer: &ByConsumer, partitions: Partitions) -> Vec<u8> {
    let name = |place: usize| {
        let found = all(partitions).find(|p| partitions.place(*p) == Some(place));
        found.map(|p| p.to_string()).unwrap_or_default()
    };
    let positions = by_consumer
        .iter()
        .map(|(consumer, places)| (consumer.clone(), places.iter().map(|(p, o)| (name(*p), o.0)).collect()))
        .collect();
    serde_json::to_vec_pretty(&Stored { format: FORMAT, positions }).unwrap_or_default()
}

pub(crate) fn decode(bytes: &[u8], partitions: Partitions) -> Result<ByConsumer, String> {
    let stored: Stored = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if stored.format != FORMAT {
        return Err(format!("it has format {}, this version knows {FORMAT}", stored.format));
    }
    let place = |name: &str| {
        let found = all(partitions).find(|p| p.to_string() == name).and_then(|p| partitions.place(p));
        found.ok_or_else(|| format!("it names a partition {name} that does not exist"))
    };
    let consumer = |(consumer, positions): (String, BTreeMap<String, u64>)| {
        let places = positions.into_iter().map(|(name, position)| Ok((place(&name)?, Offset(position))));
        Ok((consumer, places.collect::<Result<_, String>>()?))
    };
    stored.positions.into_iter().map(consumer).collect()
}

fn all(partitions: Partitions) -> impl Iterator<Item = Partition> {
    Topic::ALL.into_iter().flat_map(move |t| (0..partitions.of(t)).map(move |i| Partition::new(t, i)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
