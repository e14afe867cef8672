//! The gateway's question "who is this?", answered by the registry.

use dunlin_gateway::{Admitted, Denied, Directory};
use dunlin_model::{DeviceId, DeviceType, chain};
use dunlin_registry::{Device, Registry, RegistryError};
use futures::future::BoxFuture;

#[derive(Debug)]
pub(crate) struct RegistryDirectory(pub(crate) Registry);

impl Directory for RegistryDirectory {
    fn admit(&self, token: String) -> BoxFuture<'_, Result<Admitted, Denied>> {
        Box::pin(async move {
            let device = self.0.device_by_token(&token).await.map_err(unavailable)?;
            let device = device.ok_or(Denied::UnknownToken)?;
            if !device.enabled {
                return Err(Denied::Disabled);
            }
            Ok(Admitted {
                tenant: device.tenant,
                device: device.name,
                device_type: device.device_type,
                speaks_for_children: device.is_gateway,
            })
        })
    }

    fn child(
        &self,
        parent: &Admitted,
        name: DeviceId,
    ) -> BoxFuture<'_, Result<(DeviceId, DeviceType), Denied>> {
        let parent = parent.clone();
        Box::pin(async move {
            let gateway = self.0.device(&parent.tenant, &parent.device).await.map_err(unavailable)?;
            let gateway: Device = gateway.filter(|d| d.is_gateway && d.enabled).ok_or(Denied::Disabled)?;
            let child = self.0.child_of(&gateway, &name).await.map_err(unavailable)?;
            match child {
                Some(child) if child.enabled => Ok((child.name, child.device_type)),
                _ => Err(Denied::Disabled),
            }
        })
    }
}

fn unavailable(error: RegistryError) -> Denied {
    Denied::Unavailable(chain(&error))
}
