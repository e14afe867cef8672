//! What a stretch of the `alerts` topic makes of the alerts. Pure.

use std::{
    cmp::Ordering,
    collections::{HashMap, HashSet},
};

use dunlin_model::{AlertId, AlertPhase, AlertState, AlertStep, AlertTransition, Fingerprint, IllegalStep};
use dunlin_registry::Alert;

use crate::plan::{Matter, What};

#[derive(Debug, Default)]
pub(crate) struct Absorbed {
    /// Every alert that moved, as it is at the end.
    pub(crate) alerts: HashMap<AlertId, Alert>,
    /// What somebody may have to be told, in order.
    pub(crate) matters: Vec<Matter>,
    /// Those that ended.
    pub(crate) over: Vec<AlertId>,
}

/// `open` are the open alerts of the transitions' fingerprints, `known` all their episodes.
pub(crate) fn absorb<'a>(
    mut open: HashMap<Fingerprint, Alert>,
    known: &HashSet<AlertId>,
    transitions: impl IntoIterator<Item = &'a AlertTransition>,
) -> Absorbed {
    let mut absorbed = Absorbed::default();
    for t in transitions {
        match open.get_mut(&t.fingerprint) {
            Some(alert) => {
                let Ok(what) = advance(alert, t) else { continue };
                absorbed.note(alert, t, what);
                if !alert.state.is_open() {
                    absorbed.over.push(alert.id);
                    open.remove(&t.fingerprint);
                }
            }
            // An end without a beginning: the beginning is older than what is kept.
            None if matches!(t.phase, AlertPhase::Resolved | AlertPhase::Cancelled) => {}
            // An episode that is over does not begin again.
            None if known.contains(&t.alert()) || absorbed.alerts.contains_key(&t.alert()) => {}
            None => {
                let alert = begin(t);
                absorbed.note(&alert, t, (t.phase == AlertPhase::Firing).then_some(What::Fired));
                open.insert(t.fingerprint, alert);
            }
        }
    }
    absorbed
}

impl Absorbed {
    fn note(&mut self, alert: &Alert, t: &AlertTransition, what: Option<What>) {
        self.alerts.insert(alert.id, alert.clone());
        if let Some(what) = what {
            let cause = t.id.to_string();
            self.matters.push(Matter { alert: alert.clone(), what, cause, at: t.at });
        }
    }
}

fn begin(t: &AlertTransition) -> Alert {
    let is_firing = t.phase == AlertPhase::Firing;
    Alert {
        tenant: t.tenant.clone(),
        id: t.alert(),
        rule: t.rule.clone(),
        device: t.device.clone(),
        severity: t.severity,
        state: if is_firing { AlertState::Firing } else { AlertState::Pending },
        fired_at: is_firing.then_some(t.at),
        resolved_at: None,
        acknowledged_at: None,
        acknowledged_by: None,
        assignee: None,
        snoozed_until: None,
        value: t.value,
        condition: t.condition.clone(),
        told: Some(Vec::new()),
    }
}

/// Takes an open alert one step further; what there is to be told of it, if anything.
fn advance(alert: &mut Alert, t: &AlertTransition) -> Result<Option<What>, IllegalStep> {
    let step = match t.phase {
        AlertPhase::Firing if alert.state == AlertState::Pending => AlertStep::Fired,
        AlertPhase::Firing => match t.severity.cmp(&alert.severity) {
            Ordering::Greater => AlertStep::Raised,
            Ordering::Less => AlertStep::Lowered,
            Ordering::Equal => AlertStep::Fired,
        },
        AlertPhase::Resolved => AlertStep::Resolved,
        // It is open already: one alert per fingerprint.
        AlertPhase::Pending | AlertPhase::Cancelled => AlertStep::Cancelled,
    };
    if t.phase == AlertPhase::Pending {
        return Err(IllegalStep { state: alert.state, step: AlertStep::Fired });
    }
    let before = alert.state;
    alert.state = before.on(step)?;
    alert.value = t.value;
    alert.condition.clone_from(&t.condition);
    Ok(match step {
        AlertStep::Fired => {
            (alert.severity, alert.fired_at) = (t.severity, Some(t.at));
            Some(What::Fired)
        }
        AlertStep::Raised => {
            alert.severity = t.severity;
            (alert.acknowledged_at, alert.acknowledged_by) = (None, None);
            Some(What::Raised)
        }
        AlertStep::Lowered => {
            alert.severity = t.severity;
            None
        }
        AlertStep::Resolved | AlertStep::Cancelled => {
            alert.resolved_at = Some(t.at);
            (before != AlertState::Pending).then_some(What::Resolved)
        }
        AlertStep::Acknowledged | AlertStep::Unacknowledged => None,
    })
}

#[cfg(test)]
mod tests {
    use dunlin_model::{Severity, Timestamp, TransitionId};

    use super::*;

    fn firing(severity: Severity, at: i64) -> AlertTransition {
        let fingerprint = Fingerprint::of("default", "hot", "pump-1");
        let at = Timestamp::from_micros(at);
        AlertTransition {
            id: TransitionId::of_change(fingerprint, severity, at),
            fingerprint,
            tenant: "default".into(),
            device: "pump-1".into(),
            rule: "hot".into(),
            severity,
            phase: AlertPhase::Firing,
            at,
            since: Timestamp::from_micros(5),
            value: 81.0,
            condition: "temperature > 80".into(),
        }
    }

    #[test]
    fn more_severe_is_told_and_less_severe_is_not() {
        use Severity::{Critical, Warning};
        let history = [firing(Warning, 5), firing(Critical, 7), firing(Critical, 8), firing(Warning, 9)];
        let absorbed = absorb(HashMap::new(), &HashSet::new(), &history);
        let told: Vec<_> = absorbed.matters.iter().map(|m| (m.what.clone(), m.alert.severity)).collect();
        assert_eq!(told, [(What::Fired, Warning), (What::Raised, Critical)]);
        let alerts: Vec<_> = absorbed.alerts.into_values().collect();
        assert_eq!(alerts.len(), 1);
        assert_eq!((alerts[0].severity, alerts[0].state), (Warning, AlertState::Firing));
        assert_eq!(alerts[0].fired_at, Some(Timestamp::from_micros(5)));
    }
}
