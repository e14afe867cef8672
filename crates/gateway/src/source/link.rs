//! One connection to a broker. What goes wrong with it ends it; the next one is another.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use rumqttc::{
    NetworkOptions, Outgoing, TlsConfiguration, Transport,
    v5::{
        AsyncClient, ConnectionError, Event, EventLoop, MqttOptions, StateError,
        mqttbytes::{
            QoS,
            v5::{
                ConnAck, ConnectProperties, DisconnectReasonCode, Filter, Packet, Publish, SubAck,
                SubscribeReasonCode,
            },
        },
    },
};
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    task::{JoinHandle, spawn_blocking},
};

use super::{Interruption, SourceConfig, mapping::Mapping, metrics::OfSource};

/// What the broker is told that a packet may have; it drops what is larger. Messages above what Dunlin takes and below
/// this are rejected with their reason.
const PACKET_BYTES_MAX: u32 = 16 << 20;
/// Bytes that have come and are not taken, beyond which nothing more is read.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// There is always room for another acknowledgement, so that neither side of the connection waits for the other: there are
/// so many packet ids, and a broker may send more than it was told to. Beside them, to subscribe and to leave.
const REQUESTS_MAX: usize = u16::MAX as usize + 8;

pub(super) struct Link {
    client: AsyncClient,
    publishes: mpsc::UnboundedReceiver<Publish>,
    line: Arc<Line>,
    /// `None` once its answer is taken.
    reader: Option<JoinHandle<Interruption>>,
}

impl Link {
    /// Connects and subscribes by and by; what goes wrong with that is told when something is to be received.
    pub(super) async fn open(
        config: &SourceConfig,
        mapping: &Mapping,
        had_session: &Arc<AtomicBool>,
        metrics: &OfSource,
    ) -> Result<Self, Interruption> {
        let said = config.clone();
        let options = spawn_blocking(move || options(&said)).await;
        let options = options.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let (client, events) = AsyncClient::new(options, REQUESTS_MAX);
        let share =
            |filter: String| Filter::new(format!("$share/{}/{filter}", config.group), QoS::AtLeastOnce);
        let filters: Vec<Filter> = mapping.filters().map(share).collect();
        // Waits in a queue that has room until there is a connection.
        let _there_is = client.subscribe_many(filters).await;
        let (to, publishes) = mpsc::unbounded_channel();
        let line = Arc::new(Line {
            window: Semaphore::new(config.inflight_max.into()),
            bytes: AtomicUsize::new(0),
            taken: Notify::new(),
        });
        let reader = Reader {
            name: config.name.clone(),
            client_id: config.client_id(),
            had_session: had_session.clone(),
            metrics: metrics.clone(),
            line: line.clone(),
            to,
        };
        let ending = line.clone();
        let reader = tokio::spawn(async move {
            let why = reader.run(events).await;
            ending.window.close();
            why
        });
        Ok(Self { client, publishes, line, reader: Some(reader) })
    }

    /// Adds what has come, at least one message. Gives up nothing when it is dropped.
    pub(super) async fn receive(&mut self, into: &mut Vec<Publish>) -> Result<(), Interruption> {
        // An error means that the connection is gone; what came by it comes again.
        if let Ok(room) = self.line.window.acquire().await {
            let max = self.line.window.available_permits() + 1;
            let received = self.publishes.recv_many(into, max).await;
            drop(room);
            if received > 0 {
                self.line.took(into);
                return Ok(());
            }
        }
        // It ends after it has said why, and is asked once.
        match self.reader.as_mut() {
            Some(reader) => {
                let why = reader.await;
                self.reader = None;
                Err(why.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic())))
            }
            None => std::future::pending().await,
        }
    }

    pub(super) async fn acknowledge(&self, publish: &Publish) {
        // An error means that the connection is gone, which its reader says.
        let _gone = self.client.ack(publish).await;
    }

    /// Leaves in an orderly way: what is to be acknowledged goes out first. The session stays with the broker.
    pub(super) async fn close(mut self, patience: Duration) {
        let _gone = self.client.disconnect().await;
        let Some(mut reader) = self.reader.take() else { return };
        // The reader must not wait for a taker of what still comes; the broker keeps it.
        let leaving = async {
            while let Some(publish) = self.publishes.recv().await {
                self.line.took(&[publish]);
            }
            let _why = (&mut reader).await;
        };
        if tokio::time::timeout(patience, leaving).await.is_err() {
            tracing::warn!("a broker was left without a goodbye");
        }
        reader.abort();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(reader) = &self.reader {
            reader.abort();
        }
    }
}

/// Reads the files that the configuration names.
fn options(config: &SourceConfig) -> Result<MqttOptions, Interruption> {
    let (host, port) = config.host_and_port().unwrap_or(("", 0)); // Checked at the start.
    let mut options = MqttOptions::new(config.client_id(), host, port);
    options.set_clean_start(false).set_manual_acks(true);
    options.set_keep_alive(Duration::from_secs(config.keepalive_seconds.into()));
    options.set_connection_timeout(config.connect_seconds_max);
    let mut properties = ConnectProperties::new();
    properties.session_expiry_interval = Some(config.session_expiry_seconds);
    properties.receive_maximum = Some(config.inflight_max);
    properties.max_packet_size = Some(PACKET_BYTES_MAX);
    options.set_connect_properties(properties);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(config.connect_seconds_max);
    options.set_network_options(network);
    if let Some(username) = &config.username {
        options.set_credentials(username, config.password()?.unwrap_or_default());
    }
    if config.tls.enabled {
        let tls = TlsConfiguration::Rustls(config.tls.client_config()?);
        options.set_transport(Transport::tls_with_config(tls));
    }
    Ok(options)
}

/// Reads a connection until it ends.
struct Reader {
    name: String,
    client_id: String,
    /// Whether the broker has had a session of this source before.
    had_session: Arc<AtomicBool>,
    metrics: OfSource,
    line: Arc<Line>,
    to: mpsc::UnboundedSender<Publish>,
}

/// What has come by a connection and is not taken yet, and what is taken and not acknowledged.
///
/// A broker that resumes a session may send more than it was told to, and all that it does not know to be acknowledged comes
/// again. So no more is taken than can be recognised then, and acknowledgements, which go out where messages are read, come before
/// the bound of what waits.
struct Line {
    /// How many more may be taken before an acknowledgement has gone out.
    window: Semaphore,
    bytes: AtomicUsize,
    taken: Notify,
}

impl Line {
    fn came(&self, publish: &Publish) {
        self.bytes.fetch_add(publish.payload.len(), Relaxed);
    }

    fn took(&self, publishes: &[Publish]) {
        let to_acknowledge = publishes.iter().filter(|publish| publish.qos != QoS::AtMostOnce).count();
        self.window.forget_permits(to_acknowledge);
        self.bytes.fetch_sub(publishes.iter().map(|publish| publish.payload.len()).sum(), Relaxed);
        self.taken.notify_one();
    }

    /// Until more may be read.
    async fn room(&self) {
        while self.bytes.load(Relaxed) > WAITING_BYTES_MAX && self.window.available_permits() > 0 {
            self.taken.notified().await;
        }
    }
}

impl Reader {
    /// What waited in the session comes before the broker has answered the subscription.
    async fn run(self, mut events: EventLoop) -> Interruption {
        loop {
            match events.poll().await {
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    self.line.came(&publish);
                    if self.to.send(publish).is_err() {
                        return self.interruption(ConnectionError::RequestsDone);
                    }
                    self.line.room().await;
                }
                Ok(Event::Incoming(Packet::ConnAck(answer))) => self.connected(&answer),
                Ok(Event::Incoming(Packet::SubAck(answer))) => {
                    if let Err(why) = self.subscribed(&answer) {
                        return why;
                    }
                }
                Ok(Event::Outgoing(Outgoing::PubAck(_))) => self.line.window.add_permits(1),
                Ok(Event::Outgoing(Outgoing::Disconnect)) => {
                    return self.interruption(ConnectionError::RequestsDone);
                }
                Ok(_) => {}
                Err(why) => return self.interruption(why),
            }
        }
    }

    fn connected(&self, answer: &ConnAck) {
        if self.had_session.swap(true, Relaxed) && !answer.session_present {
            self.metrics.sessions_lost.inc();
            tracing::error!(
                source = self.name,
                "the broker has forgotten the session, and what waited in it"
            );
        }
    }

    fn subscribed(&self, answer: &SubAck) -> Result<(), Interruption> {
        use SubscribeReasonCode::Success;
        for code in &answer.return_codes {
            match code {
                Success(QoS::AtLeastOnce | QoS::ExactlyOnce) => {}
                Success(QoS::AtMostOnce) => {
                    return Err(Interruption::Subscription("it grants no acknowledgements (QoS 0)".into()));
                }
                code => return Err(Interruption::Subscription(format!("{code:?}"))),
            }
        }
        self.metrics.connected.set(1);
        tracing::info!(source = self.name, "the broker has the subscription");
        Ok(())
    }

    fn interruption(&self, why: ConnectionError) -> Interruption {
        match why {
            ConnectionError::MqttState(StateError::ServerDisconnect {
                reason_code: DisconnectReasonCode::SessionTakenOver,
                ..
            }) => Interruption::TakenOver { client_id: self.client_id.clone() },
            why => Interruption::Broker(Box::new(why)),
        }
    }
}
