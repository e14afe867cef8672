//! Which addresses a receiver may have. The name of a receiver is looked up anew for every connection, and what it
//! says is looked at here, so that a name that is public today cannot lead inside tomorrow.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// The receiver's address is not of the public internet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not an address of the public internet; if it is meant, say `private_network = true`")]
pub(crate) struct NotAllowed(String);

/// Looks names up, and gives no address that is not public.
#[derive(Debug)]
pub(super) struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let public: Vec<SocketAddr> = found.into_iter().filter(|a| is_public(a.ip())).collect();
            if public.is_empty() {
                return Err(NotAllowed(name.as_str().to_owned()).into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

pub(super) fn resolver() -> Arc<PublicOnly> {
    Arc::new(PublicOnly)
}

/// An address that is written out is not looked up: it is looked at here.
pub(super) fn check(url: &reqwest::Url) -> Result<(), NotAllowed> {
    let host = url.host_str().unwrap_or_default();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    match ip {
        Ok(ip) if !is_public(ip) => Err(NotAllowed(host.to_owned())),
        _ => Ok(()),
    }
}

fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let is_special = ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_multicast()
        || ip.is_documentation()
        || ip.is_broadcast()
        || a == 0
        || (a == 100 && (64..128).contains(&b)) // Carrier-grade NAT.
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (18..20).contains(&b)) // Benchmarks.
        || a >= 240;
    !is_special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let s = ip.segments();
    // An IPv4 address in IPv6's clothes: mapped, translated (NAT64), 6to4.
    let inner = match s {
        [0, 0, 0, 0, 0, 0xffff, hi, lo] | [0x64, 0xff9b, 0, 0, 0, 0, hi, lo] => Some((hi, lo)),
        [0x2002, hi, lo, ..] => Some((hi, lo)),
        _ => None,
    };
    if let Some((hi, lo)) = inner {
        let ([a, b], [c, d]) = (hi.to_be_bytes(), lo.to_be_bytes());
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    // Of the rest only what is given out is public, without documentation and Teredo.
    let is_global = s[0] & 0xe000 == 0x2000;
    is_global && !(s[0] == 0x2001 && (s[1] == 0xdb8 || s[1] < 0x200))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_public_internet_is_public() {
        for inside in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.0.8",
            "198.18.0.1",
            "240.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2002:a00:1::",
            "2001:db8::1",
            "2001::1",
            "::7f00:1",
        ] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
        for outside in ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"] {
            assert!(is_public(outside.parse().unwrap()), "{outside}");
        }
    }

    #[test]
    fn an_address_in_any_spelling_is_looked_at() {
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://0x7f000001/",
            "http://2130706433/",
            "http://0177.0.0.1/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "https://169.254.169.254/latest",
        ] {
            assert!(check(&url.parse().unwrap()).is_err(), "{url}");
        }
        assert_eq!(check(&"https://1.1.1.1/".parse().unwrap()), Ok(()));
        assert_eq!(check(&"https://hooks.example.com/".parse().unwrap()), Ok(()));
    }

    #[tokio::test]
    async fn a_name_that_leads_inside_is_not_followed() {
        let error = match PublicOnly.resolve("localhost".parse().unwrap()).await {
            Ok(_) => panic!("localhost is not public"),
            Err(error) => error,
        };
        assert!(error.to_string().contains("private_network = true"), "{error}");
    }
}
