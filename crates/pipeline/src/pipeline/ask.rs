//! What others want to know of a device, answered by the thread that has it, between two stretches.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

/// Questions that wait; more are answered with nothing.
const WAITING_MAX: usize = 1_024;

/// Clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    waiting: Mutex<Vec<Question>>,
    wake: Notify,
}

#[derive(Debug)]
struct Question {
    tenant: String,
    device: String,
    answer: oneshot::Sender<Option<i64>>,
}

impl Asked {
    pub(super) async fn ask(&self, tenant: &str, device: &str) -> Option<i64> {
        let (answer, answered) = oneshot::channel();
        {
            let mut waiting = self.waiting();
            if waiting.len() >= WAITING_MAX {
                return None;
            }
            waiting.push(Question { tenant: tenant.into(), device: device.into(), answer });
        }
        self.0.wake.notify_one();
        answered.await.ok().flatten()
    }

    pub(super) fn answer(&self, by: impl Fn(&str, &str) -> Option<i64>) {
        let waiting = std::mem::take(&mut *self.waiting());
        for question in waiting {
            // Whoever asked may have left.
            let _ = question.answer.send(by(&question.tenant, &question.device));
        }
    }

    /// Comes back when somebody has asked.
    pub(super) async fn somebody(&self) {
        self.0.wake.notified().await;
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Question>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
