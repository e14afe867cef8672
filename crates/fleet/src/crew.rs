#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use dunlin_journal::{Journal, Partition, Topic, Turn};
use dunlin_registry::Registry;
use tokio::{sync::watch, task::JoinSet};

use crate::{CONSUMER, follow::Follower, metrics::Metrics};

/// Has a follower for every partition that this process has.
pub(crate) struct Crew {
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
}

/// A follower at work; dropped, it is cut off.
struct Working {
    stop: watch::Sender<bool>,
    task: JoinSet<()>,
}

impl Crew {
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut membership = self.journal.join(CONSUMER, Topic::CommandReplies);
        self.metrics.partitions.set(self.journal.partitions(Topic::CommandReplies).into());
        let mut working = BTreeMap::<Partition, Working>::new();
        loop {
            self.metrics.partitions_held.set(working.len() as i64);
            let turn = tokio::select! {
                _ = stop.wait_for(|asked| *asked) => break,
                turn = membership.next() => turn,
            };
            match turn {
                Turn::Given(at) => _ = working.insert(at, self.begin(at)),
                Turn::Asked(at) => {
                    if let Some(follower) = working.remove(&at) {
                        follower.stopped().await;
                    }
                    self.metrics.forget(at);
                    membership.release(at);
                }
                // What it has begun is recorded again by the next holder, and comes to the same.
                Turn::Lost(at) => {
                    working.remove(&at);
                    self.metrics.forget(at);
                }
            }
        }
        for follower in working.values() {
            follower.ask_to_stop();
        }
        for follower in working.into_values() {
            follower.stopped().await;
        }
    }

    fn begin(&self, at: Partition) -> Working {
        let follower = Follower {
            at,
            journal: self.journal.clone(),
            registry: self.registry.clone(),
            metrics: self.metrics.clone(),
            position: None,
        };
        let (stop, stopped) = watch::channel(false);
        let mut task = JoinSet::new();
        task.spawn(follower.run(stopped));
        Working { stop, task }
    }
}

impl Working {
    fn ask_to_stop(&self) {
        let _ = self.stop.send(true);
    }

    /// Returns after the stretch that it is at.
    async fn stopped(mut self) {
        self.ask_to_stop();
        while self.task.join_next().await.is_some() {}
    }
}
