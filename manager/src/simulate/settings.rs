//! Configuration in the simulation: what the operator sets, what documents do to the machines, and what must hold of it.
//!
//! Both deciding halves are real. Only what a document does is simulated: one does not pass the self-check, one cuts the
//! link while it runs, most do nothing.

use std::collections::{BTreeMap, BTreeSet};

use fleet_edge_agent::{
    core::{
        Now as EdgeNow,
        config::{Run, STARTS, failed},
    },
    uplink::{Error, Uplink},
};
use fleet_schemas::{
    NodeId, cbor,
    config::{Failed, Hash, Held, Version},
};
use rand::{RngExt as _, rngs::StdRng};
use serde_json::{Value, json};

use super::world::World;
use crate::core::{
    config::{self, Edit, Layer, State},
    fleet::{Fleet, Node},
    registry::{Intent, NodePatch, Order},
};

/// How long a document has to prove itself, in seconds.
pub(super) const PROBATION_S: u64 = 60;
/// Where nodes may be.
const SITES: [&str; 2] = ["cellar", "roof"];
/// What the group is called.
const GROUP: &str = "high";

/// What a document does to a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Mode {
    #[default]
    Good,
    /// It does not pass the self-check.
    Bad,
    /// The hub cannot be reached while it runs.
    Cuts,
}

/// One try of one document.
type Try = (Version, Hash, u64);

/// A machine's programs, as far as documents change them, and what it saw of documents.
#[derive(Debug, Default)]
pub(super) struct Machine {
    runs: Mode,
    // Being applied until then.
    applies: Option<(u64, Run)>,
    tried: BTreeMap<Try, u32>,
    over: BTreeSet<Try>,
    received: Option<Version>,
    /// How often it began to try one.
    pub tries: u64,
    /// Promises that were found broken.
    pub wrong: Vec<String>,
}

impl Machine {
    /// The process is gone, and what a document did with it.
    pub(super) fn die(&mut self) {
        self.runs = Mode::Good;
        self.applies = None;
    }

    /// The card was changed, or the hub is another one: what was seen of versions and tries counts no more.
    pub(super) fn forget(&mut self) {
        self.tried.clear();
        self.over.clear();
        self.received = None;
    }

    pub(super) fn cuts(&self) -> bool {
        self.runs == Mode::Cuts
    }

    /// Applies what is handed out, which takes a while, and looks at what is held.
    pub(super) fn step(&mut self, uplink: &mut Uplink, now: u64, at: EdgeNow) -> Result<(), Error> {
        if let Some(run) = uplink.config_run() {
            if self.applies.is_some() {
                self.wrong.push("two documents are applied at a time".to_owned());
            }
            self.begins(&run);
            let takes = run.doc.as_ref().map_or(0, |doc| u64::from(doc.held.hash[0]) * 10);
            self.applies = Some((now + takes, run));
        }
        if let Some((_, run)) = self.applies.take_if(|(until, _)| *until <= now) {
            let mode = mode_of(&run);
            let which = run.doc.as_ref().map(|doc| doc.held);
            let end = if mode == Mode::Bad { Err(failed("self_check", "bad".to_owned())) } else { Ok(()) };
            if end.is_ok() {
                self.runs = mode;
            }
            uplink.config_ran(which, end, at)?;
        }
        self.look(uplink);
        Ok(())
    }

    fn begins(&mut self, run: &Run) {
        let Some(held) = run.doc.as_ref().map(|doc| doc.held) else { return };
        if !run.trial {
            if mode_of(run) != Mode::Good {
                self.wrong.push(format!("{} is returned to and never proved itself", name(held)));
            }
            return;
        }
        self.tries += 1;
        let tried = self.tried.entry(key(held)).or_default();
        *tried += 1;
        if *tried > STARTS {
            self.wrong.push(format!("{} is tried {tried} times", name(held)));
        }
        if self.over.contains(&key(held)) {
            self.wrong.push(format!("{} failed and is tried again unasked", name(held)));
        }
    }

    fn look(&mut self, uplink: &Uplink) {
        let reported = uplink.config_view().reported;
        let Some(held) = reported.received else { return };
        if let Some(before) = self.received.filter(|before| *before > held.version) {
            self.wrong.push(format!("{} was received after {before:?}", name(held)));
        }
        self.received = Some(held.version);
        if reported.failed.is_some() {
            self.over.insert(key(held));
        }
    }
}

fn key(held: Held) -> Try {
    (held.version, held.hash, held.retry)
}

fn name(held: Held) -> String {
    format!("configuration {} (try {})", config::version(held.version), held.retry)
}

fn mode_of(run: &Run) -> Mode {
    run.doc.as_ref().and_then(|doc| cbor::decode(&doc.bytes).ok()).map_or(Mode::Good, |doc| mode(&doc))
}

fn mode(doc: &Value) -> Mode {
    match doc.pointer("/apps/mode").and_then(Value::as_str) {
        Some("bad") => Mode::Bad,
        Some("cuts") => Mode::Cuts,
        Some(_) | None => Mode::Good,
    }
}

/// What the operator does in this step, if anything.
pub(super) fn ask(rng: &mut StdRng, nodes: &[NodeId]) -> Vec<Order> {
    let by = "operator simulated".to_owned();
    if !rng.random_bool(0.015) {
        return Vec::new();
    }
    let node = nodes[rng.random_range(0..nodes.len())].clone();
    let site = SITES[rng.random_range(0..SITES.len())];
    let order = |intent| vec![Order { by: by.clone(), intent }];
    match rng.random_range(0..10) {
        0..6 => {
            let layer = match rng.random_range(0..5) {
                0 => Layer::Fleet,
                1 => Layer::Group(GROUP.to_owned()),
                2 => Layer::Site(site.to_owned()),
                _ => Layer::Node(node),
            };
            let mode = match rng.random_range(0..6) {
                0 => json!("bad"),
                1 => json!("cuts"),
                2 => json!("good"),
                _ => Value::Null,
            };
            let value = rng.random_range(0..4);
            let patch = json!({"apps": {"mode": mode, "value": value}});
            let edit = if rng.random_bool(0.5) {
                Edit::Patch { layer, patch, expected: None }
            } else {
                Edit::Put { layer, doc: patch, expected: None }
            };
            order(Intent::EditConfig { edit: Box::new(edit), by: by.clone() })
        }
        6 => order(Intent::RetryConfig(node)),
        7 if rng.random_bool(0.3) => order(Intent::RemoveGroup(GROUP.to_owned())),
        7 => order(Intent::PutGroup { name: GROUP.to_owned(), selector: format!("site={site}") }),
        _ => {
            let site = rng.random_bool(0.8).then(|| site.to_owned());
            let patch = NodePatch { site: Some(site), ..NodePatch::default() };
            order(Intent::PatchNode { node, patch })
        }
    }
}

/// Nodes that neither run what they are to have nor failed to, or whose hub knows that otherwise than they do.
pub(super) fn open(world: &World) -> Vec<String> {
    let mut open = Vec::new();
    each(world, |uplink, fleet, node| {
        let view = uplink.config_view();
        let state = config::state(node);
        let rests = ["none", "applied", "failed"].contains(&view.state);
        let agree = node.record.config.as_deref() == Some(&view.reported);
        if !rests || !agree || matches!(state, State::Pending | State::Offline) {
            open.push(format!(
                "{}: {}, {state:?}: {:?}",
                node.record.id,
                view.state,
                config::why(fleet, node)
            ));
        }
    });
    open
}

fn each(world: &World, mut look: impl FnMut(&Uplink, &Fleet, &Node)) {
    for edge in &world.edges {
        let consumer = world.sites[edge.hub].consumer.as_ref();
        let (Some(uplink), Some(consumer)) = (&edge.uplink, consumer) else { continue };
        let fleet = consumer.shared().fleet();
        if let Some(node) = fleet.nodes.get(&edge.node) {
            look(uplink, &fleet, node);
        }
    }
}

/// What must hold when the dust has settled. `quiet`: nothing went wrong, so nothing but the document may be the reason.
pub(super) fn check(world: &World, quiet: bool) -> Vec<String> {
    let machine = |edge: &super::edge::Edge| -> Vec<_> {
        edge.machine.wrong.iter().map(|wrong| format!("{}: {wrong}", edge.node)).collect()
    };
    let mut wrong: Vec<_> = world.edges.iter().flat_map(machine).collect();
    wrong.extend(open(world).into_iter().map(|open| format!("the configuration does not settle: {open}")));
    each(world, |_, fleet, node| {
        let id = &node.record.id;
        let Some(wanted) = node.wanted else { return };
        let doc = fleet.config.settings().merged(&config::place(&fleet.config, node)).doc;
        if config::encoded(&doc).1 != wanted.hash {
            wrong.push(format!("{id} is to have another document than its layers say"));
        }
        let failed = node.record.config.as_ref().and_then(|reported| reported.failed.as_ref());
        let code = failed.map(|Failed { code, .. }| code.as_str());
        let explained = match (mode(&doc), code) {
            (Mode::Good, None) | (Mode::Bad, Some("self_check")) | (Mode::Cuts, Some("lost_hub")) => true,
            // Whoever is killed or cut off at bad moments can prove nothing.
            (Mode::Good | Mode::Bad | Mode::Cuts, Some("crashed")) | (Mode::Good, Some("lost_hub")) => !quiet,
            (Mode::Good | Mode::Bad | Mode::Cuts, _) => false,
        };
        if !explained {
            wrong.push(format!("{id}: nothing explains {code:?} for {doc}"));
        }
    });
    wrong
}
