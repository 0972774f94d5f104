//! `/rollouts`: releases on their way to nodes, wave by wave; what holds them up, and what can be done about it.

use std::sync::Arc;

use askama::Template;
use axum::{
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::{IntoResponse as _, Redirect, Response},
};

use super::{
    fleet::part,
    form::{Fields, Form},
    live::{self, Part, Tick},
    page::{self, Shell, Trouble, Visitor},
    view::View,
    words::{self, When},
};
use crate::{
    api::{Api, problem::Refusal, rollouts, shapes},
    core::{
        identity::Role,
        rollout::{Act, State as Standing},
    },
};

/// Rollouts of a page, and nodes of one.
const LISTED: usize = 50;
/// Width of a bar, in its own units.
const BAR: f64 = 1_000.0;
/// States of nodes that ended well or badly, in the order of a bar; all others are on their way.
const ENDED: [&str; 8] =
    ["confirmed", "rolled_back", "failed", "timed_out", "rejected", "drifted", "inconclusive", "skipped"];

/// Which rollouts a page lists, or which nodes of one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Asked {
    /// Of one rollout.
    id: Option<String>,
    state: Option<String>,
    cursor: Option<String>,
    /// What forms on the page must bring; empty where nobody may change anything.
    csrf: String,
}

#[derive(Template)]
#[template(path = "rollouts.html")]
struct Page {
    shell: Shell,
    asked: Asked,
    list: List,
}

#[derive(Template)]
#[template(path = "rollouts_list.html")]
struct List {
    rollouts: Vec<shapes::Rollout>,
    next: Option<String>,
    asked: Asked,
    now_ms: i64,
}

#[derive(Template)]
#[template(path = "rollout.html")]
struct One {
    shell: Shell,
    id: String,
    head: Head,
    list: Nodes,
}

#[derive(Template)]
#[template(path = "rollout_head.html")]
struct Head {
    rollout: shapes::Rollout,
    csrf: String,
    now_ms: i64,
}

#[derive(Template)]
#[template(path = "rollout_nodes.html")]
struct Nodes {
    rollout: shapes::Rollout,
    asked: Asked,
    now_ms: i64,
}

/// `GET /rollouts?state=&cursor=`.
pub(super) async fn page(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    uri: Uri,
    query: Fields,
) -> Result<Response, Trouble> {
    let mut shell = visitor.shell(&api, "rollouts");
    let asked = Asked::of(None, &shell, &query);
    shell.live = format!("/live/rollouts?{}", uri.query().unwrap_or_default());
    let list = list(&api, &asked, shell.now_ms)?;
    Ok(page::shown(StatusCode::OK, &Page { shell, asked, list })?)
}

/// `GET /rollouts/{id}?state=&cursor=`.
pub(super) async fn one(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    Path(id): Path<String>,
    uri: Uri,
    query: Fields,
) -> Result<Response, Trouble> {
    let mut shell = visitor.shell(&api, "rollouts");
    let asked = Asked::of(Some(id.clone()), &shell, &query);
    let (head, list) = whole(&api, &id, &asked, shell.now_ms).await?;
    shell.live = format!("/live/rollouts/{id}?{}", uri.query().unwrap_or_default());
    Ok(page::shown(StatusCode::OK, &One { shell, id, head, list })?)
}

/// `GET /live/rollouts`, with the page's own query.
pub(super) async fn live(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    query: Fields,
) -> Result<Response, Trouble> {
    let asked = Asked::of(None, &visitor.shell(&api, "rollouts"), &query);
    Ok(live::stream(api, visitor, View::Rollouts(Box::new(asked)))?)
}

/// `GET /live/rollouts/{id}`, with the page's own query.
pub(super) async fn live_one(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    Path(id): Path<String>,
    query: Fields,
) -> Result<Response, Trouble> {
    let asked = Asked::of(Some(id), &visitor.shell(&api, "rollouts"), &query);
    Ok(live::stream(api, visitor, View::Rollouts(Box::new(asked)))?)
}

/// `POST /rollouts/{id}/{act}`: `pause`, `resume`, `abort`, `rollback` or `approve`; `reason`.
pub(super) async fn act(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    Path((id, act)): Path<(String, String)>,
    Form(form): Form,
) -> Result<Response, Trouble> {
    let reason = form.text("reason").map(str::to_owned);
    let act = match act.as_str() {
        "pause" => Act::Pause { reason },
        "resume" => Act::Resume,
        "abort" => Act::Abort { reason },
        "rollback" => Act::Rollback { reason },
        "approve" => Act::Approve,
        _ => return Err(Refusal::BadRequest("a rollout has no such button".to_owned()).into()),
    };
    rollouts::carry_out(&api, &visitor.caller, &id, act).await?;
    Ok(Redirect::to(&format!("/rollouts/{id}")).into_response())
}

/// The parts of a page that a tick touches.
pub(super) async fn parts(api: &Arc<Api>, asked: &Asked) -> Result<Vec<Part>, Refusal> {
    let now_ms = api.hub.clock().now().wall_ms;
    match &asked.id {
        None => Ok(vec![part("list", &list(api, asked, now_ms)?)?]),
        Some(id) => {
            let (head, list) = whole(api, id, asked, now_ms).await?;
            Ok(vec![part("head", &head)?, part("list", &list)?])
        }
    }
}

fn list(api: &Arc<Api>, asked: &Asked, now_ms: i64) -> Result<List, Refusal> {
    let before = asked.cursor.as_deref().map(str::parse).transpose();
    let before = before.map_err(|_| Refusal::query("cursor", "is none that this page gave"))?;
    let known = |state: &Standing| Some(state.as_str()) == asked.state.as_deref();
    let states: Vec<_> = Standing::ALL.into_iter().filter(known).collect();
    let page = rollouts::listed(api, &states, before, LISTED);
    Ok(List { rollouts: page.items, next: page.next, asked: asked.clone(), now_ms })
}

async fn whole(api: &Arc<Api>, id: &str, asked: &Asked, now_ms: i64) -> Result<(Head, Nodes), Refusal> {
    let states: Vec<String> = asked.state.clone().into_iter().collect();
    let after = asked.cursor.clone().unwrap_or_default();
    let rollout = rollouts::whole(api, id, &states, &after, LISTED).await?;
    let head = shapes::Rollout { nodes: Vec::new(), ..rollout.clone() };
    let head = Head { rollout: head, csrf: asked.csrf.clone(), now_ms };
    Ok((head, Nodes { rollout, asked: asked.clone(), now_ms }))
}

impl Asked {
    fn of(id: Option<String>, shell: &Shell, query: &Fields) -> Self {
        let text = |name| query.text(name).map(str::to_owned);
        let may = shell.may(&Role::Operator);
        let csrf = if may { shell.csrf.clone() } else { String::new() };
        Self { id, state: text("state"), cursor: text("cursor"), csrf }
    }

    /// Whether a tick may have changed what it shows.
    pub(super) fn touched(&self, tick: &Tick) -> bool {
        tick.all || tick.rollouts
    }

    fn is_state(&self, state: &str) -> bool {
        self.state.as_deref() == Some(state)
    }

    /// The page that begins at a cursor.
    fn link(&self, cursor: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        if let Some(state) = &self.state {
            query.append_pair("state", state);
        }
        let query = query.append_pair("cursor", cursor).finish();
        match &self.id {
            Some(id) => format!("/rollouts/{id}?{query}"),
            None => format!("/rollouts?{query}"),
        }
    }
}

impl Page {
    fn states(&self) -> impl Iterator<Item = &'static str> {
        Standing::ALL.into_iter().map(Standing::as_str)
    }
}

impl List {
    fn confirmed(&self, rollout: &shapes::Rollout) -> u32 {
        rollout.waves.iter().map(|wave| wave.confirmed).sum()
    }

    fn failed(&self, rollout: &shapes::Rollout) -> u32 {
        rollout.waves.iter().map(|wave| wave.failed).sum()
    }
}

impl Head {
    /// Buttons that make sense now: what they do, what stands on them, whether that ends something.
    fn acts(&self) -> Vec<(&'static str, &'static str, bool)> {
        if self.csrf.is_empty() {
            return Vec::new();
        }
        let back = ("rollback", "Take its nodes back", true);
        let abort = ("abort", "Call it off", true);
        match self.rollout.state.as_str() {
            "waiting_approval" => vec![("approve", "Approve", false), abort],
            "running" => vec![("pause", "Pause", false), abort, back],
            "paused" => vec![("resume", "Go on", false), abort, back],
            "done" | "stopped" | "failed" if self.rollout.back_of.is_none() => vec![back],
            _ => Vec::new(),
        }
    }
}

/// A state as people read it.
fn word(state: &str) -> String {
    state.replace('_', " ")
}

/// Pieces of a bar: where each begins, how wide it is, and of which state.
fn bar(rollout: &shapes::Rollout) -> Vec<(f64, f64, &str)> {
    let all = f64::from(rollout.nodes_count.max(1));
    let ended = ENDED.iter().filter_map(|state| Some((*state, *rollout.nodes_by_state.get(*state)?)));
    let way = rollout.nodes_by_state.iter().filter(|(state, _)| is_way(state));
    let way = ("running", way.map(|(_, many)| many).sum::<u32>());
    pieces(ended.chain([way]), all)
}

/// Whether a node in this state is on its way: neither at an end nor waiting for its turn.
fn is_way(state: &str) -> bool {
    !ENDED.contains(&state) && !["waiting", "canceled", "superseded"].contains(&state)
}

/// Pieces of a wave's bar.
fn wave_bar(wave: &shapes::RolloutWave) -> Vec<(f64, f64, &'static str)> {
    let counts = [("confirmed", wave.confirmed), ("failed", wave.failed), ("running", wave.under_way)];
    pieces(counts.into_iter(), f64::from(wave.nodes.max(1)))
}

fn pieces<'a>(counts: impl Iterator<Item = (&'a str, u32)>, all: f64) -> Vec<(f64, f64, &'a str)> {
    let mut at = 0.0;
    let mut pieces = Vec::new();
    for (state, many) in counts.filter(|(_, many)| *many > 0) {
        let width = f64::from(many) / all * BAR;
        pieces.push((at, width, state));
        at += width;
    }
    pieces
}

/// What a bar says, in words.
fn told(rollout: &shapes::Rollout) -> String {
    let states = rollout.nodes_by_state.iter().map(|(state, many)| format!("{many} {}", word(state)));
    format!("of {}: {}", words::nodes(rollout.nodes_count as usize), states.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(states: &[(&str, u32)]) -> shapes::Rollout {
        let nodes_by_state = states.iter().map(|(state, many)| ((*state).to_owned(), *many)).collect();
        let nodes_count = states.iter().map(|(_, many)| many).sum();
        shapes::Rollout { nodes_by_state, nodes_count, ..shapes::Rollout::default() }
    }

    #[test]
    fn a_bar_shows_what_ended_and_what_is_on_its_way() {
        let shown = rollout(&[("confirmed", 5), ("rolled_back", 1), ("probation", 2), ("waiting", 2)]);
        let pieces = bar(&shown);
        assert_eq!(
            pieces,
            [(0.0, 500.0, "confirmed"), (500.0, 100.0, "rolled_back"), (600.0, 200.0, "running")]
        );
        assert_eq!(told(&shown), "of 10 nodes: 5 confirmed, 2 probation, 1 rolled back, 2 waiting");
        assert!(bar(&rollout(&[])).is_empty());
    }

    #[test]
    fn buttons_are_those_that_make_sense_and_none_for_who_only_looks() {
        let acts = |state: &str, csrf: &str| {
            let rollout = shapes::Rollout { state: state.to_owned(), ..shapes::Rollout::default() };
            let head = Head { rollout, csrf: csrf.to_owned(), now_ms: 0 };
            head.acts().into_iter().map(|(act, _, _)| act).collect::<Vec<_>>()
        };
        assert_eq!(acts("running", "x"), ["pause", "abort", "rollback"]);
        assert_eq!(acts("waiting_approval", "x"), ["approve", "abort"]);
        assert_eq!(acts("paused", "x"), ["resume", "abort", "rollback"]);
        assert_eq!(acts("rolled_back", "x"), [""; 0]);
        assert_eq!(acts("running", ""), [""; 0]);
    }
}
