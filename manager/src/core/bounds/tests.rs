//! Bounds against every kind of change.

use std::time::Duration;

use ciborium::Value;
use fleet_schemas::{CommandId, DeviceId, MetricName};
use serde_json::json;

use super::*;
use crate::core::{
    Now,
    command::{self, Wanted},
    fleet::Record,
    identity::{Change, Operator, Role},
    intake::Effects,
    registry::{self, Order},
    rollout,
};

const NOW: Now = Now { wall_ms: 1_790_000_000_000, mono: Duration::from_secs(1) };

fn id(name: &str) -> NodeId {
    NodeId::parse(name).unwrap()
}

struct Given {
    fleet: Fleet,
    identities: Identities,
}

impl Given {
    /// `b-1` and `b-2` in Berlin, `t-1` in Tokyo, `n-1` nowhere; ben is bound to Berlin, roof to what has a label, ann not.
    fn new() -> Self {
        let mut fleet = Fleet::default();
        for (number, (name, site)) in (1..).zip([
            ("b-1", Some("berlin")),
            ("b-2", Some("berlin")),
            ("t-1", Some("tokyo")),
            ("n-1", None),
        ]) {
            let mut record = Record::new(id(name), NOW.wall_ms);
            record.site = site.map(str::to_owned);
            if name == "b-2" {
                record.labels.insert("roof".to_owned(), "1".to_owned());
            }
            fleet.insert(Node::new(number, record));
        }
        let mut given = Self { fleet, identities: Identities::default() };
        for (name, on) in [("ann", None), ("ben", Some("site=berlin")), ("roof", Some("roof"))] {
            given.put(name, Role::Operator, on).unwrap();
        }
        given
    }

    fn put(&mut self, name: &str, role: Role, on: Option<&str>) -> Result<(), RegistryError> {
        let token = [u8::try_from(self.identities.operators.len()).unwrap(); 32];
        let operator = Operator {
            name: name.to_owned(),
            role,
            token,
            created_ms: 0,
            created_by: "test".to_owned(),
            expires_ms: None,
            on: on.map(str::to_owned),
            used_ms: None,
        };
        self.take("hub", Intent::Identity(Change::PutOperator(operator)))
    }

    fn take(&mut self, by: &str, intent: Intent) -> Result<(), RegistryError> {
        let order = Order { by: by.to_owned(), intent };
        registry::take(&mut self.fleet, &mut self.identities, &mut Effects::default(), order, 9, NOW)
    }

    /// What is outside when this operator wants that; nothing: it is done, or refused for something else.
    fn outside(&mut self, who: &str, intent: Intent) -> Option<String> {
        let (fleet, identities) = (self.fleet.clone(), self.identities.clone());
        match self.take(&format!("operator {who}"), intent) {
            Err(RegistryError::Outside(outside)) => {
                assert!(self.fleet == fleet && self.identities == identities, "nothing was changed");
                assert_eq!(outside.who, who);
                Some(outside.what)
            }
            Ok(()) | Err(_) => None,
        }
    }
}

fn patch(node: &str, patch: serde_json::Value) -> Intent {
    Intent::PatchNode { node: id(node), patch: serde_json::from_value(patch).unwrap() }
}

fn command(number: u8, nodes: &[&str]) -> Intent {
    let word = |text: &str| MetricName::parse(text).unwrap();
    Intent::Command(Box::new(Wanted {
        id: CommandId([number; 16]),
        by: "operator test".to_owned(),
        nodes: nodes.iter().map(|node| id(node)).collect(),
        kind: word("ping"),
        params: Value::Null,
        queue: word("main"),
        priority: 0,
        idempotent: true,
        supersedes: None,
        ttl: command::TTL,
        timeout: command::TIMEOUT,
        not_before_ms: None,
        rate: None,
        selector: None,
    }))
}

fn edit(layer: Layer) -> Intent {
    let edit = Box::new(Edit::Put { layer, doc: json!({"apps": {"x": 1}}), expected: None });
    Intent::EditConfig { edit, by: "operator test".to_owned() }
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn a_change_is_made_where_it_matches_and_nowhere_else() {
    let mut given = Given::new();
    assert_eq!(given.outside("ben", patch("b-1", json!({"name": "door"}))), None);
    assert_eq!(given.fleet.nodes[&id("b-1")].record.name.as_deref(), Some("door"));
    assert_eq!(given.outside("ben", patch("t-1", json!({"name": "door"}))), some("t-1 does not"));
    assert_eq!(given.outside("ann", patch("t-1", json!({"name": "door"}))), None, "she is not bound");
    let refused = given.take("operator ben", patch("n-1", json!({"name": "x"}))).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "ben may change only what matches site=berlin, and n-1 does not; nothing was changed. Choose nodes by `-l \
         site=berlin`, or have somebody do it who may"
    );
    assert_eq!(given.outside("ben", command(1, &["b-1", "b-2"])), None);
    assert_eq!(given.outside("ben", command(2, &["b-1", "t-1", "n-1"])), some("n-1, t-1 do not"));
    assert_eq!(given.outside("ann", command(3, &["b-1", "t-1"])), None);
    let cancel = |number: u8, nodes: Option<&[&str]>| Intent::CancelCommand {
        id: CommandId([number; 16]),
        nodes: nodes.map(|nodes| nodes.iter().map(|node| id(node)).collect()),
    };
    assert_eq!(given.outside("ben", cancel(3, None)), some("t-1 does not"), "all of hers");
    assert_eq!(given.outside("ben", cancel(3, Some(&["t-1"]))), some("t-1 does not"));
    assert_eq!(given.outside("ben", cancel(3, Some(&["b-1"]))), None);
    assert_eq!(given.outside("ben", cancel(3, None)), some("t-1 does not"), "that alone is open there");
    assert_eq!(given.outside("ben", Intent::RetryConfig(id("t-1"))), some("t-1 does not"));
}

#[test]
fn no_change_moves_a_node_in_or_out() {
    let mut given = Given::new();
    let into = patch("t-1", json!({"site": "berlin"}));
    assert_eq!(given.outside("ben", into), some("t-1 does not"));
    for out in [json!({"site": "tokyo"}), json!({"site": null}), json!({"site": ""})] {
        let refused = given.outside("ben", patch("b-1", out.clone()));
        // What breaks a rule is refused as that.
        assert_eq!(refused.is_some(), out["site"] != "", "{out}");
    }
    assert_eq!(
        given.outside("roof", patch("b-2", json!({"labels": {"roof": null}}))),
        some("b-2 would not any more")
    );
    assert_eq!(given.outside("roof", patch("b-1", json!({"labels": {"roof": "1"}}))), some("b-1 does not"));
    assert_eq!(given.outside("roof", patch("b-2", json!({"labels": {"roof": "2", "x": "1"}}))), None);
    let import = |rows: &[(&str, serde_json::Value)]| {
        let row = |(node, patch): &(&str, serde_json::Value)| {
            (id(node), serde_json::from_value(patch.clone()).unwrap())
        };
        Intent::ImportNodes(rows.iter().map(row).collect())
    };
    let both = import(&[("b-1", json!({"name": "x"})), ("t-1", json!({"site": "berlin"}))]);
    assert_eq!(given.outside("ben", both), some("t-1 does not"), "all or none");
    assert_eq!(given.outside("ben", import(&[("new", json!({"site": "berlin"}))])), None);
    assert_eq!(given.outside("ben", import(&[("other", json!({}))])), some("other would not any more"));
}

#[test]
fn a_node_that_was_removed_is_outside_as_before() {
    let mut given = Given::new();
    given.fleet.retire(&id("t-1"), NOW.wall_ms);
    let import =
        |site| Intent::ImportNodes(vec![(id("t-1"), serde_json::from_value(json!({"site": site})).unwrap())]);
    assert_eq!(given.outside("ben", import("berlin")), some("t-1 does not"));
    assert_eq!(given.outside("ben", edit(Layer::Node(id("t-1")))), some("t-1 does not"));
    given.fleet.retire(&id("b-1"), NOW.wall_ms);
    let back =
        Intent::ImportNodes(vec![(id("b-1"), serde_json::from_value(json!({"name": "again"})).unwrap())]);
    assert_eq!(given.outside("ben", back), None);
    assert!(given.fleet.nodes.contains_key("b-1"));
}

#[test]
fn what_reaches_nodes_that_come_later_is_judged_by_them() {
    let mut given = Given::new();
    let site = |name: &str| Layer::Site(name.to_owned());
    assert_eq!(given.outside("ben", edit(site("berlin"))), None);
    assert_eq!(given.outside("ben", edit(Layer::Node(id("b-2")))), None);
    for layer in [site("tokyo"), site("nobody-there"), Layer::Fleet, Layer::Group("roof".to_owned())] {
        let told = format!("the settings of {layer} may reach nodes that do not");
        assert_eq!(given.outside("ben", edit(layer)), Some(told));
    }
    assert_eq!(given.outside("ben", edit(Layer::Node(id("t-1")))), some("t-1 does not"));
    assert!(
        given.outside("roof", edit(site("berlin"))).is_some(),
        "not all that comes to Berlin is on a roof"
    );
    let schema = Edit::Schema { schema: None, expected: None };
    let schema = Intent::EditConfig { edit: Box::new(schema), by: "operator ben".to_owned() };
    assert!(given.outside("ben", schema).is_some());
    let group = Intent::PutGroup { name: "g".to_owned(), selector: "site=berlin".to_owned() };
    assert_eq!(given.outside("ben", group), some("group g is of the whole fleet"));
    assert!(given.outside("ben", Intent::RemoveGroup("g".to_owned())).is_some());
}

#[test]
fn a_rollout_stays_within_also_for_nodes_that_join_it_later() {
    let mut given = Given::new();
    let wanted = |nodes: &[&str], selector: Option<&str>| {
        let text = json!({
            "name": "greeter", "version": "1.0.0", "kind": "skill",
            "targets": {"any": {"digest": "ab".repeat(32), "length": 9}},
        });
        let release: rollout::Release = serde_json::from_value(text).unwrap();
        let terms = json!({
            "waves": [{"percent": 100.0}], "soak_ms": 0, "max_failures": 0.1, "min_executed": 1, "on_failure": "pause",
            "approval": "any", "deadline_ms": 3_600_000, "timeout_ms": 60_000, "offline_ms": 60_000,
            "offline_ok": false, "allowance": 0.1,
        });
        rollout::Wanted {
            id: MetricName::parse(&format!("greeter-1.0.0-{}", nodes.len())).unwrap(),
            release,
            before: Default::default(),
            seats: nodes.iter().map(|node| (id(node), DeviceId::node(), None)).collect(),
            selector: selector.map(str::to_owned),
            terms: serde_json::from_value(terms).unwrap(),
            by: "operator test".to_owned(),
        }
    };
    let narrowed = |given: &Given, selector: Option<&str>| {
        let mut intent = Intent::Rollout(Box::new(wanted(&["b-1"], selector)));
        check(&given.fleet, &given.identities, "operator ben", &mut intent, NOW.wall_ms).unwrap();
        let Intent::Rollout(wanted) = intent else { unreachable!("it stays one") };
        wanted.selector
    };
    assert_eq!(narrowed(&given, None), None, "it names its nodes");
    assert_eq!(narrowed(&given, Some("roof")).as_deref(), Some("roof,site=berlin"));
    assert_eq!(narrowed(&given, Some("")).as_deref(), Some("site=berlin"), "all means all of theirs");
    let all = Intent::Rollout(Box::new(wanted(&["b-1", "b-2", "t-1"], None)));
    assert_eq!(given.outside("ben", all), some("t-1 does not"));
    // Steering one asks for all of its nodes.
    for node in given.fleet.nodes.values_mut() {
        node.record.capabilities.push(fleet_schemas::update::CAPABILITY.to_owned());
    }
    let hers = wanted(&["b-1", "t-1"], None);
    let name = hers.id.clone();
    given.take("operator ann", Intent::Rollout(Box::new(hers))).unwrap();
    let act = |act| Intent::ActOnRollout { id: name.clone(), act, by: "operator ben".to_owned() };
    let reason = || None;
    for what in [
        rollout::Act::Approve,
        rollout::Act::Pause { reason: reason() },
        rollout::Act::Resume,
        rollout::Act::Abort { reason: reason() },
        rollout::Act::Rollback { reason: reason() },
    ] {
        assert_eq!(given.outside("ben", act(what.clone())), some("t-1 does not"), "{what:?}");
    }
    assert_eq!(given.take("operator ann", act(rollout::Act::Approve)), Ok(()));
}

#[test]
fn an_operator_is_bound_by_what_others_decide() {
    let mut given = Given::new();
    for on in ["", "state=online", "kind=picclaw", "name=door", "capability=x", "agent-version=1", "site ~ x"]
    {
        assert!(matches!(given.put("x", Role::Operator, Some(on)), Err(RegistryError::Field { .. })), "{on}");
    }
    for role in [Role::Viewer, Role::Admin] {
        assert!(matches!(given.put("x", role, Some("site=a")), Err(RegistryError::Field { .. })));
    }
    given.put("x", Role::Operator, Some("site in (a,b),!spare,id!=b-1")).unwrap();
    assert!(given.outside("ben", Intent::Identity(Change::RemoveOperator("ann".to_owned()))).is_some());
    // Removed with a request on the way: it does not get more by that.
    given.take("hub", Intent::Identity(Change::RemoveOperator("ben".to_owned()))).unwrap();
    assert_eq!(given.outside("ben", patch("t-1", json!({"name": "x"}))), some("t-1 does not"));
    given.put("ben", Role::Operator, None).unwrap();
    assert_eq!(given.outside("ben", patch("t-1", json!({"name": "x"}))), None, "another ben");
}

#[test]
fn what_is_no_intent_is_held_to_the_same() {
    let given = Given::new();
    let may =
        |who: &str, touch| may(&given.fleet, &given.identities, &format!("operator {who}"), touch).is_ok();
    let (near, far, gone) = (id("b-1"), id("t-1"), id("gone"));
    assert!(may("ben", Touch::Node(&near)) && may("ben", Touch::Site("berlin")));
    assert!(
        !may("ben", Touch::Node(&far))
            && !may("ben", Touch::Node(&gone))
            && !may("ben", Touch::Site("tokyo"))
    );
    assert!(!may("ben", Touch::Whole("rules")) && may("ann", Touch::Whole("rules")));
    assert!(!may("roof", Touch::Site("berlin")));
}

#[test]
fn a_refusal_names_some_and_counts_the_rest() {
    let mut given = Given::new();
    for n in 0..30_u32 {
        given.fleet.insert(Node::new(100 + n, Record::new(id(&format!("far-{n:02}")), 0)));
    }
    let names: Vec<_> = (0..30).map(|n| format!("far-{n:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let told = given.outside("ben", command(1, &names)).unwrap();
    assert!(told.starts_with("far-00, far-01") && told.ends_with("far-09 and 20 more do not"), "{told}");
}
