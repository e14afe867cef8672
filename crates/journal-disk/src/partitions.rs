use dunlin_journal::{Partition, Topic};

/// All partitions in one row: telemetry's first, then one for each other topic, by ordinal. Stored segments count on
/// this order, so a new topic goes to the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Partitions {
    telemetry: u16,
}

impl Partitions {
    pub(crate) fn new(telemetry: u16) -> Self {
        Self { telemetry }
    }

    pub(crate) fn of(self, topic: Topic) -> u16 {
        if topic == Topic::Telemetry { self.telemetry } else { 1 }
    }

    pub(crate) fn count(self) -> usize {
        usize::from(self.telemetry) + Topic::ALL.len() - 1
    }

    /// The place of a partition in the row, if it exists.
    pub(crate) fn place(self, at: Partition) -> Option<usize> {
        (at.index < self.of(at.topic)).then(|| match at.topic {
            Topic::Telemetry => usize::from(at.index),
            other => usize::from(self.telemetry) + other as usize - 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_has_a_place_of_its_own() {
        let partitions = Partitions::new(3);
        let places: Vec<_> = Topic::ALL
            .into_iter()
            .flat_map(|t| (0..partitions.of(t)).map(move |i| Partition::new(t, i)))
            .map(|p| partitions.place(p).unwrap())
            .collect();
        assert_eq!(places, (0..partitions.count()).collect::<Vec<_>>());
        assert_eq!(partitions.place(Partition::new(Topic::Telemetry, 3)), None);
        assert_eq!(partitions.place(Partition::new(Topic::Alerts, 1)), None);
    }
}
