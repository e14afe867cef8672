//! Does what is decided: reads what decisions depend on, and writes what they are, in one transaction.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use dunlin_model::{AlertId, AlertPhase, AlertTransition, Fingerprint, Timestamp};
use dunlin_registry::{Alert, AlertWork, Registry, RegistryError, Timer, TimerKind};
use tokio::sync::Notify;

use crate::{
    CONSUMER,
    absorb::{Absorbed, absorb},
    matchers::Matchers,
    metrics::Metrics,
    plan::{Flap, Matter, Plan, What, World, plan},
    policy::Policy,
};

#[derive(Debug, Clone)]
pub(crate) struct Executor {
    pub(crate) registry: Registry,
    pub(crate) policy: Arc<Policy>,
    pub(crate) metrics: Metrics,
    /// Of the channels' dispatchers.
    pub(crate) senders: Vec<Arc<Notify>>,
    /// Of what looks at alerts again.
    pub(crate) reminder: Arc<Notify>,
}

/// Timers taken at once.
const TIMERS_MAX: u32 = 500;

impl Executor {
    /// Applies a stretch of the `alerts` topic, decides who is told, and moves the position to `next`: all of it or
    /// nothing, and a replay does none of it twice. Returns how many transitions were new.
    pub(crate) async fn absorb(
        &self,
        partition: u16,
        transitions: &[AlertTransition],
        next: u64,
    ) -> Result<u64, RegistryError> {
        let mut work = self.registry.alert_work().await?;
        let mut absorbed = Absorbed::default();
        let mut flaps = HashMap::new();
        let mut fresh_count = 0;
        let begun = transitions.iter().map(|t| t.since).min();
        if let Some((oldest, from)) = begun.zip(transitions.iter().map(|t| t.at).min()) {
            let all = fingerprints(transitions.iter());
            let begins = fingerprints(transitions.iter().filter(|t| t.phase == AlertPhase::Firing));
            flaps = self.flaps(&mut work, &all, Some((&begins, from))).await?;
            let mut fresh = work.remember(transitions).await?;
            fresh_count = fresh.len() as u64;
            if fresh_count > 0 {
                let open = open_alerts(&mut work, transitions).await?;
                let goes_on = |t: &&AlertTransition| {
                    open.get(&t.fingerprint).is_some_and(|alert| alert.id == t.alert())
                };
                let others = fingerprints(transitions.iter().filter(|t| !goes_on(t)));
                let known = work.episodes(&others, oldest).await?;
                absorbed = absorb(open, &known, transitions.iter().filter(|t| fresh.remove(&t.id)));
            }
        }
        self.carry_out(&mut work, absorbed, flaps).await?;
        work.move_position(CONSUMER, partition, next).await?;
        work.commit().await?;
        self.wake();
        Ok(fresh_count)
    }

    /// Looks at what is due to be looked at again. False if that is all of it.
    pub(crate) async fn look_again(&self) -> Result<bool, RegistryError> {
        let mut work = self.registry.alert_work().await?;
        let timers = work.take_due_timers(TIMERS_MAX).await?;
        if timers.is_empty() {
            return Ok(false);
        }
        let fingerprints: BTreeSet<Fingerprint> = timers.iter().map(|t| t.alert.fingerprint).collect();
        let fingerprints: Vec<Fingerprint> = fingerprints.into_iter().collect();
        let newest = work.newest_alerts(&fingerprints).await?;
        let flaps = self.flaps(&mut work, &fingerprints, None).await?;
        let matters = timers.iter().filter_map(|timer| matter_of(timer, &newest)).collect();
        let is_all = timers.len() < TIMERS_MAX as usize;
        let absorbed = Absorbed { matters, ..Absorbed::default() };
        self.carry_out(&mut work, absorbed, flaps).await?;
        work.commit().await?;
        self.wake();
        Ok(!is_all)
    }

    /// Which of these flap, and when those that fire anew, from a time on, fired before and do not flap.
    async fn flaps(
        &self,
        work: &mut AlertWork,
        fingerprints: &[Fingerprint],
        fire: Option<(&[Fingerprint], Timestamp)>,
    ) -> Result<HashMap<Fingerprint, Flap>, RegistryError> {
        let mut flaps = HashMap::<_, Flap>::new();
        for timer in work.calm_timers(fingerprints).await? {
            flaps.entry(timer.alert.fingerprint).or_default().flapping = Some(timer.targets);
        }
        if let Some(((fire, from), firings_max)) = fire.zip(self.policy.flap_firings) {
            let calm: Vec<_> = fire.iter().copied().filter(|f| !flaps.contains_key(f)).collect();
            let firings = work.firings(&calm, from - self.policy.flap_within, firings_max).await?;
            for (fingerprint, firings) in firings {
                flaps.insert(fingerprint, Flap { firings, flapping: None });
            }
        }
        Ok(flaps)
    }

    async fn carry_out(
        &self,
        work: &mut AlertWork,
        absorbed: Absorbed,
        flaps: HashMap<Fingerprint, Flap>,
    ) -> Result<(), RegistryError> {
        let Absorbed { mut alerts, matters, over } = absorbed;
        if !over.is_empty() {
            work.end_timers(&over).await?;
        }
        let plan = match matters.is_empty() {
            true => Plan::default(),
            false => plan(&self.policy, self.look(work, &alerts, &matters, flaps).await?, &matters),
        };
        for matter in &matters {
            if let Some(told) = plan.told.get(&matter.alert.id) {
                let alert = alerts.entry(matter.alert.id).or_insert_with(|| matter.alert.clone());
                alert.told = Some(told.clone());
            }
        }
        let mut alerts: Vec<Alert> = alerts.into_values().collect();
        alerts.sort_unstable_by_key(|alert| alert.id);
        work.put_alerts(&alerts).await?;
        let over: HashSet<AlertId> = over.into_iter().collect();
        let timers: Vec<Timer> = plan
            .timers
            .into_iter()
            .filter(|timer| timer.kind == TimerKind::Calm || !over.contains(&timer.alert))
            .collect();
        work.put_timers(&timers).await?;
        work.put_budgets(&plan.budgets).await?;
        work.put_gatherings(&plan.gatherings).await?;
        work.put_notifications(&plan.notifications).await?;
        self.metrics.count(&plan.notifications);
        Ok(())
    }

    /// All that decisions about these matters depend on.
    async fn look(
        &self,
        work: &mut AlertWork,
        alerts: &HashMap<AlertId, Alert>,
        matters: &[Matter],
        flaps: HashMap<Fingerprint, Flap>,
    ) -> Result<World, RegistryError> {
        let mut world = World { now: work.now(), flaps, ..World::default() };
        for silence in work.silences().await? {
            match Matchers::restore(&silence.matchers) {
                Ok(matchers) => world.silences.push((silence, matchers)),
                // It was valid when it was made. Rather too much is told than nothing.
                Err(error) => tracing::error!(
                    silence = silence.id,
                    error = dunlin_model::chain(&error),
                    "a silence that cannot be read is not in force"
                ),
            }
        }
        self.look_for_gateways(work, alerts, matters, &mut world).await?;
        world.budgets = work.budgets().await?;
        world.gatherings = work.gatherings().await?;
        Ok(world)
    }

    async fn look_for_gateways(
        &self,
        work: &mut AlertWork,
        alerts: &HashMap<AlertId, Alert>,
        matters: &[Matter],
        world: &mut World,
    ) -> Result<(), RegistryError> {
        if self.policy.down_rules.is_empty() {
            return Ok(());
        }
        let mut devices: HashMap<&str, BTreeSet<&str>> = HashMap::new();
        for matter in matters.iter().filter(|m| m.alert.state.is_open()) {
            devices.entry(&matter.alert.tenant).or_default().insert(&matter.alert.device);
        }
        for (tenant, devices) in devices {
            let devices: Vec<&str> = devices.into_iter().collect();
            let parents = work.parents(tenant, &devices).await?;
            let gateways: BTreeSet<&str> = parents.values().map(String::as_str).collect();
            let gateways: Vec<&str> = gateways.into_iter().collect();
            let before = work.firing_on(tenant, &gateways).await?;
            // What has just been absorbed is not written yet.
            let now = alerts.values().filter(|a| a.tenant == tenant && gateways.contains(&a.device.as_str()));
            let firing = before.iter().filter(|a| !alerts.contains_key(&a.id)).chain(now);
            for alert in firing.filter(|a| a.is_firing() && self.policy.says_down(&a.rule)) {
                world.down.insert((tenant.to_owned(), alert.device.clone()), alert.id);
            }
            let parents = parents.into_iter().map(|(child, parent)| ((tenant.to_owned(), child), parent));
            world.parents.extend(parents);
        }
        Ok(())
    }

    fn wake(&self) {
        self.senders.iter().for_each(|sender| sender.notify_one());
        self.reminder.notify_one();
    }
}

/// Each once.
fn fingerprints<'a>(transitions: impl Iterator<Item = &'a AlertTransition>) -> Vec<Fingerprint> {
    let each: BTreeSet<Fingerprint> = transitions.map(|t| t.fingerprint).collect();
    each.into_iter().collect()
}

/// What is not over of what these transitions are of.
async fn open_alerts(
    work: &mut AlertWork,
    transitions: &[AlertTransition],
) -> Result<HashMap<Fingerprint, Alert>, RegistryError> {
    let mut of_tenants = HashMap::<&str, BTreeSet<Fingerprint>>::new();
    for t in transitions {
        of_tenants.entry(&t.tenant).or_default().insert(t.fingerprint);
    }
    let mut open = HashMap::new();
    for (tenant, fingerprints) in of_tenants {
        let fingerprints: Vec<Fingerprint> = fingerprints.into_iter().collect();
        let alerts = work.open_alerts(tenant, &fingerprints).await?;
        open.extend(alerts.into_iter().map(|alert| (alert.id.fingerprint, alert)));
    }
    Ok(open)
}

/// What a timer is about; nothing if its alert is not the newest of its fingerprint, and so is over.
fn matter_of(timer: &Timer, newest: &HashMap<Fingerprint, Alert>) -> Option<Matter> {
    let alert = newest.get(&timer.alert.fingerprint)?;
    let what = match timer.kind {
        TimerKind::Calm => What::Calm(timer.targets.clone()),
        _ if alert.id != timer.alert => return None,
        TimerKind::Step(n) => What::Step(n),
        TimerKind::Look => What::Look,
        TimerKind::Acknowledged => What::Acknowledged,
        TimerKind::Unsnooze => What::Unsnooze,
    };
    let cause = format!("{}-{}-{}", timer.alert, timer.kind.name(), timer.at.as_micros());
    Some(Matter { alert: alert.clone(), what, cause, at: timer.at })
}
