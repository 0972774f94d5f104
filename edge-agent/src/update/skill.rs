//! Skills: an archive unpacked beside the old one, and one link that says which runs.
//!
//! `releases/skill/{name}/` has a folder for each release (`{version}-{digest}`), a note beside it that says what it
//! is, and the link `current`. An app starts from `current`; what has to happen when that changes, `skill.toml` in the
//! archive says. Switching and returning are one rename.

mod manifest;
mod place;

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use fleet_schemas::CommandId;
use tokio::task;
use tracing::warn;

pub(super) use self::place::found;
use self::{
    manifest::{Hooks, LONGEST, Manifest, Probe, WORDS, manifest, run},
    place::{CURRENT, KIND, Place},
};
use super::slot::{Plan, Slot, Surroundings};
use crate::{
    clock,
    core::{
        queue::Limit,
        update::{Health, Release, Switched, Trial, Trouble},
    },
    fetch,
};

/// An archive, and what is unpacked of it, together at most so many times the archive; more is found out on the way.
const SPACE: u64 = 3;
/// Failures in a row after which a release that was well counts as broken.
const FAILURES: u32 = 3;

/// How the release on trial has been.
#[derive(Debug, Default)]
struct Watched {
    looked: Option<Duration>,
    last: Option<Health>,
    was_well: bool,
    failures: u32,
}

/// The slot of skills.
pub(crate) struct Skill {
    surroundings: Surroundings,
    watched: Mutex<HashMap<CommandId, Watched>>,
}

impl Skill {
    pub(crate) fn new(surroundings: Surroundings) -> Self {
        Self { surroundings, watched: Mutex::default() }
    }

    fn place(&self, plan: &Plan) -> Place {
        let name = plan.order.target.name.as_str();
        Place { folder: self.surroundings.folder.join(KIND).join(name) }
    }

    /// Lets the app know that another release is current.
    async fn tell_app(&self, place: &Place, plan: &Plan) -> Result<(), Trouble> {
        let current = place.folder.join(CURRENT);
        let Some(note) = place.current() else { return Ok(()) };
        let Hooks { started, timeout } = manifest(&current)?.hooks;
        if started.is_empty() {
            return Ok(());
        }
        let version = note.release.version.as_str();
        run(&started, &current, plan, version, timeout).await.map_err(|why| {
            Trouble::lasting("hook_failed", format!("the hook `started` of {version} failed: {why}"))
        })
    }

    async fn look(&self, probe: &Probe, place: &Place, plan: &Plan, trial: &Trial) -> Result<(), String> {
        let limit = probe.timeout.unwrap_or(Duration::from_secs(10)).min(LONGEST);
        if let Some(command) = &probe.command {
            let version = plan.order.target.version.as_str();
            return run(command, &place.folder.join(CURRENT), plan, version, limit).await;
        }
        if let Some(url) = &probe.http {
            return fetch::get(url, WORDS * 64, limit).await.map(drop).map_err(|error| error.to_string());
        }
        let Some(device) = &probe.heartbeat else { return Ok(()) };
        let found =
            self.surroundings.outbox.device(device.clone()).await.map_err(|error| error.to_string())?;
        let seen_ms = found.and_then(|device| device.last_seen_ms).unwrap_or(i64::MIN);
        if seen_ms >= self.began_ms(&trial.since) {
            Ok(())
        } else {
            Err(format!("{device} has not been heard since the switch"))
        }
    }

    /// When the trial began, by the wall clock that devices are timed by.
    fn began_ms(&self, since: &Limit) -> i64 {
        let now = self.surroundings.clock.now();
        let time = crate::core::queue::Time { now, boot: clock::boot_id(), true_ms: None };
        let began = since.up(&time).unwrap_or(now.up);
        let ago = now.up.saturating_sub(began);
        now.wall_ms.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX))
    }

    fn with<T>(&self, id: CommandId, look: impl FnOnce(&mut Watched) -> T) -> T {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        // One update at a time: what is known of others is of no use any more.
        watched.retain(|other, _| *other == id);
        look(watched.entry(id).or_default())
    }
}

impl Slot for Skill {
    fn needs(&self, length: u64) -> u64 {
        length.saturating_mul(SPACE)
    }

    fn admit(&self, plan: &Plan) -> Result<(), Trouble> {
        match plan.order.device {
            None => Ok(()),
            Some(_) => {
                Err(Trouble::lasting("bad_order", "a skill runs on the node; order it without a device"))
            }
        }
    }

    async fn runs(&self, plan: &Plan) -> Option<Release> {
        let place = self.place(plan);
        blocking(move || Ok(place.current().map(|note| note.release))).await.ok().flatten()
    }

    async fn install(&self, plan: &Plan) -> Result<(), Trouble> {
        let (place, plan) = (self.place(plan), plan.clone());
        blocking(move || place.install(&plan)).await
    }

    async fn switch(&self, plan: &Plan) -> Result<Switched, Trouble> {
        let place = self.place(plan);
        let name = place.name_of(&release(plan));
        let (placed, target) = (place.clone(), name);
        blocking(move || placed.point(Some(&target))).await?;
        self.tell_app(&place, plan).await?;
        Ok(Switched::Done)
    }

    async fn probe(&self, plan: &Plan, trial: &Trial) -> Health {
        let place = self.place(plan);
        // What runs is looked at where it runs: somebody may have changed it.
        if place.current().is_none_or(|note| note.release.digest != plan.order.digest) {
            return Health::Sick(Trouble::lasting(
                "replaced",
                "something else than the new release is current",
            ));
        }
        let probe = match manifest(&place.folder.join(CURRENT)) {
            Ok(Manifest { health: Some(probe), .. }) => probe,
            Ok(Manifest { health: None, .. }) => return Health::Well,
            Err(trouble) => return Health::Sick(trouble),
        };
        let now = self.surroundings.clock.now().up;
        let interval = probe.interval.unwrap_or(Duration::from_secs(5)).min(LONGEST);
        let known = self.with(plan.command, |watched| {
            let fresh = watched.looked.is_some_and(|looked| now < looked + interval);
            watched.last.clone().filter(|_| fresh)
        });
        if let Some(known) = known {
            return known;
        }
        let looked = self.look(&probe, &place, plan, trial).await;
        self.with(plan.command, |watched| watched.note(looked, now))
    }

    async fn commit(&self, plan: &Plan) -> Result<(), Trouble> {
        let (place, plan) = (self.place(plan), plan.clone());
        blocking(move || {
            let keep: Vec<_> = [Some(release(&plan)), plan.from].into_iter().flatten().collect();
            place.keep_only(&keep);
            Ok(())
        })
        .await
    }

    async fn undo(&self, plan: &Plan) -> Result<Switched, Trouble> {
        let place = self.place(plan);
        let name = plan.from.as_ref().map(|from| place.name_of(from));
        let placed = place.clone();
        blocking(move || placed.point(name.as_deref())).await?;
        if let Err(trouble) = self.tell_app(&place, plan).await {
            // The old release is current again, which is all that can be done for it.
            warn!(skill = %plan.order.target.name, "after returning: {}", trouble.message);
        }
        Ok(Switched::Done)
    }

    async fn discard(&self, plan: &Plan) {
        let (place, plan) = (self.place(plan), plan.clone());
        let _ = blocking(move || {
            place.discard(&release(&plan));
            Ok(())
        })
        .await;
    }
}

impl Watched {
    fn note(&mut self, looked: Result<(), String>, now: Duration) -> Health {
        self.looked = Some(now);
        let health = match looked {
            Ok(()) => {
                (self.was_well, self.failures) = (true, 0);
                Health::Well
            }
            Err(why) => {
                self.failures += 1;
                if self.was_well && self.failures >= FAILURES {
                    let message = format!("it was well, and failed {FAILURES} times in a row: {why}");
                    Health::Sick(Trouble::lasting("unhealthy", message))
                } else {
                    Health::NotYet(why)
                }
            }
        };
        self.last = Some(health.clone());
        health
    }
}

fn release(plan: &Plan) -> Release {
    Release {
        version: plan.order.target.version.clone(),
        digest: plan.order.digest,
        epoch: plan.custom.epoch,
    }
}

/// Off the threads that others run on.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<T, Trouble> {
    let ended = task::spawn_blocking(act).await;
    ended.unwrap_or_else(|_| Err(Trouble::passing("disk", "the thread that did it ended badly")))
}
