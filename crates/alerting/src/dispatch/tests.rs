use dunlin_model::{AlertPhase, Fingerprint, Severity, Timestamp, TransitionId};

use super::*;
use crate::config::ChannelConfig;

fn firing(device: &str) -> AlertTransition {
    let fingerprint = Fingerprint::of("default", "hot", device);
    let since = Timestamp::from_micros(1);
    AlertTransition {
        id: TransitionId::of(fingerprint, AlertPhase::Firing, since),
        fingerprint,
        tenant: "default".into(),
        device: device.into(),
        rule: "hot".into(),
        severity: Severity::Critical,
        phase: AlertPhase::Firing,
        at: since,
        since,
        value: 81.0,
        condition: "temperature > 80".into(),
    }
}

#[tokio::test]
async fn a_dispatcher_ends_while_a_receiver_holds_it_up() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::new(|| Timestamp::from_micros(1_700_000_000_000_000));
    let registry =
        Registry::open(&dunlin_registry::Config::file(&dir.path().join("registry.db")), clock.clone())
            .await
            .unwrap();
    let due: Vec<_> = ["a", "b", "c"].map(firing).into();
    registry.apply_alerts("alerting", 0, &due, 3, &["hook".to_owned()], body).await.unwrap();

    let receiver = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", receiver.local_addr().unwrap());
    let settings = ChannelConfig::Webhook { name: "hook".into(), url, timeout_seconds: 86_400 };
    let dispatcher = Dispatcher {
        channel: Channel::new(&settings).unwrap(),
        retry: Retry::default(),
        registry: registry.clone(),
        clock,
        wake: Arc::default(),
        metrics: Metrics::register(&mut Default::default()),
    };
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(dispatcher.run(stopped));
    let _held = receiver.accept().await.unwrap();
    stop.send(true).unwrap();
    tokio::time::timeout(Duration::from_secs(300), running).await.expect("ends by itself").unwrap();

    let due = registry.due_notifications("hook", 10).await.unwrap();
    assert_eq!(due.iter().map(|n| n.attempts).collect::<Vec<_>>(), [0; 3], "a cut send is no try");
}
