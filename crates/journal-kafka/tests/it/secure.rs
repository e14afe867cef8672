//! Brokers that speak TLS and ask who is there.

use std::fs;

use dunlin_journal::{Journal, Offset};
use dunlin_journal_kafka::{Mechanism, OpenError, Sasl, Tls};

use crate::support::{Bench, Brokers, T0, batch};

#[tokio::test]
async fn a_journal_with_tls_and_a_password() {
    let brokers = tokio::task::spawn_blocking(|| Brokers::lend(true)).await.unwrap();
    let password_file = brokers.dir.join("password");
    fs::write(&password_file, "secret\n").unwrap();
    let mut bench = Bench::with(|config| config.brokers = brokers.bootstrap.clone());
    let plain = std::mem::replace(&mut bench.config.brokers, brokers.bootstrap_secure.clone());
    let ca_file = Some(brokers.dir.join("ca.pem"));
    bench.config.tls = Tls { enabled: true, ca_file, ..Tls::default() };
    let (mechanism, username) = (Mechanism::ScramSha512, "dunlin".to_owned());
    bench.config.sasl = Some(Sasl { mechanism, username, password_file: password_file.clone() });
    let journal = bench.open().await;
    journal.append(T0, batch(["a"])).await.unwrap();
    assert_eq!(journal.read(T0, Offset::ZERO, 1).await.unwrap()[0].len(), 1);
    journal.close().await;
    drop(journal);

    (bench.config.connect_seconds_max, bench.config.request_seconds_max) = (3, 8);
    fs::write(&password_file, "guessed").unwrap();
    let error = bench.try_open().await.unwrap_err();
    assert!(
        matches!(&error, OpenError::Unreachable { reason, .. } if reason.contains("Authentication")),
        "{error}"
    );
    assert!(!error.to_string().contains("guessed"));

    fs::write(&password_file, "secret").unwrap();
    bench.config.tls.ca_file = None;
    let error = bench.try_open().await.unwrap_err();
    assert!(matches!(&error, OpenError::Unreachable { reason, .. } if reason.contains("SSL")), "{error}");

    fs::remove_file(&password_file).unwrap();
    assert!(matches!(bench.try_open().await, Err(OpenError::Credentials(_))));
    bench.config.brokers = plain;
    (bench.config.tls, bench.config.sasl) = (Tls::default(), None);
}
