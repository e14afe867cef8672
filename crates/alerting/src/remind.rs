use std::{sync::Arc, time::Duration};

use dunlin_model::Clock;
use tokio::sync::{Notify, watch};

use crate::execute::Executor;

/// Looks at alerts again when it is time to: escalations, ends of silences, acts of people.
pub(crate) struct Reminder {
    pub(crate) executor: Executor,
    pub(crate) clock: Clock,
    pub(crate) wake: Arc<Notify>,
}

const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(1);
/// Also if the clock jumps, or another process made the timer.
const LOOK_EVERY: Duration = Duration::from_secs(10);

impl Reminder {
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let pause = match self.step().await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::error!(error = dunlin_model::chain(&error), "alerts wait to be looked at again");
                    PAUSE_AFTER_ERROR
                }
            };
            tokio::select! {
                _ = stop.wait_for(|asked| *asked) => return,
                _ = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// How long there is nothing to do.
    async fn step(&self) -> Result<Duration, dunlin_registry::RegistryError> {
        loop {
            match self.executor.registry.next_alert_timer().await? {
                None => return Ok(LOOK_EVERY),
                Some(at) if at > self.clock.now() => return Ok(at.since(self.clock.now()).min(LOOK_EVERY)),
                Some(_) => self.executor.look_again().await?,
            };
        }
    }
}
