//! The alert engine: rules judged over what is committed, one state per (rule, node, device).
//!
//! Pure: facts of nodes, batches of samples and the time come in; rows to write and words to say come out ([`Effects`]).
//! Whoever runs it commits the rows together with its place in the log, and speaks afterwards.
//!
//! `pending → firing → resolved` is the language's own [`State`]. Beyond it:
//! - Samples of the backfill lane, and those older than [`LATE`], raise nothing.
//! - Devices behind a node that does not speak are not judged by the clock; what fires there is inhibited by the node's
//!   own alert. An alert that holds because its node does not speak waits for [`HOLD`] before receivers are told: when
//!   four fifths of a site or of the fleet are dark, one alert stands for all of them, until that is over.
//! - Nobody is told of an alert while it is inhibited or silenced; if it still fires afterwards, they are.

mod facts;
mod feed;
mod judge;
mod model;
mod outage;
mod quiet;
pub mod route;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use fleet_schemas::{
    DeviceId, MetricName,
    rule::{Condition, Phase, Rule, RuleId, Series, State, Target},
};

pub use facts::{FACTS, Facts, scope};
pub use feed::Arrived;
pub use model::{Acknowledged, Alert, AlertError, Effects, Losses, Outage, Silence, Stage, Word};

use self::facts::{Book, DEVICE_STATE, Device};
use crate::core::{
    fleet::{Node, NodeNo},
    ledger::Standing,
    selector::Selector,
    time::millis,
};

/// Samples that are older than this when they arrive are a backlog and raise nothing.
pub const LATE: Duration = Duration::from_secs(5 * 60);
/// How long receivers are not yet told that a node does not speak: time to see whether its site, or the fleet, does.
pub const HOLD: Duration = Duration::from_secs(3);
/// How long nodes that stay away when an outage is over are not told of one by one: they reconnect spread out.
pub const GRACE: Duration = Duration::from_secs(5 * 60);
/// Most alerts that are open at once (about 1 kB each); beyond it new ones wait until others are over.
pub const OPEN: usize = 100_000;
/// Most silences at once.
pub const SILENCES: usize = 1_000;
/// Longest silence, in days.
pub const SILENCE_DAYS: i64 = 90;
/// Most windows over all nodes, each of at most 5 kB.
const WINDOWS: usize = 50_000;

/// The engine.
#[derive(Debug, Default)]
pub struct Engine {
    judged: Vec<Judged>,
    by_rule: HashMap<RuleId, usize>,
    by_metric: HashMap<MetricName, Vec<usize>>,
    /// Windows that rules look at, by metric.
    spans: HashMap<MetricName, Vec<Duration>>,
    /// Figures of machines that rules ask for.
    figures: Vec<MetricName>,
    members: BTreeMap<NodeNo, Member>,
    /// Where alerts of nodes stood that were not heard of yet since the start.
    waiting: HashMap<NodeNo, Vec<(RuleId, DeviceId, Instance)>>,
    books: BTreeMap<NodeNo, Losses>,
    sites: BTreeMap<Option<String>, Count>,
    all: Count,
    /// Those that are pending or fire.
    alerts: BTreeMap<u64, Alert>,
    pending: BTreeSet<u64>,
    /// Those that fire and receivers were not told of, and when they are at the earliest.
    untold: BTreeMap<u64, i64>,
    /// By the alert that stands for it.
    outages: BTreeMap<u64, Dark>,
    silences: BTreeMap<u64, Silence>,
    last: u64,
    last_silence: u64,
    windows: usize,
    started_ms: i64,
    effects: Effects,
    /// How often a rule was judged, for whoever measures.
    judgements: u64,
}

/// What the engine finds in the store when it starts.
#[derive(Debug, Default)]
pub struct Found {
    /// Alerts that are open.
    pub open: Vec<Alert>,
    /// Alerts that ended lately: how long ago their rule fired bounds how soon it fires again.
    pub ended: Vec<Alert>,
    /// Silences.
    pub silences: Vec<Silence>,
    /// What nodes lost.
    pub losses: Vec<(NodeNo, Losses)>,
    /// The last number that was given to an alert.
    pub last: u64,
    /// The last number that was given to a silence.
    pub last_silence: u64,
}

/// Which devices a rule is judged for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Node,
    Device(DeviceId),
    Each,
}

/// One rule.
#[derive(Debug)]
struct Judged {
    rule: Rule,
    selector: Option<Selector>,
    subject: Subject,
    /// Time alone, or another device, may change it.
    by_clock: bool,
    /// A fact may change it.
    by_fact: bool,
    /// It is about samples: it says nothing while the node does not speak.
    by_sample: bool,
    /// It may hold because the node does not speak.
    down: bool,
    /// Windows that it looks at.
    windows: Vec<(Series, Duration)>,
}

/// One node.
#[derive(Debug)]
struct Member {
    facts: Facts,
    book: Book,
    devices: BTreeMap<DeviceId, Device>,
    states: HashMap<usize, BTreeMap<DeviceId, Instance>>,
    /// When it came back after it had been away.
    back_ms: i64,
    /// Whether its devices and latest values were read from the store.
    known: bool,
}

/// Where one (rule, node, device) stands, and the alert that is open.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Instance {
    state: State,
    number: Option<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    nodes: usize,
    dark: usize,
}

/// Nodes that went dark together, by the alert that stands for them.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Dark {
    rule: RuleId,
    /// The site; none: the fleet.
    site: Option<String>,
    over_ms: Option<i64>,
}

impl Judged {
    /// Whether it judges this device, or the node itself.
    fn is_about(&self, device: &DeviceId) -> bool {
        match &self.subject {
            Subject::Node => device.is_node(),
            Subject::Device(of) => of == device,
            // That a node is silent is for rules about nodes.
            Subject::Each => self.rule.field.is_some() || !device.is_node(),
        }
    }

    /// The selector was checked when the file was read.
    fn new(rule: Rule) -> Self {
        let selector = rule.selector.as_deref().and_then(|text| Selector::parse(text).ok());
        let conditions = || [Some(&rule.condition), rule.clear.as_ref()].into_iter().flatten();
        let any = |test: &dyn Fn(&Condition) -> bool| conditions().any(test);
        let own = |condition: &Condition| {
            let windows = condition.windows();
            let named = condition.series().into_iter().chain(windows.into_iter().map(|(series, _)| series));
            let mut named = named.peekable();
            (named.peek().is_some(), named.any(|series| series.device.is_some()))
        };
        let asks_device = |condition: &Condition| condition.facts().contains(&DEVICE_STATE);
        let each = rule.field.is_some()
            || any(&|condition| own(condition).0 || condition.uses_silence() || asks_device(condition));
        let subject = match &rule.target {
            Target::Device(device) if device.is_node() => Subject::Node,
            Target::Device(device) => Subject::Device(device.clone()),
            Target::Any if each => Subject::Each,
            Target::Any => Subject::Node,
        };
        let silence = any(&|condition| condition.uses_silence() || condition.facts().contains(&"presence"));
        Self {
            by_clock: any(&|condition| condition.uses_clock() || own(condition).1),
            by_fact: any(&|condition| !condition.facts().is_empty()) || subject == Subject::Node,
            by_sample: rule.field.is_some() || any(&|condition| own(condition).0),
            down: subject == Subject::Node && silence,
            windows: conditions()
                .flat_map(Condition::windows)
                .map(|(series, span)| (series.clone(), span))
                .collect(),
            selector,
            subject,
            rule,
        }
    }

    /// Whether it says nothing of this device while the node does not speak.
    fn needs_node(&self, device: &DeviceId) -> bool {
        !device.is_node() || self.by_sample
    }

    /// Whether a window that it looks at may be empty only because the engine has just started.
    fn lacks_history(&self, member: &Member, device: &DeviceId, up_ms: i64) -> bool {
        self.windows.iter().any(|(series, span)| {
            let of = member.devices.get(series.device.as_ref().unwrap_or(device));
            let filled = of.and_then(|of| of.series.get(&series.metric)).is_some_and(|series| series.filled);
            !filled && up_ms < millis(*span)
        })
    }
}

impl Engine {
    /// An engine that goes on from what the store has. Takes rules next, then every node.
    #[must_use]
    pub fn new(found: Found, now_ms: i64) -> Self {
        let mut engine = Self {
            last: found.last,
            last_silence: found.last_silence,
            books: found.losses.into_iter().collect(),
            silences: found.silences.into_iter().map(|silence| (silence.number, silence)).collect(),
            started_ms: now_ms,
            ..Self::default()
        };
        for alert in found.ended {
            let state = State { phase: Phase::Ok, fired_ms: alert.fired_ms };
            engine.wait_for(&alert, Instance { state, number: None });
        }
        for alert in found.open {
            let phase = match alert.stage {
                Stage::Pending => Phase::Pending { since_ms: alert.since_ms },
                Stage::Firing => Phase::Firing { since_ms: alert.fired_ms.unwrap_or(alert.since_ms) },
                Stage::Resolved => continue,
            };
            let number = alert.number;
            let state = State { phase, fired_ms: alert.fired_ms };
            engine.wait_for(&alert, Instance { state, number: Some(number) });
            if alert.stage == Stage::Pending {
                engine.pending.insert(number);
            } else if !alert.told {
                engine.untold.insert(number, now_ms + millis(HOLD));
            }
            engine.alerts.insert(number, alert);
        }
        engine.find_outages();
        engine
    }

    /// Later ones win: an open alert over one that ended.
    fn wait_for(&mut self, alert: &Alert, instance: Instance) {
        let of_node = self.waiting.entry(alert.node_no).or_default();
        let same = |(rule, device, _): &&mut (RuleId, DeviceId, Instance)| {
            *rule == alert.rule && *device == alert.device
        };
        match of_node.iter_mut().find(same) {
            Some(known) => {
                let fired_ms = known.2.state.fired_ms.max(instance.state.fired_ms);
                known.2 = instance;
                known.2.state.fired_ms = fired_ms;
            }
            None => of_node.push((alert.rule.clone(), alert.device.clone(), instance)),
        }
    }

    /// Takes other rules. Where a rule of the same id stood, it stands; alerts of one that is gone are over, and those that
    /// one is not about any more. Every node has to be told again afterwards, for each rule selects its nodes.
    pub fn replace(&mut self, rules: Vec<Rule>, now_ms: i64) {
        let before: Vec<RuleId> = self.judged.drain(..).map(|judged| judged.rule.id).collect();
        self.by_rule = rules.iter().enumerate().map(|(at, rule)| (rule.id.clone(), at)).collect();
        self.judged = rules.into_iter().map(Judged::new).collect();
        self.look_at_series();
        let gone: Vec<_> = (self.alerts.values())
            .filter(|alert| !self.by_rule.contains_key(&alert.rule))
            .map(|alert| alert.number)
            .collect();
        for number in gone {
            self.end(number, Some("the rule is no longer there"), None, now_ms);
        }
        for member in self.members.values_mut() {
            let states = std::mem::take(&mut member.states).into_iter();
            let kept = states.filter_map(|(at, states)| Some((*self.by_rule.get(before.get(at)?)?, states)));
            member.states = kept.collect();
            member.facts.applies = Box::default();
        }
        let is_about = |alert: &Alert| {
            let judged = self.by_rule.get(&alert.rule).map(|at| &self.judged[*at]);
            judged.is_some_and(|judged| judged.is_about(&alert.device) && judged.rule.field == alert.metric)
        };
        let other: Vec<_> = (self.alerts.values().filter(|alert| !is_about(alert)))
            .map(|alert| (alert.number, alert.node_no))
            .collect();
        for (number, node) in other {
            if let Some(waiting) = self.waiting.get_mut(&node) {
                waiting.retain(|(_, _, instance)| instance.number != Some(number));
            }
            self.end(number, Some("the rule is not about it any more"), None, now_ms);
        }
    }

    fn look_at_series(&mut self) {
        let mut spans: HashMap<MetricName, Vec<Duration>> = HashMap::new();
        let mut figures = BTreeSet::new();
        self.by_metric.clear();
        for (at, judged) in self.judged.iter().enumerate() {
            let mut metrics: BTreeSet<&MetricName> = judged.rule.field.iter().collect();
            for condition in [Some(&judged.rule.condition), judged.rule.clear.as_ref()].into_iter().flatten()
            {
                metrics.extend(condition.series().into_iter().map(|series| &series.metric));
                for (series, span) in condition.windows() {
                    metrics.insert(&series.metric);
                    let spans = spans.entry(series.metric.clone()).or_default();
                    if !spans.contains(&span) {
                        spans.push(span);
                    }
                }
            }
            if judged.subject != Subject::Each || judged.rule.field.is_some() {
                figures.extend(metrics.iter().map(|metric| (*metric).clone()));
            }
            for metric in metrics {
                self.by_metric.entry(metric.clone()).or_default().push(at);
            }
        }
        self.figures = figures.into_iter().collect();
        if spans != self.spans {
            self.spans = spans;
            self.windows = 0;
            let devices = self.members.values_mut().flat_map(|member| member.devices.values_mut());
            for series in devices.flat_map(|device| device.series.values_mut()) {
                series.windows.clear();
                series.filled = false;
            }
        }
    }

    /// What rules see of a node.
    #[must_use]
    pub fn look(&self, node: &Node, mono: Duration) -> Facts {
        let applies =
            |judged: &Judged| judged.selector.as_ref().is_none_or(|selector| selector.matches(node));
        let applies = self.judged.iter().map(applies).collect();
        Facts::of(node, node.record.presence.is_flapping(mono), applies, &self.figures)
    }

    /// Whether any rule asks for samples: then batches have to be read.
    #[must_use]
    pub fn wants_samples(&self) -> bool {
        !self.by_metric.is_empty() || self.judged.iter().any(|judged| judged.subject == Subject::Each)
    }

    /// Whether any rule asks how devices are, or for what the store has of them: then they have to be read at the start.
    #[must_use]
    pub fn wants_devices(&self) -> bool {
        self.wants_samples() || self.asks(|fact| fact == DEVICE_STATE)
    }

    /// Whether any rule asks what the ledger says.
    #[must_use]
    pub fn wants_ledger(&self) -> bool {
        self.asks(|fact| fact.starts_with("ledger"))
    }

    fn asks(&self, is_it: impl Fn(&str) -> bool) -> bool {
        let asks = |judged: &Judged| {
            let conditions = [Some(&judged.rule.condition), judged.rule.clear.as_ref()].into_iter().flatten();
            conditions.flat_map(Condition::facts).any(&is_it)
        };
        self.judged.iter().any(asks)
    }

    /// Whether there is such a node.
    #[must_use]
    pub fn has(&self, number: NodeNo) -> bool {
        self.members.contains_key(&number)
    }

    /// The nodes there are.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeNo> {
        self.members.keys().copied().collect()
    }

    /// How many rules there are.
    #[must_use]
    pub fn rules(&self) -> usize {
        self.judged.len()
    }

    /// Alerts that are pending or fire.
    #[must_use]
    pub fn alerts(&self) -> &BTreeMap<u64, Alert> {
        &self.alerts
    }

    /// How often a rule was judged so far.
    #[must_use]
    pub fn judgements(&self) -> u64 {
        self.judgements
    }

    /// The last numbers that were given: to an alert, and to a silence.
    #[must_use]
    pub fn last(&self) -> (u64, u64) {
        (self.last, self.last_silence)
    }

    /// What followed since it was last asked.
    pub fn take(&mut self) -> Effects {
        std::mem::take(&mut self.effects)
    }

    /// Whether something follows that was not asked for yet.
    #[must_use]
    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty()
    }

    /// What the ledger says of a node: all that it ever lost, and how its accounts stand. A node that is met for the
    /// first time `is_old` when it was there before the engine: what it lost then is no news.
    pub fn book(&mut self, number: NodeNo, lost: u64, quarantined: u64, standing: Option<Standing>, at: Met) {
        let known = self.books.get(&number);
        let base = || if at.is_old { (lost, quarantined) } else { (0, 0) };
        let before = known.map_or_else(base, |known| (known.lost, known.quarantined));
        let more = (lost.saturating_sub(before.0), quarantined.saturating_sub(before.1));
        let is_news = known.is_none_or(|known| (known.lost, known.quarantined) != (lost, quarantined));
        if is_news {
            let losses = self.books.entry(number).or_default();
            (losses.lost, losses.quarantined) = (lost, quarantined);
            losses.recent.retain(|(when, _, _)| *when > at.now_ms - facts::LATELY_MS);
            if more != (0, 0) {
                losses.recent.push((at.now_ms, more.0, more.1));
            }
            self.effects.losses.insert(number, Some(losses.clone()));
        }
        if let Some(member) = self.members.get_mut(&number) {
            member.book.standing = standing;
            if is_news {
                member.book.losses = self.books.get(&number).cloned().unwrap_or_default();
            }
        }
    }
}

/// When the ledger of a node was looked at.
#[derive(Debug, Clone, Copy)]
pub struct Met {
    /// Now, Unix milliseconds.
    pub now_ms: i64,
    /// Whether the node was there before the engine.
    pub is_old: bool,
}
