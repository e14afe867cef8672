//! What devices are asked to do, and what came of it.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::{Value, value::RawValue};

use super::{
    client::{Client, escaped, text},
    say,
};
use crate::{
    cli::{CommandCommand, Server},
    exit::Failure,
};

/// Between two questions about a command that is waited for.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long the server is asked beyond the command's own time.
const ANSWER_MAX: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct NewCommand<'c> {
    method: &'c str,
    /// As it was written.
    params: Option<&'c RawValue>,
    expires_in_seconds: u64,
}

pub(crate) async fn run(command: CommandCommand, server: Server) -> Result<(), Failure> {
    let client = Client::new(&server)?;
    match command {
        CommandCommand::Send { device, method, params, expires_in, wait } => {
            let body =
                NewCommand { method: &method, params: params.as_deref(), expires_in_seconds: expires_in };
            let sent = client.post(&commands_path(&device), &body).await?;
            let id = text(&sent, "id")?;
            match wait {
                true => say!("{}", reply_to(&client, &id, Duration::from_secs(expires_in)).await?),
                false => say!("{id}"),
            }
        }
        CommandCommand::List { device } => list(&client, &device).await,
        CommandCommand::Show { command } => show(&client, &command).await,
    }
}

/// Waits until the device has replied, or the command has expired. A server that does not answer is asked again until then.
async fn reply_to(client: &Client, id: &str, lifetime: Duration) -> Result<Value, Failure> {
    let asked_until = Instant::now() + lifetime + ANSWER_MAX;
    loop {
        let command = match client.get(&command_path(id)).await {
            Ok(command) => command,
            Err(_) if Instant::now() < asked_until => {
                tokio::time::sleep(ASK_EVERY).await;
                continue;
            }
            Err(failure) => {
                let why = format!("command {id} was sent, and what came of it is not known: {failure}");
                return Err(Failure::Failed(why));
            }
        };
        match text(&command, "state")?.as_str() {
            "replied" => return Ok(command["reply"].clone()),
            "expired" => {
                let how = match command["delivered_at"].as_str() {
                    Some(at) => format!("it was delivered at {at}"),
                    None => "it was not delivered".to_owned(),
                };
                return Err(Failure::Failed(format!("command {id} expired without a reply; {how}")));
            }
            _ => tokio::time::sleep(ASK_EVERY).await,
        }
    }
}

async fn list(client: &Client, device: &str) -> Result<(), Failure> {
    let mut after = String::new();
    say!("{:<30} {:<9} {:<27} {:<27} {:<24} REPLY", "COMMAND", "STATE", "SENT", "EXPIRES", "METHOD")?;
    loop {
        let page = client.get(&format!("{}{after}", commands_path(device))).await?;
        for command in page["commands"].as_array().into_iter().flatten() {
            let field = |name: &str| command[name].as_str().unwrap_or("-").to_owned();
            let reply = match &command["reply"] {
                Value::Null => "-".to_owned(),
                reply => reply.to_string(),
            };
            say!(
                "{:<30} {:<9} {:<27} {:<27} {:<24} {reply}",
                field("id"),
                field("state"),
                field("sent_at"),
                field("expires_at"),
                field("method")
            )?;
        }
        match page["next"].as_str() {
            Some(next) => after = format!("?after={}", escaped(next)),
            None => return Ok(()),
        }
    }
}

async fn show(client: &Client, id: &str) -> Result<(), Failure> {
    let command = client.get(&command_path(id)).await?;
    for name in [
        "id",
        "device",
        "method",
        "params",
        "state",
        "sent_at",
        "expires_at",
        "delivered_at",
        "replied_at",
        "reply",
    ] {
        match &command[name] {
            Value::Null => {}
            // JSON of people and devices keeps its quotes.
            json if matches!(name, "params" | "reply") => say!("{name:<12} {json}")?,
            of_command => say!("{name:<12} {}", of_command.as_str().unwrap_or_default())?,
        }
    }
    Ok(())
}

fn commands_path(device: &str) -> String {
    format!("/v1/devices/{}/commands", escaped(device))
}

fn command_path(id: &str) -> String {
    format!("/v1/commands/{}", escaped(id))
}
