//! Payloads to inputs: the only place of the hub where bytes of nodes are read. Nothing that a node sends can stop the
//! consumer; what cannot be read is counted by reason.

use std::collections::BTreeMap;

use bytes::Bytes;
use fleet_schemas::{
    Lane,
    batch::{self, Batch, Envelope},
    cbor::{self, DecodeError, Unpacker},
    command, event,
    session::{Birth, Heartbeat},
    telemetry::Samples,
    topic::Up,
};

use crate::core::intake::{Body, Input, SamplesBody};

/// Payloads that were refused, by message and reason; a handful of static words each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals(BTreeMap<(&'static str, &'static str), u64>);

impl Refusals {
    fn count(&mut self, what: &'static str, reason: &'static str) {
        *self.0.entry((what, reason)).or_default() += 1;
    }

    /// (message, reason, count).
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
        self.0.iter().map(|((what, reason), count)| (*what, *reason, *count))
    }
}

/// Reads one message; `None` was counted.
pub(super) fn input(
    unpacker: &mut Unpacker,
    refusals: &mut Refusals,
    up: Up,
    payload: &Bytes,
) -> Option<Input> {
    let (what, read) = match up {
        Up::Birth => {
            ("birth", checked(unpacker, payload, Birth::check).map(|birth| Input::Birth(Box::new(birth))))
        }
        Up::Death => ("death", plain(unpacker, payload).map(Input::Death)),
        Up::Heartbeat => {
            let beat = checked(unpacker, payload, Heartbeat::check);
            ("heartbeat", beat.map(|beat| Input::Heartbeat(Box::new(beat))))
        }
        Up::Lane(lane) => (lane.as_str(), batch(unpacker, refusals, lane, payload)),
    };
    match read {
        Ok(input) => Some(input),
        Err(error) => {
            refusals.count(what, error.reason());
            None
        }
    }
}

fn plain<T: serde::de::DeserializeOwned>(unpacker: &mut Unpacker, payload: &[u8]) -> Result<T, DecodeError> {
    cbor::decode(unpacker.unpack(payload)?)
}

fn checked<T: serde::de::DeserializeOwned>(
    unpacker: &mut Unpacker,
    payload: &[u8],
    check: impl Fn(&T) -> Result<(), &'static str>,
) -> Result<T, DecodeError> {
    let value = plain(unpacker, payload)?;
    check(&value).map_err(|what| DecodeError::Shape(what.to_owned()))?;
    Ok(value)
}

fn batch(
    unpacker: &mut Unpacker,
    refusals: &mut Refusals,
    lane: Lane,
    payload: &Bytes,
) -> Result<Input, DecodeError> {
    let mut batch = match Batch::decode(unpacker.unpack(payload)?)? {
        Envelope::Known(batch) => batch,
        Envelope::Unknown(head) => {
            refusals.count(lane.as_str(), "unknown_version");
            return Ok(Input::Unknown { lane, head });
        }
    };
    let bytes = std::mem::take(&mut batch.body);
    let body = match body(lane, &batch, bytes, payload) {
        Ok(body) => body,
        Err(error) => {
            refusals.count(lane.as_str(), error.reason());
            Body::Bad(error.reason(), payload.clone())
        }
    };
    Ok(Input::Batch { lane, digest: batch::digest(payload), batch, body })
}

fn body(lane: Lane, batch: &Batch, bytes: Vec<u8>, payload: &Bytes) -> Result<Body, DecodeError> {
    if batch.is_tombstone() {
        return Ok(Body::Tombstone);
    }
    let (count, body) = match lane {
        Lane::Telemetry | Lane::Backfill => {
            let samples = Samples::decode(&bytes)?;
            let count = samples.count();
            let body = SamplesBody { samples, plain: bytes, payload: payload.clone() };
            (count, Body::Samples(Box::new(body)))
        }
        Lane::Event => {
            let events = event::decode(&bytes)?;
            (events.len() as u64, Body::Events(events))
        }
        Lane::Command => {
            let reports = command::decode(&bytes)?;
            (reports.len() as u64, Body::Reports(reports))
        }
    };
    if count == batch.count {
        Ok(body)
    } else {
        Err(DecodeError::Shape(format!("the envelope counts {} records, the body has {count}", batch.count)))
    }
}
