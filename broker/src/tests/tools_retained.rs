//! Retained messages: the hub's own, those of tools, and answers that are longer than a tool reads at once.

use super::{
    tools_talk::{Desk, desk, desk_with, expected, id_of, listen, open, puback, summary, tool},
    *,
};
use crate::{Reason, gate::encode::Forward};

/// Publishes at QoS 1 and expects this answer.
#[track_caller]
fn keep(client: &mut Client, version: Version, topic: &str, payload: &[u8], answer: &[u8]) {
    client.send(&publish(version, 0x33, topic, 7, payload));
    assert_eq!(client.read(), Some((0x40, [&[0, 7], answer].concat())));
}

fn retained<'a>(topic: &'a str, payload: &'a [u8]) -> Forward<'a> {
    Forward { topic: topic.as_bytes(), payload, retain: true, ..Forward::default() }
}

#[test]
fn a_retained_message_answers_subscriptions_until_an_empty_one_clears_it() {
    let (broker, _link, _) = desk();
    for version in [V4, V5] {
        let mut speaker = open(&broker, version, "nodered");
        keep(&mut speaker, version, "apps/a", b"old", &[]);
        keep(&mut speaker, version, "apps/a", b"new", &[]);
        let mut ear = open(&broker, version, "reader");
        listen(&mut ear, version, "apps/+", 0);
        assert_eq!(ear.read(), Some(expected(version, &retained("apps/a", b"new"))));
        // Asked for again, it is given again; what is live has no flag.
        listen(&mut ear, version, "apps/+", 0);
        assert_eq!(ear.read(), Some(expected(version, &retained("apps/a", b"new"))));
        keep(&mut speaker, version, "apps/a", b"live", &[]);
        let live = Forward { retain: false, ..retained("apps/a", b"live") };
        assert_eq!(ear.read(), Some(expected(version, &live)));
        // An empty message that is not retained is a message and clears nothing.
        speaker.send(&publish(version, 0x30, "apps/a", 0, b""));
        let empty = Forward { payload: b"", ..live };
        assert_eq!(ear.read(), Some(expected(version, &empty)));
        assert_eq!(broker.stats().retained_topics.get(), 1);
        keep(&mut speaker, version, "apps/a", b"", &[]);
        assert_eq!(ear.read(), Some(expected(version, &empty)));
        assert_eq!(broker.stats().retained_topics.get(), 0);
        listen(&mut ear, version, "apps/a", 0);
        keep(&mut speaker, version, "apps/z", b"z", &[]);
        assert_eq!(
            ear.read(),
            Some(expected(version, &Forward { retain: false, ..retained("apps/z", b"z") }))
        );
        keep(&mut speaker, version, "apps/z", b"", &[]);
        assert_eq!(
            ear.read(),
            Some(expected(version, &Forward { retain: false, ..retained("apps/z", b"") }))
        );
    }
}

#[test]
fn subscription_options_of_mqtt_5_say_what_is_answered_and_how() {
    let (broker, _link, _) = desk();
    let mut speaker = open(&broker, V5, "nodered");
    keep(&mut speaker, V5, "apps/a", b"kept", &[]);
    let mut ear = open(&broker, V5, "reader");
    listen(&mut ear, V5, "apps/#", 0x20);
    listen(&mut ear, V5, "apps/#", 0x10);
    // As it was published.
    listen(&mut ear, V5, "apps/a", 0x18);
    assert_eq!(ear.read(), Some(expected(V5, &retained("apps/a", b"kept"))), "only where it was new");
    keep(&mut speaker, V5, "apps/a", b"live", &[]);
    assert_eq!(ear.read(), Some(expected(V5, &retained("apps/a", b"live"))));
    speaker.send(&publish(V5, 0x30, "apps/a", 0, b"not"));
    assert_eq!(ear.read(), Some(expected(V5, &Forward { retain: false, ..retained("apps/a", b"not") })));
}

#[test]
fn the_hub_s_retained_topics_answer_all_of_them_however_slowly_they_are_read() {
    const NODES: usize = 10_000;
    let slow = |config: &mut Config| config.tool_budget_bytes = 512 * 1024;
    let (broker, _link, _) = desk_with(Desk { nodes: NODES, ..Desk::default() }, slow);
    for (version, qos) in [(V4, 0), (V5, 1)] {
        let mut ear = open(&broker, version, "reader");
        listen(&mut ear, version, "fleet/v1/hub/node/+", qos);
        // Nothing is read until its share is full and waits.
        until("its share is half full", || broker.stats().tool_queue_bytes.get() > 32 * 1024);
        for n in 0..NODES {
            let (first, body) = ear.read().expect("it is not cut off");
            let id = if qos == 1 { id_of(&body) } else { 0 };
            let topic = format!("fleet/v1/hub/node/edge-{n:05}");
            let payload = summary(n);
            assert!(
                (first, body) == expected(version, &Forward { qos, id, ..retained(&topic, &payload) }),
                "{n}"
            );
            if qos == 1 {
                ear.send(&puback(id));
            }
        }
        listen(&mut ear, version, "fleet/v1/hub/node/edge-00007", 0);
        let payload = summary(7);
        let one = retained("fleet/v1/hub/node/edge-00007", &payload);
        assert_eq!(ear.read(), Some(expected(version, &one)));
    }
    assert_eq!(broker.stats().reason(Reason::ToolSlow), 0);
    until("nothing waits", || broker.stats().tool_queue_bytes.get() == 0);
}

#[test]
fn ten_thousand_retained_messages_of_tools_answer_whole_over_a_restart_and_no_more_are_taken() {
    const TOPICS: usize = 10_000;
    let fast = |config: &mut Config| config.tool_publish_limit.messages_per_s = 0;
    let (broker, _link, first_desk) = desk_with(Desk::default(), fast);
    let mut speaker = open(&broker, V5, "nodered");
    let topics: Vec<_> = (0..TOPICS).map(|n| format!("apps/{n:05}")).collect();
    for topics in topics.chunks(100) {
        let packets: Vec<u8> =
            topics.iter().flat_map(|topic| publish(V5, 0x33, topic, 7, topic.as_bytes())).collect();
        speaker.send(&packets);
        topics.iter().for_each(|_| assert_eq!(speaker.read(), Some((0x40, vec![0, 7]))));
    }
    keep(&mut speaker, V5, "apps/one-more", b"x", &[0x97]);
    let mut old = open(&broker, V4, "nodered2");
    old.send(&publish(V4, 0x33, "apps/one-more", 7, b"x"));
    old.expect_end();
    let mut ear = open(&broker, V4, "reader");
    listen(&mut ear, V4, "apps/one-more", 0);
    speaker.send(&publish(V5, 0x31, "apps/one-more", 0, b"said, not kept"));
    assert!(ear.read().unwrap().1.ends_with(b"said, not kept"));
    until("all are counted", || broker.stats().reason(Reason::RetainedFull) == 3);
    let kept = first_desk.kept.lock().unwrap().clone();
    broker.shutdown();
    let (broker, _link, _) = desk_with(Desk { kept: kept.into(), ..Desk::default() }, fast);
    let mut ear = open(&broker, V4, "reader");
    listen(&mut ear, V4, "apps/#", 0);
    for topic in &topics {
        assert_eq!(ear.read(), Some(expected(V4, &retained(topic, topic.as_bytes()))));
    }
    let mut speaker = open(&broker, V5, "nodered");
    keep(&mut speaker, V5, "apps/00000", b"", &[]);
    let cleared = Forward { retain: false, ..retained("apps/00000", b"") };
    assert_eq!(ear.read(), Some(expected(V4, &cleared)), "and nothing between");
}

#[test]
fn a_retained_will_is_there_after_a_shutdown_of_the_hub() {
    let (broker, _link, desk) = desk();
    let will = Some(("apps/status", &b"offline"[..], 0x28));
    let mut client = Client::open(broker.mqtt_addr(), &Hello { will, ..tool(V5, "nodered") });
    keep(&mut client, V5, "apps/status", b"online", &[]);
    assert_eq!(desk.kept.lock().unwrap()[0].payload, b"online");
    let closing = thread::spawn(move || broker.shutdown());
    assert_eq!(client.read(), Some((0xE0, vec![0x8B])));
    drop(client);
    closing.join().unwrap();
    let kept = desk.kept.lock().unwrap();
    assert_eq!((kept.len(), &kept[0].payload[..], kept[0].qos), (1, &b"offline"[..], 1));
}

#[test]
fn what_is_retained_for_a_while_says_how_long_and_then_is_gone() {
    let (broker, _link, desk) = desk();
    let mut speaker = open(&broker, V5, "nodered");
    let said = |seconds: u8| {
        let mut body = vec![];
        text(&mut body, b"apps/a");
        body.extend([0, 7, 5, 2, 0, 0, 0, seconds]);
        body.extend(b"x");
        packet(0x33, &body)
    };
    speaker.send(&said(200));
    assert_eq!(speaker.read(), Some((0x40, vec![0, 7])));
    let mut ear = open(&broker, V5, "reader");
    listen(&mut ear, V5, "apps/+", 0);
    let (_, body) = ear.read().unwrap();
    assert_eq!(body[8..12], [5, 2, 0, 0]);
    assert!((190..=200).contains(&body[13]), "{body:x?}");
    speaker.send(&said(1));
    assert_eq!(speaker.read(), Some((0x40, vec![0, 7])));
    ear.read().unwrap();
    keep(&mut speaker, V5, "apps/b", b"stays", &[]);
    ear.read().unwrap();
    let mut asks = vec![0, 9, 0];
    for filter in ["apps/a", "apps/b"] {
        text(&mut asks, filter.as_bytes());
        asks.push(0);
    }
    until("nobody is answered with it", || {
        ear.send(&packet(0x82, &asks));
        assert_eq!(ear.read().unwrap().0, 0x90);
        let first = ear.read().unwrap();
        let gone = first == expected(V5, &retained("apps/b", b"stays"));
        gone || ear.read().is_none()
    });
    assert_eq!(desk.kept.lock().unwrap().len(), 1, "it was never stored");
}
