use std::collections::{BTreeMap, HashMap, HashSet};

use dunlin_model::{AlertId, Severity, TenantId, Timestamp};
use sqlx::AssertSqlSafe;

use super::{
    fingerprint_of, list, places, take_turn,
    work::{INSERT_ROWS_MAX, STATEMENT_ROWS_MAX},
};
use crate::{
    Registry, RegistryError,
    database::{Transaction, sql},
};

/// Notifications that wait for one channel, due or held; those beyond are kept as dead at once.
pub const NOTIFICATIONS_DUE_MAX: i64 = 100_000;

/// Messages of many that were not sent yet. Few: an index has these alone.
pub(super) const UNSENT_OF_MANY: &str = "what IN ('digest', 'group') AND state IN ('gathering', 'due')";

/// A message to a channel that waits to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    pub idempotency_key: String,
    pub tenant: String,
    pub channel: String,
    /// An address within the channel; empty if it has but one.
    pub recipient: String,
    pub what: String,
    pub body: String,
    /// How often it was tried.
    pub attempts: u32,
    /// Of a message of many: how many.
    pub members: u64,
    /// May still take more; `close_gathering` before it is sent.
    pub is_gathering: bool,
    /// Stands behind another of its alert.
    pub is_held: bool,
}

impl Notification {
    /// A digest or a group.
    pub fn is_of_many(&self) -> bool {
        matches!(self.what.as_str(), "digest" | "group")
    }
}

/// Somebody who might be told something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewNotification {
    /// The same for the same thing and target, however often it is said.
    pub idempotency_key: String,
    pub tenant: String,
    /// `None`: a message of many.
    pub alert: Option<AlertId>,
    pub channel: String,
    pub recipient: String,
    pub what: String,
    pub body: String,
    pub group_key: String,
    pub state: NotificationState,
}

/// What becomes of a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotificationState {
    /// A message of its own.
    Due,
    /// A message of many, which takes more until then.
    Gathering { members: u64, closes_at: Timestamp },
    /// Told in another message.
    Carried { carrier: String, reason: String },
    /// Not told.
    Suppressed { reason: String },
}

/// An alert in a message of many.
#[derive(Debug, Clone, PartialEq)]
pub struct Carried {
    pub seq: i64,
    pub alert: AlertId,
    pub what: String,
    pub reason: String,
    pub rule: String,
    pub device: String,
    pub severity: Severity,
    pub value: f64,
    pub condition: String,
    pub at: Timestamp,
}

/// What became of a notification, for people to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub idempotency_key: String,
    pub alert: Option<AlertId>,
    pub channel: String,
    pub recipient: String,
    pub what: String,
    pub state: String,
    pub reason: Option<String>,
    pub carrier: Option<String>,
    pub members: u64,
    pub attempts: u32,
    pub last_error: Option<String>,
    pub created_at: Timestamp,
    pub sent_at: Option<Timestamp>,
}

/// Which notifications to list.
#[derive(Debug, Clone, Default)]
pub struct NotificationFilter {
    pub state: Option<String>,
    pub channel: Option<String>,
    pub alert: Option<AlertId>,
    pub limit: u32,
}

impl NotificationState {
    fn name(&self) -> &'static str {
        match self {
            Self::Due => "due",
            Self::Gathering { .. } => "gathering",
            Self::Carried { .. } => "carried",
            Self::Suppressed { .. } => "suppressed",
        }
    }
}

pub(super) async fn put(
    tx: &mut Transaction,
    new: &[NewNotification],
    now: Timestamp,
) -> Result<u64, RegistryError> {
    if new.is_empty() {
        return Ok(0);
    }
    let (mut seq,): (i64,) =
        sql("SELECT COALESCE(MAX(created_seq), 0) FROM notifications").fetch_one(&mut *tx).await?;
    let mut queue = Queue::of(tx, new).await?;
    let has_due = new.iter().any(|n| n.state == NotificationState::Due);
    let mut to_send = 0;
    for part in new.chunks(INSERT_ROWS_MAX) {
        let text = format!(
            "INSERT INTO notifications
                 (idempotency_key, tenant, fingerprint, since, channel, recipient, what, body, group_key, state,
                  reason, carrier, members, next_at, last_error, attempts, created_at, created_seq)
             VALUES {} ON CONFLICT (idempotency_key) DO NOTHING",
            places(part.len(), 18)
        );
        let mut query = sql(AssertSqlSafe(text)).persistent(part.len() == INSERT_ROWS_MAX);
        for n in part {
            seq += 1;
            let (state, last_error) = match n.state {
                NotificationState::Due => queue.place(n),
                _ => (n.state.name(), None),
            };
            if has_due && matches!(n.state, NotificationState::Carried { .. }) {
                queue.goes_ahead(n);
            }
            let (reason, carrier, members, next_at) = match &n.state {
                NotificationState::Due => (None, None, 0, now),
                NotificationState::Gathering { members, closes_at } => (None, None, *members, *closes_at),
                NotificationState::Carried { carrier, reason } => (Some(reason), Some(carrier), 0, now),
                NotificationState::Suppressed { reason } => (Some(reason), None, 0, now),
            };
            to_send += u64::from(matches!(state, "due" | "gathering"));
            query = query
                .bind(&n.idempotency_key)
                .bind(&n.tenant)
                // A message of many stands behind no other.
                .bind(n.alert.map_or_else(|| n.idempotency_key.clone(), |a| a.fingerprint.to_string()))
                .bind(n.alert.map_or(0, |a| a.since.as_micros()))
                .bind(&n.channel)
                .bind(&n.recipient)
                .bind(&n.what)
                .bind(&n.body)
                .bind(&n.group_key)
                .bind(state)
                .bind(reason)
                .bind(carrier)
                .bind(members as i64)
                .bind(next_at.as_micros())
                .bind(last_error)
                .bind(0_i64)
                .bind(now.as_micros())
                .bind(seq);
        }
        query.execute(&mut *tx).await?;
    }
    Ok(to_send)
}

/// Who stands where already.
struct Queue {
    waiting: HashMap<String, i64>,
    /// Channel, recipient and fingerprint of what is to be sent first, by itself or in a message of many.
    ahead: HashSet<(String, String, String)>,
}

impl Queue {
    async fn of(tx: &mut Transaction, new: &[NewNotification]) -> Result<Self, RegistryError> {
        let mut queue = Self { waiting: HashMap::new(), ahead: HashSet::new() };
        let mut due = BTreeMap::<&str, HashSet<String>>::new();
        for n in new.iter().filter(|n| n.state == NotificationState::Due) {
            let of_channel = due.entry(&n.channel).or_default();
            of_channel.extend(n.alert.map(|alert| alert.fingerprint.to_string()));
        }
        if due.is_empty() {
            return Ok(queue);
        }
        let counts: Vec<(String, i64)> = sql(
            "SELECT channel, COUNT(*) FROM notifications WHERE state IN ('due', 'held') GROUP BY channel",
        )
        .fetch_all(&mut *tx)
        .await?;
        queue.waiting = counts.into_iter().collect();
        for (channel, fingerprints) in due {
            let fingerprints: Vec<String> = fingerprints.into_iter().collect();
            queue.stand_behind_waiting(tx, channel, &fingerprints).await?;
            queue.stand_behind_carried(tx, channel, &fingerprints).await?;
        }
        Ok(queue)
    }

    async fn stand_behind_waiting(
        &mut self,
        tx: &mut Transaction,
        channel: &str,
        fingerprints: &[String],
    ) -> Result<(), RegistryError> {
        for part in fingerprints.chunks(STATEMENT_ROWS_MAX) {
            let text = format!(
                "SELECT DISTINCT channel, recipient, fingerprint FROM notifications
                 WHERE channel = $1 AND state IN ('due', 'held') AND fingerprint IN ({})",
                list(2, part.len())
            );
            let mut query = sql(AssertSqlSafe(text)).persistent(false).bind(channel);
            for fingerprint in part {
                query = query.bind(fingerprint);
            }
            self.ahead.extend(query.fetch_all::<(String, String, String)>(&mut *tx).await?);
        }
        Ok(())
    }

    async fn stand_behind_carried(
        &mut self,
        tx: &mut Transaction,
        channel: &str,
        fingerprints: &[String],
    ) -> Result<(), RegistryError> {
        let (oldest,): (Option<i64>,) = sql(AssertSqlSafe(format!(
            "SELECT MIN(created_seq) FROM notifications WHERE channel = $1 AND {UNSENT_OF_MANY}"
        )))
        .bind(channel)
        .fetch_one(&mut *tx)
        .await?;
        // What it carries is younger than itself.
        let Some(oldest) = oldest else { return Ok(()) };
        for part in fingerprints.chunks(STATEMENT_ROWS_MAX) {
            let text = format!(
                "SELECT DISTINCT told.channel, told.recipient, told.fingerprint FROM notifications AS told
                 JOIN notifications AS many ON many.idempotency_key = told.carrier
                 WHERE told.channel = $1 AND told.created_seq > $2 AND many.state IN ('gathering', 'due')
                   AND told.fingerprint IN ({})",
                list(3, part.len())
            );
            let mut query = sql(AssertSqlSafe(text)).persistent(false).bind(channel).bind(oldest);
            for fingerprint in part {
                query = query.bind(fingerprint);
            }
            self.ahead.extend(query.fetch_all::<(String, String, String)>(&mut *tx).await?);
        }
        Ok(())
    }

    /// In what state it waits, and why if it does not.
    fn place(&mut self, n: &NewNotification) -> (&'static str, Option<&'static str>) {
        let waiting = self.waiting.entry(n.channel.clone()).or_default();
        if *waiting >= NOTIFICATIONS_DUE_MAX {
            return ("dead", Some("too many notifications wait for this channel"));
        }
        *waiting += 1;
        if self.goes_ahead(n) { ("due", None) } else { ("held", None) }
    }

    /// Notes that what comes after it stands behind it; false if it stands behind something itself.
    fn goes_ahead(&mut self, n: &NewNotification) -> bool {
        let Some(alert) = n.alert else { return true };
        self.ahead.insert((n.channel.clone(), n.recipient.clone(), alert.fingerprint.to_string()))
    }
}

#[derive(sqlx::FromRow)]
struct DueRow {
    idempotency_key: String,
    tenant: String,
    recipient: String,
    what: String,
    body: String,
    attempts: i64,
    members: i64,
    state: String,
}

impl DueRow {
    fn of(self, channel: &str) -> Notification {
        Notification {
            idempotency_key: self.idempotency_key,
            tenant: self.tenant,
            channel: channel.to_owned(),
            recipient: self.recipient,
            what: self.what,
            body: self.body,
            attempts: self.attempts as u32,
            members: self.members as u64,
            is_gathering: self.state == "gathering",
            is_held: self.state == "held",
        }
    }
}

impl Registry {
    /// What is due on a channel, oldest first; at most one of each alert: what comes after it is held until this one,
    /// or the message of many that tells it, is sent or given up.
    pub async fn due_notifications(
        &self,
        channel: &str,
        limit: u32,
    ) -> Result<Vec<Notification>, RegistryError> {
        let rows: Vec<DueRow> = sql(
            "SELECT idempotency_key, tenant, recipient, what, body, attempts, members, state FROM notifications
             WHERE channel = $1 AND state IN ('due', 'gathering') AND next_at <= $2
             ORDER BY next_at, created_seq LIMIT $3",
        )
        .bind(channel)
        .bind(self.clock.now().as_micros())
        .bind(i64::from(limit))
        .fetch_all(self.database.reader())
        .await?;
        Ok(rows.into_iter().map(|row| row.of(channel)).collect())
    }

    /// What stands on a channel behind these and nothing else, in its order: of who takes several in one piece.
    pub async fn held_notifications(
        &self,
        channel: &str,
        behind: &[Notification],
        limit: u32,
    ) -> Result<Vec<Notification>, RegistryError> {
        let mut held = Vec::new();
        for part in behind.chunks(STATEMENT_ROWS_MAX) {
            let left = i64::from(limit) - held.len() as i64;
            if left <= 0 {
                break;
            }
            let text = format!(
                "SELECT idempotency_key, tenant, recipient, what, body, attempts, members, state FROM notifications
                 WHERE channel = $1 AND state IN ('due', 'held') AND state = 'held' AND fingerprint IN (
                     SELECT fingerprint FROM notifications WHERE idempotency_key IN ({}))
                 ORDER BY created_seq LIMIT $2",
                list(3, part.len())
            );
            let mut query = sql(AssertSqlSafe(text)).persistent(false).bind(channel).bind(left);
            for first in part {
                query = query.bind(&first.idempotency_key);
            }
            let rows: Vec<DueRow> = query.fetch_all(self.database.reader()).await?;
            held.extend(rows.into_iter().map(|row| row.of(channel)));
        }
        Ok(held)
    }

    /// When the next notification of a channel is due; `None` if none waits.
    pub async fn next_notification(&self, channel: &str) -> Result<Option<Timestamp>, RegistryError> {
        let (next_at,): (Option<i64>,) = sql(
            "SELECT MIN(next_at) FROM notifications WHERE channel = $1 AND state IN ('due', 'gathering')",
        )
        .bind(channel)
        .fetch_one(self.database.reader())
        .await?;
        Ok(next_at.map(Timestamp::from_micros))
    }

    /// A message of many takes no more from here on; what it has is what it had whenever it is sent. Returns how
    /// many.
    pub async fn close_gathering(&self, idempotency_key: &str) -> Result<u64, RegistryError> {
        let mut tx = self.database.begin().await?;
        take_turn(&mut tx).await?;
        sql("UPDATE notifications SET state = 'due' WHERE idempotency_key = $1 AND state = 'gathering'")
            .bind(idempotency_key)
            .execute(&mut tx)
            .await?;
        let (members,): (i64,) = sql("SELECT members FROM notifications WHERE idempotency_key = $1")
            .bind(idempotency_key)
            .fetch_one(&mut tx)
            .await?;
        tx.commit().await?;
        Ok(members as u64)
    }

    /// What should reach the receiver before a message of many and is due, now or later: what its alerts said earlier, and
    /// older messages of many. When the last of it is due, and how often what was tried least was tried; `None`: nothing.
    pub async fn due_before(&self, of_many: &str) -> Result<Option<(Timestamp, u32)>, RegistryError> {
        let (at, attempts): (Option<i64>, Option<i64>) = sql(
            "SELECT MAX(earlier.next_at), MIN(earlier.attempts)
             FROM notifications AS many JOIN notifications AS earlier
               ON earlier.channel = many.channel AND earlier.recipient = many.recipient
             WHERE many.idempotency_key = $1 AND earlier.state IN ('due', 'gathering') AND earlier.state = 'due' AND (
                 (earlier.what IN ('digest', 'group') AND earlier.created_seq < many.created_seq)
                 OR EXISTS (
                   SELECT 1 FROM notifications AS told
                   WHERE told.fingerprint = earlier.fingerprint AND told.created_seq > earlier.created_seq
                     AND COALESCE(told.carrier, '') = many.idempotency_key))",
        )
        .bind(of_many)
        .fetch_one(self.database.reader())
        .await?;
        Ok(at.zip(attempts).map(|(at, attempts)| (Timestamp::from_micros(at), attempts as u32)))
    }

    /// Is due later; no try.
    pub async fn postpone_notification(
        &self,
        idempotency_key: &str,
        until: Timestamp,
    ) -> Result<(), RegistryError> {
        let mut tx = self.database.begin().await?;
        take_turn(&mut tx).await?;
        sql("UPDATE notifications SET next_at = $2 WHERE idempotency_key = $1 AND state = 'due'")
            .bind(idempotency_key)
            .bind(until.as_micros())
            .execute(&mut tx)
            .await?;
        tx.commit().await?;
        Ok(())
    }

    /// What a message of many tells, in its order, from behind `after` on.
    pub async fn carried(
        &self,
        carrier: &str,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Carried>, RegistryError> {
        #[derive(sqlx::FromRow)]
        struct Row {
            created_seq: i64,
            fingerprint: String,
            since: i64,
            what: String,
            reason: Option<String>,
            rule: String,
            device: String,
            severity: String,
            value: f64,
            condition: String,
            created_at: i64,
        }
        let rows: Vec<Row> = sql(
            "SELECT n.created_seq, n.fingerprint, n.since, n.what, n.reason, a.rule, a.device, a.severity, a.value,
                    a.condition, n.created_at
             FROM notifications AS n JOIN alerts AS a
               ON a.tenant = n.tenant AND a.fingerprint = n.fingerprint AND a.since = n.since
             WHERE n.carrier = $1 AND n.created_seq > $2 ORDER BY n.created_seq LIMIT $3",
        )
        .bind(carrier)
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(self.database.reader())
        .await?;
        let carried = |row: Row| {
            Ok(Carried {
                seq: row.created_seq,
                alert: AlertId {
                    fingerprint: fingerprint_of(&row.fingerprint)?,
                    since: Timestamp::from_micros(row.since),
                },
                what: row.what,
                reason: row.reason.unwrap_or_default(),
                rule: row.rule,
                device: row.device,
                severity: match row.severity.as_str() {
                    "info" => Severity::Info,
                    "critical" => Severity::Critical,
                    _ => Severity::Warning,
                },
                value: row.value,
                condition: row.condition,
                at: Timestamp::from_micros(row.created_at),
            })
        };
        rows.into_iter().map(carried).collect()
    }

    /// Whether a tenant has a message of many of this key.
    pub async fn has_carrier(&self, tenant: &TenantId, key: &str) -> Result<bool, RegistryError> {
        let found: Option<(i64,)> = sql("SELECT members FROM notifications
             WHERE tenant = $1 AND idempotency_key = $2 AND what IN ('digest', 'group')")
        .bind(tenant.as_str())
        .bind(key)
        .fetch_optional(self.database.reader())
        .await?;
        Ok(found.is_some())
    }

    /// How many of what a message of many tells there are, by rule, severity and what happened.
    pub async fn carried_counts(
        &self,
        carrier: &str,
    ) -> Result<BTreeMap<(String, String, String), u64>, RegistryError> {
        let rows: Vec<(String, String, String, i64)> =
            sql("SELECT a.rule, a.severity, n.what, COUNT(*) FROM notifications AS n JOIN alerts AS a
               ON a.tenant = n.tenant AND a.fingerprint = n.fingerprint AND a.since = n.since
             WHERE n.carrier = $1 GROUP BY a.rule, a.severity, n.what")
            .bind(carrier)
            .fetch_all(self.database.reader())
            .await?;
        Ok(rows.into_iter().map(|(rule, severity, what, n)| ((rule, severity, what), n as u64)).collect())
    }

    /// They were sent: what each held up is due.
    pub async fn notifications_sent(&self, idempotency_keys: &[&str]) -> Result<(), RegistryError> {
        let now = self.clock.now().as_micros();
        let mut tx = self.database.begin().await?;
        take_turn(&mut tx).await?;
        for part in idempotency_keys.chunks(STATEMENT_ROWS_MAX) {
            let text = format!(
                "UPDATE notifications SET state = 'sent', attempts = attempts + 1, last_error = NULL, sent_at = $1
                 WHERE idempotency_key IN ({})",
                list(2, part.len())
            );
            let mut query = sql(AssertSqlSafe(text)).persistent(part.len() == 1).bind(now);
            for key in part {
                query = query.bind(*key);
            }
            query.execute(&mut tx).await?;
            release(&mut tx, part, now).await?;
        }
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
        take_turn(&mut tx).await?;
        sql("UPDATE notifications SET state = $2, attempts = attempts + 1, last_error = $3, next_at = $4
             WHERE idempotency_key = $1")
        .bind(idempotency_key)
        .bind(if retry_at.is_some() { "due" } else { "dead" })
        .bind(error)
        .bind(retry_at.unwrap_or_default().as_micros())
        .execute(&mut tx)
        .await?;
        release(&mut tx, &[idempotency_key], self.clock.now().as_micros()).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Sends what was given up again. False if there is no such dead notification.
    pub async fn revive_notification(
        &self,
        tenant: &TenantId,
        idempotency_key: &str,
    ) -> Result<bool, RegistryError> {
        let mut tx = self.database.begin().await?;
        take_turn(&mut tx).await?;
        let revived = sql("UPDATE notifications SET state = 'due', attempts = 0, next_at = $3
             WHERE tenant = $1 AND idempotency_key = $2 AND state = 'dead'")
        .bind(tenant.as_str())
        .bind(idempotency_key)
        .bind(self.clock.now().as_micros())
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(revived > 0)
    }

    /// The newest first; of one alert the oldest first.
    pub async fn notifications(
        &self,
        tenant: &TenantId,
        filter: &NotificationFilter,
    ) -> Result<Vec<Told>, RegistryError> {
        #[derive(sqlx::FromRow)]
        struct Row {
            idempotency_key: String,
            fingerprint: String,
            since: i64,
            channel: String,
            recipient: String,
            what: String,
            state: String,
            reason: Option<String>,
            carrier: Option<String>,
            members: i64,
            attempts: i64,
            last_error: Option<String>,
            created_at: i64,
            sent_at: Option<i64>,
        }
        let order = if filter.alert.is_some() { "ASC" } else { "DESC" };
        let rows: Vec<Row> = sql(AssertSqlSafe(format!(
            "SELECT idempotency_key, fingerprint, since, channel, recipient, what, state, reason, carrier, members,
                    attempts, last_error, created_at, sent_at
             FROM notifications
             WHERE tenant = $1 AND (CAST($2 AS TEXT) IS NULL OR state = $2)
               AND (CAST($3 AS TEXT) IS NULL OR channel = $3)
               AND (CAST($4 AS TEXT) IS NULL OR (fingerprint = $4 AND since = $5))
             ORDER BY created_seq {order} LIMIT $6"
        )))
        .bind(tenant.as_str())
        .bind(filter.state.as_deref())
        .bind(filter.channel.as_deref())
        .bind(filter.alert.map(|a| a.fingerprint.to_string()))
        .bind(filter.alert.map_or(0, |a| a.since.as_micros()))
        .bind(i64::from(filter.limit))
        .fetch_all(self.database.reader())
        .await?;
        let told = |row: Row| Told {
            alert: row
                .fingerprint
                .parse()
                .ok()
                .map(|fingerprint| AlertId { fingerprint, since: Timestamp::from_micros(row.since) }),
            idempotency_key: row.idempotency_key,
            channel: row.channel,
            recipient: row.recipient,
            what: row.what,
            state: row.state,
            reason: row.reason,
            carrier: row.carrier,
            members: row.members as u64,
            attempts: row.attempts as u32,
            last_error: row.last_error,
            created_at: Timestamp::from_micros(row.created_at),
            sent_at: row.sent_at.map(Timestamp::from_micros),
        };
        Ok(rows.into_iter().map(told).collect())
    }
}

/// What notifications that are through held up becomes due, unless something else of its alert stands before it still.
async fn release(tx: &mut Transaction, idempotency_keys: &[&str], now: i64) -> Result<(), RegistryError> {
    let first_of = |whose: &str| {
        format!(
            "(SELECT MIN(first.created_seq) FROM notifications AS first
              WHERE first.channel = {whose}.channel AND first.fingerprint = {whose}.fingerprint
                AND first.recipient = {whose}.recipient AND first.state IN ('due', 'held'))"
        )
    };
    let of_its_alert =
        format!("held.fingerprint = done.fingerprint AND held.created_seq = {}", first_of("done"));
    let of_those_it_carried = format!(
        "done.what IN ('digest', 'group') AND held.created_seq = {} AND EXISTS (
             SELECT 1 FROM notifications AS told
             WHERE told.fingerprint = held.fingerprint AND told.created_seq < held.created_seq
               AND COALESCE(told.carrier, '') = done.idempotency_key)",
        first_of("held")
    );
    for which in [of_its_alert, of_those_it_carried] {
        let text = format!(
            "UPDATE notifications SET state = 'due', next_at = $1 WHERE idempotency_key IN (
                 SELECT held.idempotency_key FROM notifications AS done JOIN notifications AS held
                   ON held.channel = done.channel AND held.recipient = done.recipient
                 WHERE done.idempotency_key IN ({keys})
                   AND held.state IN ('due', 'held') AND held.state = 'held' AND {which}
                   AND NOT EXISTS (
                     SELECT 1 FROM notifications AS told
                     JOIN notifications AS many ON many.idempotency_key = told.carrier
                     WHERE told.channel = held.channel AND told.recipient = held.recipient
                       AND told.fingerprint = held.fingerprint AND many.state IN ('gathering', 'due')
                       AND told.created_seq < held.created_seq AND told.created_seq > (
                         SELECT MIN(created_seq) FROM notifications
                         WHERE channel = held.channel AND {UNSENT_OF_MANY})))",
            keys = list(2, idempotency_keys.len()),
        );
        let mut query = sql(AssertSqlSafe(text)).persistent(idempotency_keys.len() == 1).bind(now);
        for key in idempotency_keys {
            query = query.bind(*key);
        }
        query.execute(&mut *tx).await?;
    }
    Ok(())
}
