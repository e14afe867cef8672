use std::sync::Arc;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, header, request::Parts},
};
use dunlin_registry::{Registry, Scope, User};

use crate::{Console, Vitals, problem::Problem};

/// Who asks. A handler that takes one is closed to everybody else.
pub(crate) struct Asker(pub(crate) User);

/// Somebody who may administer tenants.
pub(crate) struct PlatformAsker;

pub(crate) fn token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    value.strip_prefix("Bearer ").map(str::trim)
}

/// Where users are known.
pub(crate) trait AsRegistry: Clone + Send + Sync + 'static {
    fn registry(&self) -> &Registry;
}

impl AsRegistry for Arc<Console> {
    fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl AsRegistry for Arc<Vitals> {
    fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl<S: AsRegistry> FromRequestParts<S> for Asker {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let token = token(&parts.headers)
            .ok_or_else(|| Problem::unauthorized("send `Authorization: Bearer TOKEN` with a user's token"))?;
        let user = state.registry().user_by_token(token).await?;
        user.map(Self).ok_or_else(|| Problem::unauthorized("this is no user's token"))
    }
}

impl<S: AsRegistry> FromRequestParts<S> for PlatformAsker {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Asker(user) = Asker::from_request_parts(parts, state).await?;
        match user.scope {
            Scope::Platform => Ok(Self),
            Scope::Tenant => Err(Problem::forbidden("only a platform administrator's token may do this")),
        }
    }
}

const NAME_BYTES_MAX: usize = 256;

/// What somebody goes by: as they say, for a token may be of several people, or by what the token is.
pub(crate) fn name_of(user: &User, said: Option<String>) -> Result<String, Problem> {
    match said {
        Some(name) if name.is_empty() || name.len() > NAME_BYTES_MAX => {
            Err(Problem::invalid("by", format!("a name has from 1 to {NAME_BYTES_MAX} bytes")))
        }
        Some(name) => Ok(name),
        None => Ok(match user.scope {
            Scope::Platform => "platform administrator".to_owned(),
            Scope::Tenant => "tenant user".to_owned(),
        }),
    }
}
