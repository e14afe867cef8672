use std::sync::Arc;

use axum::{
    Json,
    extract::{
        Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::StatusCode,
};
use dunlin_model::{DeviceId, DeviceType, TenantId};
use dunlin_registry::{Device, NewDevice};
use serde::{Deserialize, Serialize};

use crate::{Console, Revoked, ask::Asker, problem::Problem};

const PAGE_DEVICES_MAX: u32 = 1_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewDeviceBody {
    name: String,
    /// `default` if absent.
    device_type: Option<String>,
    /// May speak for children.
    #[serde(default)]
    gateway: bool,
}

/// The token is shown this once.
#[derive(Serialize)]
pub(crate) struct TokenView {
    device: String,
    token: String,
}

#[derive(Serialize)]
pub(crate) struct DeviceView {
    name: String,
    device_type: String,
    parent: Option<String>,
    gateway: bool,
    enabled: bool,
    created_at: String,
}

impl From<&Device> for DeviceView {
    fn from(d: &Device) -> Self {
        Self {
            name: d.name.to_string(),
            device_type: d.device_type.to_string(),
            parent: d.parent.as_ref().map(ToString::to_string),
            gateway: d.is_gateway,
            enabled: d.enabled,
            created_at: d.created_at.to_string(),
        }
    }
}

pub(crate) async fn add(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    body: Result<Json<NewDeviceBody>, JsonRejection>,
) -> Result<(StatusCode, Json<TokenView>), Problem> {
    let Json(body) = body?;
    let device = NewDevice {
        name: body.name.parse()?,
        device_type: match body.device_type {
            Some(name) => name.parse().map_err(|e| Problem::invalid("device_type", e))?,
            None => DeviceType::default_type(),
        },
        is_gateway: body.gateway,
    };
    let token = console.registry.add_device(&user.tenant, &device).await?;
    let view = TokenView { device: device.name.to_string(), token: token.reveal().to_owned() };
    Ok((StatusCode::CREATED, Json(view)))
}

/// A device with what is known of its clock.
#[derive(Serialize)]
pub(crate) struct OneDeviceView {
    #[serde(flatten)]
    device: DeviceView,
    /// By how much its clock is ahead of the server's; below zero, behind. `null` if it says no times.
    clock_ahead_ms: Option<i64>,
}

pub(crate) async fn show(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(device): Path<String>,
) -> Result<Json<OneDeviceView>, Problem> {
    let name: DeviceId = device.parse()?;
    let device = console.registry.device(&user.tenant, &name).await?;
    let device = device.ok_or_else(|| Problem::not_found("device", &name))?;
    let ahead = console.platform.clock_ahead_micros(&user.tenant, &name).await;
    Ok(Json(OneDeviceView { device: (&device).into(), clock_ahead_ms: ahead.map(|micros| micros / 1_000) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenQuery {
    #[serde(default)]
    revoke_others: bool,
}

pub(crate) async fn add_token(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(device): Path<String>,
    query: Result<Query<TokenQuery>, QueryRejection>,
) -> Result<(StatusCode, Json<TokenView>), Problem> {
    let device: DeviceId = device.parse()?;
    let Query(TokenQuery { revoke_others }) = query?;
    to_the_end(async move {
        let token = console.registry.add_device_token(&user.tenant, &device, revoke_others).await?;
        if revoke_others {
            cut_off(&console, &user.tenant, &device, Revoked::Token).await?;
        }
        let view = TokenView { device: device.to_string(), token: token.reveal().to_owned() };
        Ok((StatusCode::CREATED, Json(view)))
    })
    .await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Change {
    enabled: bool,
}

pub(crate) async fn change(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    Path(device): Path<String>,
    body: Result<Json<Change>, JsonRejection>,
) -> Result<StatusCode, Problem> {
    let device: DeviceId = device.parse()?;
    let Json(Change { enabled }) = body?;
    to_the_end(async move {
        console.registry.set_device_enabled(&user.tenant, &device, enabled).await?;
        if !enabled {
            cut_off(&console, &user.tenant, &device, Revoked::Device).await?;
        }
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

async fn cut_off(
    console: &Console,
    tenant: &TenantId,
    device: &DeviceId,
    what: Revoked,
) -> Result<(), Problem> {
    let revoked = console.platform.revoked(tenant, device, what).await;
    revoked.map_err(|reason| Problem::not_everywhere(&reason))
}

/// Also if the client leaves meanwhile: a device must not stay connected whose access was taken back, and a command must
/// not be written down that is never sent.
pub(crate) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    tokio::spawn(work).await.unwrap_or_else(|panicked| Err(Problem::internal(&panicked)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    /// What comes behind this one in the list.
    pub(crate) after: Option<String>,
    pub(crate) limit: Option<u32>,
}

#[derive(Serialize)]
pub(crate) struct DevicesView {
    devices: Vec<DeviceView>,
    /// Ask again with `after` set to this for the next page.
    next: Option<String>,
}

pub(crate) async fn list(
    Asker(user): Asker,
    State(console): State<Arc<Console>>,
    page: Result<Query<Page>, QueryRejection>,
) -> Result<Json<DevicesView>, Problem> {
    let Query(page) = page?;
    let limit = page.limit.unwrap_or(PAGE_DEVICES_MAX).clamp(1, PAGE_DEVICES_MAX);
    let devices = console.registry.devices(&user.tenant, page.after.as_deref(), limit).await?;
    let next = devices.last().filter(|_| devices.len() == limit as usize).map(|d| d.name.to_string());
    Ok(Json(DevicesView { devices: devices.iter().map(DeviceView::from).collect(), next }))
}
