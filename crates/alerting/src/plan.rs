//! Who is told what, when, and why not. Pure: from what is in memory, by the time that is given.
//!
//! Every matter comes out as a notification for everybody it concerns: one of its own, one carried by a message of
//! many, or one that is suppressed and says why. What was kept back for a time has a timer to be looked at again.

#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use dunlin_model::{AlertId, AlertState, Fingerprint, Timestamp};
use dunlin_registry::{Alert, Gathering, NewNotification, NotificationState, Silence, Timer, TimerKind};

use crate::{
    config::Budget,
    matchers::Matchers,
    message::Facts,
    policy::{Policy, Target},
};

/// Something that somebody may have to be told.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Matter {
    /// As it is after what happened.
    pub(crate) alert: Alert,
    pub(crate) what: What,
    /// Names the matter: the same whenever it is looked at.
    pub(crate) cause: String,
    /// When it happened, event time.
    pub(crate) at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    Fired,
    /// It has become more severe.
    Raised,
    Resolved,
    /// By a person.
    Acknowledged,
    /// The nth step of the escalation is due.
    Step(u32),
    /// What kept people from being told may be over.
    Look,
    /// The time for which it was snoozed is over.
    Unsnooze,
    /// It has stopped flapping; these were told that it flaps.
    Calm(Vec<String>),
}

/// What decisions depend on, beside the policy.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) now: Timestamp,
    pub(crate) silences: Vec<(Silence, Matchers)>,
    /// What device each is behind: by tenant and device.
    pub(crate) parents: HashMap<(String, String), String>,
    /// Devices that are down, by tenant and device, and the alerts that say so.
    pub(crate) down: HashMap<(String, String), AlertId>,
    pub(crate) flaps: HashMap<Fingerprint, Flap>,
    pub(crate) budgets: HashMap<String, Timestamp>,
    pub(crate) gatherings: Vec<Gathering>,
}

/// How often an alert has come and gone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flap {
    /// When it fired, event time: a replay of old data flaps as it did then.
    pub(crate) firings: Vec<Timestamp>,
    /// It is flapping; these were told so.
    pub(crate) flapping: Option<Vec<String>>,
}

/// What is to be written down.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) notifications: Vec<NewNotification>,
    pub(crate) timers: Vec<Timer>,
    /// Who has been told, of each alert for which that changed.
    pub(crate) told: HashMap<AlertId, Vec<String>>,
    pub(crate) budgets: Vec<(String, Timestamp)>,
    /// Messages of many that took more.
    pub(crate) gatherings: Vec<Gathering>,
}

pub(crate) fn plan(policy: &Policy, world: World, matters: &[Matter]) -> Plan {
    let mut planner =
        Planner { policy, world, plan: Plan::default(), opened: BTreeMap::new(), grown: Vec::new() };
    for matter in matters {
        planner.decide(matter);
    }
    planner.finish()
}

struct Planner<'a> {
    policy: &'a Policy,
    world: World,
    plan: Plan,
    /// Messages of many that begin here: where they stand among the notifications.
    opened: BTreeMap<String, usize>,
    /// Which of the world's messages of many grew.
    grown: Vec<usize>,
}

/// Why nobody is told now, and what may change that.
struct Kept {
    reason: String,
    until: Timestamp,
    waits_for: Option<String>,
}

impl Planner<'_> {
    fn decide(&mut self, matter: &Matter) {
        match &matter.what {
            What::Fired | What::Raised => self.fired(matter),
            What::Resolved => self.resolved(matter),
            What::Acknowledged => self.acknowledged(matter),
            What::Step(n) => self.step(matter, *n),
            What::Look => self.tell_first_step(matter, "fired", true),
            What::Unsnooze => self.tell_first_step(matter, "reminded", false),
            What::Calm(targets) => self.calm(matter, targets),
        }
    }

    fn fired(&mut self, matter: &Matter) {
        let fingerprint = matter.alert.id.fingerprint;
        let flap = self.world.flaps.entry(fingerprint).or_default();
        if matter.what == What::Fired {
            flap.firings.push(matter.at);
        }
        if let Some(told) = flap.flapping.clone() {
            self.still_flapping(matter, told);
            let first = self.first_step(&matter.alert);
            return self.suppress(matter, &first, name_of(&matter.what), &self.flapping_words());
        }
        let from = matter.at - self.policy.flap_within;
        let lately = flap.firings.iter().filter(|at| **at > from && **at <= matter.at).count();
        if self.policy.flap_firings.is_none_or(|firings| lately < firings as usize) {
            return self.tell_first_step(matter, name_of(&matter.what), matter.what == What::Fired);
        }
        self.tell_first_step(matter, "flapping", true);
        let told = self.told(&matter.alert).unwrap_or_default();
        self.still_flapping(matter, told.clone());
        self.world.flaps.entry(fingerprint).or_default().flapping = Some(told);
    }

    fn still_flapping(&mut self, matter: &Matter, told: Vec<String>) {
        let at = self.world.now + self.policy.flap_quiet;
        self.timer(&matter.alert, TimerKind::Calm, at, None, told);
    }

    fn flapping_words(&self) -> String {
        let firings = self.policy.flap_firings.unwrap_or_default();
        let within = self.policy.flap_within.as_secs();
        let quiet = self.policy.flap_quiet.as_secs();
        format!(
            "it flaps: it fired {firings} times within {within} s, and is told again after {quiet} s of quiet"
        )
    }

    fn resolved(&mut self, matter: &Matter) {
        let flapping = self.world.flaps.get(&matter.alert.id.fingerprint).and_then(|f| f.flapping.clone());
        if let Some(told) = flapping {
            self.still_flapping(matter, told.clone());
            let mut concerned = self.first_step(&matter.alert);
            concerned.extend(
                self.targets(&told).into_iter().filter(|t| !concerned.contains(t)).collect::<Vec<_>>(),
            );
            return self.suppress(matter, &concerned, "resolved", &self.flapping_words());
        }
        let first = self.first_step(&matter.alert);
        // Written before anybody wrote down who was told: everybody was.
        let Some(told) = self.told(&matter.alert) else {
            return self.deliver_all(matter, &first, "resolved");
        };
        self.deliver_all(matter, &self.targets(&told), "resolved");
        let untold: Vec<_> = first.into_iter().filter(|target| !told.contains(&target.id)).collect();
        self.suppress(matter, &untold, "resolved", "was not told that it fires");
    }

    fn acknowledged(&mut self, matter: &Matter) {
        if matter.alert.state != AlertState::Acknowledged {
            return;
        }
        let told = self.told(&matter.alert).unwrap_or_default();
        let hearing: Vec<_> = self.targets(&told).into_iter().filter(|t| t.hears_acknowledged).collect();
        self.deliver_all(matter, &hearing, "acknowledged");
    }

    /// The beginning of the escalation: those of the first step.
    fn tell_first_step(&mut self, matter: &Matter, what: &'static str, only_untold: bool) {
        let told = self.told(&matter.alert).unwrap_or_default();
        let mut targets = self.first_step(&matter.alert);
        if only_untold {
            targets.retain(|target| !told.contains(&target.id));
        } else {
            targets
                .extend(self.targets(&told).into_iter().filter(|t| !targets.contains(t)).collect::<Vec<_>>());
        }
        if !matter.alert.state.is_open() {
            return;
        }
        if targets.is_empty() {
            // All know; but whoever looked after it may have let go.
            return self.schedule_step(&matter.alert, 1);
        }
        if matter.alert.state == AlertState::Acknowledged {
            return self.suppress(matter, &targets, what, &acknowledged_words(&matter.alert));
        }
        if let Some(kept) = self.kept_back(matter) {
            self.suppress(matter, &targets, what, &kept.reason);
            return self.timer(&matter.alert, TimerKind::Look, kept.until, kept.waits_for, Vec::new());
        }
        self.deliver_all(matter, &targets, what);
        self.schedule_step(&matter.alert, 1);
    }

    fn step(&mut self, matter: &Matter, n: u32) {
        let Some(step) = self.policy.route(&matter.alert).step(n) else { return };
        let targets = step.targets.clone();
        if !matter.alert.state.is_open() {
            return;
        }
        if matter.alert.state == AlertState::Acknowledged {
            return self.suppress(matter, &targets, "escalated", &acknowledged_words(&matter.alert));
        }
        if let Some(kept) = self.kept_back(matter) {
            self.suppress(matter, &targets, "escalated", &kept.reason);
            return self.timer(&matter.alert, TimerKind::Step(n), kept.until, kept.waits_for, Vec::new());
        }
        self.deliver_all(matter, &targets, "escalated");
        self.schedule_step(&matter.alert, n + 1);
    }

    fn schedule_step(&mut self, alert: &Alert, n: u32) {
        let route = self.policy.route(alert);
        if let (Some(before), Some(_)) = (route.step(n - 1), route.step(n)) {
            let at = self.world.now + before.wait;
            self.timer(alert, TimerKind::Step(n), at, None, Vec::new());
        }
    }

    /// Those who heard that it flaps hear how it ended.
    fn calm(&mut self, matter: &Matter, told_of_flapping: &[String]) {
        if let Some(flap) = self.world.flaps.get_mut(&matter.alert.id.fingerprint) {
            flap.flapping = None;
        }
        match matter.alert.state {
            AlertState::Firing | AlertState::Acknowledged => self.tell_first_step(matter, "calmed", true),
            AlertState::Pending | AlertState::Resolved | AlertState::Cancelled => {
                self.deliver_all(matter, &self.targets(told_of_flapping), "resolved");
            }
        }
    }

    /// Whether a snooze, a silence or a dependency keeps people from being told.
    fn kept_back(&self, matter: &Matter) -> Option<Kept> {
        let (alert, now) = (&matter.alert, self.world.now);
        if let Some(until) = alert.snoozed_until.filter(|until| *until > now) {
            return Some(Kept { reason: format!("snoozed until {until}"), until, waits_for: None });
        }
        for (silence, matchers) in &self.world.silences {
            let is_for = silence.tenant == alert.tenant && matchers.matches(alert);
            if let Some(until) = is_for.then(|| silence.in_force_until(now)).flatten() {
                let kind = if silence.every_seconds.is_some() { "maintenance window" } else { "silence" };
                let Silence { id, created_by, .. } = silence;
                let reason = format!("{kind} {id} of {created_by} until {until}");
                return Some(Kept { reason, until, waits_for: Some(id.clone()) });
            }
        }
        let parent = self.world.parents.get(&(alert.tenant.clone(), alert.device.clone()))?;
        if let Some(down) = self.world.down.get(&(alert.tenant.clone(), parent.clone())) {
            let reason = format!("its gateway {parent} is down: alert {down}");
            // Its end is what is waited for; the time is for an end that nobody tells.
            let until = now + DEPENDENCY_LOOK;
            return Some(Kept { reason, until, waits_for: Some(down.to_string()) });
        }
        let waits = matter.what == What::Fired && !self.policy.dependency_wait.is_zero();
        (waits && !self.policy.down_rules.is_empty()).then(|| Kept {
            reason: format!(
                "waits {} s to see whether its gateway {parent} is down",
                self.policy.dependency_wait.as_secs()
            ),
            until: now + self.policy.dependency_wait,
            waits_for: None,
        })
    }

    fn deliver_all(&mut self, matter: &Matter, targets: &[Arc<Target>], what: &'static str) {
        let says_it_fires = !matches!(what, "resolved" | "acknowledged");
        for target in targets {
            self.deliver(matter, target, what);
            if says_it_fires {
                let told = self.plan.told.entry(matter.alert.id);
                let told = told.or_insert_with(|| matter.alert.told.clone().unwrap_or_default());
                if !told.contains(&target.id) {
                    told.push(target.id.clone());
                }
            }
        }
    }

    /// By itself if the budgets allow it, else in the digest.
    fn deliver(&mut self, matter: &Matter, target: &Arc<Target>, what: &'static str) {
        let tenant = &matter.alert.tenant;
        if let Some(carrier) = self.gathering(tenant, target, "digest", "") {
            let words = self.over_budget_words(target);
            return self.carry(matter, target, what, carrier, words);
        }
        let route = self.policy.route(&matter.alert);
        let group_key = match target.takes_many && !route.group.is_zero() {
            false => None,
            true => Some(group_key(&route.group_by, &matter.alert)),
        };
        let group = route.group;
        if let Some(key) = &group_key
            && let Some(carrier) = self.gathering(tenant, target, "group", key)
        {
            return self.carry(matter, target, what, carrier, format!("grouped: {key}"));
        }
        if !self.pay(tenant, target) {
            let carrier = self.open(matter, target, "digest", String::new(), self.policy.digest);
            let words = self.over_budget_words(target);
            return self.carry(matter, target, what, carrier, words);
        }
        if let Some(key) = group_key {
            let carrier = self.open(matter, target, "group", key.clone(), group);
            return self.carry(matter, target, what, carrier, format!("grouped: {key}"));
        }
        let body = Facts::of(matter, what).to_json();
        self.put(matter, target, what, body, NotificationState::Due);
    }

    fn over_budget_words(&self, target: &Target) -> String {
        let budgets: Vec<String> = target
            .budgets
            .iter()
            .map(|(whose, b)| format!("{whose}: {} at once, {} an hour", b.burst, b.per_hour))
            .collect();
        format!("over the budget ({})", budgets.join("; "))
    }

    /// The message of many that takes this, if there is one.
    fn gathering(&mut self, tenant: &str, target: &Target, what: &str, key: &str) -> Option<String> {
        let limit = self.policy.digest_alerts_max;
        if let Some(n) = self.opened.get(&opened_name(tenant, target, what, key)) {
            let opened = &mut self.plan.notifications[*n];
            if let NotificationState::Gathering { members, .. } = &mut opened.state
                && *members < limit
            {
                *members += 1;
                return Some(opened.idempotency_key.clone());
            }
            return None;
        }
        let now = self.world.now;
        let n = self.world.gatherings.iter().position(|g| {
            g.tenant == tenant
                && g.channel == target.channel
                && g.recipient == target.recipient
                && g.what == what
                && g.group_key == key
                && g.members < limit
                && g.closes_at > now
        })?;
        let gathering = &mut self.world.gatherings[n];
        gathering.members += 1;
        if gathering.members == limit {
            gathering.closes_at = now;
        }
        self.grown.push(n);
        Some(gathering.key.clone())
    }

    /// Begins a message of many; it is of one alert at first.
    fn open(
        &mut self,
        matter: &Matter,
        target: &Arc<Target>,
        what: &'static str,
        key: String,
        gathers: Duration,
    ) -> String {
        let tenant = &matter.alert.tenant;
        let carrier = format!("{what}-{}-{}-{}", self.world.now.as_micros(), matter.cause, target.id);
        self.opened.insert(opened_name(tenant, target, what, &key), self.plan.notifications.len());
        self.plan.notifications.push(NewNotification {
            idempotency_key: carrier.clone(),
            tenant: tenant.clone(),
            alert: None,
            channel: target.channel.clone(),
            recipient: target.recipient.clone(),
            what: what.to_owned(),
            body: String::new(),
            group_key: key,
            state: NotificationState::Gathering { members: 1, closes_at: self.world.now + gathers },
        });
        carrier
    }

    /// Takes a token of every budget, or none.
    fn pay(&mut self, tenant: &str, target: &Target) -> bool {
        let now = self.world.now;
        let mut paid = Vec::new();
        for (whose, budget) in &target.budgets {
            let name = format!("{tenant}\n{whose}");
            match take(*budget, self.world.budgets.get(&name).copied(), now) {
                Some(until) => paid.push((name, until)),
                None => return false,
            }
        }
        self.world.budgets.extend(paid.iter().cloned());
        self.plan.budgets.extend(paid);
        true
    }

    fn carry(&mut self, matter: &Matter, target: &Arc<Target>, what: &str, carrier: String, reason: String) {
        self.put(matter, target, what, String::new(), NotificationState::Carried { carrier, reason });
    }

    fn suppress(&mut self, matter: &Matter, targets: &[Arc<Target>], what: &str, reason: &str) {
        for target in targets {
            let state = NotificationState::Suppressed { reason: reason.to_owned() };
            self.put(matter, target, what, String::new(), state);
        }
    }

    fn put(&mut self, matter: &Matter, target: &Target, what: &str, body: String, state: NotificationState) {
        self.plan.notifications.push(NewNotification {
            idempotency_key: format!("{}-{}", matter.cause, target.id),
            tenant: matter.alert.tenant.clone(),
            alert: Some(matter.alert.id),
            channel: target.channel.clone(),
            recipient: target.recipient.clone(),
            what: what.to_owned(),
            body,
            group_key: String::new(),
            state,
        });
    }

    fn timer(
        &mut self,
        alert: &Alert,
        kind: TimerKind,
        at: Timestamp,
        waits_for: Option<String>,
        targets: Vec<String>,
    ) {
        self.plan.timers.push(Timer {
            tenant: alert.tenant.clone(),
            alert: alert.id,
            kind,
            at,
            waits_for,
            targets,
        });
    }

    fn first_step(&self, alert: &Alert) -> Vec<Arc<Target>> {
        self.policy.route(alert).step(0).map(|step| step.targets.clone()).unwrap_or_default()
    }

    fn told(&self, alert: &Alert) -> Option<Vec<String>> {
        self.plan.told.get(&alert.id).cloned().or_else(|| alert.told.clone())
    }

    fn targets(&self, ids: &[String]) -> Vec<Arc<Target>> {
        ids.iter().filter_map(|id| self.policy.target(id).cloned()).collect()
    }

    fn finish(mut self) -> Plan {
        self.grown.sort_unstable();
        self.grown.dedup();
        self.plan.gatherings = self.grown.iter().map(|n| self.world.gatherings[*n].clone()).collect();
        let budgets: BTreeMap<_, _> = self.plan.budgets.drain(..).collect();
        self.plan.budgets = budgets.into_iter().collect();
        self.plan
    }
}

const DEPENDENCY_LOOK: Duration = Duration::from_secs(3_600);

/// A token from a bucket that is paid for up to `paid`: up to when it is then, or `None` if it is empty.
fn take(budget: Budget, paid: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    let each = Duration::from_micros(3_600_000_000 / u64::from(budget.per_hour.max(1)));
    let paid = paid.unwrap_or(now).max(now);
    (paid.since(now) <= each * budget.burst.saturating_sub(1)).then(|| paid + each)
}

fn opened_name(tenant: &str, target: &Target, what: &str, key: &str) -> String {
    [tenant, &target.id, what, key].join("\n")
}

fn group_key(labels: &[String], alert: &Alert) -> String {
    let label = |label: &String| match label.as_str() {
        "rule" => format!("rule={}", alert.rule),
        "device" => format!("device={}", alert.device),
        _ => format!("severity={}", alert.severity),
    };
    labels.iter().map(label).collect::<Vec<_>>().join(" ")
}

fn acknowledged_words(alert: &Alert) -> String {
    format!("acknowledged by {}", alert.acknowledged_by.as_deref().unwrap_or("somebody"))
}

fn name_of(what: &What) -> &'static str {
    match what {
        What::Fired | What::Look => "fired",
        What::Raised => "raised",
        What::Resolved => "resolved",
        What::Acknowledged => "acknowledged",
        What::Step(_) => "escalated",
        What::Unsnooze => "reminded",
        What::Calm(_) => "calmed",
    }
}
