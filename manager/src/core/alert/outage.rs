//! Who stands for whom: a node that does not speak for what is behind it, one alert for a site or a fleet that is dark.

use super::{Alert, Dark, Engine, GRACE, Outage, Stage};
use crate::core::{fleet::NodeNo, time::millis};

/// Fewest nodes of a site, and of a fleet, that can be dark together.
const SITE: usize = 3;
const FLEET: usize = 10;

/// Ends what an alert says of the outage that it stands for.
const ANSWER: &str = " do not answer; ";

/// What an alert says of its own node.
fn own_message(message: &str) -> &str {
    message.split_once(ANSWER).map_or(message, |(_, own)| own)
}

impl Engine {
    /// The alert that says that this node does not speak, while it fires.
    pub(super) fn down_alert(&self, node: NodeNo) -> Option<u64> {
        let member = self.members.get(&node).filter(|member| member.facts.dark())?;
        let own = fleet_schemas::DeviceId::node();
        let down = member.states.iter().filter(|(at, _)| self.judged[**at].down);
        let numbers = down.filter_map(|(_, states)| states.get(&own)?.number);
        numbers
            .filter(|number| self.alerts.get(number).is_some_and(|alert| alert.stage == Stage::Firing))
            .min()
    }

    /// What fires at a node that does not speak is inhibited by the alert that says so.
    pub(super) fn inhibit_behind(&mut self, node: NodeNo, by: u64) {
        let Some(member) = self.members.get(&node) else { return };
        let mut behind = Vec::new();
        for (at, states) in &member.states {
            let judged = &self.judged[*at];
            let needing = states.iter().filter(|(device, _)| judged.needs_node(device) && !judged.down);
            behind.extend(needing.filter_map(|(_, instance)| instance.number));
        }
        behind.sort_unstable();
        for number in behind {
            let fires = self.alerts.get(&number);
            if fires.is_some_and(|alert| alert.stage == Stage::Firing && alert.inhibited_by.is_none()) {
                self.change(number, |alert| alert.inhibited_by = Some(by));
            }
        }
    }

    /// An alert is over: what it inhibited stands by itself again; after an outage, not at once.
    pub(super) fn release_behind(&mut self, number: u64, now_ms: i64) {
        if let Some(dark) = self.outages.get_mut(&number) {
            dark.over_ms.get_or_insert(now_ms);
            return;
        }
        for inhibited in self.inhibited_by(number) {
            self.change(inhibited, |alert| alert.inhibited_by = None);
            self.wait_to_tell(inhibited, now_ms);
        }
    }

    /// Nobody is told of an alert any more: another one stands for the outage that nobody has heard of yet.
    pub(super) fn hand_outage_over(&mut self, number: u64, now_ms: i64) {
        let is_untold = self.alerts.get(&number).is_some_and(|alert| !alert.told);
        if !is_untold || self.outages.remove(&number).is_none() {
            return;
        }
        self.change(number, |alert| alert.outage = None);
        for inhibited in self.inhibited_by(number) {
            self.change(inhibited, |alert| alert.inhibited_by = None);
            self.wait_to_tell(inhibited, now_ms);
        }
    }

    fn inhibited_by(&self, number: u64) -> Vec<u64> {
        let behind = self.alerts.values().filter(|alert| alert.inhibited_by == Some(number));
        behind.map(|alert| alert.number).collect()
    }

    /// An alert says that a node does not speak: when much of its site or of the fleet does not either, one alert
    /// stands for all.
    pub(super) fn join_outage(&mut self, number: u64) {
        let Some(alert) = self.alerts.get(&number) else { return };
        let stands = alert.inhibited_by.is_some() || self.outages.contains_key(&number);
        if stands || self.down_alert(alert.node_no) != Some(number) {
            return;
        }
        let Some(site) = self.dark_part(alert.site.as_deref()) else { return };
        let rule = alert.rule.clone();
        let there = self
            .outages
            .iter()
            .find(|(_, dark)| dark.rule == rule && dark.site == site && dark.over_ms.is_none());
        if let Some((leader, _)) = there {
            let leader = *leader;
            self.change(number, |alert| alert.inhibited_by = Some(leader));
            return;
        }
        if alert.silenced_until_ms.is_some() {
            // Nobody would hear of the outage.
            return;
        }
        // Those that went dark just before, and of which nobody was told.
        let before: Vec<u64> = (self.untold.keys().copied())
            .filter(|other| {
                *other != number
                    && self.alerts.get(other).is_some_and(|other| {
                        other.rule == rule
                            && other.inhibited_by.is_none()
                            && site.as_ref().is_none_or(|site| other.site.as_ref() == Some(site))
                    })
            })
            .collect();
        self.outages.insert(number, Dark { rule, site: site.clone(), over_ms: None });
        let outage = self.outage(site.as_deref());
        self.change(number, |alert| alert.outage = Some(outage));
        for other in before {
            self.change(other, |alert| alert.inhibited_by = Some(number));
        }
    }

    /// The part of the fleet that is dark with a node of this site: all of it (none within), its site, or nothing.
    #[expect(clippy::option_option, reason = "whether there is one, and which")]
    fn dark_part(&self, site: Option<&str>) -> Option<Option<String>> {
        if self.is_dark(None) && (self.sites.len() > 1 || site.is_none()) {
            return Some(None);
        }
        let site = site?;
        self.is_dark(Some(site)).then(|| Some(site.to_owned()))
    }

    fn outage(&self, site: Option<&str>) -> Outage {
        let count = match site {
            None => self.all,
            Some(site) => self.sites.get(&Some(site.to_owned())).copied().unwrap_or_default(),
        };
        Outage { site: site.map(str::to_owned), down: count.dark, nodes: count.nodes }
    }

    /// Whether four fifths of a site, or of the fleet, do not speak.
    fn is_dark(&self, site: Option<&str>) -> bool {
        let Outage { down, nodes, .. } = self.outage(site);
        nodes >= if site.is_some() { SITE } else { FLEET } && down * 5 >= nodes * 4
    }

    /// Whether an alert stands for a part that is still dark.
    pub(super) fn stands_for_dark(&self, number: u64) -> bool {
        self.outages.get(&number).is_some_and(|dark| self.is_dark(dark.site.as_deref()))
    }

    /// What an alert that stands for an outage says of it.
    pub(super) fn describe(&mut self, number: u64) {
        let Some(dark) = self.outages.get(&number) else { return };
        let outage = self.outage(dark.site.as_deref());
        let part = outage.site.as_ref().map_or("the fleet".to_owned(), |site| format!("site {site}"));
        let said = format!("{part} is dark: {} of {} nodes{ANSWER}", outage.down, outage.nodes);
        self.change(number, |alert: &mut Alert| {
            alert.message = said + own_message(&alert.message);
            alert.outage = Some(outage);
        });
    }

    /// Lets go of outages that have been over for long enough.
    pub(super) fn end_outages(&mut self, now_ms: i64) {
        let leaders: Vec<u64> = self.outages.keys().copied().collect();
        for leader in leaders {
            let Some(dark) = self.outages.get(&leader) else { continue };
            let is_open = self.alerts.contains_key(&leader);
            let still = is_open && self.is_dark(dark.site.as_deref());
            let over_ms = (!still).then(|| dark.over_ms.unwrap_or(now_ms));
            if let Some(dark) = self.outages.get_mut(&leader) {
                dark.over_ms = over_ms;
            }
            let Some(over_ms) = over_ms else { continue };
            let away = self.inhibited_by(leader);
            if away.is_empty() || now_ms >= over_ms.saturating_add(millis(GRACE)) {
                self.outages.remove(&leader);
                // It stands for its own node from now on.
                self.change(leader, |alert| {
                    alert.outage = None;
                    alert.message = own_message(&alert.message).to_owned();
                });
                for number in away {
                    self.change(number, |alert| alert.inhibited_by = None);
                    self.wait_to_tell(number, now_ms);
                }
            }
        }
    }

    /// After a start: which alerts stand for others.
    pub(super) fn find_outages(&mut self) {
        let leaders: std::collections::BTreeSet<u64> =
            self.alerts.values().filter_map(|alert| alert.inhibited_by).collect();
        for leader in leaders {
            match self.alerts.get(&leader) {
                Some(Alert { outage: Some(outage), rule, .. }) => {
                    let dark = Dark { rule: rule.clone(), site: outage.site.clone(), over_ms: None };
                    self.outages.insert(leader, dark);
                }
                Some(_) => {}
                // It is over, and those that stayed away are still waited for.
                None => {
                    let rule = self.alerts.values().find(|alert| alert.inhibited_by == Some(leader));
                    let Some(rule) = rule.map(|alert| alert.rule.clone()) else { continue };
                    let over_ms = Some(self.started_ms);
                    self.outages.insert(leader, Dark { rule, site: None, over_ms });
                }
            }
        }
    }
}
