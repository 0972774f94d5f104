//! Taking records, in whatever form they came: room first, then the disk, then the answer.

use fleet_schemas::{event::Event, telemetry::Sample};
use serde::Serialize;
use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle};

use super::{http::Api, problem::Problem};
use crate::{
    outbox::SubmitError,
    store::rows,
    uplink::{Handed, Name, Names, Receipt, Submission},
};

/// Longest name of a write, in bytes.
pub(super) const NAME_BYTES: usize = 255;
/// What an event weighs against a sample in the room on the way to the disk: it may have 36 kB.
const EVENT_WEIGHT: usize = 100;
/// Stands for the time of records that came without one, so that a repeated write says the same.
const UNTIMED_MS: i64 = i64::MIN;

/// `202` of a write.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub(super) struct Accepted {
    /// Records that are on disk.
    pub(super) accepted: u64,
    /// How many of them were on disk before, because this write or event was repeated.
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) repeated: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl From<Receipt> for Accepted {
    fn from(receipt: Receipt) -> Self {
        Self { accepted: receipt.records, repeated: receipt.repeated }
    }
}

/// Records on their way to the disk. They take room until the disk has answered, whether or not anybody asks for it: one
/// whose client reads no answers holds nobody up, and what nobody waits for any more still counts.
pub(super) struct Written(JoinHandle<Result<Receipt, SubmitError>>);

impl Written {
    /// Returns once they are on disk.
    pub(super) async fn done(mut self) -> Result<Receipt, Problem> {
        self.wait().await
    }

    /// The same, and safe to cancel; it must not be asked again after it answered.
    pub(super) async fn wait(&mut self) -> Result<Receipt, Problem> {
        Ok((&mut self.0).await.unwrap_or(Err(SubmitError::Stopped))?)
    }
}

/// Checks the name that a client gives a write. Empty: none.
pub(super) fn check_name(text: &str) -> Result<Option<&str>, String> {
    if text.len() > NAME_BYTES || text.chars().any(char::is_control) {
        return Err(format!("give 1 to {NAME_BYTES} bytes of text"));
    }
    Ok(Some(text).filter(|text| !text.is_empty()))
}

/// Samples as they are handed in. `read` reads them; those that came without a time get the one it is given.
pub(super) fn samples(
    name: Option<&str>,
    now_ms: i64,
    read: impl Fn(i64) -> Result<Vec<Sample>, Problem>,
) -> Result<Handed, Problem> {
    let samples = read(now_ms)?;
    let names = match name {
        Some(name) => Names::Whole(Name::new("samples", name, &rows::encode_samples(&read(UNTIMED_MS)?))),
        None => Names::None,
    };
    Ok(Handed { names, ..Submission::Samples(samples).into() })
}

/// Events as they are handed in, likewise. Without a name for all of them, each one's own `id` is its name.
pub(super) fn events(
    name: Option<&str>,
    now_ms: i64,
    read: impl Fn(i64) -> Result<Vec<Event>, Problem>,
) -> Result<Handed, Problem> {
    let events = read(now_ms)?;
    let names = if let Some(name) = name {
        Names::Whole(Name::new("events", name, &fleet_schemas::cbor::encode(&read(UNTIMED_MS)?)))
    } else if events.iter().any(|event| event.id.is_some()) {
        Names::Each(read(UNTIMED_MS)?.iter().map(name_of).collect())
    } else {
        Names::None
    };
    Ok(Handed { names, ..Submission::Events(events).into() })
}

/// An id is the business of the device that gave it.
fn name_of(event: &Event) -> Option<Name> {
    let id = event.id.as_ref()?;
    let device = event.device.as_ref().map_or("", |device| device.as_str());
    // A device id is printable, so this is unambiguous.
    Some(Name::new("event", &format!("{device}\n{id}"), &fleet_schemas::cbor::encode(event)))
}

impl Api {
    /// Hands records in; what is handed in one after the other is written in this order.
    pub(super) async fn hand_in(&self, handed: Handed) -> Result<Written, Problem> {
        let weight = match &handed.submission {
            Submission::Samples(samples) => samples.len(),
            Submission::Events(events) => events.len() * EVENT_WEIGHT,
        };
        let room = self.places.room(weight).await;
        self.hand_in_with(room, handed).await
    }

    /// The same with room that was waited for.
    pub(super) async fn hand_in_with(
        &self,
        room: OwnedSemaphorePermit,
        handed: Handed,
    ) -> Result<Written, Problem> {
        let mut pending = self.outbox.hand_in(handed).await?;
        Ok(Written(tokio::spawn(async move {
            let done = pending.done().await;
            drop(room);
            done
        })))
    }

    /// Hands records in and waits for the disk. `place` is given back as soon as there is room for them: what waits for
    /// the disk is bounded by that room, and others can be read meanwhile.
    pub(super) async fn write(&self, handed: Handed, place: impl Send) -> Result<Receipt, Problem> {
        if handed.submission.is_empty() {
            return Ok(Receipt::default());
        }
        let written = self.hand_in(handed).await?;
        drop(place);
        written.done().await
    }
}

impl From<SubmitError> for tonic::Status {
    fn from(error: SubmitError) -> Self {
        Problem::from(error).into()
    }
}
