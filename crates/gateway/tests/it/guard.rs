use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use dunlin_gateway::{Config, GuardConfig};
use dunlin_model::{Clock, Timestamp};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::Barrier;

use crate::lab::{Client, Lab, NOW_MILLIS, connack_code, connect, publish};

const STORM_CLIENTS: usize = 3_000;
const STORM_BURST: u32 = 500;
/// 100 ms of 2,000 a second.
const STORM_WAITING: u32 = 200;
const BACK_OFF_FIRST: Duration = Duration::from_millis(50);
const BACK_OFF_LONGEST: Duration = Duration::from_secs(2);

impl Lab {
    async fn guarded(guard: GuardConfig) -> Self {
        Self::with(Config { workers: 2, guard, ..Config::default() }).await
    }

    /// How many connects ended so, once there are `least`: a client is told before it is counted.
    async fn turned_away(&self, outcome: &str, least: u64) -> u64 {
        let series = format!("dunlin_gateway_connects_total{{outcome=\"{outcome}\"}}");
        for _ in 0..1_000 {
            if self.metric(&series) >= least {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.metric(&series)
    }

    /// What CONNACK says.
    async fn answer(&self, version: u8, client_id: &str, token: &str) -> u8 {
        self.client().await.greet(version, client_id, token).await
    }
}

impl Client {
    /// Whether the connection is still there for one more byte.
    async fn takes(&mut self, byte: u8) -> bool {
        self.try_send(&[byte]).await;
        !self.is_over()
    }

    async fn greet(&mut self, version: u8, client_id: &str, token: &str) -> u8 {
        self.send(&connect(version, client_id, token)).await;
        connack_code(&self.packet().await.expect("CONNACK"))
    }
}

/// Time stands still until the first wave has its answers, so that it is known how many are told to come back.
#[tokio::test(flavor = "multi_thread")]
async fn a_whole_fleet_that_comes_back_at_once_is_in_soon_and_nothing_acknowledged_is_lost() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit }).unwrap();
    let runs = Arc::new(AtomicBool::new(false));
    let clock = {
        let (runs, began) = (runs.clone(), Instant::now());
        Clock::new(move || {
            let passed = if runs.load(Relaxed) { began.elapsed() } else { Duration::ZERO };
            Timestamp::from_millis(NOW_MILLIS).unwrap() + passed
        })
    };
    let guard = GuardConfig {
        connects_per_second_max: 2_000,
        connects_burst_max: STORM_BURST + 1,
        connect_wait_millis_max: 100,
        ..GuardConfig::default()
    };
    let config = Config { workers: 2, guard, ..Config::default() };
    let lab = Arc::new(Lab::timed(config, clock).await);
    let mut healthy = lab.connected(5, "healthy").await;

    let first_wave = Arc::new(Barrier::new(STORM_CLIENTS + 1));
    let told = Arc::new(AtomicUsize::new(0));
    let fleet: Vec<_> = (0..STORM_CLIENTS)
        .map(|number| {
            let (lab, first_wave, told) = (lab.clone(), first_wave.clone(), told.clone());
            tokio::spawn(async move {
                let mut client = knock(&lab, number).await;
                told.fetch_add(usize::from(client.is_none()), Relaxed);
                first_wave.wait().await;
                let mut pause = BACK_OFF_FIRST;
                while client.is_none() {
                    tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
                    pause = (pause * 2).min(BACK_OFF_LONGEST);
                    client = knock(&lab, number).await;
                }
                let mut client = client.unwrap();
                let reading = format!("{{\"n\":{number}}}");
                client.send(&publish(version(number), 1, 7, "v1/telemetry", reading.as_bytes())).await;
                assert_eq!(client.packet().await.unwrap()[..4], [0x40, 2, 0, 7]);
                client
            })
        })
        .collect();
    assert!(healthy.pings().await);
    first_wave.wait().await;
    assert_eq!(told.load(Relaxed), STORM_CLIENTS - (STORM_BURST + STORM_WAITING) as usize);
    runs.store(true, Relaxed);
    assert!(healthy.pings().await, "who was there is served during the storm");

    let mut fleet: Vec<Client> =
        futures::future::join_all(fleet).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(lab.gateway.view().connections(), STORM_CLIENTS as u64 + 1, "all are in at the same time");
    for client in &mut fleet {
        assert!(client.pings().await);
    }
    assert!(healthy.pings().await);
    assert_eq!(lab.metric("dunlin_gateway_half_open"), 0);
    let stored = lab.telemetry().await;
    let stored: BTreeSet<String> = stored.into_iter().collect();
    let sent = (0..STORM_CLIENTS).map(|n| format!("default/device-{n}: n=I64({n})")).collect();
    assert_eq!(stored, sent);
}

fn version(number: usize) -> u8 {
    if number.is_multiple_of(2) { 4 } else { 5 }
}

/// A connection, or `None` if the server is busy.
async fn knock(lab: &Lab, number: usize) -> Option<Client> {
    let mut client = lab.client().await;
    let name = format!("device-{number}");
    let busy = if version(number) == 5 { 0x89 } else { 3 };
    match client.greet(version(number), &name, &name).await {
        0 => Some(client),
        code => {
            assert_eq!(code, busy);
            assert!(client.is_closed().await);
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_connects_too_often_is_told_so_and_others_come_in() {
    let guard = GuardConfig { address_connects_burst_max: 2, ..GuardConfig::default() };
    let lab = Lab::guarded(guard).await;
    assert_eq!((lab.answer(5, "a", "a").await, lab.answer(4, "b", "b").await), (0, 0));
    assert_eq!((lab.answer(5, "c", "c").await, lab.answer(4, "d", "d").await), (0x9F, 3));
    assert_eq!(lab.client_at("127.0.0.2").await.greet(5, "c", "c").await, 0);
    assert_eq!(lab.turned_away("address_rate", 2).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_connects_again_and_again_is_banned_and_its_neighbours_are_not() {
    let guard = GuardConfig { client_connects_per_minute_max: 2, ..GuardConfig::default() };
    let lab = Lab::guarded(guard).await;
    for version in [4, 5] {
        let device = format!("pump-{version}");
        for _ in 0..3 {
            assert_eq!(lab.answer(version, &device, &device).await, 0);
        }
        let banned = if version == 5 { 0x8A } else { 3 };
        assert_eq!(lab.answer(version, &device, &device).await, banned);
        assert_eq!(lab.answer(version, &device, "neighbour").await, 0);
    }
    assert_eq!(lab.metric("dunlin_gateway_bans_total"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_fail_are_not_looked_up_without_end() {
    let guard =
        GuardConfig { credential_failures_free: 2, address_failures_free: 1, ..GuardConfig::default() };
    let lab = Lab::guarded(guard).await;
    assert_eq!(lab.answer(5, "in before", "pump").await, 0);
    for _ in 0..3 {
        assert_eq!(lab.answer(5, "x", "unknown").await, 0x86);
    }
    assert_eq!((lab.answer(5, "x", "unknown").await, lab.answer(4, "x", "unknown").await), (0x89, 3));
    assert_eq!(lab.answer(5, "another", "neighbour").await, 0, "one credential is one broken device");
    assert_eq!(lab.answer(4, "x", "off").await, 5);
    assert_eq!(lab.answer(5, "stranger", "stranger").await, 0x89, "two are somebody who tries them out");
    assert_eq!(lab.answer(5, "in before", "pump").await, 0);
    assert_eq!(lab.client_at("127.0.0.2").await.greet(5, "stranger", "stranger").await, 0);
}

/// A directory that does not answer is nobody's failure.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_pauses_for_a_directory_that_is_down() {
    let guard =
        GuardConfig { credential_failures_free: 0, address_failures_free: 0, ..GuardConfig::default() };
    let lab = Lab::guarded(guard).await;
    for _ in 0..5 {
        assert_eq!(lab.answer(5, "x", "down").await, 0x88);
    }
    assert_eq!(lab.answer(5, "pump", "pump").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_from_one_address_leave_room_for_others_and_are_cut_off() {
    let guard = GuardConfig { half_open_max: 20, ..GuardConfig::default() };
    let config = Config { workers: 2, guard, handshake_seconds_max: 5, ..Config::default() };
    let lab = Lab::with(config).await;
    let mut silent = Vec::new();
    for held in 1..=10 {
        silent.push(lab.client().await);
        while lab.metric("dunlin_gateway_half_open") < held {
            tokio::task::yield_now().await;
        }
    }
    // More of them are closed as soon as they come, unread.
    let mut surplus = lab.client().await;
    assert!(surplus.is_closed().await);
    assert_eq!(lab.turned_away("half_open", 1).await, 1);
    let mut other = lab.client_at("127.0.0.2").await;
    assert_eq!(other.greet(5, "other", "other").await, 0);
    for client in &mut silent {
        assert!(client.is_closed().await, "silence is waited for and not for ever");
    }
    assert_eq!(lab.answer(5, "late", "late").await, 0);
    assert!(other.pings().await);
}

/// Each byte comes before anybody would call it silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_connect_that_comes_byte_by_byte_is_cut_off() {
    let config = Config { workers: 1, handshake_seconds_max: 3, ..Config::default() };
    let lab = Lab::with(config).await;
    let mut healthy = lab.connected(5, "healthy").await;
    for version in [4, 5] {
        let mut slow = lab.client().await;
        let token = "n".repeat(1_000); // 20 s of it.
        for byte in connect(version, "slow", &token) {
            if !slow.takes(byte).await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(slow.ends().await);
    }
    assert!(healthy.pings().await);
    assert_eq!(lab.turned_away("timed_out", 2).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_packet_and_silence_is_cut_off() {
    let config = Config { workers: 1, handshake_seconds_max: 3, ..Config::default() };
    let lab = Lab::with(config).await;
    let mut healthy = lab.connected(5, "healthy").await;
    let mut halves = Vec::new();
    for version in [4, 5] {
        let greeting = connect(version, "half", "half");
        for bytes in [1, 8, greeting.len() - 1] {
            let mut half = lab.client().await;
            half.send(&greeting[..bytes]).await;
            halves.push((half, format!("{bytes} bytes of CONNECT")));
        }
        let reading = publish(version, 1, 1, "v1/telemetry", b"{\"a\":1}");
        for bytes in [1, 2, reading.len() - 1] {
            let mut half = lab.connected(version, &format!("half-{version}-{bytes}")).await;
            half.send(&reading[..bytes]).await;
            halves.push((half, format!("{bytes} bytes of PUBLISH")));
        }
    }
    for (half, what) in &mut halves {
        assert!(half.ends().await, "{what}");
    }
    assert!(healthy.pings().await);
    assert!(lab.telemetry().await.is_empty());
}
