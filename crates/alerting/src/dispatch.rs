#[cfg(test)]
mod tests;

use std::{collections::HashSet, sync::Arc, time::Duration};

use dunlin_model::{Clock, Timestamp};
use dunlin_registry::{Notification, Registry, RegistryError};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    channel::{Channel, SendError},
    config::Retry,
    links::Links,
    message::Message,
    metrics::{ByChannel, Metrics},
};

/// Sends what one channel has to hear, oldest first.
pub(crate) struct Dispatcher {
    pub(crate) channel: Channel,
    pub(crate) retry: Retry,
    pub(crate) links: Option<Links>,
    pub(crate) registry: Registry,
    pub(crate) clock: Clock,
    pub(crate) wake: Arc<Notify>,
    pub(crate) metrics: Metrics,
}

/// What became of a message.
enum Outcome<'a> {
    Sent(Vec<&'a str>),
    /// When each is tried again; `None`: not any more.
    Failed {
        keys: Vec<(&'a str, Option<Timestamp>)>,
        words: String,
    },
}

const DUE_AT_ONCE_MAX: u32 = 100;
const REFRESHED_AT_ONCE_MAX: u32 = 500;
const PAUSE_AFTER_ERROR: Duration = Duration::from_secs(1);

impl Dispatcher {
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut let_others_first = HashSet::new();
        let mut refresh_at = self.channel.refresh_every().map(|_| Instant::now());
        while !*stop.borrow() {
            let pause = match self.send_due(&mut let_others_first, &mut stop).await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::error!(
                        channel = self.channel.name(),
                        error = dunlin_model::chain(&error),
                        "notifications wait"
                    );
                    Some(PAUSE_AFTER_ERROR)
                }
            };
            if let Some((at, every)) = refresh_at.as_mut().zip(self.channel.refresh_every())
                && Instant::now() >= *at
            {
                self.refresh(&mut stop).await;
                *at = Instant::now() + every;
            }
            tokio::select! {
                _ = stop.wait_for(|asked| *asked) => return,
                _ = self.wake.notified() => {}
                _ = pause_of(pause) => {}
                _ = pause_of(refresh_at.map(|at| at.saturating_duration_since(Instant::now()))) => {}
            }
        }
    }

    /// Sends all that is due, and says how long there is nothing more to do; `None` if nothing waits.
    async fn send_due(
        &self,
        let_others_first: &mut HashSet<String>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Option<Duration>, RegistryError> {
        loop {
            if *stop.borrow() {
                return Ok(None);
            }
            let limit = DUE_AT_ONCE_MAX.max(self.channel.batch_max() as u32);
            let due = self.registry.due_notifications(self.channel.name(), limit).await?;
            if due.is_empty() {
                let next = self.registry.next_notification(self.channel.name()).await?;
                return Ok(next.map(|at| at.since(self.clock.now())));
            }
            for batch in due.chunks(self.channel.batch_max()) {
                if let [one] = batch
                    && one.is_of_many()
                    && self.lets_others_first(one, let_others_first).await?
                {
                    continue;
                }
                let batch = self.with_what_follows(batch).await?;
                let (batch, messages) = self.load(&batch).await?;
                // A receiver may take its time to answer; the stop does not. What is cut off stays due, and is sent
                // by the next start with the same key.
                let sent = tokio::select! {
                    biased;
                    _ = stop.wait_for(|asked| *asked) => return Ok(None),
                    sent = self.channel.send(&messages, self.clock.now()) => sent,
                };
                let outcome = self.judge(&batch, sent);
                // However long the registry takes: what it does not know is told again.
                while let Err(error) = self.remember(&outcome).await {
                    if error.is_refusal() {
                        return Err(error);
                    }
                    tracing::error!(
                        channel = self.channel.name(),
                        error = dunlin_model::chain(&error),
                        "what became of notifications is not written down yet"
                    );
                    tokio::select! {
                        _ = stop.wait_for(|asked| *asked) => return Ok(None),
                        () = tokio::time::sleep(PAUSE_AFTER_ERROR) => {}
                    }
                }
            }
        }
    }

    /// Who takes several in one piece takes what stands behind them, too: the piece keeps the order.
    async fn with_what_follows(&self, due: &[Notification]) -> Result<Vec<Notification>, RegistryError> {
        let mut piece = due.to_vec();
        let room = self.channel.batch_max() - due.len();
        if room > 0 {
            let name = self.channel.name();
            piece.extend(self.registry.held_notifications(name, due, room as u32).await?);
        }
        Ok(piece)
    }

    /// A message of many is tried behind what should reach its receiver before it: whatever of it was never tried, and the
    /// rest once for each try. So it comes in its order when its receiver is back, and one message that nobody takes does
    /// not hold it up.
    async fn lets_others_first(
        &self,
        of_many: &Notification,
        did: &mut HashSet<String>,
    ) -> Result<bool, RegistryError> {
        let key = &of_many.idempotency_key;
        if of_many.is_gathering {
            self.registry.close_gathering(key).await?;
        }
        let has_let = did.remove(key);
        match self.registry.due_before(key).await? {
            Some((until, attempts)) if attempts == 0 || !has_let => {
                did.insert(key.clone());
                self.registry.postpone_notification(key, until + Duration::from_micros(1)).await?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// What the notifications say. One that cannot be read is given up.
    async fn load<'a>(
        &self,
        batch: &'a [Notification],
    ) -> Result<(Vec<&'a Notification>, Vec<Message>), RegistryError> {
        let (mut readable, mut messages) = (Vec::new(), Vec::new());
        for notification in batch {
            let (links, with_list) = (self.links.as_ref(), self.channel.attaches_lists());
            let now = self.clock.now();
            match Message::load(notification, &self.registry, links, with_list, now).await? {
                Some(message) => {
                    readable.push(notification);
                    messages.push(message);
                }
                None => {
                    let key = &notification.idempotency_key;
                    tracing::error!(channel = self.channel.name(), key, "a notification cannot be read");
                    self.registry.notification_failed(key, "it cannot be read", None).await?;
                }
            }
        }
        Ok((readable, messages))
    }

    fn judge<'a>(&self, batch: &[&'a Notification], sent: Result<(), SendError>) -> Outcome<'a> {
        let by = ByChannel { channel: self.channel.name().to_owned() };
        let Err(error) = sent else {
            self.metrics.sent.get_or_create(&by).inc_by(batch.len() as u64);
            return Outcome::Sent(batch.iter().map(|n| n.idempotency_key.as_str()).collect());
        };
        let words = dunlin_model::chain(&error);
        // What is held stands behind what failed as before.
        let failed = batch.iter().filter(|n| !n.is_held).map(|notification| {
            let key = notification.idempotency_key.as_str();
            self.metrics.failed.get_or_create(&by).inc();
            let attempts = notification.attempts + 1;
            let pause = self.retry.pause(attempts, spread(key, attempts)).filter(|_| !error.is_final());
            let pause = pause.map(|pause| pause.max(error.retry_after().unwrap_or_default()));
            match pause {
                Some(_) => {
                    tracing::warn!(channel = by.channel, key, attempts, error = words, "notification failed");
                }
                None => {
                    tracing::error!(
                        channel = by.channel,
                        key,
                        attempts,
                        error = words,
                        "notification given up"
                    );
                    self.metrics.given_up.get_or_create(&by).inc();
                }
            }
            (key, pause.map(|pause| self.clock.now() + pause))
        });
        Outcome::Failed { keys: failed.collect(), words }
    }

    async fn remember(&self, outcome: &Outcome<'_>) -> Result<(), RegistryError> {
        match outcome {
            Outcome::Sent(keys) => self.registry.notifications_sent(keys).await,
            Outcome::Failed { keys, words } => {
                for (key, retry_at) in keys {
                    self.registry.notification_failed(key, words, *retry_at).await?;
                }
                Ok(())
            }
        }
    }

    /// Says of all that fires and that this channel was told of that it fires still.
    async fn refresh(&self, stop: &mut watch::Receiver<bool>) {
        let work = async {
            let mut after = None;
            loop {
                let page = match self.registry.alerts_going_on(after.as_ref(), REFRESHED_AT_ONCE_MAX).await {
                    Ok(page) => page,
                    Err(error) => return Err(dunlin_model::chain(&error)),
                };
                let Some(last) = page.last().cloned() else { return Ok(()) };
                let name = self.channel.name();
                let was_told = |told: &Vec<String>| told.iter().any(|target| target == name);
                let told: Vec<_> =
                    page.into_iter().filter(|alert| alert.told.as_ref().is_none_or(was_told)).collect();
                let said = self.channel.refresh(&told, self.clock.now()).await;
                said.map_err(|error| dunlin_model::chain(&error))?;
                after = Some(last);
            }
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|asked| *asked) => {}
            done = work => {
                if let Err(error) = done {
                    tracing::warn!(channel = self.channel.name(), error, "what fires was not said again");
                }
            }
        }
    }
}

/// Between 0 and 1, differently for every notification and try: chance that a replay repeats.
fn spread(key: &str, attempts: u32) -> f64 {
    (xxh3_64(format!("{key}#{attempts}").as_bytes()) >> 11) as f64 / (1u64 << 53) as f64
}

async fn pause_of(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}
