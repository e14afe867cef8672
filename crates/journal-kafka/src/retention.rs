//! What is too old and has been passed by every consumer is deleted from here, by offset. Kafka's own retention goes by
//! age and size alone and takes what nobody has read yet; topics that this journal makes have none.
//!
//! Age is told by the log's own clock: the newest record that was seen is of age zero. So the clock of this process may
//! say what it likes, and while nothing comes nothing goes.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use dunlin_journal::Offset;
use futures::executor::block_on;
use rdkafka::{
    Offset as KafkaOffset, TopicPartitionList, admin::AdminOptions, consumer::Consumer as _,
    error::KafkaResult,
};

use crate::{
    client::{Consumer, held},
    metrics::Metrics,
    places::Places,
    positions::Positions,
    tail::Tail,
    topics::Admin,
};

/// The retention's clock takes no larger steps than this from one trim to the next, so that a broker whose clock jumps
/// ahead by a year does not delete a year.
const STEP_MAX: Duration = Duration::from_secs(3600);

pub(crate) struct Retention {
    pub(crate) places: Arc<Places>,
    pub(crate) positions: Arc<Positions>,
    pub(crate) asker: Arc<Consumer>,
    pub(crate) admin: Admin,
    pub(crate) tail: Arc<Tail>,
    pub(crate) keeps: Duration,
    pub(crate) timeout: Duration,
    pub(crate) now_millis: Mutex<Option<i64>>,
    pub(crate) metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Retention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Retention").field("keeps", &self.keeps).finish_non_exhaustive()
    }
}

impl Retention {
    /// Deletes what may go, and returns how many records that were.
    pub(crate) fn trim(&self) -> KafkaResult<u64> {
        // Only positions that Kafka has count.
        if let Err(error) = self.positions.save() {
            tracing::warn!(%error, "consumers' positions are not saved");
        }
        // Also those of other processes.
        self.positions.look(&self.asker, self.timeout)?;
        let mut wanted = TopicPartitionList::new();
        let Some(now_millis) = self.now_millis() else { return Ok(0) };
        let before = now_millis.saturating_sub(self.keeps.as_millis() as i64).max(0);
        for place in self.places.row() {
            wanted.add_partition_offset(&place.topic, place.partition(), KafkaOffset::Offset(before))?;
        }
        let by_age = self.asker.offsets_for_times(wanted, self.timeout)?;
        let least = self.positions.least();
        let mut deleted = TopicPartitionList::new();
        let mut records = 0;
        for element in by_age.elements() {
            let Some(n) = self.places.find_named(element.topic(), element.partition()) else { continue };
            let place = &self.places.row()[n];
            let extent = place.extent();
            let young = match element.offset() {
                KafkaOffset::Offset(offset) => Offset(u64::try_from(offset).unwrap_or(0)),
                // Nothing is younger.
                KafkaOffset::End => extent.next,
                _ => continue,
            };
            let end = young.min(extent.next).min(least.get(&n).copied().unwrap_or(extent.next));
            if element.error().is_err() || end <= extent.oldest {
                continue;
            }
            records += end.0 - extent.oldest.0;
            deleted.add_partition_offset(
                &place.topic,
                place.partition(),
                KafkaOffset::Offset(end.0 as i64),
            )?;
        }
        if deleted.count() > 0 {
            self.delete(&deleted)?;
            self.metrics.trimmed_records.inc_by(records);
        }
        Ok(records)
    }

    fn delete(&self, before: &TopicPartitionList) -> KafkaResult<()> {
        let options =
            AdminOptions::new().request_timeout(Some(self.timeout)).operation_timeout(Some(self.timeout));
        let deleted = block_on(self.admin.delete_records(before, &options))?;
        for element in deleted.elements() {
            element.error()?;
            let place = self.places.find_named(element.topic(), element.partition());
            if let (Some(n), KafkaOffset::Offset(oldest)) = (place, element.offset()) {
                self.places.row()[n].starts_at(Offset(u64::try_from(oldest).unwrap_or(0)));
                tracing::info!(partition = %self.places.row()[n].at, oldest, "the journal's retention deleted records");
            }
        }
        Ok(())
    }

    /// `None` until a record was seen.
    fn now_millis(&self) -> Option<i64> {
        let newest = self.tail.newest_millis()?;
        let mut now = held(&self.now_millis);
        let step_max = STEP_MAX.as_millis() as i64;
        let next = now.map_or(newest, |now| newest.clamp(now, now.saturating_add(step_max)));
        *now = Some(next);
        *now
    }
}
