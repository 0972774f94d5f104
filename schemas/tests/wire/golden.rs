//! Golden bytes: what a released writer sent stays readable, and what the encoder writes does not change unseen.
//!
//! `FLEET_BLESS=1 cargo test -p fleet-schemas golden` writes the files anew; a difference in the commit is then a
//! change of the wire, to be made on purpose. The JSON beside a file holds the samples that any reader must find
//! in it, `[time_ms, device, metric, unit, value]`.

use std::{fmt::Debug, fs, path::PathBuf};

use ciborium::Value;
use fleet_schemas::{
    ack::Ack,
    batch::{Batch, Envelope},
    cbor::{self, Packer, Unpacker},
    command::{self, Orders},
    config::Desired,
    device, event, limits,
    session::{Birth, Death, Heartbeat},
    telemetry::Samples,
    update,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{given, newer};

/// The golden file, after `written` was stored there if that is asked for.
fn golden(name: &str, written: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var_os("FLEET_BLESS").is_some_and(|bless| bless == "1") {
        fs::write(&path, written).unwrap();
    }
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; bless it with FLEET_BLESS=1", path.display()))
}

/// Old bytes give the value, and the value gives the old bytes.
fn keeps<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, value: &T) {
    let bytes = golden(name, &cbor::encode(value));
    assert_eq!(cbor::decode::<T>(&bytes).as_ref(), Ok(value), "{name} is read differently");
    assert_eq!(cbor::encode(value), bytes, "{name} is written differently");
}

fn known(plain: &[u8]) -> Batch {
    match Batch::decode(plain) {
        Ok(Envelope::Known(batch)) => batch,
        other => panic!("{other:?}"),
    }
}

/// The samples as JSON text, one a line: what readers in other languages compare with.
fn listed(samples: &Samples) -> String {
    let times = samples.times();
    let mut lines = Vec::new();
    for series in &samples.series {
        for (time, value) in times.iter().zip(samples.values(series)) {
            if !value.is_nan() {
                let line = (time, &series.d, &series.m, &series.u, value);
                lines.push(serde_json::to_string(&line).unwrap());
            }
        }
    }
    format!("[\n{}\n]\n", lines.join(",\n"))
}

fn keeps_samples(name: &str, payload: &[u8], expected: &Samples) {
    let payload = golden(&format!("{name}.bin"), payload);
    let mut unpacker = Unpacker::default();
    let batch = known(unpacker.unpack(&payload).unwrap());
    let samples = Samples::decode(&batch.body).unwrap();
    assert_eq!(&samples, expected, "{name} is read differently");
    assert_eq!(samples.count(), batch.count);
    let list = listed(&samples);
    let kept = golden(&format!("{name}.json"), list.as_bytes());
    assert_eq!(list.as_bytes(), kept, "{name} holds other samples");
}

#[test]
fn session_payloads_keep_their_bytes() {
    keeps::<Birth>("birth.bin", &given::birth());
    keeps::<Death>("death.bin", &given::death());
    keeps::<Heartbeat>("heartbeat.bin", &given::heartbeat());
    keeps::<Ack>("ack.bin", &given::ack());
}

#[test]
fn event_batches_and_tombstones_keep_their_bytes() {
    keeps::<Batch>("event.bin", &given::event_batch());
    keeps::<Batch>("tombstone.bin", &given::tombstone());
    keeps::<device::Report>("device.bin", &given::device_report());
    keeps::<update::Report>("update.bin", &given::update_report());
    let batch = known(&golden("event.bin", &cbor::encode(&given::event_batch())));
    assert_eq!(event::decode(&batch.body), Ok(given::events()));
}

#[test]
fn commands_and_configuration_keep_their_bytes() {
    keeps::<Orders>("orders.bin", &given::orders());
    keeps::<Batch>("command.bin", &given::command_batch());
    keeps::<Desired>("config.bin", &given::desired());
    keeps::<update::Order>("update-order.bin", &given::update_order());
    let batch = known(&golden("command.bin", &cbor::encode(&given::command_batch())));
    assert_eq!(command::decode(&batch.body), Ok(given::reports()));
}

#[test]
fn telemetry_keeps_its_bytes_inside_the_frame() {
    let plain = cbor::encode(&given::telemetry());
    let packed = Packer::new(limits::ZSTD_LEVEL).pack(plain.clone());
    assert!(packed.len() < plain.len());
    keeps_samples("telemetry", &packed, &given::samples());
    // The frame itself may differ from one release of zstd to the next; what is in it may not.
    let mut unpacker = Unpacker::default();
    let kept = golden("telemetry.bin", &packed);
    assert_eq!(unpacker.unpack(&kept), Ok(&plain[..]), "telemetry.bin is written differently");
}

#[test]
fn the_golden_telemetry_has_every_kind_of_column() {
    let plain: Value = cbor::decode(&given::telemetry().body).unwrap();
    let mut tags = Vec::new();
    newer::visit(&plain, &mut |value| {
        if let Value::Tag(tag, _) = value {
            tags.push(*tag);
        }
    });
    for tag in [64, 69, 70, 72, 77, 78, 79, 86] {
        assert!(tags.contains(&tag), "no column of tag {tag}");
    }
    for key in ["s", "d", "n", "u"] {
        let text = format!("{plain:?}");
        assert!(text.contains(&format!("Text(\"{key}\")")), "no column with {key}");
    }
}

#[test]
fn telemetry_of_another_writer_is_read() {
    let (payload, expected) = newer::foreign_telemetry();
    keeps_samples("telemetry-foreign", &payload, &expected);
}
