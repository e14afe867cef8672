use std::{
    future::Future,
    pin::Pin,
    sync::atomic::{AtomicI64, Ordering::Relaxed},
    task::{Context, Poll, Waker},
};

use super::*;

const HERE: &str = "192.0.2.1";
const THERE: &str = "2001:db8::1";

/// A guard, and the time it goes by.
struct Lab {
    guard: Guard,
    millis: Arc<AtomicI64>,
}

impl Lab {
    fn new(config: GuardConfig) -> Self {
        let millis = Arc::new(AtomicI64::new(1_700_000_000_000));
        let now = millis.clone();
        let clock = Clock::new(move || Timestamp::from_millis(now.load(Relaxed)).unwrap());
        Self { guard: Guard::new(config, clock), millis }
    }

    fn passes(&self, millis: i64) {
        self.millis.fetch_add(millis, Relaxed);
    }

    fn arrive(&self, address: &str) -> Result<Arrival, TurnedAway> {
        self.guard.arrive(address.parse().unwrap())
    }

    fn introduce(&self, address: &str, client_id: &str, credential: &str) -> Result<Visitor, TurnedAway> {
        self.arrive(address)?.introduce(client_id, &Credential::Token(credential.into()))
    }

    fn admitted(&self, address: &str, client_id: &str) -> Result<(), TurnedAway> {
        self.introduce(address, client_id, "token").map(|visitor| visitor.admitted())
    }

    fn failed(&self, address: &str, credential: &str) -> Result<(), TurnedAway> {
        self.introduce(address, "guesser", credential).map(|visitor| visitor.failed())
    }

    fn encode(&self) -> String {
        let mut registry = Registry::default();
        self.guard.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }
}

#[test]
fn an_address_is_a_network_for_ipv6_and_itself_for_ipv4_however_it_is_written() {
    let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap()).to_string();
    assert_eq!(address("192.0.2.1"), "192.0.2.1");
    assert_eq!(address("::ffff:192.0.2.1"), "192.0.2.1");
    assert_eq!(address("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
    assert_eq!(address("2001:db8:1:2:ffff::"), "2001:db8:1:2::/64");
    assert_ne!(address("2001:db8:1:3::"), "2001:db8:1:2::/64");
}

#[test]
fn fifteen_thousand_devices_behind_one_address_come_back_at_once() {
    let lab = Lab::new(GuardConfig::default());
    let arrivals: Vec<_> = (0..15_000).map(|_| lab.arrive(HERE).unwrap()).collect();
    for (n, arrival) in arrivals.iter().enumerate() {
        let visitor =
            arrival.introduce(&format!("device-{n}"), &Credential::Token(format!("token-{n}"))).unwrap();
        assert_eq!(visitor.wait(), Duration::ZERO);
        visitor.admitted();
    }
}

#[test]
fn an_address_that_connects_too_often_slows_down_alone() {
    let lab = Lab::new(GuardConfig {
        address_connects_per_second_max: 10,
        address_connects_burst_max: 2,
        ..<_>::default()
    });
    let one = |n: u32| lab.admitted(HERE, &format!("c{n}"));
    assert_eq!([one(1), one(2), one(3)], [Ok(()), Ok(()), Err(TurnedAway::AddressRate)]);
    assert_eq!(lab.admitted(THERE, "c"), Ok(()));
    assert_eq!(lab.admitted("2001:db8::2", "c2"), Ok(()));
    assert_eq!(lab.admitted("2001:db8::3", "c3"), Err(TurnedAway::AddressRate), "one network");
    lab.passes(100);
    assert_eq!([one(4), one(5)], [Ok(()), Err(TurnedAway::AddressRate)]);
}

#[test]
fn the_surplus_of_all_waits_in_turn_and_what_is_more_is_told_to_come_back() {
    let lab = Lab::new(GuardConfig {
        connects_per_second_max: 10,
        connects_burst_max: 1,
        connect_wait_millis_max: 200,
        ..<_>::default()
    });
    let wait = |n: u8| {
        let visitor = lab.introduce(&format!("192.0.2.{n}"), "c", "token")?;
        Ok(visitor.wait().as_millis())
    };
    assert_eq!([1, 2, 3, 4].map(wait), [Ok(0), Ok(100), Ok(200), Err(TurnedAway::Busy)]);
    lab.passes(1_000);
    assert_eq!([5, 6].map(wait), [Ok(0), Ok(100)], "who was told to come back took no turn");
}

#[test]
fn however_many_addresses_hold_connections_half_open_a_newcomer_finds_room() {
    let lab = Lab::new(GuardConfig { half_open_max: 100, ..<_>::default() });
    let mut held = Vec::new();
    for n in 1..=20 {
        let address = format!("192.0.2.{n}");
        let before = held.len();
        while let Ok(arrival) = lab.arrive(&address) {
            held.push(arrival);
        }
        assert!(n > 6 || held.len() > before, "address {n}");
    }
    assert!(lab.encode().contains(&format!("dunlin_gateway_half_open {}\n", held.len())));
    let first = held.iter().filter(|a| a.address() == HERE.parse::<IpAddr>().unwrap().into()).count();
    assert_eq!(first, 50, "one alone has half");

    drop(held);
    assert!(lab.encode().contains("dunlin_gateway_half_open 0\n"));
    let state = lab.guard.state();
    assert!(state.half_open.by_address.is_empty());
}

#[test]
fn a_client_that_connects_again_and_again_is_banned_for_a_while_and_nobody_else() {
    let lab =
        Lab::new(GuardConfig { client_connects_per_minute_max: 3, client_ban_seconds: 30, ..<_>::default() });
    for _ in 0..4 {
        assert_eq!(lab.admitted(HERE, "flapping"), Ok(()));
        assert_eq!(lab.admitted(HERE, ""), Ok(()), "each is another client");
    }
    assert_eq!(lab.admitted(HERE, "flapping"), Err(TurnedAway::Banned));
    assert_eq!(lab.admitted(HERE, ""), Ok(()));
    assert_eq!(lab.admitted(HERE, "steady"), Ok(()));
    assert_eq!(lab.admitted(THERE, "flapping"), Ok(()), "elsewhere it is somebody else");
    assert!(lab.introduce(HERE, "flapping", "another").is_ok(), "nobody is banned by who takes his name");
    lab.passes(29_999);
    assert_eq!(lab.admitted(HERE, "flapping"), Err(TurnedAway::Banned));
    lab.passes(1);
    for _ in 0..3 {
        assert_eq!(lab.admitted(HERE, "flapping"), Ok(()));
    }
    lab.passes(60_000);
    for _ in 0..3 {
        assert_eq!(lab.admitted(HERE, "flapping"), Ok(()), "three a minute are as many as it may");
    }
    assert!(lab.encode().contains("dunlin_gateway_bans_total 1\n"), "{}", lab.encode());
}

#[test]
fn one_broken_device_pauses_alone() {
    let lab = Lab::new(GuardConfig {
        credential_failures_free: 2,
        address_failures_free: 2,
        failure_pause_seconds_max: 4,
        ..<_>::default()
    });
    for _ in 0..3 {
        assert_eq!(lab.failed(HERE, "revoked"), Ok(()));
    }
    for seconds in [1, 2, 4, 4] {
        lab.passes(seconds * 1_000 - 1);
        assert_eq!(lab.failed(HERE, "revoked"), Err(TurnedAway::BackOff));
        assert_eq!(lab.admitted(HERE, "never seen"), Ok(()));
        lab.passes(1);
        assert_eq!(lab.failed(HERE, "revoked"), Ok(()));
    }
    lab.passes(4_000);
    lab.introduce(HERE, "guesser", "revoked").unwrap().admitted();
    for _ in 0..3 {
        assert_eq!(lab.failed(HERE, "revoked"), Ok(()), "what was let in begins anew");
    }
}

#[test]
fn who_guesses_pauses_and_who_was_let_in_before_does_not() {
    let lab = Lab::new(GuardConfig { address_failures_free: 3, ..<_>::default() });
    assert_eq!(lab.admitted(HERE, "device"), Ok(()));
    for guess in 0..4 {
        assert_eq!(lab.failed(HERE, &format!("guess-{guess}")), Ok(()));
    }
    assert_eq!(lab.failed(HERE, "guess-4"), Err(TurnedAway::BackOff));
    assert_eq!(lab.admitted(HERE, "stranger"), Err(TurnedAway::BackOff));
    assert_eq!(lab.admitted(HERE, "device"), Ok(()));
    assert_eq!(lab.admitted(THERE, "stranger"), Ok(()));
    lab.passes(1_000);
    assert_eq!(lab.admitted(HERE, "stranger"), Ok(()));

    lab.introduce(HERE, "device", "token").unwrap().failed();
    assert_eq!(lab.admitted(HERE, "device"), Err(TurnedAway::BackOff), "revoked: as unknown as others");
}

#[test]
fn memory_is_bounded_whoever_comes() {
    let config = GuardConfig { addresses_max: 100, clients_max: 100, ..<_>::default() };
    let lab = Lab::new(config);
    for n in 0..10_000_u32 {
        let address = Ipv6Addr::from_bits(u128::from(n) << 64).to_string();
        lab.introduce(&address, "c", "token").unwrap().admitted();
        lab.introduce(&address, "c", "guess").unwrap().failed();
        lab.passes(1);
    }
    let state = lab.guard.state();
    assert!(state.addresses.len() <= 100 && state.clients.len() <= 100 && state.credentials.len() <= 100);
}

/// One poll: what a caller that does not wait sees.
fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn handshake_lab(under_way: usize, waiting: usize, wait_millis: u32) -> Lab {
    Lab::new(GuardConfig {
        tls_handshakes_max: under_way,
        tls_handshakes_waiting_max: waiting,
        tls_handshake_wait_millis_max: wait_millis,
        ..<_>::default()
    })
}

#[ntex::test]
async fn addresses_take_turns_at_shaking_hands() {
    let lab = handshake_lab(4, 100, 600_000);
    let here: Vec<_> = (0..10).map(|_| lab.arrive(HERE).unwrap()).collect();
    let there = lab.arrive(THERE).unwrap();
    let elsewhere = lab.arrive("198.51.100.1").unwrap();
    let mut crowd: Vec<_> = here.iter().map(|arrival| Box::pin(arrival.handshake())).collect();
    let mut begun: Vec<HandshakePermit> = Vec::new();
    for (n, one) in crowd.iter_mut().enumerate() {
        match poll(one.as_mut()) {
            Poll::Ready(permit) => begun.push(permit.unwrap()),
            Poll::Pending => assert!(n >= 2, "{n}"),
        }
    }
    assert_eq!(begun.len(), 2, "a crowd has half");
    let others: Vec<_> = [there.handshake().await, there.handshake().await].map(Result::unwrap).into();
    let mut third = Box::pin(there.handshake());
    let mut late = Box::pin(elsewhere.handshake());
    assert!(poll(third.as_mut()).is_pending() && poll(late.as_mut()).is_pending(), "all turns are taken");
    assert!(lab.encode().contains("dunlin_gateway_tls_handshakes 4\n"));
    assert!(lab.encode().contains("dunlin_gateway_tls_handshakes_waiting 10\n"));

    drop(begun.pop());
    let mut called: usize = 0;
    for one in &mut crowd[2..] {
        called += usize::from(poll(one.as_mut()).is_ready());
    }
    assert_eq!(called, 1, "the crowd was first");
    // Its permit is dropped with the poll's answer; then those who came later, before the rest of the crowd.
    assert!(poll(late.as_mut()).is_ready());
    drop(others);
    assert!(poll(third.as_mut()).is_ready());
    drop((crowd, third, late, begun));
    assert_eq!(lab.guard.0.handshakes.counts(), (0, 0), "whoever left gave back what it had");
    assert!(lab.guard.0.handshakes.is_empty());
}

#[ntex::test]
async fn the_queue_for_shaking_hands_is_bounded_and_so_is_the_wait() {
    let lab = handshake_lab(1, 3, 1);
    let here = lab.arrive(HERE).unwrap();
    let there = lab.arrive(THERE).unwrap();
    let permit = here.handshake().await.unwrap();
    {
        let mut waiting: Vec<_> = (0..2).map(|_| Box::pin(here.handshake())).collect();
        assert!(waiting.iter_mut().all(|one| poll(one.as_mut()).is_pending()));
        assert_eq!(
            here.handshake().await.unwrap_err(),
            TurnedAway::Busy,
            "as many places are left to others"
        );
        let mut other = Box::pin(there.handshake());
        assert!(poll(other.as_mut()).is_pending());
        let late = lab.arrive("198.51.100.1").unwrap();
        assert_eq!(late.handshake().await.unwrap_err(), TurnedAway::Busy, "no place is left");
    }
    assert_eq!(there.handshake().await.unwrap_err(), TurnedAway::Busy, "it waited, and nobody ended");
    drop(permit);
    assert!(there.handshake().await.is_ok());
    assert!(lab.guard.0.handshakes.is_empty());
}

#[ntex::test]
async fn who_connects_too_often_does_not_shake_hands() {
    let lab = Lab::new(GuardConfig { address_connects_burst_max: 1, ..<_>::default() });
    let _first = lab.arrive(HERE).unwrap();
    let second = lab.arrive(HERE).unwrap();
    assert_eq!(second.handshake().await.unwrap_err(), TurnedAway::AddressRate);
}
