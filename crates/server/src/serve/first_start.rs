//! What a new data directory is given: the tenant `default`, an administrator's token, an example rule.

use std::{fs, io::Write, os::unix::fs::OpenOptionsExt, path::Path};

use dunlin_model::TenantId;
use dunlin_registry::{Registry, Scope};

use crate::exit::Failure;

const EXAMPLE_RULE: &str = include_str!("../../../../rules/machine-temperature.toml");

/// Does what is not done yet; a start that was cut short is finished by the next.
pub(crate) async fn prepare(data: &Path, rules: &Path, registry: &Registry) -> Result<(), Failure> {
    let tenant = TenantId::default_tenant();
    if !registry.has_tenant(&tenant).await? {
        write_example_rule(rules)?;
        registry.add_tenant(&tenant).await?;
    }
    let file = data.join("admin.token");
    if !file.exists() {
        let token = registry.add_user_token(&tenant, Scope::Platform).await?;
        write_secret(&file, token.reveal())?;
        tracing::info!(file = %file.display(), "administrator's token written");
    }
    Ok(())
}

fn write_example_rule(rules: &Path) -> Result<(), Failure> {
    fs::create_dir_all(rules)?;
    let file = rules.join("machine-temperature.toml");
    if !file.exists() {
        fs::write(file, EXAMPLE_RULE)?;
    }
    Ok(())
}

/// Readable by its owner alone, and there as a whole or not at all.
fn write_secret(file: &Path, secret: &str) -> Result<(), Failure> {
    let unfinished = file.with_extension("token.new");
    let mut out =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    writeln!(out, "{secret}")?;
    out.sync_all()?;
    fs::rename(unfinished, file)?;
    Ok(())
}
