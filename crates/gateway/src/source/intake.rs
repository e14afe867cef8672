//! Messages to records, records to the journal, and the acknowledgements back, in the order in which the messages came.

use std::sync::Arc;

use bumpalo::Bump;
use dunlin_journal::{AppendError, Topic};
use dunlin_model::{DeviceId, DeviceType, RejectReason, Timestamp};
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, join_all},
    stream::FuturesOrdered,
};
use hashbrown::{HashMap, HashSet};
use rumqttc::v5::mqttbytes::{QoS, v5::Publish};
use tokio::sync::watch;

use super::{Interruption, SourceConfig, asked, link::Link, mapping::Mapping, metrics::OfSource};
use crate::{
    account::{Class, TenantAccount},
    decode::Fault,
    directory::{Admitted, Denied},
    part::Part,
    record::{self, Arrival, Delivery, Origin, Refused, append_telemetry},
    worker::Shared,
};

/// Rounds that wait for the journal: one that is being written, one that comes next. More messages gather meanwhile.
const ROUNDS_MAX: usize = 2;

/// Where the messages of one connection go.
pub(super) struct Intake<'a> {
    shared: &'a Arc<Shared>,
    config: &'a SourceConfig,
    mapping: &'a Mapping,
    metrics: &'a OfSource,
    who: Admitted,
    account: Arc<TenantAccount>,
    /// Devices by topic.
    known: HashMap<Box<str>, Child>,
    /// What the tenant had of them when the children were asked for.
    revocations: u64,
}

type Child = (DeviceId, DeviceType);
/// Messages whose records are with the journal; they are given back to be acknowledged.
type Round = BoxFuture<'static, Result<Vec<Publish>, AppendError>>;

impl<'a> Intake<'a> {
    pub(super) fn new(
        shared: &'a Arc<Shared>,
        config: &'a SourceConfig,
        mapping: &'a Mapping,
        metrics: &'a OfSource,
        who: Admitted,
    ) -> Self {
        let account = shared.books.accounts.of(&who.tenant);
        let revocations = account.revocations();
        Self { shared, config, mapping, metrics, who, account, known: HashMap::new(), revocations }
    }

    /// Until it is stopped; then all that was taken is acknowledged, or left to the broker if the journal fails.
    pub(super) async fn run(
        mut self,
        link: &mut Link,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), Interruption> {
        let mut rounds = FuturesOrdered::<Round>::new();
        let mut taken = Vec::new();
        let mut ended = None;
        while ended.is_none() {
            tokio::select! {
                biased;
                Some(round) = rounds.next() => match round {
                    Ok(round) => self.acknowledge(link, round).await,
                    Err(error) => ended = Some(Err(error.into())),
                },
                () = asked(stop) => ended = Some(Ok(())),
                received = link.receive(&mut taken), if rounds.len() < ROUNDS_MAX => {
                    let begun = match received {
                        Ok(()) => self.begin(std::mem::take(&mut taken)).await,
                        Err(why) => Err(why),
                    };
                    match begun {
                        Ok(round) => rounds.push_back(round),
                        Err(why) => ended = Some(Err(why)),
                    }
                }
            }
        }
        // The accounts are to know what became of all. In order: what follows a failure is not acknowledged.
        let mut ended = ended.unwrap_or(Ok(()));
        while let Some(round) = rounds.next().await {
            match round {
                Ok(round) if ended.is_ok() => self.acknowledge(link, round).await,
                Ok(_) => {}
                Err(error) => ended = ended.and(Err(error.into())),
            }
        }
        ended
    }

    async fn acknowledge(&self, link: &Link, round: Vec<Publish>) {
        self.metrics.unacknowledged.dec_by(round.len() as i64);
        self.metrics.acknowledged.inc_by(round.len() as u64);
        for publish in &round {
            link.acknowledge(publish).await;
        }
    }

    /// Hands the records of these messages to the journal.
    async fn begin(&mut self, publishes: Vec<Publish>) -> Result<Round, Interruption> {
        self.metrics.unacknowledged.inc_by(publishes.len() as i64);
        let refused = self.know_devices_of(&publishes).await?;
        let received_at = self.shared.clock.now();
        let arriving = self.shared.books.arrivals.begin(received_at);
        let mut parts = Vec::new();
        let mut arena = Bump::new();
        for publish in &publishes {
            match self.add(publish, &refused, received_at, &arena, &mut parts) {
                Ok(()) => self.metrics.accepted.inc(),
                Err(fault) => {
                    self.reject(publish, &fault, received_at, &mut parts);
                    self.metrics.rejected.inc()
                }
            };
            arena.reset();
        }
        let appends: Vec<_> =
            parts.into_iter().map(|part| part.append(&*self.shared.journal, &self.account)).collect();
        let round = async move {
            let outcomes = join_all(appends).await;
            drop(arriving);
            outcomes.into_iter().collect::<Result<Vec<()>, _>>().map(|_| publishes)
        };
        Ok(round.boxed())
    }

    /// Asks once for all devices that are not known yet; returns those that are refused, by topic.
    async fn know_devices_of(
        &mut self,
        publishes: &[Publish],
    ) -> Result<HashMap<Box<str>, Fault>, Interruption> {
        let revocations = self.account.revocations();
        if revocations != self.revocations {
            (self.revocations, self.known) = (revocations, HashMap::new()); // One of them may be disabled by now.
        }
        if self.known.len() + publishes.len() > self.config.topics_remembered_max {
            self.known.clear(); // They are asked for again.
        }
        let mut refused = HashMap::new();
        let mut wanted = Vec::<(Box<str>, DeviceId)>::new();
        let mut seen = HashSet::new();
        for publish in publishes {
            let topic = topic_of(publish);
            if self.known.contains_key(topic) || !seen.insert(topic) {
                continue;
            }
            match self.name_by(topic) {
                Ok(name) => wanted.push((topic.into(), name)),
                Err(fault) => _ = refused.insert(topic.into(), fault),
            }
        }
        if wanted.is_empty() {
            return Ok(refused);
        }
        let mut names: Vec<DeviceId> = wanted.iter().map(|(_, name)| name.clone()).collect();
        names.sort_unstable();
        names.dedup();
        let answers = self.shared.directory.children(&self.who, names.clone()).await;
        let answers = answers.map_err(|denied| match denied {
            Denied::Unavailable(reason) => Interruption::Directory(reason),
            denied => Interruption::NotAdmitted {
                tenant: self.who.tenant.to_string(),
                device: self.who.device.to_string(),
                denied,
            },
        })?;
        let answers: HashMap<DeviceId, _> = names.into_iter().zip(answers).collect();
        for (topic, name) in wanted {
            match answers.get(&name) {
                Some(Ok(child)) => _ = self.known.insert(topic, child.clone()),
                Some(Err(Denied::Unavailable(reason))) => {
                    return Err(Interruption::Directory(reason.clone()));
                }
                Some(Err(denied)) => _ = refused.insert(topic, not_a_child(&name, denied)),
                None => return Err(Interruption::Directory(format!("no answer for {name}"))),
            }
        }
        Ok(refused)
    }

    fn name_by(&self, topic: &str) -> Result<DeviceId, Fault> {
        let unknown = |what: String| Fault::new(RejectReason::UnknownTopic, "topic", what);
        let name = self.mapping.device(topic).ok_or_else(|| unknown("none of the source's topics".into()))?;
        name.parse().map_err(|error| unknown(format!("names the device {name:?}: {error}")))
    }

    /// Adds the records of a message, all or none.
    fn add(
        &self,
        publish: &Publish,
        refused: &HashMap<Box<str>, Fault>,
        received_at: Timestamp,
        arena: &Bump,
        parts: &mut Vec<Part>,
    ) -> Result<(), Fault> {
        let topic = topic_of(publish);
        if let Some(fault) = refused.get(topic) {
            return Err(fault.clone());
        }
        let max = self.shared.config.message_bytes_max;
        if publish.payload.len() > max {
            let what = format!("a message has at most {max} bytes, this one has {}", publish.payload.len());
            return Err(Fault::new(RejectReason::TooLarge, "", what));
        }
        let (device, device_type) = self.known.get(topic).ok_or_else(|| self.forgotten(topic))?;
        let origin = Origin { tenant: &self.who.tenant, device, device_type };
        let delivery = match publish.qos {
            QoS::AtMostOnce => Delivery::Plain,
            _ => Delivery::Packet { packet_id: publish.pkid, duplicate: publish.dup },
        };
        let arrival = Arrival { received_at, policy: &self.shared.config.time };
        let new = self.part(Topic::Telemetry, device, Class::Telemetry);
        let part = Part::among(parts, new);
        append_telemetry(&publish.payload, origin, delivery, arrival, arena, &mut part.batch)?;
        Ok(())
    }

    /// A topic that was asked for is known or refused.
    fn forgotten(&self, topic: &str) -> Fault {
        Fault::new(RejectReason::UnknownTopic, "topic", format_args!("{topic:?} is no device's"))
    }

    /// Keeps the original bytes with the reason. A broker cannot be told: the message is acknowledged.
    fn reject(&self, publish: &Publish, fault: &Fault, received_at: Timestamp, parts: &mut Vec<Part>) {
        let topic = topic_of(publish);
        let device = self.known.get(topic).map_or(&self.who.device, |(device, _)| device);
        let origin = Origin { tenant: &self.who.tenant, device, device_type: "" };
        let shown: String = topic.chars().take(TOPIC_CHARS_SHOWN).collect();
        let refused = Refused {
            reason: fault.reason,
            detail: &fault.detail,
            source: &format!("source:{}:{shown}", self.config.name),
            payload: &publish.payload,
        };
        let record = record::rejected(origin, refused, received_at);
        let new = self.part(Topic::Rejected, device, Class::Rejected(fault.reason));
        Part::among(parts, new).batch.push(&record);
    }

    fn part(&self, topic: Topic, device: &str, class: Class) -> Part {
        Part::new(&*self.shared.journal, topic, &self.who.tenant, device, class)
    }
}

const TOPIC_CHARS_SHOWN: usize = 256;

/// What is no UTF-8 is no topic; the broker should have seen that.
fn topic_of(publish: &Publish) -> &str {
    std::str::from_utf8(&publish.topic).unwrap_or_default()
}

fn not_a_child(name: &DeviceId, denied: &Denied) -> Fault {
    let reason = match denied {
        Denied::TooManyChildren { .. } => RejectReason::QuotaExceeded,
        _ => RejectReason::NotAuthorized,
    };
    Fault::new(reason, "device", format_args!("{name}: {denied}"))
}
