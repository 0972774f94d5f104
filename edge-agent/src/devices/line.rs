//! Commands to devices: one message down its connection, and what the device says to that.
//!
//! A message at QoS 0 that was written to a connection is no proof of anything, and boards in the field acknowledge
//! none. What counts is that the device answers on its `status` topic with a word that says more than that it is there
//! (`{"status":"restarted"}`): only then a command is done. Says each message once, whatever becomes of it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ciborium::Value;
use fleet_broker::local::{Speaker, Untold};
use fleet_schemas::{DeviceId, command::Reason};
use serde_json::{Map, Value as Json, json};
use tokio::{
    select,
    sync::{self, oneshot},
    time,
};

use super::{Offers, dialect::Status};
use crate::core::queue::{End, Ending, reason};

/// How long an answer is waited for when the command does not say.
const ANSWER: Duration = Duration::from_secs(10);
/// Words of a status that tell nothing about a command: a board says them on its own.
const PRESENCE: [&str; 7] = ["online", "offline", "reconnected", "sleeping", "sleep", "deep_sleep", "alive"];
/// Words by which a board says that it did not do it.
const FAILED: [&str; 7] = ["error", "failed", "failure", "unknown", "unsupported", "rejected", "busy"];

/// What a command asks of a device.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Order {
    /// Which.
    pub(crate) device: DeviceId,
    /// What it is told.
    payload: Vec<u8>,
    /// How long its answer is waited for; zero: not at all.
    answer: Duration,
}

/// Speaks to the devices behind the node, and hears their answers. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    speaker: Speaker,
    waiting: Arc<Mutex<HashMap<DeviceId, oneshot::Sender<Status>>>>,
    // An answer does not say to what: a command and an update wait for each other.
    turns: Arc<Mutex<HashMap<DeviceId, Turn>>>,
    // How often each device said what firmware it runs.
    words: Arc<Mutex<HashMap<DeviceId, u64>>>,
    offers: Offers,
}

type Turn = Arc<sync::Mutex<()>>;

/// Whoever waits for an answer of a device.
struct Waits<'a>(&'a Line, &'a DeviceId);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(self.1);
    }
}

impl Order {
    /// Reads the parameters of a command: `{device, action, …}` says `{action, …}` to the device, `{device, payload}`
    /// the payload.
    ///
    /// # Errors
    /// Why it cannot be said, and what to give.
    pub(crate) fn read(params: &Value) -> Result<Self, Reason> {
        let bad = |what: &str| {
            let message = format!(
                "{what}; give {{device: ID, action: WORD}} with what else the device shall read, or {{device: ID, \
                 payload}}, and `answer_s` to wait longer for its answer, 0 not to"
            );
            reason("bad_params", message, false)
        };
        let params: Json = params.deserialized().map_err(|_| bad("the parameters are no JSON"))?;
        let Json::Object(mut fields) = params else { return Err(bad("the parameters are wrong")) };
        let id = fields.remove("device");
        let device = id.as_ref().and_then(Json::as_str).and_then(|id| DeviceId::parse(id).ok());
        let device = device.filter(|device| !device.is_node()).ok_or_else(|| bad("`device` is missing"))?;
        let answer = match fields.remove("answer_s") {
            None => ANSWER,
            Some(seconds) => {
                let seconds = seconds.as_f64().and_then(|s| Duration::try_from_secs_f64(s).ok());
                seconds.ok_or_else(|| bad("`answer_s` is no number of seconds"))?
            }
        };
        let payload = match (fields.remove("payload"), fields) {
            (Some(Json::String(text)), rest) if rest.is_empty() => text.into_bytes(),
            (Some(value), rest) if rest.is_empty() => value.to_string().into_bytes(),
            (None, rest) if rest.get("action").is_some_and(Json::is_string) => as_boards_read(rest),
            (Some(_), _) => return Err(bad("`payload` is all that the device is told, and there is more")),
            (None, _) => return Err(bad("`action` is missing")),
        };
        if !fleet_broker::local::fits(&device, &payload) {
            return Err(reason("too_large", Untold::TooLarge.to_string(), false));
        }
        Ok(Self { device, payload, answer })
    }
}

/// The action first, as boards in the field are told it.
fn as_boards_read(mut rest: Map<String, Json>) -> Vec<u8> {
    let action = rest.remove("action").unwrap_or_default();
    let mut text = format!("{{\"action\":{action}");
    for (key, value) in rest {
        text.push_str(&format!(",{}:{value}", Json::String(key)));
    }
    text.push('}');
    text.into_bytes()
}

impl Line {
    pub(super) fn new(speaker: Speaker) -> Self {
        Self {
            speaker,
            waiting: Arc::default(),
            turns: Arc::default(),
            words: Arc::default(),
            offers: Offers::default(),
        }
    }

    /// The firmware that devices may fetch.
    pub(crate) fn offers(&self) -> &Offers {
        &self.offers
    }

    /// A device said how it is: whether that answers a command.
    pub(super) fn hear(&self, device: &DeviceId, status: &Status) {
        if PRESENCE.contains(&status.word.as_str()) {
            return;
        }
        if let Some(waiting) = self.lock().remove(device) {
            // Whoever waited may have given up.
            let _ = waiting.send(status.clone());
        }
    }

    /// A device said what firmware it runs, and that is stored.
    pub(super) fn said_firmware(&self, device: &DeviceId) {
        *self.words.lock().unwrap_or_else(PoisonError::into_inner).entry(device.clone()).or_default() += 1;
    }

    /// How often a device said what firmware it runs since this process began.
    pub(crate) fn words(&self, device: &DeviceId) -> u64 {
        self.words.lock().unwrap_or_else(PoisonError::into_inner).get(device).copied().unwrap_or(0)
    }

    /// Tells a device, when no other order is being told to it, and waits for its answer, no longer than most of `timeout`.
    pub(crate) async fn tell(
        &self,
        order: &Order,
        timeout: Duration,
        stop: &mut oneshot::Receiver<Ending>,
    ) -> End {
        let Order { device, payload, answer } = order;
        let turn = self.turn(device);
        let told = async {
            let _turn = turn.lock().await;
            let (sender, answered) = oneshot::channel();
            self.lock().insert(device.clone(), sender);
            let _waits = Waits(self, device);
            self.exchange(device, payload, *answer.min(&timeout.mul_f64(0.9)), answered).await
        };
        let end = select! {
            // Dropping it tells that the run is to end.
            _ = stop => End::Stopped,
            end = told => end,
        };
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Here and in the map: nobody else waits.
        if Arc::strong_count(&turn) == 2 {
            turns.remove(device);
        }
        end
    }

    fn turn(&self, device: &DeviceId) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.entry(device.clone()).or_default().clone()
    }

    async fn exchange(
        &self,
        device: &DeviceId,
        payload: &[u8],
        patience: Duration,
        answered: oneshot::Receiver<Status>,
    ) -> End {
        if let Err(untold) = self.speaker.tell(device, payload).await {
            let (code, executed) = match untold {
                Untold::Away => ("device_away", false),
                Untold::Busy => ("device_busy", false),
                Untold::TooLarge => ("too_large", false),
                Untold::Lost => ("connection_lost", true),
            };
            let message = format!("device {device}: {untold}");
            return End::Failed(reason(code, message, executed));
        }
        if patience.is_zero() {
            return done(&json!({ "device": device, "written": true, "confirmed": false }));
        }
        match time::timeout(patience, answered).await {
            Ok(Ok(status)) if FAILED.contains(&status.word.as_str()) => {
                let message = format!("device {device} answered {}", status.whole);
                End::Failed(reason("device_failed", message, true))
            }
            Ok(Ok(status)) => {
                done(&json!({ "device": device, "written": true, "confirmed": true, "answer": status.whole }))
            }
            Ok(Err(_)) | Err(_) => {
                let message = format!(
                    "it was written to the connection of device {device}, which did not answer within {} s. Boards \
                     acknowledge no command otherwise: nobody can tell whether it was done",
                    patience.as_secs_f64().ceil()
                );
                End::Failed(reason("no_answer", message, true))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceId, oneshot::Sender<Status>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn done(result: &Json) -> End {
    End::Done { result: Value::serialized(result).unwrap_or(Value::Null) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(params: &Json) -> Result<(String, String, Duration), String> {
        let Order { device, payload, answer } =
            Order::read(&Value::serialized(params).unwrap()).map_err(|reason| reason.code)?;
        Ok((device.as_str().to_owned(), String::from_utf8(payload).unwrap(), answer))
    }

    #[test]
    fn a_device_is_told_what_boards_in_the_field_read() {
        let told = |params, payload: &str| {
            assert_eq!(order(&params).unwrap(), ("shed".to_owned(), payload.to_owned(), ANSWER), "{params}");
        };
        told(json!({"device": "shed", "action": "restart"}), r#"{"action":"restart"}"#);
        told(json!({"device": "shed", "action": "led", "a": [1, 2]}), r#"{"action":"led","a":[1,2]}"#);
        told(json!({"device": "shed", "payload": {"x": 1}}), r#"{"x":1}"#);
        told(json!({"device": "shed", "payload": "ON"}), "ON");
        let hurried = json!({"device": "shed", "action": "x", "answer_s": 0});
        assert_eq!(order(&hurried).unwrap().2, Duration::ZERO);
    }

    #[test]
    fn what_cannot_be_told_is_refused_with_what_could() {
        for (params, code) in [
            (Json::Null, "bad_params"),
            (json!({"action": "restart"}), "bad_params"),
            (json!({"device": "", "action": "restart"}), "bad_params"),
            (json!({"device": "shed"}), "bad_params"),
            (json!({"device": "shed", "action": 7}), "bad_params"),
            (json!({"device": "shed", "action": "x", "payload": "y"}), "bad_params"),
            (json!({"device": "shed", "action": "x", "answer_s": -1}), "bad_params"),
            (json!({"device": "shed", "payload": "x".repeat(512)}), "too_large"),
        ] {
            assert_eq!(order(&params), Err(code.to_owned()), "{params}");
        }
    }
}
