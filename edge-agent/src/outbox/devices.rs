//! Devices at the outbox's thread: what the edge API says of them, and what they say themselves.
//!
//! What becomes of a device is decided by the uplink.

use std::{collections::BTreeMap, time::Duration};

use fleet_schemas::DeviceId;
use tokio::sync::oneshot;

use super::{Handle, Request, Silent, SubmitError, thread::Keeper};
use crate::{
    core::{
        Now,
        devices::{Declared, Device, Refused},
    },
    uplink::{Told, Uplink},
};

/// What became of what devices said: one result for each.
pub(crate) type Heard = Vec<Result<(), SubmitError>>;

/// The devices whose connection is open, and whether each hears commands: an outbox that is opened again must know.
#[derive(Debug, Default)]
pub(super) struct Links(BTreeMap<DeviceId, bool>);

impl Links {
    /// Tells an uplink that was opened (again).
    pub(super) fn equip(&self, uplink: &mut Uplink, now: Now) {
        for (device, hears) in &self.0 {
            uplink.link_device(device, true, now);
            uplink.device_hears(device, *hears);
        }
    }
}

pub(super) enum Word {
    Declare { id: DeviceId, declared: Box<Declared>, reply: oneshot::Sender<Result<bool, Refused>> },
    Remove { id: DeviceId, reply: oneshot::Sender<bool> },
    Sleep { id: DeviceId, span: Duration, reply: oneshot::Sender<Result<(), Refused>> },
    List { reply: oneshot::Sender<Vec<Device>> },
    Find { id: DeviceId, reply: oneshot::Sender<Option<Device>> },
    Hear { told: Vec<Told>, reply: oneshot::Sender<Heard> },
    Link { id: DeviceId, open: bool, hears: bool },
}

impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Word")
    }
}

impl Keeper {
    /// What cannot be done is not answered: the asker sees that its question was dropped.
    pub(super) fn take_device_word(&mut self, word: Word, now: Now) {
        match word {
            Word::Declare { id, declared, reply } => {
                answer(reply, self.with(|uplink| uplink.declare_device(&id, *declared, now)));
            }
            Word::Remove { id, reply } => {
                answer(reply, self.with(|uplink| uplink.remove_device(&id, now)));
            }
            Word::Sleep { id, span, reply } => {
                answer(reply, self.with(|uplink| uplink.device_sleeps(&id, span, now)));
            }
            Word::List { reply } => answer(reply, self.with(|uplink| Ok(uplink.devices()))),
            Word::Find { id, reply } => answer(reply, self.with(|uplink| Ok(uplink.device(&id).cloned()))),
            Word::Hear { told, reply } => answer(reply, self.hear_devices(told, now)),
            Word::Link { id, open, hears } => {
                if let Some(uplink) = &mut self.uplink {
                    uplink.link_device(&id, open, now);
                    uplink.device_hears(&id, hears);
                }
                match open {
                    true => drop(self.links.0.insert(id, hears)),
                    false => drop(self.links.0.remove(&id)),
                }
            }
        }
    }

    fn hear_devices(&mut self, told: Vec<Told>, now: Now) -> Option<Heard> {
        let counts: Vec<_> = told.iter().map(|told| (told.samples.len(), told.events.len())).collect();
        let seen: Vec<_> = (told.iter())
            .map(|told| self.tap.as_ref().map(|tap| tap.pick_samples(&told.samples)).unwrap_or_default())
            .collect();
        let ids: Vec<_> = told.iter().map(|told| told.device.clone()).collect();
        let results = self.with(|uplink| uplink.hear_devices(told, now))?;
        for ((result, (samples, events)), seen) in results.iter().zip(counts).zip(seen) {
            match result {
                Ok(()) => {
                    self.metrics.accepted_samples.increment(samples as u64);
                    self.metrics.accepted_events.increment(events as u64);
                    if let Some(tap) = &mut self.tap {
                        tap.pass(seen);
                    }
                }
                Err(error) => self.metrics.refused(SubmitError::from(error.clone()).reason()),
            }
        }
        // One that its first word registered has its connection from now on.
        if let Some(uplink) = &mut self.uplink {
            for id in ids.iter().filter(|id| self.links.0.contains_key(*id)) {
                uplink.link_device(id, true, now);
            }
        }
        Some(results.into_iter().map(|result| result.map_err(SubmitError::from)).collect())
    }
}

fn answer<T>(reply: oneshot::Sender<T>, done: Option<T>) {
    if let Some(done) = done {
        let _ = reply.send(done);
    }
}

impl Handle {
    /// Declares a device; it is on disk when it says `Ok(Ok(_))`, and whether it is new.
    ///
    /// # Errors
    /// [`Silent`]; inside, why it is not taken.
    pub(crate) async fn declare_device(
        &self,
        id: DeviceId,
        declared: Declared,
    ) -> Result<Result<bool, Refused>, Silent> {
        let declared = Box::new(declared);
        self.ask(|reply| Request::Devices(Word::Declare { id, declared, reply })).await
    }

    /// Removes a device. `false`: it was none.
    ///
    /// # Errors
    /// [`Silent`].
    pub(crate) async fn remove_device(&self, id: DeviceId) -> Result<bool, Silent> {
        self.ask(|reply| Request::Devices(Word::Remove { id, reply })).await
    }

    /// A device sleeps for so long from now on.
    ///
    /// # Errors
    /// [`Silent`]; inside, why it is not taken.
    pub(crate) async fn device_sleeps(
        &self,
        id: DeviceId,
        span: Duration,
    ) -> Result<Result<(), Refused>, Silent> {
        self.ask(|reply| Request::Devices(Word::Sleep { id, span, reply })).await
    }

    /// All devices, by id.
    ///
    /// # Errors
    /// [`Silent`].
    pub(crate) async fn devices(&self) -> Result<Vec<Device>, Silent> {
        self.ask(|reply| Request::Devices(Word::List { reply })).await
    }

    /// One device.
    ///
    /// # Errors
    /// [`Silent`].
    pub(crate) async fn device(&self, id: DeviceId) -> Result<Option<Device>, Silent> {
        self.ask(|reply| Request::Devices(Word::Find { id, reply })).await
    }

    /// Hands in what devices said: what it says `Ok` to is on disk.
    ///
    /// # Errors
    /// [`Silent`]: none of it is accepted.
    pub(crate) async fn hear_devices(&self, told: Vec<Told>) -> Result<Heard, Silent> {
        self.ask(|reply| Request::Devices(Word::Hear { told, reply })).await
    }

    /// A device's connection is open, and it hears commands, or not.
    pub(crate) async fn link_device(&self, id: DeviceId, open: bool, hears: bool) {
        let _ = self.requests.send(Request::Devices(Word::Link { id, open, hears })).await;
    }
}
