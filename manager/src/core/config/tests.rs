//! Layers are changed and nodes follow: decided purely, with a fleet in memory.

use std::time::Duration;

use fleet_schemas::{
    NodeId, SessionId, VERSION,
    batch::Clock,
    cbor,
    config::{Desired, Failed, Held, Reported, Version},
    limits,
    session::{Birth, Heartbeat, OutboxUse, Pending, Versions},
};
use serde_json::{Value, json};

use super::*;
use crate::core::{
    Now,
    fleet::{Fleet, Node, Record},
    identity::Identities,
    intake::{self, Input},
    registry::{self, Intent, NodePatch, Order, RegistryError},
};

fn layer(text: &str) -> Layer {
    text.parse().unwrap()
}

fn id(text: &str) -> NodeId {
    NodeId::parse(text).unwrap()
}

fn put(at: &str, doc: Value) -> Edit {
    Edit::Put { layer: layer(at), doc, expected: None }
}

/// A hub's core with agents that do what they are told.
struct World {
    fleet: Fleet,
    now: Now,
    session: u8,
    /// What nodes were told in the last group.
    told: Vec<(NodeId, Desired)>,
    rows: Rows,
    events: Vec<String>,
}

impl World {
    fn new(nodes: &[(&str, Option<&str>)]) -> Self {
        let mut fleet = Fleet::default();
        for (number, (name, site)) in (1..).zip(nodes) {
            let mut record = Record::new(id(name), 0);
            record.site = site.map(ToOwned::to_owned);
            fleet.insert(Node::new(number, record));
        }
        let now = Now { wall_ms: 5, mono: Duration::from_secs(1) };
        Self { fleet, now, session: 0, told: Vec::new(), rows: Rows::default(), events: Vec::new() }
    }

    fn group<R>(&mut self, change: impl FnOnce(&mut Fleet, &mut intake::Effects, Now) -> R) -> R {
        let mut effects = intake::Effects::default();
        let result = change(&mut self.fleet, &mut effects, self.now);
        intake::handle_timeouts(&mut self.fleet, &mut effects, self.now);
        advance(&mut self.fleet, &mut effects, self.now);
        self.told = effects.config.desired;
        self.rows = effects.config.rows;
        self.events = effects.events.iter().map(|new| new.event.kind.to_string()).collect();
        result
    }

    fn intend(&mut self, intent: Intent) -> Result<(), RegistryError> {
        self.group(|fleet, effects, now| {
            let order = Order { by: "operator ann".to_owned(), intent };
            registry::take(fleet, &mut Identities::default(), effects, order, 99, now)
        })
    }

    fn edit(&mut self, edit: Edit) -> Result<Vec<String>, RegistryError> {
        let edited = decide(&self.fleet, &edit, "operator ann", 5)?;
        self.intend(Intent::EditConfig { edit: Box::new(edit), by: "operator ann".to_owned() })?;
        Ok(edited.affected.iter().map(|affected| affected.node.to_string()).collect())
    }

    fn put(&mut self, at: &str, doc: Value) -> Vec<String> {
        self.edit(put(at, doc)).unwrap()
    }

    fn born(&mut self, name: &str, config: Option<Reported>) {
        self.session += 1;
        let birth = Birth {
            v: VERSION,
            session: SessionId([self.session; 8]),
            epoch: self.session.into(),
            boot: [1; 8],
            instance: None,
            up_ms: 1,
            clock: Clock::Synced,
            time_ms: self.now.wall_ms,
            interval_ms: 30_000,
            kind: "picclaw".to_owned(),
            name: None,
            capabilities: Vec::new(),
            versions: Versions::default(),
            machine: BTreeMap::new(),
            lanes: BTreeMap::new(),
            partial: false,
            pending: Pending::default(),
            commands: None,
            config,
        };
        let input = Input::Birth(Box::new(birth));
        self.group(|fleet, effects, now| intake::take(fleet, effects, &id(name), input, 99, now));
    }

    fn beat(&mut self, name: &str, config: &Reported) {
        let session = self.node(name).record.presence.session.unwrap();
        let heartbeat = Heartbeat {
            v: VERSION,
            session,
            boot: [1; 8],
            up_ms: 2,
            clock: Clock::Synced,
            time_ms: self.now.wall_ms,
            interval_ms: 30_000,
            system: BTreeMap::new(),
            lanes: BTreeMap::new(),
            partial: false,
            pending: Pending::default(),
            outbox: OutboxUse::default(),
            config: Some(config.clone()),
        };
        let input = Input::Heartbeat(Box::new(heartbeat));
        self.group(|fleet, effects, now| intake::take(fleet, effects, &id(name), input, 99, now));
    }

    fn pass(&mut self, seconds: u64) {
        self.now.mono += Duration::from_secs(seconds);
        self.now.wall_ms += i64::try_from(seconds).unwrap() * 1_000;
        self.group(|_, _, _| {});
    }

    fn node(&self, name: &str) -> &Node {
        &self.fleet.nodes[&id(name)]
    }

    fn state(&self, name: &str) -> &'static str {
        state(self.node(name)).as_str()
    }

    /// The one document that was told.
    fn one(&self) -> (Held, Value) {
        let [(_, desired)] = &self.told[..] else { panic!("{:?}", self.told) };
        (held(desired), cbor::decode(&desired.doc).unwrap())
    }
}

fn held(desired: &Desired) -> Held {
    Held { version: desired.version, hash: fleet_schemas::config::hash(&desired.doc), retry: desired.retry }
}

fn has(held: Held) -> Reported {
    Reported { received: Some(held), applied: Some(held), failed: None }
}

fn of(version: (u64, u64), doc: &Value) -> Held {
    let version = Version { epoch: version.0, n: version.1 };
    Held { version, hash: encoded(doc).1, retry: 0 }
}

const TAKES: Option<Reported> = Some(Reported { received: None, applied: None, failed: None });

#[test]
fn layers_read_what_they_write() {
    for text in ["fleet", "group/old", "site/Hall 3/a", "node/edge-1"] {
        assert_eq!(layer(text).to_string(), text);
    }
    for text in ["", "fleet/x", "group/", "node/A B", "sites/x"] {
        assert!(text.parse::<Layer>().is_err(), "{text}");
    }
}

#[test]
fn a_site_goes_over_the_fleet_and_only_its_nodes_follow() {
    let mut world = World::new(&[("a", Some("roof")), ("b", Some("cellar")), ("c", None)]);
    world.intend(Intent::PutGroup { name: "old".into(), selector: "id in (b)".into() }).unwrap();
    assert_eq!(world.put("fleet", json!({"upload_s": 90})), ["a", "b", "c"]);
    assert_eq!(world.put("site/roof", json!({"upload_s": 30})), ["a"]);
    assert_eq!(world.put("group/old", json!({"upload_s": 60})), ["b"]);
    // Nothing changes for the roof.
    let patch = json!({"upload_s": 100});
    let edit = || Edit::Patch { layer: Layer::Fleet, patch: patch.clone(), expected: Some(1) };
    assert_eq!(world.edit(edit()).unwrap(), ["c"]);
    let conflict = ConfigError::Conflict { layer: "fleet".into(), current: 2, expected: 1 };
    assert_eq!(world.edit(edit()), Err(RegistryError::Config(conflict)));
    let doc = json!({"upload_s": 90});
    let back = Edit::Return { layer: Layer::Fleet, to: 1, doc, expected: None };
    assert_eq!(world.edit(back).unwrap(), ["c"]);
    assert_eq!(world.node("c").wanted.unwrap().version.n, 3);
    assert_eq!(world.node("a").wanted.unwrap().version.n, 2);
    let revision = world.fleet.config.settings().current(&Layer::Fleet).unwrap();
    assert_eq!((revision.number, revision.returned_to), (3, Some(1)));
    assert_eq!(world.put("fleet", json!({"upload_s": 90})), [""; 0], "the same again is no change");
    assert_eq!(world.rows, Rows::default());
}

#[test]
fn a_dry_run_changes_nothing_and_says_what_would() {
    let world = World::new(&[("a", None)]);
    let before = world.fleet.clone();
    let edited = decide(&world.fleet, &put("fleet", json!({"x": {"y": 1}})), "ann", 1).unwrap();
    assert_eq!(edited.affected[0].differences[0].pointer, "/x/y");
    assert_eq!(world.fleet, before);
    let same = decide(&world.fleet, &put("fleet", json!({})), "ann", 1).unwrap();
    assert!(same.revision.is_none() && same.affected.is_empty());
}

#[test]
fn the_schema_judges_what_a_node_would_get_and_names_the_place() {
    let mut world = World::new(&[("a", None)]);
    let schema = |schema| Edit::Schema { schema: Some(schema), expected: None };
    let strict = json!({"properties": {"upload_s": {"type": "integer", "minimum": 1}}});
    world.edit(schema(strict)).unwrap();
    let error = decide(&world.fleet, &put("fleet", json!({"upload_s": 0})), "ann", 1).unwrap_err();
    let ConfigError::Unfit { whose, unfit: Unfit::Invalid(faults) } = &error else { panic!("{error}") };
    assert_eq!((whose.to_string().as_str(), faults[0].pointer.as_str()), ("node/a", "/upload_s"), "{error}");
    assert_eq!(world.put("fleet", json!({"upload_s": 1})), ["a"]);
    let bad = decide(&world.fleet, &schema(json!({"type": 7})), "ann", 1);
    assert!(matches!(bad, Err(ConfigError::Schema(_))));
    // A schema that what is there breaks is refused too.
    let stricter = schema(json!({"properties": {"upload_s": {"minimum": 5}}}));
    assert!(matches!(decide(&world.fleet, &stricter, "ann", 1), Err(ConfigError::Unfit { .. })));
    assert_eq!(decide(&world.fleet, &put("fleet", json!([1])), "ann", 1), Err(ConfigError::NoObject));
    let patch = Edit::Patch { layer: Layer::Fleet, patch: json!(3), expected: None };
    assert_eq!(decide(&world.fleet, &patch, "ann", 1), Err(ConfigError::NoObject));
}

#[test]
fn a_document_that_no_message_holds_is_refused() {
    let world = World::new(&[("a", None)]);
    let refused = |doc: Value| match decide(&world.fleet, &put("fleet", doc), "ann", 1) {
        Err(ConfigError::Unfit { unfit, .. }) => unfit,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused(json!({"x": "x".repeat(limits::CONFIG_BYTES)})), Unfit::Large(_)));
    let deep = (0..=limits::CBOR_DEPTH).fold(json!(1), |inner, _| json!({ "x": inner }));
    assert!(matches!(refused(deep), Unfit::Shape(_)));
    // Two that fit by themselves and not together.
    let half = |key: &str| json!({ key: "x".repeat(limits::CONFIG_BYTES / 2) });
    let mut world = World::new(&[("a", Some("roof"))]);
    world.put("fleet", half("a"));
    let error = decide(&world.fleet, &put("site/roof", half("b")), "ann", 1).unwrap_err();
    assert!(error.to_string().contains("node/a would have"), "{error}");
}

#[test]
fn layers_of_nobody_are_refused_and_groups_by_presence_too() {
    let mut world = World::new(&[("a", None)]);
    for nobody in ["group/x", "node/x"] {
        let error = world.edit(put(nobody, json!({"x": 1}))).unwrap_err();
        assert_eq!(error, RegistryError::Config(ConfigError::Nobody(layer(nobody))));
    }
    let group = |selector: &str| Intent::PutGroup { name: "g".into(), selector: selector.into() };
    world.intend(group("state=online")).unwrap();
    let unsteady = || RegistryError::Config(ConfigError::Unsteady("g".to_owned()));
    assert_eq!(world.edit(put("group/g", json!({"x": 1}))), Err(unsteady()));
    world.intend(group("id=a")).unwrap();
    assert_eq!(world.put("group/g", json!({"x": 1})), ["a"]);
    assert_eq!(world.intend(group("state=online")), Err(unsteady()));
}

#[test]
fn a_node_that_moves_follows_its_new_place() {
    let mut world = World::new(&[("a", None), ("b", None)]);
    world.put("fleet", json!({"x": 1}));
    world.put("site/roof", json!({"x": 2}));
    world.intend(Intent::PutGroup { name: "g".into(), selector: "rack=1".into() }).unwrap();
    world.put("group/g", json!({"y": 1}));
    let version = |world: &World, name: &str| world.node(name).wanted.unwrap().version.n;
    let patch = NodePatch { site: Some(Some("roof".into())), ..NodePatch::default() };
    world.intend(Intent::PatchNode { node: id("a"), patch }).unwrap();
    assert_eq!((version(&world, "a"), version(&world, "b")), (2, 1));
    let patch = NodePatch { labels: [("rack".into(), Some("1".into()))].into(), ..NodePatch::default() };
    world.intend(Intent::PatchNode { node: id("a"), patch }).unwrap();
    assert_eq!((version(&world, "a"), version(&world, "b")), (3, 1));
    world.intend(Intent::PutGroup { name: "g".into(), selector: "id=b".into() }).unwrap();
    assert_eq!((version(&world, "a"), version(&world, "b")), (4, 2));
    world.intend(Intent::RemoveGroup("g".into())).unwrap();
    assert_eq!((version(&world, "a"), version(&world, "b")), (4, 3));
    // A new node has what its place has.
    world.born("c", TAKES);
    assert_eq!(world.one().1, json!({"x": 1}));
}

#[test]
fn a_node_that_moves_where_nothing_suits_it_keeps_what_it_had_and_is_told_of() {
    let mut world = World::new(&[("a", None)]);
    world.put("fleet", json!({"x": 1}));
    world.put("site/roof", json!({"x": 9}));
    let schema = |most: u8| Edit::Schema {
        schema: Some(json!({"properties": {"x": {"maximum": most}}})),
        expected: None,
    };
    world.edit(schema(5)).unwrap();
    let before = world.node("a").wanted;
    let patch = NodePatch { site: Some(Some("roof".into())), ..NodePatch::default() };
    world.intend(Intent::PatchNode { node: id("a"), patch }).unwrap();
    assert_eq!(world.node("a").wanted, before);
    let why = why(&world.fleet, world.node("a"));
    assert!(why.iter().any(|line| line.contains("\"/x\"")), "{why:?}");
    world.born("a", TAKES);
    assert!(world.told.is_empty(), "what it was to have is gone");
    // Another layer may change as long as this node's does not.
    world.put("site/cellar", json!({"x": 2}));
    world.edit(schema(10)).unwrap();
    assert_eq!(world.one().1, json!({"x": 9}));
}

#[test]
fn a_node_is_told_until_it_says_it_has_it() {
    let mut world = World::new(&[("a", None)]);
    assert_eq!(world.state("a"), "unmanaged");
    world.put("fleet", json!({"x": 1}));
    assert!(world.told.is_empty(), "nobody is connected");
    world.born("a", TAKES);
    let (first, doc) = world.one();
    assert_eq!((world.state("a"), &doc), ("pending", &json!({"x": 1})));
    let nothing = Reported::default();
    world.beat("a", &nothing);
    assert!(world.told.is_empty(), "it was told a moment ago");
    let mut again = 0;
    for _ in 0..60 {
        world.pass(30);
        world.beat("a", &nothing);
        again += world.told.len();
    }
    assert!((4..=8).contains(&again), "told {again} times in half an hour");
    world.beat("a", &Reported { received: Some(first), ..Reported::default() });
    assert_eq!((world.state("a"), world.told.len()), ("pending", 0));
    world.beat("a", &has(first));
    assert_eq!(world.state("a"), "in_sync");
    world.put("fleet", json!({"x": 2}));
    assert_eq!(world.one().0.version.n, 2, "an edit is told at once");
    world.pass(60);
    world.pass(60);
    assert_eq!(world.state("a"), "offline");
    world.born("a", Some(has(first)));
    assert_eq!(world.one().1, json!({"x": 2}), "a birth is answered at once");
    world.born("a", None);
    assert!(world.told.is_empty(), "its agent takes none any more");
    assert_eq!(world.state("a"), "unmanaged");
}

#[test]
fn what_failed_is_told_again_only_when_it_is_another_or_somebody_asks() {
    let mut world = World::new(&[("a", None)]);
    world.put("fleet", json!({"x": 1}));
    world.born("a", TAKES);
    let (first, _) = world.one();
    let failed = Some(Failed { code: "self_check".into(), message: "no hub".into() });
    let reported = Reported { received: Some(first), applied: None, failed };
    world.beat("a", &reported);
    assert_eq!((world.state("a"), &world.events[..]), ("failed", &["config_failed".to_owned()][..]));
    for _ in 0..20 {
        world.pass(600);
        world.beat("a", &reported);
        assert!(world.told.is_empty() && world.events.is_empty());
        world.born("a", Some(reported.clone()));
        assert!(world.told.is_empty() && world.events.is_empty());
    }
    world.intend(Intent::RetryConfig(id("a"))).unwrap();
    let (again, _) = world.one();
    assert_eq!((again.version, again.retry), (first.version, 1));
    assert_eq!(world.state("a"), "pending");
    let not_failed = RegistryError::Config(ConfigError::NotFailed(id("a")));
    assert_eq!(world.intend(Intent::RetryConfig(id("a"))), Err(not_failed));
    world.beat("a", &Reported { received: Some(again), ..reported.clone() });
    assert_eq!((world.state("a"), world.events.len()), ("failed", 1), "once per try");
    world.put("fleet", json!({"x": 2}));
    let (second, _) = world.one();
    assert_eq!((second.version.n, second.retry), (2, 0));
    world.beat("a", &has(second));
    assert_eq!(world.state("a"), "in_sync");
}

#[test]
fn a_hub_that_was_set_back_goes_ahead_of_its_nodes() {
    let doc = json!({"x": 1});
    // It has a newer version of something else.
    let mut world = World::new(&[("a", None)]);
    world.put("fleet", doc.clone());
    world.born("a", Some(has(of((0, 7), &json!({"x": 9})))));
    assert_eq!((world.one().0, &world.events[..]), (of((0, 8), &doc), &["config_foreign".to_owned()][..]));
    // It has the same settings under a newer version: that one counts.
    let mut world = World::new(&[("a", None)]);
    world.put("fleet", doc.clone());
    world.born("a", Some(has(of((3, 7), &doc))));
    assert_eq!((world.told.len(), world.state("a")), (0, "in_sync"));
    assert_eq!(world.node("a").wanted.unwrap().version, Version { epoch: 3, n: 7 });
    world.put("fleet", json!({"x": 2}));
    assert_eq!(world.one().0.version, Version { epoch: 3, n: 8 });
    // The same version of something else: both hubs counted this far.
    let mut world = World::new(&[("a", None)]);
    world.put("fleet", doc.clone());
    world.born("a", Some(has(of((0, 1), &json!({"x": 9})))));
    assert_eq!(world.one().0, of((0, 2), &doc));
    // A hub without any setting takes those of another hub away.
    let mut world = World::new(&[("a", None)]);
    world.born("a", Some(has(of((0, 4), &doc))));
    assert_eq!(world.one().0, of((0, 5), &empty()));
    world.beat("a", &has(of((0, 5), &empty())));
    assert_eq!((world.told.len(), world.state("a")), (0, "in_sync"));
    // In a higher epoch everything is newer.
    let mut world = World::new(&[("a", None)]);
    load(&mut world.fleet, Settings::new(BTreeMap::new(), None, 2));
    world.put("fleet", doc.clone());
    assert_eq!(world.node("a").wanted.unwrap().version, Version { epoch: 2, n: 1 });
    // Nonsense is no reason to panic or to loop.
    let mut world = World::new(&[("a", None)]);
    world.put("fleet", doc);
    world.born("a", Some(has(of((u64::MAX, u64::MAX), &json!({"x": 9})))));
    assert_eq!(world.rows, Rows::default());
}

#[test]
fn an_agent_that_hashes_wrongly_is_told_at_a_pace() {
    let mut world = World::new(&[("a", None)]);
    world.put("fleet", json!({"x": 1}));
    world.born("a", TAKES);
    let mut told = 0;
    for n in 1..200 {
        world.now.mono += Duration::from_secs(1);
        let Version { epoch, n: newest } = world.node("a").wanted.unwrap().version;
        world.beat("a", &has(Held { version: Version { epoch, n: newest }, hash: [n; 32], retry: 0 }));
        told += world.told.len();
    }
    assert!(told < 6, "told {told} times");
}

#[test]
fn what_is_loaded_is_settled_without_a_change_of_version() {
    let mut world = World::new(&[("a", None), ("b", Some("roof"))]);
    world.put("fleet", json!({"x": 1}));
    world.put("site/roof", json!({"y": [1, null, 2.5]}));
    let settings = world.fleet.config.settings().clone();
    load(&mut world.fleet, settings);
    world.pass(1);
    assert_eq!(world.rows, Rows::default());
}

#[test]
fn ten_thousand_nodes_follow_one_change_and_are_told_in_portions() {
    let names: Vec<_> = (0..10_000).map(|n| format!("n{n:05}")).collect();
    let sites = ["roof", "cellar", "hall"];
    let nodes: Vec<_> =
        names.iter().zip(sites.iter().cycle()).map(|(name, site)| (name.as_str(), Some(*site))).collect();
    let mut world = World::new(&nodes);
    world.put("site/roof", json!({"y": 1}));
    world.put("fleet", json!({"x": 1}));
    let numbers: Vec<_> = world.fleet.nodes.keys().cloned().collect();
    for node in &numbers {
        let now = world.now;
        world.fleet.presence(node, |presence| presence.birth(SessionId([1; 8]), 30_000, now));
        world.fleet.nodes.get_mut(node).unwrap().record.config = TAKES.map(Box::new);
    }
    let mut told = 0;
    assert_eq!(world.put("fleet", json!({"x": 2})).len(), 10_000);
    assert_eq!(world.rows.wanted.len(), 10_000);
    for groups in 1.. {
        assert!(world.told.len() <= 1_000);
        told += world.told.len();
        if told == 10_000 {
            break;
        }
        assert!(groups < 20, "{told} after {groups} groups");
        world.group(|_, _, _| {});
    }
    let shared = |name: &str| {
        let edited = decide(&world.fleet, &put("fleet", json!({"x": 3})), "ann", 1).unwrap();
        edited.affected.iter().find(|affected| affected.node == id(name)).unwrap().differences.len()
    };
    assert_eq!(shared("n00001"), 1);
}
