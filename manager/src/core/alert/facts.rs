//! What rules may ask of a node and its devices, and what it is worth at one time.
//!
//! Owns the names beside the language's own terms. Everything comes in as values.

use std::{collections::HashMap, time::Duration};

use fleet_schemas::{
    DeviceId, MetricName, NodeId,
    device::State as DeviceState,
    rule::{Aggregate, Fact, Kind, Scope, Series, View, Window},
};

use super::{Losses, Member};
use crate::core::{
    config,
    fleet::{Node, NodeNo},
    ledger::Standing,
    presence::{Cause, State},
    selector::Selector,
};

/// How a device is.
pub(super) const DEVICE_STATE: &str = "device_state";
/// The names, and what they are.
pub const FACTS: [(&str, Kind); 15] = [
    ("presence", Kind::Text),
    ("flapping", Kind::Truth),
    (DEVICE_STATE, Kind::Text),
    ("outbox_records", Kind::Number),
    ("outbox_ratio", Kind::Number),
    ("ledger", Kind::Text),
    ("ledger_lost", Kind::Number),
    ("ledger_quarantined", Kind::Number),
    ("clock_offset_s", Kind::Number),
    ("certificate_days", Kind::Number),
    ("agent_version", Kind::Text),
    ("firmware_version", Kind::Text),
    ("config", Kind::Text),
    ("kind", Kind::Text),
    ("site", Kind::Text),
];

/// What the hub's rules may name. Selectors are read where they stand.
#[must_use]
pub fn scope() -> Scope<'static> {
    Scope {
        facts: &FACTS,
        selector: Some(|text| Selector::parse(text).map(drop).map_err(|error| error.to_string())),
    }
}

/// One node as its rules see it.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Its number.
    pub number: NodeNo,
    /// Its id.
    pub id: NodeId,
    /// Its site.
    pub site: Option<String>,
    /// What kind of machine.
    pub kind: String,
    /// Whether it is there.
    pub presence: State,
    /// Whether it comes and goes.
    pub flapping: bool,
    /// When it was last heard, Unix milliseconds.
    pub last_seen_ms: i64,
    /// Records that the hub does not have yet.
    pub outbox_records: u64,
    /// How full its outbox is, from 0 to 1.
    pub outbox_ratio: Option<f64>,
    /// How far its clock is ahead of the hub's, in milliseconds, where it claims to be right.
    pub clock_offset_ms: Option<i64>,
    /// When its certificate ends, Unix milliseconds.
    pub certificate_ms: Option<i64>,
    /// What it runs.
    pub agent: String,
    /// Its firmware.
    pub firmware: Option<String>,
    /// Whether it follows its configuration.
    pub config: config::State,
    /// Figures of its machine that rules ask for.
    pub figures: Vec<(MetricName, f64)>,
    /// Which of the rules are for it, in their order.
    pub applies: Box<[bool]>,
}

impl Facts {
    /// Of a node; what identities and the ledger know is added by whoever asks them.
    #[must_use]
    pub fn of(node: &Node, flapping: bool, applies: Box<[bool]>, wanted: &[MetricName]) -> Self {
        let record = &node.record;
        let vital = node.vital.as_ref();
        let ratio = |bytes: u64, quota: u64| (quota > 0).then(|| bytes as f64 / quota as f64);
        let system = vital.filter(|_| !wanted.is_empty()).map(|vital| vital.system()).unwrap_or_default();
        let figure = |name: &MetricName| Some((name.clone(), *system.get(name.as_str())?));
        Self {
            number: node.number,
            id: record.id.clone(),
            site: record.site.clone(),
            kind: record.kind.clone(),
            presence: record.presence.state,
            flapping,
            last_seen_ms: record.last_seen_ms,
            outbox_records: node.at_edge(),
            outbox_ratio: vital.and_then(|vital| ratio(vital.outbox.bytes, vital.outbox.quota_bytes)),
            clock_offset_ms: vital.and_then(|vital| vital.clock_offset_ms),
            certificate_ms: None,
            agent: record.versions.agent.clone(),
            firmware: record.versions.firmware.clone(),
            config: config::state(node),
            figures: wanted.iter().filter_map(figure).collect(),
            applies,
        }
    }

    /// Whether it speaks now.
    #[must_use]
    pub fn online(&self) -> bool {
        self.presence == State::Online
    }

    /// Whether it should speak, and does not.
    #[must_use]
    pub fn dark(&self) -> bool {
        match self.presence {
            State::Offline | State::Suspect { cause: Cause::Late | Cause::Will } => true,
            // After a hub start nobody knows yet.
            State::New
            | State::Online
            | State::Sleeping { .. }
            | State::Suspect { cause: Cause::HubRestart } => false,
        }
    }

    /// Whether it counts where it is asked how much of a site is dark.
    pub(super) fn counts(&self) -> bool {
        match self.presence {
            State::Online | State::Offline | State::Suspect { .. } => true,
            State::New | State::Sleeping { .. } => false,
        }
    }
}

/// What is known of one series.
#[derive(Debug, Default)]
pub(super) struct OfSeries {
    pub latest: Option<(i64, f64)>,
    pub windows: Vec<(Duration, Window)>,
    /// Whether history was put into its windows, or there was none to put.
    pub filled: bool,
}

/// What is known of a device, the node itself among them.
#[derive(Debug, Default)]
pub(super) struct Device {
    pub seen_ms: i64,
    pub state: Option<DeviceState>,
    pub until_ms: Option<i64>,
    pub firmware: Option<String>,
    pub series: HashMap<MetricName, OfSeries>,
}

/// The ledger of a node, as far as rules ask.
#[derive(Debug, Clone, Default)]
pub(super) struct Book {
    pub losses: Losses,
    pub standing: Option<Standing>,
}

/// One device of a node at one time.
pub(super) struct At<'a> {
    pub member: &'a Member,
    pub device: &'a DeviceId,
    pub started_ms: i64,
    pub now_ms: i64,
}

impl At<'_> {
    fn of(&self, series: &Series) -> Option<&OfSeries> {
        let device = series.device.as_ref().unwrap_or(self.device);
        self.member.devices.get(device)?.series.get(&series.metric)
    }
}

/// Losses that are older than this are not lately.
pub(super) const LATELY_MS: i64 = 3_600_000;

impl View for At<'_> {
    fn value(&self, series: &Series) -> Option<f64> {
        if let Some((_, value)) = self.of(series).and_then(|of| of.latest) {
            return Some(value);
        }
        // What the node says of its machine counts as its own metrics.
        let own = series.device.as_ref().unwrap_or(self.device).is_node();
        let mut figures = self.member.facts.figures.iter().filter(|_| own);
        figures.find(|(name, _)| *name == series.metric).map(|(_, value)| *value)
    }

    fn last_seen_s(&self) -> Option<f64> {
        let facts = &self.member.facts;
        let since_ms = if self.device.is_node() {
            match facts.presence {
                State::Online | State::Offline | State::Suspect { cause: Cause::Late | Cause::Will } => {
                    facts.last_seen_ms
                }
                State::New | State::Sleeping { .. } | State::Suspect { cause: Cause::HubRestart } => {
                    return None;
                }
            }
        } else {
            let device = self.member.devices.get(self.device)?;
            if device.state == Some(DeviceState::Sleeping) {
                device.until_ms.filter(|until| *until <= self.now_ms)?
            } else {
                // Nobody could hear it while its node, or the hub, was away.
                device.seen_ms.max(self.member.back_ms).max(self.started_ms)
            }
        };
        Some(self.now_ms.saturating_sub(since_ms).max(0) as f64 / 1_000.0)
    }

    fn over(&self, series: &Series, span: Duration) -> Option<Aggregate> {
        let (_, window) = self.of(series)?.windows.iter().find(|(held, _)| *held == span)?;
        window.over(self.now_ms)
    }

    fn fact(&self, name: &str) -> Option<Fact<'_>> {
        let facts = &self.member.facts;
        let device = || self.member.devices.get(self.device);
        let losses = &self.member.book.losses;
        let lately = |of: fn(&(i64, u64, u64)) -> u64| {
            let recent = losses.recent.iter().filter(|(at, _, _)| *at > self.now_ms - LATELY_MS);
            Some(Fact::Number(recent.map(of).sum::<u64>() as f64))
        };
        match name {
            "presence" => Some(Fact::Text(facts.presence.as_str())),
            "flapping" => Some(Fact::Truth(facts.flapping)),
            DEVICE_STATE if facts.online() => Some(Fact::Text(device()?.state?.as_str())),
            "outbox_records" => Some(Fact::Number(facts.outbox_records as f64)),
            "outbox_ratio" => facts.outbox_ratio.map(Fact::Number),
            "ledger" => self.member.book.standing.map(|standing| Fact::Text(standing.as_str())),
            "ledger_lost" => lately(|(_, lost, _)| *lost),
            "ledger_quarantined" => lately(|(_, _, quarantined)| *quarantined),
            "clock_offset_s" => Some(Fact::Number(facts.clock_offset_ms? as f64 / 1_000.0)),
            "certificate_days" => {
                let left_ms = facts.certificate_ms?.saturating_sub(self.now_ms);
                Some(Fact::Number(left_ms as f64 / 86_400_000.0))
            }
            "agent_version" => Some(Fact::Text(&facts.agent)),
            "firmware_version" if self.device.is_node() => facts.firmware.as_deref().map(Fact::Text),
            "firmware_version" => device()?.firmware.as_deref().map(Fact::Text),
            "config" => Some(Fact::Text(facts.config.as_str())),
            "kind" => Some(Fact::Text(&facts.kind)),
            "site" => facts.site.as_deref().map(Fact::Text),
            // `device_state` of a device behind a node that does not speak: nobody knows.
            _ => None,
        }
    }
}
