//! Updating a device behind the node: it is told where on the node its firmware is, and its own word is the proof.
//!
//! The device is told over its connection, `{"action":"update","url":…,"version":…,"sha256":…,"size":…}`, fetches the file
//! by itself, and is done once it says in its status that it runs that version. What it ran before is kept, so that it can
//! be told to go back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use fleet_schemas::{
    DeviceId,
    device::State,
    update::{Digest, Order},
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{select, sync::oneshot, task, time};
use tracing::{info, warn};

use super::slot::{Plan, Slot, Surroundings};
use crate::{
    config::seconds,
    core::{
        devices::Device as Known,
        queue::End,
        update::{Health, Release, Switched, Trial, Trouble, code},
    },
    devices::{self, Line},
    identity::folder::replace,
    outbox,
};

/// How often a device's word is looked for.
const LOOK: Duration = Duration::from_millis(250);
/// How long after it was told, and said nothing, a device is told again.
const AGAIN: Duration = Duration::from_secs(30);
/// How long one that answered has before it is told again: it may have lost its power meanwhile.
const AT_IT: Duration = Duration::from_secs(300);
/// Code of what a device says that it will not do.
const REFUSED: &str = "device_failed";
/// Largest state that is read, in bytes: 256 devices have about 40,000.
const STATE_BYTES: usize = 256 * 1024;

/// How devices are updated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long a device has to fetch and run its firmware, in seconds.
    #[serde(rename = "within_s", with = "seconds")]
    pub within: Duration,
    /// Where devices find this node's edge API, such as `http://192.168.4.1:9099`; absent: at the address of their
    /// listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        // A board that sleeps wakes within that time.
        Self { within: Duration::from_secs(1_800), url: None }
    }
}

/// The slot of the devices behind the node.
pub(crate) struct Device {
    config: Config,
    shelf: Shelf,
    outbox: outbox::Handle,
    line: Option<Line>,
}

/// The folder `releases/device-firmware`: what devices run by what they were updated to, and the files of that.
#[derive(Debug, Clone)]
struct Shelf(PathBuf);

/// By the device's id.
type Kept = BTreeMap<String, Release>;

impl Device {
    pub(crate) fn new(surroundings: &Surroundings) -> Self {
        Self {
            config: surroundings.config.device.clone(),
            shelf: Shelf(surroundings.folder.join("device-firmware")),
            outbox: surroundings.outbox.clone(),
            line: surroundings.line.clone(),
        }
    }

    /// Over which the device is told, and under which address it finds the node.
    fn way(&self) -> Result<(&Line, String), Trouble> {
        let Some(line) = &self.line else {
            let message = "devices are told over the node's MQTT listener, which is off; write its address into \
                           agent.toml: [devices] listen = \"ADDRESS:1883\"";
            return Err(Trouble::lasting("no_listener", message));
        };
        let Some(base) = self.config.url.clone().or_else(|| line.offers().base()) else {
            let message = "devices cannot fetch firmware from this node: its edge API is for itself alone; write into \
                           agent.toml [api] listen = \"ADDRESS:9099\" with the address of [devices] listen, or where \
                           else it is found: [update.device] url = \"http://ADDRESS:PORT\"";
            return Err(Trouble::lasting("not_reachable", message));
        };
        Ok((line, base))
    }

    async fn known(&self, plan: &Plan) -> Option<Known> {
        self.outbox.device(device(plan)?.clone()).await.ok().flatten()
    }

    /// Whether the device says that it runs this version.
    async fn says(&self, id: &DeviceId, version: &str) -> bool {
        let known = self.outbox.device(id.clone()).await.ok().flatten();
        known.and_then(|known| known.firmware).is_some_and(|firmware| firmware.as_str() == version)
    }

    /// Tells the device to fetch a file, and waits until it says that it runs what is in it.
    async fn bring(&self, id: &DeviceId, to: &Release, file: &Path) -> Result<(), Trouble> {
        let version = to.version.as_str();
        if self.says(id, version).await {
            return Ok(());
        }
        let (line, base) = self.way()?;
        let offers = line.offers();
        let size = fs::metadata(file).map_err(|error| disk(file, &error))?.len();
        let url = format!("{}{}", base.trim_end_matches('/'), offers.open(to.digest, file.to_owned()));
        let params = json!({
            "device": id, "action": "update", "url": url, "version": version,
            "sha256": to.digest.to_string(), "size": size, "answer_s": AGAIN.as_secs(),
        });
        let value = ciborium::Value::serialized(&params).expect("texts and numbers under text keys");
        let order = devices::Order::read(&value)
            .map_err(|reason| Trouble::lasting(&reason.code, format!("{}: {params}", reason.message)))?;
        let ran = select! {
            ran = self.runs_at_last(id, version) => ran,
            refused = self.insist(line, &order, id) => Err(refused),
            () = time::sleep(self.config.within) => {
                let within = self.config.within.as_secs();
                let message = format!("device {id} did not say within {within} s that it runs {version}");
                Err(Trouble::lasting("device_timeout", message))
            }
        };
        offers.withdraw(to.digest);
        let is_known = ran.as_ref().err().is_none_or(|trouble| trouble.code == REFUSED);
        if is_known {
            offers.forget(to.digest);
        }
        ran
    }

    async fn runs_at_last(&self, id: &DeviceId, version: &str) -> Result<(), Trouble> {
        while !self.says(id, version).await {
            time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Tells the device again and again; returns when it says that it will not.
    async fn insist(&self, line: &Line, order: &devices::Order, id: &DeviceId) -> Trouble {
        loop {
            let (_stopper, mut stop) = oneshot::channel();
            match line.tell(order, AGAIN * 2, &mut stop).await {
                End::Failed(reason) if reason.code == REFUSED => {
                    return Trouble::lasting(REFUSED, reason.message);
                }
                // It is at it.
                End::Done { .. } => time::sleep(AT_IT).await,
                end => {
                    info!(device = id.as_str(), ?end, "the device does not answer yet");
                    time::sleep(AGAIN).await;
                }
            }
        }
    }
}

impl Shelf {
    fn load(&self) -> Kept {
        let path = self.state();
        let read = match fs::read(&path) {
            Ok(bytes) if bytes.len() <= STATE_BYTES => {
                serde_json::from_slice(&bytes).map_err(io::Error::other)
            }
            Ok(_) => Err(io::Error::other("it is too large")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Kept::new(),
            Err(error) => Err(error),
        };
        // Without it, a device cannot be told to go back; nothing else is lost.
        read.inspect_err(|error| warn!(path = %path.display(), %error, "what devices ran cannot be read"))
            .unwrap_or_default()
    }

    fn state(&self) -> PathBuf {
        self.0.join("devices.json")
    }

    fn file(&self, digest: Digest) -> PathBuf {
        self.0.join(digest.to_string())
    }

    /// Keeps what a device runs now, and removes what none runs any more.
    fn keep(&self, id: &DeviceId, release: Release, artifact: &Path) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let file = self.file(release.digest);
        if !file.exists() {
            let new = file.with_extension("new");
            fs::copy(artifact, &new)?;
            fs::File::open(&new)?.sync_all()?;
            fs::rename(&new, &file)?;
        }
        let mut kept = self.load();
        kept.insert(id.as_str().to_owned(), release);
        let text = serde_json::to_string_pretty(&kept).expect("texts and numbers under text keys");
        replace(&self.state(), &text)?;
        let wanted: BTreeSet<_> = kept.values().map(|release| self.file(release.digest)).collect();
        for entry in fs::read_dir(&self.0)?.flatten() {
            let path = entry.path();
            if path != self.state() && !wanted.contains(&path) {
                // What stays takes room, and is tried again next time.
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }
}

impl Slot for Device {
    fn needs(&self, length: u64) -> u64 {
        // What was fetched, and what is kept of it for the way back.
        length.saturating_mul(2)
    }

    fn admit(&self, plan: &Plan) -> Result<(), Trouble> {
        if device(plan).is_none() {
            let message =
                "firmware of a device is ordered for a device behind the node; name it in the order";
            return Err(Trouble::lasting("no_device", message));
        }
        self.way().map(drop)
    }

    async fn runs(&self, plan: &Plan) -> Option<Release> {
        let firmware = self.known(plan).await?.firmware?;
        let kept = self.shelf.load().remove(device(plan)?.as_str());
        if let Some(kept) = kept.filter(|kept| kept.version == firmware) {
            return Some(kept);
        }
        // A device tells no digest: its word for the version is all there is.
        let Order { target, digest, .. } = &plan.order;
        (firmware == target.version).then_some(Release { version: firmware, digest: *digest, epoch: 0 })
    }

    async fn install(&self, plan: &Plan) -> Result<(), Trouble> {
        let id = device(plan).map_or_else(String::new, ToString::to_string);
        let Some(known) = self.known(plan).await else {
            let message = format!("there is no device {id} behind this node");
            return Err(Trouble::lasting("no_device", message));
        };
        let kind = known.kind.as_ref().map_or("unknown", |kind| kind.as_str());
        match &plan.custom.device_kind {
            Some(wanted) if wanted != kind => {
                let message = format!("device {id} is of kind {kind:?}, and the firmware for {wanted:?}");
                Err(Trouble::lasting("wrong_device", message))
            }
            Some(_) | None => Ok(()),
        }
    }

    async fn switch(&self, plan: &Plan) -> Result<Switched, Trouble> {
        let Some(id) = device(plan) else { return Err(Trouble::lasting("no_device", "no device is named")) };
        self.bring(id, &release(plan), &plan.file).await.map(|()| Switched::Done)
    }

    async fn probe(&self, plan: &Plan, _: &Trial) -> Health {
        let Some(known) = self.known(plan).await else {
            return Health::Sick(Trouble::lasting("no_device", "the device was removed"));
        };
        let version = plan.order.target.version.as_str();
        match known.firmware.as_ref().map(|firmware| firmware.as_str()) {
            Some(told) if told == version => match known.state {
                State::Late | State::Offline => Health::NotYet("the device is not heard any more".to_owned()),
                State::Online | State::Sleeping | State::Removed => Health::Well,
            },
            told => {
                let message = format!("the device says that it runs {}", told.unwrap_or("nothing known"));
                Health::Sick(Trouble::lasting("other_version", message))
            }
        }
    }

    async fn commit(&self, plan: &Plan) -> Result<(), Trouble> {
        let Some(id) = device(plan) else { return Ok(()) };
        let (shelf, id, release, file) = (self.shelf.clone(), id.clone(), release(plan), plan.file.clone());
        let kept = task::spawn_blocking(move || shelf.keep(&id, release, &file)).await;
        kept.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| disk(&self.shelf.0, &error))
    }

    async fn undo(&self, plan: &Plan) -> Result<Switched, Trouble> {
        let Some(id) = device(plan) else { return Ok(Switched::Done) };
        let Order { target, digest, .. } = &plan.order;
        if !self.says(id, target.version.as_str()).await {
            return match &self.line {
                Some(line) if line.offers().was_fetched(*digest) => {
                    let message = format!(
                        "device {id} fetched {} and has not said since what it runs: it may come up with it yet. Its next \
                         status tells; order again what it is to run",
                        target.version
                    );
                    Err(Trouble::lasting(code::UNSURE, message))
                }
                Some(_) | None => Ok(Switched::Done),
            };
        }
        let before =
            self.shelf.load().remove(id.as_str()).filter(|before| before.digest != plan.order.digest);
        let Some(before) = before else {
            let message = "what the device ran before did not come through this node, which does not have it";
            return Err(Trouble::lasting(code::UNDO, message));
        };
        self.bring(id, &before, &self.shelf.file(before.digest)).await.map(|()| Switched::Done)
    }

    async fn discard(&self, plan: &Plan) {
        if let Some(line) = &self.line {
            line.offers().withdraw(plan.order.digest);
            line.offers().forget(plan.order.digest);
        }
    }
}

fn device(plan: &Plan) -> Option<&DeviceId> {
    plan.order.device.as_ref().filter(|device| !device.is_node())
}

fn release(plan: &Plan) -> Release {
    let Order { target, digest, .. } = &plan.order;
    Release { version: target.version.clone(), digest: *digest, epoch: plan.custom.epoch }
}

fn disk(path: &Path, error: &io::Error) -> Trouble {
    Trouble::passing(code::DISK, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
