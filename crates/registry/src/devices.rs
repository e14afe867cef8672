use std::collections::{BTreeSet, HashMap};

use dunlin_model::{DeviceId, DeviceType, TenantId, Timestamp};
use sqlx::AssertSqlSafe;

use crate::{
    Registry, RegistryError, Token,
    database::{Executor, Transaction, sql},
    is_unique_violation, tokens,
};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub tenant: TenantId,
    pub name: DeviceId,
    pub device_type: DeviceType,
    /// The gateway device that speaks for this one.
    pub parent: Option<DeviceId>,
    /// May speak for children.
    pub is_gateway: bool,
    pub enabled: bool,
    pub created_at: Timestamp,
}

#[derive(Debug, Clone)]
pub struct NewDevice {
    pub name: DeviceId,
    pub device_type: DeviceType,
    pub is_gateway: bool,
}

/// Why a gateway device has no child of a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoChild {
    #[error("a device of this name exists and is not a child of this one")]
    NotOfThisParent,
    #[error("a device has at most {children_max} children")]
    TooMany { children_max: u64 },
}

/// Names in one question: below what SQLite and PostgreSQL take of parameters.
const QUERY_NAMES_MAX: usize = 500;

type Row = (String, String, String, Option<String>, bool, bool, i64);

impl Registry {
    /// Adds a device and its first token.
    pub async fn add_device(&self, tenant: &TenantId, device: &NewDevice) -> Result<Token, RegistryError> {
        let token = Token::random("dnd")?;
        let mut tx = self.database.begin().await?;
        self.insert_device(&mut tx, tenant, device).await?;
        self.insert_token(&mut tx, tenant, &device.name, &token).await?;
        tx.commit().await?;
        Ok(token)
    }

    /// A further token; those the device has stay valid unless `revoke_others`.
    pub async fn add_device_token(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        revoke_others: bool,
    ) -> Result<Token, RegistryError> {
        self.device(tenant, device)
            .await?
            .ok_or_else(|| RegistryError::NotFound { what: "device", name: device.to_string() })?;
        let token = Token::random("dnd")?;
        let mut tx = self.database.begin().await?;
        // Of two that revoke at the same time, one revokes what the other made.
        tx.lock(&format!("tokens of {tenant}/{device}")).await?;
        if revoke_others {
            sql("DELETE FROM device_tokens WHERE tenant = $1 AND device = $2")
                .bind(tenant.as_str())
                .bind(device.as_str())
                .execute(&mut tx)
                .await?;
        }
        self.insert_token(&mut tx, tenant, device, &token).await?;
        tx.commit().await?;
        Ok(token)
    }

    /// A device that is disabled keeps its tokens and comes in with none of them.
    pub async fn set_device_enabled(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        enabled: bool,
    ) -> Result<(), RegistryError> {
        let done = sql("UPDATE devices SET enabled = $3 WHERE tenant = $1 AND name = $2")
            .bind(tenant.as_str())
            .bind(device.as_str())
            .bind(enabled)
            .execute(self.database.writer())
            .await?;
        match done {
            0 => Err(RegistryError::NotFound { what: "device", name: device.to_string() }),
            _ => Ok(()),
        }
    }

    pub async fn device_by_token(&self, token: &str) -> Result<Option<Device>, RegistryError> {
        let row: Option<Row> =
            sql("SELECT d.tenant, d.name, d.device_type, d.parent, d.is_gateway, d.enabled, d.created_at
             FROM device_tokens t JOIN devices d ON d.tenant = t.tenant AND d.name = t.device
             WHERE t.hash = $1")
            .bind(tokens::hash(token))
            .fetch_optional(self.database.reader())
            .await?;
        row.map(device_of).transpose()
    }

    pub async fn device(&self, tenant: &TenantId, name: &DeviceId) -> Result<Option<Device>, RegistryError> {
        let row: Option<Row> =
            sql("SELECT tenant, name, device_type, parent, is_gateway, enabled, created_at
             FROM devices WHERE tenant = $1 AND name = $2")
            .bind(tenant.as_str())
            .bind(name.as_str())
            .fetch_optional(self.database.reader())
            .await?;
        row.map(device_of).transpose()
    }

    /// Devices in the order of their names, after `after`.
    pub async fn devices(
        &self,
        tenant: &TenantId,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Device>, RegistryError> {
        let rows: Vec<Row> = sql("SELECT tenant, name, device_type, parent, is_gateway, enabled, created_at
             FROM devices WHERE tenant = $1 AND name > $2 ORDER BY name LIMIT $3")
        .bind(tenant.as_str())
        .bind(after.unwrap_or(""))
        .bind(i64::from(limit))
        .fetch_all(self.database.reader())
        .await?;
        rows.into_iter().map(device_of).collect()
    }

    /// The children of a gateway device, in the order of `names`; those that nobody has are made now, all in one
    /// transaction, with the gateway's own type.
    pub async fn children_of(
        &self,
        parent: &Device,
        names: &[DeviceId],
        children_max: u64,
    ) -> Result<Vec<Result<Device, NoChild>>, RegistryError> {
        let mut known = self.devices_named(&parent.tenant, names).await?;
        let missing: BTreeSet<&DeviceId> = names.iter().filter(|name| !known.contains_key(*name)).collect();
        if !missing.is_empty() && self.child_count(self.database.reader(), parent).await? < children_max {
            self.make_children(parent, missing.iter().copied(), children_max).await?;
            let made: Vec<DeviceId> = missing.into_iter().cloned().collect();
            known.extend(self.devices_named(&parent.tenant, &made).await?);
        }
        let children = names.iter().map(|name| match known.get(name) {
            Some(device) if device.parent.as_ref() == Some(&parent.name) => Ok(device.clone()),
            Some(_) => Err(NoChild::NotOfThisParent),
            None => Err(NoChild::TooMany { children_max }),
        });
        Ok(children.collect())
    }

    async fn devices_named(
        &self,
        tenant: &TenantId,
        names: &[DeviceId],
    ) -> Result<HashMap<DeviceId, Device>, RegistryError> {
        let mut found = HashMap::with_capacity(names.len());
        for names in names.chunks(QUERY_NAMES_MAX) {
            let places: Vec<String> = (2..names.len() + 2).map(|n| format!("${n}")).collect();
            let statement = sql(AssertSqlSafe(format!(
                "SELECT tenant, name, device_type, parent, is_gateway, enabled, created_at
                 FROM devices WHERE tenant = $1 AND name IN ({})",
                places.join(", ")
            )))
            .persistent(false);
            let statement =
                names.iter().fold(statement.bind(tenant.as_str()), |s, name| s.bind(name.as_str()));
            for row in statement.fetch_all::<Row>(self.database.reader()).await? {
                let device = device_of(row)?;
                found.insert(device.name.clone(), device);
            }
        }
        Ok(found)
    }

    /// Makes as many of them as there is room for, and none that exists.
    async fn make_children(
        &self,
        parent: &Device,
        names: impl Iterator<Item = &DeviceId>,
        children_max: u64,
    ) -> Result<(), RegistryError> {
        let mut tx = self.database.begin().await?;
        tx.lock(&format!("children of {}/{}", parent.tenant, parent.name)).await?;
        let mut room = children_max.saturating_sub(self.child_count(&mut tx, parent).await?);
        for name in names {
            if room == 0 {
                break;
            }
            let made = sql(
                "INSERT INTO devices (tenant, name, device_type, parent, is_gateway, enabled, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (tenant, name) DO NOTHING",
            )
            .bind(parent.tenant.as_str())
            .bind(name.as_str())
            .bind(parent.device_type.as_str())
            .bind(parent.name.as_str())
            .bind(false)
            .bind(true)
            .bind(self.clock.now().as_micros())
            .execute(&mut tx)
            .await?;
            room -= made;
        }
        tx.commit().await?;
        Ok(())
    }

    async fn child_count(&self, on: impl Into<Executor<'_>>, parent: &Device) -> Result<u64, RegistryError> {
        let (count,): (i64,) = sql("SELECT COUNT(*) FROM devices WHERE tenant = $1 AND parent = $2")
            .bind(parent.tenant.as_str())
            .bind(parent.name.as_str())
            .fetch_one(on)
            .await?;
        Ok(count.unsigned_abs())
    }

    async fn insert_device(
        &self,
        tx: &mut Transaction,
        tenant: &TenantId,
        device: &NewDevice,
    ) -> Result<(), RegistryError> {
        sql("INSERT INTO devices (tenant, name, device_type, is_gateway, enabled, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)")
        .bind(tenant.as_str())
        .bind(device.name.as_str())
        .bind(device.device_type.as_str())
        .bind(device.is_gateway)
        .bind(true)
        .bind(self.clock.now().as_micros())
        .execute(tx)
        .await
        .map_err(|error| match is_unique_violation(&error) {
            true => RegistryError::Exists { what: "device", name: device.name.to_string() },
            false => error.into(),
        })?;
        Ok(())
    }

    async fn insert_token(
        &self,
        tx: &mut Transaction,
        tenant: &TenantId,
        device: &DeviceId,
        token: &Token,
    ) -> Result<(), RegistryError> {
        sql("INSERT INTO device_tokens (hash, tenant, device, created_at) VALUES ($1, $2, $3, $4)")
            .bind(token.hash())
            .bind(tenant.as_str())
            .bind(device.as_str())
            .bind(self.clock.now().as_micros())
            .execute(tx)
            .await?;
        Ok(())
    }
}

fn device_of(
    (tenant, name, device_type, parent, is_gateway, enabled, created_at): Row,
) -> Result<Device, RegistryError> {
    fn parsed<T: std::str::FromStr>(what: &'static str, value: String) -> Result<T, RegistryError> {
        value.parse().map_err(|_| RegistryError::Damaged { what, value })
    }
    Ok(Device {
        tenant: parsed("tenant", tenant)?,
        name: parsed("device", name)?,
        device_type: parsed("device type", device_type)?,
        parent: parent.map(|p| parsed("device", p)).transpose()?,
        is_gateway,
        enabled,
        created_at: Timestamp::from_micros(created_at),
    })
}
