use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use dunlin_journal::{Extent, Offset, Partition, Topic};

/// All partitions in one row, with what can be read of each.
#[derive(Debug)]
pub(crate) struct Places {
    telemetry_partitions: u16,
    row: Vec<Place>,
}

#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) at: Partition,
    pub(crate) topic: Arc<str>,
    oldest: AtomicU64,
    next: AtomicU64,
}

impl Places {
    /// `name` gives a topic its name in Kafka.
    pub(crate) fn new(telemetry_partitions: u16, name: impl Fn(Topic) -> String) -> Self {
        let mut places = Self { telemetry_partitions, row: Vec::new() };
        for topic in Topic::ALL {
            let name: Arc<str> = name(topic).into();
            places.row.extend((0..places.of(topic)).map(|index| Place {
                at: Partition::new(topic, index),
                topic: name.clone(),
                oldest: AtomicU64::new(0),
                next: AtomicU64::new(0),
            }));
        }
        places
    }

    pub(crate) fn of(&self, topic: Topic) -> u16 {
        if topic == Topic::Telemetry { self.telemetry_partitions } else { 1 }
    }

    /// Telemetry stands first, and each of the others has one partition.
    pub(crate) fn find(&self, at: Partition) -> Option<usize> {
        let index = usize::from(at.index);
        match at.topic {
            _ if at.index >= self.of(at.topic) => None,
            Topic::Telemetry => Some(index),
            topic => Some(usize::from(self.telemetry_partitions) + topic as usize - 1),
        }
    }

    pub(crate) fn find_named(&self, topic: &str, partition: i32) -> Option<usize> {
        let index = u16::try_from(partition).ok()?;
        let first = self.row.iter().position(|place| *place.topic == *topic)?;
        self.find(Partition::new(self.row[first].at.topic, index))
    }

    pub(crate) fn row(&self) -> &[Place] {
        &self.row
    }
}

impl Place {
    pub(crate) fn extent(&self) -> Extent {
        // In this order: `oldest` never passes a `next` that is read after it.
        let oldest = self.oldest.load(Ordering::Acquire);
        let next = self.next.load(Ordering::Acquire);
        Extent { oldest: Offset(oldest), next: Offset(next.max(oldest)) }
    }

    /// Records before `next` are durable. Whoever learns it first says so.
    pub(crate) fn reaches(&self, next: Offset) -> bool {
        self.next.fetch_max(next.0, Ordering::AcqRel) < next.0
    }

    pub(crate) fn starts_at(&self, oldest: Offset) {
        self.oldest.fetch_max(oldest.0, Ordering::AcqRel);
    }

    pub(crate) fn partition(&self) -> i32 {
        i32::from(self.at.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_is_found_where_it_stands() {
        let places = Places::new(3, |topic| format!("x.{}", topic.name()));
        assert_eq!(places.row().len(), 3 + Topic::ALL.len() - 1);
        for (n, place) in places.row().iter().enumerate() {
            assert_eq!(places.find(place.at), Some(n));
            assert_eq!(places.find_named(&place.topic, place.partition()), Some(n));
        }
        assert_eq!(places.find(Partition::new(Topic::Alerts, 1)), None);
        assert_eq!(places.find_named("x.alerts", 1), None);
        assert_eq!(places.find_named("y.alerts", 0), None);
    }
}
