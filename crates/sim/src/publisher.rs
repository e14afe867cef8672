//! One connection that publishes at QoS 1 and repeats what was not acknowledged, over as many connections as it takes.
//!
//! It has no task of its own: answers are read while the owner waits for something, in `publish`, `pause` and
//! `drain`. A device costs a socket, its window and one small buffer.

use std::{
    collections::VecDeque,
    io,
    num::NonZeroU16,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{sleep, timeout},
};

use crate::wire::{self, Connect, DISCONNECT, Incoming, PUBLISH_QOS1_DUP, Qos, Version, WireError};

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
const READ_BYTES: usize = 512;
/// Connections in a row on which the server took messages and answered none of them.
const FRUITLESS_MAX: u32 = 20;
/// A bad user name or password, and not being allowed: trying again does not help.
const CODES_FINAL: [u8; 4] = [4, 5, 0x86, 0x87];

/// Whom to speak to, and as whom.
#[derive(Debug, Clone)]
pub struct Config {
    /// `HOST:PORT`, looked up at every connection.
    pub target: String,
    pub client_id: String,
    /// The device's access token.
    pub token: String,
    pub topic: String,
    /// Messages that may be unacknowledged.
    pub window: u16,
    /// For how long a lost connection is tried again before `Lost` is returned.
    pub reconnect_for: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("the server refused the token of {client_id} (code {code})")]
    Denied { client_id: String, code: u8 },
    #[error("no connection to {target} for {} s: {reason}", .after.as_secs())]
    Lost { target: String, after: Duration, reason: String },
    #[error("{target} ended {FRUITLESS_MAX} connections in a row without an answer: {reason}")]
    Fruitless { target: String, reason: String },
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Why one connection ended; the publisher tries the next one.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server did not answer within {} s", GREETING_TIMEOUT.as_secs())]
    Timeout,
    #[error("the server refused the connection with code {0}")]
    Refused(u8),
    #[error(transparent)]
    Wire(#[from] WireError),
}

#[derive(Debug)]
pub struct Publisher {
    config: Config,
    link: Option<Link>,
    unacked: VecDeque<(NonZeroU16, Vec<u8>)>,
    packet_id: NonZeroU16,
    sent: u64,
    acked: u64,
    reconnects: u64,
    was_connected: bool,
    /// Connections since the last answer.
    fruitless: u32,
}

#[derive(Debug)]
struct Link {
    stream: TcpStream,
    partial: Vec<u8>,
}

impl Publisher {
    /// Connects lazily: with the first message.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            link: None,
            unacked: VecDeque::new(),
            packet_id: NonZeroU16::MIN,
            sent: 0,
            acked: 0,
            reconnects: 0,
            was_connected: false,
            fruitless: 0,
        }
    }

    /// Messages taken so far: each is on its way until it is acknowledged, also if `publish` was cancelled over it.
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Messages acknowledged so far.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Connections after the first.
    pub fn reconnects(&self) -> u64 {
        self.reconnects
    }

    pub fn is_connected(&self) -> bool {
        self.link.is_some()
    }

    /// Connects now rather than with the first message.
    pub async fn connect(&mut self) -> Result<(), PublishError> {
        if self.link.is_none() { self.reconnect("not connected yet".into()).await } else { Ok(()) }
    }

    /// Sends a message as soon as the window has room. It is acknowledged by the time of a later `drain`.
    pub async fn publish(&mut self, payload: &[u8]) -> Result<(), PublishError> {
        while self.unacked.len() >= usize::from(self.config.window) {
            self.read_answers().await?;
        }
        let mut packet = Vec::new();
        let qos = Qos::AtLeastOnce(self.packet_id);
        wire::encode_publish(Version::V311, &self.config.topic, qos, payload, &mut packet)?;
        self.connect().await?;
        self.unacked.push_back((self.packet_id, packet));
        self.sent += 1;
        // Ids go round; the window is far smaller than the circle.
        self.packet_id = self.packet_id.checked_add(1).unwrap_or(NonZeroU16::MIN);
        let (Some(link), Some((_, packet))) = (&mut self.link, self.unacked.back()) else { return Ok(()) };
        match link.stream.write_all(packet).await {
            Ok(()) => Ok(()),
            Err(error) => self.reconnect(error.to_string()).await,
        }
    }

    /// Takes in answers for this long.
    pub async fn pause(&mut self, duration: Duration) -> Result<(), PublishError> {
        let until = tokio::time::Instant::now() + duration;
        loop {
            if self.link.is_none() {
                tokio::time::sleep_until(until).await;
                return Ok(());
            }
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(until) => return Ok(()),
                broken = self.read_once() => if let Err(broken) = broken {
                    self.reconnect(broken.to_string()).await?;
                },
            }
        }
    }

    /// Waits until every message is acknowledged.
    pub async fn drain(&mut self) -> Result<(), PublishError> {
        while !self.unacked.is_empty() {
            self.read_answers().await?;
        }
        Ok(())
    }

    /// Says good-bye. Call `drain` before.
    pub async fn close(mut self) {
        if let Some(mut link) = self.link.take() {
            // The server notices a connection that ends without a good-bye too.
            let _ = timeout(GOODBYE_TIMEOUT, async {
                link.stream.write_all(&DISCONNECT).await?;
                link.stream.shutdown().await
            })
            .await;
        }
    }

    async fn read_answers(&mut self) -> Result<(), PublishError> {
        if self.link.is_none() {
            return self.reconnect("not connected yet".into()).await;
        }
        match self.read_once().await {
            Ok(()) => Ok(()),
            Err(broken) => self.reconnect(broken.to_string()).await,
        }
    }

    /// Cancel safe: nothing is taken from the socket that is not kept.
    async fn read_once(&mut self) -> Result<(), Broken> {
        let Some(link) = &mut self.link else { return Err(Broken::Closed) };
        let mut bytes = [0; READ_BYTES];
        let read = link.stream.read(&mut bytes).await?;
        if read == 0 {
            return Err(Broken::Closed);
        }
        link.partial.extend(&bytes[..read]);
        let mut taken = 0;
        while let Some((incoming, length)) = wire::parse(&link.partial[taken..])? {
            taken += length;
            if let Incoming::PubAck { packet_id, .. } = incoming
                && let Some(at) = self.unacked.iter().position(|(id, _)| id.get() == packet_id)
            {
                self.unacked.remove(at);
                self.acked += 1;
                self.fruitless = 0;
            }
        }
        link.partial.drain(..taken);
        Ok(())
    }

    /// Connects again, with growing pauses, and repeats what is unacknowledged.
    async fn reconnect(&mut self, reason: String) -> Result<(), PublishError> {
        self.link = None;
        if self.fruitless >= FRUITLESS_MAX {
            return Err(PublishError::Fruitless { target: self.config.target.clone(), reason });
        }
        if self.fruitless > 0 {
            sleep(RETRY_FIRST).await;
        }
        self.fruitless += u32::from(!self.unacked.is_empty());
        let since = Instant::now();
        let mut wait = RETRY_FIRST;
        let mut broken;
        loop {
            match self.try_connect().await {
                Ok(link) => {
                    self.link = Some(link);
                    self.reconnects += u64::from(self.was_connected);
                    self.was_connected = true;
                    return Ok(());
                }
                Err(Broken::Refused(code)) if CODES_FINAL.contains(&code) => {
                    return Err(PublishError::Denied { client_id: self.config.client_id.clone(), code });
                }
                Err(error) => broken = error,
            }
            if since.elapsed() + wait > self.config.reconnect_for {
                return Err(PublishError::Lost {
                    target: self.config.target.clone(),
                    after: since.elapsed(),
                    reason: broken.to_string(),
                });
            }
            sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn try_connect(&mut self) -> Result<Link, Broken> {
        timeout(GREETING_TIMEOUT, async {
            let stream = TcpStream::connect(&self.config.target).await?;
            stream.set_nodelay(true)?;
            let mut link = Link { stream, partial: Vec::new() };
            link.greet(&self.config).await?;
            for (_, packet) in &mut self.unacked {
                packet[0] = PUBLISH_QOS1_DUP;
                link.stream.write_all(packet).await?;
            }
            Ok(link)
        })
        .await
        .map_err(|_| Broken::Timeout)?
    }
}

impl Link {
    async fn greet(&mut self, config: &Config) -> Result<(), Broken> {
        let connect = Connect {
            version: Version::V311,
            client_id: &config.client_id,
            user_name: Some(&config.token),
            clean: false,
            keep_alive_seconds: 0,
        };
        let mut packet = Vec::new();
        wire::encode_connect(&connect, &mut packet)?;
        self.stream.write_all(&packet).await?;
        loop {
            match wire::parse(&self.partial)? {
                Some((Incoming::ConnAck { code: 0 }, length)) => {
                    self.partial.drain(..length);
                    return Ok(());
                }
                Some((Incoming::ConnAck { code } | Incoming::Disconnect { code }, _)) => {
                    return Err(Broken::Refused(code));
                }
                Some((Incoming::PubAck { .. } | Incoming::SubAck { .. } | Incoming::PingResp, length)) => {
                    self.partial.drain(..length);
                }
                None => {
                    let mut bytes = [0; READ_BYTES];
                    let read = self.stream.read(&mut bytes).await?;
                    if read == 0 {
                        return Err(Broken::Closed);
                    }
                    self.partial.extend(&bytes[..read]);
                }
            }
        }
    }
}
