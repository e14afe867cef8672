//! Acknowledge by the link of a message. A look at the link changes nothing, as mail servers and chats look at every
//! link; the button does. Each link works once.

use std::sync::Arc;

use axum::{
    extract::{Path, State},
    http::{StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use dunlin_alerting::{BadLink, Permit};
use dunlin_model::TenantId;
use dunlin_registry::{Act, ActError, Alert};

use crate::Console;

pub(crate) async fn ask(State(console): State<Arc<Console>>, Path(token): Path<String>) -> Response {
    let (permit, alert) = match look(&console, &token).await {
        Ok(found) => found,
        Err(page) => return page,
    };
    match console.registry.link_is_used(&permit.id).await {
        Ok(true) => page(StatusCode::GONE, "This link has been used.", ""),
        Ok(false) if alert.state.on(dunlin_model::AlertStep::Acknowledged).is_err() => {
            page(StatusCode::CONFLICT, &format!("{} is {}.", name(&alert), alert.state), "")
        }
        Ok(false) => page(
            StatusCode::OK,
            &format!("{} fires: {}", name(&alert), alert.condition),
            "<form method=\"post\"><button>Acknowledge</button></form>",
        ),
        Err(error) => failed(&error),
    }
}

pub(crate) async fn act(State(console): State<Arc<Console>>, Path(token): Path<String>) -> Response {
    let (permit, alert) = match look(&console, &token).await {
        Ok(found) => found,
        Err(page) => return page,
    };
    let Ok(tenant) = permit.tenant.parse::<TenantId>() else { return refused(BadLink::Forged) };
    let who = match permit.who.as_str() {
        "" => "somebody with the link",
        who => who,
    };
    let acted = console
        .registry
        .act_on_alert(&tenant, alert.id, &Act::Acknowledge, who, "by link", Some(&permit.id))
        .await;
    match acted {
        Ok(Some(alert)) => {
            console.desk.changed();
            page(StatusCode::OK, &format!("{} is acknowledged. Thank you.", name(&alert)), "")
        }
        Ok(None) => refused(BadLink::Forged),
        Err(ActError::LinkUsed) => page(StatusCode::GONE, "This link has been used.", ""),
        Err(ActError::Registry(error)) => failed(&error),
        Err(error) => page(StatusCode::CONFLICT, &format!("{}: {error}.", name(&alert)), ""),
    }
}

/// What the link permits, and the alert it is about.
async fn look(console: &Console, token: &str) -> Result<(Permit, Alert), Response> {
    let permit = console.desk.permit(token).map_err(refused)?;
    let Ok(tenant) = permit.tenant.parse::<TenantId>() else { return Err(refused(BadLink::Forged)) };
    match console.registry.alert(&tenant, permit.alert).await {
        Ok(Some(alert)) => Ok((permit, alert)),
        Ok(None) => Err(page(StatusCode::GONE, "This alert is over and forgotten.", "")),
        Err(error) => Err(failed(&error)),
    }
}

fn refused(why: BadLink) -> Response {
    match why {
        BadLink::Forged => page(StatusCode::FORBIDDEN, "This link is not valid.", ""),
        BadLink::Expired => page(StatusCode::GONE, "This link has expired.", ""),
    }
}

fn failed(error: &dyn std::error::Error) -> Response {
    tracing::error!(error = dunlin_model::chain(error), "acknowledge by link failed");
    page(StatusCode::INTERNAL_SERVER_ERROR, "The server failed; its log says why.", "")
}

fn name(alert: &Alert) -> String {
    format!("[{}] {} on {}", alert.severity, alert.rule, alert.device)
}

/// `words` are text, `form` is HTML.
fn page(status: StatusCode, words: &str, form: &str) -> Response {
    let words = escaped(words);
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Dunlin</title><h1>Dunlin</h1><p>{words}</p>{form}</html>\n"
    );
    let headers = [
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; form-action 'self'; frame-ancestors 'none'"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, Html(html)).into_response()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}
