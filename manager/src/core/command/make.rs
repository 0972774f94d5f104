//! A command is made, or canceled: limits, the pace of a large selection, and what gives way to it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ciborium::Value;
use fleet_schemas::{CommandId, MetricName, NodeId, cbor, command::State, limits};
use serde::{Deserialize, Serialize};

use super::{Change, Command, Effects, Execution, doubtful, millis, reason};
use crate::core::{
    Now,
    fleet::{Fleet, NodeNo},
    registry::RegistryError,
};

/// Kinds that agents know; an older agent rejects what it does not.
pub const KINDS: [&str; 10] =
    ["ping", "exec", "restart", "config", "update", "query", "logs", "local", "device", "move"];
/// How long a command may wait unless asked otherwise.
pub const TTL: Duration = Duration::from_secs(3_600);
/// How long it may run unless asked otherwise.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// Longest that a command lives, waiting for its time included: agents remember results for longer than that.
pub const LIFE: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Most executions that are not over: about 60 MB in memory.
pub const OPEN: usize = 250_000;
/// Most bytes of parameters of commands that are not over.
const OPEN_BYTES: usize = 32 * 1024 * 1024;
/// Deepest parameters: with what is around them they stay within [`limits::CBOR_DEPTH`].
const DEPTH: usize = 10;
/// How long before its time a command is sent: a node that loses its link then still begins in time.
const AHEAD: Duration = Duration::from_secs(60);
/// Names that a refusal lists.
const LISTED: usize = 5;
const MICROS: f64 = 1_000_000.0;

/// A command that an operator wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Its id, new.
    pub id: CommandId,
    /// Who wants it, such as `operator NAME`.
    pub by: String,
    /// For whom: known nodes, each once.
    pub nodes: Vec<NodeId>,
    /// What to do.
    pub kind: MetricName,
    /// With what.
    pub params: Value,
    /// The queue.
    pub queue: MetricName,
    /// Higher goes first.
    pub priority: i8,
    /// Whether doing it twice is the same as doing it once.
    pub idempotent: bool,
    /// Waiting commands with the same key give way.
    pub supersedes: Option<MetricName>,
    /// How long it may wait, from `not_before_ms` or from now.
    pub ttl: Duration,
    /// How long it may run.
    pub timeout: Duration,
    /// It must not begin before, Unix milliseconds.
    pub not_before_ms: Option<i64>,
    /// How many nodes a second.
    pub rate: Option<Rate>,
    /// The selector that chose the nodes.
    pub selector: Option<String>,
}

/// The pace of a large selection.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Nodes a second, above 0.
    pub per_s: f64,
    /// Of those, nodes a second of one site, above 0.
    #[serde(default)]
    pub per_site: Option<f64>,
}

fn refuse(pointer: &str, why: impl Into<String>) -> RegistryError {
    RegistryError::Field { pointer: pointer.to_owned(), why: why.into() }
}

/// Makes a command and an execution for every node, or nothing.
///
/// # Errors
/// [`RegistryError`] with the field that is wrong.
pub fn make(fleet: &mut Fleet, effects: &mut Effects, wanted: Wanted, now: Now) -> Result<(), RegistryError> {
    let params_bytes = check(fleet, &wanted, now)?;
    let mut chosen = Vec::with_capacity(wanted.nodes.len());
    for id in &wanted.nodes {
        let known = fleet.nodes.get(id);
        let node = known.ok_or_else(|| RegistryError::Unknown { what: "node", name: id.to_string() })?;
        chosen.push((node.number, node.record.site.clone().unwrap_or_default()));
    }
    room(fleet, &chosen, params_bytes)?;
    let first_ms = wanted.not_before_ms.map_or(now.wall_ms, |at| at.max(now.wall_ms));
    let not_after_ms = first_ms.saturating_add(millis(wanted.ttl));
    let slots = match wanted.rate {
        // Whoever waits for its turn waits here to the end: what is at the node cannot be taken back for sure.
        Some(rate) => pace(&chosen, rate).into_iter().map(|late| first_ms.saturating_add(late)).collect(),
        None => vec![first_ms.saturating_sub(millis(AHEAD)).max(now.wall_ms); chosen.len()],
    };
    if slots.iter().any(|slot| *slot >= not_after_ms) {
        let why = "at this rate the turn of the last node comes after the command has expired; raise the rate or ttl_s";
        return Err(refuse("/rate", why));
    }
    let dispatch = &mut fleet.commands;
    dispatch.last_no = (dispatch.last_no + 1).max(u64::try_from(now.wall_ms).unwrap_or(0));
    let command = Arc::new(Command {
        id: wanted.id,
        no: dispatch.last_no,
        kind: wanted.kind,
        params: wanted.params,
        params_bytes: u32::try_from(params_bytes).unwrap_or(u32::MAX),
        queue: wanted.queue,
        priority: wanted.priority,
        idempotent: wanted.idempotent,
        supersedes: wanted.supersedes,
        created_ms: now.wall_ms,
        not_before_ms: wanted.not_before_ms.filter(|at| *at > now.wall_ms),
        not_after_ms,
        timeout_ms: u64::try_from(wanted.timeout.as_millis()).unwrap_or(u64::MAX),
        by: wanted.by,
        selector: wanted.selector,
    });
    effects.changes.push(Change::made(&command));
    for ((node, _), slot_ms) in chosen.into_iter().zip(slots) {
        if let Some(key) = &command.supersedes {
            supersede(fleet, effects, node, key, now);
        }
        let execution = Execution::new(now.wall_ms, slot_ms);
        effects.write(command.id, node, None, &execution);
        fleet.commands.insert(&command, node, execution);
    }
    effects.made.push(command);
    Ok(())
}

/// Checks what can be said without looking at the queues. Gives the size of the parameters.
fn check(fleet: &Fleet, wanted: &Wanted, now: Now) -> Result<usize, RegistryError> {
    if !KINDS.contains(&wanted.kind.as_str()) {
        return Err(refuse("/kind", format!("{} is none of {}", wanted.kind, KINDS.join(", "))));
    }
    let bytes = cbor::encode(&wanted.params).len();
    if bytes > limits::COMMAND_PARAMS_BYTES {
        let most = limits::COMMAND_PARAMS_BYTES;
        return Err(refuse("/params", format!("{bytes} bytes of CBOR; at most {most} are allowed")));
    }
    if depth(&wanted.params) > DEPTH {
        return Err(refuse("/params", format!("nested deeper than {DEPTH}")));
    }
    if wanted.nodes.is_empty() {
        return Err(refuse("/nodes", "no node is chosen"));
    }
    if wanted.ttl.is_zero() || wanted.ttl > LIFE {
        return Err(refuse("/ttl_s", format!("is not within 1 to {}", LIFE.as_secs())));
    }
    if wanted.timeout.is_zero() || wanted.timeout > LIFE {
        return Err(refuse("/timeout_s", format!("is not within 1 to {}", LIFE.as_secs())));
    }
    let ends_ms = wanted.not_before_ms.unwrap_or(now.wall_ms).saturating_add(millis(wanted.ttl));
    if ends_ms.saturating_sub(now.wall_ms) > millis(LIFE) {
        return Err(refuse(
            "/not_before_ms",
            "with ttl_s it lies more than 7 days ahead; make the command later",
        ));
    }
    let fits = |per: f64| per.is_finite() && (0.001..=1_000_000.0).contains(&per);
    match wanted.rate {
        Some(Rate { per_s, .. }) if !fits(per_s) => {
            return Err(refuse("/rate/per_s", "is not within 0.001 to 1000000"));
        }
        Some(Rate { per_site: Some(per), .. }) if !fits(per) => {
            return Err(refuse("/rate/per_site", "is not within 0.001 to 1000000"));
        }
        Some(_) | None => {}
    }
    if fleet.commands.commands.contains_key(&wanted.id) {
        return Err(RegistryError::Exists { what: "a command", name: wanted.id.to_string() });
    }
    Ok(bytes)
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Map(pairs) => {
            1 + pairs.iter().map(|(key, value)| depth(key).max(depth(value))).max().unwrap_or(0)
        }
        Value::Tag(_, inner) => 1 + depth(inner),
        _ => 0,
    }
}

/// Whether all the queues have room for one more.
fn room(fleet: &Fleet, chosen: &[(NodeNo, String)], params_bytes: usize) -> Result<(), RegistryError> {
    let dispatch = &fleet.commands;
    if dispatch.executions + chosen.len() > OPEN || dispatch.params_bytes + params_bytes > OPEN_BYTES {
        return Err(refuse(
            "/nodes",
            "too much waits already at this hub; cancel what is no longer wanted, or wait until it is done",
        ));
    }
    let full = |node: &NodeNo| {
        dispatch.agendas.get(node).is_some_and(|agenda| agenda.open.len() >= limits::QUEUE_LENGTH)
    };
    let full: Vec<_> = chosen.iter().map(|(node, _)| node).filter(|node| full(node)).collect();
    if full.is_empty() {
        return Ok(());
    }
    let names: Vec<_> =
        full.iter().take(LISTED).filter_map(|node| fleet.ids.get(node)).map(NodeId::as_str).collect();
    let (count, most) = (full.len(), limits::QUEUE_LENGTH);
    let names = names.join(", ");
    Err(refuse(
        "/nodes",
        format!("{most} commands wait already for {count} of the nodes ({names}); nothing was sent"),
    ))
}

/// When each node's turn comes, in milliseconds from the first: no two nodes closer than the rate allows, no two of a
/// site closer than the site's. Sites take turns.
fn pace(chosen: &[(NodeNo, String)], rate: Rate) -> Vec<i64> {
    let gap = |per: f64| (MICROS / per).round() as i64;
    let (all, site) = (gap(rate.per_s), rate.per_site.map_or(0, gap));
    let mut before: BTreeMap<&str, i64> = BTreeMap::new();
    let mut order: Vec<(i64, usize)> = Vec::with_capacity(chosen.len());
    for (index, (_, name)) in chosen.iter().enumerate() {
        let nth = before.entry(name).or_default();
        order.push((*nth, index));
        *nth += 1;
    }
    order.sort_unstable();
    let mut turns = vec![0; chosen.len()];
    let mut next = 0_i64;
    let mut next_of: BTreeMap<&str, i64> = BTreeMap::new();
    for (_, index) in order {
        let of_site = next_of.entry(&chosen[index].1).or_default();
        let turn = next.max(*of_site);
        *of_site = turn.saturating_add(site);
        next = turn.saturating_add(all);
        turns[index] = turn / 1_000;
    }
    turns
}

/// What still waits here for a node under this key gives way. What is at the node, the agent sees to.
fn supersede(fleet: &mut Fleet, effects: &mut Effects, node: NodeNo, key: &MetricName, now: Now) {
    let dispatch = &mut fleet.commands;
    let Some(agenda) = dispatch.agendas.get(&node) else { return };
    let gives_way = |(no, execution): (&u64, &Execution)| {
        let same = dispatch.command(*no).is_some_and(|command| command.supersedes.as_ref() == Some(key));
        (same && execution.state() == State::Queued).then_some(*no)
    };
    let old: Vec<u64> = agenda.open.iter().filter_map(gives_way).collect();
    for no in old {
        let mut why = reason("superseded", format!("a newer command with the key {key} took its place"));
        let held = dispatch.agendas.get(&node).and_then(|agenda| agenda.open.get(&no));
        why.may_have_executed = held.is_some_and(|execution| execution.held);
        dispatch.end(effects, (no, node), State::Superseded, now.wall_ms, Some(why));
    }
}

/// Cancels a command at some nodes, or at all: at once where it waits here, else the node is asked. What is over stays
/// as it is; so does a command that is not known here.
pub fn cancel(fleet: &mut Fleet, effects: &mut Effects, id: CommandId, nodes: Option<&[NodeId]>, now: Now) {
    let numbers =
        nodes.map(|nodes| nodes.iter().filter_map(|id| fleet.nodes.get(id)).map(|node| node.number));
    let dispatch = &mut fleet.commands;
    let Some(open) = dispatch.commands.get(&id) else { return };
    let command = open.command.clone();
    let chosen: Vec<NodeNo> = match numbers {
        Some(numbers) => numbers.filter(|number| open.nodes.contains(number)).collect(),
        None => open.nodes.iter().copied().collect(),
    };
    for node in chosen {
        let key = (command.no, node);
        let Some(agenda) = dispatch.agendas.get_mut(&node) else { continue };
        let Some(execution) = agenda.open.get(&command.no) else { continue };
        if execution.state() == State::Queued {
            let why = match execution.held {
                true => {
                    doubtful("canceled", "canceled after the hub was restored; it may have been sent before")
                }
                false => reason("canceled", "canceled before it was sent"),
            };
            dispatch.end(effects, key, State::Canceled, now.wall_ms, Some(why));
            continue;
        }
        if execution.cancel_ms.is_some() {
            continue;
        }
        agenda.say = true;
        let mut told = None;
        dispatch.change(effects, key, |execution| {
            execution.cancel_ms = Some(now.wall_ms);
            told = Some(Change::new(&command, node, execution));
        });
        effects.changes.extend(told);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_keep_the_rate_of_all_and_of_each_site() {
        let sites = ["a", "a", "a", "a", "b", "b", "c"];
        let chosen: Vec<_> = (1..).zip(sites).map(|(n, site)| (n, site.to_owned())).collect();
        let turns = pace(&chosen, Rate { per_s: 10.0, per_site: Some(2.0) });
        let mut all = turns.clone();
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[1] - pair[0] >= 100), "{turns:?}");
        assert!(turns[..4].windows(2).all(|pair| pair[1] - pair[0] >= 500), "{turns:?}");
        assert_eq!((turns[0], all[6]), (0, 1_500), "{turns:?}");
        assert_eq!(pace(&chosen, Rate { per_s: 0.5, per_site: None }).iter().max(), Some(&12_000));
    }
}
