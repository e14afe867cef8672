use dunlin_model::{AlertPhase, AlertTransition, Severity, TenantId, Timestamp};

use crate::{
    Registry, RegistryError,
    database::{Transaction, sql},
};

/// Notifications that wait for one channel, due or held; those beyond are kept as dead at once.
pub const NOTIFICATIONS_DUE_MAX: i64 = 100_000;

/// Whoever changes alerts, transitions or notifications has this lock: what is due, held or full is decided from what
/// others wrote.
const ALERTS_LOCK: &str = "alerts";

/// Rows deleted in one transaction.
const TRIM_STEP_ROWS: i64 = 1_000;

/// One episode of a rule on a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Alert {
    pub fingerprint: String,
    pub rule: String,
    pub device: String,
    pub severity: Severity,
    pub phase: AlertPhase,
    /// Event time since when the condition held.
    pub since: Timestamp,
    pub fired_at: Option<Timestamp>,
    pub resolved_at: Option<Timestamp>,
    /// What was last compared with the threshold.
    pub value: f64,
    pub condition: String,
}

/// A message to a channel that waits to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    pub idempotency_key: String,
    pub channel: String,
    pub body: String,
    /// How often it was tried.
    pub attempts: u32,
}

/// Which alerts to list.
#[derive(Debug, Clone, Copy)]
pub struct AlertFilter {
    pub phase: Option<AlertPhase>,
    pub limit: u32,
}

/// What a stretch of the `alerts` topic brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AppliedAlerts {
    /// Transitions seen for the first time.
    pub transitions: u64,
    pub notifications: u64,
}

/// Rows that were forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TrimmedAlerts {
    pub transitions: u64,
    pub alerts: u64,
    pub notifications: u64,
}

type Row = (String, String, String, String, String, i64, Option<i64>, Option<i64>, f64, String);

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

    /// Applies a stretch of the `alerts` topic, queues what people must be told, and moves the position: in one
    /// transaction, so that a crash loses none of it and a replay does none of it twice.
    ///
    /// `channels` are those that hear of an alert that fires or resolves; `render` says what they hear.
    pub async fn apply_alerts(
        &self,
        consumer: &str,
        partition: u16,
        transitions: &[AlertTransition],
        next: u64,
        channels: &[String],
        render: impl Fn(&AlertTransition) -> String + Send + Sync,
    ) -> Result<AppliedAlerts, RegistryError> {
        let now = self.clock.now().as_micros();
        let mut applied = AppliedAlerts::default();
        let mut tx = self.database.begin().await?;
        tx.lock(ALERTS_LOCK).await?;
        for transition in transitions {
            if !remember(&mut tx, transition, now).await? {
                continue;
            }
            applied.transitions += 1;
            let tells = move_alert(&mut tx, transition, now).await?;
            if tells {
                let body = render(transition);
                for channel in channels {
                    applied.notifications += queue(&mut tx, transition, channel, &body, now).await?;
                }
            }
        }
        sql("INSERT INTO positions (consumer, partition, position) VALUES ($1, $2, $3)
             ON CONFLICT (consumer, partition) DO UPDATE SET position = excluded.position")
        .bind(consumer)
        .bind(i64::from(partition))
        .bind(next as i64)
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(applied)
    }

    /// The newest episodes first.
    pub async fn alerts(&self, tenant: &TenantId, filter: AlertFilter) -> Result<Vec<Alert>, RegistryError> {
        let rows: Vec<Row> = sql(
            "SELECT fingerprint, rule, device, severity, phase, since, fired_at, resolved_at, value, condition
             FROM alerts WHERE tenant = $1 AND ($2 IS NULL OR phase = $2)
             ORDER BY since DESC, fingerprint LIMIT $3",
        )
        .bind(tenant.as_str())
        .bind(filter.phase.map(phase_name))
        .bind(i64::from(filter.limit))
        .fetch_all(self.database.reader())
        .await?;
        rows.into_iter().map(alert_of).collect()
    }

    pub async fn alerts_firing(&self, tenant: &TenantId) -> Result<u64, RegistryError> {
        let (count,): (i64,) = sql("SELECT COUNT(*) FROM alerts WHERE tenant = $1 AND phase = 'firing'")
            .bind(tenant.as_str())
            .fetch_one(self.database.reader())
            .await?;
        Ok(count as u64)
    }

    /// What is due on a channel, oldest first; at most one of each alert: what comes after it is held until this one
    /// is sent or given up.
    pub async fn due_notifications(
        &self,
        channel: &str,
        limit: u32,
    ) -> Result<Vec<Notification>, RegistryError> {
        let rows: Vec<(String, String, i64)> =
            sql("SELECT idempotency_key, body, attempts FROM notifications
             WHERE channel = $1 AND state = 'due' AND next_at <= $2 ORDER BY next_at, created_seq LIMIT $3")
            .bind(channel)
            .bind(self.clock.now().as_micros())
            .bind(i64::from(limit))
            .fetch_all(self.database.reader())
            .await?;
        let all = rows.into_iter().map(|(idempotency_key, body, attempts)| Notification {
            idempotency_key,
            channel: channel.to_owned(),
            body,
            attempts: attempts as u32,
        });
        Ok(all.collect())
    }

    /// When the next notification of a channel is due; `None` if none waits.
    pub async fn next_notification(&self, channel: &str) -> Result<Option<Timestamp>, RegistryError> {
        let (next_at,): (Option<i64>,) =
            sql("SELECT MIN(next_at) FROM notifications WHERE channel = $1 AND state = 'due'")
                .bind(channel)
                .fetch_one(self.database.reader())
                .await?;
        Ok(next_at.map(Timestamp::from_micros))
    }

    pub async fn notification_sent(&self, idempotency_key: &str) -> Result<(), RegistryError> {
        let mut tx = self.database.begin().await?;
        tx.lock(ALERTS_LOCK).await?;
        sql("UPDATE notifications SET state = 'sent', attempts = attempts + 1, last_error = NULL
             WHERE idempotency_key = $1")
        .bind(idempotency_key)
        .execute(&mut tx)
        .await?;
        release_next(&mut tx, idempotency_key, self.clock.now().as_micros()).await?;
        tx.commit().await?;
        Ok(())
    }

    /// `retry_at` is when to try again; `None` gives up and keeps the notification with its error.
    pub async fn notification_failed(
        &self,
        idempotency_key: &str,
        error: &str,
        retry_at: Option<Timestamp>,
    ) -> Result<(), RegistryError> {
        let mut tx = self.database.begin().await?;
        tx.lock(ALERTS_LOCK).await?;
        sql("UPDATE notifications SET state = $2, attempts = attempts + 1, last_error = $3, next_at = $4
             WHERE idempotency_key = $1")
        .bind(idempotency_key)
        .bind(if retry_at.is_some() { "due" } else { "dead" })
        .bind(error)
        .bind(retry_at.unwrap_or_default().as_micros())
        .execute(&mut tx)
        .await?;
        release_next(&mut tx, idempotency_key, self.clock.now().as_micros()).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Forgets the transitions, the alerts that are over and the notifications that are through from before
    /// `before`; what is open or still to be sent stays. A replay that starts earlier than this would tell people
    /// again, so it is far longer than the journal's retention.
    pub async fn trim_alerts(&self, before: Timestamp) -> Result<TrimmedAlerts, RegistryError> {
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
                         WHERE state IN ('sent', 'dead') AND created_at < $1 LIMIT $2)",
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
            tx.lock(ALERTS_LOCK).await?;
            let step = sql(statement).bind(before.as_micros()).bind(TRIM_STEP_ROWS).execute(&mut tx).await?;
            tx.commit().await?;
            deleted += step;
            if step < TRIM_STEP_ROWS as u64 {
                return Ok(deleted);
            }
        }
    }
}

/// False if the transition was acted on before.
async fn remember(tx: &mut Transaction, t: &AlertTransition, now: i64) -> Result<bool, RegistryError> {
    let inserted =
        sql("INSERT INTO alert_transitions (id, tenant, fingerprint, phase, at, value, applied_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING")
        .bind(t.id.to_string())
        .bind(&t.tenant)
        .bind(t.fingerprint.to_string())
        .bind(phase_name(t.phase))
        .bind(t.at.as_micros())
        .bind(t.value)
        .bind(now)
        .execute(tx)
        .await?;
    Ok(inserted > 0)
}

/// Moves the alert to the transition's phase; true if people are told.
async fn move_alert(tx: &mut Transaction, t: &AlertTransition, now: i64) -> Result<bool, RegistryError> {
    let open: Option<(i64, String)> = sql("SELECT since, phase FROM alerts
         WHERE tenant = $1 AND fingerprint = $2 AND phase IN ('pending', 'firing')")
    .bind(&t.tenant)
    .bind(t.fingerprint.to_string())
    .fetch_optional(&mut *tx)
    .await?;
    use AlertPhase::*;
    match (open.as_ref().map(|(since, phase)| (*since, phase.as_str())), t.phase) {
        (None, Pending) => begin(tx, t, now).await.map(|_| false),
        (None, Firing) => begin(tx, t, now).await,
        // An end without a beginning: the beginning is older than what is kept.
        (None, Resolved | Cancelled) => Ok(false),
        (Some((since, "pending")), Firing) => advance(tx, t, since, now).await.map(|()| true),
        (Some((since, "pending")), Resolved | Cancelled) => advance(tx, t, since, now).await.map(|()| false),
        (Some((since, _)), Resolved) => advance(tx, t, since, now).await.map(|()| true),
        // It is open already: one alert per fingerprint.
        (Some(_), Pending | Firing | Cancelled) => Ok(false),
    }
}

/// Opens an episode. False if there was one that began then.
async fn begin(tx: &mut Transaction, t: &AlertTransition, now: i64) -> Result<bool, RegistryError> {
    let inserted =
        sql("INSERT INTO alerts (tenant, fingerprint, since, rule, device, severity, phase, fired_at, value,
                             condition, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
         ON CONFLICT (tenant, fingerprint, since) DO NOTHING")
        .bind(&t.tenant)
        .bind(t.fingerprint.to_string())
        .bind(t.since.as_micros())
        .bind(&t.rule)
        .bind(&t.device)
        .bind(severity_name(t.severity))
        .bind(phase_name(t.phase))
        .bind((t.phase == AlertPhase::Firing).then_some(t.at.as_micros()))
        .bind(t.value)
        .bind(&t.condition)
        .bind(now)
        .execute(tx)
        .await?;
    Ok(inserted > 0)
}

/// Takes the open episode, which began at `since`, further.
async fn advance(
    tx: &mut Transaction,
    t: &AlertTransition,
    since: i64,
    now: i64,
) -> Result<(), RegistryError> {
    sql("UPDATE alerts SET phase = $4, value = $5, updated_at = $6,
             fired_at = CASE WHEN $4 = 'firing' THEN $7 ELSE fired_at END,
             resolved_at = CASE WHEN $4 IN ('resolved', 'cancelled') THEN $7 ELSE resolved_at END
         WHERE tenant = $1 AND fingerprint = $2 AND since = $3")
    .bind(&t.tenant)
    .bind(t.fingerprint.to_string())
    .bind(since)
    .bind(phase_name(t.phase))
    .bind(t.value)
    .bind(now)
    .bind(t.at.as_micros())
    .execute(tx)
    .await?;
    Ok(())
}

async fn queue(
    tx: &mut Transaction,
    t: &AlertTransition,
    channel: &str,
    body: &str,
    now: i64,
) -> Result<u64, RegistryError> {
    let inserted = sql(
        "INSERT INTO notifications
             (idempotency_key, channel, fingerprint, body, state, attempts, next_at, last_error, created_at, created_seq)
         SELECT $1, $2, $6, $3,
                CASE WHEN q.is_full THEN 'dead' WHEN q.has_older THEN 'held' ELSE 'due' END, 0, $4,
                CASE WHEN q.is_full THEN 'too many notifications wait for this channel' END, $4, q.seq
         FROM (SELECT (SELECT COUNT(*) FROM notifications
                       WHERE channel = $2 AND state IN ('due', 'held')) >= $5 AS is_full,
                      EXISTS (SELECT 1 FROM notifications
                              WHERE channel = $2 AND fingerprint = $6 AND state IN ('due', 'held')) AS has_older,
                      (SELECT COALESCE(MAX(created_seq), 0) + 1 FROM notifications) AS seq) AS q
         WHERE true
         ON CONFLICT (idempotency_key) DO NOTHING",
    )
    .bind(format!("{}-{channel}", t.id))
    .bind(channel)
    .bind(body)
    .bind(now)
    .bind(NOTIFICATIONS_DUE_MAX)
    .bind(t.fingerprint.to_string())
    .execute(tx)
    .await?;
    Ok(inserted)
}

/// The oldest that its alert still has to tell the channel of `idempotency_key` becomes due, if it is held.
async fn release_next(tx: &mut Transaction, idempotency_key: &str, now: i64) -> Result<(), RegistryError> {
    sql("UPDATE notifications SET state = 'due', next_at = $2
         WHERE state = 'held' AND idempotency_key = (
             SELECT waiting.idempotency_key FROM notifications AS done
             JOIN notifications AS waiting
               ON waiting.channel = done.channel AND waiting.fingerprint = done.fingerprint
             WHERE done.idempotency_key = $1 AND waiting.state IN ('due', 'held')
             ORDER BY waiting.created_seq LIMIT 1)")
    .bind(idempotency_key)
    .bind(now)
    .execute(tx)
    .await?;
    Ok(())
}

fn phase_name(phase: AlertPhase) -> &'static str {
    match phase {
        AlertPhase::Pending => "pending",
        AlertPhase::Firing => "firing",
        AlertPhase::Resolved => "resolved",
        AlertPhase::Cancelled => "cancelled",
    }
}

fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    }
}

fn alert_of(row: Row) -> Result<Alert, RegistryError> {
    let (fingerprint, rule, device, severity, phase, since, fired_at, resolved_at, value, condition) = row;
    Ok(Alert {
        fingerprint,
        rule,
        device,
        severity: match severity.as_str() {
            "info" => Severity::Info,
            "warning" => Severity::Warning,
            "critical" => Severity::Critical,
            _ => return Err(RegistryError::Damaged { what: "severity", value: severity }),
        },
        phase: match phase.as_str() {
            "pending" => AlertPhase::Pending,
            "firing" => AlertPhase::Firing,
            "resolved" => AlertPhase::Resolved,
            "cancelled" => AlertPhase::Cancelled,
            _ => return Err(RegistryError::Damaged { what: "alert phase", value: phase }),
        },
        since: Timestamp::from_micros(since),
        fired_at: fired_at.map(Timestamp::from_micros),
        resolved_at: resolved_at.map(Timestamp::from_micros),
        value,
        condition,
    })
}
