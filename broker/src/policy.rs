//! Who may publish, subscribe and leave a will where: a pure judgement, deny by default (DESIGN section 9).
//!
//! Must not do IO, read a clock or know MQTT versions: the session turns a [`Denial`] into a reason code.

use fleet_schemas::{
    Lane, NodeId, Topic,
    topic::{Down, Up, check_form},
};

use crate::identity::Identity;

pub mod device;

/// What a session asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action<'a> {
    /// A publish, or the will that is one later.
    Publish {
        /// The topic.
        topic: &'a str,
        /// 0, 1 or 2.
        qos: u8,
        /// Whether it asks to be retained.
        retain: bool,
    },
    /// A subscription.
    Subscribe {
        /// The topic filter.
        filter: &'a str,
    },
}

/// Why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// The topic or filter is empty, too long, too deep or not ASCII.
    Form,
    /// Outside what the identity was given.
    NotYours,
    /// A node retains nothing: what is retained of it is the hub's to say.
    Retain,
    /// QoS 2 is not offered.
    Qos,
    /// Shared subscriptions are not offered.
    Shared,
}

/// The filters a node may subscribe to, all inside `fleet/v1/{me}/down/#`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownFilter {
    /// `down/#`
    Tree,
    /// `down/+`
    Level,
    /// `down/ack`, `down/command` or `down/config`
    One(Down),
}

const UPS: [Up; 7] = [
    Up::Lane(Lane::Telemetry),
    Up::Heartbeat,
    Up::Lane(Lane::Event),
    Up::Lane(Lane::Command),
    Up::Lane(Lane::Backfill),
    Up::Birth,
    Up::Death,
];

impl DownFilter {
    /// How many there are.
    pub const COUNT: usize = 5;

    /// A number below [`Self::COUNT`], one per filter.
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Tree => 0,
            Self::Level => 1,
            Self::One(Down::Ack) => 2,
            Self::One(Down::Command) => 3,
            Self::One(Down::Config) => 4,
        }
    }
}

/// Judges an action.
///
/// # Errors
/// [`Denial`] says why not.
pub fn judge(identity: &Identity, action: Action<'_>) -> Result<(), Denial> {
    match (identity, action) {
        (Identity::Node(me), Action::Publish { topic, qos, retain }) => {
            node_publish(me, topic, qos, retain).map(drop)
        }
        (Identity::Node(me), Action::Subscribe { filter }) => node_subscribe(me, filter).map(drop),
        (Identity::Tool { grants, .. }, Action::Publish { topic, qos, retain: _ }) => {
            if qos > 1 {
                return Err(Denial::Qos);
            }
            check_form(topic).map_err(|_| Denial::Form)?;
            let granted = grants.write.iter().any(|grant| is_filter(grant) && covers(grant, topic));
            if is_for_tools(topic) && granted { Ok(()) } else { Err(Denial::NotYours) }
        }
        (Identity::Tool { grants, .. }, Action::Subscribe { filter }) => {
            filter_form(filter)?;
            let granted = grants.read.iter().any(|grant| is_filter(grant) && covers(grant, filter));
            if granted { Ok(()) } else { Err(Denial::NotYours) }
        }
    }
}

/// Judges a node's publish, and reads its topic on the way: every accepted one is a [`Topic::Up`] of `me`.
///
/// # Errors
/// [`Denial`] says why not.
pub fn node_publish(me: &NodeId, topic: &str, qos: u8, retain: bool) -> Result<Topic, Denial> {
    flags(qos, retain)?;
    check_form(topic).map_err(|_| Denial::Form)?;
    let below = below_me(me, topic).ok_or(Denial::NotYours)?;
    let up = UPS.into_iter().find(|up| up.as_str() == below).ok_or(Denial::NotYours)?;
    Ok(Topic::Up(me.clone(), up))
}

/// Judges a node's subscription.
///
/// # Errors
/// [`Denial`] says why not.
pub fn node_subscribe(me: &NodeId, filter: &str) -> Result<DownFilter, Denial> {
    filter_form(filter)?;
    match below_me(me, filter) {
        Some("down/#") => Ok(DownFilter::Tree),
        Some("down/+") => Ok(DownFilter::Level),
        Some("down/ack") => Ok(DownFilter::One(Down::Ack)),
        Some("down/command") => Ok(DownFilter::One(Down::Command)),
        Some("down/config") => Ok(DownFilter::One(Down::Config)),
        Some(_) | None => Err(Denial::NotYours),
    }
}

/// Whether tools may speak on a topic at all, whatever they were granted: `fleet/…` is for nodes and the hub, `$…` for
/// the broker.
#[must_use]
pub fn is_for_tools(topic: &str) -> bool {
    let plain = !topic.bytes().any(|byte| matches!(byte, b'+' | b'#'));
    plain && topic.split('/').next() != Some(FLEET) && !topic.starts_with('$')
}

/// The first level of all topics of the contract.
pub(crate) const FLEET: &str = "fleet";

fn below_me<'a>(me: &NodeId, text: &'a str) -> Option<&'a str> {
    let rest = text.strip_prefix(fleet_schemas::topic::ROOT)?.strip_prefix('/')?;
    rest.strip_prefix(me.as_str())?.strip_prefix('/')
}

fn flags(qos: u8, retain: bool) -> Result<(), Denial> {
    match (qos, retain) {
        (0 | 1, false) => Ok(()),
        (0 | 1, true) => Err(Denial::Retain),
        (_, _) => Err(Denial::Qos),
    }
}

fn filter_form(filter: &str) -> Result<(), Denial> {
    check_form(filter).map_err(|_| Denial::Form)?;
    if filter.starts_with("$share/") {
        Err(Denial::Shared)
    } else if is_filter(filter) {
        Ok(())
    } else {
        Err(Denial::Form)
    }
}

/// Whether wildcards stand alone in their levels, and `#` last (MQTT 5 §4.7.1).
fn is_filter(text: &str) -> bool {
    let mut levels = text.split('/');
    let last = levels.next_back();
    levels.all(|level| level == "+" || !level.contains(['+', '#']))
        && last.is_some_and(|level| matches!(level, "+" | "#") || !level.contains(['+', '#']))
}

/// Whether every topic that `inner` matches is matched by `outer` (MQTT 5 §4.7.1); a topic is a filter without
/// wildcards. `$` topics are the broker's own and are inside nothing.
pub(crate) fn covers(outer: &str, inner: &str) -> bool {
    if inner.starts_with('$') {
        return false;
    }
    let (mut outer, mut inner) = (outer.split('/'), inner.split('/'));
    loop {
        match (outer.next(), inner.next()) {
            (Some("#"), _) | (None, None) => return true,
            (_, Some("#")) | (None, Some(_)) | (Some(_), None) => return false,
            (Some("+"), Some(_)) => {}
            (Some(a), Some(b)) if a == b && a != "+" => {}
            (Some(_), Some(_)) => return false,
        }
    }
}

/// Whether there is a topic that both filters match.
pub(crate) fn meet(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('/'), other.split('/'));
    loop {
        match (one.next(), other.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (None, Some(_)) | (Some(_), None) => return false,
            (Some(a), Some(b)) if a == b || a == "+" || b == "+" => {}
            (Some(_), Some(_)) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::Grants;

    fn node(id: &str) -> NodeId {
        NodeId::parse(id).unwrap()
    }

    #[test]
    fn a_node_has_its_two_prefixes_and_nothing_else() {
        let me = node("edge-1");
        assert_eq!(
            node_publish(&me, "fleet/v1/edge-1/up/birth", 1, false),
            Ok(Topic::Up(me.clone(), Up::Birth))
        );
        for bad in [
            "fleet/v1/edge-2/up/birth",
            "fleet/v1/edge-1/down/ack",
            "fleet/v1/edge-1/up/x",
            "fleet/v1/edge-1",
        ] {
            assert_eq!(node_publish(&me, bad, 0, false), Err(Denial::NotYours), "{bad}");
        }
        assert_eq!(node_publish(&me, "fleet/v1/edge-1/up/birth", 2, false), Err(Denial::Qos));
        assert_eq!(node_publish(&me, "fleet/v1/edge-1/up/birth", 1, true), Err(Denial::Retain));
        assert_eq!(node_publish(&me, "é", 1, false), Err(Denial::Form));
        assert_eq!(node_subscribe(&me, "fleet/v1/edge-1/down/#"), Ok(DownFilter::Tree));
        for bad in
            ["fleet/v1/edge-1/#", "fleet/v1/+/down/#", "#", "fleet/v1/edge-10/down/#", "fleet/v1/edge-1/down"]
        {
            assert_eq!(node_subscribe(&me, bad), Err(Denial::NotYours), "{bad}");
        }
        assert_eq!(node_subscribe(&me, "$share/g/fleet/v1/edge-1/down/#"), Err(Denial::Shared));
    }

    #[test]
    fn a_tool_stays_inside_its_grants() {
        let with = |grants| Identity::Tool { name: "red".into(), grants };
        let tool = with(Grants { read: vec!["fleet/v1/hub/#".into(), "a/+/c".into()], write: vec![] });
        let subscribe = |filter| judge(&tool, Action::Subscribe { filter });
        for good in ["fleet/v1/hub/#", "fleet/v1/hub", "fleet/v1/hub/node/+", "a/b/c", "a/+/c"] {
            assert_eq!(subscribe(good), Ok(()), "{good}");
        }
        for bad in ["#", "fleet/#", "fleet/v1/+/up/#", "a/#", "a/b/#", "$SYS/x", "+/v1/hub/x"] {
            assert_eq!(subscribe(bad), Err(Denial::NotYours), "{bad}");
        }
        for bad in ["fleet/v1/hub/#/x", "fleet/v1/hub/a#", "fleet/v1/hub/+x", "a/++/c"] {
            assert_eq!(subscribe(bad), Err(Denial::Form), "{bad}");
        }
        assert_eq!(subscribe("$share/g/fleet/v1/hub/#"), Err(Denial::Shared));
        let broken = with(Grants { read: vec!["a/#/b".into(), "a#".into()], write: vec![] });
        assert_eq!(judge(&broken, Action::Subscribe { filter: "a/x" }), Err(Denial::NotYours));
        let publish = Action::Publish { topic: "fleet/v1/hub/node/a", qos: 0, retain: false };
        assert_eq!(judge(&tool, publish), Err(Denial::NotYours));
    }

    #[test]
    fn a_tool_speaks_where_it_was_granted_and_never_for_nodes_the_hub_or_the_broker() {
        let publish = |grant: &str, topic, qos, retain| {
            let grants = Grants { read: vec![], write: vec![grant.into()] };
            judge(&Identity::Tool { name: "t".into(), grants }, Action::Publish { topic, qos, retain })
        };
        for good in ["apps/a", "apps", "/apps", "fleets/a", "homeassistant/status"] {
            assert_eq!(publish("#", good, 1, true), Ok(()), "{good}");
        }
        for bad in ["fleet", "fleet/", "fleet/v1/a/up/event", "fleet/v1/hub/node/a", "$SYS/a", "$share/g/a"] {
            assert_eq!(publish("#", bad, 0, false), Err(Denial::NotYours), "{bad}");
            assert_eq!(publish(bad, bad, 0, false), Err(Denial::NotYours), "{bad}");
        }
        assert_eq!(publish("apps/+/set", "apps/a/set", 0, false), Ok(()));
        assert_eq!(publish("apps/+/set", "apps/a/b/set", 0, false), Err(Denial::NotYours));
        assert_eq!(publish("#", "apps/+", 0, false), Err(Denial::NotYours));
        assert_eq!(publish("#", "apps/a", 2, false), Err(Denial::Qos));
        assert_eq!(publish("#", "", 0, false), Err(Denial::Form));
        assert_eq!(publish("#", "apps/é", 0, false), Err(Denial::Form));
    }

    /// Matching as MQTT 5 §4.7 tells it, by recursion: another hand's work than [`covers`].
    fn matches(filter: &str, topic: &str) -> bool {
        fn level(filter: &[&str], topic: &[&str]) -> bool {
            match (filter, topic) {
                (["#"], _) | ([], []) => true,
                ([one, rest @ ..], [other, tail @ ..]) => {
                    (*one == "+" || (one == other && *one != "#")) && level(rest, tail)
                }
                ([], _) | (_, []) => false,
            }
        }
        let (filter, topic): (Vec<_>, Vec<_>) = (filter.split('/').collect(), topic.split('/').collect());
        level(&filter, &topic)
    }

    fn word() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("fleet".to_owned()),
            Just("v1".to_owned()),
            Just("me".to_owned()),
            Just("other".to_owned()),
            Just("me2".to_owned()),
            Just("hub".to_owned()),
            Just("up".to_owned()),
            Just("down".to_owned()),
            Just("birth".to_owned()),
            Just("ack".to_owned()),
            Just("+".to_owned()),
            Just("#".to_owned()),
            Just("$share".to_owned()),
            Just(String::new()),
            "\\PC{0,3}",
        ]
    }

    proptest! {
        #[test]
        fn no_accepted_action_touches_another_prefix(
            words in proptest::collection::vec(word(), 0..8), qos in 0_u8..4, retain: bool,
            rooted: bool,
        ) {
            let mut text = words.join("/");
            if rooted {
                text = format!("fleet/v1/me/{text}");
            }
            let me = Identity::Node(node("me"));
            if judge(&me, Action::Publish { topic: &text, qos, retain }).is_ok() {
                prop_assert!(text.starts_with("fleet/v1/me/up/") && !text.contains(['+', '#']));
                prop_assert!(qos < 2 && !retain);
                prop_assert!(matches!(Topic::parse(&text), Ok(Topic::Up(..))));
            }
            if judge(&me, Action::Subscribe { filter: &text }).is_ok() {
                prop_assert!(text.starts_with("fleet/v1/me/down/"));
            }
        }

        #[test]
        fn no_accepted_action_of_a_tool_is_outside_its_grants_or_speaks_for_the_fleet(
            grants in proptest::collection::vec(proptest::collection::vec(word(), 1..5), 0..4),
            words in proptest::collection::vec(word(), 0..6), qos in 0_u8..4, retain: bool,
        ) {
            let text = words.join("/");
            let grants: Vec<_> = grants.iter().map(|words| words.join("/")).collect();
            let lists = Grants { read: grants.clone(), write: grants.clone() };
            let tool = Identity::Tool { name: "t".into(), grants: lists };
            if judge(&tool, Action::Publish { topic: &text, qos, retain }).is_ok() {
                prop_assert!(text != "fleet" && !text.starts_with("fleet/") && !text.starts_with('$'));
                prop_assert!(text.is_ascii() && !text.contains(['+', '#']) && qos < 2);
                prop_assert!(grants.iter().any(|grant| matches(grant, &text)), "{grants:?} {text}");
            }
            if judge(&tool, Action::Subscribe { filter: &text }).is_ok() {
                // Whatever topic the filter matches, one grant matches too.
                for fill in ["x", "fleet", "a/b/c", ""] {
                    let topic = text.replace('+', fill.split('/').next().unwrap()).replace('#', fill);
                    if topic.starts_with('$') || topic.is_empty() {
                        continue;
                    }
                    prop_assert!(matches(&text, &topic), "{text} {topic}");
                    prop_assert!(grants.iter().any(|grant| matches(grant, &topic)), "{grants:?} {text} {topic}");
                }
            }
        }

        #[test]
        fn what_a_grant_covers_matches_no_more_than_the_grant(
            grant in proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("+")], 1..4),
            tail: bool,
            filter in proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("+"), Just("#")], 1..5),
            topic in proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 1..5),
        ) {
            let grant = if tail { format!("{}/#", grant.join("/")) } else { grant.join("/") };
            let end = filter.iter().position(|word| *word == "#").map_or(filter.len(), |at| at + 1);
            let filter = filter[..end].join("/");
            let topic = topic.join("/");
            if covers(&grant, &filter) && covers(&filter, &topic) {
                prop_assert!(covers(&grant, &topic), "{grant} {filter} {topic}");
            }
            if covers(&grant, &topic) && covers(&filter, &topic) {
                prop_assert!(meet(&grant, &filter) && meet(&filter, &grant), "{grant} {filter} {topic}");
            }
        }
    }
}
