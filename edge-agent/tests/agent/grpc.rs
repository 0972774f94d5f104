//! The edge API as gRPC over real sockets: the same records, refusals and limits as over REST.

use std::{net::SocketAddr, time::Duration};

use fleet_edge_agent::{
    api::grpc::pb::{
        self, commands_client::CommandsClient, config_client::ConfigClient, devices_client::DevicesClient,
        events_client::EventsClient, ledger_client::LedgerClient, local_client::LocalClient,
        outbox_client::OutboxClient, status_client::StatusClient, telemetry_client::TelemetryClient,
    },
    run::Handle,
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{net::UnixStream, sync::mpsc, time};
use tonic::{
    Code, Request,
    transport::{Channel, Endpoint},
};

use crate::{PATIENCE, get_json, post, quiet, start, until, url};

pub(crate) async fn channel(api: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{api}")).unwrap();
    endpoint.connect().await.unwrap()
}

pub(crate) fn sample(metric: &str, value: f64) -> pb::Sample {
    pb::Sample { metric: metric.to_owned(), value: Some(value), unit: String::new(), time_ms: None }
}

/// Of the node itself: a device that is heard of for the first time would be an event, which counts as well.
pub(crate) fn batch(id: &str, samples: Vec<pb::Sample>) -> pb::TelemetryBatch {
    pb::TelemetryBatch { device: String::new(), samples, id: id.to_owned() }
}

fn event(kind: &str) -> pb::Event {
    pb::Event {
        kind: kind.to_owned(),
        severity: pb::Severity::Warning.into(),
        message: "open".to_owned(),
        ..Default::default()
    }
}

async fn held(agent: &Handle) -> u64 {
    get_json(&url(agent, "/api/v1/outbox")).await["held_records"].as_u64().unwrap()
}

/// A stream of batches that stays open for as long as the sender does.
fn feed() -> (mpsc::Sender<pb::TelemetryBatch>, impl futures_util::Stream<Item = pb::TelemetryBatch> + Send) {
    let (sender, receiver) = mpsc::channel(4);
    let stream = futures_util::stream::unfold(receiver, async |mut receiver: mpsc::Receiver<_>| {
        Some((receiver.recv().await?, receiver))
    });
    (sender, stream)
}

#[tokio::test]
async fn what_it_accepts_is_on_disk_and_is_one_record_when_repeated() {
    let (_folder, config) = quiet("grpc-1");
    let mut agent = start(config.clone()).await;
    for round in 0..2 {
        let channel = channel(agent.api()).await;
        let mut telemetry = TelemetryClient::new(channel.clone());
        let one =
            pb::SubmitRequest { device: String::new(), sample: Some(sample("t", 1.5)), id: "one".into() };
        let told = telemetry.submit(one).await.unwrap().into_inner();
        assert_eq!((told.accepted, told.repeated), (1, round));
        let many = batch("many", vec![sample("t", 2.0), sample("u", 3.0)]);
        let told = telemetry.submit_batch(many.clone()).await.unwrap().into_inner();
        assert_eq!((told.accepted, told.repeated), (2, 2 * round));
        let (feed, batches) = feed();
        let mut answers = telemetry.submit_stream(batches).await.unwrap().into_inner();
        for at in 0..3_u64 {
            // Twice the same within the stream, and the one before it.
            let id = if at == 0 { "many" } else { "streamed" };
            feed.send(batch(id, many.samples.clone())).await.unwrap();
            let told = answers.message().await.unwrap().unwrap();
            assert_eq!(
                (told.batches, told.records),
                (at + 1, 2 * (at + 1)),
                "each is answered while it is open"
            );
        }
        drop(feed);
        assert_eq!(answers.message().await.unwrap(), None);
        let mut events = EventsClient::new(channel.clone());
        let with_id = pb::Event { id: "7".into(), data_json: "{\"n\":[1,null]}".into(), ..event("door") };
        let told =
            events.submit(pb::EventsRequest { events: vec![with_id, event("bell")], id: String::new() });
        let told = told.await.unwrap().into_inner();
        assert_eq!((told.accepted, told.repeated), (2, round));
        assert_eq!(held(&agent).await, 1 + 2 + 2 + 2 + round);
        // The same event over REST is the same record.
        let same = json!({"kind": "door", "severity": "warn", "message": "open", "data": {"n": [1, null]}, "id": "7"});
        let told = post(&url(&agent, "/api/v1/events"), same).await;
        assert_eq!(told, (202, json!({"accepted": 1, "repeated": 1})));
        let ledger =
            LedgerClient::new(channel.clone()).get(pb::GetLedgerRequest {}).await.unwrap().into_inner();
        assert!(ledger.balanced, "{ledger:?}");
        let outbox = OutboxClient::new(channel.clone()).get(pb::GetOutboxRequest {}).await.unwrap();
        assert_eq!(outbox.into_inner().held_records, held(&agent).await);
        let status = StatusClient::new(channel).get(pb::GetStatusRequest {}).await.unwrap().into_inner();
        assert_eq!((status.node_id.as_str(), status.status.as_str()), ("grpc-1", "offline"));
        agent.stop().await;
        agent = start(config.clone()).await;
    }
    agent.stop().await;
}

#[tokio::test]
async fn mistakes_are_answered_with_a_pointer() {
    let (_folder, config) = quiet("grpc-2");
    let agent = start(config).await;
    let channel = channel(agent.api()).await;
    let mut telemetry = TelemetryClient::new(channel.clone());
    let long = "x".repeat(64);
    let good = || sample("t", 1.0);
    let with = |change: fn(&mut pb::Sample)| {
        let mut wrong = good();
        change(&mut wrong);
        batch("", vec![good(), wrong])
    };
    for (message, pointer) in [
        (pb::TelemetryBatch { device: long.clone(), ..batch("", vec![]) }, "/device: "),
        (batch(&"x".repeat(256), vec![]), "/id: "),
        (with(|sample| sample.metric.clear()), "/samples/1/metric: "),
        (with(|sample| sample.metric = "a\u{7}".into()), "/samples/1/metric: "),
        (with(|sample| sample.value = None), "/samples/1/value: "),
        (with(|sample| sample.value = Some(f64::NAN)), "/samples/1/value: "),
        (with(|sample| sample.unit = "x".repeat(64)), "/samples/1/unit: "),
    ] {
        let refused = telemetry.submit_batch(message.clone()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().starts_with(pointer), "{pointer}: {refused}");
        let stream = futures_util::stream::iter([batch("", vec![good()]), message]);
        let mut answers = telemetry.submit_stream(stream).await.unwrap().into_inner();
        let refused = loop {
            match answers.message().await {
                Ok(Some(told)) => assert_eq!(told.batches, 1),
                Ok(None) => panic!("a wrong batch was taken"),
                Err(refused) => break refused,
            }
        };
        assert!(
            refused.message().contains("batch 1 of the stream") && refused.message().contains(pointer),
            "{refused}"
        );
    }
    for (request, pointer) in [
        (pb::SubmitRequest::default(), "/sample: "),
        (pb::SubmitRequest { sample: Some(pb::Sample::default()), ..Default::default() }, "/sample/value: "),
        (pb::SubmitRequest { sample: Some(good()), device: long.clone(), ..Default::default() }, "/device: "),
    ] {
        let refused = telemetry.submit(request).await.unwrap_err();
        assert!(refused.message().starts_with(pointer), "{pointer}: {refused}");
    }
    let mut events = EventsClient::new(channel.clone());
    for (wrong, pointer) in [
        (pb::Event { kind: String::new(), ..event("k") }, "/events/1/kind: "),
        (pb::Event { severity: 0, ..event("k") }, "/events/1/severity: "),
        (pb::Event { severity: 99, ..event("k") }, "/events/1/severity: "),
        (pb::Event { data_json: "{".into(), ..event("k") }, "/events/1/data_json: "),
        (pb::Event { data_json: "[".repeat(12) + &"]".repeat(12), ..event("k") }, "/events/1/data_json: "),
        (pb::Event { message: "x".repeat(5_000), ..event("k") }, "/events/1/message: "),
        (pb::Event { id: long.clone(), ..event("k") }, "/events/1/id: "),
    ] {
        let request = pb::EventsRequest { events: vec![event("k"), wrong], id: String::new() };
        let refused = events.submit(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().starts_with(pointer), "{pointer}: {refused}");
    }
    let crowd = pb::EventsRequest { events: vec![event("k"); 101], id: String::new() };
    assert_eq!(events.submit(crowd).await.unwrap_err().code(), Code::InvalidArgument);
    let mut commands = CommandsClient::new(channel);
    let unknown = pb::GetCommandRequest { id: "00000000-0000-7000-8000-000000000000".into() };
    assert_eq!(commands.get(unknown).await.unwrap_err().code(), Code::NotFound);
    let odd =
        pb::EnqueueRequest { kind: "local".into(), params_json: "nonsense".into(), ..Default::default() };
    let refused = commands.enqueue(odd).await.unwrap_err();
    assert!(refused.message().starts_with("/params_json: "), "{refused}");
    // Only the good batches before wrong ones in a stream.
    assert_eq!(held(&agent).await, 7);
    agent.stop().await;
}

#[tokio::test]
async fn commands_are_asked_for_watched_taken_and_reported() {
    let (_folder, config) = quiet("grpc-3");
    let agent = start(config).await;
    let channel = channel(agent.api()).await;
    let mut commands = CommandsClient::new(channel.clone());
    let mut local = LocalClient::new(channel.clone());
    let mut all = commands.watch(pb::WatchCommandsRequest::default()).await.unwrap().into_inner();
    let wanted = pb::EnqueueRequest {
        kind: "local".into(),
        params_json: "{\"kind\":\"blink\",\"times\":3}".into(),
        id: "blink 1".into(),
        ..Default::default()
    };
    let id = commands.enqueue(wanted.clone()).await.unwrap().into_inner().id;
    assert_eq!(commands.enqueue(wanted.clone()).await.unwrap().into_inner().id, id, "repeated");
    let other = pb::EnqueueRequest { params_json: "{\"kind\":\"other\"}".into(), ..wanted };
    assert_eq!(commands.enqueue(other).await.unwrap_err().code(), Code::FailedPrecondition);
    let mut one = commands.watch(pb::WatchCommandsRequest { id: id.clone() }).await.unwrap().into_inner();
    assert_eq!(one.message().await.unwrap().unwrap().state, "accepted");
    let seen = all.message().await.unwrap().unwrap();
    assert_eq!(
        (seen.id.as_str(), seen.state.as_str(), seen.origin.as_str()),
        (id.as_str(), "accepted", "node")
    );
    let queue = commands.list(pb::ListCommandsRequest {}).await.unwrap().into_inner();
    assert_eq!((queue.waiting.len(), queue.running.len()), (1, 0));

    let take = pb::TakeRequest { kinds: vec!["blink".into()], lease_s: Some(30.0) };
    let mut taken = local.take(take).await.unwrap().into_inner();
    let command = taken.message().await.unwrap().unwrap();
    assert_eq!((command.id.as_str(), command.lease_s), (id.as_str(), 30.0));
    assert_eq!(command.params_json, "{\"kind\":\"blink\",\"times\":3}");
    assert_eq!(one.message().await.unwrap().unwrap().state, "running");
    local.extend(pb::ExtendRequest { id: id.clone(), lease_s: Some(60.0) }).await.unwrap();
    let report = pb::ReportRequest {
        id: id.clone(),
        outcome: pb::Outcome::Succeeded.into(),
        result_json: "{\"blinks\":3}".into(),
        output: "done\n".into(),
        ..Default::default()
    };
    let unsaid = pb::ReportRequest { outcome: 0, ..report.clone() };
    assert!(local.report(unsaid).await.unwrap_err().message().starts_with("/outcome: "));
    local.report(report.clone()).await.unwrap();
    assert_eq!(local.report(report).await.unwrap_err().code(), Code::FailedPrecondition, "it is over");
    let over = one.message().await.unwrap().unwrap();
    assert_eq!(
        (over.state.as_str(), over.over, over.result_json.as_str()),
        ("succeeded", true, "{\"blinks\":3}")
    );
    assert_eq!(over.output, "done\n");
    assert_eq!(one.message().await.unwrap(), None, "it never changes again");
    let mut last = seen;
    while !last.over {
        last = all.message().await.unwrap().unwrap();
        assert_eq!(last.id, id);
    }
    assert_eq!(commands.get(pb::GetCommandRequest { id }).await.unwrap().into_inner().state, "succeeded");
    // Those who watch and wait are told when the agent stops.
    let stopping = tokio::spawn(agent.stop());
    assert_eq!(all.message().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(taken.message().await.unwrap_err().code(), Code::Unavailable);
    stopping.await.unwrap();
}

#[tokio::test]
async fn configuration_and_devices_are_told() {
    let (_folder, mut config) = quiet("grpc-8");
    config.upload.hour_bytes = Some(1_000_000);
    config.devices.register = fleet_edge_agent::core::devices::Register::Explicit;
    let agent = start(config).await;
    let channel = channel(agent.api()).await;
    let mut config = ConfigClient::new(channel.clone());
    let asked = async || get_json(&url(&agent, "/api/v1/config")).await;
    let over_rest = until("the outbox tells", asked, |told| told["state"] == "none").await;
    let found = config.get(pb::GetConfigRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (json!(found.state), json!(found.tag)),
        (over_rest["state"].clone(), over_rest["tag"].clone())
    );
    let mut watched = config.watch(pb::WatchConfigRequest::default()).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap(), found, "what there is comes at once");
    let mut devices = DevicesClient::new(channel.clone());
    let wanted = pb::RegisterDeviceRequest {
        id: "shed".into(),
        kind: Some("microclaw".into()),
        heartbeat_s: Some(60.0),
        ..Default::default()
    };
    let made = devices.register(wanted.clone()).await.unwrap().into_inner();
    assert_eq!((made.id.as_str(), made.kind.as_str(), made.heartbeat_s), ("shed", "microclaw", Some(60.0)));
    let listed = devices.list(pb::ListDevicesRequest {}).await.unwrap().into_inner().items;
    assert_eq!(listed.iter().map(|device| device.id.as_str()).collect::<Vec<_>>(), ["shed"]);
    for (wrong, pointer) in [
        (pb::RegisterDeviceRequest { kind: Some(String::new()), ..wanted.clone() }, "/kind: "),
        (pb::RegisterDeviceRequest { heartbeat_s: Some(-1.0), ..wanted }, "/heartbeat_s: "),
    ] {
        let refused = devices.register(wrong).await.unwrap_err();
        assert!(
            refused.code() == Code::InvalidArgument && refused.message().starts_with(pointer),
            "{refused}"
        );
    }
    let slept = pb::SleepDeviceRequest { id: "shed".into(), for_s: 600.0 };
    let slept = devices.sleep(slept).await.unwrap().into_inner();
    assert_eq!(slept.state, "sleeping");
    let shed = || pb::GetDeviceRequest { id: "shed".into() };
    assert_eq!(devices.get(shed()).await.unwrap().into_inner(), slept);
    let long = pb::SleepDeviceRequest { id: "shed".into(), for_s: 1e9 };
    assert!(devices.sleep(long).await.unwrap_err().message().starts_with("/for_s: "));
    devices.remove(pb::RemoveDeviceRequest { id: "shed".into() }).await.unwrap();
    assert_eq!(devices.get(shed()).await.unwrap_err().code(), Code::NotFound);
    let status = StatusClient::new(channel).get(pb::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.config, Some(found));
    let (outbox, over_rest) = (status.outbox.unwrap(), get_json(&url(&agent, "/api/v1/outbox")).await);
    assert_eq!(outbox.hour_budget.unwrap().budget_bytes, 1_000_000);
    assert_eq!(over_rest["hour_budget"]["budget_bytes"], 1_000_000);
    let lanes: Vec<_> = outbox.lanes.iter().map(|lane| (lane.lane.as_str(), lane.held_records)).collect();
    let over_rest = over_rest["lanes"].as_object().unwrap().iter();
    let over_rest = over_rest.map(|(lane, view)| (lane.as_str(), view["held_records"].as_u64().unwrap()));
    let mut over_rest: Vec<_> = over_rest.collect();
    over_rest.sort_by_key(|(name, _)| lanes.iter().position(|(lane, _)| lane == name));
    assert_eq!(lanes, over_rest);
    agent.stop().await;
}

#[tokio::test]
async fn a_unix_socket_serves_it_too_with_health() {
    let (folder, mut config) = quiet("grpc-4");
    let path = folder.path().join("agent.sock");
    config.api.socket = Some(path.clone());
    let agent = start(config).await;
    let connect = tower_fn(move || UnixStream::connect(path.clone()));
    let channel = Endpoint::from_static("http://node").connect_with_connector(connect).await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    for service in ["", "fleet.edge.v1.Telemetry", "fleet.edge.v1.Status"] {
        let asked = tonic_health::pb::HealthCheckRequest { service: service.into() };
        assert_eq!(health.check(asked).await.unwrap().into_inner().status, 1, "{service}");
    }
    let status = StatusClient::new(channel).get(pb::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.node_id, "grpc-4");
    agent.stop().await;
}

/// A connector that asks `connect` each time.
fn tower_fn<F, C>(
    connect: F,
) -> impl tonic::codegen::Service<
    hyper::Uri,
    Response = TokioIo<UnixStream>,
    Error = std::io::Error,
    Future = impl Future<Output = std::io::Result<TokioIo<UnixStream>>> + Send,
> + Send
where
    F: Fn() -> C + Clone + Send + 'static,
    C: Future<Output = std::io::Result<UnixStream>> + Send,
{
    tower::service_fn(move |_: hyper::Uri| {
        let stream = connect();
        async move { stream.await.map(TokioIo::new) }
    })
}

#[tokio::test]
async fn floods_and_stalls_are_refused_and_neighbours_do_not_notice() {
    let (_folder, mut config) = quiet("grpc-5");
    config.api.read = Duration::from_millis(300);
    config.api.connections = 8;
    let agent = start(config).await;
    let channel = channel(agent.api()).await;
    let mut telemetry = TelemetryClient::new(channel.clone()).max_encoding_message_size(usize::MAX);
    // Far more than a message may have, and far more records than its bytes suggest.
    let large = batch(&"x".repeat(100 * 1024 * 1024), vec![]);
    let refused = telemetry.submit_batch(large).await.unwrap_err();
    assert!(matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted), "{refused}");
    let crowd = batch("", vec![pb::Sample::default(); 120_000]);
    let refused = telemetry.submit_batch(crowd).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("10000"), "{refused}");
    let crowd = batch("", vec![sample("t", 1.0); 10_001]);
    assert_eq!(telemetry.submit_batch(crowd).await.unwrap_err().code(), Code::InvalidArgument);
    // Half of all places for streams are taken by clients that say nothing, all others by calls that stall.
    let mut quiet_ones = Vec::new();
    for _ in 0..4 {
        let (feed, batches) = feed();
        quiet_ones.push((feed, telemetry.submit_stream(batches).await.unwrap()));
    }
    let (_feed, batches) = feed();
    let refused = telemetry.submit_stream(batches).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "one stream too many: {refused}");
    let stalled: Vec<_> = (0..8).map(|_| tokio::spawn(stall(agent.api()))).collect();
    let neighbour = telemetry.submit_batch(batch("", vec![sample("t", 1.0)]));
    let told = time::timeout(PATIENCE, neighbour).await.unwrap().unwrap().into_inner();
    assert_eq!(told.accepted, 1);
    for stalled in stalled {
        let code = stalled.await.unwrap();
        // Refused for want of a connection, or told that it takes too long.
        assert!(matches!(code, None | Some(Code::DeadlineExceeded | Code::ResourceExhausted)), "{code:?}");
    }
    // Those that were quiet are still served.
    for (feed, answers) in &mut quiet_ones {
        feed.send(batch("", vec![sample("t", 1.0)])).await.unwrap();
        assert_eq!(answers.get_mut().message().await.unwrap().unwrap().records, 1);
    }
    assert_eq!(held(&agent).await, 5);
    agent.stop().await;
}

#[tokio::test]
async fn clients_that_read_no_answers_do_not_keep_the_room_of_others() {
    let (_folder, config) = quiet("grpc-8");
    let agent = start(config).await;
    let many = batch("", vec![sample("t", 1.0); 10_000]);
    let mut deaf = Vec::new();
    for _ in 0..8 {
        let endpoint = Endpoint::from_shared(format!("http://{}", agent.api())).unwrap();
        // One byte of answers may be on its way unread (RFC 9113 §6.9.2).
        let channel = endpoint.initial_stream_window_size(1).connect().await.unwrap();
        let (feed, batches) = feed();
        for _ in 0..4 {
            feed.send(many.clone()).await.unwrap();
        }
        let answers = TelemetryClient::new(channel).submit_stream(batches).await.unwrap();
        deaf.push((feed, answers));
    }
    until("a batch of each", async || held(&agent).await, |records| *records >= 80_000).await;
    let mut others = TelemetryClient::new(channel(agent.api()).await);
    let others = others.submit_batch(many);
    let told = time::timeout(PATIENCE, others).await.expect("there is room").unwrap();
    assert_eq!(told.into_inner().accepted, 10_000);
    drop(deaf);
    agent.stop().await;
}

/// A unary call whose message never ends.
async fn stall(api: SocketAddr) -> Option<Code> {
    use http_body_util::{BodyExt as _, StreamBody};
    let stream = tokio::net::TcpStream::connect(api).await.ok()?;
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(executor, TokioIo::new(stream)).await.ok()?;
    let driven = tokio::spawn(connection);
    let half = hyper::body::Frame::data(bytes::Bytes::from_static(&[0, 0, 0, 0, 9, 1]));
    let body = futures_util::stream::unfold(Some(half), async |half| match half {
        Some(half) => Some((Ok::<_, std::convert::Infallible>(half), None)),
        None => std::future::pending().await,
    });
    let request = hyper::Request::post(format!("http://{api}/fleet.edge.v1.Telemetry/SubmitBatch"))
        .header("content-type", "application/grpc")
        .body(StreamBody::new(Box::pin(body)))
        .unwrap();
    let answer = time::timeout(PATIENCE, sender.send_request(request)).await.expect("it is answered").ok()?;
    let code = answer.headers().get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()));
    drop(answer.into_body().into_data_stream());
    driven.abort();
    code
}

#[tokio::test]
async fn a_stream_that_is_open_does_not_keep_the_agent_from_stopping() {
    let (_folder, config) = quiet("grpc-6");
    let agent = start(config.clone()).await;
    let mut telemetry = TelemetryClient::new(channel(agent.api()).await);
    let (feed, batches) = feed();
    let mut answers = telemetry.submit_stream(batches).await.unwrap().into_inner();
    feed.send(batch("", vec![sample("t", 1.0)])).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().batches, 1);
    time::timeout(Duration::from_secs(10), agent.stop()).await.expect("it stops");
    let ended = answers.message().await;
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    let agent = start(config).await;
    let one = async || held(&agent).await;
    until("the answered record", one, |held| *held == 1).await;
    agent.stop().await;
}

#[tokio::test]
async fn an_unknown_call_is_told_as_such() {
    let (_folder, config) = quiet("grpc-7");
    let agent = start(config).await;
    let mut client = tonic::client::Grpc::new(channel(agent.api()).await);
    client.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<pb::Done, pb::Done>::default();
    let path = hyper::http::uri::PathAndQuery::from_static("/fleet.edge.v1.Telemetry/Nothing");
    let refused = client.unary(Request::new(pb::Done {}), path, codec).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    agent.stop().await;
}
