use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use dunlin_gateway::{
    Account, Admitted, Certified, ChildAnswer, Company, Config, Denied, Directory, Door, Gateway,
    ListenerConfig, StartError, Tls, TlsConfig,
};
use dunlin_journal::{
    AppendError, Appended, Batch, Entries, Extent, Health, Journal, MemoryJournal, Offset, Partition,
    ReadError, Topic,
};
use dunlin_model::{Clock, DeviceId, DeviceType, Event, Rejected, TenantId, Timestamp, avro::Datum};
use futures::{FutureExt, future::BoxFuture};
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
    sync::watch,
};

pub(crate) const NOW_MILLIS: i64 = 1_700_000_000_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// What the gate before the journal does with appends.
#[derive(Debug, Clone)]
pub(crate) enum Gate {
    Open,
    Closed,
    Failing(AppendError),
}

/// A memory journal whose appends wait until they are let through.
#[derive(Debug)]
pub(crate) struct GatedJournal {
    inner: MemoryJournal,
    gate: watch::Sender<Gate>,
    /// Records that came; no events, which are in no hurry.
    arrived: watch::Sender<usize>,
    appends: AtomicUsize,
    /// Whether the changes of sessions may be read, and so applied.
    followed: watch::Sender<bool>,
}

impl GatedJournal {
    fn new() -> Self {
        Self {
            inner: memory_journal(),
            gate: watch::Sender::new(Gate::Open),
            arrived: watch::Sender::new(0),
            appends: AtomicUsize::new(0),
            followed: watch::Sender::new(true),
        }
    }
}

impl GatedJournal {
    pub(crate) fn open(&self) {
        self.gate.send_replace(Gate::Open);
    }
}

impl Journal for GatedJournal {
    fn partitions(&self, topic: Topic) -> u16 {
        self.inner.partitions(topic)
    }

    fn append(&self, at: Partition, batch: Batch) -> BoxFuture<'static, Result<Appended, AppendError>> {
        let mut gate = self.gate.subscribe();
        if at.topic != Topic::Events {
            self.arrived.send_modify(|n| *n += batch.len() as usize);
        }
        self.appends.fetch_add(1, Relaxed);
        if matches!(*gate.borrow(), Gate::Open) {
            return self.inner.append(at, batch);
        }
        // The order of the calls is the order of the offsets, so what waits keeps its place by being appended now;
        // only the answer is held back.
        let failing = matches!(*gate.borrow(), Gate::Failing(_));
        let appended = (!failing).then(|| self.inner.append(at, batch));
        Box::pin(async move {
            let state =
                gate.wait_for(|g| !matches!(g, Gate::Closed)).await.map(|g| g.clone()).unwrap_or(Gate::Open);
            match (state, appended) {
                (Gate::Failing(error), _) => Err(error),
                (_, Some(appended)) => appended.await,
                (_, None) => Err(AppendError::Closed),
            }
        })
    }

    fn read(
        &self,
        at: Partition,
        from: Offset,
        bytes_max: usize,
    ) -> BoxFuture<'static, Result<Vec<Entries>, ReadError>> {
        let reading = self.inner.read(at, from, bytes_max);
        let mut followed = self.followed.subscribe();
        Box::pin(async move {
            if at.topic == Topic::Sessions {
                let _ended = followed.wait_for(|followed| *followed).await;
            }
            reading.await
        })
    }

    fn extent(&self, at: Partition) -> Extent {
        self.inner.extent(at)
    }

    fn progress(&self) -> watch::Receiver<u64> {
        self.inner.progress()
    }

    fn position(&self, consumer: &str, at: Partition) -> Option<Offset> {
        self.inner.position(consumer, at)
    }

    fn commit(
        &self,
        consumer: &str,
        at: Partition,
        position: Offset,
    ) -> BoxFuture<'static, std::io::Result<()>> {
        self.inner.commit(consumer, at, position)
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        self.inner.close()
    }
}

fn clock() -> Clock {
    Clock::new(|| Timestamp::from_millis(NOW_MILLIS).expect("a time"))
}

fn memory_journal() -> MemoryJournal {
    MemoryJournal::with_clock(3, clock())
}

/// Tokens are device names, with `@TENANT` if it is not the default. `gw…` speaks for children, `off` is disabled, `down` makes the directory fail.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Questions for children.
    asked: Mutex<u32>,
    revoked: Mutex<Vec<String>>,
    failing: AtomicBool,
    /// Answers that are known and not given yet, while somebody holds them back.
    held: watch::Sender<Option<u32>>,
}

impl Names {
    pub(crate) fn asked(&self) -> u32 {
        *self.asked.lock().unwrap()
    }

    /// Whether nobody can tell anything from here on.
    pub(crate) fn fail(&self, failing: bool) {
        self.failing.store(failing, Relaxed);
    }

    /// From here on nobody is admitted by that name.
    pub(crate) fn revoke(&self, name: &str) {
        self.revoked.lock().unwrap().push(name.to_owned());
    }

    fn is_revoked(&self, name: &str) -> bool {
        self.revoked.lock().unwrap().iter().any(|revoked| revoked == name)
    }

    pub(crate) fn hold(&self) {
        self.held.send_replace(Some(0));
    }

    /// Until that many answers are held back.
    pub(crate) async fn holds(&self, count: u32) {
        let mut held = self.held.subscribe();
        tokio::time::timeout(PATIENCE, held.wait_for(|n| *n == Some(count))).await.unwrap().unwrap();
    }

    pub(crate) fn let_go(&self) {
        self.held.send_replace(None);
    }

    async fn held_back(&self) {
        let mut held = self.held.subscribe();
        self.held.send_if_modified(|n| n.as_mut().map(|n| *n += 1).is_some());
        held.wait_for(Option::is_none).await.unwrap();
    }
}

impl Directory for Names {
    fn admit(&self, token: String) -> BoxFuture<'_, Result<Admitted, Denied>> {
        Box::pin(async move {
            let (device, tenant) = token.split_once('@').unwrap_or((&token, "default"));
            let answer = match device {
                "off" => Err(Denied::Disabled),
                "down" => Err(Denied::Unavailable("out for lunch".into())),
                _ if self.failing.load(Relaxed) => Err(Denied::Unavailable("not to be read".into())),
                "unknown" => Err(Denied::UnknownToken),
                _ if self.is_revoked(&token) => Err(Denied::UnknownToken),
                name => Ok(Admitted {
                    tenant: tenant.parse().unwrap(),
                    device: name.parse().map_err(|_| Denied::UnknownToken)?,
                    device_type: DeviceType::default_type(),
                    speaks_for_children: name.starts_with("gw"),
                }),
            };
            self.held_back().await;
            answer
        })
    }

    fn admit_certified(&self, certified: &Certified) -> BoxFuture<'_, Result<Admitted, Denied>> {
        let Certified { tenant, device } = certified.clone();
        let answer = match &*device {
            "off" => Err(Denied::Disabled),
            "down" => Err(Denied::Unavailable("out for lunch".into())),
            "unknown" => Err(Denied::UnknownDevice),
            _ => Ok(Admitted {
                tenant,
                speaks_for_children: device.starts_with("gw"),
                device,
                device_type: DeviceType::default_type(),
            }),
        };
        Box::pin(async move { answer })
    }

    fn children(
        &self,
        _: &Admitted,
        names: Vec<DeviceId>,
    ) -> BoxFuture<'_, Result<Vec<ChildAnswer>, Denied>> {
        *self.asked.lock().unwrap() += 1;
        let answer = |name: DeviceId| match &*name {
            "off" => Err(Denied::Disabled),
            revoked if self.is_revoked(revoked) => Err(Denied::Disabled),
            "stranger" => Err(Denied::NotAChild),
            "beyond" => Err(Denied::TooManyChildren { children_max: 3 }),
            _ => Ok((name, "child".parse().unwrap())),
        };
        let answers = match self.failing.load(Relaxed) {
            true => Err(Denied::Unavailable("not to be read".into())),
            false => Ok(names.into_iter().map(answer).collect()),
        };
        Box::pin(async move { answers })
    }
}

pub(crate) struct Lab {
    pub(crate) gateway: Gateway,
    pub(crate) journal: Arc<GatedJournal>,
    pub(crate) directory: Arc<Names>,
    pub(crate) http: SocketAddr,
    pub(crate) registry: Registry,
    pub(crate) tls: Option<Tls>,
    pub(crate) sessions: tempfile::TempDir,
}

impl Lab {
    pub(crate) async fn start() -> Self {
        Self::with(Config { workers: 2, ..Config::default() }).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        Self::timed(config, clock()).await
    }

    pub(crate) async fn timed(config: Config, clock: Clock) -> Self {
        let sessions = tempfile::tempdir().unwrap();
        Self::on(config, None, clock, Arc::new(GatedJournal::new()), sessions).await.unwrap()
    }

    /// With doors that need certificates.
    pub(crate) async fn with_tls(config: Config, tls: TlsConfig, clock: Clock) -> Self {
        let sessions = tempfile::tempdir().unwrap();
        let tls = Tls::load(tls, clock.clone()).unwrap();
        Self::on(config, Some(tls), clock, Arc::new(GatedJournal::new()), sessions).await.unwrap()
    }

    /// With doors that may need certificates, and none at hand.
    pub(crate) async fn without_certificate(
        config: Config,
        sessions: tempfile::TempDir,
    ) -> Result<Self, StartError> {
        Self::on(config, None, clock(), Arc::new(GatedJournal::new()), sessions).await
    }

    /// A gateway on the journal and nothing else, as after a crash of this one, which knows nothing of it. What this
    /// one does from here on must not matter: its connections are to be kept until the test is over.
    pub(crate) async fn crashed(&self) -> Self {
        self.crashed_with(tempfile::tempdir().unwrap()).await.unwrap()
    }

    pub(crate) async fn crashed_with(&self, sessions: tempfile::TempDir) -> Result<Self, StartError> {
        let config = Config { workers: 2, ..Config::default() };
        Self::on(config, None, clock(), self.journal.clone(), sessions).await
    }

    async fn on(
        config: Config,
        tls: Option<Tls>,
        clock: Clock,
        journal: Arc<GatedJournal>,
        sessions: tempfile::TempDir,
    ) -> Result<Self, StartError> {
        let mut configs = vec![ListenerConfig::plain("127.0.0.1:0")];
        configs.extend(config.listener.clone());
        let doors = configs.into_iter().map(|config| {
            let socket = std::net::TcpListener::bind(&config.address).unwrap();
            Door { socket, config }
        });
        let doors = doors.collect();
        let mut registry = Registry::default();
        let directory = Arc::new(Names::default());
        let gateway = Gateway::start(
            config,
            doors,
            tls.as_ref(),
            journal.clone(),
            directory.clone(),
            clock,
            sessions.path().into(),
            &Company::Alone,
            &mut registry,
        )?;
        journal.arrived.send_modify(|n| *n -= 1); // Its own word that it is there.
        let door = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = door.local_addr().unwrap();
        let routes = gateway.http_routes();
        tokio::spawn(async move { axum::serve(door, routes).await });
        Ok(Self { gateway, journal, directory, http, registry, tls, sessions })
    }

    /// A panic costs its own connection; the metrics tell on it.
    pub(crate) fn never_panicked(&self) {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let told: Vec<&str> = text.lines().filter(|line| line.contains("panicked")).collect();
        assert!(told.is_empty(), "{told:?}");
    }

    /// What the metrics say of one series.
    pub(crate) fn metric(&self, series: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// MQTT, decoded and not yet durable.
    pub(crate) fn inflight_bytes(&self) -> usize {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix("dunlin_gateway_inflight_bytes "));
        value.unwrap().parse().unwrap()
    }

    pub(crate) fn gate(&self, gate: Gate) {
        self.journal.gate.send_replace(gate);
    }

    /// Whether what is in the log of the sessions is applied from here on.
    pub(crate) fn follow(&self, follow: bool) {
        self.journal.followed.send_replace(follow);
    }

    /// Until that many records have come to the journal, events aside.
    pub(crate) async fn arrivals(&self, count: usize) {
        let mut arrived = self.journal.arrived.subscribe();
        tokio::time::timeout(PATIENCE, arrived.wait_for(|n| *n >= count)).await.unwrap().unwrap();
    }

    pub(crate) fn arrived(&self) -> usize {
        *self.journal.arrived.borrow()
    }

    pub(crate) fn append_count(&self) -> usize {
        self.journal.appends.load(Relaxed)
    }

    pub(crate) async fn raw(&self, topic: Topic) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for index in 0..self.journal.partitions(topic) {
            let at = Partition::new(topic, index);
            let mut from = Offset::ZERO;
            while from < self.journal.extent(at).next {
                for entries in self.journal.read(at, from, 1 << 20).await.unwrap() {
                    all.extend(entries.iter().map(|e| e.bytes.to_vec()));
                    from = entries.next();
                }
            }
        }
        all
    }

    /// `device: metric=value,...` of every record.
    pub(crate) async fn telemetry(&self) -> Vec<String> {
        let records = self.raw(Topic::Telemetry).await;
        records
            .iter()
            .map(|bytes| {
                let record = dunlin_model::avro::decode(bytes).unwrap();
                let readings: Vec<String> =
                    record.readings.iter().map(|r| format!("{}={:?}", r.metric, r.value)).collect();
                format!("{}/{}: {}", record.device_type, record.device, readings.join(","))
            })
            .collect()
    }

    pub(crate) async fn rejected(&self) -> Vec<Rejected> {
        self.raw(Topic::Rejected).await.iter().map(|bytes| Rejected::decode(bytes).unwrap()).collect()
    }

    pub(crate) async fn events(&self) -> Vec<Event> {
        self.raw(Topic::Events).await.iter().map(|bytes| Event::decode(bytes).unwrap()).collect()
    }

    /// The events, once there are that many.
    pub(crate) async fn events_up_to(&self, count: usize) -> Vec<Event> {
        let all = async {
            loop {
                let events = self.events().await;
                if events.len() >= count {
                    return events;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, all).await.unwrap()
    }

    pub(crate) fn account(&self) -> Account {
        self.gateway.accounts().snapshot().remove(&TenantId::default_tenant()).unwrap_or_default()
    }

    pub(crate) async fn client(&self) -> Client {
        let stream = TcpStream::connect(self.gateway.mqtt_addresses()[0]).await.unwrap();
        stream.set_nodelay(true).unwrap(); // What is sent has arrived.
        Client::over(stream)
    }

    /// A client at another address of this machine.
    pub(crate) async fn client_at(&self, address: &str) -> Client {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
        let stream = socket.connect(self.gateway.mqtt_addresses()[0]).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client::over(stream)
    }

    pub(crate) async fn connected(&self, version: u8, token: &str) -> Client {
        let mut client = self.client().await;
        client.send(&connect(version, token, token)).await;
        let ack = client.packet().await.expect("CONNACK");
        assert_eq!((ack[0], connack_code(&ack)), (0x20, 0), "{ack:02x?}");
        client
    }

    pub(crate) async fn http_connection(&self) -> TcpStream {
        TcpStream::connect(self.http).await.unwrap()
    }

    pub(crate) async fn http(&self, head: &str, body: &[u8]) -> (u16, String) {
        let mut stream = self.http_connection().await;
        let head = head.replace('\n', "\r\n");
        let request =
            format!("{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }
}

/// Whatever carries bytes.
pub(crate) trait Pipe: AsyncRead + AsyncWrite + Send + Unpin {}

impl<P: AsyncRead + AsyncWrite + Send + Unpin> Pipe for P {}

/// A client that speaks in bytes.
pub(crate) struct Client(Box<dyn Pipe>);

impl Client {
    pub(crate) fn over(pipe: impl Pipe + 'static) -> Self {
        Self(Box::new(pipe))
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Sends even if the other side has closed.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) {
        let _closed = self.0.write_all(bytes).await;
    }

    /// To read and write at the same time.
    pub(crate) fn split(self) -> (Reader, Writer) {
        let (reader, writer) = tokio::io::split(self.0);
        (Reader(reader), Writer(writer))
    }

    /// Whether the server has closed, having said nothing.
    pub(crate) fn is_over(&mut self) -> bool {
        self.0
            .read(&mut [0; 1])
            .now_or_never()
            .is_some_and(|read| read.is_err() || read.is_ok_and(|bytes| bytes == 0))
    }

    /// The next packet, whole; `None` when the server has closed.
    pub(crate) async fn packet(&mut self) -> Option<Vec<u8>> {
        tokio::time::timeout(PATIENCE, self.read_packet()).await.expect("a packet or the end")
    }

    async fn read_packet(&mut self) -> Option<Vec<u8>> {
        let mut packet = vec![self.0.read_u8().await.ok()?];
        let (mut length, mut shift) = (0, 0);
        loop {
            let byte = self.0.read_u8().await.ok()?;
            packet.push(byte);
            length |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let start = packet.len();
        packet.resize(start + length, 0);
        self.0.read_exact(&mut packet[start..]).await.ok()?;
        Some(packet)
    }

    /// All that the server still says.
    pub(crate) async fn read_to_end(&mut self, said: &mut Vec<u8>) -> std::io::Result<usize> {
        tokio::time::timeout(PATIENCE, self.0.read_to_end(said)).await.expect("an end")
    }

    /// Whether the server closes, whatever it says before.
    pub(crate) async fn ends(&mut self) -> bool {
        while self.packet().await.is_some() {}
        true
    }

    pub(crate) async fn is_closed(&mut self) -> bool {
        self.packet().await.is_none()
    }

    /// Whether the connection lives: an answer to a ping, and nothing before it.
    pub(crate) async fn pings(&mut self) -> bool {
        self.send(&[0xC0, 0]).await;
        self.packet().await.as_deref() == Some(&[0xD0, 0])
    }
}

/// What comes to a client.
pub(crate) struct Reader(ReadHalf<Box<dyn Pipe>>);

impl Reader {
    /// Whether anything more came.
    pub(crate) async fn takes_some(&mut self) -> bool {
        let reading = tokio::time::timeout(PATIENCE, self.0.read(&mut [0; 4096])).await;
        matches!(reading.expect("something or the end"), Ok(1..))
    }
}

/// What a client says.
pub(crate) struct Writer(WriteHalf<Box<dyn Pipe>>);

impl Writer {
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) {
        let _closed = self.0.write_all(bytes).await;
    }

    pub(crate) async fn says_no_more(&mut self) {
        let _closed = self.0.shutdown().await;
    }
}

pub(crate) fn connack_code(packet: &[u8]) -> u8 {
    packet[3]
}

pub(crate) fn text(s: &str) -> Vec<u8> {
    let mut out = (s.len() as u16).to_be_bytes().to_vec();
    out.extend_from_slice(s.as_bytes());
    out
}

pub(crate) fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    let mut length = body.len();
    loop {
        let byte = (length % 128) as u8;
        length /= 128;
        out.push(byte | if length > 0 { 0x80 } else { 0 });
        if length == 0 {
            break;
        }
    }
    out.extend_from_slice(body);
    out
}

pub(crate) fn connect(version: u8, client_id: &str, token: &str) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend_from_slice(&[version, if token.is_empty() { 0x02 } else { 0x82 }, 0, 60]);
    if version == 5 {
        body.push(0);
    }
    body.extend(text(client_id));
    if !token.is_empty() {
        body.extend(text(token));
    }
    frame(0x10, &body)
}

pub(crate) fn publish(version: u8, qos: u8, id: u16, topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut body = text(topic);
    if qos > 0 {
        body.extend_from_slice(&id.to_be_bytes());
    }
    if version == 5 {
        body.push(0);
    }
    body.extend_from_slice(payload);
    frame(0x30 | qos << 1, &body)
}
