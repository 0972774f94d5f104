//! Draws a [`View`]. Pure: the same view and size give the same cells.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Cell, Clear, Paragraph, Row, Table, TableState},
};

use super::{
    super::{
        figure,
        output::{Tone, ago, bytes, clean, count, number, tone},
        spark,
    },
    view::{Column, View},
};
use crate::api::shapes::{Node, Series};

/// Lines of the header.
const HEADER: u16 = 3;
/// Lines of the detail pane with its frame.
const DETAIL: u16 = 9;
/// Screens lower than this show no detail pane.
const ROOM: u16 = 20;
/// Width of the facts beside the sparklines.
const FACTS: u16 = 34;
/// Metrics that the detail pane shows first.
const FIRST: [&str; 5] = ["cpu_percent", "load1", "mem_used_bytes", "disk_used_bytes", "temperature_celsius"];

const HELP: &str = "\
 arrows, j k        move          pgup pgdn, g G   further
 < >                sort column   r                reverse
 /                  filter by id, name, site, state, label
 enter              detail on and off
 esc                clear the filter
 q, ctrl-c          leave

 SEEN is told by the hub's clock. OUTBOX counts records
 that the hub has not yet accounted for.";

/// Draws the whole screen.
pub(super) fn frame(view: &View, frame: &mut Frame<'_>) {
    let area = frame.area();
    let detail = if view.open && area.height >= ROOM { DETAIL } else { 0 };
    let [head, table, pane, foot] = Layout::vertical([
        Constraint::Length(HEADER),
        Constraint::Min(1),
        Constraint::Length(detail),
        Constraint::Length(1),
    ])
    .areas(area);
    header(view, frame, head);
    nodes(view, frame, table);
    if detail > 0 {
        details(view, frame, pane);
    }
    footer(view, frame, foot);
    if view.help {
        help(view, frame, area);
    }
}

fn style(view: &View, tone: Tone) -> Style {
    if !view.color {
        return Style::new();
    }
    match tone {
        Tone::Plain => Style::new(),
        Tone::Good => Style::new().fg(Color::Green),
        Tone::Warning => Style::new().fg(Color::Yellow),
        Tone::Bad => Style::new().fg(Color::Red),
        Tone::Faint => Style::new().fg(Color::DarkGray),
    }
}

fn header(view: &View, frame: &mut Frame<'_>, area: Rect) {
    let status = &view.status;
    let toned = |text: String, tone| Span::styled(text, style(view, tone));
    let ready = match (status.ready, status.reasons.first()) {
        (true, _) => toned("ready".to_owned(), Tone::Good),
        (false, Some(reason)) => toned(format!("not ready: {}", clean(reason)), Tone::Bad),
        (false, None) => toned("not ready".to_owned(), Tone::Bad),
    };
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let first = Line::from(vec![
        Span::styled("fleet ", bold),
        Span::raw(format!("{} ", view.hub)),
        toned(format!("{}  ", clean(&status.version)), Tone::Faint),
        ready,
    ]);
    let total: u64 = status.nodes_by_state.values().sum();
    let mut second = vec![Span::styled("nodes ", bold), Span::raw(count(total))];
    for (state, nodes) in &status.nodes_by_state {
        second.push(Span::raw("  "));
        second.push(toned(format!("{} {}", count(*nodes), clean(state)), tone(state)));
    }
    let of = |state: &str| status.accounts_by_state.get(state).copied().unwrap_or(0);
    let record = |term: &str| count(status.records.get(term).copied().unwrap_or(0));
    let (word, verdict) = match (of("broken"), of("pending")) {
        (0, 0) => ("balanced".to_owned(), Tone::Good),
        (0, pending) => (format!("{pending} pending"), Tone::Warning),
        (broken, _) => (format!("{broken} BROKEN"), Tone::Bad),
    };
    let points: Vec<(i64, f64)> = (0..).zip(view.rates.iter().copied()).collect();
    let rate = view.rates.back().map_or_else(|| "-".to_owned(), |rate| count(rate.round() as u64) + "/s");
    let span = points.len() as i64;
    let third = Line::from(vec![
        Span::styled("ledger ", bold),
        toned(word, verdict),
        Span::raw(format!(
            "  {} stored  {} at edge  {} lost  ",
            record("stored"),
            record("at_edge"),
            record("lost")
        )),
        Span::styled("in ", bold),
        Span::raw(format!("{rate} ")),
        toned(spark::line(&points, 0, span.max(1), points.len().min(12)), Tone::Good),
    ]);
    frame.render_widget(Paragraph::new(vec![first, Line::from(second), third]), area);
}

fn nodes(view: &View, frame: &mut Frame<'_>, area: Rect) {
    let lines = view.lines();
    let title = |column: Column| {
        let arrow = match (column == view.sort, view.reversed) {
            (true, false) => "↓",
            (true, true) => "↑",
            (false, _) => "",
        };
        let text = format!("{}{arrow}", column.title());
        let text = if is_figure(column) { Line::from(text).right_aligned() } else { Line::from(text) };
        Cell::from(text)
    };
    let header = Row::new(Column::ALL.map(title)).style(Style::new().add_modifier(Modifier::REVERSED));
    let cursor = view.cursor(&lines);
    // Only what can be seen is laid out: a fleet has thousands of lines.
    let room = usize::from(area.height.saturating_sub(1)).max(1);
    let first = cursor.map_or(0, |at| (at + 1).saturating_sub(room));
    let rows = lines.iter().skip(first).take(room).map(|node| row(view, node));
    let widths = [
        Constraint::Fill(3),
        Constraint::Length(8),
        Constraint::Fill(2),
        Constraint::Length(5),
        Constraint::Length(5),
        Constraint::Length(6),
        Constraint::Length(6),
        Constraint::Length(9),
        Constraint::Length(7),
    ];
    let chosen = Style::new().add_modifier(Modifier::REVERSED);
    let mut state = TableState::new().with_selected(cursor.map(|at| at - first));
    let table = Table::new(rows, widths).header(header).row_highlight_style(chosen).highlight_symbol("");
    frame.render_stateful_widget(table, area, &mut state);
}

fn is_figure(column: Column) -> bool {
    match column {
        Column::Id | Column::State | Column::Site => false,
        Column::Cpu | Column::Mem | Column::Disk | Column::Load | Column::Outbox | Column::Seen => true,
    }
}

fn row<'a>(view: &View, node: &'a Node) -> Row<'a> {
    let cell = |column: Column| {
        let figure = |value: Option<f64>, decimals: usize| {
            let text = value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"));
            let hot = value.is_some_and(|value| decimals == 0 && value >= 90.0);
            (text, if hot { Tone::Bad } else { Tone::Plain })
        };
        let (text, meaning) = match column {
            Column::Id => (node.id.clone(), Tone::Plain),
            Column::State => (clean(&node.state), tone(&node.state)),
            Column::Site => (clean(node.site.as_deref().unwrap_or("-")), Tone::Plain),
            Column::Cpu => figure(figure::cpu(node), 0),
            Column::Mem => figure(figure::mem(node), 0),
            Column::Disk => figure(figure::disk(node), 0),
            Column::Load => figure(figure::load(node), 2),
            Column::Outbox => {
                (node.outbox.map_or_else(|| "-".to_owned(), |outbox| count(outbox.records)), Tone::Plain)
            }
            Column::Seen => (ago(view.status.now_ms, node.last_seen_ms), Tone::Plain),
        };
        let line = Line::styled(text, style(view, meaning));
        Cell::from(if is_figure(column) { line.right_aligned() } else { line })
    };
    Row::new(Column::ALL.map(cell))
}

fn details(view: &View, frame: &mut Frame<'_>, area: Rect) {
    let lines = view.lines();
    let Some(node) = view.cursor(&lines).map(|at| lines[at]) else {
        let empty = if view.filter.is_empty() { "no nodes yet" } else { "no node matches the filter" };
        frame.render_widget(Paragraph::new(empty).block(Block::new().borders(Borders::TOP)), area);
        return;
    };
    let name = node.name.as_deref().map_or_else(String::new, |name| format!(" {}", clean(name)));
    let block = Block::new().borders(Borders::TOP).title(format!(" {}{name} ", node.id));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [left, right] = Layout::horizontal([Constraint::Length(FACTS), Constraint::Min(0)]).areas(inner);
    frame.render_widget(Paragraph::new(facts(node)), left);
    let width = usize::from(right.width);
    let shown = ordered(view.series());
    let trends: Vec<Line<'_>> = if shown.is_empty() {
        vec![Line::raw("no samples in the last 30 minutes")]
    } else {
        let to_ms = view.status.now_ms;
        let rows = usize::from(right.height);
        shown.into_iter().take(rows).map(|series| Line::raw(trend(series, to_ms, width))).collect()
    };
    frame.render_widget(Paragraph::new(trends), right);
}

fn facts(node: &Node) -> Vec<Line<'_>> {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { clean(text) };
    let labels: Vec<String> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let outbox = node.outbox.map_or_else(
        || "-".to_owned(),
        |outbox| format!("{} of {}", bytes(outbox.bytes as f64), bytes(outbox.quota_bytes as f64)),
    );
    let machine = |key: &str| node.machine.get(key).map_or("", String::as_str);
    let system = format!("{} {}", machine("os"), machine("arch"));
    [
        ("kind", or_dash(&node.kind)),
        ("agent", or_dash(&node.versions.agent)),
        ("machine", or_dash(system.trim())),
        ("labels", or_dash(&labels.join(" "))),
        ("can", or_dash(&node.capabilities.join(" "))),
        ("devices", node.devices_count.to_string()),
        ("outbox", outbox),
    ]
    .into_iter()
    .map(|(key, value)| Line::raw(shortened(&format!("{key:<8} {value}"), usize::from(FACTS) - 2)))
    .collect()
}

/// The text in at most `width` characters.
fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// What is best known first, then devices in order.
fn ordered(series: &[Series]) -> Vec<&Series> {
    let rank = |series: &Series| {
        let known = FIRST.iter().position(|metric| series.device.is_empty() && series.metric == *metric);
        known.unwrap_or(FIRST.len())
    };
    let mut ordered: Vec<&Series> = series.iter().collect();
    ordered.sort_by_key(|series| rank(series));
    ordered
}

fn trend(series: &Series, to_ms: i64, width: usize) -> String {
    let name = match series.device.as_str() {
        "" => series.metric.clone(),
        device => format!("{device}/{}", series.metric),
    };
    let name = shortened(&clean(&name), 20);
    let figure = match (series.points.last(), series.unit.as_deref()) {
        (None, _) => "-".to_owned(),
        (Some((_, last)), Some("By")) => bytes(*last),
        (Some((_, last)), _) => number(*last),
    };
    let room = width.saturating_sub(33);
    let drawn = spark::line(&series.points, to_ms - super::LOOK_BACK_MS, to_ms, room);
    format!("{name:<20} {figure:>10}  {drawn}")
}

fn footer(view: &View, frame: &mut Frame<'_>, area: Rect) {
    let line = if view.typing {
        Line::raw(format!("filter: {}▏ enter keeps it, esc clears it", clean(&view.filter)))
    } else if let Some(trouble) = &view.trouble {
        Line::styled(clean(trouble), style(view, Tone::Bad))
    } else {
        let filter = match view.filter.as_str() {
            "" => String::new(),
            filter => format!("  filter: {}", clean(filter)),
        };
        let shown = count(view.lines().len() as u64);
        let keys =
            format!("{shown} shown{filter}  / filter  < > sort  r reverse  enter detail  ? help  q leave");
        Line::styled(keys, style(view, Tone::Faint))
    };
    frame.render_widget(Paragraph::new(line), area);
}

fn help(view: &View, frame: &mut Frame<'_>, area: Rect) {
    let (width, height) = (62.min(area.width), 12.min(area.height));
    let area = Rect { x: (area.width - width) / 2, y: (area.height - height) / 2, width, height };
    frame.render_widget(Clear, area);
    let block = Block::bordered().title(" help ").style(style(view, Tone::Plain));
    frame.render_widget(Paragraph::new(HELP).block(block), area);
}
