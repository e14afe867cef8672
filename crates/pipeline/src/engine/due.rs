//! When something is due for which device, in the order of steps and, within one, of the devices' hashes.
//!
//! Nearly all deadlines are a moment away, as a record waits for those before it: those stand by step and are sorted
//! when their step comes, together. What is further away is a heap.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use super::device::NOT_DUE;

/// Steps that stand one beside the other.
const SOON: usize = 256;

/// The hash makes the order independent of where a device is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    pub(super) step: i64,
    pub(super) hash: u64,
    pub(super) device: u32,
}

#[derive(Debug)]
pub(super) struct Dues {
    /// The step of `turn`. What is entered from here on for it, or for one before, is in `behind`.
    step: i64,
    /// The last first.
    turn: Vec<Due>,
    behind: BinaryHeap<Reverse<Due>>,
    /// Of the steps after `step`, in no order.
    soon: VecDeque<Vec<Due>>,
    /// Of those after them, and before the first turn of all.
    later: BinaryHeap<Reverse<Due>>,
    len: usize,
    /// The first of all.
    next: i64,
}

impl Default for Dues {
    fn default() -> Self {
        Self {
            step: i64::MIN,
            turn: Vec::new(),
            behind: BinaryHeap::new(),
            soon: VecDeque::new(),
            later: BinaryHeap::new(),
            len: 0,
            next: NOT_DUE,
        }
    }
}

impl Dues {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The first step at which something is due; `NOT_DUE` if nothing is.
    pub(super) fn next(&self) -> i64 {
        self.next
    }

    pub(super) fn push(&mut self, due: Due) {
        self.len += 1;
        self.next = self.next.min(due.step);
        if due.step <= self.step {
            return self.behind.push(Reverse(due));
        }
        match usize::try_from(due.step.saturating_sub(self.step) - 1) {
            Ok(place) if place < SOON => {
                if place >= self.soon.len() {
                    self.soon.resize_with(place + 1, Vec::new);
                }
                self.soon[place].push(due);
            }
            _ => self.later.push(Reverse(due)),
        }
    }

    /// The first of all, unless it is after `step`.
    pub(super) fn pop(&mut self, step: i64) -> Option<Due> {
        if self.next > step {
            return None;
        }
        if self.turn.is_empty() && self.behind.is_empty() {
            self.begin_turn();
        }
        let is_behind = match (self.turn.last(), self.behind.peek()) {
            (Some(turn), Some(Reverse(behind))) => behind < turn,
            (turn, _) => turn.is_none(),
        };
        let due = if is_behind { self.behind.pop().map(|due| due.0) } else { self.turn.pop() };
        self.len -= usize::from(due.is_some());
        if is_behind || self.turn.is_empty() {
            self.next = self.first_step();
        }
        due
    }

    /// Those of the turn that come next, the last first.
    pub(super) fn coming(&self, count: usize) -> &[Due] {
        &self.turn[self.turn.len().saturating_sub(count)..]
    }

    pub(super) fn retain(&mut self, mut is_kept: impl FnMut(&Due) -> bool) {
        self.turn.retain(&mut is_kept);
        self.soon.iter_mut().for_each(|dues| dues.retain(&mut is_kept));
        self.behind.retain(|due| is_kept(&due.0));
        self.later.retain(|due| is_kept(&due.0));
        self.len = self.turn.len() + self.behind.len() + self.later.len();
        self.len += self.soon.iter().map(Vec::len).sum::<usize>();
        self.next = self.first_step();
    }

    /// Goes on to the next step that has any.
    fn begin_turn(&mut self) {
        let passed = self.next.saturating_sub(self.step);
        self.step = self.next;
        for _ in 1..passed.min(self.soon.len() as i64 + 1) {
            self.soon.pop_front();
        }
        self.turn = self.soon.pop_front().unwrap_or_default();
        while let Some(Reverse(due)) = self.later.peek().filter(|due| due.0.step <= self.step) {
            self.turn.push(*due);
            self.later.pop();
        }
        self.turn.sort_unstable_by(|a, b| b.cmp(a));
    }

    fn first_step(&self) -> i64 {
        let first = match self.turn.last() {
            Some(due) => due.step,
            None => {
                let soon = (1..).zip(&self.soon).find(|(_, dues)| !dues.is_empty());
                soon.map_or(NOT_DUE, |(after, _)| self.step + after)
            }
        };
        let heaps = [&self.behind, &self.later].into_iter().filter_map(BinaryHeap::peek);
        heaps.fold(first, |first, due| first.min(due.0.step))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        Push { after: i64, hash: u64 },
        Pop { after: i64 },
        Retain { hash: u64 },
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let after = prop_oneof![8 => -3..30i64, 2 => 200..600i64, 1 => 10_000..11_000i64, 1 => -400..0i64];
        let act = prop_oneof![
            6 => (after.clone(), 0..50u64).prop_map(|(after, hash)| Act::Push { after, hash }),
            6 => after.prop_map(|after| Act::Pop { after }),
            1 => (0..50u64).prop_map(|hash| Act::Retain { hash }),
        ];
        proptest::collection::vec(act, 0..400)
    }

    proptest! {
        /// As one heap would have it, wherever the steps lie and while others are entered.
        #[test]
        fn they_come_in_order(acts in acts(), start in prop_oneof![Just(0i64), Just(-5_000), Just(34_000_000_000)]) {
            let (mut dues, mut heap, mut now) = (Dues::default(), BinaryHeap::new(), start);
            for act in acts {
                match act {
                    Act::Push { after, hash } => {
                        let due = Due { step: now + after, hash, device: hash as u32 };
                        dues.push(due);
                        heap.push(Reverse(due));
                    }
                    Act::Pop { after } => {
                        now += after;
                        let expected = heap.peek().is_some_and(|due| due.0.step <= now).then(|| heap.pop()).flatten();
                        prop_assert_eq!(dues.pop(now), expected.map(|due| due.0));
                    }
                    Act::Retain { hash } => {
                        dues.retain(|due| due.hash != hash);
                        heap.retain(|due| due.0.hash != hash);
                    }
                }
                prop_assert_eq!(dues.len(), heap.len());
                prop_assert_eq!(dues.next(), heap.peek().map_or(NOT_DUE, |due| due.0.step));
            }
            let rest: Vec<_> = std::iter::from_fn(|| dues.pop(NOT_DUE - 1)).collect();
            let expected: Vec<_> = std::iter::from_fn(|| heap.pop()).map(|due| due.0).collect();
            prop_assert_eq!(rest, expected);
        }
    }
}
