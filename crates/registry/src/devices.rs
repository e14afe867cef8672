use dunlin_model::{DeviceId, DeviceType, TenantId, Timestamp};

use crate::{Registry, RegistryError, Token, is_unique_violation, tokens};

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

type Row = (String, String, String, Option<String>, bool, bool, i64);

impl Registry {
    /// Adds a device and its first token.
    pub async fn add_device(&self, tenant: &TenantId, device: &NewDevice) -> Result<Token, RegistryError> {
        let token = Token::random("dnd")?;
        let mut tx = self.writer.begin().await?;
        self.insert_device(&mut tx, tenant, device, None).await?;
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
        let mut tx = self.writer.begin().await?;
        if revoke_others {
            sqlx::query("DELETE FROM device_tokens WHERE tenant = $1 AND device = $2")
                .bind(tenant.as_str())
                .bind(device.as_str())
                .execute(&mut *tx)
                .await?;
        }
        self.insert_token(&mut tx, tenant, device, &token).await?;
        tx.commit().await?;
        Ok(token)
    }

    pub async fn device_by_token(&self, token: &str) -> Result<Option<Device>, RegistryError> {
        let row: Option<Row> = sqlx::query_as(
            "SELECT d.tenant, d.name, d.device_type, d.parent, d.is_gateway, d.enabled, d.created_at
             FROM device_tokens t JOIN devices d ON d.tenant = t.tenant AND d.name = t.device
             WHERE t.hash = $1",
        )
        .bind(tokens::hash(token))
        .fetch_optional(&self.readers)
        .await?;
        row.map(device_of).transpose()
    }

    pub async fn device(&self, tenant: &TenantId, name: &DeviceId) -> Result<Option<Device>, RegistryError> {
        let row: Option<Row> = sqlx::query_as(
            "SELECT tenant, name, device_type, parent, is_gateway, enabled, created_at
             FROM devices WHERE tenant = $1 AND name = $2",
        )
        .bind(tenant.as_str())
        .bind(name.as_str())
        .fetch_optional(&self.readers)
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
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT tenant, name, device_type, parent, is_gateway, enabled, created_at
             FROM devices WHERE tenant = $1 AND name > $2 ORDER BY name LIMIT $3",
        )
        .bind(tenant.as_str())
        .bind(after.unwrap_or(""))
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        rows.into_iter().map(device_of).collect()
    }

    /// The child of a gateway device; made at its first message, with the gateway's own type. `None`: a device of
    /// that name exists and is not the gateway's child.
    pub async fn child_of(&self, parent: &Device, name: &DeviceId) -> Result<Option<Device>, RegistryError> {
        let is_child = |d: &Device| d.parent.as_ref() == Some(&parent.name);
        if let Some(found) = self.device(&parent.tenant, name).await? {
            return Ok(Some(found).filter(is_child));
        }
        let new =
            NewDevice { name: name.clone(), device_type: parent.device_type.clone(), is_gateway: false };
        let mut tx = self.writer.begin().await?;
        match self.insert_device(&mut tx, &parent.tenant, &new, Some(&parent.name)).await {
            Ok(()) => tx.commit().await?,
            Err(RegistryError::Exists { .. }) => tx.rollback().await?,
            Err(error) => return Err(error),
        }
        Ok(self.device(&parent.tenant, name).await?.filter(is_child))
    }

    async fn insert_device(
        &self,
        tx: &mut sqlx::SqliteConnection,
        tenant: &TenantId,
        device: &NewDevice,
        parent: Option<&DeviceId>,
    ) -> Result<(), RegistryError> {
        sqlx::query(
            "INSERT INTO devices (tenant, name, device_type, parent, is_gateway, enabled, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(tenant.as_str())
        .bind(device.name.as_str())
        .bind(device.device_type.as_str())
        .bind(parent.map(|p| p.as_str()))
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
        tx: &mut sqlx::SqliteConnection,
        tenant: &TenantId,
        device: &DeviceId,
        token: &Token,
    ) -> Result<(), RegistryError> {
        sqlx::query("INSERT INTO device_tokens (hash, tenant, device, created_at) VALUES ($1, $2, $3, $4)")
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
