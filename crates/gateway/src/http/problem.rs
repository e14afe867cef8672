use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use dunlin_model::RejectReason;

use crate::decode::Fault;

/// What a client reads when it is refused (RFC 9457).
#[derive(Debug)]
pub(super) struct Problem {
    status: StatusCode,
    title: &'static str,
    detail: String,
    field: String,
}

impl Problem {
    fn new(status: StatusCode, title: &'static str, detail: impl Into<String>) -> Self {
        Self { status, title, detail: detail.into(), field: String::new() }
    }

    pub(super) fn refused(fault: &Fault) -> Self {
        let status = match fault.reason {
            RejectReason::PayloadFormat
            | RejectReason::InvalidValue
            | RejectReason::UnknownTopic
            | RejectReason::Unprocessable => StatusCode::BAD_REQUEST,
            RejectReason::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            // A quota of things, not of their rate: to try again soon helps as little.
            RejectReason::NotAuthorized | RejectReason::QuotaExceeded => StatusCode::FORBIDDEN,
        };
        Self {
            status,
            title: fault.reason.as_str(),
            detail: fault.detail.clone(),
            field: fault.field.clone(),
        }
    }

    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", detail)
    }

    pub(super) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
    }

    pub(super) fn unauthorized(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", detail)
    }

    /// Try again soon. Whether the message is in the log is not known.
    pub(super) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
    }

    pub(super) fn detail(&self) -> &str {
        &self.detail
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = serde_json::json!({
            "type": format!("urn:dunlin:problem:{}", self.title),
            "title": self.title,
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if !self.field.is_empty() {
            body["field"] = self.field.into();
        }
        let mut response =
            (self.status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string())
                .into_response();
        let extra = match self.status {
            StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer")),
            StatusCode::SERVICE_UNAVAILABLE => Some((header::RETRY_AFTER, "1")),
            _ => None,
        };
        if let Some((name, value)) = extra {
            response.headers_mut().insert(name, header::HeaderValue::from_static(value));
        }
        response
    }
}
