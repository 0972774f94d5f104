//! `/nodes/{id}`: one node, with everything that the hub knows of it.

use std::sync::Arc;

use askama::Template;
use axum::{
    extract::{Path, State},
    http::{StatusCode, Uri},
    response::Response,
};
use fleet_schemas::{DeviceId, MetricName, NodeId};

use super::{
    chart::{self, Chart, Data, Span, Window},
    fleet::part,
    form::Fields,
    live::{self, Part, Tick},
    page::{self, Shell, Trouble, Visitor},
    view::View,
    words::{self, When, clip},
};
use crate::{
    api::{
        Api, commands, config, events, ledger, nodes,
        problem::Refusal,
        query::{no_node, node_id},
        shapes, why,
    },
    cli::output,
    core::{identity::Role, presence::Presence, zones},
    store::{
        state::CommandFilter,
        telemetry::{Aggregate, Latest, Query, Step},
    },
};

/// What can be shown: name, milliseconds.
const RANGES: [(&str, i64); 6] = [
    ("15m", 900_000),
    ("1h", 3_600_000),
    ("6h", 21_600_000),
    ("24h", 86_400_000),
    ("7d", 604_800_000),
    ("30d", 2_592_000_000),
];
/// Charts of a page that names no series.
const CHARTS: usize = 6;
/// Series that can be chosen from.
const SERIES: usize = 1_000;
/// Points of a chart that is drawn, at most.
const POINTS: usize = 10_000;
/// Metrics that are shown first.
const FIRST: [&str; 5] = ["cpu_percent", "load1", "mem_used_bytes", "disk_used_bytes", "temperature_celsius"];
/// Events, commands and devices of a page.
const EVENTS: usize = 20;
const COMMANDS: usize = 10;
/// Charts are drawn again no sooner than after so many milliseconds.
const REDRAW_MS: i64 = 5_000;

/// Which node, and what of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    id: NodeId,
    number: u32,
    /// One series, as `DEVICE/METRIC`; those that matter most, when absent.
    series: Option<(DeviceId, MetricName)>,
    range: usize,
    /// The end of the window; now, when absent.
    to_ms: Option<i64>,
}

/// A node's page, to be kept up to date.
#[derive(Debug, Clone)]
pub(super) struct Open {
    asked: Asked,
    drawn_ms: i64,
}

#[derive(Template)]
#[template(path = "node.html")]
struct Page {
    shell: Shell,
    id: NodeId,
    parts: Vec<Part>,
    charts: Charts,
}

#[derive(Template)]
#[template(path = "node_head.html")]
struct Head {
    node: shapes::Node,
    now_ms: i64,
    causes: Vec<shapes::Cause>,
    flapping: bool,
}

impl Head {
    /// What the clocks of its site show.
    fn there(&self, tz: &str) -> String {
        output::time_in(self.now_ms, Some(tz))
    }
}

#[derive(Template)]
#[template(path = "node_charts.html")]
struct Charts {
    asked: Asked,
    tz: Option<String>,
    window: Window,
    now_ms: i64,
    charts: Vec<Chart>,
    spans: Vec<Span>,
    /// What can be chosen: device, metric.
    offered: Vec<(String, String)>,
    unit_of_step: String,
}

#[derive(Template)]
#[template(path = "node_devices.html")]
struct Devices {
    devices: Vec<shapes::Device>,
    id: NodeId,
    tz: Option<String>,
    now_ms: i64,
}

#[derive(Template)]
#[template(path = "node_commands.html")]
struct Commands {
    commands: Vec<shapes::Command>,
    id: NodeId,
    tz: Option<String>,
    now_ms: i64,
}

#[derive(Template)]
#[template(path = "node_events.html")]
struct Events {
    events: Vec<shapes::Event>,
    tz: Option<String>,
    now_ms: i64,
}

#[derive(Template)]
#[template(path = "node_config.html")]
struct Config {
    config: shapes::config::NodeConfig,
    tz: Option<String>,
    now_ms: i64,
}

#[derive(Template)]
#[template(path = "node_ledger.html")]
struct Ledger {
    ledger: shapes::Ledger,
    now_ms: i64,
}

/// `GET /nodes/{id}?series=&range=&to_ms=`.
pub(super) async fn page(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    Path(id): Path<String>,
    uri: Uri,
    query: Fields,
) -> Result<Response, Trouble> {
    let asked = Asked::of(&api, &id, &query)?;
    let mut shell = visitor.shell(&api, "fleet");
    shell.live = format!("/live/nodes/{id}?{}", uri.query().unwrap_or_default());
    let charts = charts(&api, &asked, shell.now_ms).await?;
    let parts = parts(&api, &asked, &Tick::all(), shell.now_ms).await?;
    Ok(page::shown(StatusCode::OK, &Page { shell, id: asked.id, parts, charts })?)
}

/// `GET /live/nodes/{id}`, with the page's own query.
pub(super) async fn live(
    State(api): State<Arc<Api>>,
    visitor: Visitor,
    Path(id): Path<String>,
    query: Fields,
) -> Result<Response, Trouble> {
    let asked = Asked::of(&api, &id, &query)?;
    Ok(live::stream(api, visitor, View::Node(Box::new(Open { asked, drawn_ms: 0 })))?)
}

impl Open {
    /// Whether a tick may have changed what is shown.
    pub(super) fn touched(&self, tick: &Tick) -> bool {
        let id = &self.asked.id;
        tick.all
            || tick.config
            || tick.nodes.contains(id)
            || tick.told.contains(id)
            || self.sampled(tick)
            || !tick.commands.is_empty()
    }

    fn sampled(&self, tick: &Tick) -> bool {
        tick.sampled.contains(&self.asked.id)
    }

    /// Its parts that a tick touches.
    pub(super) async fn parts(&mut self, api: &Arc<Api>, tick: &Tick) -> Result<Vec<Part>, Refusal> {
        let now_ms = api.hub.clock().now().wall_ms;
        let mut drawn = parts(api, &self.asked, tick, now_ms).await?;
        let old = now_ms.saturating_sub(self.drawn_ms) >= REDRAW_MS.max(self.asked.window(now_ms).step_ms());
        // Of a window that is over nothing changes but by a backlog, which is worth a reload.
        let moved = tick.nodes.contains(&self.asked.id);
        if self.asked.to_ms.is_none() && (tick.all || moved || (self.sampled(tick) && old)) {
            self.drawn_ms = now_ms;
            drawn.push(part("charts", &charts(api, &self.asked, now_ms).await?)?);
        }
        Ok(drawn)
    }
}

/// The parts that a tick touches, charts aside, in the order of the page.
async fn parts(api: &Arc<Api>, asked: &Asked, tick: &Tick, now_ms: i64) -> Result<Vec<Part>, Refusal> {
    let (id, number) = (&asked.id, asked.number);
    let moved = tick.all || tick.nodes.contains(id);
    let told = tick.all || tick.told.contains(id);
    let tz = api.hub.with_fleet(|fleet| zones::at(fleet, id));
    let mut parts = Vec::new();
    if moved {
        let node = nodes::one(api, id).await?;
        let why = why::read(api, id.clone()).await?;
        let mono = crate::clock::mono();
        let flapping = presence(api, id)?.is_flapping(mono);
        parts.push(part("head", &Head { node, now_ms, causes: why.causes, flapping })?);
    }
    if moved || told {
        let devices = nodes::devices_of(api, id).await?;
        parts.push(part("devices", &Devices { devices, id: id.clone(), tz: tz.clone(), now_ms })?);
    }
    if told {
        let events = events::read(api, Some(number), None, EVENTS).await?.items;
        parts.push(part("events", &Events { events, tz: tz.clone(), now_ms })?);
    }
    if tick.all || !tick.commands.is_empty() {
        let filter = CommandFilter { node: Some(number), limit: COMMANDS, ..CommandFilter::default() };
        let commands = commands::read_of(api, id.clone(), filter).await?.items;
        parts.push(part("commands", &Commands { commands, id: id.clone(), tz: tz.clone(), now_ms })?);
    }
    if moved || tick.config {
        let config = config::read_of(api, id.clone()).await?;
        parts.push(part("config", &Config { config, tz, now_ms })?);
    }
    if moved || told {
        let ledger = ledger::read(api, Some(id.clone()), false).await?;
        parts.push(part("ledger", &Ledger { ledger, now_ms })?);
    }
    Ok(parts)
}

fn presence(api: &Api, id: &NodeId) -> Result<Presence, Refusal> {
    let found = api.hub.with_fleet(|fleet| fleet.known(id).map(|node| node.record.presence.clone()));
    found.ok_or_else(|| no_node(id.as_str()))
}

async fn charts(api: &Arc<Api>, asked: &Asked, now_ms: i64) -> Result<Charts, Refusal> {
    let (asked, presence) = (asked.clone(), presence(api, &asked.id)?);
    api.query(move |api| {
        let window = asked.window(now_ms);
        let latest = api.hub.telemetry().latest(asked.number)?;
        let mut offered: Vec<(DeviceId, MetricName)> =
            latest.iter().map(|one| (one.device.clone(), one.metric.clone())).collect();
        offered.dedup();
        offered.truncate(SERIES);
        let wanted = match &asked.series {
            Some(one) => vec![one.clone()],
            None => first(&offered),
        };
        let mut charts = Vec::with_capacity(wanted.len());
        for (device, metric) in wanted {
            let of = |one: &&Latest| one.device == device && one.metric == metric;
            let newest = latest.iter().filter(of).map(|one| (one.time_ms, one.value)).max_by_key(|one| one.0);
            let data = data(api, asked.number, (&device, &metric), window)?;
            charts.push(chart::draw(&Data { newest, ..data }, window));
        }
        let offered = offered.into_iter().map(|(device, metric)| (device.to_string(), metric.to_string()));
        let offered = offered.collect();
        let unit_of_step = words::span(window.step_ms());
        let spans = chart::timeline(&presence, window);
        let tz = api.hub.with_fleet(|fleet| zones::at(fleet, &asked.id));
        Ok(Charts { tz, window, now_ms, charts, spans, offered, unit_of_step, asked })
    })
    .await
}

/// The series that matter most: of the node itself first.
fn first(offered: &[(DeviceId, MetricName)]) -> Vec<(DeviceId, MetricName)> {
    let rank = |(device, metric): &(DeviceId, MetricName)| {
        let known = FIRST.iter().position(|first| *first == metric.as_str());
        match (device.is_node(), known) {
            (true, Some(at)) => (0, at),
            (false, _) => (1, 0),
            (true, None) if !metric.as_str().contains("_total_") => (2, 0),
            // How large a disk is, is no news.
            (true, None) => (3, 0),
        }
    };
    let mut sorted = offered.to_vec();
    sorted.sort_by_key(rank);
    sorted.truncate(CHARTS);
    sorted
}

/// Average, lowest and highest of each step, as `GET nodes/{id}/telemetry` gives them.
fn data(
    api: &Api,
    node: u32,
    (device, metric): (&DeviceId, &MetricName),
    window: Window,
) -> Result<Data, Refusal> {
    let mut data = Data { device: device.to_string(), metric: metric.to_string(), ..Data::default() };
    for aggregate in [Aggregate::Avg, Aggregate::Min, Aggregate::Max] {
        let query = Query {
            node,
            device: Some(device.clone()),
            metric: Some(metric.clone()),
            from_ms: window.from_ms,
            to_ms: window.to_ms,
            step: Some(Step { ms: window.step_ms(), aggregate }),
            series_max: SERIES,
            points_max: POINTS,
        };
        // Of a series that changed its unit there are several: the newest is shown.
        let newest =
            api.hub.telemetry().query(&query)?.into_iter().max_by_key(|one| one.points.last().map(|p| p.0));
        let Some(found) = newest else { continue };
        data.unit = found.unit.map(|unit| unit.to_string());
        match aggregate {
            Aggregate::Min => data.lowest = found.points,
            Aggregate::Max => data.highest = found.points,
            Aggregate::Avg | Aggregate::Last | Aggregate::Sum | Aggregate::Count => {
                data.average = found.points;
            }
        }
    }
    Ok(data)
}

impl Asked {
    fn of(api: &Api, id: &str, query: &Fields) -> Result<Self, Refusal> {
        let id = node_id(id)?;
        let number = nodes::number(api, &id)?;
        let range = query.text("range").unwrap_or("1h");
        let range = RANGES.iter().position(|(name, _)| *name == range).ok_or_else(|| {
            let names = RANGES.map(|(name, _)| name).join(", ");
            Refusal::query("range", format!("is none of {names}"))
        })?;
        let to_ms = query.text("to_ms").map(str::parse).transpose();
        let to_ms = to_ms.map_err(|_| Refusal::query("to_ms", "is no time in milliseconds"))?;
        let series = query.text("series").map(|text| {
            let (device, metric) = text.rsplit_once('/').unwrap_or(("", text));
            let wrong = |why: String| Refusal::query("series", why);
            let device = DeviceId::parse(device).map_err(|error| wrong(error.to_string()))?;
            Ok::<_, Refusal>((device, MetricName::parse(metric).map_err(|error| wrong(error.to_string()))?))
        });
        Ok(Self { id, number, series: series.transpose()?, range, to_ms })
    }

    fn window(&self, now_ms: i64) -> Window {
        let to_ms = self.to_ms.unwrap_or(now_ms);
        Window { from_ms: to_ms.saturating_sub(RANGES[self.range].1), to_ms }
    }

    fn link(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        if let Some((device, metric)) = &self.series {
            query.append_pair("series", &format!("{device}/{metric}"));
        }
        query.append_pair("range", RANGES[self.range].0);
        if let Some(to_ms) = self.to_ms {
            query.append_pair("to_ms", &to_ms.to_string());
        }
        format!("/nodes/{}?{}#charts", self.id, query.finish())
    }
}

impl Charts {
    /// The ends of the axis: Unix milliseconds, UTC, and what the clocks of the node's site show.
    fn ends(&self) -> [(i64, String, String); 2] {
        [self.window.from_ms, self.window.to_ms].map(|at_ms| {
            let shown = output::time_in(at_ms, self.tz.as_deref());
            (at_ms, When::at(&at_ms, &self.now_ms).iso(), shown)
        })
    }

    fn chosen(&self, device: &str, metric: &str) -> bool {
        self.asked.series.as_ref().is_some_and(|(of, name)| of.as_str() == device && name.as_str() == metric)
    }

    /// Ranges: name, link, whether it is this one.
    fn ranges(&self) -> Vec<(&'static str, String, bool)> {
        let other = |range| Asked { range, ..self.asked.clone() }.link();
        RANGES.iter().enumerate().map(|(at, (name, _))| (*name, other(at), at == self.asked.range)).collect()
    }

    fn earlier(&self) -> String {
        Asked { to_ms: Some(self.window.from_ms), ..self.asked.clone() }.link()
    }

    fn later(&self) -> Option<String> {
        let to_ms = self.asked.to_ms? + (self.window.to_ms - self.window.from_ms);
        Some(Asked { to_ms: (to_ms < self.now_ms).then_some(to_ms), ..self.asked.clone() }.link())
    }

    /// The link to one series alone.
    fn alone(&self, chart: &Chart) -> String {
        let series = DeviceId::parse(&chart.device).ok().zip(MetricName::parse(&chart.metric).ok());
        Asked { series, ..self.asked.clone() }.link()
    }

    fn all(&self) -> String {
        Asked { series: None, ..self.asked.clone() }.link()
    }
}

impl Head {
    /// Figures of the last heartbeat.
    fn figures(&self) -> Vec<(&str, String)> {
        let all = self.node.system.iter().take(48);
        all.map(|(metric, value)| (metric.as_str(), words::value(*value, metric, None))).collect()
    }

    fn outbox(&self) -> Option<String> {
        let outbox = self.node.outbox?;
        Some(format!(
            "{} records, {} of {}",
            output::count(outbox.records),
            output::bytes(outbox.bytes as f64),
            output::bytes(outbox.quota_bytes as f64)
        ))
    }

    /// What led to the state, as indented lines.
    fn lines(&self) -> Vec<(usize, &shapes::Cause)> {
        fn walk<'a>(depth: usize, causes: &'a [shapes::Cause], into: &mut Vec<(usize, &'a shapes::Cause)>) {
            for cause in causes {
                into.push((depth.min(6), cause));
                walk(depth + 1, &cause.because, into);
            }
        }
        let mut lines = Vec::new();
        walk(0, &self.causes, &mut lines);
        lines.truncate(24);
        lines
    }
}

impl Commands {
    fn state<'a>(&self, command: &'a shapes::Command) -> &'a str {
        command.executions.first().map_or("queued", |execution| &execution.state)
    }

    fn exit_code(&self, command: &shapes::Command) -> Option<i32> {
        command.executions.first().and_then(|execution| execution.exit_code)
    }
}

impl Config {
    /// Settings: pointer, value, layer, revision, who, when.
    fn settings(&self) -> Vec<(&str, String, &shapes::config::Origin, When)> {
        let doc = self.config.desired.as_ref().map(|desired| &desired.doc);
        let all = self.config.why.iter().map(|(pointer, origin)| {
            let value = doc.and_then(|doc| doc.pointer(pointer)).map(ToString::to_string).unwrap_or_default();
            let when = When::of(&origin.at_ms, &self.now_ms, &self.tz);
            (pointer.as_str(), clip(&value), origin, when)
        });
        all.collect()
    }
}

impl Ledger {
    fn accounts(&self) -> impl Iterator<Item = (&shapes::Account, [String; 8], When)> {
        self.ledger.accounts.iter().map(|account| {
            let terms = [
                account.produced,
                account.stored,
                account.at_edge,
                account.expired,
                account.quarantined,
                account.lost,
                account.written_off,
                account.duplicates,
            ];
            let when = When::of(&account.as_of_ms, &self.now_ms, &account.tz);
            (account, terms.map(output::count), when)
        })
    }
}

/// Whether somebody may ask nodes to do something.
impl Page {
    fn may_command(&self) -> bool {
        self.shell.may(&Role::Operator)
    }
}
