use serde_json::json;

use super::{
    client::{Client, text},
    say,
};
use crate::{
    cli::{Server, TenantCommand},
    exit::Failure,
};

pub(crate) async fn run(command: TenantCommand, server: Server) -> Result<(), Failure> {
    let client = Client::new(&server)?;
    match command {
        TenantCommand::Add { name } => {
            let added = client.post("/v1/tenants", &json!({ "name": name })).await?;
            say!("{}", text(&added, "token")?)?;
        }
        TenantCommand::List => {
            for tenant in client.get("/v1/tenants").await?.as_array().into_iter().flatten() {
                say!("{}", tenant.as_str().unwrap_or("-"))?;
            }
        }
    }
    Ok(())
}
