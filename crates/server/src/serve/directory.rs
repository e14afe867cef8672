//! The gateway's question "who is this?", answered by the registry.

use dunlin_gateway::{Admitted, Certified, ChildAnswer, Denied, Directory};
use dunlin_model::{DeviceId, chain};
use dunlin_registry::{Device, NoChild, Registry, RegistryError};
use futures::future::BoxFuture;
use tokio::runtime::Handle;

#[derive(Debug)]
pub(crate) struct RegistryDirectory {
    pub(crate) registry: Registry,
    pub(crate) children_max: u64,
    /// Connections to a database live on the runtime on which they are used first. The gateway's are busy, and end
    /// before others have asked their last.
    pub(crate) runtime: Handle,
}

impl RegistryDirectory {
    fn ask<T: Send + 'static>(
        &self,
        question: impl Future<Output = Result<T, Denied>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, Denied>> {
        let asked = self.runtime.spawn(question);
        Box::pin(async { asked.await.unwrap_or_else(|error| Err(Denied::Unavailable(chain(&error)))) })
    }
}

impl Directory for RegistryDirectory {
    fn admit(&self, token: String) -> BoxFuture<'_, Result<Admitted, Denied>> {
        let registry = self.registry.clone();
        self.ask(async move {
            let device = registry.device_by_token(&token).await.map_err(unavailable)?;
            admitted(device.ok_or(Denied::UnknownToken)?)
        })
    }

    fn admit_certified(&self, certified: &Certified) -> BoxFuture<'_, Result<Admitted, Denied>> {
        let (registry, Certified { tenant, device }) = (self.registry.clone(), certified.clone());
        self.ask(async move {
            let device = registry.device(&tenant, &device).await.map_err(unavailable)?;
            admitted(device.ok_or(Denied::UnknownDevice)?)
        })
    }

    fn children(
        &self,
        parent: &Admitted,
        names: Vec<DeviceId>,
    ) -> BoxFuture<'_, Result<Vec<ChildAnswer>, Denied>> {
        let (registry, parent, children_max) = (self.registry.clone(), parent.clone(), self.children_max);
        self.ask(async move {
            let gateway = registry.device(&parent.tenant, &parent.device).await.map_err(unavailable)?;
            let gateway = gateway.filter(|d| d.is_gateway && d.enabled).ok_or(Denied::Disabled)?;
            let children = registry.children_of(&gateway, &names, children_max).await;
            Ok(children.map_err(unavailable)?.into_iter().map(answer).collect())
        })
    }
}

fn admitted(device: Device) -> Result<Admitted, Denied> {
    if !device.enabled {
        return Err(Denied::Disabled);
    }
    Ok(Admitted {
        tenant: device.tenant,
        device: device.name,
        device_type: device.device_type,
        speaks_for_children: device.is_gateway,
    })
}

fn answer(child: Result<Device, NoChild>) -> ChildAnswer {
    match child {
        Ok(child) if child.enabled => Ok((child.name, child.device_type)),
        Ok(_) => Err(Denied::Disabled),
        Err(NoChild::NotOfThisParent) => Err(Denied::NotAChild),
        Err(NoChild::TooMany { children_max }) => Err(Denied::TooManyChildren { children_max }),
    }
}

fn unavailable(error: RegistryError) -> Denied {
    Denied::Unavailable(chain(&error))
}
