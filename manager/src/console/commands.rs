//! `/commands`: asking nodes to do something, after showing which; and watching what becomes of it.

use std::sync::Arc;

use askama::Template;
use axum::{
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri},
    response::{IntoResponse as _, Redirect, Response},
};
use fleet_schemas::{CommandId, command::State as Standing};
use serde_json::{Value, json};

use super::{
    fleet::{Filter, part},
    form::{Fields, Form},
    live::{self, Part, Tick},
    overview::STATES,
    page::{self, Shell, Trouble, Visitor},
    view::View,
    words::{self, When},
};
use crate::{
    api::{Api, commands, nodes, problem::Refusal, query::node_id, shapes},
    cli::output,
    clock,
    core::{
        command::{KINDS, TIMEOUT, TTL},
        identity::Role,
    },
    store::state::{CommandFilter, ExecutionFilter},
};

/// Commands of a page, and executions of one.
const LISTED: usize = 50;
/// Nodes of a selection that can be left out one by one; of more there is a list.
const TICKED: usize = 200;
/// Most nodes of a selection: those of the largest fleet.
const NODES: usize = 10_000;
/// Pieces of a bar: its width.
const BAR: f64 = 1_000.0;
/// States in the order of a bar: what is over well, what is over, what is on its way.
const ORDER: [Standing; 11] = [
    Standing::Succeeded,
    Standing::Failed,
    Standing::TimedOut,
    Standing::Rejected,
    Standing::Expired,
    Standing::Canceled,
    Standing::Superseded,
    Standing::Running,
    Standing::Accepted,
    Standing::Sent,
    Standing::Queued,
];

/// Which commands a page lists, or which executions of one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Asked {
    /// Of one command.
    id: Option<CommandId>,
    state: Option<Standing>,
    node: Option<String>,
    kind: Option<String>,
    cursor: Option<String>,
}

#[derive(Template)]
#[template(path = "commands.html")]
struct Page {
    shell: Shell,
    asked: Asked,
    list: List,
}

#[derive(Template)]
#[template(path = "commands_list.html")]
struct List {
    commands: Vec<shapes::Command>,
    next: Option<String>,
    asked: Asked,
    now_ms: i64,
}

#[derive(Template)]
#[template(path = "command.html")]
struct One {
    shell: Shell,
    id: CommandId,
    head: Head,
    list: Executions,
}

#[derive(Template)]
#[template(path = "command_head.html")]
struct Head {
    command: shapes::Command,
    now_ms: i64,
}

#[derive(Template)]
#[template(path = "command_executions.html")]
struct Executions {
    command: shapes::Command,
    asked: Asked,
    now_ms: i64,
}

#[derive(Template)]
#[template(path = "command_new.html")]
struct New {
    shell: Shell,
    filter: Filter,
    all: bool,
    /// Nodes that were named one by one.
    named: Vec<String>,
    /// The selection: node, state.
    chosen: Vec<(String, &'static str)>,
    too_many: bool,
    /// What repeats of this form are known by.
    key: String,
}

/// `GET /commands?state=&node=&kind=&cursor=`.
pub(super) async fn page(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    uri: Uri,
    query: Fields,
) -> Result<Response, Trouble> {
    let asked = Asked::of(None, &query)?;
    let mut shell = visitor.shell(&api, "commands");
    shell.live = format!("/live/commands?{}", uri.query().unwrap_or_default());
    let list = list(&api, &asked, shell.now_ms).await?;
    Ok(page::shown(StatusCode::OK, &Page { shell, asked, list })?)
}

/// `GET /commands/{id}?state=&node=&cursor=`.
pub(super) async fn one(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    Path(id): Path<String>,
    uri: Uri,
    query: Fields,
) -> Result<Response, Trouble> {
    let id = commands::command_id(&id)?;
    let asked = Asked::of(Some(id), &query)?;
    let mut shell = visitor.shell(&api, "commands");
    shell.live = format!("/live/commands/{id}?{}", uri.query().unwrap_or_default());
    let (head, list) = whole(&api, id, &asked, shell.now_ms).await?;
    Ok(page::shown(StatusCode::OK, &One { shell, id, head, list })?)
}

/// `GET /live/commands`, with the page's own query.
pub(super) async fn live(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    query: Fields,
) -> Result<Response, Trouble> {
    let asked = Asked::of(None, &query)?;
    Ok(live::stream(api, visitor, View::Commands(asked))?)
}

/// `GET /live/commands/{id}`, with the page's own query.
pub(super) async fn live_one(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    Path(id): Path<String>,
    query: Fields,
) -> Result<Response, Trouble> {
    let asked = Asked::of(Some(commands::command_id(&id)?), &query)?;
    Ok(live::stream(api, visitor, View::Commands(asked))?)
}

/// `GET /commands/new?node=…&all=` or with the filter of the fleet: which nodes it is for, and what they are to do.
pub(super) async fn new(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    query: Fields,
) -> Result<Response, Trouble> {
    let shell = visitor.shell(&api, "commands");
    let filter = Filter::of(&query);
    let named: Vec<String> = query.all("node").map(str::to_owned).collect();
    let all = query.text("all").is_some();
    let mut chosen: Vec<(String, &'static str)> = api.hub.with_fleet(|fleet| {
        let wanted = fleet.nodes.values().filter(|node| {
            let id = node.record.id.as_str();
            match named.is_empty() {
                // Selecting everything takes a word of its own.
                true => (all || !filter.is_empty()) && filter.matches(node),
                false => named.iter().any(|name| name == id),
            }
        });
        let shown = wanted.map(|node| (node.record.id.to_string(), node.record.presence.state.as_str()));
        shown.take(NODES + 1).collect()
    });
    let too_many = chosen.len() > NODES;
    chosen.truncate(NODES);
    let key = clock::random::<16>().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(page::shown(StatusCode::OK, &New { shell, filter, all, named, chosen, too_many, key })?)
}

/// `POST /commands`: the very nodes that the form showed.
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    Form(form): Form,
) -> Result<Response, Trouble> {
    let body = body(&form)?;
    let made = commands::make(&api, &visitor.caller, &keyed(&form)?, body.to_string().into()).await?;
    let made: shapes::BriefCommand =
        serde_json::from_slice(&made).map_err(|error| Refusal::Internal(error.to_string()))?;
    Ok(Redirect::to(&format!("/commands/{}", made.id)).into_response())
}

/// `POST /commands/{id}/cancel`: `node` for one only.
pub(super) async fn cancel(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    Path(id): Path<String>,
    Form(form): Form,
) -> Result<Response, Trouble> {
    let id = commands::command_id(&id)?;
    let body = match form.text("node") {
        Some(node) => json!({ "nodes": [node] }).to_string(),
        None => String::new(),
    };
    commands::unmake(&api, &visitor.caller, &HeaderMap::new(), id, body.into()).await?;
    Ok(Redirect::to(&format!("/commands/{id}")).into_response())
}

/// The parts of a page that a tick touches.
pub(super) async fn parts(api: &Arc<Api>, asked: &Asked) -> Result<Vec<Part>, Refusal> {
    let now_ms = api.hub.clock().now().wall_ms;
    match asked.id {
        None => Ok(vec![part("list", &list(api, asked, now_ms).await?)?]),
        Some(id) => {
            let (head, list) = whole(api, id, asked, now_ms).await?;
            Ok(vec![part("head", &head)?, part("list", &list)?])
        }
    }
}

async fn list(api: &Arc<Api>, asked: &Asked, now_ms: i64) -> Result<List, Refusal> {
    let node = asked.node.as_deref().map(|id| nodes::number(api, &node_id(id)?)).transpose()?;
    let before = asked.cursor.as_deref().map(commands::command_id).transpose()?;
    let filter = CommandFilter { node, state: asked.state, kind: asked.kind.clone(), before, limit: LISTED };
    let page = commands::read(api, filter).await?;
    Ok(List { commands: page.items, next: page.next, asked: asked.clone(), now_ms })
}

async fn whole(
    api: &Arc<Api>,
    id: CommandId,
    asked: &Asked,
    now_ms: i64,
) -> Result<(Head, Executions), Refusal> {
    let node = asked.node.as_deref().map(|id| nodes::number(api, &node_id(id)?)).transpose()?;
    let after = asked.cursor.as_deref().map(str::parse).transpose();
    let after = after.map_err(|_| Refusal::query("cursor", "is none that this page gave"))?;
    let filter = ExecutionFilter { after, node, state: asked.state, limit: LISTED };
    let command = commands::whole(api, id, filter).await?;
    let head = Head { command: shapes::Command { executions: Vec::new(), ..command.clone() }, now_ms };
    Ok((head, Executions { command, asked: asked.clone(), now_ms }))
}

/// The same request again, by the same form, is done once.
fn keyed(form: &Fields) -> Result<HeaderMap, Refusal> {
    let mut headers = HeaderMap::new();
    if let Some(key) = form.text("key") {
        let key = HeaderValue::from_str(key);
        let key = key.map_err(|_| Refusal::BadRequest("the form's key is not ASCII".to_owned()))?;
        headers.insert("idempotency-key", key);
    }
    Ok(headers)
}

/// What the API takes, of the form.
fn body(form: &Fields) -> Result<Value, Refusal> {
    let listed = form.text("nodes").unwrap_or_default().split_ascii_whitespace();
    let nodes: Vec<&str> = form.all("node").chain(listed).collect();
    let kind = form.text("kind").unwrap_or("ping");
    let params = match (kind, form.text("program"), form.text("params")) {
        (_, None, None) => Value::Null,
        ("exec", Some(program), None) => json!({ "argv": argv(program)? }),
        (_, Some(_), None) => return Err(Refusal::at("/program", "is only for the kind exec")),
        (_, None, Some(params)) => serde_json::from_str(params)
            .map_err(|error| Refusal::at("/params", format!("is no JSON: {error}")))?,
        (_, Some(_), Some(_)) => {
            return Err(Refusal::at("/params", "give a program or parameters, not both"));
        }
    };
    let mut body = json!({ "nodes": nodes, "kind": kind, "params": params, "idempotent": form.text("idempotent").is_some() });
    for name in ["ttl_s", "timeout_s"] {
        if let Some(text) = form.text(name) {
            let seconds: f64 =
                text.parse().map_err(|_| Refusal::at(format!("/{name}"), "is no number of seconds"))?;
            body[name] = json!(seconds);
        }
    }
    Ok(body)
}

/// A program and its arguments, apart at spaces that do not stand in double quotes. No shell reads them.
fn argv(text: &str) -> Result<Vec<String>, Refusal> {
    let (mut words, mut word, mut quoted, mut begun) = (Vec::new(), String::new(), false, false);
    for c in text.chars() {
        match c {
            '"' => (quoted, begun) = (!quoted, true),
            c if c.is_whitespace() && !quoted => {
                if begun {
                    words.push(std::mem::take(&mut word));
                }
                begun = false;
            }
            c => {
                word.push(c);
                begun = true;
            }
        }
    }
    if quoted {
        return Err(Refusal::at("/program", "a double quote is not closed"));
    }
    if begun {
        words.push(word);
    }
    Ok(words)
}

/// Where the pieces of a bar are: x, width, state.
fn bar(command: &shapes::Command) -> Vec<(String, String, &'static str)> {
    let count = |state: Standing| command.states.get(state.as_str()).copied().unwrap_or(0);
    let sum: u32 = ORDER.into_iter().map(count).sum();
    let mut x = 0.0;
    let mut pieces = Vec::new();
    for state in ORDER.into_iter().filter(|state| count(*state) > 0) {
        let width = BAR * f64::from(count(state)) / f64::from(sum);
        pieces.push((format!("{x:.0}"), format!("{width:.0}"), state.as_str()));
        x += width;
    }
    pieces
}

/// Executions by state, in the order of a bar.
fn counts(command: &shapes::Command) -> Vec<(&'static str, String)> {
    let count = |state: &Standing| command.states.get(state.as_str()).copied().filter(|count| *count > 0);
    let some = ORDER.iter().filter_map(|state| Some((state.as_str(), count(state)?)));
    some.map(|(state, count)| (state, output::count(u64::from(count)))).collect()
}

/// A bar in words.
fn told(command: &shapes::Command) -> String {
    counts(command).iter().map(|(state, count)| format!("{count} {state}")).collect::<Vec<_>>().join(", ")
}

impl Asked {
    fn of(id: Option<CommandId>, query: &Fields) -> Result<Self, Refusal> {
        let state = query.text("state").map(|text| {
            let known = Standing::ALL.into_iter().find(|state| state.as_str() == text);
            known.ok_or_else(|| Refusal::query("state", format!("there is no state {text:?}")))
        });
        let word = |name: &str| query.text(name).map(|text| text.trim().to_owned());
        Ok(Self {
            id,
            state: state.transpose()?,
            node: word("node"),
            kind: word("kind"),
            cursor: word("cursor"),
        })
    }

    /// Whether a tick may have changed what is listed.
    pub(super) fn touched(&self, tick: &Tick) -> bool {
        tick.all || self.id.map_or(!tick.commands.is_empty(), |id| tick.commands.contains(&id))
    }

    fn is_state(&self, state: &str) -> bool {
        self.state.is_some_and(|wanted| wanted.as_str() == state)
    }

    /// It as a link to the page that begins at a cursor.
    fn link(&self, cursor: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let state = self.state.map(Standing::as_str);
        let words = [("state", state), ("node", self.node.as_deref()), ("kind", self.kind.as_deref())];
        for (name, value) in words {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        let path = self.id.map_or_else(|| "/commands".to_owned(), |id| format!("/commands/{id}"));
        format!("{path}?{}", query.append_pair("cursor", cursor).finish())
    }
}

impl Page {
    fn states(&self) -> impl Iterator<Item = &'static str> {
        ORDER.into_iter().map(Standing::as_str)
    }

    fn may(&self) -> bool {
        self.shell.may(&Role::Operator)
    }
}

impl One {
    fn may(&self) -> bool {
        self.shell.may(&Role::Operator)
    }
}

impl Head {
    fn params(&self) -> Option<String> {
        let params = self.command.params.as_ref().filter(|params| !params.is_null())?;
        Some(params.to_string())
    }

    fn timeout(&self) -> String {
        words::span(i64::try_from(self.command.timeout_ms).unwrap_or(i64::MAX))
    }
}

impl Executions {
    fn alone(&self) -> bool {
        self.command.executions.len() == 1
    }

    /// Why it is where it is, and since when.
    fn last<'a>(&self, execution: &'a shapes::Execution) -> Option<(&'a shapes::Step, When)> {
        let step = execution.history.last()?;
        Some((step, When::of(&step.at_ms, &self.now_ms, &execution.tz)))
    }

    fn size(&self, execution: &shapes::Execution) -> String {
        output::bytes(execution.output_bytes as f64)
    }

    fn gave(&self, execution: &shapes::Execution) -> Option<String> {
        execution.result.as_ref().map(output::json)
    }
}

impl New {
    fn kinds(&self) -> impl Iterator<Item = &'static str> {
        // The others are sent by what they belong to.
        KINDS.into_iter().filter(|kind| !["config", "move", "update"].contains(kind))
    }

    fn states(&self) -> [&'static str; STATES.len()] {
        STATES
    }

    fn one_by_one(&self) -> bool {
        self.chosen.len() <= TICKED
    }

    fn ids(&self) -> String {
        self.chosen.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>().join(" ")
    }

    fn nodes(&self) -> String {
        words::nodes(self.chosen.len())
    }

    fn may(&self) -> bool {
        self.shell.may(&Role::Operator)
    }

    fn ttl_s(&self) -> u64 {
        TTL.as_secs()
    }

    fn timeout_s(&self) -> u64 {
        TIMEOUT.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_read_as_it_is_written_and_no_shell_is_asked() {
        assert_eq!(argv(" df  -h /").unwrap(), ["df", "-h", "/"]);
        assert_eq!(argv(r#"echo "a b" "" $HOME;"#).unwrap(), ["echo", "a b", "", "$HOME;"]);
        assert!(argv(r#"echo "a"#).is_err());
        assert!(argv("  ").unwrap().is_empty());
    }

    #[test]
    fn a_form_becomes_what_the_api_takes() {
        let read = |text: &str| body(&Fields::parse(text.as_bytes()).unwrap());
        assert_eq!(
            read("node=a&node=b&kind=exec&program=uptime&ttl_s=60&idempotent=1").unwrap(),
            json!({"nodes": ["a", "b"], "kind": "exec", "params": {"argv": ["uptime"]}, "idempotent": true, "ttl_s": 60.0})
        );
        assert_eq!(read("nodes=a+b&kind=ping").unwrap()["nodes"], json!(["a", "b"]));
        assert_eq!(
            read("node=a&kind=query&params=%7B%22what%22%3A%22system%22%7D").unwrap()["params"]["what"],
            "system"
        );
        for wrong in
            ["kind=ping&program=x", "kind=query&params=%7B", "kind=exec&program=a&params=1", "ttl_s=soon"]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
