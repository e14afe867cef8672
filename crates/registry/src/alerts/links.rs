use crate::{Registry, RegistryError, tokens::Token};

impl Registry {
    /// The secret of a name; made at the first question.
    pub async fn secret(&self, name: &str) -> Result<String, RegistryError> {
        let fresh = Token::random("key")?;
        sqlx::query("INSERT INTO secrets (name, secret) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
            .bind(name)
            .bind(fresh.reveal())
            .execute(&self.writer)
            .await?;
        let (secret,): (String,) = sqlx::query_as("SELECT secret FROM secrets WHERE name = $1")
            .bind(name)
            .fetch_one(&self.writer)
            .await?;
        Ok(secret)
    }

    pub async fn link_is_used(&self, id: &str) -> Result<bool, RegistryError> {
        let found: Option<(i64,)> = sqlx::query_as("SELECT used_at FROM used_links WHERE id = $1")
            .bind(id)
            .fetch_optional(&self.readers)
            .await?;
        Ok(found.is_some())
    }
}
