//! `GET /api/v1/config`: the configuration as programs on the node see it, at once or as soon as it changes.

use std::time::Duration;

use axum::{
    extract::{RawQuery, State},
    http::StatusCode,
};
use fleet_schemas::config::{self, Failed, Held};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{select, time};

use super::{
    http::{Answer, Shared, json},
    problem::Problem,
};
use crate::core::config::View;

/// Longest wait for a change, in seconds.
const WAIT_S: f64 = 300.0;

/// `GET /api/v1/config`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfigView {
    /// How far the newest document got: `none`, `received`, `trying`, `probation`, `applied` or `failed`.
    pub state: String,
    /// The newest document on the node's disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<HeldView>,
    /// The document that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<HeldView>,
    /// Why the newest is not the one that runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<Failed>,
    /// The document that runs; `apps` in it is for programs on the node.
    pub doc: Value,
    /// Names this answer: `?after=TAG` waits until there is another.
    pub tag: String,
}

/// A document that the node has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldView {
    /// Its version.
    pub version: config::Version,
    /// SHA-256 of its CBOR, in hexadecimal digits.
    pub hash: String,
    /// How often an operator asked to try it again.
    pub retry: u64,
}

impl From<Held> for HeldView {
    fn from(held: Held) -> Self {
        Self { version: held.version, hash: hex(&held.hash), retry: held.retry }
    }
}

impl From<&View> for ConfigView {
    fn from(view: &View) -> Self {
        let doc = view.doc.as_ref().and_then(|bytes| ciborium::from_reader(bytes.as_ref()).ok());
        let mut made = Self {
            state: view.state.to_owned(),
            received: view.reported.received.map(HeldView::from),
            applied: view.reported.applied.map(HeldView::from),
            failed: view.reported.failed.clone(),
            doc: doc.unwrap_or_else(|| Value::Object(serde_json::Map::new())),
            tag: String::new(),
        };
        let bytes = serde_json::to_vec(&made).expect("our answers have text keys");
        made.tag = hex(&Sha256::digest(bytes)[..8]);
        made
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) async fn config(State(api): Shared, RawQuery(query): RawQuery) -> Answer {
    let (wait, after) = asked(query.as_deref().unwrap_or_default())?;
    let mut known = api.outbox.config();
    let mut stop = api.stop.clone();
    let limit = time::sleep(wait);
    tokio::pin!(limit);
    loop {
        let view = ConfigView::from(&**known.borrow_and_update());
        if after.as_ref() != Some(&view.tag) {
            return json(&view);
        }
        select! {
            changed = known.changed() => if changed.is_err() { return json(&view) },
            () = &mut limit => return json(&view),
            () = stop.wanted() => return json(&view),
        }
    }
}

/// `wait_s` and `after`.
fn asked(query: &str) -> Result<(Duration, Option<String>), Problem> {
    let wrong = |why: String| Problem::new(StatusCode::BAD_REQUEST, why);
    let (mut wait, mut after) = (Duration::ZERO, None);
    for (key, value) in
        query.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| pair.split_once('='))
    {
        match key {
            "wait_s" => {
                let seconds = value.parse().ok().filter(|seconds| (0.0..=WAIT_S).contains(seconds));
                let seconds = seconds
                    .ok_or_else(|| wrong(format!("wait_s is {value:?}; it may be 0 to {WAIT_S} seconds")))?;
                wait = Duration::from_secs_f64(seconds);
            }
            "after" => after = Some(value.to_owned()),
            key => return Err(wrong(format!("there is no {key:?}; give wait_s and after"))),
        }
    }
    Ok((wait, after))
}
