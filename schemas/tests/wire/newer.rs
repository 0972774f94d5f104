//! Readers and writers of different age: keys of a newer writer are ignored, keys that may be absent are not
//! missed, and columns that only other writers make are read.

use ciborium::{Value, cbor};
use fleet_schemas::{
    Lane,
    ack::Ack,
    batch::{Batch, Envelope, Lost},
    cbor,
    command::{self, Orders},
    config::Desired,
    event,
    session::{Birth, Death, Heartbeat},
    telemetry::{Column, Samples},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::given::{self, NOON};

/// Calls `seen` with a value and all values in it.
pub(crate) fn visit(value: &Value, seen: &mut impl FnMut(&Value)) {
    seen(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| visit(item, seen)),
        Value::Map(entries) => entries.iter().for_each(|(_, inner)| visit(inner, seen)),
        Value::Tag(_, inner) => visit(inner, seen),
        _ => {}
    }
}

/// Maps whose keys are data, and the one that is a choice: nothing can be added to them unseen.
const CLOSED: [&str; 8] = ["skills", "machine", "system", "data", "verdict", "params", "result", "doc"];

/// What a newer writer of the same version may send: keys we do not know, of any shape, in every map.
fn extended(value: &Value) -> Value {
    match value {
        Value::Map(entries) => {
            let extra = cbor!({ "deep" => [1, { "x" => 1.5 }], "text" => "…" }).unwrap();
            let mut all = vec![("aaa".into(), Value::Null)];
            for (key, inner) in entries {
                let closed = key.as_text().is_some_and(|key| CLOSED.contains(&key));
                all.push((key.clone(), if closed { inner.clone() } else { extended(inner) }));
            }
            all.insert(all.len() / 2, ("middle".into(), extra));
            all.push(("zzz".into(), Value::Tag(1_234, Box::new(Value::Bytes(vec![0; 300])))));
            Value::Map(all)
        }
        Value::Array(items) => Value::Array(items.iter().map(extended).collect()),
        Value::Tag(tag, inner) => Value::Tag(*tag, Box::new(extended(inner))),
        other => other.clone(),
    }
}

fn value(payload: &impl Serialize) -> Value {
    cbor::decode(&cbor::encode(payload)).unwrap()
}

fn reads_past_new_keys<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(payload: &T) {
    let newer = cbor::encode(&extended(&value(payload)));
    assert!(newer.len() > cbor::encode(payload).len());
    assert_eq!(cbor::decode::<T>(&newer).as_ref(), Ok(payload));
}

#[test]
fn unknown_keys_are_ignored_at_every_level() {
    reads_past_new_keys::<Birth>(&given::birth());
    reads_past_new_keys::<Death>(&given::death());
    reads_past_new_keys::<Heartbeat>(&given::heartbeat());
    reads_past_new_keys::<Ack>(&given::ack());
    reads_past_new_keys::<Orders>(&given::orders());
    reads_past_new_keys::<Desired>(&given::desired());
    let newer = cbor::encode(&extended(&value(&given::reports())));
    assert_eq!(command::decode(&newer), Ok(given::reports()));
    reads_past_new_keys::<Batch>(&given::telemetry());
    reads_past_new_keys::<Batch>(&given::tombstone());
    let newer = cbor::encode(&extended(&value(&given::samples())));
    assert_eq!(Samples::decode(&newer), Ok(given::samples()));
    let newer = cbor::encode(&extended(&value(&given::events())));
    assert_eq!(event::decode(&newer), Ok(given::events()));
}

#[test]
fn lanes_of_a_newer_peer_are_left_out() {
    let Value::Map(mut entries) = value(&given::ack()) else { panic!("an ack is a map") };
    for (key, lanes) in &mut entries {
        if key.as_text() == Some("lanes") {
            lanes.as_map_mut().unwrap().push(("video".into(), cbor!([{ "frame" => 1 }]).unwrap()));
        }
    }
    let ack: Ack = cbor::decode(&cbor::encode(&Value::Map(entries))).unwrap();
    assert_eq!(ack, given::ack());
    assert!(ack.lanes.contains_key(&Lane::Telemetry));
}

#[test]
fn keys_that_may_be_absent_are_not_missed() {
    let mut birth = given::birth();
    birth.name = None;
    birth.instance = None;
    birth.commands = None;
    birth.config = None;
    birth.capabilities = vec![];
    birth.versions.firmware = None;
    birth.versions.skills.clear();
    birth.versions.running.clear();
    birth.machine.clear();
    birth.lanes.clear();
    let bytes = cbor::encode(&birth);
    for key in [
        "name",
        "instance",
        "capabilities",
        "firmware",
        "skills",
        "running",
        "machine",
        "partial",
        "commands",
        "config",
    ] {
        assert!(!bytes.windows(key.len()).any(|window| window == key.as_bytes()), "{key} is written");
    }
    assert_eq!(cbor::decode(&bytes), Ok(birth));
}

#[test]
fn another_version_is_answered_by_its_head_whatever_else_it_holds() {
    let newer = cbor!({ "v" => 7, "seq" => 12, "stream" => Value::Bytes(vec![3; 16]), "body" => [1, 2], "seal" => 1 });
    let Ok(Envelope::Unknown(head)) = Batch::decode(&cbor::encode(&newer.unwrap())) else {
        panic!("not told apart")
    };
    assert_eq!((head.v, head.seq, head.stream.0), (7, 12, [3; 16]));
}

#[test]
fn a_reason_or_key_of_a_newer_agent_keeps_its_tombstone_readable() {
    let Value::Map(mut entries) = value(&given::tombstone()) else { panic!("a tombstone is a map") };
    for (key, inner) in &mut entries {
        if key.as_text() == Some("lost") {
            *inner = "meteorite".into();
        }
    }
    let Ok(Envelope::Known(read)) = Batch::decode(&cbor::encode(&Value::Map(entries))) else {
        panic!("not readable")
    };
    assert_eq!(read, Batch { lost: Some(Lost::Other), ..given::tombstone() });
}

/// A telemetry payload that our own encoder would not write (32-bit floats, deltas of wide integers, indefinite
/// lengths, keys in another order, keys we do not know), and the samples that are in it.
pub(crate) fn foreign_telemetry() -> (Vec<u8>, Samples) {
    let typed = |tag, bytes: Vec<u8>| Value::Tag(tag, Box::new(Value::Bytes(bytes)));
    let floats: Vec<u8> = [1.5_f32, -0.25, 3.0].iter().flat_map(|n| n.to_le_bytes()).collect();
    let deltas: Vec<u8> = [5_i16, -300, 2, 0].iter().flat_map(|n| n.to_le_bytes()).collect();
    let body = cbor!({
        "future" => { "why" => "not" },
        "series" => [
            {
                "v" => { "n" => Value::Bytes(vec![0b0100]), "a" => typed(85, floats) },
                "m" => "half",
            },
            {
                "m" => "Δ",
                "d" => "esp-7",
                "u" => "Cel",
                "v" => { "s" => 2, "d" => 2_000, "a" => typed(77, deltas), "quality" => "good" },
            },
        ],
        "dt" => { "a" => typed(64, vec![0, 10, 10, 250]) },
        "t0" => NOON,
    });
    let body = cbor::encode(&body.unwrap());
    let batch = value(&given::batch(7, body));
    // The envelope with an indefinite length.
    let mut payload = vec![0xbf];
    for (key, inner) in extended(&batch).as_map().unwrap() {
        payload.extend(cbor::encode(key));
        payload.extend(cbor::encode(inner));
    }
    payload.push(0xff);
    let samples = Samples::decode(&given_body(&payload)).unwrap();
    assert_eq!(samples.times(), [NOON, NOON + 10, NOON + 10, NOON + 250]);
    let values: Vec<_> = samples.series.iter().map(|series| samples.values(series)).collect();
    assert_eq!((values[0][0], values[0][1], values[0][3]), (1.5, -0.25, 3.0));
    assert!(values[0][2].is_nan());
    assert_eq!(values[1], [20.05, 17.05, 17.07, 17.07]);
    assert_eq!(samples.dt, Column::of_integers(&[0, 10, 10, 250]));
    (payload, samples)
}

fn given_body(payload: &[u8]) -> Vec<u8> {
    match Batch::decode(payload) {
        Ok(Envelope::Known(batch)) => batch.body,
        other => panic!("{other:?}"),
    }
}
