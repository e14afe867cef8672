use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with, sockopt},
};

/// Connections from one source address to one port: the ports the system gives out are not many more.
pub(crate) const CONNECTIONS_PER_SOURCE_MAX: usize = 20_000;
/// Ports that short connections take in turn, which are those the system gives out.
const PORTS: std::ops::Range<u16> = 32_768..60_999;
/// Ports in a row that somebody else has before this is an error.
const PORTS_TAKEN_MAX: usize = 1_000;

/// Begins connection number `index`, without waiting for it. On loopback every 20,000 connections have a source
/// address of their own, 127.0.0.1, 127.0.0.2 and so on; elsewhere the system chooses.
pub(crate) fn open(target: SocketAddr, index: usize) -> io::Result<TcpStream> {
    begin(target, source(target, index))
}

fn source(target: SocketAddr, index: usize) -> Option<SocketAddrV4> {
    let block = index / CONNECTIONS_PER_SOURCE_MAX;
    if block == 0 || !is_loopback_v4(target) {
        return None;
    }
    let [high, low] = u16::try_from(block + 1).ok()?.to_be_bytes();
    Some(SocketAddrV4::new(Ipv4Addr::new(127, 0, high, low), 0))
}

/// Addresses and ports for connections that are over soon, in turn: the system would look for a free port each time,
/// longer and longer, because a port is not free for a while after its connection.
#[derive(Debug)]
pub(crate) struct Fresh {
    target: SocketAddr,
    sources: u16,
    taken: usize,
}

impl Fresh {
    /// Connections come from so many addresses, 127.0.1.1 and so on.
    pub(crate) fn new(target: SocketAddr, sources: u16) -> Self {
        Self { target, sources: sources.max(1), taken: 0 }
    }

    /// Begins one more connection, without waiting for it.
    pub(crate) fn open(&mut self) -> io::Result<TcpStream> {
        if !is_loopback_v4(self.target) {
            return begin(self.target, None);
        }
        for _ in 0..PORTS_TAKEN_MAX {
            match begin(self.target, Some(self.next())) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
                begun => return begun,
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    fn next(&mut self) -> SocketAddrV4 {
        let n = self.taken;
        self.taken += 1;
        let source = n % usize::from(self.sources) + 1;
        let port = n / usize::from(self.sources) % PORTS.len();
        let [_, _, high, low] = (source as u32).to_be_bytes();
        SocketAddrV4::new(Ipv4Addr::new(127, 0, high + 1, low), PORTS.start + port as u16)
    }
}

fn is_loopback_v4(target: SocketAddr) -> bool {
    target.is_ipv4() && target.ip().is_loopback()
}

fn begin(target: SocketAddr, source: Option<SocketAddrV4>) -> io::Result<TcpStream> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    if let Some(source) = source {
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &source)?;
    }
    sockopt::set_tcp_nodelay(&socket, true)?;
    match connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_of_connections_has_its_own_source() {
        let target = "127.0.0.1:1883".parse().unwrap();
        assert_eq!(source(target, 19_999), None);
        assert_eq!(source(target, 20_000).unwrap().ip(), &Ipv4Addr::new(127, 0, 0, 2));
        assert_eq!(source(target, 20_000 * 256).unwrap().ip(), &Ipv4Addr::new(127, 0, 1, 1));
        assert_eq!(source("192.0.2.1:1883".parse().unwrap(), 20_000), None);
    }

    #[test]
    fn short_connections_go_round_addresses_then_ports() {
        let mut fresh = Fresh::new("127.0.0.1:1883".parse().unwrap(), 300);
        let first = fresh.next();
        assert_eq!(first, "127.0.1.1:32768".parse().unwrap());
        assert_eq!(fresh.next(), "127.0.1.2:32768".parse().unwrap());
        let later: Vec<_> = (2..300).map(|_| fresh.next()).collect();
        assert_eq!(later[297], "127.0.2.44:32768".parse().unwrap());
        assert_eq!(fresh.next(), "127.0.1.1:32769".parse().unwrap());
        let all = 300 * PORTS.len() - 301;
        assert_eq!((0..all).map(|_| fresh.next()).last().unwrap(), "127.0.2.44:60998".parse().unwrap());
        assert_eq!(fresh.next(), first);
    }
}
