use dunlin_model::{AlertId, AlertState, AlertStep, Fingerprint, IllegalStep, TenantId, Timestamp};
use sqlx::AssertSqlSafe;

use super::{Alert, COLUMNS, Row, alert_of, take_turn};
use crate::{
    Registry, RegistryError,
    database::{Transaction, sql},
    tokens::Token,
};

/// What a person does to an alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    Acknowledge,
    Unacknowledge,
    Comment,
    /// `None`: nobody in particular.
    Assign(Option<String>),
    /// Not to be told again before then.
    Snooze(Timestamp),
}

/// What a person did to an alert, or said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub at: Timestamp,
    pub who: String,
    pub what: String,
    pub words: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ActError {
    #[error(transparent)]
    Illegal(#[from] IllegalStep),
    #[error("an alert that is {0} cannot be snoozed")]
    Over(AlertState),
    #[error("this link has been used")]
    LinkUsed,
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl From<sqlx::Error> for ActError {
    fn from(error: sqlx::Error) -> Self {
        Self::Registry(error.into())
    }
}

impl Act {
    fn name(&self) -> &'static str {
        match self {
            Self::Acknowledge => "acknowledged",
            Self::Unacknowledge => "unacknowledged",
            Self::Comment => "commented",
            Self::Assign(_) => "assigned",
            Self::Snooze(_) => "snoozed",
        }
    }

    fn apply(&self, alert: &mut Alert, who: &str, now: Timestamp) -> Result<(), ActError> {
        match self {
            Self::Acknowledge => {
                alert.state = alert.state.on(AlertStep::Acknowledged)?;
                alert.acknowledged_at = Some(now);
                alert.acknowledged_by = Some(who.to_owned());
            }
            Self::Unacknowledge => {
                alert.state = alert.state.on(AlertStep::Unacknowledged)?;
                (alert.acknowledged_at, alert.acknowledged_by) = (None, None);
            }
            Self::Comment => {}
            Self::Assign(to) => alert.assignee.clone_from(to),
            Self::Snooze(_) if !alert.state.is_open() => return Err(ActError::Over(alert.state)),
            Self::Snooze(until) => alert.snoozed_until = Some(*until),
        }
        Ok(())
    }
}

impl Registry {
    /// The alert that goes by an id, or the newest of a fingerprint.
    pub async fn find_alert(
        &self,
        tenant: &TenantId,
        fingerprint: Fingerprint,
        since: Option<Timestamp>,
    ) -> Result<Option<Alert>, RegistryError> {
        match since {
            Some(since) => self.alert(tenant, AlertId { fingerprint, since }).await,
            None => {
                let filter = super::AlertFilter {
                    fingerprint: Some(fingerprint),
                    limit: 1,
                    ..super::AlertFilter::default()
                };
                Ok(self.alerts(tenant, &filter).await?.pop())
            }
        }
    }

    /// Does it, if the alert's state permits, and writes down who did and said what: `None` if there is no such
    /// alert. With `link`, the act and the link's end are one.
    pub async fn act_on_alert(
        &self,
        tenant: &TenantId,
        id: AlertId,
        act: &Act,
        who: &str,
        words: &str,
        link: Option<&str>,
    ) -> Result<Option<Alert>, ActError> {
        let now = self.clock.now();
        let mut tx = self.database.begin().await?;
        take_turn(&mut tx).await?;
        if let Some(link) = link {
            use_link(&mut tx, link, now).await?;
        }
        let row: Option<Row> = sql(AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM alerts WHERE tenant = $1 AND fingerprint = $2 AND since = $3"
        )))
        .bind(tenant.as_str())
        .bind(id.fingerprint.to_string())
        .bind(id.since.as_micros())
        .fetch_optional(&mut tx)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let mut alert = alert_of(row)?;
        act.apply(&mut alert, who, now)?;
        sql("UPDATE alerts SET phase = $4, acknowledged_at = $5, acknowledged_by = $6, assignee = $7,
                 snoozed_until = $8, updated_at = $9
             WHERE tenant = $1 AND fingerprint = $2 AND since = $3")
        .bind(&alert.tenant)
        .bind(id.fingerprint.to_string())
        .bind(id.since.as_micros())
        .bind(alert.state.as_str())
        .bind(alert.acknowledged_at.map(Timestamp::as_micros))
        .bind(alert.acknowledged_by.as_deref())
        .bind(alert.assignee.as_deref())
        .bind(alert.snoozed_until.map(Timestamp::as_micros))
        .bind(now.as_micros())
        .execute(&mut tx)
        .await?;
        let words = match act {
            Act::Assign(Some(to)) if words.is_empty() => to.as_str(),
            _ => words,
        };
        note(&mut tx, &alert, act.name(), who, words, now).await?;
        look_again(&mut tx, &alert, act, now).await?;
        tx.commit().await?;
        Ok(Some(alert))
    }

    /// What people did to an alert and said of it, oldest first.
    pub async fn alert_notes(
        &self,
        tenant: &TenantId,
        id: AlertId,
        limit: u32,
    ) -> Result<Vec<Note>, RegistryError> {
        let rows: Vec<(i64, String, String, String)> = sql("SELECT at, who, what, words FROM alert_notes
             WHERE tenant = $1 AND fingerprint = $2 AND since = $3 ORDER BY at, id LIMIT $4")
        .bind(tenant.as_str())
        .bind(id.fingerprint.to_string())
        .bind(id.since.as_micros())
        .bind(i64::from(limit))
        .fetch_all(self.database.reader())
        .await?;
        let note = |(at, who, what, words)| Note { at: Timestamp::from_micros(at), who, what, words };
        Ok(rows.into_iter().map(note).collect())
    }
}

async fn use_link(tx: &mut Transaction, link: &str, now: Timestamp) -> Result<(), ActError> {
    let used = sql("INSERT INTO used_links (id, used_at) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING")
        .bind(link)
        .bind(now.as_micros())
        .execute(tx)
        .await?;
    match used {
        0 => Err(ActError::LinkUsed),
        _ => Ok(()),
    }
}

async fn note(
    tx: &mut Transaction,
    alert: &Alert,
    what: &str,
    who: &str,
    words: &str,
    now: Timestamp,
) -> Result<(), RegistryError> {
    sql("INSERT INTO alert_notes (id, tenant, fingerprint, since, at, who, what, words)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)")
    .bind(Token::random("note")?.reveal())
    .bind(&alert.tenant)
    .bind(alert.id.fingerprint.to_string())
    .bind(alert.id.since.as_micros())
    .bind(now.as_micros())
    .bind(who)
    .bind(what)
    .bind(words)
    .execute(tx)
    .await?;
    Ok(())
}

/// What was done may be news to others: alerting looks at the alert again.
async fn look_again(
    tx: &mut Transaction,
    alert: &Alert,
    act: &Act,
    now: Timestamp,
) -> Result<(), RegistryError> {
    let (kind, at) = match act {
        Act::Acknowledge => ("acknowledged", now),
        Act::Unacknowledge => ("look", now),
        Act::Snooze(until) => ("unsnooze", *until),
        Act::Comment | Act::Assign(_) => return Ok(()),
    };
    sql("INSERT INTO alert_timers (id, at, tenant, fingerprint, since, kind, step, waits_for, targets)
         VALUES ($1, $2, $3, $4, $5, $6, 0, NULL, '')
         ON CONFLICT (id) DO UPDATE SET at = excluded.at")
    .bind(format!("{kind}-{}", alert.id))
    .bind(at.as_micros())
    .bind(&alert.tenant)
    .bind(alert.id.fingerprint.to_string())
    .bind(alert.id.since.as_micros())
    .bind(kind)
    .execute(tx)
    .await?;
    Ok(())
}
