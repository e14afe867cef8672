//! The last sightings of one kind of one device, oldest first, found by their key.

/// What is known of one sighting, in 64 bits: whether it is of a repetition whose first delivery has not come yet (1),
/// its stretch of offsets (23), its tick of receive time (40). Stretch and tick wrap around; the owner keeps nothing long enough for that to be mistaken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sighting(pub(super) u64);

const TICK_BITS: u32 = 40;
const STRETCH_BITS: u32 = 23;
/// Microseconds of a tick: a power of two, and far less than a device needs to hear an answer and speak again.
const TICK_MICROS: i64 = 64;
/// How long a span of ticks may be told forwards and backwards.
pub(super) const TICKS_MAX: i64 = 1 << (TICK_BITS - 1);
/// Stretches that can be told apart.
pub(super) const STRETCHES_APART: u64 = 1 << STRETCH_BITS;

impl Sighting {
    pub(super) fn new(stretch: u64, received_micros: i64) -> Self {
        let tick = received_micros.div_euclid(TICK_MICROS) as u64 & ((1 << TICK_BITS) - 1);
        let stretch = stretch & (STRETCHES_APART - 1);
        Self(stretch << TICK_BITS | tick)
    }

    /// The same, of a repetition whose first delivery has not come yet.
    pub(super) fn early(self) -> Self {
        Self(self.0 | 1 << 63)
    }

    pub(super) fn is_early(self) -> bool {
        self.0 >> 63 == 1
    }

    /// Ticks from `earlier` to this one; negative if it was received before it.
    pub(super) fn ticks_since(self, earlier: Self) -> i64 {
        let unused = 64 - TICK_BITS;
        (self.0.wrapping_sub(earlier.0) << unused) as i64 >> unused
    }

    /// Stretches from `first`, which is not after this one.
    pub(super) fn stretches_after(self, first: u64) -> u64 {
        stretches_between(first, self.0 >> TICK_BITS)
    }
}

fn stretches_between(first: u64, last: u64) -> u64 {
    last.wrapping_sub(first) & (STRETCHES_APART - 1)
}

/// Ticks of a duration.
pub(super) fn ticks(duration: std::time::Duration) -> i64 {
    let ticks = duration.as_micros() / TICK_MICROS as u128;
    i64::try_from(ticks).unwrap_or(i64::MAX).min(TICKS_MAX)
}

/// Four slots share a word of tags, the low 16 bits of their keys, so that a search reads little.
const TAGS: usize = 4;
/// Words of tags looked at together.
const GROUP: usize = 8;
/// From this size on a ring grows by as much, not to twice its size.
const GROWTH: usize = 32;

#[derive(Debug, Default)]
pub(super) struct Ring {
    /// The tags of all slots, then key and sighting of each.
    words: Box<[u64]>,
    /// The stretch of the oldest, here as well, so that who looks for old ones need not follow the pointer.
    stretch: u32,
    /// Slot of the oldest.
    oldest: u16,
    len: u16,
}

impl Ring {
    pub(super) fn len(&self) -> usize {
        usize::from(self.len)
    }

    fn slots(&self) -> usize {
        self.words.len() / (1 + 2 * TAGS) * TAGS
    }

    /// Adds the newest; beyond `len_max` the oldest goes and is returned.
    pub(super) fn push(&mut self, key: u64, sighting: Sighting, len_max: usize) -> Option<Sighting> {
        let gone = if self.len() >= len_max { self.pop() } else { None };
        if self.len() == self.slots() {
            self.resize(slots_for(self.len() + 1));
        }
        self.put(self.len(), key, sighting);
        self.len += 1;
        if self.len == 1 {
            self.note_oldest();
        }
        gone
    }

    /// Whether the oldest is of one of so many stretches from `first` on.
    pub(super) fn begins_within(&self, first: u64, stretches: u64) -> bool {
        self.len > 0 && stretches_between(first, self.stretch.into()) < stretches
    }

    pub(super) fn pop(&mut self) -> Option<Sighting> {
        if self.len == 0 {
            return None;
        }
        let (_, oldest) = self.get(0);
        self.oldest = self.slot(1) as u16;
        self.len -= 1;
        if self.len > 0 {
            self.note_oldest();
        }
        Some(oldest)
    }

    fn note_oldest(&mut self) {
        self.stretch = self.get(0).1.stretches_after(0) as u32;
    }

    /// The newest sighting of a key.
    pub(super) fn newest(&self, key: u64) -> Option<Sighting> {
        let slots = self.slots();
        let (tags, kept) = self.words.split_at(slots / TAGS);
        let wanted = u64::from(key as u16) * 0x0001_0001_0001_0001;
        let mut found: Option<(usize, u64)> = None;
        for (n, group) in tags.chunks(GROUP).enumerate() {
            if group.iter().fold(0, |hit, word| hit | zero_lanes(word ^ wanted)) == 0 {
                continue;
            }
            let first = n * GROUP * TAGS;
            for slot in (first..first + group.len() * TAGS).filter(|slot| kept[2 * slot] == key) {
                let rank = self.rank(slot, slots);
                // A slot beyond the newest holds what is gone.
                if rank < self.len() && found.is_none_or(|(newest, _)| rank > newest) {
                    found = Some((rank, kept[2 * slot + 1]));
                }
            }
        }
        found.map(|(_, sighting)| Sighting(sighting))
    }

    /// Reads what the next push reads, and a search if there is to be one.
    pub(super) fn touch(&self, is_searched: bool) -> u64 {
        let slots = self.slots();
        let (tags, kept) = self.words.split_at(slots / TAGS);
        let next = if self.len() < slots { self.slot(self.len()) } else { usize::from(self.oldest) };
        let of = |words: &[u64], at: usize| words.get(at).copied().unwrap_or_default();
        let pushed = of(tags, next / TAGS) ^ of(kept, 2 * next);
        match is_searched {
            true => tags.iter().step_by(GROUP).fold(pushed, |a, b| a ^ b),
            false => pushed,
        }
    }

    /// Oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, Sighting)> {
        (0..self.len()).map(|rank| self.get(rank))
    }

    /// Gives back room of which less than half is used.
    pub(super) fn shrink(&mut self) {
        let slots = slots_for(self.len());
        if slots * 2 <= self.slots() {
            self.resize(slots);
        }
    }

    fn slot(&self, rank: usize) -> usize {
        let (slot, slots) = (usize::from(self.oldest) + rank, self.slots());
        if slot >= slots { slot - slots } else { slot }
    }

    fn rank(&self, slot: usize, slots: usize) -> usize {
        let oldest = usize::from(self.oldest);
        if slot >= oldest { slot - oldest } else { slot + slots - oldest }
    }

    fn get(&self, rank: usize) -> (u64, Sighting) {
        let at = self.slots() / TAGS + 2 * self.slot(rank);
        (self.words[at], Sighting(self.words[at + 1]))
    }

    fn put(&mut self, rank: usize, key: u64, sighting: Sighting) {
        let (slot, tags) = (self.slot(rank), self.slots() / TAGS);
        let lane = 16 * (slot % TAGS) as u32;
        let word = &mut self.words[slot / TAGS];
        *word = *word & !(0xffff << lane) | u64::from(key as u16) << lane;
        self.words[tags + 2 * slot] = key;
        self.words[tags + 2 * slot + 1] = sighting.0;
    }

    fn resize(&mut self, slots: usize) {
        let words = vec![0; slots / TAGS + 2 * slots].into_boxed_slice();
        let mut other = Self { words, stretch: self.stretch, oldest: 0, len: self.len };
        for (rank, (key, sighting)) in self.iter().enumerate() {
            other.put(rank, key, sighting);
        }
        *self = other;
    }
}

/// How many slots so many sightings take.
fn slots_for(len: usize) -> usize {
    match len {
        0 => 0,
        1..=GROWTH => len.next_power_of_two().max(TAGS),
        _ => len.next_multiple_of(GROWTH),
    }
}

/// Not zero if one of the four lanes of 16 bits is.
fn zero_lanes(word: u64) -> u64 {
    word.wrapping_sub(0x0001_0001_0001_0001) & !word & 0x8000_8000_8000_8000
}
