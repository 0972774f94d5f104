//! What `fleet top` shows and how keys change it. Pure: no terminal, no clock, no hub.

use std::{cmp::Ordering, collections::VecDeque};

use clap::ValueEnum;

use super::super::figure;
use crate::api::shapes::{Node, Series, Status, Telemetry};

/// A key, as far as the view cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// One line up.
    Up,
    /// One line down.
    Down,
    /// Ten lines up.
    PageUp,
    /// Ten lines down.
    PageDown,
    /// To the first line.
    Home,
    /// To the last line.
    End,
    /// Details on and off, or the end of typing.
    Enter,
    /// Back.
    Escape,
    /// Takes the last character of the filter away.
    Backspace,
    /// Ctrl-C.
    Interrupt,
    /// The terminal changed.
    Redraw,
    /// A character.
    Char(char),
}

/// What a key asks of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    /// Draw again.
    Stay,
    /// End.
    Leave,
}

/// A column of the table, in order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Column {
    /// Node id.
    #[default]
    Id,
    /// Presence, worst first.
    State,
    /// Site.
    Site,
    /// Processor.
    Cpu,
    /// Memory.
    Mem,
    /// Disk.
    Disk,
    /// Load.
    Load,
    /// Records in the outbox.
    Outbox,
    /// Last seen.
    Seen,
}

/// Figures of the last minutes that the header draws.
const RATES: usize = 32;
/// Lines of a page key.
const PAGE: usize = 10;
/// Longest filter, in characters.
const FILTER: usize = 64;

/// Everything on the screen.
#[derive(Debug)]
pub(super) struct View {
    /// Where the hub is.
    pub hub: String,
    /// Whether to colour.
    pub color: bool,
    /// The hub.
    pub status: Status,
    /// Records stored per second, one figure per answer of the hub.
    pub rates: VecDeque<f64>,
    /// The sort column.
    pub sort: Column,
    /// Whether the order is reversed.
    pub reversed: bool,
    /// What lines must contain.
    pub filter: String,
    /// Whether keys go into the filter.
    pub typing: bool,
    /// Whether the detail pane is shown.
    pub open: bool,
    /// Whether help is shown.
    pub help: bool,
    /// Why the figures are old.
    pub trouble: Option<String>,
    nodes: Vec<Node>,
    selected: Option<String>,
    series: Option<(String, Vec<Series>)>,
}

impl Column {
    /// All of them, in order.
    pub(super) const ALL: [Self; 9] = [
        Self::Id,
        Self::State,
        Self::Site,
        Self::Cpu,
        Self::Mem,
        Self::Disk,
        Self::Load,
        Self::Outbox,
        Self::Seen,
    ];

    /// Its title.
    #[must_use]
    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Id => "NODE",
            Self::State => "STATE",
            Self::Site => "SITE",
            Self::Cpu => "CPU%",
            Self::Mem => "MEM%",
            Self::Disk => "DISK%",
            Self::Load => "LOAD",
            Self::Outbox => "OUTBOX",
            Self::Seen => "SEEN",
        }
    }

    fn beside(self, step: isize) -> Self {
        let at = Self::ALL.iter().position(|column| *column == self).unwrap_or(0);
        let count = Self::ALL.len();
        Self::ALL[at.saturating_add_signed(count as isize + step) % count]
    }

    /// The order of two nodes: what needs a look comes first.
    fn compare(self, a: &Node, b: &Node) -> Ordering {
        let most_first = |figure: fn(&Node) -> Option<f64>| {
            let value = |node| figure(node).unwrap_or(f64::NEG_INFINITY);
            value(b).total_cmp(&value(a))
        };
        match self {
            Self::Id => Ordering::Equal,
            Self::State => urgency(&a.state).cmp(&urgency(&b.state)),
            Self::Site => a.site.cmp(&b.site),
            Self::Cpu => most_first(figure::cpu),
            Self::Mem => most_first(figure::mem),
            Self::Disk => most_first(figure::disk),
            Self::Load => most_first(figure::load),
            Self::Outbox => most_first(|node| node.outbox.map(|outbox| outbox.records as f64)),
            Self::Seen => a.last_seen_ms.cmp(&b.last_seen_ms),
        }
        .then_with(|| a.id.cmp(&b.id))
    }
}

fn urgency(state: &str) -> u8 {
    match state {
        "offline" => 0,
        "suspect" => 1,
        "unknown" => 2,
        "new" => 3,
        "sleeping" => 4,
        _ => 5,
    }
}

impl View {
    /// An empty view of a hub.
    #[must_use]
    pub(super) fn new(hub: &str, sort: Column, color: bool) -> Self {
        Self {
            hub: hub.to_owned(),
            color,
            status: Status::default(),
            rates: VecDeque::new(),
            sort,
            reversed: false,
            filter: String::new(),
            typing: false,
            open: true,
            help: false,
            trouble: None,
            nodes: Vec::new(),
            selected: None,
            series: None,
        }
    }

    /// Takes what the hub says of the fleet.
    pub(super) fn fleet(&mut self, status: Status, nodes: Vec<Node>) {
        let stored = |status: &Status| status.records.get("stored").copied();
        let span_ms = status.now_ms - self.status.now_ms;
        if let (Some(before), Some(after)) = (stored(&self.status), stored(&status))
            && span_ms > 0
        {
            if self.rates.len() == RATES {
                self.rates.pop_front();
            }
            self.rates.push_back(after.saturating_sub(before) as f64 * 1_000.0 / span_ms as f64);
        }
        self.status = status;
        self.nodes = nodes;
        self.trouble = None;
        self.sorted();
        self.settle();
    }

    /// Takes a node's series.
    pub(super) fn detail(&mut self, node: String, telemetry: Telemetry) {
        self.series = Some((node, telemetry.series));
    }

    /// Takes the news that the hub does not answer; the old figures stay.
    pub(super) fn trouble(&mut self, trouble: String) {
        self.trouble = Some(trouble);
    }

    /// The node whose series the pane wants.
    #[must_use]
    pub(super) fn detail_of(&self) -> Option<&str> {
        self.selected.as_deref().filter(|_| self.open)
    }

    /// The lines, filtered and in order.
    #[must_use]
    pub(super) fn lines(&self) -> Vec<&Node> {
        let wanted = self.filter.to_lowercase();
        self.nodes.iter().filter(|node| wanted.is_empty() || contains(node, &wanted)).collect()
    }

    /// The number of the selected line.
    #[must_use]
    pub(super) fn cursor(&self, lines: &[&Node]) -> Option<usize> {
        lines.iter().position(|node| Some(node.id.as_str()) == self.selected.as_deref())
    }

    /// The series of the selected node, if they are here.
    #[must_use]
    pub(super) fn series(&self) -> &[Series] {
        match (&self.series, &self.selected) {
            (Some((node, series)), Some(selected)) if node == selected => series,
            (Some(_) | None, Some(_) | None) => &[],
        }
    }

    /// Takes a key.
    pub(super) fn key(&mut self, key: Key) -> Act {
        match key {
            Key::Interrupt => return Act::Leave,
            Key::Redraw => {}
            Key::Up => self.step(-1),
            Key::Down => self.step(1),
            Key::PageUp => self.step(-(PAGE as isize)),
            Key::PageDown => self.step(PAGE as isize),
            Key::Home => self.step(isize::MIN),
            Key::End => self.step(isize::MAX),
            Key::Enter if self.typing => self.typing = false,
            Key::Enter => self.open = !self.open,
            Key::Escape => {
                if self.help {
                    self.help = false;
                } else {
                    self.typing = false;
                    self.filter.clear();
                    self.settle();
                }
            }
            Key::Backspace => {
                if self.typing {
                    self.filter.pop();
                    self.settle();
                }
            }
            Key::Char(c) if self.typing => {
                if !c.is_control() && self.filter.chars().count() < FILTER {
                    self.filter.push(c);
                    self.settle();
                }
            }
            Key::Char(c) => return self.letter(c),
        }
        Act::Stay
    }

    fn letter(&mut self, c: char) -> Act {
        match c {
            'q' => return Act::Leave,
            'j' => self.step(1),
            'k' => self.step(-1),
            'g' => self.step(isize::MIN),
            'G' => self.step(isize::MAX),
            '/' => self.typing = true,
            '?' | 'h' => self.help = !self.help,
            'r' => self.reversed = !self.reversed,
            '<' => self.sort = self.sort.beside(-1),
            '>' | 's' => self.sort = self.sort.beside(1),
            _ => {}
        }
        self.sorted();
        Act::Stay
    }

    fn sorted(&mut self) {
        let (sort, reversed) = (self.sort, self.reversed);
        self.nodes.sort_by(|a, b| {
            let order = sort.compare(a, b);
            if reversed { order.reverse() } else { order }
        });
    }

    fn step(&mut self, by: isize) {
        let lines = self.lines();
        let at = self.cursor(&lines).unwrap_or(0);
        let to = at.saturating_add_signed(by).min(lines.len().saturating_sub(1));
        self.selected = lines.get(to).map(|node| node.id.clone());
    }

    /// Keeps the selection on a line that is shown.
    fn settle(&mut self) {
        let lines = self.lines();
        if self.cursor(&lines).is_none() {
            self.selected = lines.first().map(|node| node.id.clone());
        }
    }
}

fn contains(node: &Node, wanted: &str) -> bool {
    let has = |text: &str| text.to_lowercase().contains(wanted);
    has(&node.id)
        || has(&node.state)
        || has(&node.kind)
        || node.name.as_deref().is_some_and(has)
        || node.site.as_deref().is_some_and(has)
        || node.labels.iter().any(|(key, value)| has(&format!("{key}={value}")))
}
