//! The HTTP door, shared by devices and people: every connection has an end in time, and there are only so many.

use std::{net::TcpListener, pin::pin, time::Duration};

use axum::Router;
use dunlin_gateway::{Certified, ClientCertificates, Tls};
use hyper::{Request, body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tower::ServiceExt;

use crate::exit::Failure;

#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// More wait to be accepted.
    pub(crate) connections_max: usize,
    /// For the whole head of a request, and so for the pause before it on a connection that is kept open.
    pub(crate) head_max: Duration,
    /// For the answers under way when the door closes.
    pub(crate) drain_max: Duration,
}

impl Limits {
    pub(crate) fn new(connections_max: usize) -> Self {
        Self { connections_max, head_max: Duration::from_secs(10), drain_max: Duration::from_secs(5) }
    }
}

/// The pause after an accept that failed, mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

pub(crate) struct Http {
    stop: watch::Sender<bool>,
    served: JoinHandle<()>,
    drain_max: Duration,
}

impl Http {
    pub(crate) fn serve(
        listener: TcpListener,
        handshake: Option<Handshake>,
        routes: Router,
        limits: Limits,
    ) -> Result<Self, Failure> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (stop, stopped) = watch::channel(false);
        let drain_max = limits.drain_max;
        let served = tokio::spawn(accept(listener, handshake, routes, limits, stopped));
        Ok(Self { stop, served, drain_max })
    }

    /// Takes no more requests, and answers those under way; one that hangs is given up after a while.
    pub(crate) async fn stop(mut self) -> Result<(), Failure> {
        let _ = self.stop.send(true);
        match tokio::time::timeout(self.drain_max, &mut self.served).await {
            Ok(served) => Ok(served?),
            Err(_) => {
                tracing::warn!("HTTP requests were still open and are cut off");
                Ok(())
            }
        }
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.served.abort();
    }
}

async fn accept(
    listener: tokio::net::TcpListener,
    handshake: Option<Handshake>,
    routes: Router,
    limits: Limits,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = asked(&mut stopped) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < limits.connections_max => match accepted {
                Ok((stream, _)) => {
                    let (routes, head_max, stopped) = (routes.clone(), limits.head_max, stopped.clone());
                    match handshake.clone() {
                        Some(handshake) => connections.spawn(async move {
                            let shaken = tokio::time::timeout(head_max, handshake.shake(stream)).await;
                            if let Ok(Some((stream, certified))) = shaken {
                                converse(stream, certified, routes, head_max, stopped).await;
                            }
                        }),
                        None => connections.spawn(converse(stream, None, routes, head_max, stopped)),
                    };
                }
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "HTTP connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// TLS before HTTP.
#[derive(Debug, Clone)]
pub(crate) struct Handshake {
    pub(crate) tls: Tls,
    pub(crate) asked: ClientCertificates,
}

impl Handshake {
    /// The device whose certificate was shown, if one was; nothing if the client is not believed.
    async fn shake(&self, stream: TcpStream) -> Option<(TlsStream<TcpStream>, Option<Certified>)> {
        let tls = self.tls.in_force();
        let acceptor = TlsAcceptor::from(tls.server_config(self.asked));
        let stream = acceptor.accept(stream).await.ok()?;
        let certified = match stream.get_ref().1.peer_certificates() {
            Some(chain) => tls.owner(chain).ok()?,
            None => None,
        };
        Some((stream, certified))
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    certified: Option<Certified>,
    routes: Router,
    head_max: Duration,
    mut stopped: watch::Receiver<bool>,
) {
    let routes = routes.map_request(move |mut request: Request<Incoming>| {
        if let Some(certified) = certified.clone() {
            request.extensions_mut().insert(certified);
        }
        request
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_max)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
    );
    // Whatever ends a connection is the client's affair.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = asked(&mut stopped) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// An owner that is gone has asked, too.
async fn asked(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

fn is_of_the_client(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests;
