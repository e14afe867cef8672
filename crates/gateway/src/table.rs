//! What is remembered of many, within a bound.

use std::{hash::Hash, mem};

use hashbrown::HashMap;

/// At most so many entries. Those that nobody changed for longest are forgotten, many at a time: what was changed
/// since the young half was last full is kept.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half_max: usize,
}

impl<K: Hash + Eq, V: Default> Table<K, V> {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half_max: (entries_max / 2).max(1) }
    }

    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    /// The entry, new if there is none, to be changed.
    pub(crate) fn entry(&mut self, key: K) -> &mut V {
        if !self.young.contains_key(&key) && self.young.len() >= self.half_max {
            let kept = self.old.remove(&key);
            self.old.clear();
            mem::swap(&mut self.young, &mut self.old);
            return self.young.entry(key).or_insert(kept.unwrap_or_default());
        }
        let old = &mut self.old;
        self.young.entry(key).or_insert_with_key(|key| old.remove(key).unwrap_or_default())
    }

    pub(crate) fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }

    pub(crate) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_and_what_is_used_stays() {
        let mut table = Table::<u32, u32>::new(100);
        *table.entry(7) = 70;
        for key in 1_000..100_000 {
            *table.entry(key) = key;
            *table.entry(7) += 1;
            assert!(table.len() <= 100);
        }
        assert_eq!(table.get(&7), Some(&(70 + 99_000)));
        assert_eq!(table.get(&99_960), Some(&99_960));
        assert_eq!(table.get(&1_000), None);
        table.remove(&7);
        assert_eq!(table.get(&7), None);
    }
}
