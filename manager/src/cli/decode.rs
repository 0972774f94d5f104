//! `fleet decode`: payloads of topics as JSON, from a file, a pipe or lines of `mosquitto_sub -F '%t %x'`.
//!
//! Owns how payloads are shown. Asks no hub.

mod bytes;

use std::{
    io::{self, BufRead as _, Read as _},
    path::PathBuf,
};

use clap::{Args, ValueEnum};
use fleet_schemas::{
    Lane, Topic,
    ack::Ack,
    batch::{Batch, Envelope},
    cbor::{self, DecodeError, Unpacker},
    event, limits,
    session::{Birth, Death, Heartbeat},
    telemetry::Samples,
    topic::{Down, Up},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::exit::Failure;
use crate::api::any;

const EXAMPLES: &str = "\
Examples:
  mosquitto_sub -t 'fleet/v1/+/up/#' -F '%t %x' | fleet decode
  fleet decode fleet/v1/edge-1/up/telemetry batch.bin
  echo a1617601 | fleet decode";

/// What to decode.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct DecodeArgs {
    /// The topic it came on, such as fleet/v1/edge-1/up/birth; without it the payload is guessed from its shape
    topic: Option<String>,
    /// The file; `-` or nothing for standard input
    file: Option<PathBuf>,
    /// How the bytes are written
    #[arg(long, value_enum, default_value_t = Form::Auto)]
    form: Form,
}

/// How bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Lines with a topic, hexadecimal, base64, or else raw.
    Auto,
    /// As they are.
    Raw,
    /// Hexadecimal.
    Hex,
    /// Base64, either alphabet.
    Base64,
    /// A topic, a space and hexadecimal on every line.
    Lines,
}

/// Longest line of input, in bytes: a packet in hexadecimal with its topic.
const LINE_BYTES: u64 = (2 * limits::PACKET_BYTES + limits::TOPIC_BYTES + 2) as u64;
/// Bytes read before the form is judged: anything shorter than a topic's line is judged whole.
const INPUT_BYTES: u64 = LINE_BYTES;

/// Runs the verb; `print` gets one JSON text per payload.
///
/// # Errors
/// [`Failure::Usage`] for an unreadable topic or file, [`Failure::Failed`] for a single payload that is none,
/// [`Failure::Partly`] when some lines were not decoded.
pub(super) fn run(
    args: DecodeArgs,
    mut print: impl FnMut(&Value) -> Result<(), Failure>,
) -> Result<(), Failure> {
    // `fleet decode batch.bin` and `fleet decode -` name a file, not a topic.
    let (topic, file) = match (args.topic, args.file) {
        (Some(first), None)
            if first == "-" || Topic::parse(&first).is_err() && PathBuf::from(&first).exists() =>
        {
            (None, Some(PathBuf::from(first)))
        }
        other => other,
    };
    let topic = topic.map(|text| read_topic(&text)).transpose()?;
    let mut input: Box<dyn io::BufRead> = match file {
        Some(path) if path.as_os_str() != "-" => {
            let file = std::fs::File::open(&path)
                .map_err(|error| Failure::Usage(format!("cannot read {}: {error}", path.display())))?;
            Box::new(io::BufReader::new(file))
        }
        Some(_) | None => Box::new(io::stdin().lock()),
    };
    let head = input.fill_buf().map_err(unreadable)?;
    if args.form == Form::Lines || args.form == Form::Auto && topic.is_none() && is_line(head) {
        return lines(input, print);
    }
    let mut payload = Vec::new();
    input.take(INPUT_BYTES + 1).read_to_end(&mut payload).map_err(unreadable)?;
    if payload.len() as u64 > INPUT_BYTES {
        return Err(Failure::Usage(format!("the input is larger than a packet ({INPUT_BYTES} bytes)")));
    }
    let payload = match args.form {
        Form::Auto => bytes::guess(payload),
        Form::Raw | Form::Lines => payload,
        Form::Hex => {
            bytes::hex(&payload).ok_or_else(|| Failure::Usage("the input is not hexadecimal".into()))?
        }
        Form::Base64 => {
            bytes::base64(&payload).ok_or_else(|| Failure::Usage("the input is not base64".into()))?
        }
    };
    let value = payload_json(topic.as_ref(), &payload)
        .map_err(|error| Failure::Failed(format!("cannot decode: {error}")))?;
    print(&value)
}

fn read_topic(text: &str) -> Result<Topic, Failure> {
    Topic::parse(text).map_err(|error| {
        Failure::Usage(format!("{text:?} is neither a topic of the fleet ({error}) nor a file that exists"))
    })
}

#[expect(clippy::needless_pass_by_value, reason = "the shape map_err asks for")]
fn unreadable(error: io::Error) -> Failure {
    Failure::Usage(format!("cannot read the input: {error}"))
}

/// Whether input begins with a topic and a space.
fn is_line(head: &[u8]) -> bool {
    let line = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    std::str::from_utf8(line).is_ok_and(|line| split(line).is_some())
}

fn split(line: &str) -> Option<(Topic, &str)> {
    let (topic, payload) = line.trim_end_matches(['\r', '\n']).split_once(' ')?;
    Some((Topic::parse(topic).ok()?, payload))
}

fn lines(
    mut input: Box<dyn io::BufRead>,
    mut print: impl FnMut(&Value) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (mut all, mut bad) = (0_u64, 0_u64);
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut input).take(LINE_BYTES + 1).read_until(b'\n', &mut line).map_err(unreadable)? == 0 {
            break;
        }
        if line.len() as u64 > LINE_BYTES {
            return Err(Failure::Usage(format!("line {} is longer than a packet", all + 1)));
        }
        all += 1;
        let text = String::from_utf8_lossy(&line);
        let value = match line_json(&text) {
            Ok(value) => value,
            Err(error) => {
                bad += 1;
                json!({ "line": all, "error": error })
            }
        };
        print(&value)?;
    }
    match bad {
        0 => Ok(()),
        bad => {
            Err(Failure::Partly(format!("{bad} of {all} lines were not decoded; their errors stand above")))
        }
    }
}

fn line_json(line: &str) -> Result<Value, String> {
    let (topic, payload) = split(line).ok_or("not a topic of the fleet, a space and hexadecimal")?;
    let bytes = match payload {
        // The retained message of a cleared alert is empty.
        "" => Vec::new(),
        hex => bytes::hex(hex.as_bytes()).ok_or("the payload is not hexadecimal; use -F '%t %x'")?,
    };
    let payload = if bytes.is_empty() {
        Value::Null
    } else {
        payload_json(Some(&topic), &bytes).map_err(|error| error.to_string())?
    };
    Ok(json!({ "topic": topic.to_string(), "payload": payload }))
}

/// A payload as JSON: by its topic, or else by its shape.
///
/// # Errors
/// [`DecodeError`].
pub(super) fn payload_json(topic: Option<&Topic>, payload: &[u8]) -> Result<Value, DecodeError> {
    let mut unpacker = Unpacker::default();
    match topic {
        Some(Topic::Hub(_)) => {
            serde_json::from_slice(payload).map_err(|error| DecodeError::Shape(error.to_string()))
        }
        Some(Topic::Up(_, up)) => {
            let plain = unpacker.unpack(payload)?;
            match up {
                Up::Birth => typed::<Birth>(plain),
                Up::Death => typed::<Death>(plain),
                Up::Heartbeat => typed::<Heartbeat>(plain),
                Up::Lane(lane) => batch(Some(*lane), plain),
            }
        }
        Some(Topic::Down(_, down)) => {
            let plain = unpacker.unpack(payload)?;
            match down {
                Down::Ack => typed::<Ack>(plain),
                // Their payloads are open maps: what a queue or a layer holds.
                Down::Command | Down::Config => Ok(any::json(&cbor::decode(plain)?)),
            }
        }
        None => {
            let plain = unpacker.unpack(payload)?;
            batch(None, plain).or_else(|_| Ok(any::json(&cbor::decode(plain)?)))
        }
    }
}

fn typed<T: Serialize + serde::de::DeserializeOwned>(plain: &[u8]) -> Result<Value, DecodeError> {
    let value: T = cbor::decode(plain)?;
    shown(&value)
}

/// Our types write ids as hexadecimal into JSON; the few byte fields become arrays, which [`tidy`] rewrites.
fn shown<T: Serialize>(value: &T) -> Result<Value, DecodeError> {
    let mut value = serde_json::to_value(value).map_err(|error| DecodeError::Shape(error.to_string()))?;
    tidy(&mut value);
    Ok(value)
}

/// Writes the boot id, the one field of raw bytes, in hexadecimal.
fn tidy(value: &mut Value) {
    let Some(boot) = value.get_mut("boot") else { return };
    let bytes: Option<Vec<u8>> = serde_json::from_value(boot.clone()).ok();
    if let Some(bytes) = bytes {
        *boot = Value::from(any::hex(&bytes));
    }
}

fn batch(lane: Option<Lane>, plain: &[u8]) -> Result<Value, DecodeError> {
    let batch = match Batch::decode(plain)? {
        Envelope::Known(batch) => batch,
        Envelope::Unknown(head) => {
            let note = format!("version {} is newer than this program's {}", head.v, fleet_schemas::VERSION);
            return Ok(json!({ "v": head.v, "stream": head.stream, "seq": head.seq, "note": note }));
        }
    };
    let body = match lane {
        _ if batch.is_tombstone() => Value::Null,
        Some(Lane::Telemetry | Lane::Backfill) => samples(&batch.body)?,
        Some(Lane::Event) => events(&batch.body)?,
        Some(Lane::Command) => any::json(&cbor::decode(&batch.body)?),
        None => samples(&batch.body)
            .or_else(|_| events(&batch.body))
            .or_else(|_| Ok::<_, DecodeError>(any::json(&cbor::decode(&batch.body)?)))?,
    };
    let mut value = shown(&Batch { body: Vec::new(), ..batch })?;
    value["body"] = body;
    Ok(value)
}

fn samples(body: &[u8]) -> Result<Value, DecodeError> {
    let samples = Samples::decode(body)?;
    let times = samples.times();
    let series = samples.series.iter().map(|series| {
        let points: Vec<Value> = (times.iter().zip(samples.values(series)))
            .filter(|(_, value)| !value.is_nan())
            .map(|(time, value)| json!([time, value]))
            .collect();
        json!({ "device": series.d, "metric": series.m, "unit": series.u, "points": points })
    });
    Ok(json!({ "series": series.collect::<Vec<_>>() }))
}

fn events(body: &[u8]) -> Result<Value, DecodeError> {
    let events = event::decode(body)?;
    let shown = events.iter().map(|event| {
        let data = event.data.as_ref().map(any::json);
        let mut value = shown(&event::Event { data: None, ..event.clone() })?;
        if let Some(data) = data {
            value["data"] = data;
        }
        Ok(value)
    });
    shown.collect()
}

#[cfg(test)]
mod tests;
