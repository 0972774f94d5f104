//! Updating a device behind the node: it is told where on the node its firmware is, and its own word is the proof.
//!
//! The device is told over its connection, `{"action":"update","url":…,"version":…,"sha256":…,"size":…}`, fetches the file
//! by itself, and is done once it says in its status that it runs that version. What it ran before is kept, so that it can
//! be told to go back. From when it is told until it is known what became of that, its older words prove nothing.

mod doubts;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fleet_schemas::{
    DeviceId, MetricName,
    device::State,
    update::{Digest, Order},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::{select, sync::oneshot, task, time};
use tracing::{info, warn};

use self::doubts::Doubts;
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
/// Code of a device that does not say in time that it runs what it was told.
const SILENT: &str = "device_timeout";
/// Largest file of what is kept by device that is read, in bytes: 256 devices have about 40,000.
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
    doubts: Arc<Mutex<Doubts>>,
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
        let shelf = Shelf(surroundings.folder.join("device-firmware"));
        Self {
            config: surroundings.config.device.clone(),
            doubts: Arc::new(Mutex::new(Doubts::open(shelf.doubts()))),
            shelf,
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

    fn doubts(&self) -> MutexGuard<'_, Doubts> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn words(&self, id: &DeviceId) -> u64 {
        self.line.as_ref().map_or(0, |line| line.words(id))
    }

    /// The version that the device said last, whether or not it still holds.
    async fn said(&self, id: &DeviceId) -> Option<MetricName> {
        self.outbox.device(id.clone()).await.ok().flatten()?.firmware
    }

    /// The version that the device runs by a word that holds: it was told nothing since, and is there.
    async fn says(&self, id: &DeviceId) -> Option<MetricName> {
        if self.doubts().holds(id, self.words(id)) {
            return None;
        }
        let known = self.outbox.device(id.clone()).await.ok().flatten()?;
        known.firmware.filter(|_| matches!(known.state, State::Online | State::Sleeping))
    }

    /// Tells the device to fetch a file, and waits until it says that it runs what is in it.
    async fn bring(&self, id: &DeviceId, to: &Release, file: &Path) -> Result<(), Trouble> {
        let version = to.version.as_str();
        if self.says(id).await.is_some_and(|says| says.as_str() == version) {
            self.doubts().settle(id);
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
        let told = self.doubts().begin(id, to.digest, self.words(id));
        told.map_err(|error| disk(&self.shelf.doubts(), &error))?;
        let ran = select! {
            ran = self.runs_at_last(id, version) => ran,
            refused = self.insist(line, &order, id) => Err(refused),
            () = time::sleep(self.config.within) => {
                let within = self.config.within.as_secs();
                let message = format!("device {id} did not say within {within} s that it runs {version}");
                Err(Trouble::lasting(SILENT, message))
            }
        };
        offers.withdraw(to.digest);
        if ran.as_ref().err().is_none_or(|trouble| trouble.code == REFUSED) {
            self.doubts().settle(id);
        }
        ran
    }

    async fn runs_at_last(&self, id: &DeviceId, version: &str) -> Result<(), Trouble> {
        while self.says(id).await.is_none_or(|says| says.as_str() != version) {
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
        // Without it, a device cannot be told to go back; nothing else is lost.
        by_device(&path)
            .inspect_err(|error| warn!(path = %path.display(), %error, "what devices ran cannot be read"))
            .unwrap_or_default()
    }

    fn state(&self) -> PathBuf {
        self.0.join("devices.json")
    }

    fn doubts(&self) -> PathBuf {
        self.0.join("told.json")
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
            if ![self.state(), self.doubts()].contains(&path) && !wanted.contains(&path) {
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
        let id = device(plan)?;
        let firmware = self.said(id).await?;
        let kept = self.shelf.load().remove(id.as_str());
        let Order { target, digest, .. } = &plan.order;
        // A device tells no digest: its word for the version is all there is.
        let of_order = || Release { version: target.version.clone(), digest: *digest, epoch: 0 };
        let runs = kept.filter(|kept| kept.version == firmware);
        let runs = runs.or_else(|| (firmware == target.version).then(of_order));
        // An old word says what there is to go back to, and does not prove that it runs what is ordered.
        let holds = self.says(id).await.is_some();
        runs.filter(|runs| holds || runs.digest != *digest)
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
        let fetched = self.line.as_ref().is_some_and(|line| line.offers().was_fetched(*digest));
        let unsure = |why: String| {
            self.doubts().renew(id, self.words(id));
            let message = format!("{why}. Its next status tells; order again what it is to run");
            Err(Trouble::lasting(code::UNSURE, message))
        };
        if self.doubts().may_have_it(id, *digest, fetched) {
            return unsure(format!(
                "device {id} may have fetched {}, and has not said what it runs: it may come up with it yet",
                target.version
            ));
        }
        self.doubts().settle(id);
        if self.said(id).await.is_none_or(|said| said != target.version) {
            return Ok(Switched::Done);
        }
        let before = self.shelf.load().remove(id.as_str()).filter(|before| before.digest != *digest);
        let Some(before) = before else {
            let message = "what the device ran before did not come through this node, which does not have it";
            return Err(Trouble::lasting(code::UNDO, message));
        };
        match self.bring(id, &before, &self.shelf.file(before.digest)).await {
            Ok(()) => Ok(Switched::Done),
            // To wait longer would hold up the node's other updates.
            Err(trouble) if trouble.code == SILENT => {
                unsure(format!("{}, and it ran {} last", trouble.message, target.version))
            }
            Err(trouble) => Err(trouble),
        }
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

/// What a file keeps by device; nothing where there is none.
fn by_device<T: DeserializeOwned>(path: &Path) -> io::Result<BTreeMap<String, T>> {
    match fs::read(path) {
        Ok(bytes) if bytes.len() <= STATE_BYTES => serde_json::from_slice(&bytes).map_err(io::Error::other),
        Ok(_) => Err(io::Error::other("it is too large")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

fn disk(path: &Path, error: &io::Error) -> Trouble {
    Trouble::passing(code::DISK, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests;
