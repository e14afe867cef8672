//! Batches on their way to the disk, in the order of the calls.
//!
//! Up to `bytes_max` are admitted: those are written whatever their callers do. What comes on top waits in line, and
//! leaves it when its caller gives up. Order is decided at the call, not when a future happens to be polled.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use dunlin_journal::{AppendError, Appended, Health, Partition};
use tokio::sync::oneshot;

/// Batches that are admitted at the same time, however small they are.
const ADMITTED_BATCHES_MAX: usize = 64 << 10;
/// A commit takes no more than this, unless its first batch alone is larger: what waits behind it is not kept
/// waiting for long.
pub(crate) const GROUP_BYTES_MAX: usize = 4 << 20;

/// A batch before the call has given it its place.
#[derive(Debug)]
pub(crate) struct Unqueued {
    pub(crate) at: Partition,
    pub(crate) place: usize,
    pub(crate) records: u32,
    pub(crate) payload: Bytes,
    pub(crate) payload_crc: u32,
}

#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) at: Partition,
    pub(crate) place: usize,
    pub(crate) records: u32,
    pub(crate) payload: Bytes,
    pub(crate) payload_crc: u32,
    pub(crate) reply: oneshot::Sender<Result<Appended, AppendError>>,
}

impl Pending {
    fn fail(self, error: &AppendError) {
        let _ = self.reply.send(Err(error.clone())); // The caller may have gone.
    }
}

#[derive(Debug)]
pub(crate) struct Queue {
    line: Mutex<Line>,
    arrived: Condvar,
    bytes_max: usize,
}

#[derive(Debug)]
struct Line {
    gate: Gate,
    admitted: VecDeque<Pending>,
    waiting: VecDeque<(u64, Pending)>,
    /// Admitted and not answered: also what is being written now.
    bytes: usize,
    batches: usize,
    ticket_next: u64,
    /// The writer sleeps and must be woken.
    asleep: bool,
}

#[derive(Debug)]
enum Gate {
    Open,
    Refusing { error: AppendError, health: Health },
    Closed,
}

/// What the writer does next.
#[derive(Debug)]
pub(crate) enum Next {
    Write(Vec<Pending>),
    /// Nothing came for a while.
    Idle,
    /// Closed, and nothing is left.
    End,
}

impl Queue {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let line = Line {
            gate: Gate::Open,
            admitted: VecDeque::new(),
            waiting: VecDeque::new(),
            bytes: 0,
            batches: 0,
            ticket_next: 0,
            asleep: false,
        };
        Self { line: Mutex::new(line), arrived: Condvar::new(), bytes_max }
    }

    pub(crate) fn push(self: &Arc<Self>, batch: Unqueued) -> Waiting {
        self.together(|line| line.push(batch))
    }

    /// What `enter` pushes goes in together: the writer, which is preferred to its callers, would begin with the first
    /// batch alone.
    pub(crate) fn together<T>(self: &Arc<Self>, enter: impl FnOnce(&mut Together<'_>) -> T) -> T {
        let mut together = Together { queue: self, line: self.line() };
        let entered = enter(&mut together);
        let asleep = together.line.asleep;
        drop(together);
        if asleep {
            self.arrived.notify_one();
        }
        entered
    }

    /// The next group; waits for one for `patience` at most. Once there is one, it waits `linger` for more.
    pub(crate) fn take(&self, patience: Duration, linger: Duration) -> Next {
        let mut line = self.line();
        let deadline = Instant::now() + patience;
        while line.admitted.is_empty() {
            if matches!(line.gate, Gate::Closed) {
                return Next::End;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Next::Idle;
            }
            line = self.sleep(line, left);
        }
        let deadline = Instant::now() + linger;
        while !linger.is_zero() && line.bytes < GROUP_BYTES_MAX && !matches!(line.gate, Gate::Closed) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            line = self.sleep(line, left);
        }
        Next::Write(line.take_group())
    }

    /// The writer is done with a group of that size: what waits in line may come.
    pub(crate) fn settled(&self, bytes: usize, batches: usize) {
        let mut line = self.line();
        line.bytes -= bytes;
        line.batches -= batches;
        line.advance(self.bytes_max);
    }

    /// Fails everything that waits and whatever comes.
    pub(crate) fn refuse(&self, error: AppendError, health: Health) {
        let mut line = self.line();
        if !matches!(line.gate, Gate::Closed) {
            line.gate = Gate::Refusing { error: error.clone(), health };
        }
        let failed: Vec<Pending> = line.drain();
        drop(line);
        failed.into_iter().for_each(|p| p.fail(&error));
    }

    pub(crate) fn accept(&self) {
        let mut line = self.line();
        if matches!(line.gate, Gate::Refusing { .. }) {
            line.gate = Gate::Open;
        }
    }

    pub(crate) fn close(&self) {
        self.line().gate = Gate::Closed;
        self.arrived.notify_all();
    }

    /// Sleeps; `true` if the queue was closed meanwhile.
    pub(crate) fn pause(&self, pause: Duration) -> bool {
        let deadline = Instant::now() + pause;
        let mut line = self.line();
        loop {
            if matches!(line.gate, Gate::Closed) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            line = self.sleep(line, left);
        }
    }

    pub(crate) fn health(&self) -> Health {
        match &self.line().gate {
            Gate::Open => Health::Writable,
            Gate::Refusing { health, .. } => health.clone(),
            Gate::Closed => Health::Closed,
        }
    }

    /// Bytes admitted and not answered yet.
    pub(crate) fn bytes(&self) -> usize {
        self.line().bytes
    }

    fn sleep<'a>(&'a self, mut line: MutexGuard<'a, Line>, at_most: Duration) -> MutexGuard<'a, Line> {
        line.asleep = true;
        let (mut line, _) = self.arrived.wait_timeout(line, at_most).unwrap_or_else(|p| p.into_inner());
        line.asleep = false;
        line
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Line {
    fn has_room(&self, bytes: usize, bytes_max: usize) -> bool {
        self.bytes == 0 || (self.bytes + bytes <= bytes_max && self.batches < ADMITTED_BATCHES_MAX)
    }

    fn admit(&mut self, pending: Pending) {
        self.bytes += pending.payload.len();
        self.batches += 1;
        self.admitted.push_back(pending);
    }

    fn advance(&mut self, bytes_max: usize) {
        while self.waiting.front().is_some_and(|(_, p)| self.has_room(p.payload.len(), bytes_max))
            && let Some((_, pending)) = self.waiting.pop_front()
        {
            self.admit(pending);
        }
    }

    fn take_group(&mut self) -> Vec<Pending> {
        let mut bytes = 0;
        let batches = self
            .admitted
            .iter()
            .take_while(|p| {
                let first = bytes == 0;
                bytes += p.payload.len();
                first || bytes <= GROUP_BYTES_MAX
            })
            .count();
        self.admitted.drain(..batches).collect()
    }

    fn drain(&mut self) -> Vec<Pending> {
        let admitted: Vec<Pending> = self.admitted.drain(..).collect();
        self.bytes -= admitted.iter().map(|p| p.payload.len()).sum::<usize>();
        self.batches -= admitted.len();
        admitted.into_iter().chain(self.waiting.drain(..).map(|(_, p)| p)).collect()
    }
}

/// The answer to one append.
#[derive(Debug)]
pub(crate) struct Waiting {
    answer: oneshot::Receiver<Result<Appended, AppendError>>,
    in_line: Option<(Arc<Queue>, u64)>,
}

/// The end of the queue, held.
pub(crate) struct Together<'q> {
    queue: &'q Arc<Queue>,
    line: MutexGuard<'q, Line>,
}

impl Together<'_> {
    pub(crate) fn push(&mut self, batch: Unqueued) -> Waiting {
        let (reply, answer) = oneshot::channel();
        let Unqueued { at, place, records, payload, payload_crc } = batch;
        let pending = Pending { at, place, records, payload, payload_crc, reply };
        let line = &mut *self.line;
        let refusal = match &line.gate {
            Gate::Open => None,
            Gate::Refusing { error, .. } => Some(error.clone()),
            Gate::Closed => Some(AppendError::Closed),
        };
        if let Some(error) = refusal {
            pending.fail(&error);
            return Waiting { answer, in_line: None };
        }
        let mut in_line = None;
        if line.waiting.is_empty() && line.has_room(pending.payload.len(), self.queue.bytes_max) {
            line.admit(pending);
        } else {
            let ticket = line.ticket_next;
            line.ticket_next += 1;
            line.waiting.push_back((ticket, pending));
            in_line = Some((Arc::clone(self.queue), ticket));
        }
        Waiting { answer, in_line }
    }
}

impl Future for Waiting {
    type Output = Result<Appended, AppendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = std::task::ready!(Pin::new(&mut self.answer).poll(cx));
        self.in_line = None;
        // The writer answers everything it takes; only its end leaves something unanswered.
        Poll::Ready(answer.unwrap_or(Err(AppendError::Closed)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some((queue, ticket)) = self.in_line.take() else { return };
        let mut line = queue.line();
        if let Ok(at) = line.waiting.binary_search_by_key(&ticket, |(t, _)| *t) {
            line.waiting.remove(at);
        }
    }
}

#[cfg(test)]
mod tests;
