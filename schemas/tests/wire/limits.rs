//! The limits on what a peer may send, each tried at its edge and one beyond.

use ciborium::Value;
use fleet_schemas::{
    MetricName,
    batch::{Batch, Envelope},
    cbor::{self, DecodeError, Unpacker},
    event, limits,
    telemetry::{Column, Samples, Series},
};

use crate::given;

fn shape<T: std::fmt::Debug>(read: Result<T, DecodeError>) -> String {
    match read {
        Err(DecodeError::Shape(why)) => why,
        other => panic!("{other:?}"),
    }
}

fn columns(rows: usize, series: impl IntoIterator<Item = Column>) -> Samples {
    let metric = |index| MetricName::parse(&format!("m{index}")).unwrap();
    let series = series.into_iter().enumerate();
    Samples {
        t0: given::NOON,
        dt: Column::of_integers(&vec![0; rows]),
        series: series
            .map(|(index, v)| Series { d: fleet_schemas::DeviceId::node(), m: metric(index), u: None, v })
            .collect(),
    }
}

fn read(samples: &Samples) -> Result<Samples, DecodeError> {
    Samples::decode(&samples.encode())
}

#[test]
fn records_of_a_batch_are_bounded() {
    let full = columns(limits::BATCH_RECORDS, [Column::of_numbers(&vec![1.0; limits::BATCH_RECORDS])]);
    assert!(read(&full).is_ok());
    let rows = limits::BATCH_RECORDS + 1;
    assert!(shape(read(&columns(rows, []))).contains("more rows"));
    let half = Column::of_numbers(&vec![1.0; limits::BATCH_RECORDS / 2]);
    assert!(read(&columns(limits::BATCH_RECORDS / 2, [half.clone(), half.clone()])).is_ok());
    let three = columns(limits::BATCH_RECORDS / 2, [half.clone(), half.clone(), half]);
    assert!(shape(read(&three)).contains("more rows"));
}

#[test]
fn series_and_cells_of_a_batch_are_bounded() {
    let one = Column::of_numbers(&[1.0]);
    assert!(read(&columns(1, vec![one.clone(); limits::SERIES_PER_NODE])).is_ok());
    assert!(shape(read(&columns(1, vec![one; limits::SERIES_PER_NODE + 1]))).contains("more rows"));
    // Nothing but gaps: no values at all, and no end of work.
    let gaps =
        |rows: usize, series: usize| columns(rows, vec![Column::of_numbers(&vec![f64::NAN; rows]); series]);
    assert!(read(&gaps(1_024, limits::BATCH_CELLS / 1_024)).is_ok());
    assert!(shape(read(&gaps(1_024, limits::BATCH_CELLS / 1_024 + 1))).contains("more rows"));
}

#[test]
fn columns_that_contradict_their_rows_are_refused() {
    let numbers = Column::of_numbers(&[1.0, 2.0, 3.0]);
    assert!(read(&columns(3, [numbers.clone()])).is_ok());
    assert!(shape(read(&columns(4, [numbers.clone()]))).contains("differ in length"));
    let gaps = |bitmap: Vec<u8>| Column { n: Some(bitmap.into()), ..numbers.clone() };
    assert!(read(&columns(4, [gaps(vec![0b1000])])).is_ok());
    for wrong in [vec![], vec![0], vec![0b11], vec![0b1000, 0]] {
        assert!(shape(read(&columns(4, [gaps(wrong)]))).contains("differ in length"));
    }
    let time = |dt: Column| Samples { dt, ..columns(3, [numbers.clone()]) };
    assert!(shape(read(&time(Column::of_numbers(&[0.5, 1.5, 2.5])))).contains("nulls or fractions"));
    assert!(
        shape(read(&time(Column { n: Some(vec![0].into()), ..Column::of_integers(&[1, 2, 3]) })))
            .contains("nulls or fractions")
    );
}

#[test]
fn scales_and_floats_out_of_range_are_refused() {
    let scaled = |s| Column { s: Some(s), ..Column::of_numbers(&[1.0]) };
    assert!(read(&columns(1, [scaled(15)])).is_ok());
    assert!(shape(read(&columns(1, [scaled(16)]))).contains("out of range"));
    let float = Column::of_numbers(&[std::f64::consts::PI]);
    assert!(shape(read(&columns(1, [Column { s: Some(1), ..float.clone() }]))).contains("out of range"));
    assert!(shape(read(&columns(1, [Column { d: Some(1), ..float.clone() }]))).contains("out of range"));
    assert!(read(&columns(1, [float])).is_ok());
    assert!(shape(read(&columns(1, [Column::of_numbers(&[f64::INFINITY])]))).contains("not finite"));
}

#[test]
fn typed_arrays_of_other_kinds_or_cut_numbers_are_refused() {
    let body = |tag, bytes: Vec<u8>| {
        let array = Value::Tag(tag, Box::new(Value::Bytes(bytes)));
        let column = Value::Map(vec![("a".into(), array)]);
        let map = [("t0", 0.into()), ("dt", column), ("series", Value::Array(vec![]))];
        cbor::encode(&Value::Map(map.map(|(key, value)| (key.into(), value)).into()))
    };
    assert!(Samples::decode(&body(69, vec![1, 0, 2, 0])).is_ok());
    assert!(shape(Samples::decode(&body(69, vec![1, 0, 2]))).contains("inside a number"));
    // Big-endian, 64-bit unsigned, 16-bit floats.
    for tag in [65, 67, 71, 84] {
        assert!(shape(Samples::decode(&body(tag, vec![0; 8]))).contains("known kind"), "tag {tag}");
    }
}

#[test]
fn items_and_packets_are_bounded() {
    let items = |count: usize| cbor::encode(&vec![0_u8; count - 1]);
    assert_eq!(cbor::check(&items(limits::CBOR_ITEMS)), Ok(()));
    assert_eq!(cbor::check(&items(limits::CBOR_ITEMS + 1)), Err(DecodeError::Items));
    let mut unpacker = Unpacker::default();
    assert!(unpacker.unpack(&vec![0; limits::PACKET_BYTES]).is_ok());
    assert_eq!(
        unpacker.unpack(&vec![0; limits::PACKET_BYTES + 1]),
        Err(DecodeError::Large { max: limits::PACKET_BYTES })
    );
}

#[test]
fn a_frame_that_asks_for_a_large_window_is_refused() {
    // RFC 8878 §3.1.1: magic, a header without single segment or content size, the window descriptor
    // (exponent above 10 in the upper five bits), then one last empty raw block.
    let frame = |log: u8| [0x28, 0xb5, 0x2f, 0xfd, 0x00, (log - 10) << 3, 0x01, 0x00, 0x00];
    let mut unpacker = Unpacker::default();
    let largest = u8::try_from(limits::ZSTD_WINDOW_LOG).unwrap();
    assert_eq!(unpacker.unpack(&frame(largest)), Ok(&[][..]));
    assert!(matches!(unpacker.unpack(&frame(largest + 1)), Err(DecodeError::Zstd(_))));
}

#[test]
fn events_are_bounded() {
    let with = |change: &dyn Fn(&mut event::Event)| {
        let mut events = given::events();
        change(&mut events[0]);
        event::decode(&cbor::encode(&events))
    };
    let message = |len| with(&|event| event.message = "x".repeat(len));
    assert!(message(limits::EVENT_MESSAGE_BYTES).is_ok());
    assert!(shape(message(limits::EVENT_MESSAGE_BYTES + 1)).contains("message"));
    // A byte string of this length has three bytes of header.
    let data = |len| with(&|event| event.data = Some(Value::Bytes(vec![0; len])));
    assert!(data(limits::EVENT_DATA_BYTES - 3).is_ok());
    assert!(shape(data(limits::EVENT_DATA_BYTES - 2)).contains("data"));
    let id = |len| with(&|event| event.id = Some("i".repeat(len)));
    assert!(id(limits::LABEL_BYTES).is_ok());
    assert!(shape(id(limits::LABEL_BYTES + 1)).contains("id"));
    assert!(shape(id(0)).contains("id"));
}

#[test]
fn counts_of_an_envelope_are_bounded() {
    let count = |count| Batch::decode(&cbor::encode(&Batch { count, ..given::telemetry() }));
    let most = limits::BATCH_RECORDS as u64;
    assert!(matches!(count(most), Ok(Envelope::Known(_))));
    assert!(shape(count(most + 1)).contains("count"));
    assert!(shape(count(0)).contains("count"));
}
