use dunlin_model::{TenantId, Timestamp};
use sqlx::AssertSqlSafe;

use super::take_turn;
use crate::{Registry, RegistryError, database::sql, tokens::Token};

/// A time in which some alerts are not told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silence {
    pub id: String,
    pub tenant: String,
    /// What alerts it is about, as alerting writes it down.
    pub matchers: String,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
    /// A maintenance window: the same again so much later, and so on.
    pub every_seconds: Option<u64>,
    /// In force never from here on.
    pub until: Timestamp,
    pub comment: String,
    pub created_by: String,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSilence {
    pub matchers: String,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
    pub every_seconds: Option<u64>,
    pub until: Timestamp,
    pub comment: String,
    pub created_by: String,
}

pub(super) const COLUMNS: &str =
    "id, tenant, matchers, starts_at, ends_at, every_seconds, until, comment, created_by, created_at";

#[derive(sqlx::FromRow)]
pub(super) struct Row {
    id: String,
    tenant: String,
    matchers: String,
    starts_at: i64,
    ends_at: i64,
    every_seconds: Option<i64>,
    until: i64,
    comment: String,
    created_by: String,
    created_at: i64,
}

impl From<Row> for Silence {
    fn from(row: Row) -> Self {
        Self {
            id: row.id,
            tenant: row.tenant,
            matchers: row.matchers,
            starts_at: Timestamp::from_micros(row.starts_at),
            ends_at: Timestamp::from_micros(row.ends_at),
            every_seconds: row.every_seconds.map(|s| s as u64),
            until: Timestamp::from_micros(row.until),
            comment: row.comment,
            created_by: row.created_by,
            created_at: Timestamp::from_micros(row.created_at),
        }
    }
}

impl Silence {
    /// Until when it is in force, if it is now.
    pub fn in_force_until(&self, now: Timestamp) -> Option<Timestamp> {
        if now >= self.until || now < self.starts_at {
            return None;
        }
        let since_start = now.as_micros() - self.starts_at.as_micros();
        let begun = match self.every_seconds {
            Some(every) if every > 0 => {
                let every = i64::try_from(every).unwrap_or(i64::MAX).saturating_mul(1_000_000);
                self.starts_at.as_micros() + since_start / every * every
            }
            _ => self.starts_at.as_micros(),
        };
        let length = self.ends_at.as_micros().saturating_sub(self.starts_at.as_micros());
        let ends = Timestamp::from_micros(begun.saturating_add(length)).min(self.until);
        (now < ends).then_some(ends)
    }
}

impl Registry {
    pub async fn add_silence(&self, tenant: &TenantId, new: &NewSilence) -> Result<Silence, RegistryError> {
        let (id, now) = (Token::random("sil")?.reveal().to_owned(), self.clock.now());
        let mut tx = self.database.begin().await?;
        take_turn(&mut tx).await?;
        sql(AssertSqlSafe(format!(
            "INSERT INTO silences ({COLUMNS}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
        )))
        .bind(&id)
        .bind(tenant.as_str())
        .bind(&new.matchers)
        .bind(new.starts_at.as_micros())
        .bind(new.ends_at.as_micros())
        .bind(new.every_seconds.map(|s| i64::try_from(s).unwrap_or(i64::MAX)))
        .bind(new.until.as_micros())
        .bind(&new.comment)
        .bind(&new.created_by)
        .bind(now.as_micros())
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        let NewSilence { matchers, starts_at, ends_at, every_seconds, until, comment, created_by } =
            new.clone();
        let tenant = tenant.to_string();
        Ok(Silence {
            id,
            tenant,
            matchers,
            starts_at,
            ends_at,
            every_seconds,
            until,
            comment,
            created_by,
            created_at: now,
        })
    }

    /// Ends it now; what it kept back is looked at again. False if it had ended.
    pub async fn expire_silence(&self, tenant: &TenantId, id: &str) -> Result<bool, RegistryError> {
        let now = self.clock.now().as_micros();
        let mut tx = self.database.begin().await?;
        take_turn(&mut tx).await?;
        let expired = sql("UPDATE silences SET until = $3 WHERE tenant = $1 AND id = $2 AND until > $3")
            .bind(tenant.as_str())
            .bind(id)
            .bind(now)
            .execute(&mut tx)
            .await?;
        sql("UPDATE alert_timers SET at = $2 WHERE waits_for = $1 AND at > $2")
            .bind(id)
            .bind(now)
            .execute(&mut tx)
            .await?;
        tx.commit().await?;
        Ok(expired > 0)
    }

    pub async fn silence(&self, tenant: &TenantId, id: &str) -> Result<Option<Silence>, RegistryError> {
        let row: Option<Row> =
            sql(AssertSqlSafe(format!("SELECT {COLUMNS} FROM silences WHERE tenant = $1 AND id = $2")))
                .bind(tenant.as_str())
                .bind(id)
                .fetch_optional(self.database.reader())
                .await?;
        Ok(row.map(Silence::from))
    }

    /// Those that end last come first.
    pub async fn silences(&self, tenant: &TenantId, limit: u32) -> Result<Vec<Silence>, RegistryError> {
        let rows: Vec<Row> = sql(AssertSqlSafe(format!(
            "SELECT {COLUMNS} FROM silences WHERE tenant = $1 ORDER BY until DESC, id LIMIT $2"
        )))
        .bind(tenant.as_str())
        .bind(i64::from(limit))
        .fetch_all(self.database.reader())
        .await?;
        Ok(rows.into_iter().map(Silence::from).collect())
    }

    /// How many have not ended.
    pub async fn silences_open(&self, tenant: &TenantId) -> Result<u64, RegistryError> {
        let (count,): (i64,) = sql("SELECT COUNT(*) FROM silences WHERE tenant = $1 AND until > $2")
            .bind(tenant.as_str())
            .bind(self.clock.now().as_micros())
            .fetch_one(self.database.reader())
            .await?;
        Ok(count as u64)
    }
}
