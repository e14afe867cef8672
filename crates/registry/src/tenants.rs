use dunlin_model::TenantId;

use crate::{Registry, RegistryError, database::sql, is_unique_violation};

impl Registry {
    pub async fn add_tenant(&self, name: &TenantId) -> Result<(), RegistryError> {
        sql("INSERT INTO tenants (name, created_at) VALUES ($1, $2)")
            .bind(name.as_str())
            .bind(self.clock.now().as_micros())
            .execute(self.database.writer())
            .await
            .map_err(|error| match is_unique_violation(&error) {
                true => RegistryError::Exists { what: "tenant", name: name.to_string() },
                false => error.into(),
            })?;
        Ok(())
    }

    pub async fn has_tenant(&self, name: &TenantId) -> Result<bool, RegistryError> {
        let (found,): (i64,) = sql("SELECT COUNT(*) FROM tenants WHERE name = $1")
            .bind(name.as_str())
            .fetch_one(self.database.reader())
            .await?;
        Ok(found > 0)
    }

    pub async fn tenants(&self) -> Result<Vec<TenantId>, RegistryError> {
        let names: Vec<(String,)> =
            sql("SELECT name FROM tenants ORDER BY name").fetch_all(self.database.reader()).await?;
        names
            .into_iter()
            .map(|(name,)| name.parse().map_err(|_| RegistryError::Damaged { what: "tenant", value: name }))
            .collect()
    }
}
