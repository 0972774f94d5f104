//! Third-party sessions: they hear exactly what was said, inside their grants, and disturb nobody.

use bytes::Bytes;
use fleet_schemas::{
    Topic, limits,
    topic::{Down, Hub, Up},
};

use super::*;
use crate::{PublishError, Reason};

const ALL_UP: &str = "fleet/v1/+/up/#";

fn hello<'a>(version: Version, user: &'a str, client_id: &'a str) -> Hello<'a> {
    Hello { user, client_id, password: "tool", ..Hello::new(version, user) }
}

/// A tool that subscribed to one filter, which was granted.
#[track_caller]
fn listening(broker: &Broker, version: Version, user: &str, client_id: &str, filter: &str) -> Client {
    let mut tool = Client::open(broker.mqtt_addr(), &hello(version, user, client_id));
    tool.send(&subscribe(version, filter, 0));
    let granted = if version == V5 { vec![0, 9, 0, 0] } else { vec![0, 9, 0] };
    assert_eq!(tool.read(), Some((0x90, granted)));
    tool
}

/// The next message of a tool: topic and payload.
#[track_caller]
fn heard(tool: &mut Client, version: Version) -> (String, Vec<u8>) {
    let (first, body) = tool.read().expect("the session lives");
    assert_eq!(first, 0x30, "QoS 0, not retained: {body:x?}");
    let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
    let topic = String::from_utf8(body[2..2 + length].to_vec()).unwrap();
    let properties = usize::from(version == V5);
    assert!(properties == 0 || body[2 + length] == 0);
    (topic, body[2 + length + properties..].to_vec())
}

/// Message `i` of a node: every length and every byte follow from both.
fn payload(node: usize, i: u32) -> Vec<u8> {
    let length = (i * 7 + u32::try_from(node).unwrap()) % 600;
    let bytes = (0..length).map(|at| u8::try_from((at * 31 + i + length) % 251).unwrap());
    i.to_be_bytes().into_iter().chain(bytes).collect()
}

/// Publishes `each` messages of `nodes` nodes as fast as they are acknowledged.
fn publish_at_speed(addr: SocketAddr, nodes: usize, each: u32) -> Vec<thread::JoinHandle<Client>> {
    let run = move |n: usize| {
        let id = format!("edge-{n}");
        let mut client = Client::open(addr, &Hello::new(V4, &id));
        let topic = format!("fleet/v1/{id}/up/telemetry");
        for chunk in (0..each).collect::<Vec<_>>().chunks(100) {
            let packets: Vec<u8> =
                chunk.iter().flat_map(|i| publish(V4, 0x32, &topic, 1, &payload(n, *i))).collect();
            client.send(&packets);
            chunk.iter().for_each(|_| assert_eq!(client.read(), Some((0x40, vec![0, 1]))));
        }
        client
    };
    (0..nodes).map(|n| thread::spawn(move || run(n))).collect()
}

/// Reads all that [`publish_at_speed`] said, and checks order and every byte.
fn hear_all(tool: &mut Client, version: Version, nodes: usize, each: u32) {
    let mut next = vec![0_u32; nodes];
    for _ in 0..nodes * each as usize {
        let (topic, bytes) = heard(tool, version);
        let node = topic.strip_prefix("fleet/v1/edge-").and_then(|rest| rest.strip_suffix("/up/telemetry"));
        let node: usize = node.expect("a node's topic").parse().unwrap();
        assert!(bytes == payload(node, next[node]), "message {} of {topic} differs", next[node]);
        next[node] += 1;
    }
    assert_eq!(next, vec![each; nodes]);
}

#[test]
fn tools_hear_every_message_of_every_node_whole_and_in_order_at_once_or_late() {
    const NODES: usize = 8;
    const EACH: u32 = 2_500;
    let (broker, mut link) = plane();
    let now: Vec<_> = [V4, V5]
        .map(|version| {
            let mut tool = listening(&broker, version, "grafana", &format!("{version:?}"), ALL_UP);
            thread::spawn(move || {
                hear_all(&mut tool, version, NODES, EACH);
                tool
            })
        })
        .into();
    // It reads only when the hub has taken everything and the ring has let go of it.
    let mut late = listening(&broker, V5, "nodered", "late", "fleet/v1/+/up/telemetry");
    let senders = publish_at_speed(broker.mqtt_addr(), NODES, EACH);
    let messages = receive(&mut link, NODES * EACH as usize);
    let clients: Vec<_> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
    drop(messages);
    assert_eq!(broker.stats().in_flight_bytes.get(), 0);
    let _tools: Vec<_> = now.into_iter().map(|tool| tool.join().unwrap()).collect();
    hear_all(&mut late, V5, NODES, EACH);
    let stats = broker.stats();
    assert_eq!((stats.tools.get(), stats.sessions.get()), (3, clients.len() as u64));
    assert_eq!(stats.tool_messages.get(), 3 * (NODES as u64) * u64::from(EACH));
    assert_eq!((stats.router_foreign.get(), stats.router_recovered.get()), (0, 0));
    until("nothing waits", || stats.tool_queue_bytes.get() == 0);
}

#[test]
fn an_empty_payload_and_the_largest_packet_reach_a_tool() {
    let (broker, _link) = plane();
    let mut tool = listening(&broker, V4, "grafana", "g", "fleet/v1/edge-1/up/#");
    let topic = "fleet/v1/edge-1/up/backfill";
    let mut node = Client::open(broker.mqtt_addr(), &Hello::new(V4, "edge-1"));
    let largest = vec![7; limits::PACKET_BYTES - 4 - 2 - topic.len()];
    node.send(&publish(V4, 0x30, topic, 0, b""));
    node.send(&publish(V4, 0x30, topic, 0, &largest));
    assert_eq!(heard(&mut tool, V4), (topic.to_owned(), vec![]));
    assert!(heard(&mut tool, V4) == (topic.to_owned(), largest));
}

#[test]
fn a_filter_is_judged_by_the_grants_and_refused_with_its_code() {
    let (broker, _link) = plane();
    let filters = [
        ("fleet/v1/+/up/#", 1, 1),
        ("fleet/v1/edge-1/up/telemetry", 1, 1),
        ("fleet/v1/#", 0x80, 0x87),
        ("#", 0x80, 0x87),
        ("fleet/v1/hub/#", 0x80, 0x87),
        ("fleet/v1/+/down/#", 0x80, 0x87),
        ("$share/g/fleet/v1/+/up/#", 0x80, 0x9E),
        ("$SYS/#", 0x80, 0x87),
        ("fleet/v1/+/up/#/x", 0x80, 0x8F),
        ("fleet/v1/a+/up/x", 0x80, 0x8F),
        ("é", 0x80, 0x8F),
    ];
    for version in [V4, V5] {
        let mut tool = Client::open(broker.mqtt_addr(), &hello(version, "grafana", "g"));
        let mut body = vec![0, 9];
        body.extend((version == V5).then_some(0));
        for (filter, _, _) in filters {
            text(&mut body, filter.as_bytes());
            body.push(2);
        }
        tool.send(&packet(0x82, &body));
        let (first, answer) = tool.read().unwrap();
        let codes = filters.map(|(_, v4, v5)| if version == V5 { v5 } else { v4 });
        assert_eq!((first, &answer[answer.len() - codes.len()..]), (0x90, &codes[..]));
    }
    assert_eq!(broker.stats().reason(Reason::SubscribeDenied), 2 * 9);
}

#[test]
fn a_tool_has_so_many_filters_and_no_more() {
    let (broker, _link) = plane_with(|config| config.max_tool_filters = 2);
    let mut tool = Client::open(broker.mqtt_addr(), &hello(V5, "grafana", "g"));
    for (node, code) in [("a", 0), ("b", 0), ("a", 0), ("c", 0x97)] {
        tool.send(&subscribe(V5, &format!("fleet/v1/{node}/up/#"), 0));
        assert_eq!(tool.read(), Some((0x90, vec![0, 9, 0, code])), "{node}");
    }
    assert_eq!(broker.stats().reason(Reason::FilterLimit), 1);
}

#[test]
fn what_is_said_for_a_node_is_heard_as_if_the_node_had_said_it() {
    let (broker, mut link) = plane();
    let voice = link.voice();
    let mut tool = listening(&broker, V5, "grafana", "tool-1", ALL_UP);
    voice.say(&node("field-1"), Up::Birth, b"born").unwrap();
    voice.say(&node("field-1"), Up::Heartbeat, b"lives").unwrap();
    let told: Vec<_> =
        receive(&mut link, 2).into_iter().map(|m| (m.topic.to_string(), m.payload.to_vec())).collect();
    let expected = [("birth", "born"), ("heartbeat", "lives")]
        .map(|(up, payload)| (format!("fleet/v1/field-1/up/{up}"), payload.as_bytes().to_vec()));
    assert_eq!(told, expected);
    expected.into_iter().for_each(|message| assert_eq!(heard(&mut tool, V5), message));
    assert_eq!(broker.stats().up_messages.get(), 2);

    // A node with a session speaks for itself.
    let _edge = Client::open(broker.mqtt_addr(), &Hello::new(V5, "edge-1"));
    assert_eq!(voice.say(&node("edge-1"), Up::Birth, b""), Err(PublishError::Speaks));
    let large = vec![0; limits::PACKET_BYTES];
    assert_eq!(voice.say(&node("field-1"), Up::Birth, &large), Err(PublishError::TooLarge));
}

#[test]
fn what_a_tool_unsubscribed_or_never_asked_for_it_does_not_hear() {
    let (broker, mut link) = plane();
    let mut tool = listening(&broker, V5, "nodered", "n", "fleet/v1/edge-1/up/event");
    tool.send(&subscribe(V5, "fleet/v1/hub/#", 0));
    tool.read().unwrap();
    let mut node = Client::open(broker.mqtt_addr(), &Hello::new(V4, "edge-1"));
    node.send(&publish(V4, 0x30, "fleet/v1/edge-1/up/telemetry", 0, b"not asked for"));
    node.send(&publish(V4, 0x30, "fleet/v1/edge-1/up/event", 0, b"asked for"));
    assert_eq!(heard(&mut tool, V5).1, b"asked for");
    let mut unsubscribe = vec![0, 3, 0];
    text(&mut unsubscribe, b"fleet/v1/edge-1/up/event");
    text(&mut unsubscribe, b"fleet/v1/edge-1/up/birth");
    tool.send(&packet(0xA2, &unsubscribe));
    assert_eq!(tool.read(), Some((0xB0, vec![0, 3, 0, 0, 0x11])));
    node.send(&publish(V4, 0x30, "fleet/v1/edge-1/up/event", 0, b"late"));
    assert_eq!(&receive(&mut link, 3)[2].payload[..], b"late");
    let rollout = Topic::Hub(Hub::Rollout("r1".into()));
    link.publisher().publish(&rollout, Bytes::from_static(b"{}")).unwrap();
    assert_eq!(heard(&mut tool, V5), (rollout.to_string(), b"{}".to_vec()));
}

#[test]
fn the_hub_s_own_topics_reach_tools_and_cost_nothing_while_nobody_wants_them() {
    let (broker, link) = plane();
    let (publisher, stats) = (link.publisher(), broker.stats());
    let topic = |id| Topic::Hub(Hub::Samples(node(id)));
    publisher.publish(&topic("edge-1"), Bytes::from_static(b"[]")).unwrap();
    assert_eq!((publisher.hub_wanted(), stats.hub_unheard.get()), (false, 1));
    let _raw = listening(&broker, V4, "grafana", "g", ALL_UP);
    assert!(!publisher.hub_wanted(), "what nodes say is none of the hub's topics");
    let mut tool = listening(&broker, V4, "nodered", "n", "fleet/v1/hub/samples/edge-1");
    assert!(publisher.hub_wanted() && publisher.wanted(&topic("edge-1")));
    assert!(!publisher.wanted(&topic("edge-2")));
    let messages = (0..1_000_u32).flat_map(|i| {
        ["edge-2", "edge-1"].map(|id| (Topic::Hub(Hub::Samples(node(id))), Bytes::from(format!("[{i}]"))))
    });
    assert_eq!(publisher.publish_many(messages), 2_000);
    for i in 0..1_000 {
        let expected = ("fleet/v1/hub/samples/edge-1".to_owned(), format!("[{i}]").into_bytes());
        assert_eq!(heard(&mut tool, V4), expected);
    }
    until("the plane is empty", || stats.hub_in_flight_bytes.get() == 0);
    assert_eq!((stats.hub_dropped.get(), stats.router_recovered.get()), (0, 0));
    tool.send(&[0xE0, 0]);
    tool.expect_end();
    until("nobody wants it", || !publisher.hub_wanted());
}

#[test]
fn a_tool_that_was_granted_it_hears_what_nodes_are_told() {
    let (broker, link) = plane();
    let mut tool = listening(&broker, V5, "nodered", "n", "fleet/v1/+/down/#");
    let topic = Topic::Down(node("edge-1"), Down::Command);
    link.publisher().publish(&topic, Bytes::from_static(b"order")).unwrap();
    assert_eq!(heard(&mut tool, V5), (topic.to_string(), b"order".to_vec()));
}

#[test]
fn a_tool_that_does_not_read_is_cut_off_and_nobody_else_notices() {
    const NODES: usize = 4;
    const EACH: u32 = 2_000;
    let (broker, mut link) = plane_with(|config| config.tool_budget_bytes = 256 * 1024);
    let stats = broker.stats();
    let mut deaf = listening(&broker, V5, "grafana", "deaf", ALL_UP);
    let mut node = Client::open(broker.mqtt_addr(), &Hello::new(V4, "big"));
    let large = vec![3; 30 * 1024];
    let mut sent = 0;
    // As much as the sockets between hold, and then its share.
    while stats.reason(Reason::ToolSlow) == 0 {
        node.send(&publish(V4, 0x32, "fleet/v1/big/up/backfill", 1, &large));
        assert_eq!(node.read(), Some((0x40, vec![0, 1])));
        assert_eq!(receive(&mut link, 1)[0].payload, large);
        sent += 1;
        assert!(sent < 2_000, "it was never cut off");
    }
    let mut last = None;
    while let Some(packet) = deaf.read() {
        last = Some(packet);
    }
    assert_eq!(last, Some((0xE0, vec![0x97])));
    until("it is gone", || stats.tools.get() == 0 && stats.tool_queue_bytes.get() == 0);
    // Another one that never reads, while nodes speak at full speed.
    let _deaf = listening(&broker, V4, "grafana", "deaf", ALL_UP);
    let senders = publish_at_speed(broker.mqtt_addr(), NODES, EACH);
    receive(&mut link, NODES * EACH as usize);
    let clients: Vec<_> = senders.into_iter().map(|sender| sender.join().unwrap()).collect();
    assert_eq!(stats.sessions.get(), clients.len() as u64 + 1);
    assert_eq!((stats.router_rebuilds.get(), stats.in_flight_bytes.get()), (0, 0));
}

#[test]
fn a_killed_router_ends_tools_which_come_back_while_nodes_stay() {
    let (broker, mut link) = plane();
    let stats = broker.stats();
    let mut node = Client::open(broker.mqtt_addr(), &Hello::new(V4, "edge-1"));
    for kills in 1..=3_u8 {
        let mut tool = listening(&broker, V5, "grafana", "g", ALL_UP);
        let mut old = listening(&broker, V4, "nodered", "n", "fleet/v1/#");
        node.send(&publish(V4, 0x32, "fleet/v1/edge-1/up/event", 1, &[kills]));
        assert_eq!(node.read(), Some((0x40, vec![0, 1])));
        assert_eq!(&receive(&mut link, 1)[0].payload[..], [kills]);
        assert_eq!(heard(&mut tool, V5).1, [kills]);
        assert_eq!(heard(&mut old, V4).1, [kills]);
        broker.running.as_ref().unwrap().1.kill_router();
        assert_eq!(tool.read(), Some((0xE0, vec![0x8B])));
        tool.expect_end();
        old.expect_end();
    }
    until("the last router is replaced too", || stats.router_rebuilds.get() == 3);
    assert_eq!(stats.reason(Reason::RouterReplaced), 6);
    assert_eq!((stats.sessions_opened.get(), stats.sessions.get()), (1, 1));
    until("the tools are gone", || stats.tools.get() == 0);
}

#[test]
fn a_tool_is_let_in_by_its_password_and_without_a_will() {
    let (broker, _link) = plane();
    for (version, bad, denied) in [(V4, 4, 5), (V5, 0x86, 0x87)] {
        let answer = |hello: &Hello<'_>| Client::hello(broker.mqtt_addr(), hello).read().unwrap().1[1];
        assert_eq!(answer(&Hello { password: "wrong", ..hello(version, "grafana", "g") }), bad);
        let will = Some(("fleet/v1/edge-1/up/death", &b"w"[..], 0));
        assert_eq!(answer(&Hello { will, ..hello(version, "grafana", "g") }), denied);
        let long = "x".repeat(200);
        assert_eq!(answer(&hello(version, "grafana", &long)), if version == V5 { 0x85 } else { 2 });
    }
    let mut remembered = hello(V4, "grafana", "").bytes();
    remembered[9] &= !2;
    let mut client = Client::silent(broker.mqtt_addr());
    client.send(&remembered);
    assert_eq!(client.read(), Some((0x20, vec![0, 2])), "it wants to be remembered and has no name");
    let mut nameless = Client::open(broker.mqtt_addr(), &hello(V4, "grafana", ""));
    let mut another = Client::hello(broker.mqtt_addr(), &hello(V5, "grafana", ""));
    let (_, body) = another.read().unwrap();
    assert!(body.windows(8).any(|window| window == b"\x12\0\x06tool-"), "{body:x?}");
    for client in [&mut nameless, &mut another] {
        client.send(&[0xC0, 0]);
        assert_eq!(client.read(), Some((0xD0, vec![])));
    }
    assert_eq!((broker.stats().tools.get(), broker.stats().reason(Reason::WillDenied)), (2, 2));
}

#[test]
fn a_tool_never_speaks_for_the_fleet_even_where_it_was_granted() {
    let (broker, mut link) = plane();
    let mut tool = Client::open(broker.mqtt_addr(), &hello(V5, "nodered", "n"));
    for first in [0x32, 0x33] {
        tool.send(&publish(V5, first, "fleet/v1/edge-1/up/event", 7, b"x"));
        assert_eq!(tool.read(), Some((0x40, vec![0, 7, 0x87])));
    }
    tool.send(&publish(V5, 0x30, "fleet/v1/edge-1/up/event", 0, b"dropped and counted"));
    tool.send(&publish(V5, 0x34, "fleet/v1/edge-1/up/event", 7, b"x"));
    assert_eq!(tool.read(), Some((0xE0, vec![0x9B])));
    for first in [0x30, 0x32] {
        let mut tool = Client::open(broker.mqtt_addr(), &hello(V4, "grafana", "g"));
        tool.send(&publish(V4, first, "fleet/v1/edge-1/up/event", 7, b"x"));
        tool.expect_end();
    }
    assert_eq!(link.recv(&mut vec![], 1, Duration::from_millis(100)), Ok(0));
    until("all are counted", || broker.stats().reason(Reason::PublishDenied) == 5);
}

#[test]
fn the_gate_has_room_for_so_many_tools_and_one_session_for_each() {
    let (broker, _link) = plane_with(|config| config.max_tools = 2);
    let addr = broker.mqtt_addr();
    let mut first = listening(&broker, V5, "grafana", "same", ALL_UP);
    let mut other = listening(&broker, V5, "nodered", "same", ALL_UP);
    let mut full = Client::hello(addr, &hello(V5, "grafana", "third"));
    assert_eq!(full.read().unwrap().1[1], 0x89);
    let mut again = listening(&broker, V5, "grafana", "same", ALL_UP);
    assert_eq!(first.read(), Some((0xE0, vec![0x8E])));
    let mut node = Client::open(addr, &Hello::new(V4, "edge-1"));
    node.send(&publish(V4, 0x30, "fleet/v1/edge-1/up/event", 0, b"x"));
    assert_eq!(heard(&mut again, V5).1, b"x");
    assert_eq!(heard(&mut other, V5).1, b"x", "another user's session of that name stays");
    assert_eq!((broker.stats().reason(Reason::Busy), broker.stats().reason(Reason::TakenOver)), (1, 1));
}

#[test]
fn tools_that_come_and_go_leave_the_router_and_its_links_behind_in_order() {
    let (broker, mut link) = plane();
    let mut node = Client::open(broker.mqtt_addr(), &Hello::new(V4, "edge-1"));
    let mut stays = listening(&broker, V4, "nodered", "stays", ALL_UP);
    for i in 0..60_u8 {
        // They leave with much unread, politely or not.
        let mut tool = listening(&broker, V4, "grafana", &format!("g-{}", i % 7), ALL_UP);
        for _ in 0..50 {
            node.send(&publish(V4, 0x30, "fleet/v1/edge-1/up/event", 0, &[i]));
        }
        if i % 2 == 0 {
            tool.send(&[0xE0, 0]);
        }
        drop(tool);
        (0..50).for_each(|_| assert_eq!(heard(&mut stays, V4).1, [i]));
        receive(&mut link, 50);
    }
    let stats = broker.stats();
    until("only one is left", || stats.tools.get() == 1);
    until("and one that hears", || broker.gate.ears.alive() == 1);
    assert!(broker.gate.ears.named() < 61, "names are used again");
    assert_eq!((stats.tools_opened.get(), stats.router_rebuilds.get()), (61, 0));
}

#[test]
fn shutdown_says_goodbye_to_tools() {
    let (broker, _link) = plane();
    let mut tool = listening(&broker, V5, "grafana", "g", ALL_UP);
    let closing = thread::spawn(move || broker.shutdown());
    assert_eq!(tool.read(), Some((0xE0, vec![0x8B])));
    drop(tool);
    closing.join().unwrap();
}
