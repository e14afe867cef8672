//! What a tenant's clients may know about the server: retained messages below `$SYS/broker`, as other brokers have them.

use std::time::{Duration, Instant};

use dunlin_broker::Counts;
use dunlin_model::TenantId;

use crate::{account::Accounts, config::PubSubConfig, pubsub::PubSub};

#[derive(Debug)]
pub(crate) struct Statistics {
    accounts: Accounts,
    /// How often they are looked at. What has not changed is not sent again.
    every: Option<Duration>,
    since: Instant,
    shown: Option<Instant>,
}

impl Statistics {
    pub(crate) fn new(accounts: Accounts, config: &PubSubConfig) -> Self {
        let every =
            (config.statistics_seconds > 0).then(|| Duration::from_secs(config.statistics_seconds.into()));
        Self { accounts, every, since: Instant::now(), shown: None }
    }

    /// Sends them to whoever has subscribed, if it is time.
    pub(crate) fn show(&mut self, pubsub: &PubSub) {
        let Some(every) = self.every else { return };
        if self.shown.is_some_and(|shown| shown.elapsed() < every) {
            return;
        }
        self.shown = Some(Instant::now());
        for (name, counts) in pubsub.broker.counts() {
            let Ok(id) = name.parse::<TenantId>() else { continue };
            let tenant = pubsub.broker.tenant(&name);
            for (topic, value) in figures(&counts, self.accounts.of(&id).connections(), self.since.elapsed())
            {
                tenant.announce(&format!("$SYS/broker/{topic}"), &value);
            }
        }
    }
}

fn figures(counts: &Counts, connections: u64, uptime: Duration) -> [(&'static str, String); 9] {
    [
        ("version", format!("dunlin {}", env!("CARGO_PKG_VERSION"))),
        ("uptime", format!("{} seconds", uptime.as_secs())),
        ("clients/connected", connections.to_string()),
        ("sessions/count", counts.sessions.to_string()),
        ("subscriptions/count", counts.subscriptions.to_string()),
        ("retained messages/count", counts.retained.to_string()),
        ("messages/received", counts.published.to_string()),
        ("messages/sent", counts.delivered.to_string()),
        ("publish/messages/dropped", counts.dropped.to_string()),
    ]
}
