use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};

use crate::lab::{Lab, connect, frame, publish};

const CASES: u64 = 1_000;

/// One broken thing after another, each on its own connection, while a healthy client goes on undisturbed.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_malformed_clients_disturb_nobody() {
    let lab = Lab::start().await;
    let mut healthy = lab.connected(5, "healthy").await;
    for seed in 0..CASES {
        let mut chance = StdRng::seed_from_u64(seed);
        let mut broken = lab.client().await;
        broken.try_send(&malformed(&mut chance, seed)).await;
        drop(broken);
        let id = (seed % 60_000 + 1) as u16;
        healthy.send(&publish(5, 1, id, "v1/telemetry", b"{\"a\":1}")).await;
        let [high, low] = id.to_be_bytes();
        assert_eq!(healthy.packet().await.unwrap(), [0x40, 2, high, low], "after seed {seed}");
    }
    assert!(healthy.pings().await);
    let mine = lab.telemetry().await.iter().filter(|r| r.starts_with("default/healthy")).count();
    assert_eq!(mine as u64, CASES);
    lab.never_panicked();
}

fn malformed(chance: &mut StdRng, seed: u64) -> Vec<u8> {
    let version = if seed.is_multiple_of(2) { 4 } else { 5 };
    let greeting = connect(version, &format!("c{seed}"), "broken");
    let mut random = vec![0; chance.random_range(0..300)];
    chance.fill_bytes(&mut random);
    let mut good = publish(version, chance.random_range(0..3), 1, "v1/telemetry", b"{\"a\":1}");
    match seed % 10 {
        0 => random,
        1 => [greeting, random].concat(),
        2 => greeting[..chance.random_range(0..greeting.len())].to_vec(),
        3 => {
            good.truncate(chance.random_range(0..good.len()));
            [greeting, good].concat()
        }
        4 => [greeting, vec![chance.random(), 0xFF, 0xFF, 0xFF, 0x7F]].concat(), // An absurd length.
        5 => [greeting, vec![chance.random(), 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]].concat(),
        6 => [greeting, publish(version, 1, 1, "v1/telemetry", &random)].concat(),
        7 => {
            let deep = "[".repeat(chance.random_range(1..100_000));
            [greeting, publish(version, 1, 1, "v1/telemetry", deep.as_bytes())].concat()
        }
        8 => {
            let at = chance.random_range(0..good.len());
            good[at] ^= 1 << chance.random_range(0..8);
            [greeting, good].concat()
        }
        // A known kind of packet with a random inside.
        _ => [greeting, frame((chance.random_range(1..16) << 4) | chance.random_range(0..16), &random)]
            .concat(),
    }
}

/// Lengths inside of packets that contradict the length of the packet.
#[tokio::test(flavor = "multi_thread")]
async fn inner_lengths_that_lie_close_only_their_own_connection() {
    let lab = Lab::start().await;
    for version in [4, 5] {
        for body in [
            &[0xFF, 0xFF][..],
            &[0, 200, b'a'],
            &[0, 1, b'a'],
            &[0, 1, b'a', 0],
            &[0, 1, b'+', 0, 1, 0xFF, 0xFF, 0x7F],
        ] {
            let mut client = lab.connected(version, "liar").await;
            client.try_send(&frame(0x32, body)).await;
            assert!(client.ends().await, "a length that lies: {body:?}");
        }
    }
    lab.never_panicked();
    let mut healthy = lab.connected(4, "healthy").await;
    assert!(healthy.pings().await);
}
