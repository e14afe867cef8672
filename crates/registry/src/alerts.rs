//! What is wrong, who looks after it, and who has been told.

mod acts; // what people do to alerts
mod links; // acknowledge links: each once
mod notifications; // what waits to be sent, and what was not sent and why
mod silences; // when people do not want to know
mod work; // what alerting writes, in one transaction

pub use acts::{Act, ActError, Note};
use dunlin_model::{AlertId, AlertState, Fingerprint, Severity, TenantId, Timestamp};
pub use notifications::{
    Carried, NOTIFICATIONS_DUE_MAX, NewNotification, Notification, NotificationFilter, NotificationState,
    Told,
};
pub use silences::{NewSilence, Silence};
use sqlx::AssertSqlSafe;
pub use work::{AlertWork, Gathering, Timer, TimerKind};

use crate::{
    Registry, RegistryError,
    database::{Transaction, sql},
};

/// Rows deleted in one transaction.
const TRIM_STEP_ROWS: i64 = 1_000;

/// One episode of a rule on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Alert {
    pub tenant: String,
    pub id: AlertId,
    pub rule: String,
    pub device: String,
    pub severity: Severity,
    pub state: AlertState,
    pub fired_at: Option<Timestamp>,
    pub resolved_at: Option<Timestamp>,
    pub acknowledged_at: Option<Timestamp>,
    pub acknowledged_by: Option<String>,
    pub assignee: Option<String>,
    pub snoozed_until: Option<Timestamp>,
    /// What was last compared with the threshold.
    pub value: f64,
    pub condition: String,
    /// The targets that were told that it fires; `None` if that was not written down.
    pub told: Option<Vec<String>>,
}

impl Alert {
    /// Its condition holds, whether somebody looks after it or not.
    pub fn is_firing(&self) -> bool {
        matches!(self.state, AlertState::Firing | AlertState::Acknowledged)
    }
}

/// Which alerts to list. What is empty or `None` asks for nothing.
#[derive(Debug, Clone, Default)]
pub struct AlertFilter {
    pub states: Vec<AlertState>,
    pub device: Option<String>,
    pub rule: Option<String>,
    pub severity: Option<Severity>,
    pub assignee: Option<String>,
    pub fingerprint: Option<Fingerprint>,
    /// Only those that come after this one, in the order of the list.
    pub after: Option<AlertId>,
    pub limit: u32,
}

/// Rows that were forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TrimmedAlerts {
    pub transitions: u64,
    pub alerts: u64,
    pub notifications: u64,
}

const COLUMNS: &str = "tenant, fingerprint, since, rule, device, severity, phase, fired_at, resolved_at,
     acknowledged_at, acknowledged_by, assignee, snoozed_until, value, condition, told";

#[derive(sqlx::FromRow)]
struct Row {
    tenant: String,
    fingerprint: String,
    since: i64,
    rule: String,
    device: String,
    severity: String,
    phase: String,
    fired_at: Option<i64>,
    resolved_at: Option<i64>,
    acknowledged_at: Option<i64>,
    acknowledged_by: Option<String>,
    assignee: Option<String>,
    snoozed_until: Option<i64>,
    value: f64,
    condition: String,
    told: Option<String>,
}

impl Registry {
    /// Where a consumer whose results live here has got to.
    pub async fn position(&self, consumer: &str, partition: u16) -> Result<Option<u64>, RegistryError> {
        let row: Option<(i64,)> =
            sql("SELECT position FROM positions WHERE consumer = $1 AND partition = $2")
                .bind(consumer)
                .bind(i64::from(partition))
                .fetch_optional(self.database.reader())
                .await?;
        Ok(row.map(|(position,)| position as u64))
    }

    /// The newest episodes first.
    pub async fn alerts(&self, tenant: &TenantId, filter: &AlertFilter) -> Result<Vec<Alert>, RegistryError> {
        let has = |state| filter.states.is_empty() || filter.states.contains(&state);
        let states = AlertState::ALL.map(|state| if has(state) { state.as_str() } else { "" });
        let rows: Vec<Row> = sql(AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM alerts
             WHERE tenant = $1 AND phase IN ($2, $3, $4, $5, $6)
               AND (CAST($7 AS TEXT) IS NULL OR device = $7) AND (CAST($8 AS TEXT) IS NULL OR rule = $8)
               AND (CAST($9 AS TEXT) IS NULL OR severity = $9) AND (CAST($10 AS TEXT) IS NULL OR assignee = $10)
               AND (CAST($11 AS TEXT) IS NULL OR fingerprint = $11)
               AND (CAST($12 AS BIGINT) IS NULL OR since < $12 OR (since = $12 AND fingerprint > $13))
             ORDER BY since DESC, fingerprint LIMIT $14"
        )))
        .bind(tenant.as_str())
        .bind(states[0])
        .bind(states[1])
        .bind(states[2])
        .bind(states[3])
        .bind(states[4])
        .bind(filter.device.as_deref())
        .bind(filter.rule.as_deref())
        .bind(filter.severity.map(Severity::as_str))
        .bind(filter.assignee.as_deref())
        .bind(filter.fingerprint.map(|f| f.to_string()))
        .bind(filter.after.map(|id| id.since.as_micros()))
        .bind(filter.after.map(|id| id.fingerprint.to_string()))
        .bind(i64::from(filter.limit))
        .fetch_all(self.database.reader())
        .await?;
        rows.into_iter().map(alert_of).collect()
    }

    pub async fn alert(&self, tenant: &TenantId, id: AlertId) -> Result<Option<Alert>, RegistryError> {
        let row: Option<Row> = sql(AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM alerts WHERE tenant = $1 AND fingerprint = $2 AND since = $3"
        )))
        .bind(tenant.as_str())
        .bind(id.fingerprint.to_string())
        .bind(id.since.as_micros())
        .fetch_optional(self.database.reader())
        .await?;
        row.map(alert_of).transpose()
    }

    /// Alerts that fire, looked after or not, of all tenants, by fingerprint: those after `after`.
    pub async fn alerts_going_on(
        &self,
        after: Option<&Alert>,
        limit: u32,
    ) -> Result<Vec<Alert>, RegistryError> {
        let rows: Vec<Row> = sql(AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM alerts
             WHERE phase IN ('pending', 'firing', 'acknowledged') AND phase <> 'pending'
               AND (fingerprint > $2 OR (fingerprint = $2 AND tenant > $1))
             ORDER BY fingerprint, tenant LIMIT $3"
        )))
        .bind(after.map_or("", |a| a.tenant.as_str()))
        .bind(after.map_or(String::new(), |a| a.id.fingerprint.to_string()))
        .bind(i64::from(limit))
        .fetch_all(self.database.reader())
        .await?;
        rows.into_iter().map(alert_of).collect()
    }

    /// Alerts that fire, looked after or not.
    pub async fn alerts_firing(&self, tenant: &TenantId) -> Result<u64, RegistryError> {
        let (count,): (i64,) = sql("SELECT COUNT(*) FROM alerts
             WHERE tenant = $1 AND phase IN ('pending', 'firing', 'acknowledged') AND phase <> 'pending'")
        .bind(tenant.as_str())
        .fetch_one(self.database.reader())
        .await?;
        Ok(count as u64)
    }

    /// The steps that the rules made a fingerprint take from `from` on, oldest first.
    pub async fn alert_steps(
        &self,
        tenant: &TenantId,
        id: AlertId,
        limit: u32,
    ) -> Result<Vec<(Timestamp, String, f64)>, RegistryError> {
        let rows: Vec<(i64, String, f64)> = sql("SELECT at, phase, value FROM alert_transitions
             WHERE tenant = $1 AND fingerprint = $2 AND at >= $3 ORDER BY at, applied_at LIMIT $4")
        .bind(tenant.as_str())
        .bind(id.fingerprint.to_string())
        .bind(id.since.as_micros())
        .bind(i64::from(limit))
        .fetch_all(self.database.reader())
        .await?;
        Ok(rows.into_iter().map(|(at, phase, value)| (Timestamp::from_micros(at), phase, value)).collect())
    }

    /// Forgets the transitions, the alerts that are over with what was said of them, the notifications that are
    /// through and the silences that have ended, from before `before`; what is open or still to be sent stays. A
    /// replay that starts earlier than this would tell people again, so it is far longer than the journal's retention.
    pub async fn trim_alerts(&self, before: Timestamp) -> Result<TrimmedAlerts, RegistryError> {
        for statement in [
            "DELETE FROM silences WHERE id IN (SELECT id FROM silences WHERE until < $1 LIMIT $2)",
            "DELETE FROM used_links WHERE id IN (SELECT id FROM used_links WHERE used_at < $1 LIMIT $2)",
            "DELETE FROM alert_notes WHERE id IN (
                 SELECT n.id FROM alert_notes AS n WHERE n.at < $1 AND NOT EXISTS (
                     SELECT 1 FROM alerts AS a WHERE a.tenant = n.tenant AND a.fingerprint = n.fingerprint
                       AND a.since = n.since AND a.phase IN ('pending', 'firing', 'acknowledged')) LIMIT $2)",
        ] {
            self.delete_in_steps(statement, before).await?;
        }
        Ok(TrimmedAlerts {
            transitions: self
                .delete_in_steps(
                    "DELETE FROM alert_transitions WHERE id IN (
                         SELECT id FROM alert_transitions WHERE applied_at < $1 LIMIT $2)",
                    before,
                )
                .await?,
            alerts: self
                .delete_in_steps(
                    "DELETE FROM alerts WHERE (tenant, fingerprint, since) IN (
                         SELECT tenant, fingerprint, since FROM alerts
                         WHERE phase IN ('resolved', 'cancelled') AND updated_at < $1 LIMIT $2)",
                    before,
                )
                .await?,
            notifications: self
                .delete_in_steps(
                    "DELETE FROM notifications WHERE idempotency_key IN (
                         SELECT idempotency_key FROM notifications
                         WHERE state IN ('sent', 'dead', 'carried', 'suppressed') AND created_at < $1 LIMIT $2)",
                    before,
                )
                .await?,
        })
    }

    /// In small transactions, so that devices and alerts get their turn in between.
    async fn delete_in_steps(
        &self,
        statement: &'static str,
        before: Timestamp,
    ) -> Result<u64, RegistryError> {
        let mut deleted = 0;
        loop {
            let mut tx = self.database.begin().await?;
            take_turn(&mut tx).await?;
            let step = sql(statement).bind(before.as_micros()).bind(TRIM_STEP_ROWS).execute(&mut tx).await?;
            tx.commit().await?;
            deleted += step;
            if step < TRIM_STEP_ROWS as u64 {
                return Ok(deleted);
            }
        }
    }
}

/// Waits for one's turn to change alerts: one at a time.
async fn take_turn(tx: &mut Transaction) -> Result<(), RegistryError> {
    Ok(tx.lock("alerts").await?)
}

/// `($1, $2), ($3, $4)`: the places of `rows` rows of `columns` values.
fn places(rows: usize, columns: usize) -> String {
    let mut text = String::with_capacity(rows * (columns * 7 + 4));
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ", (" });
        for column in 1..=columns {
            let comma = if column == 1 { "" } else { ", " };
            text.push_str(&format!("{comma}${}", row * columns + column));
        }
        text.push(')');
    }
    text
}

/// `$first, …`: the places of `count` values of a list.
fn list(first: usize, count: usize) -> String {
    let places: Vec<String> = (first..first + count).map(|n| format!("${n}")).collect();
    places.join(", ")
}

fn alert_of(row: Row) -> Result<Alert, RegistryError> {
    let damaged = |what, value: &str| RegistryError::Damaged { what, value: value.to_owned() };
    Ok(Alert {
        id: AlertId {
            fingerprint: fingerprint_of(&row.fingerprint)?,
            since: Timestamp::from_micros(row.since),
        },
        severity: match row.severity.as_str() {
            "info" => Severity::Info,
            "warning" => Severity::Warning,
            "critical" => Severity::Critical,
            other => return Err(damaged("severity", other)),
        },
        state: AlertState::ALL
            .into_iter()
            .find(|state| state.as_str() == row.phase)
            .ok_or_else(|| damaged("alert phase", &row.phase))?,
        tenant: row.tenant,
        rule: row.rule,
        device: row.device,
        fired_at: row.fired_at.map(Timestamp::from_micros),
        resolved_at: row.resolved_at.map(Timestamp::from_micros),
        acknowledged_at: row.acknowledged_at.map(Timestamp::from_micros),
        acknowledged_by: row.acknowledged_by,
        assignee: row.assignee,
        snoozed_until: row.snoozed_until.map(Timestamp::from_micros),
        value: row.value,
        condition: row.condition,
        told: row.told.map(|lines| lines_of(&lines)),
    })
}

fn fingerprint_of(text: &str) -> Result<Fingerprint, RegistryError> {
    text.parse().map_err(|_| RegistryError::Damaged { what: "fingerprint", value: text.to_owned() })
}

fn lines_of(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}
