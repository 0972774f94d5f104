//! What operators ask of rollouts: to make, pause, go on, call off, take back, approve; and what gates found.

use std::collections::{BTreeMap, BTreeSet};

use fleet_schemas::{
    DeviceId, NodeId,
    rule::{Condition, Scope},
    update::{Digest, Target},
};

use super::{
    KEPT, OPEN, Rollouts, SEATS,
    back::start,
    end,
    live::Live,
    model::{Approval, Artifact, Id, Release, Size, Spec, Stage, State, Terms},
    plan::{Candidate, Forecast, Plan, forecast, goals, plan},
    wave,
};
use crate::core::{Now, fleet::Fleet, intake, selector::Selector};

/// Most waves.
pub const WAVES: usize = 16;
/// Most gates.
pub const GATES: usize = 8;
/// How long a rollout may take unless asked otherwise, in milliseconds; at most 30 days.
pub const DEADLINE: i64 = 24 * 3_600_000;
/// How long a node may take unless asked otherwise, in milliseconds.
pub const TIMEOUT: i64 = 3_600_000;
const LONGEST_MS: i64 = 30 * 24 * 3_600_000;
/// A command lives no longer.
const NODE_MS: i64 = 6 * 24 * 3_600_000;

/// A rollout that an operator wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Its name, from [`Rollouts::next_id`].
    pub id: Id,
    /// The release.
    pub release: Release,
    /// Other signed releases of the name.
    pub before: BTreeMap<Digest, (Target, Artifact)>,
    /// Who takes part; with devices behind nodes and their kinds for `device-firmware`.
    pub seats: Vec<(NodeId, DeviceId, Option<String>)>,
    /// The selector that chose them.
    pub selector: Option<String>,
    /// The terms.
    pub terms: Terms,
    /// Who wants it.
    pub by: String,
}

/// A rollout as it would be.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// What is asked for.
    pub spec: Spec,
    /// Who would be in which wave.
    pub plan: Plan,
    /// What it comes to.
    pub forecast: Forecast,
}

/// What is done with a rollout.
#[derive(Debug, Clone, PartialEq)]
pub enum Act {
    /// Tell no further node.
    Pause {
        /// Why.
        reason: Option<String>,
    },
    /// Go on; failures until now do not count again.
    Resume,
    /// Call it off.
    Abort {
        /// Why.
        reason: Option<String>,
    },
    /// Take its nodes back.
    Rollback {
        /// Why.
        reason: Option<String>,
    },
    /// Approve it.
    Approve,
    /// What the gates of a wave say.
    Gate {
        /// The wave, by its place.
        wave: usize,
        /// What they say.
        verdict: Verdict,
        /// Which gate, which node and which value.
        why: String,
    },
}

/// What gates say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All hold at all nodes.
    Pass,
    /// One does not hold.
    Fail,
    /// Of one it cannot be told.
    NoData,
}

/// Why a rollout is not made, or stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RolloutError {
    /// There is none of that name.
    #[error("there is no rollout {0:?}; `fleet rollout ls` lists them")]
    Unknown(String),
    /// The name is taken.
    #[error("there is a rollout {0:?} already; ask again for another name")]
    Exists(String),
    /// A field breaks a rule.
    #[error("{pointer}: {why}")]
    Field {
        /// JSON pointer.
        pointer: &'static str,
        /// What is wrong.
        why: String,
    },
    /// Its state does not allow that.
    #[error("rollout {id} is {state}: {why}")]
    State {
        /// Which.
        id: String,
        /// Its state.
        state: &'static str,
        /// What can be done.
        why: &'static str,
    },
    /// Who made it must not approve it.
    #[error("{0} made it, and it has to be approved by another operator")]
    Own(String),
}

fn field(pointer: &'static str, why: impl Into<String>) -> RolloutError {
    RolloutError::Field { pointer, why: why.into() }
}

/// Plans a rollout without making it.
///
/// # Errors
/// [`RolloutError`].
pub fn draft(fleet: &Fleet, wanted: &Wanted, now: Now) -> Result<Draft, RolloutError> {
    check(&wanted.terms, wanted.selector.as_deref())?;
    if wanted.release.targets.is_empty() {
        return Err(field("/release", "it has no targets; sign artifacts of it first"));
    }
    if fleet.rollouts.live.contains_key(&wanted.id) {
        return Err(RolloutError::Exists(wanted.id.to_string()));
    }
    let goals = goals(&wanted.release);
    let mut candidates = Vec::with_capacity(wanted.seats.len());
    for (id, device, kind) in &wanted.seats {
        let Some(node) = fleet.nodes.get(id) else {
            return Err(field("/nodes", format!("there is no node {id:?}; `fleet node ls` lists them")));
        };
        let mut candidate = Candidate::of(node, device, kind.as_deref(), &wanted.release, 0);
        let goal = super::plan::goal(&goals, &candidate.arch, kind.as_deref());
        let digest = goal.and_then(|goal| goals.get(usize::from(goal))).map(|(_, artifact)| artifact.digest);
        candidate.strikes = digest.map_or(0, |digest| fleet.rollouts.strikes(node.number, digest));
        candidates.push(candidate);
    }
    if candidates.is_empty() {
        return Err(field(
            "/selector",
            "matches no node; `fleet node ls -l SELECTOR` shows what one matches",
        ));
    }
    let plan = plan(&wanted.id, &goals, &wanted.terms, &candidates);
    let forecast = forecast(&plan, &goals, &wanted.terms, &candidates);
    let spec = Spec {
        id: wanted.id.clone(),
        no: fleet.rollouts.last_no + 1,
        release: wanted.release.clone(),
        goals,
        before: wanted.before.clone(),
        selector: wanted.selector.clone(),
        terms: wanted.terms.clone(),
        by: wanted.by.clone(),
        created_ms: now.wall_ms,
        back_of: None,
    };
    Ok(Draft { spec, plan, forecast })
}

fn check(terms: &Terms, selector: Option<&str>) -> Result<(), RolloutError> {
    if terms.waves.is_empty() || terms.waves.len() > WAVES {
        return Err(field("/waves", format!("has 1 to {WAVES} waves, such as 1,5%,25%,100%")));
    }
    let order = |size: &Size| match size {
        Size::Nodes(nodes) => (0, f64::from(*nodes)),
        Size::Percent(percent) => (1, *percent),
    };
    if terms.waves.windows(2).any(|pair| order(&pair[0]) >= order(&pair[1])) {
        return Err(field("/waves", "each is larger than the one before, numbers of nodes before parts"));
    }
    if terms.waves.last() != Some(&Size::Percent(100.0)) {
        return Err(field("/waves", "the last is 100%"));
    }
    let is_part = |value: f64| (0.0..=1.0).contains(&value);
    if !is_part(terms.max_failures) {
        return Err(field("/max_failures", "is within 0% and 100%"));
    }
    if !is_part(terms.allowance) {
        return Err(field("/allowance", "is within 0% and 100%"));
    }
    if terms.max_unavailable.is_some_and(|most| most.nodes == 0) {
        return Err(field("/max_unavailable", "is at least 1; leave it out for any number"));
    }
    if terms.rate.is_some_and(|rate| !(0.01..=1_000_000.0).contains(&rate)) {
        return Err(field("/rate_per_minute", "is within 0.01 and 1000000 nodes a minute"));
    }
    if !(0..=LONGEST_MS).contains(&terms.soak_ms) {
        return Err(field("/soak_s", "is at most 30 days"));
    }
    if !(1_000..=LONGEST_MS).contains(&terms.deadline_ms) {
        return Err(field("/deadline_s", "is within 1 second and 30 days"));
    }
    if terms.timeout_ms < 1_000 || terms.node_ms() > NODE_MS {
        return Err(field(
            "/timeout_s",
            "with the probation and the window's day it is within 1 second and 6 days",
        ));
    }
    if !(1_000..=LONGEST_MS).contains(&terms.offline_ms) {
        return Err(field("/offline_s", "is within 1 second and 30 days"));
    }
    if terms.probation_ms.is_some_and(|ms| !(0..=NODE_MS).contains(&ms)) {
        return Err(field("/probation_s", "is at most 6 days"));
    }
    if terms.gates.len() > GATES {
        return Err(field("/gates", format!("has at most {GATES} conditions")));
    }
    for gate in &terms.gates {
        Condition::parse(gate, None, Scope::default())
            .map_err(|error| field("/gates", format!("{gate:?}: {error}")))?;
    }
    if let Some(selector) = selector {
        Selector::parse(selector).map_err(|error| field("/selector", error.to_string()))?;
    }
    Ok(())
}

/// Makes a rollout, or nothing of it.
///
/// # Errors
/// [`RolloutError`].
pub fn create(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    wanted: &Wanted,
    now: Now,
) -> Result<(), RolloutError> {
    let Draft { spec, plan, .. } = draft(fleet, wanted, now)?;
    let open = fleet.rollouts.live.values().filter(|live| !live.head.state.is_final()).count();
    if open >= OPEN {
        return Err(field(
            "/release",
            format!("{OPEN} rollouts are not over; abort what is not wanted any more"),
        ));
    }
    if plan.waves.iter().all(Vec::is_empty) {
        let why = plan.text.first().cloned().unwrap_or_default();
        return Err(field(
            "/release",
            format!(
                "no node can take it: {}",
                plan.text.iter().find(|line| line.starts_with("left out")).cloned().unwrap_or(why)
            ),
        ));
    }
    make_room(&mut fleet.rollouts, effects, wanted.seats.len());
    let (state, reason) = match wanted.terms.approval {
        Approval::No => (State::Running, format!("made by {}", wanted.by)),
        Approval::Any => (State::WaitingApproval, "it waits for an operator to approve it".to_owned()),
        Approval::Other => {
            (State::WaitingApproval, "it waits for another operator than its maker to approve it".to_owned())
        }
    };
    start(fleet, effects, spec, plan, state, reason, now);
    Ok(())
}

/// Forgets the oldest that are over, above the limits.
fn make_room(rollouts: &mut Rollouts, effects: &mut intake::Effects, more: usize) {
    loop {
        let all = rollouts.all();
        let seats: usize = all.iter().map(|live| live.members().len()).sum();
        let over: Vec<&&Live> =
            all.iter().filter(|live| live.head.state.is_final() && live.under_way() == 0).collect();
        let is_full = over.len() > KEPT || seats + more > SEATS;
        let Some(oldest) = over.first().filter(|_| is_full).map(|live| live.head.spec.id.clone()) else {
            return;
        };
        rollouts.remove(&oldest);
        effects.rollouts.removed.push(oldest);
    }
}

/// Does something with a rollout, or nothing.
///
/// # Errors
/// [`RolloutError`].
pub fn act(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    id: &Id,
    act: Act,
    by: &str,
    now: Now,
) -> Result<(), RolloutError> {
    let Some(mut live) = fleet.rollouts.live.remove(id) else {
        return Err(RolloutError::Unknown(id.to_string()));
    };
    let outcome = act_on(fleet, effects, &mut live, act, by, now);
    fleet.rollouts.live.insert(id.clone(), live);
    if outcome.is_ok() {
        effects.rollouts.heads.insert(id.clone());
        effects.rollouts.changed.insert(id.clone());
        fleet.rollouts.touched.insert(id.clone());
    }
    outcome
}

fn act_on(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    live: &mut Live,
    act: Act,
    by: &str,
    now: Now,
) -> Result<(), RolloutError> {
    let state = live.head.state;
    let refuse = |why: &'static str| {
        Err(RolloutError::State { id: live.head.spec.id.to_string(), state: state.as_str(), why })
    };
    let said = |what: &str, reason: Option<String>| match reason {
        Some(reason) => format!("{what} by {by}: {}", short(&reason)),
        None => format!("{what} by {by}"),
    };
    match (act, state) {
        (Act::Pause { reason }, State::Running) => {
            live.turn(State::Paused, said("paused", reason), now.wall_ms);
        }
        (Act::Pause { .. }, State::Paused) => {}
        (Act::Pause { .. }, _) => return refuse("only one that runs can be paused"),
        (Act::Resume, State::Paused) => {
            wave::forgive(live, now);
            live.turn(State::Running, said("resumed", None), now.wall_ms);
        }
        (Act::Resume, State::Running) => {}
        (Act::Resume, State::WaitingApproval) => return refuse("approve it"),
        (Act::Resume, _) => return refuse("it is over; make another one"),
        (Act::Approve, State::WaitingApproval) => {
            if live.head.spec.terms.approval == Approval::Other && live.head.spec.by == by {
                return Err(RolloutError::Own(by.to_owned()));
            }
            live.head.approved_by = Some(by.to_owned());
            live.turn(State::Running, said("approved", None), now.wall_ms);
        }
        (Act::Approve, _) => return refuse("it waits for no approval"),
        (Act::Abort { reason }, State::WaitingApproval | State::Running | State::Paused) => {
            end::stop(fleet, effects, live, said("aborted", reason), now);
        }
        (Act::Abort { .. }, State::Stopped) => {}
        (Act::Abort { .. }, _) => return refuse("it cannot be aborted any more; roll it back, or wait"),
        (Act::Rollback { .. }, _) if live.head.back.is_some() || live.head.spec.back_of.is_some() => {
            return refuse(
                "its nodes go back, or it is a way back itself; make a rollout of the release you want",
            );
        }
        (Act::Rollback { reason }, State::Running | State::Paused | State::WaitingApproval) => {
            end::roll_back(fleet, effects, live, &said("rolled back", reason), by, now);
        }
        (Act::Rollback { reason }, State::Done | State::Stopped | State::Failed) => {
            let (Some(back), _) = super::back::make(fleet, effects, live, by, now) else {
                return refuse("no node has it that ran something else of this name before");
            };
            live.head.reason =
                format!("{}; {}, rollout {back}", live.head.reason, said("rolled back", reason));
            live.head.back = Some(back);
        }
        (Act::Rollback { .. }, State::RollingBack | State::RolledBack) => {}
        (Act::Gate { wave, verdict, why }, State::Running) => {
            gate(fleet, effects, live, wave, (verdict, why), now);
        }
        // What it was asked for is over.
        (Act::Gate { .. }, _) => {}
    }
    Ok(())
}

fn gate(
    fleet: &mut Fleet,
    effects: &mut intake::Effects,
    live: &mut Live,
    at: usize,
    (verdict, why): (Verdict, String),
    now: Now,
) {
    let is_asked = |live: &Live| {
        live.current() == Some(at) && live.head.waves.get(at).is_some_and(|wave| wave.stage == Stage::Gating)
    };
    if !is_asked(live) {
        return;
    }
    match verdict {
        Verdict::Pass => live.stage(at, Stage::Passed, why, now.wall_ms),
        Verdict::Fail => {
            let name = live.head.waves[at].name.clone();
            wave::halt(
                fleet,
                effects,
                live,
                Some(at),
                format!("a gate of wave {name} does not hold: {why}"),
                now,
            );
        }
        Verdict::NoData => {
            // It holds as long as nobody knows: since when stays.
            if let Some(wave) = live.head.waves.get_mut(at) {
                wave.reason = format!("a gate cannot be told: {why}");
            }
        }
    }
}

/// At most 200 characters of what somebody wrote, on one line.
fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// Nodes of a wave whose telemetry its gates are asked about: those that were confirmed in it.
impl Live {
    /// The wave whose gates are to be asked, with its place and the nodes.
    #[must_use]
    pub fn gating(&self) -> Option<(usize, BTreeSet<crate::core::fleet::NodeNo>)> {
        let at = self.current()?;
        let asked = self.head.state == State::Running && self.head.waves.get(at)?.stage == Stage::Gating;
        let confirmed = super::Stand::Said(fleet_schemas::update::State::Confirmed);
        asked.then(|| {
            let of = self
                .members()
                .iter()
                .filter(|(_, member)| usize::from(member.wave) == at && member.stand == confirmed);
            (at, of.map(|((node, _), _)| *node).collect())
        })
    }
}
