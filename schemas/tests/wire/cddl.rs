//! What the encoder writes is what `fleet.cddl` says, and what `fleet.cddl` does not say is refused.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use cddl::validator::{Validator, cbor::CBORValidator, cbor_value::decode_cbor};
use ciborium::Value;
use fleet_schemas::{batch::Batch, cbor};
use proptest::prelude::*;
use serde::Serialize;

use crate::{given, vary};

const CDDL: &str = include_str!("../../fleet.cddl");

/// `fleet.cddl` parsed once for each rule that was asked for: parsing takes longer than validating.
fn document(rule: &'static str) -> &'static cddl::ast::CDDL<'static> {
    static PARSED: Mutex<BTreeMap<&str, &cddl::ast::CDDL<'static>>> = Mutex::new(BTreeMap::new());
    let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    parsed.entry(rule).or_insert_with(|| {
        // The first rule of a document is what it describes.
        let text: &str = Box::leak(format!("start = {rule}\n{CDDL}").into_boxed_str());
        Box::leak(Box::new(cddl::cddl_from_str(text, true).expect("fleet.cddl is CDDL")))
    })
}

/// Validates one CBOR item against one rule of `fleet.cddl`.
fn validate(rule: &'static str, bytes: &[u8]) -> Result<(), String> {
    let value = decode_cbor(bytes).map_err(|error| error.to_string())?;
    CBORValidator::new(document(rule), value, None).validate().map_err(|error| error.to_string())
}

fn holds(rule: &'static str, payload: &impl Serialize) -> Result<(), TestCaseError> {
    validate(rule, &cbor::encode(payload)).map_err(|error| TestCaseError::fail(format!("{rule}: {error}")))
}

fn value(payload: &impl Serialize) -> Value {
    cbor::decode(&cbor::encode(payload)).unwrap()
}

#[test]
fn the_examples_validate() {
    holds("birth-message", &given::birth()).unwrap();
    holds("death-message", &given::death()).unwrap();
    holds("heartbeat-message", &given::heartbeat()).unwrap();
    holds("ack-message", &given::ack()).unwrap();
    holds("telemetry-batch", &given::telemetry()).unwrap();
    holds("event-batch", &given::event_batch()).unwrap();
    holds("command-batch", &given::command_batch()).unwrap();
    holds("orders-message", &given::orders()).unwrap();
    holds("config-message", &given::desired()).unwrap();
    holds("tombstone", &given::tombstone()).unwrap();
    holds("device-report", &given::device_report()).unwrap();
    holds("update-order", &given::update_order()).unwrap();
    holds("update-report", &given::update_report()).unwrap();
    holds("versions-run", &given::birth().versions).unwrap();
}

proptest! {
    #[test]
    fn every_birth_validates(birth in vary::births()) {
        holds("birth-message", &birth)?;
    }

    #[test]
    fn every_death_validates(death in vary::deaths()) {
        holds("death-message", &death)?;
    }

    #[test]
    fn every_heartbeat_validates(heartbeat in vary::heartbeats()) {
        holds("heartbeat-message", &heartbeat)?;
    }

    #[test]
    fn every_ack_validates(ack in vary::acks()) {
        holds("ack-message", &ack)?;
    }

    #[test]
    fn every_telemetry_batch_validates(batch in vary::telemetries()) {
        holds("telemetry-batch", &batch)?;
    }

    #[test]
    fn every_event_batch_validates(batch in vary::event_batches()) {
        holds("event-batch", &batch)?;
    }

    #[test]
    fn every_report_validates(batch in vary::command_batches()) {
        holds("command-batch", &batch)?;
    }

    #[test]
    fn every_tombstone_validates(tombstone in vary::tombstones()) {
        holds("tombstone", &tombstone)?;
    }
}

/// Keys that may be absent, wherever they stand.
const OPTIONAL: [&str; 44] = [
    "commands",
    "config",
    "received",
    "applied",
    "failed",
    "retry",
    "offers",
    "cancels",
    "priority",
    "params",
    "delay_ms",
    "idempotent",
    "supersedes",
    "signature",
    "reason",
    "exit_code",
    "output",
    "result",
    "too_late",
    "may_have_executed",
    "cut",
    "instance",
    "name",
    "capabilities",
    "firmware",
    "skills",
    "running",
    "machine",
    "partial",
    "until_ms",
    "system",
    "event",
    "command",
    "telemetry",
    "backfill",
    "birth",
    "seq_to",
    "d",
    "u",
    "s",
    "n",
    "data",
    "device",
    "id",
];
/// Keys under which anything may stand.
const ANYTHING: [&str; 3] = ["data", "params", "result"];
/// Maps whose keys are data.
const TABLES: [&str; 3] = ["skills", "machine", "system"];

/// Every payload that differs from `value` in one place and is none any more: a required key gone, a key too
/// many, a value of another type. `at` names the place.
fn spoilt(value: &Value, at: &str) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    match value {
        Value::Map(entries) => {
            let mut more = entries.clone();
            more.push(("unheard_of".into(), Value::Null));
            all.push((format!("{at} with another key"), Value::Map(more)));
            for (index, (key, inner)) in entries.iter().enumerate() {
                let key = key.as_text().unwrap();
                if ANYTHING.contains(&key) {
                    continue;
                }
                let in_table = TABLES.iter().any(|table| at.ends_with(table));
                let at = format!("{at}/{key}");
                if !in_table && !OPTIONAL.contains(&key) {
                    let mut fewer = entries.clone();
                    fewer.remove(index);
                    all.push((format!("{at} absent"), Value::Map(fewer)));
                }
                all.extend(spoilt(inner, &at).into_iter().map(|(at, inner)| {
                    let mut entries = entries.clone();
                    entries[index].1 = inner;
                    (at, Value::Map(entries))
                }));
            }
            all.push((format!("{at} an array"), Value::Array(vec![])));
        }
        Value::Array(items) => {
            for (index, inner) in items.iter().enumerate() {
                all.extend(spoilt(inner, &format!("{at}/{index}")).into_iter().map(|(at, inner)| {
                    let mut items = items.clone();
                    items[index] = inner;
                    (at, Value::Array(items))
                }));
            }
            all.push((format!("{at} a map"), Value::Map(vec![])));
        }
        Value::Tag(tag, inner) => {
            all.push((format!("{at} without its tag"), (**inner).clone()));
            all.push((format!("{at} with another tag"), Value::Tag(1_234, inner.clone())));
            all.push((format!("{at} tagged text"), Value::Tag(*tag, Box::new("text".into()))));
        }
        // Not bytes: this validator panics where a word of a choice meets a byte string.
        Value::Text(_) => all.push((format!("{at} an integer"), 1.into())),
        Value::Bytes(_) => all.push((format!("{at} text"), "text".into())),
        Value::Integer(_) => {
            all.push((format!("{at} fractional"), 1.5.into()));
            all.push((format!("{at} text"), "1".into()));
        }
        Value::Float(_) | Value::Bool(_) => all.push((format!("{at} text"), "true".into())),
        other => panic!("{at}: no payload of ours has {other:?}"),
    }
    all.push((format!("{at} null"), Value::Null));
    all
}

/// How many places were spoilt, all of them refused.
fn refuses_the_spoilt(rule: &'static str, payload: &impl Serialize) -> usize {
    let all = spoilt(&value(payload), rule);
    let accepted: Vec<_> = (all.iter())
        .filter(|(_, wrong)| validate(rule, &cbor::encode(wrong)).is_ok())
        .map(|(at, _)| at)
        .collect();
    assert_eq!(accepted, Vec::<&String>::new());
    all.len()
}

#[test]
fn a_payload_spoilt_in_one_place_is_refused() {
    let spoilt = refuses_the_spoilt("birth-message", &given::birth())
        + refuses_the_spoilt("death-message", &given::death())
        + refuses_the_spoilt("heartbeat-message", &given::heartbeat())
        + refuses_the_spoilt("ack-message", &given::ack())
        + refuses_the_spoilt("telemetry-batch", &given::telemetry())
        + refuses_the_spoilt("event-batch", &given::event_batch())
        + refuses_the_spoilt("command-batch", &given::command_batch())
        + refuses_the_spoilt("orders-message", &given::orders())
        + refuses_the_spoilt("config-message", &given::desired())
        + refuses_the_spoilt("tombstone", &given::tombstone());
    assert!(spoilt > 300, "only {spoilt} places");
}

#[test]
fn a_body_spoilt_in_one_place_is_refused() {
    assert!(refuses_the_spoilt("sample-columns", &given::samples()) > 100);
    assert!(refuses_the_spoilt("event-list", &given::events()) > 20);
    assert!(refuses_the_spoilt("report-list", &given::reports()) > 20);
}

#[test]
fn the_envelope_looks_into_its_body() {
    let wrong = |body: &Value| Batch { body: cbor::encode(body), ..given::telemetry() };
    assert!(validate("telemetry-batch", &cbor::encode(&wrong(&value(&given::samples())))).is_ok());
    for (at, body) in spoilt(&value(&given::samples()), "body").into_iter().step_by(5) {
        assert!(validate("telemetry-batch", &cbor::encode(&wrong(&body))).is_err(), "{at}");
    }
    let cut = Batch { body: vec![0xa1], ..given::telemetry() };
    assert!(validate("telemetry-batch", &cbor::encode(&cut)).is_err());
    assert!(validate("telemetry-batch", &cbor::encode(&given::event_batch())).is_err());
    assert!(validate("event-batch", &cbor::encode(&given::telemetry())).is_err());
}

#[test]
fn numbers_words_and_lengths_out_of_range_are_refused() {
    let at = |payload: &Value, path: &[&str], new: Value| {
        let mut payload = payload.clone();
        let mut place = &mut payload;
        for step in path {
            place = match place {
                Value::Map(entries) => {
                    &mut entries.iter_mut().find(|(key, _)| key.as_text() == Some(*step)).unwrap().1
                }
                Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
                other => panic!("{step}: {other:?}"),
            };
        }
        *place = new;
        payload
    };
    let birth = value(&given::birth());
    let batch = value(&given::telemetry());
    let tombstone = value(&given::tombstone());
    let ack = value(&given::ack());
    let samples = value(&given::samples());
    let events = value(&given::events());
    let stream = ["lanes", "telemetry", "0", "stream"];
    let cases: [(&'static str, &Value, &[&str], Value); 22] = [
        ("birth-message", &birth, &["v"], 2.into()),
        ("birth-message", &birth, &["session"], vec![0; 7].into()),
        ("birth-message", &birth, &["boot"], vec![0; 9].into()),
        ("birth-message", &birth, &["clock"], "perhaps".into()),
        ("birth-message", &birth, &["epoch"], (-1).into()),
        ("birth-message", &birth, &["lanes", "telemetry", "0", "next_seq"], 0.into()),
        ("birth-message", &birth, &stream, vec![0; 15].into()),
        ("ack-message", &ack, &stream, vec![0; 17].into()),
        ("ack-message", &ack, &["credit"], (1_u64 << 32).into()),
        ("ack-message", &ack, &["lanes", "telemetry", "0", "verdict"], "maybe".into()),
        ("telemetry-batch", &batch, &["seq"], 0.into()),
        ("telemetry-batch", &batch, &["seq"], u64::MAX.into()),
        ("telemetry-batch", &batch, &["count"], 0.into()),
        ("telemetry-batch", &batch, &["count"], 10_001.into()),
        ("tombstone", &tombstone, &["lost"], "meteorite".into()),
        ("tombstone", &tombstone, &["body"], vec![0x80].into()),
        ("sample-columns", &samples, &["t0"], (1_u64 << 63).into()),
        ("sample-columns", &samples, &["series", "0", "m"], "".into()),
        ("sample-columns", &samples, &["series", "0", "m"], "é".repeat(32).into()),
        ("event-list", &events, &["0", "severity"], "awful".into()),
        ("event-list", &events, &["0", "message"], "x".repeat(4_097).into()),
        ("event-list", &events, &["0", "id"], "".into()),
    ];
    for (rule, payload, path, new) in cases {
        assert!(validate(rule, &cbor::encode(payload)).is_ok(), "{rule} before");
        let wrong = at(payload, path, new);
        assert!(validate(rule, &cbor::encode(&wrong)).is_err(), "{rule}: {path:?}");
    }
    let none: [Value; 0] = [];
    assert!(validate("event-list", &cbor::encode(&none)).is_err(), "an event batch without an event");
}

#[test]
fn no_rule_bears_the_name_of_a_key_or_of_the_prelude() {
    // RFC 8610 appendix D; a second definition of these is an error.
    const PRELUDE: [&str; 13] = [
        "any", "uint", "nint", "int", "bstr", "bytes", "tstr", "text", "number", "time", "float", "bool",
        "null",
    ];
    let code = CDDL.lines().map(|line| line.split(';').next().unwrap());
    let rules: Vec<&str> = code
        .clone()
        .filter_map(|line| Some(line.split_once(" =")?.0.trim_end()))
        .filter(|rule| !rule.contains(' '))
        .collect();
    assert!(rules.len() > 40 && rules.contains(&"birth-message"), "{rules:?}");
    assert!(rules.iter().all(|rule| !PRELUDE.contains(rule)), "{rules:?}");
    for line in code {
        for (before, _) in line.match_indices(':').map(|(at, _)| line.split_at(at)) {
            let key = before.split([' ', '{', '?']).next_back().unwrap();
            assert!(!rules.contains(&key), "{key} is a rule and a key in: {line}");
        }
    }
}
