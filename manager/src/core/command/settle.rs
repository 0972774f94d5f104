//! What nodes say of commands: reports, and births that list what a node has.
//!
//! A birth proves that a node does not have an execution only when all that the node had reported before is here, and
//! when the execution was not offered in the birth's own session.

use std::collections::BTreeMap;

use fleet_schemas::{CommandId, NodeId, SessionId, StreamId, command::State, limits, session::StreamState};

use super::{
    Awaiting, Change, Command, Dispatch, Effects, Execution, Kept, NewReport, Place, Row, Step, doubtful,
};
use crate::core::{
    Now,
    fleet::{Fleet, NodeNo},
    mark::{Life, Mark},
};
use fleet_schemas::Lane;

/// The kind by which a node leaves for another hub.
const MOVE: &str = "move";
/// Longest address of a hub that is repeated, in characters: a host name has 253.
const HUB_CHARS: usize = 270;

/// What a birth says of commands.
#[derive(Debug, Clone, PartialEq)]
pub struct Born<'a> {
    /// The session that begins.
    pub session: SessionId,
    /// What the node has and what is not over; none: its agent takes no commands.
    pub commands: Option<&'a [CommandId]>,
    /// Where the command lane stands: per stream the number of the next batch. None: some streams are left out.
    pub upto: Option<Vec<(StreamId, u64)>>,
    /// Its storage came back with less than it had delivered, or reports of it are lost.
    pub set_back: bool,
}

/// A session begins.
pub fn born(dispatch: &mut Dispatch, effects: &mut Effects, node: NodeNo, born: &Born<'_>) {
    let agenda = dispatch.agendas.entry(node).or_default();
    agenda.takes = born.commands.is_some();
    agenda.awaiting = None;
    agenda.say = true;
    dispatch.touched.insert(node);
    let Some(listed) = born.commands else { return };
    let mut listed = listed.to_vec();
    listed.sort_unstable();
    let (mut there, mut unlisted) = (Vec::new(), Vec::new());
    let mut doubts = Vec::new();
    let Some(agenda) = dispatch.agendas.get(&node) else { return };
    for (no, execution) in &agenda.open {
        let Some(command) = dispatch.command(*no) else { continue };
        let elsewhere = execution.offered_in != Some(born.session);
        if listed.binary_search(&command.id).is_ok() {
            there.push(*no);
        } else if execution.state() > State::Queued && elsewhere {
            unlisted.push(*no);
            if born.set_back && !command.idempotent && !execution.doubt {
                doubts.push(*no);
            }
        }
    }
    for no in doubts {
        dispatch.change(effects, (no, node), |execution| execution.doubt = true);
    }
    let Some(agenda) = dispatch.agendas.get_mut(&node) else { return };
    for no in there {
        if let Some(execution) = agenda.open.get_mut(&no) {
            execution.place = Place::Unsure;
        }
    }
    agenda.awaiting = born.upto.clone().map(|upto| Awaiting { session: born.session, upto, unlisted });
}

/// Lets a birth count once all that was reported before it is here.
pub(super) fn settle(dispatch: &mut Dispatch, node: NodeNo, marks: &BTreeMap<(Lane, StreamId), Mark>) {
    let Some(agenda) = dispatch.agendas.get_mut(&node) else { return };
    let Some(awaiting) = &agenda.awaiting else { return };
    let here = |(stream, next): &(StreamId, u64)| match marks.get(&(Lane::Command, *stream)) {
        Some(mark) => match mark.life {
            Life::Open | Life::Closed => mark.seq + 1 >= *next,
            // What it still holds of the stream comes under another: a heartbeat tells which.
            Life::Forked => false,
            Life::RolledBack => true,
        },
        None => *next <= 1,
    };
    if !awaiting.upto.iter().all(here) {
        return;
    }
    let Some(Awaiting { session, unlisted, .. }) = agenda.awaiting.take() else { return };
    for no in unlisted {
        if let Some(execution) = agenda.open.get_mut(&no)
            && execution.offered_in != Some(session)
        {
            execution.place = Place::Absent;
        }
    }
    dispatch.touched.insert(node);
}

/// A heartbeat of the session lists the streams anew. It takes the place of what its birth listed when a stream of that
/// forked: once nothing of the forked one is owed, its reports are under the others, and no other birth may come for long.
pub fn relisted(
    dispatch: &mut Dispatch,
    node: NodeNo,
    session: SessionId,
    states: &[StreamState],
    marks: &BTreeMap<(Lane, StreamId), Mark>,
) {
    let Some(agenda) = dispatch.agendas.get_mut(&node) else { return };
    let Some(awaiting) = agenda.awaiting.as_mut().filter(|awaiting| awaiting.session == session) else {
        return;
    };
    let forked =
        |stream: &StreamId| marks.get(&(Lane::Command, *stream)).filter(|mark| mark.life == Life::Forked);
    let counts = |state: &&StreamState| forked(&state.stream).is_none_or(|mark| mark.is_owed(state));
    if awaiting.upto.iter().any(|(stream, _)| forked(stream).is_some()) {
        awaiting.upto = states.iter().filter(counts).map(|state| (state.stream, state.next_seq)).collect();
        dispatch.touched.insert(node);
    }
}

/// Takes one report. What is of no open execution is kept, and the store is to be asked.
pub fn report(dispatch: &mut Dispatch, effects: &mut Effects, mut new: NewReport) {
    let id = new.report.id;
    let open = dispatch.commands.get(&id).filter(|open| open.nodes.contains(&new.node));
    let Some(command) = open.map(|open| open.command.clone()) else {
        new.kept = Kept::Unsure;
        if let Some(Row { execution, .. }) = effects.rows.get_mut(&(id, new.node)) {
            new.kept = Kept::Execution;
            note(execution, &mut new);
        }
        effects.reports.push(new);
        return;
    };
    let mut change = None;
    dispatch.change(effects, (command.no, new.node), |execution| {
        change = hear(&command, execution, &mut new);
    });
    effects.changes.extend(change);
    effects.reports.push(new);
}

/// What a report makes of an execution.
fn hear(command: &Command, execution: &mut Execution, new: &mut NewReport) -> Option<Change> {
    let report = &mut new.report;
    execution.place = Place::Unsure;
    let stepped = execution.step(report.state, new.at_ms, report.reason.clone());
    execution.exit_code = report.exit_code.or(execution.exit_code);
    let news = stepped || report.output.is_some() || (report.too_late && !execution.too_late);
    execution.too_late |= report.too_late;
    if let Some(output) = &mut report.output {
        let room = limits::COMMAND_OUTPUT_BYTES.saturating_sub(execution.output_bytes as usize);
        if output.bytes.len() > room {
            output.bytes.truncate(room);
            output.cut = true;
        }
        execution.output_bytes += u32::try_from(output.bytes.len()).unwrap_or(0);
        execution.cut |= output.cut;
    }
    news.then(|| Change { output: report.output.clone(), ..Change::new(command, new.node, execution) })
}

/// What a report makes of an execution that was over already: its state stays, and what the node says otherwise is
/// shown beside it.
fn note(execution: &mut Execution, new: &mut NewReport) {
    new.report.output = None;
    new.report.result = None;
    execution.too_late |= new.report.too_late;
    if new.report.state != execution.state() {
        let (state, why) = (new.report.state, new.report.reason.clone().map(Box::new));
        execution.after = Some(Step { state, at_ms: new.at_ms, reason: why });
    }
}

/// Takes a report of an execution that is not open, given its row in the store. Writes the row when it says anything
/// new. A report of a command that nobody here made is kept without what it carries.
pub fn late(effects: &mut Effects, index: usize, stored: Option<Execution>) {
    let Some(new) = effects.reports.get_mut(index) else { return };
    let key = (new.report.id, new.node);
    // Another report of the same group may have changed the row.
    let Some(before) = effects.rows.get(&key).map(|row| row.execution.clone()).or(stored) else {
        new.report.output = None;
        new.report.result = None;
        new.kept = Kept::Stray;
        return;
    };
    new.kept = Kept::Execution;
    let mut execution = before.clone();
    note(&mut execution, new);
    if execution != before {
        effects.write(key.0, key.1, Some(before.state()), &execution);
    }
}

/// Gives up everything that waits for a node: it was shut out, or another machine has its place.
pub fn abandon(fleet: &mut Fleet, effects: &mut Effects, id: &NodeId, now: Now) {
    give_up(fleet, effects, id, ("replaced", "the node was shut out, or another machine has its place"), now);
}

/// Gives up everything that waits for a node which has left for another hub.
pub fn moved(fleet: &mut Fleet, effects: &mut Effects, id: &NodeId, now: Now) {
    give_up(fleet, effects, id, ("moved", "the node has left for another hub"), now);
}

fn give_up(fleet: &mut Fleet, effects: &mut Effects, id: &NodeId, (code, why): (&str, &str), now: Now) {
    let Some(node) = fleet.nodes.get(id).map(|node| node.number) else { return };
    let dispatch = &mut fleet.commands;
    let Some(agenda) = dispatch.agendas.get_mut(&node) else { return };
    agenda.takes = false;
    agenda.awaiting = None;
    let all: Vec<(u64, State)> = agenda.open.iter().map(|(no, execution)| (*no, execution.state())).collect();
    for (no, state) in all {
        let mut why = doubtful(code, why);
        why.may_have_executed = state > State::Queued;
        dispatch.end(effects, (no, node), State::Failed, now.wall_ms, Some(why));
    }
}

/// Where the node goes, if this report says that it leaves: the end of a command of kind `move`.
#[must_use]
pub fn leaves_for(dispatch: &Dispatch, new: &NewReport) -> Option<String> {
    let open = dispatch.commands.get(&new.report.id).filter(|open| open.nodes.contains(&new.node))?;
    if open.command.kind.as_str() != MOVE || new.report.state != State::Succeeded {
        return None;
    }
    let result = new.report.result.as_ref()?.as_map()?;
    let hub = result.iter().find(|(key, _)| key.as_text() == Some("hub"))?.1.as_text()?;
    Some(hub.chars().filter(|c| !c.is_control()).take(HUB_CHARS).collect())
}
