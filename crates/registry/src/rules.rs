use dunlin_model::{TenantId, Timestamp};
use sqlx::AssertSqlSafe;

use crate::{Registry, RegistryError, database::sql};

/// A rule as it is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRule {
    pub tenant: TenantId,
    pub name: String,
    pub version: u64,
    pub text: String,
    pub enabled: bool,
    pub updated_at: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleVersion {
    pub version: u64,
    pub text: String,
    pub created_at: Timestamp,
}

/// What people say of a stretch of event time: whether a rule is right to fire there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleMark {
    pub device: String,
    pub from: Timestamp,
    pub to: Timestamp,
    pub is_false: bool,
}

/// What a back-test found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleMeasure {
    /// 0 for a rule of a file.
    pub version: u64,
    pub from: Timestamp,
    pub to: Timestamp,
    pub fired: u64,
    /// Firings in stretches that people marked, and how.
    pub right_count: u64,
    pub false_count: u64,
    pub measured_at: Timestamp,
}

impl RuleMeasure {
    /// The right ones among the firings that people judged; `None` if they judged none.
    pub fn precision(&self) -> Option<f64> {
        let judged = self.right_count + self.false_count;
        (judged > 0).then(|| self.right_count as f64 / judged as f64)
    }
}

type RuleRow = (String, String, i64, String, bool, i64);
type MeasureRow = (String, i64, i64, i64, i64, i64, i64, i64);

const RULE: &str = "SELECT r.tenant, r.name, r.version, v.text, r.enabled, r.updated_at
     FROM rules r JOIN rule_versions v ON v.tenant = r.tenant AND v.name = r.name AND v.version = r.version";

impl Registry {
    /// Puts a text in force, as the next version of the rule. The same text again changes nothing.
    pub async fn put_rule(
        &self,
        tenant: &TenantId,
        name: &str,
        text: &str,
        enabled: bool,
    ) -> Result<u64, RegistryError> {
        let now = self.clock.now().as_micros();
        let mut tx = self.database.begin().await?;
        // Of two who put a text at the same time, each makes a version.
        tx.lock(&format!("rule {tenant}/{name}")).await?;
        let newest: Option<(i64, String)> =
            sql("SELECT version, text FROM rule_versions WHERE tenant = $1 AND name = $2
             ORDER BY version DESC LIMIT 1")
            .bind(tenant.as_str())
            .bind(name)
            .fetch_optional(&mut tx)
            .await?;
        let version = match newest {
            Some((version, newest)) if newest == text => version,
            newest => {
                let version = newest.map_or(0, |(version, _)| version) + 1;
                sql("INSERT INTO rule_versions (tenant, name, version, text, created_at)
                     VALUES ($1, $2, $3, $4, $5)")
                .bind(tenant.as_str())
                .bind(name)
                .bind(version)
                .bind(text)
                .bind(now)
                .execute(&mut tx)
                .await?;
                version
            }
        };
        sql("INSERT INTO rules (tenant, name, version, enabled, updated_at) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (tenant, name) DO UPDATE SET
                 version = excluded.version, enabled = excluded.enabled, updated_at = excluded.updated_at")
        .bind(tenant.as_str())
        .bind(name)
        .bind(version)
        .bind(enabled)
        .bind(now)
        .execute(&mut tx)
        .await?;
        tx.commit().await?;
        Ok(version as u64)
    }

    /// Goes back to a version, or on to it.
    pub async fn set_rule_version(
        &self,
        tenant: &TenantId,
        name: &str,
        version: u64,
    ) -> Result<(), RegistryError> {
        let changed =
            sql("UPDATE rules SET version = $3, updated_at = $4 WHERE tenant = $1 AND name = $2 AND EXISTS (
                 SELECT 1 FROM rule_versions v WHERE v.tenant = $1 AND v.name = $2 AND v.version = $3)")
            .bind(tenant.as_str())
            .bind(name)
            .bind(i64::try_from(version).unwrap_or(i64::MAX))
            .bind(self.clock.now().as_micros())
            .execute(self.database.writer())
            .await?;
        match changed {
            0 => Err(RegistryError::NotFound {
                what: "version of the rule",
                name: format!("{name} {version}"),
            }),
            _ => Ok(()),
        }
    }

    pub async fn set_rule_enabled(
        &self,
        tenant: &TenantId,
        name: &str,
        enabled: bool,
    ) -> Result<(), RegistryError> {
        let changed = sql("UPDATE rules SET enabled = $3, updated_at = $4 WHERE tenant = $1 AND name = $2")
            .bind(tenant.as_str())
            .bind(name)
            .bind(enabled)
            .bind(self.clock.now().as_micros())
            .execute(self.database.writer())
            .await?;
        found(changed, name)
    }

    /// It is no longer in force; its versions stay.
    pub async fn delete_rule(&self, tenant: &TenantId, name: &str) -> Result<(), RegistryError> {
        let deleted = sql("DELETE FROM rules WHERE tenant = $1 AND name = $2")
            .bind(tenant.as_str())
            .bind(name)
            .execute(self.database.writer())
            .await?;
        found(deleted, name)
    }

    pub async fn rule(&self, tenant: &TenantId, name: &str) -> Result<Option<StoredRule>, RegistryError> {
        let row: Option<RuleRow> = sql(AssertSqlSafe(format!("{RULE} WHERE r.tenant = $1 AND r.name = $2")))
            .bind(tenant.as_str())
            .bind(name)
            .fetch_optional(self.database.reader())
            .await?;
        row.map(rule_of).transpose()
    }

    /// A tenant's rules, by name.
    pub async fn rules(&self, tenant: &TenantId) -> Result<Vec<StoredRule>, RegistryError> {
        let rows: Vec<RuleRow> = sql(AssertSqlSafe(format!("{RULE} WHERE r.tenant = $1 ORDER BY r.name")))
            .bind(tenant.as_str())
            .fetch_all(self.database.reader())
            .await?;
        rows.into_iter().map(rule_of).collect()
    }

    /// What is in force, of all tenants.
    pub async fn enabled_rules(&self) -> Result<Vec<StoredRule>, RegistryError> {
        let rows: Vec<RuleRow> =
            sql(AssertSqlSafe(format!("{RULE} WHERE r.enabled = $1 ORDER BY r.tenant, r.name")))
                .bind(true)
                .fetch_all(self.database.reader())
                .await?;
        rows.into_iter().map(rule_of).collect()
    }

    /// The newest first.
    pub async fn rule_versions(
        &self,
        tenant: &TenantId,
        name: &str,
    ) -> Result<Vec<RuleVersion>, RegistryError> {
        let rows: Vec<(i64, String, i64)> =
            sql("SELECT version, text, created_at FROM rule_versions WHERE tenant = $1 AND name = $2
             ORDER BY version DESC")
            .bind(tenant.as_str())
            .bind(name)
            .fetch_all(self.database.reader())
            .await?;
        let versions = rows.into_iter().map(|(version, text, created_at)| RuleVersion {
            version: version as u64,
            text,
            created_at: Timestamp::from_micros(created_at),
        });
        Ok(versions.collect())
    }

    /// A later word on the same stretch is the one that counts.
    pub async fn mark_rule(
        &self,
        tenant: &TenantId,
        rule: &str,
        mark: &RuleMark,
    ) -> Result<(), RegistryError> {
        sql("INSERT INTO rule_marks (tenant, rule, device, from_at, to_at, is_false, marked_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)
             ON CONFLICT (tenant, rule, device, from_at) DO UPDATE SET
                 to_at = excluded.to_at, is_false = excluded.is_false, marked_at = excluded.marked_at")
        .bind(tenant.as_str())
        .bind(rule)
        .bind(&mark.device)
        .bind(mark.from.as_micros())
        .bind(mark.to.as_micros())
        .bind(mark.is_false)
        .bind(self.clock.now().as_micros())
        .execute(self.database.writer())
        .await?;
        Ok(())
    }

    pub async fn rule_marks(&self, tenant: &TenantId, rule: &str) -> Result<Vec<RuleMark>, RegistryError> {
        let rows: Vec<(String, i64, i64, bool)> =
            sql("SELECT device, from_at, to_at, is_false FROM rule_marks WHERE tenant = $1 AND rule = $2
             ORDER BY from_at, device")
            .bind(tenant.as_str())
            .bind(rule)
            .fetch_all(self.database.reader())
            .await?;
        let marks = rows.into_iter().map(|(device, from, to, is_false)| RuleMark {
            device,
            from: Timestamp::from_micros(from),
            to: Timestamp::from_micros(to),
            is_false,
        });
        Ok(marks.collect())
    }

    /// Remembers the last back-test of a rule; `measured_at` is now.
    pub async fn set_rule_measure(
        &self,
        tenant: &TenantId,
        rule: &str,
        measure: &RuleMeasure,
    ) -> Result<(), RegistryError> {
        sql("INSERT INTO rule_measures
                 (tenant, rule, version, from_at, to_at, fired, right_count, false_count, measured_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
             ON CONFLICT (tenant, rule) DO UPDATE SET
                 version = excluded.version, from_at = excluded.from_at, to_at = excluded.to_at,
                 fired = excluded.fired, right_count = excluded.right_count,
                 false_count = excluded.false_count, measured_at = excluded.measured_at")
        .bind(tenant.as_str())
        .bind(rule)
        .bind(measure.version as i64)
        .bind(measure.from.as_micros())
        .bind(measure.to.as_micros())
        .bind(measure.fired as i64)
        .bind(measure.right_count as i64)
        .bind(measure.false_count as i64)
        .bind(self.clock.now().as_micros())
        .execute(self.database.writer())
        .await?;
        Ok(())
    }

    /// By rule.
    pub async fn rule_measures(
        &self,
        tenant: &TenantId,
    ) -> Result<Vec<(String, RuleMeasure)>, RegistryError> {
        let rows: Vec<MeasureRow> =
            sql("SELECT rule, version, from_at, to_at, fired, right_count, false_count, measured_at
             FROM rule_measures WHERE tenant = $1 ORDER BY rule")
            .bind(tenant.as_str())
            .fetch_all(self.database.reader())
            .await?;
        let measures = rows.into_iter().map(
            |(rule, version, from, to, fired, right_count, false_count, measured_at)| {
                let measure = RuleMeasure {
                    version: version as u64,
                    from: Timestamp::from_micros(from),
                    to: Timestamp::from_micros(to),
                    fired: fired as u64,
                    right_count: right_count as u64,
                    false_count: false_count as u64,
                    measured_at: Timestamp::from_micros(measured_at),
                };
                (rule, measure)
            },
        );
        Ok(measures.collect())
    }
}

fn found(rows: u64, name: &str) -> Result<(), RegistryError> {
    match rows {
        0 => Err(RegistryError::NotFound { what: "rule", name: name.to_owned() }),
        _ => Ok(()),
    }
}

fn rule_of((tenant, name, version, text, enabled, updated_at): RuleRow) -> Result<StoredRule, RegistryError> {
    Ok(StoredRule {
        tenant: tenant
            .parse()
            .map_err(|_| RegistryError::Damaged { what: "tenant", value: tenant.clone() })?,
        name,
        version: version as u64,
        text,
        enabled,
        updated_at: Timestamp::from_micros(updated_at),
    })
}
