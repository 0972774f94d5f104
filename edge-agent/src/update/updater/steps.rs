//! What each step of an update does, slots aside: verifying, fetching, and clearing up.

use std::{fs, path::Path};

use tracing::warn;

use super::{
    super::{
        download::{self, Partial},
        moment,
        slot::{Plan, Slot as _},
        verify,
    },
    Desk, Sight, Tools, blocking,
};
use crate::{
    core::{
        queue::{Passed, Time},
        update::{
            Arrival, Found, Health, Input, Refusal, Stage, Step, Trouble, Update, code, version,
            window::{self, Gate},
        },
    },
    store::update::{Spent, Write},
};

/// What is fetched of the update that is under way.
#[derive(Default)]
pub(super) struct Fetched {
    pub(super) partial: Option<Partial>,
    /// All of it came once, and was wrong.
    was_wrong: bool,
}

/// Whether a step may be left in its middle.
pub(super) fn is_droppable(step: Step) -> bool {
    match step {
        Step::Verify | Step::Download => true,
        Step::Install | Step::Switch | Step::Probe | Step::Commit | Step::Undo | Step::Discard => false,
    }
}

impl Tools {
    pub(super) async fn step(
        &self,
        step: Step,
        update: &Update,
        sight: &Sight,
        fetched: &mut Fetched,
    ) -> Input {
        let plan = self.plan(update);
        let slot = self.slots.of(update.order.target.kind);
        match step {
            Step::Verify => Input::Verified(self.verify(update, sight).await),
            Step::Download => Input::Arrived(self.download(update, sight, fetched).await),
            Step::Install => {
                let (folder, digest, length) = (self.downloads.clone(), plan.order.digest, plan.length);
                let sound = blocking(move || download::is_sound(&folder, digest, length)).await;
                Input::Installed(match sound {
                    Ok(true) => slot.install(&plan).await,
                    Ok(false) => {
                        let message = "the file on this node's disk is not what was fetched; check the disk";
                        Err(Trouble::lasting(code::DIGEST, message))
                    }
                    Err(trouble) => Err(trouble),
                })
            }
            Step::Switch => Input::Switched(slot.switch(&plan).await),
            Step::Probe => Input::Probed(match &update.stage {
                Stage::Probation(trial) => slot.probe(&plan, trial).await,
                _ => Health::NotYet(String::new()),
            }),
            Step::Commit => Input::Committed(slot.commit(&plan).await),
            Step::Undo => Input::Undone(slot.undo(&plan).await),
            Step::Discard => {
                slot.discard(&plan).await;
                Input::Discarded
            }
        }
    }

    async fn verify(&self, update: &Update, sight: &Sight) -> Result<Found, Refusal> {
        let order = &update.order;
        let target = &order.target;
        let never = |code: &str, message: String| Err(Refusal::Never(Trouble::lasting(code, message)));
        if !version::fits(target.kind, target.version.as_str()) {
            let message = format!("{} is no version of semantic versioning, such as 1.4.2", target.version);
            return never("bad_order", message);
        }
        if !moment::knows_zone(order.window.as_ref()) {
            let message = "the time zone of its window is not known on this node; install tzdata, or say UTC";
            return never(code::WINDOW, message.to_owned());
        }
        let held = self.ledger().account().tuf.clone();
        let now_ms = self.live.now_ms(sight.time.now);
        let verified = verify::verify(&self.live, held.clone(), target, now_ms).await;
        if let Some(trusted) = verified.trusted.filter(|trusted| Some(trusted) != held.as_ref())
            && let Err(error) = self.write(vec![Write::Tuf(Box::new(trusted))]).await
        {
            return Err(Refusal::Later(error));
        }
        let (digest, signed) = verified.found.inspect_err(|refusal| {
            warn!(%target, ?refusal, "the signed metadata of an update is not had");
        })?;
        let plan = Plan { length: signed.length, custom: signed.custom.clone(), ..self.plan(update) };
        let slot = self.slots.of(target.kind);
        slot.admit(&plan).map_err(Refusal::Never)?;
        let mut runs = slot.runs(&plan).await;
        if let Some(runs) = &mut runs {
            let known = sight.history.confirmed.iter().find(|known| known.digest == runs.digest);
            runs.epoch = known.map_or(runs.epoch, |known| known.epoch);
        }
        Ok(Found { digest, needs: slot.needs(signed.length), signed, runs })
    }

    async fn download(&self, update: &Update, sight: &Sight, fetched: &mut Fetched) -> Arrival {
        let (digest, length) = (update.order.digest, self.plan(update).length);
        let folder = self.downloads.clone();
        let partial = match fetched.partial.take() {
            Some(partial) => Ok(partial),
            None => {
                let opened = move || {
                    fs::create_dir_all(&folder)?;
                    Partial::open(&folder, digest, length)
                };
                blocking(opened).await
            }
        };
        let partial = match partial {
            Ok(partial) => partial,
            Err(trouble) if trouble.passing => {
                return Arrival::Broken { why: trouble.message, moved: false };
            }
            Err(trouble) => return Arrival::Failed(trouble),
        };
        let spent = self.spent_today(self.ledger().account().spent);
        let began = self.clock.now().up;
        let may = |moved: u64| {
            let now = self.clock.now();
            let passed = i64::try_from(now.up.saturating_sub(began).as_millis()).unwrap_or(i64::MAX);
            let true_ms = sight.time.true_ms.map(|ms| ms.saturating_add(passed));
            let time = Time { now, true_ms, ..sight.time };
            let moment = self.moment(&update.order, Spent { bytes: spent.bytes + moved, ..spent }, true_ms);
            let open = window::download_gate(update.order.window.as_ref(), &moment) == Gate::Open;
            open && update.deadline.passed(&time) != Passed::Yes
        };
        let (partial, arrival, moved) = download::fetch(&self.live, partial, may).await;
        fetched.partial = partial;
        self.metrics.update_bytes.increment(moved);
        if moved > 0 {
            let spent = Spent { bytes: spent.bytes + moved, ..spent };
            if let Err(error) = self.write(vec![Write::Spent(spent)]).await {
                warn!(%error, "the bytes of this day cannot be written down");
            }
        }
        match arrival {
            Arrival::Failed(trouble)
                if [code::DIGEST, code::LENGTH].contains(&trouble.code.as_str()) && !fetched.was_wrong =>
            {
                fetched.was_wrong = true;
                warn!(%digest, "{}; it is fetched anew once", trouble.message);
                Arrival::Broken { why: trouble.message, moved: false }
            }
            Arrival::Broken { why, moved } => {
                warn!(%digest, "an update's download broke off: {why}");
                Arrival::Broken { why, moved }
            }
            arrival => arrival,
        }
    }

    /// Files that no update names: of one whose end was written just before a kill.
    pub(super) async fn clear_downloads(&self, desk: &Desk) {
        let named: Vec<_> = desk.waiting.iter().map(|update| update.order.digest.to_string()).collect();
        let folder = self.downloads.clone();
        let _ = blocking(move || {
            clear(&folder, &named);
            Ok(())
        })
        .await;
    }
}

fn clear(folder: &Path, named: &[String]) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let is_named = file.to_str().is_some_and(|file| named.iter().any(|name| file.starts_with(name)));
        if !is_named {
            let _ = fs::remove_file(entry.path());
        }
    }
}
