//! Why a node is in its state, and what else is the matter with it.

use fleet_schemas::command::State as Stage;

use super::{Cause, LISTED, NodeView, Told, count};
use crate::core::{
    config,
    identity::Standing,
    ledger::{self, Account},
    presence::{Cause as Doubt, Past, Presence, State, WILL_GRACE},
};

/// The state first, then whatever else is worth knowing; nothing of what is in order.
#[must_use]
pub fn node(view: &NodeView<'_>) -> Vec<Cause> {
    let mut causes = vec![state(view)];
    causes.extend(stands(view));
    if !view.takes && view.presence.state == State::Online {
        causes.push(Cause::still("its agent takes no commands; update the agent"));
    }
    causes.extend(waiting(view));
    causes.extend(configured(view));
    causes.extend(view.accounts.iter().filter_map(account));
    let bad = view.events.iter().filter(|event| event.is_bad).take(LISTED);
    causes.extend(
        bad.map(|Told { at_ms, kind, message, .. }| Cause::new(*at_ms, format!("{kind}: {message}"))),
    );
    causes
}

/// Where it is, and why.
pub(super) fn state(view: &NodeView<'_>) -> Cause {
    let NodeView { id, presence, .. } = view;
    let Presence { state, since_ms, .. } = presence;
    let mut because = reasons(view);
    if view.is_flapping {
        let losses = presence.past.iter().filter(|past| past.state == State::Offline).count();
        because.push(Cause::still(format!("its link is bad: it was lost {} lately", count(losses, "time"))));
    }
    if *state == State::Online {
        because.extend(absences(presence, i64::MIN, i64::MAX).pop());
    }
    let what = match state {
        State::New => format!("{id} is new: it was never heard"),
        State::Online => format!("{id} is online"),
        State::Suspect { .. } => format!("{id} is suspect: about to be called offline"),
        State::Offline => format!("{id} is offline"),
        State::Sleeping { .. } => format!("{id} is sleeping, as it said it would"),
    };
    let cause = Cause::new(*since_ms, what).because(because);
    match state {
        State::Sleeping { until_ms } => cause.until(*until_ms),
        State::New | State::Online | State::Suspect { .. } | State::Offline => cause,
    }
}

/// What led to the present state.
fn reasons(view: &NodeView<'_>) -> Vec<Cause> {
    let NodeView { presence, last_seen_ms, .. } = view;
    let interval = presence.interval().as_secs();
    let silent = format!("it said nothing for three of its heartbeat intervals ({interval} s each)");
    match presence.state {
        State::New => {
            vec![Cause::still("no agent has connected under this id yet; `fleet-agent join` makes one")]
        }
        State::Online | State::Sleeping { .. } => Vec::new(),
        State::Suspect { cause: Doubt::Late } => vec![Cause::new(
            *last_seen_ms,
            format!("a heartbeat is late: one is due every {interval} s, the last word came then"),
        )],
        State::Suspect { cause: Doubt::Will } => {
            vec![Cause::new(presence.since_ms, "its connection ended, or its agent said goodbye")]
        }
        State::Suspect { cause: Doubt::HubRestart } => {
            vec![Cause::new(presence.since_ms, "the hub was started again and has not heard of it since")]
        }
        State::Offline => match presence.past.last() {
            Some(Past { state: State::Suspect { cause: Doubt::Will }, since_ms }) => vec![Cause::new(
                *since_ms,
                format!(
                    "its connection ended, or its agent said goodbye, and it did not return within {} s",
                    WILL_GRACE.as_secs()
                ),
            )],
            Some(Past { state: State::Suspect { cause: Doubt::HubRestart }, since_ms }) => {
                vec![Cause::new(*since_ms, "the hub was started again and has not heard of it since")]
            }
            Some(Past { state: State::Sleeping { until_ms }, .. }) => {
                vec![Cause::new(*until_ms, "it was to wake then, and did not")]
            }
            Some(Past {
                state: State::New | State::Online | State::Offline | State::Suspect { cause: Doubt::Late },
                ..
            })
            | None => {
                vec![Cause::new(*last_seen_ms, format!("{silent}; its last word came then"))]
            }
        },
    }
}

/// Why a node was not to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Absence {
    Lost,
    Unheard,
    Slept,
    New,
}

impl Absence {
    fn of(state: State) -> Option<Self> {
        match state {
            State::Offline | State::Suspect { cause: Doubt::Will } => Some(Self::Lost),
            State::Suspect { cause: Doubt::HubRestart } => Some(Self::Unheard),
            State::Sleeping { .. } => Some(Self::Slept),
            State::New => Some(Self::New),
            State::Online | State::Suspect { cause: Doubt::Late } => None,
        }
    }

    fn what(self, is_over: bool) -> &'static str {
        match (self, is_over) {
            (Self::Lost, true) => "it was offline",
            (Self::Lost, false) => "it is offline",
            (Self::Unheard, true) => "the hub was started again and had not heard of it",
            (Self::Unheard, false) => "the hub was started again and has not heard of it",
            (Self::Slept, true) => "it slept",
            (Self::Slept, false) => "it sleeps",
            (Self::New, true) => "it had never been heard",
            (Self::New, false) => "it has never been heard",
        }
    }
}

/// When a node was not to be reached between two times, oldest first.
pub(super) fn absences(presence: &Presence, from_ms: i64, to_ms: i64) -> Vec<Cause> {
    let now = Past { state: presence.state, since_ms: presence.since_ms };
    let all: Vec<Past> = presence.past.iter().copied().chain([now]).collect();
    let mut found: Vec<(Absence, i64, Option<i64>)> = Vec::new();
    for (at, past) in all.iter().enumerate() {
        let Some(absence) = Absence::of(past.state) else { continue };
        let end_ms = all.get(at + 1).map(|next| next.since_ms);
        // The grace after a lost link and what follows are one absence.
        match found.last_mut().filter(|(last, _, end)| *last == absence && *end == Some(past.since_ms)) {
            Some((_, _, end)) => *end = end_ms,
            None => found.push((absence, past.since_ms, end_ms)),
        }
    }
    found.retain(|(_, at_ms, end_ms)| *at_ms < to_ms && end_ms.is_none_or(|end_ms| end_ms > from_ms));
    let told = found.into_iter().map(|(absence, at_ms, until_ms)| Cause {
        until_ms,
        ..Cause::new(at_ms, absence.what(until_ms.is_some()))
    });
    told.collect()
}

/// Whether it may come in, if not.
fn stands(view: &NodeView<'_>) -> Option<Cause> {
    match view.standing? {
        Standing::Enrolled => None,
        Standing::Pending => {
            Some(Cause::still(format!("it waits to be let in: `fleet node approve {}`", view.id)))
        }
        Standing::Revoked { at_ms, reason } => {
            let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
            Some(Cause::new(
                *at_ms,
                format!(
                    "it was shut out{why}; `fleet join-token create --replace {}` makes a token that lets it in again",
                    view.id
                ),
            ))
        }
    }
}

/// Commands that are not over.
fn waiting(view: &NodeView<'_>) -> Option<Cause> {
    let open = view.open;
    let oldest = open.iter().map(|open| open.command.created_ms).min()?;
    let of = |stage: Stage| open.iter().filter(|open| open.execution.state() == stage).count();
    let stages = [Stage::Running, Stage::Accepted, Stage::Sent, Stage::Queued];
    let some = stages.into_iter().filter(|stage| of(*stage) > 0);
    let words: Vec<_> = some.map(|stage| format!("{} {}", of(stage), stage.as_str())).collect();
    let first = open.iter().take(LISTED).map(|open| {
        let command = &open.command;
        let since_ms = open.execution.history.last().map_or(command.created_ms, |step| step.at_ms);
        let (kind, queue) = (&command.kind, &command.queue);
        let what = format!(
            "{} {kind} in queue {queue}; `fleet why {}`",
            open.execution.state().as_str(),
            command.id
        );
        Cause::new(since_ms, what)
    });
    let what = format!("{} not over ({})", count(open.len(), "command"), words.join(", "));
    Some(Cause::new(oldest, what).because(first))
}

/// That it does not have the configuration it is to have.
fn configured(view: &NodeView<'_>) -> Option<Cause> {
    match view.config {
        config::State::Unmanaged | config::State::InSync => None,
        config::State::Pending | config::State::Failed | config::State::Offline => {
            let (first, rest) = view.config_why.split_first()?;
            Some(Cause::still(first).because(rest.iter().map(Cause::still)))
        }
    }
}

fn account(account: &Account) -> Option<Cause> {
    let lane = account.lane;
    match account.state {
        ledger::Standing::Balanced => None,
        ledger::Standing::Pending => {
            let what =
                format!("{} of lane {lane} are still at the node", count(account.at_edge as usize, "record"));
            Some(Cause::new(account.as_of_ms, what))
        }
        ledger::Standing::Broken => {
            let why = account.reason.as_deref().unwrap_or("the sum does not come out");
            Some(Cause::new(account.as_of_ms, format!("the account of lane {lane} is broken: {why}")))
        }
    }
}
