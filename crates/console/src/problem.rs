//! What a client sees when it goes wrong: problem+json (RFC 9457).

use axum::{
    Json,
    extract::rejection::{BytesRejection, JsonRejection, QueryRejection, StringRejection},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use dunlin_model::{CommandId, InvalidName};
use dunlin_registry::{ActError, AddCommandError, RegistryError};
use dunlin_tsdb::QueryError;
use serde_json::json;

use crate::rules::BacktestError;

#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    field: Option<&'static str>,
}

impl Problem {
    fn new(status: StatusCode, detail: impl ToString) -> Self {
        Self { status, detail: detail.to_string(), field: None }
    }

    pub(crate) fn unauthorized(detail: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    pub(crate) fn forbidden(detail: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    pub(crate) fn not_found(what: &str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no {what} {name:?}"))
    }

    pub(crate) fn conflict(detail: impl ToString) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    pub(crate) fn invalid(field: &'static str, detail: impl ToString) -> Self {
        Self { field: Some(field), ..Self::new(StatusCode::BAD_REQUEST, detail) }
    }

    pub(crate) fn is_unavailable(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE
    }

    /// What `error` says is for the log.
    fn unavailable(error: &dyn std::error::Error, detail: &str) -> Self {
        tracing::error!(error = dunlin_model::chain(error), "request not answered");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    /// It is written down, and does not hold in every process yet.
    pub(crate) fn not_everywhere(reason: &str) -> Self {
        let detail = format!(
            "it holds for whoever connects from now on; the device may still be connected, so ask again: {reason}"
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    /// It may be there at another time, or elsewhere.
    pub(crate) fn no_store(detail: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    /// Nothing of it is left.
    pub(crate) fn not_sent(reason: &str) -> Self {
        let detail = format!("the command was not sent, and will not be carried out: {reason}");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    pub(crate) fn maybe_sent(command: &CommandId, reason: &str) -> Self {
        let detail = format!(
            "the command may still be carried out; before it is sent again, ask /v1/commands/{command} until it is replied or expired: {reason}"
        );
        Self::new(StatusCode::GATEWAY_TIMEOUT, detail)
    }

    pub(crate) fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(error = dunlin_model::chain(error), "request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the server failed; its log says why")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Some(field) = self.field {
            body["field"] = field.into();
        }
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        match error {
            RegistryError::Exists { .. } => Self::new(StatusCode::CONFLICT, error),
            RegistryError::NotFound { .. } => Self::new(StatusCode::NOT_FOUND, error),
            error if error.is_unavailable() => Self::unavailable(&error, "the registry does not answer"),
            error => Self::internal(&error),
        }
    }
}

impl From<ActError> for Problem {
    fn from(error: ActError) -> Self {
        match error {
            ActError::Illegal(_) | ActError::Over(_) | ActError::LinkUsed => Self::conflict(error),
            ActError::Registry(error) => error.into(),
        }
    }
}

impl From<AddCommandError> for Problem {
    fn from(error: AddCommandError) -> Self {
        match error {
            AddCommandError::TooMany(_) | AddCommandError::Child { .. } => Self::conflict(error),
            AddCommandError::Registry(error) => error.into(),
        }
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Invalid(_) => Self::new(StatusCode::BAD_REQUEST, error),
            QueryError::TooLarge { .. } | QueryError::OutOfMemory => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, error)
            }
            QueryError::Timeout(_) => Self::new(StatusCode::GATEWAY_TIMEOUT, error),
            QueryError::Store(error) => Self::internal(&error),
        }
    }
}

impl From<BacktestError> for Problem {
    fn from(error: BacktestError) -> Self {
        match error {
            BacktestError::Rule(words) => Self::invalid("rule", words),
            BacktestError::Busy | BacktestError::NoStore => Self::new(StatusCode::SERVICE_UNAVAILABLE, error),
            BacktestError::Query(error) => error.into(),
        }
    }
}

impl From<InvalidName> for Problem {
    fn from(error: InvalidName) -> Self {
        Self::invalid("name", error)
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<StringRejection> for Problem {
    fn from(rejection: StringRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}
