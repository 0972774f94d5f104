//! A hub of a test, and nodes that speak to it over MQTT as any agent does.

use std::{collections::BTreeMap, net::SocketAddr, ops::ControlFlow, sync::Arc, time::Duration};

use fleet_broker::{Broker, Credentials, Directory, Grants, Identity, Refusal, Verdict};
use fleet_manager::{
    alerts::{self, Alerts},
    api, artifact,
    clock::{self, HubClock},
    consume::{Consumer, FeedItem},
    core::{
        identity::{Change, Operator, Role},
        registry::Intent,
    },
    hub::{self, Hub, Running},
    metrics::{self, Exporter},
    mirror::{self, Mirror},
    notify,
    pki::Pki,
    release::{Entry, Key, Releases, Signers, make},
    store::{
        disk::{Disk, Folder},
        telemetry::InboxBatch,
    },
};
use fleet_schemas::{
    DeviceId, Lane, MetricName, NodeId, SessionId, StoreId, StreamId, Topic, VERSION,
    batch::{Batch, Clock},
    cbor,
    event::{Event, Severity},
    limits,
    session::{Birth, Death, Heartbeat, OutboxUse, Pending, Versions},
    telemetry::{Builder, Sample},
    topic::Up,
    update::{CAPABILITY, Custom, Digest, Target},
};
use reqwest::{
    Method, StatusCode,
    header::{self, HeaderMap},
};
use rumqttc::{AsyncClient, MqttOptions, QoS};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

/// Longest wait for anything: generous, because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Everybody is the node they say they are, but whoever calls itself a tool.
struct Everybody(Arc<Mirror>);

impl Directory for Everybody {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Verdict {
        if credentials.client_id.starts_with("tool") {
            let all = |topics: &[&str]| topics.iter().map(|topic| (*topic).to_owned()).collect();
            let read = all(&["fleet/v1/hub/#", "homeassistant/#"]);
            let grants = Grants { read, write: all(&["homeassistant/#"]) };
            let name = credentials.client_id.to_owned();
            return Verdict::Now(Ok(Identity::Tool { name, grants }));
        }
        NodeId::parse(credentials.client_id).map(Identity::Node).map_err(|_| Refusal::ClientId).into()
    }

    fn retained(&self, filter: &str, visit: &mut dyn FnMut(&str, &[u8]) -> ControlFlow<()>) {
        self.0.retained(filter, visit);
    }

    fn said(&self, tool: &str, topic: &str, payload: &[u8]) {
        self.0.said(tool, topic, payload);
    }
}

/// A running hub.
pub(crate) struct Site {
    pub(crate) hub: Hub,
    /// The token of the operator `admin`, who may do everything.
    pub(crate) admin: String,
    /// Who is logged in to the console.
    pub(crate) sessions: Arc<fleet_manager::console::Sessions>,
    pub(crate) http: SocketAddr,
    pub(crate) mqtt: SocketAddr,
    pub(crate) data: TempDir,
    broker: Broker,
    running: Running,
    mirror: mirror::Running,
    alerts: alerts::Running,
    /// Ends the tasks of receivers when it is dropped.
    notifying: watch::Sender<bool>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Site {
    pub(crate) async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let disk = Arc::new(Folder::new(data.path()));
        Self::on(disk, data).await
    }

    pub(crate) async fn on(disk: Arc<dyn Disk>, data: TempDir) -> Self {
        Self::with(disk, data, false, false).await
    }

    /// `tls`: the API by HTTPS. `anonymous_viewer`: as the demo serves it.
    pub(crate) async fn with(disk: Arc<dyn Disk>, data: TempDir, tls: bool, anonymous_viewer: bool) -> Self {
        Self::telling(disk, data, tls, anonymous_viewer, Vec::new()).await
    }

    /// One that tells receivers of alerts.
    pub(crate) async fn telling(
        disk: Arc<dyn Disk>,
        data: TempDir,
        tls: bool,
        anonymous_viewer: bool,
        receivers: Vec<notify::Receiver>,
    ) -> Self {
        let config = hub::Config::default();
        let hub_clock = Arc::new(HubClock::default());
        let fresh = StoreId(clock::random());
        let consumer = Consumer::open(disk, config.telemetry, fresh, hub_clock.now()).unwrap();
        let listen = fleet_broker::Config { mqtt: ([127, 0, 0, 1], 0).into(), ..Default::default() };
        let home_assistant = Some("homeassistant".to_owned());
        let told = mirror::Config { home_assistant };
        let mirror = Arc::new(Mirror::new(consumer.shared().clone(), told));
        let (broker, link) = Broker::start(listen, Arc::new(Everybody(mirror.clone()))).unwrap();
        let publisher = link.publisher();
        let exporter = Arc::new(Exporter::default());
        let observer = metrics::observer(&exporter);
        let (hub, running) =
            hub::start(consumer, link, broker.stats(), hub_clock, &config, observer).unwrap();
        let mirror = mirror.start(hub.clone(), publisher.clone()).unwrap();
        let board = notify::Board::new(receivers);
        let (handle, asked) = Alerts::new(board.clone());
        let (notices, waiting) = mpsc::channel(alerts::NOTICES);
        let notifying = watch::Sender::new(false);
        notify::start(&hub, &handle, &board, &exporter, waiting, &notifying.subscribe()).unwrap();
        let judging = alerts::Config { data: data.path().to_owned(), rules: None, routes: board.routes() };
        let alerts = alerts::start(&hub, publisher, judging, (handle, asked), &exporter, notices).unwrap();
        let clock = hub.clone();
        let pki = Arc::new(Pki::open(data.path(), &[], Arc::new(move || clock.clock().read())).unwrap());
        let artifacts = Arc::new(artifact::Store::open(data.path(), hub.clock().now().wall_ms).unwrap());
        let clock = Arc::new(HubClock::default());
        let releases = Releases::open(data.path(), artifacts, Arc::new(move || clock.read())).unwrap();
        hub.set_releases(Arc::new(releases));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let (http, mqtt) = (listener.local_addr().unwrap(), broker.mqtt_addr());
        let listeners = [
            ("http", http.to_string()),
            ("mqtts", "0.0.0.0:8883".into()),
            ("node_https", "0.0.0.0:8443".into()),
        ];
        let listeners = listeners.map(|(name, address)| (name.to_owned(), address)).into();
        let sessions = Arc::new(fleet_manager::console::Sessions::default());
        let trail = data.path().join("revocations.jsonl");
        let data_folder = data.path().to_owned();
        let config = api::Config {
            data: data_folder,
            trail,
            pki,
            listeners,
            tls,
            anonymous_viewer,
            sessions: sessions.clone(),
        };
        let (stop, stopped) = oneshot::channel();
        let until = async { drop(stopped.await) };
        let serving = tokio::spawn(api::serve(listener, hub.clone(), exporter, config, until));
        let addresses = serde_json::json!({ "http": http, "http_tls": tls, "mqtt": mqtt });
        std::fs::write(data.path().join("addresses.json"), addresses.to_string()).unwrap();
        // On a folder that was in use before there is an operator of that name, whose token nobody knows any more.
        let admins = hub.with_identities(|known| known.operators.len());
        let name = if admins == 0 { "admin".to_owned() } else { format!("admin-{admins}") };
        let admin = operator(&hub, &name, Role::Admin, None).await;
        std::fs::create_dir_all(data.path().join("access")).unwrap();
        std::fs::write(data.path().join("access/admin"), format!("admin\n{admin}\n")).unwrap();
        Self {
            hub,
            admin,
            sessions,
            http,
            mqtt,
            data,
            broker,
            running,
            mirror,
            alerts,
            notifying,
            stop,
            serving,
        }
    }

    /// A client that sends the admin's token.
    pub(crate) fn client(&self) -> reqwest::Client {
        client(Some(&self.admin))
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(PATIENCE, self.serving).await.unwrap().unwrap().unwrap();
        self.notifying.send_replace(true);
        tokio::task::spawn_blocking(|| {
            self.alerts.stop();
            self.mirror.stop();
            self.broker.shutdown();
            self.running.stop();
        })
        .await
        .unwrap();
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.http)
    }

    /// One request; the answer's status and JSON.
    pub(crate) async fn ask(&self, method: Method, path: &str, body: Option<&str>) -> (StatusCode, Value) {
        self.ask_as(Some(&self.admin), method, path, body).await
    }

    /// One request with another token, or with none.
    pub(crate) async fn ask_as(
        &self,
        token: Option<&str>,
        method: Method,
        path: &str,
        body: Option<&str>,
    ) -> (StatusCode, Value) {
        let mut request = client(token).request(method, self.url(path));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_owned());
        }
        let response = request.send().await.unwrap();
        let status = response.status();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let (status, value) = self.ask(Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {value}");
        value
    }
}

fn client(token: Option<&str>) -> reqwest::Client {
    let mut headers = HeaderMap::new();
    if let Some(token) = token {
        headers.insert(header::AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
    }
    reqwest::Client::builder().default_headers(headers).build().unwrap()
}

/// Makes keys of releases, and signs version 1.0.0 of the skill `greeter`.
pub(crate) fn sign_greeter(hub: &Hub) {
    let bytes = b"hello";
    let digest = Digest(Sha256::digest(bytes).into());
    let target: Target = "skill/greeter/1.0.0/any".parse().unwrap();
    let pushed = artifact::Pushed {
        target: target.clone(),
        at_ms: clock::wall_ms(),
        by: "hub".to_owned(),
        min_from: None,
        device_kind: None,
    };
    let releases = hub.releases().unwrap();
    let store = releases.artifacts();
    store.begin(digest, bytes.len() as u64, pushed).unwrap();
    let upload = store.upload(&digest).unwrap();
    store.append(&upload, 0, bytes).unwrap();
    store.complete(&upload).unwrap();
    let entry = Entry { length: bytes.len() as u64, digest, custom: Custom::default() };
    sign(hub, &BTreeMap::from([(target, entry)]));
}

fn sign(hub: &Hub, entries: &BTreeMap<Target, Entry>) {
    let (root, targets) = (Key::generate().unwrap(), Key::generate().unwrap());
    let releases = hub.releases().unwrap();
    let (snapshot, timestamp) = releases.online_keys();
    let signers = Signers { root: vec![root.public()], targets: vec![targets.public()], snapshot, timestamp };
    let now_ms = clock::wall_ms();
    let root = make::sign(make::root(1, &signers, now_ms).unwrap(), &[&root]).unwrap();
    let listed = make::targets(1, entries, now_ms).unwrap();
    releases.publish(Some(&root), Some(&make::sign(listed, &[&targets]).unwrap())).unwrap();
}

/// Lets an operator in; gives the token.
pub(crate) async fn operator(hub: &Hub, name: &str, role: Role, expires_ms: Option<i64>) -> String {
    let token = api::token::text(&clock::random());
    let operator = Operator {
        name: name.to_owned(),
        role,
        token: api::token::hash(&token),
        created_ms: hub.clock().now().wall_ms,
        created_by: "hub".to_owned(),
        expires_ms,
        on: None,
        used_ms: None,
    };
    hub.intend("hub", Intent::Identity(Change::PutOperator(operator))).await.unwrap();
    token
}

/// Stores one sample of the metric `probe` for each of these nodes, as the consumer would.
pub(crate) fn sample_each(hub: &Hub, nodes: &[u32], time_ms: i64) {
    let mut builder = Builder::default();
    let (device, metric) = (DeviceId::node(), MetricName::parse("probe").unwrap());
    assert_eq!(builder.push(Sample { time_ms, device, metric, unit: None, value: 1.0 }), None);
    let samples = builder.build();
    let body = samples.encode();
    let mut write = hub.telemetry().begin().unwrap();
    for node in nodes.iter().copied() {
        let (lane, recv_ms) = (Lane::Telemetry, hub.clock().now().wall_ms);
        let (samples, body) = (&samples, &body[..]);
        write.append(&InboxBatch { node, lane, recv_ms, shift_ms: 0, samples, body, payload: None }).unwrap();
    }
    write.commit().unwrap();
}

/// A node that was born.
pub(crate) struct Node {
    id: NodeId,
    hub: Hub,
    mqtt: AsyncClient,
    polling: JoinHandle<()>,
    seq: std::collections::BTreeMap<Lane, (u64, u64)>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.polling.abort();
    }
}

impl Node {
    pub(crate) async fn born(site: &Site, id: &str) -> Self {
        let mut options = MqttOptions::new(id, site.mqtt.ip().to_string(), site.mqtt.port());
        options.set_credentials(id, "secret");
        options.set_max_packet_size(limits::PACKET_BYTES, limits::PACKET_BYTES);
        let (mqtt, mut events) = AsyncClient::new(options, 64);
        let polling = tokio::spawn(async move { while events.poll().await.is_ok() {} });
        let node = Self {
            id: NodeId::parse(id).unwrap(),
            hub: site.hub.clone(),
            mqtt,
            polling,
            seq: Default::default(),
        };
        let birth = Birth {
            v: VERSION,
            session: SessionId([1; 8]),
            epoch: 1,
            boot: [1; 8],
            instance: None,
            up_ms: 1_000,
            clock: Clock::Synced,
            time_ms: clock::wall_ms(),
            interval_ms: 60_000,
            kind: "picclaw".to_owned(),
            name: Some(format!("{id} by its own word")),
            capabilities: vec!["sensor".to_owned(), CAPABILITY.to_owned()],
            versions: Versions { agent: "0.1.0".to_owned(), ..Versions::default() },
            machine: Default::default(),
            lanes: Default::default(),
            partial: false,
            pending: Pending::default(),
            commands: None,
            config: None,
        };
        let mut feed = node.hub.feed();
        node.say(Up::Birth, cbor::encode(&birth)).await;
        node.until(&mut feed, |item| matches!(item, FeedItem::Node(id) if *id == node.id)).await;
        let heartbeat = Heartbeat {
            v: VERSION,
            session: SessionId([1; 8]),
            boot: [1; 8],
            up_ms: 2_000,
            clock: Clock::Synced,
            time_ms: clock::wall_ms(),
            interval_ms: 60_000,
            system: [("cpu_percent".to_owned(), 12.5)].into(),
            lanes: Default::default(),
            partial: false,
            pending: Pending::default(),
            config: None,
            outbox: OutboxUse { bytes: 0, quota_bytes: 1 << 28 },
        };
        node.say(Up::Heartbeat, cbor::encode(&heartbeat)).await;
        node
    }

    async fn say(&self, up: Up, payload: Vec<u8>) {
        let topic = Topic::Up(self.id.clone(), up).to_string();
        self.mqtt.publish(topic, QoS::AtLeastOnce, false, payload).await.unwrap();
    }

    async fn until(
        &self,
        feed: &mut tokio::sync::broadcast::Receiver<Arc<FeedItem>>,
        done: impl Fn(&FeedItem) -> bool,
    ) {
        let seen = async { while !done(&feed.recv().await.unwrap()) {} };
        tokio::time::timeout(PATIENCE, seen).await.expect("the hub commits in time");
    }

    fn sealed(&mut self, lane: Lane, count: u64, body: Vec<u8>) -> Vec<u8> {
        let (seq, first) = self.seq.entry(lane).or_insert((1, 1));
        let batch = Batch {
            v: VERSION,
            stream: StreamId([7; 16]),
            seq: *seq,
            seq_to: None,
            first: *first,
            count,
            boot: [1; 8],
            up_ms: 3_000,
            clock: Clock::Synced,
            sealed_ms: clock::wall_ms(),
            lost: None,
            body,
        };
        *seq += 1;
        *first += count;
        cbor::encode(&batch)
    }

    /// Sends (time, device, metric, value) in one batch; returns when the hub has committed it.
    pub(crate) async fn measures(&mut self, samples: &[(i64, &str, &str, f64)]) {
        let mut builder = Builder::default();
        for (time_ms, device, metric, value) in samples {
            let (device, metric) = (DeviceId::parse(device).unwrap(), MetricName::parse(metric).unwrap());
            let unit = Some(MetricName::parse("Cel").unwrap());
            assert_eq!(builder.push(Sample { time_ms: *time_ms, device, metric, unit, value: *value }), None);
        }
        let payload = self.sealed(Lane::Telemetry, samples.len() as u64, builder.build().encode());
        let mut feed = self.hub.feed();
        self.say(Up::Lane(Lane::Telemetry), payload).await;
        self.until(&mut feed, |item| matches!(item, FeedItem::Samples { node, .. } if *node == self.id))
            .await;
    }

    /// Sends a heartbeat that is none.
    pub(crate) async fn garbage(&self) {
        self.say(Up::Heartbeat, vec![0xff]).await;
    }

    /// Reports a device; returns when the hub has committed it.
    pub(crate) async fn reports(&mut self, report: Value) {
        let event = Event {
            time_ms: clock::wall_ms(),
            kind: MetricName::parse("device").unwrap(),
            severity: Severity::Info,
            message: "a device".to_owned(),
            data: Some(ciborium::Value::serialized(&report).unwrap()),
            device: None,
            id: None,
        };
        let payload = self.sealed(Lane::Event, 1, cbor::encode(&[event]));
        let mut feed = self.hub.feed();
        self.say(Up::Lane(Lane::Event), payload).await;
        self.until(&mut feed, |item| matches!(item, FeedItem::Event(event) if event.node == self.id)).await;
    }

    /// Says goodbye; returns when the hub knows.
    pub(crate) async fn leaves(&self) {
        let death = Death { v: VERSION, session: SessionId([1; 8]), until_ms: Some(i64::MAX) };
        let mut feed = self.hub.feed();
        self.say(Up::Death, cbor::encode(&death)).await;
        self.until(&mut feed, |item| matches!(item, FeedItem::Node(node) if *node == self.id)).await;
    }

    /// Sends an event without waiting.
    pub(crate) async fn tells(&mut self, kind: &str, message: &str) {
        let event = Event {
            time_ms: clock::wall_ms(),
            kind: MetricName::parse(kind).unwrap(),
            severity: Severity::Warning,
            message: message.to_owned(),
            data: None,
            device: None,
            id: None,
        };
        let payload = self.sealed(Lane::Event, 1, cbor::encode(&[event]));
        self.say(Up::Lane(Lane::Event), payload).await;
    }

    /// Sends an event; returns when the hub has committed it.
    pub(crate) async fn told(&mut self, kind: &str, message: &str) {
        let mut feed = self.hub.feed();
        self.tells(kind, message).await;
        self.until(&mut feed, |item| matches!(item, FeedItem::Event(event) if event.node == self.id)).await;
    }
}
