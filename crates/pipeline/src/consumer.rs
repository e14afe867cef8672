//! What all consumers do alike: run on a thread of their own, wait for news, try again after a pause.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use dunlin_model::panic_words;
use tokio::sync::{oneshot, watch};

const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A run of this length before a panic was no failed start: the pauses begin anew.
const RAN_WELL: Duration = Duration::from_secs(60);

/// A consumer's thread; dropped, it stops when it next looks.
#[derive(Debug)]
pub(crate) struct Worker {
    stop: watch::Sender<Order>,
    done: oneshot::Receiver<()>,
}

/// Whether the owner asked the consumer to stop.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<Order>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    GoOn,
    /// Once what is known is written down.
    Stop,
    /// Without writing anything down: another does that by now.
    GiveUp,
}

impl Worker {
    /// Runs `work` on its own thread with a runtime for timers, below the priority of what devices wait for. Work that
    /// panics is told to `broke` and begun anew after a pause: it must take up from what it committed.
    pub(crate) fn spawn<F: Future<Output = ()>>(
        name: String,
        nice: i32,
        mut work: impl FnMut(Stop) -> F + Send + 'static,
        broke: impl Fn(String) + Send + 'static,
    ) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(Order::GoOn);
        let (finished, done) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name(name.clone()).spawn(move || {
            // Refused at worst, and then it runs at the priority of the rest.
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), nice);
            let mut stop = Stop(stopped);
            let mut backoff = Backoff::default();
            loop {
                let began = Instant::now();
                let run = AssertUnwindSafe(|| runtime.block_on(work(stop.clone())));
                let Err(panic) = catch_unwind(run) else { break };
                if began.elapsed() >= RAN_WELL {
                    backoff = Backoff::default();
                }
                let (reason, pause) = (format!("panicked: {}", panic_words(&*panic)), backoff.next());
                tracing::error!(thread = name, reason, ?pause, "taken up again from where it committed");
                broke(reason);
                runtime.block_on(stop.sleep(pause));
                if stop.is_asked() {
                    break;
                }
            }
            let _ = finished.send(());
        })?;
        Ok(Self { stop, done })
    }

    pub(crate) fn ask_to_stop(&self) {
        let _ = self.stop.send(Order::Stop);
    }

    /// Returns when the thread is through.
    pub(crate) async fn stopped(self) {
        self.ask_to_stop();
        let _ = self.done.await;
    }

    /// Returns when the thread is through, which leaves what it knows.
    pub(crate) async fn given_up(self) {
        let _ = self.stop.send(Order::GiveUp);
        let _ = self.done.await;
    }
}

impl Stop {
    /// For work that nobody stops as long as the first is kept.
    pub(crate) fn never() -> (watch::Sender<Order>, Self) {
        let (never, stop) = watch::channel(Order::GoOn);
        (never, Self(stop))
    }

    pub(crate) fn is_asked(&self) -> bool {
        *self.0.borrow() != Order::GoOn || self.0.has_changed().is_err()
    }

    pub(crate) fn is_given_up(&self) -> bool {
        *self.0.borrow() == Order::GiveUp
    }

    pub(crate) async fn asked(&mut self) {
        while !self.is_asked() {
            if self.0.changed().await.is_err() {
                return;
            }
        }
    }

    /// Sleeps unless asked to stop.
    pub(crate) async fn sleep(&mut self, pause: Duration) {
        tokio::select! {
            () = self.asked() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// A growing pause between tries.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(PAUSE_MIN)
    }
}

impl Backoff {
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(PAUSE_MAX);
        pause
    }
}

/// Something to be done again and again, not more often than every `period`.
#[derive(Debug, Clone)]
pub(crate) struct Every {
    period: Duration,
    last: Instant,
}

impl Every {
    pub(crate) fn new(period: Duration) -> Self {
        Self { period, last: Instant::now() }
    }

    pub(crate) fn is_due(&mut self) -> bool {
        let due = self.last.elapsed() >= self.period;
        if due {
            self.last = Instant::now();
        }
        due
    }
}
