//! `schemas/openapi-edge.json`, which the agent serves: written down here, and compared with what the agent does.
//!
//! `FLEET_BLESS=1 cargo test -p fleet-edge-agent openapi` writes the file anew.

#![expect(dead_code, reason = "these shapes are described, not built")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use fleet_edge_agent::api::ROUTES;
use serde_json::Value;
use utoipa::{OpenApi, ToSchema};

use crate::{get_json, quiet, start, url};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../schemas/openapi-edge.json");

/// What went wrong, where in the request, and what to do (RFC 9457).
#[derive(ToSchema)]
struct Problem {
    #[serde(rename = "type")]
    #[schema(example = "about:blank")]
    kind: String,
    title: String,
    status: u16,
    detail: String,
    /// JSON pointer (RFC 6901) to the field that is wrong.
    #[schema(nullable = false, example = "/samples/3/metric")]
    pointer: Option<String>,
}

#[derive(ToSchema)]
struct Health {
    #[schema(example = "ok")]
    status: String,
    agent: String,
    node_id: String,
    /// Seconds since the agent started.
    uptime: u64,
}

/// How the agent is.
#[derive(ToSchema)]
struct Status {
    node_id: String,
    node_name: String,
    kind: String,
    version: String,
    /// `online` while the hub answers, else `offline`.
    status: String,
    /// Seconds since the agent started.
    uptime: u64,
    #[schema(nullable = false)]
    hub: Option<String>,
    /// Whether a hub is reached.
    cloud: bool,
    #[schema(nullable = false)]
    session: Option<String>,
    session_epoch: u64,
    #[schema(nullable = false)]
    store_id: Option<String>,
    credit: u32,
    #[schema(nullable = false)]
    last_ack_s: Option<u64>,
    #[schema(nullable = false)]
    hub_offset_ms: Option<i64>,
    time_ms: i64,
    /// `synced` or `unsynced`.
    clock: String,
    #[schema(nullable = false)]
    identity: Option<Identity>,
    config: Config,
    #[schema(nullable = false)]
    updates: Option<Updates>,
    outbox: Outbox,
}

/// How updates stand; absent when the node takes none.
#[derive(ToSchema)]
struct Updates {
    /// What runs, by its digest.
    running: Vec<Running>,
    /// The update that is under way, and those that wait behind it.
    #[schema(nullable = false)]
    updates: Option<Vec<Update>>,
    /// How the last one ended.
    #[schema(nullable = false)]
    last: Option<Update>,
    /// Digests that failed here so often that they are refused.
    #[schema(nullable = false)]
    quarantined: Option<Vec<String>>,
}

#[derive(ToSchema)]
struct Running {
    /// `skill`, `agent`, `firmware` or `device-firmware`.
    kind: String,
    name: String,
    version: String,
    /// SHA-256 of the artifact, in hexadecimal digits.
    digest: String,
    /// The device that runs it; absent for the node itself.
    #[schema(nullable = false)]
    device: Option<String>,
}

#[derive(ToSchema)]
struct Update {
    /// The command that ordered it.
    command: String,
    #[schema(example = "skill/greeter/1.2.0/any")]
    target: String,
    digest: String,
    #[schema(nullable = false)]
    rollout: Option<String>,
    #[schema(nullable = false)]
    device: Option<String>,
    /// `accepted`, `downloading`, …, `confirmed`, `rolled_back`, …
    state: String,
    /// Why it stands there, or what it waits for.
    #[schema(nullable = false)]
    reason: Option<String>,
    /// Bytes that are on the disk.
    #[schema(nullable = false)]
    bytes: Option<u64>,
    #[schema(nullable = false)]
    total: Option<u64>,
}

/// What proves who the node is, once it has joined.
#[derive(ToSchema)]
struct Identity {
    /// HTTPS of the hub, as host and port.
    hub: String,
    certificate_ends_ms: i64,
    certificate_renews_ms: i64,
    /// Whether a renewed one waits for its first session.
    renewed: bool,
    /// The CAs it trusts, by the hash of their public keys as in a join token.
    trust: Vec<String>,
    /// Why the hub refused the last session, if it did.
    #[schema(nullable = false)]
    refused: Option<String>,
}

/// What the outbox holds.
#[derive(ToSchema)]
struct Outbox {
    bytes: u64,
    quota_bytes: u64,
    held_records: u64,
    unacked_batches: u64,
    pending_samples: u64,
    lost_records: u64,
    damaged_rows: u64,
    /// This hour's budget of bytes, where there is one.
    #[schema(nullable = false)]
    hour_budget: Option<Budget>,
    /// This day's.
    #[schema(nullable = false)]
    day_budget: Option<Budget>,
    /// Whether batches wait for the next hour or day because a budget is gone.
    #[schema(nullable = false)]
    waits_for_budget: Option<bool>,
    /// By `event`, `command`, `telemetry` and `backfill`.
    lanes: BTreeMap<String, OutboxLane>,
}

#[derive(ToSchema)]
struct Budget {
    /// Headers included.
    used_bytes: u64,
    budget_bytes: u64,
}

#[derive(ToSchema)]
struct OutboxLane {
    in_flight: u32,
    unacked_batches: u64,
    held_records: u64,
    streams: Vec<OutboxStream>,
}

#[derive(ToSchema)]
struct OutboxStream {
    stream: String,
    mark: u64,
    floor_seq: u64,
    next_seq: u64,
    floor_record: u64,
    next_record: u64,
    records: u64,
    lost_records: u64,
}

/// The configuration as programs on the node see it.
#[derive(ToSchema)]
struct Config {
    /// How far the newest document got: `none`, `received`, `trying`, `probation`, `applied` or `failed`.
    state: String,
    #[schema(nullable = false)]
    received: Option<HeldConfig>,
    #[schema(nullable = false)]
    applied: Option<HeldConfig>,
    /// Why the newest is not the one that runs.
    #[schema(nullable = false)]
    failed: Option<Failed>,
    /// The document that runs; `apps` in it is for programs on the node.
    doc: Value,
    /// Names this answer.
    tag: String,
}

#[derive(ToSchema)]
struct HeldConfig {
    version: ConfigVersion,
    hash: String,
    retry: u64,
}

/// Ordered by epoch, then by n.
#[derive(ToSchema)]
struct ConfigVersion {
    epoch: u64,
    n: u64,
}

#[derive(ToSchema)]
struct Failed {
    /// A stable word.
    code: String,
    /// A sentence that says what to do.
    message: String,
}

/// What somebody declares of a device; what is absent stays as it is.
#[derive(ToSchema)]
struct DeclaredDevice {
    #[schema(min_length = 1, max_length = 63)]
    kind: Option<String>,
    #[schema(max_length = 256)]
    name: Option<String>,
    #[schema(min_length = 1, max_length = 63)]
    firmware: Option<String>,
    #[schema(max_items = 32)]
    capabilities: Option<Vec<String>>,
    /// How often it is heard at least; 0 takes that back.
    #[schema(minimum = 0, maximum = 2678400)]
    heartbeat_s: Option<f64>,
    /// How long it sleeps between two words; 0 takes that back.
    #[schema(minimum = 0, maximum = 2678400)]
    sleep_s: Option<f64>,
}

#[derive(ToSchema)]
struct DeviceSleep {
    #[schema(minimum = 0, maximum = 2678400)]
    for_s: f64,
}

#[derive(ToSchema)]
struct DeviceList {
    items: Vec<Device>,
    limit: u64,
}

#[derive(ToSchema)]
struct Device {
    id: String,
    #[schema(nullable = false)]
    kind: Option<String>,
    #[schema(nullable = false)]
    name: Option<String>,
    #[schema(nullable = false)]
    firmware: Option<String>,
    capabilities: Vec<String>,
    state: String,
    since_ms: i64,
    #[schema(nullable = false)]
    last_seen_ms: Option<i64>,
    #[schema(nullable = false)]
    until_ms: Option<i64>,
    #[schema(nullable = false)]
    heartbeat_s: Option<f64>,
    #[schema(nullable = false)]
    sleep_s: Option<f64>,
    /// `explicit` or `auto`.
    registered: String,
    registered_ms: i64,
    unsequenced: bool,
}

/// The account of what was accepted, as far as the node knows it.
#[derive(ToSchema)]
struct Ledger {
    balanced: bool,
    pending_samples: u64,
    accounts: Vec<Account>,
}

/// One lane's account, in records: `produced = evicted + held + lost`.
#[derive(ToSchema)]
struct Account {
    lane: String,
    /// `balanced` or `broken`.
    state: String,
    produced: u64,
    evicted: u64,
    held: u64,
    lost: u64,
}

#[derive(ToSchema)]
struct Telemetry {
    /// Absent for the node itself.
    #[schema(max_length = 63)]
    device: Option<String>,
    #[schema(max_items = 10000)]
    samples: Vec<Sample>,
}

#[derive(ToSchema)]
struct Sample {
    #[schema(min_length = 1, max_length = 63, example = "temperature")]
    metric: String,
    value: f64,
    /// UCUM.
    #[schema(max_length = 63, example = "Cel")]
    unit: Option<String>,
    /// Unix milliseconds; absent: when it arrived.
    time_ms: Option<i64>,
}

#[derive(ToSchema)]
struct Event {
    #[schema(min_length = 1, max_length = 63, example = "door_opened")]
    kind: String,
    severity: Severity,
    /// At most 4096 bytes.
    #[schema(max_length = 4096)]
    message: String,
    /// Anything more, at most 32 KiB and ten levels.
    data: Option<Value>,
    #[schema(max_length = 63)]
    device: Option<String>,
    time_ms: Option<i64>,
    /// Makes a repeated event one record.
    #[schema(min_length = 1, max_length = 63)]
    id: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Info,
    Warning,
    Warn,
    Error,
    Critical,
    Emergency,
}

/// One event, or up to 100.
#[derive(ToSchema)]
#[serde(untagged)]
enum Events {
    One(Event),
    Many(Vec<Event>),
}

#[derive(ToSchema)]
struct Accepted {
    /// Records of this write that are on disk.
    accepted: u64,
    /// How many of them were on disk before, because the write or the event was repeated.
    #[schema(nullable = false)]
    repeated: Option<u64>,
}

/// A gateway's reading.
#[derive(ToSchema)]
struct Report {
    /// The board that measured it.
    #[schema(min_length = 1, max_length = 63)]
    node_id: String,
    #[schema(min_length = 1, max_length = 63)]
    sensor_type: String,
    value: f64,
    unit: Option<String>,
    timestamp: Option<FieldTime>,
}

/// RFC 3339, or Unix time in seconds or milliseconds.
#[derive(ToSchema)]
#[serde(untagged)]
enum FieldTime {
    Text(String),
    Number(f64),
}

/// A gateway's readings.
#[derive(ToSchema)]
struct Batch {
    #[schema(min_length = 1)]
    gateway_id: String,
    #[schema(max_items = 10000)]
    readings: Vec<Report>,
    /// The time of readings that have none.
    batch_timestamp: Option<FieldTime>,
}

#[derive(ToSchema)]
struct Taken {
    #[schema(example = "accepted")]
    status: String,
    node_id: String,
    /// Records that the outbox holds.
    buffer_size: u64,
}

/// A command; also `type` for `kind`, `payload` for `params` and `timeout_seconds` for `timeout_s`.
#[derive(ToSchema)]
struct Wanted {
    #[schema(min_length = 1, max_length = 63, example = "exec")]
    kind: String,
    params: Option<Value>,
    /// Absent: `main`.
    queue: Option<String>,
    priority: Option<Priority>,
    /// How long it may wait to begin; absent: an hour.
    ttl_s: Option<f64>,
    /// How long it may run; absent: a minute.
    timeout_s: Option<f64>,
    #[schema(nullable = false)]
    idempotent: Option<bool>,
}

/// Larger is earlier; or `low`, `normal`, `high`, `urgent`.
#[derive(ToSchema)]
#[serde(untagged)]
enum Priority {
    Number(i8),
    Word(String),
}

#[derive(ToSchema)]
struct Enqueued {
    id: String,
    #[schema(example = "accepted")]
    status: String,
    command: String,
}

#[derive(ToSchema)]
struct Queue {
    running: Vec<Command>,
    waiting: Vec<Command>,
    limit: u64,
}

/// A command, waiting, running or over.
#[derive(ToSchema)]
struct Command {
    id: String,
    #[schema(nullable = false)]
    kind: Option<String>,
    /// `hub` or `node`: who asked for it.
    origin: String,
    state: String,
    #[schema(nullable = false)]
    queue: Option<String>,
    #[schema(nullable = false)]
    priority: Option<i8>,
    params: Option<Value>,
    /// When it ended, by the agent's clock.
    #[schema(nullable = false)]
    at_ms: Option<i64>,
    #[schema(nullable = false)]
    reason: Option<Reason>,
    #[schema(nullable = false)]
    exit_code: Option<i32>,
    result: Option<Value>,
    #[schema(nullable = false)]
    output: Option<String>,
}

#[derive(ToSchema)]
struct Reason {
    /// A stable word, such as `not_allowed`.
    code: String,
    /// A sentence that says what to do.
    message: String,
    /// Whether it may have been done, wholly or in part, although nobody can tell.
    #[schema(nullable = false)]
    may_have_executed: Option<bool>,
}

#[derive(ToSchema)]
struct Take {
    /// Which commands, by the `kind` in their parameters; none for all.
    #[schema(nullable = false)]
    kinds: Option<Vec<String>>,
    /// How long to wait for one, at most 60.
    #[schema(nullable = false, minimum = 0, maximum = 60)]
    wait_s: Option<f64>,
    /// How long the program has it, at most 3600.
    #[schema(maximum = 3600)]
    lease_s: Option<f64>,
}

#[derive(ToSchema)]
struct LocalCommand {
    id: String,
    kind: String,
    queue: String,
    params: Value,
    idempotent: bool,
    timeout_s: f64,
    lease_s: f64,
}

#[derive(ToSchema)]
struct Extend {
    #[schema(maximum = 3600)]
    lease_s: Option<f64>,
}

#[derive(ToSchema)]
struct LocalReport {
    state: Outcome,
    exit_code: Option<i32>,
    message: Option<String>,
    result: Option<Value>,
    #[schema(nullable = false)]
    output: Option<String>,
}

#[derive(ToSchema)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Succeeded,
    Failed,
}

macro_rules! reads {
    ($($name:ident $path:literal $what:literal $body:ty;)*) => {$(
        #[utoipa::path(get, path = $path, description = $what, responses(
            (status = 200, description = "As asked.", body = $body, content_type = "application/json"),
            (status = 503, description = "The disk is out of order, or the agent is stopping.", body = Problem, content_type = "application/problem+json"),
        ))]
        fn $name() {}
    )*};
}

macro_rules! writes {
    ($($name:ident $path:literal $what:literal $body:ty => $status:literal $answer:ty;)*) => {$(
        #[utoipa::path(post, path = $path, description = $what, request_body = $body,
            params(("idempotency-key" = Option<String>, Header, description = "Makes a repeated write one record; 1 to 255 bytes.")),
            responses(
            (status = $status, description = "It is on the node's disk.", body = $answer, content_type = "application/json"),
            (status = 400, description = "It is not JSON, or the header is wrong.", body = Problem, content_type = "application/problem+json"),
            (status = 403, description = "The node's allow-list does not have it.", body = Problem, content_type = "application/problem+json"),
            (status = 408, description = "It did not arrive in time.", body = Problem, content_type = "application/problem+json"),
            (status = 409, description = "The id or the key was used for something else.", body = Problem, content_type = "application/problem+json"),
            (status = 413, description = "Over 256 KiB, or too many records.", body = Problem, content_type = "application/problem+json"),
            (status = 415, description = "Send `application/json`.", body = Problem, content_type = "application/problem+json"),
            (status = 422, description = "A field is wrong: see `pointer`.", body = Problem, content_type = "application/problem+json"),
            (status = 429, description = "The queue is full.", body = Problem, content_type = "application/problem+json"),
            (status = 503, description = "The disk is out of order, or there is no room: try again.", body = Problem, content_type = "application/problem+json"),
            (status = 507, description = "The outbox is full.", body = Problem, content_type = "application/problem+json"),
        ))]
        fn $name() {}
    )*};
}

reads! {
    healthz "/healthz" "Alive is enough." Health;
    health "/api/health" "The same." Health;
    status "/api/v1/status" "How the agent is." Status;
    outbox "/api/v1/outbox" "What the outbox holds." Outbox;
    ledger "/api/v1/ledger" "The node's own account." Ledger;
    queue "/api/v1/queue" "Commands that wait and run." Queue;
    devices "/api/v1/devices" "The devices behind this node." DeviceList;
}

writes! {
    telemetry "/api/v1/telemetry" "Samples of one device: all of them are taken, or none." Telemetry => 202 Accepted;
    events "/api/v1/events" "Events: all of them are taken, or none." Events => 202 Accepted;
    command "/api/v1/command" "Asks for a command." Wanted => 202 Enqueued;
    command_older "/api/command" "The same." Wanted => 202 Enqueued;
    report "/report" "A reading as gateways in the field send it." Report => 201 Taken;
    batch "/batch" "Readings as gateways in the field send them." Batch => 201 Taken;
}

#[utoipa::path(get, path = "/api/v1/firmware/{digest}",
    description = "The firmware that a device was told to fetch. Its address holds what lets the device in.",
    params(
        ("digest" = String, Path, description = "SHA-256 of the file, 64 hexadecimal digits."),
        ("token" = String, Query, description = "As the device was told."),
        ("range" = Option<String>, Header, description = "One range of bytes (RFC 9110)."),
    ),
    responses(
        (status = 200, description = "All of it.", content_type = "application/octet-stream"),
        (status = 206, description = "The part that was asked for.", content_type = "application/octet-stream"),
        (status = 404, description = "Nothing is offered there.", body = Problem, content_type = "application/problem+json"),
        (status = 416, description = "It has no such bytes."),
        (status = 503, description = "It cannot be read now.", body = Problem, content_type = "application/problem+json"),
    ))]
fn firmware() {}

macro_rules! at_devices {
    ($($name:ident $method:ident $path:literal $what:literal ($($request:tt)*) $(($($answer:tt)*))*;)*) => {$(
        #[utoipa::path($method, path = $path, description = $what, $($request)*
            params(("id" = String, Path, description = "The device's id, 1 to 63 bytes.")),
            responses(
            $(($($answer)*),)*
            (status = 400, description = "It is not JSON, or no device's id.", body = Problem, content_type = "application/problem+json"),
            (status = 404, description = "There is no such device.", body = Problem, content_type = "application/problem+json"),
            (status = 409, description = "There are as many devices as there may be.", body = Problem, content_type = "application/problem+json"),
            (status = 413, description = "Over 256 KiB.", body = Problem, content_type = "application/problem+json"),
            (status = 415, description = "Send `application/json`.", body = Problem, content_type = "application/problem+json"),
            (status = 422, description = "A field is wrong: see `pointer`.", body = Problem, content_type = "application/problem+json"),
            (status = 503, description = "The disk is out of order, or the agent is stopping.", body = Problem, content_type = "application/problem+json"),
        ))]
        fn $name() {}
    )*};
}

at_devices! {
    device get "/api/v1/devices/{id}" "One device." () (status = 200, description = "As asked.", body = Device, content_type = "application/json");
    declare put "/api/v1/devices/{id}" "Declares a device; what is absent stays as it is." (request_body = DeclaredDevice,) (status = 200, description = "It was known.", body = Device, content_type = "application/json") (status = 201, description = "It is new.", body = Device, content_type = "application/json");
    declare_too post "/api/v1/devices/{id}" "The same." (request_body = DeclaredDevice,) (status = 200, description = "It was known.", body = Device, content_type = "application/json") (status = 201, description = "It is new.", body = Device, content_type = "application/json");
    forget delete "/api/v1/devices/{id}" "Forgets a device." () (status = 204, description = "It is gone.");
    device_sleeps post "/api/v1/devices/{id}/sleep" "A device goes to sleep." (request_body = DeviceSleep,) (status = 200, description = "It may be silent.", body = Device, content_type = "application/json");
}

/// What the hub desires: at once, or as soon as it is another than the one named.
#[utoipa::path(get, path = "/api/v1/config", params(
    ("wait_s" = Option<f64>, Query, description = "How long to wait for another, at most 300."),
    ("after" = Option<String>, Query, description = "The `tag` of the one that is known."),
), responses(
    (status = 200, description = "As asked.", body = Config, content_type = "application/json"),
    (status = 400, description = "There is no such parameter, or it is wrong.", body = Problem, content_type = "application/problem+json"),
))]
fn config() {}

/// The page that Prometheus reads.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "text/plain")))]
fn metrics() {}

/// This document.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, body = Object, content_type = "application/json")))]
fn openapi() {}

macro_rules! at_commands {
    ($($name:ident $method:ident $path:literal $what:literal ($($request:tt)*) ($($answer:tt)*);)*) => {$(
        #[utoipa::path($method, path = $path, description = $what, $($request)*
            params(("id" = String, Path, description = "The command's id, a UUID.")),
            responses(
            ($($answer)*),
            (status = 400, description = "It is not JSON.", body = Problem, content_type = "application/problem+json"),
            (status = 404, description = "The node knows no such command.", body = Problem, content_type = "application/problem+json"),
            (status = 409, description = "It is not the program's (any more).", body = Problem, content_type = "application/problem+json"),
            (status = 413, description = "Over 256 KiB.", body = Problem, content_type = "application/problem+json"),
            (status = 415, description = "Send `application/json`.", body = Problem, content_type = "application/problem+json"),
            (status = 422, description = "A field is wrong: see `pointer`.", body = Problem, content_type = "application/problem+json"),
            (status = 503, description = "The disk is out of order, or the agent is stopping.", body = Problem, content_type = "application/problem+json"),
        ))]
        fn $name() {}
    )*};
}

at_commands! {
    one get "/api/v1/commands/{id}" "One command." () (status = 200, description = "As asked.", body = Command, content_type = "application/json");
    extend post "/api/v1/local/{id}/extend" "More time for a command that a program took." (request_body = Extend,) (status = 204, description = "It has more time.");
    local_report post "/api/v1/local/{id}/report" "What became of a command that a program took." (request_body = LocalReport,) (status = 204, description = "It is over.");
}

/// Takes a command of kind `local`, for a program that does it.
#[utoipa::path(post, path = "/api/v1/local/take", request_body = Take, responses(
    (status = 200, description = "A command.", body = LocalCommand, content_type = "application/json"),
    (status = 204, description = "There is none."),
    (status = 400, description = "It is not JSON.", body = Problem, content_type = "application/problem+json"),
    (status = 413, description = "Over 256 KiB.", body = Problem, content_type = "application/problem+json"),
    (status = 415, description = "Send `application/json`.", body = Problem, content_type = "application/problem+json"),
    (status = 422, description = "A field is wrong: see `pointer`.", body = Problem, content_type = "application/problem+json"),
    (status = 503, description = "The disk is out of order, or too many wait.", body = Problem, content_type = "application/problem+json"),
))]
fn take() {}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Clawland Fleet: the edge API of a node's agent",
        description = "What programs on a node may ask and hand in. gRPC (`schemas/edge.proto`) is on the same port.",
        version = "1",
        license(name = "BUSL-1.1"),
    ),
    servers((url = "http://127.0.0.1:9099")),
    paths(
        healthz, health, status, outbox, ledger, queue, telemetry, events, command, command_older, report, batch, metrics,
        openapi, config, devices, device, declare, declare_too, forget, device_sleeps, firmware, one, extend, local_report, take
    )
)]
struct Edge;

fn document() -> String {
    Edge::openapi().to_pretty_json().unwrap() + "\n"
}

#[test]
fn openapi_is_the_document_in_schemas() {
    let made = document();
    if std::env::var_os("FLEET_BLESS").is_some() {
        fs::write(Path::new(FILE), &made).unwrap();
    }
    let found = fs::read_to_string(FILE).unwrap();
    assert!(found == made, "schemas/openapi-edge.json is not what is described; bless it with FLEET_BLESS=1");
}

#[tokio::test]
async fn openapi_describes_every_route_and_only_those() {
    let (_folder, config) = quiet("openapi");
    let agent = start(config).await;
    let served = get_json(&url(&agent, "/openapi.json")).await;
    let made: Value = serde_json::from_str(&document()).unwrap();
    assert!(
        served == made,
        "the agent serves the document of its last build; build it again after a blessing"
    );
    let pairs = served["paths"].as_object().unwrap().iter().flat_map(|(path, item)| {
        item.as_object().unwrap().keys().map(move |method| (path.clone(), method.clone()))
    });
    let described: BTreeSet<_> = pairs.collect();
    let routes: BTreeSet<_> = (ROUTES.iter())
        .flat_map(|(path, methods)| methods.iter().map(|method| ((*path).to_owned(), (*method).to_owned())))
        .collect();
    assert_eq!(described, routes);
    let client = reqwest::Client::new();
    for (path, item) in served["paths"].as_object().unwrap() {
        let url = url(&agent, &path.replace("{id}", "none"));
        for method in ["get", "put", "post", "delete"] {
            let request = client.request(method.to_uppercase().parse().unwrap(), &url);
            let answer = request.header("content-type", "application/json").send().await.unwrap();
            let status = answer.status().as_u16();
            if item.get(method).is_some() {
                let known = item[method]["responses"].get(status.to_string());
                assert!(known.is_some(), "{method} {path} answers {status}");
            } else {
                assert_eq!(status, 405, "{method} {path}");
                let allow = answer.headers()["allow"].to_str().unwrap().to_lowercase();
                let allowed = item.as_object().unwrap().keys().all(|method| allow.contains(method.as_str()));
                assert!(allowed, "{path}: {allow}");
            }
        }
    }
    assert_eq!(get_json(&url(&agent, "/nowhere")).await["status"], 404);
    agent.stop().await;
}

#[test]
fn the_help_lists_every_route_and_only_those() {
    let (_, help, _) =
        crate::process::ask(std::process::Command::new(crate::process::BINARY).args(["run", "--help"]));
    let edge = help.split("The edge API,").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap();
    let mut listed = BTreeSet::new();
    let mut methods = Vec::new();
    let mut bare = false;
    for word in edge.split_whitespace() {
        if ["GET", "PUT", "POST", "DELETE"].contains(&word) {
            // A method goes for the paths behind it, and stands with those that follow it at once.
            if !bare {
                methods.clear();
            }
            methods.push(word.to_lowercase());
            bare = true;
        } else if word.starts_with('/') {
            let path = word.split('?').next().unwrap_or_default().trim_end_matches(',');
            listed.extend(methods.iter().map(|method| (path.to_owned(), method.clone())));
            bare = false;
        } else {
            bare = bare && word == "or";
        }
    }
    let routes = ROUTES
        .iter()
        .flat_map(|(path, methods)| methods.iter().map(|method| ((*path).to_owned(), (*method).to_owned())));
    assert_eq!(listed, routes.collect());
}
