//! The JSON of the HTTP API, as the hub writes it and the CLI reads it.
//!
//! Owns field names only. Holds no logic; times are Unix milliseconds, lists are `{items, next}`.

pub mod config;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One page of a list; `next` is the cursor of the following page, absent on the last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Hand it back as `cursor`.
    pub next: Option<String>,
}

/// One node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its id.
    pub id: String,
    /// Its name for people.
    #[serde(default)]
    pub name: Option<String>,
    /// What kind of machine.
    #[serde(default)]
    pub kind: String,
    /// Presence: `new|online|suspect|offline|sleeping|unknown`.
    pub state: String,
    /// Where it belongs.
    #[serde(default)]
    pub site: Option<String>,
    /// Where it is.
    #[serde(default)]
    pub location: Option<Location>,
    /// Labels an operator gave.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What it can do.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// What it runs.
    #[serde(default)]
    pub versions: Versions,
    /// When it was first seen.
    #[serde(default)]
    pub first_seen_ms: Option<i64>,
    /// When it was last seen.
    #[serde(default)]
    pub last_seen_ms: Option<i64>,
    /// Its count of sessions.
    #[serde(default)]
    pub session_epoch: u64,
    /// Figures of the last heartbeat by metric.
    #[serde(default)]
    pub system: BTreeMap<String, f64>,
    /// Host name, operating system and the like.
    #[serde(default)]
    pub machine: BTreeMap<String, String>,
    /// What its outbox holds by the last heartbeat.
    #[serde(default)]
    pub outbox: Option<Outbox>,
    /// Devices that it reported or that have series, the node itself aside.
    #[serde(default)]
    pub devices_count: usize,
    /// Wanted and told configuration versions.
    #[serde(default)]
    pub config: ConfigVersions,
    /// Whether it may come in.
    #[serde(default)]
    pub enrolment: Enrolment,
}

/// Whether a node may come in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolment {
    /// `none|pending|enrolled|revoked`; `none` for a node without a certificate.
    pub state: String,
    /// When its certificate ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after_ms: Option<i64>,
    /// When it was shut out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_ms: Option<i64>,
    /// Why it was shut out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Default for Enrolment {
    fn default() -> Self {
        Self { state: "none".to_owned(), not_after_ms: None, revoked_ms: None, reason: None }
    }
}

/// Degrees, WGS 84.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Location {
    /// -90 to 90.
    pub lat: f64,
    /// -180 to 180.
    pub lon: f64,
}

/// What a node runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Versions {
    /// The agent.
    #[serde(default)]
    pub agent: String,
    /// The firmware or system image, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// Skills by name.
    #[serde(default)]
    pub skills: BTreeMap<String, String>,
}

/// What an outbox holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Outbox {
    /// Records that the hub has not yet accounted for.
    pub records: u64,
    /// Bytes held.
    pub bytes: u64,
    /// Bytes it may hold.
    pub quota_bytes: u64,
}

/// Versions of the configuration; absent while there is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfigVersions {
    /// Wanted.
    #[serde(default)]
    pub desired_version: Option<String>,
    /// Told: the one that runs.
    #[serde(default)]
    pub reported_version: Option<String>,
    /// `unmanaged|in_sync|pending|failed|offline`.
    #[serde(default)]
    pub state: String,
}

/// The answer of a telemetry query.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Telemetry {
    /// Series, sorted by device and metric.
    pub series: Vec<Series>,
}

/// One series and its points.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The device, empty for the node itself.
    pub device: String,
    /// The metric.
    pub metric: String,
    /// The unit, where known.
    #[serde(default)]
    pub unit: Option<String>,
    /// `[time_ms, value]`, ascending.
    pub points: Vec<(i64, f64)>,
}

/// A device behind a node, as its node reports it and its series show it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Device {
    /// Its id.
    pub id: String,
    /// `online|late|offline|sleeping|unknown`: `unknown` while its node is not there, and of a device that its node never
    /// reported.
    #[serde(default)]
    pub state: String,
    /// Since when, by the node's last report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<i64>,
    /// What kind of board.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// A name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The version that it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    /// What it can do.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// When it was last heard, as far as the hub knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen_ms: Option<i64>,
    /// Until when it sleeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
    /// How often it speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_ms: Option<u64>,
    /// How long it sleeps at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep_ms: Option<u64>,
    /// Whether its records have time and number of their arrival at the node, because it tells none.
    #[serde(default)]
    pub unsequenced: bool,
    /// Its metrics.
    pub metrics: Vec<String>,
    /// The time of its newest sample.
    pub last_ms: Option<i64>,
}

/// One event as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The node.
    pub node: String,
    /// When it happened, corrected where the node's clock was wrong.
    pub time_ms: i64,
    /// When the hub stored it.
    #[serde(default)]
    pub stored_ms: i64,
    /// What kind of thing.
    pub kind: String,
    /// `info|warning|error|critical`.
    pub severity: String,
    /// A sentence.
    pub message: String,
    /// The device, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The submitter's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Anything more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
}

/// A saved selector.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// What it selects.
    pub selector: String,
    /// How many nodes that is now.
    #[serde(default)]
    pub nodes_count: usize,
}

/// The account of every record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Whether no account is `broken`.
    pub balanced: bool,
    /// One per node and lane.
    pub accounts: Vec<Account>,
    /// With `verify`: what counting rows found to differ from the marks; empty when nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub findings: Option<Vec<Finding>>,
}

/// One node's lane, in records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The node.
    pub node: String,
    /// The lane.
    pub lane: String,
    /// `balanced|pending|broken`.
    pub state: String,
    /// Sum of the terms.
    pub produced: u64,
    /// In the store.
    pub stored: u64,
    /// Stored once, and gone by retention.
    pub expired: u64,
    /// Kept raw because the body was bad.
    pub quarantined: u64,
    /// Declared gone.
    pub lost: u64,
    /// Given up with the node.
    pub written_off: u64,
    /// Still in the outbox.
    pub at_edge: u64,
    /// Records that came again and were not stored again.
    pub duplicates: u64,
    /// Time of the snapshot.
    pub as_of_ms: i64,
    /// Why it is broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What counting rows found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The node.
    pub node: String,
    /// The lane.
    pub lane: String,
    /// Records by the marks.
    pub expected: u64,
    /// Records by counting.
    pub counted: u64,
}

/// The hub in one look.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the hub.
    pub version: String,
    /// The hub's clock.
    pub now_ms: i64,
    /// Whether it accepts data.
    pub ready: bool,
    /// Why not.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Nodes by presence state.
    #[serde(default)]
    pub nodes_by_state: BTreeMap<String, u64>,
    /// Accounts by state.
    #[serde(default)]
    pub accounts_by_state: BTreeMap<String, u64>,
    /// Sums of all accounts, in records.
    #[serde(default)]
    pub records: BTreeMap<String, u64>,
    /// Figures since the start of the hub, by name.
    #[serde(default)]
    pub counters: BTreeMap<String, u64>,
    /// The filesystem that holds its data, where that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskSpace>,
    /// Where it listens: `http`, `https` (instead of it), `mqtt`, `mqtts`, `node_https`.
    #[serde(default)]
    pub listeners: BTreeMap<String, String>,
}

/// A filesystem.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpace {
    /// Bytes that are left for the hub.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// The answer that makes a join token; the only one that has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewJoinToken {
    /// Names it.
    pub id: String,
    /// The token.
    pub token: String,
    /// When it ends.
    pub expires_ms: i64,
    /// How many nodes may join by it.
    pub uses: u32,
    /// Labels that its nodes get.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether each node has to be approved.
    pub approve: bool,
    /// The node that it gives a new key.
    pub replace: Option<String>,
}

/// A join token in the list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Names it.
    pub id: String,
    /// `active|used|expired`.
    pub state: String,
    /// When it was made.
    pub created_ms: i64,
    /// Who made it.
    pub created_by: String,
    /// When it ends.
    pub expires_ms: i64,
    /// How many nodes may join by it.
    pub uses: u32,
    /// The nodes that did.
    #[serde(default)]
    pub used_by: Vec<String>,
    /// Labels that its nodes get.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Whether each node has to be approved.
    pub approve: bool,
    /// The node that it gives a new key.
    pub replace: Option<String>,
}

/// The answer that makes a field token; the only one that has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewFieldToken {
    /// Names it.
    pub id: String,
    /// The token.
    pub token: String,
    /// The node that it serves; the first that comes, when absent.
    pub node: Option<String>,
    /// When it ends; never, when absent.
    pub expires_ms: Option<i64>,
    /// Labels that its node gets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A field token in the list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldToken {
    /// Names it.
    pub id: String,
    /// `unused|bound|expired`.
    pub state: String,
    /// The node that it serves.
    pub node: Option<String>,
    /// When that came first.
    pub bound_ms: Option<i64>,
    /// When it was made.
    pub created_ms: i64,
    /// Who made it.
    pub created_by: String,
    /// When it ends; never, when absent.
    pub expires_ms: Option<i64>,
    /// Labels that its node gets.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// A gene in the list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Gene {
    /// SHA-256 of its canonical JSON without `asset_id`, hexadecimal: names it.
    pub digest: String,
    /// The `asset_id` that its publisher gave it.
    pub asset_id: Option<String>,
    /// Whether that is the digest.
    pub verified: bool,
    /// Its own id, where it has one.
    pub id: Option<String>,
    /// What kind of gene.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The node that published it first.
    pub node: String,
    /// When it came first.
    pub first_ms: i64,
    /// Its JSON, in `GET genes/{digest}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gene: Option<serde_json::Value>,
}

/// The holder of a token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whoami {
    /// Its name.
    pub name: String,
    /// `viewer|operator|admin`.
    pub role: String,
    /// When the token ends; never, when absent.
    pub expires_ms: Option<i64>,
}

/// The answer that makes an operator; the only one that has the token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewOperator {
    /// Its name.
    pub name: String,
    /// `viewer|operator|admin`.
    pub role: String,
    /// The API token.
    pub token: String,
    /// When it ends; never, when absent.
    pub expires_ms: Option<i64>,
}

/// An operator in the list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// Its name.
    pub name: String,
    /// `viewer|operator|admin`.
    pub role: String,
    /// `active|expired`.
    pub state: String,
    /// When it was made.
    pub created_ms: i64,
    /// Who made it.
    pub created_by: String,
    /// When it ends; never, when absent.
    pub expires_ms: Option<i64>,
}

/// The answer that makes an access: a password, or a certificate with the CAs to trust.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewAccess {
    /// The MQTT user name.
    pub username: String,
    /// The password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
    /// The certificate, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after_ms: Option<i64>,
    /// The CAs to trust, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// An access in the list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    /// The MQTT user name.
    pub name: String,
    /// `password|certificate`.
    pub by: String,
    /// Filters it may subscribe to.
    #[serde(default)]
    pub read: Vec<String>,
    /// Filters it may publish to.
    #[serde(default)]
    pub write: Vec<String>,
    /// When it was made.
    pub created_ms: i64,
    /// Who made it.
    pub created_by: String,
}

/// One change that was made.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When.
    pub at_ms: i64,
    /// Who: `operator NAME`, `node ID` or `hub`.
    pub who: String,
    /// What was done, such as `node.patch`.
    pub action: String,
    /// To what.
    pub target: String,
    /// With what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<serde_json::Value>,
}

/// The hub's certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pki {
    /// Where a change of the CA stands: `settled`, `moving` (nodes are given certificates of the new one) or
    /// `draining` (the hub shows the new one).
    pub stage: String,
    /// The CAs that are trusted, oldest first.
    pub authorities: Vec<Authority>,
    /// The hub's own certificate.
    pub server: ServerCertificate,
    /// How many nodes have a certificate of an old CA.
    pub nodes_waiting_count: usize,
    /// The first thousand of them.
    #[serde(default)]
    pub nodes_waiting: Vec<String>,
}

/// A CA of the hub.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// SHA-256 of its public key, as in join tokens.
    pub pin: String,
    /// When it was made.
    pub made_ms: i64,
    /// When it ends.
    pub not_after_ms: i64,
    /// Whether it signs the certificates of nodes and tools.
    pub signs_clients: bool,
    /// Whether it signed the hub's own.
    pub signs_server: bool,
}

/// The hub's own certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerCertificate {
    /// When it was made.
    pub made_ms: i64,
    /// When it ends.
    pub not_after_ms: i64,
    /// The names in it.
    pub names: Vec<String>,
}

/// What became of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// Whether nothing was changed on purpose.
    pub dry_run: bool,
    /// Lines that were (or would be) applied.
    pub applied: usize,
    /// Lines that were not.
    pub failed: usize,
    /// One per line of the file, the header aside.
    pub lines: Vec<ImportLine>,
}

/// What became of one line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportLine {
    /// Its number in the file, from 1.
    pub line: u64,
    /// The node, where it could be read.
    pub id: String,
    /// `created|changed|unchanged|failed`.
    pub result: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A new command, or one that is being canceled.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BriefCommand {
    /// Its id, a UUIDv7.
    pub id: String,
    /// Where it stands at each node, at most 10,000.
    pub executions: Vec<BriefExecution>,
    /// Where the next page of `commands/{id}` begins, when there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Where a command stands at one node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BriefExecution {
    /// The node.
    pub node: String,
    /// `queued|sent|accepted|running|succeeded|failed|timed_out|rejected|canceled|expired|superseded`.
    pub state: String,
    /// The node was asked to cancel it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel_asked: bool,
}

/// One command.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Command {
    /// Its id, a UUIDv7.
    pub id: String,
    /// What to do.
    pub kind: String,
    /// With what; only of one command, not in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<serde_json::Value>,
    /// Its queue.
    pub queue: String,
    /// Higher goes first.
    #[serde(default)]
    pub priority: i8,
    /// Whether doing it twice is the same as doing it once.
    #[serde(default)]
    pub idempotent: bool,
    /// Waiting commands with the same key gave way to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub supersedes: Option<String>,
    /// When it was made.
    pub created_ms: i64,
    /// It does not begin before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<i64>,
    /// It does not begin after.
    pub not_after_ms: i64,
    /// Most that it may run.
    pub timeout_ms: u64,
    /// Who wanted it.
    #[serde(default)]
    pub by: String,
    /// The selector that chose the nodes, where one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// How many nodes it is for.
    #[serde(default)]
    pub nodes_count: u32,
    /// Executions by state, without zeros.
    #[serde(default)]
    pub states: BTreeMap<String, u32>,
    /// Of one command: a page of its executions. Of a node's list: its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub executions: Vec<Execution>,
    /// Hand it back as `cursor` for more executions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A command at one node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Execution {
    /// The node.
    pub node: String,
    /// As in [`BriefExecution`].
    pub state: String,
    /// Every state it had, oldest first.
    #[serde(default)]
    pub history: Vec<Step>,
    /// It waits at the hub until then, for its time or its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before_ms: Option<i64>,
    /// When a cancel was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_asked_ms: Option<i64>,
    /// The node said that the cancel came too late.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub too_late: bool,
    /// The exit code of a program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Its output, at most 64 KiB; bytes that are no UTF-8 are replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Bytes of output that are kept.
    #[serde(default)]
    pub output_bytes: u64,
    /// There was more output.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub output_cut: bool,
    /// What it gave, for kinds that give something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<serde_json::Value>,
    /// What the node said after it was over here, where that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Step>,
}

/// A state and since when.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// The state.
    pub state: String,
    /// Since when.
    pub at_ms: i64,
    /// Why, where there is more to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

/// Why an execution is where it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// A stable word.
    pub code: String,
    /// A sentence.
    pub message: String,
    /// Whether it may have been done, wholly or in part.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_have_executed: bool,
}

/// Why a node is in its state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeWhy {
    /// The node.
    pub node: String,
    /// Its state, as in [`Node`].
    pub state: String,
    /// The state with what led to it, then whatever else is the matter.
    pub causes: Vec<Cause>,
}

/// Why a command is where it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandWhy {
    /// Its id.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// Executions by state, without zeros.
    #[serde(default)]
    pub states: BTreeMap<String, u32>,
    /// By node.
    pub items: Vec<ExecutionWhy>,
    /// Hand it back as `cursor` for more.
    #[serde(default)]
    pub next: Option<String>,
}

/// Why a command is where it is at one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecutionWhy {
    /// The node.
    pub node: String,
    /// As in [`BriefExecution`].
    pub state: String,
    /// The state, with what led to it.
    pub causes: Vec<Cause>,
}

/// A state or an event, and what led to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// Since when or when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<i64>,
    /// Until when, where it is over or has an end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
    /// What is so, in a sentence.
    pub what: String,
    /// What led to it, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<Cause>,
}

/// A problem (RFC 9457).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A stable word: `about:blank` or `urn:clawland:fleet:…`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The status in words.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong and what to do.
    #[serde(default)]
    pub detail: String,
    /// Which members of the input are wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
    /// The revision that counts, where another was expected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

/// One wrong member.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// JSON pointer (RFC 6901) into the body, or `?name` for a query parameter.
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}
