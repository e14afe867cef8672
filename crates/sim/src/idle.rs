//! Connections that only stand there: what they cost is memory.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::{
    load::Identity,
    sockets,
    wire::{self, Connect, Incoming, Version, WireError},
};

/// Connections whose greetings are under way at the same time.
const GREETINGS_MAX: usize = 100;
const GREETING_TIMEOUT: Duration = Duration::from_secs(30);
/// A greeting is a few bytes; a server that sends more before it answers is broken.
const GREETING_BYTES_MAX: usize = 1_024;

#[derive(Debug, thiserror::Error)]
pub enum IdleError {
    #[error("open connection {index} to {target}")]
    Open { index: usize, target: SocketAddr, source: io::Error },
    #[error("the server refused connection {index} with code {code}")]
    Refused { index: usize, code: u8 },
    #[error("connection {index}: {source}")]
    Wire { index: usize, source: WireError },
}

/// Connections that are held until this is dropped.
#[derive(Debug)]
pub struct Idle {
    connections: Vec<TcpStream>,
}

impl Idle {
    /// Opens `count` connections that never send a ping (their keep-alive is off). Blocks the thread.
    pub fn open(
        target: SocketAddr,
        version: Version,
        identities: &[Identity],
        count: usize,
    ) -> Result<Self, IdleError> {
        let mut connections = Vec::with_capacity(count);
        while connections.len() < count {
            let first = connections.len();
            for index in first..count.min(first + GREETINGS_MAX) {
                let token = identities.get(index % identities.len().max(1)).and_then(|i| i.token.as_deref());
                let connection = greet(target, version, token, index)?;
                connections.push(connection);
            }
            for (index, connection) in connections.iter_mut().enumerate().skip(first) {
                await_welcome(target, index, connection)?;
            }
        }
        Ok(Self { connections })
    }

    /// How many of the connections the server has closed meanwhile.
    pub fn closed(&self) -> usize {
        let closed = |connection: &&TcpStream| {
            connection.set_nonblocking(true).is_err()
                || !matches!(connection.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
        };
        self.connections.iter().filter(closed).count()
    }
}

fn greet(
    target: SocketAddr,
    version: Version,
    token: Option<&str>,
    index: usize,
) -> Result<TcpStream, IdleError> {
    let failed = |source| IdleError::Open { index, target, source };
    let mut packet = Vec::new();
    let client_id = format!("idle-{index}");
    wire::encode_connect(
        &Connect { version, client_id: &client_id, user_name: token, clean: true, keep_alive_seconds: 0 },
        &mut packet,
    )
    .map_err(|source| IdleError::Wire { index, source })?;
    let mut connection = sockets::open(target, index).map_err(failed)?;
    connection.set_read_timeout(Some(GREETING_TIMEOUT)).map_err(failed)?;
    connection.write_all(&packet).map_err(failed)?;
    Ok(connection)
}

fn await_welcome(target: SocketAddr, index: usize, connection: &mut TcpStream) -> Result<(), IdleError> {
    let failed = |source| IdleError::Open { index, target, source };
    let mut bytes = [0; GREETING_BYTES_MAX];
    let mut filled = 0;
    loop {
        let read = connection.read(&mut bytes[filled..]).map_err(failed)?;
        if read == 0 {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        filled += read;
        match wire::parse(&bytes[..filled]).map_err(|source| IdleError::Wire { index, source })? {
            Some((Incoming::ConnAck { code: 0 }, _)) => return Ok(()),
            Some((Incoming::ConnAck { code } | Incoming::Disconnect { code }, _)) => {
                return Err(IdleError::Refused { index, code });
            }
            Some(_) => return Err(failed(io::ErrorKind::InvalidData.into())),
            None => {}
        }
    }
}
