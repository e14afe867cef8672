use std::time::Duration;

use axum::{
    body::{Body, HttpBody},
    extract::Request,
};
use futures::{StreamExt, stream};
use tokio::time::{Instant, timeout_at};

/// The body arrived too slowly.
#[derive(Debug, thiserror::Error)]
#[error("the request's body did not arrive within {} s", .0.as_secs())]
struct TooSlow(Duration);

/// The request, whose body is an error instead of its rest once `patience` is over. The handler still decides
/// whether it reads a body at all.
pub(crate) async fn arrive_within(patience: Duration, request: Request) -> Request {
    if request.body().is_end_stream() {
        return request;
    }
    let until = Instant::now() + patience;
    request.map(|body| {
        let parts = stream::unfold(Some(body.into_data_stream()), move |parts| async move {
            let mut parts = parts?;
            match timeout_at(until, parts.next()).await {
                Ok(part) => Some((part?, Some(parts))),
                Err(_) => Some((Err(axum::Error::new(TooSlow(patience))), None)),
            }
        });
        Body::from_stream(parts)
    })
}
