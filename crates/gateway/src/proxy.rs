//! The PROXY protocol, version 2 (haproxy.org, `proxy-protocol.txt`): a load balancer says where the client is.

use std::net::SocketAddr;

use ntex::{codec::Decoder, util::BytesMut};
use proxy_header::{Error, ParseConfig, ProxyHeader};

/// Addresses of 36 bytes, and what a proxy says beside them.
const HEADER_BYTES_MAX: usize = 4 << 10;

/// The header before everything else.
pub(crate) struct Header;

/// What came is no such header.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NoHeader;

impl Decoder for Header {
    /// `None` if the proxy speaks for itself, to see whether anybody is there.
    type Item = Option<SocketAddr>;
    type Error = NoHeader;

    fn decode(&self, src: &mut BytesMut) -> Result<Option<Self::Item>, NoHeader> {
        let version_2 = ParseConfig { include_tlvs: false, allow_v1: false, allow_v2: true };
        let (source, length) = match ProxyHeader::parse(src, version_2) {
            Ok((header, length)) => (header.proxied_address().map(|client| client.source), length),
            Err(Error::BufferTooShort) if src.len() < HEADER_BYTES_MAX => return Ok(None),
            Err(_) => return Err(NoHeader),
        };
        src.advance_to(length);
        Ok(Some(source))
    }
}

#[cfg(test)]
mod tests {
    use proxy_header::ProxiedAddress;

    use super::*;

    fn read(bytes: &[u8]) -> (Result<Option<Option<SocketAddr>>, NoHeader>, Vec<u8>) {
        let mut src = BytesMut::copy_from_slice(bytes);
        (Header.decode(&mut src), src.to_vec())
    }

    fn header(source: &str, destination: &str) -> Vec<u8> {
        let addresses = ProxiedAddress::stream(source.parse().unwrap(), destination.parse().unwrap());
        let mut bytes = vec![0; 512];
        let length = ProxyHeader::with_address(addresses).encode_to_slice_v2(&mut bytes).unwrap();
        bytes.truncate(length);
        bytes
    }

    #[test]
    fn says_where_the_client_is_and_leaves_what_follows() {
        for (source, destination) in
            [("192.0.2.7:40000", "10.0.0.1:1883"), ("[2001:db8::7]:40000", "[2001:db8::1]:1883")]
        {
            let mut bytes = header(source, destination);
            for length in 0..bytes.len() {
                assert_eq!(read(&bytes[..length]).0, Ok(None), "{length}");
            }
            bytes.extend_from_slice(b"MQTT");
            assert_eq!(read(&bytes), (Ok(Some(Some(source.parse().unwrap()))), b"MQTT".to_vec()));
        }
    }

    #[test]
    fn a_proxy_that_looks_whether_anybody_is_there_has_no_client() {
        let local = [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[0x20, 0, 0, 0]].concat();
        assert_eq!(read(&local).0, Ok(Some(None)));
    }

    #[test]
    fn anything_else_is_refused_and_a_header_has_a_bound() {
        assert_eq!(read(b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 1883\r\n").0, Err(NoHeader));
        assert_eq!(read(&[0x10, 12, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 0]).0, Err(NoHeader));
        let mut endless = [b"\r\n\r\n\0\r\nQUIT\n".as_slice(), &[0x21, 0x11, 0xFF, 0xFF]].concat();
        endless.resize(HEADER_BYTES_MAX - 1, 0);
        assert_eq!(read(&endless).0, Ok(None));
        endless.push(0);
        assert_eq!(read(&endless).0, Err(NoHeader));
    }
}
