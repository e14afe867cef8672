use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    time::Duration,
};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

/// Connections from one source address to one port: the ports the system gives out are not many more.
pub(crate) const CONNECTIONS_PER_SOURCE_MAX: usize = 20_000;
/// How long the far end may take to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens connection number `index`. On loopback every 20,000 connections have a source address of their own,
/// 127.0.0.1, 127.0.0.2 and so on; elsewhere the system chooses.
pub(crate) fn open(target: SocketAddr, index: usize) -> io::Result<TcpStream> {
    let stream = match source(target, index) {
        None => TcpStream::connect_timeout(&target, CONNECT_TIMEOUT)?,
        Some(source) => {
            let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            bind(&socket, &source)?;
            connect(&socket, &target)?;
            TcpStream::from(socket)
        }
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn source(target: SocketAddr, index: usize) -> Option<SocketAddrV4> {
    let block = index / CONNECTIONS_PER_SOURCE_MAX;
    if block == 0 || !target.is_ipv4() || !target.ip().is_loopback() {
        return None;
    }
    let [high, low] = u16::try_from(block + 1).ok()?.to_be_bytes();
    Some(SocketAddrV4::new(Ipv4Addr::new(127, 0, high, low), 0))
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
}
