//! One connection of the loader, with or without TLS, that never waits.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
};

use rustls::ClientConnection;

use crate::tls::Tls;

#[derive(Debug)]
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

#[derive(Debug)]
pub(crate) struct TlsStream {
    connection: ClientConnection,
    socket: TcpStream,
}

impl Stream {
    /// On a socket that does not block. What is written before the handshake is over goes out after it.
    pub(crate) fn new(socket: TcpStream, tls: Option<&Tls>) -> io::Result<Self> {
        Ok(match tls {
            None => Self::Plain(socket),
            Some(tls) => Self::Tls(Box::new(TlsStream { connection: tls.connection()?, socket })),
        })
    }

    /// Whether a read that fills less than was asked for has taken all that the socket had.
    pub(crate) fn is_emptied_by_short_reads(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Whether TLS went on from an earlier connection.
    pub(crate) fn is_resumed(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
        }
    }

    /// Says that nothing more comes; what does not fit into the socket is not said.
    pub(crate) fn say_end(&mut self) {
        if let Self::Tls(tls) = self {
            tls.connection.send_close_notify();
            let _unsaid = tls.push();
        }
    }
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(out),
            Self::Tls(tls) => tls.read(out),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.push(),
        }
    }
}

impl TlsStream {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(out) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // A server that is gone did not say so first.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            if let Err(error) = self.connection.read_tls(&mut self.socket) {
                self.push()?;
                return Err(error);
            }
            let processed = self.connection.process_new_packets();
            self.push()?; // Also the alert that says what was wrong.
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.push()?;
        let taken = self.connection.writer().write(bytes)?;
        self.push()?;
        // What is left goes out with the socket's next event, by a read.
        if taken == 0 && !bytes.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// Sends what is encrypted, as far as the socket takes it.
    fn push(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut self.socket) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
