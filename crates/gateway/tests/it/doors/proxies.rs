use dunlin_gateway::GuardConfig;

use super::*;

fn behind_a_proxy(tls: bool, proxies: &[&str]) -> ListenerConfig {
    let proxies = proxies.iter().map(|network| network.parse().unwrap()).collect();
    ListenerConfig { proxy_protocol: true, proxies, ..door(Transport::Tcp, tls) }
}

/// PROXY protocol 2, from a client at an IPv4 address.
fn header(client: [u8; 4]) -> Vec<u8> {
    let start = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice();
    [start, &client, &[10, 0, 0, 1], &40_000_u16.to_be_bytes(), &1_883_u16.to_be_bytes()].concat()
}

async fn answer(lab: &Lab, place: usize, before: &[u8], name: &str) -> Option<u8> {
    let mut client = Client::over(lab.socket(place).await);
    client.try_send(&[before, &connect(5, name, name)].concat()).await;
    client.packet().await.map(|answer| connack_code(&answer))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_are_told_apart_behind_a_load_balancer() {
    let guard =
        GuardConfig { address_connects_per_second_max: 1, address_connects_burst_max: 2, ..<_>::default() };
    let config = Config { guard, ..config(vec![behind_a_proxy(false, &["127.0.0.0/8"])]) };
    // On a clock that stands still.
    let lab = Lab::with(config).await;
    let (one, other) = (header([192, 0, 2, 1]), header([192, 0, 2, 2]));
    assert_eq!(answer(&lab, 0, &one, "a").await, Some(0));
    assert_eq!(answer(&lab, 0, &one, "b").await, Some(0));
    assert_eq!(answer(&lab, 0, &one, "c").await, Some(0x9F), "this one connects too often");
    assert_eq!(answer(&lab, 0, &other, "d").await, Some(0), "and not the one beside it");
    let nobody = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    assert_eq!(answer(&lab, 0, nobody, "e").await, Some(0), "the proxy itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_header_or_not_from_the_proxy_is_no_connection() {
    let doors = vec![behind_a_proxy(false, &[]), behind_a_proxy(false, &["192.0.2.0/24"])];
    let lab = Lab::with(config(doors)).await;
    assert_eq!(answer(&lab, 0, b"", "a").await, None);
    assert_eq!(answer(&lab, 0, b"PROXY TCP4 192.0.2.1 10.0.0.1 40000 1883\r\n", "a").await, None);
    assert!(lab.has_refused("proxy_header", 2).await);
    assert_eq!(answer(&lab, 1, &header([192, 0, 2, 1]), "a").await, None);
    assert!(lab.has_refused("not_a_proxy", 1).await);
    assert_eq!(answer(&lab, 0, &header([192, 0, 2, 1]), "a").await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_header_comes_before_tls() {
    let authority = Authority::new("root");
    let lab = Lab::with_tls(config(vec![behind_a_proxy(true, &[])]), authority.tls(&[]), real_clock()).await;
    let mut socket = lab.socket(0).await;
    socket.write_all(&header([192, 0, 2, 1])).await.unwrap();
    let mut client = Client::over(tls(socket, &authority, None).await.unwrap());
    client.send(&connect(4, "a", "a")).await;
    assert_eq!(connack_code(&client.packet().await.unwrap()), 0);
}
