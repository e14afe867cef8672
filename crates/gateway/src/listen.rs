//! From a socket to the bytes of MQTT: where the client is, TLS, WebSocket.

use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
};

use ntex::{
    codec::Decoder,
    io::{Filter, Io, Sealed, types::PeerAddr},
    time::Millis,
    util::BytesMut,
};
use ntex_tls::rustls::{PeerCertChain, TlsServerFilter};

use crate::{
    config::{ListenerConfig, Transport},
    guard::{Arrival, TurnedAway},
    proxy,
    tls::{Certified, Tls},
    websocket,
};

/// Longer than any handshake may take, of which this is a part: that ends in time.
const TLS_PATIENCE: Millis = Millis::from_secs(2 * u16::MAX as u32);

/// What MQTT is read from, whatever is below it.
pub(crate) type Stream = Io<Sealed>;

/// A door, as every worker has it.
#[derive(Debug, Clone)]
pub(crate) struct Listener {
    config: ListenerConfig,
    tls: Option<Tls>,
}

/// A connection over which MQTT may come.
pub(crate) struct Opened {
    pub(crate) stream: Stream,
    pub(crate) certified: Option<Certified>,
}

/// Why somebody does not come in: one word for the metrics, and what an operator wants to know beside it.
#[derive(Debug)]
pub(crate) struct NotLetIn {
    pub(crate) outcome: &'static str,
    pub(crate) why: Option<String>,
}

impl NotLetIn {
    fn because(outcome: &'static str, why: impl ToString) -> Self {
        Self { outcome, why: Some(why.to_string()) }
    }
}

impl From<&'static str> for NotLetIn {
    fn from(outcome: &'static str) -> Self {
        Self { outcome, why: None }
    }
}

/// A door has TLS, and there is no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the listener on {address} has TLS and needs tls.certificate and tls.key")]
pub struct NoCertificate {
    pub address: String,
}

/// Whether the client has begun to speak; takes nothing.
struct FirstByte;

impl Decoder for FirstByte {
    type Item = ();
    type Error = Infallible;

    fn decode(&self, src: &mut BytesMut) -> Result<Option<()>, Infallible> {
        Ok((!src.is_empty()).then_some(()))
    }
}

impl Listener {
    pub(crate) fn new(config: ListenerConfig, tls: Option<&Tls>) -> Result<Self, NoCertificate> {
        let tls = match (config.tls, tls) {
            (false, _) => None,
            (true, Some(tls)) => Some(tls.clone()),
            (true, None) => return Err(NoCertificate { address: config.address }),
        };
        Ok(Self { config, tls })
    }

    /// As an event says it.
    pub(crate) fn name(&self) -> &'static str {
        self.config.name()
    }

    /// Where the client is. Whoever cannot be told from others shares one address with them.
    pub(crate) async fn source(&self, io: &Io) -> Result<IpAddr, &'static str> {
        let peer = io.query::<PeerAddr>().get().map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.0.ip());
        if !self.config.proxy_protocol {
            return Ok(peer);
        }
        let proxies = &self.config.proxies;
        if !proxies.is_empty() && !proxies.iter().any(|network| network.contains(&peer.to_canonical())) {
            return Err("not_a_proxy");
        }
        match io.recv(&proxy::Header).await {
            Ok(Some(client)) => Ok(client.map_or(peer, |client| client.ip())),
            Ok(None) | Err(ntex::util::Either::Right(_)) => Err("gone"),
            Err(ntex::util::Either::Left(_)) => Err("proxy_header"),
        }
    }

    /// Shakes hands as this door asks for.
    pub(crate) async fn open(&self, io: Io, arrival: &Arrival) -> Result<Opened, NotLetIn> {
        let Some(tls) = &self.tls else {
            return Ok(Opened { stream: self.frame(io).await?, certified: None });
        };
        // Who sends nothing takes no turn.
        if !matches!(io.recv(&FirstByte).await, Ok(Some(()))) {
            return Err("gone".into());
        }
        let turn = arrival.handshake().await.map_err(TurnedAway::outcome)?;
        let tls = tls.in_force();
        let config = tls.server_config(self.config.client_certificates);
        let io = TlsServerFilter::create(io, config, TLS_PATIENCE).await;
        let io = io.map_err(|error| NotLetIn::because("tls", error))?;
        drop(turn);
        let shown = io.query::<PeerCertChain<'static>>();
        let certified = match shown.as_ref() {
            Some(PeerCertChain(chain)) => {
                tls.owner(chain).map_err(|error| NotLetIn::because("certificate", error))?
            }
            None => None,
        };
        Ok(Opened { stream: self.frame(io).await?, certified })
    }

    async fn frame<F: Filter>(&self, io: Io<F>) -> Result<Stream, &'static str> {
        match self.config.transport {
            Transport::Tcp => Ok(io.seal()),
            Transport::WebSocket => websocket::accept(io).await,
        }
    }
}
