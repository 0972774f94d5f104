//! `/`: the fleet in one look, and its nodes.

use std::{collections::BTreeSet, sync::Arc};

use askama::Template;
use axum::{
    extract::State,
    http::{StatusCode, Uri},
    response::Response,
};
use fleet_schemas::NodeId;

use super::{
    form::Fields,
    live::{self, Part, Tick},
    overview::{Changes, Overview, STATES, Sites, Tiles},
    page::{self, Shell, Trouble, Visitor},
    view::View,
    words::{self, When},
};
use crate::{
    api::{Api, events, nodes, problem::Refusal, selector::Selector, shapes},
    cli::{figure, output},
    core::{
        fleet::{Fleet, Node},
        identity::Role,
        zones,
    },
};

/// Nodes of a page of the list.
const ROWS: usize = 50;
/// Sites that the filter offers.
const SITES: usize = 500;
/// Longest text to look for, in bytes.
const TEXT_BYTES: usize = 256;

/// Which nodes are listed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Filter {
    /// What id, name, site or a label must contain, in small letters.
    pub(super) text: String,
    /// The state; empty for all.
    pub(super) state: String,
    /// The site; `-` for none, empty for all.
    pub(super) site: String,
    /// The selector as it was written.
    pub(super) selector: String,
    /// Why it selects nothing.
    pub(super) wrong: Option<String>,
    parsed: Selector,
}

/// A node in the list.
#[derive(Debug, Clone)]
pub(super) struct Row {
    node: shapes::Node,
    now_ms: i64,
}

/// One page of the list.
#[derive(Debug, Default)]
struct Listed {
    nodes: Vec<Node>,
    matching: usize,
    all: usize,
    sites: Vec<String>,
}

#[derive(Template)]
#[template(path = "fleet.html")]
struct Page {
    shell: Shell,
    tiles: Tiles,
    sites: Sites,
    changes: Changes,
    filter: Filter,
    /// What the filter offers.
    offered: Vec<String>,
    rows: Rows,
    matching: usize,
    all: usize,
    page: usize,
}

/// One page of the list; says so where nobody is on it.
#[derive(Template)]
#[template(path = "rows.html")]
struct Rows {
    rows: Vec<Row>,
    all: usize,
}

#[derive(Template)]
#[template(path = "row.html")]
struct Cells<'a> {
    row: &'a Row,
}

/// `GET /?q=&state=&site=&selector=&page=`.
pub(super) async fn page(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    uri: Uri,
    query: Fields,
) -> Result<Response, Trouble> {
    let filter = Filter::of(&query);
    let page = at(&query);
    let (overview, listed) = api.hub.with_fleet(|fleet| (Overview::of(fleet), list(fleet, &filter, page)));
    let mut shell = visitor.shell(&api, "fleet");
    shell.live = match uri.query() {
        Some(query) => format!("/live?{query}"),
        None => "/live".to_owned(),
    };
    let now_ms = shell.now_ms;
    let events = events::read(&api, None, None, 12).await?;
    let changes = overview.changes(&events.items, now_ms, |node| zone(&api, node));
    let page = Page {
        tiles: Tiles { counts: overview.counts },
        sites: Sites { sites: overview.sites, more: overview.more_sites },
        changes,
        filter,
        offered: listed.sites,
        rows: Rows { rows: rows(&api, listed.nodes, now_ms).await?, all: listed.all },
        matching: listed.matching,
        all: listed.all,
        page,
        shell,
    };
    Ok(page::shown(StatusCode::OK, &page)?)
}

/// `GET /live`, with the page's own query.
pub(super) async fn live(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    query: Fields,
) -> Result<Response, Trouble> {
    let filter = Filter::of(&query);
    let listed = api.hub.with_fleet(|fleet| list(fleet, &filter, at(&query)));
    let rows = listed.nodes.into_iter().map(|node| node.record.id).collect();
    Ok(live::stream(api, visitor, View::Fleet(rows))?)
}

fn zone(api: &Api, node: &str) -> Option<String> {
    let node = NodeId::parse(node).ok()?;
    api.hub.with_fleet(|fleet| zones::at(fleet, &node))
}

/// The parts of the fleet's page that a tick touches. Nodes keep their place in the list, whatever becomes of them, until
/// all is drawn anew: a page that was not looked at for a while shows the list as it is then.
pub(super) async fn parts(api: &Arc<Api>, rows: &[NodeId], tick: &Tick) -> Result<Vec<Part>, Refusal> {
    let now_ms = api.hub.clock().now().wall_ms;
    let draw = async {
        let overview = api.hub.with_fleet(Overview::of);
        let events = events::read(api, None, None, 12).await?;
        let changes = overview.changes(&events.items, now_ms, |node| zone(api, node));
        Ok(vec![
            part("tiles", &Tiles { counts: overview.counts })?,
            part("sites", &Sites { sites: overview.sites, more: overview.more_sites })?,
            part("changes", &changes)?,
        ])
    };
    let mut parts = api.live.overview(draw).await?;
    if tick.all {
        let (nodes, all) = api.hub.with_fleet(|fleet| {
            let listed = rows.iter().filter_map(|id| fleet.nodes.get(id)).map(|node| Node::clone(node));
            (listed.collect(), fleet.nodes.len())
        });
        let rows = self::rows(api, nodes, now_ms).await?;
        parts.push(part("rows", &Rows { rows, all })?);
        return Ok(parts);
    }
    let mut drawn = tick.rows.lock().await;
    let touched: Vec<&NodeId> = rows.iter().filter(|id| tick.nodes.contains(*id)).collect();
    let nodes = api.hub.with_fleet(|fleet| {
        let missing = touched.iter().filter(|id| !drawn.contains_key(**id));
        missing.filter_map(|id| fleet.nodes.get(*id)).map(|node| Node::clone(node)).collect()
    });
    for row in self::rows(api, nodes, now_ms).await? {
        let part = part(format!("node-{}", row.node.id), &Cells { row: &row })?;
        if let Ok(id) = NodeId::parse(&row.node.id) {
            drawn.insert(id, part);
        }
    }
    parts.extend(touched.into_iter().filter_map(|id| drawn.get(id)).cloned());
    Ok(parts)
}

/// Draws a part.
pub(super) fn part(id: impl Into<Arc<str>>, content: &impl Template) -> Result<Part, Refusal> {
    let html = content.render().map_err(|error| Refusal::Internal(error.to_string()))?;
    Ok(Part::new(id, html))
}

/// The page that a query asks for, from 1.
fn at(query: &Fields) -> usize {
    query.text("page").and_then(|page| page.parse().ok()).unwrap_or(1).max(1)
}

fn list(fleet: &Fleet, filter: &Filter, page: usize) -> Listed {
    let mut listed = Listed { all: fleet.nodes.len(), ..Listed::default() };
    let mut sites = BTreeSet::new();
    for node in fleet.nodes.values() {
        if let Some(site) = node.record.site.as_deref()
            && !sites.contains(site)
            && sites.len() < SITES
        {
            sites.insert(site);
        }
        if filter.matches(node) {
            if listed.matching / ROWS == page - 1 {
                listed.nodes.push(Node::clone(node));
            }
            listed.matching += 1;
        }
    }
    listed.sites = sites.into_iter().map(str::to_owned).collect();
    listed
}

async fn rows(api: &Arc<Api>, nodes: Vec<Node>, now_ms: i64) -> Result<Vec<Row>, Refusal> {
    if nodes.is_empty() {
        return Ok(Vec::new());
    }
    let nodes = nodes::shown(api, nodes).await?;
    Ok(nodes.into_iter().map(|node| Row { node, now_ms }).collect())
}

impl Filter {
    /// What a query asks for; words that are not understood select nothing.
    pub(super) fn of(query: &Fields) -> Self {
        let word = |name: &str| query.text(name).unwrap_or_default().trim().to_owned();
        let selector = word("selector");
        let mut text = word("q").to_lowercase();
        text.truncate(text.floor_char_boundary(TEXT_BYTES));
        let (parsed, mut wrong) = match Selector::parse(&selector) {
            Ok(parsed) => (parsed, None),
            Err(error) => (Selector::default(), Some(error.to_string())),
        };
        let state = word("state");
        if !state.is_empty() && !STATES.contains(&state.as_str()) {
            wrong = wrong.or(Some(format!("there is no state {state:?}")));
        }
        Self { text, state, site: word("site"), selector, wrong, parsed }
    }

    /// Whether a node is listed.
    pub(super) fn matches(&self, node: &Node) -> bool {
        let record = &node.record;
        let site = record.site.as_deref();
        self.wrong.is_none()
            && (self.state.is_empty() || record.presence.state.as_str() == self.state)
            && match self.site.as_str() {
                "" => true,
                "-" => site.is_none(),
                name => site == Some(name),
            }
            && (self.parsed.is_empty() || self.parsed.matches(node))
            && (self.text.is_empty() || self.found_in(node))
    }

    fn found_in(&self, node: &Node) -> bool {
        let record = &node.record;
        let contains = |text: &str| text.to_lowercase().contains(&self.text);
        record.id.as_str().contains(&self.text)
            || contains(record.display_name())
            || record.site.as_deref().is_some_and(contains)
            || record.labels.iter().any(|(key, value)| contains(key) || contains(value))
    }

    /// Whether it leaves anything out.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// It as a query, to be followed by more.
    pub(super) fn query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let words =
            [("q", &self.text), ("state", &self.state), ("site", &self.site), ("selector", &self.selector)];
        for (name, value) in words.into_iter().filter(|(_, value)| !value.is_empty()) {
            query.append_pair(name, value);
        }
        query.finish()
    }
}

impl Page {
    /// Whether somebody may ask nodes to do something.
    fn may_command(&self) -> bool {
        self.shell.may(&Role::Operator)
    }

    fn states(&self) -> [&'static str; STATES.len()] {
        STATES
    }

    /// Which nodes are listed: `1 to 50 of 120`.
    fn here(&self) -> String {
        let first = (self.page - 1) * ROWS + 1;
        let last = (first + self.rows.rows.len()).saturating_sub(1);
        format!("{} to {} of {}", words::whole(&first), words::whole(&last), words::whole(&self.matching))
    }

    fn pages(&self) -> usize {
        self.matching.div_ceil(ROWS).max(1)
    }

    fn link(&self, page: usize) -> String {
        let query = self.filter.query();
        if query.is_empty() { format!("/?page={page}#nodes") } else { format!("/?{query}&page={page}#nodes") }
    }
}

impl Row {
    fn seen(&self) -> Option<When> {
        self.node.last_seen_ms.map(|at_ms| When::of(&at_ms, &self.now_ms, &self.node.tz))
    }

    fn name(&self) -> Option<&str> {
        self.node.name.as_deref().filter(|name| *name != self.node.id)
    }

    /// Processor, memory and disk in percent, with their names.
    fn uses(&self) -> [(&'static str, Option<Use>); 3] {
        [
            ("CPU", figure::cpu(&self.node)),
            ("Memory", figure::mem(&self.node)),
            ("Disk", figure::disk(&self.node)),
        ]
        .map(|(name, value)| (name, value.map(|percent| Use { percent: percent.clamp(0.0, 999.0) })))
    }

    fn outbox(&self) -> Option<String> {
        self.node.outbox.map(|outbox| output::count(outbox.records))
    }
}

/// How much of something is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Use {
    percent: f64,
}

impl Use {
    fn width(&self) -> String {
        format!("{:.0}", self.percent.min(100.0))
    }

    fn text(&self) -> String {
        format!("{:.0}", self.percent)
    }

    fn tone(&self) -> &'static str {
        match self.percent {
            90.0.. => "bad",
            75.0.. => "warn",
            _ => "good",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::fleet::Record;

    fn node(id: &str, name: &str) -> Node {
        let mut record = Record::new(NodeId::parse(id).unwrap(), 0);
        record.name = Some(name.to_owned());
        record.site = Some("Berlin".to_owned());
        record.labels.insert("rack".to_owned(), "R7".to_owned());
        Node::new(1, record)
    }

    fn listed(query: &str) -> bool {
        let filter = Filter::of(&Fields::parse(query.as_bytes()).unwrap());
        filter.matches(&node("edge-1", "Boiler Room"))
    }

    #[test]
    fn a_filter_takes_every_word_of_the_query_into_account() {
        for query in ["", "q=BOILER", "q=edge", "q=r7", "site=Berlin", "state=new", "selector=rack%3DR7"] {
            assert!(listed(query), "{query}");
        }
        for query in ["q=kitchen", "site=-", "state=online", "selector=rack%3DR8", "q=edge&state=offline"] {
            assert!(!listed(query), "{query}");
        }
        for wrong in ["state=nonsense", "selector=%3D%3D"] {
            assert!(!listed(wrong), "what is not understood must not list everything: {wrong}");
            assert!(Filter::of(&Fields::parse(wrong.as_bytes()).unwrap()).wrong.is_some());
        }
    }
}
