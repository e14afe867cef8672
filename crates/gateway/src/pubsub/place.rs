//! One partition of the log of sessions, as a gateway follows it.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::atomic::Ordering::Acquire,
    time::{Duration, Instant},
};

use dunlin_broker::{Change, GatewayNumber, News, Session, SessionId};
use dunlin_journal::{AppendError, Appended, Offset, Partition, ReadError, Topic};
use dunlin_model::{Clock, DeviceId, TenantId, chain};
use futures::{FutureExt, future::BoxFuture};

use super::{
    CONSUMER, PubSub, READ_BYTES_MAX, RecoverError, Standing,
    snapshots::{self, Snapshot},
};
use crate::{company::Silence, sessions::Revoked};

/// How often wills and expiries are looked for.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// How often sessions are looked for that are open and have no connection.
const SWEEP: Duration = Duration::from_secs(30);
/// A snapshot is written after so many records, or after so long if there were any.
const SNAPSHOT_AFTER_RECORDS: u64 = 200_000;
const SNAPSHOT_AFTER: Duration = Duration::from_secs(60);
/// How long the end of the journal may take to be known at a start, with gateways that go on meanwhile.
pub(super) const END_KNOWN_MAX: Duration = Duration::from_secs(20);

/// One partition of the topic.
pub(super) struct Place {
    pub(super) at: Partition,
    pub(super) position: u64,
    directory: PathBuf,
    /// Of all gateways, this one writes the snapshots and says what time has brought.
    pub(super) is_duty: bool,
    silence: Silence,
    /// When this gateway said last that it is there.
    said: Option<Duration>,
    /// It has said so, and the journal has not answered. There is one at a time, so that the others can count them.
    saying: Option<BoxFuture<'static, Result<Appended, AppendError>>>,
    /// Somebody waits until this gateway says how far it is.
    is_waited_for: bool,
    /// A snapshot that is being written, and up to where it goes.
    keeping: Option<(u64, tokio::task::JoinHandle<io::Result<()>>)>,
    /// Up to where the snapshot on disk is.
    kept: u64,
    kept_when: Instant,
    ticked: Instant,
    swept: Instant,
    /// Those that the last sweep found open and without a connection.
    abandoned: BTreeSet<SessionId>,
}

impl Place {
    pub(super) async fn recover(pubsub: &PubSub, index: u16, directory: &Path) -> Result<Self, RecoverError> {
        let at = Partition::new(Topic::Sessions, index);
        let snapshot = snapshots::newest(directory, index)?;
        let kept = snapshot.as_ref().map_or(0, |snapshot| snapshot.next);
        if pubsub.has_company() {
            knows_end(pubsub, at, kept, directory).await?;
        }
        let extent = pubsub.journal.extent(at);
        if kept > extent.next.0 {
            tracing::error!(partition = %at, kept, end = %extent.next, "the journal ends before the snapshot of the sessions; it was replaced or lost what it had");
        }
        if kept < extent.oldest.0 {
            if pubsub.has_company() {
                let (directory, oldest) = (directory.to_owned(), extent.oldest);
                return Err(RecoverError::Missing { directory, kept, oldest });
            }
            tracing::error!(partition = %at, kept, oldest = %extent.oldest, "changes of sessions were deleted before they were in a snapshot");
        }
        if let Some(Snapshot { path, bytes, .. }) = snapshot {
            let restored = pubsub.broker.restore(index, &bytes);
            restored.map_err(|source| RecoverError::Snapshot { path, source })?;
        }
        let position = kept.clamp(extent.oldest.0, extent.next.0);
        let now = Instant::now();
        let mut place = Self {
            at,
            position,
            directory: directory.to_owned(),
            is_duty: false,
            silence: Silence::default(),
            said: None,
            saying: None,
            is_waited_for: false,
            keeping: None,
            kept: position,
            kept_when: now,
            ticked: now,
            swept: now,
            abandoned: BTreeSet::new(),
        };
        while place.read(pubsub, false).await? {}
        Ok(place)
    }

    /// Takes part in the log; what an earlier run had open is closed with that. A journal that takes nothing now is asked
    /// again later.
    pub(super) async fn join(&mut self, pubsub: &PubSub, clock: &Clock) -> Result<(), RecoverError> {
        loop {
            // All partitions know this gateway by the number that the first gave it.
            let next = || pubsub.broker.next_gateway(self.at.index);
            let gateway = pubsub.broker.me().unwrap_or_else(next);
            let joined = pubsub.append(self.at, [&self.joined(pubsub, gateway, clock)]).await;
            match joined {
                Ok(joined) => {
                    while self.position <= joined.first.0 {
                        self.read(pubsub, false).await?;
                    }
                    if !pubsub.broker.has_gateway(self.at.index, gateway, &pubsub.name) {
                        continue; // Another one came at the same moment.
                    }
                    pubsub.stand(Standing::There);
                }
                Err(error) => pubsub.not_there(error),
            }
            pubsub.broker.is_gateway(gateway);
            return Ok(());
        }
    }

    fn joined<'p>(&self, pubsub: &'p PubSub, gateway: GatewayNumber, clock: &Clock) -> Change<'p> {
        Change::Joined { gateway, name: pubsub.name.as_str().into(), at: clock.now() }
    }

    pub(super) async fn step(
        &mut self,
        pubsub: &PubSub,
        clock: &Clock,
        is_last: bool,
    ) -> Result<(), ReadError> {
        while self.read(pubsub, true).await? {}
        self.say(pubsub, clock, is_last).await;
        if self.ticked.elapsed() >= TICK {
            self.ticked = Instant::now();
            self.join_late(pubsub, clock).await;
            pubsub.forget_wishes().await;
            if self.is_duty {
                let mut due = pubsub.broker.due(self.at.index, clock.now());
                let gone = self.silence.gone().into_iter();
                due.extend(gone.map(|gateway| Change::Gone { gateway, at: clock.now() }));
                self.log(pubsub, due).await;
            }
            if self.swept.elapsed() >= SWEEP {
                self.swept = Instant::now();
                self.sweep(pubsub, clock).await;
            }
        }
        while self.read(pubsub, true).await? {}
        Ok(())
    }

    /// Takes part, if the journal did not take the word for it before.
    async fn join_late(&mut self, pubsub: &PubSub, clock: &Clock) {
        let Some(gateway) = pubsub.broker.me() else { return };
        let standing = *pubsub.standing.borrow();
        if standing == Standing::Coming
            && let Err(error) = pubsub.append(self.at, [&self.joined(pubsub, gateway, clock)]).await
        {
            pubsub.not_there(error);
        }
    }

    /// Says to the other gateways that this one is there, how far it is, or that it leaves. Does not wait for the journal:
    /// what it brings is to be applied meanwhile.
    async fn say(&mut self, pubsub: &PubSub, clock: &Clock, is_last: bool) {
        let Some(gateway) = pubsub.broker.me() else { return };
        let is_there = *pubsub.standing.borrow() == Standing::There;
        let Some(beat) = pubsub.lease.beat().filter(|_| is_there) else { return };
        if is_last {
            return self.log(pubsub, vec![Change::Gone { gateway, at: clock.now() }]).await;
        }
        if let Some(saying) = &mut self.saying {
            match saying.now_or_never() {
                None => return,
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::warn!(error = chain(&error), "the other gateways do not hear of this one")
                }
            }
            self.saying = None;
        }
        let sent = pubsub.lease.now();
        if self.is_waited_for || self.said.is_none_or(|said| said + beat <= sent) {
            self.said = Some(sent);
            self.is_waited_for = false;
            let heard = Change::Heard { gateway, applied: self.position, sent: sent.as_micros() as u64 };
            self.saying = Some(pubsub.append(self.at, [&heard]));
        }
    }

    /// Applies a stretch of the log; false at its end.
    pub(super) async fn read(&mut self, pubsub: &PubSub, live: bool) -> Result<bool, ReadError> {
        if self.position >= pubsub.journal.extent(self.at).next.0 {
            pubsub.set_applied(self.at.index, self.position);
            return Ok(false);
        }
        let stretch = pubsub.journal.read(self.at, Offset(self.position), READ_BYTES_MAX).await?;
        for entries in &stretch {
            for entry in entries.iter() {
                match pubsub.broker.apply(self.at.index, entry.offset.0, entry.bytes, live) {
                    Ok(news) if live => self.hear(pubsub, news),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::error!(error = chain(&error), offset = %entry.offset, "a change of a session was skipped");
                    }
                }
            }
            self.position = entries.next().0;
            pubsub.set_applied(self.at.index, self.position);
        }
        Ok(!stretch.is_empty())
    }

    /// What a change means here, besides what has become of the sessions.
    fn hear(&mut self, pubsub: &PubSub, news: News) {
        let Some(me) = pubsub.broker.me() else { return };
        match news {
            News::Nothing => {}
            News::Closed => pubsub.let_go.notify_waiters(),
            News::Subscribed(by) => self.is_waited_for |= by != me,
            News::Seated { key, connection } => {
                pubsub.seats.seated(&key, connection, me);
                pubsub.let_go.notify_waiters();
            }
            News::Claimed { key, connection } => pubsub.seats.claimed(&key, connection, me),
            News::Heard { gateway, sent } if gateway == me => {
                let sent = Duration::from_micros(sent);
                pubsub.lease.renew(sent);
                if let Some(beat) = pubsub.lease.beat() {
                    let others = pubsub.broker.gateways(self.at.index).into_iter();
                    self.silence.lasts(sent, beat, others.filter(|other| *other != me));
                }
            }
            News::Heard { gateway, .. } => {
                self.silence.broken(gateway);
                pubsub.others_said(self.at.index);
            }
            News::Joined(gateway) => {
                pubsub.others_said(self.at.index);
                pubsub.let_go.notify_waiters();
                match pubsub.broker.has_gateway(self.at.index, me, &pubsub.name) {
                    true if gateway == me => pubsub.stand(Standing::There),
                    true => {}
                    // It has the name of another, or its number.
                    false if gateway == me || *pubsub.standing.borrow() != Standing::Coming => {
                        pubsub.stand(Standing::Gone);
                    }
                    false => {}
                }
            }
            News::Gone(gateway) => {
                self.silence.broken(gateway);
                pubsub.others_said(self.at.index);
                pubsub.let_go.notify_waiters();
                if gateway == me && !pubsub.stopping.load(Acquire) {
                    pubsub.stand(Standing::Gone);
                }
            }
            News::Revoked { tenant, device, is_disabled } => {
                let of = (tenant.parse::<TenantId>(), device.parse::<DeviceId>());
                if let (Some(access), (Ok(tenant), Ok(device))) = (pubsub.access.get(), of) {
                    let what = if is_disabled { Revoked::Device } else { Revoked::Token };
                    access.is_revoked(&tenant, &device, what);
                }
            }
        }
    }

    /// Closes the sessions whose connection has ended without a word in the log: its handshake was cut short, or the
    /// journal did not take the word. They are found twice before, so that a word on its way has come.
    pub(super) async fn sweep(&mut self, pubsub: &PubSub, clock: &Clock) {
        let found_before = std::mem::take(&mut self.abandoned);
        let (mut seats, mut changes) = (Vec::new(), Vec::new());
        for session in pubsub.broker.abandoned(self.at.index) {
            // Whoever has the client id is on the way in or out. Nobody comes in before this has its place in the log.
            let Some(seat) = pubsub.seats.hold(&session.key) else { continue };
            if found_before.contains(&session.id) {
                changes.push(closed(&session, clock));
                seats.push(seat);
            } else {
                self.abandoned.insert(session.id);
            }
        }
        if pubsub.has_company() {
            let unlogged = pubsub.seats.unlogged().into_iter();
            let unlogged = unlogged.filter(|(key, _)| pubsub.partition_of(&key.tenant) == self.at);
            changes.extend(unlogged.map(|(key, connection)| Change::Seated {
                key,
                connection,
                at: clock.now(),
            }));
        }
        let logged = self.log(pubsub, changes);
        drop(seats);
        logged.await;
    }

    /// Logs what the server itself has found out; it has its place in the log when this returns. What the journal
    /// does not take is found again.
    pub(super) fn log(&self, pubsub: &PubSub, changes: Vec<Change<'_>>) -> impl Future<Output = ()> + use<> {
        let appending = (!changes.is_empty()).then(|| pubsub.append(self.at, &changes));
        async move {
            let Some(appending) = appending else { return };
            if let Err(error) = appending.await {
                tracing::warn!(error = chain(&error), "wills and ends of sessions wait for the journal");
            }
        }
    }

    /// Writes a snapshot if it is this gateway's to write, and time for one. What the log brings is applied meanwhile,
    /// unless it is to be written `at_once`.
    pub(super) async fn keep(&mut self, pubsub: &PubSub, clock: &Clock, at_once: bool) {
        if at_once || self.keeping.as_ref().is_some_and(|(_, keeping)| keeping.is_finished()) {
            self.kept(pubsub).await;
        }
        let is_time = self.position - self.kept >= SNAPSHOT_AFTER_RECORDS
            || self.kept_when.elapsed() >= SNAPSHOT_AFTER
            || at_once;
        if !self.is_duty || self.position == self.kept || self.keeping.is_some() || !is_time {
            return;
        }
        self.kept_when = Instant::now();
        // All forget the same at the same place.
        self.log(pubsub, vec![Change::Passed { at: clock.now() }]).await;
        while let Ok(true) = self.read(pubsub, true).await {}
        let (next, bytes) = (self.position, pubsub.broker.snapshot(self.at.index, self.position));
        let (directory, index) = (self.directory.clone(), self.at.index);
        let writer = pubsub.broker.me();
        let writing =
            tokio::task::spawn_blocking(move || snapshots::write(&directory, index, next, writer, &bytes));
        self.keeping = Some((next, writing));
        if at_once {
            self.kept(pubsub).await;
        }
    }

    /// The snapshot that is being written is there, once this comes back.
    async fn kept(&mut self, pubsub: &PubSub) {
        let Some((next, writing)) = self.keeping.take() else { return };
        let written = writing.await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        if let Err(error) = written {
            let directory = self.directory.display();
            tracing::error!(%directory, %error, "snapshot of the sessions not written; the journal keeps what it needs");
            return;
        }
        self.kept = next;
        if let Err(error) = pubsub.journal.commit(CONSUMER, self.at, Offset(next)).await {
            tracing::warn!(%error, "the journal did not take the position of the sessions; it keeps more than it must");
        }
    }
}

/// Waits until the journal is known to go as far as the snapshot, which a gateway that goes on has written: what is
/// before it must not be applied twice.
async fn knows_end(pubsub: &PubSub, at: Partition, kept: u64, directory: &Path) -> Result<(), RecoverError> {
    let mut progress = pubsub.journal.progress();
    let known =
        async { while pubsub.journal.extent(at).next.0 < kept && progress.changed().await.is_ok() {} };
    let _late = tokio::time::timeout(END_KNOWN_MAX, known).await;
    let next = pubsub.journal.extent(at).next;
    match next.0 < kept {
        true => Err(RecoverError::Ahead { directory: directory.to_owned(), kept, next }),
        false => Ok(()),
    }
}

/// The connection is gone and has left no word.
fn closed(session: &Session, clock: &Clock) -> Change<'static> {
    let (connection, at) = (session.opened_by(), clock.now());
    Change::Closed { session: session.id, connection, at, with_will: true, expiry_seconds: None }
}
