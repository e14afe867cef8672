use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use dunlin_journal::AppendError;
use tokio::sync::oneshot;

/// Who waits, by the end up to which must be applied, and in its order.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<VecDeque<(u64, oneshot::Sender<()>)>>);

impl Waiting {
    /// Until all before `end` is applied. `applied` says how far that is now.
    pub(super) async fn wait(&self, end: u64, applied: impl FnOnce() -> u64) -> Result<(), AppendError> {
        let waits = {
            let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            (applied() < end).then(|| {
                let (done, waits) = oneshot::channel();
                let place = waiting.partition_point(|(other, _)| *other <= end);
                waiting.insert(place, (end, done));
                waits
            })
        };
        match waits {
            Some(waits) => waits.await.map_err(|_| AppendError::Closed),
            None => Ok(()),
        }
    }

    /// So far it is applied, as `advance` makes known.
    pub(super) fn release(&self, advance: impl FnOnce() -> u64) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let applied = advance();
        while let Some((_, done)) = waiting.pop_front_if(|(end, _)| *end <= applied) {
            let _gone = done.send(());
        }
    }

    /// Nobody will be told any more.
    pub(super) fn give_up(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
