//! The gateways that share a journal: how each says that it is there, and for how long it may go by what it knows.
//!
//! Every gateway applies the same log, so each knows all sessions, all retained messages, and what the clients of the
//! others want. What nobody elsewhere wants need not go by the log: that is decided here, by what is known here. So
//! nobody is told that it has subscribed before every other gateway has said, in the log, that it knows; and a gateway
//! that was not heard of lately decides nothing by itself: the others may have gone on without it.

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use dunlin_broker::GatewayNumber;
use hashbrown::HashMap;

/// Whether other gateways share the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Company {
    Alone,
    /// Each has a name of its own, which it keeps over a restart. One that is not heard of for so long is gone.
    Others {
        name: String,
        silence_max: Duration,
    },
}

/// So often within the longest silence a gateway says that it is there.
const BEATS: u32 = 5;
/// For so many beats it goes by what it knows. The others wait for longer before they go on without it.
const LEASE_BEATS: u32 = 3;

impl Company {
    /// Of a gateway that is alone, none.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Alone => "",
            Self::Others { name, .. } => name,
        }
    }

    fn beat(&self) -> Option<Duration> {
        match self {
            Self::Alone => None,
            Self::Others { silence_max, .. } => Some(*silence_max / BEATS),
        }
    }
}

/// Until when a gateway may go by what it knows.
#[derive(Debug)]
pub(crate) struct Lease {
    beat: Option<Duration>,
    began: Instant,
    until_micros: AtomicU64,
}

impl Lease {
    pub(crate) fn new(company: &Company) -> Self {
        Self { beat: company.beat(), began: Instant::now(), until_micros: AtomicU64::new(0) }
    }

    /// How often it is to be renewed; never by who is alone.
    pub(crate) fn beat(&self) -> Option<Duration> {
        self.beat
    }

    /// Since it began.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The log has brought what this gateway said at `sent`.
    pub(crate) fn renew(&self, sent: Duration) {
        if let Some(beat) = self.beat {
            let until = (sent + beat * LEASE_BEATS).as_micros();
            self.until_micros.fetch_max(until as u64, Relaxed);
        }
    }

    pub(crate) fn holds(&self) -> bool {
        self.beat.is_none() || self.now().as_micros() < u128::from(self.until_micros.load(Relaxed))
    }
}

/// For how long the others were not heard of, in beats of this gateway that the log has brought: while the log is not
/// read, no time passes.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    beats: BTreeMap<GatewayNumber, u32>,
    counted: Duration,
}

impl Silence {
    /// Another one was heard of, or is gone.
    pub(crate) fn broken(&mut self, by: GatewayNumber) {
        self.beats.remove(&by);
    }

    /// This one was heard of, as it was at `sent`; the `others` have been silent meanwhile.
    pub(crate) fn lasts(
        &mut self,
        sent: Duration,
        beat: Duration,
        others: impl Iterator<Item = GatewayNumber>,
    ) {
        if sent < self.counted + beat {
            return;
        }
        self.counted = sent;
        let before = mem::take(&mut self.beats);
        self.beats = others.map(|other| (other, before.get(&other).map_or(1, |beats| beats + 1))).collect();
    }

    /// Those that are taken for gone.
    pub(crate) fn gone(&self) -> Vec<GatewayNumber> {
        self.beats.iter().filter(|(_, beats)| **beats > BEATS).map(|(other, _)| *other).collect()
    }
}

/// What clients want whose sessions are in no log: the other gateways are told of the first that wants something, and
/// when the last of them is gone.
#[derive(Debug, Default)]
pub(crate) struct Wishes(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By tenant and filter.
    wishes: HashMap<Box<str>, HashMap<Box<str>, Wish>>,
    /// Those that had nobody left, and may have somebody again.
    idle: BTreeMap<Box<str>, Vec<Box<str>>>,
}

#[derive(Debug, Default)]
struct Wish {
    clients: usize,
    /// The end of the log that tells of it.
    told: Option<u64>,
}

impl Wishes {
    /// One more client wants each of these. `tell` is called with those of which the others were not told, before anybody
    /// else can change them. Returns the end of the log that tells of the rest, and the answer.
    pub(crate) fn add<T>(
        &self,
        tenant: &str,
        filters: &[&str],
        tell: impl FnOnce(&[&str]) -> T,
    ) -> (u64, Option<T>) {
        let mut state = self.lock();
        let of_tenant = state.wishes.entry_ref(tenant).or_default();
        let (mut end, mut untold) = (0, Vec::new());
        for filter in filters {
            let wish = of_tenant.entry_ref(*filter).or_default();
            wish.clients += 1;
            match wish.told {
                Some(told) => end = end.max(told),
                None => untold.push(*filter),
            }
        }
        (end, (!untold.is_empty()).then(|| tell(&untold)))
    }

    /// The others are told of these in the log before `end`.
    pub(crate) fn told(&self, tenant: &str, filters: &[&str], end: u64) {
        let mut state = self.lock();
        let Some(of_tenant) = state.wishes.get_mut(tenant) else { return };
        for filter in filters {
            if let Some(wish) = of_tenant.get_mut(*filter) {
                wish.told = Some(end);
            }
        }
    }

    /// One client less wants each of these.
    pub(crate) fn drop(&self, tenant: &str, filters: impl IntoIterator<Item = impl AsRef<str>>) {
        let State { wishes, idle } = &mut *self.lock();
        let Some(of_tenant) = wishes.get_mut(tenant) else { return };
        for filter in filters {
            if let Some(wish) = of_tenant.get_mut(filter.as_ref()) {
                wish.clients = wish.clients.saturating_sub(1);
                if wish.clients == 0 {
                    idle.entry(tenant.into()).or_default().push(filter.as_ref().into());
                }
            }
        }
    }

    /// Forgets what nobody wants any more. `tell` is called with it, so many bytes of a tenant at a time, before anybody can
    /// want it again.
    pub(crate) fn forget_idle<T>(
        &self,
        bytes_max: usize,
        mut tell: impl FnMut(&str, &[Box<str>]) -> T,
    ) -> Vec<(Idle, T)> {
        let State { wishes, idle } = &mut *self.lock();
        let mut told = Vec::new();
        for (tenant, mut filters) in mem::take(idle) {
            let Some(of_tenant) = wishes.get_mut(&tenant) else { continue };
            filters.retain(|filter| {
                let is_idle = of_tenant.get(filter).is_some_and(|wish| wish.clients == 0);
                is_idle && of_tenant.remove(filter).is_some()
            });
            if of_tenant.is_empty() {
                wishes.remove(&tenant);
            }
            while !filters.is_empty() {
                let (mut bytes, mut count) = (0, 0);
                while count < filters.len() && (count == 0 || bytes + filters[count].len() <= bytes_max) {
                    bytes += filters[count].len();
                    count += 1;
                }
                let rest = filters.split_off(count);
                let answer = tell(&tenant, &filters);
                told.push((Idle { tenant: tenant.clone(), filters }, answer));
                filters = rest;
            }
        }
        told
    }

    /// The others could not be told: it is tried again.
    pub(crate) fn still_idle(&self, Idle { tenant, filters }: Idle) {
        let State { wishes, idle } = &mut *self.lock();
        let of_tenant = wishes.entry(tenant.clone()).or_default();
        for filter in filters {
            of_tenant.entry(filter.clone()).or_default();
            idle.entry(tenant.clone()).or_default().push(filter);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What nobody wants in a tenant.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Idle {
    tenant: Box<str>,
    filters: Vec<Box<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn others() -> Company {
        Company::Others { name: "gateway-1".into(), silence_max: SECOND * 10 }
    }

    #[test]
    fn who_was_not_heard_of_lately_decides_nothing_by_itself() {
        let lease = Lease::new(&others());
        assert!(!lease.holds(), "not before the log has taken its word");
        lease.renew(lease.now());
        assert!(lease.holds());
        assert!(Lease::new(&Company::Alone).holds());
    }

    #[test]
    fn the_others_wait_for_longer_than_the_lease() {
        let gateway = |nth: u64| GatewayNumber::of(nth << 40);
        let (beat, mut silence) = (SECOND * 2, Silence::default());
        let mut beats = 0;
        while silence.gone().is_empty() {
            beats += 1;
            silence.lasts(beat * beats, beat, [gateway(1), gateway(2)].into_iter());
            silence.lasts(beat * beats + SECOND, beat, [gateway(1), gateway(2)].into_iter());
            silence.broken(gateway(2));
        }
        assert_eq!(silence.gone(), [gateway(1)]);
        // The first beat may have been sent before the other was heard of last.
        assert!(beat * (beats - 1) > beat * LEASE_BEATS, "{beats}");
        silence.broken(gateway(1));
        assert_eq!(silence.gone(), []);
    }

    #[test]
    fn the_others_are_told_of_the_first_and_the_last_who_wants_something() {
        let wishes = Wishes::default();
        let tell = |filters: &[&str]| filters.join(" ");
        assert_eq!(wishes.add("t", &["a", "b"], tell), (0, Some("a b".to_owned())));
        assert_eq!(wishes.add("t", &["a"], tell), (0, Some("a".to_owned())), "it is not in the log yet");
        wishes.told("t", &["a", "b"], 7);
        assert_eq!(wishes.add("t", &["a"], tell), (7, None));
        wishes.drop("t", ["a", "a", "b"]);
        let idle = |wishes: &Wishes| wishes.forget_idle(2, |_, filters| filters.join(" "));
        let b = || Idle { tenant: "t".into(), filters: vec!["b".into()] };
        assert_eq!(idle(&wishes), [(b(), "b".to_owned())]);
        assert_eq!(idle(&wishes), []);
        wishes.still_idle(b());
        assert_eq!(wishes.add("t", &["b"], tell), (0, Some("b".to_owned())), "wanted again before that");
        wishes.add("t", &["c"], tell);
        wishes.drop("t", ["a", "b", "c"]);
        let told: Vec<String> = idle(&wishes).into_iter().map(|(_, told)| told).collect();
        assert_eq!(told, ["b a", "c"], "no more at a time than fits");
        assert!(wishes.lock().wishes.is_empty());
    }
}
