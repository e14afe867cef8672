//! Conversations that a grammar makes up: packets that are nearly right, in any order, from clients that take each
//! other's ids, in pieces of any size.

use dunlin_gateway::{Config, GuardConfig};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::lab::{Client, Lab, frame, publish, text};

const ROUNDS: u64 = 150;
const CLIENTS: u64 = 4;

#[tokio::test(flavor = "multi_thread")]
async fn conversations_of_any_kind_leave_nothing_and_disturb_nobody() {
    let guard = GuardConfig {
        client_connects_per_minute_max: 100_000,
        credential_failures_free: 100_000,
        address_failures_free: 100_000,
        ..GuardConfig::default()
    };
    let lab = Lab::with(Config { workers: 2, guard, ..Config::default() }).await;
    let mut healthy = lab.connected(5, "healthy@other").await;
    healthy.send(&frame(0x82, &[&[0, 1, 0][..], &text("beat"), &[1]].concat())).await;
    assert_eq!(healthy.packet().await.unwrap(), [0x90, 4, 0, 1, 0, 1]);
    let first: u64 = std::env::var("DUNLIN_GRAMMAR_SEED").map_or(0, |seed| seed.parse().unwrap());
    for round in first..first + ROUNDS {
        println!("DUNLIN_GRAMMAR_SEED={round}");
        let talking = (0..CLIENTS).map(|n| {
            let lab = &lab;
            async move {
                let mut grammar = Grammar::new(round * CLIENTS + n);
                converse(lab.client().await, &mut grammar).await;
            }
        });
        futures::future::join_all(talking).await;
        healthy.send(&publish(5, 1, 7, "beat", b"x")).await;
        let mut told = [healthy.packet().await.unwrap(), healthy.packet().await.unwrap()];
        told.sort();
        assert_eq!((told[0][0], &told[1][..]), (0x32, &[0x40, 2, 0, 7][..]), "round {round}");
        let id = told[0][8..10].try_into().unwrap();
        healthy.send(&frame(0x40, &u16::from_be_bytes(id).to_be_bytes())).await;
    }
    assert!(healthy.pings().await);
    lab.never_panicked();
    // Whoever has left is not there any more.
    while lab.metric("dunlin_gateway_connections") > 1 || lab.inflight_bytes() > 0 {
        tokio::task::yield_now().await;
    }
}

/// Says all of it; reads what comes meanwhile, so that neither side waits for the other.
async fn converse(client: Client, grammar: &mut Grammar) {
    let mut bytes = grammar.conversation();
    let (mut reader, mut writer) = client.split();
    let reads = async { while reader.takes_some().await {} };
    let writes = async {
        while !bytes.is_empty() {
            let piece = bytes.len().min(grammar.chance.random_range(1..400));
            writer.try_send(&bytes[..piece]).await;
            bytes.drain(..piece);
        }
        writer.says_no_more().await;
    };
    futures::future::join(reads, writes).await;
}

struct Grammar {
    chance: StdRng,
    version: u8,
}

impl Grammar {
    fn new(seed: u64) -> Self {
        let mut chance = StdRng::seed_from_u64(seed);
        let version = if chance.random_bool(0.5) { 4 } else { 5 };
        Self { chance, version }
    }

    fn conversation(&mut self) -> Vec<u8> {
        let mut all = self.connect();
        for _ in 0..self.chance.random_range(0..40) {
            let mut packet = self.packet();
            if self.chance.random_bool(0.05) {
                self.spoil(&mut packet);
            }
            all.extend(packet);
        }
        all
    }

    fn one_of(&mut self, words: &[&'static str]) -> &'static str {
        words.choose(&mut self.chance).unwrap()
    }

    fn topic(&mut self) -> &'static str {
        self.one_of(&[
            "a",
            "a/b",
            "/",
            "v1/telemetry",
            "v1/events",
            "v1/d/child/telemetry",
            "v1/x",
            "$SYS/a",
            "",
            "+",
            "\u{feff}",
        ])
    }

    fn filter(&mut self) -> &'static str {
        self.one_of(&[
            "a",
            "a/b",
            "#",
            "+",
            "+/+",
            "a/#",
            "$share/g/#",
            "$share/g/a/+",
            "$SYS/#",
            "",
            "a#",
            "$share/g",
        ])
    }

    /// Few, so that they meet each other.
    fn id(&mut self) -> [u8; 2] {
        self.chance.random_range(0..6_u16).to_be_bytes()
    }

    fn payload(&mut self) -> Vec<u8> {
        match self.chance.random_range(0..4) {
            0 => Vec::new(),
            1 => b"{\"a\":1}".to_vec(),
            2 => vec![b'x'; self.chance.random_range(0..3_000)],
            _ => b"[{\"ts\":1,\"values\":{\"b\":true}}]".to_vec(),
        }
    }

    /// Nothing for MQTT 3.1.1.
    fn properties(&mut self, known: &[&[u8]]) -> Vec<u8> {
        if self.version == 4 {
            return Vec::new();
        }
        let mut all = Vec::new();
        for _ in 0..self.chance.random_range(0..4) {
            all.extend_from_slice(known.choose(&mut self.chance).unwrap());
        }
        [&[all.len() as u8][..], &all].concat()
    }

    fn connect(&mut self) -> Vec<u8> {
        let (clean, will, user) =
            (self.chance.random_bool(0.5), self.chance.random_bool(0.3), self.chance.random_bool(0.95));
        let will_bits = if will {
            0x04 | self.chance.random_range(0..3) << 3 | self.chance.random_range(0..2) << 5
        } else {
            0
        };
        let mut body = text("MQTT");
        body.extend_from_slice(&[
            self.version,
            u8::from(clean) << 1 | will_bits | u8::from(user) << 7,
            0,
            30,
        ]);
        body.extend(self.properties(&[
            &[0x11, 0, 0, 0, 60],
            &[0x21, 0, 2],
            &[0x27, 0, 0, 4, 0],
            &[0x22, 0, 9],
            &[0x17, 0],
            &[0x26, 0, 1, b'k', 0, 1, b'v'],
        ]));
        body.extend(text(self.one_of(&["", "c1", "c2", "c3"])));
        if will {
            body.extend(self.properties(&[
                &[0x18, 0, 0, 0, 1],
                &[0x02, 0, 0, 0, 9],
                &[0x03, 0, 1, b't'],
                &[0x01, 1],
            ]));
            body.extend(text(self.topic()));
            body.extend(text("gone"));
        }
        if user {
            body.extend(text(self.one_of(&["gw-1", "pump", "valve", "off", "unknown", "down"])));
        }
        frame(0x10, &body)
    }

    fn packet(&mut self) -> Vec<u8> {
        match self.chance.random_range(0..12) {
            0..4 => self.publish(),
            4 => self.answer(0x40),
            5 => self.answer(0x50),
            6 => self.answer(0x62),
            7 => self.answer(0x70),
            8 => {
                let mut body = self.id().to_vec();
                body.extend(self.properties(&[&[0x0B, 1], &[0x26, 0, 0, 0, 0]]));
                for _ in 0..self.chance.random_range(0..5) {
                    body.extend(text(self.filter()));
                    body.push(self.chance.random_range(0..if self.version == 5 { 0x30 } else { 3 }));
                }
                frame(0x82, &body)
            }
            9 => {
                let mut body = self.id().to_vec();
                body.extend(self.properties(&[&[0x26, 0, 0, 0, 0]]));
                for _ in 0..self.chance.random_range(0..5) {
                    body.extend(text(self.filter()));
                }
                frame(0xA2, &body)
            }
            10 => frame(0xC0, &[]),
            _ => match self.chance.random_range(0..6) {
                0 => self.connect(),
                1 => frame(0xE0, &[]),
                2 => frame(0xE0, &[4]),
                3 => frame(0xF0, &[0x18, 0]),
                _ => frame(0xC0, &[]),
            },
        }
    }

    fn publish(&mut self) -> Vec<u8> {
        let qos = self.chance.random_range(0..3);
        let first = 0x30 | qos << 1 | self.chance.random_range(0..2) << 3 | self.chance.random_range(0..2);
        let mut body = text(self.topic());
        if qos > 0 {
            body.extend(self.id());
        }
        body.extend(self.properties(&[
            &[0x23, 0, 1],
            &[0x23, 0, 99],
            &[0x02, 0, 0, 0, 1],
            &[0x08, 0, 1, b'r'],
            &[0x09, 0, 2, 1, 2],
            &[0x26, 0, 1, b'k', 0, 1, b'v'],
            &[0x0B, 1],
        ]));
        body.extend(self.payload());
        frame(first, &body)
    }

    fn answer(&mut self, kind: u8) -> Vec<u8> {
        let mut body = self.id().to_vec();
        if self.version == 5 && self.chance.random_bool(0.3) {
            body.push(*[0, 0x10, 0x80, 0x92].choose(&mut self.chance).unwrap());
        }
        frame(kind, &body)
    }

    fn spoil(&mut self, packet: &mut Vec<u8>) {
        let at = self.chance.random_range(0..packet.len());
        match self.chance.random_range(0..4) {
            0 => packet[at] ^= 1 << self.chance.random_range(0..8),
            1 => packet.truncate(at),
            2 => packet.insert(at, self.chance.random()),
            _ => packet[0] = self.chance.random(),
        }
    }
}
