//! Packet sequences that have hurt brokers, as files: what a client sends, and what it is told.
//!
//! ```text
//! # A comment, also at the end of a line.
//! == two pings                          a new sequence, over a new connection
//! > 10 'MQTT' 04 82 003c 'c' 'probe'    a packet: its first byte, then its body; its length is found out
//! >> 32 ff ff ff 7f                     bytes as they are
//! < 20 00 00                            the next packet that comes: first byte and the beginning of its body
//! < any                                 a packet, whatever it is
//! < end                                 the server closes, whatever it says before
//! < alive                               it is still there: the next packet is the answer to a ping
//! ```
//!
//! Bytes are hexadecimal; `'text'` has its length before it, `"text"` has not, and `*N` behind either repeats it.

use std::{fs, path::Path};

use dunlin_gateway::{Config, GuardConfig};

use crate::lab::{Lab, frame, publish, text};

#[tokio::test(flavor = "multi_thread")]
async fn packet_sequences_end_as_they_should_and_hurt_nobody() {
    let guard = GuardConfig { client_connects_per_minute_max: 100_000, ..GuardConfig::default() };
    let lab = Lab::with(Config { workers: 2, guard, ..Config::default() }).await;
    let mut healthy = lab.connected(5, "healthy").await;
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/sequences");
    let mut files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let script = fs::read_to_string(&file).unwrap();
        let mut client = lab.client().await;
        for (line, step) in (1..).zip(script.lines()) {
            let at = format!("{}:{line}", file.file_name().unwrap().display());
            println!("{at}"); // Shown with a failure.
            let step = step.split("# ").next().unwrap().trim();
            match step.split_once(' ') {
                None => assert_eq!(step, "", "{at}"),
                Some(("==", _)) => {
                    healthy.send(&publish(5, 1, 1, "v1/telemetry", b"{\"a\":1}")).await;
                    assert_eq!(
                        healthy.packet().await.unwrap(),
                        [0x40, 2, 0, 1],
                        "{at}: after what was before"
                    );
                    client = lab.client().await;
                }
                Some((">", packet)) => {
                    let bytes = bytes(packet);
                    client.try_send(&frame(bytes[0], &bytes[1..])).await;
                }
                Some((">>", raw)) => client.try_send(&bytes(raw)).await,
                Some(("<", "end")) => assert!(client.ends().await, "{at}"),
                Some(("<", "alive")) => assert!(client.pings().await, "{at}"),
                Some(("<", "any")) => assert!(client.packet().await.is_some(), "{at}"),
                Some(("<", expected)) => {
                    let packet =
                        client.packet().await.unwrap_or_else(|| panic!("{at}: the connection is closed"));
                    let body = 1 + packet[1..].iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
                    let told = [&packet[..1], &packet[body..]].concat();
                    assert!(told.starts_with(&bytes(expected)), "{at}: {packet:02x?}");
                }
                Some(_) => panic!("{at}: {step}"),
            }
        }
    }
    assert!(healthy.pings().await);
    lab.never_panicked();
}

fn bytes(words: &str) -> Vec<u8> {
    let mut all = Vec::new();
    let mut rest = words.trim();
    while !rest.is_empty() {
        let quote = rest.chars().next().filter(|first| matches!(first, '\'' | '"'));
        let end = match quote {
            Some(quote) => 2 + rest[1..].find(quote).expect("a quote ends"),
            None => rest.find([' ', '*']).unwrap_or(rest.len()),
        };
        let (word, behind) = rest.split_at(end);
        let (times, behind) = match behind.strip_prefix('*') {
            Some(times) => times.split_at(times.find(' ').unwrap_or(times.len())),
            None => ("1", behind),
        };
        let word = match quote {
            Some('\'') => text(&word[1..end - 1]),
            Some(_) => word.as_bytes()[1..end - 1].to_vec(),
            None => {
                (0..word.len()).step_by(2).map(|n| u8::from_str_radix(&word[n..n + 2], 16).unwrap()).collect()
            }
        };
        all.extend(word.repeat(times.parse().unwrap()));
        rest = behind.trim_start();
    }
    all
}
