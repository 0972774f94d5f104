//! Answers of `ping` and `query`: what the agent knows of itself, with texts where JSON has texts.

use std::collections::BTreeMap;

use ciborium::Value;
use fleet_schemas::{cbor, limits};
use serde::Serialize;

use super::kinds::What;
use crate::{
    api::{ConfigView, Facts, OutboxView, StatusView},
    clock::Clock,
    collect::system,
    core::{
        Now,
        queue::{End, reason},
    },
    outbox,
};

/// `{time_ms, up_ms}`.
pub(super) fn ping(now: Now) -> Value {
    let entry = |key: &str, value: Value| (Value::Text(key.to_owned()), value);
    Value::Map(vec![entry("time_ms", now.wall_ms.into()), entry("up_ms", now.up_ms().into())])
}

/// `{machine, figures}` of `query {what: system}`.
#[derive(Debug, Serialize)]
struct Machine {
    machine: BTreeMap<String, String>,
    figures: BTreeMap<String, f64>,
}

pub(super) async fn answer(what: What, facts: &Facts, clock: &Clock, outbox: &outbox::Handle) -> End {
    let status = match outbox.status().await {
        Ok(status) => status,
        Err(silent) => return End::Failed(reason("silent", silent.to_string(), false)),
    };
    match what {
        What::Status => done(&StatusView::new(facts, &status, clock.now())),
        What::Outbox => done(&OutboxView::from(&status)),
        What::Config => done(&ConfigView::from(&status.config)),
        What::System => done(&Machine { machine: system::describe(), figures: status.system }),
    }
}

fn done<T: Serialize>(answer: &T) -> End {
    // Over JSON, where ids are texts.
    let json = serde_json::to_value(answer).expect("our views have text keys");
    let result = Value::serialized(&json).expect("JSON has a CBOR for everything");
    if cbor::encode(&result).len() > limits::EVENT_DATA_BYTES {
        let message = "the answer is larger than 32768 bytes; ask the edge API on the node";
        return End::Failed(reason("too_large", message, false));
    }
    End::Done { result }
}
