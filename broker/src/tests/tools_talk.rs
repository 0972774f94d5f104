//! Third-party sessions that speak: to each other, to the hub, and at QoS 1.

use std::sync::Mutex;

use bytes::Bytes;
use fleet_schemas::{
    Topic,
    topic::{Down, Hub},
};

use super::*;
use crate::{Grants, HubKind, PublishError, PublishLimit, Reason, Retained, Verdict, gate::encode::Forward};

/// Lets tools in by the password `tool`: `reader` may hear all, `nodered` may hear all and say `apps/#` and
/// `homeassistant/#`, `homeassistant` the same. Remembers what it is told, and answers for 3 nodes.
#[derive(Default)]
pub(crate) struct Desk {
    pub(crate) said: Mutex<Vec<(String, String, Vec<u8>)>>,
    pub(crate) kept: Mutex<Vec<Retained>>,
    /// How many nodes have a retained summary.
    pub(crate) nodes: usize,
}

impl Directory for Desk {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Verdict {
        let user = credentials.user.unwrap_or_default();
        if credentials.password != Some(b"tool") {
            return Fleet.authenticate(credentials);
        }
        let write = if user == "reader" { vec![] } else { vec!["apps/#".into(), "homeassistant/#".into()] };
        Ok(Identity::Tool { name: user.into(), grants: Grants { read: vec!["#".into()], write } }).into()
    }

    fn retained(&self, _: &str, visit: &mut dyn FnMut(&str, &[u8]) -> std::ops::ControlFlow<()>) {
        for n in 0..self.nodes {
            let topic = Topic::Hub(Hub::Node(node(&format!("edge-{n:05}")))).to_string();
            if visit(&topic, &summary(n)).is_break() {
                return;
            }
        }
    }

    fn load_retained(&self) -> Vec<Retained> {
        self.kept.lock().unwrap().clone()
    }

    fn keep_retained(&self, topic: &str, value: Option<&Retained>) {
        let mut kept = self.kept.lock().unwrap();
        kept.retain(|held| held.topic != topic);
        kept.extend(value.cloned());
    }

    fn said(&self, tool: &str, topic: &str, payload: &[u8]) {
        self.said.lock().unwrap().push((tool.into(), topic.into(), payload.into()));
    }
}

/// What is retained of node `n`: 1,500 bytes that follow from it.
pub(crate) fn summary(n: usize) -> Vec<u8> {
    format!("{{\"node\":{n},\"text\":\"{}\"}}", "x".repeat(1_500)).into_bytes()
}

pub(crate) fn desk() -> (Broker, Link, Arc<Desk>) {
    desk_with(Desk::default(), |_| ())
}

pub(crate) fn desk_with(desk: Desk, change: impl FnOnce(&mut Config)) -> (Broker, Link, Arc<Desk>) {
    let mut config = Config { mqtt: "127.0.0.1:0".parse().unwrap(), ..Config::default() };
    change(&mut config);
    let desk = Arc::new(desk);
    let (broker, link) = Broker::start(config, desk.clone()).unwrap();
    (broker, link, desk)
}

pub(crate) fn tool<'a>(version: Version, user: &'a str) -> Hello<'a> {
    Hello { password: "tool", ..Hello::new(version, user) }
}

#[track_caller]
pub(crate) fn open(broker: &Broker, version: Version, user: &str) -> Client {
    Client::open(broker.mqtt_addr(), &tool(version, user))
}

/// Subscribes with the options byte of MQTT 5, or the QoS of 3.1.1, and expects this code.
#[track_caller]
pub(crate) fn listen(client: &mut Client, version: Version, filter: &str, options: u8) {
    client.send(&subscribe(version, filter, options));
    let (first, body) = client.read().expect("SUBACK");
    assert_eq!((first, body[body.len() - 1]), (0x90, options & 1), "{filter}");
}

/// A PUBLISH as it must come.
pub(crate) fn expected(version: Version, packet: &Forward<'_>) -> (u8, Vec<u8>) {
    let mut bytes = vec![];
    packet.write(&mut bytes, version);
    let head = bytes[1..].iter().take_while(|byte| **byte & 0x80 != 0).count() + 2;
    (bytes[0], bytes[head..].to_vec())
}

/// The packet id of a PUBLISH of QoS 1.
pub(crate) fn id_of(body: &[u8]) -> u16 {
    let at = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
    u16::from_be_bytes([body[at], body[at + 1]])
}

pub(crate) fn puback(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    vec![0x40, 2, high, low]
}

#[test]
fn tools_of_both_versions_hear_each_other_at_the_lesser_qos_of_both() {
    let (broker, _link, desk) = desk();
    let mut ears = vec![];
    for (version, qos) in [(V4, 0), (V4, 1), (V5, 0), (V5, 1)] {
        let id = format!("{version:?}-{qos}");
        let mut ear = Client::open(broker.mqtt_addr(), &Hello { client_id: &id, ..tool(version, "reader") });
        listen(&mut ear, version, "apps/+/set", qos);
        ears.push((ear, version, qos));
    }
    let mut said = 0;
    for (version, first) in [(V4, 0x30), (V4, 0x32), (V5, 0x30), (V5, 0x3A)] {
        let mut speaker = open(&broker, version, "nodered");
        speaker.send(&publish(version, first, "apps/lamp/set", 7, b"on"));
        let qos = (first >> 1) & 1;
        if qos == 1 {
            assert_eq!(speaker.read(), Some((0x40, vec![0, 7])));
        }
        said += 1;
        for (ear, version, granted) in &mut ears {
            let (first, body) = ear.read().unwrap();
            let qos = qos.min(*granted);
            let id = if qos == 1 { id_of(&body) } else { 0 };
            let packet = Forward { topic: b"apps/lamp/set", payload: b"on", qos, id, ..Forward::default() };
            assert_eq!((first, body), expected(*version, &packet), "no retain flag and no DUP either");
            if qos == 1 {
                ear.send(&puback(id));
            }
        }
    }
    let all = vec![("nodered".to_owned(), "apps/lamp/set".to_owned(), b"on".to_vec()); said];
    assert_eq!(*desk.said.lock().unwrap(), all);
    assert_eq!((broker.stats().talk_messages.get(), broker.stats().talk_unheard.get()), (4, 0));
    until("the plane is empty", || broker.stats().talk_in_flight_bytes.get() == 0);
}

#[test]
fn what_nodes_and_the_hub_say_keeps_its_qos() {
    let (broker, link, _) = desk();
    let mut ear = open(&broker, V4, "reader");
    listen(&mut ear, V4, "#", 1);
    let mut node_client = Client::open(broker.mqtt_addr(), &Hello::new(V4, "edge-1"));
    let beat = "fleet/v1/edge-1/up/heartbeat";
    node_client.send(&publish(V4, 0x30, beat, 0, b"0"));
    node_client.send(&publish(V4, 0x32, "fleet/v1/edge-1/up/event", 3, b"1"));
    assert_eq!(ear.read().unwrap().0, 0x30);
    let (first, body) = ear.read().unwrap();
    assert_eq!((first, id_of(&body), body.last()), (0x32, 1, Some(&b'1')));
    let publisher = link.publisher();
    publisher.publish(&Topic::Hub(Hub::Rollout("r".into())), Bytes::from_static(b"{}")).unwrap();
    assert_eq!(ear.read().unwrap().0, 0x32);
    publisher.publish(&Topic::Down(node("edge-1"), Down::Ack), Bytes::from_static(b"a")).unwrap();
    let (first, body) = ear.read().unwrap();
    assert_eq!((first, id_of(&body)), (0x32, 3));
}

#[test]
fn properties_travel_with_a_message_and_identifiers_say_whose_subscription_it_is() {
    let (broker, _link, _) = desk();
    let mut ear = open(&broker, V5, "reader");
    for (filter, identifier) in [("apps/#", &[0x0B, 7][..]), ("apps/a", &[0x0B, 0xAC, 2]), ("+/a", &[])] {
        let mut body = vec![0, 9, u8::try_from(identifier.len()).unwrap()];
        body.extend(identifier);
        text(&mut body, filter.as_bytes());
        body.push(1);
        ear.send(&packet(0x82, &body));
        assert_eq!(ear.read(), Some((0x90, vec![0, 9, 0, 1])));
    }
    let mut old = open(&broker, V4, "reader2");
    listen(&mut old, V4, "apps/a", 1);
    let properties: Vec<u8> = [
        &[0x26, 0, 1, b'k', 0, 1, b'v'][..],
        &[0x02, 0, 0, 1, 0],
        &[0x01, 1],
        &[0x26, 0, 1, b'k', 0, 1, b'w'],
        &[0x03, 0, 1, b'c', 0x08, 0, 1, b'r', 0x09, 0, 2, 0, 0xFF],
    ]
    .concat();
    let mut body = vec![];
    text(&mut body, b"apps/a");
    body.extend([0, 1, u8::try_from(properties.len()).unwrap()]);
    body.extend(&properties);
    body.extend(b"payload");
    let mut speaker = open(&broker, V5, "nodered");
    speaker.send(&packet(0x32, &body));
    assert_eq!(speaker.read(), Some((0x40, vec![0, 1])));
    let theirs: Vec<u8> = [&properties[..7], &properties[12..]].concat();
    let (first, body) = ear.read().unwrap();
    let same = |subscriptions: &[u32]| {
        let packet = Forward {
            topic: b"apps/a",
            payload: b"payload",
            qos: 1,
            id: 1,
            expiry: Some(256),
            subscriptions,
            properties: &theirs,
            ..Forward::default()
        };
        expected(V5, &packet)
    };
    assert!([same(&[300, 7]), same(&[7, 300])].contains(&(first, body)), "one copy with both identifiers");
    let packet = Forward { topic: b"apps/a", payload: b"payload", qos: 1, id: 1, ..Forward::default() };
    assert_eq!(old.read(), Some(expected(V4, &packet)), "3.1.1 knows no properties");
}

#[test]
fn a_client_does_not_hear_itself_where_it_does_not_want_to() {
    let (broker, _link, _) = desk();
    let mut client = open(&broker, V5, "nodered");
    listen(&mut client, V5, "apps/#", 4);
    let mut other = Client::open(broker.mqtt_addr(), &Hello { client_id: "other", ..tool(V5, "nodered") });
    client.send(&publish(V5, 0x30, "apps/a", 0, b"own"));
    client.send(&[0xC0, 0]);
    assert_eq!(client.read(), Some((0xD0, vec![])));
    other.send(&publish(V5, 0x30, "apps/a", 0, b"other's"));
    let packet = Forward { topic: b"apps/a", payload: b"other's", ..Forward::default() };
    assert_eq!(client.read(), Some(expected(V5, &packet)));
}

#[test]
fn no_more_is_in_flight_than_the_client_takes_and_any_acknowledgement_makes_room() {
    let (broker, _link, _) = desk();
    let mut hello = tool(V5, "reader").bytes();
    // Receive maximum 2, in place of no properties.
    let at = hello.iter().rposition(|byte| *byte == 60).unwrap() + 1;
    hello.splice(at..=at, [3, 0x21, 0, 2]);
    hello[1] += 3;
    let mut ear = Client::silent(broker.mqtt_addr());
    ear.send(&hello);
    assert_eq!(ear.read().unwrap().0, 0x20);
    listen(&mut ear, V5, "apps/#", 1);
    let mut speaker = open(&broker, V5, "nodered");
    for n in 0..5_u8 {
        speaker.send(&publish(V5, 0x32, "apps/a", 7, &[n]));
        assert_eq!(speaker.read(), Some((0x40, vec![0, 7])));
    }
    until("all are copied", || broker.stats().tool_messages.get() == 5);
    let next = |ear: &mut Client| {
        let (first, body) = ear.read().unwrap();
        assert_eq!(first, 0x32);
        (id_of(&body), *body.last().unwrap())
    };
    assert_eq!([next(&mut ear), next(&mut ear)], [(1, 0), (2, 1)]);
    // An answer to a ping comes before anything that has to wait.
    ear.send(&[0xC0, 0]);
    assert_eq!(ear.read(), Some((0xD0, vec![])));
    ear.send(&puback(77));
    ear.send(&puback(2));
    assert_eq!(next(&mut ear), (3, 2));
    ear.send(&[puback(1), puback(3)].concat());
    assert_eq!([next(&mut ear), next(&mut ear)], [(4, 3), (5, 4)]);
}

#[test]
fn a_tool_that_acknowledges_nothing_is_cut_off_when_its_share_is_full() {
    let (broker, _link, _) = desk_with(Desk::default(), |config| config.tool_budget_bytes = 64 * 1024);
    let mut deaf = open(&broker, V5, "reader");
    listen(&mut deaf, V5, "apps/#", 1);
    let mut speaker = open(&broker, V5, "nodered");
    let mut say = || {
        speaker.send(&publish(V5, 0x32, "apps/a", 7, &[1; 100]));
        assert_eq!(speaker.read(), Some((0x40, vec![0, 7])));
    };
    // Its window is filled first, so that only its own silence is in the way of the rest.
    for id in 1..=64 {
        say();
        let (first, body) = deaf.read().unwrap();
        assert_eq!((first, id_of(&body)), (0x32, id));
    }
    let mut sent = 0;
    while broker.stats().reason(Reason::ToolSlow) == 0 {
        say();
        sent += 1;
        assert!(sent < 2_000, "it was never cut off");
    }
    assert_eq!(deaf.read(), Some((0xE0, vec![0x97])), "its window and no more");
    assert_eq!(deaf.read(), None);
}

#[test]
fn the_will_of_a_tool_is_said_when_it_is_lost_and_judged_when_it_connects() {
    let (broker, _link, desk) = desk();
    let mut ear = open(&broker, V4, "reader");
    listen(&mut ear, V4, "#", 1);
    for version in [V4, V5] {
        let hello = |will| Hello { will: Some(will), ..tool(version, "nodered") };
        let mut polite = Client::open(broker.mqtt_addr(), &hello(("apps/gone", b"unsaid", 0x08)));
        polite.send(&[0xE0, 0]);
        polite.expect_end();
        drop(Client::open(broker.mqtt_addr(), &hello(("apps/gone", b"lost", 0x08))));
        let (first, body) = ear.read().unwrap();
        assert_eq!(first, 0x32);
        assert!(body.ends_with(b"lost"));
        let answer = |will| Client::hello(broker.mqtt_addr(), &hello(will)).read().unwrap().1[1];
        for (will, code) in [
            (("fleet/v1/edge-1/up/death", &b"w"[..], 0), 0x87),
            (("other/gone", b"w", 0), 0x87),
            (("apps/+", b"w", 0), 0x87),
            (("apps/gone", b"w", 0x10), 0x9B),
            (("", b"w", 0), 0x90),
        ] {
            assert_eq!(answer(will), if version == V5 { code } else { 5 }, "{will:?}");
        }
    }
    until("all are counted", || broker.stats().reason(Reason::WillDenied) == 10);
    let said = desk.said.lock().unwrap();
    assert_eq!(*said, vec![("nodered".to_owned(), "apps/gone".to_owned(), b"lost".to_vec()); 2]);
}

#[test]
fn a_tool_that_speaks_too_fast_is_slowed_down_and_loses_nothing() {
    const MESSAGES: u16 = 300;
    let limit = PublishLimit { messages_per_s: 200, bytes_per_s: 0, burst: Duration::from_millis(200) };
    let (broker, _link, _) = desk_with(Desk::default(), |config| config.tool_publish_limit = limit);
    let mut ear = open(&broker, V4, "reader");
    listen(&mut ear, V4, "apps/#", 0);
    let mut speaker = Client::open(broker.mqtt_addr(), &Hello { keepalive: 1, ..tool(V4, "nodered") });
    let started = clock::now();
    for n in 1..=MESSAGES {
        speaker.send(&publish(V4, 0x32, "apps/a", n, &n.to_be_bytes()));
    }
    let mut acknowledged = 0;
    while acknowledged < MESSAGES {
        match speaker.read().expect("it is not cut off") {
            (0x40, id) => {
                acknowledged += 1;
                assert_eq!(id, acknowledged.to_be_bytes());
            }
            (0xD0, _) => {}
            other => panic!("{other:?}"),
        }
    }
    for n in 1..=MESSAGES {
        assert!(ear.read().unwrap().1.ends_with(&n.to_be_bytes()));
    }
    // One read may bring all of them; the next has to wait for it.
    speaker.send(&publish(V4, 0x32, "apps/a", 999, b"the last"));
    while speaker.read() != Some((0x40, 999_u16.to_be_bytes().to_vec())) {}
    let took = clock::now().duration_since(started);
    assert!(broker.stats().throttles.get() > 0 && took > Duration::from_millis(500), "{took:?}");
}

#[test]
fn the_hub_announces_outside_the_fleet_and_nowhere_else() {
    let (broker, link, desk) = desk();
    let publisher = link.publisher();
    let config = "homeassistant/device/edge-1/config";
    publisher.announce(config, b"{}", true).unwrap();
    for bad in ["fleet/v1/hub/node/a", "fleet", "$SYS/x", "a/+", "", "é", &"x".repeat(300)] {
        assert_eq!(publisher.announce(bad, b"x", false), Err(PublishError::NotForTools), "{bad}");
    }
    let mut ear = open(&broker, V5, "reader");
    listen(&mut ear, V5, "homeassistant/#", 1);
    let packet = Forward {
        topic: config.as_bytes(),
        payload: b"{}",
        qos: 1,
        id: 1,
        retain: true,
        ..Forward::default()
    };
    assert_eq!(ear.read(), Some(expected(V5, &packet)));
    publisher.announce(config, b"", true).unwrap();
    let cleared = Forward { payload: b"", id: 2, retain: false, ..packet };
    assert_eq!(ear.read(), Some(expected(V5, &cleared)));
    assert_eq!(broker.stats().retained_topics.get(), 0);
    assert!(desk.kept.lock().unwrap().is_empty() && desk.said.lock().unwrap().is_empty());
}

#[test]
fn kinds_that_nobody_hears_are_not_wanted() {
    let (broker, link, _) = desk();
    let publisher = link.publisher();
    let wanted = || HubKind::ALL.map(|kind| publisher.wanted_kind(kind));
    assert_eq!(wanted(), [false; 6]);
    let mut ear = open(&broker, V4, "reader");
    listen(&mut ear, V4, "fleet/v1/hub/latest/edge-1", 0);
    assert_eq!(wanted(), [false, true, false, false, false, false]);
    publisher.publish(&Topic::Hub(Hub::Node(node("edge-1"))), Bytes::from_static(b"{}")).unwrap();
    assert_eq!(broker.stats().hub_unheard.get(), 1);
    drop(ear);
    until("nobody is there", || wanted() == [false; 6]);
}

#[test]
fn who_wants_to_be_remembered_is_told_that_nobody_is() {
    let (broker, _link, _) = desk();
    let mut remembered = tool(V4, "nodered").bytes();
    remembered[9] &= !2;
    let mut client = Client::silent(broker.mqtt_addr());
    client.send(&remembered);
    assert_eq!(client.read(), Some((0x20, vec![0, 5])));
    client.expect_end();
    until("it is counted", || broker.stats().reason(Reason::Persistent) == 1);
    let mut client = Client::hello(broker.mqtt_addr(), &tool(V5, "nodered"));
    let (_, body) = client.read().unwrap();
    for property in [&[0x11, 0, 0, 0, 0][..], &[0x24, 1], &[0x25, 1], &[0x29, 1], &[0x2A, 0], &[0x22, 0, 0]] {
        assert!(body.windows(property.len()).any(|window| window == property), "{property:x?} in {body:x?}");
    }
}
