use dunlin_model::TenantId;

use crate::{Registry, RegistryError, Token, database::sql, tokens};

/// Who a person's token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub tenant: TenantId,
    pub scope: Scope,
}

/// What a person may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything within the own tenant, and adding tenants.
    Platform,
    /// Everything within the own tenant.
    Tenant,
}

impl Scope {
    fn as_str(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::Tenant => "tenant",
        }
    }
}

impl Registry {
    pub async fn add_user_token(&self, tenant: &TenantId, scope: Scope) -> Result<Token, RegistryError> {
        let token = Token::random("dnu")?;
        sql("INSERT INTO user_tokens (hash, tenant, scope, created_at) VALUES ($1, $2, $3, $4)")
            .bind(token.hash())
            .bind(tenant.as_str())
            .bind(scope.as_str())
            .bind(self.clock.now().as_micros())
            .execute(self.database.writer())
            .await?;
        Ok(token)
    }

    /// `None`: nobody's token.
    pub async fn user_by_token(&self, token: &str) -> Result<Option<User>, RegistryError> {
        let row: Option<(String, String)> = sql("SELECT tenant, scope FROM user_tokens WHERE hash = $1")
            .bind(tokens::hash(token))
            .fetch_optional(self.database.reader())
            .await?;
        let Some((tenant, scope)) = row else { return Ok(None) };
        let scope = match scope.as_str() {
            "platform" => Scope::Platform,
            "tenant" => Scope::Tenant,
            _ => return Err(RegistryError::Damaged { what: "scope", value: scope }),
        };
        let tenant = tenant.parse().map_err(|_| RegistryError::Damaged { what: "tenant", value: tenant })?;
        Ok(Some(User { tenant, scope }))
    }
}
