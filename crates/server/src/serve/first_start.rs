//! What a new data directory is given: the tenant `default`, an administrator's token, an example rule.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use dunlin_model::TenantId;
use dunlin_registry::{Registry, RegistryError, Scope};

use crate::exit::Failure;

const EXAMPLE_RULE: &str = include_str!("../../../../rules/machine-temperature.toml");

/// Does what is not done yet; a start that was cut short is finished by the next.
pub(crate) async fn prepare(data: &Path, rules: &Path, registry: &Registry) -> Result<(), Failure> {
    let tenant = TenantId::default_tenant();
    let (file, wanted) = (data.join("admin.token"), data.join("admin.token.new"));
    if !registry.has_tenant(&tenant).await? {
        write_example_rule(rules)?;
        secret_file(&wanted)?.sync_all()?;
        fs::File::open(data)?.sync_all()?;
        match registry.add_tenant(&tenant).await {
            // Another process that starts on the same registry was quicker.
            Ok(()) | Err(RegistryError::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // Not whenever there is no token: it may have been moved to a safe place.
    if wanted.exists() {
        let token = registry.add_user_token(&tenant, Scope::Platform).await?;
        let mut out = secret_file(&wanted)?;
        writeln!(out, "{}", token.reveal())?;
        out.sync_all()?;
        fs::rename(wanted, &file)?;
        tracing::info!(file = %file.display(), "administrator's token written");
    }
    Ok(())
}

/// A directory that nobody else can read, unless it is there already and its owner said otherwise.
pub(crate) fn make_data_directory(data: &Path) -> io::Result<()> {
    if let Some(parent) = data.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(data) {
        Err(_) if data.is_dir() => Ok(()),
        made => made,
    }
}

fn write_example_rule(rules: &Path) -> Result<(), Failure> {
    fs::create_dir_all(rules)?;
    let file = rules.join("machine-temperature.toml");
    if !file.exists() {
        fs::write(file, EXAMPLE_RULE)?;
    }
    Ok(())
}

/// An empty file, readable by its owner alone.
fn secret_file(file: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use dunlin_model::{Clock, Timestamp};

    use super::*;

    #[tokio::test]
    async fn a_token_that_was_moved_away_is_not_made_again_and_one_that_is_wanted_is() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("deep/data");
        make_data_directory(&data).unwrap();
        make_data_directory(&data).unwrap();
        assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
        let clock = Clock::new(|| Timestamp::from_micros(1));
        let registry = Registry::open_file(&data.join("registry.db"), clock).await.unwrap();
        let (rules, file) = (data.join("rules"), data.join("admin.token"));

        prepare(&data, &rules, &registry).await.unwrap();
        let token = fs::read_to_string(&file).unwrap();
        assert!(registry.user_by_token(token.trim()).await.unwrap().is_some());
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

        fs::remove_file(&file).unwrap();
        prepare(&data, &rules, &registry).await.unwrap();
        assert!(!file.exists());

        // A first start that was cut short, or somebody who lost the token.
        fs::write(data.join("admin.token.new"), "").unwrap();
        prepare(&data, &rules, &registry).await.unwrap();
        assert_ne!(fs::read_to_string(&file).unwrap(), token);
    }
}
