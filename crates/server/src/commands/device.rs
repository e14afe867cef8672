use serde_json::json;

use super::{
    client::{Client, escaped, text, tokens_path},
    say,
};
use crate::{
    cli::{DeviceCommand, Server},
    exit::Failure,
};

pub(crate) async fn run(command: DeviceCommand, server: Server) -> Result<(), Failure> {
    let client = Client::new(&server)?;
    match command {
        DeviceCommand::Add { name, device_type, gateway } => {
            let body = json!({ "name": name, "device_type": device_type, "gateway": gateway });
            say!("{}", text(&client.post("/v1/devices", &body).await?, "token")?)?;
        }
        DeviceCommand::Token { name, revoke_others } => {
            let path = tokens_path(&name, revoke_others);
            say!("{}", text(&client.post(&path, &json!({})).await?, "token")?)?;
        }
        DeviceCommand::List => list(&client).await?,
    }
    Ok(())
}

async fn list(client: &Client) -> Result<(), Failure> {
    let mut after = String::new();
    say!("{:<32} {:<16} {:<24} ADDED", "DEVICE", "TYPE", "PARENT")?;
    loop {
        let page = client.get(&format!("/v1/devices?after={}", escaped(&after))).await?;
        for device in page["devices"].as_array().into_iter().flatten() {
            let field = |name: &str| device[name].as_str().unwrap_or("-").to_owned();
            say!(
                "{:<32} {:<16} {:<24} {}",
                field("name"),
                field("device_type"),
                field("parent"),
                field("created_at")
            )?;
        }
        match page["next"].as_str() {
            Some(next) => after = next.to_owned(),
            None => return Ok(()),
        }
    }
}
