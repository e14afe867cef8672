use std::collections::{HashMap, HashSet};

use dunlin_model::{AlertId, AlertPhase, AlertTransition, Fingerprint, Timestamp, TransitionId};
use sqlx::AssertSqlSafe;

use super::{
    Alert, COLUMNS, NewNotification, Row, Silence, alert_of, fingerprint_of, lines_of, list,
    notifications::{self, UNSENT_OF_MANY},
    places, silences, take_turn,
};
use crate::{
    Registry, RegistryError,
    database::{Transaction, sql},
};

/// Names in one question.
pub(super) const STATEMENT_ROWS_MAX: usize = 200;
/// Rows that one statement writes. SQLite looks parameters like `$1` up one by one, so the work grows with the square of
/// their number; and statements of this size are prepared once.
pub(super) const INSERT_ROWS_MAX: usize = 20;

/// All that alerting reads and writes for one stretch of work: it happens, or nothing of it does. While it lasts
/// nobody else changes alerts.
#[derive(Debug)]
pub struct AlertWork {
    tx: Transaction,
    now: Timestamp,
}

/// When to look at an alert again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timer {
    pub tenant: String,
    pub alert: AlertId,
    pub kind: TimerKind,
    pub at: Timestamp,
    /// The silence or the alert whose end may make it sooner.
    pub waits_for: Option<String>,
    /// Who heard of what this ends.
    pub targets: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TimerKind {
    /// This step of an escalation is due.
    Step(u32),
    /// What kept people from being told may be over.
    Look,
    /// A person has acknowledged it.
    Acknowledged,
    /// It was snoozed until now.
    Unsnooze,
    /// It has been quiet for long enough to be told again. One a fingerprint.
    Calm,
}

impl TimerKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Step(_) => "step",
            Self::Look => "look",
            Self::Acknowledged => "acknowledged",
            Self::Unsnooze => "unsnooze",
            Self::Calm => "calm",
        }
    }

    fn of(name: &str, step: i64) -> Result<Self, RegistryError> {
        Ok(match name {
            "step" => Self::Step(step as u32),
            "look" => Self::Look,
            "acknowledged" => Self::Acknowledged,
            "unsnooze" => Self::Unsnooze,
            "calm" => Self::Calm,
            _ => return Err(RegistryError::Damaged { what: "timer", value: name.to_owned() }),
        })
    }
}

impl Timer {
    /// A second timer of the same name takes the place of the first.
    fn id(&self) -> String {
        match self.kind {
            TimerKind::Calm => format!("calm-{}", self.alert.fingerprint),
            kind => format!("{}-{}", kind.name(), self.alert),
        }
    }
}

/// A message of many that still takes more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gathering {
    pub key: String,
    pub tenant: String,
    pub channel: String,
    pub recipient: String,
    /// `digest`, or `group`.
    pub what: String,
    pub group_key: String,
    pub members: u64,
    pub closes_at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct TimerRow {
    at: i64,
    tenant: String,
    fingerprint: String,
    since: i64,
    kind: String,
    step: i64,
    waits_for: Option<String>,
    targets: String,
}

fn timer_of(row: TimerRow) -> Result<Timer, RegistryError> {
    Ok(Timer {
        tenant: row.tenant,
        alert: AlertId {
            fingerprint: fingerprint_of(&row.fingerprint)?,
            since: Timestamp::from_micros(row.since),
        },
        kind: TimerKind::of(&row.kind, row.step)?,
        at: Timestamp::from_micros(row.at),
        waits_for: row.waits_for,
        targets: lines_of(&row.targets),
    })
}

impl Registry {
    pub async fn alert_work(&self) -> Result<AlertWork, RegistryError> {
        let mut tx = self.database.begin().await?;
        take_turn(&mut tx).await?;
        Ok(AlertWork { tx, now: self.clock.now() })
    }

    /// When something is to be looked at next.
    pub async fn next_alert_timer(&self) -> Result<Option<Timestamp>, RegistryError> {
        let (at,): (Option<i64>,) =
            sql("SELECT MIN(at) FROM alert_timers").fetch_one(self.database.reader()).await?;
        Ok(at.map(Timestamp::from_micros))
    }
}

impl AlertWork {
    /// What time it is throughout.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    pub async fn commit(self) -> Result<(), RegistryError> {
        Ok(self.tx.commit().await?)
    }

    /// Those of the transitions that were not acted on before.
    pub async fn remember(
        &mut self,
        transitions: &[AlertTransition],
    ) -> Result<HashSet<TransitionId>, RegistryError> {
        let mut fresh: HashSet<TransitionId> = transitions.iter().map(|t| t.id).collect();
        for part in transitions.chunks(STATEMENT_ROWS_MAX) {
            let text = format!("SELECT id FROM alert_transitions WHERE id IN ({})", list(1, part.len()));
            let mut query = sql(AssertSqlSafe(text)).persistent(false);
            for t in part {
                query = query.bind(t.id.to_string());
            }
            for (id,) in query.fetch_all::<(String,)>(&mut self.tx).await? {
                fresh.remove(&TransitionId(fingerprint_of(&id)?.0));
            }
        }
        let new: Vec<&AlertTransition> = transitions.iter().filter(|t| fresh.contains(&t.id)).collect();
        for part in new.chunks(INSERT_ROWS_MAX) {
            // One that stands in the stretch twice is the same.
            let text = format!(
                "INSERT INTO alert_transitions (id, tenant, fingerprint, phase, at, value, applied_at)
                 VALUES {} ON CONFLICT (id) DO NOTHING",
                places(part.len(), 7)
            );
            let mut query = sql(AssertSqlSafe(text)).persistent(part.len() == INSERT_ROWS_MAX);
            for t in part {
                query = query
                    .bind(t.id.to_string())
                    .bind(&t.tenant)
                    .bind(t.fingerprint.to_string())
                    .bind(phase_name(t.phase))
                    .bind(t.at.as_micros())
                    .bind(t.value)
                    .bind(self.now.as_micros());
            }
            query.execute(&mut self.tx).await?;
        }
        Ok(fresh)
    }

    /// When each fired from `from` on, event time: the newest `each_max`.
    pub async fn firings(
        &mut self,
        fingerprints: &[Fingerprint],
        from: Timestamp,
        each_max: u32,
    ) -> Result<HashMap<Fingerprint, Vec<Timestamp>>, RegistryError> {
        let mut firings = HashMap::<_, Vec<_>>::new();
        for part in fingerprints.chunks(STATEMENT_ROWS_MAX) {
            let text = format!(
                "SELECT fingerprint, at FROM (
                     SELECT fingerprint, at, ROW_NUMBER() OVER (PARTITION BY fingerprint ORDER BY at DESC) AS n
                     FROM alert_transitions WHERE at >= $1 AND phase = 'firing' AND fingerprint IN ({})) AS newest
                 WHERE n <= $2",
                list(3, part.len())
            );
            let query = sql(AssertSqlSafe(text)).persistent(false);
            let mut query = query.bind(from.as_micros()).bind(i64::from(each_max));
            for fingerprint in part {
                query = query.bind(fingerprint.to_string());
            }
            for (fingerprint, at) in query.fetch_all::<(String, i64)>(&mut self.tx).await? {
                firings.entry(fingerprint_of(&fingerprint)?).or_default().push(Timestamp::from_micros(at));
            }
        }
        Ok(firings)
    }

    /// What is not over of these fingerprints of a tenant.
    pub async fn open_alerts(
        &mut self,
        tenant: &str,
        fingerprints: &[Fingerprint],
    ) -> Result<Vec<Alert>, RegistryError> {
        let mut open = Vec::new();
        for part in fingerprints.chunks(STATEMENT_ROWS_MAX) {
            let text = format!(
                "SELECT {COLUMNS} FROM alerts
                 WHERE tenant = $1 AND phase IN ('pending', 'firing', 'acknowledged') AND fingerprint IN ({})",
                list(2, part.len())
            );
            let mut query = sql(AssertSqlSafe(text)).persistent(false).bind(tenant);
            for fingerprint in part {
                query = query.bind(fingerprint.to_string());
            }
            for row in query.fetch_all::<Row>(&mut self.tx).await? {
                open.push(alert_of(row)?);
            }
        }
        Ok(open)
    }

    /// The newest episode of each.
    pub async fn newest_alerts(
        &mut self,
        fingerprints: &[Fingerprint],
    ) -> Result<HashMap<Fingerprint, Alert>, RegistryError> {
        let mut newest = HashMap::new();
        for part in fingerprints.chunks(STATEMENT_ROWS_MAX) {
            let text = format!(
                "SELECT {COLUMNS} FROM alerts WHERE (fingerprint, since) IN (
                     SELECT fingerprint, MAX(since) FROM alerts WHERE fingerprint IN ({}) GROUP BY fingerprint)",
                list(1, part.len())
            );
            let mut query = sql(AssertSqlSafe(text)).persistent(false);
            for fingerprint in part {
                query = query.bind(fingerprint.to_string());
            }
            for row in query.fetch_all::<Row>(&mut self.tx).await? {
                let alert = alert_of(row)?;
                newest.insert(alert.id.fingerprint, alert);
            }
        }
        Ok(newest)
    }

    /// The episodes of these fingerprints that began at `from` or later, over or not.
    pub async fn episodes(
        &mut self,
        fingerprints: &[Fingerprint],
        from: Timestamp,
    ) -> Result<HashSet<AlertId>, RegistryError> {
        let mut known = HashSet::new();
        for part in fingerprints.chunks(STATEMENT_ROWS_MAX) {
            let text = format!(
                "SELECT fingerprint, since FROM alerts WHERE since >= $1 AND fingerprint IN ({})",
                list(2, part.len())
            );
            let mut query = sql(AssertSqlSafe(text)).persistent(false).bind(from.as_micros());
            for fingerprint in part {
                query = query.bind(fingerprint.to_string());
            }
            for (fingerprint, since) in query.fetch_all::<(String, i64)>(&mut self.tx).await? {
                let since = Timestamp::from_micros(since);
                known.insert(AlertId { fingerprint: fingerprint_of(&fingerprint)?, since });
            }
        }
        Ok(known)
    }

    /// Alerts as they are now; in the order of their ids they change fewer pages.
    pub async fn put_alerts(&mut self, alerts: &[Alert]) -> Result<(), RegistryError> {
        // A fingerprint has but one that is open, also between two rows.
        let mut over_first: Vec<&Alert> = alerts.iter().collect();
        over_first.sort_by_key(|alert| alert.state.is_open());
        for part in over_first.chunks(INSERT_ROWS_MAX) {
            let text = format!(
                "INSERT INTO alerts ({COLUMNS}, updated_at) VALUES {}
                 ON CONFLICT (tenant, fingerprint, since) DO UPDATE SET
                     severity = excluded.severity, phase = excluded.phase, fired_at = excluded.fired_at,
                     resolved_at = excluded.resolved_at, acknowledged_at = excluded.acknowledged_at,
                     acknowledged_by = excluded.acknowledged_by, value = excluded.value,
                     condition = excluded.condition, told = excluded.told, updated_at = excluded.updated_at",
                places(part.len(), 17)
            );
            let mut query = sql(AssertSqlSafe(text)).persistent(part.len() == INSERT_ROWS_MAX);
            for a in part {
                query = query
                    .bind(&a.tenant)
                    .bind(a.id.fingerprint.to_string())
                    .bind(a.id.since.as_micros())
                    .bind(&a.rule)
                    .bind(&a.device)
                    .bind(a.severity.as_str())
                    .bind(a.state.as_str())
                    .bind(a.fired_at.map(Timestamp::as_micros))
                    .bind(a.resolved_at.map(Timestamp::as_micros))
                    .bind(a.acknowledged_at.map(Timestamp::as_micros))
                    .bind(a.acknowledged_by.as_deref())
                    .bind(a.assignee.as_deref())
                    .bind(a.snoozed_until.map(Timestamp::as_micros))
                    .bind(a.value)
                    .bind(&a.condition)
                    .bind(a.told.as_ref().map(|told| told.join("\n")))
                    .bind(self.now.as_micros());
            }
            query.execute(&mut self.tx).await?;
        }
        Ok(())
    }

    /// Of all tenants, those that may be in force or will be.
    pub async fn silences(&mut self) -> Result<Vec<Silence>, RegistryError> {
        let text = format!("SELECT {} FROM silences WHERE until > $1 ORDER BY id", silences::COLUMNS);
        let query = sql(AssertSqlSafe(text)).bind(self.now.as_micros());
        Ok(query.fetch_all::<silences::Row>(&mut self.tx).await?.into_iter().map(Silence::from).collect())
    }

    /// The gateway device that each of these devices of a tenant is behind, if it is behind one.
    pub async fn parents(
        &mut self,
        tenant: &str,
        devices: &[&str],
    ) -> Result<HashMap<String, String>, RegistryError> {
        let mut parents = HashMap::new();
        for part in devices.chunks(STATEMENT_ROWS_MAX) {
            let text = format!(
                "SELECT name, parent FROM devices
                 WHERE tenant = $1 AND parent IS NOT NULL AND name IN ({})",
                list(2, part.len())
            );
            let mut query = sql(AssertSqlSafe(text)).persistent(false).bind(tenant);
            for device in part {
                query = query.bind(*device);
            }
            parents.extend(query.fetch_all::<(String, String)>(&mut self.tx).await?);
        }
        Ok(parents)
    }

    /// What fires on these devices of a tenant, looked after or not.
    pub async fn firing_on(&mut self, tenant: &str, devices: &[&str]) -> Result<Vec<Alert>, RegistryError> {
        let mut firing = Vec::new();
        for part in devices.chunks(STATEMENT_ROWS_MAX) {
            let text = format!(
                "SELECT {COLUMNS} FROM alerts
                 WHERE tenant = $1 AND phase IN ('pending', 'firing', 'acknowledged') AND device IN ({})",
                list(2, part.len())
            );
            let mut query = sql(AssertSqlSafe(text)).persistent(false).bind(tenant);
            for device in part {
                query = query.bind(*device);
            }
            for row in query.fetch_all::<Row>(&mut self.tx).await? {
                firing.push(alert_of(row)?);
            }
        }
        firing.retain(Alert::is_firing);
        Ok(firing)
    }

    pub async fn budgets(&mut self) -> Result<HashMap<String, Timestamp>, RegistryError> {
        let rows: Vec<(String, i64)> =
            sql("SELECT name, paid_until FROM alert_budgets WHERE paid_until > $1")
                .bind(self.now.as_micros())
                .fetch_all(&mut self.tx)
                .await?;
        Ok(rows.into_iter().map(|(name, at)| (name, Timestamp::from_micros(at))).collect())
    }

    pub async fn put_budgets(&mut self, budgets: &[(String, Timestamp)]) -> Result<(), RegistryError> {
        for part in budgets.chunks(INSERT_ROWS_MAX) {
            let text = format!(
                "INSERT INTO alert_budgets (name, paid_until) VALUES {}
                 ON CONFLICT (name) DO UPDATE SET paid_until = excluded.paid_until",
                places(part.len(), 2)
            );
            let mut query = sql(AssertSqlSafe(text)).persistent(part.len() == INSERT_ROWS_MAX);
            for (name, at) in part {
                query = query.bind(name).bind(at.as_micros());
            }
            query.execute(&mut self.tx).await?;
        }
        Ok(())
    }

    /// The messages of many that still take more.
    pub async fn gatherings(&mut self) -> Result<Vec<Gathering>, RegistryError> {
        type Row = (String, String, String, String, String, String, i64, i64);
        let rows: Vec<Row> = sql(AssertSqlSafe(format!(
            "SELECT idempotency_key, tenant, channel, recipient, what, group_key, members, next_at FROM notifications
             WHERE {UNSENT_OF_MANY} AND state = 'gathering' AND next_at > $1"
        )))
        .bind(self.now.as_micros())
        .fetch_all(&mut self.tx)
        .await?;
        let gathering =
            |(key, tenant, channel, recipient, what, group_key, members, closes): Row| Gathering {
                key,
                tenant,
                channel,
                recipient,
                what,
                group_key,
                members: members as u64,
                closes_at: Timestamp::from_micros(closes),
            };
        Ok(rows.into_iter().map(gathering).collect())
    }

    /// How many members a message of many has now, and when it closes.
    pub async fn put_gatherings(&mut self, gatherings: &[Gathering]) -> Result<(), RegistryError> {
        for g in gatherings {
            sql("UPDATE notifications SET members = $2, next_at = $3
                 WHERE idempotency_key = $1 AND state = 'gathering'")
            .bind(&g.key)
            .bind(g.members as i64)
            .bind(g.closes_at.as_micros())
            .execute(&mut self.tx)
            .await?;
        }
        Ok(())
    }

    /// Writes them down in their order; returns how many are to be sent.
    pub async fn put_notifications(&mut self, new: &[NewNotification]) -> Result<u64, RegistryError> {
        notifications::put(&mut self.tx, new, self.now).await
    }

    /// Timers that are due, oldest first; they are taken.
    pub async fn take_due_timers(&mut self, limit: u32) -> Result<Vec<Timer>, RegistryError> {
        let rows: Vec<TimerRow> = sql("DELETE FROM alert_timers WHERE id IN (
                 SELECT id FROM alert_timers WHERE at <= $1 ORDER BY at, id LIMIT $2)
             RETURNING at, tenant, fingerprint, since, kind, step, waits_for, targets")
        .bind(self.now.as_micros())
        .bind(i64::from(limit))
        .fetch_all(&mut self.tx)
        .await?;
        let mut timers: Vec<Timer> = rows.into_iter().map(timer_of).collect::<Result<_, _>>()?;
        timers.sort_by_key(|t| (t.at, t.alert, t.kind));
        Ok(timers)
    }

    /// Of the fingerprints among these that are flapping.
    pub async fn calm_timers(&mut self, fingerprints: &[Fingerprint]) -> Result<Vec<Timer>, RegistryError> {
        let mut timers = Vec::new();
        for part in fingerprints.chunks(STATEMENT_ROWS_MAX) {
            let text = format!(
                "SELECT at, tenant, fingerprint, since, kind, step, waits_for, targets FROM alert_timers
                 WHERE kind = 'calm' AND fingerprint IN ({})",
                list(1, part.len())
            );
            let mut query = sql(AssertSqlSafe(text)).persistent(false);
            for fingerprint in part {
                query = query.bind(fingerprint.to_string());
            }
            for row in query.fetch_all::<TimerRow>(&mut self.tx).await? {
                timers.push(timer_of(row)?);
            }
        }
        Ok(timers)
    }

    pub async fn put_timers(&mut self, timers: &[Timer]) -> Result<(), RegistryError> {
        // The last of a name wins, and a statement may not meet a row twice.
        let by_id: HashMap<String, &Timer> = timers.iter().map(|t| (t.id(), t)).collect();
        let by_id: Vec<(String, &Timer)> = by_id.into_iter().collect();
        for part in by_id.chunks(INSERT_ROWS_MAX) {
            let text = format!(
                "INSERT INTO alert_timers (id, at, tenant, fingerprint, since, kind, step, waits_for, targets)
                 VALUES {} ON CONFLICT (id) DO UPDATE SET at = excluded.at, since = excluded.since,
                     step = excluded.step, waits_for = excluded.waits_for, targets = excluded.targets",
                places(part.len(), 9)
            );
            let mut query = sql(AssertSqlSafe(text)).persistent(part.len() == INSERT_ROWS_MAX);
            for (id, t) in part {
                let step = if let TimerKind::Step(step) = t.kind { i64::from(step) } else { 0 };
                query = query
                    .bind(id)
                    .bind(t.at.as_micros())
                    .bind(&t.tenant)
                    .bind(t.alert.fingerprint.to_string())
                    .bind(t.alert.since.as_micros())
                    .bind(t.kind.name())
                    .bind(step)
                    .bind(t.waits_for.as_deref())
                    .bind(t.targets.join("\n"));
            }
            query.execute(&mut self.tx).await?;
        }
        Ok(())
    }

    /// Of these alerts nothing is to be looked at again but whether they flap, and what waits for their end is due.
    pub async fn end_timers(&mut self, over: &[AlertId]) -> Result<(), RegistryError> {
        for part in over.chunks(STATEMENT_ROWS_MAX) {
            let mut of_alert = sql(AssertSqlSafe(format!(
                "DELETE FROM alert_timers WHERE kind <> 'calm' AND fingerprint IN ({})",
                list(1, part.len())
            )))
            .persistent(false);
            for id in part {
                of_alert = of_alert.bind(id.fingerprint.to_string());
            }
            of_alert.execute(&mut self.tx).await?;
            let mut of_others = sql(AssertSqlSafe(format!(
                "UPDATE alert_timers SET at = $1 WHERE at > $1 AND waits_for IN ({})",
                list(2, part.len())
            )))
            .persistent(false)
            .bind(self.now.as_micros());
            for id in part {
                of_others = of_others.bind(id.to_string());
            }
            of_others.execute(&mut self.tx).await?;
        }
        Ok(())
    }

    pub async fn move_position(
        &mut self,
        consumer: &str,
        partition: u16,
        next: u64,
    ) -> Result<(), RegistryError> {
        sql("INSERT INTO positions (consumer, partition, position) VALUES ($1, $2, $3)
             ON CONFLICT (consumer, partition) DO UPDATE SET position = excluded.position")
        .bind(consumer)
        .bind(i64::from(partition))
        .bind(next as i64)
        .execute(&mut self.tx)
        .await?;
        Ok(())
    }
}

fn phase_name(phase: AlertPhase) -> &'static str {
    match phase {
        AlertPhase::Pending => "pending",
        AlertPhase::Firing => "firing",
        AlertPhase::Resolved => "resolved",
        AlertPhase::Cancelled => "cancelled",
    }
}
