use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{StatusCode, header},
    response::IntoResponse,
};
use dunlin_model::{Command, CommandId, DeviceId, TenantId, Timestamp, chain, limits::COMMAND_BYTES_MAX};
use dunlin_registry::{NewCommand, StoredCommand};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::{
    Console, NotSent,
    ask::Asker,
    devices::{Page, to_the_end},
    problem::Problem,
};

/// Each may bring its parameters and a reply.
const PAGE_COMMANDS_MAX: u32 = 100;
const METHOD_CHARACTERS_MAX: usize = 128;

const EXPIRES_IN_SECONDS_DEFAULT: u64 = 60;
const EXPIRES_IN_SECONDS_MAX: u64 = 30 * 86_400;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewCommandBody {
    method: String,
    /// Any JSON, `null` if absent; the device gets it as it stands here.
    params: Option<Box<RawValue>>,
    /// A minute if absent.
    expires_in_seconds: Option<u64>,
}

#[derive(Serialize)]
pub(crate) struct CommandView {
    id: String,
    device: String,
    method: String,
    params: Box<RawValue>,
    /// `queued`, `delivered`, `replied` or `expired`.
    state: &'static str,
    sent_at: String,
    expires_at: String,
    delivered_at: Option<String>,
    replied_at: Option<String>,
    reply: Option<Box<RawValue>>,
}

fn view(command: StoredCommand, now: Timestamp) -> Result<CommandView, Problem> {
    Ok(CommandView {
        state: command.state(now).as_str(),
        id: command.id.to_string(),
        device: command.device.to_string(),
        method: command.method,
        params: json(command.params)?,
        sent_at: command.sent_at.to_string(),
        expires_at: command.expires_at.to_string(),
        delivered_at: command.delivered_at.map(|at| at.to_string()),
        replied_at: command.replied_at.map(|at| at.to_string()),
        reply: command.reply.map(json).transpose()?,
    })
}

/// As it stands; what is no JSON, as a text.
fn json(text: String) -> Result<Box<RawValue>, Problem> {
    match serde_json::from_str::<&RawValue>(&text) {
        Ok(json) => Ok(json.to_owned()),
        Err(_) => to_raw_value(&text).map_err(|error| Problem::internal(&error)),
    }
}

pub(crate) async fn send(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(device): Path<String>,
    body: Result<Json<NewCommandBody>, JsonRejection>,
) -> Result<impl IntoResponse, Problem> {
    let new = new_command(device.parse()?, body?.0)?;
    to_the_end(async move {
        let command = console.registry.add_command(&user.tenant, &new).await?;
        match console.platform.send(&Command::from(&command)).await {
            Ok(()) => {}
            Err(NotSent::Refused(reason)) => {
                forget(&console, &user.tenant, &command.id).await;
                return Err(Problem::not_sent(&reason));
            }
            Err(NotSent::Unknown(reason)) => return Err(Problem::maybe_sent(&command.id, &reason)),
        }
        let place = [(header::LOCATION, format!("/v1/commands/{}", command.id))];
        Ok((StatusCode::ACCEPTED, place, Json(view(command, console.desk.now())?)))
    })
    .await
}

fn new_command(device: DeviceId, body: NewCommandBody) -> Result<NewCommand, Problem> {
    let is_legal = (1..=METHOD_CHARACTERS_MAX).contains(&body.method.chars().count());
    if !is_legal || body.method.contains(char::is_control) {
        let legal = format!("1 to {METHOD_CHARACTERS_MAX} characters, and no control characters");
        return Err(Problem::invalid("method", legal));
    }
    let params = body.params.as_deref().map_or("null", RawValue::get);
    // Whoever asks for it reads it as a value, which bounds how deep it may be.
    if let Err(fault) = serde_json::from_str::<serde_json::Value>(params) {
        return Err(Problem::invalid("params", fault));
    }
    if params.len() > COMMAND_BYTES_MAX {
        return Err(Problem::invalid("params", format!("at most {COMMAND_BYTES_MAX} bytes of JSON")));
    }
    let seconds = body.expires_in_seconds.unwrap_or(EXPIRES_IN_SECONDS_DEFAULT);
    if !(1..=EXPIRES_IN_SECONDS_MAX).contains(&seconds) {
        return Err(Problem::invalid("expires_in_seconds", format!("from 1 to {EXPIRES_IN_SECONDS_MAX}")));
    }
    let (params, lifetime) = (params.to_owned(), Duration::from_secs(seconds));
    Ok(NewCommand { device, method: body.method, params, lifetime })
}

/// If it cannot be forgotten, it expires.
async fn forget(console: &Console, tenant: &TenantId, command: &CommandId) {
    if let Err(error) = console.registry.forget_command(tenant, command).await {
        tracing::warn!(%tenant, %command, error = chain(&error), "a command that was not sent is shown until it expires");
    }
}

pub(crate) async fn show(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(command): Path<String>,
) -> Result<Json<CommandView>, Problem> {
    let id: CommandId = command.parse().map_err(|e| Problem::invalid("command", e))?;
    let command = console.registry.command(&user.tenant, &id).await?;
    let command = command.ok_or_else(|| Problem::not_found("command", &id))?;
    Ok(Json(view(command, console.desk.now())?))
}

#[derive(Serialize)]
pub(crate) struct CommandsView {
    commands: Vec<CommandView>,
    /// Ask again with `after` set to this for the next page.
    next: Option<String>,
}

pub(crate) async fn list(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(device): Path<String>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<CommandsView>, Problem> {
    let device: DeviceId = device.parse()?;
    let Query(page) = page?;
    let limit = page.limit.unwrap_or(PAGE_COMMANDS_MAX).clamp(1, PAGE_COMMANDS_MAX);
    let after = page.after.map(|id| id.parse::<CommandId>().map_err(|e| Problem::invalid("after", e)));
    let found = console.registry.device(&user.tenant, &device).await?;
    found.ok_or_else(|| Problem::not_found("device", &device))?;
    let commands =
        console.registry.commands(&user.tenant, &device, after.transpose()?.as_ref(), limit).await?;
    let next = commands.last().filter(|_| commands.len() == limit as usize).map(|c| c.id.to_string());
    let now = console.desk.now();
    let commands = commands.into_iter().map(|command| view(command, now)).collect::<Result<_, _>>()?;
    Ok(Json(CommandsView { commands, next }))
}
