//! The session's rules, input by input.

use fleet_schemas::{Topic, topic::Down};
use proptest::prelude::*;

use super::*;
use crate::{gate::wire::Ask, router::saying::Said};

fn second(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn up(payload: &[u8]) -> Parcel {
    let text = "fleet/v1/me/up/death";
    Parcel::new(Topic::parse(text).unwrap(), text, payload, 1)
}

fn down(payload: &[u8]) -> Parcel {
    let topic = Topic::Down(NodeId::parse("me").unwrap(), Down::Ack);
    let text = topic.to_string();
    Parcel::new(topic, &text, payload, 1)
}

/// Keepalive 10 s, a will, a window of 3, packets of at most 100 bytes.
fn session(version: Version, now: Instant) -> Session {
    let will = Some(Will::Node(up(b"will")));
    let keepalive = second(10);
    let terms = Terms { version, keepalive, will, keeps: false, receive_max: 3, packet_max: 100 };
    Session::new(Party::Node(NodeId::parse("me").unwrap()), terms, now)
}

fn subscribed(version: Version, now: Instant, qos: u8) -> Session {
    let mut session = session(version, now);
    let filters = [ask("fleet/v1/me/down/#", qos)];
    session.subscribe(1, &filters, None, now, &mut Effects::default());
    session
}

fn ask(filter: &str, qos: u8) -> Ask<'_> {
    Ask { filter, qos, no_local: false, as_published: false, replay: wire::Replay::Always }
}

fn effects(input: impl FnOnce(&mut Effects)) -> Effects {
    let mut out = Effects::default();
    input(&mut out);
    out
}

#[test]
fn a_session_ends_one_and_a_half_keepalives_after_its_last_packet() {
    let start = crate::clock::now();
    let mut session = session(Version::V5, start);
    assert_eq!(session.poll_timeout(), start + second(15));
    let pong = effects(|out| session.handle_packet(0xC0, &[], start + second(9), out));
    assert_eq!((pong.write, pong.end), (vec![0xD0, 0], None));
    let early = effects(|out| session.handle_timeout(start + second(15), out));
    assert_eq!((early.end, session.poll_timeout()), (None, start + second(24)));
    let late = effects(|out| session.handle_timeout(start + second(24), out));
    assert_eq!((late.write, late.end), (vec![0xE0, 1, 0x8D], Some(Some(Reason::KeepAlive))));
    assert_eq!(late.publish, [up(b"will")]);
}

#[test]
fn a_pause_suspends_the_keepalive_and_pings_every_half_of_it() {
    let start = crate::clock::now();
    let mut session = session(Version::V4, start);
    session.handle_pause(start + second(14));
    for at in [19, 24, 29] {
        assert_eq!(session.poll_timeout(), start + second(at));
        let ping = effects(|out| session.handle_timeout(start + second(at), out));
        assert_eq!((ping.write, ping.end), (vec![0xD0, 0], None));
    }
    session.handle_resume(start + second(30));
    assert_eq!(session.poll_timeout(), start + second(45));
    session.handle_resume(start + second(40));
    assert_eq!(session.poll_timeout(), start + second(45), "it was not paused");
}

#[test]
fn the_will_is_said_at_every_end_but_disconnect_and_shutdown() {
    let now = crate::clock::now();
    let end = |input: &dyn Fn(&mut Session, &mut Effects)| {
        let mut session = session(Version::V5, now);
        let out = effects(|out| input(&mut session, out));
        assert!(out.end.is_some());
        out.publish.len()
    };
    assert_eq!(end(&|session, out| session.handle_lost(out)), 1);
    assert_eq!(end(&|session, out| session.handle_cut(Cut::TakenOver, out)), 1);
    assert_eq!(end(&|session, out| session.handle_cut(Cut::Kicked("test"), out)), 1);
    assert_eq!(end(&|session, out| session.handle_broken_stream(FrameError::TooLarge, out)), 1);
    assert_eq!(end(&|session, out| session.handle_packet(0xE0, &[0x04], now, out)), 1);
    assert_eq!(end(&|session, out| session.handle_packet(0xE0, &[], now, out)), 0);
    assert_eq!(end(&|session, out| session.handle_cut(Cut::Shutdown, out)), 0);
}

#[test]
fn deliveries_of_qos_1_keep_to_the_window_and_to_free_ids() {
    let now = crate::clock::now();
    let mut session = subscribed(Version::V4, now, 1);
    session.last_id = u16::MAX - 1;
    let ids: Vec<u16> = (0..3)
        .map(|_| {
            assert!(session.can_deliver());
            let out = effects(|out| assert_eq!(session.handle_delivery(&down(b"x"), out), Delivery::Sent));
            u16::from_be_bytes([out.write[out.write.len() - 3], out.write[out.write.len() - 2]])
        })
        .collect();
    assert_eq!(ids, [u16::MAX, 1, 2]);
    assert!(!session.can_deliver());
    let mut out = Effects::default();
    session.handle_packet(0x40, &[0, 9], now, &mut out);
    assert!(!session.can_deliver(), "nobody sent 9");
    session.handle_packet(0x40, &[0, 1], now, &mut out);
    assert!(session.can_deliver());
}

#[test]
fn what_was_not_asked_for_or_does_not_fit_is_unwanted() {
    let now = crate::clock::now();
    let mut out = Effects::default();
    assert_eq!(session(Version::V5, now).handle_delivery(&down(b"x"), &mut out), Delivery::Unwanted);
    let mut session = subscribed(Version::V5, now, 0);
    assert_eq!(session.handle_delivery(&down(&[0; 100]), &mut out), Delivery::Unwanted);
    assert!(out.write.is_empty());
    assert_eq!(session.handle_delivery(&down(b"x"), &mut out), Delivery::Sent);
    session.unsubscribe(1, &["fleet/v1/me/down/#"], &mut out);
    assert_eq!(session.handle_delivery(&down(b"x"), &mut out), Delivery::Unwanted);
}

#[test]
fn a_repeated_unsubscribe_says_there_is_no_such_subscription() {
    let mut session = subscribed(Version::V5, crate::clock::now(), 0);
    let filters = ["fleet/v1/me/down/#", "fleet/v1/me/down/#", "#"];
    let out = effects(|out| session.unsubscribe(7, &filters, out));
    assert_eq!(out.write, [0xB0, 6, 0, 7, 0, 0, 0x11, 0x11]);
}

/// A tool that may hear everything and say `apps/#`; keepalive 60 s, a window of 3, packets of at most 100 bytes.
fn tool(version: Version, now: Instant) -> Session {
    let grants = crate::Grants { read: vec!["#".into()], write: vec!["apps/#".into()] };
    let key = tool::ToolKey { user: "grafana".into(), client_id: "g".into() };
    let will = Saying::new(&Said { payload: b"will", ..said("apps/will") });
    let terms = Terms {
        version,
        keepalive: second(60),
        will: Some(Will::Tool(will)),
        keeps: false,
        receive_max: 3,
        packet_max: 100,
    };
    Session::new(Party::Tool(Box::new(Tool::new(key, grants, 4))), terms, now)
}

fn said(topic: &str) -> Said<'_> {
    let sender = Some(("grafana", "g"));
    Said { topic, payload: b"x", qos: 0, retain: false, expiry: None, properties: &[], sender }
}

fn filters(listen: Option<Listen>) -> (Vec<String>, Vec<String>) {
    let listen = listen.expect("it changed what is heard");
    let all = ["fleet/v1/+/up/#", "fleet/v1/hub/#", "apps/#", "apps/a"];
    let held = all.into_iter().filter(|filter| listen.subs.has(filter)).map(str::to_owned).collect();
    (held, listen.replay.iter().map(|sub| sub.filter.to_string()).collect())
}

#[test]
fn a_tool_s_suback_waits_until_the_router_listens_to_all_it_asked_for() {
    let now = crate::clock::now();
    let mut session = tool(Version::V5, now);
    let (up, hub) = ("fleet/v1/+/up/#", "fleet/v1/hub/#");
    let asked = effects(|out| session.subscribe(1, &[ask(up, 2), ask("a/#/b", 0)], None, now, out));
    assert_eq!((asked.write, filters(asked.listen)), (vec![], (vec![up.to_owned()], vec![])));
    assert_eq!(asked.notes, [Reason::SubscribeDenied]);
    let linked = effects(|out| session.handle_linked(Branches::of(up), out));
    assert_eq!(linked.write, [0x90, 5, 0, 1, 0, 1, 0x8F]);
    let again = effects(|out| session.subscribe(2, &[ask(up, 0)], None, now, out));
    assert_eq!(again.write, [0x90, 4, 0, 2, 0, 0], "it listens already");
    let more = effects(|out| session.subscribe(3, &[ask(hub, 0)], None, now, out));
    assert_eq!((more.write.len(), session.poll_timeout()), (0, now + second(5)));
    let dropped = effects(|out| session.unsubscribe(4, &[hub], out));
    assert_eq!(filters(dropped.listen).0, [up]);
    assert_eq!(dropped.write, [0xB0, 4, 0, 4, 0, 0, 0x90, 4, 0, 3, 0, 0], "nothing is left to wait for");
    assert_eq!(session.poll_timeout(), now + second(90));
}

#[test]
fn retained_messages_answer_as_the_subscription_asks_and_only_where_there_can_be_any() {
    let now = crate::clock::now();
    let mut session = tool(Version::V5, now);
    let replayed = |session: &mut Session, filter, replay| {
        let asks = [Ask { replay, ..ask(filter, 0) }];
        filters(effects(|out| session.subscribe(1, &asks, None, now, out)).listen).1
    };
    use wire::Replay::{Always, Never, New};
    assert_eq!(replayed(&mut session, "apps/a", New), ["apps/a"]);
    assert_eq!(replayed(&mut session, "apps/a", New), [""; 0]);
    assert_eq!(replayed(&mut session, "apps/a", Always), ["apps/a"]);
    assert_eq!(replayed(&mut session, "fleet/v1/hub/#", Never), [""; 0]);
    assert_eq!(replayed(&mut session, "fleet/v1/hub/#", Always), ["fleet/v1/hub/#"]);
    assert_eq!(replayed(&mut session, "fleet/v1/+/up/#", Always), [""; 0]);
}

#[test]
fn a_tool_that_waits_too_long_for_the_router_or_asks_too_much_meanwhile_ends() {
    let now = crate::clock::now();
    let mut session = tool(Version::V5, now);
    let filters = [ask("fleet/v1/+/up/#", 0)];
    effects(|out| session.subscribe(1, &filters, None, now, out));
    let late = effects(|out| session.handle_timeout(now + second(5), out));
    assert_eq!((late.write, late.end), (vec![0xE0, 1, 0x89], Some(Some(Reason::Unavailable))));
    let mut session = tool(Version::V4, now);
    let more = |session: &mut Session| effects(|out| session.subscribe(1, &filters, None, now, out));
    let ended = (0..2_000).find(|_| more(&mut session).end.is_some());
    assert!(ended.is_some_and(|count| count > 100), "{ended:?}");
}

#[test]
fn a_tool_s_publish_is_acknowledged_when_it_is_known_what_became_of_it() {
    let now = crate::clock::now();
    let publish = |session: &mut Session, first: u8, topic: &str| {
        let mut body = vec![0, u8::try_from(topic.len()).unwrap()];
        body.extend(topic.bytes());
        body.extend([0, 7]);
        body.extend((session.version == Version::V5).then_some(0));
        body.push(b'x');
        effects(|out| session.handle_packet(first, &body, now, out))
    };
    for version in [Version::V4, Version::V5] {
        let mut session = tool(version, now);
        let out = publish(&mut session, 0x33, "apps/a");
        let say = out.say.unwrap();
        assert_eq!(say.saying.said(), Said { qos: 1, retain: true, ..said("apps/a") });
        assert_eq!((say.id, out.write), (Some(7), vec![]));
        let kept = effects(|out| session.handle_said(say.id, Ok(()), out));
        assert_eq!((kept.write, kept.end), (vec![0x40, 2, 0, 7], None));
        let denied = publish(&mut session, 0x32, "fleet/v1/a/up/event");
        assert!(denied.say.is_none());
        let mut session = tool(version, now);
        let full = effects(|out| session.handle_said(Some(7), Err(Full), out));
        if version == Version::V5 {
            assert_eq!((full.write, full.end), (vec![0x40, 3, 0, 7, 0x97], None));
            assert_eq!(denied.write, [0x40, 3, 0, 7, 0x87]);
        } else {
            assert_eq!((full.write, full.end), (vec![], Some(Some(Reason::RetainedFull))));
            assert_eq!(denied.end, Some(Some(Reason::PublishDenied)));
            assert_eq!(denied.last_word.unwrap().said().payload, b"will");
        }
    }
}

#[test]
fn the_will_of_a_tool_is_said_at_every_end_but_its_own_goodbye() {
    let now = crate::clock::now();
    let end = |input: &dyn Fn(&mut Session, &mut Effects)| {
        let mut session = tool(Version::V5, now);
        let out = effects(|out| input(&mut session, out));
        assert!(out.end.is_some() && out.publish.is_empty());
        out.last_word.is_some()
    };
    assert!(end(&|session, out| session.handle_lost(out)));
    assert!(end(&|session, out| session.handle_cut(Cut::Slow, out)));
    assert!(end(&|session, out| session.handle_cut(Cut::Shutdown, out)), "it may be retained");
    assert!(end(&|session, out| session.handle_packet(0xE0, &[0x04], now, out)));
    assert!(!end(&|session, out| session.handle_packet(0xE0, &[], now, out)));
    let keeps =
        effects(|out| tool(Version::V5, now).handle_packet(0xE0, &[0, 5, 0x11, 0, 0, 0, 9], now, out));
    assert_eq!((keeps.write, keeps.end), (vec![0xE0, 1, 0x82], Some(Some(Reason::Protocol))));
}

#[test]
fn what_waits_for_a_tool_goes_out_as_its_window_opens_whatever_the_order_of_acknowledgements() {
    let now = crate::clock::now();
    let mut session = tool(Version::V4, now);
    let mut chunk = waiting::Chunk::default();
    for payload in [b"a", b"b", b"c", b"d", b"e"] {
        let packet = Forward { topic: b"t", payload, qos: 1, ..Forward::default() };
        chunk.push(Version::V4, &packet, crate::clock::now);
    }
    let sent = |out: Effects| -> Vec<(u8, u8)> {
        out.write.chunks(8).map(|packet| (packet[6], packet[7])).collect()
    };
    let first = effects(|out| assert!(!session.handle_chunk(Rest::new(chunk), now, out)));
    assert_eq!(sent(first), [(1, b'a'), (2, b'b'), (3, b'c')]);
    let mut acknowledged = |id: u8, all: bool| {
        session.handle_packet(0x40, &[0, id], now, &mut Effects::default());
        let rest = session.rest().expect("something waits");
        sent(effects(|out| assert_eq!(session.handle_chunk(rest, now, out), all)))
    };
    assert_eq!(acknowledged(9, false), [], "nobody sent 9");
    assert_eq!(acknowledged(2, false), [(4, b'd')]);
    assert_eq!(acknowledged(1, true), [(5, b'e')]);
    assert!(session.rest().is_none());
}

proptest! {
    #[test]
    fn no_packets_make_a_session_speak_for_another_or_hold_more_than_its_window(
        five: bool,
        packets in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..60)), 0..40),
        topic in prop_oneof![Just("fleet/v1/me/up/event"), Just("fleet/v1/you/up/event"), Just("fleet/v1/me/#")],
        flags in 0_u8..16,
    ) {
        let now = crate::clock::now();
        let version = if five { Version::V5 } else { Version::V4 };
        let mut session = subscribed(version, now, 1);
        let mut out = Effects::default();
        for (first, body) in &packets {
            session.handle_packet(*first, body, now, &mut out);
            let mut publish = vec![0, u8::try_from(topic.len()).unwrap()];
            publish.extend(topic.as_bytes());
            publish.extend(body);
            session.handle_packet(0x30 | flags, &publish, now, &mut out);
            if session.can_deliver() {
                session.handle_delivery(&down(b"x"), &mut out);
            }
            prop_assert!(session.in_flight.len() <= 3);
        }
        for parcel in &out.publish {
            prop_assert!(parcel.parts().0.starts_with(b"fleet/v1/me/up/"));
            prop_assert!(matches!(&parcel.topic, Topic::Up(node, _) if node.as_str() == "me"));
        }
    }

    #[test]
    fn no_packets_make_a_tool_speak_outside_its_grants(
        five: bool,
        packets in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..60)), 0..40),
        topic in prop_oneof![Just("fleet/v1/me/up/event"), Just("apps/somewhere/a/b/c"), Just("other/topics/of/x/y/")],
        flags in 0_u8..16,
    ) {
        let now = crate::clock::now();
        let mut session = tool(if five { Version::V5 } else { Version::V4 }, now);
        let mut out = Effects::default();
        for (first, body) in &packets {
            for (first, body) in [(*first, body.clone()), (0x30 | flags, [&[0, 20], topic.as_bytes(), body].concat())] {
                session.handle_packet(first, &body, now, &mut out);
                if let Some(say) = out.say.take() {
                    prop_assert!(say.saying.said().topic.starts_with("apps/"));
                    session.handle_said(say.id, Ok(()), &mut out);
                }
            }
        }
        session.handle_lost(&mut out);
        prop_assert!(out.publish.is_empty());
    }
}
