use std::{
    cell::Cell,
    time::{Duration, Instant},
};

/// Lines per second that one worker may log about misbehaving clients.
const LINES_PER_SECOND_MAX: u32 = 10;

/// Keeps a fleet of broken devices from filling the disk with log lines. The metrics count all of them.
#[derive(Debug)]
pub(crate) struct LogBudget {
    since: Cell<Instant>,
    lines: Cell<u32>,
}

impl LogBudget {
    pub(crate) fn new() -> Self {
        Self { since: Cell::new(Instant::now()), lines: Cell::new(0) }
    }

    /// Whether this line may be logged.
    pub(crate) fn allow(&self) -> bool {
        if self.since.get().elapsed() >= Duration::from_secs(1) {
            self.since.set(Instant::now());
            self.lines.set(0);
        }
        let lines = self.lines.get();
        self.lines.set(lines.saturating_add(1));
        lines < LINES_PER_SECOND_MAX
    }
}
