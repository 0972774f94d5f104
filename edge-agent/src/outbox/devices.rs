//! Devices at the outbox's thread: what the edge API says of them.
//!
//! What becomes of a device is decided by the uplink.

use std::time::Duration;

use fleet_schemas::DeviceId;
use tokio::sync::oneshot;

use super::{Handle, Request, Silent, thread::Keeper};
use crate::core::{
    Now,
    devices::{Declared, Device, Refused},
};

pub(super) enum Word {
    Declare { id: DeviceId, declared: Box<Declared>, reply: oneshot::Sender<Result<bool, Refused>> },
    Remove { id: DeviceId, reply: oneshot::Sender<bool> },
    Sleep { id: DeviceId, span: Duration, reply: oneshot::Sender<Result<(), Refused>> },
    List { reply: oneshot::Sender<Vec<Device>> },
    Find { id: DeviceId, reply: oneshot::Sender<Option<Device>> },
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
        }
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
}
