//! What describes the edge API, compared with the types that it is made of: no field and no route may be missing in
//! `schemas/openapi-edge.json`, `schemas/edge.proto` or `schemas/edge.md`. The routes of the OpenAPI document, and what
//! is answered, are compared in `tests/agent/openapi.rs`.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost_types::{DescriptorProto, FileDescriptorProto, FileDescriptorSet};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, Visitor, value::Error},
    forward_to_deserialize_any,
};
use serde_json::Value;

use super::*;

const DOCUMENT: &str = include_str!("../../../schemas/openapi-edge.json");
const PAGE: &str = include_str!("../../../schemas/edge.md");

/// The shapes of the document and the types behind them. `None`: read from a tree, not into a type.
fn shapes() -> BTreeMap<&'static str, Option<&'static [&'static str]>> {
    BTreeMap::from([
        ("Accepted", fields::<write::Accepted>()),
        ("Account", fields::<view::AccountView>()),
        ("Batch", None),
        ("Budget", fields::<view::BudgetView>()),
        ("Command", fields::<commands::CommandView>()),
        ("Config", fields::<config::ConfigView>()),
        ("ConfigVersion", fields::<fleet_schemas::config::Version>()),
        ("DeclaredDevice", fields::<devices::Body>()),
        ("Device", fields::<devices::View>()),
        ("DeviceList", fields::<devices::List>()),
        ("DeviceSleep", fields::<devices::Sleep>()),
        ("Enqueued", fields::<commands::Enqueued>()),
        ("Event", fields::<body::RawEvent>()),
        ("Extend", fields::<commands::ExtendBody>()),
        ("Failed", fields::<fleet_schemas::config::Failed>()),
        ("Health", fields::<http::Health<'_>>()),
        ("HeldConfig", fields::<config::HeldView>()),
        ("Identity", fields::<crate::identity::live::IdentityView>()),
        ("Ledger", fields::<view::LedgerView>()),
        ("LocalCommand", fields::<commands::Taken>()),
        ("LocalReport", fields::<commands::ReportBody>()),
        ("Outbox", fields::<view::OutboxView>()),
        ("OutboxLane", fields::<view::LaneView>()),
        ("OutboxStream", fields::<view::StreamView>()),
        ("Problem", fields::<problem::Problem>()),
        ("Queue", fields::<commands::QueueView>()),
        ("Reason", fields::<fleet_schemas::command::Reason>()),
        ("Report", None),
        ("Running", fields::<fleet_schemas::update::Running>()),
        ("Sample", fields::<body::RawSample<'_>>()),
        ("Status", fields::<view::StatusView>()),
        ("Take", fields::<commands::TakeBody>()),
        ("Taken", fields::<field::Taken>()),
        ("Telemetry", fields::<body::Telemetry<'_>>()),
        ("Update", fields::<crate::update::view::UpdateView>()),
        ("Updates", fields::<crate::update::view::UpdatesView>()),
        ("Wanted", fields::<commands::Wanted>()),
    ])
}

/// Older words for a field, which the document tells in prose.
const OLDER: [&str; 4] = ["type", "command_type", "payload", "timeout_seconds"];

/// Messages and the shapes that say the same, with fields that only the one or only the other has.
const SAME: &[(&str, &str, &[&str], &[&str])] = &[
    ("Accepted", "Accepted", &[], &[]),
    ("Account", "Account", &[], &[]),
    // `uptime_s` has its unit in its name; `cloud` is a word of older tools.
    ("AgentStatus", "Status", &["uptime_s"], &["uptime", "cloud"]),
    ("Budget", "Budget", &[], &[]),
    ("Command", "Command", &["over"], &[]),
    ("ConfigFailure", "Failed", &[], &[]),
    ("Device", "Device", &[], &[]),
    ("DeviceList", "DeviceList", &[], &[]),
    ("EnqueueRequest", "Wanted", &["id"], &[]),
    // What was asked for is known to who asked.
    ("Enqueued", "Enqueued", &[], &["status", "command"]),
    ("Event", "Event", &[], &[]),
    ("ExtendRequest", "Extend", &["id"], &[]),
    ("HeldConfig", "HeldConfig", &["epoch", "n"], &["version"]),
    ("Identity", "Identity", &[], &[]),
    ("LedgerState", "Ledger", &[], &[]),
    ("LocalCommand", "LocalCommand", &[], &[]),
    ("NodeConfig", "Config", &[], &[]),
    // Lanes are a list of named ones.
    ("OutboxLane", "OutboxLane", &["lane"], &[]),
    ("OutboxState", "Outbox", &[], &[]),
    ("OutboxStream", "OutboxStream", &[], &[]),
    ("Queue", "Queue", &[], &[]),
    ("Reason", "Reason", &[], &[]),
    ("RegisterDeviceRequest", "DeclaredDevice", &["id"], &[]),
    ("ReportRequest", "LocalReport", &["id", "outcome"], &["state"]),
    ("Running", "Running", &[], &[]),
    ("Sample", "Sample", &[], &[]),
    ("SleepDeviceRequest", "DeviceSleep", &["id"], &[]),
    // A stream needs no wait.
    ("TakeRequest", "Take", &[], &["wait_s"]),
    ("TelemetryBatch", "Telemetry", &["id"], &[]),
    ("Update", "Update", &[], &[]),
    ("Updates", "Updates", &[], &[]),
];

/// Messages that only gRPC needs.
const ALONE: [&str; 15] = [
    "SubmitRequest",
    "StreamAccepted",
    "EventsRequest",
    "GetCommandRequest",
    "ListCommandsRequest",
    "WatchCommandsRequest",
    "Done",
    "GetConfigRequest",
    "WatchConfigRequest",
    "ListDevicesRequest",
    "GetDeviceRequest",
    "RemoveDeviceRequest",
    "GetOutboxRequest",
    "GetLedgerRequest",
    "GetStatusRequest",
];

/// Asks a type which fields it has.
struct Asking(Option<&'static [&'static str]>);

impl<'de> Deserializer<'de> for &mut Asking {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        self.0 = Some(fields);
        Err(Error::custom("that is all"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct
        seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn fields<T: Deserialize<'static>>() -> Option<&'static [&'static str]> {
    let mut asking = Asking(None);
    let _ = T::deserialize(&mut asking);
    Some(asking.0.expect("a struct"))
}

/// The shapes of the document that have fields, by name.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let document: Value = serde_json::from_str(DOCUMENT).unwrap();
    let shapes = document["components"]["schemas"].as_object().unwrap();
    let with_fields = shapes.iter().filter_map(|(name, shape)| {
        Some((name.clone(), shape["properties"].as_object()?.keys().cloned().collect()))
    });
    with_fields.collect()
}

fn edge() -> FileDescriptorProto {
    let files = FileDescriptorSet::decode(grpc::DESCRIPTORS).unwrap().file;
    files.into_iter().find(|file| file.package() == "fleet.edge.v1").unwrap()
}

#[test]
fn every_field_is_in_the_document() {
    let (documented, shapes) = (documented(), shapes());
    let names: Vec<_> = documented.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        shapes.keys().copied().collect::<Vec<_>>(),
        "a shape without its type, or one too many"
    );
    for (name, fields) in shapes {
        let Some(fields) = fields else { continue };
        let told = |field: &&&str| !OLDER.contains(field) || documented[name].contains(**field);
        let fields: BTreeSet<_> = fields.iter().filter(told).map(|field| (*field).to_owned()).collect();
        assert_eq!(documented[name], fields, "{name}: describe it in tests/agent/openapi.rs");
    }
}

#[test]
fn messages_have_the_fields_of_the_document() {
    let documented = documented();
    let messages = edge().message_type;
    let known: BTreeSet<_> = SAME.iter().map(|same| same.0).chain(ALONE).collect();
    let found: BTreeSet<_> = messages.iter().map(DescriptorProto::name).collect();
    assert_eq!(found, known, "a message that is compared with nothing, or one too many");
    for (message, shape, only_there, only_here) in SAME {
        let message = messages.iter().find(|found| found.name() == *message).unwrap();
        // JSON in a text says so in its name.
        let fields = message.field.iter().map(|field| field.name().trim_end_matches("_json"));
        let mut fields: BTreeSet<_> =
            fields.filter(|name| !only_there.contains(name)).map(str::to_owned).collect();
        fields.extend(only_here.iter().map(|name| (*name).to_owned()));
        assert_eq!(fields, documented[*shape], "{} and {shape}", message.name());
    }
}

#[test]
fn the_page_lists_every_route_and_every_call() {
    // The page has other tables.
    let table = PAGE.lines().skip_while(|line| !line.starts_with("| REST | gRPC")).skip(1);
    let rows = table.take_while(|line| line.starts_with('|')).filter(|line| line.starts_with("| `"));
    let words = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let (routes, calls): (BTreeSet<_>, BTreeSet<_>) =
        words.map(str::to_owned).partition(|word| word.contains(" /"));
    let served = ROUTES.iter().flat_map(|(path, methods)| {
        methods.iter().map(move |method| format!("{} {path}", method.to_uppercase()))
    });
    assert_eq!(routes, served.collect());
    let services = edge().service;
    let described = services.iter().flat_map(|service| {
        service.method.iter().map(|method| format!("{}/{}", service.name(), method.name()))
    });
    assert_eq!(calls, described.collect());
}
