//! Payloads as the encoders of the schemas crate make them, shown as JSON.

use fleet_schemas::{
    DeviceId, MetricName, NodeId, SessionId, StreamId, VERSION,
    batch::{Clock, Lost},
    event::{Event, Severity},
    telemetry::{Builder, Sample},
};

use super::*;

fn topic(up: Up) -> Topic {
    Topic::Up(NodeId::parse("edge-1").unwrap(), up)
}

fn sealed(body: Vec<u8>, count: u64) -> Batch {
    Batch {
        v: VERSION,
        stream: StreamId([0xab; 16]),
        seq: 1,
        seq_to: None,
        first: 1,
        count,
        boot: [1, 2, 3, 4, 5, 6, 7, 8],
        up_ms: 5_000,
        clock: Clock::Synced,
        sealed_ms: 1_790_000_000_000,
        lost: None,
        body,
    }
}

fn samples_body() -> Vec<u8> {
    let mut builder = Builder::default();
    for (time_ms, device, value) in [(1_000, "", 21.5), (2_000, "", 22.0), (2_000, "probe", -1.0)] {
        let metric = MetricName::parse("temperature").unwrap();
        let unit = Some(MetricName::parse("Cel").unwrap());
        let device = DeviceId::parse(device).unwrap();
        assert_eq!(builder.push(Sample { time_ms, device, metric, unit, value }), None);
    }
    builder.build().encode()
}

#[test]
fn a_batch_of_samples_is_shown_by_series() {
    let payload = cbor::Packer::new(3).pack(cbor::encode(&sealed(samples_body(), 3)));
    let value = payload_json(Some(&topic(Up::Lane(Lane::Telemetry))), &payload).unwrap();
    insta::assert_snapshot!(super::super::yaml::text(&value), @r#"
    body:
      series:
        - device: ""
          metric: temperature
          points:
            - - 1000
              - 21.5
            - - 2000
              - 22.0
          unit: Cel
        - device: probe
          metric: temperature
          points:
            - - 2000
              - -1.0
          unit: Cel
    boot: "0102030405060708"
    clock: synced
    count: 3
    first: 1
    sealed_ms: 1790000000000
    seq: 1
    stream: abababababababababababababababab
    up_ms: 5000
    v: 1
    "#);
    assert_eq!(payload_json(None, &payload), Ok(value), "the shape tells as much as the topic");
}

#[test]
fn events_and_tombstones_are_shown() {
    let event = Event {
        time_ms: 7,
        kind: MetricName::parse("door_opened").unwrap(),
        severity: Severity::Warning,
        message: "left".to_owned(),
        data: Some(ciborium::Value::Bytes(vec![0xff])),
        device: None,
        id: None,
    };
    let payload = cbor::encode(&sealed(cbor::encode(&[event]), 1));
    let value = payload_json(Some(&topic(Up::Lane(Lane::Event))), &payload).unwrap();
    assert_eq!(value["body"][0]["kind"], "door_opened");
    assert_eq!(value["body"][0]["data"], json!({ "bytes": "ff" }));

    let gone = Batch { seq_to: Some(9), lost: Some(Lost::OutboxFull), count: 900, ..sealed(vec![], 1) };
    let value = payload_json(None, &cbor::encode(&gone)).unwrap();
    assert_eq!((&value["lost"], &value["body"]), (&json!("outbox_full"), &Value::Null));
}

#[test]
fn a_will_names_its_session_and_wrong_bytes_say_why() {
    let death = Death { v: VERSION, session: SessionId([7; 8]), until_ms: None };
    let value = payload_json(Some(&topic(Up::Death)), &cbor::encode(&death)).unwrap();
    assert_eq!(value["session"], "0707070707070707");
    let error = payload_json(Some(&topic(Up::Birth)), &cbor::encode(&death)).unwrap_err();
    assert_eq!(error.reason(), "wrong_shape");
    assert!(payload_json(None, &[0xff]).is_err());
}

#[test]
fn lines_with_topics_are_told_from_payloads() {
    assert!(is_line(b"fleet/v1/edge-1/up/death a0\nx"));
    assert!(!is_line(b"a1617601"));
    assert!(!is_line(&[0xa1, 0x61, 0x76, 0x01]));
    let hub = "fleet/v1/hub/node/edge-1 7b226964223a2261227d";
    assert_eq!(line_json(hub).unwrap()["payload"]["id"], "a");
    assert_eq!(line_json("fleet/v1/hub/alert/hot/edge-1 \n").unwrap()["payload"], Value::Null);
    assert!(line_json("fleet/v1/edge-1/up/death zz").is_err());
    assert!(line_json("elsewhere a0").is_err());
}

/// The golden bytes of the wire, by the topic they travel on.
#[test]
fn golden_files_are_decoded() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../schemas/golden/");
    let decoded = |file: &str, topic: &Topic| {
        let payload = std::fs::read(format!("{golden}{file}")).unwrap();
        payload_json(Some(topic), &payload).unwrap_or_else(|error| panic!("{file}: {error}"))
    };
    let telemetry = topic(Up::Lane(Lane::Telemetry));
    let ack = Topic::Down(NodeId::parse("edge-1").unwrap(), Down::Ack);
    for (file, topic, member) in [
        ("birth.bin", topic(Up::Birth), "kind"),
        ("death.bin", topic(Up::Death), "session"),
        ("heartbeat.bin", topic(Up::Heartbeat), "system"),
        ("event.bin", topic(Up::Lane(Lane::Event)), "body"),
        ("telemetry.bin", telemetry.clone(), "body"),
        ("telemetry-foreign.bin", telemetry.clone(), "body"),
        ("tombstone.bin", telemetry.clone(), "lost"),
        ("ack.bin", ack, "credit"),
    ] {
        let value = decoded(file, &topic);
        assert!(!value[member].is_null(), "{file} shows no {member}: {value}");
    }
    let payload = std::fs::read(format!("{golden}telemetry.bin")).unwrap();
    let mut unpacker = Unpacker::default();
    let Ok(Envelope::Known(batch)) = Batch::decode(unpacker.unpack(&payload).unwrap()) else {
        panic!("known")
    };
    let shown = decoded("telemetry.bin", &telemetry);
    let points = |series: &Value| series["points"].as_array().unwrap().len() as u64;
    let count: u64 = shown["body"]["series"].as_array().unwrap().iter().map(points).sum();
    assert_eq!(count, batch.count, "every sample is shown");
}
