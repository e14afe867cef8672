//! Who works on which partitions, among the processes that share the work of a consumer.

use std::{
    collections::BTreeSet,
    sync::mpsc as blocking,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use crate::Partition;

/// One process among those that share a consumer's work on a topic.
///
/// - Every partition is given to one member at a time. One that is asked for is given on when its holder has released
///   it, or is gone. So whoever is given a partition finds what its holder before has written down.
/// - A member that was not heard of for too long has lost what it held, and is told when it is heard of again. Until then
///   it may go on beside the next holder: what both do must be the same, or be refused where it is kept. What it commits
///   is refused.
/// - Dropped, it leaves.
#[derive(Debug)]
pub struct Membership {
    turns: mpsc::UnboundedReceiver<Turn>,
    released: blocking::Sender<Partition>,
    /// Of a member that is alone, so that it waits for nothing.
    _alone: Option<Caller>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Work on it from here on.
    Given(Partition),
    /// Another is to have it: write down what is known, commit, then release it.
    Asked(Partition),
    /// Another has it: throw away what is not written down.
    Lost(Partition),
}

impl Membership {
    pub fn new() -> (Self, Caller) {
        let (call, turns) = mpsc::unbounded_channel(); // As many as there are partitions, to and fro.
        let (released, heard) = blocking::channel();
        (Self { turns, released, _alone: None }, Caller { call, heard })
    }

    /// Of a journal that one process has for itself: everything, from the start.
    pub fn alone(partitions: impl IntoIterator<Item = Partition>) -> Self {
        let (mut membership, caller) = Self::new();
        partitions.into_iter().for_each(|at| caller.call(Turn::Given(at)));
        membership._alone = Some(caller);
        membership
    }

    /// Waits for the next turn; for ever once the journal has ended.
    pub async fn next(&mut self) -> Turn {
        match self.turns.recv().await {
            Some(turn) => turn,
            None => std::future::pending().await,
        }
    }

    /// What was asked for may be given on.
    pub fn release(&self, at: Partition) {
        // Nobody listens any more if the journal has ended.
        let _ = self.released.send(at);
    }
}

/// A journal's side of a membership.
#[derive(Debug)]
pub struct Caller {
    call: mpsc::UnboundedSender<Turn>,
    heard: blocking::Receiver<Partition>,
}

impl Caller {
    pub fn call(&self, turn: Turn) {
        // A member that has left is told nothing.
        let _ = self.call.send(turn);
    }

    pub fn has_left(&self) -> bool {
        self.call.is_closed()
    }

    /// Asks for partitions and waits until all are released, or the member has left; false if that takes too long.
    pub fn ask(&self, partitions: &[Partition], patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut missing: BTreeSet<Partition> = partitions.iter().copied().collect();
        // What was released too late is no answer to this.
        while self.heard.try_recv().is_ok() {}
        partitions.iter().for_each(|at| self.call(Turn::Asked(*at)));
        while !missing.is_empty() {
            match self.heard.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(at) => _ = missing.remove(&at),
                Err(blocking::RecvTimeoutError::Disconnected) => return true,
                Err(blocking::RecvTimeoutError::Timeout) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Topic;

    #[tokio::test]
    async fn what_is_asked_for_is_waited_for() {
        let at = |index| Partition::new(Topic::Telemetry, index);
        let (mut membership, caller) = Membership::new();
        assert!(!caller.ask(&[at(0)], Duration::from_millis(1)));
        assert_eq!(membership.next().await, Turn::Asked(at(0)));
        // What is released too late is no answer to the next question.
        membership.release(at(0));
        assert!(!caller.ask(&[at(0)], Duration::from_millis(1)));
        assert_eq!(membership.next().await, Turn::Asked(at(0)));
        let asking = tokio::task::spawn_blocking(move || {
            let released = caller.ask(&[at(1), at(2)], Duration::from_secs(20));
            (released, caller)
        });
        for _ in 0..2 {
            let Turn::Asked(at) = membership.next().await else { panic!() };
            membership.release(at);
        }
        let (released, caller) = asking.await.unwrap();
        assert!(released && !caller.has_left());
        drop(membership);
        assert!(caller.has_left() && caller.ask(&[at(3)], Duration::from_secs(20)));
    }

    #[tokio::test]
    async fn who_is_alone_has_everything() {
        let mut alone = Membership::alone((0..2).map(|index| Partition::new(Topic::Telemetry, index)));
        for index in 0..2 {
            assert_eq!(alone.next().await, Turn::Given(Partition::new(Topic::Telemetry, index)));
        }
        let more = tokio::time::timeout(Duration::from_millis(5), alone.next()).await;
        more.unwrap_err();
    }
}
