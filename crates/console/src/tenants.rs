use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::{Json, extract::State, http::StatusCode};
use dunlin_model::TenantId;
use dunlin_registry::Scope;
use serde::{Deserialize, Serialize};

use crate::{Console, ask::PlatformAsker, problem::Problem};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTenant {
    name: String,
}

/// The token is shown this once.
#[derive(Serialize)]
pub(crate) struct AddedTenant {
    name: String,
    token: String,
}

pub(crate) async fn add(
    _: PlatformAsker,
    State(console): State<Arc<Console>>,
    body: Result<Json<NewTenant>, JsonRejection>,
) -> Result<(StatusCode, Json<AddedTenant>), Problem> {
    let name: TenantId = body?.0.name.parse()?;
    console.registry.add_tenant(&name).await?;
    let token = console.registry.add_user_token(&name, Scope::Tenant).await?;
    let added = AddedTenant { name: name.to_string(), token: token.reveal().to_owned() };
    Ok((StatusCode::CREATED, Json(added)))
}

pub(crate) async fn list(
    _: PlatformAsker,
    State(console): State<Arc<Console>>,
) -> Result<Json<Vec<String>>, Problem> {
    let tenants = console.registry.tenants().await?;
    Ok(Json(tenants.iter().map(ToString::to_string).collect()))
}
