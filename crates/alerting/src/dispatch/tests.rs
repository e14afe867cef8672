use dunlin_model::{AlertPhase, AlertTransition, Fingerprint, Severity, Timestamp, TransitionId};

use super::*;
use crate::{Config, config::ChannelConfig, execute::Executor, policy::Policy};

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

fn webhook(url: String, timeout_seconds: u64) -> ChannelConfig {
    toml::from_str(&format!(
        "kind = \"webhook\"\nname = \"hook\"\nurl = \"{url}\"\nprivate_network = true\ntimeout_seconds = {timeout_seconds}"
    ))
    .unwrap()
}

#[tokio::test]
async fn a_dispatcher_ends_while_a_receiver_holds_it_up() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::new(|| Timestamp::from_micros(1_700_000_000_000_000));
    let registry = Registry::open_file(&dir.path().join("registry.db"), clock.clone()).await.unwrap();
    let receiver = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = webhook(format!("http://{}/", receiver.local_addr().unwrap()), 86_400);
    let metrics = Metrics::register(&mut Default::default());
    let config = Config { channel: vec![settings.clone()], ..Config::default() };
    let executor = Executor {
        registry: registry.clone(),
        policy: Arc::new(Policy::new(&config).unwrap()),
        metrics: metrics.clone(),
        senders: Vec::new(),
        reminder: Arc::default(),
    };
    let due: Vec<_> = ["a", "b", "c"].map(firing).into();
    executor.absorb(0, &due, 3).await.unwrap();

    let dispatcher = Dispatcher {
        channel: Channel::new(&settings, None, None).unwrap(),
        retry: Retry::default(),
        links: None,
        registry: registry.clone(),
        clock,
        wake: Arc::default(),
        metrics,
    };
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(dispatcher.run(stopped));
    let _held = receiver.accept().await.unwrap();
    stop.send(true).unwrap();
    tokio::time::timeout(Duration::from_secs(300), running).await.expect("ends by itself").unwrap();

    let due = registry.due_notifications("hook", 10).await.unwrap();
    assert_eq!(due.iter().map(|n| n.attempts).collect::<Vec<_>>(), [0; 3], "a cut send is no try");
}

#[tokio::test]
async fn a_receiver_that_is_not_there_is_told_with_its_cause_and_without_its_address() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let channel = Channel::new(&webhook(format!("http://{nobody}/hook?key=secret"), 60), None, None).unwrap();
    let facts = crate::message::Facts { what: "fired".into(), ..Default::default() };
    let message = Message::of_one("1-hook", "", facts, None);
    let error = channel.send(&[message], Timestamp::from_micros(0)).await.unwrap_err();
    let text = dunlin_model::chain(&error);
    assert!(text.starts_with("no answer: ") && text.to_lowercase().contains("refused"), "{text}");
    assert!(!text.contains("secret"), "{text}");
}

#[test]
fn a_receiver_inside_is_refused_unless_it_is_meant() {
    let mut settings = webhook("http://127.0.0.1:9/".into(), 60);
    if let ChannelConfig::Webhook(webhook) = &mut settings {
        webhook.private_network = false;
    }
    let refused = Channel::new(&settings, None, None).unwrap_err().to_string();
    assert!(refused.contains("private_network = true"), "{refused}");
}
