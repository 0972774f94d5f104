//! Devices: what they say is accepted together with what it changes of them, in one transaction.

use std::time::Duration;

use fleet_schemas::{DeviceId, Lane, MetricName, device::KIND, event::Event, telemetry::Sample};

use super::{Error, Submission, SubmitError, Uplink};
use crate::{
    core::{
        Now,
        devices::{Declared, Device, Effects, Refused, Sight},
    },
    store::outbox::Write,
};

/// What a device said, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// Which one.
    pub device: DeviceId,
    /// What this tells of the device.
    pub sight: Sight,
    /// Its samples, which may be of other devices behind it.
    pub samples: Vec<Sample>,
    /// Events at it.
    pub events: Vec<Event>,
}

impl Uplink {
    /// All devices, by id.
    #[must_use]
    pub fn devices(&self) -> Vec<Device> {
        self.devices.all().cloned().collect()
    }

    /// One device.
    #[must_use]
    pub fn device(&self, id: &DeviceId) -> Option<&Device> {
        self.devices.get(id)
    }

    /// Somebody declares a device; it is on disk when it says `Ok(Ok(_))`, and whether it is new.
    ///
    /// # Errors
    /// [`Error`]; inside, why it is not taken.
    pub fn declare_device(
        &mut self,
        id: &DeviceId,
        declared: Declared,
        now: Now,
    ) -> Result<Result<bool, Refused>, Error> {
        match self.devices.declare(id, declared, now) {
            Err(refused) => Ok(Err(refused)),
            Ok((new, effects)) => {
                self.stage_devices(effects, now);
                self.commit_staged().map(|()| Ok(new))
            }
        }
    }

    /// A device is none any more. `false`: it was none.
    ///
    /// # Errors
    /// [`Error`].
    pub fn remove_device(&mut self, id: &DeviceId, now: Now) -> Result<bool, Error> {
        let Some(effects) = self.devices.remove(id) else { return Ok(false) };
        self.stage_devices(effects, now);
        self.commit_staged().map(|()| true)
    }

    /// A device tells, or somebody for it, that it sleeps for so long.
    ///
    /// # Errors
    /// [`Error`]; inside, why it is not taken.
    pub fn device_sleeps(
        &mut self,
        id: &DeviceId,
        span: Duration,
        now: Now,
    ) -> Result<Result<(), Refused>, Error> {
        match self.devices.see(id, &Sight { sleep: Some(span), ..Sight::default() }, now) {
            Err(refused) => Ok(Err(refused)),
            Ok(effects) => {
                self.stage_devices(effects, now);
                self.commit_staged().map(Ok)
            }
        }
    }

    /// A device's connection is open, or is not any more.
    pub fn link_device(&mut self, id: &DeviceId, open: bool, now: Now) {
        self.devices.link(id, open, now);
    }

    /// Accepts what devices said: one durable transaction for all of it, all or none of each.
    ///
    /// # Errors
    /// [`Error`] when the disk failed: none of it is accepted, and the value is dead.
    pub fn hear_devices(&mut self, told: Vec<Told>, now: Now) -> Result<Vec<Result<(), SubmitError>>, Error> {
        self.make_room(now)?;
        let full = self.used_bytes() >= self.config.quota_bytes;
        let (mut samples, mut events) = (Vec::new(), Vec::new());
        let mut results = Vec::with_capacity(told.len());
        for Told { device, sight, samples: said, events: happened } in told {
            let others = said.iter().map(|sample| &sample.device);
            let admitted = self.devices.admit(others.chain([&device]));
            results.push(match admitted {
                Err(refused) => Err(SubmitError::Device(refused)),
                // A device that is heard is there, also when nothing more can be kept of it.
                Ok(()) => {
                    let records = said.len() + happened.len();
                    self.sight(&device, &sight, now);
                    self.sight_all(&said, now);
                    if full && records > 0 {
                        Err(SubmitError::Full)
                    } else {
                        samples.extend(said);
                        events.extend(happened);
                        Ok(())
                    }
                }
            });
        }
        if !samples.is_empty() {
            self.stage_rows(samples);
            if !self.meter.has_schedule() {
                self.seal_due = self.seal_due.min(now.up + self.config.prompt);
            }
        }
        self.seal_records(Lane::Event, &events, now);
        if !self.staged.is_empty() {
            self.stage_lazy();
            self.commit()?;
        }
        Ok(results)
    }

    /// Whether the devices of a submission may say something.
    pub(super) fn admit_devices(&self, submission: &Submission) -> Result<(), SubmitError> {
        let admitted = match submission {
            Submission::Samples(samples) => self.devices.admit(distinct(samples)),
            Submission::Events(events) => {
                self.devices.admit(events.iter().filter_map(|event| event.device.as_ref()))
            }
        };
        admitted.map_err(SubmitError::Device)
    }

    /// The devices of a submission that is accepted were heard.
    pub(super) fn sight_submission(&mut self, submission: &Submission, now: Now) {
        match submission {
            Submission::Samples(samples) => self.sight_all(samples, now),
            Submission::Events(events) => {
                for device in events.iter().filter_map(|event| event.device.as_ref()) {
                    self.sight(device, &Sight::default(), now);
                }
            }
        }
    }

    /// Stages what is due of devices.
    pub(super) fn advance_devices(&mut self, now: Now) {
        let effects = self.devices.advance(now);
        self.stage_devices(effects, now);
    }

    fn sight_all(&mut self, samples: &[Sample], now: Now) {
        for device in distinct(samples) {
            self.sight(device, &Sight::default(), now);
        }
    }

    fn sight(&mut self, device: &DeviceId, sight: &Sight, now: Now) {
        // Admitted before, with all others of its submission.
        if let Ok(effects) = self.devices.see(device, sight, now) {
            self.stage_devices(effects, now);
        }
    }

    fn stage_devices(&mut self, effects: Effects, now: Now) {
        let Effects { writes, notes } = effects;
        self.staged.extend(writes.into_iter().map(Write::Device));
        let event = |note: crate::core::devices::Note| Event {
            time_ms: now.wall_ms,
            kind: MetricName::parse(KIND).expect("our kinds are valid"),
            severity: note.severity,
            message: note.message,
            data: Some(note.report.to_data()),
            device: Some(note.report.device),
            id: None,
        };
        let events: Vec<_> = notes.into_iter().map(event).collect();
        self.seal_records(Lane::Event, &events, now);
    }
}

/// The devices of samples, each once as long as those of one stand together.
fn distinct(samples: &[Sample]) -> impl Iterator<Item = &DeviceId> {
    let mut last: Option<&DeviceId> = None;
    samples.iter().filter_map(move |sample| {
        let again = last == Some(&sample.device);
        last = Some(&sample.device);
        (!again && !sample.device.is_node()).then_some(&sample.device)
    })
}
