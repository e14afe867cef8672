//! Transitions per second through alerting into the registry, without the rest of the platform: every alert fires and is
//! over, beyond the budget of its channel. `cargo run --release -p dunlin-alerting --example absorb_bench [alerts] [rounds]`

use std::{env, sync::Arc, time::Duration, time::Instant};

use dunlin_alerting::{Alerting, CONSUMER, ChannelConfig, Config};
use dunlin_journal::{Batch, Journal, MemoryJournal, Partition, Topic};
use dunlin_model::{
    AlertPhase, AlertTransition, Clock, Fingerprint, Severity, Timestamp, TransitionId, avro::Datum,
};
use dunlin_registry::Registry;

#[tokio::main]
async fn main() {
    let mut arguments = env::args().skip(1).map(|a| a.parse::<u64>().expect("a number"));
    let alerts = arguments.next().unwrap_or(50_000);
    let rounds = arguments.next().unwrap_or(2);
    let clock = Clock::new(|| Timestamp::from_micros(1_700_000_000_000_000));
    let journal = Arc::new(MemoryJournal::new(1));
    let to = Partition::new(Topic::Alerts, 0);
    for step in 0..2 * rounds {
        let (phase, round) =
            (if step % 2 == 0 { AlertPhase::Firing } else { AlertPhase::Resolved }, step / 2);
        for first in (0..alerts).step_by(1_000) {
            let mut batch = Batch::default();
            for n in first..alerts.min(first + 1_000) {
                let (rule, device) = (format!("rule-{}", n % 200), format!("device-{}", n / 200));
                let fingerprint = Fingerprint::of("default", &rule, &device);
                let since = Timestamp::from_micros(1_700_000_000_000_000 + round as i64 * 1_000_000);
                let transition = AlertTransition {
                    id: TransitionId::of(fingerprint, phase, since),
                    fingerprint,
                    tenant: "default".into(),
                    device,
                    rule,
                    severity: Severity::Warning,
                    phase,
                    at: since,
                    since,
                    value: 81.0,
                    condition: "temperature > 80".into(),
                };
                batch.push(&transition.encode());
            }
            journal.append(to, batch).await.expect("the memory journal takes all");
        }
    }

    let dir = tempfile::tempdir().expect("a temporary directory");
    let registry =
        Registry::open_file(&dir.path().join("registry.db"), clock.clone()).await.expect("a registry");
    let channel: ChannelConfig = toml::from_str(
        "kind = \"webhook\"\nname = \"hook\"\nurl = \"http://127.0.0.1:9/\"\nprivate_network = true\nbudget = { burst = 5, per_hour = 1 }",
    )
    .expect("a channel");
    let config = Config { channel: vec![channel], ..Config::default() };
    let end = journal.extent(to).next;
    let began = Instant::now();
    let alerting =
        Alerting::start(&config, journal.clone(), registry.clone(), clock, None, &mut Default::default())
            .await
            .expect("alerting starts");
    while registry.position(CONSUMER, 0).await.expect("a position") != Some(end.0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = began.elapsed().as_secs_f64();
    alerting.stop().await;
    let count = 2 * alerts * rounds;
    println!("{count} transitions of {alerts} alerts: {:.0}/s", count as f64 / took);
}
