//! The subscriptions of a third-party session: what a message becomes for it (MQTT 3.1.1 §3.3.5, MQTT 5 §3.3.4).
//!
//! A message that several of them match is heard once, at the best QoS that was granted. Pure.

use std::{collections::HashMap, sync::Arc};

use crate::{
    branch::{Branches, HubKinds},
    gate::wire::Ask,
    policy,
};

/// One subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sub {
    pub(crate) filter: Arc<str>,
    /// Granted: 0 or 1.
    pub(crate) qos: u8,
    no_local: bool,
    as_published: bool,
    /// What the client calls it, 1 to 268,435,455.
    pub(crate) identifier: Option<u32>,
    pub(crate) branches: Branches,
    kinds: HubKinds,
}

/// All of one session, by filter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Subs {
    /// Without wildcards: found by the topic, however many there are.
    exact: HashMap<Arc<str>, Sub>,
    wild: Vec<Sub>,
}

/// How a message is said when it is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Manner {
    /// 0 or 1.
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    /// Whether it comes from the session's own client.
    pub(crate) own: bool,
}

/// How it goes to the session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) qos: u8,
    pub(crate) retain: bool,
    pub(crate) identifiers: Vec<u32>,
}

/// The highest QoS that is granted.
const QOS_MAX: u8 = 1;

impl Sub {
    pub(crate) fn new(ask: &Ask<'_>, identifier: Option<u32>) -> Self {
        Self {
            filter: ask.filter.into(),
            qos: ask.qos.min(QOS_MAX),
            no_local: ask.no_local,
            as_published: ask.as_published,
            identifier,
            branches: Branches::of(ask.filter),
            kinds: HubKinds::of(ask.filter),
        }
    }

    /// Whether it is about this topic.
    pub(crate) fn covers(&self, topic: &str) -> bool {
        policy::covers(&self.filter, topic)
    }
}

impl Subs {
    pub(crate) fn len(&self) -> usize {
        self.exact.len() + self.wild.len()
    }

    pub(crate) fn has(&self, filter: &str) -> bool {
        self.exact.contains_key(filter) || self.wild.iter().any(|sub| *sub.filter == *filter)
    }

    /// Adds one, in place of the one of the same filter.
    pub(crate) fn insert(&mut self, sub: Sub) {
        if !sub.filter.contains(['+', '#']) {
            self.exact.insert(sub.filter.clone(), sub);
        } else if let Some(held) = self.wild.iter_mut().find(|held| held.filter == sub.filter) {
            *held = sub;
        } else {
            self.wild.push(sub);
        }
    }

    /// Takes one out; says whether it was there.
    pub(crate) fn remove(&mut self, filter: &str) -> bool {
        let before = self.len();
        self.exact.remove(filter);
        self.wild.retain(|sub| *sub.filter != *filter);
        self.len() < before
    }

    /// What the router has to be heard for.
    pub(crate) fn branches(&self) -> Branches {
        self.all().fold(Branches::default(), |branches, sub| branches.with(sub.branches))
    }

    /// What of the hub's own topics may be heard.
    pub(crate) fn kinds(&self) -> HubKinds {
        self.all().fold(HubKinds::default(), |kinds, sub| kinds.with(sub.kinds))
    }

    /// Whether any is about this topic.
    pub(crate) fn cover(&self, topic: &str) -> bool {
        self.matching(topic).next().is_some()
    }

    /// What becomes of a message; `None` when it is not for the session.
    pub(crate) fn hear(&self, topic: &str, said: Manner) -> Option<Heard> {
        let mut heard: Option<Heard> = None;
        for sub in self.matching(topic).filter(|sub| !(sub.no_local && said.own)) {
            let heard = heard.get_or_insert_with(|| Heard { qos: 0, retain: false, identifiers: Vec::new() });
            heard.qos = heard.qos.max(sub.qos.min(said.qos));
            heard.retain |= sub.as_published && said.retain;
            heard.identifiers.extend(sub.identifier);
        }
        heard
    }

    fn matching(&self, topic: &str) -> impl Iterator<Item = &Sub> {
        self.exact.get(topic).into_iter().chain(self.wild.iter().filter(move |sub| sub.covers(topic)))
    }

    fn all(&self) -> impl Iterator<Item = &Sub> {
        self.exact.values().chain(&self.wild)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        branch::{Branch, HubKind},
        gate::wire::Replay,
    };

    fn ask(filter: &str, qos: u8) -> Ask<'_> {
        Ask { filter, qos, no_local: false, as_published: false, replay: Replay::Always }
    }

    fn subs(all: &[(Ask<'_>, Option<u32>)]) -> Subs {
        let mut subs = Subs::default();
        all.iter().for_each(|(ask, identifier)| subs.insert(Sub::new(ask, *identifier)));
        subs
    }

    const SAID: Manner = Manner { qos: 1, retain: true, own: false };

    #[test]
    fn overlapping_subscriptions_give_one_copy_at_the_best_qos_with_all_their_identifiers() {
        let subs = subs(&[
            (ask("a/b", 0), Some(7)),
            (ask("a/+", 2), Some(300)),
            (ask("a/#", 1), None),
            (ask("b", 1), Some(9)),
        ]);
        let heard = Heard { qos: 1, retain: false, identifiers: vec![7, 300] };
        assert_eq!(subs.hear("a/b", SAID), Some(heard));
        let quiet = subs.hear("a/b", Manner { qos: 0, ..SAID }).unwrap();
        assert_eq!((quiet.qos, subs.hear("c", SAID)), (0, None));
    }

    #[test]
    fn the_retain_flag_stays_only_where_that_was_asked_for() {
        let mut subs = subs(&[(Ask { as_published: true, ..ask("a/#", 0) }, None)]);
        assert!(subs.hear("a/b", SAID).unwrap().retain);
        assert!(!subs.hear("a/b", Manner { retain: false, ..SAID }).unwrap().retain);
        subs.insert(Sub::new(&ask("a/#", 0), None));
        assert!(!subs.hear("a/b", SAID).unwrap().retain, "the newer options count");
        assert_eq!(subs.len(), 1);
    }

    #[test]
    fn what_a_client_says_itself_is_kept_from_the_subscriptions_that_ask_for_that() {
        let own = Manner { own: true, ..SAID };
        let mut subs = subs(&[(Ask { no_local: true, ..ask("a/+", 1) }, Some(1))]);
        assert_eq!((subs.hear("a/b", own), subs.hear("a/b", SAID).is_some()), (None, true));
        subs.insert(Sub::new(&ask("#", 0), Some(2)));
        assert_eq!(subs.hear("a/b", own).unwrap().identifiers, [2]);
    }

    #[test]
    fn what_is_reached_follows_the_filters_that_are_there() {
        let mut subs = subs(&[(ask("fleet/v1/hub/latest/a", 0), None), (ask("apps/#", 0), None)]);
        let reached = |subs: &Subs| {
            let kinds = subs.kinds();
            let latest = kinds.has(HubKind::Latest) && !kinds.has(HubKind::Node);
            (subs.branches().has(Branch::Hub), subs.branches().has(Branch::Tools), latest)
        };
        assert_eq!(reached(&subs), (true, true, true));
        assert!(subs.remove("fleet/v1/hub/latest/a") && !subs.remove("fleet/v1/hub/latest/a"));
        assert_eq!(reached(&subs), (false, true, false));
        assert!(subs.has("apps/#") && subs.cover("apps/x") && !subs.cover("fleet/x"));
    }
}
