use std::fmt;

use dunlin_model::{DeviceId, DeviceType, TenantId};
use futures::future::BoxFuture;

/// Who may come in. The gateway asks; whoever keeps the devices answers.
pub trait Directory: fmt::Debug + Send + Sync + 'static {
    /// The device that `token` belongs to.
    fn admit(&self, token: String) -> BoxFuture<'_, Result<Admitted, Denied>>;

    /// The device `name` that `parent` speaks for, in the parent's tenant. Only asked for a parent that
    /// `speaks_for_children`; a child seen for the first time may be created here.
    fn child(
        &self,
        parent: &Admitted,
        name: DeviceId,
    ) -> BoxFuture<'_, Result<(DeviceId, DeviceType), Denied>>;
}

/// A device that showed its credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    pub tenant: TenantId,
    pub device: DeviceId,
    pub device_type: DeviceType,
    /// May publish as other devices of its tenant.
    pub speaks_for_children: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("no device has this token")]
    UnknownToken,
    #[error("the device is disabled")]
    Disabled,
    /// Nothing is known about the token: ask again later.
    #[error("the directory is unavailable: {0}")]
    Unavailable(String),
}
