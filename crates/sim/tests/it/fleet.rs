use std::{sync::Arc, time::Duration};

use dunlin_model::{Clock, Timestamp};
use dunlin_sim::fleet::{Config, FleetError, FleetStats, Provision, ProvisionError, simulate};
use futures::future::BoxFuture;

use crate::broker::{Answer, Broker};

struct Names;

impl Provision for Names {
    fn provision<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<String, ProvisionError>> {
        Box::pin(async move {
            if name.starts_with("bad") {
                Err(ProvisionError("no".into()))
            } else {
                Ok(format!("token of {name}"))
            }
        })
    }
}

fn config(broker: &Broker) -> Config {
    Config {
        target: broker.address.to_string(),
        topic: "v1/telemetry".into(),
        devices: 20,
        name_prefix: "sim".into(),
        messages_per_second: 50.0,
        duration: None,
        seed: 1,
        reconnect_for: Duration::from_secs(20),
    }
}

fn clock() -> Clock {
    Clock::new(|| Timestamp::from_micros(1_700_000_000_000_000))
}

#[tokio::test]
async fn every_device_speaks_with_its_own_token_and_all_is_acknowledged() {
    let broker = Broker::start(|_| Answer::Ack);
    let stats = Arc::new(FleetStats::default());
    let enough = async {
        while stats.figures().acked < 200 {
            tokio::task::yield_now().await;
        }
    };
    let figures = simulate(config(&broker), &Names, clock(), stats.clone(), enough).await.unwrap();
    assert_eq!((figures.provisioned, figures.gave_up, figures.connected), (20, 0, 0));
    assert_eq!(figures.acked, figures.sent);

    let received = broker.received();
    let mut users: Vec<_> = received.iter().map(|message| message.user.as_str()).collect();
    users.sort_unstable();
    users.dedup();
    assert_eq!(users.len(), 20);
    assert_eq!(users[0], "token of sim-00001");
    let first: serde_json::Value = serde_json::from_str(&received[0].payload).unwrap();
    assert_eq!(first["ts"], 1_700_000_000_000_u64);
    assert!(first["values"]["temperature"].is_f64() && first["values"]["battery"].is_f64());
}

#[tokio::test]
async fn a_device_that_cannot_be_provisioned_ends_the_fleet() {
    let broker = Broker::start(|_| Answer::Ack);
    let config = Config { name_prefix: "bad".into(), ..config(&broker) };
    let ended = simulate(config, &Names, clock(), Arc::default(), std::future::pending()).await;
    assert!(matches!(ended, Err(FleetError::Provision { name, .. }) if name == "bad-00001"));
}
