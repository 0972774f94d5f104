//! `nodes/{id}/why` and `commands/{id}/why`: the chain of causes for the present state, out of what is stored.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    response::{IntoResponse as _, Response},
};
use fleet_schemas::{CommandId, NodeId, event::Severity};

use super::{
    Api, commands, nodes,
    problem::Refusal,
    query::{Params, no_node, node_id},
    rollouts, shapes,
};
use crate::{
    core::{
        command::{Command, Execution, OpenAt},
        config,
        fleet::Node,
        identity::Standing,
        ledger::Account,
        why::{self, Cause, ExecutionView, NodeView, Told},
        zones,
    },
    store::state::{EventFilter, ExecutionFilter},
};

/// Events that are looked at for those worth telling.
const EVENTS: usize = 50;

/// `GET nodes/{id}/why`.
pub(super) async fn of_node(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    Ok(Json(read(&api, node_id(&id)?).await?).into_response())
}

/// Why a node is in its state.
pub(crate) async fn read(api: &Arc<Api>, id: NodeId) -> Result<shapes::NodeWhy, Refusal> {
    let number = nodes::number(api, &id)?;
    api.query(move |api| {
        let accounts = api.hub.ledger_of(&id)?;
        let filter = EventFilter { node: Some(number), limit: EVENTS, ..EventFilter::default() };
        let events: Vec<Told> = api.hub.events(filter)?.into_iter().map(told).collect();
        let mut facts = Facts::of(api, &id).ok_or_else(|| no_node(id.as_str()))?;
        facts.config_why = api.hub.with_fleet(|fleet| config::why(fleet, &facts.node));
        let mut causes = why::node(&facts.view(&accounts, &events));
        causes.extend(api.hub.with_fleet(|fleet| why::updates(fleet, number)));
        let state = facts.node.record.presence.state.as_str().to_owned();
        let causes = causes.into_iter().map(|cause| cause.at(facts.tz.clone())).collect();
        Ok(shapes::NodeWhy { node: id.to_string(), state, causes: shown(causes) })
    })
    .await
}

/// `GET rollouts/{id}/why`.
pub(super) async fn of_rollout(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&[])?;
    let found = api.hub.with_fleet(|fleet| {
        let live = fleet.rollouts.get(&id)?;
        let state = live.head.state.as_str().to_owned();
        Some(shapes::RolloutWhy { id: id.clone(), state, causes: shown(vec![why::rollout(fleet, live)]) })
    });
    Ok(Json(found.ok_or_else(|| rollouts::no_rollout(&id))?).into_response())
}

/// `GET commands/{id}/why?node=&state=&limit=&cursor=`: by node.
pub(super) async fn of_command(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, Refusal> {
    params.only(&["node", "state", "limit", "cursor"])?;
    let id = commands::command_id(&id)?;
    let filter = ExecutionFilter {
        after: params.read("cursor")?,
        node: params.text("node").map(|id| nodes::number(&api, &node_id(id)?)).transpose()?,
        state: commands::state(&params)?,
        limit: params.limit()?,
    };
    let shown = api.query(move |api| command(api, id, &filter)).await?;
    let shown = shown.ok_or_else(|| commands::no_command(&id.to_string()))?;
    Ok(Json(shown).into_response())
}

fn command(
    api: &Api,
    id: CommandId,
    filter: &ExecutionFilter,
) -> Result<Option<shapes::CommandWhy>, Refusal> {
    let store = api.hub.state();
    let Some((command, counts)) = store.command(id)? else { return Ok(None) };
    let page = store.executions(id, filter)?;
    let mut items = Vec::with_capacity(page.items.len());
    for (number, execution) in page.items {
        let node = api.hub.with_fleet(|fleet| fleet.ids.get(&number).cloned());
        let Some(facts) = node.and_then(|node| Facts::of(api, &node)) else { continue };
        items.push(facts.execution(&command, &execution));
    }
    let states = fleet_schemas::command::State::ALL.into_iter().filter(|state| counts.of(*state) > 0);
    Ok(Some(shapes::CommandWhy {
        id: command.id.to_string(),
        kind: command.kind.to_string(),
        states: states.map(|state| (state.as_str().to_owned(), counts.of(state))).collect(),
        items,
        next: page.next.map(|number| number.to_string()),
    }))
}

/// What is looked up of a node.
struct Facts {
    node: Node,
    tz: Option<String>,
    standing: Option<Standing>,
    takes: bool,
    is_flapping: bool,
    open: Vec<OpenAt>,
    config: config::State,
    config_why: Vec<String>,
}

impl Facts {
    fn of(api: &Api, id: &NodeId) -> Option<Self> {
        let now = api.hub.clock().now();
        let standing = api.hub.with_identities(|all| Some(all.enrolments.get(id)?.standing.clone()));
        api.hub.with_fleet(|fleet| {
            let node = Node::clone(fleet.known(id)?);
            Some(Self {
                tz: zones::of_node(fleet, &node),
                standing,
                takes: fleet.commands.takes(node.number),
                is_flapping: node.record.presence.is_flapping(now.mono),
                open: fleet.commands.open_at(node.number),
                config: config::state(&node),
                config_why: Vec::new(),
                node,
            })
        })
    }

    fn view<'a>(&'a self, accounts: &'a [Account], events: &'a [Told]) -> NodeView<'a> {
        let record = &self.node.record;
        NodeView {
            id: &record.id,
            presence: &record.presence,
            last_seen_ms: record.last_seen_ms,
            is_flapping: self.is_flapping,
            standing: self.standing.as_ref(),
            takes: self.takes,
            open: &self.open,
            config: self.config,
            config_why: &self.config_why,
            accounts,
            events,
        }
    }

    fn execution(&self, command: &Command, execution: &Execution) -> shapes::ExecutionWhy {
        let node = self.view(&[], &[]);
        let cause = why::execution(&ExecutionView { node: &node, command, execution });
        shapes::ExecutionWhy {
            node: self.node.record.id.to_string(),
            state: execution.state().as_str().to_owned(),
            causes: shown(vec![cause.at(self.tz.clone())]),
        }
    }
}

fn told(stored: crate::consume::StoredEvent) -> Told {
    Told {
        at_ms: stored.time_ms,
        kind: stored.event.kind.to_string(),
        message: stored.event.message,
        is_bad: stored.event.severity >= Severity::Warning,
    }
}

fn shown(causes: Vec<Cause>) -> Vec<shapes::Cause> {
    let one = |cause: Cause| {
        let Cause { at_ms, until_ms, tz, what, because } = cause;
        shapes::Cause { at_ms, until_ms, tz, what, because: shown(because) }
    };
    causes.into_iter().map(one).collect()
}
