use xxhash_rust::xxh3::Xxh3;

/// State is kept per slot; partitions are contiguous ranges of slots. Fixed for good: changing it moves every device.
pub const SLOTS: u16 = 4_096;

/// Where a device's records go, whatever the number of partitions is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u16);

impl Slot {
    pub fn of(tenant: &str, device: &str) -> Self {
        let mut hash = Xxh3::new();
        hash.update(tenant.as_bytes());
        hash.update(&[0]); // No name holds it, so ("a", "bc") and ("ab", "c") differ.
        hash.update(device.as_bytes());
        Self((hash.digest() % u64::from(SLOTS)) as u16)
    }

    pub fn index(self) -> u16 {
        self.0
    }

    /// The partition, of `partitions`, whose range holds this slot.
    pub fn partition(self, partitions: u16) -> u16 {
        (u32::from(self.0) * u32::from(partitions.max(1)) / u32::from(SLOTS)) as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_contiguous_ranges_that_cover_all_slots() {
        for partitions in [1, 3, 4, 6, 24] {
            let of: Vec<u16> = (0..SLOTS).map(|s| Slot(s).partition(partitions)).collect();
            assert!(of.is_sorted());
            assert_eq!((of[0], of[4095]), (0, partitions - 1));
        }
    }

    #[test]
    fn a_device_never_moves() {
        // Stored data depends on these numbers.
        assert_eq!(Slot::of("default", "sensor-1").index(), 3079);
        assert_ne!(Slot::of("a", "bc"), Slot::of("ab", "c"));
    }
}
