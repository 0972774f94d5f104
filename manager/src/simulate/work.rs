//! Commands in the simulation: what the operator asks, what the machines really do, and what must hold of it.
//!
//! The machines' half is the real queue in the uplink; only the programs are simulated: each runs for the time that its
//! parameters say, and every start is written down.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ciborium::Value;
use fleet_edge_agent::{
    core::queue::{Act, Command, End, Ending},
    uplink::Judge,
};
use fleet_schemas::{
    CommandId, MetricName, NodeId,
    command::{Reason, State},
};
use rand::{RngExt as _, rngs::StdRng};

use super::{net, site::Site};
use crate::{
    consume::FeedItem,
    core::{
        command::{Rate, Wanted},
        registry::{Intent, Order},
    },
    store::state::{CommandFilter, ExecutionFilter},
};

/// Time that a message may be under way although its sender has given the connection up.
const UNDER_WAY_MS: u64 = 65_000;

/// One start of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    pub at: u64,
    pub no: u64,
}

/// A command that the operator asked for.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub queue: String,
    pub priority: i8,
    pub idempotent: bool,
    /// Simulated time after which nothing may begin.
    pub ends: u64,
    /// Simulated time before which nothing may begin.
    pub begins: u64,
    /// Whether every node may have it at once.
    pub is_plain: bool,
}

/// Everything that was asked and done.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub asked: BTreeMap<CommandId, Asked>,
    pub starts: BTreeMap<(NodeId, CommandId), Vec<Start>>,
    /// Last states as the hubs told them, by hub.
    told: BTreeMap<(usize, CommandId, u32), State>,
    /// Promises that were found broken on the way.
    pub wrong: Vec<String>,
    /// A clock was set wrong: then time proves nothing.
    pub clocks_wrong: bool,
    /// The hub's clock was: after its next start, what had expired by the wrong time may not have by the right one.
    pub hub_clock_wrong: bool,
    /// What was asked, told and begun since it was last taken, for the log.
    pub lines: Vec<String>,
}

/// The programs of one machine.
#[derive(Debug, Default)]
pub(super) struct Work {
    runs: BTreeMap<CommandId, (u64, i32)>,
}

/// Knows two kinds.
#[derive(Debug)]
pub(super) struct Knows;

impl Judge for Knows {
    fn judge(&self, kind: &MetricName, _: &Value) -> Result<(), Reason> {
        match kind.as_str() {
            "ping" | "exec" | "update" => Ok(()),
            _ => Err(Reason {
                code: "unknown_kind".to_owned(),
                message: "this machine knows ping and exec".to_owned(),
                may_have_executed: false,
            }),
        }
    }
}

impl Book {
    /// What the operator does in this step, if anything.
    pub(super) fn ask(&mut self, rng: &mut StdRng, nodes: &[NodeId], now: u64, start_ms: i64) -> Vec<Order> {
        let by = "operator simulated".to_owned();
        if self.asked.len() > 2 && rng.random_bool(0.01) {
            let nth = rng.random_range(0..self.asked.len());
            let Some(id) = self.asked.keys().nth(nth).copied() else { return Vec::new() };
            let some = rng.random_bool(0.3).then(|| vec![nodes[rng.random_range(0..nodes.len())].clone()]);
            return vec![Order { by, intent: Intent::CancelCommand { id, nodes: some } }];
        }
        if !rng.random_bool(0.04) {
            return Vec::new();
        }
        let word = |text: &str| MetricName::parse(text).expect("our own words are valid");
        let kind = ["exec", "exec", "exec", "ping", "logs"][rng.random_range(0..5)];
        let runs_ms = rng.random_range(0..8_000_i64);
        let code = i64::from(rng.random_bool(0.2));
        let mut chosen: Vec<NodeId> = nodes.iter().filter(|_| rng.random_bool(0.5)).cloned().collect();
        if chosen.is_empty() {
            chosen.push(nodes[rng.random_range(0..nodes.len())].clone());
        }
        let ttl = rng.random_range(5..200);
        let later_ms = if rng.random_bool(0.15) { rng.random_range(1_000..90_000) } else { 0 };
        let rate = rng.random_bool(0.15).then_some(Rate { per_s: 2.0, per_site: None });
        let wall_ms = start_ms + i64::try_from(now).unwrap_or(0);
        let mut id: [u8; 16] = net::bytes(rng);
        id[..6].copy_from_slice(&u64::try_from(wall_ms).unwrap_or(0).to_be_bytes()[2..]);
        let id = CommandId(id);
        let queue = ["main", "main", "side"][rng.random_range(0..3)];
        let wanted = Wanted {
            id,
            by: by.clone(),
            nodes: chosen,
            kind: word(kind),
            params: Value::Map(vec![("ms".into(), runs_ms.into()), ("code".into(), code.into())]),
            queue: word(queue),
            priority: i8::from(rng.random_bool(0.1)),
            idempotent: rng.random_bool(0.4),
            supersedes: rng.random_bool(0.1).then(|| word("key")),
            ttl: Duration::from_secs(ttl),
            timeout: Duration::from_secs(rng.random_range(3..20)),
            not_before_ms: (later_ms > 0).then_some(wall_ms + later_ms),
            rate,
            selector: None,
        };
        let later = u64::try_from(later_ms).unwrap_or(0);
        let asked = Asked {
            queue: queue.to_owned(),
            priority: wanted.priority,
            idempotent: wanted.idempotent,
            ends: now + later + ttl * 1_000 + UNDER_WAY_MS,
            begins: now + later,
            is_plain: later == 0 && rate.is_none(),
        };
        self.lines.push(format!("asked {id} {asked:?}"));
        self.asked.insert(id, asked);
        vec![Order { by, intent: Intent::Command(Box::new(wanted)) }]
    }

    /// Notes what a hub told: states go forwards, and end once.
    pub(super) fn note(&mut self, hub: usize, item: &FeedItem) {
        let FeedItem::Execution(change) = item else { return };
        let Some(node) = change.node else { return };
        let state = change.step.state;
        self.lines.push(format!("hub {hub} tells {} of {node}: {:?}", change.command, change.step));
        let before = self.told.insert((hub, change.command, node), state);
        if before.is_some_and(|before| before != state && !before.may_become(state)) {
            self.wrong.push(format!("{}: {before:?} became {state:?}", change.command));
        }
    }

    /// A hub was set back: what it told before is forgotten by it.
    pub(super) fn forget(&mut self, hub: usize) {
        self.told.retain(|(of, _, _), _| *of != hub);
    }

    fn started(&mut self, node: &NodeId, command: &Command, now: u64) {
        let start = Start { at: now, no: command.no };
        self.lines.push(format!("{node} begins {} {start:?}", command.id));
        self.starts.entry((node.clone(), command.id)).or_default().push(start);
        let Some(asked) = self.asked.get(&command.id) else {
            self.wrong.push(format!("{node} runs {}, which nobody asked for", command.id));
            return;
        };
        if !self.clocks_wrong && now > asked.ends {
            self.wrong.push(format!("{node}: {} began {} ms too late", command.id, now - asked.ends));
        }
        if !self.clocks_wrong && now + 1_000 < asked.begins {
            self.wrong.push(format!("{node}: {} began {} ms too early", command.id, asked.begins - now));
        }
    }
}

impl Work {
    /// Does what the queue says; gives what to tell it.
    pub(super) fn take(
        &mut self,
        book: &mut Book,
        node: &NodeId,
        acts: Vec<Act>,
        now: u64,
    ) -> Vec<(CommandId, End)> {
        let mut ends = Vec::new();
        for act in acts {
            match act {
                Act::Start(command) => {
                    book.started(node, &command, now);
                    let (ms, code) = (number(&command.params, "ms"), number(&command.params, "code"));
                    let code = i32::try_from(code).unwrap_or(0);
                    self.runs.insert(command.id, (now + u64::try_from(ms).unwrap_or(0), code));
                }
                Act::Stop(id, Ending::Cancel | Ending::Timeout | Ending::Superseded) => {
                    if self.runs.remove(&id).is_some() {
                        ends.push((id, End::Stopped));
                    }
                }
            }
        }
        let over: Vec<_> =
            self.runs.iter().filter(|(_, (until, _))| *until <= now).map(|(id, _)| *id).collect();
        for id in over {
            if let Some((_, code)) = self.runs.remove(&id) {
                ends.push((id, End::Exited { code }));
            }
        }
        ends
    }

    /// The machine's process died, and the programs with it.
    pub(super) fn die(&mut self) {
        self.runs.clear();
    }
}

fn number(params: &Value, key: &str) -> i64 {
    let pairs = params.as_map().map(Vec::as_slice).unwrap_or_default();
    let found = pairs.iter().find(|(name, _)| name.as_text() == Some(key));
    found.and_then(|(_, value)| value.as_integer()).and_then(|value| value.try_into().ok()).unwrap_or(0)
}

/// What must hold of all commands when the dust has settled. `tampered` are nodes whose cards were set back or copied,
/// or that moved: what those did is not known to the hub that asked.
pub(super) fn check(book: &Book, sites: &[Site], tampered: &BTreeSet<NodeId>, restored: bool) -> Vec<String> {
    let mut wrong = book.wrong.clone();
    for ((node, id), starts) in &book.starts {
        let once = book.asked.get(id).is_some_and(|asked| !asked.idempotent);
        if once && starts.len() > 1 && !tampered.contains(node) {
            wrong.push(format!("{node}: {id} is to be done once and was done {} times", starts.len()));
        }
    }
    // A hub whose clock went back by years between two starts takes up again what had ended by its old time.
    let ordered = !restored && !book.hub_clock_wrong;
    wrong.extend(order(book, tampered).into_iter().filter(|_| ordered));
    for (hub, site) in sites.iter().enumerate() {
        if let Some(consumer) = &site.consumer
            && let Err(error) = ends(book, consumer.shared(), tampered, restored, hub, &mut wrong)
        {
            wrong.push(format!("hub {hub}: commands: {error}"));
        }
    }
    wrong
}

/// First in, first out, of what could be sent at once.
fn order(book: &Book, tampered: &BTreeSet<NodeId>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut by_queue: BTreeMap<(&NodeId, &str, i8), Vec<Start>> = BTreeMap::new();
    for ((node, id), starts) in book.starts.iter().filter(|((node, _), _)| !tampered.contains(node)) {
        let Some(asked) = book.asked.get(id).filter(|asked| asked.is_plain) else { continue };
        if let Some(first) = starts.first() {
            by_queue.entry((node, &asked.queue, asked.priority)).or_default().push(*first);
        }
    }
    for ((node, queue, _), mut starts) in by_queue {
        starts.sort_unstable_by_key(|start| start.no);
        if let Some(pair) = starts.windows(2).find(|pair| pair[0].at > pair[1].at) {
            wrong.push(format!("{node}: {queue}: number {} began after number {}", pair[0].no, pair[1].no));
        }
    }
    wrong
}

/// What the hub says of each end agrees with what was done.
fn ends(
    book: &Book,
    shared: &crate::consume::Shared,
    tampered: &BTreeSet<NodeId>,
    restored: bool,
    hub: usize,
    wrong: &mut Vec<String>,
) -> Result<(), crate::consume::Error> {
    let (state, ids) = (shared.state(), shared.fleet().ids.clone());
    let all = CommandFilter { limit: usize::MAX, ..CommandFilter::default() };
    for (command, counts) in state.commands(&all)?.items {
        let filter = ExecutionFilter { limit: usize::MAX, ..ExecutionFilter::default() };
        let found = state.executions(command.id, &filter)?.items;
        if found.len() != counts.sum() as usize {
            wrong.push(format!(
                "hub {hub}: {} has {} rows, counted {}",
                command.id,
                found.len(),
                counts.sum()
            ));
        }
        for (number, execution) in found {
            let Some(node) = ids.get(&number).filter(|node| !tampered.contains(*node)) else { continue };
            let Some(last) = execution.history.last() else { continue };
            let (id, is) = (command.id, last.state);
            if !execution.history.windows(2).all(|pair| pair[0].state.may_become(pair[1].state)) {
                wrong.push(format!("{node}: {id} went backwards: {:?}", execution.history));
            }
            if !is.is_terminal() && !book.clocks_wrong {
                wrong.push(format!("{node}: {id} is still {}: {execution:?}", is.as_str()));
            }
            let may = last.reason.as_ref().is_some_and(|why| why.may_have_executed);
            if command.kind.as_str() == fleet_schemas::update::COMMAND {
                // What became of it, the account of rollouts tells.
                continue;
            }
            let ran = book.starts.contains_key(&(node.clone(), id));
            let quiet = [State::Expired, State::Canceled, State::Superseded, State::Rejected].contains(&is);
            if quiet && ran && !may && !restored {
                wrong.push(format!("{node}: {id} ran and is {}: {last:?}", is.as_str()));
            }
            if is == State::Succeeded && !ran {
                wrong.push(format!("{node}: {id} is done and never ran"));
            }
            let lost = last.reason.as_ref().is_some_and(|why| why.code == "agent_state_lost");
            if lost && !restored {
                wrong.push(format!("{node}: {id}: nothing explains {last:?}"));
            }
        }
    }
    Ok(())
}

/// The judge of every simulated machine.
pub(super) fn judge() -> Arc<dyn Judge> {
    Arc::new(Knows)
}
