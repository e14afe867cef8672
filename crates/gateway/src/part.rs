//! Records that came together, by partition and by what they count as.

use std::sync::Arc;

use dunlin_journal::{AppendError, Batch, Journal, Partition, Topic};
use dunlin_model::Slot;

use crate::{
    account::{Class, TenantAccount},
    append::BATCH_BYTES_TARGET,
};

/// Records for one partition.
pub(crate) struct Part {
    pub(crate) at: Partition,
    pub(crate) batch: Batch,
    pub(crate) class: Class,
}

impl Part {
    pub(crate) fn new(journal: &dyn Journal, topic: Topic, tenant: &str, device: &str, class: Class) -> Self {
        let index = Slot::of(tenant, device).partition(journal.partitions(topic));
        Self { at: Partition::new(topic, index), batch: Batch::default(), class }
    }

    /// The part of `parts` that takes another record like `new`; it is `new` if there is none.
    pub(crate) fn among(parts: &mut Vec<Self>, new: Self) -> &mut Self {
        let open =
            |p: &Self| p.at == new.at && p.class == new.class && p.batch.size_bytes() < BATCH_BYTES_TARGET;
        let place = parts.iter().rposition(open).unwrap_or_else(|| {
            parts.push(new);
            parts.len() - 1
        });
        &mut parts[place]
    }

    /// Its place in the log is decided by the call. Counted for the tenant when the journal has answered.
    pub(crate) fn append(
        self,
        journal: &dyn Journal,
        account: &Arc<TenantAccount>,
    ) -> impl Future<Output = Result<(), AppendError>> + Send + use<> {
        let Self { at, batch, class } = self;
        let (account, records) = (account.clone(), u64::from(batch.len()));
        account.received(records);
        let appending = journal.append(at, batch);
        async move {
            let outcome = appending.await.map(drop);
            match outcome {
                Ok(()) => account.durable(class, records),
                Err(_) => account.failed(records),
            }
            outcome
        }
    }
}
