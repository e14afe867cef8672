use std::fmt;

use dunlin_model::{DeviceId, DeviceType, TenantId};
use futures::future::BoxFuture;

use crate::tls::Certified;

/// Who may come in. The gateway asks; whoever keeps the devices answers.
pub trait Directory: fmt::Debug + Send + Sync + 'static {
    /// The device that `token` belongs to.
    fn admit(&self, token: String) -> BoxFuture<'_, Result<Admitted, Denied>>;

    /// The device that a certificate names, which an authority of its tenant has signed. Whether there is such a device
    /// is the directory's to say: a certificate alone lets nobody in.
    fn admit_certified(&self, certified: &Certified) -> BoxFuture<'_, Result<Admitted, Denied>>;

    /// The devices of these names that `parent` speaks for, in the parent's tenant, one answer a name. Only asked
    /// for a parent that `speaks_for_children`; children seen for the first time may be created here, together.
    fn children(
        &self,
        parent: &Admitted,
        names: Vec<DeviceId>,
    ) -> BoxFuture<'_, Result<Vec<ChildAnswer>, Denied>>;
}

/// A device that another speaks for, or why not.
pub type ChildAnswer = Result<(DeviceId, DeviceType), Denied>;

impl dyn Directory {
    pub(crate) fn admit_by(&self, credential: &Credential) -> BoxFuture<'_, Result<Admitted, Denied>> {
        match credential {
            Credential::Token(token) => self.admit(token.clone()),
            Credential::Certificate(certified) => self.admit_certified(certified),
        }
    }
}

/// `children` for one name.
pub(crate) async fn child(directory: &dyn Directory, parent: &Admitted, name: DeviceId) -> ChildAnswer {
    let mut answers = directory.children(parent, vec![name]).await?;
    answers.pop().unwrap_or_else(|| Err(Denied::Unavailable("no answer for a child".into())))
}

/// What a client shows to prove who it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Credential {
    Token(String),
    Certificate(Certified),
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
    #[error("there is no device of the name in the certificate")]
    UnknownDevice,
    #[error("the device is disabled")]
    Disabled,
    #[error("a device of this name exists and is not a child of this one")]
    NotAChild,
    #[error("a device has at most {children_max} children")]
    TooManyChildren { children_max: u64 },
    /// Nothing is known about the token: ask again later.
    #[error("the directory is unavailable: {0}")]
    Unavailable(String),
}
