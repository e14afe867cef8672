use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
};

use dunlin_broker::Counts;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{account::Accounts, arrivals::Arrivals, pubsub::PubSub};

/// What the gateway counts for operators; the records themselves are counted by `Accounts`.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) connections: Gauge,
    pub(crate) connects: Family<Outcome, Counter>,
    pub(crate) disconnects: Family<Reason, Counter>,
    pub(crate) append_seconds: Histogram,
    pub(crate) inflight_bytes: Gauge<i64>,
    pub(crate) http_requests: Family<Status, Counter>,
    pub(crate) payload_bytes: Counter<u64, AtomicU64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Outcome {
    pub(crate) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Reason {
    pub(crate) reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Status {
    pub(crate) status: u16,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry, accounts: &Accounts, pubsub: Arc<PubSub>) -> Self {
        let metrics = Self {
            connections: Gauge::default(),
            connects: Family::default(),
            disconnects: Family::default(),
            append_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            inflight_bytes: Gauge::default(),
            http_requests: Family::default(),
            payload_bytes: Counter::default(),
        };
        registry.register(
            "dunlin_gateway_connections",
            "MQTT connections that are open",
            metrics.connections.clone(),
        );
        registry.register("dunlin_gateway_connects", "MQTT connects by outcome", metrics.connects.clone());
        registry.register(
            "dunlin_gateway_disconnects",
            "MQTT connections that ended, by reason",
            metrics.disconnects.clone(),
        );
        registry.register(
            "dunlin_gateway_append_seconds",
            "From handing a batch to the journal until it is durable",
            metrics.append_seconds.clone(),
        );
        registry.register(
            "dunlin_gateway_inflight_bytes",
            "Bytes decoded and not yet durable, MQTT",
            metrics.inflight_bytes.clone(),
        );
        registry.register(
            "dunlin_gateway_http_requests",
            "HTTP requests by status",
            metrics.http_requests.clone(),
        );
        registry.register(
            "dunlin_gateway_encoded_bytes",
            "Bytes of records handed to the journal",
            metrics.payload_bytes.clone(),
        );
        registry.register_collector(Box::new(AccountsCollector(accounts.clone())));
        registry.register_collector(Box::new(PubSubCollector(pubsub)));
        metrics
    }

    pub(crate) fn connect(&self, outcome: &'static str) {
        self.connects.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn disconnect(&self, reason: &'static str) {
        self.disconnects.get_or_create(&Reason { reason }).inc();
    }
}

/// Shows the accounts when they are asked for, so that nothing is counted twice.
#[derive(Debug)]
struct AccountsCollector(Accounts);

impl Collector for AccountsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let accounts = self.0.snapshot();
        let mut family = encoder.encode_descriptor(
            "dunlin_gateway_records",
            "Records by what became of them",
            None,
            MetricType::Counter,
        )?;
        for (tenant, account) in &accounts {
            let ends = [
                ("received", "", account.received),
                ("accepted", "", account.accepted),
                ("event", "", account.events),
                ("failed", "", account.failed),
            ];
            let rejected = account.rejected.iter().map(|(reason, n)| ("rejected", reason.as_str(), *n));
            for (outcome, reason, records) in ends.into_iter().chain(rejected) {
                let labels = [("tenant", tenant.as_str()), ("outcome", outcome), ("reason", reason)];
                ConstCounter::new(records).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Shows what publish and subscribe holds, by tenant.
#[derive(Debug)]
struct PubSubCollector(Arc<PubSub>);

impl Collector for PubSubCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let gateways = ConstGauge::new(self.0.broker.gateways(0).len() as i64);
        let help = "Gateways that share the journal, as this one knows them";
        let shared = encoder.encode_descriptor("dunlin_gateways", help, None, gateways.metric_type())?;
        gateways.encode(shared)?;
        let knows_all = ConstGauge::new(i64::from(self.0.knows_all()));
        let help = "Whether the others have heard of this gateway lately, so that it goes by what it knows";
        let heard = encoder.encode_descriptor("dunlin_gateway_heard", help, None, knows_all.metric_type())?;
        knows_all.encode(heard)?;
        let tenants = self.0.broker.counts();
        type Of = fn(&Counts) -> u64;
        let gauges: [(&str, &str, Of); 4] = [
            ("dunlin_mqtt_sessions", "Sessions that outlive their connections", |c| c.sessions as u64),
            ("dunlin_mqtt_subscriptions", "Subscriptions of all sessions", |c| c.subscriptions as u64),
            ("dunlin_mqtt_retained_messages", "Retained messages", |c| c.retained as u64),
            ("dunlin_commands_waiting", "Commands that their devices have not taken", |c| c.commands as u64),
        ];
        for (name, help, of) in gauges {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (tenant, counts) in &tenants {
                let labels = [("tenant", tenant.as_str())];
                ConstGauge::new(of(counts) as i64).encode(family.encode_family(&labels)?)?;
            }
        }
        let counters: [(&str, &str, Of); 3] = [
            ("dunlin_mqtt_messages_published", "Messages to topics of publish and subscribe", |c| {
                c.published
            }),
            ("dunlin_mqtt_messages_delivered", "Copies put into queues of clients", |c| c.delivered),
            ("dunlin_mqtt_messages_dropped", "Copies that found no room in a queue", |c| c.dropped),
        ];
        for (name, help, of) in counters {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (tenant, counts) in &tenants {
                let labels = [("tenant", tenant.as_str())];
                ConstCounter::new(of(counts)).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// What every part of the gateway shares.
#[derive(Debug, Clone)]
pub(crate) struct Books {
    pub(crate) accounts: Accounts,
    pub(crate) arrivals: Arrivals,
    pub(crate) metrics: Arc<Metrics>,
}
