use crate::{Registry, RegistryError, database::sql, tokens::Token};

impl Registry {
    /// The secret of a name; made at the first question.
    pub async fn secret(&self, name: &str) -> Result<String, RegistryError> {
        let fresh = Token::random("key")?;
        sql("INSERT INTO secrets (name, secret) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
            .bind(name)
            .bind(fresh.reveal())
            .execute(self.database.writer())
            .await?;
        let (secret,): (String,) = sql("SELECT secret FROM secrets WHERE name = $1")
            .bind(name)
            .fetch_one(self.database.writer())
            .await?;
        Ok(secret)
    }

    pub async fn link_is_used(&self, id: &str) -> Result<bool, RegistryError> {
        let found: Option<(i64,)> = sql("SELECT used_at FROM used_links WHERE id = $1")
            .bind(id)
            .fetch_optional(self.database.reader())
            .await?;
        Ok(found.is_some())
    }
}
